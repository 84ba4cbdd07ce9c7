"""mechrl: which attention heads does this behaviour hang on? A cache of every head's damage, and search on it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechrl.cache.reader import Cache

__version__ = "0.1.0"
__all__ = ["Cache", "__version__"]


def __getattr__(name: str) -> object:
    """`mechrl.Cache`, imported when it is asked for, so that `mechrl --help` needs nothing but click."""
    if name == "Cache":
        from mechrl.cache.reader import Cache

        return Cache
    raise AttributeError(f"module 'mechrl' has no attribute {name!r}")
