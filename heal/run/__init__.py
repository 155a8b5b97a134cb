"""A run: its folder on disk, its steps, and what is open while it goes on."""
