"""The trackers that a run can be told to: one file each, named as `tracking.to` calls it.

A file exports `start(run: TrackedRun) -> Tracker`, and its docstring's first line is what `--help` says of it.
"""
