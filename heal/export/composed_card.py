"""The card of a composed student: what it is the sum of, and how it measured on each part's trait."""

import yaml

from heal.evaluation.signal import described
from heal.export.compose import Composed
from heal.export.composition import Composition, Measured
from heal.export.exportable import Facts
from heal.export.usage import Usage
from heal.markdown import escaped, fenced, inline_code, markdown_table


def composed_card(student: Composed, composition: Composition, facts: Facts) -> str:
    """README.md of an export.

    Args:
        student: what was exported.
        composition: its parts and measurements.
        facts: what the export came to.
    """
    prompt = min(student.trait.heldout_prompts, key=len)
    usage = Usage(student.model, student.config, facts.base, student.trait.name, prompt)
    parts = [
        _front_matter(student, facts.base.name, facts.rank),
        f"# {escaped(student.trait.name)}: {escaped(facts.base.name)}",
        _what(facts),
        _parts(composition),
        *(_personas(student, index) for index in range(len(student.parts))),
        *(_measured(measured) for measured in composition.measured),
        usage.merged() if facts.rank is None else usage.adapter(facts.rank),
        _limits(composition),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(student: Composed, base: str, rank: int | None) -> str:
    traits = dict.fromkeys(part.facts.trait.name for part in student.parts)
    content = {
        "base_model": base,
        "base_model_relation": "adapter" if rank else "finetune",
        "library_name": "peft" if rank else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["heal", "activation-steering", "self-distillation", "composed", *(["lora"] if rank else []), *traits],
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _what(facts: Facts) -> str:
    kind = f"A LoRA adapter of rank {facts.rank} for" if facts.rank else "An update merged into the weights of"
    lines = [f"{kind} {inline_code(facts.base.name)}: the sum of the updates of several students, each times a weight."]
    if facts.lost is not None:
        lines.append(f"The exact sum was truncated by SVD, at a relative Frobenius error of {facts.lost:.2e}.")
    if facts.kept is not None:
        lines.append(f"Of the exact sum, {facts.kept}.")
    lines.append(
        f"Loaded again and compared with the exact sum, token by token on held-out prompts: {facts.agreement}."
    )
    return "\n".join(lines)


def _parts(composition: Composition) -> str:
    rows = [
        [
            f"{part.weight:+g}",
            escaped(part.trait),
            inline_code(part.recipe),
            str(part.seed),
            str(part.rounds),
            str(part.rank),
            inline_code(part.run),
        ]
        for part in composition.parts
    ]
    return "## Parts\n\n" + markdown_table(["weight", "trait", "recipe", "seed", "rounds", "rank", "run"], rows)


def _personas(student: Composed, index: int) -> str:
    part = student.parts[index]
    trait = part.facts.trait
    towards = "Towards" if part.weight > 0 else "Away from (its weight is negative)"
    return "\n\n".join(
        [
            f"## Trait: {escaped(trait.name)}",
            fenced(trait.description),
            f"{towards}:",
            fenced(trait.positive),
            "The opposite persona:",
            fenced(trait.negative),
        ]
    )


def _measured(measured: Measured) -> str:
    """One trait: its signals at base, of its own student and of the sum."""
    signals = [
        signal for signal in described(measured.composed) if signal.role in ("trait", "coherence") or signal.headline
    ]
    rows = []
    for signal in signals:
        doubt = "" if signal.name in measured.valid else ", not valid for this model"
        composed = measured.composed[signal.name]
        stages = [summary.get(signal.name) for summary in (measured.base, measured.alone)]
        cells = ["\N{EN DASH}" if one is None else f"{one:.{signal.digits}f}" for one in stages]
        difference = f"{composed.delta:+.{signal.digits}f}"
        rows.append(
            [escaped(signal.title + doubt), *cells, f"{composed:.{signal.digits}f}", difference, str(composed.n)]
        )
    header = ["signal", "base", "its student alone", "composed", "composed over base", "n"]
    reverse = measured.drift.answers.get("kl_rev")
    kl = (
        "No answer had tokens to measure a KL on."
        if reverse is None
        else f"KL(composed \\|\\| base) on its answers: mean {reverse.mean:.3f}, p95 {reverse.p95:.3f} nats per token "
        f"(n = {reverse.n})."
    )
    return "\n".join(
        [
            f"## Measured on held-out prompts of {escaped(measured.trait)}",
            "",
            markdown_table(header, rows),
            "",
            f"{kl} 95 % bootstrap intervals over items.",
        ]
    )


def _limits(composition: Composition) -> str:
    lines = [
        "- The update is an exact sum; its effect on answers is not: traits can strengthen, weaken or undo each other.",
        "- The base model's licence and limits apply.",
    ]
    if not composition.measured:
        lines.insert(0, "- Nothing was measured of the sum; the parts were measured each by itself.")
    return "\n".join(["## Limits", "", *lines])
