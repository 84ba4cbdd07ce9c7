"""`import mechrl` as somebody else has it: the README's example from an installed wheel, and what a notebook shows."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from helpers import table_cache
from nbclient import NotebookClient

import mechrl
from mechrl import Cache
from mechrl.building.build import build_files
from mechrl.building.settings import USUAL_TASKS
from mechrl.cache.format import Content
from mechrl.cache.imported import import_table
from mechrl.cache.top import top_heads
from mechrl.cli.cache import cache as cache_command
from mechrl.errors import UsageError

ROOT = Path(__file__).parents[1]
SOURCES = ("mechrl", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
NAME = "<script>"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package alone, as its wheel installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    (source := folder / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.fixture
def elsewhere(installed, tmp_path, monkeypatch) -> Path:
    """An empty folder, from which processes import the installed package."""
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(installed.parent / "numba"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_twelve_lines_of_python_lead_to_verified_heads(installed, elsewhere):
    assert len(EXAMPLE.splitlines()) <= 12
    code = EXAMPLE + "\nprint(mechrl.__file__, type(cache), type(heads), type(result))"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=elsewhere, capture_output=True, text=True, env={**os.environ}
    )
    assert ended.returncode == 0, ended.stderr
    *_, printed, last = ended.stdout.splitlines()
    assert re.fullmatch(r"best on ioi:( \d\.\d){5} confirmed: True", printed)
    assert last.startswith(f"{installed}/mechrl/__init__.py")
    assert re.findall(r"\.(\w+)'>", last) == ["Cache", "TopHeads", "Verification"]
    assert "sweeping: 100% done" in ended.stderr
    assert sorted(path.name for path in elsewhere.iterdir()) == ["checkpoint.zip", "small.h5", "small.h5.json"]


def test_a_notebook_shows_the_cache_and_the_heads(installed, elsewhere):
    """The same lines, with less to sweep and to train on."""
    example = EXAMPLE
    for size, less in (
        ("batches=4, batch_size=8", "batches=3, batch_size=2"),
        ("steps=3000", "steps=1"),
        ("top=2", "top=1, fresh_batches=1, sweep=False"),
    ):
        assert size in example
        example = example.replace(size, less)
    lines = [line for line in example.splitlines() if line]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line) for line in lines])
    resources = {"metadata": {"path": str(elsewhere)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    shown = {
        line: output["data"]["text/html"]
        for line, cell in zip(lines, notebook.cells, strict=True)
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    }
    [of_cache] = [html for line, html in shown.items() if line.startswith("cache  ")]
    [of_heads] = [html for line, html in shown.items() if line.startswith("heads  ")]
    assert of_cache.count("<table>") == 3
    assert "<td>ioi</td>" in of_cache
    assert of_heads.count("<tr>") == 1 + 5
    assert "specificity" in of_heads
    assert "sweeping" in str(notebook)  # a bar, or without ipywidgets a line each quarter


@pytest.fixture
def hostile(tmp_path):
    """A cache with a task whose name would run in a browser, which no file may have."""
    rng = np.random.default_rng(0)
    damage = {name: rng.normal(size=(24, 6)) for name in ("some", "other")}
    cache = table_cache(tmp_path / "x.h5", damage, 0.1 * rng.normal(size=(24, 6)), 2, 3)
    arrays, attributes = (
        {path.replace("/tasks/some", f"/tasks/{NAME}"): value for path, value in part.items()}
        for part in (cache.content.arrays, cache.content.attributes)
    )
    root = {**attributes["/"], "task_order": json.dumps([NAME, "other"])}
    return Cache(cache.path, Content(arrays, {**attributes, "/": root}))


def test_a_cache_shows_its_tasks_and_scores(hostile):
    html = hostile._repr_html_()
    assert NAME not in html
    assert "<td>&lt;script&gt;</td><td>24</td><td>1.000</td><td>4.000</td>" in html
    assert html.count("<table>") == 3
    scores = hostile.scores("other").reshape(2, 3)
    assert f'title="1.2: {scores[1, 2]:.3f}">{scores[1, 2]:.2f}</td>' in html
    assert repr(hostile) == f"Cache({str(hostile.path)!r}: 2 × 3 heads of by hand, tasks {NAME}, other)"


def test_an_imported_cache_shows_its_scores(tmp_path):
    (tmp_path / "scores.csv").write_text("0.0,0.1\n" + "1,2\n" * 8)
    cache = mechrl.load(import_table(tmp_path / "scores.csv", "ioi", 1, 2, tmp_path / "x.h5"))
    assert "<td>ioi</td><td>8</td>" in cache._repr_html_()
    assert "<td>0.1</td><td>2.00 (2.00 to 2.00)</td><td>1</td>" in top_heads(cache, "ioi")._repr_html_()


def test_heads_show_what_the_command_prints(hostile):
    heads = top_heads(hostile, NAME, 4)
    html = heads._repr_html_()
    assert NAME not in html
    assert "&lt;script&gt;: accuracy 1.000, clean logit difference 4.00" in html
    assert html.count("<tr>") == 1 + 4
    assert heads.columns == ["head", "score", "damage", "direct", "damage - direct", "specificity", "ranks", "marks"]
    heads[0] = replace(heads[0], marks=[NAME])
    assert NAME not in heads._repr_html_()


@pytest.mark.parametrize(
    ("model", "file", "expected"),
    [
        ("mini", (), (USUAL_TASKS, 16, 32, 16)),
        ("gpt2", (), (USUAL_TASKS, 64, 32, 64)),
        ("mini", ("own.jsonl",), ((), 16, 4, 16)),
    ],
)
def test_a_function_and_its_command_have_the_same_defaults(call, tmp_path, monkeypatch, model, file, expected):
    line = '{{"prompt": "Mary saw the {} and the", "answer": " dog", "wrong": " cat"}}\n'
    words = "ring bone book ball hat key door lamp tree fish cup car bed map box pen".split()
    (tmp_path / "own.jsonl").write_text("".join(map(line.format, words)))
    monkeypatch.chdir(tmp_path)
    asked = []

    def record(*arguments, **named):
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        [settings] = bound.arguments.pop("every")
        asked.append({**bound.arguments, **settings.identity()})
        raise UsageError("asked")

    signature = inspect.signature(build_files)
    monkeypatch.setattr("mechrl.building.build.build_files", record)
    assert call(cache_command, "build", "--model", model, *(part for name in file for part in ("--task", name)))[0] == 2
    with pytest.raises(UsageError, match="asked"):
        mechrl.build(model, file or None)
    by_command, by_function = asked
    assert by_function == by_command
    assert tuple(by_function[n] for n in ("tasks", "batches", "batch_size", "control_batches")) == expected


def test_the_function_shows_nothing_if_so_asked_and_warns_all_the_same(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = mechrl.build(tasks="copy_suppression", batches=3, batch_size=1, device="cpu", progress=False)
    assert cache.path == Path("cache/mini.h5")
    said = capsys.readouterr()
    assert said.out == ""
    assert all(line.startswith("WARNING: the model does not do") for line in said.err.splitlines())


def test_a_report_is_written_from_python(small_cache, tmp_path):
    path = mechrl.report(small_cache.path, tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    assert "induction" in path.read_text()


def test_a_comparison_from_python(small_cache, tmp_path):
    result = mechrl.bench(small_cache.path, ["random"], track="scores", seeds=1, progress=False)
    assert {row.method for row in result.tasks} == {"random"}
    with pytest.raises(UsageError, match="both"):
        mechrl.bench(small_cache.path, track="bth")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cache: mechrl.verify("c.zip", cache, top=0), "top must be between 1 and 50, not 0"),
        (lambda cache: mechrl.verify("c.zip", cache, tolerance=-1), "tolerance must be between"),
        (lambda cache: mechrl.verify("c.zip", cache, fresh_batches=0), "fresh batches must be at least 1"),
        (lambda cache: mechrl.bench(cache, seeds=0), "seeds must be between 1 and 100, not 0"),
        (lambda cache: mechrl.bench(cache, control_weight=float("nan")), "control weight must be between"),
        (lambda cache: mechrl.bench([]), "at least one cache"),
        (lambda cache: mechrl.bench(cache, []), "at least one method"),
        (lambda cache: mechrl.bench(cache, "rndom"), "unknown method 'rndom'.*'random'"),
        (lambda cache: mechrl.train(cache, "iio"), "unknown task 'iio'.*'ioi'"),
        (lambda cache: mechrl.train(cache, hold_out="iio"), "unknown task 'iio'"),
        (lambda cache: mechrl.train(cache, out=cache.path), "would overwrite the cache"),
        (lambda cache: mechrl.build(seed=2**32), "seed must be between 0 and 4294967295"),
        (lambda cache: mechrl.build(workers=0, batches=3, batch_size=1), "workers must be at least 1"),
        (lambda cache: mechrl.build(ablation="zreo"), "unknown ablation 'zreo'.*'zero'"),
        (lambda cache: mechrl.report(cache, "x.png"), r"a page ends in \.html"),
        (lambda cache: mechrl.report([]), "^nothing to report"),
        (lambda cache: mechrl.attention([], "ioi"), "heads must be between 1 and 32, not 0"),
        (lambda cache: mechrl.attention("4.4", "ioi", prompts=0), "prompts must be between 1 and 10, not 0"),
        (lambda cache: mechrl.attention("4.4", "ioi", seed=-1), "seed must be between 0"),
        (lambda cache: mechrl.top_heads(cache, "ioi", 0), "n must be at least 1, not 0"),
    ],
)
def test_what_the_commands_refuse_the_functions_refuse(small_cache, tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        call(small_cache)
    assert not list(tmp_path.iterdir())


def test_names_paths_and_objects_are_taken_alike(small_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = mechrl.train(small_cache, "ioi", "docstring", steps=1, progress=False)
    result = mechrl.verify(checkpoint, small_cache, top=1, fresh_batches=1, sweep=False, out="v.json", progress=False)
    assert result.checkpoint_sha256 == checkpoint.sha256
    assert result.confirmed == all(task.confirmed for task in result.tasks.values() if task.trained)
    assert "v.json" in mechrl.report([small_cache, checkpoint, "v.json"]).read_text()
