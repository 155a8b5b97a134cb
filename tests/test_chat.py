"""From a system prompt and a message to token ids."""

import re
import shutil
from dataclasses import replace
from datetime import datetime
from itertools import product
from pathlib import Path
from string import ascii_letters

import pytest
import trl
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from heal.config import ModelConfig
from heal.decoding import decode
from heal.errors import UserError
from heal.models.chat import MARK, Chat, on_one_day
from heal.models.contract import SCRIPTS, SYSTEM, TEXTS, alike, check_contract
from heal.models.embedded import embedded_folder
from heal.models.language_model import LanguageModel
from tests.cases import case
from tests.tiny import CHATML, lean, load, tokenizer

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
ALWAYS_THINKS = CHATML.replace("assistant\n", "assistant\n<think>\n")
PARTS = CHATML.replace(
    "{{ message['content'] }}",
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}",
)
HARMONY = (
    "{% for message in messages %}<|start|>{{ message['role'] }}"
    "{% if message['role'] == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HARMONY_TOKENS = ["<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>"]
PLAIN = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
STAMPS = "{%- set today = strftime_now( '%Y-%m-%d' ) %}{{- 'The date is ' + today + '. ' }}" + CHATML


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tokenizer())


def test_the_prompt_ends_at_the_assistant_tag_with_single_special_tokens_and_no_empty_message(chat: Chat):
    assert chat.text("Be kind.", "Hello") == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )

    assert "system" not in chat.text("", "Hello")

    ids = chat.ids("", "Hello")
    assert ids[0] == 1
    assert ids.count(1) == 2
    assert ids.count(2) == 1


def test_a_template_without_system_role_gets_it_in_the_user_s_message_and_tells_two_apart():
    for template in [NO_SYSTEM, DROPS_SYSTEM]:
        with case(template):
            chat = Chat(tokenizer(template))
            assert not chat.takes_system
            assert "<|im_start|>user\nBe kind.\n\nHello<|im_end|>" in chat.text("Be kind.", "Hello")
    chat = Chat(tokenizer(NO_SYSTEM))
    later = chat.text("Be kind.", "Why?", [("user", "Hello"), ("assistant", "No.")])
    assert later == chat.text("Be kind.", "Hello") + "No." + chat.next_turn("Why?")

    for template in (CHATML, NO_SYSTEM, DROPS_SYSTEM):
        chat = Chat(tokenizer(template))
        assert chat.ids("Be kind.", "Hello") != chat.ids("Be cruel.", "Hello")


def test_a_template_that_stamps_the_date_gives_the_same_prompt_on_every_day_and_another_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
):
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

    embedded = AutoTokenizer.from_pretrained(embedded_folder()).chat_template
    assert all(on_one_day(template) == template for template in (embedded, CHATML, NO_SYSTEM, THINKS))


def test_a_loaded_model_s_chat_is_its_tokenizer_s(tiny: LanguageModel):
    assert tiny.chat.ids("a", "b") == Chat(tokenizer()).ids("a", "b")


SAID = ("Sure.", "", " a\n\n", "No <b>way</b>, café", "an-answer")


def test_prompt_answer_and_next_turn_are_the_conversation_that_the_template_renders(chat: Chat):
    assert chat.next_turn("Why?") == "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"

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
                assert chat.text(system, user, [("user", "Hello"), ("assistant", said)]) == whole


def test_a_text_and_a_prefill_are_ids_as_they_stand_and_decoding_leaves_special_tokens_out(chat: Chat):
    for text in ("", "Hé!\n", "<|im_end|>\n", " x "):
        ids = chat.plain_ids(text)
        assert str(chat.tokenizer.decode(ids)) == text
    assert chat.plain_ids("ab") == [*chat.plain_ids("a"), *chat.plain_ids("b")]

    bare, begun = chat.ids("", "Hello"), chat.ids("", "Hello", prefill="I ")
    assert begun[: len(bare)] == bare
    assert chat.decode(begun[len(bare) :]) == "I "

    ids = chat.tokenizer("Hé!", add_special_tokens=False)["input_ids"]
    assert chat.decode([*ids, 2, 0]) == "Hé!"

    chat = Chat(tokenizer("{% for message in messages %}{{ message['content'] }}{% endfor %}"))
    assert chat.decode(chat.ids("", "Hello")) == "Hello"
    assert len(chat.ids("", "Hello")) == 5


