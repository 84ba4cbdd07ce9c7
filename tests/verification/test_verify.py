"""Verification on `mini`: what it confirms and what it does not."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import SMALL, load_checkpoint

from mechrl.ablation import Ablation, reference
from mechrl.ablation.forward import Forward
from mechrl.ablation.sweep import sweep_readings, sweep_task
from mechrl.building.build import build
from mechrl.building.settings import BuildSettings
from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import read_content, write_content
from mechrl.cli.verify import verify as verify_command
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable
from mechrl.errors import FileError
from mechrl.models import load_model
from mechrl.reporting.terminal import print_verification
from mechrl.results import read_result
from mechrl.search.ppo.checkpoint import CheckpointNote, save_checkpoint
from mechrl.search.ppo.training import PRESETS, train
from mechrl.search.protocol import Evaluation
from mechrl.tasks import EVALUATION, TASKS, TRAIN, as_text, generate, read_task_file
from mechrl.verification import task_answers
from mechrl.verification.fresh import fresh_prompts, placebo
from mechrl.verification.replay import check_fits, default_tolerance
from mechrl.verification.replication import Measured, head_tests, rank_limit
from mechrl.verification.result import Verification
from mechrl.verification.task_answers import PickedHeads, most_picked
from mechrl.verification.verify import verify


@pytest.fixture(scope="module")
def checkpoint(small_cache, tmp_path_factory):
    """A checkpoint of an agent trained for a second on induction and IOI."""
    tasks, picks = ["induction", "ioi"], 16
    preset = PRESETS["default"]
    ppo = train(ParallelEpisodes(ScoreTable.from_cache(small_cache, tasks), preset.n_envs, picks), preset, steps=10_000)
    a = small_cache.attributes
    note = CheckpointNote(
        tasks, ["docstring"], picks, 1.0, 5.0, -1.0, 1, "default", [64, 64], 0, ppo.num_timesteps, 6, 8, a["model"],
        a["model_sha256"], a["ablation"], a["weight_processing"], small_cache.sha256,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.zip"
    save_checkpoint(ppo, note, path)
    return path


@pytest.fixture(scope="module")
def result(mini, small_cache, checkpoint):
    policy, note = load_checkpoint(checkpoint)
    return verify(mini, small_cache, policy, note, top=1, fresh_batches=8, sweep_all=True)


@pytest.fixture(scope="module")
def few(small_cache, tmp_path_factory):
    """Of the cache the first prompts and spans of each split, in two batches of two: a quarter of what is replayed."""
    content = read_content(small_cache.path)
    rows = [*range(4), *range(16, 20)]
    arrays = {name: a if name.startswith("/sites/") else a[rows] for name, a in content.arrays.items()}
    path = tmp_path_factory.mktemp("few") / "few.h5"
    write_content(path, Content(arrays, {**content.attributes, "/": {**content.root, "batch_size": 2}}))
    return Cache.open(path)


def altered(cache: Cache, path, change) -> Cache:
    """A copy of a cache whose damages were altered and which was sealed again."""
    content = read_content(cache.path)
    arrays = {**content.arrays}
    for name in list(arrays):
        if "/ablated" in name:
            arrays[name] = change(name, arrays[name].copy())
    write_content(path, Content(arrays, content.attributes))
    return Cache.open(path)


def test_an_honest_cache_is_confirmed(result, small_cache, mini):
    assert result.confirmed
    assert result.faithful.answer
    for name, task in result.tasks.items():
        assert task.faithful.difference < 1e-4
        assert task.replicates.swept
        assert (task.replicates.measured, task.replicates.best, task.replicates.rank_limit) == (48, 18, 6)
        assert task.replicates.known_answers[0] == 0, "slot fillers of the evaluation half"
        prompts, fresh = small_cache.prompts(name), fresh_prompts(mini, small_cache, name, 64)
        searched = np.intersect1d(prompts.answers[prompts.split == EVALUATION], fresh.answers)
        assert task.replicates.searched_answers == len(searched[searched >= 0])
        assert task.specific.answer
        assert task.specific.permuted
        assert (task.specific.random_failed, task.specific.random_passed) == ((20, 20), [])
        assert task.specific.clean < 0.2 * task.replicates.clean
        for head in task.heads:
            assert head.difference < 1e-4
            assert head.cached == pytest.approx(
                small_cache.scores(name, EVALUATION)[small_cache.site(head.head)], abs=1e-6
            )
            assert head.live == pytest.approx(head.cached, abs=1e-4)
            mean, low, high = head.score
            assert low < mean < high
    first, second, third = result.tasks.values()
    assert (first.confirmed, second.confirmed) == (True, True)
    assert first.complete.best == [first.heads[0].head]
    assert second.complete.coverage[0] >= 0.9
    assert (first.trained, second.trained, third.trained) == (True, True, False)


def test_fresh_damage_is_what_one_hook_per_head_gives(mini, small_cache, checkpoint):
    """Without the sweep of all heads: picks, best and random ones alone; and the placebo's answers too."""
    policy, note = load_checkpoint(checkpoint)
    found = verify(
        mini, small_cache, policy, replace(note, hold_out=[]), top=2, fresh_batches=2, sweep_all=False, joint=True
    )
    for name, task in found.tasks.items():
        assert not task.replicates.swept
        assert 18 + 20 <= task.replicates.measured <= 2 + 18 + 20
        assert task.complete is None
        fresh = fresh_prompts(mini, small_cache, name, 16)
        sites = [small_cache.site(head.head) for head in task.heads]
        clean = reference.logit_diff(mini, fresh)
        assert task.replicates.clean == pytest.approx(clean.mean(), abs=1e-4)
        control = small_cache.control_damage[small_cache.in_split(None, EVALUATION)].mean(0)
        for site, head in zip(sites, task.heads, strict=True):
            damage = clean - reference.logit_diff(mini, fresh, site)
            assert head.damage[0] == pytest.approx(damage.mean(), abs=1e-4)
            assert head.score[0] == pytest.approx(damage.mean() - control[site], abs=1e-4)
            others = [small_cache.damage(other)[:, site].mean() for other in small_cache.tasks if other != name]
            assert head.elsewhere[0] == pytest.approx(np.mean(others), abs=1e-5)
        both = task.joint[1]
        together = clean - reference.logit_diff(mini, fresh, sites)
        assert both.heads == [head.head for head in task.heads]
        assert both.joint[0] == pytest.approx(together.mean(), abs=1e-4)
        permuted = placebo(fresh, 0)
        damage = reference.logit_diff(mini, permuted) - reference.logit_diff(mini, permuted, sites[0])
        assert task.heads[0].placebo.damage[0] == pytest.approx(damage.mean(), abs=1e-4)


