"""Whether a run is worth starting, measured piece by piece on the base."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace

from heal.config import Recipe
from heal.console import Console, counted
from heal.environment import notices_ignored
from heal.evaluation.evaluate import evaluate
from heal.evaluation.results import headline
from heal.evaluation.subject import Subject
from heal.evaluation.vignettes import read_vignettes
from heal.models.language_model import LanguageModel
from heal.places.place import Steered
from heal.places.trial import Outcome, Plan, Trial, answers_read, fit_all, prompts_of
from heal.records import json_bytes
from heal.run.files import Files
from heal.steps.measure import setup_of
from heal.studies.check.cost import Cost, measured
from heal.studies.check.endings import Endings, endings
from heal.studies.check.read import Separation, separations
from heal.studies.check.remarks import Remark, remarks
from heal.trait import Trait

FILE = "check.json"


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        model, trait, recipe: what was asked for.
        target: p95 KL of every dose, nats.
        notices: on the model's chats, beyond its contract, which holds.
        separations: of each readout of the trait, the persona log-ratio first.
        steered: every method in every band, the recipe's place first.
        endings: of base's answers.
        cost: of a run.
        remarks: what is amiss, what makes a run pointless first.
    """

    model: str
    trait: str
    recipe: str
    target: float
    notices: tuple[str, ...]
    separations: tuple[Separation, ...]
    steered: tuple[Steered, ...]
    endings: Endings
    cost: Cost
    remarks: tuple[Remark, ...]

    @property
    def pointless(self) -> list[str]:
        """Why a run would be pointless; empty where it is worth starting."""
        return [remark.text for remark in self.remarks if remark.fatal]

    def files(self) -> Files:
        record = asdict(self)
        for entry, one in zip(record["steered"], self.steered, strict=True):
            entry["per_nat"] = asdict(one.per_nat)
        record["cost"] |= {"round": self.cost.round, "run": self.cost.run}
        return {FILE: json_bytes(record | {"worth_starting": not self.pointless})}


class Clock:
    """Seconds of a stretch of work, once it is over."""

    seconds = 0.0


@contextmanager
def clocked() -> Iterator[Clock]:
    """Times what is done inside."""
    clock, start = Clock(), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - start


def check(recipe: Recipe, model: LanguageModel, trait: Trait, plan: Plan, console: Console) -> Check:
    """Measures everything; the model carries adapters afterwards.

    Args:
        recipe: what a run would do.
        model: the base, without adapters.
        trait: without the prompts that do not fit.
        plan: how much is tried.
        console: told what is being done and what came out.

    Raises:
        UserError: too few prompts, a method that does not know this architecture.
        RoundError: activations that are not finite or do not say where to steer, or memory ran out.
    """
    asked = recipe.evaluation
    vignettes = read_vignettes(asked.vignettes, asked.vignette_count, asked.perspectives)
    setup = setup_of(recipe, model, nullcontext, trait, vignettes)
    prompts = prompts_of(recipe, trait, plan)
    answering = replace(setup, prompts=prompts.audit, tokens=recipe.generation.tokens)

    with console.step("base") as line, clocked() as stage:
        base = evaluate(Subject(setup, "base", nullcontext), line.progress)
        line.result(headline(base))
    with console.step("personas") as line:
        read = separations(recipe, setup, base.answers, line.progress)
        line.result("; ".join(f"{one.signal} {one.apart:+.3f} between the personas" for one in read))
    with console.step("answers") as line:
        ends, plain = endings(answering, line.progress)
        line.result(f"{ends.within:.0%} of {counted(ends.n, 'answer')} ended within {ends.budget} tokens")
    with console.step("extract") as line, clocked() as extracting:
        vectors = fit_all(recipe.steer, model, trait, plan, line.progress)
        line.result(f"{counted(len(vectors), 'vector')} from {plan.pairs} pairs in one pass")

    trial = Trial(recipe, answering, plan, prompts, answers_read(Subject(answering, "base", nullcontext), plain))
    outcomes: list[Outcome] = []
    dosing = path_steps = reading = 0.0
    for place, vector in vectors.items():
        with console.step("steer") as line:
            with clocked() as calibrating:
                calibration = trial.dose(vector, line.progress)
            outcomes.append(trial.answered(place, vector, calibration))
            with clocked() as scoring:
                answers_read(Subject(answering, "steered", nullcontext), outcomes[-1].stage.answers)
            steered = trial.judged(outcomes[-1], outcomes[0])
            line.result(
                f"{place.words}: c* {steered.c_star:.3g}, {steered.kl:.2f} nats, trait {steered.shift:+.3f} over base"
            )
        dosing, reading = dosing + calibrating.seconds, reading + scoring.seconds
        path_steps += calibration.passes * plan.tokens
    with console.step("cost") as line:
        read_blocks = 1 + max(block for place in vectors for block in place.blocks)
        with notices_ignored():
            cost = measured(
                model,
                recipe,
                trait,
                outcomes[0].stage.answers,
                prompt=extracting.seconds / (2 * plan.pairs) * (1 + outcomes[0].place.blocks[-1]) / read_blocks,
                path_step=dosing / path_steps,
                path_rows=recipe.calibration.candidates * len(prompts.calibration),
                stage=stage.seconds,
                score=reading / (len(outcomes) * len(prompts.audit)),
            )
        line.result(f"{cost.pieces.tokens_per_second:.0f} tokens/s decoded, {cost.pieces.heal:.2f} s a healing step")
    tried = [trial.judged(outcome, outcomes[0]) for outcome in outcomes]
    return Check(
        recipe.model.name,
        trait.name,
        recipe.recipe,
        recipe.calibration.target,
        model.notices,
        tuple(read),
        tuple(tried),
        ends,
        cost,
        tuple(remarks(read, tried, ends, cost)),
    )