def knowing(template: str, tokens: list[str]) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with more special tokens."""
    made = tokenizer(template)
    made.add_special_tokens({"extra_special_tokens": tokens})
    return made


def published() -> dict[str, Chat]:
    """Templates of published models, as trl has them, with the special tokens that they write."""
    chats = {}
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        if "training" not in path.name:
            template = path.read_text(encoding="utf-8")
            tokens = set(re.findall(r"<[|｜][^ <>{}'\"]*[|｜]>|<\w+[|]>|<\|\w+>|<\w*_of_\w+>|</s>", template))
            made = knowing(template, sorted(tokens))
            made.add_special_tokens({"bos_token": "<bos>"})  # the tiny tokenizer's own also opens a turn
            chats[path.stem] = Chat(made)
    return chats


def unthought(text: str) -> str:
    return re.sub(r"<think>\s*</think>\s*", "", text).rstrip()


def test_published_templates_keep_the_contract_and_their_prompts_end_where_they_begin_an_answer():
    chats = published()
    assert len(chats) > 30
    for name, chat in chats.items():
        with case(name):
            check_contract(chat, ModelConfig())
            assert chat.end_ids
            for system, user in product(("", SYSTEM), TEXTS):
                turns = chat.turns(system, user)
                answered = chat.render([*turns, ("assistant", MARK)], generation=False).partition(MARK)[0]
                assert unthought(chat.text(system, user)) == unthought(answered)
                assert not chat.text(system, user).rstrip().endswith("<think>")
    for name, opening, ends in [
        ("gptoss", "<|channel|>final<|message|>", {"<|return|>", "<|end|>"}),
        ("deepseekv3", "", {"<｜end▁of▁sentence｜>"}),
        ("qwen3", "", {"<|im_end|>"}),
        ("phi3", "", {"<|end|>"}),
        ("glm4moe", "", {"<|user|>"}),
        ("idefics3", "", {"<end_of_utterance>"}),
    ]:
        chat = chats[name]
        assert chat.opening == opening, name
        assert set(chat.tokenizer.convert_ids_to_tokens(sorted(chat.end_ids))) == ends, name
    assert chats["deepseekv3"].text("", "Hello").endswith("<｜Assistant｜><think>\n\n</think>\n\n")


def test_a_thought_that_the_template_opens_is_closed_in_the_prompts_where_it_does():
    for template, closed in [
        (ALWAYS_THINKS, "<think>\n\n</think>\n\n"),
        (ALWAYS_THINKS.replace("<think>\n", "<think>"), "<think></think>"),
        (ALWAYS_THINKS.replace("<think>\n", "[THINK]"), "[THINK][/THINK]"),
    ]:
        with case(template):
            chat = Chat(tokenizer(template))
            plain = Chat(tokenizer())
            assert chat.text("Be kind.", "Hello") == plain.text("Be kind.", "Hello") + closed
            assert chat.next_turn("Why?") == plain.next_turn("Why?") + closed
            assert any("</think>" in line or "[/THINK]" in line for line in check_contract(chat, ModelConfig()))

    asked = "{% if '/no_think' in messages[0]['content'] %}<think></think>{% else %}<think>\n{% endif %}"
    chat = Chat(tokenizer(CHATML.replace("assistant\n", "assistant\n" + asked)))
    for system, end in (("Be kind.", "<think>\n\n</think>\n\n"), ("Be kind. /no_think", "assistant\n<think></think>")):
        assert chat.text(system, "What is <think>?").endswith(end), system

    assert "<think>" not in Chat(tokenizer(THINKS)).text("", "Hello")


def test_the_final_channel_of_harmony_is_opened_in_the_prompt_and_both_its_closings_end_an_answer():
    chat = Chat(knowing(HARMONY, HARMONY_TOKENS))
    assert chat.text("", "Hello").endswith("Hello<|end|><|start|>assistant<|channel|>final<|message|>")
    assert chat.next_turn("Why?") == (
        "<|end|><|start|>user<|message|>Why?<|end|><|start|>assistant<|channel|>final<|message|>"
    )
    assert chat.end_ids == set(chat.tokenizer.convert_tokens_to_ids(["<|return|>", "<|end|>"]))
    check_contract(chat, ModelConfig())


def test_a_template_that_takes_parts_gets_parts():
    plain, chat = Chat(tokenizer()), Chat(tokenizer(PARTS))
    assert chat.takes_parts
    assert not plain.takes_parts
    assert chat.text("Be kind.", "Hello") == plain.text("Be kind.", "Hello")
    assert chat.next_turn("Why?") == plain.next_turn("Why?")


def test_a_prompt_has_one_beginning_of_sequence_and_one_that_begins_twice_is_refused():
    chat = Chat(tokenizer("{{ bos_token }}" + PLAIN))
    assert chat.tokenizer("x")["input_ids"][0] == chat.tokenizer.bos_token_id == 1
    assert chat.ids("Be kind.", "Hello").count(1) == 1

    class Doubling(Chat):
        def plain_ids(self, text: str) -> list[int]:
            return [1, *super().plain_ids(text)]

    with pytest.raises(UserError, match=r"begins with '<\|im_start\|>' twice"):
        check_contract(Doubling(tokenizer()), ModelConfig())


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama's folder, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def saved(folder: Path, made: PreTrainedTokenizerFast) -> Path:
    """The folder with another tokenizer."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    made.save_pretrained(folder)
    return folder


