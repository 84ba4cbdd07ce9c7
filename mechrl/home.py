"""Where mechrl keeps what it need not make twice: `MECHRL_HOME`, by default the user's cache folder."""

import os
from pathlib import Path


def home() -> Path:
    """The folder, which need not be there yet."""
    if chosen := os.environ.get("MECHRL_HOME"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("mechrl", appauthor=False))


def kept_files(room: str) -> list[Path]:
    """What is kept in a folder of it, `control`, `models` or `circuits`."""
    return sorted(path for path in (home() / room).glob("*") if not path.name.startswith("."))
