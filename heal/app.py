"""From a command line to a finished run: the recipe, the model, the loop, the report, the export."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from heal.config import Recipe
from heal.console import Console, counted
from heal.environment import quiet_libraries, refuse_several_processes, usable_cores
from heal.errors import UserError
from heal.evaluation.vignettes import read_vignettes
from heal.guard import CONTINUES, command
from heal.recipe import find_file, help_text, load_recipe, to_mapping
from heal.run.folder import Events, RunFolder, clear_temporary, sha256
from heal.trait import Trait, load_trait

if TYPE_CHECKING:
    from heal.models.language_model import LanguageModel
    from heal.session import Session


def main(words: Sequence[str]) -> None:
    """The command line of heal/train.py; exits 0 done, 1 failed, 2 a mistake in the words, 130 stopped."""
    command(words, help_text, lambda: train(words), CONTINUES)


def train(words: Sequence[str]) -> None:
    """Runs or continues the run that `words` describe."""
    with opened(load_recipe(words)) as session:
        run(session)


@contextmanager
def opened(recipe: Recipe, kind: str = "", methods: Sequence[str] | None = None) -> Iterator["Session"]:
    """The recipe's model, trait and folder, ready for stages; the folder is locked until the context ends.

    Args:
        recipe: what the command line asked for.
        kind: what the default name of the folder begins with; default: the recipe's name.
        methods: of steering, that the recipe's `steer` section is for; default: `steer.method`.

    Raises:
        UserError: see `check_settings`, `load_trait`, `load_language_model`, `fitting`, `RunFolder.refuse_other`;
            nothing has been written then.
    """
    refuse_several_processes()
    trait = load_trait(recipe.trait)
    asked = recipe.evaluation
    vignettes = read_vignettes(asked.vignettes, asked.vignette_count, asked.perspectives)
    recipe.run.name = recipe.run.name or default_name(recipe, trait, kind)
    console = Console()
    console.say("loading the libraries ...")
    quiet_libraries(downloads=recipe.model.name != "embedded")
    from heal.session import Session, build_accumulator
    from heal.steering.settings import check_settings
    from heal.tracking.events import EventLog
    from heal.tracking.tracker import TrackedRun, start_trackers

    check_settings(recipe.steer, [recipe.steer.method] if methods is None else methods)
    folder = RunFolder(Path(recipe.run.root).expanduser() / recipe.run.name)
    read = files_read(recipe, trait)
    folder.refuse_other(recipe, read)
    model, trait, dtype = bare_model(recipe, console, folder.facts())
    batching = {"rows": model.batching.rows, "tokens": model.batching.tokens}
    facts: dict[str, Any] = {"dtype": dtype, "batching": batching} | read
    left = len(trait.heldout_prompts) - asked.skip
    if left < 2:
        raise UserError(
            f"evaluation.skip={asked.skip}: leaves {counted(max(left, 0), 'held-out prompt')} of {trait.name}; 2 needed"
        )
    with folder.locked():
        clear_temporary(folder.path)
        continued = folder.start(recipe, facts)
        console.say(f"run        {folder.path}{' (continued)' if continued else ''}")
        tracker = start_trackers(
            TrackedRun(recipe.run.name, folder.path, to_mapping(recipe), recipe.tracking),
            EventLog(Events(folder.path / "events.jsonl")),
        )
        console.say(f"tracking   {tracker.state}")
        session = Session(recipe, trait, folder, model, build_accumulator(model, recipe), console, tracker, vignettes)
        yield session


def bare_model(
    recipe: Recipe, console: Console, known: Mapping[str, Any] = MappingProxyType({})
) -> tuple["LanguageModel", Trait, str]:
    """The recipe's model without adapters, its trait without the prompts that do not fit, and the dtype's name.

    Args:
        recipe: its model, trait and compute sections count.
        console: told which model it is, and how many prompts are left out.
        known: facts of the run that goes on, if one does: its dtype and batch sizes are kept.

    Raises:
        UserError: see `load_trait`, `load_language_model` and `fitting`.
    """
    trait, compute = load_trait(recipe.trait), recipe.compute
    quiet_libraries(downloads=recipe.model.name != "embedded")
    import torch
    from accelerate import Accelerator

    from heal.models.load import load_language_model
    from heal.models.measured import batching_for
    from heal.models.precision import resolve_dtype
    from heal.session import fitting

    torch.set_num_threads(compute.threads or usable_cores())
    device = Accelerator().device
    if known.get("dtype") and recipe.model.dtype in ("auto", known["dtype"]):
        dtype, why = getattr(torch, known["dtype"]), "as when the run started"
    else:
        dtype, why = resolve_dtype(recipe.model.dtype, device)
    name = str(dtype).removeprefix("torch.")
    console.say(f"model      {recipe.model.name} in {name} on {device} ({why})")
    model = load_language_model(recipe.model, dtype, device)
    sizes = known.get("batching", {})
    model.batching = batching_for(
        model,
        compute.decode_batch or sizes.get("rows", 0),
        compute.batch_tokens or sizes.get("tokens", 0),
        compute.head_memory * 2**20,
    )
    kept, too_long = fitting(model, recipe, trait)
    if too_long:
        console.warn(f"{counted(too_long, 'prompt')} of the trait left out: too long for the model's context")
    return model, kept, name


def run(session: "Session") -> None:
    """The loop, then its report and its adapter; the last lines say where they are."""
    from heal.loop import run_loop
    from heal.outcome import deliver

    start = time.perf_counter()
    try:
        before = session.folder.rounds()
        metrics = run_loop(session)
        new = sum(entry["round"] not in before for entry in metrics)
        deliver(session, metrics, new, time.perf_counter() - start)
    except BaseException:
        session.tracker.finish({"state": "stopped"})
        raise


def files_read(recipe: Recipe, trait: Trait) -> dict[str, Any]:
    """What is in the files that a recipe only names: the trait, and digests of scenes and a template of the user's own.

    Raises:
        UserError: there is no such file.
    """
    found: dict[str, Any] = {"trait": trait.to_json()}
    if recipe.evaluation.vignettes not in ("embedded", "none"):
        found["vignettes"] = sha256(find_file("evaluation.vignettes", recipe.evaluation.vignettes))
    if recipe.model.chat_template is not None:
        found["chat_template"] = sha256(find_file("model.chat_template", recipe.model.chat_template))
    return found


def default_name(recipe: Recipe, trait: Trait, kind: str = "") -> str:
    """`<recipe>-<trait>-<model>-s<seed>`, or with `kind` in place of the recipe; safe as a folder name."""
    model = Path(recipe.model.name).name
    name = f"{kind or Path(recipe.recipe).stem}-{trait.name}-{model}-s{recipe.run.seed}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
