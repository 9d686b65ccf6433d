"""Reports to eyes."""
