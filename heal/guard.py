"""How every command of heal runs: mistakes in one line, the exit status, what happens when it is stopped."""

import errno
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from heal.console import fail
from heal.errors import RoundError, UserError
from heal.memory import out_of_memory, told
from heal.streams import give_up_unwritable, mend_streams, readable
from heal.unforeseen import Unforeseen, kept

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
        guarded(lambda: main(readable(words)), hint)


def guarded(work: Callable[[], None], hint: str = "") -> None:
    """Runs `work`; a user's mistake is one line and exit 2, a failed round or file, or memory that ran
    out, one line and exit 1.

    So is whatever nobody foresaw: its line names the file that the traceback is in. Where nobody reads the output any
    more (`| head`), nothing is said and the exit status is 1. SIGTERM stops the work as Ctrl-C does (exit 130).

    Args:
        work: what is run.
        hint: printed after a failure that the same command may overcome, and after a stop.
    """
    mend_streams()
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
            raise SystemExit(1) from None
        if error.errno == errno.ENAMETOOLONG:  # no file has it: a mistake
            fail(_reason(error), 2)
        fail(f"{_reason(error)}. {hint}".strip(), 1)
    except KeyboardInterrupt:
        fail(f"stopped. {hint}".strip(), _STOPPED)
    except SystemExit:
        raise
    except Unforeseen as error:
        fail(f"{error} {hint}".strip(), 1)
    except BaseException as error:  # a panic of a library in Rust is no Exception
        fail(f"{told(error) if out_of_memory(error) else kept(error)} {hint}".strip(), 1)
    finally:
        give_up_unwritable()
        signal.signal(signal.SIGTERM, before)


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
