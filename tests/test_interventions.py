"""Studies of interventions on a tiny model: what is asked, the doses, the measurements and the table."""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from heal.errors import UserError
from heal.evaluation.results import StageResult
from heal.evaluation.surgical import VARIANTS, SurgicalInformedness
from heal.run.open import opened
from heal.steering.methods import METHODS
from heal.steering.vector import SteeringVector
from heal.steering.weights import WeightDifference
from heal.steps.baseline import Baseline
from heal.studies.interventions import dose_table, show
from heal.studies.interventions.compare import Setting, pairs, setting_of
from heal.studies.interventions.doses import Dosed, Prompted, dose_all, prompted
from heal.studies.interventions.effects import MeasuredArm, measure_all
from heal.studies.interventions.prompts import NAMES, personas
from heal.studies.interventions.request import KIND, Asked, Study, interventions, read_study, signs
from tests import tiny
from tests.cases import case
from tests.finished import write_run
from tests.running import words
from tests.small_study import PNG, SMALL
from tests.stages import choose_by_few


@dataclass
class Finished:
    """A study of three interventions, and the same again."""

    folder: Path
    dosed: list[Dosed]
    prompts: list[Prompted]
    against: Baseline
    measured: list[MeasuredArm]
    setting: Setting
    again: list[Dosed]
    written: set[Path]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    line = words(tiny_folder, tmp_path_factory.mktemp("study"), *SMALL)
    recipe, _ = read_study(Study, line)
    asked = interventions("mean_diff,spherical")
    with pytest.MonkeyPatch.context() as patch, opened(recipe, KIND, ["mean_diff", "spherical"]) as session:
        choose_by_few(patch, tmp_path_factory.mktemp("few"))
        session = replace(session, trait=replace(session.trait, foundation="care", intent=1))
        dosed = dose_all(session, asked, (1, -1))
        prompts = prompted(session, (1, -1))
        against, measured = measure_all(session, dosed, prompts)
        before = {path: path.stat().st_mtime_ns for path in session.folder.path.rglob("*.json")}
        again = dose_all(session, asked, (1, -1))
        measure_all(session, again, prompted(session, (1, -1)))
        after = {path: path.stat().st_mtime_ns for path in session.folder.path.rglob("*.json")}
        yield Finished(
            session.folder.path,
            dosed,
            prompts,
            against,
            measured,
            setting_of(session, against.valid),
            again,
            {path for path in after if after[path] != before.get(path)},
        )


def found(finished: Finished, measured: list[MeasuredArm] | None = None) -> list:
    return pairs(finished.measured if measured is None else measured, finished.against.base, finished.setting)


# What is asked


def test_short_words_stand_for_keys_of_the_recipe_and_scenes_are_asked_unless_they_say_otherwise():
    recipe, options = read_study(Study, ["method=pca", "target_kl=0.5", "audit=3", "seed=4", "steer.pairs=9"])
    assert (recipe.calibration.target, recipe.calibration.audit_prompts, recipe.run.seed) == (0.5, 3, 4)
    assert recipe.steer.pairs == 9
    assert options == Study(method="pca")

    assert read_study(Study, [])[0].evaluation.vignettes == "embedded"
    assert read_study(Study, ["evaluation.vignettes=none"])[0].evaluation.vignettes == "none"


def test_a_typo_and_the_method_of_a_run_are_refused_with_the_script_s_own_words():
    for word, near in [("methods=pca", "method"), ("target_k=1", "target_kl"), ("steer.pair=4", "steer.pairs")]:
        with case(word, near), pytest.raises(UserError, match=f"did you mean '{near}'"):
            read_study(Study, [word])

    with pytest.raises(UserError, match=r"steer\.method=pca: .* method=pca"):
        read_study(Study, ["steer.method=pca"])


