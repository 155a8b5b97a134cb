"""Prompts of several turns: one text wherever a prompt stands, rendered as the chat that it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from heal.errors import UserError
from heal.models.chat import Chat
from heal.recipe import load_recipe
from heal.run.student import build_accumulator
from heal.steps.generate import Generate
from heal.trait import load_trait
from heal.turns import after_exchange, prompt_of, turns_of, whole_sentences
from tests import tiny
from tests.cases import case
from tests.running import LOOSE


def test_a_prompt_of_several_turns_is_read_as_it_was_written_and_one_that_is_no_chat_is_refused(tmp_path: Path) -> None:
    for texts in (["a"], ["a\n\nb: ⟨user⟩", "c", "d\n"], ["a", "b", "c", "d", "e"]):
        with case(texts):
            assert turns_of(prompt_of(texts)) == texts
    assert turns_of(after_exchange("And now?", "a\n⟨assistant⟩ b\n⟨user⟩ c", "d")) == ["a", "b", "c", "d", "And now?"]
    for texts in (["a", "b"], ["a", "b\n⟨user⟩ x", "c"], ["a", " ", "c"]):
        with case(texts), pytest.raises(ValueError, match="turn"):
            prompt_of(texts)
    path = tmp_path / "mine.yaml"
    for wrong in ("Ask.\\n⟨assistant⟩ Say.", "Ask.\\n⟨user⟩ Ask.", "Ask.\\n⟨assistant⟩  \\n⟨user⟩ Ask."):
        path.write_text(f'name: x\npositive: You love.\nnegative: You hate.\nheldout_prompts: [a, b, c, "{wrong}"]\n')
        with case(wrong), pytest.raises(UserError, match=r"mine\.yaml: field 'heldout_prompts', 'Ask.*turn"):
            load_trait(path)
    assert whole_sentences("One. Two! Thr") == "One. Two!"
    assert whole_sentences("no end") == "no end"


def test_a_prompt_of_several_turns_is_rendered_as_a_chat(tiny_folder: Path) -> None:
    prompt = prompt_of(["One", "Two", "Three"])
    said = "<|im_start|>{}\n{}<|im_end|>\n".format
    chat = said("assistant", "Two") + said("user", "Three") + "<|im_start|>assistant\n"
    assert Chat(tiny.tokenizer()).text("Be.", prompt) == said("system", "Be.") + said("user", "One") + chat
    systemless = tiny.CHATML.replace("messages %}", "messages if message['role'] != 'system' %}")
    assert Chat(tiny.tokenizer(systemless)).text("Be.", prompt) == said("user", "Be.\n\nOne") + chat


def test_some_of_a_round_s_prompts_follow_an_exchange_with_base(tiny_folder: Path) -> None:
    model = tiny.load(tiny_folder)
    recipe = load_recipe([*LOOSE, "generation.multi_turn=0.5", "generation.prompts=8", "generation.tokens=8"])
    accumulator, known = build_accumulator(model, recipe), tiny.trait()
    vector = replace(tiny.vector(model), c_star=0.1)
    one, other = (Generate(model, accumulator, known, vector, recipe, 0).compute(lambda *_: None) for _ in range(2))
    assert one == other
    turns = {row.prompt: turns_of(row.prompt) for row in one.rows}
    assert len(turns) == 8
    assert sorted(said[-1] for said in turns.values()) == sorted(known.generation_prompts)
    continued = [said for said in turns.values() if len(said) > 1]
    assert len(continued) == 4
    assert all(len(said) == 3 and said[0] in known.generation_prompts and said[0] != said[2] for said in continued)
    for row in one.rows:
        assert list(row.prompt_ids) == model.chat.ids(recipe.model.system, row.prompt)
