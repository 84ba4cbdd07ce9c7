"""What the page says of a cache, a search, a verification and attention: a file each."""
