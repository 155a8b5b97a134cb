"""How a chat's model writes a thought before its answer: what opens the thought, what closes it, what follows."""

import re
from collections.abc import Callable
from dataclasses import dataclass

# What opens a thought, and what closes it.
THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
}
# Harmony (gpt-oss) thinks in a message of its own.
_FINAL, _ANALYSIS = "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"


@dataclass(frozen=True)
class Thought:
    """The texts around a thought.

    Attributes:
        opens: what follows a prompt that the template renders with thinking on, up to the thought's first word; empty
            where the template opens the thought itself.
        closes: what ends the thought.
        after: what stands between that and the first word of the answer, if the template says so.
    """

    opens: str
    closes: str
    after: str


def find_thought(on: str, off: str, opening: str, known: Callable[[str], bool]) -> Thought | None:
    """How thoughts are written, by a prompt that the template renders with thinking on and with thinking off.

    The prompt with thinking on ends in an open thought; or the one with thinking off has an empty thought in its
    place; or the answer has a channel of its own; or the vocabulary or the template's source know what closes a
    thought, and the model opens one by itself. None: no sign of thoughts.

    Args:
        on, off: prompts of the same chat.
        opening: what the template writes before an answer beyond its generation prompt (`Chat.opening`).
        known: whether the vocabulary has a text as a token of its own, or the template's source mentions it.
    """
    bare = on.rstrip()
    white = on[len(bare) :]
    empty = {opens: re.search(rf"(\s*){re.escape(opens)}(\s*){re.escape(THOUGHTS[opens])}(\s*)$", off)
             for opens in THOUGHTS}  # fmt: skip
    for opens, closes in THOUGHTS.items():
        if bare.endswith(opens):
            after = empty[opens]
            return Thought("", closes, after[3] if after else "\n\n" if "\n" in white else "")
    for opens, closes in THOUGHTS.items():
        if found := empty[opens]:
            line = "\n" if "\n" in found[2] else ""
            return Thought(opening + found[1].removeprefix(white) + opens + line, closes, found[3])
    if opening == _FINAL:
        return Thought(_ANALYSIS, "<|end|>", "<|start|>assistant" + _FINAL)
    for opens, closes in THOUGHTS.items():
        if known(closes):
            return Thought(opening + opens + "\n", closes, "")
    return None


def closing(prompt: str) -> str:
    """What closes the thought that a prompt ends in, as templates that close it themselves do; empty for none."""
    bare = prompt.rstrip()
    for opens, closes in THOUGHTS.items():
        if bare.endswith(opens):
            return f"\n{closes}\n\n" if "\n" in prompt[len(bare) :] else closes
    return ""
