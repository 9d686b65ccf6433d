"""Generated programs: text whose every document is correct code."""
