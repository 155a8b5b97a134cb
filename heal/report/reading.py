"""What a reader compares on one held-out prompt: base, prompted, steered, and the students of the rounds.

Each answer says what the filter of the run's completions would drop it for, and the prompts whose answers were damaged
most come first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from heal.evaluation.signal import known
from heal.generation.filters import Candidate, FilterLimits, verdicts
from heal.generation.relevance import beginning
from heal.generation.rivals import rivals
from heal.report import numbers
from heal.report.results import Answer, Results, Round

ROOM = 900_000  # bytes of the answers in a page, beyond which the least damaged prompts are left out
_MARKUP = 400  # bytes around an answer


@dataclass(frozen=True)
class Said:
    """An answer, and what it would be dropped for; `stage` is its heading."""

    stage: str
    kind: str
    answer: Answer
    dropped: tuple[str, ...]

    @property
    def tail_perplexity(self) -> float:
        return self.answer.signals.get("tail_perplexity", math.nan)


@dataclass(frozen=True)
class Course:
    """What became of one prompt in a round: the steered answer, where that stage was measured, and the healed one."""

    number: int
    said: tuple[Said, ...]

    @property
    def healed(self) -> Said:
        return self.said[-1]


@dataclass(frozen=True)
class Item:
    """One held-out prompt.

    Attributes:
        prompt: the user message.
        beside: base, prompted, steered, the best round and the last one, as far as there are such answers.
        courses: every round.
        damage: what orders the prompts, larger is worse: reasons to drop the best or the last round's answer that
            base's answer does not have, then the logarithm of its tail perplexity over base's.
    """

    prompt: str
    beside: tuple[Said, ...]
    courses: tuple[Course, ...]
    damage: tuple[int, float]

    @property
    def summary(self) -> str:
        """The rounds whose answer would be dropped, and why: `rounds 3 to 5 (repetition), round 8 (off prompt)`."""
        parts = []
        for reasons, group in groupby(self.courses, key=lambda course: course.healed.dropped):
            stretch = [course.number for course in group]
            parts += [f"{numbers.of_rounds(stretch)} ({', '.join(reasons)})"] * bool(reasons)
        return ", ".join(parts)


@dataclass(frozen=True)
class Reading:
    """The prompts of a page, the most damaged first, and how many more there are."""

    items: tuple[Item, ...]
    left_out: int


def reading(results: Results, room: int = ROOM) -> Reading:
    """Every held-out prompt that fits into `room` bytes, the most damaged first."""
    base = _judged(results, results.shown.answers.get("base", []), results.shown)
    prompted = _judged(results, results.prompted_answers, results.shown)
    rounds = [(finished, _said_in(results, finished)) for finished in results.rounds]
    items = [_item(results, place, base, prompted, rounds) for place in range(len(base))]
    items.sort(key=lambda item: item.damage, reverse=True)
    shown: list[Item] = []
    for item in items:
        room -= _size(item)
        if room < 0 and shown:
            break
        shown.append(item)
    return Reading(tuple(shown), len(items) - len(shown))


def notes(answer: Answer) -> Markup:
    """What stands under an answer: trait, tail perplexity and relevance; of a fraction only what is bad."""
    texts = []
    for signal in known(answer.signals):
        value, is_trait = answer.signals[signal.name], signal.role == "trait"
        if not (is_trait or signal.headline or signal.name == "relevance"):
            continue
        if signal.unit == "share":
            bad = 0 if signal.better == "higher" else 1
            texts += [Markup("{}{}").format("" if bad else "not ", signal.term)] * (value == bad)
        else:
            number = numbers.number(value, signal.digits, is_trait, "no tokens to score")
            texts.append(Markup("{} {}").format(signal.term, number))
    return Markup(", ").join(texts)


# What was said at a stage, in the order of the prompts, with the reasons to drop each answer.
_Judged = list[tuple[Answer, tuple[str, ...]]]


def _judged(results: Results, answers: Sequence[Answer], finished: Round) -> _Judged:
    """The answers of a stage, as the filter of a round's completions would judge them."""
    least = finished.collection.off_prompt_below or 0.0
    against = rivals([answer.prompt for answer in answers])
    scored = beginning(results.recipe.evaluation.tokens)
    candidates = [
        Candidate(
            answer.text,
            finite=True,
            tail_perplexity=answer.signals.get("tail_perplexity", math.nan),
            looped=None if math.isnan(loops := answer.signals.get("repetition_share", math.nan)) else loops == 1,
            unclosed=answer.signals.get("unclosed_share") == 1,
            off_prompt=least > 0 and _share(answer, len(others), scored) < least,
        )
        for answer, others in zip(answers, against, strict=True)
    ]
    dropped = verdicts(candidates, FilterLimits.of(results.recipe.filter), results.facts.trait.narration)
    return [(answer, tuple(reasons)) for answer, reasons in zip(answers, dropped, strict=True)]


def _share(answer: Answer, others: int, scored: int) -> float:
    """How much of the information that names its prompt an answer carries (`Relevance.share`); NaN: not measured."""
    per_token, tokens = (answer.signals.get(name, math.nan) for name in ("relevance", "answer_tokens"))
    return per_token * min(tokens, scored) / math.log(1 + others) if others else math.nan


def _said_in(results: Results, finished: Round) -> dict[str, _Judged]:
    return {
        stage: _judged(results, finished.answers[stage], finished)
        for stage in ("steered", "healed")
        if stage in finished.answers
    }


def _item(
    results: Results,
    place: int,
    base: _Judged,
    prompted: _Judged,
    rounds: Sequence[tuple[Round, dict[str, _Judged]]],
) -> Item:
    best, last = results.shown.number, results.last.number
    of_base = Said("base", "base", *base[place])
    courses = tuple(
        Course(
            finished.number,
            tuple(Said(f"{stage}, round {finished.number}", stage, *judged[place]) for stage, judged in said.items()),
        )
        for finished, said in rounds
    )
    by_number = {course.number: course for course in courses}
    beside = [of_base, *(Said("prompted", "prompted", *judged) for judged in prompted[place : place + 1])]
    beside += by_number[best].said[:-1]
    for number in dict.fromkeys((best, last)):
        names = [name for name, meant in (("best", results.best and best), ("last", last)) if number == meant]
        healed = by_number[number].healed
        beside.append(Said(f"round {number}, {' and '.join(names)}", "healed", healed.answer, healed.dropped))
    damage = max(_damage(by_number[number].healed, of_base) for number in (best, last))
    return Item(of_base.answer.prompt, tuple(beside), courses, damage)


def _damage(said: Said, base: Said) -> tuple[int, float]:
    new = len(set(said.dropped) - set(base.dropped))
    values = said.tail_perplexity, base.tail_perplexity
    measured = all(0 < value < math.inf for value in values)
    return new, math.log(values[0] / values[1]) if measured else 0.0


def _size(item: Item) -> int:
    """Bytes of the item's answers in the page, roughly."""
    every = [*item.beside, *(said for course in item.courses for said in course.said)]
    return sum(_MARKUP + numbers.size_of(said.answer.text) for said in every)
