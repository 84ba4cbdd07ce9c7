"""Where the files of a model come from, and what is looked at before a library believes them."""
