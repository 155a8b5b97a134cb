"""The commands of `heal`, one file each: its first line is what `heal --help` says of it, `main(words)` runs it."""
