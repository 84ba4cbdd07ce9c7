"""What belongs together, what is missing, and what is said of files that do not fit."""

import csv
import html
import json
import re
import shutil
import subprocess
import sys

import documents
import numpy as np
import pytest
from helpers import table_cache

from mechrl.cache.format import Content
from mechrl.cache.imported import import_table
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_content
from mechrl.cache.top import top_heads
from mechrl.cli.main import mechrl as umbrella
from mechrl.errors import FileError, UsageError
from mechrl.intervals import Estimate
from mechrl.reporting.page import render
from mechrl.reporting.run import collect
from mechrl.reporting.sections.search import bench_on_caches
from mechrl.reporting.sections.verification import joint_claim
from mechrl.results import read_result
from mechrl.search.bench.result import Benchmark
from mechrl.verification.result import Joint, Verification


def text_of(run) -> str:
    """The page without its scripts, as a person reads it."""
    page = re.sub(r"<(script|style).*?</\1>", "", render(run), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def resealed(cache: Cache, path, **changes) -> Cache:
    """A copy of a cache with other attributes."""
    root = {**cache.content.root, **changes}
    write_content(path, Content(cache.content.arrays, {**cache.content.attributes, "/": root}))
    return Cache.open(path)


def by_hand(path, seed: int = 0) -> Cache:
    rng = np.random.default_rng(seed)
    damage = {task: rng.normal(size=(12, 8)) for task in ("ioi", "induction")}
    return table_cache(path, damage, rng.normal(size=(12, 8)), 2, 4)


def test_the_pieces_of_a_model_stand_together(whole_run):
    run = collect([whole_run])
    (model,) = run.models
    assert (len(model.caches), len(model.checkpoints), len(model.verifications), len(model.benches)) == (1, 1, 1, 1)
    assert len(model.attentions) == 1
    assert model.checkpoints[0].evaluations is not None
    assert run.ignored == run.damaged == []
    said = text_of(run)
    assert "What is not here" not in said
    assert "The search of checkpoint.zip (trained on)" in said


def test_the_answer_is_one_sentence_with_the_numbers_of_the_verification(whole_run, small_cache):
    said = text_of(collect([whole_run]))
    best, second, third = top_heads(small_cache, "ioi", 3)
    mean, low, high = best.damage
    assert (
        f"Removing {best.head} (total effect, zero ablation, 128 fresh prompts) costs {mean:.2f} nats of "
        f"{small_cache.clean('ioi').mean():.2f} ({low:.2f} to {high:.2f}); its direct effect is 0.10; on other "
        f"tasks it costs 0.30. Also replicated: {second.head}. Not replicated: {third.head} (its interval reaches "
        "zero). The verification as a whole: NOT confirmed."
    ) in said


def test_a_cache_alone_is_reported_with_the_commands_for_the_rest(small_cache, tmp_path):
    path = tmp_path / "my cache.h5"
    shutil.copy(small_cache.path, path)
    said = text_of(collect([tmp_path]))
    assert f"mechrl-train --from-cache '{path}' --out checkpoint.zip" in said
    assert f"mechrl-verify checkpoint.zip --cache '{path}' --model mini --json > verification.json" in said
    assert f"mechrl bench --cache '{path}' --json > bench.json" in said
    assert "No live model has confirmed it." in said
    assert (
        "mechrl-cache build --model mini --tasks induction,ioi,docstring --batches 4 --batch-size 8 "
        f"--control-batches 4 --ablation zero --dtype float32 --seed 0 --out '{path}'"
    ) in said


def test_models_are_kept_apart_and_never_averaged(tmp_path):
    one, other = by_hand(tmp_path / "one.h5"), by_hand(tmp_path / "x.h5", seed=1)
    (tmp_path / "x.h5").unlink()
    (tmp_path / "x.h5.json").unlink()
    other = resealed(other, tmp_path / "other.h5", model_sha256="1" * 64, model="another")
    printed = documents.bench({"one.h5": one, "other.h5": other}).model_dump(mode="json")
    for row in printed["tasks"]:
        row["cost"] *= 10 if row["cache"] == "other.h5" else 1
    (tmp_path / "bench.json").write_text(json.dumps(printed))
    (tmp_path / "verification.json").write_text(documents.verification(other).model_dump_json())
    run = collect([tmp_path])
    first, second = run.models
    assert [model.sha256 for model in run.models] == ["0" * 64, "1" * 64]
    assert [c.path.name for c in first.caches] == ["one.h5"]
    assert (first.verifications, [f.path.name for f in second.verifications]) == ([], ["verification.json"])
    for model, cost in ((first, 4), (second, 40)):
        (bench,) = bench_on_caches(model)
        assert bench.cost("agent") == pytest.approx(cost)
    assert "is about several caches together" in text_of(run)


def test_a_piece_that_fits_no_other_is_named(small_cache, whole_run, tmp_path):
    resealed(small_cache, tmp_path / "mini.h5", seed=7)
    shutil.copy(whole_run / "checkpoint.zip", tmp_path)
    shutil.copy(whole_run / "verification.json", tmp_path)
    (tmp_path / "bench.json").write_text(documents.bench({"cache/mini.h5": small_cache}).model_dump_json())
    run = collect([tmp_path])
    assert run.models[0].checkpoints[0].evaluations is None
    said = text_of(run)
    assert f"checkpoint.zip was trained on a cache that is not here (content {small_cache.sha256[:12]})" in said
    assert "verification.json verified a cache that is not here" in said
    assert "bench.json searched caches of this model that are not here" in said
    assert "Searches compared: track scores, cache cache/mini.h5" in said


def test_an_imported_cache_has_a_map_of_scores_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(8, 8)).round(6)
    table = tmp_path / "scores.csv"
    np.savetxt(table, scores, delimiter=",", comments="", header=",".join(f"{i // 4}.{i % 4}" for i in range(8)))
    import_table(table, "docstring", 2, 4, tmp_path / "imported.h5", "gpt2")
    run = collect([tmp_path / "imported.h5"])
    said = text_of(run)
    best = int(scores.mean(0).argmax())
    assert f"{best // 4}.{best % 4} scores highest: {scores.mean(0)[best]:.2f} (" in said
    assert "Score: mean over all episodes." in said
    assert "Damage: what removing" not in said
    assert "Control damage:" not in said
    assert "mechrl-verify" not in said
    assert "no fingerprint" in said


