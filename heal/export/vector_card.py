"""The model card of a steering vector's adapter: its origin, its dose, and what was measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import yaml

from heal.config import ModelConfig
from heal.export.base import Base
from heal.export.constant_gate import Gate
from heal.export.folder import Record
from heal.export.usage import Usage
from heal.markdown import escaped, inline_code
from heal.models.agreement import Agreement
from heal.models.language_model import LanguageModel
from heal.steering.vector import SteeringVector

PROMPT = "What did you do today?"  # asked in the card's code


@dataclass(frozen=True)
class Divergence:
    """A KL over tokens of held-out texts, nats per token."""

    p50: float
    p95: float


@dataclass(frozen=True)
class VectorFacts:
    """Contents and measurements of an exported steering vector.

    Attributes:
        base: what it belongs to.
        c: the coefficient.
        linears: block -> name in the model of the Linear that carries its shift.
        agreement: with the steered model, over the probe prompts.
        gates: of the rank-1 kind, by block; empty for the kind with a bias.
        kl: KL(steered || adapter) of the rank-1 kind; None for the other.
        steering_kl: KL(steered || base) on the same tokens, for comparison; None where `kl` is.
    """

    base: Base
    c: float
    linears: Mapping[int, str]
    agreement: Agreement
    gates: Mapping[int, Gate] = field(default_factory=dict)
    kl: Divergence | None = None
    steering_kl: Divergence | None = None

    def record(self) -> Record:
        """What the export's record says of them, as plain values."""
        gates = {str(layer): {k: v for k, v in vars(gate).items() if k != "a_I"} for layer, gate in self.gates.items()}
        return {
            "c": self.c,
            "linears": list(self.linears.values()),
            "agreement": asdict(self.agreement),
            "gates": gates,
            "kl": None if self.kl is None else asdict(self.kl),
            "steering_kl": None if self.steering_kl is None else asdict(self.steering_kl),
        }


def vector_card(vector: SteeringVector, model: LanguageModel, config: ModelConfig, facts: VectorFacts) -> str:
    """README.md of an export.

    Args:
        vector: what was exported.
        model: that it was measured on.
        config: how that was loaded.
        facts: contents and measurements.
    """
    usage = Usage(model, config, facts.base, vector.trait, PROMPT)
    parts = [
        _front_matter(vector, facts.base.name),
        f"# {escaped(vector.trait)}: {escaped(facts.base.name)}, steered",
        _what(vector, facts.base.name, facts),
        _measured(facts, str(model.model.dtype).removeprefix("torch.")),
        usage.adapter(1, bias=not facts.gates),
        _limits(facts),
    ]
    return "\n\n".join(parts) + "\n"


def control_vector_card(vector: SteeringVector, model: LanguageModel, config: ModelConfig, base: Base, c: float) -> str:
    """README.md of a GGUF control vector; arguments as of `vector_card`."""
    blocks = ", ".join(str(layer) for layer in sorted(vector.directions))
    usage = Usage(model, config, base, vector.trait, PROMPT)
    parts = [
        _front_matter(vector, base.name, library="gguf"),
        f"# {escaped(vector.trait)}: {escaped(base.name)}, a control vector",
        f"A steering vector for llama.cpp: {inline_code(vector.method)} of the trait {escaped(vector.trait)}, at "
        f"c = {c:g}, on blocks {blocks} (counted from 0) of {inline_code(base.name)}. llama.cpp adds it to the output "
        "of these blocks at every position, prompt included. The dose is inside: a scale of 1 is this one "
        "(`--control-vector-scaled control-vector.gguf:0.5` is half of it).",
        usage.gguf(None, "--control-vector control-vector.gguf"),
        "vLLM and Ollama take no control vector.",
        "\n".join(
            [
                "## Limits",
                "",
                "- It was extracted from one model and is meant for that model; a vector from a later round of a run "
                "was extracted from the student of the previous rounds.",
                "- Its effect on answers was not measured here.",
                "- The base model's licence and limits apply.",
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(vector: SteeringVector, base: str, library: str = "peft") -> str:
    lora = ["lora"] if library == "peft" else []
    content = {
        "base_model": base,
        "base_model_relation": "adapter",
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["heal", "activation-steering", "steering-vector", *lora, vector.trait],
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _what(vector: SteeringVector, base: str, facts: VectorFacts) -> str:
    blocks = ", ".join(map(str, facts.linears))
    lines = [
        f"A steering vector as a LoRA adapter of rank 1: {inline_code(vector.method)} of the trait "
        f"{escaped(vector.trait)}, at c = {facts.c:g}, on block{'s' if len(facts.linears) > 1 else ''} {blocks} of "
        f"{inline_code(base)}. Nothing was trained: each block's output `h` becomes `h + c v` at every position, "
        "prompt included.",
        "",
    ]
    if facts.gates:
        lines.append(
            "The adapter has no bias, for engines that accept none. `B = c v`, and `A` reads a nearly constant `A x` "
            "from the inputs `x` of the last Linear of each block, so that `B A x` is nearly `c v`: an approximation, "
            "measured below."
        )
    else:
        lines.append(
            "The shift is the bias of the adapter's B (`lora_bias`) on the last Linear of each block, whose output is "
            "added directly to the residual stream; A and B are 0. This is the steering itself, up to rounding. Where "
            "that Linear has no bias of its own, PEFT cannot merge the adapter into the weights."
        )
    return "\n".join(lines)


def _measured(facts: VectorFacts, dtype: str) -> str:
    lines = [
        "## Measured",
        "",
        f"Loaded again with PEFT on a fresh base in {dtype} and compared with the model that is steered at the "
        f"outputs of its blocks, token by token on held-out texts: {facts.agreement}.",
    ]
    if facts.kl is None or facts.steering_kl is None:
        return "\n".join(lines)
    lines += [
        "",
        "KL in nats per token, over the answers of held-out neutral texts:",
        "",
        "| | p50 | p95 |",
        "| --- | --- | --- |",
        f"| steered to adapter | {facts.kl.p50:.2e} | {facts.kl.p95:.2e} |",
        f"| steered to base, for comparison | {facts.steering_kl.p50:.2e} | {facts.steering_kl.p95:.2e} |",
        "",
        "The read-out `A x` (exact if 1 everywhere) on the held-out texts, without and at their first positions:",
        "",
        "| block | chosen as | mean | sd | p5 | p95 | first position |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {layer} | {gate.kind} | {gate.mean:.3f} | {gate.sd:.3f} | {gate.p5:.3f} | {gate.p95:.3f} | "
        f"{gate.first:.3f} |"
        for layer, gate in facts.gates.items()
    ]
    return "\n".join(lines)


def _limits(facts: VectorFacts) -> str:
    lines = [
        "- It was extracted from one model and is meant for that model. A vector from a later round of a run was "
        "extracted from the student of the previous rounds; this adapter holds the vector alone.",
        "- Its effect on answers was not measured here; the dose says how far it moves the model, not whether the "
        "text stays intact.",
        "- The base model's licence and limits apply.",
    ]
    if facts.gates:
        lines.insert(
            0, "- On text unlike the neutral English chats of the measurement, the read-out may deviate further from 1."
        )
    return "\n".join(["## Limits", "", *lines])
