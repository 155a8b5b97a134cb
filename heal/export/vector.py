"""A steering vector at one dose as an ordinary PEFT LoRA: `h + c v` at every position, prompt included.

The last Linear of each steered block carries it, whose output is added directly to the residual stream:

- as a bias, `B = A = 0` and `lora_bias = c v`: the steering itself, up to rounding;
- as rank 1 without a bias, `B = c v` and `A x ~ 1` (heal/export/constant_gate.py): for engines that accept no bias.

Shape suffixes: N positions, I inputs, D hidden size, V vocabulary, T positions of a prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from heal.accumulator import adapter_files
from heal.config import ModelConfig
from heal.errors import UserError
from heal.evaluation.neutral import NeutralTexts
from heal.export.base import base_of
from heal.export.constant_gate import Gate, constant_gate, inputs_of
from heal.export.exportable import MAX_KL
from heal.export.factors import ExportError, Factors
from heal.export.folder import check_place, replaced, size, write_record
from heal.export.readable import save_tokenizer
from heal.export.residual import straight_writer
from heal.export.vector_card import Divergence, VectorFacts, vector_card
from heal.export.verify import check, check_factors, model_logits, room
from heal.models.agreement import Agreement, agreement
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.recipe import from_mapping
from heal.scoring import completion_states, token_divergences
from heal.steering.extract import contexts
from heal.steering.methods import additive
from heal.steering.vector import SteeringVector
from heal.yaml_text import read_yaml

CONTEXTS = 64  # embedded contexts that a rank-1 read-out is chosen on, beside half of the neutral texts
_NEUTRAL = 24
_PROBES = 4


@dataclass(frozen=True)
class VectorExport:
    """A finished export of a steering vector: its folder, its contents and measurements, its size in bytes."""

    path: Path
    facts: VectorFacts
    bytes: int


@dataclass(frozen=True)
class _HeldOut:
    """Neutral texts that nothing is fitted to: prompts and answers, as token ids."""

    prompts: list[list[int]]
    completions: list[list[int]]

    @property
    def rows(self) -> list[list[int]]:
        return [[*prompt, *ids] for prompt, ids in zip(self.prompts, self.completions, strict=True)]


def export_vector(
    vector: SteeringVector,
    language_model: LanguageModel,
    config: ModelConfig,
    path: Path,
    c: float | None = None,
    bias: bool = True,
    context_count: int = CONTEXTS,
    max_kl: float = MAX_KL,
    named: str | None = None,
) -> VectorExport:
    """Writes a float32 LoRA of rank 1 under the default adapter name to `path` and verifies it in plain peft.

    Args:
        vector: of a method that adds `c v`.
        language_model: its model, without adapters.
        config: how that model was loaded.
        path: the folder; an earlier export there is replaced once the new one is verified.
        c: the coefficient; None: the vector's `c_star`.
        bias: carry the shift as a bias, exactly; otherwise approximately, as rank 1 without a bias.
        context_count: embedded contexts that a rank-1 read-out is chosen on.
        max_kl: p95 of KL(steered || adapter), nats per token, above which the export is refused.
        named: what others load the base from; None: what the model was loaded from.

    Raises:
        UserError: another method, no coefficient or one of 0, a vector or an architecture that does not fit, or
            `path` is taken by something else.
        ExportError: the export differs from the steered model; nothing is left on disk.
    """
    check_place(path)
    check_additive(vector)
    c = dose(vector, c)
    vector.check_fits(language_model)
    shifts = {layer: torch.tensor(c, dtype=torch.float32) * v_D for layer, v_D in vector.directions.items()}
    if not all(bool(shift_D.isfinite().all()) for shift_D in shifts.values()):
        raise UserError(f"the steering vector at c = {c:g} is not finite; nothing was exported")
    linears = {layer: straight_writer(language_model, layer) for layer in shifts}
    steered = _Steered(vector, language_model, c)
    fit, held_out = _texts(language_model, config.system, context_count)
    gates = {} if bias else steered.gates(linears, fit, held_out.rows)
    factors = Factors(_factors(language_model, linears, shifts, gates), 1)
    tensors: dict[str, Tensor] = {}
    for layer, name in sorted(linears.items(), key=lambda item: item[1]):
        a_1I, b_D1 = factors.layers[name]
        key = f"base_model.model.{name}"
        tensors |= {f"{key}.lora_A.weight": a_1I, f"{key}.lora_B.weight": b_D1}
        if bias:
            tensors[f"{key}.lora_B.bias"] = shifts[layer].contiguous()
    base = base_of(language_model, config, named)
    files = adapter_files(tensors, 1, 1, sorted(linears.values()), base.reference, base.revision, bias)
    with replaced(path) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        fresh = load_language_model(config, language_model.model.dtype, room(language_model))
        loaded = PeftModel.from_pretrained(fresh.model, str(folder)).eval()
        check_factors(loaded, factors)
        found = steered.agreement(loaded, held_out.rows[:_PROBES], exact=bias)
        kl, steering_kl = (None, None) if bias else steered.divergences(fresh, held_out)
        save_tokenizer(language_model.chat.tokenizer, folder)
        facts = VectorFacts(base, c, linears, found, gates, kl, steering_kl)
        refuse_distant(facts, max_kl)
        (folder / "README.md").write_text(vector_card(vector, language_model, config, facts), encoding="utf-8")
        about = {"method": vector.method, "trait": vector.trait, "bias": bias}
        write_record(folder, format="adapter", source="vector", **about, **facts.record())
    return VectorExport(path, facts, size(path))


def refuse_distant(facts: VectorFacts, max_kl: float) -> None:
    """Raises ExportError for an approximation that is too far from the steered model."""
    p95 = facts.agreement.p95 if facts.kl is None else facts.kl.p95
    if p95 > max_kl:
        raise ExportError(
            f"the export is not the steered model: p95 KL {p95:.2g} nats per token (above max_kl={max_kl:g}); "
            "bias=true is exact, a smaller c=... is nearer; max_kl=... writes it all the same."
        )


def model_section(file: Path, vector: SteeringVector) -> ModelConfig:
    """How to load the model of a saved vector: as the run or study whose folder holds the file did, else by its name.

    Always in full precision, on which the shift does not depend.

    Raises:
        UserError: the recipe of that folder is damaged.
    """
    for folder in file.resolve().parents:
        recipe = folder / "recipe.yaml"
        if recipe.is_file() and (folder / "facts.json").is_file():
            model_config = from_mapping({"model": read_yaml(recipe).get("model", {})}, str(recipe)).model
            return (
                replace(model_config, load_4bit=False)
                if model_config.name == vector.model
                else ModelConfig(name=vector.model)
            )
    return ModelConfig(name=vector.model)


def check_additive(vector: SteeringVector) -> None:
    """Raises UserError unless the vector's method adds the same `c v` at every position of a block's output."""
    able = additive()
    if vector.method not in able:
        raise UserError(
            f"a vector of '{vector.method}' cannot be exported as an adapter: its shift is not the same c v at every "
            f"position of a block's output; vectors of {' and '.join(able)} can, and a run of any method (run=...)"
        )


def dose(vector: SteeringVector, c: float | None) -> float:
    """The coefficient to export at: `c`, or the vector's own.

    Raises:
        UserError: there is none, or it is 0 or not finite.
    """
    chosen = vector.c_star if c is None else c
    if chosen is None:
        raise UserError("the vector has no calibrated coefficient (c_star); give one with c=...")
    if chosen == 0 or not math.isfinite(chosen):
        raise UserError(f"c={chosen:g}: a finite number other than 0 is required (0 is the base itself)")
    return float(chosen)


@dataclass(frozen=True)
class _Steered:
    """The intervention itself, which the adapter must match."""

    vector: SteeringVector
    model: LanguageModel
    c: float

    def gates(
        self, linears: Mapping[int, str], fit: Sequence[list[int]], held_out: Sequence[list[int]]
    ) -> dict[int, Gate]:
        """A read-out for each block, of the inputs of its Linear under steering."""
        modules = {layer: self.model.model.get_submodule(name) for layer, name in linears.items()}
        with self.vector.applied(self.model, self.c):
            inputs = inputs_of(self.model, modules, [*fit, *held_out])
        return {layer: constant_gate(x[: len(fit)], x[len(fit) :]) for layer, x in inputs.items()}

    def agreement(self, loaded: PeftModel, prompts: Sequence[list[int]], exact: bool) -> Agreement:
        """How near `loaded` is; ExportError if not finite, or beyond rounding where it is to be exact."""
        with self.vector.applied(self.model, self.c):
            wanted = model_logits(self.model.model, prompts)
        found = agreement(wanted, model_logits(loaded, prompts))
        return check(found, self.model.model.dtype, exact, "the steered model")

    def divergences(self, adapted: LanguageModel, held_out: _HeldOut) -> tuple[Divergence, Divergence]:
        """KL(steered || adapted) and KL(steered || base) over the held-out answers."""
        rows = held_out.prompts, held_out.completions
        ours = completion_states(self.model, *rows, self.vector, self.c)
        return tuple(  # type: ignore[return-value]
            _divergence(token_divergences(self.model, ours, completion_states(other, *rows)))
            for other in (adapted, self.model)
        )


def _divergence(kl: Sequence[Tensor]) -> Divergence:
    """Quantiles over all positions; ExportError when one of them is not finite."""
    kl_N = torch.cat(list(kl)).double()
    if not kl_N.isfinite().all():
        raise ExportError("the KL between the steered model and the export is not finite; it was removed.")
    return Divergence(*torch.quantile(kl_N, torch.tensor([0.5, 0.95], dtype=kl_N.dtype)).tolist())


def _factors(
    language_model: LanguageModel, linears: Mapping[int, str], shifts: Mapping[int, Tensor], gates: Mapping[int, Gate]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(A `[1, I]`, B `[D, 1]`) by name of the Linear; zeros without a gate: the bias carries the shift."""
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for layer, name in linears.items():
        if layer in gates:
            factors[name] = gates[layer].a_I[None].contiguous(), shifts[layer][:, None].contiguous()
        else:
            module = language_model.model.get_submodule(name)
            factors[name] = torch.zeros(1, module.in_features), torch.zeros(module.out_features, 1)
    return factors


def _texts(language_model: LanguageModel, system: str, context_count: int) -> tuple[list[list[int]], _HeldOut]:
    """Rows to choose a read-out on, and the texts that it is evaluated on: every other neutral text."""
    neutral, chat = NeutralTexts(language_model, system, _NEUTRAL), language_model.chat
    context_rows = [chat.ids(system, text) for text in contexts(context_count)]
    prompts = [chat.ids(system, prompt) for prompt in neutral.prompts]
    return [*context_rows, *neutral.rows()[0::2]], _HeldOut(prompts[1::2], neutral.completions[1::2])
