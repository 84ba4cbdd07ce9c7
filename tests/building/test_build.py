"""Building: by shards, resumable, the same every time."""

import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers import ARCHITECTURES, randomize, save, table_cache
from scipy import stats

from mechrl.ablation import reference
from mechrl.ablation.attribution import STEPS
from mechrl.building import build as build_module
from mechrl.building.build import build, merge_files
from mechrl.building.cost import Work
from mechrl.building.material import prepare
from mechrl.building.merge import Piece
from mechrl.building.settings import BuildSettings, split_batches
from mechrl.building.workers.worker import Worker
from mechrl.cache.format import Content, check_content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import manifest_path, read_content, write_content
from mechrl.cache.top import top_heads
from mechrl.cli.cache import cache as cache_command
from mechrl.errors import FileError, MachineError, UsageError
from mechrl.intervals import bootstrap_means, interval
from mechrl.models import load_model
from mechrl.tasks import EVALUATION, TRAIN, read_task_file

TINY = BuildSettings(tasks=("ioi",), batches=6, batch_size=2, control_batches=3)


def test_the_last_quarter_and_at_least_two_batches_are_evaluation():
    assert [split_batches(n) for n in (3, 4, 16, 64)] == [(1, 2), (2, 2), (12, 4), (48, 16)]


def test_a_cache_holds_what_the_slow_reference_measures(mini, small_cache):
    for task in ("induction", "ioi", "docstring"):
        prompts = small_cache.prompts(task)[small_cache.in_split(task, EVALUATION)][:8]
        rows = np.flatnonzero(small_cache.in_split(task, EVALUATION))[:8]
        clean = reference.logit_diff(mini, prompts)
        np.testing.assert_allclose(small_cache.clean(task)[rows], clean, atol=1e-4)
        for site in (0, 3, 20, 47):
            live = clean - reference.logit_diff(mini, prompts, site)
            np.testing.assert_allclose(small_cache.damage(task)[rows, site], live, atol=1e-4)
    assert np.abs(small_cache.damage("ioi")).max() > 1
    assert small_cache.attributes["self_check_error"] <= 1e-5
    assert small_cache.task_attributes("ioi")["does_task"]
    assert small_cache.answer_overlap("ioi") == (0, len(set(small_cache.prompts("ioi").answers[16:].ravel())))


