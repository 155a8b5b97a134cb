"""Comparing runs: arms are what they say, their numbers are those of the files, and the command writes them."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from heal.errors import UserError
from heal.evaluation.results import Answer, Signal, StageResult
from heal.recipe import load_recipe
from heal.records import json_bytes
from heal.run.folder import STEPS, RunFolder
from heal.studies.comparison.arms import Arm, Settings, group, lines, untrained
from heal.studies.comparison.runs import Run, read_run, read_runs, records
from heal.studies.comparison.show import HEADER, _untrained, cells, figure, markdown, page, rounds_csv
from tests.commanded import heal
from tests.tiny import trait

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = Settings(resamples=200)
ITEMS = 6


def stage(name: str, log_ratio: float, tail: float, mass: float = 0.98) -> StageResult:
    """Signals whose items vary around the given values."""
    spread = np.linspace(-0.05, 0.05, ITEMS)
    answers = tuple(Answer(f"prompt {item}", (1,), (2,), "text", False) for item in range(ITEMS))
    return StageResult(
        name,
        answers,
        (
            Signal("persona_log_ratio", "nats/token", "trait", "mean", tuple(log_ratio + spread)),
            Signal("tail_perplexity", "perplexity", "coherence", "median", tuple(tail * np.exp(spread))),
            Signal("p_ans_any", "probability", "coherence", "mean", tuple(mass + spread / 100), "questions"),
        ),
    )


def write_run(
    root: Path, recipe: str, seed: int, way: list[tuple[float, float]], broken_from: int = 99, *words: str
) -> Path:
    """A finished run whose healed rounds have the given (log-ratio, tail perplexity)."""
    folder = RunFolder(root / f"{recipe}-{seed}{''.join(words)}")
    folder.start(
        load_recipe([f"recipe={recipe}", f"run.seed={seed}", *words]),
        {"dtype": "float32", "trait": trait().to_json()},
    )
    validity = {name: {"valid": name != "accuracy", "why": "base 2"} for name in ("tail_perplexity", "accuracy")}
    files = {
        "base.json": json_bytes(stage("base", 0.0, 2.0).to_json()),
        "prompted.json": json_bytes(stage("prompted", 0.15, 2.2).to_json()),
        "metrics.json": json_bytes({"validity": validity}),
    }
    folder.finish(folder.baseline, "opposite", files, 0.0)
    doses = {alpha: stage(f"dose_{alpha:g}", 0.1 * alpha, 2 + alpha) for alpha in folder.recipe().evaluation.doses}
    files = {f"{each.stage}.json": json_bytes(each.to_json()) for each in doses.values()}
    folder.finish(folder.doses, "doses", files, 0.0)
    for index, (log_ratio, tail) in enumerate(way):
        files = {
            "healed.json": json_bytes(stage("healed", log_ratio + 0.01 * seed, tail).to_json()),
            "metrics.json": json_bytes(
                {
                    "verdict": {"label": "incoherent" if index >= broken_from else "holds"},
                    "coherence": {"worst": "tail_perplexity", "margin": 1 - index / 4},
                }
            ),
        }
        for name in STEPS[:-1]:
            folder.finish(folder.round(index), name, {}, 0.0)
        folder.finish(folder.round(index), STEPS[-1], files, 0.0)
    return folder.path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two arms of three seeds: one stays whole, the other breaks in its third round."""
    whole, rotten = (
        [(0.1, 2.1), (0.2, 2.2), (0.21, 2.2), (0.22, 2.3)],
        [(0.1, 2.5), (0.3, 5.0), (0.2, 9.0), (0.1, 20.0)],
    )
    made = [write_run(tmp_path, "kl_rev_rmse", seed, whole) for seed in range(3)]
    return made + [write_run(tmp_path, "nll", seed, rotten, 2) for seed in range(3)]


def arms_of(paths: list[Path]) -> list[Arm]:
    return group([read_run(path) for path in paths], ["recipe", "trait"])


def test_runs_that_differ_in_their_seed_alone_are_one_arm(runs: list[Path]):
    arms = arms_of(runs)
    assert [(arm.name, len(arm.runs), arm.rounds) for arm in arms] == [
        ("kl_rev_rmse, warm", 3, 4),
        ("nll, warm", 3, 4),
    ]


