"""Renders a system prompt and a user message as token ids, with the model's own chat template.

`heal.models.contract` holds a template against what is relied on here, once, when a model is loaded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from heal.errors import UserError
from heal.models.packing import shared
from heal.models.thoughts import Thought, closing, find_thought
from heal.turns import ROLES, turns_of

Turn = tuple[str, str]  # role and content

MARK = "an-answer"  # what the assistant says where a template's own text around it is looked for
_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_DAY = date(2024, 7, 26)  # the fallback of Llama 3's templates


class RenderingError(UserError):
    """A template that does not render some chat; says the template's own message, in one line."""


@dataclass
class Chat:
    """Renders chats for one tokenizer.

    A template without a system message (such as Gemma 2's) gets the system prompt as the first paragraph of the
    user's message. One that asks for today's date (such as Llama 3.2's) always gets the same day, so that a continued
    run keeps the prompts that it began with. A template may strip spaces and line breaks around a message; nothing
    else of a message is lost in one that keeps the contract (`heal.models.contract`).

    A prompt ends where the template itself begins to write an answer (see `opening`). A thought that the template opens
    there, whatever `enable_thinking` says, is closed without anything in it. A model that is to think first gets
    `open_ids`, which leave the thought open; what it thought is then part of the prompt of its answer (`ids`).
    """

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template renders a system message."""
        try:
            text = self.render([("system", "a-system-text"), ("user", "x")])
        except RenderingError:
            return False
        return "a-system-text" in text

    @cached_property
    def takes_parts(self) -> bool:
        """Whether a message has to be a list of parts, as in templates of vision-language models.

        Only where the text of a plain message is lost, and that of a message in parts is not.
        """

        def keeps(parts: bool) -> bool:
            try:
                return MARK in self._rendered([("user", MARK)], True, parts)
            except RenderingError:
                return False

        return not keeps(parts=False) and keeps(parts=True)

    @cached_property
    def opening(self) -> str:
        """What the template writes before an answer beyond its generation prompt; mostly nothing.

        Harmony's generation prompt (gpt-oss) leaves the channel to the model, some templates have none at all. White
        space does not count: in "Assistant: Yes" it belongs to the first word's token.
        """
        prompt, before = self.render([("user", "x")]), self.before_answer("x")
        rest = before.removeprefix(prompt) if before.startswith(prompt) else ""
        return rest if rest.strip() and not closing(prompt) else ""

    @cached_property
    def thought(self) -> Thought | None:
        """How the model writes a thought before an answer; None where neither template nor vocabulary says so."""
        source = self.tokenizer.get_chat_template()
        added = {str(token).strip() for token in self.tokenizer.added_tokens_decoder.values()}
        chat = [("user", "x")]
        return find_thought(
            self.render(chat, thinking=True),
            self.text("", "x"),
            self.opening,
            lambda text: text in added or text in source,
        )

    @cached_property
    def has_switch(self) -> bool:
        """Whether the template renders another prompt with thinking on than with thinking off."""
        chat = [("user", "x")]
        return self.render(chat) != self.render(chat, thinking=True)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The special tokens that follow an answer in the template's own rendering; empty where it is ordinary text.

        Both after the last answer of a chat and after one that another turn follows, which may differ (`<|return|>`
        and `<|end|>` in harmony). Where nothing but the next turn's first token follows an answer, it is that one.
        """
        ends = (self._end_id(*later) for later in ((), ("another-question",)))
        return frozenset(end for end in ends if end is not None)

    @cached_property
    def end_id(self) -> int | None:
        """The special token that the template puts after the last answer of a chat; None where it is ordinary text."""
        return self._end_id()

    def text(self, system: str, user: str, earlier: Sequence[Turn] = ()) -> str:
        """The rendered prompt up to the first word of the answer; no system message when `system` is empty."""
        return self._begun(self.render(self.turns(system, user, earlier)))

    def next_turn(self, user: str) -> str:
        """The text between an answer and the next one when the user writes `user` in between."""
        return self._begun(self.render(_answered(user))).partition(MARK)[2]

    def ids(
        self,
        system: str,
        user: str,
        prefill: str = "",
        thought: Sequence[int] = (),
        earlier: Sequence[Turn] = (),
    ) -> list[int]:
        """Token ids of the rendered prompt, with `prefill` as the beginning of the answer.

        Args:
            system, user: the messages; no system message when `system` is empty.
            prefill: the beginning of the answer.
            thought: ids of what was thought before the answer, what closes it included; none: the prompt has no
                thought in it.
            earlier: what the user and the assistant said before, in turn.
        """
        if thought:
            return [*self.open_ids(system, user, earlier), *thought, *self.plain_ids(self._after(thought) + prefill)]
        return self.plain_ids(self.text(system, user, earlier) + prefill)

    def open_text(self, system: str, user: str, earlier: Sequence[Turn] = ()) -> str:
        """The rendered prompt up to the first word of a thought; the chat must have a `thought`."""
        assert self.thought is not None
        return self.render(self.turns(system, user, earlier), thinking=True) + self.thought.opens

    def open_ids(self, system: str, user: str, earlier: Sequence[Turn] = ()) -> list[int]:
        """Token ids of `open_text`."""
        return self.plain_ids(self.open_text(system, user, earlier))

    def closed(self, ids: Sequence[int]) -> bool:
        """Whether a thought of these ids, which goes on token by token, was closed by the last one."""
        assert self.thought is not None
        if len(self._closes) == 1:
            return ids[-1] == self._closes[0]
        # Its last tokens may be merged with what stands around it, but it has no more tokens than characters.
        return self.thought.closes in self._plain_text(ids[-len(self.thought.closes) - 1 :])

    @property
    def after_thought(self) -> str:
        """What the template has between a thought and the answer; empty where there is no thought."""
        return "" if self.thought is None else self.thought.after

    @cached_property
    def _closes(self) -> list[int]:
        return [] if self.thought is None else self.plain_ids(self.thought.closes)

    def _after(self, thought: Sequence[int]) -> str:
        """What is put between a thought and its answer; nothing where the thought is not closed."""
        if self.thought is None or not self.closed(thought):
            return ""
        said = self._plain_text(thought[-len(self.thought.closes) - 1 :]).rpartition(self.thought.closes)[2]
        return self.thought.after.removeprefix(said)

    def _plain_text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens before or after it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """The text of completion ids, without special tokens and whatever ends an answer."""
        said = [token for token in ids if token not in self.end_ids]
        return str(self.tokenizer.decode(said, skip_special_tokens=True))

    def turns(self, system: str, user: str, earlier: Sequence[Turn] = ()) -> list[Turn]:
        """The messages of a prompt, which may have several turns itself (`heal.turns`).

        Without a system message where the template takes none or `system` is empty.
        """
        said = [*earlier, *((ROLES[turn % 2], text) for turn, text in enumerate(turns_of(user)))]
        if not system:
            return said
        if self.takes_system:
            return [("system", system), *said]
        return [("user", f"{system}\n\n{said[0][1]}"), *said[1:]]

    def before_answer(self, user: str) -> str:
        """What the template writes before an answer to `user`; empty where it loses the answer."""
        text, answer, _ = self.render([("user", user), ("assistant", MARK)], generation=False).rpartition(MARK)
        return text if answer else ""

    def after_answer(self, *later: str) -> str:
        """What the template writes after an answer, up to what the user says next (`later`, if anything)."""
        after = self.render(_answered(*later), generation=False).partition(MARK)[2]
        return after.partition(later[0])[0] if later else after

    def render(self, turns: Sequence[Turn], generation: bool = True, thinking: bool = False) -> str:
        """The template's own rendering, with its generation prompt or without, and with its switch for thinking.

        Raises:
            RenderingError: the template does not render them.
        """
        return self._rendered(turns, generation, self.takes_parts, thinking)

    def _begun(self, prompt: str) -> str:
        """A rendered prompt, continued to the first word of the answer."""
        prompt += self.opening
        return prompt + closing(prompt)

    def _rendered(self, turns: Sequence[Turn], generation: bool, parts: bool, thinking: bool = False) -> str:
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": text}] if parts else text} for role, text in turns
        ]
        try:
            # Templates of reasoning models open a think block by the one name or the other; others ignore both. The
            # second one is off by default.
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=on_one_day(self.tokenizer.get_chat_template()),
                    tokenize=False,
                    add_generation_prompt=generation,
                    enable_thinking=thinking,
                    **({"thinking": True} if thinking else {}),
                )
            )
        except Exception as error:  # a template is a program of somebody else's, which may raise anything
            roles, message = ", ".join(role for role, _ in turns), " ".join(str(error).split())[:200]
            raise RenderingError(
                f"the chat template does not render a chat of {roles} ({type(error).__name__}: {message})"
            ) from error

    def _end_id(self, *later: str) -> int | None:
        """The first special token after an answer, and before what the user says next; None where there is none."""
        text, after = self.render(_answered(*later), generation=False), self.after_answer(*later)
        ids, said = self.plain_ids(text), self.plain_ids(text[: text.index(MARK) + len(MARK)])
        names = {token: str(added).strip() for token, added in self.tokenizer.added_tokens_decoder.items()}
        return next((token for token in ids[shared(ids, said) :] if names.get(token) and names[token] in after), None)


def _answered(*later: str) -> list[Turn]:
    """A chat in which the assistant has said MARK, and the user something `later`, if anything."""
    return [("user", "x"), ("assistant", MARK), *(("user", text) for text in later)]


def on_one_day(template: str) -> str:
    """The template with a fixed date, in the same format, wherever it asks for the current one."""
    return _NOW.sub(lambda call: call[1] + _DAY.strftime(call[2]) + call[1], template)
