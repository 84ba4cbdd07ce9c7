"""Claims about circuits: planted ones stand, and fall with a head too few or too many."""

import json

import numpy as np
import pytest
from circuits.planted import Planted, all_needed, behaviour_needs_all

from mechrl.ablation import Ablation
from mechrl.circuits.audit import audit_claim, put_to_tests, read_claim
from mechrl.circuits.result import Audit, Claim
from mechrl.errors import FileError, UsageError
from mechrl.results import read_result
from mechrl.tasks import get_task

N_SITES, N_LAYERS, KEEP = 48, 6, 0.8
CIRCUIT = np.array([3, 11, 12, 26, 40])


def as_set(sites):
    kept = np.zeros(N_SITES, bool)
    kept[sites] = True
    return kept


def put(sites, gates=all_needed):
    subject = Planted(gates(CIRCUIT), N_SITES, 128, 0)
    return put_to_tests({"planted": subject}, subject.groups, as_set(sites), KEEP, N_LAYERS, 1)


def broken(tested, by="all three"):
    return [analysis.test(by).breaks for analysis in tested.analyses]


def test_a_planted_circuit_stands_and_its_placebo_falls():
    tested = put(CIRCUIT)
    assert [analysis.part for analysis in tested.analyses] == ["first half", "second half"]
    assert broken(tested) == [[], []]
    assert all(analysis.test("all three").p_holm < 0.05 for analysis in tested.analyses)
    assert all("sufficient" in analysis.test("all three").breaks for analysis in tested.placebo)
    assert tested.random_sets == 100


def test_with_a_head_missing_it_falls():
    assert all("sufficient" in breaks for breaks in broken(put(CIRCUIT[1:])))


def test_with_a_head_too_many_it_falls_and_the_head_is_named():
    tested = put([*CIRCUIT, 30])
    assert broken(tested) == [["minimal"], ["minimal"]]
    assert tested.analyses[0].test("all three").superfluous == ["3.6"]


def test_heads_that_keep_the_logit_difference_alone_fall_on_the_other_two():
    tested = put(CIRCUIT, behaviour_needs_all)
    assert broken(tested, "ratio") == [[], []]
    assert all("sufficient" in breaks for breaks in broken(tested))


def test_no_random_set_of_five_heads_stands():
    rng = np.random.default_rng(5)
    for _ in range(20):
        assert all(broken(put(rng.choice(N_SITES, 5, replace=False))))


def test_one_of_two_that_do_the_same_is_not_necessary():
    """Backed up by others, a head can be sufficient and yet leave the behaviour when it goes."""

    def backed_up(circuit):
        return lambda mask: (1 - (1 - mask[circuit[0]]) * (1 - mask[circuit[1]]), 0 * mask[0] + 1)

    assert broken(put(CIRCUIT[:1], backed_up)) == [["necessary"], ["necessary"]]


def test_a_set_that_is_no_better_than_random_ones_falls():
    """Any head does it alone; beside others it takes this one."""

    def alone_or_first(circuit):
        return lambda mask: (mask.sum() if mask.sum() <= 1 else mask[circuit[0]], 0 * mask[0] + 1)

    assert broken(put(CIRCUIT[:1], alone_or_first)) == [["better than random"], ["better than random"]]


def written(tmp_path, **fields):
    path = tmp_path / "claim.json"
    path.write_text(json.dumps(fields))
    return path


def test_a_claim_is_read_and_audited_on_the_model(mini, tmp_path):
    claim = read_claim(written(tmp_path, task="ioi", heads=["0.3", "1.3"], model="mini", source="somebody"))
    found = audit_claim(mini, claim, get_task("ioi"), ablations=[Ablation.COUNTERFACTUAL])
    assert found.heads == ["0.3", "1.3"]
    assert [analysis.ablation for analysis in found.analyses] == ["counterfactual"] * 2
    assert not found.stands
    path = tmp_path / "audit.json"
    path.write_text(found.model_dump_json())
    assert read_result(path, (Audit,)) == found
    whole = json.loads(path.read_text())
    for change, message in (
        ({"heads": ["6.0"]}, "no head 6.0"),
        ({"placebo_heads": ["0.8"]}, "no head 0.8"),
        ({"n_layers": 10**6}, "n_layers"),
        ({"analyses": []}, "at least 1 item"),
        ({"analyses": [whole["analyses"][0] | {"tests": whole["analyses"][0]["tests"][1:]}]}, "one by all three"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(FileError, match=message):
            read_result(path, (Audit,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "ioi"}, "heads: Field required"),
        ({"task": "ioi", "heads": []}, "at least 1 item"),
        ({"task": "ioi", "heads": ["1.1", "a"]}, "should match pattern"),
        ({"task": "ioi", "heads": "1.1"}, "valid array"),
        ({"heads": ["1.1"]}, "task: Field required"),
        ({"format": "mechrl-attention", "task": "ioi", "heads": ["1.1"]}, "no claim"),
        ({"format": "mechrl-claim", "format_version": 2, "task": "ioi", "heads": ["1.1"]}, "version 2"),
    ],
)
def test_what_is_no_claim_is_refused(tmp_path, fields, message):
    with pytest.raises(FileError, match=message):
        read_claim(written(tmp_path, **fields))
    with pytest.raises(UsageError, match="no such file"):
        read_claim(tmp_path / "none.json")


def test_a_claim_that_does_not_fit_is_refused(mini):
    claim = Claim(task="ioi", heads=["0.3"])
    for changed, error, message in (
        (replace_in(claim, model="gpt2"), FileError, "about 'gpt2', and 'mini' is loaded"),
        (replace_in(claim, model_sha256="0" * 64), FileError, "with fingerprint 000000000000"),
        (replace_in(claim, task="docstring"), FileError, "about the task 'docstring', not 'ioi'"),
        (replace_in(claim, heads=["0.3", "6.0"]), UsageError, "no head 6.0 in a model of 6 layers with 8 heads"),
        (replace_in(claim, heads=[f"{i}.{j}" for i in range(6) for j in range(8)]), UsageError, "every head"),
        (replace_in(claim, heads=[f"2.{j}" for j in range(8)]), UsageError, "no other set of its size"),
    ):
        with pytest.raises(error, match=message):
            audit_claim(mini, changed, get_task("ioi"), ablations=[Ablation.ZERO])


def replace_in(claim, **changes):
    return claim.model_copy(update=changes)
