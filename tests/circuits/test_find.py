"""Circuits of the live model by the commands: found, judged, written, shown, and gone on with after an interrupt."""

import json

import numpy as np
import pytest
import torch

from mechrl.ablation import Ablation, reference
from mechrl.circuits.find import find_circuit
from mechrl.circuits.journal import Journal, Recorded
from mechrl.circuits.result import Circuit
from mechrl.circuits.search import KEPT, Numbers, objective
from mechrl.circuits.smallest import ends
from mechrl.circuits.subjects import Behaviour, Subjects
from mechrl.cli.audit import audit
from mechrl.cli.circuit import circuit
from mechrl.cli.report import report
from mechrl.errors import UsageError
from mechrl.home import kept_files
from mechrl.results import read_result
from mechrl.tasks import TRAIN, get_task


@pytest.fixture(scope="module")
def subjects(mini):
    return Subjects(mini, get_task("ioi"), 0)


def test_gradients_along_a_way_add_up_to_what_is_won(subjects):
    """From no head to all of them, and from all but one head to all, for the heads with the largest gradients."""
    behaviour = subjects.on(subjects.train[:8], Ablation.COUNTERFACTUAL)
    n, middles = behaviour.n_sites, (np.arange(20) + 0.5) / 20
    numbers, _ = ends(behaviour)

    def of(kept):
        measured = {
            name: torch.from_numpy(values[:, 0].copy()) for name, values in behaviour.measure(kept[None]).items()
        }
        return float(objective(measured, numbers, smooth=True))

    whole = of(np.ones(n, bool))
    gradients = np.stack([behaviour.gradient(np.full(n, share), numbers) for share in middles])
    assert gradients.sum(1).mean() == pytest.approx(whole - of(np.zeros(n, bool)), rel=0.05)
    for site in np.argsort(-abs(gradients.mean(0)))[:3]:
        without = np.ones(n, bool)
        without[site] = False
        masks = np.where(without, 1.0, middles[:, None])
        slope = np.mean([behaviour.gradient(mask, numbers)[site] for mask in masks])
        assert slope == pytest.approx(whole - of(without), rel=0.05)


def test_what_is_searched_checked_and_judged_shares_no_prompt_and_no_filler(subjects):
    halves = [subjects.halves(of) for of in range(3)]
    for searched, checked in halves:
        assert (len(searched), len(checked), len(subjects.judged)) == (32, 32, 96)
        assert len({*searched, *checked, *subjects.judged}) == 160
        assert set(subjects.prompts.split[[*searched, *checked]]) == {TRAIN}
    assert len({tuple(searched) for searched, _ in halves}) == 3
    groups = subjects.prompts.group
    assert not {*groups[subjects.train]} & {*groups[subjects.judged]}


def test_what_a_set_keeps_is_what_a_hook_per_head_gives(subjects, mini):
    rows = subjects.judged[:6]
    behaviour = Behaviour(subjects.forward, subjects.prompts[rows], subjects.other(Ablation.ZERO)[rows], batch_size=4)
    kept = np.zeros((1, behaviour.n_sites), bool)
    kept[0, [3, 6, 11, 34, 35]] = True
    measured = behaviour.measure(kept)
    slow = reference.logit_diff(mini, subjects.prompts[rows], np.flatnonzero(~kept[0]).tolist())
    np.testing.assert_allclose(measured["logit_diff"][:, 0], slow, atol=1e-4)


