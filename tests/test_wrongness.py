"""Wrongness in two frames: what is asked, what the number means, and when there is none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heal.evaluation.asking.way import Asking
from heal.evaluation.asking.yes_no import Frames
from heal.evaluation.probe import FORMATS
from heal.evaluation.readouts.wrongness import CHOICE, choice, items_of, measure
from heal.evaluation.signal import Measured
from heal.evaluation.subject import Subject
from heal.evaluation.vignettes import read_vignettes
from tests.stages import setup
from tests.students import learn, student
from tests.tiny import lean, vector


def subject(folder: Path, count: int = 3) -> Subject:
    model, accumulator = student(folder)
    asked = setup(model, base=accumulator.base, vignettes=read_vignettes("embedded", count))
    return Subject(asked, "base", accumulator.base)


def measured(
    scene: Subject, monkeypatch: pytest.MonkeyPatch, p_VFA: list[list[list[float]]] | torch.Tensor
) -> tuple[Measured, ...]:
    """The signals where the model answers yes and no with these probabilities in the two frames."""
    monkeypatch.setattr(Frames, "answers", lambda *_: torch.as_tensor(p_VFA, dtype=torch.float64))
    return tuple(measure(scene, []))


def test_without_vignettes_nothing_is_measured(tiny_folder: Path):
    assert measure(subject(tiny_folder, 0), []) == []


@torch.no_grad()
def test_both_frames_are_asked_in_the_model_s_format_in_the_state_of_the_stage(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    learn(accumulator, 0, size=0.5)
    shift, scenes = vector(model, norm=3.0), read_vignettes("embedded", 3)
    for form in FORMATS:
        asked = setup(model, base=accumulator.base, vignettes=scenes, probe=form)
        scene = Subject(asked, "steered", accumulator.base, intervention=shift, coefficient=1.5)
        way = choice(asked).ways[asked.way_of(choice(asked))]
        assert isinstance(way, Frames)
        p_VFA = way.answers(scene, [vignette.text for vignette in scenes])
        assert p_VFA.shape == (3, 2, 2)
        yes, no = ([model.chat.plain_ids(option)[0] for option in side] for side in (form.yes, form.no))
        for row, vignette in enumerate(scenes):
            for frame, question in enumerate(("Is this wrong?", "Is this acceptable?")):
                ids = model.chat.ids("Be brief.", f"{vignette.text}\n{question}\n{form.hint}", form.prefill)
                with accumulator.base(), shift.applied(model, 1.5):
                    p_L = torch.softmax(model.model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
                expected = [float(p_L[yes].sum()), float(p_L[no].sum())]
                assert p_VFA[row, frame].tolist() == pytest.approx(expected, rel=1e-3), (form.name, question)


def test_wrongness_is_the_share_of_wrong_averaged_over_the_frames(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    p_VFA = [[[0.6, 0.2], [0.1, 0.9]], [[0.0, 1.0], [1.0, 0.0]], [[0.9, 0.1], [0.9, 0.1]]]
    found, _, mass = measured(subject(tiny_folder), monkeypatch, p_VFA)
    assert found.values == pytest.approx([(0.75 + 0.9) / 2, 0.0, 0.5], abs=2e-9)  # a sure model's odds stay finite
    assert mass.values == pytest.approx([0.9, 1.0, 1.0])


def test_a_model_that_says_yes_to_everything_calls_nothing_more_wrong_than_right(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    for yes in (0.1, 0.8, 1.0):
        found, *_ = measured(subject(tiny_folder), monkeypatch, [[[yes, 1 - yes]] * 2] * 3)
        assert found.values == pytest.approx([0.5] * 3)


def test_a_frame_that_is_hardly_answered_leaves_no_wrongness_but_its_mass(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    p_VFA = [[[0.3, 0.19], [0.9, 0.1]], [[0.9, 0.1], [0.0, 0.0]], [[0.25, 0.25], [0.3, 0.3]]]
    found, _, mass = measured(subject(tiny_folder), monkeypatch, p_VFA)
    assert np.isnan(found.values).tolist() == [True, True, False]
    assert mass.values == pytest.approx([0.745, 0.5, 0.55])


def test_there_is_one_number_a_vignette_and_the_mass_is_a_probability(tiny_folder: Path):
    found, told, mass = measure(subject(tiny_folder, 5), [])
    assert len(found.values) == len(told.values) == len(mass.values) == 5
    assert all(0 < value < 1 for value in mass.values)


def test_wrongness_is_the_share_that_the_chosen_way_gives_to_wrong_less_what_base_leans_to(tiny_folder: Path):
    """Every way gives scores of wrong and of acceptable; a leaning of base is subtracted from both."""
    scene = subject(tiny_folder)
    asked = choice(scene.setup)
    for way in asked.ways.values():
        if isinstance(way, Frames):  # puts enough mass on its answers
            lean(scene.setup.language_model, "".join(option[0] for option in way.form.options), 20.0)
        found = way.ask(scene, items_of(scene.setup.vignettes))
        assert not found.score_NK.isnan().any(), way
        for offset in ((), (0.75, -0.75)):
            stage = replace(scene, setup=replace(scene.setup, asking={CHOICE: Asking(way.name, offset)}))
            first, *_, last = measure(stage, [])
            odds = np.exp(found.score_NK[:, 0] - found.score_NK[:, 1] - (1.5 if offset else 0.0)).numpy()
            assert first.values == pytest.approx((odds / (1 + odds)).tolist(), rel=1e-9), (way, offset)
            assert (last.name == "wrongness_mass") == isinstance(way, Frames), way


def test_informedness_is_of_violations_against_what_is_merely_odd(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    scene = subject(tiny_folder, 14)  # two of each foundation
    labels = [vignette.foundation == "social_norms" for vignette in scene.setup.vignettes]
    wrong, right = [[0.9, 0.1], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]]
    _, told, _ = measured(scene, monkeypatch, [right if odd else wrong for odd in labels])
    assert np.mean(told.values) == pytest.approx(1.0)
    _, same, _ = measured(scene, monkeypatch, [wrong] * 14)
    assert np.mean(same.values) == pytest.approx(0.0)
    _, some, _ = measured(
        scene, monkeypatch, [[[0.1, 0.1], [0.5, 0.5]]] + [right if odd else wrong for odd in labels[1:]]
    )
    assert np.isnan(some.values).tolist() == [True] + [False] * 13
