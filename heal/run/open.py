"""How a run is opened: its model, trait and folder, ready for steps; heavy libraries are imported when needed."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import heal
from heal.config import ComputeConfig, Recipe
from heal.console import Console, counted
from heal.counts import COUNTS, STUDY_COUNTS, lowered_to, refuse_missing_prompts, refuse_missing_scenes
from heal.environment import deterministic_kernels, quiet_libraries, usable_cores
from heal.errors import UserError
from heal.evaluation.vignettes import read_vignettes
from heal.options import output_path, resolve_device
from heal.own.texts import said_from
from heal.parallel import by_first, first_alone, here, is_first, size
from heal.recipe import to_mapping
from heal.recipe_files import find_file
from heal.records import digest, read_records
from heal.run.facts import Facts, Sizes
from heal.run.files import clear_temporary, sha256
from heal.run.folder import FORMAT, RunFolder
from heal.tracking.tracker import TrackedRun, Tracker, require_trackers, start_trackers
from heal.trait import MIN_GENERATION_PROMPTS, MIN_HELDOUT_PROMPTS, Trait
from heal.traits import one_trait_of, trait_of
from heal.unforeseen import tracebacks_into
from heal.versions import device_name, versions, versions_line

if TYPE_CHECKING:
    from heal.accumulator import Accumulator
    from heal.models.language_model import LanguageModel
    from heal.run.memory_plan import Planned
    from heal.run.session import Session

_NAME = 200  # bytes of a run's name: file systems take 255, and its .log and temporary names are longer


@contextmanager
def opened(recipe: Recipe, kind: str = "", methods: Sequence[str] | None = None) -> Iterator["Session"]:
    """The recipe's model, trait and folder, ready for steps; the folder is locked until the context ends.

    Args:
        recipe: what the command line asked for.
        kind: what the default name of the folder begins with; default: the recipe's name.
        methods: of steering, that the recipe's `steer` section is for; default: `steer.method`.

    Raises:
        UserError: see `check_settings`, `check_joint`, `trait_of`, `load_language_model`, `fitting`,
            `RunFolder.refuse_other`; nothing has been written then.
    """
    refuse_unspreadable(recipe, spreads=not kind)  # said before the libraries are loaded
    require_trackers(recipe.tracking.to)
    trait = one_trait_of(recipe, "a study of interventions") if kind else trait_of(recipe)
    asked = recipe.evaluation
    vignettes = read_vignettes(asked.vignettes, asked.vignette_count, asked.perspectives)
    recipe.run.name = recipe.run.name or default_name(recipe, trait, kind)
    place(recipe)  # said before the libraries are loaded
    console = Console()
    console.say("loading the libraries ...")
    quiet_libraries(downloads=recipe.model.name != "embedded")
    from heal.models.adapted import adapted_linears
    from heal.run.session import Session
    from heal.run.student import build_accumulator
    from heal.steering.foreign import read_vector
    from heal.steering.settings import check_joint, check_settings, methods_of
    from heal.steps.measure import held_out_prompts
    from heal.tracking.events import EventLog, Events

    check_settings(recipe.steer, methods_of(recipe.steer) if methods is None else methods)
    if trait.parts:
        check_joint(recipe.steer)
    folder = RunFolder(place(recipe))
    counts = STUDY_COUNTS if kind else COUNTS
    recipe, kept = folder.as_begun(recipe)
    lowered = lowered_to(trait, recipe, counts)
    # Before a model is loaded, what is there is held against what was asked for.
    known = folder.facts()
    facts = facts_of(recipe, trait, "" if known is None else known.dtype)
    folder.refuse_other(recipe, facts)
    folder.refuse_running()
    if known is None:  # an earlier version made do with what there was
        refuse_missing_prompts(recipe, trait, counts)
        refuse_missing_scenes(recipe, len({vignette.id.removesuffix("/self") for vignette in vignettes}))
    model, trait, dtype = open_model(recipe, console, known, spreads=not kind)
    if known is None:  # without those that are too long for the model
        refuse_missing_prompts(recipe, trait, counts)
    if recipe.data.vector:  # one that does not fit is refused before anything is measured
        read_vector(recipe.data.vector, model, trait.name)
    refuse_other_prompts(folder, recipe, model)
    _, coverage = adapted_linears(model, model.band(recipe.heal.band))
    held_out_prompts(trait, asked)  # too few are refused before anything is written
    accumulator = build_accumulator(model, recipe)
    planned = None if kind else _planned(recipe, model, accumulator, trait)  # a study trains nothing
    model.batching = by_first(lambda: model.batching)
    sizes = Sizes(model.batching.rows, model.batching.tokens, model.batching.completions)
    facts = replace(facts, dtype=dtype, batching=sizes, coverage=coverage)
    with folder.locked():
        by_first(lambda: clear_temporary(folder.path))
        continued = folder.start(recipe, facts)
        console.say(f"run        {folder.path}{' (continued)' if continued else ''}, {recipe.scale} scale")
        for line in lowered:
            console.say(f"prompts    {line}")
        if trait.language or trait.parts:
            console.say(f"trait      {trait.name}: {trait.source}")
        console.say(f"adapter    {coverage}")
        tracker = Tracker()
        if is_first():
            tracker = start_trackers(
                TrackedRun(recipe.run.name, folder.path, to_mapping(recipe), recipe.tracking, console),
                EventLog(Events(folder.path / "events.jsonl")),
            )
        tracker.event("versions", versions() | {"device": device_name(model.device), "processes": size()})
        if kept:
            console.say(f"keeps      {', '.join(f'{name}={value}' for name, value in kept.items())}, as it began")
        step = recipe.heal.batch_size * recipe.heal.accumulation
        if not kind and step < size():
            console.warn(
                f"{size()} processes share optimiser steps of {counted(step, 'completion')} (heal.batch_size x "
                "heal.accumulation), so some have none"
            )
        if planned is not None:
            console.say(f"memory     {planned.plan.line(device_name(model.device))}")
            console.warn(*planned.warnings)
            tracker.event("memory", planned.plan.event())
            if planned.passes is not None:
                console.say(f"passes     {planned.passes}")
                tracker.event("passes", planned.passes.event())
        console.say(f"tracking   {tracker.state}")
        with tracebacks_into(folder.path):
            yield Session(recipe, trait, folder, model, accumulator, console, tracker, vignettes)


def _planned(recipe: Recipe, model: "LanguageModel", accumulator: "Accumulator", trait: Trait) -> "Planned":
    """What the run needs of memory, and its passes; see `heal.run.memory_plan.planned`."""
    from heal.run.memory_plan import planned  # with the trainer's libraries, which a study can do without

    return planned(recipe, model, accumulator, trait)


def open_model(
    recipe: Recipe, console: Console, known: Facts | None = None, spreads: bool = False
) -> tuple["LanguageModel", Trait, str]:
    """The recipe's model without adapters, its trait without the prompts that do not fit, and the dtype's name.

    Args:
        recipe: its model, trait and compute sections count.
        console: told which model it is, and how many prompts are left out.
        known: facts of the run that goes on, if one does: its dtype and batch sizes are kept.
        spreads: whether what is computed with the model can do with a spread base.

    Raises:
        UserError: see `refuse_unspreadable`, `trait_of`, `load_language_model` and `fitting`.
    """
    trait, compute = trait_of(recipe), recipe.compute
    refuse_unspreadable(recipe, spreads)
    quiet_libraries(downloads=recipe.model.name != "embedded")
    import torch
    from accelerate import Accelerator

    from heal.models.batch_sizes import batching_for
    from heal.models.load import load_language_model
    from heal.models.precision import resolve_dtype, set_tensor_cores
    from heal.models.supported import record_steps

    torch.set_num_threads(compute.threads or max(1, usable_cores() // here()))
    if compute.deterministic:
        deterministic_kernels()
    device = resolve_device(str(Accelerator().device))
    if known is not None and recipe.model.dtype in ("auto", known.dtype):
        dtype, why = getattr(torch, known.dtype), "as when the run started"
    else:
        dtype, why = by_first(lambda: resolve_dtype(recipe.model.dtype, device))  # it may have to measure
    set_tensor_cores(dtype, device)
    name = str(dtype).removeprefix("torch.")
    kernels = "; deterministic kernels" if compute.deterministic else ""
    console.say(f"versions   {versions_line()}, device {device_name(device)}")
    console.say(f"model      {recipe.model.name} in {name} on {device} ({why}{kernels})")
    if size() > 1:
        console.say(f"processes  {size()}, {_held(compute)}, {here()} on this machine")
    model = load_language_model(recipe.model, dtype, device, spread=compute.base == "spread")
    console.warn(*model.notices)
    if compute.graphs and model.spread is None:
        console.warn(*record_steps(model))
    sizes = Sizes() if known is None else known.batching
    model.batching = by_first(
        lambda: batching_for(
            model,
            compute.decode_batch or sizes.rows,
            compute.batch_tokens or sizes.tokens,
            compute.head_memory * 2**20,
            compute.train_batch or sizes.completions,
        )
    )
    kept, too_long = fitting(model, recipe, trait)
    if too_long:
        console.warn(f"{counted(too_long, 'prompt')} of the trait left out: too long for the model's context")
    return model, kept, name


def refuse_unspreadable(recipe: Recipe, spreads: bool) -> None:
    """UserError where a base is to be spread, and cannot be."""
    if recipe.compute.base == "whole":
        return
    reason = ""
    if size() == 1:
        reason = "there is one process, which has to hold all of it; start several (docs/scale.md), or"
    elif not spreads:
        reason = "heal train alone can do with a part of each block;"
    elif recipe.model.load_4bit:
        reason = "4-bit weights cannot be gathered; leave model.load_4bit out, or"
    elif recipe.heal.compile:
        reason = "a compiled decoder does not gather its weights; leave heal.compile out, or"
    if reason:
        raise UserError(f"compute.base=spread: {reason} set compute.base=whole")


def _held(compute: ComputeConfig) -> str:
    """What each of several processes holds of the model, and what it does without because of that."""
    if compute.base == "whole":
        return "each with the whole model"
    without = ["measured batch sizes", *["merged history"] * compute.merge_history]
    without += ["recorded steps"] * compute.graphs
    return f"each with a part of every block (without {', '.join(without)})"


def fitting(model: "LanguageModel", recipe: Recipe, trait: Trait) -> tuple[Trait, int]:
    """The trait without the prompts that do not fit the model's context, and how many those are.

    A prompt must fit under the longest of the personas and the neutral system prompt, with the
    longest thought and answer after it.

    Raises:
        UserError: too few are left, or two are the same to the model.
    """
    from heal.models.contract import alike

    budget = model.context - max(recipe.generation.tokens, recipe.evaluation.tokens, recipe.calibration.tokens)
    budget -= model.thinking
    systems = (recipe.model.system, trait.positive, trait.negative)

    def fits(prompt: str) -> bool:
        return max(model.longest_prompt(system, prompt) for system in systems) <= budget

    kept = replace(
        trait,
        generation_prompts=tuple(filter(fits, trait.generation_prompts)),
        heldout_prompts=tuple(filter(fits, trait.heldout_prompts)),
        contexts=tuple(filter(fits, trait.contexts)),
        parts=tuple(replace(part, contexts=tuple(filter(fits, part.contexts))) for part in trait.parts),
    )
    left_out = len(trait.generation_prompts) - len(kept.generation_prompts)
    left_out += len(trait.heldout_prompts) - len(kept.heldout_prompts)
    left_out += len(trait.contexts) - len(kept.contexts)
    if len(kept.generation_prompts) < MIN_GENERATION_PROMPTS or len(kept.heldout_prompts) < MIN_HELDOUT_PROMPTS:
        raise UserError(
            f"trait={trait.name}: {left_out} of its prompts do not fit the context of {model.name} "
            f"({model.context} tokens) with their answers; too few are left"
        )
    if two := alike(model.chat, recipe.model.system, kept.generation_prompts + kept.heldout_prompts):
        raise UserError(
            f"trait={trait.name}: {two[0]!r} and {two[1]!r} are the same tokens to {model.name}: its tokenizer does "
            "not know their letters"
        )
    return kept, left_out


@first_alone
def refuse_other_prompts(folder: RunFolder, recipe: Recipe, model: "LanguageModel") -> None:
    """Holds the completions of the run's first round, if it has any, against the model's chats as they are now.

    Raises:
        UserError: their prompts are rendered otherwise now, or they go on past a token that ends an answer now.
    """
    from heal.generation.collect import ROWS, Completion

    if not folder.finished(folder.round(0), "generate"):
        return
    rows = read_records(Completion, folder.round(0) / ROWS)
    same = all(
        list(row.prompt_ids) == model.chat.ids(recipe.model.system, row.prompt, thought=row.thought) for row in rows
    )
    if not same or any(model.end_ids.intersection(row.ids[:-1]) for row in rows):
        raise UserError(
            f"{folder.path}: its completions have other prompts, or other ends of an answer, than the chat template of "
            f"{model.name} gives now; choose another run.name, or continue with the version of heal that made them"
        )


def facts_of(recipe: Recipe, trait: Trait, dtype: str) -> Facts:
    """What the recipe leaves open: the trait's content, and digests of scenes and a template of the user's own.

    Raises:
        UserError: there is no such file.
    """
    vignettes, template = recipe.evaluation.vignettes, recipe.model.chat_template
    own_scenes = vignettes not in ("embedded", "none")
    return Facts(
        dtype=dtype,
        trait=trait,
        vignettes=sha256(find_file("evaluation.vignettes", vignettes)) if own_scenes else None,
        chat_template=None if template is None else sha256(find_file("model.chat_template", template)),
        format=FORMAT,
        heal=heal.__version__,
        own=_own(recipe, trait),
    )


def _own(recipe: Recipe, trait: Trait) -> dict[str, str]:
    """Digests of the user's own vector and completions, by key.

    Raises:
        UserError: there is no such file; see `said_from`; a completion's prompt is a held-out one.
    """
    own, data = {}, recipe.data
    if data.vector:
        own["data.vector"] = sha256(find_file("data.vector", data.vector))
    if data.completions:
        said = said_from("data.completions", data.completions)
        if shared := sorted({row.prompt for row in said} & set(trait.heldout_prompts)):
            raise UserError(
                f"data.completions={data.completions}: {shared[0]!r} is a held-out prompt of {trait.name} "
                f"({len(shared)} in all): what is trained on cannot be evaluated on; take it out"
            )
        own["data.completions"] = digest([asdict(row) for row in said])
    return own


def place(recipe: Recipe) -> Path:
    """The folder of the run; nothing is made.

    Raises:
        UserError: `run.name` is no name of one folder, or nothing can be written below `run.root`.
    """
    root, name = recipe.run.root, recipe.run.name
    if "/" in name or name in (".", "..") or not name.strip() or not name.isprintable() or len(name.encode()) > _NAME:
        raise UserError(
            f"run.name={name}: not the name of one folder (printable, without '/', at most {_NAME} bytes); the folder "
            "that holds the runs is run.root"
        )
    path = Path(root).expanduser() / name
    if not (path / "recipe.yaml").is_file():  # a run that is there may be read where nothing can be written
        output_path(root, folder=True, key="run.root")
        if os.path.lexists(path) and not path.is_dir():  # a link that leads nowhere too
            raise UserError(f"{path}: a file is in the way; choose another run.name")
    return path


def default_name(recipe: Recipe, trait: Trait, kind: str = "") -> str:
    """`<recipe>-<trait>-<model>-s<seed>`, or with `kind` in place of the recipe; safe as a folder name."""
    model = Path(recipe.model.name).name
    name = f"{kind or Path(recipe.recipe).stem}-{trait.name}-{model}-s{recipe.run.seed}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
