"""The cache: its format, reading, writing, building and merging."""
