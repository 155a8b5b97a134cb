"""The stages of a round: each computes or reads back its result, writes it whole, and says what it found."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from heal.console import Console, Stage, counted
from heal.decoding import Sampling
from heal.dose.calibrate import Calibration, PathDivergence, calibrate, path_divergences
from heal.generation.collect import Collection, Row, collect, dose_table
from heal.generation.filters import FilterLimits
from heal.generation.make import maker
from heal.healing.heal import heal
from heal.healing.log import StepLog, log_bytes, read_log
from heal.randomness import shuffled
from heal.records import json_bytes, jsonl_bytes, read_json, read_jsonl
from heal.session import Session, lora_seed
from heal.steering.extract import contexts, extract
from heal.steering.intervention import Dosing, Intervention
from heal.steering.settings import method_settings
from heal.steering.vector import SteeringVector

T = TypeVar("T")
Files = dict[str, bytes]


def stage(
    session: Session,
    folder: Path,
    name: str,
    read: Callable[[], T],
    compute: Callable[[Stage], tuple[T, Files]],
) -> T:
    """A stage's result: read when it is done, else computed, written and marked done."""
    if session.folder.finished(folder, name):
        return read()
    start = time.perf_counter()
    with session.console.stage(name) as shown:
        result, files = compute(shown)
        seconds = time.perf_counter() - start
        session.folder.finish(folder, name, files, seconds)
    session.tracker.event("stage", {"folder": folder.name, "stage": name, "seconds": seconds, "found": shown.finding})
    return result


def extract_vector(session: Session, r: int) -> SteeringVector:
    """The persona contrast of the current student."""
    recipe, folder = session.recipe, session.folder.round(r)

    def compute(shown: Stage) -> tuple[SteeringVector, Files]:
        layers = session.model.band(recipe.steer.band)
        texts = contexts(recipe.steer.pairs)
        with session.accumulator.student():
            vector = extract(
                session.model,
                session.trait,
                texts,
                recipe.steer.method,
                layers,
                shown.progress,
                method_settings(recipe.steer),
            )
        norms = ", ".join(f"{layer}: {float(v_D.norm()):.2f}" for layer, v_D in vector.directions.items())
        shown.found(f"{recipe.steer.method} from {len(texts)} pairs; norm by block {norms}")
        return vector, {"vector.safetensors": vector.to_bytes()}

    return stage(session, folder, "extract", lambda: SteeringVector.load(folder / "vector.safetensors"), compute)


def calibration_prompts(session: Session) -> tuple[list[str], list[str]]:
    """The prompts on which a dose is found, and the held-out ones of its audit."""
    settings = session.recipe.calibration
    prompts = shuffled(list(session.trait.generation_prompts), session.recipe.run.seed, "calibration")
    return prompts[: settings.prompts], prompts[settings.prompts : settings.prompts + settings.audit_prompts]


def warn_of_a_short_audit(session: Session) -> None:
    """Says so where the calibration leaves fewer prompts for its audit than were asked for."""
    settings, trait = session.recipe.calibration, session.trait
    _, held_out = calibration_prompts(session)
    if len(held_out) < settings.audit_prompts:
        session.console.warn(
            f"the audit of the dose has {len(held_out)} of calibration.audit_prompts={settings.audit_prompts} prompts: "
            f"{trait.name} has {len(trait.generation_prompts)} generation prompts, and calibration.prompts="
            f"{settings.prompts} come first"
        )


def find_dose(session: Session, intervention: Intervention, warm_start: float | None, shown: Stage) -> Calibration:
    """The coefficient at which an intervention on the student as it stands spends the recipe's KL.

    Against the base the student's own drift counts, which is there at coefficient 0 already.
    """
    settings = session.recipe.calibration
    asked, held_out = calibration_prompts(session)
    vanishes = intervention.dosing.vanishes and settings.reference == "student"

    def measure(texts: Sequence[str], coefficients: Sequence[float]) -> list[PathDivergence]:
        return path_divergences(
            session.model,
            intervention,
            coefficients,
            [session.model.chat.ids(session.recipe.model.system, text) for text in texts],
            settings.tokens,
            session.accumulator.base if settings.reference == "base" else nullcontext,
        )

    with session.accumulator.student():
        found = calibrate(
            partial(measure, asked),
            partial(measure, held_out) if held_out else None,
            settings.target,
            settings.tolerance,
            warm_start,
            settings.candidates,
            settings.max_passes,
            settings.reference,
            shown.progress,
            replace(intervention.dosing, vanishes=vanishes),
        )
    others = counted(len(held_out), "held-out prompt")
    audit = "" if found.audit is None else f", audit {found.audit.p95:.2f} on {others}"
    shown.found(
        f"c* = {found.c_star:.3f}: p95 KL {found.value:.2f} nats (target {found.target:g}{audit}), "
        f"{found.passes} {'pass' if found.passes == 1 else 'passes'}, ended on {found.outcome}"
    )
    return found


def calibrate_dose(session: Session, r: int, vector: SteeringVector, warm_start: float | None) -> Calibration:
    """`c_star` of this round's vector on the current student."""
    folder = session.folder.round(r)
    if r == 0:
        warn_of_a_short_audit(session)

    def compute(shown: Stage) -> tuple[Calibration, Files]:
        found = find_dose(session, vector, warm_start, shown)
        files = {
            "vector.safetensors": vector.with_c_star(found.c_star).to_bytes(),
            "calibration.json": json_bytes(found.to_json()),
        }
        return found, files

    found = stage(
        session,
        folder,
        "calibrate",
        lambda: Calibration.from_json(read_json(folder / "calibration.json")),
        compute,
    )
    warn_of_dose(session.console, f"the dose of {vector.method}", vector.dosing, found)
    warn_of_multiples(session.console, vector.method, vector.dosing)
    return found


