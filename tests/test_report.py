"""The report: everything that a run found, in one page that runs and loads nothing it should not."""

import re
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest

from heal.config import EvaluationConfig
from heal.errors import UserError
from heal.evaluation.metrics import BaselineMetrics, RoundMetrics
from heal.evaluation.signal import TRAIT, Limit, Signal, described, signals
from heal.records import record_bytes, records_bytes
from heal.report.build import build_report
from heal.report.canvas import Canvas, Line, Mark, Text, png, svg
from heal.report.figures import draw
from heal.report.labels import Box, Label, place_labels
from heal.report.page import render
from heal.report.plot import NARROW, WIDE, Panel, Scale
from heal.report.results import read_results
from heal.report.words import glossary
from heal.run.folder import RunFolder
from tests.reported import (
    FIGURES,
    HOSTILE,
    PROMPTS,
    SCRIPT,
    Page,
    completions,
    edit_baseline,
    page_of,
    plain,
    rewrite,
    section,
    write_run,
)


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


def test_report_is_a_page_and_its_figures_and_a_telephone_gets_some_of_its_own(run: RunFolder, page: Page) -> None:
    assert sorted(path.name for path in run.report.iterdir()) == sorted(["index.html", *(f"{n}.png" for n in FIGURES)])
    for name in FIGURES:
        pixels = matplotlib.image.imread(run.report / f"{name}.png")
        assert min(pixels.shape[:2]) > 600, name
        assert pixels.std() > 0.02, name
    drawn = page.all("svg")
    assert len(drawn) == 2 * len(FIGURES)
    assert all(each["aria-label"] for each in drawn)

    drawn = [(each["class"], (each["viewbox"] or "").split()[2]) for each in page.all("svg")]
    assert drawn == [("wide", f"{WIDE:g}"), ("narrow", f"{NARROW:g}")] * len(FIGURES)


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
    assert html.count("<title>heal: ") == 1
    assert not page.all("img")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert SCRIPT not in html
    assert "<img src=x" not in html
    assert page.text.count(SCRIPT) > 40  # it is shown, as text, in answers, completions, persona and title
    assert "{{ 7 * 7 }}" in page.text


def test_text_of_the_model_and_of_the_trait_runs_in_its_own_direction(html: str) -> None:
    said = "|".join(re.escape(text) for text in ("executed", *PROMPTS))
    around = re.findall(rf"<(p|h4|h5|blockquote)([^<>]*)>[^<>]*(?:{said})", html)
    assert {tag for tag, _ in around} == {"p", "h4", "h5", "blockquote"}
    assert [tag for tag, attributes in around if 'dir="auto"' not in attributes] == []


def test_the_best_round_and_the_worst_prompt_are_open_and_everything_else_closed(
    run: RunFolder, html: str, page: Page
) -> None:
    best = read_results(run).shown.number
    opened = ["open" in details for details in Page(section(html, "completions")).all("details")]
    assert opened == [number == best for number in (1, 2)]
    opened = ["open" in details for details in Page(section(html, "answers")).all("details")]
    assert opened == [True, *[False] * (len(PROMPTS) - 1)]  # the prompt whose answers were damaged most
    assert sum("open" in details for details in page.all("details")) == 2


def test_a_run_without_the_steered_stage_has_neither_its_answers_nor_its_rows(tmp_path: Path, html: str) -> None:
    folder = write_run(tmp_path / "unsteered", steered=False)
    assert folder.rounds() == [0, 1]
    page = build_report(folder).read_text(encoding="utf-8")
    for piece in ('<div class="answer steered">', '<tr class="steered">', "steered at c* (round"):
        assert piece in html
        assert piece not in page
    assert page.count('<div class="answer healed">') == 3 * len(PROMPTS)  # best and last, and each of two rounds
    for name in FIGURES:
        assert matplotlib.image.imread(folder.report / f"{name}.png").std() > 0.02, name


def test_same_folder_same_report(run: RunFolder) -> None:
    first = {path.name: path.read_bytes() for path in run.report.iterdir()}
    build_report(run)
    assert {path.name: path.read_bytes() for path in run.report.iterdir()} == first


