"""Puts what a run made on a hub: its adapter, model, vector or completions, with a card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heal.config import key
from heal.console import Console, counted
from heal.errors import UserError
from heal.guard import command
from heal.options import options_help, read_options

if TYPE_CHECKING:
    from heal.hub.bundle import Bundle
    from heal.hub.client import Hub, Repository
    from heal.hub.license import License
    from heal.hub.source import Source

USAGE = "heal push run=FOLDER | export=FOLDER to=USER/NAME [what=adapter|model|vector|dataset] [key=value ...]"
PURPOSE = """Puts what a run made on the Hugging Face hub (or that of HF_ENDPOINT), in one commit: files, recipe, trait,
and a card that has the base's licence and the measurements. dry=true asks nobody: it prints what would go where, and
checks the card. The token is that of `hf auth login`, or HF_TOKEN; no key takes it."""
KINDS = "heal.hub.kinds"
SHOWN = 8  # names of files in a line


@dataclass
class Options:
    run: str | None = key(None, "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")
    export: str | None = key(None, "instead of a run: the folder of any export of heal")
    to: str = key("", "the repository, as in user/name; made if it is not there")
    what: str | None = key(None, "what of the run; none: adapter", choices=KINDS)
    round: str | None = key(None, "of a vector: counted from 1, best or last; none: what the run's export.round says")
    private: Literal["true", "false"] = key(
        "true", "whether a new repository is private; false also lets one that is public already be pushed to"
    )
    existing: Literal["refuse", "add", "replace"] = key(
        "refuse",
        "where the repository holds files: push nothing; let them stay, but for those of the same name; or leave the "
        "repository with what is pushed alone (its history keeps them)",
    )
    license: str | None = key(None, "the licence, by the hub's identifier, as in apache-2.0; none: that of the base")
    base: str | None = key(None, "what the hub calls the base, for one of a local folder; 'none': it is on no hub")
    dry: Literal["true", "false"] = key("false", "print what would go where and check the card; ask nobody")


def main(words: Sequence[str]) -> None:
    """`heal push`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), push)


def push(words: Sequence[str]) -> None:
    """Pushes, or says what it would push."""
    options = read_options(Options, words)
    check(options)
    from huggingface_hub.utils import disable_progress_bars

    from heal.hub.client import Changes, Hub
    from heal.hub.rules import MISSING_LICENSE, faults

    console = Console()
    if not console.is_terminal:
        disable_progress_bars()
    source = source_of(options)
    bundle = collect(options, source)
    hub = None if options.dry == "true" else Hub()
    license = license_of(options, bundle, source, hub)
    if license is not None:
        license.put(bundle.card)
    bundle.refuse_secrets(hub.token if hub else None)
    # A dry run may not ask the hub for the card of the base.
    found = [fault for fault in faults(bundle.card) if license is not None or fault != MISSING_LICENSE]
    if found:
        raise UserError(f"to={options.to}: the hub would refuse the card ({'; '.join(found)})")
    show(console, options, bundle, license)
    if hub is None:
        console.say("dry run    the card is in order; the hub was not asked, nothing was pushed")
        return
    there = hub.look(options.to, bundle.repo_type)
    refuse_taken(options, there)
    changes = Changes.of(bundle, there, options.existing)
    for what, names in (
        ("overwrites", changes.overwritten),
        ("deletes", changes.deleted),
        ("leaves", changes.left),
    ):
        if names:
            console.say(f"{what:<11}{some(names)}")
    done = hub.push(bundle, options.to, there, changes, options.private == "true", f"heal push: {kind(options)}")
    console.warn(*done.remarks)
    private = options.private == "true" if there.commit is None else there.private
    console.say(f"pushed     {done.url} ({'private' if private else 'public'}, commit {done.commit[:8]})")


