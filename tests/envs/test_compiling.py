"""Where numba may keep what it has compiled, and that nobody else can put something there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mechrl.envs import compiling

SMALL = """
from compiling import compiled

@compiled
def add(a, b):
    return a + b

print(add(1, 2), sum(add._cache_hits.values()))
"""


@pytest.fixture
def installed(tmp_path):
    """A compiled function where numba can write as little as in the home; what it gives, and if that was cached."""
    place = tmp_path / "read_only"
    place.mkdir()
    shutil.copy(compiling.__file__, place)
    (place / "small.py").write_text(SMALL)
    (place / "__pycache__").touch()  # in the way, of root as well
    (tmp_path / "temporary").mkdir()

    def use(**environment: str) -> str:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"},
            "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "TMPDIR": str(tmp_path / "temporary"), **environment,
        }  # fmt: skip
        ended = subprocess.run(
            [sys.executable, place / "small.py"], check=False, env=environment, capture_output=True, text=True
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    return use


def kept(folder: Path) -> set[str]:
    return {path.name.split("-")[0] for path in folder.rglob("*.nbc")}


def test_without_a_place_beside_the_source_or_in_the_home_a_private_folder_holds_it(installed, tmp_path):
    assert [installed(), installed()] == ["3 0\n", "3 1\n"]
    (folder,) = (tmp_path / "temporary").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert kept(folder) == {"small.add"}


def test_numba_cache_dir_is_kept_to_if_it_can_be(installed, tmp_path):
    installed(NUMBA_CACHE_DIR=str(tmp_path / "mine"))
    assert kept(tmp_path / "mine") == {"small.add"}
    assert not list((tmp_path / "temporary").iterdir())
    installed(NUMBA_CACHE_DIR="/dev/null")
    assert kept(tmp_path / "temporary") == {"small.add"}


@pytest.mark.parametrize("spoil", ["truncate", pytest.param("folder", marks=pytest.mark.slow)])
def test_a_cache_that_cannot_be_read_or_written_is_no_error(installed, tmp_path, spoil):
    installed(NUMBA_CACHE_DIR=str(tmp_path / "mine"))
    for path in (tmp_path / "mine").rglob("*.nbi"):
        path.unlink()
        path.touch() if spoil == "truncate" else path.mkdir()
    assert installed(NUMBA_CACHE_DIR=str(tmp_path / "mine")) == "3 0\n"


def test_a_folder_that_another_user_could_fill_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = compiling.private_folder()
    assert compiling.private_folder() == folder
    folder.chmod(0o770)
    with pytest.raises(OSError, match="this user alone"):
        compiling.private_folder()
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="this user alone"):
        compiling.private_folder()
    folder.unlink()
    tmp_path.chmod(0o777)  # without the sticky bit anybody can put another one in its place
    with pytest.raises(OSError, match="this user alone"):
        compiling.private_folder()
    tmp_path.chmod(0o1777)
    assert compiling.private_folder() == folder
    another = os.getuid() + 1
    folder.rename(tmp_path / f"mechrl-numba-{another}")
    monkeypatch.setattr("os.getuid", lambda: another)
    with pytest.raises(OSError, match="this user alone"):
        compiling.private_folder()


@pytest.mark.slow
def test_with_no_private_folder_either_it_is_compiled_every_time(installed, tmp_path):
    (tmp_path / "temporary").chmod(0o777)
    assert [installed(), installed()] == ["3 0\n", "3 0\n"]
    assert not kept(tmp_path)