def test_what_verify_writes_is_what_the_report_reads(mini, few, checkpoint, tmp_path):
    policy, note = load_checkpoint(checkpoint)
    found = verify(mini, few, policy, replace(note, hold_out=[]), top=2, fresh_batches=1, joint=True, curves=True)
    for name, r in found.tasks.items():
        sites = {ranking: list(map(few.site, of.heads)) for ranking, of in r.curves.rankings.items()}
        assert r.curves.counts == list(range(49))
        assert set(r.curves.rankings) == {"agent", "static order", "attribution", "the task's own order"}
        best = sites["the task's own order"]
        scores = few.scores(name, TRAIN)
        assert (np.diff(scores[best]) <= 1e-6).all()
        for of, ranking in r.curves.rankings.items():
            assert sorted(sites[of]) == list(range(48))
            assert ranking.kept[-1] == ranking.ablated[0] == pytest.approx(r.replicates.clean, abs=1e-4)
            assert ranking.kept[0] == ranking.ablated[-1] == pytest.approx(r.curves.empty, abs=1e-4)
        agent = r.curves.rankings["agent"]
        assert agent.heads[:2] == [head.head for head in r.heads]
        slow = reference.logit_diff(mini, fresh_prompts(mini, few, name, 2), sites["agent"][5:])
        assert agent.kept[5] == pytest.approx(slow.mean(), abs=1e-4)
    path = tmp_path / "verification.json"
    path.write_text(found.model_dump_json(indent=1))
    assert read_result(path, [Verification]) == found
    assert "<table>" in found._repr_html_()


