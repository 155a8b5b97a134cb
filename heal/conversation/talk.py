"""One chat with the three models of a run, each of which remembers its own answers.

Base is the original model. Steered is what a round distilled: the student before that round, with the round's vector at
a dose. Healed is what came out of the round, at a gate.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from heal.conversation.settings import SIDES, Settings
from heal.decoding import Sampling
from heal.errors import RoundError, UserError
from heal.models.chat import Turn
from heal.responding import respond
from heal.run.best import meant_round
from heal.run.folder import RunFolder
from heal.run.student import Student, load_student
from heal.steering.vector import SteeringVector
from heal.turns import has_turns

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Stopped(Exception):
    """Raised by a listener to end an answer where it stands."""


@dataclass(frozen=True)
class Reply:
    """What one side came to say.

    Attributes:
        text: the answer, without a thought.
        note: why it ends there, if the model did not end it itself.
        stopped: whether the listener stopped it.
    """

    text: str
    note: str = ""
    stopped: bool = False


class Listener(Protocol):
    """What a chat takes place in front of. Any of these may raise `Stopped` to end what is being said."""

    def begins(self, side: str, head: str) -> None:
        """A side is about to answer."""

    def hears(self, side: str, text: str, thinking: bool) -> None:
        """The answer so far, after each of its tokens; empty while the side is thinking."""

    def ends(self, side: str, reply: Reply) -> None:
        """The side has answered."""


class Talk:
    """A chat with the sides of a run.

    Attributes:
        settings: as they stand; see `change`.
        which: the round that is talked to, and why that one.
        turns: what each side was asked and has answered itself.
    """

    def __init__(self, folder: RunFolder, settings: Settings, device: torch.device):
        """Loads the run.

        Raises:
            UserError: no run, not that round, no calibrated dose, or a side that does not exist.
        """
        settings.answering  # noqa: B018
        self._folder, self._device = folder, device
        self._student: Student | None = None
        self.turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
        self._asked: list[tuple[str, dict[str, int]]] = []  # each message, and how many turns each side had before it
        self.settings = settings
        self._load()

    def change(self, name: str, text: str | None) -> None:
        """Changes one setting (see `Settings.changed`), from the next answer on; what was said stays.

        Raises:
            UserError: no such setting or value, or a round that is not finished; nothing has changed then.
            RoundError: the round does not load, and the one before is no longer there.
        """
        changed = self.settings.changed(name, text)
        if changed.round != self.settings.round:
            meant_round(self._folder, changed.round)
        before, self.settings = self.settings, changed
        if changed.round != before.round:
            try:
                self._load()
            except UserError as error:
                raise RoundError(str(error), again=False) from error

    def reset(self) -> None:
        """Forgets what was said; the settings stay."""
        self.turns = {side: [] for side in SIDES}
        self._asked = []

    def take_back(self) -> str:
        """Forgets the last message and its answers; the message.

        Raises:
            UserError: nothing was said yet.
        """
        if not self._asked:
            raise UserError("nothing was said yet")
        user, lengths = self._asked.pop()
        self.turns = {side: turns[: lengths[side]] for side, turns in self.turns.items()}
        return user

    def say(self, user: str, listener: Listener) -> None:
        """Has the sides answer, one after the other; one that the listener stops is the last.

        A side remembers as much of its answer as it gave, and nothing of a message that it gave no answer to.

        Raises:
            UserError: the message is empty or of several turns, or the chat leaves no room in the context.
        """
        if not user.strip():
            raise UserError("the message is empty")
        if has_turns(user):
            raise UserError(
                "a line of the message begins with the mark of a turn, ⟨user⟩ or ⟨assistant⟩: say one turn at a time"
            )
        for side in self.settings.answering:
            self._room(side, user)
        self._asked.append((user, {side: len(turns) for side, turns in self.turns.items()}))
        for side, head in self.heads.items():
            listener.begins(side, head)
            reply = self._answer(side, user, listener)
            if reply.text:
                self.turns[side] += [("user", user), ("assistant", reply.text)]
            listener.ends(side, reply)
            if reply.stopped:
                break

    @property
    def exchanges(self) -> list[tuple[str, dict[str, str]]]:
        """Each message, and the answer of each side that gave one."""
        now = {side: len(turns) for side, turns in self.turns.items()}
        ends = [*(lengths for _, lengths in self._asked[1:]), now]
        return [
            (user, {side: self.turns[side][at + 1][1] for side, at in begin.items() if end[side] > at})
            for (user, begin), end in zip(self._asked, ends, strict=False)  # of an empty chat, an end alone
        ]

    @property
    def rounds(self) -> int:
        """How many rounds are finished."""
        return len(self._folder.rounds())

    @property
    def heads(self) -> dict[str, str]:
        """What each side that answers is, in words."""
        index, settings = self.student.rounds[-1], self.settings
        before = "base" if index == 0 else f"the student after round {index}"
        dose = f"{settings.dose:g} x c* of round {index + 1} = {self._coefficient:.3g}"
        gate = "" if settings.gate == 1 else f", gate {settings.gate:g}"
        heads = {
            "base": f"base ({self.student.model.name})",
            "steered": f"steered ({before} + {dose})",
            "healed": f"healed (after round {index + 1}{gate})",
        }
        return {side: heads[side] for side in settings.answering}

    @property
    def system(self) -> str:
        """The system prompt in force; empty: none."""
        return self.student.recipe.model.system if self.settings.system is None else self.settings.system

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        settings, recipe = self.settings, self.student.recipe.generation
        top_p = recipe.top_p if settings.top_p is None else settings.top_p
        top_k = recipe.top_k if settings.top_k is None else settings.top_k
        return Sampling(settings.temperature, top_p, top_k)

    @property
    def student(self) -> Student:
        """What was loaded; its last round is in `current`."""
        assert self._student is not None
        return self._student

    @property
    def _coefficient(self) -> float:
        assert self._vector.c_star is not None
        return self.settings.dose * self._vector.c_star

    def _load(self) -> None:
        index, self.which = meant_round(self._folder, self.settings.round)
        self._student = None  # before another model takes its memory
        self._student = load_student(self._folder, self._device, index, fold_last=False)
        path = self._folder.round(self.student.rounds[-1]) / "vector.safetensors"
        self._vector = SteeringVector.load(path)
        if self._vector.c_star is None:
            raise UserError(f"{path}: the vector has no calibrated dose")

    def _room(self, side: str, user: str) -> int:
        """Tokens that are left for an answer."""
        model = self.student.model
        length = model.longest_prompt(self.system, user, self.turns[side])
        if (room := model.context - model.thinking - length) < 1:
            thought = f", and a thought has up to {model.thinking}" if model.thinking else ""
            raise UserError(
                f"the chat is {length} tokens long{thought}; the model's context is {model.context}: say less, or "
                "begin a new chat (/reset)"
            )
        return room

    def _stage(self, side: str) -> AbstractContextManager[None]:
        """The context in which the model is a side, before any vector."""
        accumulator, gate = self.student.accumulator, self.settings.gate
        if side == "healed":
            return accumulator.gates(gate, gate)
        return accumulator.base() if side == "base" else accumulator.previous()

    def _answer(self, side: str, user: str, listener: Listener) -> Reply:
        model, settings = self.student.model, self.settings
        said = ""

        def heard(thinking: bool, ids: Sequence[int]) -> None:
            nonlocal said
            said = "" if thinking else model.chat.decode(list(ids))
            listener.hears(side, said, thinking)

        tokens = min(settings.tokens, self._room(side, user))
        steered = side == "steered"
        try:
            with self._stage(side):
                (response,) = respond(
                    model,
                    [(self.system, user)],
                    tokens,
                    self._vector if steered else None,
                    [self._coefficient] if steered else None,
                    sampling=self.sampling,
                    seeds=[("chat", settings.seed, user)] if settings.temperature else None,
                    earlier=self.turns[side],
                    heard=heard,
                )
        except Stopped:
            return Reply(said, "stopped", stopped=True)
        completion = response.completion
        text = model.chat.decode(list(completion.ids))
        if not completion.finite:
            return Reply(text, "stopped: the logits are not finite")
        if response.unclosed:
            return Reply("", f"no answer: the thought was not closed within {model.thinking} tokens")
        return Reply(text, "" if completion.ended else f"cut at {tokens} tokens")


def printable(text: str) -> str:
    """`text` without control characters, which could move the cursor or recolour the terminal."""
    return _UNPRINTABLE.sub("", text).strip()
