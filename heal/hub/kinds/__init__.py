"""What of a run goes to a hub: a file each, whose `collect(source)` gives files and card."""
