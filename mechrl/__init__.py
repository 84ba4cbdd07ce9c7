"""mechrl: which attention heads does this behaviour depend on? A cache of every head's damage, and search on it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechrl.ablation import Ablation
    from mechrl.api import attention, audit, bench, build, circuit, load, report, train, verify
    from mechrl.cache.reader import Cache
    from mechrl.cache.top import top_heads
    from mechrl.search.ppo.checkpoint import Checkpoint
    from mechrl.tasks import Task
    from mechrl.verification.result import Verification

__version__ = "0.1.0"
_WHERE = {
    **dict.fromkeys(
        ("build", "load", "train", "verify", "circuit", "audit", "bench", "report", "attention"), "mechrl.api"
    ),
    "top_heads": "mechrl.cache.top",
    "Cache": "mechrl.cache.reader",
    "Checkpoint": "mechrl.search.ppo.checkpoint",
    "Verification": "mechrl.verification.result",
    "Task": "mechrl.tasks",
    "Ablation": "mechrl.ablation",
}
__all__ = [
    "Ablation",
    "Cache",
    "Checkpoint",
    "Task",
    "Verification",
    "__version__",
    "attention",
    "audit",
    "bench",
    "build",
    "circuit",
    "load",
    "report",
    "top_heads",
    "train",
    "verify",
]


def __getattr__(name: str) -> object:
    """A name of the API, imported when it is asked for, so that `mechrl --help` needs nothing but click."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'mechrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