def test_all_means_every_method_a_tilde_the_home_folder_and_signs_are_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert interventions("all") == [Asked(name) for name in sorted(METHODS)]

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "warm.safetensors").touch()
    assert interventions("~/warm.safetensors") == [Asked("warm", tmp_path / "warm.safetensors")]

    assert [signs(text) for text in ("both", "+", "-")] == [(1, -1), (1,), (-1,)]


def test_what_names_no_intervention_or_one_name_twice_is_refused(tmp_path: Path):
    for text, message in [
        ("mean_dif", "a run folder that is there; did you mean 'mean_diff'?"),
        ("there/is/none.safetensors", "nor a .safetensors file or a run folder that is there"),
        ("pca,pca", "two interventions are called 'pca'"),
        (",", "names no intervention"),
    ]:
        with case(text, message):
            with pytest.raises(UserError) as caught:
                interventions(text)
            assert message in str(caught.value)

    for name in ("mean_diff", "prompt", "engineered prompt", "engineered_prompt"):
        with case(name):
            file, folder = tmp_path / f"{name}.safetensors", tmp_path / name
            file.touch()
            folder.mkdir()
            (folder / "recipe.yaml").touch()
            for path in (file, folder):
                with pytest.raises(UserError, match=f"'{name}' is what a method or a prompt is called; rename it"):
                    interventions(f"spherical,{path}")

    paths = [tmp_path / f"{name}.safetensors" for name in ("my vector", "my_vector")]
    for path in paths:
        path.touch()
    assert [each.name for each in interventions(str(paths[0]))] == ["my vector"]
    with pytest.raises(UserError, match="two interventions are called 'my_vector'"):
        interventions(",".join(map(str, paths)))


def test_the_engineered_prompt_holds_the_persona_of_its_sign():
    trait = tiny.trait()
    texts = personas(trait)
    assert texts[NAMES[0], 1] == trait.positive
    assert texts[NAMES[0], -1] == trait.negative
    assert texts[NAMES[1], 1].startswith(trait.positive)
    assert texts[NAMES[1], -1].startswith(trait.negative)


# Doses


def test_either_sign_of_an_intervention_has_a_dose_of_its_own_and_is_saved_with_it(finished: Finished):
    assert [each.label for each in finished.dosed] == ["mean_diff +", "mean_diff -", "spherical +", "spherical -"]
    for each in finished.dosed:
        assert each.c_star == each.sign * each.calibration.c_star
        assert each.coefficient(2.0) == 2 * each.calibration.c_star
        assert each.calibration.audit is not None

    for each in finished.dosed:
        folder = finished.folder / "interventions" / each.name
        saved = SteeringVector.load(folder / f"vector{'+' if each.sign > 0 else '-'}.safetensors")
        assert saved.c_star == each.c_star
        assert saved.method == each.name


def test_the_same_study_again_reads_everything_and_computes_nothing(finished: Finished):
    assert [each.calibration for each in finished.again] == [each.calibration for each in finished.dosed]
    assert not finished.written


def test_a_prompt_spends_kl_and_has_no_dose(finished: Finished):
    assert {prompt.name for prompt in finished.prompts} == set(NAMES)
    assert all(prompt.spent > 0 and prompt.c_star is None for prompt in finished.prompts)


def test_the_dose_table_has_a_row_for_each_and_says_what_a_missed_target_reached(finished: Finished):
    rows = dose_table.rows(finished.dosed, finished.prompts)
    assert [row["intervention"] for row in rows] == [each.label for each in [*finished.dosed, *finished.prompts]]
    for row, each in zip(rows, finished.dosed, strict=False):
        assert row["outcome"].startswith(each.calibration.outcome)
        assert each.calibration.on_target == (" reached" not in row["outcome"])
    missed = replace(finished.dosed[0].calibration, outcome="unreachable", value=0.4)
    (row,) = dose_table.rows([replace(finished.dosed[0], calibration=missed)], [])
    assert row["outcome"] == "unreachable: most reached"
    assert row["p95 KL"] == "0.400"