def test_the_table_s_numbers_are_means_over_seeds_after_the_last_round(runs: list[Path]):
    held, rotten = lines(arms_of(runs), SETTINGS)
    assert held.trait.value == pytest.approx(0.22 + 0.01)
    assert held.shift.value == pytest.approx(0.23)
    assert held.shift.low > 0.15
    assert held.tail.value == pytest.approx(2.3, rel=0.01)
    assert rotten.tail.value == pytest.approx(20.0, rel=0.01)
    assert held.coh_cost == pytest.approx(0.0, abs=1e-9)
    assert (held.holds, rotten.holds) == (3, 0)


def test_saturation_and_the_last_coherent_round_are_counted(runs: list[Path]):
    held, rotten = lines(arms_of(runs), SETTINGS)
    assert (held.saturation, rotten.saturation) == (2, 2)
    assert (held.coherent, rotten.coherent) == (4, 2)


def test_differences_are_tested_against_the_first_arm(runs: list[Path]):
    held, rotten = lines(arms_of(runs), SETTINGS)
    assert held.p_trait is None
    assert rotten.p_tail is not None
    assert rotten.p_tail < 0.1
    same = lines([arms_of(runs)[0], arms_of(runs)[0]], SETTINGS)[1]
    assert same.p_tail == same.p_trait == 1.0


def test_an_arm_has_the_rounds_that_all_its_runs_have(tmp_path: Path):
    short, long = [(0.1, 2.0)], [(0.1, 2.0), (0.2, 2.0)]
    paths = [write_run(tmp_path, "nll", 0, short), write_run(tmp_path, "nll", 1, long)]
    assert arms_of(paths)[0].rounds == 1


def test_two_runs_of_one_seed_are_no_arm_unless_told_apart(tmp_path: Path):
    paths = [write_run(tmp_path, "nll", 0, [(0.1, 2.0)], 9, f"heal.learning_rate={rate}") for rate in (1e-4, 2e-4)]
    with pytest.raises(UserError, match=r"the arm 'nll, warm' differ in heal\.learning_rate; group by it.*by=KEY,KEY"):
        arms_of(paths)
    with pytest.raises(UserError, match="runs of one seed in the arm 'nll, warm'; give each run once"):
        arms_of([paths[0], paths[0]])
    apart = group([read_run(path) for path in paths], ["recipe", "heal.learning_rate"])
    assert [arm.name for arm in apart] == ["nll, 0.0001", "nll, 0.0002"]
    with pytest.raises(UserError, match=r"by=heal\.rate: not a key"):
        group([read_run(path) for path in paths], ["heal.rate"])


def test_seeds_of_different_models_are_no_arm(tmp_path: Path):
    words = (["model.name=one"], ["model.name=two"])
    paths = [write_run(tmp_path, "nll", seed, [(0.1, 2.0)], 9, *words[seed]) for seed in range(2)]
    with pytest.raises(UserError, match=r"the arm 'nll, warm' differ in model\.name"):
        arms_of(paths)


def test_runs_whose_prompts_changed_under_the_same_keys_are_not_compared(runs: list[Path]):
    read = [read_run(path) for path in runs]
    other = replace(read[1], prompts=[*read[1].prompts[:-1], "another"])
    with pytest.raises(UserError, match="held-out prompts of the trait 'warm' changed between these runs"):
        group([read[0], other, *read[2:]], ["recipe", "trait"])


def test_each_model_has_its_own_base_and_raw_steering(tmp_path: Path):
    words = ("evaluation.doses=[1]", "model.name=")
    paths = [write_run(tmp_path, "nll", 0, [(0.1, 2.0)], 9, words[0], words[1] + name) for name in ("one", "two")]
    trained = group([read_run(path) for path in paths], ["model.name"])
    arms = untrained(trained)
    assert [arm.name for arm in arms] == [
        f"{stage}, {name}" for stage in ("base", "prompted", "steered at 1 c*") for name in ("one", "two")
    ]
    assert [arm.runs[0].keys["model.name"] for arm in arms] == ["one", "two"] * 3
    assert figure([*arms, *trained], SETTINGS)[:4] == b"\x89PNG"


