"""The README's Python runs as it stands."""

import re
import shutil
from pathlib import Path

from mechrl.cache.storage import manifest_path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(small_cache, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    shutil.copy(small_cache.path, tmp_path / "cache" / "mini.h5")
    shutil.copy(manifest_path(small_cache.path), tmp_path / "cache" / "mini.h5.json")
    monkeypatch.chdir(tmp_path)
    _, block = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)  # test_python_api.py runs the first
    names: dict = {}
    exec(block, names)
    assert names["info"]["task"] == "ioi"
    assert names["observation"].shape == (1 + 2 * 48,)
