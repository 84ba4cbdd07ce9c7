"""mechrl: which attention heads does this behaviour hang on? A cache of every head's damage, and search on it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechrl.api import build
    from mechrl.cache.reader import Cache
    from mechrl.cache.top import top_heads

__version__ = "0.1.0"
_WHERE = {"build": "mechrl.api", "Cache": "mechrl.cache.reader", "top_heads": "mechrl.cache.top"}
__all__ = ["Cache", "__version__", "build", "top_heads"]


def __getattr__(name: str) -> object:
    """A name of the API, imported when it is asked for, so that `mechrl --help` needs nothing but click."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'mechrl' has no attribute {name!r}")