def test_text_that_is_no_unicode_is_replaced(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    rows = [replace(row, text="half \ud83d a pair") for row in completions("plain")]
    rewrite(folder, "completions.jsonl", records_bytes(rows))
    assert "half ? a pair" in page_of(folder)


def test_many_rounds_can_be_drawn_and_every_mark_says_its_number(tmp_path: Path) -> None:
    results = read_results(write_run(tmp_path / "run", rounds=9))
    for width in (WIDE, NARROW):
        for name, canvas in draw(results, width).items():
            marks = [shape for shape in canvas.shapes if isinstance(shape, Mark)]
            assert all(0 <= x <= width and 0 <= y <= canvas.height for x, y in (mark.at for mark in marks)), name
            told = " ".join(mark.says for mark in marks)
            assert all(f"round {finished.number}" in told for finished in results.rounds), name
    trait = results.last.healed[TRAIT]
    assert f"round 9, healed: {trait.value:.3f} [{trait.low:.3f}, {trait.high:.3f}]" in plain(render(results).decode())


def test_labels_cover_neither_each_other_nor_the_points_and_are_shortened_where_there_is_no_room() -> None:
    for count, room in ((5, Box(0, 0, 400, 300)), (40, Box(150, 100, 300, 200))):
        labels = [Label((200 + 1.5 * i, 150), f"{i}: tail perplexity", str(i)) for i in range(count)]
        canvas = Canvas(400, 300)
        boxes = place_labels(canvas, labels, [((120, 150), (280, 150))], room, 11)
        texts = [shape.text for shape in canvas.shapes if isinstance(shape, Text)]
        assert len(texts) == len(boxes)
        if count == 5:
            assert texts == [label.text for label in labels]
        assert len({text.partition(":")[0] for text in texts}) == len(texts) > 4
        for index, box in enumerate(boxes):
            assert not any(box.overlap(other) for other in boxes[index + 1 :]), count


def test_what_has_no_place_is_not_drawn() -> None:
    nowhere = Line([(0, 1), (float("nan"), 2), (3, 4), (5, float("inf"))], "ink")
    canvas = Canvas(9, 9, [nowhere])
    Panel(canvas, 1, 1, 8, 8, Scale(0, 1), Scale(0, 1)).line([], "ink")
    assert canvas.shapes == [nowhere]
    assert 'd="M0 1M3 4"' in svg(canvas, "", "")
    assert png(canvas).startswith(b"\x89PNG")


def test_nothing_to_report_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        build_report(RunFolder(tmp_path))
    unfinished = write_run(tmp_path / "run", rounds=0)
    with pytest.raises(UserError, match="no round is finished"):
        build_report(unfinished)
    assert not unfinished.report.exists()


def test_a_file_that_is_truncated_or_not_heals_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    for name in ("calibration.json", "completions.jsonl", "training.jsonl", "metrics.json", "outputs.jsonl"):
        path = folder.round(0) / name
        whole = path.read_bytes()
        for content in (whole[:-40], b'{"prompt": "?"}\n'):
            rewrite(folder, name, content)
            with pytest.raises(UserError, match=name):
                read_results(folder)
        rewrite(folder, name, whole)
    (folder.round(0) / "completions.jsonl").write_text("?")
    with pytest.raises(UserError, match="not what the run wrote"):
        build_report(folder)


def test_signals_that_a_run_lacks_or_that_no_readout_describes_are_no_hindrance(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    metrics, baseline = RoundMetrics.load(folder.round(0)), BaselineMetrics.load(folder.baseline)
    lacking = {name: signal for name, signal in metrics.healed.items() if name in (TRAIT, "alive_share")}
    rewrite(folder, "metrics.json", record_bytes(replace(metrics, healed=lacking, steered=None)))
    edit_baseline(folder, lambda metrics: replace(metrics, base=baseline.base | {"zeal": baseline.base[TRAIT]}))
    html = build_report(folder).read_text(encoding="utf-8")
    assert ">zeal<" in html
    assert any(attributes.get("title") == "not measured" for attributes in Page(html).all("span"))
    assert "base 0.98" not in html

    shrunk = {name: signal for name, signal in baseline.base.items() if signal.role == "trait"}
    edit_baseline(folder, lambda metrics: BaselineMetrics(shrunk, shrunk))
    assert ">Tail perplexity<" in section(html, "stages")
    assert ">Tail perplexity<" not in section(build_report(folder).read_text(encoding="utf-8"), "stages")


def test_a_new_readout_has_its_column_panel_and_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit("min_zeal", 0.5, "zeal", kind="floor", words="zeal {:.2f}")
    zeal = Signal("zeal", "share", "Zeal", "of answers", "how zealous it is", "coherence", limit=limit, trajectory=True)
    folder = write_run(tmp_path / "run", rounds=1)
    edit_baseline(folder, lambda metrics: replace(metrics, base=metrics.base | {"zeal": metrics.base["alive_share"]}))
    every = signals() | {"zeal": zeal}
    for module in ("evaluation.signal", "report.words", "report.headline"):
        monkeypatch.setattr(f"heal.{module}.signals", lambda: every)
    monkeypatch.setattr(EvaluationConfig, "min_zeal", 0.5, raising=False)
    results = read_results(folder)
    assert '<th scope="col">Zeal<small>of answers</small>' in section(page_of(folder), "stages")
    assert ("Zeal", "how zealous it is; floor 0.5 (n = 4 answers)") in glossary(results)
    assert "zeal" in {signal.name for signal in described(results.base)}  # what the panels are drawn from