def test_a_placebo_on_which_the_model_still_does_the_task_is_not_asked(mini, small_cache, checkpoint, monkeypatch):
    """As where answers stand in an order; here they are not permuted at all, and no head may pass for that."""
    policy, note = load_checkpoint(checkpoint)
    monkeypatch.setattr(task_answers, "placebo", lambda prompts, seed: prompts)
    found = verify(mini, small_cache, policy, replace(note, hold_out=[]), top=1, fresh_batches=1, sweep_all=False)
    for task in found.tasks.values():
        assert task.specific.clean == task.replicates.clean > 0
        assert (task.specific.permuted, task.specific.passed) == (False, [])
        assert task.specific.answer, "for the random heads, which fail all the same"
        assert task.heads[0].placebo is None


def test_heads_that_pass_with_the_answers_permuted_are_not_specific(mini, small_cache, checkpoint, monkeypatch):
    """Here they are not permuted, and the test is asked all the same: every good head passes."""
    policy, note = load_checkpoint(checkpoint)
    monkeypatch.setattr(task_answers, "placebo", lambda prompts, seed: prompts)
    monkeypatch.setattr(task_answers, "PLACEBO_CLEAN", 2.0)
    found = verify(mini, small_cache, policy, replace(note, hold_out=[]), top=1, fresh_batches=4, sweep_all=True)
    for task in found.tasks.values():
        assert task.replicates.answer
        assert (task.specific.answer, task.specific.passed) == (False, [task.heads[0].head])
        assert task.specific.random_failed == (20, 20)
        assert not task.confirmed
    assert not found.confirmed


def test_heads_at_random_from_the_lower_half_are_not_confirmed(mini, small_cache):
    """Three of them on each of the three tasks, 20 times, among all heads, and among the best and random ones alone."""
    passed = {True: 0, False: 0}
    note = SimpleNamespace(control_weight=1.0)
    control = small_cache.control_damage[small_cache.in_split(None, EVALUATION)]
    for task in small_cache.tasks:
        fresh = fresh_prompts(mini, small_cache, task, 32)
        clean, ablated = (part["logit_diff"] for part in sweep_task(Forward(mini), fresh))
        lower = np.argsort(small_cache.scores(task))[: small_cache.n_sites // 2]
        for draw in range(20):
            picks = np.random.default_rng(draw).choice(lower, 3, replace=False).tolist()
            for swept in passed:
                sites = PickedHeads(small_cache, note, task, picks, None, None, "", swept, draw).measured
                damage = (clean[:, None] - ablated)[:, sites]
                measured = Measured(sites, damage, fresh.group, control[:, sites], float(clean.mean()))
                passed[swept] += sum(not test.why for test in head_tests(measured, picks, rank_limit(48, 3)))
    assert passed == {True: 0, False: 0}, "of 180 heads each"


def test_the_best_and_twenty_others_are_measured_beside_the_picks_in_one_sweep(
    mini, small_cache, checkpoint, monkeypatch
):
    """One a batch, of which no head is measured twice; and what is said meanwhile."""
    policy, note = load_checkpoint(checkpoint)
    swept, said = [], []

    def record(forward, prompts, readings, other, sets):
        swept.append((len(prompts), sets.argmax(1).tolist()))
        assert (sets.sum(1) == 1).all()
        return sweep_readings(forward, prompts, readings, other, sets)

    monkeypatch.setattr("mechrl.verification.live_prompts.sweep_readings", record)
    found = verify(
        mini, small_cache, policy, replace(note, hold_out=[]), top=2, fresh_batches=3, sweep_all=False, seed=3,
        on_step=lambda done, total, doing: said.append((done, total, doing)),
    )  # fmt: skip
    assert len(swept) == 2 * 3
    for i, (name, task) in enumerate(found.tasks.items()):
        picks = {small_cache.site(head.head) for head in task.heads}
        control = small_cache.control_damage.mean(0)
        best = set(np.argsort(-(small_cache.damage(name).mean(0) - control))[:18].tolist())
        for n, sites in swept[3 * i : 3 * i + 3]:
            assert n == small_cache.batch_size
            assert len(sites) == len(set(sites)) == task.replicates.measured == len(picks | best) + 20
            assert picks | best < set(sites)
        assert task.specific.random_failed[1] == 20
        heads = f"fresh prompts of {name}: {len(picks | best) + 20} heads (2 tested, the 18 best, 20 random others)"
        assert [doing for _, _, doing in said if "fresh" in doing][3 * i : 3 * i + 3] == [
            f"{heads}, batch {batch} of 3" for batch in (1, 2, 3)
        ]
    done = [step / total for step, total, _ in said]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] < 1


