"""The methods of search that are compared: the registry, and one idea a file."""
