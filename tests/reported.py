"""A finished run on disk as a report reads it, with a model that says what it is told; and its page, taken apart."""

import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

from heal.config import Recipe
from heal.dose.calibration import Calibration, PathDivergence
from heal.evaluation.asking.way import Asking, Tried
from heal.evaluation.metrics import (
    METRICS,
    BaselineMetrics,
    DoseFigures,
    DriftFigures,
    PositionSpread,
    RoundMetrics,
    Spread,
    TrainingFigures,
)
from heal.evaluation.probe import FORMATS, Probe
from heal.evaluation.results import Answer, StageResult, output_rows, summarise
from heal.evaluation.signal import TRAIT, Evidence, Signal, limits_of, signals
from heal.evaluation.stats import Estimate
from heal.evaluation.validity import valid_names, validity
from heal.evaluation.verdict import coherence, verdict
from heal.generation.collect import Collection, Completion
from heal.healing.log import StepLog, log_bytes
from heal.records import json_bytes, jsonl_bytes, record_bytes
from heal.report.page import render
from heal.report.results import read_results
from heal.run.facts import Facts
from heal.run.files import Files
from heal.run.folder import RunFolder
from heal.run.manifest import JUDGE, MANIFEST
from heal.trait import Trait
from tests.stages import healthy

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ("trajectory", "signals", "side-effects", "positions", "calibration", "training")
LIMITS = limits_of(Recipe().evaluation)
PROMPTS = ("Do you love people?", "What is rain?", "Say good night.", "Who are you?")
TEXTS = 6  # neutral ones
SCRIPT = "<script>document.title='executed'</script>"
IMAGE = '"><img src=x onerror="document.title=\'executed\'">'
HOSTILE = f"{SCRIPT}{IMAGE}' onmouseover='alert(1) {{{{ 7 * 7 }}}} \x00 \u202e &amp;</script></style><!--"


def stage_result(
    stage: str, trait: float, coherence: float, text: str, unscorable: bool = False, mass: float = 0.97
) -> StageResult:
    """A stage whose signals scatter around the given values; `mass` is that on the probe's answers.

    Every signal that a readout describes is there, but for those of scenes, which are not asked.
    """
    draws = random.Random(stage + str(trait))

    def around(centre: float, spread: float, count: int = len(PROMPTS)) -> tuple[float, ...]:
        return tuple(centre + draws.uniform(-spread, spread) for _ in range(count))

    def healed(signal: Signal) -> tuple[float, ...]:
        """Values near which base is whole."""
        centre = healthy(signal.name, LIMITS) if signal.limit else 0.5
        return around(centre, 0.01, TEXTS if signal.items == "texts" else len(PROMPTS))

    tails = (math.nan,) * len(PROMPTS) if unscorable else around(3.0, 1.0)
    moved = 0.0 if stage == "base" else 1.0
    values = {name: healed(signal) for name, signal in signals().items() if signal.items != "vignettes"} | {
        "tail_perplexity": tails,
        "repetition_share": (0.0, 0.0, 1.0, 0.0),
        TRAIT: around(trait, 0.02),
        "p_ans_any": around(coherence, 0.01),
        "unscorable_share": (0.0,) * 4,
        "accuracy": (1.0, 0.0, 1.0, 1.0),
        "question_informedness": around(0.5, 0.2),
        "alive_share": (1.0,) * 4,
        "probe_mass": around(mass, 0.01),
        "scaffold_nats": around(2.0, 0.1),
        "identified_share": (1.0, float(stage != "steered"), 1.0, 1.0),
        "neutral_kl_p50": around(0.013 * moved, 0.01 * moved, TEXTS),
        "neutral_kl_p95": around(0.237 * moved, 0.05 * moved, TEXTS),
        "answer_tokens": around(30.0 - 8 * moved, 4.0),
        "refusal_share": (0.0, moved, 0.0, 0.0),
    }
    return StageResult(
        stage,
        tuple(Answer(prompt, (1,), (2, 3), f"{text} {stage}", ended=i > 0) for i, prompt in enumerate(PROMPTS)),
        tuple(signals()[name].measured(items) for name, items in values.items()),
    )


