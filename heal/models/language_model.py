"""One causal language model as seen by the rest of heal: blocks, final hidden states, head, chat.

Shape suffixes: B rows, T positions, N positions of several rows pooled, D hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from heal.config import ModelConfig
from heal.models.architectures import blocks_of, decoder_of, logit_factor, window
from heal.models.batching import Batching, in_parts
from heal.models.chat import Chat, Turn
from heal.models.packing import Packed, Rows, forest, pack, tree_nodes
from heal.models.spread import Spread

_FILLED = 0.6  # fraction of a batch's longest row that a row must fill
_PAIRS = 4  # pairs in masked attention that cost as much as one token, per unit of hidden size
# Tensors over the vocabulary that a loss or a KL holds at once. On a CPU, where it goes over blocks of rows, two logits
# and casts or a block's; elsewhere all temporaries are as large.
_HEAD_COPIES, _HEAD_COPIES_GPU = 3, 11


@dataclass
class LanguageModel:
    """A loaded model.

    Attributes:
        model: the transformers model; adapters live inside its linear layers.
        chat: its chat template.
        name: what the user asked for (`embedded`, a hub id, a folder).
        end_ids: token ids that end a turn.
        pad_id: token id of padding; masks are built from lengths, never from it.
        config: the model section of a recipe that it was loaded by, and can be loaded by again.
        batching: how many rows and tokens go through the model per pass.
        shares: whether rows that begin alike may share a pass (every layer takes a mask).
        pads: whether rows of different lengths may be decoded side by side, padded on the left.
        records: whether steps of decoding are recorded as a CUDA graph (heal/models/recorded.py).
        thinking: token budget of the thought before an answer; 0: the model answers at once.
        notices: what loading it found that its user should know, a line each.
        spread: how its blocks are spread over processes; None: this process holds all of it.
    """

    model: PreTrainedModel
    chat: Chat
    name: str
    end_ids: frozenset[int]
    pad_id: int
    config: ModelConfig
    batching: Batching = field(default_factory=Batching)
    shares: bool = True
    pads: bool = True
    records: bool = False
    thinking: int = 0
    notices: tuple[str, ...] = ()
    spread: Spread | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def fits_passes(self) -> bool:
        """Whether training cuts its steps into passes that fit the device.

        Not on a CPU, where that would change the last bits of a run, nor of a spread base: the others are in the pass.
        """
        return self.device.type == "cuda" and self.spread is None

    @property
    def decoder(self) -> nn.Module:
        """The stack of blocks with embedding and final norm."""
        return decoder_of(self.model)

    @property
    def blocks(self) -> nn.ModuleList:
        return blocks_of(self.model)

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def longest_shared(self) -> int:
        """Longest row that may be part of a prefix tree, whose mask has no sliding window."""
        if not self.shares:
            return 0
        shortest = window(self.model)
        return self.context if shortest is None else min(self.context, shortest)

    def longest_prompt(self, system: str, user: str, earlier: Sequence[Turn] = ()) -> int:
        """Tokens of the longest prompt in a chat: with its thought left out, or around a thought without tokens."""
        longest = len(self.chat.ids(system, user, earlier=earlier))
        if not self.thinking:
            return longest
        after = self.chat.plain_ids(self.chat.after_thought)
        return max(longest, len(self.chat.open_ids(system, user, earlier)) + len(after))

    def plan(self, rows: Rows, budget: int) -> list[list[list[int]]]:
        """Forward passes over `rows`, each a list of prefix trees, each a list of row indices.

        Args:
            rows: token ids; none may be empty.
            budget: tokens of a pass, padding included.
        """
        trees = self.trees(rows, budget)
        return [
            [trees[index] for index in batch]
            for batch in token_batches([tree_nodes(rows, tree) for tree in trees], budget)
        ]

    def trees(self, rows: Rows, most: float = math.inf) -> list[list[int]]:
        """Groups of `rows` (indices) that share a prefix tree, of at most so many tokens."""
        return forest(rows, self.longest_shared, _PAIRS * self.model.config.get_text_config().hidden_size, most)

    def pack(self, rows: Rows, trees: Sequence[Sequence[int]]) -> Packed:
        """One of the passes of `plan`."""
        return pack(rows, trees, self.pad_id, self.device)

    def hidden_states(self, packed: Packed) -> Tensor:
        """Final hidden states of a pass, `[B * N, D]`; `packed.nodes` maps them to rows."""
        return self.decoder(**packed.inputs(self.model.dtype), use_cache=False).last_hidden_state.flatten(0, 1)

    @property
    def softcap(self) -> float | None:
        """Gemma 2's soft cap on the logits, if the model has one."""
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    @property
    def logit_factor(self) -> float:
        """What the head's output is multiplied by before any soft cap (Granite, Cohere, Falcon-H1); else 1."""
        return logit_factor(self.model)

    def logits(self, h_ND: Tensor) -> Tensor:
        """Float32 logits `[N, V]` of final hidden states `[N, D]` (float64 where the model is)."""
        logits_NV = self.model.get_output_embeddings()(h_ND.to(self.model.dtype))
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        if self.logit_factor != 1:
            logits_NV = logits_NV * self.logit_factor
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV

    def softcap_slope(self, logits_NV: Tensor) -> Tensor | None:
        """Derivative of the soft cap at the logits that `logits` returned; None without a cap."""
        if self.softcap is None:
            return None
        return 1 - (logits_NV / self.softcap).square()  # d cap tanh(x / cap) / dx = 1 - tanh^2

    def through_head(self, grad_NV: Tensor) -> Tensor:
        """Gradient `[N, D]` in the final hidden states, given that in the logits before any soft cap, `[N, V]`."""
        weight_VD = self.model.get_output_embeddings().weight
        grad_ND = (grad_NV.to(weight_VD.dtype) @ weight_VD).to(grad_NV.dtype)
        return grad_ND if self.logit_factor == 1 else grad_ND * self.logit_factor

    @property
    def head_positions(self) -> int:
        """Number of positions whose logits and reference logits fit `batching.head_bytes`."""
        return max(1, self.batching.head_bytes // self._position_bytes)

    def head_bytes(self, positions: int) -> int:
        """Bytes over the vocabulary that a loss over so many positions holds at once."""
        return min(positions, self.head_positions) * self._position_bytes

    @property
    def _position_bytes(self) -> int:
        copies = _HEAD_COPIES if self.device.type == "cpu" else _HEAD_COPIES_GPU
        return copies * 4 * int(self.model.get_output_embeddings().weight.shape[0])

    def over_positions(self, count: int, work: Callable[[slice], None]) -> None:
        """Applies `work` to as many of `count` positions at once as `head_positions`, fewer where memory runs out.

        Args:
            count: of positions.
            work: with their logits; must leave no trace when it fails.
        """
        start = 0
        while start < count:
            stop = min(start + self.head_positions, count)
            shrink = partial(self.batching.shrink_head, self.batching.head_bytes)
            in_parts(range(start, stop), lambda part: work(slice(part[0], part[-1] + 1)), shrink)
            start = stop

    def band(self, fractions: tuple[float, float]) -> list[int]:
        """Blocks whose output lies between two fractions of the depth; the nearest one where none does.

        The output of block l of L lies at depth (l + 1) / L.
        """
        count = len(self.blocks)
        low, high = fractions
        chosen = [layer for layer in range(count) if low - 1e-9 <= (layer + 1) / count <= high + 1e-9]
        middle = (low + high) / 2
        return chosen or [min(range(count), key=lambda layer: abs((layer + 1) / count - middle))]


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped by length, longest first, so that rows x longest row stays within `budget` tokens.

    A row much shorter than the longest of a batch begins a new batch, so that little padding is computed.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and lengths[index] >= _FILLED * longest and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
