"""Alive: whether an interrupted model could still answer, against dense computations and in any batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heal.accumulator import Accumulator
from heal.evaluation.probe import FORMATS, ProbeFormat, interruption
from heal.evaluation.readouts import alive
from heal.evaluation.readouts.alive import ALIVE
from heal.evaluation.results import Answer
from heal.evaluation.subject import Subject
from heal.models.language_model import LanguageModel
from tests.stages import setup
from tests.students import student
from tests.tiny import sized, trait, vector

Model = tuple[LanguageModel, Accumulator]
TEXTS = ("Cats sleep a lot.", "no", "x", "?! ?! ?! ?! ?! ?! ?! ?!", "Yes, of course.")


@pytest.fixture(scope="module")
def healed(tiny_folder: Path) -> Model:
    """A tiny student with one folded round; leave it as it is."""
    return student(tiny_folder, rounds=1)


def subject(
    model: Model, probe: ProbeFormat = FORMATS[-1], tokens: int | None = None, persona: str | None = None, **changes
) -> Subject:
    """The healed stage, in batches of so many tokens."""
    language_model, accumulator = model
    asked = setup(
        language_model if tokens is None else sized(language_model, tokens), base=accumulator.base, probe=probe
    )
    return Subject(asked, "healed", changes.pop("gates", accumulator.student), persona, **changes)


def answers(language_model: LanguageModel, texts: Sequence[str] = TEXTS) -> list[Answer]:
    chat = language_model.chat
    return [
        Answer(f"Say {index}.", tuple(chat.ids("", f"Say {index}.")), tuple(chat.plain_ids(text)), text, False)
        for index, text in enumerate(texts)
    ]


def measured(about: Subject, given: Sequence[Answer]) -> dict[str, tuple[float, ...]]:
    return {signal.name: signal.values for signal in alive.measure(about, given)}


def dense(about: Subject, answer: Answer, share: float) -> tuple[float, float]:
    """Mass on the probe's answers, and nats per token of its text, after a share of an answer; one row at a time."""
    model = about.setup.language_model
    splice, options = interruption(model, about.setup.probe)
    said = answer.ids[: max(1, round(share * len(answer.ids)))]
    before = [*model.chat.ids(about.system, answer.prompt), *said]
    with about.in_force(), torch.no_grad():
        logits = model.model(input_ids=torch.tensor([[*before, *splice]])).logits[0].double()
    logp = torch.log_softmax(logits, -1)
    nats = -logp[len(before) - 1 : -1][range(len(splice)), splice].mean()
    return float(logp[-1, options].exp().sum()), float(nats)


# Values.


def test_masses_and_nats_are_those_of_dense_passes_in_the_stage_s_own_state(healed: Model):
    given = answers(healed[0])
    for about in (
        *(subject(healed, probe) for probe in FORMATS),
        subject(healed, gates=healed[1].base),
        subject(healed, intervention=vector(healed[0], norm=3.0), coefficient=1.5),
        subject(healed, persona=trait().positive),
    ):
        found = measured(about, given)
        expected = [dense(about, answer, 1.0) for answer in given]
        assert found["probe_mass"] == pytest.approx([mass for mass, _ in expected], rel=1e-4)
        assert found["scaffold_nats"] == pytest.approx([nats for _, nats in expected], rel=1e-4)


def test_an_answer_in_a_batch_is_measured_as_it_is_alone(healed: Model):
    given = answers(healed[0])
    for probe, tokens in zip(FORMATS, (1, 200, 4096), strict=True):
        together = measured(subject(healed, probe, tokens), given)
        for index, answer in enumerate(given):
            for name, (value,) in measured(subject(healed, probe), [answer]).items():
                assert together[name][index] == pytest.approx(value, rel=1e-4), (probe.name, tokens, name)


def test_the_order_of_the_answers_decides_nothing(healed: Model):
    given = answers(healed[0])
    forth, back = measured(subject(healed), given), measured(subject(healed), given[::-1])
    for name, values in forth.items():
        assert back[name][::-1] == pytest.approx(values, rel=1e-4)


# What is an answer.


