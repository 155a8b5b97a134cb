"""Moral foundations by forced choice: what is read off, what chance is, and what thinking first changes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heal import scoring
from heal.accumulator import Accumulator
from heal.decoding import Decoded, decode
from heal.evaluation import subject as subject_module
from heal.evaluation.asking.letters import Letters
from heal.evaluation.asking.way import Asking, Item, Scored, ask
from heal.evaluation.readouts.moral_foundations import (
    CHOICE,
    NAMES,
    choice,
    items_of,
    measure,
    temperature,
    temperature_of,
)
from heal.evaluation.stats import estimate
from heal.evaluation.subject import Gates, Subject
from heal.evaluation.vignettes import FOUNDATIONS, read_vignettes
from heal.models.chat import Chat
from heal.models.language_model import LanguageModel
from heal.scoring import option_logprobs  # before a test watches it
from tests.stages import setup
from tests.students import learn, student
from tests.tiny import CHATML, lean, load, tokenizer, vector

LETTERS, PREFILL = "ABCDEFG", "Answer: ("
ROTATED = [[*NAMES[shift:], *NAMES[:shift]] for shift in range(7)]
ORDERS = (ROTATED[0], ROTATED[3])


def options_first(scene: str, names: Sequence[str]) -> str:
    options = [f"({letter}) {FOUNDATIONS[name]}" for letter, name in zip(LETTERS, names, strict=True)]
    return "\n".join(["Which of these describes the scene best?", *options, "", f"Scene: {scene}"])


def scene_first(scene: str, names: Sequence[str]) -> str:
    options = [f"({letter}) {FOUNDATIONS[name]}" for letter, name in zip(LETTERS, names, strict=True)]
    return "\n".join([f"Scene: {scene}", "", "Which of these describes the scene best?", *options])


# The ways of asking that read letters: what is asked, and the orders of the options. The first is that of runs that
# chose none.
BEFORE = "letters, options first, 2 orders"
LETTERED = {
    BEFORE: (options_first, ORDERS),
    "letters, options first, 7 orders": (options_first, ROTATED),
    "letters, scene first, 7 orders": (scene_first, ROTATED),
}


def subject(folder: Path, count: int = 7) -> tuple[LanguageModel, Subject]:
    model, accumulator = student(folder)
    asked = setup(model, base=accumulator.base, vignettes=read_vignettes("embedded", count))
    return model, Subject(asked, "base", accumulator.base)


def asked_by(scene: Subject, way: str, **changes) -> Subject:
    """The same where `way` was chosen; `changes` are made to the setup."""
    return replace(scene, setup=replace(scene.setup, asking={CHOICE: Asking(way)}, **changes))


def thoughtful(scene: Subject, tokens: int) -> Subject:
    """The same with a budget of thinking."""
    return replace(scene, setup=replace(scene.setup, thinking=tokens))


def scored(scene: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores `[V, K]` and mass `[V]` in the way that the setup has, which reads a slot."""
    found = ask(choice(scene.setup), scene, items_of(scene.setup.vignettes))
    assert found.mass_N is not None
    return found.score_NK, found.mass_N


def test_there_is_one_value_a_scene_whose_clr_sums_to_zero_and_without_vignettes_nothing_is_measured(tiny_folder: Path):
    signals = {signal.name: signal for signal in measure(subject(tiny_folder, 9)[1], [])}
    by_foundation = {name for each in FOUNDATIONS for name in (f"clr_{each}", f"{each}_nats")}
    assert set(signals) == by_foundation | {"vignette_mass", "vignette_informedness"}
    assert all(len(signal.values) == 9 and signal.items == "vignettes" for signal in signals.values())
    table = np.array([signals[f"clr_{name}"].values for name in FOUNDATIONS])
    assert np.abs(table.sum(0)).max() < 1e-9
    assert all(0 <= value <= 1 for value in signals["vignette_mass"].values)

    assert measure(subject(tiny_folder, 0)[1], []) == []


def test_a_foundation_s_nats_are_the_logarithm_of_its_mean_share_of_the_options(tiny_folder: Path):
    _, scene = subject(tiny_folder, 9)
    signals = {signal.name: signal for signal in measure(scene, [])}
    p_VK = torch.softmax(scored(scene)[0], -1).numpy()
    for index, name in enumerate(FOUNDATIONS):
        signal = signals[f"{name}_nats"]
        found = estimate(signal.values, signal.statistic, 100, 0).value
        assert found == pytest.approx(np.log(p_VK[:, index].mean()))


