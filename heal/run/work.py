"""The largest passes that a recipe asks for, known before it runs: its longest prompts, full token budgets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heal import parallel
from heal.config import Recipe
from heal.evaluation.asking.choose import FIRST
from heal.evaluation.readouts.questions import APART, OPTIONS
from heal.healing.rows import TrainingRow
from heal.models.language_model import LanguageModel
from heal.models.packing import MIN_SHARED, shared
from heal.records import read_jsonl
from heal.steering.extract import contexts_of, contrast_rows
from heal.trait import Trait


@dataclass(frozen=True)
class Decoded:
    """Rows decoded side by side: how many, tokens of the longest prompt, those not read once for all, and budget."""

    rows: int
    prompt: int
    rest: int
    tokens: int


@dataclass(frozen=True)
class Work:
    """The largest passes of a run.

    Attributes:
        decoded: decoding, by what it is for.
        scored: rows of token ids that are scored or extracted from.
        trained: an optimiser step as this process trains it, of the longest rows.
        typical: the same of rows of middling length.
        references: completion tokens of a round, whose reference states are kept in main memory.
    """

    decoded: tuple[Decoded, ...]
    scored: tuple[tuple[tuple[int, ...], ...], ...]
    trained: tuple[TrainingRow, ...]
    typical: tuple[TrainingRow, ...]
    references: int


def per_process(rows: int) -> int:
    """The most of so many rows that one process has."""
    return -(-rows // parallel.size())


def work_of(recipe: Recipe, model: LanguageModel, trait: Trait) -> Work:
    """The largest passes that a recipe asks for."""
    system, chat = recipe.model.system, model.chat
    generation, calibration, evaluation = recipe.generation, recipe.calibration, recipe.evaluation

    def decoded(rows: int, systems: Sequence[str], prompts: Sequence[str], tokens: int) -> Decoded:
        longest = max(model.longest_prompt(system, prompt) for system in systems for prompt in prompts)
        rest, tokens = longest, tokens + model.thinking
        if longest + tokens <= model.longest_shared:
            ids = [chat.ids(systems[0], prompt) for prompt in prompts]
            common = min(shared(ids[0], other) for other in ids)
            rest = longest - common if common >= MIN_SHARED else longest
        return Decoded(rows, longest, max(1, rest), tokens)

    answers = per_process(max(len(generation.alphas) * generation.prompts, generation.keep))
    plain = sorted((chat.ids(system, prompt) for prompt in trait.generation_prompts), key=len, reverse=True)
    prompts = plain
    if generation.multi_turn:  # the longest after the longest, and an answer in between
        most = model.context - generation.tokens
        prompts = [[*prompt, *[0] * generation.tokens, *prompts[0]][:most] for prompt in prompts]
    doses = range(len(generation.alphas))
    completed = [
        (*prompt, *[dose] * (generation.tokens - 1)) for prompt in prompts[: generation.prompts] for dose in doses
    ]
    personas = [tuple(ids) for ids in contrast_rows(model, trait, contexts_of(trait, recipe.steer.pairs))]
    questions = [
        tuple(chat.ids(system, "\n".join([row["question"], *row["options"][first:], *row["options"][:first]])))
        for row in read_jsonl(APART)[:FIRST]
        for first in range(OPTIONS)
    ]
    step = per_process(min(recipe.heal.batch_size * recipe.heal.accumulation, len(completed)))
    middle = max(0, len(plain) - generation.prompts) // 2
    trained, typical = (_rows(some, len(doses), generation.tokens)[:step] for some in (prompts, plain[middle:]))
    completions = decoded(answers, [system], trait.generation_prompts, generation.tokens)
    if generation.multi_turn:
        completions = replace(completions, prompt=len(prompts[0]), rest=len(prompts[0]))
    return Work(
        decoded=(
            completions,
            decoded(
                per_process(calibration.prompts * calibration.candidates),
                [system],
                trait.generation_prompts,
                calibration.tokens,
            ),
            decoded(per_process(evaluation.prompts), [system], trait.heldout_prompts, evaluation.tokens),
            decoded(
                per_process(evaluation.prompts),
                [trait.positive, trait.negative],
                trait.heldout_prompts,
                evaluation.tokens,
            ),
        ),
        scored=(tuple(personas), tuple(questions), tuple(completed)),
        trained=trained,
        typical=typical,
        references=answers * generation.tokens,
    )


def _rows(prompts: Sequence[Sequence[int]], answers: int, tokens: int) -> tuple[TrainingRow, ...]:
    """Prompts with so many different answers to each, of as many tokens, which mean nothing."""
    pairs = [(prompt, token) for prompt in prompts for token in range(answers)]
    return tuple(
        TrainingRow([*prompt, *[token] * tokens], len(prompt), key) for key, (prompt, token) in enumerate(pairs)
    )
