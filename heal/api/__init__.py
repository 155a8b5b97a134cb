"""The public Python API, exposed by `heal` itself: what a researcher needs in a notebook, without a run folder.

Each function does what the step of the loop of the same name does, by the same code, and takes that section's keys of
the recipe as keywords, with the same defaults. docs/quickstart.ipynb goes through all of them.

A model is changed in place: functions act on it as it stands, the accumulator's contexts (`student.base()`,
`student.gates(1, 0)`) and `vector.applied(model, c)` say in which state that is.
"""
