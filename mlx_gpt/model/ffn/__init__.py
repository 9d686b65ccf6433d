"""Feed-forward networks: the half of a block that works on each position alone."""