def warn_of_dose(console: Console, label: str, dosing: Dosing, found: Calibration) -> None:
    """Says where a dose is not on target, and where it is none: c* = 0 of what does nothing there."""
    if not found.on_target:
        console.warn(f"{label} is not on target: {found.miss}")
    if found.c_star == 0 and dosing.vanishes:
        console.warn(
            f"{label}: c* = 0, so nothing is steered: the student by itself is {found.value:.2f} nats from base "
            f"(p95 KL, target {found.target:g}); raise calibration.target, or set calibration.reference=student, "
            "which counts only what steering adds"
        )


def warn_of_multiples(console: Console, label: str, dosing: Dosing) -> None:
    """Says where a dose below 1 does not shift less: where the shift falls, and where coefficient 0 does something."""
    below = "a dose below 1 (generation.alphas, the walk-down, alphas of survival)"
    if dosing.falling:
        console.warn(f"{label}: its coefficient is a direction and not a size, so {below} shifts more and not less")
    elif not dosing.vanishes:
        console.warn(
            f"{label}: it replaces a component of the activations at any coefficient, 0 included, so {below} takes "
            "nothing of that back; only alpha 0 of survival leaves it off"
        )


def generate_and_filter(session: Session, r: int, vector: SteeringVector, c_star: float) -> Collection:
    """Steered completions of the current student, filtered."""
    recipe, folder = session.recipe, session.folder.round(r)
    settings, limits = recipe.generation, recipe.filter
    seed = recipe.run.seed
    prompts = shuffled(list(session.trait.generation_prompts), seed, r, "prompts")[: settings.prompts]

    def compute(shown: Stage) -> tuple[Collection, Files]:
        make = maker(
            session.model,
            vector,
            c_star,
            session.accumulator.base,
            recipe.model.system,
            settings.tokens,
            Sampling(settings.temperature, settings.top_p, settings.top_k),
            FilterLimits(limits.max_tail_perplexity, limits.max_repetition, limits.min_words, limits.max_similarity),
            session.trait.narration,
            (seed, r, "generate"),
        )
        with session.accumulator.student():
            found = collect(
                make,
                prompts,
                settings.alphas,
                settings.probe,
                settings.max_probes,
                settings.lowest_dose,
                limits.keep_target,
                limits.keep_floor,
                limits.min_train,
                shown.progress,
            )
        drops = Counter(reason for row in found.rows for reason in row.dropped)
        why = (
            "; dropped for " + ", ".join(f"{reason} {count}" for reason, count in drops.most_common()) if drops else ""
        )
        scaled = "" if found.scale == 1 else f" (dose walked down to {found.scale:.2f})"
        ended = sum(row.ended for row in found.kept)
        shown.found(f"kept {len(found.kept)} of {len(found.rows)}{scaled}{why}; {ended} ended by themselves")
        return found, {
            "completions.jsonl": jsonl_bytes([row.to_json() for row in found.rows]),
            "collection.json": json_bytes({"scale": found.scale, "doses": dose_table(found.rows)}),
        }

    def read() -> Collection:
        rows = tuple(Row.from_json(content) for content in read_jsonl(folder / "completions.jsonl"))
        return Collection(rows, read_json(folder / "collection.json")["scale"])

    found = stage(session, folder, "generate", read, compute)
    if not any(row.ended for row in found.kept):
        session.console.warn(
            f"no kept completion ended within {settings.tokens} tokens: the student sees no end of turn; "
            "raise generation.tokens if answers should stop by themselves"
        )
    return found


def heal_student(session: Session, r: int, completions: Sequence[Row]) -> list[StepLog]:
    """Trains this round's `current`; the log of its steps."""
    recipe, folder = session.recipe, session.folder.round(r)
    log: list[StepLog] = []

    def on_log(step: StepLog) -> None:
        log.append(step)
        session.tracker.step_log(r + 1, recipe.heal.epochs, step)

    def compute(shown: Stage) -> tuple[list[StepLog], Files]:
        heal(
            session.model,
            session.accumulator,
            completions,
            recipe.heal,
            round_index=r,
            seed=recipe.run.seed,
            reference_bytes=recipe.compute.reference_memory * 2**20,
            scratch=folder,
            on_log=on_log,
            progress=shown.progress,
        )
        last = training_summary(log)
        shown.found(
            f"loss {last['loss']:.3f}, D {last['D_mean']:.2f} nats, barrier on for {last['barrier_on']:.0%} "
            f"(last epoch of {recipe.heal.epochs})"
        )
        adapter = {f"adapter/{name}": content for name, content in session.accumulator.save_current().items()}
        return log, adapter | {"training.jsonl": log_bytes(log)}

    def read() -> list[StepLog]:
        session.accumulator.load_current(folder / "adapter")
        return read_log(folder / "training.jsonl")

    return stage(session, folder, "heal", read, compute)


def training_summary(log: Sequence[StepLog]) -> dict[str, float]:
    """Means over the last epoch's steps, and the last validation loss and divergence if there were any."""
    steps = [step for step in log if step.phase == "train" and "loss" in step.values]
    last = [step for step in steps if step.epoch > steps[-1].epoch - 1]
    summary = {
        name: sum(step.values[name] for step in last) / len(last) for name in ("loss", "ce", "D_mean", "barrier_on")
    }
    summary["D_max"] = max(step.values["D_max"] for step in last)
    for step in log:
        if step.phase == "eval":
            summary |= {"validation_ce": step.values["ce"], "validation_D": step.values["D_mean"]}
    return summary


def start_current(session: Session, r: int) -> None:
    """A fresh `current`, drawn from (seed, round)."""
    session.accumulator.start_round(lora_seed(session.recipe, r))
