"""The model card: what was trained into which model, how, how it measured round by round, and how to load it."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from heal.console import counted
from heal.evaluation.metrics import BaselineMetrics, RoundMetrics, Summary
from heal.evaluation.signal import OF, TRAIT, Signal, described
from heal.evaluation.stats import Estimate
from heal.export.exportable import Exportable, Facts
from heal.export.usage import Usage
from heal.markdown import escaped, inline_code, markdown_table, personas
from heal.places.place import where
from heal.report.words import loss
from heal.run.best import Best, read_best
from heal.run.student import Student


def model_card(student: Student, facts: Facts) -> str:
    """README.md of an export, from the run's folder.

    Args:
        student: what was exported.
        facts: what the export came to.

    Raises:
        UserError: the metrics of the baseline or of a round are missing, or not what heal writes.
    """
    rounds = [RoundMetrics.load(student.folder.round(index)) for index in student.rounds]
    among = student.folder.rounds() if student.among is None else student.among
    baseline = BaselineMetrics.load(student.folder.baseline)
    parts = [
        _front_matter(student, facts),
        f"# {escaped(student.trait.name)}: {escaped(facts.base.name)}",
        _what(student, facts),
        _which(rounds[-1].round, len(among), read_best(student.folder, among)),
        _trait(student),
        _method(student),
        _doses(rounds),
        _scores(baseline, rounds),
        _signals(baseline, rounds[-1]),
        _use(student, facts),
        _limits(student, student.recipe.evaluation.tokens, rounds[-1], facts),
    ]
    return "\n\n".join(parts) + "\n"


def unmeasured_card(student: Exportable, facts: Facts) -> str:
    """README.md of an export of a student that no run folder describes: nothing about how it was made or measured."""
    parts = [
        _front_matter(student, facts),
        f"# {escaped(student.trait.name)}: {escaped(facts.base.name)}",
        _what(student, facts, measured=False),
        _trait(student),
        _use(student, facts),
        "## Limits\n\n" + "\n".join(["- This card records no measurements.", *_of_any(student, facts)]),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(student: Exportable, facts: Facts) -> str:
    rank = facts.rank
    content = {
        "base_model": facts.base.name,
        "base_model_relation": "adapter" if rank else "finetune",
        "library_name": "gguf" if facts.quant else "peft" if rank else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["heal", "activation-steering", "self-distillation", *(["lora"] if rank else []), student.trait.name],
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _what(student: Exportable, facts: Facts, measured: bool = True) -> str:
    base, rounds = inline_code(facts.base.name), counted(student.accumulator.rounds, "round")
    if facts.base.revision:
        base += f" at revision {inline_code(facts.base.revision)}"
    rank, dtype = facts.rank, str(student.model.model.dtype).removeprefix("torch.")
    if rank:
        kind = f"A LoRA adapter of rank {rank} (alpha {rank}, float32) for {base}"
    else:
        kind = f"{base} in {facts.weights} with its update merged into the weights"
    if facts.quant is not None:
        kind += ", as a GGUF file"
    lines = [f"{kind}, made in {rounds} of steering, distilling and healing."]
    if facts.gate != 1:
        below = "; the measurements below are at gate 1" if measured else ""
        lines.append(f"The whole update is multiplied by a gate of {facts.gate:g}{below}.")
    if facts.lost is not None:
        below = "; the measurements below are of the exact update" if measured else ""
        lines.append(
            "The exact update was truncated by SVD, layer by layer, at a relative Frobenius error of "
            f"{facts.lost:.2e}{below}."
        )
    if facts.kept is not None:
        lines.append(f"Of the exact update, {facts.kept}.")
    held = "4 bits" if student.config.load_4bit else dtype
    lines.append(f"{student.accumulator.coverage!s} (of the trained blocks).")
    lines.append(
        f"Loaded again and compared with the student that was trained (base in {held}), token by token on held-out "
        f"prompts: {facts.agreement}."
    )
    return "\n".join(lines)


def _which(number: int, rounds: int, best: Best | None) -> str:
    """Which of the run's rounds this is, and which is the best."""
    this = f"It is the student after round {number} of the {counted(rounds, 'round')} that the run had finished"
    if best is None:
        return f"{this}. No round holds (see the verdict below), so none is to be preferred."
    if best.metrics.round == number:
        return f"{this}, and the best: {best.said}."
    return f"{this}. The best is round {best.metrics.round}: {best.said}."


