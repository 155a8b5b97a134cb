"""General questions with four options: probability mass on the letters, and accuracy.

`p_ans_any` is the full-vocabulary probability of the option letters at the slot after a prefilled `Answer: (`, before
renormalising. Accuracy is read off the way of asking that was chosen for the model. docs/method.md, Forced choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heal.evaluation.signal import MASS, ForcedChoiceRule, Limit, Measured, Signal
from heal.records import read_jsonl

if TYPE_CHECKING:
    from heal.evaluation.asking.letters import Letters
    from heal.evaluation.asking.way import ForcedChoice, Item
    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Setup, Subject

DATA = Path(__file__).resolve().parents[2] / "data"
QUESTIONS, APART = DATA / "questions.jsonl", DATA / "questions_apart.jsonl"
OPTIONS = 4
SLOTS = 16  # questions, of those that are asked, whose letters are read for the mass
SCORABLE = 0.5  # mass on the letters under which an answer cannot be scored
CHOICE = "general questions"

P_ANS_ANY = Signal(
    MASS,
    unit="probability",
    title="p_ans_any",
    note="mean mass on valid answers",
    detail="mean probability mass on the option letters at the answer slot of the general questions; 1 is intact",
    role="coherence",
    better="higher",
    items="questions",
    limit=Limit(
        "min_p_ans_any",
        0.85,
        "coherence floor: mean mass on valid answers",
        kind="floor",
        words="p_ans_any {:.2f}",
        minimum=0,
        maximum=1,
    ),
    validity=ForcedChoiceRule(MASS),
    headline=True,
    order=1,
)
UNSCORABLE = Signal(
    "unscorable_share",
    unit="share",
    title="Unscorable",
    note="fraction of questions",
    detail=f"fraction of the general questions with less than {SCORABLE:g} of the mass on the option letters",
    role="coherence",
    better="lower",
    items="questions",
    digits=2,
    validity=ForcedChoiceRule(MASS),
    order=1,
)
ACCURACY = Signal(
    "accuracy",
    unit="share",
    title="Accuracy",
    note="general questions",
    detail=f"fraction of the general questions answered right; chance is {1 / OPTIONS:g}",
    role="coherence",
    better="higher",
    items="questions",
    digits=2,
    validity=ForcedChoiceRule(MASS, "question_informedness", CHOICE),
    limit=Limit(
        "max_accuracy_fall",
        0.05,
        "coherence floor: accuracy on general questions, below base's and beyond the noise of their difference",
        kind="floor",
        words="accuracy at most {:.2f}",
        over_base=True,
        beyond_noise=True,
        minimum=0,
        maximum=1,
    ),
    chance=1 / OPTIONS,
    order=1,
)
INFORMEDNESS = Signal(
    "question_informedness",
    unit="TPR - FPR",
    title="Informedness",
    note="general questions",
    detail="hits less false alarms of the letter chosen, averaged over the letters; 0 is chance",
    role="coherence",
    better="higher",
    items="questions",
    digits=2,
    validity=ForcedChoiceRule(MASS, "question_informedness", CHOICE),
    chance=0.0,
    aside=True,
)
SIGNALS = (P_ANS_ANY, UNSCORABLE, ACCURACY, INFORMEDNESS)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """One item a question; the mass of the first SLOTS alone, unless accuracy is read off these letters as well."""
    from heal.evaluation.asking.way import ask
    from heal.evaluation.stats import informedness

    setup = subject.setup
    items, asked = items_of(QUESTIONS, by_id=not setup.asking)[: setup.questions], choice(setup)
    by_letters = setup.way_of(asked) == letters().name
    slot = letters().ask(subject, items if by_letters else items[:SLOTS])
    assert slot.mass_N is not None
    scored = slot if by_letters else ask(asked, subject, items)
    chosen, right = scored.chosen(), [item.right for item in items]
    mass = slot.mass_N.tolist()
    return [
        P_ANS_ANY.measured(mass),
        UNSCORABLE.measured([float(of_letters < SCORABLE) for of_letters in mass]),
        ACCURACY.measured([float(option == answer) for option, answer in zip(chosen, right, strict=True)]),
        INFORMEDNESS.measured(informedness(chosen, right)),
    ]


def choice(setup: Setup) -> ForcedChoice:
    """The general questions as a forced choice."""
    from heal.evaluation.asking.letters import Letters
    from heal.evaluation.asking.way import ForcedChoice
    from heal.evaluation.asking.words import Words

    label, prefill = "words after 'The answer is: '", "The answer is: "
    ways = (
        Words(label, str, prefill, relative=True),
        Words(label, str, prefill),
        Letters("letters", OPTIONS, text, also=(1,)),
        letters(),
    )
    return ForcedChoice(CHOICE, {way.name: way for way in ways}, items_of(APART), letters().name, centred=False)


def letters() -> Letters:
    """Lettered options in one order: the slot of `p_ans_any`."""
    from heal.evaluation.asking.letters import Letters

    return Letters("letters", 1, text)


def items_of(path: Path, by_id: bool = False) -> tuple[Item, ...]:
    """The questions of a file, of whose beginning each part holds every field and level; or in the order of their ids.

    Runs that chose no way of asking began when the questions stood in the order of their ids.
    """
    from heal.evaluation.asking.way import Item

    rows = read_jsonl(path)
    if by_id:
        rows.sort(key=lambda row: row["id"])
    return tuple(Item(row["question"], tuple(row["options"]), row["answer"]) for row in rows)


def text(question: str, options: str) -> str:
    """The question, and its lettered options, one a line."""
    return f"{question}\n{options}"