def test_random_heads_are_drawn_from_those_neither_tested_nor_best(small_cache):
    """Others for another seed, and as many as there are where there are fewer."""

    def picked(picks: list[int], seed: int = 0) -> PickedHeads:
        return PickedHeads(
            small_cache, SimpleNamespace(control_weight=1.0), "ioi", picks, None, None, "", sweep_all=False, seed=seed
        )

    drawn = [picked([0, 47], seed) for seed in range(3)]
    for heads in drawn:
        assert len(set(heads.others)) == 20
        assert not set(heads.others) & {0, 47, *heads.best}
        assert not heads.swept
    assert len({tuple(heads.others) for heads in drawn}) == 3
    many = picked(list(range(14)))
    assert (many.limit, len(many.best)) == (14, 42)
    assert set(many.others) == set(range(14, 48)) - set(many.best)
    assert many.swept, "those are all heads"


def test_a_test_that_random_heads_pass_is_said_not_to_tell_heads_apart(
    mini, small_cache, checkpoint, monkeypatch, capsys
):
    """Good heads are taken for random ones: they pass, the verdict is no, and it is said why."""
    policy, note = load_checkpoint(checkpoint)
    good = property(lambda heads: [site for site in heads.best[:3] if site not in heads.picks])
    monkeypatch.setattr(PickedHeads, "others", good)
    found = verify(mini, small_cache, policy, replace(note, hold_out=[]), top=1, fresh_batches=4, sweep_all=False)
    for task in found.tasks.values():
        assert task.replicates.answer
        failed, of = task.specific.random_failed
        assert of - failed == len(task.specific.random_passed) > 0
        assert (task.specific.passed, task.specific.answer, task.confirmed) == ([], False, False)
    assert not found.confirmed
    print_verification(found)
    said = capsys.readouterr().out
    assert said.count("it does not tell heads apart") == 2
    assert "NOT CONFIRMED: induction: not specific; ioi: not specific" in said


@pytest.mark.slow  # a quarter of an hour on a processor that emulates float16
def test_a_cache_in_half_precision_is_confirmed_within_its_error(small_cache, checkpoint, tmp_path):
    model = load_model("mini", device="cpu")
    path = build(model, replace(SMALL, dtype="float16"), tmp_path / "half.h5")
    half, mini = Cache.open(path), load_model("mini", device="cpu")
    assert half.attributes["dtype"] == "float16"
    assert half.attribution("ioi") is None, "gradients in less than float32 vanish"
    assert 1e-5 < half.attributes["self_check_error"] < 0.01
    assert half.sha256 != small_cache.sha256
    policy, note = load_checkpoint(checkpoint)
    result = verify(mini, half, policy, note, top=1, fresh_batches=8)
    assert result.confirmed
    assert 0.01 < result.faithful.tolerance < 1
    assert not verify(mini, half, policy, note, top=1, fresh_batches=2, tolerance=1e-3).faithful.answer
    content = read_content(path)  # a file cannot buy itself a pass with a large error
    claims = {**content.attributes, "/": {**content.root, "self_check_error": 1e3}}
    write_content(tmp_path / "claims.h5", Content(content.arrays, claims))
    assert default_tolerance(Cache.open(tmp_path / "claims.h5"), mini) < 10
    claims["/"]["dtype"] = "float8"
    write_content(tmp_path / "claims.h5", Content(content.arrays, claims))
    with pytest.raises(FileError, match="no such arithmetic as 'float8'"):
        default_tolerance(Cache.open(tmp_path / "claims.h5"), mini)


