"""Frozen tables: caches of models that come with the package, opened by name. `TABLES.md` says how each was made."""

from difflib import get_close_matches
from pathlib import Path

from mechrl.errors import UsageError
from mechrl.progress import say

FOLDER = Path(__file__).parent


def table_names() -> list[str]:
    """Of the tables that there are, such as "mini"; an ablation other than zero is named after a dot."""
    return sorted(path.stem for path in FOLDER.glob("*.h5"))


def cache_file(name: str | Path) -> Path:
    """The file that a cache's name stands for: a bare name is a table's, and a path has a separator or a suffix.

    :raises UsageError: there is no table of that name.
    """
    path, names = Path(name), table_names()
    if str(name) in names:
        if path.exists():
            say(f"{name} is the table that comes with mechrl, and not what lies here; ./{name} names that")
        return FOLDER / f"{name}.h5"
    if len(path.parts) == 1 and not path.suffix and not str(name).startswith((".", "~")):
        near = get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"there is no table {str(name)!r}.{hint} Known: {', '.join(names)}; a file's name has a separator or a "
            f"suffix, as ./{name}"
        )
    return path