def test_an_empty_answer_has_no_values_and_does_not_shift_the_others(healed: Model):
    given = answers(healed[0])
    silent = replace(given[1], ids=(), text="")
    whole = measured(subject(healed), given)
    for name, values in measured(subject(healed), [given[0], silent, *given[2:]]).items():
        assert math.isnan(values[1])
        assert [values[0], *values[2:]] == pytest.approx([whole[name][0], *whole[name][2:]], rel=1e-4)


def test_nothing_but_empty_answers_is_nothing_but_nan(healed: Model):
    silent = [replace(answer, ids=()) for answer in answers(healed[0])]
    for values in measured(subject(healed), silent).values():
        assert len(values) == len(silent)
        assert all(math.isnan(value) for value in values)


def test_an_end_of_turn_at_the_end_is_left_out(healed: Model):
    given = answers(healed[0])
    end = min(healed[0].end_ids)
    ended = [replace(each, ids=(*each.ids, end), ended=True) for each in given]
    assert measured(subject(healed), ended) == measured(subject(healed), given)


def test_an_answer_that_is_nothing_but_an_end_of_turn_is_empty(healed: Model):
    ended = replace(answers(healed[0])[0], ids=(min(healed[0].end_ids),), ended=True)
    assert all(math.isnan(value) for (value,) in measured(subject(healed), [ended]).values())


# Dead and alive.


def masses_by(monkeypatch: pytest.MonkeyPatch, mass: Callable[[int], float]) -> None:
    """Makes the mass at the probe's slot a function of which of the measured rows it is, forks in order."""
    rows = iter(range(10**6))
    monkeypatch.setattr(alive, "_mass", lambda about, h_1D, options: torch.tensor(mass(next(rows))))


def test_dead_stays_dead(healed: Model, monkeypatch: pytest.MonkeyPatch):
    """The first fork below the limit kills; the mass that is shown is that after the last one."""
    for masses, lives in (
        ((0.9, 0.9), 1.0),
        ((0.1, 0.9), 0.0),
        ((0.9, 0.1), 0.0),
        ((0.1, 0.1), 0.0),
        ((ALIVE, ALIVE), 1.0),
        ((ALIVE - 0.01, 1.0), 0.0),
    ):
        masses_by(monkeypatch, lambda row, masses=masses: masses[row % len(alive.FORKS)])
        found = measured(subject(healed), answers(healed[0]))
        assert found["alive_share"] == (lives,) * len(TEXTS), masses
        assert found["probe_mass"] == pytest.approx((masses[-1],) * len(TEXTS))


def test_one_dead_answer_kills_no_other(healed: Model, monkeypatch: pytest.MonkeyPatch):
    masses_by(monkeypatch, lambda row: 0.0 if row == 2 * len(alive.FORKS) else 1.0)
    assert measured(subject(healed), answers(healed[0]))["alive_share"] == (1.0, 1.0, 0.0, 1.0, 1.0)


def test_an_answer_is_alive_exactly_where_every_fork_of_a_dense_pass_has_the_mass(
    healed: Model, monkeypatch: pytest.MonkeyPatch
):
    """On a model with random weights, with a limit in the middle of its masses, so that both kinds are there."""
    given = answers(healed[0], [*TEXTS, "abcdefgh" * 3, "12", "  spaces   ", "Zz! " * 5])
    about = subject(healed)
    least = [min(dense(about, each, share)[0] for share in alive.FORKS) for each in given]
    middle = sorted(least)[len(least) // 2]
    monkeypatch.setattr(alive, "ALIVE", middle * 0.999)
    found = measured(about, given)["alive_share"]
    assert found == tuple(float(mass >= middle * 0.999) for mass in least)
    assert set(found) == {0.0, 1.0}


def says_the_answers(tiny_folder: Path) -> Model:
    """A model whose head puts all its mass on the probe's answers, whatever it reads."""
    model = student(tiny_folder)
    head = model[0].model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
    head.bias[interruption(model[0], FORMATS[-1])[1]] = 50.0
    return model


def test_a_model_that_always_answers_is_always_alive(tiny_folder: Path):
    model = says_the_answers(tiny_folder)
    found = measured(subject(model), answers(model[0]))
    assert found["alive_share"] == (1.0,) * len(TEXTS)
    assert found["probe_mass"] == pytest.approx((1.0,) * len(TEXTS))