@pytest.mark.parametrize(
    "kind",
    [
        kind.value
        if kind in (Ablation.MEAN_TASK, Ablation.COUNTERFACTUAL)
        else pytest.param(kind.value, marks=pytest.mark.slow)
        for kind in Ablation
        if kind is not Ablation.ZERO
    ],
)
def test_a_cache_of_every_ablation_is_replayed(mini, checkpoint, tmp_path, kind):
    """The same replacements are put in at verification as at the build, on the cached prompts and on fresh ones."""
    few = BuildSettings(("induction", "ioi"), batches=6, batch_size=4, control_batches=3, ablation=kind)
    cache = Cache.open(build(mini, few, tmp_path / "other.h5"))
    policy, note = load_checkpoint(checkpoint)
    with pytest.raises(FileError, match=f"its ablation is zero, the cache's {kind}"):
        check_fits(cache, note)
    found = verify(
        mini, cache, policy, replace(note, ablation=kind, hold_out=[]), top=1, fresh_batches=2, sweep_all=False
    )
    assert found.faithful.answer
    best = found.tasks["ioi"].heads[0]
    assert abs(best.score[0] - best.cached) < 0.5 * best.cached, "fresh prompts with other replacements"
    if kind.startswith("zero"):
        return
    content = read_content(cache.path)
    attributes = {place: dict(values) for place, values in content.attributes.items()}
    attributes["/tasks/ioi"]["replacement_sha256"] = "0" * 64
    write_content(tmp_path / "lie.h5", Content(content.arrays, attributes))
    with pytest.raises(FileError, match="ablated with other replacements than its prompts"):
        verify(mini, Cache.open(tmp_path / "lie.h5"), policy, replace(note, ablation=kind, hold_out=[]), top=1)


def test_an_ablation_that_mechrl_does_not_know_is_refused(mini, small_cache, tmp_path):
    content = read_content(small_cache.path)
    attributes = {**content.attributes, "/": {**content.attributes["/"], "ablation": "optimal"}}
    write_content(tmp_path / "new.h5", Content(content.arrays, attributes))
    with pytest.raises(FileError, match="knows no ablation 'optimal'"):
        _ = Cache.open(tmp_path / "new.h5").ablation


