"""The search for circuits: planted ones are found, and what cannot be kept is refused."""

import numpy as np
import pytest
import torch
from circuits.planted import (
    Planted,
    all_needed,
    behaviour_needs_all,
    either_of_the_last_two,
    planted,
    with_decoys,
)

from mechrl.circuits.find import judged
from mechrl.circuits.search import Search
from mechrl.circuits.smallest import smallest_set

KEEP = 0.8
CASES = [(seed, n_sites) for seed, n_sites in enumerate((48, 48, 144, 270))]


@pytest.mark.parametrize(("seed", "n_sites"), CASES)
@pytest.mark.parametrize("size", [3, 5, 8])
def test_a_planted_circuit_is_found_exactly(size, seed, n_sites):
    (searched, checked, unseen), circuit = planted(all_needed, size, n_sites, seed)
    found = smallest_set(searched, checked, 1, KEEP)
    assert sorted(np.flatnonzero(found.kept)) == sorted(circuit)
    assert found.runs <= 150
    fields = judged(unseen, found, unseen.groups, KEEP, 6, seed)
    assert fields["judged"].kept.verdict == "kept"
    assert fields["judged"].ablated.verdict == "not kept"
    assert fields["judged"].random.kept == 0


@pytest.mark.parametrize(("seed", "n_sites"), CASES)
def test_of_two_heads_that_do_the_same_one_is_found(seed, n_sites):
    (searched, checked, unseen), circuit = planted(either_of_the_last_two, 6, n_sites, seed)
    found = smallest_set(searched, checked, 1, KEEP)
    heads = set(np.flatnonzero(found.kept))
    assert heads in ({*circuit[:-1]}, {*circuit[:-2], circuit[-1]})
    assert judged(unseen, found, unseen.groups, KEEP, 6, seed)["judged"].kept.verdict == "kept"


@pytest.mark.parametrize(("seed", "n_sites"), CASES)
def test_where_only_the_logit_difference_survives_no_circuit_is_named(seed, n_sites):
    (searched, checked, unseen), _ = planted(behaviour_needs_all, 4, n_sites, seed)
    found = smallest_set(searched, checked, 1, KEEP)
    assert found.kept is None
    assert "no set of fewer than 90%" in found.refused
    fields = judged(unseen, found, unseen.groups, KEEP, 6, seed)
    assert set(fields) == {"by_logit_diff"}
    by_logit_diff = fields["by_logit_diff"].kept
    assert by_logit_diff.ratio.value.low > KEEP
    assert by_logit_diff.agreement.value.high < KEEP
    assert by_logit_diff.verdict == "not kept"


@pytest.mark.parametrize(("seed", "n_sites"), CASES)
def test_heads_that_only_help_while_one_is_missing_are_left_out(seed, n_sites, monkeypatch):
    (searched, checked, _), circuit = planted(with_decoys, 8, n_sites, seed)
    found = smallest_set(searched, checked, 1, KEEP)
    assert sorted(np.flatnonzero(found.kept)) == sorted(circuit[:5])
    monkeypatch.setattr(Search, "_neighbours", lambda self, point, most: np.zeros((0, n_sites), bool))
    assert smallest_set(searched, checked, 1, KEEP).kept.sum() > 5, "the orders alone have not found it"


def test_a_head_that_does_it_on_the_searched_prompts_alone_is_no_circuit():
    (_, checked, unseen), circuit = planted(all_needed, 4, 48, 0)
    fluke = next(site for site in range(48) if site not in circuit)
    gates = all_needed(circuit)
    searched = Planted(lambda mask: (torch.maximum(gates(mask)[0], mask[fluke]), gates(mask)[1]), 48, 32, 0)
    found = smallest_set(searched, checked, 1, KEEP)
    assert {*circuit} <= {*np.flatnonzero(found.kept)}
    assert judged(unseen, found, unseen.groups, KEEP, 6, 0)["judged"].kept.verdict == "kept"
