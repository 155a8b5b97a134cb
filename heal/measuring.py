"""The measured stages of a run: base, prompted, opposite, steered, healed; and what a round's numbers come to."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heal.config import EvaluationConfig
from heal.console import Stage
from heal.dose.calibrate import Calibration
from heal.errors import UserError
from heal.evaluation.evaluate import evaluate
from heal.evaluation.metrics import CoherenceCost, Summary
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.probe import Probe, choose_probe
from heal.evaluation.results import StageResult, headline, output_rows, summarise
from heal.evaluation.scenes import foundation_figures, target_of
from heal.evaluation.signal import MASS, MIN_MASS, TRAIT, limited, limits_of
from heal.evaluation.subject import Gates, Setup, Subject
from heal.evaluation.validity import Validity, doubts, valid_names, validity
from heal.evaluation.verdict import coherence, verdict
from heal.generation.collect import Collection, dose_table
from heal.randomness import derive_seed, shuffled
from heal.records import as_record, json_bytes, jsonl_bytes, read_json, read_record, record_bytes
from heal.session import Session
from heal.stages import Files, stage, training_summary
from heal.steering.intervention import Intervention
from heal.steering.vector import SteeringVector
from heal.trait import Trait


@dataclass(frozen=True)
class Baseline:
    """What every round is held against: base's signals, and which of them are valid for the model."""

    base: StageResult
    valid: frozenset[str]


def held_out_prompts(trait: Trait, settings: EvaluationConfig) -> list[str]:
    """The evaluation's prompts: the same at every stage of every round of every seed."""
    prompts = shuffled(list(trait.heldout_prompts), "heldout")
    return prompts[settings.skip : settings.skip + settings.prompts]


def choose_format(session: Session) -> None:
    """Puts the neutral texts and the probe's format for this model into the session; the format is chosen once."""
    folder, recipe = session.folder.baseline, session.recipe
    session.neutral_texts = NeutralTexts(session.model, recipe.model.system, recipe.evaluation.neutral_texts)

    def compute(shown: Stage) -> tuple[Probe, Files]:
        probe = choose_probe(session.model, session.neutral_texts.rows(), session.accumulator.base)
        tried = ", ".join(f"{name} {mass:.2f}" for name, mass in probe.masses.items())
        shown.found(f"{probe.format.name}; base's mass on the answers: {tried}")
        return probe, {"probe.json": record_bytes(probe)}

    probe = stage(session, folder, "probe", lambda: read_record(Probe, folder / "probe.json"), compute)
    if probe.mass < MIN_MASS:
        session.console.warn(
            f"the model puts only {probe.mass:.2f} on yes or no in its best format ({probe.format.name}): "
            "what is read at that slot is marked as not valid"
        )
    session.probe = probe


def measure_stage(
    session: Session,
    folder: Path,
    name: str,
    gates: Gates,
    system: str | None = None,
    vector: Intervention | None = None,
    c: float = 0.0,
    extra: Callable[[StageResult], Files] = lambda result: {},
    stage_name: str | None = None,
) -> StageResult:
    """Answers and signals of base, prompted, opposite, steered or healed; kept raw in `<name>.json`."""
    recipe = session.recipe

    def compute(shown: Stage) -> tuple[StageResult, Files]:
        setup = Setup(
            language_model=session.model,
            trait=session.trait,
            base=session.accumulator.base,
            system=recipe.model.system,
            prompts=held_out_prompts(session.trait, recipe.evaluation),
            tokens=recipe.evaluation.tokens,
            max_repetition=recipe.filter.max_repetition,
            questions=recipe.evaluation.questions,
            probe=session.probe.format,
            neutral_texts=session.neutral_texts,
            vignettes=session.vignettes,
            thinking=recipe.evaluation.thinking,
        )
        result = evaluate(Subject(setup, name, gates, system, vector, c), shown.progress)
        shown.found(headline(result))
        return result, {f"{name}.json": record_bytes(result)} | extra(result)

    return stage(
        session, folder, stage_name or name, lambda: read_record(StageResult, folder / f"{name}.json"), compute
    )


def summarise_stage(session: Session, result: StageResult, base: StageResult) -> Summary:
    """Intervals of a stage's signals; every table of a run uses the same resampling."""
    return summarise(result, base, session.recipe.evaluation.resamples, _bootstrap_seed(session))


