"""What a run is: its settings, their ranges, and the TOML files that hold them."""