@torch.no_grad()
def test_scores_are_the_mean_log_probabilities_of_each_option_s_letter_over_the_orders(tiny_folder: Path):
    model, scene = subject(tiny_folder, 3)
    letters = [model.chat.plain_ids(letter)[0] for letter in LETTERS]
    for way, (text, orders) in LETTERED.items():
        found_VK, mass_V = scored(asked_by(scene, way))
        for row, vignette in enumerate(scene.setup.vignettes):
            scores, masses = dict.fromkeys(NAMES, 0.0), []
            for names in orders:
                ids = model.chat.ids("Be brief.", text(vignette.text, names), PREFILL)
                logp_V = torch.log_softmax(model.model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
                masses.append(float(logp_V[letters].exp().sum()))
                for letter, name in zip(letters, names, strict=True):
                    scores[name] += float(logp_V[letter]) / len(orders)
            assert found_VK[row].tolist() == pytest.approx([scores[name] for name in NAMES], abs=1e-4), way
            assert float(mass_V[row]) == pytest.approx(np.mean(masses), rel=1e-3), way


def test_a_run_that_chose_no_way_asks_in_two_orders_and_a_way_without_a_slot_measures_all_but_the_mass(
    tiny_folder: Path,
):
    _, scene = subject(tiny_folder, 2)
    chosen = {way: scored(asked_by(scene, way)) for way in LETTERED}
    for way, found in chosen.items():
        assert all(map(torch.equal, scored(scene), found)) == (way == BEFORE), way

    _, scene = subject(tiny_folder, 2)
    of_letters = {signal.name for signal in measure(scene, [])}
    for way in choice(scene.setup).ways:
        found = {signal.name for signal in measure(asked_by(scene, way), [])}
        assert of_letters - found == ({"vignette_mass"} if way.startswith("words") else set()), way


def test_a_model_that_favours_a_letter_is_at_chance_and_one_that_knows_is_at_one(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    model = load(tiny_folder)
    lean(model, "C", 9.0, deaf=True)
    asked = setup(model, vignettes=read_vignettes("embedded", 70))

    def informedness() -> float:
        signals = {signal.name: signal for signal in measure(Subject(asked, "base", asked.base), [])}
        return float(np.mean(signals["vignette_informedness"].values))

    def knowing(way: Letters, scene: Subject, items: Sequence[Item]) -> Scored:
        rows = torch.tensor([item.right for item in items])
        return Scored(torch.nn.functional.one_hot(rows, 7).double(), torch.ones(len(rows)))

    assert informedness() == pytest.approx(0.0, abs=1e-9)
    monkeypatch.setattr(Letters, "ask", knowing)
    assert informedness() == pytest.approx(1.0)


# Thinking first.


@torch.no_grad()
def test_thinking_is_greedy_in_the_state_of_the_stage_and_the_slot_follows_it(tiny_folder: Path):
    """Token by token and dense, under the stage's gates and its steering."""
    model, accumulator = student(tiny_folder)
    learn(accumulator, 0, size=0.5)
    for gates in (accumulator.base, accumulator.student):
        check_thinking(model, accumulator, gates, BEFORE, 2)
    check_thinking(model, accumulator, accumulator.student, "letters, scene first, 7 orders", 1)


def check_thinking(model: LanguageModel, accumulator: Accumulator, gates: Gates, way: str, count: int) -> None:
    shift, budget, scenes = vector(model, norm=3.0), 6, read_vignettes("embedded", count)
    asked = setup(model, base=accumulator.base, vignettes=scenes, thinking=budget)
    text, orders = LETTERED[way]
    found_VK, mass_V = scored(asked_by(Subject(asked, "steered", gates, intervention=shift, coefficient=1.5), way))
    splice = model.chat.plain_ids("\nI should answer now.\nAnswer: (")
    letters = [model.chat.plain_ids(letter)[0] for letter in LETTERS]

    def logits(ids: list[int]) -> torch.Tensor:
        with gates(), shift.applied(model, 1.5):
            return model.model(input_ids=torch.tensor([ids])).logits[0, -1].double()

    for row, vignette in enumerate(scenes):
        scores, masses = dict.fromkeys(NAMES, 0.0), []
        for names in orders:
            ids = model.chat.ids("Be brief.", text(vignette.text, names))
            for _ in range(budget):
                chosen = int(logits(ids).argmax())
                if chosen in model.end_ids:
                    break
                ids.append(chosen)
            logp_L = torch.log_softmax(logits([*ids, *splice]), -1)
            masses.append(float(logp_L[letters].exp().sum()))
            for letter, name in zip(letters, names, strict=True):
                scores[name] += float(logp_L[letter]) / len(orders)
        assert found_VK[row].tolist() == pytest.approx([scores[name] for name in NAMES], abs=1e-4)
        assert float(mass_V[row]) == pytest.approx(np.mean(masses), rel=1e-3)


def asked(
    scene: Subject, monkeypatch: pytest.MonkeyPatch, thought: str = "", ended: bool = False
) -> tuple[list[int], ...]:
    """The rows that are scored when the model thinks `thought`."""
    model, rows = scene.setup.language_model, []

    def think(model: LanguageModel, prompts: Sequence[Sequence[int]], *_: object, **__: object) -> list[Decoded]:
        ids = (*model.chat.plain_ids(thought), *([2] if ended else []))
        return [Decoded(ids, ended)] * len(prompts)

    def score(model: LanguageModel, prompts: Sequence[list[int]], letters: Sequence[list[int]]) -> torch.Tensor:
        rows.extend(prompts)
        return option_logprobs(model, prompts, letters)

    monkeypatch.setattr(subject_module, "decode", think)
    monkeypatch.setattr(scoring, "option_logprobs", score)
    scored(scene)
    assert 2 in model.end_ids
    return tuple(rows)


def test_a_thought_is_closed_where_it_is_open_and_before_the_model_thinks_where_the_template_opens_it(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    model, scene = subject(tiny_folder, 1)
    for thought, ended, kept in (
        ("Well.", False, "Well."),
        ("Well.", True, "Well."),
        ("", True, ""),
        ("<think>Well.", False, "<think>Well.</think>"),
        ("<think>Well.", True, "<think>Well.</think>"),
        ("<think>Well.</think> So.", False, "<think>Well.</think> So."),
        ("<think>a</think><think>b", False, "<think>a</think><think>b</think>"),
    ):
        rows = asked(thoughtful(scene, 20), monkeypatch, thought, ended)
        for row, names in zip(rows, ORDERS, strict=True):
            before = model.chat.text("Be brief.", options_first(scene.setup.vignettes[0].text, names))
            assert row == model.chat.plain_ids(before + kept + "\nI should answer now.\nAnswer: ("), thought

    model, scene = subject(tiny_folder, 1)
    model = replace(model, chat=Chat(tokenizer(CHATML.replace("assistant\n", "assistant\n<think>\n"))))
    scene = replace(scene, setup=replace(scene.setup, language_model=model))
    for thought, close in (("Well.", ""), ("<think>Well.", "</think>")):
        for row in asked(thoughtful(scene, 20), monkeypatch, thought):
            expected = f"assistant\n<think>\n\n</think>\n\n{thought}{close}\nI should answer now.\nAnswer: ("
            assert model.chat.tokenizer.decode(row).endswith(expected)


def test_without_a_budget_of_thinking_nothing_is_decoded(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    model, scene = subject(tiny_folder, 1)
    rows = asked(scene, monkeypatch, "never said")
    assert list(rows) == [
        model.chat.ids("Be brief.", options_first(scene.setup.vignettes[0].text, names), PREFILL) for names in ORDERS
    ]


def test_a_larger_budget_goes_on_from_a_smaller_one_s_thought(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    _, scene = subject(tiny_folder, 2)
    budgets, thoughts = (3, 7), []

    def watched(*given, **settings) -> list[Decoded]:
        thoughts.append(decode(*given, **settings))
        return thoughts[-1]

    monkeypatch.setattr(subject_module, "decode", watched)
    for budget in budgets:
        scored(thoughtful(scene, budget))
    assert [len(each) for each in thoughts] == [4, 4]  # two scenes in two orders
    for short, long in zip(*thoughts, strict=True):
        assert len(short.ids) <= 3
        assert len(long.ids) <= 7
        assert long.ids[: len(short.ids)] == short.ids


# The temperature.


def scores(count: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (count, len(NAMES)))


def softmax(score: np.ndarray) -> np.ndarray:
    odds = np.exp(score - score.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def test_labels_made_at_a_temperature_give_it_back_and_no_other_has_a_smaller_cross_entropy():
    for expected in (0.05, 0.5, 1.0, 2.0, 30.0):
        assert temperature(scores(), softmax(scores() / expected)) == pytest.approx(expected, rel=1e-6)

    label = np.random.default_rng(1).dirichlet(np.ones(7), 40) / 2 + softmax(scores()) / 2
    found = temperature(scores(), label)

    def cross_entropy(t: float) -> float:
        return -float((label * np.log(softmax(scores() / t))).sum(1).mean())

    assert 1e-2 < found < 1e2
    assert all(cross_entropy(found) < cross_entropy(found * factor) for factor in (0.5, 0.98, 1.02, 2.0))

    label = softmax(scores() / 2)
    assert temperature(2 * scores(), label) == pytest.approx(4.0)
    assert temperature(scores() + np.arange(40)[:, None], label) == pytest.approx(2.0)


def test_what_is_always_right_is_cold_what_knows_nothing_hot_and_what_has_no_scores_shifts_nothing():
    right, wrong = np.eye(7)[scores().argmax(1)], np.eye(7)[scores().argmin(1)]
    assert temperature(scores(), right) == 1e-2
    assert temperature(scores(), wrong) == 1e2
    assert temperature(np.zeros((3, 7)), np.eye(7)[:3]) == 1e2

    score, label = scores(), softmax(scores() / 2)
    score[::2] = np.nan
    assert temperature(score, label) == pytest.approx(2.0)
    assert np.isnan(temperature(np.full((2, 7), np.nan), label[:2]))
    with pytest.raises(ValueError, match="temperature: scores"):
        temperature(scores(3), label)


def test_the_temperature_of_the_signals_is_that_of_the_scores(tiny_folder: Path):
    _, scene = subject(tiny_folder, 9)
    score, label = scored(scene)[0].numpy(), softmax(scores(9))
    signals = {signal.name: signal.values for signal in measure(scene, [])}
    clr = {name: signals[f"clr_{name}"] for name in reversed(FOUNDATIONS)}
    found = temperature_of(clr, label)
    assert 1e-2 < found < 1e2
    assert found == pytest.approx(temperature(score, label))
