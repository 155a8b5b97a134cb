"""What is told of a run while it goes on: its event log, and as many trackers as the recipe names."""