def check(options: Options) -> None:
    """Raises UserError for keys that do not go together, and for names that no hub takes."""
    from heal.hub import license
    from heal.hub.rules import id_fault

    if bool(options.run) == bool(options.export):
        which = "not both" if options.run else "one of them is needed"
        raise UserError(f"run=FOLDER or export=FOLDER: {which}; --help lists the keys")
    if options.export and options.what is not None:
        raise UserError(f"what={options.what}: export= names what is pushed; leave it out")
    if options.round is not None and options.what != "vector":
        raise UserError(f"round={options.round}: says nothing but of what=vector; heal export takes it for the others")
    if fault := id_fault(options.to):
        raise UserError(f"to={options.to}: {fault}")
    if options.license is not None:
        license.given(options.license)


def kind(options: Options) -> str:
    """What is pushed, in a word."""
    return "export" if options.export else options.what or "adapter"


def source_of(options: Options) -> "Source | None":
    """The run that is asked for, or that the export lies in; None: it lies in none."""
    from heal.hub.source import Source

    if options.run:
        return Source.of(Path(options.run).expanduser(), options.base, options.round)
    run = Path(str(options.export)).expanduser().resolve().parent.parent
    return Source.of(run, options.base) if (run / "recipe.yaml").is_file() else None


def collect(options: Options, source: "Source | None") -> "Bundle":
    """Files and card."""
    from heal.choices import load
    from heal.hub.exported import collect as collect_export

    if options.export or source is None:
        return collect_export(Path(str(options.export)).expanduser(), source, options.to, options.base)
    bundle: Bundle = load(KINDS, kind(options), "collect")(source, options.to)
    return bundle


def license_of(options: Options, bundle: "Bundle", source: "Source | None", hub: "Hub | None") -> "License | None":
    """What the user says, else the card, else the base's card; None in a dry run that may not ask for the last.

    Raises:
        UserError: nobody says.
    """
    from heal.hub import license

    said = license.given(options.license) if options.license is not None else license.of_card(bundle.card)
    if said is not None:
        return said
    base = bundle.base
    folder = None if source is None else source.recipe.model.folder
    if hub is None:
        said = license.of_base(base, folder, None)
    else:
        with hub.told(base or options.to):
            said = license.of_base(base, folder, hub.api)
    if said is None and (hub is not None or base is None):
        raise UserError(
            f"the licence of the base{f' {base}' if base else ''} is not known: give license=..., by the hub's "
            "identifier, as in apache-2.0"
        )
    return said


def show(console: Console, options: Options, bundle: "Bundle", license: "License | None") -> None:
    """What goes where."""
    sizes = bundle.sizes()
    visibility = "private" if options.private == "true" else "public"
    console.say(f"to         {options.to}, a {bundle.repo_type} repository, {visibility} if it is new")
    for name, size in sizes.items():
        console.say(f"file       {name} ({size:,} bytes)")
    console.say(f"in all     {counted(len(sizes), 'file')}, {sum(sizes.values()) / 1e6:.1f} MB")
    data = bundle.card.data
    console.say(
        f"base       {bundle.base or 'on no hub'}, {data.get('base_model_relation') or 'of the model that wrote it'}"
    )
    console.say(f"licence    {license.said if license else f'that of {bundle.base}, which the push asks the hub for'}")
    console.say(f"language   {', '.join(data.get('language') or ['not said'])}")
    results = data.get("eval_results") or []
    console.say(f"measured   {counted(len(results), 'signal')} with intervals in the model-index")


def refuse_taken(options: Options, there: "Repository") -> None:
    """Raises UserError where the repository holds files that nobody spoke of, or is public and nobody said that."""
    if there.files and options.existing == "refuse":
        raise UserError(
            f"to={options.to}: the repository holds {counted(len(there.files), 'file')} ({some(sorted(there.files))}); "
            "existing=replace leaves it with what is pushed alone, existing=add with both"
        )
    if there.commit is not None and not there.private and options.private == "true":
        raise UserError(f"to={options.to}: the repository is public; private=false pushes to it")


def some(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
