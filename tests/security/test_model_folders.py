"""Model folders of strangers: sound ones are measured, the others are refused in one sentence; nothing else happens.

Each case is a process forked from this one, which has imported everything. Its standard input is a terminal that
answers every question with yes, its memory has an end, and it has ten seconds.
"""

import contextlib
import faulthandler
import fcntl
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
import traceback
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import tokenizers
import transformers.dynamic_module_utils
import transformers.utils.hub
from hostile_folders import CODE, HOSTILE
from model_folders import ANY, BASES, PROMPTS, SOUND, Case
from numpy.random import RandomState

from mechrl.cache.reader import Cache
from mechrl.cli import app
from mechrl.cli.cache import cache as cache_command
from mechrl.tasks.prose import prose

SECONDS = 10
MEMORY = 3 * 2**30  # beyond what this process has
YES = b"y\n" * 1000
TASK_FILE = "\n".join(map(json.dumps, PROMPTS))
LONGEST = 400  # characters of a message, beside what the folder and its files are called
OUTSIDE = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")
# What a library or Python says to its own users, and ours can do nothing with.
NOT_OURS = re.compile(
    r"Traceback|trust_remote_code=|huggingface\.co|from_pretrained|ignore_mismatched_sizes|<class |object at 0x"
    r"|untagged enum|transformers\.\w|torch\.\w|with the same name|NoneType|[Ee]rrno|enforce fail|Onig|deserializing"
    r"|thread '|has no attribute|has no setter|not callable|not subscriptable|not iterable|argument of type"
    r"|object is not|unhashable|cannot pickle|keyword argument|positional argument|multiple values|to unpack"
    r"|indices must|index out of range|by zero|not supported between|cannot be interpreted|invalid literal|recursion"
    r"|__\w+__|Validation error|validator|empty TensorList|negative power|negative dimension|at index \d|[Oo]verflow"
    r"|codec can't|No module named|instance of|: '\w+'$"
)
LISTING = re.compile(
    r"error: [^\n]*\n(  [^\n]*\n)+(Skipping bad lines [^\n]*\n)?"
)  # what is wrong with a task file, line by line


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    :param code: its exit code, negative for a signal, None if it took too long.
    :param asked: bytes that it read from the terminal. `said`: bytes that it wrote there.
    :param events: what it did that nobody may: reached out, began a process, asked, ran a file.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    asked: int
    said: bytes
    events: list[str]
    marker: bool


def watch(place: Path, report: int) -> None:
    """Writes what must not happen to a file descriptor, and keeps the process from the network."""

    def hook(event: str, args: tuple) -> None:
        found = None
        if event in OUTSIDE or event in PROCESSES or event == "builtins.input":
            found = f"{event} {args!r:.150}"
        elif event == "exec" and getattr(args[0], "co_filename", "").startswith(str(place)):
            found = f"ran {args[0].co_filename}"
        elif event == "open" and args[0] == "/dev/tty":
            found = "opened /dev/tty"
        elif event == "ctypes.dlopen" and str(args[0]).startswith(str(place)):
            found = f"ran {args[0]}"
        if found:
            os.write(report, found.replace("\n", " ").encode() + b"\n")
        if event in OUTSIDE or event in PROCESSES:
            raise OSError(f"{event} is forbidden here")

    sys.addaudithook(hook)


def run(call: Callable[[], object], place: Path) -> Ended:
    """Runs `call` in a process of its own; `place` is the case's folder, where it may write."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.write(master, YES)
    names = [place / name for name in ("out", "err", "events")]
    files = [os.open(name, os.O_CREAT | os.O_TRUNC | os.O_RDWR) for name in names]
    while waiting(slave) < len(YES):
        time.sleep(0.001)
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.setsid()
            for number, descriptor in enumerate((slave, *files[:2])):
                os.dup2(descriptor, number)
            code = within(call, place, files[2])
        finally:
            os._exit(code)
    code = wait(pid, start + SECONDS)
    seconds = time.monotonic() - start
    asked = len(YES) - waiting(slave)
    os.set_blocking(master, False)
    try:
        said = os.read(master, 10_000)
    except BlockingIOError:
        said = b""
    for descriptor in (master, slave, *files):
        os.close(descriptor)
    out, err, events = (name.read_text(errors="backslashreplace") for name in names)
    return Ended(code, out, err, seconds, asked, said, events.splitlines(), (place / "marker").exists())


def waiting(descriptor: int) -> int:
    """Bytes of a terminal that nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4), sys.byteorder)