def test_pairs_are_swept_as_one_hook_for_each_of_two_heads(tmp_path, call):
    model = load_model(str(save(randomize(ARCHITECTURES["gpt2"]()), tmp_path / "model")), device="cpu")
    settings = BuildSettings(("ioi",), batches=3, batch_size=2, control_batches=3, sets="pairs")
    cache = Cache.open(build(model, settings, tmp_path / "pairs.h5"))
    sites, damage = cache.pairs("ioi")
    assert sites.shape == (12 * 11 // 2, 2)
    prompts, loss = cache.prompts("ioi"), cache.content.arrays["/control/sets/pairs"]
    spans = cache.content.arrays["/control/tokens"]
    for which in (0, 30, 65):
        slow = reference.logit_diff(model, prompts, sites[which].tolist())
        np.testing.assert_allclose(damage[:, which], cache.clean("ioi") - slow, atol=1e-4)
        slow = reference.control_loss(model, spans, sites[which].tolist())
        np.testing.assert_allclose(loss[:, which], slow, atol=1e-5)
    train = prompts.split == TRAIN
    summed = cache.damage("ioi")[:, sites].sum(2)
    furthest = np.argsort(-np.abs((damage - summed)[train].mean(0)))[:3]
    code, out, _ = call(cache_command, "pairs", cache.path, "-n", 3, "--json")
    assert code == 0
    shown = json.loads(out)["ioi"]
    assert [pair["heads"] for pair in shown] == [[cache.head(s) for s in sites[which]] for which in furthest]
    for pair, which in zip(shown, furthest, strict=True):
        assert pair["joint"][0] == pytest.approx(damage[~train, which].mean(), abs=1e-5)
        assert pair["interaction"][0] == pytest.approx((damage - summed)[~train, which].mean(), abs=1e-5)
    content = read_content(cache.path)
    for path, change, message in (
        ("/sets/pairs/sites", lambda sites: sites + 1, "heads that there are not"),
        ("/tasks/ioi/sets/pairs/logit_diff", lambda ablated: ablated[:, 1:], "a column for each set"),
    ):
        with pytest.raises(FileError, match=message):
            check_content(Content({**content.arrays, path: change(content.arrays[path])}, content.attributes))


def test_a_cache_without_pairs_says_how_to_get_them(small_cache, call):
    code, _, err = call(cache_command, "pairs", small_cache.path)
    assert code == 2
    assert "build a cache with sets of pairs" in err


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """What an uninterrupted build of `tiny` makes."""
    return Cache.open(build(tiny, TINY, tmp_path_factory.mktemp("whole") / "whole.h5"))


def test_two_builds_are_the_same_cache(tiny, whole, tmp_path):
    again = Cache.open(build(tiny, TINY, tmp_path / "again.h5"))
    assert again.sha256 == whole.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.h5", "again.h5.json"]
    assert json.loads(manifest_path(again.path).read_text())["content_sha256"] == again.sha256


def test_an_interrupted_build_goes_on_where_it_stopped(tiny, whole, tmp_path):
    out = tmp_path / "out.h5"
    work = Work(tiny, prepare(tiny, TINY), TINY)
    last = work.of(Piece("ioi", 8, 4))
    told = []

    def stop(done, total):
        told.append(done)
        if done > total - last / 2:  # the second shard of ioi is half done
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tiny, TINY, out, on_progress=stop)
    assert not out.exists()
    shards = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.h5.build").glob("*.h5")}
    assert len(shards) == 2
    (tmp_path / "out.h5.build" / "ioi-0000000.h5").write_bytes(b"damaged")
    counted = []
    again = Cache.open(build(tiny, TINY, out, on_progress=lambda done, total: counted.append(done)))
    assert again.sha256 == whole.sha256
    control = work.of(Piece("control", 0, 6))
    assert counted[0] == control, "control was kept, the damaged shard was not"
    assert counted[: len(told) - told.index(control) - 1] == told[told.index(control) + 1 :]
    assert not (tmp_path / "out.h5.build").exists()