def baseline(session: Session) -> Baseline:
    """Base, and base under either persona as system prompt; measured once, with what each readout is worth."""
    folder, off = session.folder.baseline, session.accumulator.base
    settings = session.recipe.evaluation
    choose_format(session)
    base = measure_stage(session, folder, "base", off)
    prompted = measure_stage(session, folder, "prompted", off, system=session.trait.positive)

    def files(opposite: StageResult) -> Files:
        stages = (base, prompted, opposite)
        summaries = {result.stage: summarise_stage(session, result, base) for result in stages}
        judged = validity(summaries["base"], summarise_stage(session, prompted, opposite), limits_of(settings))
        content = {name: _plain(summary) for name, summary in summaries.items()}
        content["validity"] = {name: asdict(judgement) for name, judgement in judged.items()}
        return {
            "metrics.json": json_bytes(content),
            "outputs.jsonl": jsonl_bytes([row for result in stages for row in output_rows(result)]),
        }

    measure_stage(session, folder, "opposite", off, system=session.trait.negative, extra=files)
    path = folder / "metrics.json"
    judged = as_record(dict[str, Validity], read_json(path)["validity"], path)
    session.tracker.event("validity", {"probe": asdict(session.probe), "not_valid": doubts(judged)})
    for text in doubts(judged):
        session.console.warn(f"not valid for this model, so no verdict rests on it: {text}")
    valid = valid_names(judged)
    if not valid & limited().keys():
        raise UserError(
            "base itself is past every limit of coherence, so no round could be judged; raise the limits "
            f"({', '.join(f'evaluation.{limit.key}' for limit in limited().values())}) or take another model"
        )
    return Baseline(base, valid)


def measure_doses(session: Session, vector: SteeringVector, c_star: float, against: Baseline) -> None:
    """Raw steering, for comparison: base under the first round's vector at every dose that the recipe asks for."""
    folder, doses = session.folder.doses, session.recipe.evaluation.doses
    measured: dict[str, StageResult] = {}

    def files(result: StageResult) -> Files:
        last = len(measured) + 1 == len(doses)
        stages = measured | {result.stage: result}
        summaries = {name: _plain(summarise_stage(session, each, against.base)) for name, each in stages.items()}
        return {"metrics.json": json_bytes(summaries)} if last else {}

    for alpha in doses:
        name = f"dose_{alpha:g}"
        off = session.accumulator.base
        measured[name] = measure_stage(session, folder, name, off, vector=vector, c=alpha * c_star, extra=files)


def round_metrics(
    session: Session,
    r: int,
    dose: Calibration,
    found: Collection,
    log: Sequence[dict[str, float]],
    cosine: float,
    steered: StageResult | None,
    healed: StageResult,
    against: Baseline,
) -> dict[str, Any]:
    """Everything a round says, as metrics.json has it."""
    after = summarise_stage(session, healed, against.base)
    limits = limits_of(session.recipe.evaluation)
    return {
        "round": r,
        "dose": {
            "c_star": dose.c_star,
            "p95": dose.value,
            "outcome": dose.outcome,
            "audit_p95": None if dose.audit is None else dose.audit.p95,
            "scale": found.scale,
        },
        "generation": {
            "made": len(found.rows),
            "kept": len(found.kept),
            "kept_share": len(found.kept) / len(found.rows),
            "ended_share": sum(row.ended for row in found.kept) / len(found.kept),
            "doses": dose_table(found.rows),
            "dropped": dict(Counter(reason for row in found.rows for reason in row.dropped).most_common()),
        },
        "training": training_summary(log),
        "cosine_to_first": cosine,
        "steered": None if steered is None else _plain(summarise_stage(session, steered, against.base)),
        "healed": _plain(after),
        "coherence": asdict(coherence(after, limits, against.valid)),
        "valid": sorted(against.valid),
        "coh_cost": _coh_cost(after),
        "foundations": _foundations(session, healed, against.base),
        "verdict": asdict(verdict(after, limits, against.valid, target_of(session.trait, session.vignettes))),
    }


def _plain(summary: Summary) -> dict[str, Any]:
    return {name: asdict(figures) for name, figures in summary.items()}


def _coh_cost(healed: Summary) -> dict[str, float] | None:
    if not healed[TRAIT].delta.excludes_zero or MASS not in healed:
        return None
    cost = CoherenceCost(healed[MASS].delta.value, healed[TRAIT].delta.value)
    return {"ratio": cost.ratio, "d_coherence": cost.d_p_ans_any, "d_trait": cost.d_trait}


def _foundations(session: Session, healed: StageResult, base: StageResult) -> dict[str, Any] | None:
    """What the scenes say beyond their signals. None without scenes."""
    figures = foundation_figures(session.trait, session.vignettes, healed, base)
    return None if figures is None else asdict(figures)


def _bootstrap_seed(session: Session) -> int:
    return derive_seed(session.recipe.run.seed, "bootstrap")
