"""The gated, frozen accumulator: `y = W x + c_history B_h A_h x + c_current B A x` (docs/method.md, Accumulator).

Finished rounds are stacked into one adapter, `history`, whose rank grows by r a round: folding is
concatenation, exact, without SVD and without touching `W`. `current` is the one trainable LoRA.

So that a long history costs nothing, `W + B_h A_h` is kept beside `W`, and the model computes with the one or
the other: pointers change, never values, so the base comes back bit for bit. A float32 student does so from its
first fold on; in 16 bits merged weights are rounded, so `merge` waits for a caller who knows what that costs
(heal/steps/merge.py). Every merge starts from the base's weights and the whole history: roundings never add up.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from heal.adapter_kinds import foldable
from heal.environment import notices_ignored
from heal.errors import UserError
from heal.memory import LESS, memory_told
from heal.models.adapted import adapted_linears
from heal.models.language_model import LanguageModel
from heal.parallel import by_first

HISTORY, CURRENT, SAVED = "history", "current", "default"
# Keys of adapter_config.json that are written even where they are PEFT's defaults.
_ALWAYS = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")


class Accumulator:
    """History and current round of one language model.

    Attributes:
        language_model: the model that it is inside of.
        peft_model: the base with both adapters inside.
        rounds: how many have been folded.
        history_rank: rank of the history; 0 before the first fold.
        merges: whether every fold merges at once (float32).
        rounds_merged: whether merged weights would be rounded to 16 bits, so that `merge` has to be called.
        coverage: what LoRA covers of the linear layers of the blocks.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        rank: int,
        alpha: int,
        layers: list[int],
        kind: str = "default",
        merge: bool = True,
    ):
        """Puts an untrained `current` on every linear layer of the given blocks (B = 0: it changes nothing).

        Args:
            language_model: the base.
            rank, alpha: of a round's LoRA.
            layers: blocks that carry it.
            kind: of adapter, a key of ADAPTER_KINDS.
            merge: keep merged weights of the history beside the base's.

        Raises:
            UserError: no such kind, or one that cannot be folded; no linear layer to put it on, or peft put it on
                others.
        """
        self._targets, self.coverage = adapted_linears(language_model, layers)
        self._name = language_model.name
        self._rank, self._alpha = rank, alpha
        self._init = foldable(kind).initial
        self.language_model = language_model
        self.rounds = self.history_rank = 0
        self._gates = 1.0, 1.0
        self._weights: dict[str, tuple[Tensor, Tensor]] = {}  # by layer: the base's and the merged one
        self.peft_model: PeftModel = get_peft_model(
            language_model.model, self._config(rank, alpha), adapter_name=CURRENT
        )
        if other := sorted({name for name, _ in self._layers()} ^ set(self._targets)):
            raise UserError(
                f"model.name={self._name}: peft put LoRA on other layers than were asked for ({len(other)} differ, "
                f"such as {other[0]}); this architecture is not supported"
            )
        dtypes = {layer.get_base_layer().weight.dtype for layer in self.current_layers()}
        bits = [torch.finfo(dtype).bits if dtype.is_floating_point else 0 for dtype in dtypes]
        merge = merge and language_model.spread is None  # nobody holds a whole weight to merge into
        self.merges = merge and min(bits) >= 32
        self.rounds_merged = merge and 16 <= min(bits) < 32
        self._activate()

    def start_round(self, seed: int) -> None:
        """A fresh `current`: B = 0, A drawn from `seed` alone."""
        self._remove(CURRENT)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.peft_model.add_adapter(CURRENT, self._config(self._rank, self._alpha))
        self._activate()

    @memory_told("while folding a round", f"set compute.merge_history=false, or {LESS}")
    def fold(self, gate: float = 1.0) -> None:
        """Moves `current`, as it counts at `gate`, into the history; the student's logits stay the same.

        `current` is left at B = 0 until the next round starts.

        Raises:
            RoundError: memory ran out; merged weights take as much again as the layers that carry LoRA.
        """
        scales = {name: layer.lora_alpha[CURRENT] / layer.r[CURRENT] for name, layer in self._layers()}
        if len(set(scales.values())) != 1:
            raise ValueError(f"fold: layers differ in scale: {sorted(set(scales.values()))}")
        stacked: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in self._layers():
            a_RI, b_OR = layer.lora_A[CURRENT].weight.detach(), layer.lora_B[CURRENT].weight.detach()
            parts_A, parts_B = [a_RI.float()], [gate * scales[name] * b_OR.float()]
            if self.history_rank:
                parts_A.insert(0, layer.lora_A[HISTORY].weight.detach())
                parts_B.insert(0, layer.lora_B[HISTORY].weight.detach())
            stacked[name] = torch.cat(parts_A, 0), torch.cat(parts_B, 1)
        self._put_history(stacked, self.rounds + 1)

    def go_back(self, rounds: int) -> None:
        """Takes the history back to its first `rounds` rounds, at least one: folding was concatenation.

        `current` is left at B = 0.
        """
        if not 1 <= rounds <= self.rounds:
            raise ValueError(f"go_back: to round {rounds} of {self.rounds}")
        rank = rounds * self._rank
        first = {name: (a_RI[:rank].clone(), b_OR[:, :rank].clone()) for name, a_RI, b_OR in self.updates()}
        self._put_history(first, rounds)

    def _put_history(self, factors: dict[str, tuple[Tensor, Tensor]], rounds: int) -> None:
        """Makes A and B of each layer, scales included in B, the history of so many rounds; empties `current`."""
        if self.history_rank:
            self._remove(HISTORY)
        # alpha = rank: the scale is 1, because each round's own scale is inside its B.
        rank = rounds * self._rank
        self.peft_model.add_adapter(HISTORY, self._config(rank, rank))
        self.history_rank, self.rounds = rank, rounds
        with torch.no_grad():
            for name, layer in self._layers():
                layer.lora_A[HISTORY].weight.copy_(factors[name][0])
                layer.lora_B[HISTORY].weight.copy_(factors[name][1])
                layer.lora_B[CURRENT].weight.zero_()
        self._unmerge()  # what was merged lacks this round
        if self.merges:
            self.merge()
        self._activate()

    @torch.no_grad()
    def merge(self, merged: bool = True) -> None:
        """Computes the student with `W + B_h A_h`, in the dtype of `W`, until the next fold; or, False, on factors."""
        if merged and not self._weights:
            weights: dict[str, tuple[Tensor, Tensor]] = {}
            for name, layer in self._layers():
                weight_OI = layer.get_base_layer().weight.data
                update_OI = layer.lora_B[HISTORY].weight @ layer.lora_A[HISTORY].weight
                weights[name] = weight_OI, (weight_OI + update_OI).to(weight_OI.dtype)
            self._weights = weights
        if not merged:
            self._unmerge()
        self._set_gates(*self._gates)

    @contextmanager
    def gates(self, history: float, current: float) -> Iterator[None]:
        """Sets `c_history` and `c_current` inside the context and puts back after it what was before.

        (0, 0) is the base, bit for bit. What adds nothing is not computed: an adapter with a gate of 0,
        a `current` whose B is 0, and a history at gate 1 where its merged weights are at hand. For
        inference: never change gates between a forward pass and its backward.
        """
        empty = not any(bool(layer.lora_B[CURRENT].weight.any()) for layer in self.current_layers())
        before = self._gates
        try:
            self._set_gates(history, 0.0 if empty else current)
            yield
        finally:
            self._set_gates(*before)

    @contextmanager
    def saved(self, folder: Path) -> Iterator[PeftModel]:
        """The base with nothing but the adapter that is saved in `folder`, as peft loads it, inside the context."""
        with self.base():
            self.peft_model.load_adapter(str(folder), adapter_name=SAVED)
            try:
                for layer in self.current_layers():
                    layer.set_adapter([SAVED])
                yield self.peft_model
            finally:
                self._remove(SAVED)
                self.peft_model.active_adapter = CURRENT

    @contextmanager
    def on_adapters(self) -> Iterator[None]:
        """The same model without merged weights inside the context: the history as the adapter that it is."""
        weights = self._weights
        self._unmerge()
        try:
            self._set_gates(*self._gates)
            yield
        finally:
            self._weights = weights
            self._set_gates(*self._gates)

    def base(self) -> AbstractContextManager[None]:
        """The context in which the model is the round-0 original."""
        return self.gates(0.0, 0.0)

    def previous(self) -> AbstractContextManager[None]:
        """The context in which the model is the student before this round's LoRA."""
        return self.gates(1.0, 0.0)

    def student(self) -> AbstractContextManager[None]:
        """The context in which the model is the student."""
        return self.gates(1.0, 1.0)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters with gradients by name: those of `current` and no others."""
        return {name: p for name, p in self.peft_model.named_parameters() if p.requires_grad}

    def updates(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(module name, A `[R, I]`, B `[O, R]`) of the history, scales included in B, float32."""
        for name, layer in self._layers():
            yield name, layer.lora_A[HISTORY].weight.detach(), layer.lora_B[HISTORY].weight.detach()

    def current_layers(self) -> Iterator[LoraLayer]:
        """The layers that carry `current`."""
        for _, layer in self._layers():
            yield layer

    def save_current(self) -> dict[str, bytes]:
        """`current` as the files of a PEFT adapter folder; the same weights give the same bytes."""
        state = get_peft_model_state_dict(self.peft_model, adapter_name=CURRENT)
        tensors = {name: state[name].detach().float().cpu().contiguous() for name in sorted(state)}
        return adapter_files(tensors, self._rank, self._alpha, self._targets, self._name)

    def load_current(self, folder: Path) -> None:
        """Puts a saved round's adapter into `current`.

        Raises:
            UserError: the file is not an adapter, or does not fit this model and rank.
        """
        path = folder / "adapter_model.safetensors"
        try:
            state = by_first(lambda: load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable adapter ({' '.join(str(error).split())})") from error
        own = get_peft_model_state_dict(self.peft_model, adapter_name=CURRENT)
        if {name: t.shape for name, t in state.items()} != {name: t.shape for name, t in own.items()}:
            raise UserError(f"{path}: its weights do not fit this model, rank and set of layers")
        set_peft_model_state_dict(self.peft_model, state, adapter_name=CURRENT)

    def _config(self, rank: int, alpha: int) -> LoraConfig:
        return LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules=self._targets,
            init_lora_weights=self._init,
            task_type="CAUSAL_LM",
        )

    def _layers(self) -> Iterator[tuple[str, LoraLayer]]:
        for name, module in self.peft_model.base_model.model.named_modules():
            if isinstance(module, LoraLayer):
                yield name, module

    def _remove(self, adapter: str) -> None:
        with notices_ignored():  # peft says which adapter is active now: `_activate` sets it
            self.peft_model.delete_adapter(adapter)

    def _activate(self) -> None:
        """The student, ready to be trained: peft changes what is active and trainable behind one's back."""
        self.peft_model.active_adapter = CURRENT
        self._set_gates(1.0, 1.0)
        assert all(f".{CURRENT}." in name for name in self.trainable())

    def _set_gates(self, history: float, current: float) -> None:
        self._gates = history, current
        merged = bool(self._weights) and history == 1.0
        active = []
        if self.history_rank and history and not merged:
            active.append(HISTORY)
        if current:
            active.append(CURRENT)
        for name, layer in self._layers():
            layer.set_adapter(active)
            for adapter in layer.lora_A:  # set_adapter decides what is trainable, too
                for part in (layer.lora_A, layer.lora_B):
                    part[adapter].weight.requires_grad_(adapter == CURRENT)
            if self.history_rank:
                layer.set_scale(HISTORY, history)
            layer.set_scale(CURRENT, current)
            if self._weights:
                layer.get_base_layer().weight.data = self._weights[name][merged]

    def _unmerge(self) -> None:
        for name, layer in self._layers() if self._weights else ():
            layer.get_base_layer().weight.data = self._weights[name][0]
        self._weights = {}