def test_a_build_with_other_settings_is_refused_with_the_difference(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out.h5"
    monkeypatch.setattr(build_module, "merge", lambda shards: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(tiny, TINY, out)
    assert list((tmp_path / "out.h5.build").glob("*.h5"))
    with pytest.raises(FileError, match="seed 0 → 1"):
        build(tiny, BuildSettings(tasks=("ioi",), batches=6, batch_size=2, control_batches=3, seed=1), out)


def test_a_number_that_is_not_finite_names_task_and_rows(tiny, tmp_path, monkeypatch):
    def broken(self, prompts, replacement):
        raise MachineError("nan on prompt 3 of the batch with head 0.1 ablated")

    monkeypatch.setattr("mechrl.building.workers.worker.Worker._task", broken)
    with pytest.raises(MachineError, match=r"ioi, rows 0 to 1: nan on prompt 3 .* head 0.1"):
        build(tiny, TINY, tmp_path / "out.h5")


@pytest.mark.parametrize(("kind", "with_twins"), [("zero", 0), ("counterfactual", 1)])
def test_a_batch_is_run_through_the_intact_model_once(tiny, tmp_path, monkeypatch, kind, with_twins):
    """Only what starts from tokens embeds: the intact model, the twins, and the five points of attribution."""
    embedded = []
    batch = Worker._batch

    def counted(self, shard, rows):
        handle = tiny.bridge.embed.register_forward_hook(lambda *_: embedded.append(shard.piece.name))
        try:
            return batch(self, shard, rows)
        finally:
            handle.remove()

    monkeypatch.setattr(Worker, "_batch", counted)
    settings = BuildSettings(tasks=("ioi",), batches=3, batch_size=2, control_batches=3, ablation=kind)
    build(tiny, settings, tmp_path / "out.h5")
    assert Counter(embedded) == dict.fromkeys(("ioi", "control"), 3 * (1 + with_twins + STEPS))


def test_two_builds_of_one_file_at_once_are_refused(tiny, tmp_path):
    out = tmp_path / "out.h5"
    refused = []

    def build_again(done, total):
        if 0 < done < total:
            return
        with pytest.raises(UsageError, match=f"being built by process {os.getpid()}"):
            build(tiny, TINY, out)
        refused.append(done)

    build(tiny, TINY, out, on_progress=build_again)
    assert len(set(refused)) == 2, "at the beginning and at the end"


def test_leftovers_of_a_killed_build_are_removed(tiny, tmp_path):
    (tmp_path / "out.h5.build").mkdir()
    for leftover in (".out.h5.123.tmp", ".out.h5.json.new.123.tmp", "out.h5.build/.ioi-0000000.h5.123.tmp"):
        (tmp_path / leftover).write_text("half")
    build(tiny, TINY, tmp_path / "out.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.h5", "out.h5.json"]


@pytest.fixture(scope="module")
def shards(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return [build(tiny, TINY, folder / f"{i}.h5", shard=(i, 3)) for i in (1, 2, 3)]


def test_merged_shards_are_the_unsharded_cache(shards, whole, tmp_path):
    merge_files(tmp_path / "merged.h5", [shards[i] for i in (2, 0, 1)])
    assert Cache.open(tmp_path / "merged.h5").sha256 == whole.sha256
    assert whole.attribution("ioi", integrated=True).shape == whole.damage("ioi").shape
    with pytest.raises(FileError, match="not a finished cache"):
        Cache.open(shards[0])


def test_shards_that_do_not_make_a_cache_are_refused(tiny, shards, whole, tmp_path):
    out = tmp_path / "merged.h5"
    with pytest.raises(FileError, match="a part is missing: there is none with ioi rows from"):
        merge_files(out, shards[:2])
    with pytest.raises(FileError, match="two parts hold"):
        merge_files(out, [*shards, shards[1]])
    content = read_content(shards[2])
    other = {**content.attributes, "/": {**content.root, "seed": 9}}
    write_content(tmp_path / "other.h5", Content(content.arrays, other))
    with pytest.raises(FileError, match="different builds: seed is 0 and 9"):
        merge_files(out, [*shards[:2], tmp_path / "other.h5"])
    with pytest.raises(FileError, match="not a part of a build but a finished cache"):
        merge_files(out, [whole.path])
    with pytest.raises(UsageError, match="use at most 3 shards"):
        build(tiny, TINY, out, shard=(4, 4))
    assert not out.exists()


def test_parts_made_from_different_versions_of_a_task_file_are_refused(tiny, tmp_path):
    lines = [
        {"prompt": f"Mary saw the {a} and the {b} and the", "answer": f" {a}", "wrong": f" {b}"}
        for a in ("ring", "bone", "book", "ball")
        for b in ("hat", "key", "cup")
    ]

    def part(index, lines):
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        file = read_task_file(tmp_path / "own.jsonl")
        settings = replace(TINY, tasks=(), files=(file,), batch_size=2)
        return build(tiny, settings, tmp_path / f"{index}.h5", shard=(index, 2))

    first, second = part(1, lines), part(2, lines)
    merge_files(tmp_path / "good.h5", [first, second])
    assert Cache.open(tmp_path / "good.h5").tasks == ["own"]
    content = read_content(second)
    attributes = {**content.attributes, "/tasks/own": {**content.attributes["/tasks/own"], "source": "elsewhere"}}
    write_content(tmp_path / "altered.h5", Content(content.arrays, attributes), manifest=False)
    with pytest.raises(FileError, match="says other things of /tasks/own"):
        merge_files(tmp_path / "bad.h5", [first, tmp_path / "altered.h5"])
    for other in (lines[::-1], lines[:10]):
        part(2, other)
        for parts in ([first, second], [second, first]):
            with pytest.raises(FileError, match="the parts belong to different builds"):
                merge_files(tmp_path / "bad.h5", parts)
    assert not (tmp_path / "bad.h5").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("iou",)}, "Did you mean 'ioi'"),
        ({"tasks": ()}, "one or more tasks"),
        ({"ablation": "mean"}, "unknown ablation 'mean'"),
        ({"tasks": ("ioi", "ioi")}, "each once"),
        ({"batches": 2}, "batches must be at least 3"),
        ({"control_batches": 0}, "control batches"),
        ({"batch_size": 0}, "batch size"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        BuildSettings(**settings)


def test_control_spans_shrink_to_a_short_context(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tiny), "n_ctx", property(lambda self: 30))
    spans = Cache.open(build(tiny, TINY, tmp_path / "out.h5")).content.arrays["/control/tokens"]
    assert spans.shape[1] == 30
    assert (spans[:, 0] == tiny.vocabulary.bos).all()


def test_prompts_longer_than_the_context_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tiny), "n_ctx", property(lambda self: 10))
    with pytest.raises(UsageError, match=rf"task 'ioi' has \d+ tokens in a sequence and '{tiny.name}' takes 10"):
        build(tiny, TINY, tmp_path / "out.h5")


