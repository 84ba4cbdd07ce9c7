"""Circuits: the smallest set of heads that keeps a behaviour while all other heads are ablated."""
