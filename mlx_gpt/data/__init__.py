"""Text to ids to windows."""
