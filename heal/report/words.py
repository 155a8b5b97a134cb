"""What the page says in words: the run's settings, what to keep in mind, and what each number means."""

from heal.config import BarrierConfig
from heal.console import counted
from heal.evaluation.readouts.alive import ALIVE
from heal.evaluation.signal import limits_of
from heal.evaluation.validity import doubts
from heal.healing.divergences import divergence_named
from heal.report.numbers import MINUS, plain
from heal.report.results import CHANCE, Results


def settings(results: Results) -> list[tuple[str, str]]:
    """The run in a few lines."""
    recipe = results.recipe
    steer, calibration, generation, heal = recipe.steer, recipe.calibration, recipe.generation, recipe.heal
    base, finished, asked = results.base.values, len(results.rounds), recipe.run.rounds
    written = len({row.prompt for row in results.rounds[0].rows})
    alphas = ", ".join(plain(alpha) for alpha in generation.alphas)
    return [
        ("Model", f"{recipe.model.name}, {results.facts.get('dtype', recipe.model.dtype)}"),
        ("Recipe", f"{recipe.recipe}, seed {recipe.run.seed}"),
        ("Rounds", f"{finished}" if finished >= asked else f"{finished} of {asked} finished"),
        ("Steering", f"{steer.method} from {steer.pairs} pairs, blocks at {_band(steer.band)} of the depth"),
        (
            "Dose",
            f"p95 KL of {calibration.target:g} nats against the {calibration.reference}, "
            f"{counted(calibration_prompts(results)[0], 'prompt')} of {calibration.tokens} tokens",
        ),
        (
            "Completions",
            f"{counted(written, 'prompt')} at {alphas} times c*, {generation.tokens} tokens, "
            f"temperature {generation.temperature:g}",
        ),
        (
            "Healing",
            f"{loss(heal.barrier)}; LoRA of rank {heal.rank}, {counted(heal.epochs, 'epoch')} at "
            f"{heal.learning_rate:g}",
        ),
        (
            "Evaluation",
            f"{len(results.prompted_outputs)} held-out prompts, {base['accuracy'].n} general questions, "
            f"{base['neutral_kl_p95'].n} neutral texts; probe by {results.probe['format']['name']}, "
            f"on which base puts {results.probe['masses'][results.probe['format']['name']]:.2f}",
        ),
    ]


def loss(barrier: BarrierConfig) -> str:
    """The loss as a formula."""
    divergence = divergence_named(barrier.divergence)
    if not divergence.needs_reference:
        return "CE alone"
    strength = f"{barrier.strength:g}" + (f" (1 + r)^{barrier.power:g}" if barrier.power else "")
    reference = "base" if barrier.reference == "base" else "the student before the round"
    d = divergence.label.format(reference=reference)
    formula = f"CE + {strength} mean relu(D {MINUS} {barrier.tau:g}), D the {barrier.aggregate} of {d}"
    return formula + (f" + {barrier.operator_norm:g} squared operator norm" if barrier.operator_norm else "")


def remarks(results: Results) -> list[str]:
    """What a reader should keep in mind, as far as this run's numbers say it."""
    recipe = results.recipe
    found = [
        f"One run of one seed ({recipe.run.seed}): the intervals are 95 % bootstrap intervals over the evaluation’s "
        "items, and say nothing about other seeds.",
        "The trait is scored with the persona pair that the vectors were extracted from: it shows that the personas’ "
        "contrast was learnt, not what an independent reader would say.",
        "No signal here asks whether an answer speaks to its prompt: coherence is fluency and answer mass. "
        "Read the answers.",
    ]
    found += [f"Not valid for this model, so no verdict rests on it: {text}." for text in doubts(results.validity)]
    missed = [entry for entry in results.rounds if entry.metrics["dose"]["outcome"] != "tolerance"]
    if missed:
        found.append(
            "The dose is off target in "
            + ", ".join(
                f"round {r.number} ({r.metrics['dose']['p95']:.2f} nats, ended on {r.metrics['dose']['outcome']})"
                for r in missed
            )
            + "."
        )
    walked = [entry for entry in results.rounds if entry.metrics["dose"]["scale"] != 1]
    if walked:
        scales = ", ".join(f"to {r.metrics['dose']['scale']:.2f} in round {r.number}" for r in walked)
        found.append(f"Too few completions survived at the doses asked for, so they were walked down: {scales}.")
    endless = [str(r.number) for r in results.rounds if r.metrics["generation"]["ended_share"] == 0]
    if endless:
        found.append(
            f"No kept completion ended within its {recipe.generation.tokens} tokens in round {', '.join(endless)}: "
            "the student saw no end of turn there."
        )
    return found


def calibration_prompts(results: Results) -> tuple[int, int]:
    """On how many prompts the dose was found, and on how many others audited: the trait may have fewer than asked."""
    asked, there = results.recipe.calibration, len(results.facts["trait"]["generation_prompts"])
    found = min(asked.prompts, there)
    return found, min(asked.audit_prompts, there - found)