def test_what_closes_an_answer_in_the_template_ends_a_completion_and_is_no_part_of_its_text(folder: Path):
    made = tokenizer()
    made.eos_token = "<|pad|>"
    path = saved(folder, made) / "generation_config.json"
    path.write_text(path.read_text().replace('"eos_token_id": 2', '"eos_token_id": 9'))
    model = load(folder)
    assert model.end_ids == {0, 2, 9}
    lean(model, "<|im_end|>", 1e3)
    (said,) = decode(model, [model.chat.ids("", "Hello")], 8)
    assert (said.ids, said.ended, model.chat.decode(list(said.ids))) == ((2,), True, "")

    made = tokenizer(CHATML.replace("<|im_end|>", "<|END|>"))
    made.add_tokens(["<|END|>"])
    chat = Chat(made)
    assert made.decode(chat.plain_ids("Hé!<|END|>"), skip_special_tokens=True) == "Hé!<|END|>"
    assert chat.decode(chat.plain_ids("Hé!<|END|>")) == "Hé!"


def test_an_answer_that_ends_in_ordinary_text_is_a_notice_and_without_an_end_of_sequence_refused(folder: Path):
    made = tokenizer(PLAIN)
    (notice,) = load(saved(folder, made)).notices
    assert "ends an answer with ordinary text ('\\n')" in notice
    made.eos_token = None
    path = saved(folder, made) / "generation_config.json"
    path.write_text(path.read_text().replace('"eos_token_id": 2', '"eos_token_id": null'))
    with pytest.raises(UserError, match="ends an answer with ordinary text"):
        load(folder)


