"""What makes the rounds to come pointless: a trait that cannot be read, or that steering does not shift."""

from heal.errors import UserError
from heal.evaluation.results import StageResult
from heal.evaluation.signal import TRAIT
from heal.run.session import Session
from heal.steps.baseline import Baseline, unreadable

_OTHER = "choose another trait text or a larger model"


def stop_unless_readable(session: Session, baseline: Baseline, stops: bool = True) -> None:
    """Ends a run whose trait cannot be read on base; with `stops` False it is only warned of.

    Raises:
        UserError: it cannot, unless the recipe goes on all the same.
    """
    if why := unreadable(baseline):
        what = f"the trait cannot be read on this model, so that no round will hold ({why}); {_OTHER}"
        _stop_or_warn(session, what, "stop_when_unreadable", stops)


def stop_unless_steerable(session: Session, baseline: Baseline, steered: StageResult) -> None:
    """Ends a run whose vector, at its dose, does not shift the trait above base: nothing is there to be healed in.

    Raises:
        UserError: it does not, unless the recipe goes on all the same.
    """
    shift = baseline.summary(steered)[TRAIT].delta
    if unreadable(baseline) or shift.low > 0:
        return
    elsewhere = _OTHER if session.recipe.steer.open or session.trait.parts else "steer.band=auto tries other blocks"
    what = (
        f"steering at c* does not shift the trait on this model ({shift:+.3f} nats/token over base), so that healing "
        f"can hardly keep it; {elsewhere}"
    )
    _stop_or_warn(session, what, "stop_when_unsteerable")


def _stop_or_warn(session: Session, what: str, key: str, stops: bool = True) -> None:
    """An error where `run.stop` and its `key` ask for it, else a warning."""
    words = "one trait at a time" if session.trait.parts else "the same words"
    said, settings = f"{what}; heal check, with {words}, says what to change", session.recipe.run
    if stops and settings.stop and getattr(settings, key):
        raise UserError(f"{said}; run.{key}=false goes on")
    session.console.warn(said)