def test_the_csv_of_doses_holds_every_evaluation_and_their_figure_is_drawn_with_one_sign_too(finished: Finished):
    lines = list(csv.DictReader(io.StringIO(dose_table.history_csv(finished.dosed, finished.prompts))))
    searched = [line for line in lines if line["kind"] == "search"]
    assert len(searched) == sum(len(each.calibration.history) for each in finished.dosed)
    assert sum(line["kind"] == "audit" for line in lines) == len(finished.dosed)
    assert sum(line["kind"] == "prompt" for line in lines) == len(finished.prompts)

    assert dose_table.figure(finished.dosed, finished.prompts).startswith(PNG)
    assert dose_table.figure([each for each in finished.dosed if each.sign > 0], finished.prompts).startswith(PNG)


# What is saved


def test_a_saved_vector_and_a_run_s_student_are_dosed_like_any_method(tiny_folder: Path, tmp_path: Path):
    run = write_run(tmp_path / "warm", tiny_folder)
    saved = tmp_path / "saved.safetensors"
    saved.write_bytes((run.round(0) / "vector.safetensors").read_bytes())
    recipe, _ = read_study(Study, words(tiny_folder, tmp_path / "root", *SMALL, "calibration.audit_prompts=0"))
    asked = interventions(f"{saved},{run.path}")
    with opened(recipe, KIND, []) as session:
        vector, gate = dose_all(session, asked, (1,))
        assert (vector.name, gate.name) == ("saved", "warm")
        kept = session.folder.path / "interventions" / "saved" / "intervention.safetensors"
        assert kept.read_bytes() == saved.read_bytes()
        assert isinstance(gate.intervention.intervention, WeightDifference)
        assert min(gate.calibration.c_star, vector.calibration.c_star) > 0
        saved.write_bytes((run.round(1) / "vector.safetensors").read_bytes())
        with pytest.raises(UserError, match="changed since this study read it"):
            dose_all(session, asked, (1,))


# The table


def test_every_arm_answers_the_same_prompts(finished: Finished):
    asked = [answer.prompt for answer in finished.against.base.answers]
    assert all([answer.prompt for answer in each.result.answers] == asked for each in finished.measured)


def test_an_intervention_that_changes_nothing_shifts_nothing_and_the_largest_shift_comes_first(finished: Finished):
    still = [replace(each, result=replace(finished.against.base, stage="still")) for each in finished.measured]
    for pair in found(finished, still):
        assert pair.selectivity == 0
        assert pair.shift == 0
        for line in pair.lines:
            assert line.shift.value == line.target.value == line.off_target == 0
            assert {entry.mean for entry in line.logits.values() if entry.n} <= {0.0}

    table = found(finished)
    assert [pair.shift for pair in table] == sorted((pair.shift for pair in table), reverse=True)
    for pair in table:
        both = {line.sign: line.shift.value for line in pair.lines}
        assert pair.shift == pytest.approx((both[1] - both[-1]) / 2)


def test_of_an_intervention_with_one_sign_surgical_informedness_is_one_armed_and_selectivity_against_base(
    finished: Finished,
):
    for sign in "+-":
        (pair,) = found(finished, [each for each in finished.measured if each.arm.label == f"mean_diff {sign}"])
        assert {entry.label for entry in pair.surgical.values()} == {"one-armed"}
        for entry in pair.surgical.values():
            assert math.isnan(entry.reverse if sign == "+" else entry.forward)
        assert pair.other_side == "base"
        head, line = show.table([pair], finished.setting)
        (selectivity,) = [cell for title, cell in zip(head, line, strict=True) if title.startswith("gated")]
        assert selectivity.endswith("(base as the other side)")
    assert {entry.label for pair in found(finished) for entry in pair.surgical.values()} == {"two-sided"}
    assert not any(pair.other_side for pair in found(finished))


