"""Sphinx: the pages of this folder, and the API from the docstrings. `sphinx-build -W docs docs/_build`."""

import mechrl

project = "mechrl"
release = mechrl.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
suppress_warnings = ["myst.xref_missing"]  # links out of this folder, which are for readers of the repository
