"""Programs that a model writes are executed here, in a sandbox."""
