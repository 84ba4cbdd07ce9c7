"""Building a cache: the prompts, the workers that sweep them, and the merge."""
