"""Compiling by numba, whose cache may make things faster and may never stop them."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import config
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])


class _Cache(FunctionCache):
    """numba's cache of a function; what cannot be read from it is compiled, and what it cannot hold is not kept."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        numbas: Any = super()
        try:
            return numbas.load_overload(sig, target_context)
        except Exception:  # cut off by a full disk, or another user's: what unpickling raises is anything
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        numbas: Any = super()
        with contextlib.suppress(Exception):
            numbas.save_overload(sig, data)


def compiled(function: F) -> F:
    """`njit`, cached beside the source or in the home as numba does; else in a private temporary folder; else not."""
    dispatcher: Any = njit(function)
    make_cache: Any = _Cache  # numba says no types
    with contextlib.suppress(RuntimeError, OSError):  # RuntimeError: numba's, for no place
        try:
            dispatcher._cache = make_cache(function)
        except RuntimeError:
            with _cached_in(private_folder()):
                dispatcher._cache = make_cache(function)
    return cast(F, dispatcher)


@contextlib.contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    """Has numba look for a place for its cache there first."""
    settings: Any = config
    before, settings.CACHE_DIR = settings.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        settings.CACHE_DIR = before


def private_folder() -> Path:
    """A folder for this user alone: numba's files are pickles, and whoever wrote them would have us run them.

    :raises OSError: it cannot be made, or it is not ours alone.
    """
    folder = Path(tempfile.gettempdir()) / f"mechrl-numba-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    above, found = folder.parent.stat(), folder.lstat()
    replaceable = above.st_uid not in (0, os.getuid()) or (above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX)
    if replaceable or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not, or does not stay, a folder of this user alone")
    return folder
