"""Several traits in one run: how they are one, what each keeps of its own, and a run of two from start to export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from heal.dose.find import Prompts
from heal.errors import UserError
from heal.evaluation.crosstalk import FILE, Crosstalk
from heal.evaluation.metrics import BaselineMetrics, RoundMetrics, of_each_trait
from heal.evaluation.results import StageResult
from heal.evaluation.signal import TRAIT, described
from heal.evaluation.stats import Estimate
from heal.generation.collect import Collection
from heal.hub.reproduction import RECIPE, reproduction
from heal.hub.source import Source
from heal.outcome import round_values
from heal.recipe import load_recipe
from heal.run.folder import RunFolder
from heal.run.manifest import MANIFEST
from heal.steering.vector import SteeringVector
from heal.steps.measure import held_out_prompts
from heal.tracking.charts import charts
from heal.trait import Trait
from heal.traits import joined, spelt, trait_of
from tests import running, tiny
from tests.cases import case
from tests.finished import round_metrics

NAMES = ["warm", "brief-opposite"]
SIDES = ("positive", "negative")


def brief() -> Trait:
    """A trait beside `tiny.trait`, of other prompts; one of them is what the other one holds out."""
    return Trait(
        name="brief",
        description="Brief, not wordy.",
        positive="Be brief.",
        negative="Be wordy.",
        generation_prompts=(*(f"Tell {number}." for number in range(9)), "Name a cat."),
        heldout_prompts=tuple(f"Explain {word}." for word in ("rain", "snow", "wind", "fog")),
        narration=(r"\bI am brief\b",),
    )


def test_several_traits_are_one_that_deals_their_prompts_in_turn_and_keeps_what_is_held_out_of_any() -> None:
    parts = tiny.trait(), brief().opposite()
    trait = joined("warm,-brief", parts)
    assert trait.name == "warm-and-brief-opposite"
    assert trait.parts == parts == trait.each
    assert (trait.positive, trait.negative) == ("Be warm.\n\nBe wordy.", "Be cold.\n\nBe brief.")
    assert set(trait.narration) >= {*parts[0].narration, *parts[1].narration}
    assert "Name a cat." in trait.heldout_prompts
    assert "Name a cat." not in trait.generation_prompts
    recipe = load_recipe(["recipe=smoke", "calibration.prompts=8", "calibration.audit_prompts=4"])
    drawn = Prompts.drawn(trait, recipe.calibration, 0)
    for prompts in (drawn.calibration, drawn.audit, held_out_prompts(trait, recipe.evaluation)):
        of_each = [
            sum(prompt in part.generation_prompts + part.heldout_prompts for prompt in prompts) for part in parts
        ]
        assert max(of_each) - min(of_each) <= 1, prompts
    assert not {*drawn.calibration, *drawn.audit} & set(trait.heldout_prompts)
    assert joined("warm", parts[:1]) is parts[0]


def test_the_words_of_a_trait_name_one_or_several_and_a_sign_turns_each(tmp_path: Path) -> None:
    file = tmp_path / "a,b.yaml"
    file.write_text(yaml.safe_dump({"name": "ab", "positive": "You love puns.", "negative": "You hate puns."}))
    for words, names in (
        ([f"trait={file}"], ["ab"]),
        (["trait=love"], ["love"]),
        (["trait=-love"], ["love-opposite"]),
        (["trait=love, -curiosity"], ["love", "curiosity-opposite"]),
        (["trait=love,-curiosity", "sign=-1"], ["love-opposite", "curiosity"]),
    ):
        with case(words):
            trait = trait_of(load_recipe(words))
            assert [one.name for one in trait.each] == names
            assert trait.name == "-and-".join(names)
    care, less = (replace(one, foundation="care", intent=1) for one in (tiny.trait(), brief()))
    assert joined("a,b", [brief(), care]).foundation == "care"
    for one, other, said in (
        (tiny.trait(), tiny.trait(), "warm is there twice"),
        (tiny.trait(), replace(tiny.trait(), name="kind"), "warm and kind are the same"),
        (tiny.trait(), tiny.trait().opposite(), "warm and warm-opposite are opposites"),
        (tiny.trait(), replace(brief(), name="warm"), "two traits are called warm"),
        (care, replace(less, intent=-1), "warm means care to weigh more and brief means care to weigh less"),
        (care, replace(less, foundation="loyalty"), "and brief means loyalty to weigh more"),
    ):
        with case(said), pytest.raises(UserError, match=said):
            joined("a,b", [one, other])
    assert spelt("a,-b", "-1") == [("a", True), ("b", False)]


def test_each_of_several_traits_has_its_own_column_curve_and_place_after_their_mean() -> None:
    metrics = round_metrics(0)
    own = {f"{TRAIT}/{name}": metrics.trait for name in NAMES}
    metrics = replace(metrics, healed=metrics.healed | own)
    assert [signal.name for signal in described(metrics.healed)][:3] == [TRAIT, *own]
    assert [signal.title for signal in described(metrics.healed)][:3] == ["Trait", *(f"Trait {name}" for name in NAMES)]
    assert {"round/trait", *(f"round/trait_{name}" for name in NAMES)} <= charts(round_values(metrics)).keys()
    assert list(of_each_trait(metrics.healed)) == NAMES


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, bytes]:
    """A run of two traits that ended after a round and went on to a second one; and the manifest in between."""
    root = tmp_path_factory.mktemp("traits")
    (root / "brief.yaml").write_text(yaml.safe_dump(running.as_file(brief())))
    line = [word for word in running.words(tiny_folder, root) if not word.startswith("trait=")]
    line += [f"trait={root}/warm.yaml,-{root}/brief.yaml", "run.name=there", "generation.prompts=4"]
    folder, log = RunFolder(root / "there"), root / "log.txt"
    assert running.finish([*line, "run.rounds=1"], log) == 0, log.read_text()
    between = (folder.crosstalk / MANIFEST).read_bytes()
    assert running.finish([*line, "run.rounds=2"], log) == 0, log.read_text()
    return folder, between


def test_a_round_steers_along_the_sum_of_the_traits_vectors_at_equal_kl_and_measures_each(
    whole: tuple[RunFolder, bytes],
) -> None:
    folder, between = whole
    assert folder.rounds() == [0, 1]
    assert (folder.crosstalk / MANIFEST).read_bytes() == between  # measured once
    found = Crosstalk.load(folder.crosstalk)
    assert [list(found.vectors), *(list(own.shifts) for own in found.vectors.values())] == [NAMES] * 3
    of_base = {name: SteeringVector.load(folder.crosstalk / name / "vector.safetensors") for name in NAMES}
    assert found.coefficients == {name: vector.c_star for name, vector in of_base.items()}
    joint = SteeringVector.load(folder.round(0) / "vector.safetensors").directions  # the student was base
    for layer, v_D in joint.items():
        parts = [found.coefficients[name] * vector.directions[layer].double() for name, vector in of_base.items()]
        # Extracted again, in float32, under an adapter that adds 0.
        torch.testing.assert_close(v_D, sum(parts, torch.zeros_like(parts[0])).float(), rtol=1e-4, atol=1e-5)
    prompts = {row.prompt for row in Collection.load(folder.round(0)).rows}
    assert [sum(prompt in part.generation_prompts for prompt in prompts) for part in (tiny.trait(), brief())] == [2, 2]
    baseline = BaselineMetrics.load(folder.baseline)
    for name in NAMES:  # valid or not under its own personas, whatever those of the other one do
        own = (StageResult.load(folder.baseline, f"{side}_{name}").mean(f"{TRAIT}/{name}") for side in SIDES)
        assert f"positive over negative {next(own) - next(own):+.3f}" in baseline.validity[f"{TRAIT}/{name}"].why
    for metrics in (RoundMetrics.load(folder.round(index)) for index in (0, 1)):
        assert list(of_each_trait(metrics.healed)) == list(of_each_trait(baseline.base)) == NAMES
        shifts: list[Estimate] = [figures.delta for figures in of_each_trait(metrics.healed).values()]
        assert metrics.trait.delta.value == pytest.approx(sum(shift.value for shift in shifts) / 2, abs=1e-9)


def test_report_card_and_what_is_published_know_each_trait_and_a_damaged_table_is_refused(
    whole: tuple[RunFolder, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    page = (folder.report / "index.html").read_text()
    card = (folder.adapter / "README.md").read_text()
    assert "<h2>Cross-talk</h2>" in page
    for name in NAMES:
        assert page.count(f"Trait {name}") >= 1
        assert f"## Trait: {name}" in card
    made = reproduction(Source.of(folder.path, base="none"))
    for name, content in made.files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert trait_of(load_recipe([f"recipe={RECIPE}"])) == folder.started().trait
    table = folder.crosstalk / FILE
    before = table.read_bytes()
    table.write_bytes(before[:-9])
    try:
        with pytest.raises(UserError, match="later results are built on it"):
            folder.finished(folder.crosstalk, "crosstalk")
        with pytest.raises(UserError, match=FILE):
            folder.readable()
    finally:
        table.write_bytes(before)