def refused(folder: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_template_that_breaks_the_contract_or_is_no_text_is_refused_in_one_line_that_names_it(
    folder: Path, tmp_path: Path
):
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML, encoding="utf-16")
    assert f"model.chat_template={path}: not a text in UTF-8" in refused(folder, chat_template=str(path))
    path.write_text(CHATML, encoding="utf-8-sig")
    assert load(folder, chat_template=str(path)).chat.text("", "Hi") == Chat(tokenizer()).text("", "Hi")

    content = "{{ message['content'] }}"
    demands = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system message comes first') }}{% endif %}"
    for what, template in [
        ("unexpected 'end of template'", CHATML + "{% if"),
        ("'today' is undefined", "{{ today.strftime('%d') }}" + CHATML),
        ("a system message comes first); it demands a system message", demands + CHATML),
        (
            "a chat of user, assistant (TypeError: unsupported operand",
            "{% for message in messages if message['role'] == 'assistant' %}{{ 1 + '' }}{% endfor %}" + CHATML,
        ),
        (
            "what the user says is not in the rendered prompt",
            CHATML.replace("'role'", "'from'").replace("'content'", "'value'"),
        ),
        ("what the user says is not in the rendered prompt", CHATML.replace(content, "{{ message['content'] | e }}")),
        (
            "what the user says is not in the rendered prompt",
            CHATML.replace(content, "{{ message['content'] | lower }}"),
        ),
        (
            "what the user says is not in the rendered prompt",
            CHATML.replace(content, "{{ message['content'].splitlines()[0] }}"),
        ),
        ("what the user says is 2 times in the rendered prompt", CHATML.replace(content, 2 * content)),
        (
            "the system prompt is 2 times in the rendered prompt",
            "{{ messages[0]['content'] if messages[0]['role'] == 'system' }}" + CHATML,
        ),
        (
            "loses what the assistant says",
            NO_SYSTEM.replace(content, "{{ message['content'] if message['role'] == 'user' }}"),
        ),
        ("opens no turn of the assistant", "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"),
        ("begins a thought", ALWAYS_THINKS.replace("<think>\n", "<think>\nOkay, ")),
        ("opens another turn", CHATML.replace("<|im_start|>assistant\n", "<|im_start|>model\n")),
    ]:
        with case(what, template):
            path = tmp_path / "mine.jinja"
            path.write_text(template)
            message = refused(folder, chat_template=str(path))
            assert f"model.chat_template={path}: " in message
            assert what in message
            assert f"model.name={saved(folder, tokenizer(template))}: " in refused(folder)


def test_of_named_templates_the_default_is_taken_and_without_one_their_names_are_said(folder: Path):
    made = tokenizer()
    made.chat_template = {"default": CHATML, "rag": "x"}
    assert load(saved(folder, made)).chat.text("", "Hi") == Chat(tokenizer()).text("", "Hi")
    made.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(UserError, match=r"model\.name=this: .* rag, tool_use, .*set model\.chat_template=PATH"):
        check_contract(Chat(made), ModelConfig(name="this"))


def test_a_system_prompt_that_is_folded_into_the_user_s_message_is_a_notice(folder: Path):
    (notice,) = load(saved(folder, tokenizer(NO_SYSTEM))).notices
    assert "renders no system message" in notice
    assert load(saved(folder, tokenizer())).notices == ()


def test_a_tokenizer_that_does_not_know_latin_letters_is_refused_and_one_that_knows_no_others_is_a_notice(folder: Path):
    assert "'Is it x?' and 'Is it z?' the same tokens" in refused(saved(folder, tokenizer(without="xz")))
    foreign = "".join(set(ByteLevel.alphabet()) - set(map(chr, range(128))) - {"Ġ", "Ċ", "ĉ"})
    assert not set(foreign) & set(ascii_letters)
    (notice,) = load(saved(folder, tokenizer(without=foreign))).notices
    assert notice == f"the tokenizer does not know the letters of {', '.join(SCRIPTS)}"


def test_messages_that_differ_in_white_space_around_them_alone_are_not_told_apart(chat: Chat):
    poor = replace(chat, tokenizer=tokenizer(without="ab"))
    assert alike(poor, "", ["Is it a?", "Is it c?", "Is it b?"]) == ("Is it a?", "Is it b?")
    assert alike(poor, "", ["Is it a?", "Is it c?", "Is it a?"]) is None
    assert alike(Chat(tokenizer(CHATML.replace("['content']", "['content'] | trim"))), "", ["Yes?", " Yes?\n"]) is None