def no_audit(results: Results) -> str:
    """Why a dose was not audited."""
    if results.recipe.calibration.audit_prompts == 0:
        return "calibration.audit_prompts = 0"
    found, _ = calibration_prompts(results)
    return f"no prompts were left for it: the calibration took all {found} generation prompts of the trait"


def audits(results: Results) -> str:
    """How the dose came out on prompts that the search did not see."""
    target = results.recipe.calibration.target
    audited = [entry for entry in results.rounds if entry.calibration["audit"] is not None]
    if not audited:
        return f"The dose was not audited on held-out prompts ({no_audit(results)})."
    values = ", ".join(f"{entry.calibration['audit']['p95']:.2f} (round {entry.number})" for entry in audited)
    tokens = min(entry.calibration["audit"]["n"] for entry in audited)
    return (
        f"On prompts that the search did not see, the same statistic at c* came to {values} nats, "
        f"against {target:g} asked. A 95th percentile of {tokens} tokens rests on the {max(1, round(tokens / 20))} "
        "largest of them."
    )


def glossary(results: Results) -> list[tuple[str, str]]:
    """What each number means, in a line each."""
    recipe = results.recipe
    limits, barrier, dose = limits_of(recipe.evaluation), recipe.heal.barrier, recipe.calibration
    _, audited = calibration_prompts(results)
    anchor = "base model" if barrier.reference == "base" else "student before the round"
    divergence = (
        f"a completion’s divergence from the {anchor}: {barrier.aggregate} over its positions of the per-token KL, nats"
        if barrier.divergence != "none"
        else "0 in this run: its recipe has no divergence and so no barrier"
    )
    return [
        (
            "base, prompted, opposite",
            "the original model, and the same with the positive or the negative persona as system prompt",
        ),
        (
            "steered, healed",
            "the student of the round before with this round’s vector at c*, and the student after the round",
        ),
        (
            "persona log-ratio",
            f"log p_base(token | positive persona) {MINUS} log p_base(token | negative persona), mean over an answer’s "
            f"tokens, then over {len(results.prompted_outputs)} greedy answers of at most {recipe.evaluation.tokens} "
            "tokens; nats/token, higher is more of the trait",
        ),
        ("Δ", "difference to base; the same items on both sides, so it is paired"),
        ("[low, high]", f"95 % percentile bootstrap interval over items, {recipe.evaluation.resamples} resamples"),
        (
            "p_ans_any",
            "mean probability mass on the option letters at the answer slot of "
            f"{results.base.values['accuracy'].n} general questions; 1 is intact, floor {limits['p_ans_any']:g}",
        ),
        (
            "tail perplexity",
            "median perplexity under base of the last quarter of an answer; very low can mean a loop, "
            f"ceiling {limits['tail_perplexity']:g}",
        ),
        (
            "looping",
            f"share of answers whose most repeated word or n-gram makes up more than {recipe.filter.max_repetition:g} "
            f"of it; ceiling {limits['repetition_share']:g}",
        ),
        (
            "alive",
            f"share of answers after half and all of which the model, asked a yes/no question, still puts {ALIVE:g} "
            f"or more on the answers ({results.probe['format']['name']}); floor {limits['alive_share']:g}",
        ),
        (
            "scaffold",
            "nats per token of that question, forced on the model behind its answer; "
            f"ceiling {limits['scaffold_nats']:g} over base",
        ),
        (
            "coherence margin",
            "how far the worst valid coherence signal is from its limit: 1 as at base, 0 at the limit, below it broken",
        ),
        (
            "not valid here",
            "base itself does not pass the signal's own check (mass on the options, better than chance, within its "
            "limit); the reason is in the tooltip and under To keep in mind",
        ),
        ("KL on neutral text", "per token of plain answers that no one trained on, KL(student ∥ base)"),
        ("accuracy", f"share of the general questions answered right; chance is {CHANCE}"),
        ("c*", "the coefficient of the vector whose p95 KL is on target"),
        (
            "p95 KL",
            "95th percentile over all tokens of the steered paths of KL(on \N{PARALLEL TO} off), nats; "
            f"off is {'base' if dose.reference == 'base' else 'the student without the vector'}",
        ),
        ("audit", f"the same statistic at c* on {counted(audited, 'other prompt') if audited else 'other prompts'}"),
        ("dose", "multiple of c* that a completion was sampled at"),
        ("kept", "completions that no filter dropped; one can be dropped for several reasons"),
        ("CE", "cross-entropy of the kept completions’ tokens under the student, nats/token"),
        ("D", divergence),
        ("barrier on", f"share of completions with D above tau = {barrier.tau:g} nats"),
        ("cosine to round 1", "of this round’s vector with round 1’s: near 1, the student still moves the same way"),
        ("coh_cost", "change of p_ans_any per change of the trait, both against base; the signed changes stand below"),
        (
            "verdict",
            "in this order: numbers finite, coherence inside its floors, the trait’s difference above zero with its "
            "whole interval, no off-target signal moved as much",
        ),
    ]


def _band(band: tuple[float, float]) -> str:
    return f"{band[0]:g} to {band[1]:g}"