def wait(pid: int, until: float) -> int | None:
    """The exit code of a process, or None if it had to be ended."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def within(call: Callable[[], object], place: Path, report: int) -> int:
    """What the process does; its exit code."""
    faulthandler.disable()
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))  # noqa: SIM115
    os.chdir(place)
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "COLUMNS": "120"})
    os.environ.pop("HF_HUB_OFFLINE", None)
    huggingface_hub.constants.HF_HUB_OFFLINE = False  # nothing but the hook keeps it from the network
    for module in (transformers.dynamic_module_utils, transformers.utils.hub):
        module.HF_MODULES_CACHE = str(place / "modules")
    huggingface_hub.constants.HF_HUB_CACHE = str(place / "hub-cache")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch(place, report)
    code = 0
    try:
        call()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def command(place: Path, *arguments: str) -> Ended:
    """`mechrl-cache ARGUMENTS`, as a user types it."""

    def typed() -> None:
        sys.argv = ["mechrl-cache", *arguments]
        app.run(cache_command)

    return run(typed, place)


def check(model: str, place: Path) -> Ended:
    (place / "tasks.jsonl").write_text(TASK_FILE)
    return command(place, "check", "tasks.jsonl", "--model", model, "--device", "cpu", "--threads", "1")


def made(case: Case, bases: Path, place: Path) -> str:
    """The folder of a case, as `--model` is told of it."""
    folder = place / "model"
    shutil.copytree(bases / case.base, folder)
    path = case.change(folder)
    return str(path if isinstance(path, Path) else folder)


def faults(case: Case, ended: Ended, model: str) -> list[str]:
    """What is wrong with how `check` ended, each with its kind first; none if all is well."""
    found = deeds(ended)
    if ended.code is None or ended.code < 0:
        return found
    if ended.code not in case.codes:
        found.append(f"{'refused' if case.codes == (0,) else 'exit code'}: {ended.code} instead of {case.codes}")
    return found + (faults_of_message if ended.code else faults_of_result)(case, ended, model)


def deeds(ended: Ended) -> list[str]:
    """What was done that no folder may bring about."""
    found = []
    said = ended.out + ended.err
    ran = [event for event in ended.events if event.startswith("ran ")]
    if ended.marker or ran:
        found.append(f"code run: {ran}")
    if ended.asked or ended.said or any("input" in event or "/dev/tty" in event for event in ended.events):
        found.append(f"asked on the terminal: {ended.asked} bytes read")
    for kind, events in (("reached for the network", OUTSIDE), ("began a process", PROCESSES)):
        if tried := [event for event in ended.events if event.startswith(events)]:
            found.append(f"{kind}: {len(tried)} times, first {tried[0]}")
    if "Traceback" in said:
        found.append(f"traceback: {ended.err.strip().splitlines()[-1]}")
    if "\x1b" in said:
        found.append("steers the terminal")
    if "root:" in said:
        found.append("shows another file")
    if ended.code is None:
        found.append("hang")
    elif ended.code < 0:
        found.append(f"died: signal {-ended.code}")
    return found


def faults_of_result(case: Case, ended: Ended, model: str) -> list[str]:
    found = []
    if "sound;" not in ended.out:
        found.append("no result")
    if "nan" in ended.out.lower():
        found.append("a result that is no number")
    told = by_file(Path(model))
    extra = (1,) if case.codes == (0,) else (0, 1)  # BOS, which an odd folder may lack
    if told and not any(f"{told[0] + n} to {told[1] + n} tokens" in ended.out for n in extra):
        found.append(f"another tokenizer than tokenizer.json: {told[:2]} without BOS, but {ended.out.splitlines()[0]}")
    if lines := [line for line in ended.err.splitlines() if not line.startswith("WARNING: ")]:
        found.append(f"noise: {lines[0]}")
    return found


def faults_of_message(case: Case, ended: Ended, model: str) -> list[str]:
    found = []
    listing = LISTING.fullmatch(ended.err)
    if ended.out or not (listing or re.fullmatch(r"error: [^\n]*\n", ended.err)):
        found.append(f"not one message: {ended.err.count(chr(10))} lines, and {len(ended.out)} characters on stdout")
    message = ended.err.replace(model, "MODEL").strip()
    if len(message) > LONGEST and not listing:
        found.append(f"long message: {len(message)} characters")
    if internal := NOT_OURS.search(message):
        found.append(f"library internals in the message: {internal[0]}")
    told = by_file(Path(model)) if listing else None
    if told and told[2] and "not a single token" in message:
        found.append("another tokenizer than tokenizer.json: by that, the answers are single tokens")
    elif case.says and not (told and not told[2]) and not re.search(case.says, message):
        found.append(f"message without the reason: nothing like {case.says!r}")
    return found


def by_file(folder: Path) -> tuple[int, int, bool] | None:
    """By tokenizer.json itself: the shortest and the longest prompt in tokens without BOS, and whether the answers are
    single tokens that differ; None if it does not say."""
    if not (folder / "tokenizer.json").is_file():
        return None

    def tell() -> None:
        raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        raw.no_truncation()
        raw.no_padding()
        rows, single = [], True
        for prompt in PROMPTS:
            row, right, wrong = (
                raw.encode(prompt["prompt"] + word, add_special_tokens=False).ids
                for word in ("", prompt["answer"], prompt["wrong"])
            )
            rows.append(len(row))
            single &= right[:-1] == row == wrong[:-1] and right != wrong
        print(json.dumps([min(rows), max(rows), single]))

    ended = run(tell, folder.parent)
    return tuple(json.loads(ended.out)) if ended.code == 0 else None


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound folders that the cases begin as. Everything that a case needs is imported on the way."""
    folder = tmp_path_factory.mktemp("models")
    for name, make in BASES.items():
        (folder / name).mkdir()
        make(folder / name)
    (folder / "tasks.jsonl").write_text(TASK_FILE)
    arguments = ["check", str(folder / "tasks.jsonl"), "--model", str(folder / "gpt2"), "--device", "cpu"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cache_command.main(arguments, standalone_mode=False)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder of the case's own, of which nothing is kept: some files are of 200 MB."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def cases(all_cases: dict[str, Case], by_default: tuple[str, ...]) -> list:
    """The cases as parameters, all but a few of them slow."""
    assert not set(by_default) - set(all_cases)
    return [
        pytest.param(case, id=name, marks=() if name in by_default else pytest.mark.slow)
        for name, case in all_cases.items()
    ]


HOSTILE_BY_DEFAULT = (
    "auto_map of an unknown type",
    "auto_map in a tokenizer, as a list",
    "tokenizer_class AutoModelForImageClassification, with an auto_map for it",
    "a model with images, for which a package would be installed",
    "a pickle for weights",
    "an adapter beside the weights",
    "gpt2: n_layer a billion",
    "a shard that is a pipe",
    "a header of 1099511627776 bytes",
    "a BOS added without resizing",
    "all words of one id",
    "a tokenizer class of its own that ignores the file",
    "gpt2: config.json nested deep",
    "gpt2: model.safetensors that is a pointer of Git LFS",
)
SOUND_BY_DEFAULT = (
    "gpt2", "sharded", "word files", "sentences", "a cache of the hub", "a NaN in a row that no token reads",
)  # fmt: skip


@pytest.mark.parametrize("case", cases(HOSTILE, HOSTILE_BY_DEFAULT))
def test_a_hostile_folder_does_nothing_but_be_refused(bases, place, case):
    model = made(case, bases, place)
    ended = check(model, place)
    assert faults(case, ended, model) == [], f"exit code {ended.code}: {ended.err[:600]}"


@pytest.mark.parametrize("case", cases(SOUND, SOUND_BY_DEFAULT))
def test_a_sound_folder_is_measured(bases, place, case):
    """Whoever refuses everything does not pass."""
    model = made(case, bases, place)
    ended = check(model, place)
    assert faults(case, ended, model) == [], f"exit code {ended.code}: {ended.err[:600]}"


def test_there_are_twenty_cases_by_default_and_two_hundred_in_all():
    assert len(HOSTILE_BY_DEFAULT) + len(SOUND_BY_DEFAULT) == 20
    assert len(HOSTILE) > 200
    assert len(SOUND) > 20


HARMFUL = {name: case for name, case in HOSTILE.items() if case.harm}


@pytest.mark.parametrize("case", cases(HARMFUL, ("auto_map of an unknown type", "a pickle for weights")))
def test_a_plain_reader_who_says_yes_runs_what_is_in_the_folder(bases, place, case):
    model = made(case, bases, place)
    ended = run(lambda: case.harm(Path(model)), place)
    assert ended.marker, ended.err[-600:]


@pytest.mark.parametrize("case", cases({name: case for name, case in CODE.items() if "token" in name}, ()))
def test_a_tokenizer_alone_does_no_harm_either(bases, place, case):
    """Of a folder whose model is refused, the tokenizer may still be asked for."""
    model = made(case, bases, place)
    ended = command(place, "tasks", "ioi", "--show", "1", "--model", model)
    assert deeds(ended) == []
    assert ended.code in ANY


def test_a_row_that_no_token_has_may_hold_anything_in_a_sweep(bases, place, call):
    model = made(SOUND["a NaN in a row that no token reads"], bases, place)
    task, text, out_path = (place / name for name in ("tasks.jsonl", "text.txt", "x.h5"))
    task.write_text(TASK_FILE)
    text.write_text(prose(RandomState(0), sentences=100))
    flags = ("--batches", 4, "--batch-size", 2, "--control-text", text, "--device", "cpu", "--threads", 1)
    code, _, err = call(cache_command, "build", "--model", model, "--task", task, *flags, "--out", out_path)
    assert code == 0, err
    found = Cache.open(out_path)
    assert np.isfinite(found.damage("tasks")).all()
    assert np.isfinite(found.control_damage).all()


@pytest.mark.slow
def test_the_command_of_a_shell_asks_nothing(bases, place):
    """`yes | mechrl-cache check …`, as it is typed."""
    model = made(HOSTILE["auto_map of an unknown type"], bases, place)
    (place / "tasks.jsonl").write_text(TASK_FILE)
    command = [sys.executable, "-m", "mechrl.cli.main", "cache", "check", "tasks.jsonl", "--model", model]
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes:
        ended = subprocess.run(
            command, check=False, cwd=place, stdin=yes.stdout, capture_output=True, text=True, timeout=60
        )
        yes.kill()
    assert ended.returncode in (2, 4)
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert not (place / "marker").exists()


def reads_an_answer(place: Path) -> None:
    input("Do you wish to run the code? [y/N] ")


def reads_the_descriptor(place: Path) -> None:
    os.read(0, 10)


def opens_the_terminal(place: Path) -> None:
    with contextlib.suppress(OSError), open("/dev/tty"):
        pass


def runs_a_file(place: Path) -> None:
    (place / "evil.py").write_text("")
    exec(compile((place / "evil.py").read_text(), str(place / "evil.py"), "exec"))


def writes_the_marker(place: Path) -> None:
    (place / "marker").touch()


def connects(place: Path) -> None:
    with contextlib.suppress(OSError), socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def looks_up_a_name(place: Path) -> None:
    with contextlib.suppress(OSError):
        socket.getaddrinfo("huggingface.co", 443)


def begins_a_process(place: Path) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(["true"], check=False)


def fails(place: Path) -> None:
    raise IndexError("not ours")


def dies(place: Path) -> None:
    os.abort()


def never_ends(place: Path) -> None:
    time.sleep(60)


def takes_all_memory(place: Path) -> None:
    bytearray(2 * MEMORY)


def says_two_things(place: Path) -> None:
    print("error: one\nerror: two", file=sys.stderr)
    sys.exit(2)


def says_nothing(place: Path) -> None:
    sys.exit(2)


def steers(place: Path) -> None:
    print("error: \x1b[2J", file=sys.stderr)
    sys.exit(2)


def tells_of_python(place: Path) -> None:
    print("error: 'int' object has no attribute 'get'", file=sys.stderr)
    sys.exit(2)


def says_that_all_is_well(place: Path) -> None:
    print("tasks.jsonl: sound; 16 prompts")


WATCHED = {
    reads_an_answer: "asked on the terminal", reads_the_descriptor: "asked on the terminal",
    opens_the_terminal: "asked on the terminal", runs_a_file: "code run", writes_the_marker: "code run",
    connects: "reached for the network", looks_up_a_name: "reached for the network",
    begins_a_process: "began a process", fails: "traceback", takes_all_memory: "traceback", dies: "died",
    never_ends: "hang", says_two_things: "not one message", says_nothing: "not one message",
    steers: "steers the terminal", tells_of_python: "library internals in the message",
    says_that_all_is_well: "exit code",
}  # fmt: skip


@pytest.mark.parametrize("bad", WATCHED, ids=lambda bad: bad.__name__)
def test_what_a_case_must_not_do_is_seen(tmp_path, monkeypatch, bad):
    monkeypatch.setitem(globals(), "SECONDS", 1)
    ended = run(lambda: bad(tmp_path), tmp_path)
    found = faults(Case("gpt2", bad), ended, str(tmp_path / "model"))
    assert WATCHED[bad] in [fault.partition(":")[0] for fault in found]
