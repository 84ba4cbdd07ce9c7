"""mechrl: which attention heads does this behaviour hang on? A cache of every head's damage, and search on it."""

__version__ = "0.1.0"
