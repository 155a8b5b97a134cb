"""Trajectories as rollouts leave them, made up."""

from collections.abc import Sequence

from heal.studies.survival.rollouts import Trajectory


def trajectory(
    alpha: float = 1.0,
    prompt: int = 0,
    length: int = 12,
    death: int | None = None,
    ended: bool = False,
    kl: Sequence[float] | None = None,
) -> Trajectory:
    """A rollout of `length` tokens that dies after `death` of them, or is censored at the last that can be probed."""
    nats = tuple(0.1 for _ in range(length)) if kl is None else tuple(kl)
    count = len(nats)
    return Trajectory(
        alpha=alpha,
        coefficient=2 * alpha,
        prompt=prompt,
        ids=(50,) * count,
        kl=nats,
        ended=ended,
        finite=True,
        forks=() if death is None else (death,),
        masses=() if death is None else (0.1,),
        death=death,
        censored_at=count - ended if death is None else None,
    )
