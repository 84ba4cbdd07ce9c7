"""Sets of two heads, to be ablated together."""

import numpy as np

PAIRS = "pairs"


def pair_sites(n_sites: int) -> np.ndarray:
    """Every pair of sites, int32 [set, 2], the lower one first."""
    return np.stack(np.triu_indices(n_sites, 1), axis=1).astype(np.int32)


def as_sets(sites: np.ndarray, n_sites: int) -> np.ndarray:
    """Sets of sites, int [set, k], as the sweep takes them: bool [set, site]."""
    sets = np.zeros((len(sites), n_sites), bool)
    np.put_along_axis(sets, sites, True, axis=1)
    return sets
