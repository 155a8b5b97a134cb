"""Moral foundations by forced choice: what is read off, what files are taken, and what chance is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from heal.errors import UserError
from heal.evaluation.readouts import moral_foundations
from heal.evaluation.readouts.moral_foundations import LETTERS, NAMES, choices, informedness, measure, text
from heal.evaluation.readouts.questions import PREFILL, letter_ids
from heal.evaluation.subject import Subject
from heal.evaluation.vignettes import FOUNDATIONS, read_vignettes
from heal.models.language_model import LanguageModel
from tests.students import student
from tests.tiny import trait


def subject(folder: Path, count: int = 7) -> tuple[LanguageModel, Subject]:
    model, accumulator = student(folder)
    return model, Subject(
        stage="base",
        language_model=model,
        trait=trait(),
        gates=accumulator.base,
        base=accumulator.base,
        system="Be brief.",
        neutral="Be brief.",
        max_repetition=0.3,
        questions=2,
        vignettes=read_vignettes("embedded", count),
    )


def test_without_vignettes_nothing_is_measured(tiny_folder: Path):
    assert measure(subject(tiny_folder, 0)[1], []) == []


def test_there_is_one_value_a_scene_and_the_clr_of_a_scene_sums_to_zero(tiny_folder: Path):
    signals = {signal.name: signal for signal in measure(subject(tiny_folder, 9)[1], [])}
    assert set(signals) == {f"clr_{name}" for name in FOUNDATIONS} | {"vignette_mass", "vignette_informedness"}
    assert all(len(signal.values) == 9 and signal.items == "vignettes" for signal in signals.values())
    table = np.array([signals[f"clr_{name}"].values for name in FOUNDATIONS])
    assert np.abs(table.sum(0)).max() < 1e-9
    assert all(0 <= value <= 1 for value in signals["vignette_mass"].values)


@torch.no_grad()
def test_scores_are_the_mean_log_probabilities_of_each_option_s_letter_in_two_orders(tiny_folder: Path):
    model, scene = subject(tiny_folder, 3)
    found_VK, mass_V = choices(scene)
    letters = letter_ids(model, LETTERS)
    for row, vignette in enumerate(scene.vignettes):
        scores, masses = dict.fromkeys(NAMES, 0.0), []
        for names in (list(NAMES), [*NAMES[3:], *NAMES[:3]]):
            ids = model.chat.ids("Be brief.", text(vignette.text, names), PREFILL)
            logp_V = torch.log_softmax(model.model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
            masses.append(float(logp_V[letters].exp().sum()))
            for letter, name in zip(letters, names, strict=True):
                scores[name] += float(logp_V[letter]) / 2
        assert found_VK[row].tolist() == pytest.approx([scores[name] for name in NAMES], abs=1e-4)
        assert float(mass_V[row]) == pytest.approx(np.mean(masses), rel=1e-3)


def test_a_model_that_favours_a_letter_is_at_chance_and_one_that_knows_is_at_one(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    _, scene = subject(tiny_folder, 70)
    for knows, expected in ((False, 0.0), (True, 1.0)):

        def answers(scene: Subject, knows: bool = knows) -> tuple[torch.Tensor, torch.Tensor]:
            rows = [NAMES.index(v.foundation) if knows else 2 for v in scene.vignettes]
            return torch.nn.functional.one_hot(torch.tensor(rows), 7).double(), torch.ones(len(rows))

        monkeypatch.setattr(moral_foundations, "choices", answers)
        (signal,) = [each for each in measure(scene, []) if each.name == "vignette_informedness"]
        assert np.mean(signal.values) == pytest.approx(expected)


def test_informedness_is_the_macro_average_of_hits_less_false_alarms():
    source = np.random.default_rng(0)
    labels = source.choice(["care", "fairness", "loyalty"], 50, p=[0.6, 0.3, 0.1])
    chosen = source.choice(["care", "fairness", "loyalty", "liberty"], 50)
    expected = np.mean(
        [
            np.mean(chosen[labels == name] == name) - np.mean(chosen[labels != name] == name)
            for name in ("care", "fairness", "loyalty")
        ]
    )
    assert np.mean(informedness(chosen.tolist(), labels.tolist())) == pytest.approx(expected)


def test_a_user_s_file_is_taken_with_what_else_it_carries(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"id": 7, "text": "x", "foundation": "Social Norms", "care_percent": 3}) + "\n\n")
    (found,) = read_vignettes(str(path), 10)
    assert (found.id, found.foundation) == ("7", "social_norms")
    assert read_vignettes("none", 10) == ()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "line 1: not JSON"),
        ('{"id": "a", "foundation": "care"}', "line 1: a vignette needs text"),
        ("[]", "line 1: a vignette needs id, text, foundation"),
        ('{"id": "a", "text": "x", "foundation": "carre"}', "unknown foundation 'carre'.*care"),
    ],
)
def test_a_line_that_is_no_vignette_is_named(tmp_path: Path, content: str, complaint: str):
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=complaint):
        read_vignettes(str(path), 10)
    with pytest.raises(UserError, match="no such file"):
        read_vignettes(str(tmp_path / "none.jsonl"), 10)
