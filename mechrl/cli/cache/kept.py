"""`mechrl-cache kept`: what mechrl keeps so as not to make it twice."""

import shutil
from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@click.option("--clear", is_flag=True, help="Remove all of it but the files that were fetched.")
@app.as_json
def kept(clear: bool, as_json: bool) -> None:
    """What is kept in MECHRL_HOME: control sweeps, fetched or dequantised models, and unfinished circuit searches."""
    from mechrl.home import home, kept_files

    files = [path for room in ("control", "models", "circuits") for path in kept_files(room)]
    sizes = [_size(path) for path in files]
    removed = [path for path in files if clear and path.suffix != ".gguf"]
    for path in removed:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if as_json:
        listed = [{"path": str(path), "bytes": size} for path, size in zip(files, sizes, strict=True)]
        return app.print_json({"home": str(home()), "files": listed, "removed": [str(path) for path in removed]})
    from mechrl.display import print_table

    rows = [
        [str(path.relative_to(home())), f"{size / 1e6:.1f}", "removed" if path in removed else ""]
        for path, size in zip(files, sizes, strict=True)
    ]
    print_table(str(home()), ["kept", "MB", ""], rows, text="kept")
    return None


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