def _trait(student: Exportable) -> str:
    towards = "The two personas whose contrast was steered along, as system prompts. Towards:"
    return "\n\n".join(
        text for trait in student.trait.each for text in (f"## Trait: {escaped(trait.name)}", *personas(trait, towards))
    )


def _method(student: Student) -> str:
    recipe = student.recipe
    heal = recipe.heal
    method, _ = where(recipe.steer, student.folder.place)
    written = min(recipe.generation.prompts, len(student.trait.generation_prompts))
    rows = {
        "recipe": inline_code(Path(recipe.recipe).stem),
        "vector": f"{method} of {recipe.steer.pairs} persona pairs{_of_each(student)}, extracted anew each round",
        "dose": f"p95 of the per-token KL along the steered path = {recipe.calibration.target:g} nat at alpha = 1",
        "completions": f"{counted(written, 'prompt')} at alpha "
        + ", ".join(f"{alpha:g}" for alpha in recipe.generation.alphas)
        + f", at most {recipe.generation.tokens} tokens, broken ones dropped",
        "loss": loss(heal.barrier).replace("|", "\\|"),
        "weights": f"LoRA r {heal.rank}, alpha {heal.alpha} a round, all linear layers between depths "
        f"{heal.band[0]:g} and {heal.band[1]:g}; {counted(heal.epochs, 'epoch')}, AdamW {heal.learning_rate:g}, "
        f"weight decay {heal.weight_decay:g}",
        "seed": str(recipe.run.seed),
    }
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(
        [
            "## Method",
            "",
            "Each round extracts a steering vector, finds the dose that spends a fixed KL, samples completions from "
            "the steered model, drops the broken ones and distils the rest into a LoRA, while a KL barrier holds the "
            "model to its reference. The rounds' LoRAs are stacked, not averaged.",
            "",
            *lines,
        ]
    )


def _of_each(student: Student) -> str:
    """What the vector of a round is where several traits are trained; empty where one is."""
    count = len(student.trait.parts)
    return f" of each of {count} traits, added up at equal KL" if count else ""


