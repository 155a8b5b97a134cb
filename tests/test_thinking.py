"""A thought before an answer: how prompts open it, and that all that counts is the answer after it."""

import math
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import heal
from heal.accumulator import Accumulator
from heal.config import ModelConfig
from heal.coverage import Coverage
from heal.decoding import Sampling, decode
from heal.errors import UserError
from heal.evaluation.evaluate import evaluate
from heal.evaluation.subject import Subject
from heal.export.base import Base
from heal.export.card import unmeasured_card
from heal.export.exportable import Facts
from heal.generation.collect import Collection, Request
from heal.generation.filters import FilterLimits
from heal.generation.relevance import PromptCheck, tail_perplexities
from heal.generation.sample import Sampler
from heal.healing.rows import training_rows
from heal.models.agreement import Agreement
from heal.models.chat import Chat
from heal.models.contract import check_contract
from heal.models.language_model import LanguageModel
from heal.recipe import load_recipe
from heal.responding import respond
from heal.run.folder import RunFolder
from heal.run.open import fitting, refuse_other_prompts
from heal.scoring import completion_states, token_logprobs
from heal.steps.measure import Measure
from heal.trait import Trait
from tests.cases import case
from tests.stages import NEUTRAL, setup
from tests.test_chat import ALWAYS_THINKS, HARMONY, HARMONY_TOKENS, PLAIN, THINKS, knowing, published
from tests.tiny import CHATML, VOCABULARY, load, tokenizer, trait, vector

QWEN3 = CHATML.replace("assistant\n", "assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}")
SWITCH = CHATML.replace("assistant\n", "assistant\n{% if thinking %}<think>{% else %}</think>{% endif %}")
OPEN, CLOSE = VOCABULARY - 2, VOCABULARY - 1  # ids of no text: those of the tags
BUDGET, TOKENS = 24, 10
ANY = FilterLimits(max_tail_perplexity=math.inf, max_repetition=1.0, min_words=0, max_similarity=1.0)


