"""Drift: zero at base to the bit, the KL of dense passes elsewhere, and base read once."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import kl_div

from heal.accumulator import Accumulator
from heal.evaluation.neutral import TOKENS, NeutralTexts
from heal.evaluation.readouts import drift
from heal.evaluation.subject import Subject
from heal.models.language_model import LanguageModel
from tests.stages import NEUTRAL, setup
from tests.students import student
from tests.tiny import load_architecture, sized, trait, vector

Model = tuple[LanguageModel, Accumulator]
COUNT = 5
ALL = range(COUNT)


@pytest.fixture(scope="module")
def healed(tiny_folder: Path) -> Model:
    """A tiny student with one folded round; leave it as it is."""
    return student(tiny_folder, rounds=1)


def subject(model: Model, tokens: int = 4096, persona: str | None = None, **changes) -> Subject:
    """The healed stage, in batches of so many tokens."""
    language_model, accumulator = sized(model[0], tokens), model[1]
    texts = changes.pop("neutral_texts", NeutralTexts(language_model, NEUTRAL, COUNT))
    asked = setup(language_model, base=accumulator.base, neutral_texts=texts)
    return Subject(asked, "healed", changes.pop("gates", accumulator.student), persona, **changes)


def measured(about: Subject) -> dict[str, tuple[float, ...]]:
    return {signal.name: signal.values for signal in drift.measure(about, [])}


def stages(model: Model) -> dict[str, Subject]:
    return {
        "prompted": subject(model, gates=model[1].base, persona=trait().positive),
        "steered": subject(model, intervention=vector(model[0], norm=3.0), coefficient=1.5),
        "healed": subject(model),
    }


def dense(about: Subject) -> list[torch.Tensor]:
    """KL(stage || base) at each scored token, one text at a time, with full logits in float64."""
    model, texts = about.setup.language_model, about.setup.neutral_texts
    assert texts is not None

    def logprobs(system: str, index: int) -> torch.Tensor:
        prompt, said = model.chat.ids(system, texts.prompts[index]), texts.completions[index]
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([[*prompt, *said]])).logits[0].double()
        return torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]

    found = []
    for index in range(len(texts.prompts)):
        with about.in_force():
            stage = logprobs(about.system, index)
        with about.setup.base():
            base = logprobs(about.setup.system, index)
        found.append(kl_div(base, stage, reduction="none", log_target=True).sum(-1))
    return found


def test_base_does_not_drift_from_itself_by_a_single_bit(tmp_path: Path):
    for architecture in ("llama", "gemma2"):
        model = load_architecture(architecture, tmp_path / architecture)
        accumulator = Accumulator(model, 4, 8, [1, 2])
        accumulator.start_round(0)
        for values in measured(subject((model, accumulator), gates=accumulator.base)).values():
            assert values == (0.0,) * COUNT, architecture


def test_base_does_not_drift_beside_a_student_that_learned(healed: Model):
    for tokens in (1, 150, 4096):
        about = subject(healed, tokens, gates=healed[1].base)
        assert all(values == (0.0,) * COUNT for values in measured(about).values())


def test_drift_is_the_kl_of_dense_passes_from_stage_to_base(healed: Model):
    for stage, about in stages(healed).items():
        found, expected = measured(about), dense(about)
        for name, level in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
            quantiles = [float(kl_N.quantile(level)) for kl_N in expected]
            assert found[f"neutral_kl_{name}"] == pytest.approx(quantiles, rel=1e-3, abs=1e-6), stage


def test_any_other_stage_drifts_on_every_text_and_quantiles_are_in_order(healed: Model):
    for stage, about in stages(healed).items():
        found = measured(about)
        for p50, p95, largest in zip(*(found[f"neutral_kl_{name}"] for name in ("p50", "p95", "max")), strict=True):
            assert 0 < p50 <= p95 <= largest, stage


def test_a_student_that_learned_more_drifts_more(tiny_folder: Path):
    one, three = (student(tiny_folder, rounds=rounds) for rounds in (1, 3))
    assert sum(measured(subject(three))["neutral_kl_p50"]) > sum(measured(subject(one))["neutral_kl_p50"])


def test_base_is_read_once_for_all_stages(healed: Model):
    texts = NeutralTexts(healed[0], NEUTRAL, COUNT)
    first = texts.base_states(healed[1].base, ALL)
    entered = 0

    def base():
        nonlocal entered
        entered += 1
        return healed[1].base()

    assert texts.base_states(base, ALL) is first
    assert entered == 0
    once = [measured(subject(healed, neutral_texts=texts)) for _ in range(2)]
    assert once[0] == once[1] == measured(subject(healed))


def test_base_s_states_are_base_s_whatever_the_model_was_when_they_were_first_wanted(healed: Model):
    with healed[1].student():
        late = NeutralTexts(healed[0], NEUTRAL, COUNT).base_states(healed[1].base, ALL)
    with healed[1].base():
        early = NeutralTexts(healed[0], NEUTRAL, COUNT).states(NEUTRAL, ALL)
    assert all(torch.equal(a, b) for a, b in zip(late, early, strict=True))


def test_without_neutral_texts_no_drift_is_measured(healed: Model):
    assert drift.measure(subject(healed, neutral_texts=None), []) == []


def test_a_text_is_scored_from_its_beginning_and_no_further_than_needed(healed: Model):
    texts = NeutralTexts(healed[0], NEUTRAL, COUNT)
    assert [len(ids) for ids in texts.completions] == [TOKENS] * COUNT
    assert [len(h_ND) for h_ND in texts.states(NEUTRAL, ALL)] == [TOKENS] * COUNT
    for row, prompt, ids in zip(texts.rows(), texts.prompts, texts.completions, strict=True):
        assert row == [*healed[0].chat.ids(NEUTRAL, prompt), *ids]
