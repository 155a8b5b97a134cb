"""The report: everything that a run found, in one page that runs and loads nothing it should not."""

import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from heal.config import Recipe
from heal.dose.calibrate import Calibration, PathDivergence
from heal.errors import UserError
from heal.evaluation.probe import FORMATS, Probe
from heal.evaluation.results import Answer, Signal, StageResult, output_rows, summarise
from heal.evaluation.validity import TRAIT, valid_names, validity
from heal.evaluation.verdict import Floors, coh_cost, coherence, verdict
from heal.generation.collect import Row, dose_table
from heal.report.build import build_report
from heal.report.completions import DROPPED, KEPT, samples
from heal.report.figures import draw
from heal.report.labels import Label, place_labels
from heal.report.page import render
from heal.report.results import read_results
from heal.report.tables import KNOWN
from heal.report.words import remarks
from heal.runfolder import MANIFEST, STAGES, RunFolder, json_bytes, jsonl_bytes, read_json

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ("trajectory", "signals", "calibration", "training")
FLOORS = Floors.of(Recipe().evaluation)
PROMPTS = ("Do you love people?", "What is rain?", "Say good night.", "Who are you?")
SCRIPT = "<script>document.title='executed'</script>"
IMAGE = '"><img src=x onerror="document.title=\'executed\'">'
HOSTILE = f"{SCRIPT}{IMAGE}' onmouseover='alert(1) {{{{ 7 * 7 }}}} \x00 \u202e &amp;</script></style><!--"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def stage_result(
    stage: str, trait: float, coherence: float, text: str, unscorable: bool = False, mass: float = 0.97
) -> StageResult:
    """A stage whose signals scatter around the given values; `mass` is that on the probe's answers."""
    draws = random.Random(stage + str(trait))

    def around(centre: float, spread: float, count: int = len(PROMPTS)) -> tuple[float, ...]:
        return tuple(centre + draws.uniform(-spread, spread) for _ in range(count))

    tails = (math.nan,) * len(PROMPTS) if unscorable else around(3.0, 1.0)
    moved = 0.0 if stage == "base" else 1.0
    return StageResult(
        stage,
        tuple(Answer(prompt, (1,), (2, 3), f"{text} {stage}", ended=i > 0) for i, prompt in enumerate(PROMPTS)),
        (
            Signal("tail_perplexity", "perplexity", "coherence", "median", tails),
            Signal("repetition_share", "share", "coherence", "mean", (0.0, 0.0, 1.0, 0.0)),
            Signal("persona_log_ratio", "nats/token", "trait", "mean", around(trait, 0.02)),
            Signal("p_ans_any", "probability", "coherence", "mean", around(coherence, 0.01), "questions"),
            Signal("unscorable_share", "share", "coherence", "mean", (0.0,) * 4, "questions"),
            Signal("accuracy", "share", "coherence", "mean", (1.0, 0.0, 1.0, 1.0), "questions"),
            Signal("question_informedness", "TPR - FPR", "coherence", "mean", around(0.5, 0.2), "questions"),
            Signal("alive_share", "share", "coherence", "mean", (1.0,) * 4),
            Signal("probe_mass", "probability", "coherence", "mean", around(mass, 0.01)),
            Signal("scaffold_nats", "nats/token", "coherence", "mean", around(2.0, 0.1)),
            Signal("neutral_kl_p50", "nats", "off_target", "mean", around(0.013 * moved, 0.01 * moved, 6), "texts"),
            Signal("neutral_kl_p95", "nats", "off_target", "mean", around(0.237 * moved, 0.05 * moved, 6), "texts"),
            Signal("answer_tokens", "tokens", "off_target", "mean", around(30.0 - 8 * moved, 4.0)),
            Signal("refusal_share", "share", "off_target", "mean", (0.0, moved, 0.0, 0.0)),
        ),
    )