def test_damaged_files_are_named_with_the_reason_and_the_rest_is_shown(small_cache, tmp_path):
    shutil.copy(small_cache.path, tmp_path / "mini.h5")
    (tmp_path / "bad.h5").write_bytes(small_cache.path.read_bytes()[:5000])
    (tmp_path / "bad.zip").write_text("no zip")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "half.h5.build").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "other.json").write_text("[]")
    run = collect([tmp_path])
    assert [path.name for path, _ in run.damaged] == ["bad.h5", "bad.json", "bad.zip", "half.h5"]
    assert [path.name for path, _ in run.ignored] == ["notes.txt", "other.json"]
    said = text_of(run)
    assert "bad.h5: damaged, or not a mechrl cache" in said
    assert "half.h5 is not finished; run its mechrl-cache build again" in said
    assert "notes.txt: not a kind of file" in said
    assert "Removing" in said


def test_where_nothing_can_be_read_the_reason_is_the_message(tmp_path):
    with pytest.raises(UsageError, match=r"nothing to report\. A report is made of a cache"):
        collect([tmp_path])
    with pytest.raises(UsageError, match="no such file or folder"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(FileError, match="not JSON"):
        collect([tmp_path])


def test_the_same_file_twice_is_one(small_cache, tmp_path):
    for name in ("one.h5", "two.h5"):
        shutil.copy(small_cache.path, tmp_path / name)
    run = collect([tmp_path, tmp_path / "one.h5"])
    assert len(run.models[0].caches) == 1
    assert [(path.name, why) for path, why in run.ignored] == [("two.h5", f"the same as {tmp_path / 'one.h5'}")]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format_version",), 2, "mechrl-verification, version 2; this mechrl reads version 4 only, run mechrl-verify"),
        (("tasks",), [], "tasks: Input should be"),
        (("model_sha256",), None, "model_sha256"),
        (("tasks", "ioi", "heads", 0, "head"), "<b>", "tasks.ioi.heads.0.head"),
        (("tasks", "ioi", "heads", 0, "damage"), [1, 2], "damage"),
        (("tasks", "ioi", "heads", 0, "damage"), [1, 3, 2], "the interval ends before it begins"),
        (("tasks", "ioi", "heads", 0, "damage"), [1, 0, 1e300], "less than or equal to 1000000"),
        (("tasks", "ioi", "heads", 0, "share"), "0.5", "share"),
        (("tasks", "ioi", "heads", 0, "why"), "a failure", "the answer is yes where, and only where"),
        (("tasks", "ioi", "runs"), None, "runs"),
        (("tasks", "ioi", "specific", "random_failed"), [19, 20], "those that pass are not all of them"),
        (("tasks", "ioi", "specific", "clean"), None, "no logit difference is given"),
        (("tasks", "ioi", "heads", 0, "p"), True, "heads.0.p"),
        (("tasks", "ioi", "heads", 0, "why"), "a\x00b", "control characters"),
        (("tasks", "ioi", "curves", "counts"), [1], "do not have 1 points"),
        (("tasks", "ioi", "replicates", "clean"), float("nan"), "clean"),
        (("tasks",), {"a\x1b[2J": 3}, r"tasks.a\x1b[2J"),
        (("command",), "\ud800", "not what mechrl-verify writes"),
    ],
)
def test_a_verification_of_a_wrong_shape_is_damaged(tmp_path, place, value, message):
    printed = documents.verification(by_hand(tmp_path / "x.h5")).model_dump(mode="json")
    path = tmp_path / "verification.json"
    path.write_text(json.dumps(printed))
    assert read_result(path, (Verification, Benchmark)) == Verification.model_validate(printed, strict=False)
    *way, last = place
    spot = printed
    for step in way:
        spot = spot[step]
    spot[last] = value
    path.write_text(json.dumps(printed))
    with pytest.raises(FileError, match=r"verification\.json: ") as error:
        read_result(path, (Verification, Benchmark))
    assert message in str(error.value)


