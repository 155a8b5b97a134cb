"""How every command of heal runs: mistakes in one line, the exit status, what happens when it is stopped."""

import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any

from heal import parallel
from heal.console import fail
from heal.errors import RoundError, UserError
from heal.launcher import launched
from heal.memory import out_of_memory, told
from heal.messages import Elsewhere
from heal.streams import give_up_unwritable, mend_streams, readable
from heal.unforeseen import Unforeseen, kept

CONTINUES = "What was finished is kept; the same command continues."
HELP_WORDS = ("-h", "--help", "help")
_STOPPED = 130
_PATIENCE = 5.0  # seconds in which one of several processes ends by itself after a signal


def command(
    words: Sequence[str],
    help: Callable[[], str],
    main: Callable[[Sequence[str]], None],
    hint: str = "",
    several: bool = False,
) -> None:
    """Prints `help()` where one of the words asks for it, and runs `main(words)` otherwise; see `guarded`.

    Where a launcher started several processes, the first alone prints, and one of them alone says why all end.

    Args:
        words: of the command line, after the command's name.
        help: its help.
        main: the command.
        hint: see `guarded`.
        several: whether several processes may do it together.
    """

    def work() -> None:
        _join(several, hint)
        if any(word in HELP_WORDS for word in words):
            print(help())
        else:
            main(readable(words))
        print(end="", flush=True)
        parallel.finish()

    guarded(work, hint)


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
        _end(str(error), 2)
    except RoundError as error:
        _end(f"{error} {hint if error.again else ''}".strip(), 1)
    except Elsewhere:
        _leave(1)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _unread():
            _leave(1)
        if error.errno == errno.ENAMETOOLONG:  # no file has it: a mistake
            _end(_reason(error), 2)
        _end(f"{_reason(error)}. {hint}".strip(), 1)
    except KeyboardInterrupt:
        _end(f"stopped. {hint}".strip(), _STOPPED)
    except SystemExit as leaving:
        if parallel.size() == 1:
            raise
        _end(f"stopped. {hint}".strip(), leaving.code if isinstance(leaving.code, int) else 1)
    except Unforeseen as error:
        _end(f"{error} {hint}".strip(), 1)
    except BaseException as error:  # a panic of a library in Rust is no Exception
        _end(f"{told(error) if out_of_memory(error) else kept(error)} {hint}".strip(), 1)
    finally:
        give_up_unwritable()
        signal.signal(signal.SIGTERM, before)


def _join(several: bool, hint: str) -> None:
    """Finds the other processes, if a launcher started several, and lets the first alone print.

    Raises:
        UserError: there are several, and the work is for one.
    """
    this = launched()
    if this.size == 1:
        return
    if not several:
        if this.rank:
            _leave(2)
        raise UserError(f"{this.size} processes were launched, and this command runs in one: start it by itself")
    parallel.start(this)
    if this.rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, _stop)
    _leave_when_stopped(hint)


def _leave_when_stopped(hint: str) -> None:
    """Ends this process a while after a signal: no handler of Python's runs while it waits for other processes."""
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)

    def wait(kept_open: socket.socket = waking) -> None:
        while woken.recv(1)[0] not in (signal.SIGTERM, signal.SIGINT):
            pass
        time.sleep(_PATIENCE)
        _end(f"stopped. {hint}".strip(), _STOPPED)

    Thread(target=wait, daemon=True).start()


def _end(text: str, status: int) -> None:
    """One line on standard error, of one process alone where there are several, then exit."""
    if parallel.speaks():
        with suppress(SystemExit):
            fail(text, status)
    _leave(status)


def _leave(status: int) -> None:
    """Exits; where there are several processes at once, since what waits for the others would never end."""
    if parallel.size() > 1:
        parallel.part()
        give_up_unwritable()
        os._exit(status)
    raise SystemExit(status) from None


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