def test_few_groups_confirm_nothing(mini, small_cache, checkpoint, tmp_path):
    """Resampling one group gives an interval without width; the heads are good, and still not confirmed."""
    texts = as_text(generate(TASKS["ioi"], mini.vocabulary, 12, EVALUATION, 99), mini.vocabulary)
    policy, note = load_checkpoint(checkpoint)
    for n, confirmed in ((1, False), (12, True)):
        (tmp_path / "ioi.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts[:n]))
        file = read_task_file(tmp_path / "ioi.jsonl")
        found = verify(
            mini, small_cache, policy, replace(note, hold_out=[]), top=1, fresh_batches=1, fresh_files={"ioi": file}
        )
        assert found.tasks["ioi"].replicates.fresh_from == str(tmp_path / "ioi.jsonl")
        assert found.tasks["ioi"].replicates.groups == n
        head = found.tasks["ioi"].heads[0]
        assert head.score[1] > 0
        assert head.why == ("" if confirmed else "fewer than 8 groups")
        assert found.tasks["ioi"].confirmed == confirmed


def test_fresh_files_must_be_of_the_checkpoints_tasks(small_cache, checkpoint, tmp_path, call):
    line = {"prompt": "Mary saw the ring and the", "answer": " ring", "wrong": " hat"}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("iou", "ioi"):
            (tmp_path / folder / f"{name}.jsonl").write_text(json.dumps(line))
    flags = (checkpoint, "--cache", small_cache.path)
    code, _, err = call(verify_command, *flags, "--fresh", tmp_path / "a" / "iou.jsonl")
    assert code == 2
    assert "Did you mean 'ioi'" in err
    files = (tmp_path / "a" / "ioi.jsonl", tmp_path / "b" / "ioi.jsonl")
    code, _, err = call(verify_command, *flags, "--fresh", files[0], "--fresh", files[1])
    assert code == 2
    assert "two files of one name" in err


def test_heads_without_an_effect_are_not_confirmed(mini, small_cache, checkpoint, monkeypatch):
    """The worst heads in place of the picked ones."""
    worst = np.argsort(small_cache.scores("ioi"))[:2]
    monkeypatch.setattr("mechrl.verification.verify.most_picked", lambda evaluation, top: worst)
    policy, note = load_checkpoint(checkpoint)
    failed = verify(mini, small_cache, policy, replace(note, hold_out=[]), top=2, fresh_batches=2, sweep_all=True)
    assert failed.faithful.answer
    assert not failed.confirmed
    assert all("score not above zero" in head.why for head in failed.tasks["ioi"].heads)
    assert all("not in the top 6" in head.why for head in failed.tasks["ioi"].heads)
    assert not failed.tasks["ioi"].complete.answer


def one_head(name, values):
    """Makes a head look important that is not, on the prompts of every task."""
    if name.endswith("logit_diff"):
        values[:, 40] -= 20
    return values


def held_out_only(name, values):
    return values + 0.5 if name == "/tasks/docstring/ablated/logit_diff" else values


def training_half(name, values):
    """All training numbers of the trained tasks, but for two prompts."""
    if "/ablated/logit_diff" in name and "docstring" not in name:
        values[2 : len(values) // 2] *= -3
    return values


def another_measure(name, values):
    return values + 0.5 if name == "/tasks/ioi/ablated/kl" else values


def control_only(name, values):
    return values + 0.1 if name == "/control/ablated" else values


def a_head_nobody_picks(name, values):
    """Hides the best head of induction."""
    if name == "/tasks/induction/ablated/logit_diff":
        values[:, 3] += 30
    return values


def test_few_of_its_prompts_are_replayed_as_all_are(mini, few, checkpoint):
    """So that what the next tests refuse is refused for what was altered."""
    policy, note = load_checkpoint(checkpoint)
    assert verify(mini, few, policy, note, top=2, fresh_batches=2, sweep_all=False).faithful.answer


@pytest.mark.parametrize(
    "change",
    [
        lambda name, values: values * 0.9,
        one_head,
        held_out_only,
        a_head_nobody_picks,
        training_half,
        another_measure,
        control_only,
    ],
    ids=["all numbers", "one head", "held-out task", "a head nobody picks", "training half", "kl", "control"],
)
def test_an_altered_and_resealed_cache_is_not_confirmed(mini, few, checkpoint, tmp_path, change):
    lying = altered(few, tmp_path / "lying.h5", change)
    policy, note = load_checkpoint(checkpoint)
    if change is not held_out_only:
        note = replace(note, hold_out=[])
    found = verify(mini, lying, policy, note, top=2, fresh_batches=2, sweep_all=False)
    assert not found.faithful.answer
    assert not found.confirmed


def test_numbers_shifted_clean_and_ablated_alike_are_not_confirmed(mini, few, checkpoint, tmp_path):
    """The damage is the same, and the cache still lies about the model."""
    content = read_content(few.path)
    shifted = {k: v - 3 if k.startswith("/tasks/ioi/") and "logit_diff" in k else v for k, v in content.arrays.items()}
    write_content(tmp_path / "lying.h5", Content(shifted, content.attributes))
    policy, note = load_checkpoint(checkpoint)
    assert not verify(
        mini, Cache.open(tmp_path / "lying.h5"), policy, note, top=1, fresh_batches=2, sweep_all=False
    ).faithful.answer


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("/", {"tokenizer_sha256": "0" * 64}, "another tokenizer"),
        ("/tasks/ioi", {"generator_version": 99}, "version 99 of their generator"),
    ],
)
def test_prompts_that_are_not_this_models_are_refused(mini, small_cache, checkpoint, tmp_path, group, change, message):
    content = read_content(small_cache.path)
    attributes = {**content.attributes, group: {**content.attributes[group], **change}}
    write_content(tmp_path / "other.h5", Content(content.arrays, attributes))
    policy, note = load_checkpoint(checkpoint)
    with pytest.raises(FileError, match=message):
        verify(mini, Cache.open(tmp_path / "other.h5"), policy, note, top=1, fresh_batches=1)


