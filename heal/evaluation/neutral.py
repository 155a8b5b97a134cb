"""Held-out neutral texts, on which a model's drift away from base is measured. docs/method.md, Drift."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor

from heal.models.language_model import LanguageModel
from heal.own.texts import Said
from heal.records import read_records
from heal.scoring import completion_states

EMBEDDED = Path(__file__).resolve().parents[1] / "data" / "neutral.jsonl"
APART = EMBEDDED.with_name("neutral_apart.jsonl")  # texts by which the format of the probe is chosen, and no others
TOKENS = 32  # of a text that are scored


class NeutralTexts:
    """Prompts with the beginning of a plain answer to each; base's final hidden states are computed once.

    Attributes:
        prompts: the user messages.
        completions: token ids of the answers' beginnings.
    """

    def __init__(
        self, language_model: LanguageModel, system: str, count: int | None, texts: Sequence[Said] | None = None
    ):
        """Takes the first `count` texts (None: all) of heal's own or of `texts`, under the neutral `system` prompt."""
        rows = (texts or read_records(Said, EMBEDDED))[:count]
        self._model, self._system = language_model, system
        self.prompts = [row.prompt for row in rows]
        self.completions = [language_model.chat.plain_ids(row.text)[:TOKENS] for row in rows]
        self._base: dict[range, list[Tensor]] = {}  # of the share of this process, which stays the same

    @classmethod
    def apart(cls, language_model: LanguageModel, system: str) -> "NeutralTexts":
        """The texts that no evaluation uses."""
        return cls(language_model, system, None, read_records(Said, APART))

    def states(self, system: str, share: range) -> list[Tensor]:
        """Final hidden states that predict the tokens of some texts, `[N_i, D]`, of the model as it is."""
        prompts = [self._model.chat.ids(system, self.prompts[text]) for text in share]
        return completion_states(self._model, prompts, [self.completions[text] for text in share])

    def base_states(self, base: Callable[[], AbstractContextManager[None]], share: range) -> list[Tensor]:
        """The same of base under the neutral system prompt."""
        if share not in self._base:
            with base():
                self._base[share] = self.states(self._system, share)
        return self._base[share]

    def rows(self) -> Sequence[list[int]]:
        """Prompt and answer of each text as one row of ids."""
        prompts = [self._model.chat.ids(self._system, prompt) for prompt in self.prompts]
        return [[*prompt, *ids] for prompt, ids in zip(prompts, self.completions, strict=True)]
