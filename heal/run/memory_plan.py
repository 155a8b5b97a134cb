"""What each process of a run needs of its device's memory, said before its first round, and held against what is there.

Weights, LoRA and history are counted. What passes hold is measured on a GPU (heal/models/footprint.py) at a few tokens,
and taken at the sizes of the recipe's largest passes, which are known before (heal/run/work.py).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from heal import parallel
from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.console import counted
from heal.errors import UserError
from heal.healing.heal import checkpoint_blocks, left_as_it_was, less_to_train
from heal.healing.passes import Passes, fitted
from heal.memory import LESS, memory_told
from heal.models.footprint import Footprints, footprints
from heal.models.language_model import LanguageModel
from heal.models.packing import tree_nodes
from heal.run.work import Decoded, Work, work_of
from heal.trait import Trait

FITS = 0.9  # of the memory: what passes are cut down to, because allocators lose some between their blocks
SURE = 1.25  # times the memory: what is refused, because the estimate may be a fifth too high
_SAMPLED = 4  # float32 tensors over the vocabulary that choosing the next tokens holds


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run needs of its device.

    Attributes:
        weights: of the base, in this process.
        lora: of the round's LoRA; so much again for each round of the history.
        history: of all rounds.
        merged: of the merged weights of the history.
        optimiser: AdamW's state.
        decoding, scoring: the most that such a pass holds, cache included.
        cache: of `decoding`, keys, values and states.
        healing: the most that a training pass holds.
        folding: the most that folding a round holds.
        rows, tokens, head, completions: the sizes of the passes; head, bytes over the vocabulary; completions trained.
        room: what the device has for all of it.
        references: of main memory, the reference's hidden states.
        spread: of the weights that all processes share, each of which holds a part.
        here: of them, the part that is in `weights`.
    """

    weights: int
    lora: int
    history: int
    merged: int
    optimiser: int
    decoding: int
    cache: int
    scoring: int
    healing: int
    folding: int
    rows: int
    tokens: int
    head: int
    completions: int
    room: int
    references: int
    spread: int = 0
    here: int = 0

    @property
    def standing(self) -> int:
        """What is there whatever is computed."""
        return self.weights + self.lora + self.history + self.merged

    @property
    def passes(self) -> dict[str, int]:
        """The most that each kind of work holds beside it."""
        healing = self.optimiser + self.healing
        return {"decoding": self.decoding, "scoring": self.scoring, "healing": healing, "folding": self.folding}

    @property
    def most(self) -> int:
        """The most that any of them holds."""
        return max(self.passes.values())

    @property
    def largest(self) -> str:
        """Which of them that is."""
        return max(self.passes, key=lambda name: self.passes[name])

    @property
    def need(self) -> int:
        """The most that is held at once."""
        return self.standing + self.most

    def line(self, where: str) -> str:
        """The plan in one line."""
        standing = {"weights": self.weights, "LoRA": self.lora, "history": self.history, "merged weights": self.merged}
        parts = ", ".join(f"{name} {size(held)}" for name, held in standing.items() if held)
        if self.spread:
            whole = size(self.weights - self.here)
            parts += f" (of the weights {whole} whole, and {size(self.here)} of the blocks' {size(self.spread)})"
        return (
            f"about {size(self.need)} of {size(self.room)} on {where}: {parts}; beside them decoding "
            f"{size(self.decoding)} ({self.rows} rows, cache {size(self.cache)}), scoring {size(self.scoring)} "
            f"({self.tokens} tokens), healing {size(self.optimiser + self.healing)} "
            f"({counted(self.completions, 'completion')} a pass, AdamW {size(self.optimiser)})"
        )

    def event(self) -> dict[str, Any]:
        """What is recorded of it."""
        return asdict(self) | {"need": self.need}


