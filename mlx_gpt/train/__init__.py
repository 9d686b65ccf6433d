"""Training: the compiled training step, the loop that repeats it, and the reports that the loop yields."""