def test_a_verification_where_little_was_asked_is_shown(tmp_path):
    cache = by_hand(tmp_path / "x.h5")
    printed = documents.verification(cache).model_dump(mode="json")
    for task in printed["tasks"].values():
        task.update(dict.fromkeys(("complete", "joint", "curves")))
        nothing = {"answer": None, "permuted": False, "clean": None, "random_failed": [0, 0], "random_passed": []}
        task["specific"] |= nothing
        task["heads"][0] |= {"direct": None, "elsewhere": None}
    (tmp_path / "verification.json").write_text(json.dumps(printed))
    said = text_of(collect([tmp_path]))
    for question in ("specific", "complete", "joint damage", "necessity and sufficiency"):
        assert f"{question}: not asked" in said


def test_a_benchmark_of_an_older_mechrl_is_to_be_run_again(small_cache, tmp_path):
    path = tmp_path / "bench.json"
    printed = documents.bench({"cache/mini.h5": small_cache}).model_dump(mode="json")
    for of_version in ({}, {"format": "mechrl-benchmark", "format_version": 2}):
        old = {key: value for key, value in printed.items() if not key.startswith("format")} | of_version
        path.write_text(json.dumps(old))
        with pytest.raises(FileError, match=r"bench\.json: .*run mechrl bench again"):
            collect([path])
    path.write_text(json.dumps({"format": "mechrl-something"}))
    assert read_result(path, (Verification, Benchmark)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "9.0"}, "head 9.0 is not in the cache of its model"),
        ({"task": "unheard_of"}, "task 'unheard_of' is not in the cache it names"),
        ({"model_sha256": "2" * 64}, "names another model than the cache it names"),
    ],
)
def test_a_verification_that_does_not_fit_its_cache_is_named(tmp_path, change, message):
    printed = documents.verification(by_hand(tmp_path / "x.h5")).model_dump(mode="json")
    if "head" in change:
        printed["tasks"]["ioi"]["heads"][0]["head"] = change["head"]
    elif "task" in change:
        printed["tasks"][change["task"]] = printed["tasks"].pop("ioi")
    else:
        printed |= change
    (tmp_path / "verification.json").write_text(json.dumps(printed))
    run = collect([tmp_path])
    assert message in run.damaged[0][1]
    assert len(run.models) == 1
    assert run.models[0].verifications == []


def test_attention_stands_with_its_model_and_names_only_its_heads(tmp_path):
    cache = by_hand(tmp_path / "x.h5")
    path = tmp_path / "attention.json"
    path.write_text(documents.attention(cache).model_dump_json())
    (model,) = collect([tmp_path]).models
    assert [file.path for file in model.attentions] == [path]
    path.write_text(documents.attention(cache, heads=("0.1", "1.4")).model_dump_json())
    run = collect([tmp_path])
    assert run.models[0].attentions == []
    assert f"{path}: head 1.4 is not in the cache of its model" in run.damaged[0][1]


