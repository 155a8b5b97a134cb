"""A finished run on disk as a report reads it, with a model that says what it is told; and its page, taken apart."""

import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from heal.config import Recipe
from heal.dose.calibrate import Calibration, PathDivergence
from heal.evaluation.probe import FORMATS, Probe
from heal.evaluation.results import Answer, Signal, StageResult, output_rows, summarise
from heal.evaluation.validity import TRAIT, valid_names, validity
from heal.evaluation.verdict import Floors, coh_cost, coherence, verdict
from heal.generation.collect import Row, dose_table
from heal.records import json_bytes, jsonl_bytes, read_json
from heal.report.page import render
from heal.report.results import read_results
from heal.run.folder import RunFolder
from heal.run.manifest import MANIFEST

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ("trajectory", "signals", "calibration", "training")
FLOORS = Floors.of(Recipe().evaluation)
PROMPTS = ("Do you love people?", "What is rain?", "Say good night.", "Who are you?")
SCRIPT = "<script>document.title='executed'</script>"
IMAGE = '"><img src=x onerror="document.title=\'executed\'">'
HOSTILE = f"{SCRIPT}{IMAGE}' onmouseover='alert(1) {{{{ 7 * 7 }}}} \x00 \u202e &amp;</script></style><!--"


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
    path: Path,
    rounds: int = 2,
    text: str = "plain",
    bare: bool = False,
    mass: float = 0.97,
    steered: bool = True,
    prompts: int = 24,
) -> RunFolder:
    """A run folder as the loop leaves it.

    Args:
        path: of the folder.
        rounds: finished ones.
        text: in the name, the trait and everything that the model says.
        bare: unscorable tails, no audit, no validation, an infinite KL.
        mass: of base on the probe's answers.
        steered: whether the steered stage was measured.
        prompts: generation prompts of the trait; the first 8 of them found the dose, the next 8 audited it.
    """
    folder, recipe = RunFolder(path), Recipe()
    recipe.run.name = f"run {text}"
    recipe.evaluation.steered = steered
    recipe.calibration.audit_prompts = 0 if bare else 8
    trait = {"name": "love", "description": text, "positive": f"You love. {text}", "negative": "You hate."}
    generation = {"generation_prompts": [f"Say {number}." for number in range(prompts)]}
    folder.start(recipe, {"dtype": "float32", "trait": trait | generation})
    audited = not bare and prompts > recipe.calibration.prompts

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
        for name, content in round_files(r, base, text, bare, valid_names(judged), steered, audited).items():
            folder.finish(folder.round(r), name, content, 12.0)
    return folder


def round_files(
    r: int, base: StageResult, text: str, bare: bool, valid: set[str], measured: bool, audited: bool
) -> dict[str, dict[str, bytes]]:
    """The files of one round that a report reads, by stage; `measured`: with the steered stage; `audited`: the dose."""
    history = [PathDivergence(1.0, 0.1, 0.6, 0.2, 2.0, 96), PathDivergence(1.4 + r, 0.2, 0.99, 0.3, 3.0, 96)]
    if bare:
        history.insert(1, PathDivergence(8.0, math.inf, math.inf, math.inf, math.inf, 0))
    audit = PathDivergence(1.4 + r, 0.2, 0.87, 0.3, 3.0, 96) if audited else None
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


def rewrite(folder: RunFolder, name: str, content: bytes) -> None:
    """Puts other content into a file of round 0 as if its stage had written it."""
    path = folder.round(0) / MANIFEST
    manifest = json.loads(path.read_text())
    (folder.round(0) / name).write_bytes(content)
    for entry in manifest.values():
        if name in entry["files"]:
            entry["files"][name] = hashlib.sha256(content).hexdigest()
    path.write_bytes(json_bytes(manifest))
