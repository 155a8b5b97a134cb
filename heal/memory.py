"""Running out of memory, said in one line; torch is not imported for it."""

from collections.abc import Iterator
from contextlib import contextmanager

from heal.errors import RoundError

LESS = (
    "use a device with more memory, several with compute.base=spread or, in a run of its own, model.dtype=bfloat16 or "
    "model.load_4bit=true"
)
_FULL = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of plain RuntimeErrors


class OutOfMemory(RoundError):
    """A device ran out of memory, in the one line that a user reads."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the process, ran out of memory."""
    if isinstance(error, MemoryError | OutOfMemory):
        return True
    named = type(error).__name__ == "OutOfMemoryError"  # torch's
    return isinstance(error, RuntimeError) and (named or any(text in str(error) for text in _FULL))


def told(error: BaseException, when: str = "", advice: str = LESS) -> OutOfMemory:
    """The one line of an error that is `out_of_memory`: what happened, when, and what to do."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return OutOfMemory(f"out of memory {when}".strip() + f" ({reason}); {advice}.")


@contextmanager
def memory_told(when: str, advice: str = LESS) -> Iterator[None]:
    """Turns running out of memory into a RoundError that says when it did, and what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise told(error, when, advice) from error
