"""Survival of interventions as a study: rolled out once, written as tables and figures."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from heal.console import Console
from heal.dose.calibrate import Calibration
from heal.errors import UserError
from heal.evaluation.probe import FORMATS, Probe
from heal.run.folder import RunFolder
from heal.run.open import opened
from heal.steering.intervention import Signed
from heal.steering.vector import SteeringVector
from heal.studies.interventions.doses import Dosed, dose_all
from heal.studies.interventions.request import KIND, Study, interventions, multiples, read_study
from heal.studies.survival import study as survival
from heal.studies.survival.table import markdown, rows
from tests import tiny
from tests.running import words
from tests.small_study import PNG, SMALL


def test_survival_is_rolled_out_once_and_written_as_a_table_and_figures(tiny_folder: Path, tmp_path: Path):
    recipe, _ = read_study(Study, words(tiny_folder, tmp_path, *SMALL, "calibration.audit_prompts=0"))
    with opened(recipe, KIND, ["mean_diff"]) as session:
        (dosed,) = dose_all(session, interventions("mean_diff"), (1,))
        probe, doubt = survival.prepare(session)
        setting = survival.Setting(2, 8, 2, (0.0, 1.0))
        assert "Not valid for this model" in doubt
        first = survival.survive(session, dosed, probe, setting)
        again = survival.survive(session, dosed, probe, setting)
        assert again == first
        assert {value for each in first if each.alpha == 0 for value in each.kl} == {0.0}
        files = survival.results(dosed, first, doubt)
        assert doubt in files["survival.md"].decode()
        assert not (session.folder.baseline / "ways.json").exists()  # it asks no forced choice
        assert [name for name, content in files.items() if content.startswith(PNG)] == [
            "kl.png",
            "kl_normalised.png",
            "survival.png",
        ]


def test_rollouts_of_other_settings_leave_those_that_are_there_alone(tiny_folder: Path, tmp_path: Path):
    recipe, _ = read_study(Study, words(tiny_folder, tmp_path, *SMALL, "calibration.audit_prompts=0"))
    alphas = (0.0, 1.0)
    settings = [survival.Setting(2, 8, forks, alphas) for forks in (2, 4)]
    settings.append(survival.Setting(2, 8, 2, (0.0, 0.5, 1.0)))
    with opened(recipe, KIND, ["mean_diff"]) as session:
        (dosed,) = dose_all(session, interventions("mean_diff"), (1,))
        probe, _ = survival.prepare(session)
        found = [survival.survive(session, dosed, probe, each) for each in settings]
        assert [survival.survive(session, dosed, probe, each) for each in settings] == found
        assert len({tuple(rollouts) for rollouts in found}) == len(settings)
        assert len(list(session.folder.path.glob("interventions/mean_diff/rollouts+*.jsonl"))) == len(settings)


def test_survival_shows_the_signed_coefficient_that_was_applied(tiny_folder: Path, tmp_path: Path):
    recipe, _ = read_study(Study, words(tiny_folder, tmp_path, *SMALL, "calibration.audit_prompts=0"))
    with opened(recipe, KIND, ["spherical"]) as session:
        (dosed,) = dose_all(session, interventions("spherical"), (-1,))
        probe, _ = survival.prepare(session)
        rollouts = survival.survive(session, dosed, probe, survival.Setting(1, 4, 1, (0.0, 0.5, 1e6)))
        assert dosed.c_star < 0
        assert [each.coefficient for each in rollouts] == [0.0, pytest.approx(0.5 * dosed.c_star), -1.0]
        assert "| 1e+06 | -1 |" in markdown(rows(rollouts, 1.0), 1.0)


def test_survival_of_an_ablation_says_that_its_multiples_take_nothing_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    nothing = SimpleNamespace(trajectories=())
    session = SimpleNamespace(
        console=Console(), trait=tiny.trait(), folder=RunFolder(tmp_path), run=lambda step, at: nothing
    )
    calibration = Calibration(1.0, 1.0, 1.0, 0.05, "tolerance", 1, (), None, "student")
    for name, warned in (("directional_ablation", True), ("mean_diff", False)):
        dosed = Dosed(name, 1, Signed(SteeringVector({}, name, "a model", "warm"), 1), calibration, 0.0)
        survival.survive(session, dosed, Probe(FORMATS[-1], {}), survival.Setting(1, 4, 1, (0.5,)))
        assert (f"{name} +: it replaces a component" in capsys.readouterr().out) == warned


def test_multiples_of_the_dose_are_sorted_and_each_taken_once():
    assert multiples("1,0,1") == (0.0, 1.0)
    assert multiples("0.5") == (0.5,)


def test_what_is_no_multiple_of_a_dose_is_refused():
    for text in ("", "a,1", "-1", "inf", "nan"):
        with pytest.raises(UserError, match="alphas="):
            multiples(text)