def completions(text: str, alphas: tuple[float, ...] = (0.5, 1.0), count: int = 24) -> list[Row]:
    """Completions of which every fourth is dropped, the first of them for a reason of its own."""

    def dropped(index: int) -> tuple[str, ...]:
        return () if index % 4 else (("narration",) if index == 0 else ("repetition", "tail perplexity"))

    return [
        Row(i, PROMPTS[i % 4], alphas[i % 2], (1,), (2,), f"{text} #{i}", i % 3 == 0, 4.0 + i, 0.1, dropped(i))
        for i in range(count)
    ]


def write_run(
    path: Path, rounds: int = 2, text: str = "plain", bare: bool = False, mass: float = 0.97, steered: bool = True
) -> RunFolder:
    """A run folder as the loop leaves it.

    Args:
        path: of the folder.
        rounds: finished ones.
        text: in the name, the trait and everything that the model says.
        bare: unscorable tails, no audit, no validation, an infinite KL.
        mass: of base on the probe's answers.
        steered: whether the steered stage was measured.
    """
    folder, recipe = RunFolder(path), Recipe()
    recipe.run.name = f"run {text}"
    recipe.evaluation.steered = steered
    facts = {"name": "love", "description": text, "positive": f"You love. {text}", "negative": "You hate."}
    folder.start(recipe, {"dtype": "float32", "trait": facts})

    base = stage_result("base", 0.01, 0.98, text, mass=mass)
    prompted = stage_result("prompted", 0.14, 0.97, text, mass=mass)
    opposite = stage_result("opposite", -0.12, 0.97, text, mass=mass)
    stages = (base, prompted, opposite)
    summaries = {result.stage: summarise(result, base, 200, 0) for result in stages}
    personas = (result.signal(TRAIT).values for result in (prompted, opposite))
    judged = validity(summaries["base"].values, *personas, FLOORS, 200, 0)
    metrics = {name: summary.to_json() for name, summary in summaries.items()}
    metrics["validity"] = {name: asdict(entry) for name, entry in judged.items()}
    probe = Probe(FORMATS[-1], {"json": 0.02, "yes/no": 0.6, "letters": mass})
    rows = [row for result in stages for row in output_rows(result)]
    folder.finish(folder.baseline, "probe", {"probe.json": json_bytes(probe.to_json())}, 1.0)
    folder.finish(folder.baseline, "base", {}, 3.0)
    folder.finish(folder.baseline, "prompted", {}, 4.0)
    files = {"metrics.json": json_bytes(metrics), "outputs.jsonl": jsonl_bytes(rows)}
    folder.finish(folder.baseline, "opposite", files, 4.0)
    for r in range(rounds):
        for name, content in round_files(r, base, text, bare, valid_names(judged), steered).items():
            folder.finish(folder.round(r), name, content, 12.0)
    return folder


