"""Other people's files, in both directions."""
