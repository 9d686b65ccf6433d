"""HTTP to the engine."""
