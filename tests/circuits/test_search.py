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
    with_an_opponent,
    with_decoys,
)

from mechrl.circuits.find import judged
from mechrl.circuits.search import Numbers, Search, objective
from mechrl.circuits.smallest import ends, smallest_set

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


def with_a_fluke():
    """Four heads are needed, but on the prompts that are searched on another one does it alone."""
    (_, checked, unseen), circuit = planted(all_needed, 4, 48, 0)
    fluke = next(site for site in range(48) if site not in circuit)
    gates = all_needed(circuit)
    searched = Planted(lambda mask: (torch.maximum(gates(mask)[0], mask[fluke]), gates(mask)[1]), 48, 32, 0)
    return searched, checked, unseen, circuit


def test_a_head_that_does_it_on_the_searched_prompts_alone_is_no_circuit():
    searched, checked, unseen, circuit = with_a_fluke()
    found = smallest_set(searched, checked, 1, KEEP)
    assert {*circuit} <= {*np.flatnonzero(found.kept)}
    assert judged(unseen, found, unseen.groups, KEEP, 6, 0)["judged"].kept.verdict == "kept"


@pytest.mark.parametrize(("seed", "n_sites"), CASES)
def test_a_head_that_works_against_the_answer_is_part_of_the_circuit(seed, n_sites):
    (searched, checked, _), circuit = planted(with_an_opponent, 5, n_sites, seed)
    assert sorted(np.flatnonzero(smallest_set(searched, checked, 1, KEEP).kept)) == sorted(circuit)


def test_no_more_runs_are_used_than_were_given():
    searched, checked, _, _ = with_a_fluke()
    for most_runs in range(60, 90, 3):
        assert smallest_set(searched, checked, 7, KEEP, most_runs).runs <= most_runs


def test_the_objective_worked_out_by_hand():
    """Prompts with margins of ± 0.5 ln 3 nats have a softened agreement of 3/4 and 1/4."""
    half = 0.5 * np.log(3)
    measures = {"logit_diff": [3.0, 5.0], "kl": [0.5, 0.3], "top1_margin": [half, -half]}
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in measures.items()}
    numbers = Numbers(full=5.0, empty=-5.0, empty_kl=4.0, agreement=0.8, target=0.7)
    ratio, fidelity, soft = 4 / 5, 1 - 0.4 / 4, 0.5 / 0.8
    beyond = 0.2 * (ratio + fidelity + soft)
    assert objective(tensors, numbers) == pytest.approx(0.7 + 0.7 + 0.5 + beyond)
    assert objective(tensors, numbers, smooth=True) == pytest.approx(0.7 + 0.7 + soft + beyond)
    more = objective({**tensors, "logit_diff": 2 * tensors["logit_diff"]}, numbers)
    assert more == pytest.approx(5 / 8 + 0.7 + 0.5 + 0.2 * (5 / 8 + fidelity + soft))


def test_the_model_without_heads_says_something_else():
    (searched, _, _), _ = planted(all_needed, 3, 48, 0)
    numbers, agreement = ends(searched)
    assert agreement == 0
    assert numbers.full == pytest.approx(6, rel=0.05)
    assert numbers.empty == pytest.approx(6 * 0.4**3, rel=0.05)
