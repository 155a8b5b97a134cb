"""Runs the Python code in the card of an export, as it is written, by any interpreter, and prints what came out.

    python scripts/cards.py EXPORT PYTHON [WORD]

Blocks that contain WORD only, if one is given (vllm, peft, pipeline). The exit status is 1 if a block fails.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from heal.export.serving import reason  # noqa: E402

HEALTH = "http://localhost:8000/health"  # of the servers that cards start
STARTS, STOPS, ENDS = 900, 30, 1800  # seconds: a server's start, its end, any other block
_LOGGED = re.compile(
    r"^(\([\w-]+ pid=\d+\) )?(INFO|WARNING|ERROR) \d\d-\d\d .*\n?", re.MULTILINE
)  # by vLLM, among the text


@dataclass(frozen=True)
class Block:
    """A fenced block of a card: its language and its code."""

    language: str
    code: str


@dataclass(frozen=True)
class Ran:
    """What became of some code: whether it ended well, and what it said, or the line of its error."""

    well: bool
    said: str


def blocks(folder: Path, language: str) -> list[Block]:
    """The blocks of an export's card in one language (python, sh)."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    return [Block(language, code) for code in found]


def run(block: Block, folder: Path, python: Path | str, environment: Mapping[str, str] = os.environ) -> Ran:
    """Runs a block in a folder: of Python by `python`, any other by the shell."""
    script = folder.absolute() / f"README.{os.getpid()}.py"  # of this process alone
    line = ["sh", "-ec", block.code]
    if block.language == "python":
        script.write_text(block.code, encoding="utf-8")
        line = [str(python), script.name]
    try:
        done = subprocess.run(
            line, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ENDS
        )
    finally:
        script.unlink(missing_ok=True)
    if done.returncode:
        return Ran(False, reason(f"{done.stdout}\n{done.stderr}"))
    return Ran(True, _LOGGED.sub("", done.stdout).strip())


def ask_server(start: Block, request: Block, folder: Path, environment: Mapping[str, str] = os.environ) -> Ran:
    """Starts the server of one block, sends it the request of another, and ends it; what the answer says."""
    with tempfile.TemporaryFile("w+") as log:
        with _serving(start, folder, environment, log) as up:
            if up:
                answer = run(request, folder, "", environment)
                return Ran(answer.well, _content(answer.said) if answer.well else answer.said)
        log.seek(0)
        return Ran(False, reason(log.read()))


@contextmanager
def _serving(start: Block, folder: Path, environment: Mapping[str, str], log: IO[str]) -> Iterator[bool]:
    """The server's process inside the context; whether it came up."""
    if _answers():
        raise RuntimeError(f"{HEALTH} answers already: end that server first")
    process = subprocess.Popen(
        ["sh", "-c", f"exec {start.code}"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        until = time.monotonic() + STARTS
        while process.poll() is None and time.monotonic() < until and not _answers():
            time.sleep(1)
        yield process.poll() is None and _answers()
    finally:
        process.terminate()
        try:
            process.wait(STOPS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers() -> bool:
    try:
        with urllib.request.urlopen(HEALTH, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _content(answer: str) -> str:
    """The text of an answer in the form of OpenAI's chat completions; another answer as it is."""
    content = json.loads(answer)
    return content["choices"][0]["message"]["content"].strip() if "choices" in content else answer


def main(folder: Path, python: str, word: str = "") -> int:
    """Runs each block in the folder; how many failed."""
    failed, python = 0, os.path.abspath(python) if os.sep in python else python
    for block in blocks(folder, "python"):
        if word not in block.code:
            continue
        started = time.monotonic()
        ran = run(block, folder, python)
        failed += not ran.well
        how = f"{'ran' if ran.well else 'failed'} in {time.monotonic() - started:.0f} s"
        said = " / ".join(ran.said.splitlines()) or "(nothing)"
        print(f"{folder.name}: {block.code.splitlines()[0]} ...: {how}: {said}")
    return failed


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(1 if main(Path(sys.argv[1]), *sys.argv[2:]) else 0)
