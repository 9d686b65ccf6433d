"""The settings of a run: their defaults, their ranges, and the TOML files that contain them."""
