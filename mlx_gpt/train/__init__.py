"""The loop: one compiled step, repeated, and reports of what it does."""
