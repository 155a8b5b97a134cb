"""Talks to base, steered and healed side by side."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from heal.config import key
from heal.conversation.settings import Settings
from heal.environment import quiet_libraries
from heal.errors import UserError
from heal.guard import command
from heal.options import options_help, read_options, resolve_device
from heal.run.best import meant_round
from heal.run.folder import RunFolder

USAGE = 'heal chat run=FOLDER [prompt="..." | web=true] [key=value ...]'
PURPOSE = """Answers as base, steered and healed, each as it is said: side by side on a wide terminal, one below the
other elsewhere, or in the browser. "steered" is what a round distilled: the student before that round, with the round's
vector at dose x c*; "healed" is what came out of the round. Each side remembers what it was asked and has answered
itself. Everything from round on can be changed while chatting (/dose 0.5); /help lists what else can be typed, and
Ctrl-C stops an answer. In a pipe, each line is a message or a command. Where the model thinks first (model.thinking),
the answer after the thought is shown."""


@dataclass(frozen=True)
class Place:
    run: str = key("", "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")
    prompt: str | None = key(None, "the one message to answer; none: read messages line by line")
    web: Literal["false", "true"] = key("false", "true: chat in the browser, on this computer only")
    port: int = key(0, "of web=true: port of the page; 0: any that is free", 0, 65535)
    device: str = key("auto", "auto, cpu, cuda, cuda:1 ...")


@dataclass(frozen=True)
class Options(Settings, Place):
    """Where the chat takes place, and how it begins."""

    @property
    def settings(self) -> Settings:
        return Settings(**{item.name: getattr(self, item.name) for item in fields(Settings)})


def main(words: Sequence[str]) -> None:
    """`heal chat`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), chat)


def chat(words: Sequence[str]) -> None:
    """Loads the run and answers."""
    options = read_options(Options, words)
    options.answering  # noqa: B018
    folder = RunFolder(Path(options.run).expanduser())
    folder.recipe()  # a folder that is no run is said at once, and so is a round that is none
    meant_round(folder, options.round)
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("prompt=: the prompt is empty")
    if options.prompt is not None and options.web == "true":
        raise UserError("prompt=: the page of web=true asks for messages itself; give one of the two")
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    console.print(Text("loading the run ...", style="dim"))
    quiet_libraries()
    from heal.conversation.talk import Talk
    from heal.conversation.terminal import Terminal
    from heal.conversation.web import Page

    page = Page(folder.path.name, options.port) if options.web == "true" else None
    talk = Talk(folder, options.settings, resolve_device(options.device))
    console.print(Text(talk.which, style="dim"))
    if page is not None:
        console.print(Text(page.address, style="bold"), soft_wrap=True)
        console.print(Text("open it in a browser of this computer; Ctrl-C ends it", style="dim"))
        page.run(talk)
        return
    terminal = Terminal(talk, console, interactive=options.prompt is None and sys.stdin.isatty())
    if options.prompt is not None:
        terminal.say(options.prompt)
    else:
        terminal.run()
