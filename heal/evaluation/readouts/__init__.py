"""Readouts, one file each: `SIGNALS` (heal/evaluation/signal.py) and `measure(subject, answers) -> list[Measured]`.

A new readout is one new file here. `measure` gives a value for each signal that the file describes, or nothing at all
where the recipe does not ask for the readout. What needs torch is imported inside functions, because descriptions are
read by the recipe and by `--help`.
"""
