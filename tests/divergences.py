"""Every divergence that there is."""

from heal import choices
from heal.healing.divergences import Divergence, divergence_named

DIVERGENCES: list[Divergence] = list(choices.load_all("heal.healing.divergences", "DIVERGENCE").values())
HELD = [divergence for divergence in DIVERGENCES if divergence.needs_reference]  # those that hold the student
NONE = divergence_named("none")
