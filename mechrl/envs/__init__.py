"""The game of finding heads: a numba kernel, and the environments that libraries expect on top of it."""