def linear_names(language_model: LanguageModel, layers: list[int]) -> list[str]:
    """Full names of the linear layers inside the given blocks of the text decoder that carry LoRA."""
    return adapted_linears(language_model, layers)[0]


def adapter_files(
    tensors: dict[str, Tensor],
    rank: int,
    alpha: int,
    targets: list[str],
    base: str,
    revision: str | None = None,
    lora_bias: bool = False,
) -> dict[str, bytes]:
    """The two files of a PEFT LoRA folder under the default adapter name, byte for byte reproducible.

    The configuration says what differs from PEFT's defaults and what servers ask for; older versions refuse keys that
    they do not know.

    Args:
        tensors: by the names that PEFT gives them.
        rank, alpha: of every layer.
        targets: names of the layers in the model.
        base: what the base is loaded from.
        revision: of the base on the hub.
        lora_bias: whether each B has a bias among `tensors`.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        lora_bias=lora_bias,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=revision,
        inference_mode=True,
    ).to_dict() | {"target_modules": sorted(targets)}
    defaults = LoraConfig().to_dict()
    said = {key: value for key, value in config.items() if key in _ALWAYS or value != defaults[key]}
    text = json.dumps(said, indent=2, sort_keys=True)
    return {"adapter_config.json": text.encode(), "adapter_model.safetensors": save(tensors, metadata={"format": "pt"})}