def _doses(rounds: Sequence[RoundMetrics]) -> str:
    lines = [
        "## Dose by round",
        "",
        "| round | c* | p95 KL, nats | on held-out prompts | kept | barrier on | KL to base on answers, rms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for metrics in rounds:
        dose, generation = metrics.dose, metrics.generation
        audit = "not measured" if dose.audit_p95 is None else f"{dose.audit_p95:.2f}"
        lines.append(
            f"| {metrics.round} | {dose.c_star:.3f} | {dose.p95:.2f} ({escaped(dose.outcome)}) | {audit} | "
            f"{generation.kept} of {generation.made} | {_barrier_on(metrics)} | {_drift(metrics)} |"
        )
    return "\n".join(lines)


def _barrier_on(metrics: RoundMetrics) -> str:
    share = metrics.training.barrier_on
    return "no barrier" if share is None else f"{share:.0%}"


def _drift(metrics: RoundMetrics) -> str:
    """Of the healed student from base, nats per token."""
    if metrics.drift is None or not metrics.drift.answers:
        return "not measured"
    return f"{metrics.drift.answers['kl_rev'].rmse:.2f}"


def _scores(baseline: BaselineMetrics, rounds: Sequence[RoundMetrics]) -> str:
    last = rounds[-1]
    shown = [signal for signal in described(baseline.base) if signal.headline or OF in signal.name]
    beside = sorted(shown, key=lambda signal: signal.role != "trait")  # each of several traits after their mean
    header = ["stage", "trait", "over base", "coherence margin", *(escaped(signal.title) for signal in beside)]
    lines = [
        _score_row("base", baseline.base, beside, of_base=True),
        _score_row("prompted with the persona", baseline.prompted, beside),
    ]
    for metrics in rounds:
        if metrics.steered is not None:
            lines.append(_score_row(f"round {metrics.round}, steered", metrics.steered, beside))
        margin = f"{metrics.coherence.margin:.2f} ({escaped(metrics.coherence.worst)})"
        lines.append(_score_row(f"round {metrics.round}, healed", metrics.healed, beside, margin))
    verdict = f"**{escaped(last.verdict.label)}** ({escaped(last.verdict.reason)})"
    return "\n\n".join(
        [
            "## Trait and coherence by round",
            "Trait: persona log-ratio of greedy answers to held-out prompts, nats per token. Coherence margin: how far "
            "the worst valid signal is from its limit (1 as at base, 0 at the limit, below it broken). 95 % bootstrap "
            f"intervals over items ({last.trait.n} prompts).",
            markdown_table(header, lines),
            f"Verdict after round {last.round}: {verdict}.",
        ]
    )


def _score_row(
    stage: str, summary: Summary, beside: Sequence[Signal], margin: str = "", *, of_base: bool = False
) -> list[str]:
    trait = summary.get(TRAIT)
    shift = "" if of_base or trait is None else _interval(trait.delta, 3, sign=True)
    return [stage, _interval(trait), shift, margin, *(_interval(summary.get(s.name), s.digits) for s in beside)]


def _signals(baseline: BaselineMetrics, last: RoundMetrics) -> str:
    """Every signal at base and after the last round."""
    lines = []
    for signal in described(baseline.base):
        base, healed = baseline.base[signal.name], last.healed.get(signal.name)
        doubt = "" if signal.name in last.valid else ", not valid for this model"
        lines.append(
            [
                escaped(f"{signal.title} ({signal.note}){doubt}"),
                _interval(base, signal.digits),
                _interval(healed, signal.digits),
                _interval(healed and healed.delta, signal.digits, sign=True),
                str(base.n),
            ]
        )
    found = markdown_table(["signal", "base", "healed", "difference", "n"], lines)
    return f"## Every signal after round {last.round}\n\n{found}"


def _interval(estimate: Estimate | None, digits: int = 3, sign: bool = False) -> str:
    """`0.210 [0.140, 0.290]`, a zero without its minus; a dash for what was not measured or could not be scored."""
    if estimate is None or estimate.n == 0:
        return "\N{EN DASH}"
    form = f"{'+' if sign else ''}z.{digits}f"
    value, low, high = (format(number, form) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _use(student: Exportable, facts: Facts) -> str:
    prompt = min(student.trait.heldout_prompts, key=len)
    usage = Usage(student.model, student.config, facts.base, student.trait.name, prompt)
    if facts.quant is not None:
        return usage.gguf("model.gguf") if facts.rank is None else usage.gguf(None, "--lora adapter.gguf")
    return usage.merged() if facts.rank is None else usage.adapter(facts.rank)


def _limits(student: Exportable, tokens: int, last: RoundMetrics, facts: Facts) -> str:
    lines = [
        f"- Measured on {last.trait.n} held-out prompts in one language, with greedy answers of at most "
        f"{tokens} tokens. Longer answers, sampling, other languages and safety were not "
        "measured.",
        "- The persona log-ratio is judged by the base model itself: it says how much more an answer sounds like one "
        "persona than the other, not how people would judge it.",
        *_of_any(student, facts),
    ]
    if facts.gate != 1 or facts.lost is not None or facts.kept is not None:
        lines.append(
            "- The measurements are not of this export but of the student at gate 1, full rank and without rounding."
        )
    return "\n".join(["## Limits", "", *lines])


def _of_any(student: Exportable, facts: Facts) -> list[str]:
    """The limits of any such student."""
    lines = [
        "- A trait is a tendency of the answers' wording. It does not make what they say true, and it can surface "
        "where nobody asked for it.",
        "- The base model's licence and limits apply.",
    ]
    if student.config.thinking:
        lines.append(
            f"- Its answers were trained and measured after a thought of at most {student.config.thinking_tokens} "
            "tokens, which was not trained itself; answers without a thought were not."
        )
    elif student.model.chat.thought is not None:
        lines.append("- Its answers were trained and measured without a thought before them.")
    if student.config.name == "embedded":
        lines.append(
            f"- It was trained on a dequantised 4-bit GGUF copy of {facts.base.name}; on the original weights the "
            "numbers will differ a little."
        )
    if student.config.load_4bit:
        lines.append("- It was trained over a base in 4 bits; on the base in floating point the numbers will differ.")
    return lines