def test_bootstrap_agrees_with_scipy_when_every_row_is_a_group():
    values = np.random.default_rng(0).exponential(size=(60, 1))
    low, high = interval(bootstrap_means(values, np.arange(60)))
    theirs = stats.bootstrap((values[:, 0],), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
    assert low[0] == pytest.approx(theirs.low, abs=0.03)
    assert high[0] == pytest.approx(theirs.high, abs=0.03)


def test_bootstrap_keeps_groups_together():
    values = np.repeat(np.random.default_rng(0).normal(size=10), 50)[:, None]
    together = interval(bootstrap_means(values, np.repeat(np.arange(10), 50)))
    apart = interval(bootstrap_means(values, np.arange(500)))
    assert together[1] - together[0] > 4 * (apart[1] - apart[0])


def test_top_heads_are_sorted_and_carry_intervals(small_cache):
    for by, key in (
        ("score", lambda h: h.score[0]),
        ("damage", lambda h: h.damage[0]),
        ("abs", lambda h: abs(h.score[0])),
    ):
        heads = top_heads(small_cache, "ioi", 48, by)
        assert [key(h) for h in heads] == sorted((key(h) for h in heads), reverse=True)
        for head in heads:
            for mean, low, high in (head.damage, head.control, head.score):
                assert low <= mean <= high
            assert head.score[0] == pytest.approx(head.damage[0] - head.control[0], abs=1e-5)
            assert head.indirect[0] == pytest.approx(head.damage[0] - head.direct[0], abs=1e-5)


def test_specificity_ranks_and_marks_by_hand(tmp_path):
    """20 heads, three tasks. Head 0 serves all three; head 1 one of them; head 2 is good only where control is free."""
    damage = {name: np.tile(np.linspace(0.01, 0, 20), (8, 1)) for name in "abc"}
    for name in "abc":
        damage[name][:, 0] = 2
    damage["a"][:, 1] = 4
    damage["a"][:, 2] = 1
    control = np.zeros((8, 20))
    control[:, 2] = 1.1
    cache = table_cache(tmp_path / "t.h5", damage, control, 4, 5)
    top = {head.head: head for head in top_heads(cache, "a", n=20)}
    assert top["0.1"].specificity[0] == pytest.approx(4 - damage["b"][0, 1])
    assert top["0.0"].specificity[0] == pytest.approx(0)
    assert top["0.1"].ranks == [1, 1, 1, 1]
    assert top["0.0"].ranks == [2, 2, 2, 2]
    assert top["0.2"].ranks == [3, 3, 20, 20]
    assert top["0.2"].marks == ["depends on the weight"]
    assert top["0.0"].marks == ["general"]
    assert top["0.1"].marks == top["0.3"].marks == []
    assert top["0.0"].direct is None
    with pytest.raises(UsageError, match=r"unknown order 'damge'. Did you mean 'damage'"):
        top_heads(cache, "a", by="damge")
    two = table_cache(tmp_path / "two.h5", {name: damage[name] for name in "ab"}, control, 4, 5)
    assert top_heads(two, "a", n=2)[1].marks == [], "of two tasks none is general"
    one = table_cache(tmp_path / "one.h5", {"a": damage["a"]}, control, 4, 5)
    assert top_heads(one, "a", n=1)[0].specificity is None