def test_where_heads_that_replicate_look_is_suggested_until_it_is_there(whole_run, small_cache, tmp_path):
    shutil.copy(whole_run / "verification.json", tmp_path)
    best, second = (head.head for head in top_heads(small_cache, "induction", 2))
    line = f"mechrl-cache attention --model mini --head {best} --head {second} --task induction --out attention.json"
    assert line in text_of(collect([tmp_path]))
    shutil.copy(whole_run / "attention.json", tmp_path)
    assert line not in text_of(collect([tmp_path]))


def test_joint_damage_in_words():
    def said(joint, summed):
        between = joint - summed
        return joint_claim(
            Joint(heads=["0.1", "1.2"], joint=Estimate(joint, joint, joint), summed=Estimate(summed, summed, summed),
                  interaction=Estimate(between, between - 0.1, between + 0.1))
        )  # fmt: skip

    assert (
        said(4.1, 0.3) == "0.1, 1.2: together 4.10 nats, one by one 0.30 in sum: these heads stand in for one another, "
        "and single damages hide it."
    )
    assert said(1.0, 1.9).endswith("in sum: less than their damages add up to.")
    assert said(1.0, 1.05).endswith("in sum: within the interval their damages add up.")


def test_the_command_writes_the_page_and_all_numbers(call, whole_run, small_cache, tmp_path):
    out = tmp_path / "deep" / "report.html"
    code, said, _ = call(umbrella, "report", whole_run, "-o", out, "--files")
    assert code == 0
    assert f"{out} written" in said
    folder = tmp_path / "deep" / "report_files"
    names = {path.name for path in folder.iterdir()}
    image = f"heatmap-{small_cache.sha256[:12]}.png"
    tables = {"heads.csv", "coverage.csv", "verification.csv", "joint.csv", "curves.csv", "bench.csv"}
    tables.add("attention.csv")
    assert names - {"roles.csv"} == {image, *tables}
    assert (folder / image).read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "heads.csv").open()))
    assert len(rows) == 3 * small_cache.n_sites
    damage = [float(row["damage"]) for row in rows if row["task"] == "ioi"]
    assert np.allclose(damage, small_cache.damage("ioi").mean(0), atol=1e-6)
    replayed = list(csv.DictReader((folder / "verification.csv").open()))
    best = top_heads(small_cache, "ioi", 1)[0]
    assert next(r for r in replayed if r["task"] == "ioi")["head"] == best.head
    looked = list(csv.DictReader((folder / "attention.csv").open()))
    assert [(r["head"], r["position"], r["token"], r["attention"]) for r in looked[:2]] == [
        ("0.1", "-3", "<bos>", "0.7"),
        ("0.1", "-2", " Mary", "0.25"),
    ]
    again = collect([tmp_path / "deep", whole_run], leave_out=[out, folder])
    assert again.ignored == [], "what an earlier report wrote is no unknown file"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["empty"], 2, "nothing to report"),
        (["nowhere"], 2, "no such file or folder"),
        ([], 2, "name a RUN"),
        (["bad.zip"], 4, "not a checkpoint"),
        (["bad.zip", "empty", "-o", "x.png"], 2, "a page ends in .html"),
        (["bad.zip", "-o", "x.pdf", "--files"], 2, "a page ends in .html"),
    ],
)
def test_wrong_input_gets_one_message(call, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_text("no zip")
    ended, out, err = call(umbrella, "report", *arguments)
    assert (ended, out) == (code, "")
    assert message in err
    assert not list(tmp_path.glob("*.html"))


def test_a_cache_is_reported_without_torch(tmp_path):
    cache = by_hand(tmp_path / "x.h5")
    (tmp_path / "attention.json").write_text(documents.attention(cache).model_dump_json())
    script = (
        "import sys; from pathlib import Path; from mechrl.reporting.page import render; "
        "from mechrl.reporting.run import collect; "
        "render(collect([Path(sys.argv[1])])); print({'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "set()\n"


def test_measured_roles_are_shown_and_named_at_their_heads(tmp_path, monkeypatch):
    by_hand(tmp_path / "x.h5")
    roles = {"induction": np.array([0, 0, 0.9, 0, 0, 0.3, 0, 0]), "copying": np.linspace(-1, 0.3, 8)}
    monkeypatch.setattr(Cache, "roles", roles, raising=False)
    said = text_of(collect([tmp_path]))
    assert "induction; highest: 0.2 (0.90), 1.1 (0.30)," in said
    assert said.count("measured: induction 0.90") == 2, "at head 0.2, for each of the two tasks, and nowhere else"
