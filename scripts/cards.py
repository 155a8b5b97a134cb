"""Runs the Python code in the card of an export, as it is written, by any interpreter, and prints what came out.

    python scripts/cards.py EXPORT PYTHON [WORD]

Blocks that contain WORD only, if one is given (vllm, peft, pipeline). The exit status is 1 if a block fails.
"""

import re
import subprocess
import sys
import time
from pathlib import Path


def main(folder: Path, python: str, word: str = "") -> int:
    """Runs each block in the folder; how many failed."""
    failed = 0
    card = (folder / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE):
        if word not in block:
            continue
        first, started = block.splitlines()[0], time.monotonic()
        script = folder.absolute() / "README.block.py"
        script.write_text(block, encoding="utf-8")
        try:
            done = subprocess.run([python, script.name], cwd=folder, capture_output=True, text=True, check=False)
        finally:
            script.unlink()
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["(nothing)"]
        failed += done.returncode != 0
        status = f"exit {done.returncode}" if done.returncode else "ran"
        said = " / ".join(lines) if done.returncode == 0 else lines[-1]
        print(f"{folder.name}: {first} ...: {status} in {time.monotonic() - started:.0f} s: {said}")
    return failed


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(1 if main(Path(sys.argv[1]), *sys.argv[2:]) else 0)
