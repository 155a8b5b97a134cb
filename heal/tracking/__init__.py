"""What is told of a run while it goes on: its event log, and as many trackers as the recipe names."""

from heal.tracking.mode import resolve_mode

__all__ = ["resolve_mode"]
