"""Renders a system prompt and a user message as token ids, with the model's own chat template."""

import re
from dataclasses import dataclass
from datetime import date
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_DAY = date(2024, 7, 26)  # the fallback of Llama 3's templates


@dataclass
class Chat:
    """Renders chats for one tokenizer.

    A template without a system message (such as Gemma 2's) gets the system prompt as the first
    paragraph of the user's message. One that asks for today's date (such as Llama 3.2's) always gets the
    same day, so that a continued run keeps the prompts that it began with.
    """

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template accepts a system message."""
        try:
            text = self._render([{"role": "system", "content": "a-system-text"}, {"role": "user", "content": "x"}])
        except TemplateError:
            return False
        return "a-system-text" in text

    def text(self, system: str, user: str) -> str:
        """The rendered prompt up to and including the assistant tag; no system message when `system` is empty."""
        if system and self.takes_system:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        else:
            messages = [{"role": "user", "content": f"{system}\n\n{user}" if system else user}]
        return self._render(messages)

    def next_turn(self, user: str) -> str:
        """The text between an answer and the next one when the user writes `user` in between."""
        marker = "an-answer"
        messages = [("user", "x"), ("assistant", marker), ("user", user)]
        return self._render([{"role": role, "content": text} for role, text in messages]).partition(marker)[2]

    def ids(self, system: str, user: str, prefill: str = "") -> list[int]:
        """Token ids of the rendered prompt, with `prefill` as the beginning of the answer."""
        return self.plain_ids(self.text(system, user) + prefill)

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens before or after it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """The text of completion ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _render(self, messages: list[dict[str, str]]) -> str:
        # enable_thinking: templates of reasoning models then open no think block; others ignore the argument.
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=on_one_day(self.tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        )


def on_one_day(template: str) -> str:
    """The template with a fixed date, in the same format, wherever it asks for the current one."""
    return _NOW.sub(lambda call: call[1] + _DAY.strftime(call[2]) + call[1], template)
