"""The benchmark: all methods on all held-out families, its error bars and its verdict."""
