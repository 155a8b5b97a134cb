"""What the page says in words: the run's settings, what to keep in mind, and what each number means."""

from heal.config import BarrierConfig
from heal.console import counted
from heal.evaluation.signal import Signal, described, limited, signals
from heal.evaluation.validity import doubts
from heal.healing.divergences import divergence_named
from heal.report.agreement import judge_agreement
from heal.report.numbers import MINUS, of_rounds, plain
from heal.report.results import Results
from heal.steering.settings import settled

KINDS = {"answers": "answer", "questions": "general question", "texts": "neutral text", "vignettes": "scene"}


def settings(results: Results) -> list[tuple[str, str]]:
    """The run in a few lines."""
    recipe = results.recipe
    steer, calibration, generation, heal = recipe.steer, recipe.calibration, recipe.generation, recipe.heal
    placed = results.placed
    method, band = settled(steer) if placed is None else (placed.place.method, placed.place.band)
    chosen = "" if placed is None else f", chosen: {placed.why}"
    finished, planned = len(results.rounds), recipe.run.rounds
    prompts = len({row.prompt for row in results.rounds[0].completions})
    alphas = ", ".join(plain(alpha) for alpha in generation.alphas)
    return [
        ("Model", f"{recipe.model.name}, {results.facts.dtype}"),
        ("Recipe", f"{recipe.recipe}, seed {recipe.run.seed}"),
        ("Rounds", f"{finished}" if finished >= planned else f"{finished} of {planned} finished"),
        ("Steering", f"{method} from {steer.pairs} pairs, blocks at {_band(band)} of the depth{chosen}"),
        (
            "Dose",
            f"p95 KL of {calibration.target:g} nats against the {calibration.reference}, "
            f"{counted(calibration_prompts(results)[0], 'prompt')} of {calibration.tokens} tokens",
        ),
        (
            "Completions",
            f"{counted(prompts, 'prompt')} at {alphas} times c*, {generation.tokens} tokens, "
            f"temperature {generation.temperature:g}",
        ),
        (
            "Healing",
            f"{loss(heal.barrier)}; LoRA of rank {heal.rank}, {counted(heal.epochs, 'epoch')} at "
            f"{heal.learning_rate:g}",
        ),
        (
            "Evaluation",
            f"{_items(results)}; probe in the format {results.probe.format.name}, on whose answers base puts "
            f"{results.probe.mass:.2f}",
        ),
    ]


def _items(results: Results) -> str:
    """What the signals were measured on: `12 answers, 16 general questions, 6 neutral texts`."""
    counts: dict[str, int] = {}
    for signal in described(results.base):
        counts[signal.items] = max(counts.get(signal.items, 0), results.base[signal.name].n)
    return ", ".join(counted(count, KINDS[kind]) for kind, count in counts.items())


def loss(barrier: BarrierConfig) -> str:
    """The loss as a formula."""
    if not divergence_named(barrier.divergence).needs_reference:
        return "CE alone"
    d = f"D the {barrier.aggregate} of {divergence_label(barrier)}"
    if barrier.strength is None:
        strength, d = "lambda", f"{d}, lambda following D to hold it at {barrier.tau:g}"
    else:
        strength = f"{barrier.strength:g}" + (f" (1 + r)^{barrier.power:g}" if barrier.power else "")
    formula = f"CE + {strength} mean relu(D {MINUS} {barrier.tau:g}), {d}"
    return formula + (f" + {barrier.operator_norm:g} squared operator norm" if barrier.operator_norm else "")


def divergence_label(barrier: BarrierConfig) -> str:
    """The divergence of a position as a formula."""
    reference = "base" if barrier.reference == "base" else "the student before the round"
    return divergence_named(barrier.divergence).label.format(reference=reference)


def remarks(results: Results) -> list[str]:
    """What a reader should keep in mind, as far as this run's numbers say it."""
    notes = [
        f"One run of one seed ({results.recipe.run.seed}): the intervals are 95 % bootstrap intervals over the "
        "evaluation’s items, and say nothing about other seeds.",
        "The trait is scored with the persona pair that the vectors were extracted from: the score shows that the "
        "contrast between the personas was learnt, not what an independent reader would say.",
        "The signals say whether answers are fluent, speak to their prompts and are as capable as base's, not whether "
        "they are good. Read the answers.",
    ]
    judge, agreement = results.recipe.evaluation.judge, judge_agreement(results)
    if agreement is not None:
        notes.append(
            f"Agreement of the judge {judge.model} with the persona log-ratio, over the answers of all stages: "
            f"Spearman’s ρ = {agreement.rho:+.2f} [{agreement.low:+.2f}, {agreement.high:+.2f}] (n = {agreement.n})."
        )
    notes += [f"Not valid for this model, so no verdict rests on it: {text}." for text in doubts(results.validity)]
    return [*notes, *_dose_remarks(results)]


def _dose_remarks(results: Results) -> list[str]:
    """Doses off target, doses walked down, and completions of which none ended."""
    rounds, notes = [finished.metrics for finished in results.rounds], []
    missed = ", ".join(
        f"round {r.round} ({r.dose.p95:.2f} nats, ended on {r.dose.outcome})"
        for r in rounds
        if r.dose.outcome != "tolerance"
    )
    if missed:
        notes.append(f"The dose is off target in {missed}.")
    scales = ", ".join(f"to {r.dose.scale:.2f} in round {r.round}" for r in rounds if r.dose.scale != 1)
    if scales:
        notes.append(f"Too few completions survived at the doses of the recipe, so these were walked down: {scales}.")
    endless = [r.round for r in rounds if r.generation.ended_share == 0]
    if endless:
        notes.append(
            f"No kept completion ended within its {results.recipe.generation.tokens} tokens in {of_rounds(endless)}: "
            "the student saw no end of turn there."
        )
    return notes