def test_ids_beyond_the_vocabulary_are_refused(mini, small_cache, checkpoint, tmp_path):
    content = read_content(small_cache.path)
    arrays = {**content.arrays, "/tasks/ioi/answers": content.arrays["/tasks/ioi/answers"] + 10_000}
    write_content(tmp_path / "other.h5", Content(arrays, content.attributes))
    policy, note = load_checkpoint(checkpoint)
    with pytest.raises(FileError, match="beyond the model's vocabulary"):
        verify(mini, Cache.open(tmp_path / "other.h5"), policy, note, top=1, fresh_batches=1)


def test_the_command_ends_with_0_3_and_4(small_cache, checkpoint, tmp_path, call):
    flags = ("--fresh-batches", 8, "--top", 1, "--device", "cpu")
    written = tmp_path / "it is.json"
    code, out, _ = call(verify_command, checkpoint, "--cache", small_cache.path, *flags, "--out", written)
    assert code == 0
    assert "CONFIRMED" in out
    found = json.loads(written.read_text())
    assert found["confirmed"]
    assert found["command"].startswith(f"mechrl-verify {checkpoint} --cache {small_cache.path} --fresh-batches 8")
    assert found["command"].endswith(f"--out '{written}'"), "a shell takes it as it was"
    for taken in (checkpoint, small_cache.path):
        before = taken.read_bytes()
        code, _, err = call(verify_command, checkpoint, "--cache", small_cache.path, "--out", taken)
        assert code == 2
        assert "would overwrite what is verified" in err
        assert taken.read_bytes() == before
    lying = altered(small_cache, tmp_path / "lying.h5", lambda name, values: values * 0.9)
    code, out, err = call(verify_command, checkpoint, "--cache", lying.path, *flags)
    assert code == 3
    assert "NOT CONFIRMED" in out
    assert "not the very cache" in err
    changed = bytearray(lying.path.read_bytes())
    changed[len(changed) // 2] ^= 1
    lying.path.write_bytes(changed)
    code, _, err = call(verify_command, checkpoint, "--cache", lying.path)
    assert code == 4
    assert "was changed" in err


def test_a_cache_of_another_model_is_refused(small_cache, checkpoint, tmp_path):
    _, note = load_checkpoint(checkpoint)
    check_fits(small_cache, note)
    with pytest.raises(FileError, match="its model is ffff"):
        check_fits(small_cache, replace(note, model_sha256="f" * 64))
    with pytest.raises(FileError, match="its ablation is mean"):
        check_fits(small_cache, replace(note, ablation="mean"))
    with pytest.raises(FileError, match="built from another model"):
        check_fits(small_cache, note, "f" * 64)
    with pytest.raises(FileError, match="searches with attribution"):
        check_fits(small_cache, replace(note, hints=True))
    with pytest.raises(FileError, match="it knows task 'greater_than'"):
        check_fits(small_cache, replace(note, hold_out=["greater_than"]))


def test_fresh_prompts_are_not_in_the_cache(mini, small_cache):
    for task in small_cache.tasks:
        fresh, old = fresh_prompts(mini, small_cache, task, 64), small_cache.prompts(task)
        assert len(fresh) == 64
        assert not set(fresh.answers.ravel()) & set(old.answers[old.split == 0].ravel()), "of the evaluation half"
        assert not {r.tobytes() for r in fresh.tokens} & {r[: fresh.tokens.shape[1]].tobytes() for r in old.tokens}


def test_most_picked_are_those_most_often_best():
    """Head 1 is best twice, head 0 once; head 2 has the higher mean of the others."""
    evaluation = Evaluation(
        "t",
        picked=np.array([[0, 1, 2], [1, 2, 3], [1, 0, 3]]),
        seen=np.array([[9, 1, 8], [5, 4, 0], [3, 2, 1]], np.float32),
        runs=np.zeros((3, 3)),
        scores=np.zeros((3, 5)),
        true_scores=np.zeros((3, 5)),
    )
    assert most_picked(evaluation, 3).tolist() == [1, 0, 2]
    assert most_picked(evaluation, 9).tolist() == [1, 0, 2, 3], "only heads that were picked"
