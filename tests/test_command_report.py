"""The command that builds a report again, from disk alone."""

from pathlib import Path

from tests.commanded import heal, refused
from tests.reported import write_run


def test_command_builds_the_report_and_says_where(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    done = heal("report", f"run={folder.path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder.report / "index.html")
    assert (folder.report / "index.html").is_file()


def test_command_answers_mistakes_in_one_line() -> None:
    for words, said in (([], "run=... is needed"), (["rum=x"], "did you mean 'run'")):
        refused(["report", *words], said)