def test_raw_steering_of_two_traits_is_two_lines(tmp_path: Path):
    read = read_run(write_run(tmp_path, "nll", 0, [(0.1, 2.0)], 9, "evaluation.doses=[0.5, 1]"))
    trained = group([read, replace(read, keys=read.keys | {"trait": "cold"})], ["recipe", "trait"])
    _, axis = plt.subplots()
    handles = _untrained(axis, untrained(trained), SETTINGS)
    assert [each.get_label() for each in handles if "raw" in str(each.get_label())] == [
        "raw steering, multiples of c*, warm",
        "raw steering, multiples of c*, cold",
    ]
    assert sum(len(line.get_xdata()) == 2 for line in axis.lines) == 2
    plt.close()


def test_an_arm_that_never_shifts_upwards_has_no_saturation(tmp_path: Path):
    arm = arms_of([write_run(tmp_path, "nll", 0, [(-0.1, 2.0), (-0.2, 2.0)])])
    assert lines(arm, SETTINGS)[0].saturation is None


def test_arms_of_unequal_rounds_are_not_tested_against_each_other(tmp_path: Path):
    short, long = [(0.1, 2.0)], [(0.1, 2.0), (0.2, 2.0)]
    arms = arms_of([write_run(tmp_path, "nll", 0, short), write_run(tmp_path, "wd", 0, long)])
    assert [line.p_trait for line in lines(arms, SETTINGS)] == [None, None]


def test_a_p_value_is_never_printed_as_zero(runs: list[Path]):
    line = lines(arms_of(runs), SETTINGS)[1]
    assert cells(replace(line, p_trait=1 / 2001, p_tail=0.0012))[-2:] == ["<0.001", "0.001"]


def test_a_folder_without_a_finished_round_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="not a run folder"):
        read_run(tmp_path)
    empty = RunFolder(tmp_path / "empty")
    empty.start(load_recipe([]), {"dtype": "float32", "trait": trait().to_json()})
    with pytest.raises(UserError, match="no round is finished yet"):
        read_run(empty.path)


def test_the_csv_has_every_arm_round_and_signal_with_base_as_round_0(runs: list[Path]):
    arms = arms_of(runs)
    rows = list(csv.DictReader(io.StringIO(rounds_csv(arms, SETTINGS))))
    assert len(rows) == 2 * 3 * 5
    base = next(row for row in rows if row["round"] == "0" and row["signal"] == "tail_perplexity")
    assert float(base["value"]) == pytest.approx(2.0, rel=0.01)
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)


def test_the_table_says_n_and_the_page_escapes_names(runs: list[Path]):
    table = lines(arms_of(runs), SETTINGS)
    text = markdown(table)
    assert "(n = 6)" in text
    assert text.splitlines()[0].count("|") == len(HEADER) + 1
    html = page(table, b"png", "<script>alert(1)</script>")
    assert "<script>" not in html
    assert "kl_rev_rmse, warm" in html


def test_base_prompted_and_raw_steering_stand_beside_the_trained_arms(tmp_path: Path):
    paths = [
        write_run(tmp_path, "nll", seed, [(0.1, 2.1), (0.3, 5.0)], 9, "evaluation.doses=[0.5, 2]") for seed in range(2)
    ]
    paths.append(write_run(tmp_path, "wd", 0, [(0.1, 2.0), (0.2, 2.0)]))
    trained = arms_of(paths)
    arms = [*untrained(trained), *trained]
    found = {line.arm.name: line for line in lines(arms, SETTINGS)}
    assert list(found) == ["base", "prompted", "steered at 0.5 c*", "steered at 2 c*", "nll, warm", "wd, warm"]
    assert found["base"].shift.value == 0
    assert found["prompted"].shift.value == pytest.approx(0.15)
    assert found["steered at 2 c*"].shift.value == pytest.approx(0.2)
    assert found["steered at 2 c*"].tail.value == pytest.approx(4.0, rel=0.01)
    assert found["steered at 2 c*"].arm.rounds == 0
    assert found["steered at 2 c*"].holds is None
    assert found["base"].margin == 1.0 > found["steered at 0.5 c*"].margin > found["steered at 2 c*"].margin
    assert [line.p_trait is None for line in found.values()] == [True, True, True, True, True, False]
    assert figure(arms, SETTINGS)[:4] == b"\x89PNG"


