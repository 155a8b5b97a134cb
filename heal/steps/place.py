"""Place: the blocks, and on request the method, that the run steers with, where the recipe leaves them to be chosen."""

from dataclasses import dataclass, replace

from heal.config import Recipe, SteerConfig
from heal.dose.find import Prompts
from heal.evaluation.subject import Setup, Subject
from heal.places.place import BAND, CENTRES, METHOD, Place, Placed, bands_around, choose, place_rows, table
from heal.places.trial import Plan, Trial, answers_read, fit_all, prompts_of
from heal.progress import Progress
from heal.run.session import Session
from heal.run.step import Step
from heal.steering.methods import ORDINARY
from heal.steps.baseline import Baseline, unreadable

PAIRS, PROMPTS, TOKENS, ANSWERS = 16, 4, 12, 12  # at most: of the extraction, a dose, and the answers that judge it
ANSWER_TOKENS = 40  # of each of these answers, at most


def steer_settings(session: Session, baseline: Baseline) -> SteerConfig:
    """The recipe's `steer` section with what the run chose, or chooses now, where that is `auto`."""
    recipe = session.recipe
    if not recipe.steer.open:
        return recipe.steer
    setup = baseline.examination.setup
    placed = session.run(ChoosePlace(setup, recipe, unreadable(baseline)), session.folder.place)
    for line in table(placed.tried):
        session.console.say(f"  {line}")
    session.tracker.table("places", place_rows(placed))
    return replace(recipe.steer, method=placed.place.method, band=placed.place.band)


@dataclass(frozen=True)
class ChoosePlace(Step[Placed]):
    """Steers base at several places, on prompts that no evaluation uses, and takes the best beyond noise.

    Attributes:
        setup: of the run's stages.
        unreadable: why the trait cannot be read on the model; empty where it can.
    """

    setup: Setup
    recipe: Recipe
    unreadable: str

    name = "place"
    load = staticmethod(Placed.load)

    def compute(self, progress: Progress) -> Placed:
        steer = self.recipe.steer
        method, band = steer.method or METHOD, steer.band or BAND
        if self.unreadable:
            blocks = tuple(self.setup.language_model.band(band))
            return Placed(Place(method, band, blocks), f"the trait cannot be read on this model ({self.unreadable})")
        placed = self._best((method,), bands_around(CENTRES, band) if steer.band is None else (band,), progress)
        if steer.method is not None:
            return placed
        methods = tuple(dict.fromkeys((method, *ORDINARY)))
        of_methods = self._best(methods, (placed.place.band,), progress)
        return replace(of_methods, tried=(*placed.tried, *of_methods.tried[1:]))

    def _best(self, methods: tuple[str, ...], bands: tuple[tuple[float, float], ...], progress: Progress) -> Placed:
        """The best of the methods and bands, of which the first are the place that the others are held against."""
        recipe, setup = self.recipe, self.setup
        trait, there = setup.trait, len(setup.trait.generation_prompts)
        prompts = min(PROMPTS, there // 3)
        answers = min(ANSWERS, there - prompts)
        plan = Plan(methods, bands, min(PAIRS, recipe.steer.pairs), prompts, TOKENS, answers)
        drawn: Prompts = prompts_of(recipe, trait, plan)
        setup = replace(setup, prompts=drawn.audit, tokens=min(ANSWER_TOKENS, recipe.generation.tokens))
        with setup.base():
            vectors = fit_all(recipe.steer, setup.language_model, trait, plan)
        plain = Subject(setup, "base", setup.base)
        trial = Trial(recipe, setup, plan, drawn, answers_read(plain, plain.answer()))
        outcomes = []
        for place, vector in vectors.items():
            outcomes.append(trial.answered(place, vector, trial.dose(vector)))
            progress(len(outcomes), len(vectors))
        return choose([trial.judged(outcome, outcomes[0], max(1, len(outcomes) - 1)) for outcome in outcomes])

    def finding(self, artifact: Placed) -> str:
        return f"{artifact.place.words}: {artifact.why}"
