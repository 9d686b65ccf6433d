"""Mixers: the half of a block that moves information between positions."""