def test_the_file_of_runs_gives_the_same_comparison_as_the_folders(runs: list[Path], tmp_path: Path):
    read = read_runs(runs)
    (tmp_path / "runs.jsonl").write_bytes(records(read))
    again = read_runs([tmp_path / "runs.jsonl"])
    by = ["recipe", "trait"]
    assert markdown(lines(group(again, by), SETTINGS)) == markdown(lines(group(read, by), SETTINGS))


def test_what_could_not_be_scored_survives_the_file(runs: list[Path]):
    run = read_run(runs[0])
    run.healed[0]["tail_perplexity"][2] = float("nan")
    again = Run.from_json(json.loads(json.dumps(run.to_json())))
    assert math.isnan(again.healed[0]["tail_perplexity"][2])
    assert not math.isnan(again.healed[0]["tail_perplexity"][1])


def test_a_file_that_is_no_file_of_runs_is_refused_by_name(tmp_path: Path):
    (tmp_path / "other.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(UserError, match=r"other\.jsonl: not a comparison's file of runs"):
        read_runs([tmp_path / "other.jsonl"])


def test_a_run_without_its_facts_is_refused_by_name(runs: list[Path]):
    (runs[0] / "facts.json").unlink()
    with pytest.raises(UserError, match=rf"{runs[0].name}: facts\.json is missing"):
        read_run(runs[0])


def test_what_is_not_valid_for_the_model_is_said_under_the_table(runs: list[Path]):
    table = lines(arms_of(runs), SETTINGS)
    assert "Not valid for this model: accuracy (base 2)." in markdown(table)
    assert "Not valid for this model: accuracy (base 2)." in page(table, b"png", "title")


def test_a_figure_of_many_arms_is_an_image(runs: list[Path]):
    arms = arms_of(runs)
    assert figure(arms * 5, SETTINGS)[:4] == b"\x89PNG"


def test_the_command_writes_table_numbers_page_and_figure(runs: list[Path], tmp_path: Path):
    words = [*map(str, runs), f"out={tmp_path / 'out'}", "resamples=100"]
    done = heal("compare", *words)
    assert done.returncode == 0, done.stderr
    names = {"comparison.md", "comparison.csv", "comparison.html", "comparison.png", "runs.jsonl"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert "| kl_rev_rmse, warm | 3 | 4 |" in done.stdout
    for name in names:
        assert str(tmp_path / "out" / name) in done.stdout


def test_what_a_sweep_left_can_be_given_by_a_pattern(tmp_path: Path):
    folder = write_run(tmp_path, "nll", 0, [(0.1, 2.0)]).rename(tmp_path / "nll-0-learning_rate=0.1")
    (tmp_path / f"{folder.name}.log").write_text("round 1 of 1\n")
    words = [*map(str, sorted(tmp_path.glob("nll-*"))), f"out={tmp_path / 'out'}"]
    done = heal("compare", *words)
    assert done.returncode == 0, done.stderr
    assert "| nll, warm | 1 | 1 |" in done.stdout


def test_the_arm_that_is_tested_against_can_be_named(runs: list[Path], tmp_path: Path):
    words = [*map(str, runs), f"out={tmp_path / 'out'}", "resamples=100"]
    done = heal("compare", *words, "against=nll, warm")
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].removeprefix("| ") for line in table]
    assert names.index("nll, warm") < names.index("kl_rev_rmse, warm")
    assert table[names.index("nll, warm")].endswith("|  |  |")
    done = heal("compare", *words, "against=wd")
    assert done.returncode == 2
    assert "against=wd: no such arm; there are kl_rev_rmse, warm, nll, warm" in done.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [([], "no runs given"), (["runs/none"], "not a run folder"), (["none.jsonl"], "none.jsonl: no such file")],
)
def test_a_mistake_is_one_line_and_exit_2(words: list[str], complaint: str):
    done = heal("compare", *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