def test_a_circuit_is_found_written_shown_and_audited(call, tmp_path):
    path, page = tmp_path / "circuit.json", tmp_path / "report.html"
    code, out, _ = call(circuit, "successor", "--device", "cpu", "--out", path, "--stability")
    assert code == 0
    assert "KEPT" in out
    assert "the same heads kept under other ablations" in out
    found = read_result(path, (Circuit,))
    assert len(found.heads) < 8
    assert found.judged.kept.verdict == "kept"
    assert found.judged.ablated.verdict == "not kept"
    assert found.prompts >= 64
    assert {one.ablation for one in found.stability.ablations} == {"mean_task", "resample", "zero"}
    assert len(found.stability.halves) == 5
    assert kept_files("circuits") == []
    assert call(report, path, "--out", page)[0] == 0
    text = page.read_text()
    assert f"With {len(found.heads)} of 48 heads the behaviour is kept" in text
    assert "mechrl circuit successor --model mini --keep 0.8 --ablation counterfactual --seed 0 --stability" in text
    whole = json.loads(path.read_text())
    foreign = tmp_path / "foreign.json"
    for change in ({"n_heads": 2}, {"n_layers": 10**5}, {"heads": [whole["heads"][0] | {"head": "9.9"}]}):
        foreign.write_text(json.dumps(whole | change))
        code, _, err = call(report, foreign, "--out", page)
        assert code == 4
        assert "not what mechrl circuit writes" in err
    code, out, _ = call(audit, path, "--device", "cpu", "--ablation", "counterfactual", "--json")
    audited = json.loads(out)
    assert audited["claimed_under"] == "counterfactual"
    breaks = [test["breaks"] for of in audited["analyses"] for test in of["tests"] if test["by"] == "all three"]
    assert code == (3 if any(breaks) else 0)


def test_an_interrupted_search_goes_on(mini, monkeypatch):
    measured, whole = [], Behaviour.measure

    def counted(self, kept):
        measured.append(len(kept))
        if len(measured) == 6:
            raise KeyboardInterrupt
        return whole(self, kept)

    monkeypatch.setattr(Behaviour, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        find_circuit(mini, get_task("successor"))
    assert len(kept_files("circuits")) == 1
    before = sum(measured[:5])
    again = find_circuit(mini, get_task("successor"))
    in_two = before + sum(measured[6:])
    measured[:] = [0] * 6
    assert find_circuit(mini, get_task("successor")) == again
    assert in_two == sum(measured), "nothing was measured twice"


def test_a_journal_takes_no_nonsense(own_home):
    class Subject:
        n_sites, calls = 4, 0

        def measure(self, kept):
            self.calls += 1
            return {name: kept.sum(1) + np.zeros((3, 1)) for name in KEPT}

    subject, kept = Subject(), np.eye(4, dtype=bool)[:2]
    first = Recorded(subject, Journal("a"), "s", 3).measure(kept)
    assert subject.calls == 1
    path = Journal("a").path
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace("1.0", '"1.0x"'), lines[1][:-9], "[1", '["x", NaN]', "7", ""]))
    again = Recorded(subject, Journal("a"), "s", 3).measure(kept)
    assert subject.calls == 2
    for name in KEPT:
        np.testing.assert_array_equal(first[name], again[name])
    assert Journal("b").known == {}


def test_a_gradient_for_another_target_is_another_one(own_home):
    class Subject:
        n_sites = 4

        def gradient(self, mask, numbers):
            return mask * numbers.target

    subject, numbers = Recorded(Subject(), Journal("a"), "s", 3), Numbers(5.0, 0.0, 2.0, 1.0)
    for target in (0.7, 0.8, 0.7):
        found = subject.gradient(np.ones(4), numbers._replace(target=target))
        np.testing.assert_array_equal(found, np.full(4, target))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ioi", "--keep", "0"), "must lie above 0 and below 1"),
        (("ioi", "--keep", "1.2"), "must lie above 0 and below 1"),
        (("ioy",), "ioi"),
        (("ioi", "--ablation", "counterfactal"), "counterfactual"),
        (("ioi", "--ablation", "mean_control"), "without control text"),
    ],
)
def test_wrong_input_is_one_message(call, arguments, message):
    code, _, err = call(circuit, *arguments, "--device", "cpu")
    assert code == 2
    assert message in err


def test_a_model_that_does_not_do_the_task_has_no_circuit(tiny):
    found = find_circuit(tiny, get_task("ioi"))
    assert found.judged is None
    assert found.heads == []
    assert found.refused
    with pytest.raises(UsageError):
        find_circuit(tiny, get_task("ioi"), most_runs=3)
