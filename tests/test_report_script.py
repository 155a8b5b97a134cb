"""The command that builds a report again, from disk alone."""

import subprocess
import sys
from pathlib import Path

from tests.reported import ROOT, write_run


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "scripts/report.py", *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_command_builds_the_report_and_says_where(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    done = command(f"run={folder.path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder.report / "index.html")
    assert (folder.report / "index.html").is_file()


def test_command_answers_mistakes_in_one_line(tmp_path: Path) -> None:
    mistakes = (([], "run=... is needed"), (["rum=x"], "did you mean 'run'"), ([f"run={tmp_path}"], "not a run folder"))
    for words, said in mistakes:
        failed = command(*words)
        assert failed.returncode == 2
        assert said in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
    helped = command("--help")
    assert helped.returncode == 0
    assert "run=FOLDER" in helped.stdout