def size(held: float) -> str:
    """Bytes in the unit in which people read them."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if held >= factor:
            return f"{held / factor:.1f} {unit}"
    return f"{held / 2**10:.0f} KiB"


@dataclass(frozen=True)
class Planned:
    """The plan of a run, what there is to warn of, and the passes of training, where they were measured."""

    plan: MemoryPlan
    warnings: list[str]
    passes: Passes | None


def planned(recipe: Recipe, model: LanguageModel, accumulator: Accumulator, trait: Trait) -> Planned:
    """Plans a run; on a GPU `model.batching` shrinks to what fits, and says how many completions a pass trains.

    Raises:
        UserError: even the smallest passes do not fit; says which keys to change.
    """

    def checkpointed() -> None:
        if recipe.heal.gradient_checkpointing:
            checkpoint_blocks(model)

    with left_as_it_was(accumulator.peft_model), memory_told("while measuring what the passes of a run take"):
        taken = footprints(model, checkpointed)
    held = _held(model)
    need = Need(recipe, model, accumulator, work_of(recipe, model, trait), taken, held, _room(model.device, held))
    batching, step = model.batching, len(need.work.trained)
    completions = min(step, batching.completions or recipe.heal.batch_size)
    _refuse(need.at(1, 1, 1, 1 if model.fits_passes else completions), model)
    plan = asked = need.at(batching.rows, batching.tokens, batching.head_bytes, completions)
    warnings: list[str] = []
    passes: Passes | None = None
    if model.device.type == "cuda":  # on a CPU sizes follow a rule, so that a run repeats byte for byte
        plan = need.cut_down(asked)
        if plan != asked:
            batching.shrink_rows(plan.rows, 0)
            batching.shrink_tokens(plan.tokens, 0)
            batching.shrink_head(plan.head, 0)
            if batching.completions:
                batching.shrink_completions(plan.completions, 0)
            warnings.append(
                f"smaller passes, because {size(asked.need)} would be needed and {size(plan.room)} are there: "
                f"{asked.rows} -> {plan.rows} rows decoded side by side, {asked.tokens} -> {plan.tokens} tokens "
                f"scored, {size(asked.head)} -> {size(plan.head)} over the vocabulary, {asked.completions} -> "
                f"{plan.completions} completions trained"
            )
    if model.fits_passes and not batching.completions:
        most = need.largest_pass(plan)
        passes = parallel.by_first(
            lambda: fitted(model, accumulator, recipe.heal, need.work.typical, plan.completions, most)
        )
        batching.completions = passes.completions
        plan = need.at(plan.rows, plan.tokens, plan.head, passes.completions)
    if plan.need > plan.room:
        warnings.append(
            f"memory may run out while {plan.largest}: about {size(plan.need)} are needed and {size(plan.room)} are "
            f"there on {model.device}"
        )
    return Planned(plan, warnings, passes)


@dataclass(frozen=True)
class Need:
    """What a run needs, by the sizes of its passes.

    Attributes:
        held: bytes that the base and one round's LoRA hold.
        room: bytes that the device has for the run, these included; looked up once, since others take and free memory.
    """

    recipe: Recipe
    model: LanguageModel
    accumulator: Accumulator
    work: Work
    taken: Footprints
    held: int
    room: int

    def at(self, rows: int, tokens: int, head: int, completions: int) -> MemoryPlan:
        """The plan with passes of at most so many rows and tokens, bytes over the vocabulary, and completions."""
        model, rounds, taken = self.model, self.recipe.run.rounds, self.taken
        lora = sum(parameter.nbytes for parameter in self.accumulator.trainable().values())
        spread, here = (0, 0) if model.spread is None else (model.spread.blocks, model.spread.here)
        bases = [layer.get_base_layer().weight for layer in self.accumulator.current_layers()]
        merges = self.accumulator.merges or self.accumulator.rounds_merged
        width, itemsize = model.model.config.get_text_config().hidden_size, model.model.dtype.itemsize
        trained = self.work.trained[:completions]
        ids = [row.input_ids[:-1] for row in trained]  # the last token predicts nothing
        trees, nodes = _shape(ids, model.trees(ids))
        positions = sum(len(row.completion) for row in trained)
        references = min(self.work.references * width * itemsize, self.recipe.compute.reference_memory * 2**20)
        healing = max(
            taken.kept.bytes(trees, nodes) + min(head, model.head_bytes(positions)),
            taken.trained.bytes(trees, nodes),
            3 * lora,  # gradients, and AdamW's step
        )
        healing += positions * width * (2 * itemsize + 8)  # states of both sides, and their gradients
        scoring = [taken.scored.bytes(*shape) for ids in self.work.scored for shape in _shapes(model, ids, tokens)]
        decoding, cache = max(self._decoding(part, min(rows, part.rows)) for part in self.work.decoded)
        return MemoryPlan(
            weights=self.held - lora,
            lora=lora,
            history=rounds * lora,
            merged=sum(base.nbytes for base in bases) if merges else 0,
            optimiser=2 * lora,
            decoding=decoding,
            cache=cache,
            scoring=max(*scoring, min(head, model.head_bytes(self.work.references))),
            healing=healing + (references if model.device.type == "cpu" else 0),
            folding=rounds * lora + (8 * max(base.numel() for base in bases) if merges else 0),
            rows=rows,
            tokens=tokens,
            head=head,
            completions=completions,
            room=self.room,
            references=references,
            spread=spread,
            here=here,
        )

    def _decoding(self, part: Decoded, rows: int) -> tuple[int, int]:
        """The most that decoding so many rows holds, and its cache at the end."""
        taken, length = self.taken, part.prompt + part.tokens
        beginning = rows * (taken.cached_row + taken.cached_token * part.prompt)
        cache = rows * (taken.cached_row + taken.cached_token * length)
        vocabulary = self.model.model.get_output_embeddings().weight.shape[0]
        chosen = _SAMPLED * 4 * rows * vocabulary + taken.scored.bytes(rows, 1, length)
        return max(beginning + taken.scored.bytes(rows, part.rest, part.prompt), cache + chosen), cache

    def cut_down(self, plan: MemoryPlan) -> MemoryPlan:
        """The plan with its sizes halved until what they decide fits."""
        limit = FITS * plan.room - plan.standing
        rows, tokens, head, completions = plan.rows, plan.tokens, plan.head, plan.completions
        longest = max(len(row) for ids in self.work.scored for row in ids)
        while rows > 1 and self.at(rows, tokens, 1, completions).decoding > limit:
            rows //= 2
        while tokens > longest and self.at(rows, tokens, 1, completions).scoring > limit:
            tokens //= 2
        while (
            completions > 1
            and self.model.fits_passes
            and self.at(rows, tokens, 1, completions).passes["healing"] > limit
        ):
            completions //= 2
        if self.at(rows, tokens, 1, completions).most <= limit:
            while self.at(rows, tokens, head, completions).most > limit:
                head //= 2
        return self.at(rows, tokens, head, completions)

    def largest_pass(self, plan: MemoryPlan) -> int:
        """The completions of the largest training pass that fits, by doubling those of the plan up to a whole step."""
        completions, step = plan.completions, len(self.work.trained)
        while completions < step:
            larger = self.at(plan.rows, plan.tokens, plan.head, min(2 * completions, step))
            if larger.passes["healing"] > FITS * plan.room - plan.standing:
                break
            completions = larger.completions
        return completions


def _shapes(model: LanguageModel, ids: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, int]]:
    """Trees, and nodes of the largest one, of each pass over rows of token ids."""
    return [_shape(ids, trees) for trees in model.plan(ids, tokens)]


def _shape(ids: Sequence[Sequence[int]], trees: Sequence[Sequence[int]]) -> tuple[int, int]:
    return len(trees), max(tree_nodes(ids, tree) for tree in trees)


def _held(model: LanguageModel) -> int:
    """Bytes of a model's weights on its device, LoRA's included."""
    if model.device.type == "cuda":  # with what belongs to no parameter, such as the scales of 4 bits
        return int(torch.cuda.memory_allocated(model.device))
    elsewhere = 0 if model.spread is None else model.spread.blocks - model.spread.here
    return sum(tensor.nbytes for tensor in (*model.model.parameters(), *model.model.buffers())) - elsewhere


def _room(device: torch.device, held: int) -> int:
    """Bytes that the device has for a run of which it holds `held` already."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return psutil.virtual_memory().available // parallel.here() + held


def _refuse(smallest: MemoryPlan, model: LanguageModel) -> None:
    """UserError where even the smallest passes are sure not to fit."""
    there, device = smallest.room, model.device
    if device.type != "cuda":  # what others hold may be freed, or swapped
        there = (psutil.virtual_memory().total + psutil.swap_memory().total) // parallel.here()
    if smallest.need <= SURE * there:
        return
    what = "folding" if smallest.standing > there else smallest.largest
    advice = {
        "healing": less_to_train(model),
        "decoding": "lower generation.tokens and evaluation.tokens",
        "scoring": "lower generation.tokens",
        "folding": "set compute.merge_history=false, or lower heal.rank or run.rounds",
    }[what]
    raise UserError(
        f"model.name={model.name}: even the smallest passes do not fit the memory of {device}: about "
        f"{size(smallest.need)} are needed ({size(smallest.standing)} for weights and adapters, "
        f"{size(smallest.passes[what])} for {what}) and {size(there)} are there; {advice}, or {LESS}"
    )