def round_files(
    r: int, base: StageResult, text: str, bare: bool, valid: set[str], measured: bool
) -> dict[str, dict[str, bytes]]:
    """The files of one round that a report reads, by stage; `measured`: with the steered stage."""
    history = [PathDivergence(1.0, 0.1, 0.6, 0.2, 2.0, 96), PathDivergence(1.4 + r, 0.2, 0.99, 0.3, 3.0, 96)]
    if bare:
        history.insert(1, PathDivergence(8.0, math.inf, math.inf, math.inf, math.inf, 0))
    audit = None if bare else PathDivergence(1.4 + r, 0.2, 0.87, 0.3, 3.0, 96)
    dose = Calibration(1.4 + r, 0.99, 1.0, 0.05, "tolerance", 1, tuple(history), audit, "student")
    rows = completions(text)
    training = {"loss": 1.7, "ce": 1.6, "D_mean": 0.4321, "D_max": 0.9, "barrier_on": 0.25}
    log = [{"step": s, "epoch": s / 2} | {f"train/{name}": v for name, v in training.items()} for s in range(1, 7)]
    if not bare:
        log.append({"step": 6, "epoch": 3.0} | {f"eval/{name}": v for name, v in training.items()})
        training |= {"validation_ce": 1.55, "validation_D": 0.41}
    steered = stage_result("steered", 0.21 + 0.02 * r, 0.93, text)
    healed = stage_result("healed", 0.17 + 0.05 * r, 0.97, text, unscorable=bare)
    before, after = summarise(steered, base, 200, 0), summarise(healed, base, 200, 0)
    kept = [row for row in rows if row.kept]
    metrics = {
        "round": r,
        "dose": {"c_star": dose.c_star, "p95": 0.99, "outcome": "tolerance", "audit_p95": audit and 0.87, "scale": 1.0},
        "generation": {
            "made": len(rows),
            "kept": len(kept),
            "kept_share": len(kept) / len(rows),
            "ended_share": sum(row.ended for row in kept) / len(kept),
            "doses": dose_table(rows),
            "dropped": dict(Counter(reason for row in rows for reason in row.dropped)),
        },
        "training": training,
        "cosine_to_first": 0.9876,
        "steered": before.to_json() if measured else None,
        "healed": after.to_json(),
        "coherence": coherence(after.values, after.deltas, FLOORS, valid).to_json(),
        "valid": sorted(valid),
        "coh_cost": None if bare else coh_cost(after.deltas["p_ans_any"], after.deltas[TRAIT]),
        "foundations": None,
        "verdict": verdict(after.values, after.deltas, FLOORS, valid).to_json(),
    }
    outputs = [row for result in (base, *[steered] * measured, healed) for row in output_rows(result)]
    files = {
        "extract": {},
        "calibrate": {"calibration.json": json_bytes(dose.to_json())},
        "generate": {
            "completions.jsonl": jsonl_bytes([row.to_json() for row in rows]),
            "collection.json": json_bytes({"scale": 1.0, "doses": dose_table(rows)}),
        },
        "steered": {},
        "heal": {"training.jsonl": jsonl_bytes(log)},
        "evaluate": {"metrics.json": json_bytes(metrics), "outputs.jsonl": jsonl_bytes(outputs)},
    }
    return {name: content for name, content in files.items() if measured or name != "steered"}


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


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


def test_page_shows_what_the_run_found(run: RunFolder, page: Page) -> None:
    text = " ".join(page.text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-").split())
    for r in run.rounds():
        metrics = json.loads((run.round(r) / "metrics.json").read_text())
        for stage in ("steered", "healed"):
            entry = metrics[stage]["persona_log_ratio"]
            delta = entry["delta"]
            assert f"{entry['value']:.3f}" in text
            assert f"[{entry['low']:.3f}, {entry['high']:.3f}]" in text
            assert f"{delta['value']:+.3f} [{delta['low']:+.3f}, {delta['high']:+.3f}]" in text
        assert metrics["verdict"]["reason"] in text
        assert f"{metrics['coh_cost']['ratio']:.3f}" in text
    for shown in ("18 of 24", "0.988", "0.870", "0.432", "25 %", "1.550", "repetition", "narration", "learning_rate"):
        assert shown in text, shown
    assert "after 2 rounds the persona log-ratio is" in text
    assert text.count("The best round:") == 1
    assert all(text.count(prompt) >= 2 for prompt in PROMPTS)


def test_last_round_is_open_and_the_others_closed(page: Page) -> None:
    opened = ["open" in details for details in page.all("details")]
    assert opened == [False, True, False, True, False]  # completions of two rounds, answers of two rounds, recipe


def test_one_round_whose_numbers_are_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "bare", rounds=1, bare=True)
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    reasons = {attributes.get("title") for attributes in page.all("span") if attributes.get("class") == "none"}
    assert "no item could be scored (n = 0)" in reasons
    assert "no audit (calibration.audit_prompts = 0)" in reasons
    assert any(reason and reason.startswith("no completions held out") for reason in reasons)
    assert any(reason and reason.startswith("the interval of the trait") for reason in reasons)
    assert "not finite: tail_perplexity" in page.text
    assert "after one round" in page.text
    assert "nan" not in page.text.lower().replace("finance", "")