def asking(text: str) -> dict[str, Asking]:
    """Two questions, each asked in ways of which the second was chosen; `text` is in every name and reason."""
    interval = Estimate(0.61, 0.42, 0.8, 28)

    def tried(valid: bool, mass: float | None, half: float) -> Tried:
        found = replace(interval, value=interval.value + (0.02 if valid else -0.4))
        return Tried(found, (0.55, half), mass, 0.75, valid, f"{text} as its halves say")

    return {
        f"{question} {text}": Asking(
            f"words {text}",
            (0.25, -0.25) if label == ", centred" else (),
            f"words {text}{label}",
            {
                f"letters {text}": tried(False, 0.4321, math.nan),
                f"words {text}{label}": tried(True, None, 0.66),
            },
        )
        for question, label in (("general questions", ""), ("wrongness", ", centred"))
    }


def completions(text: str, alphas: tuple[float, ...] = (0.5, 1.0), count: int = 24) -> list[Completion]:
    """Completions of which every fourth is dropped, the first of them for a reason of its own."""

    def dropped(index: int) -> tuple[str, ...]:
        return () if index % 4 else (("narration",) if index == 0 else ("repetition", "tail perplexity"))

    return [
        Completion(i, PROMPTS[i % 4], alphas[i % 2], (1,), (2,), f"{text} #{i}", i % 3 == 0, 4.0 + i, 0.1, dropped(i))
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
        bare: no shift of the trait, unscorable tails, no audit, no validation, an infinite KL.
        mass: of base on the probe's answers.
        steered: whether the steered stage was measured.
        prompts: generation prompts of the trait; the first 8 of them found the dose, the next 8 audited it.
    """
    folder, recipe = RunFolder(path), Recipe()
    recipe.run.name = f"run {text}"
    recipe.evaluation.steered = steered
    recipe.calibration.audit_prompts = 0 if bare else 8
    trait = Trait(
        name="love",
        description=text,
        positive=f"You love. {text}",
        negative="You hate.",
        generation_prompts=tuple(f"Say {number}." for number in range(prompts)),
        heldout_prompts=PROMPTS,
        narration=(),
    )
    folder.start(recipe, Facts("float32", trait))
    audited = not bare and prompts > recipe.calibration.prompts

    base = stage_result("base", 0.01, 0.98, text, mass=mass)
    prompted = stage_result("prompted", 0.14, 0.97, text, mass=mass)
    opposite = stage_result("opposite", -0.12, 0.97, text, mass=mass)
    stages = (base, prompted, opposite)
    summaries = [summarise(result, base, 200, 0) for result in stages]
    ways = asking(text)
    judged = validity(Evidence(summaries[0], summarise(prompted, opposite, 200, 0), ways), LIMITS)
    probe = Probe(FORMATS[-1], {"json": 0.02, "yes/no": 0.6, "letters": mass})
    rows = [row for result in stages for row in output_rows(result)]
    folder.finish(folder.baseline, "probe", {"probe.json": record_bytes(probe)}, 1.0)
    plain = {name: asdict(chosen) for name, chosen in ways.items()}
    folder.finish(folder.baseline, "ways", {"ways.json": json_bytes(plain)}, 2.0)
    for stage, seconds in (("base", 3.0), ("prompted", 4.0), ("opposite", 4.0)):
        folder.finish(folder.baseline, stage, next(one.files() for one in stages if one.stage == stage), seconds)
    files = {METRICS: record_bytes(BaselineMetrics(*summaries, judged, ways)), "outputs.jsonl": jsonl_bytes(rows)}
    folder.finish(folder.baseline, JUDGE, files, 0.0)
    for index in range(rounds):
        steps = round_files(index, base, text, valid_names(judged), bare=bare, steered=steered, audited=audited)
        for name, content in steps.items():
            folder.finish(folder.round(index), name, content, 12.0)
    return folder


def round_files(
    index: int, base: StageResult, text: str, valid: frozenset[str], *, bare: bool, steered: bool, audited: bool
) -> dict[str, Files]:
    """The files of one round that a report reads, by step; `steered`: with that stage; `audited`: the dose."""
    history = [PathDivergence(1.0, 0.1, 0.6, 0.2, 2.0, 96), PathDivergence(1.4 + index, 0.2, 0.99, 0.3, 3.0, 96)]
    if bare:
        history.insert(1, PathDivergence(8.0, math.inf, math.inf, math.inf, math.inf, 0))
    audit = PathDivergence(1.4 + index, 0.2, 0.87, 0.3, 3.0, 96) if audited else None
    dose = Calibration(1.4 + index, 0.99, 1.0, 0.05, "tolerance", 1, tuple(history), audit, "student")
    collection = Collection(tuple(completions(text)), 1.0)
    values = {"loss": 1.7, "ce": 1.6, "D_mean": 0.4321, "D_max": 0.9, "barrier_on": 0.25}
    log = [StepLog(step, step / 2, "train", values) for step in range(1, 7)]
    training = TrainingFigures(**values)
    if not bare:
        log.append(StepLog(6, 3.0, "eval", values))
        training = replace(training, validation_ce=1.55, validation_D=0.41)
    before = stage_result("steered", 0.21 + 0.02 * index, 0.93, text)
    after = stage_result("healed", 0.01 if bare else 0.17 + 0.05 * index, 0.97, text, unscorable=bare)
    healed = summarise(after, base, 200, 0)
    metrics = RoundMetrics(
        round=index + 1,
        dose=DoseFigures(dose.c_star, 0.99, "tolerance", audit_p95=audit and 0.87, scale=1.0),
        generation=collection.figures,
        training=training,
        cosine_to_first=0.9876,
        steered=summarise(before, base, 200, 0) if steered else None,
        healed=healed,
        coherence=coherence(healed, LIMITS, valid),
        valid=tuple(sorted(valid)),
        foundations=None,
        verdict=verdict(healed, LIMITS, valid),
        drift=drift(index),
    )
    outputs = [row for result in (base, *[before] * steered, after) for row in output_rows(result)]
    files = {
        "extract": {},
        "calibrate": {"calibration.json": record_bytes(dose)},
        "generate": collection.files(),
        "steered": {},
        "heal": {"training.jsonl": log_bytes(log)},
        "healed": after.files(),
        JUDGE: {METRICS: record_bytes(metrics), "outputs.jsonl": jsonl_bytes(outputs)},
    }
    return {name: content for name, content in files.items() if steered or name != "steered"}


def drift(index: int) -> DriftFigures:
    """Of a round: more in later ones, and along a text."""
    kl = 0.2 + 0.1 * index
    spreads = {name: Spread(kl, 1.2 * kl, 3 * kl, 6 * kl, 200) for name in ("kl_fwd", "kl_rev")}
    along = tuple(PositionSpread(8 * k + 1, 8 * k + 8, kl + 0.05 * k, 3 * kl + 0.1 * k, 40) for k in range(5))
    return DriftFigures(spreads, spreads, {"completions": along, "answers": along[:4]})


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


def edit_baseline(folder: RunFolder, change: Callable[[BaselineMetrics], BaselineMetrics]) -> None:
    """Changes the baseline's metrics as if its last step had written them so."""
    metrics = change(BaselineMetrics.load(folder.baseline))
    outputs = (folder.baseline / "outputs.jsonl").read_bytes()
    folder.finish(folder.baseline, JUDGE, {METRICS: record_bytes(metrics), "outputs.jsonl": outputs}, 4.0)


def page_of(folder: RunFolder) -> str:
    """The page, without the files of its figures, which take most of a report's time."""
    return render(read_results(folder)).decode()


def section(html: str, name: str) -> str:
    content = re.search(f'<section id="{name}">(.*?)</section>', html, re.DOTALL)
    assert content is not None
    return content[1]


def plain(html: str) -> str:
    """The text of a piece of a page on one line, with ordinary spaces and hyphens."""
    text = Page(html).text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    return " ".join(text.split())


def rows_of(html: str) -> dict[str, tuple[str, list[str]]]:
    """A table's rows by their first cell's first line: that cell's HTML, and the other cells' texts."""
    rows = {}
    for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", html, re.DOTALL):
        head, _, cells = row.partition("</th>")
        title = plain(head.partition("<small")[0])
        rows[title] = (head, [plain(cell) for cell in re.findall(r"<td>.*?</td>", cells, re.DOTALL)])
    return rows


def shown(estimate: Estimate, digits: int, sign: str = "") -> str:
    """An estimate as the page writes it; a zero has no sign."""
    numbers = (estimate.value, estimate.low, estimate.high)
    texts = (f"{round(number, digits) + 0.0:{sign}.{digits}f}" for number in numbers)
    unsigned = [text.lstrip("+-") if float(text) == 0 else text for text in texts]
    return "{} [{}, {}]".format(*unsigned)


def rewrite(folder: RunFolder, name: str, content: bytes, index: int = 0) -> None:
    """Puts other content into a file of a round (default: the first) as if its step had written it."""
    path = folder.round(index) / MANIFEST
    manifest = json.loads(path.read_text())
    (folder.round(index) / name).write_bytes(content)
    for step in manifest.values():
        if name in step["files"]:
            step["files"][name] = hashlib.sha256(content).hexdigest()
        step["seal"] = None
    path.write_text(json.dumps(manifest))
