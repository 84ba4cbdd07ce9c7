"""Fixtures that several test files share. Heavy ones live for the whole session."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the hub
# One thread a process: sums of another number of threads differ in the last bit, and a fork hangs on its parent's.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"})

import shutil
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import SMALL, tiny_model

from mechrl.building.build import build
from mechrl.cache.reader import Cache
from mechrl.cli import app
from mechrl.models import Model, load_model
from mechrl.process import keep_freed_memory

os.environ["MECHRL_HOME"] = tempfile.mkdtemp(prefix="mechrl-tests-")  # nothing of the user's is read or changed


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["MECHRL_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def own_home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A home of its own for each test, so that none finds what another kept there.

    Builds in this process find no control there either, for tests compare one build with another.
    """
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MECHRL_HOME", str(home))
    if request.node.path.name != "test_kept.py":
        monkeypatch.setattr("mechrl.building.build.find_control", lambda key: None)
    return home


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What limits memory runs first, in a process that has freed none which could still be used."""
    items.sort(key=lambda item: "security" not in item.path.parts)


@pytest.fixture(scope="session")
def mini() -> Model:
    """The embedded model."""
    return load_model("mini", device="cpu")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model of 2 layers × 2 heads, for what does not depend on the numbers; its name is its folder."""
    return load_model(str(tiny_model(tmp_path_factory.mktemp("models") / "tiny")), device="cpu")


@pytest.fixture(scope="session")
def small_cache(mini: Model, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache of `mini` with few prompts, built once for all processes of a run. Not to be changed."""
    keep_freed_memory()
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of the run, in which each process has a folder
    path = folder / "small_cache" / "mini.h5"
    with FileLock(folder / "small_cache.lock"):
        return Cache.open(path if path.exists() else build(mini, SMALL, path))


@pytest.fixture
def call(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Runs a command in this process: `call(command, *arguments)` gives its exit code, stdout and stderr."""

    def call(command, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app.run(command)
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def gpt2_tokenizer():
    """The real GPT-2 tokenizer, where it lies beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "gpt2-tokenizer"
    if not folder.is_dir():
        pytest.skip("the GPT-2 tokenizer is not here")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
