"""From a system prompt and a message to token ids."""

from datetime import datetime
from itertools import product

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from heal.models.chat import Chat, on_one_day
from heal.models.embedded import embedded_folder
from heal.models.language_model import LanguageModel
from tests.cases import case
from tests.tiny import CHATML, tokenizer

NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = CHATML.replace(
    "{% for message in messages %}", "{% for message in messages if message.role == 'user' %}"
)
THINKS = CHATML.replace("assistant\n", "assistant\n{% if enable_thinking %}<think>\n{% endif %}")
LLAMA_3_2 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    '{%- endif %}{{- "Today Date: " + date_string + "\n\n" }}' + CHATML
)
STAMPS = "{%- set today = strftime_now( '%Y-%m-%d' ) %}{{- 'The date is ' + today + '. ' }}" + CHATML


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tokenizer())


def test_the_prompt_ends_at_the_assistant_tag(chat: Chat):
    assert chat.text("Be kind.", "Hello") == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_empty_system_prompt_is_no_message(chat: Chat):
    assert "system" not in chat.text("", "Hello")


def test_a_template_without_system_role_gets_it_in_the_user_s_message():
    for template in [NO_SYSTEM, DROPS_SYSTEM]:
        with case(template):
            chat = Chat(tokenizer(template))
            assert not chat.takes_system
            assert "<|im_start|>user\nBe kind.\n\nHello<|im_end|>" in chat.text("Be kind.", "Hello")


def test_two_system_prompts_give_two_prompts_with_any_template():
    for template in (CHATML, NO_SYSTEM, DROPS_SYSTEM):
        chat = Chat(tokenizer(template))
        assert chat.ids("Be kind.", "Hello") != chat.ids("Be cruel.", "Hello")


def test_a_reasoning_template_opens_no_think_block():
    assert "<think>" not in Chat(tokenizer(THINKS)).text("", "Hello")


def test_a_template_that_stamps_the_date_gives_the_same_prompt_on_every_day(monkeypatch: pytest.MonkeyPatch):
    for template, stamp in [(LLAMA_3_2, "Today Date: 26 Jul 2024\n\n"), (STAMPS, "The date is 2024-07-26. ")]:
        with case(stamp):
            chat = Chat(tokenizer(template))
            ours, plain = [], []
            for day in (1, 2):

                class Clock(datetime):
                    @classmethod
                    def now(cls, day: int = day) -> datetime:
                        return datetime(2026, 1, day)

                monkeypatch.setattr(chat_template_utils, "datetime", Clock)
                ours.append(chat.ids("Be kind.", "Hello"))
                plain.append(chat.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False))
            assert plain[0] != plain[1]
            assert ours[0] == ours[1]
            assert chat.text("Be kind.", "Hello") == stamp + Chat(tokenizer()).text("Be kind.", "Hello")


def test_a_template_without_a_date_is_left_as_it_is():
    embedded = AutoTokenizer.from_pretrained(embedded_folder()).chat_template
    assert all(on_one_day(template) == template for template in (embedded, CHATML, NO_SYSTEM, THINKS))


def test_special_tokens_of_the_template_are_single_ids(chat: Chat):
    ids = chat.ids("", "Hello")
    assert ids[0] == 1
    assert ids.count(1) == 2
    assert ids.count(2) == 1


def test_no_special_token_is_added_to_the_template_s_own():
    chat = Chat(tokenizer("{% for message in messages %}{{ message['content'] }}{% endfor %}"))
    assert chat.decode(chat.ids("", "Hello")) == "Hello"
    assert len(chat.ids("", "Hello")) == 5


def test_a_prefill_continues_the_answer(chat: Chat):
    bare, begun = chat.ids("", "Hello"), chat.ids("", "Hello", prefill="I ")
    assert begun[: len(bare)] == bare
    assert chat.decode(begun[len(bare) :]) == "I "


def test_decoding_leaves_special_tokens_out(chat: Chat):
    ids = chat.tokenizer("Hé!", add_special_tokens=False)["input_ids"]
    assert chat.decode([*ids, 2, 0]) == "Hé!"


def test_a_loaded_model_s_chat_is_its_tokenizer_s(tiny: LanguageModel):
    assert tiny.chat.ids("a", "b") == Chat(tokenizer()).ids("a", "b")


SAID = ("Sure.", "", " a\n\n", "No <b>way</b>, café", "an-answer")


def test_prompt_answer_and_next_turn_are_the_conversation_that_the_template_renders():
    embedded = AutoTokenizer.from_pretrained(embedded_folder())
    for name, chat, systems in [
        ("tiny", Chat(tokenizer()), ("Be kind.", "")),
        ("embedded", Chat(embedded), ("Be kind.",)),
        ("reasoning", Chat(tokenizer(THINKS)), ("Be kind.", "")),
        ("without system role", Chat(tokenizer(NO_SYSTEM)), ("",)),
    ]:
        for system, said, user in product(systems, SAID, ("And now?", "One\ntwo", "What is an-answer?")):
            with case(name, system, said, user):
                turns = [("system", system), ("user", "Hello"), ("assistant", said), ("user", user)]
                conversation = [
                    {"role": role, "content": text} for role, text in turns if (role, text) != ("system", "")
                ]
                whole = chat.tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
                assert chat.text(system, "Hello") + said + chat.next_turn(user) == whole


def test_the_next_turn_ends_the_answer_before_it_and_opens_the_next(chat: Chat):
    assert chat.next_turn("Why?") == "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_a_text_is_ids_as_it_stands(chat: Chat):
    for text in ("", "Hé!\n", "<|im_end|>\n", " x "):
        ids = chat.plain_ids(text)
        assert str(chat.tokenizer.decode(ids)) == text
    assert chat.plain_ids("ab") == [*chat.plain_ids("a"), *chat.plain_ids("b")]