def test_two_sided_and_one_armed_values_of_surgical_informedness_never_share_a_column(finished: Finished):
    of_both, of_one = (
        {name: SurgicalInformedness(value, 0.5, 0.5, 1.0, name, 9, arms) for name in VARIANTS}
        for value, arms in ((64.0, 2), (32.0, 1))
    )
    first, second, *_ = found(finished)
    both, one = replace(first, surgical=of_both), replace(second, lines=second.lines[:1], surgical=of_one)
    for shown, labels in (([both], ["two-sided"]), ([one], ["one-armed"]), ([both, one], ["two-sided", "one-armed"])):
        head, *lines = show.table(shown, finished.setting)
        columns = [title for title in head if title.startswith("SI ")]
        assert len(columns) == len(labels) * len(VARIANTS)
        for place, title in enumerate(head):
            if not title.startswith("SI "):
                continue
            cells = [line[place] for line in lines if line[place]]
            (label,) = [label for label in labels if label in title]
            assert cells == [
                f"{entry.value:.1f}" if entry.label == label else f"\N{EN DASH} ({entry.label})"
                for entry in (next(iter(pair.surgical.values())) for pair in shown)
            ]
    for pair, label, value in ((both, "two-sided", "64"), (one, "one-armed", "32")):
        (line, *_) = csv.DictReader(io.StringIO(show.table_csv([pair])))
        numbers = {title: cell for title, cell in line.items() if title.startswith("si ")}
        assert len(numbers) == 2 * len(VARIANTS)
        assert {title: cell for title, cell in numbers.items() if cell} == {
            title: value for title in numbers if label in title
        }


def test_the_head_says_what_is_not_valid_and_a_cell_without_a_number_why(finished: Finished):
    table = found(finished)
    doubted = show.table(table, replace(finished.setting, valid=frozenset({"p_ans_any"})))[0]
    believed = show.table(table, replace(finished.setting, valid=frozenset(name_all(finished.against.base))))[0]
    assert "trait over base (not valid here)" in doubted
    assert "p_ans_any" in doubted
    assert not any("not valid" in title for title in believed)

    unscored = [
        replace(each, result=replace(each.result, signals=tuple(
            replace(signal, values=(math.nan,) * len(signal.values)) if signal.name == "wrongness" else signal
            for signal in each.result.signals
        )))
        for each in finished.measured
    ]  # fmt: skip
    text = show.markdown(found(finished, unscored), finished.setting, 3, ["wrongness (no mass)"])
    assert "\N{EN DASH} (no scene was scored)" in text
    assert "nan" not in text
    assert "Not valid for this model: wrongness (no mass)." in text


def name_all(result: StageResult) -> list[str]:
    return [signal.name for signal in result.signals]


def test_without_a_meant_foundation_the_table_has_no_columns_of_scenes(finished: Finished):
    setting = replace(finished.setting, trait=tiny.trait())
    table = pairs(finished.measured, finished.against.base, setting)
    head = show.table(table, setting)[0]
    assert not any(title.startswith(("SI", "d ", "gated")) for title in head)
    assert "means no moral foundation" in show.caption(setting, 3)


def test_the_csv_has_one_line_a_sign_and_the_figure_folds_long_names(finished: Finished):
    table = found(finished)
    lines = list(csv.DictReader(io.StringIO(show.table_csv(table))))
    flat = [line for pair in table for line in pair.lines]
    assert [(line["intervention"], int(line["sign"])) for line in lines] == [(line.name, line.sign) for line in flat]
    assert [float(line["trait_shift_value"]) for line in lines] == pytest.approx(
        [line.shift.value for line in flat], rel=1e-5
    )

    assert show.figure(found(finished)).startswith(PNG)

    for name in ["pca", "kl_rev_rmse_decay-care_over_authority-embedded-s0", "x" * 40]:
        with case(name):
            lines = show.folded(name).split("\n")
            assert "".join(lines) == name
            assert all(lines)
            assert all(len(line) <= 22 for line in lines if "-" in name or "_" in name)