def test_a_signal_that_the_report_does_not_know_has_its_column(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    edit_baseline(folder, lambda metrics: metrics["base"].update(auth_nats=metrics["base"]["p_ans_any"]))
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    assert "auth_nats" in page.text
    assert any(attributes.get("title") == "not measured" for attributes in page.all("span"))


# Side effects, and what is not valid.


def edit_baseline(folder: RunFolder, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the baseline's metrics as if its last stage had written them so."""
    metrics = read_json(folder.baseline / "metrics.json")
    change(metrics)
    outputs = (folder.baseline / "outputs.jsonl").read_bytes()
    folder.finish(folder.baseline, "opposite", {"metrics.json": json_bytes(metrics), "outputs.jsonl": outputs}, 4.0)


def page_of(folder: RunFolder) -> str:
    """The page without its figures, which take most of a report's time."""
    return render(read_results(folder), dict.fromkeys(FIGURES, b"")).decode()


def section(html: str, name: str) -> str:
    found = re.search(f'<section id="{name}">(.*?)</section>', html, re.DOTALL)
    assert found is not None
    return found[1]


def plain(html: str) -> str:
    """The text of a piece of a page on one line, with ordinary spaces and hyphens."""
    text = Page(html).text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    return " ".join(text.split())


def rows_of(html: str) -> dict[str, tuple[str, list[str]]]:
    """A table's rows by their first cell's first line: that cell's HTML, and the other cells' texts."""
    found = {}
    for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", html, re.DOTALL):
        head, _, cells = row.partition("</th>")
        title = plain(head.partition("<small")[0])
        found[title] = (head, [plain(cell) for cell in re.findall(r"<td>.*?</td>", cells, re.DOTALL)])
    return found


def shown(entry: dict[str, float], digits: int, sign: str = "") -> str:
    """An estimate as the page writes it; a zero has no sign."""
    value, low, high = (f"{round(entry[n], digits) + 0.0:{sign}.{digits}f}" for n in ("value", "low", "high"))
    unsigned = [text.lstrip("+-") if float(text) == 0 else text for text in (value, low, high)]
    return "{} [{}, {}]".format(*unsigned)


def test_every_side_effect_is_shown_at_base_and_healed_with_its_difference_and_n(run: RunFolder, html: str) -> None:
    base = read_json(run.baseline / "metrics.json")["base"]
    healed = read_json(run.round(1) / "metrics.json")["healed"]
    rows = rows_of(section(html, "side-effects"))
    off_target = [name for name, entry in base.items() if entry["role"] == "off_target"]
    assert len(off_target) == 4
    for name in (*off_target, "accuracy", "question_informedness"):
        title, _, digits = KNOWN[name]
        before, after = shown(base[name], digits), shown(healed[name], digits)
        difference = shown(healed[name]["delta"], digits, "+")
        assert rows[title][1] == [before, after, difference, str(base[name]["n"])], name
    assert len(rows) == len(off_target) + 2


def test_trait_and_coherence_stand_in_the_stages_table_and_not_among_the_side_effects(html: str) -> None:
    stages, effects = section(html, "stages"), section(html, "side-effects")
    for name in (TRAIT, "p_ans_any", "tail_perplexity", "repetition_share", "alive_share", "scaffold_nats"):
        assert f">{KNOWN[name][0]}<" in stages
        assert f">{KNOWN[name][0]}<" not in effects
    assert "opposite persona" in stages


def test_a_signal_that_is_not_valid_is_flagged_beside_its_name_with_its_reason(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1, mass=0.4)
    edit_baseline(
        folder, lambda metrics: metrics["validity"].update(answer_tokens={"valid": False, "why": "of no use here"})
    )
    html = page_of(folder)
    judged = read_json(folder.baseline / "metrics.json")["validity"]
    named = re.findall(r"<th scope=\"(?:col|row)\">([^<]+)(<small.*?)</th>", html, re.DOTALL)
    flags = {
        title.strip(): attributes["title"]
        for title, head in named
        for attributes in Page(head).all("small")
        if attributes.get("class") == "invalid"
    }
    doubted = ("alive_share", "probe_mass", "scaffold_nats", "answer_tokens")
    assert flags == {KNOWN[name][0]: judged[name]["why"] for name in doubted}
    assert html.count('class="invalid"') == len(doubted)


def test_what_is_not_valid_is_named_among_what_to_keep_in_mind(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1, mass=0.4)
    judged = read_json(folder.baseline / "metrics.json")["validity"]
    (remark,) = [text for text in remarks(read_results(folder)) if text.startswith("Not valid for this model")]
    assert all(name in remark for name in ("alive_share", "probe_mass", "scaffold_nats"))
    assert judged["probe_mass"]["why"] in remark
    assert remark in plain(page_of(folder))


def test_where_everything_is_valid_nothing_is_flagged(run: RunFolder, html: str) -> None:
    assert 'class="invalid"' not in html
    assert not any("Not valid" in text for text in remarks(read_results(run)))


def test_a_hostile_reason_is_text_and_nothing_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    edit_baseline(folder, lambda metrics: metrics["validity"].update(alive_share={"valid": False, "why": HOSTILE}))
    html = page_of(folder)
    page = Page(html)
    assert len(page.all("script")) == 1
    assert "<img src=x" not in html
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(SCRIPT) == 1


def test_the_headline_ends_with_the_least_margin_of_coherence(run: RunFolder, html: str) -> None:
    found = read_json(run.round(1) / "metrics.json")["coherence"]
    title = KNOWN[found["worst"]][0].lower()
    assert f"the least coherence margin is {found['margin']:.2f} ({title})." in plain(html)


def test_a_trait_whose_readout_is_not_valid_is_said_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    metrics = read_json(folder.round(0) / "metrics.json")
    metrics["verdict"] = {"label": "not valid", "reason": "because"}
    rewrite(folder, "metrics.json", json_bytes(metrics))
    assert "not valid for this model, so nothing is shown: after one round" in plain(page_of(folder))


# Without the steered stage.


@pytest.fixture(scope="module")
def unsteered(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two rounds whose recipe says evaluation.steered=false, and its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "unsteered", steered=False)
    build_report(folder)
    return folder


def test_a_round_without_the_steered_stage_is_finished_where_the_recipe_says_so(unsteered: RunFolder) -> None:
    assert unsteered.rounds() == [0, 1]
    assert unsteered.stages() == tuple(stage for stage in STAGES if stage != "steered")


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


def rewrite(folder: RunFolder, name: str, content: bytes) -> None:
    """Puts other content into a file of round 0 as if its stage had written it."""
    path = folder.round(0) / MANIFEST
    manifest = json.loads(path.read_text())
    (folder.round(0) / name).write_bytes(content)
    for entry in manifest.values():
        if name in entry["files"]:
            entry["files"][name] = hashlib.sha256(content).hexdigest()
    path.write_bytes(json_bytes(manifest))


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


def test_sample_has_every_reason_and_both_kinds(tmp_path: Path) -> None:
    entry = read_results(write_run(tmp_path / "run", rounds=1)).rounds[0]
    sample = samples(entry)
    assert (len(sample.kept), sample.all_kept, sample.all_dropped) == (KEPT, 18, 6)
    assert len(sample.dropped) <= DROPPED
    reasons = {reason for row in sample.dropped for reason in row.dropped}
    assert reasons == {"narration", "repetition", "tail perplexity"}
    assert sample == samples(entry)


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
