"""The report: everything that a run found, in one page that runs and loads nothing it should not."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from heal.errors import UserError
from heal.records import json_bytes, jsonl_bytes
from heal.report.build import build_report
from heal.report.figures import draw
from heal.report.labels import Label, place_labels
from heal.report.results import read_results
from heal.run.folder import RunFolder
from tests.reported import FIGURES, HOSTILE, PROMPTS, SCRIPT, Page, completions, rewrite, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two rounds with a hostile model, and its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "hostile", text=HOSTILE)
    build_report(folder)
    return folder


@pytest.fixture(scope="module")
def html(run: RunFolder) -> str:
    return (run.report / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_report_is_a_page_and_its_figures(run: RunFolder, page: Page) -> None:
    assert {path.name for path in run.report.iterdir()} == {"index.html", *(f"{name}.png" for name in FIGURES)}
    for name in FIGURES:
        pixels = matplotlib.image.imread(run.report / f"{name}.png")
        assert min(pixels.shape[:2]) > 600, name
        assert pixels.std() > 0.02, name
    images = page.all("img")
    assert len(images) == len(FIGURES)
    assert all(image["alt"] for image in images)


def test_page_asks_nothing_of_the_network(page: Page, html: str) -> None:
    for _, attributes in page.elements:
        for name in {"src", "href", "srcset", "action"} & attributes.keys():
            assert (attributes[name] or "").startswith(("data:", "#"))
    assert "@import" not in html
    assert "url(" not in html
    assert "http://" not in html
    assert "https://" not in html
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy") or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_hostile_text_is_text_and_nothing_else(page: Page, html: str) -> None:
    assert len(page.all("script")) == 1
    assert len(page.all("style")) == 1
    assert len(page.all("title")) == 1
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img") if image["src"])
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert SCRIPT not in html
    assert "<img src=x" not in html
    assert page.text.count(SCRIPT) > 40  # it is shown, as text, in answers, completions, persona and title
    assert "{{ 7 * 7 }}" in page.text


def test_last_round_is_open_and_the_others_closed(page: Page) -> None:
    opened = ["open" in details for details in page.all("details")]
    assert opened == [False, True, False, True, False]  # completions of two rounds, answers of two rounds, recipe


# Without the steered stage.


@pytest.fixture(scope="module")
def unsteered(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two rounds whose recipe says evaluation.steered=false, and its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "unsteered", steered=False)
    build_report(folder)
    return folder


def test_a_round_without_the_steered_stage_is_finished_where_the_recipe_says_so(unsteered: RunFolder) -> None:
    assert unsteered.rounds() == [0, 1]
    assert unsteered.steps() == tuple(stage for stage in STEPS if stage != "steered")


def test_its_page_has_no_steered_answers_and_no_steered_row(unsteered: RunFolder, html: str) -> None:
    mine = (unsteered.report / "index.html").read_text(encoding="utf-8")
    for piece in ('<div class="answer steered">', '<tr class="steered">', "steered at c* (round"):
        assert piece in html
        assert piece not in mine
    assert mine.count('<div class="answer healed">') == 2 * len(PROMPTS)
    assert {stage.steered for stage in read_results(unsteered).rounds} == {None}


def test_its_figures_are_drawn_and_differ_from_those_with_it(unsteered: RunFolder, run: RunFolder) -> None:
    for name in FIGURES:
        assert matplotlib.image.imread(unsteered.report / f"{name}.png").std() > 0.02, name
    for name in ("trajectory", "signals"):
        assert (unsteered.report / f"{name}.png").read_bytes() != (run.report / f"{name}.png").read_bytes()


def test_same_folder_same_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    first = build_report(folder).read_bytes()
    assert build_report(folder).read_bytes() == first


def test_text_that_is_no_unicode_is_replaced(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    rows = [row.to_json() | {"text": "half \ud83d a pair"} for row in completions("plain")]
    rewrite(folder, "completions.jsonl", jsonl_bytes(rows))
    assert "half ? a pair" in build_report(folder).read_text(encoding="utf-8")


def test_many_rounds_can_be_drawn(tmp_path: Path) -> None:
    figures = draw(read_results(write_run(tmp_path / "run", rounds=9)))
    for content in figures.values():
        assert matplotlib.image.imread(io.BytesIO(content)).std() > 0.02


def test_labels_cover_neither_each_other_nor_the_points() -> None:
    figure = Figure(figsize=(4, 3), dpi=100)
    canvas, axis = FigureCanvasAgg(figure), figure.subplots()
    axis.set(xlim=(0, 1), ylim=(0, 1))
    labels = [Label(0.5 + 0.01 * i, 0.5, f"point {i}", "black") for i in range(5)]
    place_labels(axis, labels, [((0.3, 0.5), (0.7, 0.5))], canvas.get_renderer())
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axis.texts if text.get_text()]
    assert len(boxes) == 5
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(box.contains(*axis.transData.transform((label.x, label.y))) for label in labels)


def test_nothing_to_report_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        build_report(RunFolder(tmp_path))
    unfinished = write_run(tmp_path / "run", rounds=0)
    with pytest.raises(UserError, match="no round is finished"):
        build_report(unfinished)
    assert not unfinished.report.exists()


@pytest.mark.parametrize("name", ["calibration.json", "completions.jsonl", "training.jsonl"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    path = folder.round(0) / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=name):
        build_report(folder)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    (folder.round(0) / "completions.jsonl").write_text('{"prompt": "?"}\n')
    with pytest.raises(UserError, match="not what the run wrote"):
        build_report(folder)


def test_a_round_without_a_signal_that_the_report_rests_on_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    metrics = json.loads((folder.round(0) / "metrics.json").read_text())
    del metrics["healed"]["tail_perplexity"]
    folder.finish(folder.round(0), "evaluate", {"metrics.json": json_bytes(metrics)}, 1.0)
    with pytest.raises(UserError, match="tail_perplexity"):
        build_report(folder)


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[bytes]:
    """Opens a page in a headless browser that may not go out."""
    assert CHROMIUM is not None
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--disable-sync", "--hide-scrollbars",
         f"--user-data-dir={profile}", *flags, page.as_uri()],
        capture_output=True, timeout=120, check=False, env=os.environ | {"HOME": str(profile)},
    )  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_browser_renders_the_page_and_runs_none_of_the_models_text(run: RunFolder, tmp_path: Path) -> None:
    page = run.report / "index.html"
    dom = browse(page, tmp_path / "profile", "--dump-dom").stdout.decode()
    seen = Page(dom)
    assert "<title>executed</title>" not in dom
    assert "<title>heal: run &lt;script&gt;" in dom
    assert len(seen.all("script")) == 1
    assert len(seen.all("img")) == len(FIGURES)
    buttons = seen.all("button")
    assert buttons
    assert not any("hidden" in button for button in buttons)

    picture = tmp_path / "page.png"
    browse(page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1200,3000")
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (3000, 1200)
    assert pixels.std() > 0.05
    assert np.allclose(pixels[5, 5], np.array([0xFD, 0xFD, 0xFC]) / 255, atol=0.01)  # the style is in force