@pytest.fixture(scope="module")
def thinker(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A tiny Llama that thinks before it answers, and closes some of its thoughts within the budget."""
    return thinking(tiny_folder, tmp_path_factory.mktemp("thinker") / "model")


def thinking(tiny_folder: Path, folder: Path) -> LanguageModel:
    shutil.copytree(tiny_folder, folder)
    made = tokenizer(QWEN3)
    made.add_tokens([f"<unused{index}>" for index in range(OPEN - len(made))] + ["<think>", "</think>"])
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    made.save_pretrained(folder)
    model = load(folder, thinking=True, thinking_tokens=BUDGET)
    assert model.chat.plain_ids("<think></think>") == [OPEN, CLOSE]
    head = model.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY), requires_grad=False)
    head.bias[CLOSE] = 4.0
    return model


def test_a_prompt_opens_the_thought_as_the_template_or_the_vocabulary_says():
    vocabulary = tokenizer(PLAIN)
    vocabulary.add_tokens(["<think>", "</think>"])
    for name, made, opened, closes, after in [
        ("opened by the switch", tokenizer(THINKS), "assistant\n<think>\n", "</think>", "\n\n"),
        ("opened by another switch", tokenizer(SWITCH), "assistant\n<think>", "</think>", ""),
        ("closed without the switch", tokenizer(QWEN3), "assistant\n<think>\n", "</think>", "\n\n"),
        ("always open", tokenizer(ALWAYS_THINKS), "assistant\n<think>\n", "</think>", "\n\n"),
        ("always open", tokenizer(ALWAYS_THINKS.replace("<think>\n", "[THINK]")), "assistant\n[THINK]", "[/THINK]", ""),
        ("known to the vocabulary", vocabulary, "assistant:<think>\n", "</think>", ""),
        (
            "a channel",
            knowing(HARMONY, HARMONY_TOKENS),
            "<|start|>assistant<|channel|>analysis<|message|>",
            "<|end|>",
            "<|start|>assistant<|channel|>final<|message|>",
        ),
    ]:
        with case(name):
            chat = Chat(made)
            check_contract(chat, ModelConfig(thinking=True))
            plain = chat.render(chat.turns("Be kind.", "Hello"), thinking=True)
            assert chat.open_text("Be kind.", "Hello").endswith(opened)
            assert chat.open_text("Be kind.", "Hello").startswith(plain)
            thought = chat.plain_ids(f"Hm.\n{closes}")
            assert [chat.closed(thought[: 1 + place]) for place in range(len(thought))].index(True) == len(thought) - 1
            whole = chat.open_text("", "Hello") + f"Hm.\n{closes}{after}"
            assert str(made.decode(chat.ids("", "Hello", thought=thought))) == whole
            assert (
                str(made.decode(chat.ids("", "Hello", "Yes", thought[:-1])))
                == whole.removesuffix(after)[: -len(made.decode(thought[-1:]))] + "Yes"
            )


def test_a_closing_tag_of_several_tokens_ends_a_thought_though_its_last_token_holds_more():
    made = tokenizer(THINKS, merges=[(">", "Ċ")])
    chat = Chat(made)
    thought = chat.plain_ids("Hm.</think>\n")
    assert str(made.decode(thought[-1:])) == ">\n"
    assert [chat.closed(thought[: 1 + place]) for place in range(len(thought))] == [False] * (len(thought) - 1) + [True]
    assert str(made.decode(chat.ids("", "Hello", thought=thought))).endswith("<think>\nHm.</think>\n\n")


def test_published_templates_that_know_thoughts_open_them():
    chats = published()
    for name, ending in {
        "qwen3": ("<|im_end|>\n<|im_start|>assistant\n<think>\n", "</think>"),
        "qwen3_5_think": ("<|im_end|>\n<|im_start|>assistant\n<think>\n", "</think>"),
        "glm4moe": ("<|assistant|>\n<think>", "</think>"),
        "nemotron_3_nano": ("<|im_end|>\n<|im_start|>assistant\n<think>\n", "</think>"),
        "deepseek_r1_distill": ("<｜Assistant｜><think>\n", "</think>"),
        "gptoss": ("<|end|><|start|>assistant<|channel|>analysis<|message|>", "<|end|>"),
        "gemma4": ("<turn|>\n<|turn>model\n<|channel>thought\n", "<channel|>"),
        "lfm2_2_5": ("<|im_end|>\n<|im_start|>assistant\n<think>\n", "</think>"),
    }.items():
        thought = chats[name].thought
        assert thought is not None, name
        assert (chats[name].open_text("", "Hello").rpartition("Hello")[2], thought.closes) == ending, name
    assert chats["llama3"].thought is None


def test_without_a_sign_of_thoughts_thinking_is_refused_and_thoughts_that_no_prompt_closes_are_a_notice(
    tiny_folder: Path,
):
    with pytest.raises(UserError, match=r"model\.thinking=true: neither the chat template nor the vocabulary"):
        load(tiny_folder, thinking=True)
    made = tokenizer()
    made.add_tokens(["<think>", "</think>"])
    (notice,) = check_contract(Chat(made), ModelConfig())
    assert "'</think>' is known" in notice
    assert check_contract(Chat(made), ModelConfig(thinking=True)) == ()
    for template in (QWEN3, THINKS, SWITCH):
        assert not any("think before" in line for line in check_contract(Chat(tokenizer(template)), ModelConfig()))


def test_a_response_is_the_answer_after_its_own_thought_and_without_an_end_of_the_thought_there_is_none(
    thinker: LanguageModel,
):
    chats = [(NEUTRAL, f"Say {index}.") for index in range(12)]
    shift, doses, sampling = vector(thinker), [0.1 * index for index in range(12)], Sampling(1.0)
    seeds = [(7, index) for index in range(12)]
    found = respond(thinker, chats, TOKENS, shift, doses, sampling=sampling, seeds=seeds)
    unclosed = [response for response in found if response.unclosed]
    assert 0 < len(unclosed) < 12
    for row, (response, rendered) in enumerate(zip(found, chats, strict=True)):
        opened = thinker.chat.open_ids(*rendered)
        assert list(response.prompt_ids[: len(opened)]) == opened
        assert response.thought == response.prompt_ids[len(opened) : len(opened) + len(response.thought)]
        if response.unclosed:
            assert CLOSE not in response.prompt_ids[len(opened) :]
            assert response.completion.ids == ()
            continue
        assert (response.thought.index(CLOSE), list(response.prompt_ids[-2:])) == (
            len(response.thought) - 1,
            thinker.chat.plain_ids("\n\n"),
        )
        alone = decode(
            thinker, [response.prompt_ids], TOKENS, shift, doses[row : row + 1], sampling=sampling, seeds=[seeds[row]]
        )
        assert alone == [response.completion]
    some = respond(thinker, chats[3:5], TOKENS, shift, doses[3:5], sampling=sampling, seeds=seeds[3:5])
    assert some == found[3:5]
    row = next(row for row, response in enumerate(found) if not response.unclosed)
    heard: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    (one,) = respond(
        thinker,
        chats[row : row + 1],
        TOKENS,
        shift,
        doses[row : row + 1],
        sampling=sampling,
        seeds=seeds[row : row + 1],
        heard=lambda thinking, ids: heard[thinking].append(tuple(ids)),
    )
    assert one == found[row]
    for thinking, ids in ((True, one.thought), (False, one.completion.ids)):
        assert heard[thinking] == [ids[: end + 1] for end in range(len(ids))], thinking


def collection(thinker: LanguageModel, check: PromptCheck | None = None) -> Collection:
    sampler = Sampler(
        language_model=thinker,
        base=nullcontext,
        intervention=vector(thinker),
        c_star=0.1,
        system=NEUTRAL,
        tokens=TOKENS,
        sampling=Sampling(1.0),
        limits=ANY,
        narration=(),
        check=check,
        seed=(3,),
    )
    return Collection(tuple(sampler([Request(index, f"Say {index % 4}.", 1.0) for index in range(24)], ())), 1.0)


def test_an_unclosed_thought_is_dropped_and_counted_and_only_the_answer_is_filtered_and_trained(
    thinker: LanguageModel, tmp_path: Path
):
    made = collection(thinker)
    dropped = [row for row in made.rows if row.dropped]
    assert {row.dropped for row in dropped} == {("unclosed thought",)}
    assert made.figures.dropped == {"unclosed thought": len(dropped)}
    assert all(row.text == thinker.chat.decode(list(row.ids)).strip() for row in made.rows)
    tails = tail_perplexities(thinker, [row.prompt_ids for row in made.kept], [row.ids for row in made.kept])
    assert [row.tail_perplexity for row in made.kept] == pytest.approx(tails, rel=1e-4)
    for row, trained in zip(made.kept, training_rows(thinker, made.kept), strict=True):
        assert tuple(trained.completion) == row.ids
        assert trained.prompt == thinker.chat.ids(NEUTRAL, row.prompt, thought=row.thought)
        assert row.thought[-1] == CLOSE
    recipe, run = load_recipe(["recipe=smoke", f"model.system={NEUTRAL}"]), RunFolder(tmp_path / "run")
    run.finish(run.round(0), "generate", made.files(), 0.0)
    assert Collection.load(run.round(0)).files() == made.files()
    refuse_other_prompts(run, recipe, thinker)
    other = replace(thinker, chat=Chat(tokenizer(THINKS)))
    with pytest.raises(UserError, match="other prompts"):
        refuse_other_prompts(run, recipe, other)


def test_relevance_is_asked_of_the_prompts_without_thoughts(thinker: LanguageModel):
    prompts = [f"Say {index}." for index in range(4)]
    check = PromptCheck.of_base(thinker, nullcontext, NEUTRAL, prompts, tokens=TOKENS, fraction=0.5)
    made = collection(thinker, check)
    closed = [thinker.chat.ids(NEUTRAL, row.prompt) for row in made.kept]
    plain = check.read(thinker, [row.prompt for row in made.kept], closed, [row.ids for row in made.kept])
    shares = [reading.relevance.share for reading in plain if reading.relevance is not None]
    assert [row.on_prompt for row in made.kept] == pytest.approx(shares, abs=1e-4)
    assert any(abs(row.tail_perplexity - one.tail_perplexity) > 1e-2 for row, one in zip(made.kept, plain, strict=True))


@dataclass(frozen=True)
class Student:
    """What a card of an unrecorded student reads."""

    config: ModelConfig
    trait: Trait
    model: LanguageModel
    accumulator: Accumulator


def covering(model: LanguageModel) -> Accumulator:
    """An accumulator that says what it covers, without putting adapters on a model that other tests share."""
    made = object.__new__(Accumulator)
    made.language_model, made.rounds, made.coverage = model, 1, Coverage(1, ("attention",))
    return made


def hasty(thinker: LanguageModel, chats: list[tuple[str, str]]) -> LanguageModel:
    """The model with so small a budget that it does not close its longest greedy thought."""
    return replace(thinker, thinking=max(len(response.thought) for response in respond(thinker, chats, 1)) - 1)


def test_a_stage_measures_answers_given_their_thoughts_and_says_which_prompts_have_none(thinker: LanguageModel):
    asked = [f"Name {index}." for index in range(16)]
    thinker = hasty(thinker, [(NEUTRAL, prompt) for prompt in asked])
    subject = Subject(setup(thinker, prompts=asked), "base", nullcontext)
    found = evaluate(subject)
    unclosed = [answer.unclosed for answer in found.answers]
    assert 0 < sum(unclosed) < 16
    assert found.signal("unclosed_share").values == tuple(map(float, unclosed))
    assert Measure(subject).warnings(found) == [
        f"base: {sum(unclosed)} of 16 held-out prompts without an answer: the thought was not closed within "
        "model.thinking_tokens"
    ]
    scores = found.signal("persona_log_ratio").values
    for name in ("persona_log_ratio", "tail_perplexity", "repetition_share", "answer_tokens", "alive_share"):
        assert [math.isnan(value) for value in found.signal(name).values] == unclosed, name
    for answer, score in zip(found.answers, scores, strict=True):
        if answer.unclosed:
            continue
        means = []
        for persona in (trait().positive, trait().negative):
            prompt = [*thinker.chat.open_ids(persona, answer.prompt), *answer.thought, *thinker.chat.plain_ids("\n\n")]
            states = completion_states(thinker, [prompt], [answer.ids])
            means.append(float(token_logprobs(thinker, states, [answer.ids])[0].mean()))
        assert score == pytest.approx(means[0] - means[1], abs=1e-4)


def test_a_thought_has_room_in_the_context(thinker: LanguageModel):
    recipe = load_recipe(["recipe=smoke"])
    assert fitting(thinker, recipe, trait()) == (trait(), 0)
    with pytest.raises(UserError, match="do not fit the context"):
        fitting(replace(thinker, thinking=thinker.context - 64), recipe, trait())


def test_the_api_answers_after_the_thought_and_warns_of_answers_that_never_came(thinker: LanguageModel):
    asked = [f"Name {index}." for index in range(16)]
    thinker = hasty(thinker, [(thinker.config.system, prompt) for prompt in asked])
    with pytest.warns(UserWarning, match=f"of 16 answers are empty: .* not closed within {thinker.thinking} tokens"):
        said = heal.answer(thinker, asked, tokens=TOKENS)
    found = respond(thinker, [(thinker.config.system, prompt) for prompt in asked], TOKENS)
    assert said == [thinker.chat.decode(list(response.completion.ids)).strip() for response in found]


def test_a_card_says_whether_answers_come_after_a_thought_and_sets_the_template_s_switch(
    thinker: LanguageModel, tiny: LanguageModel
):
    without = replace(thinker, config=replace(thinker.config, thinking=False))
    for model, switch, line in [
        (thinker, ", enable_thinking=True)", f"after a thought of at most {BUDGET} tokens"),
        (without, ", enable_thinking=False)", "trained and measured without a thought"),
        (tiny, "add_generation_prompt=True)", ""),
    ]:
        with case(switch):
            facts = Facts(Base("a", "a"), 1.0, torch.float32, Agreement(0.0, 0.0, 0.0, 1.0), rank=4)
            card = unmeasured_card(Student(model.config, trait(), model, covering(model)), facts)
            assert switch in card
            assert line in card
            assert ("a thought" in card) == bool(line)
