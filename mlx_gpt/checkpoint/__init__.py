"""Checkpoints: the state of a run in a file."""
