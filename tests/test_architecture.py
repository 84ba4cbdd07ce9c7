"""Who may import whom: only towards the models, never back."""

import ast
from pathlib import Path

import pytest

import mechrl

PACKAGE = Path(mechrl.__file__).parent
ORDER = [
    "errors", "progress", "vocabulary", "intervals", "score", "tables", "results", "models", "tasks", "ablation",
    "cache", "building", "envs", "search", "verification", "reporting", "api", "cli",
]  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "mechrl"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mechrl."):
            assert ORDER.index(room(node.module)) <= ORDER.index(own), f"{own} imports {node.module}"
