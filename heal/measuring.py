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
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.probe import Probe, choose_probe
from heal.evaluation.readouts.moral_foundations import temperature_of
from heal.evaluation.results import StageResult, StageSummary, output_rows, summarise
from heal.evaluation.subject import Gates, Subject
from heal.evaluation.surgical import SurgicalInformedness, surgical_variants
from heal.evaluation.validity import MIN_MASS, TRAIT, doubts, from_json, valid_names, validity
from heal.evaluation.verdict import LIMITED, Floors, coh_cost, coherence, verdict
from heal.evaluation.vignettes import FOUNDATIONS, Vignette, soft_labels
from heal.generation.collect import Collection, dose_table
from heal.healing.log import StepLog
from heal.randomness import derive_seed, shuffled
from heal.records import json_bytes, jsonl_bytes, read_json
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
        return probe, {"probe.json": json_bytes(probe.to_json())}

    probe = stage(session, folder, "probe", lambda: Probe.from_json(read_json(folder / "probe.json")), compute)
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
        subject = Subject(
            stage=name,
            language_model=session.model,
            trait=session.trait,
            gates=gates,
            base=session.accumulator.base,
            system=recipe.model.system if system is None else system,
            neutral=recipe.model.system,
            max_repetition=recipe.filter.max_repetition,
            questions=recipe.evaluation.questions,
            probe=session.probe.format,
            neutral_texts=session.neutral_texts,
            vignettes=session.vignettes,
            thinking=recipe.evaluation.thinking,
            intervention=vector,
            coefficient=c,
        )
        result = evaluate(
            subject, held_out_prompts(session.trait, recipe.evaluation), recipe.evaluation.tokens, shown.progress
        )
        shown.found(", ".join(f"{signal} {result.mean(signal):.3f}" for signal in SHOWN))
        return result, {f"{name}.json": json_bytes(result.to_json())} | extra(result)

    return stage(
        session, folder, stage_name or name, lambda: StageResult.from_json(read_json(folder / f"{name}.json")), compute
    )


SHOWN = ("persona_log_ratio", "repetition_share", "alive_share", "p_ans_any")  # on the console, of every stage


def summarise_stage(session: Session, result: StageResult, base: StageResult) -> StageSummary:
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
        found = validity(
            summaries["base"].values,
            prompted.signal(TRAIT).values,
            opposite.signal(TRAIT).values,
            Floors.of(settings),
            settings.resamples,
            _bootstrap_seed(session),
        )
        content = {name: summary.to_json() for name, summary in summaries.items()}
        content["validity"] = {name: asdict(entry) for name, entry in found.items()}
        return {
            "metrics.json": json_bytes(content),
            "outputs.jsonl": jsonl_bytes([row for result in stages for row in output_rows(result)]),
        }

    measure_stage(session, folder, "opposite", off, system=session.trait.negative, extra=files)
    found = from_json(read_json(folder / "metrics.json")["validity"])
    session.tracker.event("validity", {"probe": session.probe.to_json(), "not_valid": doubts(found)})
    for text in doubts(found):
        session.console.warn(f"not valid for this model, so no verdict rests on it: {text}")
    valid = frozenset(valid_names(found))
    if not valid & LIMITED.keys():
        raise UserError(
            "base itself is past every limit of coherence, so no round could be judged; raise the limits "
            "(evaluation.min_p_ans_any and those after it) or take another model"
        )
    return Baseline(base, valid)


def measure_doses(session: Session, vector: SteeringVector, c_star: float, against: Baseline) -> None:
    """Raw steering, for comparison: base under the first round's vector at every dose that the recipe asks for."""
    folder, doses = session.folder.doses, session.recipe.evaluation.doses
    measured: dict[str, StageResult] = {}

    def files(result: StageResult) -> Files:
        last = len(measured) + 1 == len(doses)
        stages = measured | {result.stage: result}
        summaries = {name: summarise_stage(session, each, against.base).to_json() for name, each in stages.items()}
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
    log: Sequence[StepLog],
    cosine: float,
    steered: StageResult | None,
    healed: StageResult,
    against: Baseline,
) -> dict[str, Any]:
    """Everything a round says, as metrics.json has it."""
    after = summarise_stage(session, healed, against.base)
    floors = Floors.of(session.recipe.evaluation)
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
        "steered": None if steered is None else summarise_stage(session, steered, against.base).to_json(),
        "healed": after.to_json(),
        "coherence": coherence(after.values, after.deltas, floors, against.valid).to_json(),
        "valid": sorted(against.valid),
        "coh_cost": coh_cost(after.deltas["p_ans_any"], after.deltas["persona_log_ratio"]),
        "foundations": _foundations(session, healed, against.base),
        "verdict": verdict(after.values, after.deltas, floors, against.valid, **_target(session)).to_json(),
    }


def _target(session: Session) -> dict[str, Any]:
    """The foundation that the trait means, which way, and the others, where trait and recipe have such a thing."""
    meant = session.trait.foundation
    if not meant or not session.vignettes:
        return {}
    off_target = [f"clr_{name}" for name in FOUNDATIONS if name != meant]
    return {"target": f"clr_{meant}", "intent": session.trait.intent, "off_target": off_target}


def _foundations(session: Session, healed: StageResult, base: StageResult) -> dict[str, Any] | None:
    """What the scenes say beyond their signals: temperature, surgical informedness. None without scenes."""
    if not session.vignettes:
        return None
    clr = {name: healed.signal(f"clr_{name}").values for name in FOUNDATIONS}
    found: dict[str, Any] = {"temperature": temperature_of(clr, soft_labels(session.vignettes))}
    return found | ({"surgical": _surgical(session, healed, base)} if session.trait.foundation else {})


def _surgical(session: Session, healed: StageResult, base: StageResult) -> dict[str, Any]:
    """Surgical informedness by variant; a student has no -C, so base is its other side."""
    found = surgical_sides(session.trait, session.vignettes, base, healed, base)
    return {name: asdict(entry) | {"other_side": "base"} for name, entry in found.items()}


def surgical_sides(
    trait: Trait, scenes: Sequence[Vignette], base: StageResult, up: StageResult, down: StageResult
) -> dict[str, SurgicalInformedness]:
    """Surgical informedness by variant of what base, +C and -C said about the scenes, for the trait's foundation."""
    shares = soft_labels(scenes)[:, list(FOUNDATIONS).index(trait.foundation)]
    return surgical_variants(
        base.signal("wrongness").values,
        up.signal("wrongness").values,
        down.signal("wrongness").values,
        trait.intent,
        up.mean("wrongness_mass"),
        down.mean("wrongness_mass"),
        [scene.foundation == trait.foundation for scene in scenes],
        shares.tolist() if all(scene.labels for scene in scenes) else None,
    )


def _bootstrap_seed(session: Session) -> int:
    return derive_seed(session.recipe.run.seed, "bootstrap")