def calibration_prompts(results: Results) -> tuple[int, int]:
    """How many prompts the dose was found on, and how many others it was audited on: the trait may have too few."""
    calibration, available = results.recipe.calibration, len(results.facts.trait.generation_prompts)
    used = min(calibration.prompts, available)
    return used, min(calibration.audit_prompts, available - used)


def no_audit(results: Results) -> str:
    """Why a dose was not audited."""
    if results.recipe.calibration.audit_prompts == 0:
        return "calibration.audit_prompts = 0"
    used, _ = calibration_prompts(results)
    return f"no prompts were left for it: the calibration took all {used} generation prompts of the trait"


def audits(results: Results) -> str:
    """How the dose came out on prompts that the search did not see."""
    target = results.recipe.calibration.target
    audited = [(r.number, r.calibration.audit) for r in results.rounds if r.calibration.audit is not None]
    if not audited:
        return f"The dose was not audited on held-out prompts ({no_audit(results)})."
    values = ", ".join(f"{audit.p95:.2f} (round {number})" for number, audit in audited)
    tokens = min(audit.n for _, audit in audited)
    largest = max(1, round(tokens / 20))
    return (
        f"On prompts that the search did not see, the same statistic at c* came to {values} nats; the target is "
        f"{target:g}. A 95th percentile of {tokens} tokens rests on the {largest if largest > 1 else 'one'} largest of "
        "them."
    )


def glossary(results: Results) -> list[tuple[str, str]]:
    """What each number means, in a line each: the stages, every signal by its description, and the rounds' numbers."""
    meanings = [(signal.title, _meaning(results, signal)) for signal in described(results.base) if signal.detail]
    return [*_stage_terms(results), *meanings, *_coherence_terms(), *_round_terms(results), *_verdict_terms()]


def _meaning(results: Results, signal: Signal) -> str:
    text = signal.explain(results.recipe)
    count = results.base[signal.name].n
    return f"{text} (n = {counted(count, KINDS[signal.items])})"


def _stage_terms(results: Results) -> list[tuple[str, str]]:
    return [
        (
            "base, prompted, opposite",
            "the original model, and the same with the positive or the negative persona as system prompt",
        ),
        (
            "steered, healed",
            "the student of the round before with this round’s vector at c*, and the student after the round",
        ),
        ("Δ", "difference to base; the same items on both sides, so it is paired"),
        (
            "[low, high]",
            f"95 % percentile bootstrap interval over items, {results.recipe.evaluation.resamples} resamples",
        ),
    ]


def _coherence_terms() -> list[tuple[str, str]]:
    titles = ", ".join(signals()[name].title for name in limited())
    return [
        (
            "coherence margin",
            "how far the worst valid signal with a limit is from that limit: 1 as at base, 0 at the limit, below it "
            f"broken; the signals with a limit are {titles}",
        ),
        (
            "not valid here",
            "base itself does not pass the signal’s own check (mass on the options, better than chance, within its "
            "limit); the reason is in the tooltip and under To keep in mind",
        ),
    ]


def _round_terms(results: Results) -> list[tuple[str, str]]:
    barrier, calibration = results.recipe.heal.barrier, results.recipe.calibration
    _, audited = calibration_prompts(results)
    off = "base" if calibration.reference == "base" else "the student without the vector"
    return [
        ("c*", "the coefficient of the vector whose p95 KL is on target"),
        (
            "p95 KL",
            f"95th percentile over all tokens of the steered paths of KL(on \N{PARALLEL TO} off), nats; off is {off}",
        ),
        ("audit", f"the same statistic at c* on {counted(audited, 'other prompt') if audited else 'other prompts'}"),
        ("dose", "the multiple of c* at which a completion was sampled"),
        ("kept", "completions that no filter dropped; one can be dropped for several reasons"),
        ("CE", "cross-entropy of the tokens of the kept completions under the student, nats/token"),
        ("D", _divergence(barrier)),
        ("barrier on", f"fraction of completions with D above tau = {barrier.tau:g} nats"),
        *(
            [("lambda", "the weight of the barrier, which follows D to hold it at tau")]
            if barrier.strength is None
            else []
        ),
        (
            "drift",
            "KL divergences between the healed student and base in either direction, per position of every other kept "
            "completion and of every other answer to a held-out prompt; the same measure whatever the loss was",
        ),
        (
            "cosine to round 1",
            "of this round’s vector with that of round 1: near 1, the student still moves the same way",
        ),
        (
            "coh_cost",
            "change of p_ans_any per change of the trait, both against base; the signed changes stand below it",
        ),
    ]


def _divergence(barrier: BarrierConfig) -> str:
    if not divergence_named(barrier.divergence).needs_reference:
        return "not measured in this run, whose recipe has no barrier; its drift is"
    anchor = "base model" if barrier.reference == "base" else "student before the round"
    per_token = f"{barrier.aggregate} of {divergence_label(barrier)} per token"
    return f"divergence of a completion from the {anchor}: {per_token}, nats"


def _verdict_terms() -> list[tuple[str, str]]:
    return [
        (
            "verdict",
            "the first of these that fails: all numbers are finite; coherence is within its limits; the whole interval "
            "of the trait’s difference lies above zero; no off-target signal moved as much",
        )
    ]


def _band(band: tuple[float, float]) -> str:
    return f"{band[0]:g} to {band[1]:g}"
