"""The report's page in a browser: as it is met on a desk and on a telephone, in the light and in the dark."""

import json
import os
import re
import subprocess
from functools import partial
from html import unescape
from pathlib import Path

import pytest

from heal.report.build import build_report
from heal.run.best import read_best
from heal.studies.comparison.arms import Settings, group, lines, untrained
from heal.studies.comparison.best import best_lines
from heal.studies.comparison.figure import figure
from heal.studies.comparison.fronts_figure import fronts, fronts_figure
from heal.studies.comparison.runs import read_runs
from heal.studies.comparison.show import page
from tests.browser import CHROMIUM, MISSING, QUIET
from tests.cases import case
from tests.reported import FIGURES, HOSTILE, write_run

WIDTHS = (1280, 390)


def open_page(page: Path, folder: Path, dark: bool) -> dict[int, dict]:
    """What `opened.js` says of the page at each width, in a headless browser that reaches no network."""
    assert CHROMIUM is not None
    script = (Path(__file__).parent / "opened.js").read_text(encoding="utf-8")
    frames = "".join(f'<iframe src="{page.as_uri()}" width="{width}" height="900"></iframe>' for width in WIDTHS)
    tell = """onload = () => {
      const said = [...document.querySelectorAll("iframe")].map((frame) => {
        try { return opened(frame); } catch (error) { return { error: `${error.stack}` }; }
      });
      document.getElementById("said").textContent = JSON.stringify(said);
    };"""
    harness = folder / "harness.html"
    harness.write_text(f'<meta charset="utf-8"><pre id="said"></pre>{frames}<script>{script}{tell}</script>')
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *QUIET, "--dump-dom",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files", f"--window-size={sum(WIDTHS)},1000",
         f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={folder / 'profile'}",
         harness.as_uri()],
        capture_output=True, timeout=120, check=False, env=os.environ | {"HOME": str(folder)},
    )  # fmt: skip
    said = re.search(r'<pre id="said">(.*?)</pre>', done.stdout.decode(), re.DOTALL)
    assert said is not None, done.stderr.decode()[-2000:]
    return dict(zip(WIDTHS, json.loads(unescape(said[1])), strict=True))


def check_read(seen: dict, dark: bool) -> None:
    """No text overlaps, leaves its place or is faint, nothing was fetched, and figures speak."""
    assert "error" not in seen, seen
    assert seen["dark"] == dark
    assert (seen["overlaps"], seen["outside"], seen["faint"], seen["overflow"]) == ([], [], [], 0)
    assert (seen["fetched"], seen["inView"]) == ([], True)


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_the_page_can_be_read_and_used_at_either_width_in_light_and_dark(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=8, text=f"{HOSTILE} a somewhat longer answer to the question")
    best = read_best(run, run.rounds())
    assert best is not None
    report = build_report(run)
    for dark in (False, True):
        for width, seen in open_page(report, tmp_path, dark).items():
            with case(dark, width):
                check_read(seen, dark)
                assert seen["figures"] == len(FIGURES)
                assert seen["texts"] > 500
                assert seen["title"].startswith("heal: run <script>")  # none of the model's text was executed
                headline = seen["verdict"].replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
                use = f"Use round {best.metrics.round} of 8: it holds, with {best.choice.shift:+.3f} nats/token"
                assert headline.startswith(use)
                assert f"coherence margin {best.metrics.coherence.margin:.2f} " in headline
                trait = best.metrics.trait
                said = f"round {best.metrics.round}, healed, the best round: trait: {trait.value:.3f} [{trait.low:.3f}"
                assert any(told.startswith(said) for told in seen["told"]), seen["told"]
                assert len(set(seen["told"])) == 2 + 2 * 8  # base, prompted, and each round steered and healed
                assert seen["courses"] == [f"healed, round {number}" for number in range(1, 9)]
                assert seen["found"] == {"text": ["8 found", 8], "fate": ["8 found", 8], "dose": ["96 found", 96]}


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_the_page_of_a_comparison_can_be_read_too(tmp_path: Path) -> None:
    trained = group(read_runs([Path(__file__).parent.parent / "docs" / "results" / "love.jsonl"]), ["recipe"])
    arms, settings = [*untrained(trained), *trained], Settings(resamples=100)
    figures = partial(fronts_figure, fronts(arms, settings)), partial(figure, arms, settings)
    path = tmp_path / "comparison.html"
    path.write_text(page(lines(arms, settings), best_lines(arms, settings), figures, "Six losses"), encoding="utf-8")
    rounds = sum(run.rounds for arm in trained for run in arm.runs)
    for dark in (False, True):
        for width, seen in open_page(path, tmp_path, dark).items():
            with case(dark, width):
                check_read(seen, dark)
                assert seen["figures"] == 2
                assert sum(", round " in told for told in seen["told"]) == 2 * rounds
