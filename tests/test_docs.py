"""The documentation: its links lead somewhere, its commands run or are marked as not run, its error lines exist."""

import ast
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heal.guard import HELP_WORDS
from heal.keys import keys
from tests import finished, reported
from tests.cases import case
from tests.commanded import ROOT, heal

sys.path.insert(0, str(ROOT / "scripts"))
import docs_pages

HAND_WRITTEN = [*docs_pages.COPIED.values(), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_RUN_HERE = re.compile(r"^<!-- not run on this page: (.+) -->$", re.MULTILINE)
REFUSED = "# refused"
_TEXTS = (ast.Constant, ast.JoinedStr, ast.BinOp)


def blocks(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Of each plain fenced block: why it is not run (empty: it is), and its lines, continued ones joined."""
    text = page.read_text(encoding="utf-8")
    whole = NOT_RUN_HERE.search(text)
    for why, language, content in BLOCK.findall(text):
        if language in ("", "sh"):
            yield (whole[1] if whole else why), content.replace("\\\n", " ").splitlines()


def command(line: str) -> list[str]:
    """The words after `heal` of a line that calls it; none for another line."""
    line = line.rpartition(" | ")[2]
    found = re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?heal (.*)|.*accelerate launch .*heal/train\.py (.*)", line)
    return [] if found is None else shlex.split(found[1] or f"train {found[2]}", comments=True)


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.*)$", docs_pages.outside_code(markdown, str), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_link_leads_to_a_file_or_heading_that_is_there() -> None:
    made, count = docs_pages.generated(), 0
    for page in HAND_WRITTEN:
        text = docs_pages.outside_code(page.read_text(encoding="utf-8"), str)
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for _, _, target, anchor in docs_pages.LINK.findall(text):
            with case(str(page), target, anchor):
                if "://" in target:
                    continue
                count += 1
                path = (page.parent / target).resolve() if target else page
                there = path.parent == ROOT / "docs" and path.name in made
                assert there or path.exists()
                if anchor:
                    assert anchor[1:] in anchors(made[path.name] if there else path.read_text(encoding="utf-8"))
    assert count > 60


def test_commands_of_the_pages_run_unless_they_say_why_not_and_all_have_words_that_exist(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On runs of a tiny model; those that are read have answers and no model. A line that says `# refused` is."""
    finished.write_run(tmp_path / "loaded" / "runs" / "x", tiny_folder)
    reported.write_run(tmp_path / "read" / "runs" / "x")
    known, ran = {item.name for item in keys()}, 0
    for page in HAND_WRITTEN:
        for why, lines in blocks(page):
            for line in lines:
                words = command(line)
                if not words:
                    continue
                with case(page.name, line):
                    if words[0] in ("COMMAND", *HELP_WORDS, "--version"):
                        continue
                    help_text = docs_pages.help_of(words[0])
                    for key in [word.partition("=")[0] for word in words[1:] if "=" in word]:
                        short = {key, f"run.{key}"} & known  # seed and rounds of a sweep
                        assert REFUSED in line or short or re.search(rf"\b{re.escape(key)}=", help_text), key
                    if not why:
                        monkeypatch.chdir(tmp_path / ("read" if words[0] == "report" else "loaded"))
                        if piped := line.rpartition(" | ")[0]:
                            typed = subprocess.run(["sh", "-c", piped], capture_output=True, text=True, check=True)
                            monkeypatch.setattr("sys.stdin", io.StringIO(typed.stdout))
                        done = heal(*words)
                        assert done.returncode == (2 if REFUSED in line else 0), done
                        ran += 1
    assert ran > 12


def test_the_lines_of_the_troubleshooting_page_are_lines_that_heal_says() -> None:
    spoken = []
    for path in (ROOT / "heal").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts = (docs_pages.text_of(node) for node in nodes if isinstance(node, _TEXTS))
        spoken += [re.sub(r"\{.*?\}", "\0", text) for text in texts]
    rows = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    for row in rows:
        parts = [part.strip(" ;:,") for part in row.split("...")]
        for part in parts:
            with case(row, part):
                assert len(part) < 4 or any(part in text for text in spoken)
    assert len(rows) > 12


def test_the_pages_build_without_a_warning_and_fetch_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install -e '.[docs]')")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    for page in (tmp_path / "site").glob("*.html"):
        with case(page.name):
            fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//", page.read_text())
            assert fetched == []
        assert f'href="{page.name}"' in (tmp_path / "site" / "index.html").read_text() or page.stem in ("404", "index")
    assert "heal.extract" in (tmp_path / "site" / "api.html").read_text()
