"""How every command of heal runs: mistakes in one line, the exit status, what happens when it is stopped."""

import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from heal.console import fail
from heal.errors import RoundError, UserError

CONTINUES = "What was finished is kept; the same command continues."
HELP_WORDS = ("-h", "--help", "help")
_STOPPED = 130


def command(
    words: Sequence[str], help: Callable[[], str], main: Callable[[Sequence[str]], None], hint: str = ""
) -> None:
    """Prints `help()` where one of the words asks for it, and runs `main(words)` otherwise; see `guarded`."""
    if any(word in HELP_WORDS for word in words):
        guarded(lambda: print(help()), hint)
    else:
        guarded(lambda: main(_decoded(words)), hint)


def guarded(work: Callable[[], None], hint: str = "") -> None:
    """Runs `work`; a user's mistake is one line and exit 2, a failed round or file one line and exit 1.

    Where nobody reads the output any more (`| head`), nothing is said and the exit status is 1. SIGTERM stops the work
    as Ctrl-C does (exit 130).

    Args:
        work: what is run.
        hint: printed after a failure that the same command may overcome, and after a stop.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    # Threads that spin long at every barrier slow a run down tenfold as soon as anything else wants a core.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        work()
        print(end="", flush=True)
    except UserError as error:
        fail(str(error), 2)
    except RoundError as error:
        fail(f"{error} {hint if error.again else ''}".strip(), 1)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _unread():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
            raise SystemExit(1) from None
        fail(f"{_reason(error)}. {hint}".strip(), 1)
    except KeyboardInterrupt:
        fail(f"stopped. {hint}".strip(), _STOPPED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _decoded(words: Sequence[str]) -> Sequence[str]:
    """The words; UserError for one with bytes that are no UTF-8, which Python keeps as surrogates."""
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(f"{word!a}: not UTF-8; set the terminal or the script to UTF-8")
    return words


def _unread() -> bool:
    """Whether nobody reads standard output any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return bool(poll.poll(0))


def _reason(error: OSError) -> str:
    """The file, where the system names one, and what is wrong with it, on one line."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
