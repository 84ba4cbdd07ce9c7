"""Tables on terminals of all widths, in real pseudo-terminals: nothing wider, no name and no number cut."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from helpers import table_cache, with_attribution
from rich.cells import cell_len

from mechrl.building.build import build
from mechrl.building.settings import BuildSettings
from mechrl.cache.imported import import_table
from mechrl.cache.top import top_heads
from mechrl.display import print_table, shown
from mechrl.intervals import Estimate
from mechrl.reporting.terminal import print_verification
from mechrl.verification.result import (
    Curves,
    Faithful,
    FaithfulTask,
    Joint,
    Ranking,
    Replicates,
    Specific,
    Verification,
    VerifiedHead,
    VerifiedTask,
)

WIDTHS = (40, 80, 100, 120, 200)
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def read_terminal(master: int) -> str:
    """What is written to the other end until that is closed, its colours left out."""
    data = b""
    try:
        while chunk := os.read(master, 65536):
            data += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(master)
    return data.decode().replace("\r\n", "\n")


def open_terminal(width: int) -> tuple[int, int]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if width else 0, width, 0, 0))
    return master, slave


def printed(width: int, function, *args, **kwargs) -> str:
    """What a function prints on a terminal, in this process."""
    master, slave = open_terminal(width)
    with ThreadPoolExecutor(1) as pool:
        output = pool.submit(read_terminal, master)
        with os.fdopen(slave, "w") as stdout, patch("sys.stdout", stdout), patch("sys.__stdout__", stdout):
            function(*args, **kwargs)
        return output.result()


def run(width: int, *arguments) -> str:
    """What a command prints on a terminal, run as a user runs it."""
    master, slave = open_terminal(width)
    command = [sys.executable, "-m", "mechrl.cli.main", *map(str, arguments)]
    # Not the environment of this process itself, to which readline, if anything imported it, has added COLUMNS.
    pipes = {"stdin": slave, "stdout": slave, "stderr": subprocess.PIPE, "env": dict(os.environ)}
    with subprocess.Popen(command, text=True, **pipes) as process:
        os.close(slave)
        with ThreadPoolExecutor(1) as pool:
            errors = pool.submit(process.stderr.read)
            output = read_terminal(master)
    assert process.returncode in (0, 3), errors.result()
    return output


def as_json(*arguments) -> dict:
    command = [sys.executable, "-m", "mechrl.cli.main", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr  # 3: verification says no
    return json.loads(done.stdout)


def is_sentence(line: str) -> bool:
    """Whether a line is not of a table: those lines the terminal may break, for no column stands below another."""
    return "  " not in re.sub(r"^  (faithful|replicates|specific|complete) +", "", line).strip()


def check(output: str, width: int, expected: list[str]) -> None:
    """No line of a table is too wide, nothing is cut, and the expected names and numbers are there, in this order."""
    plain = STYLE.sub("", output)
    assert "…" not in plain
    assert [line for line in plain.split("\n") if cell_len(line) > width and not is_sentence(line)] == []
    words = " ".join(plain.split())
    at = 0
    for text in expected:
        found = re.compile(rf"(?<!\S){re.escape(' '.join(text.split()))}(?!\S)").search(words, at)
        assert found, f"{text!r} is not there, or not where it should be, {width} columns wide:\n{plain}"
        at = found.end()


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


COLUMNS = ["head", "score", "direct\neffect", "of the\nclean", "why", "n"]
ROWS = [
    ["0.4", "10.12 (8.33 to 11.92)", "-0.05 (-0.06 to -0.04)", "41%", "yes", 12345],
    ["11.10", "1.20 (0.79 to 1.64)", None, "9%", "damage below 5% of the clean measure; not in the top 10", 7],
]
SECONDARY = ["direct effect", "n", "of the clean"]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (102, ""), (101, "direct effect"), (77, "direct effect"), (76, "direct effect, n"), (69, "direct effect, n"),
        (68, "direct effect, of the clean, n"), (60, "direct effect, of the clean, n"),
    ],
)  # fmt: skip
def test_secondary_columns_leave_as_a_whole_in_their_order_and_a_line_names_them(width, left_out):
    out = STYLE.sub("", printed(width, print_table, "title", COLUMNS, ROWS, "caption", SECONDARY, "why"))
    numbers = [text for head, score, *_ in ROWS for text in (head, score)]
    check(out, width, ["title", *numbers, "caption"])
    words = " ".join(out.split())
    if left_out:
        assert f"caption left out at this width: {left_out}; a wider terminal or JSON shows them" in words
    else:
        assert "left out" not in words
    for name, values in (("direct effect", ("-0.05 (-0.06 to -0.04)", "–")), ("n", ("12345", "7"))):
        for value in values:
            assert (f" {value} " in words) == (name not in left_out.split(", "))


def test_where_the_key_columns_do_not_fit_every_row_is_a_block_with_all_its_values():
    assert "─" not in printed(59, print_table, "title", COLUMNS, ROWS, "", SECONDARY, "why")
    out = STYLE.sub("", printed(40, print_table, "title", COLUMNS, ROWS, "", SECONDARY, "why"))
    assert [line.rstrip() for line in out.split("\n")] == [
        "title",
        "  head          0.4",
        "  score         10.12 (8.33 to 11.92)",
        "  direct        -0.05 (-0.06 to -0.04)",
        "  effect",
        "  of the clean  41%",
        "  why           yes",
        "  n             12345",
        "",
        "  head          11.10",
        "  score         1.20 (0.79 to 1.64)",
        "  direct        –",
        "  effect",
        "  of the clean  9%",
        "  why           damage below 5% of the",
        "                clean measure; not in",
        "                the top 10",
        "  n             7",
        "",
        "",
    ]


def test_a_table_is_never_wider_than_its_terminal_and_never_cuts_what_it_shows():
    """Tables at random, with wide characters, words without spaces, and columns from one to twelve."""
    rng = np.random.default_rng(0)

    def words(most: int) -> str:
        return "".join(rng.choice(list("abc de 日本語 🙂é"), rng.integers(1, most))).strip() or "x"

    seen = set()
    for _ in range(150):
        n, width = rng.integers(1, 13), int(rng.integers(40, 220))
        columns = ["key", *(f"c{i}\n{'x' * rng.integers(1, 9)}" for i in range(1, n)), "text"]
        names = [column.replace("\n", " ") for column in columns]
        numbers = [[f"{i}.{rng.integers(99)}", *(shown(9 * rng.normal(size=3)) for _ in range(1, n))] for i in range(3)]
        texts = [words(120) for _ in numbers]
        rows = [[*of, text] for of, text in zip(numbers, texts, strict=True)]
        secondary = list(rng.permutation(names[1:-1])[: rng.integers(n)])
        out = STYLE.sub("", printed(width, print_table, words(60), columns, rows, words(60), secondary, "text"))
        left_out = re.search("left out at this width: (.*); a", " ".join(out.split()))
        gone = left_out[1].split(", ") if left_out else []
        assert set(gone) == set(secondary[: len(gone)])
        check(out, width, [row[0] for row in rows])
        for row in numbers:
            for name, value in zip(names, row, strict=False):
                assert (value in out) == (name not in gone), (width, value, out)
        if blocks := "─" not in out:
            assert not gone
            assert all("".join(text.split()) in "".join(out.split()) for text in texts)
        seen.add((blocks, bool(gone)))
    assert seen == {(False, False), (False, True), (True, False)}


@pytest.mark.parametrize("width", [40, 80])
def test_a_strangers_text_does_not_steer_the_terminal(width):
    hostile = "a\x1b[2J\x1b]0;title\x07b\rc\td\ne\x9b1mf\u202eg\ud800"
    spelt_out = r"a\x1b[2J\x1b]0;title\x07b\rc\td\ne\x9b1mf\u202eg\ud800"
    out = printed(width, print_table, "", ["key", "n"], [[hostile, 1]], secondary=["n"])
    assert spelt_out in "".join(STYLE.sub("", out).split())
    out = printed(width, print_table, hostile, [hostile, "n", "text"], [["0.4", 1, hostile]], hostile, ["n"], "text")
    assert all(c.isprintable() for c in STYLE.sub("", out).replace("\n", "")), "nothing but rich's own colours"
    check(out, width, ["0.4"])


def test_a_family_called_like_the_first_column_does_not_take_its_place():
    out = printed(
        40, print_table, "", ["method", "cost", "method"], [["random", "1.00", "9" * 30]], secondary=["method"]
    )
    check(out, 40, ["method cost", "random 1.00", "left out at this width: method;"])


@pytest.mark.parametrize(
    ("environment", "size", "width"),
    [
        ({"COLUMNS": "60"}, 200, 60), ({"COLUMNS": "0"}, 100, 100), ({"COLUMNS": "many"}, 100, 100), ({}, 0, 80),
        ({"TERM": "dumb"}, 40, 40), ({"TERM": "dumb"}, 200, 200), ({"TERM": ""}, 100, 100), ({}, 10, 40),
    ],
)  # fmt: skip
def test_the_width_is_what_the_user_or_the_terminal_says(environment, size, width, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for length, fits in ((width - 8, True), (width - 7, False)):  # two columns take 7 more than what is in them
        out = printed(size, print_table, "", ["a", "b"], [["x" * length, 1]], secondary=["b"])
        assert ("left out" not in out) == fits
        assert "x" * length in out


def test_colours_are_left_out_where_they_are_not_wanted(monkeypatch):
    assert STYLE.search(printed(80, print_table, "title", ["a"], [[1]]))
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in printed(80, print_table, "title", ["a"], [[1]])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert set(STYLE.findall(printed(80, print_table, "title", ["a"], [[1]]))) <= {"\x1b[1m", "\x1b[2m", "\x1b[0m"}


def test_what_is_no_terminal_gets_the_whole_table_however_wide(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    columns = [f"column {i}" for i in range(30)]
    print_table("t" * 300, columns, [[f"{i}.123 (0 to 1)" for i in range(30)]], "c" * 300, columns[1:])
    out = capsys.readouterr().out
    assert "left out" not in out
    assert all(f" {i}.123 (0 to 1) " in out for i in range(30))
    assert out.startswith(f"{'t' * 300}\n")
    assert f"  {'c' * 300}\n" in out


def made_up_verification(swept: bool) -> Verification:
    """What `mechrl-verify` prints, with two heads, one of which does not replicate."""
    heads = [
        VerifiedHead(
            head=name, cached=10.487, live=10.486, difference=2.4e-7, direct=Estimate(-0.05, -0.06, -0.04),
            elsewhere=None, score=Estimate(6.9 - i, 3.79, 10.44), damage=Estimate(6.91, 3.79, 10.45), share=0.41,
            p=0.0005, p_adjusted=0.0015, why=why, top_share=0.97, rank=Estimate(1, 1, 14),
            answer=not why, placebo=None,
        )
        for i, (name, why) in enumerate(
            {"0.4": "", "2.3": "damage below 5% of the clean measure; not in the top 10"}.items()
        )
    ]  # fmt: skip
    joint = [
        Joint(heads=[f"{site // 8}.{site % 8}" for site in range(n)], joint=Estimate(6.9, 3.8, 10.4),
              summed=Estimate(6.9, 3.8, 10.4), interaction=Estimate(-0.4 - n, -1.0, 0.2))
        for n in (1, 2, 30)
    ]  # fmt: skip
    ranking = Ranking(
        heads=["0.4"], kept=[-1.0], ablated=[16.9], cpr=0.911, cmd=0.089, mib_cpr=0.903, mib_cmd=0.096, necessity=0.072
    )  # fmt: skip
    task = VerifiedTask(
        trained=True, confirmed=False, runs=13.7, search={}, faithful=FaithfulTask(answer=True, difference=3e-7),
        replicates=Replicates(
            answer=False, fresh_from="generator", prompts=16, groups=16, known_answers=(0, 16), clean=16.94,
            swept=swept, searched_answers=0, measured=144 if swept else 52, best=30, rank_limit=10,
        ),
        specific=Specific(
            answer=True, permuted=False, passed=[], clean=None, random_failed=(19, 20), random_passed=["11.2"]
        ),
        complete=None, heads=heads, joint=joint,
        curves=Curves(
            counts=[0], full=16.94, empty=-1.05, refused=None, rankings={"the task's own order": ranking}
        ),
    )  # fmt: skip
    return Verification(
        command=None, mechrl_version="0.1.0", library_versions={}, model="mini", model_sha256="0" * 64,
        cache_sha256="0" * 64, checkpoint_sha256=None, ablation="zero", control_weight=1.0, seed=0, confirmed=False,
        faithful=Faithful(answer=True, tolerance=0.001, control_difference=6e-7),
        tasks={"subject_verb_agreement": task},
    )  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 100])
def test_verify_names_every_head_and_says_what_it_failed(width):
    for swept in (True, False):
        result = made_up_verification(swept)
        out = printed(width, print_verification, result)
        (task,) = result.tasks.values()
        expected = [text for h in task.heads for text in (h.head, shown(h.score))]
        for j in task.joint:
            expected += [" ".join(j.heads[:2]), shown(j.interaction)]
        check(out, width, [*expected, "the task's own order", "0.911"])
        assert "replicates" in STYLE.sub("", out).split("faithful")[0]


def test_what_is_no_terminal_gets_both_pairs_of_areas(capsys):
    print_verification(made_up_verification(swept=True))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["the", "task's", "own", "order", "0.911", "0.089", "0.903", "0.096", "0.072"] in rows


@pytest.mark.parametrize("passes", [True, False])
def test_yes_is_good_in_every_answer(capsys, passes):
    """A head that passes with the answers permuted makes the task unspecific."""
    result = made_up_verification(swept=True)
    (task,) = result.tasks.values()
    passed = ["0.4"] if passes else []
    specific = task.specific.model_copy(update={"answer": not passes, "permuted": True, "passed": passed, "clean": 0.3})
    tasks = {"a": task.model_copy(update={"specific": specific})}
    print_verification(result.model_copy(update={"tasks": tasks}))
    out = capsys.readouterr().out
    assert "  replicates  no: 16 fresh prompts" in out
    start, head = ("no", "0.4 pass") if passes else ("yes", "no pick passes")
    assert (
        f"  specific    {start}: with answers permuted, logit difference 0.30, {head} the same test; 1 of 20 random "
        in out
    )
    assert "  complete    not asked: --sweep measures every head" in out
    assert out.endswith(f"NOT CONFIRMED: a: not replicated{', not specific' * passes}\n")


@pytest.mark.parametrize("width", [40, 80])
def test_top_and_info_on_a_real_terminal(width, small_cache):
    out = run(width, "cache", "top", small_cache.path, "-n", 4)
    expected = [
        text
        for task in small_cache.tasks
        for row in top_heads(small_cache, task, 4)
        for text in (row.head, shown(row.score))
    ]
    check(out, width, expected)
    words = " ".join(STYLE.sub("", out).split())
    gone = {40: "damage, direct, damage - direct, specificity, ranks, roles, marks", 80: "ranks, roles, marks"}[width]
    assert words.count("left out at this width: ") == 3
    assert f"{gone}; a wider terminal or JSON shows them" in words
    out = run(width, "cache", "info", small_cache.path)
    check(out, width, [text for task in small_cache.tasks for text in (task, f"{small_cache.clean(task).mean():.3f}")])


# From here on every table of every command, at every width: minutes.


@pytest.fixture(scope="module")
def material(small_cache, mini, tmp_path_factory) -> SimpleNamespace:
    """What the commands are asked about."""
    folder = tmp_path_factory.mktemp("material")
    checkpoint = folder / "c.zip"
    as_json("train", "--from-cache", small_cache.path, "--steps", 64, "--picks", 16, "--out", checkpoint)
    rng = np.random.default_rng(0)
    names = [f"{layer}.{head}" for layer in range(2) for head in range(4)]
    table = folder / "a_table_with_a_long_name.csv"
    rows = [",".join(f"{value:.4f}" for value in 30 * rng.normal(size=8)) for _ in range(12)]
    table.write_text("\n".join([",".join(names), *rows]))
    prompts = folder / "own.jsonl"
    wrong = {"answer": " the", "wrong": " of"}
    lines = [f"It was {'very ' * (i % 4)}good\tand \x1b[2J bad 日本語 🙂\n{i} and then" for i in range(1, 20)]
    prompts.write_text("\n".join(json.dumps({"prompt": line, **wrong}) for line in lines))
    damage = {name: 0.3 * rng.normal(size=(48, 12)).astype(np.float32) for name in "abc"}
    for name, best in {"a": (1, 2, 3), "b": (1, 2, 3), "c": (6, 7, 8)}.items():
        damage[name][:, best] += 5
    made = table_cache(folder / "made.h5", damage, 0.1 * rng.normal(size=(48, 12)), 3, 4, batch_size=4)
    return SimpleNamespace(
        cache=small_cache.path, checkpoint=checkpoint, prompts=prompts,
        imported=import_table(table, "docstring", 2, 4, folder / "imported.h5"),
        made=with_attribution(made, folder / "attributed.h5").path,
        pairs=build(mini, BuildSettings(("ioi",), 3, 2, 3, sets="pairs"), folder / "pairs.h5"),
    )  # fmt: skip


def of_rows(found: dict, *keys: str) -> list[str]:
    """The expected texts of rows that JSON holds by task."""
    shown_as = {float: lambda v: f"{v:.3f}", str: str, int: str, list: shown}
    return [shown_as[type(row[key])](row[key]) for rows in found.values() for row in rows for key in keys]


def of_verify(found: dict) -> list[str]:
    expected = []
    for task in found["tasks"].values():
        for head in task["heads"]:
            expected += [head["head"], shown(head["score"])]
        for joint in task["joint"]:
            expected += [" ".join(joint["heads"]), shown(joint["interaction"])]
        for name, ranking in task["curves"]["rankings"].items():
            expected += [name, f"{ranking['cpr']:.3f}"]
    return expected


CASES = {
    "top": (lambda m: ("cache", "top", m.cache), lambda f: of_rows(f, "head", "score")),
    "top of a table": (lambda m: ("cache", "top", m.imported), lambda f: of_rows(f, "head", "score")),
    "info": (
        lambda m: ("cache", "info", m.cache),
        lambda f: [text for task, of in f["tasks"].items() for text in (task, f"{of['clean_logit_diff']:.3f}")],
    ),
    "info of a table": (
        lambda m: ("cache", "info", m.imported),
        lambda f: [text for task, of in f["tasks"].items() for text in (task, f"{of['mean_best_score']:.3f}")],
    ),
    "check": (
        lambda m: ("cache", "check", m.prompts, "--device", "cpu"),
        lambda f: [
            *("mini", *of_rows({"": [f]}, "logit_diff", "accuracy")),
            *of_rows({"": f["worst"]}, "line", "logit_diff"),
        ],
    ),
    "tasks": (lambda m: ("cache", "tasks"), list),
    "pairs": (
        lambda m: ("cache", "pairs", m.pairs),
        lambda f: [text for p in f["ioi"] for text in (" ".join(p["heads"]), shown(p["interaction"]))],
    ),
    "attribution": (
        lambda m: ("cache", "attribution", m.made),
        lambda f: [
            text
            for of in f.values()
            for i in (None, 0, 1, 2)
            for text in (
                "all heads" if i is None else f"layer {i}",
                *(f"{a['heads'] if i is None else a['layers'][i]:.3f}" for a in of.values()),
            )
        ],
    ),
    "roles": (
        lambda m: ("cache", "roles", "--device", "cpu"),
        lambda f: [
            "{} ({:.2f})".format(*sorted(of.items(), key=lambda item: -item[1])[i])
            for i in range(5)
            for of in f["roles"].values()
        ],
    ),
    "attention": (
        lambda m: ("cache", "attention", "--head", "4.4", "--task", "ioi", "--device", "cpu"),
        lambda f: [
            *(shown(of[name]) for of in f["heads"] for name in ("first", "answers", "wrongs")),
            *(shown(max(part["attention"]["4.4"])) for part in f["aligned"]),
            *(f"{max(prompt['patterns']['4.4'][-1]):.2f}" for prompt in f["drawn"]),
        ],
    ),
    "train": (
        lambda m: ("train", "--from-cache", m.cache, "--steps", 64, "--out", m.checkpoint.with_name("again.zip")),
        lambda f: [
            text for of in f.values() for method, row in of.items() for text in (method, f"{row['ratio@3']:.3f}")
        ],
    ),
    "verify": (
        lambda m: (
            *("verify", m.checkpoint, "--cache", m.cache, "--fresh-batches", 1, "--device", "cpu"),
            *("--joint", "--curves", "--top", 12),
        ),
        of_verify,
    ),
    "bench": (
        lambda m: (
            *("bench", "--cache", m.made, "--seeds", 1, "--workers", 1, "--method", "random"),
            *("--method", "static order", "--method", "Gaussian, expected improvement"),
        ),
        lambda f: [
            text
            for _, name, of in sorted((of["cost"], name, of) for name, of in f["methods"].items())
            for text in (name, "{cost:.2f} ({cost_low:.2f} to {cost_high:.2f})".format(**of))
        ],
    ),
    "bench --list": (
        lambda m: ("bench", "--list"),
        lambda f: [text for name, of in f.items() for text in (name, of["track"])],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_table_of_every_command_on_terminals_of_five_widths(case, material):
    arguments, expected = CASES[case]
    texts = expected(as_json(*arguments(material)))
    assert texts
    for width in WIDTHS:
        check(run(width, *arguments(material)), width, texts)
