"""Which numbers trackers draw: about a dozen charts of rounds that a person looks at, and the rest by group.

metrics.json and events.jsonl have every number; a chart of each would bury the few that say how a run goes.
"""

from collections.abc import Mapping

from heal.evaluation.signal import OF, signal_named

SECTION = "round"  # of the charts that a person looks at
_STUDENT = "healed/"  # signals of the healed student
_SEEN = ("trait", "coherence", "dose/c_star", "generation/kept_share", "training/D_mean", "training/strength")
_INTERVAL = ("_low", "_high", "_delta")  # stand in the table of intervals
_CONSTANT = "valid/"  # the same in every round; in that table too


def charts(values: Mapping[str, float]) -> dict[str, float]:
    """What trackers draw of a finished round, by `section/name`.

    Args:
        values: as `heal.outcome.round_values` and `base_values` give them.

    Returns:
        In the section `round` the trait (of several, their mean and each as `trait_<name>`), the margin of coherence,
        the healed student's signals of coherence that have a limit, the dose, the fraction of completions kept, the
        barrier's divergence and the lambda that follows it; every other value in the section of its stage or step
        (`steered/...`, `healed/...`, `dose/...`), without intervals.
    """
    kept = {name: value for name, value in values.items() if not name.startswith(_CONSTANT)}
    kept = {name: value for name, value in kept.items() if not _of_an_interval(name, values)}
    doubled = _STUDENT + "persona_log_ratio"  # the trait
    return {_place(name): value for name, value in kept.items() if name != doubled or "trait" not in kept}


def _place(name: str) -> str:
    signal = signal_named(name.removeprefix(_STUDENT)) if name.startswith(_STUDENT) else None
    if signal is not None and signal.role == "trait" and OF in signal.name:  # one of several traits
        return f"{SECTION}/trait_{signal.name.partition(OF)[2]}"
    if name in _SEEN or (signal is not None and signal.limit is not None):
        return f"{SECTION}/{name.rpartition('/')[2]}"
    return name if "/" in name else f"other/{name}"


def _of_an_interval(name: str, values: Mapping[str, float]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in values for end in _INTERVAL)
