"""Verification: the model comes back once and confirms the heads that the search picked."""
