"""Who may import whom: only towards the models, never back; and what the package offers."""

import ast
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import mechrl
from mechrl.errors import UsageError

PACKAGE = Path(mechrl.__file__).parent
ORDER = [
    "errors", "process", "progress", "home", "vocabulary", "intervals", "score", "display", "results", "tables",
    "models", "tasks",
    "ablation", "cache", "building", "envs", "search", "circuits", "verification", "reporting", "api", "cli",
]  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
MANY_ALIKE = ("tasks", "cli")  # a file a task, a file a command
SHOW_COMMANDS = ("cli", "reporting")  # the report prints the commands that make it again
FLAG = re.compile(r"(?<![\w-])--[a-z]")


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "mechrl"


def own_room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = own_room(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mechrl."):
            assert ORDER.index(room(node.module)) <= ORDER.index(own), f"{own} imports {node.module}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_no_two_modules_need_each_other():
    """Nor does a longer circle, imports inside functions and those for types included."""
    modules = {module_name(path): path for path in FILES}
    needs: dict[str, set[str]] = {}
    for name, path in modules.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        named = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        named = {full if full in modules else full.rpartition(".")[0] for full in named}
        needs[name] = named & modules.keys()
    assert len(list(TopologicalSorter(needs).static_order())) == len(modules)


def test_a_room_has_ten_files_at_most():
    counts = Counter(path.parent for path in FILES if own_room(path) not in MANY_ALIKE)
    assert max(counts.values()) <= 10, {str(folder): n for folder, n in counts.items() if n > 10}


def texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a module, an f-string as one with … for its values; not docstrings, nor commands in backticks."""
    if isinstance(tree, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in tree.values)
        return
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield tree.value
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield from texts(node)


@pytest.mark.parametrize(
    "path", [path for path in FILES if own_room(path) not in SHOW_COMMANDS], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_message_of_the_library_names_a_flag(path):
    for text in texts(ast.parse(path.read_text())):
        assert not FLAG.search(re.sub("`[^`]*`", "", text)), text


def test_no_import_rebinds_a_name_of_the_package():
    """As a sub-package called `mechrl.build` would."""
    before = {name: getattr(mechrl, name) for name in mechrl.__all__}
    for module in pkgutil.walk_packages([str(PACKAGE)], "mechrl."):
        import_module(module.name)
    assert {name: getattr(mechrl, name) for name in mechrl.__all__} == before
    nowhere = "nowhere/none.h5"
    for call in (
        lambda: mechrl.build("mini", nowhere + ".jsonl"),
        lambda: mechrl.load(nowhere),
        lambda: mechrl.train(nowhere),
        lambda: mechrl.verify("nowhere/none.zip", nowhere),
        lambda: mechrl.bench(nowhere, workers=1),
        lambda: mechrl.report(nowhere),
        lambda: mechrl.attention("0.0", nowhere + ".jsonl"),
    ):
        with pytest.raises(UsageError, match="nowhere"):
            call()
