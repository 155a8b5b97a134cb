"""Comparing runs: arms are what they say, their numbers are those of the files, and the command writes them."""

import csv
import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from heal.errors import UserError
from heal.evaluation.metrics import METRICS, BaselineMetrics, Coherence, Verdict
from heal.evaluation.results import Answer, StageResult, summarise
from heal.evaluation.signal import MASS, TRAIT, Validity, signals
from heal.recipe import load_recipe
from heal.records import as_record, record_bytes
from heal.report.canvas import Mark, Text
from heal.report.plot import NARROW, WIDE
from heal.run.facts import Facts
from heal.run.folder import STEPS, RunFolder
from heal.run.manifest import JUDGE
from heal.studies.comparison.arms import Arm, Settings, group, lines, untrained
from heal.studies.comparison.arms import tested as signals_tested
from heal.studies.comparison.best import best_lines
from heal.studies.comparison.figure import figure
from heal.studies.comparison.runs import Run, read_run, read_runs, records
from heal.studies.comparison.show import cells, header, markdown, page, rounds_csv
from tests import finished
from tests.commanded import heal, refused
from tests.tiny import trait

DOCS = Path(__file__).resolve().parent.parent / "docs" / "results"
TAIL = "tail_perplexity"
SETTINGS = Settings(resamples=200)
ITEMS = 6


def stage(name: str, log_ratio: float, tail: float, mass: float = 0.98) -> StageResult:
    """Signals whose items vary around the given values."""
    spread = np.linspace(-0.05, 0.05, ITEMS)
    answers = tuple(Answer(f"prompt {item}", (1,), (2,), "text", False) for item in range(ITEMS))
    items = {TRAIT: log_ratio + spread, TAIL: tail * np.exp(spread), MASS: mass + spread / 100}
    return StageResult(name, answers, tuple(signals()[signal].measured(values) for signal, values in items.items()))


def write_run(
    root: Path, recipe: str, seed: int, way: list[tuple[float, float]], broken_from: int = 99, *words: str
) -> Path:
    """A finished run whose healed rounds have the given (log-ratio, tail perplexity)."""
    folder = RunFolder(root / f"{recipe}-{seed}{''.join(words)}")
    folder.start(load_recipe([f"recipe={recipe}", f"run.seed={seed}", *words]), Facts("float32", trait()))
    base, prompted = stage("base", 0.0, 2.0), stage("prompted", 0.15, 2.2)
    validity = {name: Validity(name != "accuracy", "base 2") for name in (TAIL, "accuracy")}
    metrics = BaselineMetrics(summarise(base, base, 100, 0), summarise(prompted, base, 100, 0), validity=validity)
    files = base.files() | prompted.files() | {METRICS: record_bytes(metrics)}
    folder.finish(folder.baseline, JUDGE, files, 0.0)
    for alpha in folder.recipe().evaluation.doses:
        folder.finish(folder.doses, f"dose_{alpha:g}", stage(f"dose_{alpha:g}", 0.1 * alpha, 2 + alpha).files(), 0.0)
    for index, (log_ratio, tail) in enumerate(way):
        judged = replace(
            finished.round_metrics(index),
            verdict=Verdict("incoherent" if index >= broken_from else "holds", ""),
            coherence=Coherence(TAIL, 1 - index / 4),
        )
        files = stage("healed", log_ratio + 0.01 * seed, tail).files() | {METRICS: record_bytes(judged)}
        for name in STEPS[:-1]:
            folder.finish(folder.round(index), name, {}, 0.0)
        folder.finish(folder.round(index), STEPS[-1], files, 0.0)
    return folder.path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two arms of three seeds: one stays whole, the other breaks in its third round."""
    tmp_path = tmp_path_factory.mktemp("runs")
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
    assert held.values[TRAIT].value == pytest.approx(0.22 + 0.01)
    assert held.shift.value == pytest.approx(0.23)
    assert held.shift.low > 0.15
    assert held.values[TAIL].value == pytest.approx(2.3, rel=0.01)
    assert rotten.values[TAIL].value == pytest.approx(20.0, rel=0.01)
    assert held.cost.ratio == pytest.approx(0.0, abs=1e-9)
    assert (held.holds, rotten.holds) == (3, 0)
    assert (held.saturation, rotten.saturation) == (2, 2)
    assert (held.coherent, rotten.coherent) == (4, 2)


def test_differences_are_tested_against_the_first_arm(runs: list[Path]):
    arms = arms_of(runs)
    held, rotten = lines(arms, SETTINGS)
    assert held.p == dict.fromkeys(signal.name for signal in signals_tested())
    assert {TRAIT, TAIL} < held.p.keys()
    assert rotten.p[TAIL] is not None
    assert rotten.p[TAIL] < 0.1
    same = lines([arms[0], replace(arms[0])], SETTINGS)[1]
    assert same.p == held.p | {TRAIT: 1.0, TAIL: 1.0}  # the others were not measured
    shown = dict(zip(header(), cells(replace(rotten, p=held.p | {TRAIT: 1 / 2001, TAIL: 0.0012})), strict=True))
    assert (shown["p trait"], shown["p tail perplexity"]) == ("<0.001", "0.001")  # never 0


def test_an_arm_has_the_rounds_that_all_its_runs_have(tmp_path: Path):
    short, long = [(0.1, 2.0)], [(0.1, 2.0), (0.2, 2.0)]
    paths = [write_run(tmp_path, "nll", 0, short), write_run(tmp_path, "nll", 1, long)]
    assert arms_of(paths)[0].rounds == 1


def test_runs_of_one_seed_of_different_models_or_of_changed_prompts_are_no_arm(tmp_path: Path, runs: list[Path]):
    paths = [write_run(tmp_path, "nll", 0, [(0.1, 2.0)], 9, f"heal.learning_rate={rate}") for rate in (1e-4, 2e-4)]
    with pytest.raises(UserError, match=r"the arm 'nll, warm' differ in heal\.learning_rate; group by it.*by=KEY,KEY"):
        arms_of(paths)
    with pytest.raises(UserError, match="runs of one seed in the arm 'nll, warm'; give each run once"):
        arms_of([paths[0], paths[0]])
    apart = group([read_run(path) for path in paths], ["recipe", "heal.learning_rate"])
    assert [arm.name for arm in apart] == ["nll, 0.0001", "nll, 0.0002"]
    with pytest.raises(UserError, match=r"by=heal\.rate: not a key"):
        group([read_run(path) for path in paths], ["heal.rate"])

    words = (["model.name=one"], ["model.name=two"])
    paths = [write_run(tmp_path, "nll", seed, [(0.1, 2.0)], 9, *words[seed]) for seed in range(2)]
    with pytest.raises(UserError, match=r"the arm 'nll, warm' differ in model\.name"):
        arms_of(paths)

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
        f"{shown}, {name}" for shown in ("base", "prompted", "steered at 1 c*") for name in ("one", "two")
    ]
    assert [arm.runs[0].keys["model.name"] for arm in arms] == ["one", "two"] * 3
    said = {shape.says for shape in figure([*arms, *trained], SETTINGS).shapes if isinstance(shape, Mark)}
    for arm in arms:
        assert any(text.startswith(f"{arm.name}: trait") for text in said), arm.name


def test_raw_steering_of_two_traits_is_two_lines(tmp_path: Path):
    read = read_run(write_run(tmp_path, "nll", 0, [(0.1, 2.0)], 9, "evaluation.doses=[0.5, 1]"))
    trained = group([read, replace(read, keys=read.keys | {"trait": "cold"})], ["recipe", "trait"])
    canvas = figure([*untrained(trained), *trained], SETTINGS)
    named = [shape.text for shape in canvas.shapes if isinstance(shape, Text) and "raw" in shape.text]
    assert named == ["raw steering, multiples of c*, warm", "raw steering, multiples of c*, cold"]
    crosses = {shape.colour for shape in canvas.shapes if isinstance(shape, Mark) and shape.shape == "cross"}
    assert len(crosses) == 2


def test_an_arm_that_never_shifts_upwards_has_no_saturation(tmp_path: Path):
    arm = arms_of([write_run(tmp_path, "nll", 0, [(-0.1, 2.0), (-0.2, 2.0)])])
    assert lines(arm, SETTINGS)[0].saturation is None


def test_arms_of_unequal_rounds_are_not_tested_against_each_other(tmp_path: Path):
    short, long = [(0.1, 2.0)], [(0.1, 2.0), (0.2, 2.0)]
    arms = arms_of([write_run(tmp_path, "nll", 0, short), write_run(tmp_path, "wd", 0, long)])
    assert [line.p[TRAIT] for line in lines(arms, SETTINGS)] == [None, None]


def test_a_folder_file_or_run_that_cannot_be_compared_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match="not a run folder"):
        read_run(tmp_path)
    empty = RunFolder(tmp_path / "empty")
    empty.start(load_recipe([]), Facts("float32", trait()))
    with pytest.raises(UserError, match="no round is finished yet"):
        read_run(empty.path)

    (tmp_path / "other.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(UserError, match=r"other\.jsonl, line 1: not what this version of heal writes \(name"):
        read_runs([tmp_path / "other.jsonl"])

    path = write_run(tmp_path, "nll", 0, [(0.1, 2.0)])
    (path / "facts.json").unlink()
    with pytest.raises(UserError, match=r"nll-0/facts\.json is missing"):
        read_run(path)


def test_the_csv_has_every_arm_round_and_signal_with_base_as_round_0(runs: list[Path]):
    arms = arms_of(runs)
    rows = list(csv.DictReader(io.StringIO(rounds_csv(arms, SETTINGS))))
    assert len(rows) == 2 * 3 * 5
    base = next(row for row in rows if row["round"] == "0" and row["signal"] == "tail_perplexity")
    assert float(base["value"]) == pytest.approx(2.0, rel=0.01)
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)


def test_the_table_says_n_and_the_page_escapes_names(runs: list[Path]):
    table = lines(arms_of(runs), SETTINGS)
    best = best_lines(arms_of(runs), SETTINGS)
    text = markdown(table, best)
    assert "(n = 6)" in text
    assert "Not valid for this model: accuracy (base 2)." in text
    assert text.splitlines()[0].count("|") == len(header()) + 1
    drawn = [partial(figure, arms_of(runs), SETTINGS)] * 2
    html = page(table, best, drawn, "<script>alert(1)</script>")
    assert "<script>alert" not in html
    assert "unsafe" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert "Not valid for this model: accuracy (base 2)." in html
    assert "kl_rev_rmse, warm" in html


def test_base_prompted_and_raw_steering_stand_beside_the_trained_arms(tmp_path: Path):
    paths = [
        write_run(tmp_path, "nll", seed, [(0.1, 2.1), (0.3, 5.0)], 9, "evaluation.doses=[0.5, 2]") for seed in range(2)
    ]
    paths.append(write_run(tmp_path, "wd", 0, [(0.1, 2.0), (0.2, 2.0)]))
    trained = arms_of(paths)
    arms = [*untrained(trained), *trained]
    by_name = {line.arm.name: line for line in lines(arms, SETTINGS)}
    assert list(by_name) == ["base", "prompted", "steered at 0.5 c*", "steered at 2 c*", "nll, warm", "wd, warm"]
    assert by_name["base"].shift.value == 0
    assert by_name["prompted"].shift.value == pytest.approx(0.15)
    assert by_name["steered at 2 c*"].shift.value == pytest.approx(0.2)
    assert by_name["steered at 2 c*"].values[TAIL].value == pytest.approx(4.0, rel=0.01)
    assert by_name["steered at 2 c*"].arm.rounds == 0
    assert by_name["steered at 2 c*"].holds is None
    assert by_name["base"].margin == 1.0 > by_name["steered at 0.5 c*"].margin > by_name["steered at 2 c*"].margin
    assert [line.p[TRAIT] is None for line in by_name.values()] == [True, True, True, True, True, False]
    for width in (WIDE, NARROW):
        canvas = figure(arms, SETTINGS, width)
        marks = [shape for shape in canvas.shapes if isinstance(shape, Mark)]
        assert all(0 <= x <= width and 0 <= y <= canvas.height for x, y in (mark.at for mark in marks))
        for arm in trained:
            rounds = [mark.says for mark in marks if mark.says.startswith(f"{arm.name}, round 2")]
            assert len(rounds) == 3  # trait against perplexity, and both by round


def test_the_file_of_runs_gives_the_same_comparison_as_the_folders_and_keeps_what_could_not_be_scored(
    runs: list[Path], tmp_path: Path
):
    read = read_runs(runs)
    (tmp_path / "runs.jsonl").write_bytes(records(read))
    again = read_runs([tmp_path / "runs.jsonl"])
    by = ["recipe", "trait"]
    one, other = (
        markdown(lines(arms, SETTINGS), best_lines(arms, SETTINGS)) for arms in (group(again, by), group(read, by))
    )
    assert one == other

    run = read_run(runs[0])
    run.healed[0][TAIL][2] = math.nan
    again = as_record(Run, json.loads(records([run])), "a record")
    assert [math.isnan(value) for value in again.values(TAIL, 0)[:3]] == [False, False, True]


def test_the_command_writes_table_numbers_page_and_figure(runs: list[Path], tmp_path: Path):
    words = [*map(str, runs), f"out={tmp_path / 'out'}", "resamples=100"]
    done = heal("compare", *words)
    assert done.returncode == 0, done.stderr
    names = {"comparison.md", "comparison.csv", "comparison.html", "comparison.png", "fronts.png", "runs.jsonl"}
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


def test_a_mistake_is_one_line_and_exit_2():
    for words, complaint in (
        ([], "no runs given"),
        (["runs/none"], "not a run folder"),
        (["none.jsonl"], "none.jsonl: no such file"),
    ):
        refused(["compare", *words], complaint)


def test_the_comparison_of_records_that_an_older_version_wrote_is_the_same():
    """The records in docs/results have fewer keys than a recipe of today; the table in docs rests on them."""
    runs = read_runs([DOCS / "love.jsonl"])
    trained = group(runs, ["recipe"])
    table = {line.arm.name: line for line in lines(trained, Settings(resamples=100))}
    with (DOCS / "love.csv").open() as file:
        written = {
            (row["arm"], row["signal"]): float(row["value"]) for row in csv.DictReader(file) if row["round"] == "8"
        }
    for name, line in table.items():
        for signal, estimate in line.values.items():
            assert (estimate is None) == ((name, signal) not in written)  # a younger signal is absent
            assert estimate is None or estimate.value == pytest.approx(written[name, signal], rel=1e-5), (name, signal)
        assert {TRAIT, TAIL, MASS} <= {signal for signal, estimate in line.values.items() if estimate is not None}
    newer = replace(runs[0], keys=runs[0].keys | {"evaluation.thinking": 0, "run.seed": 9})
    older = replace(runs[0], keys={name: key for name, key in runs[0].keys.items() if name != "evaluation.thinking"})
    assert [arm.name for arm in group([older, newer], ["evaluation.thinking"])] == ["0"]


def test_a_run_that_is_older_than_a_key_behaved_as_runs_did_before_it_and_not_as_the_key_s_default(runs: list[Path]):
    key = "filter.min_on_prompt"
    run = read_run(runs[0])
    older = replace(run, keys={name: value for name, value in run.keys.items() if name != key})
    without, within = (replace(run, keys=run.keys | {key: value, "run.seed": 9}) for value in (0.0, 0.5))
    assert [arm.name for arm in group([older, without], [key])] == ["0.0"]
    assert [arm.name for arm in group([older, within], [key])] == ["0.0", "0.5"]
    with pytest.raises(UserError, match=r"differ in filter\.min_on_prompt"):
        group([older, within], ["recipe"])


def test_a_signal_that_some_run_lacks_is_blank_and_has_no_lines(runs: list[Path]):
    run, other = read_run(runs[0]), read_run(runs[1])
    for items in (*other.stages.values(), *other.healed):
        del items[TAIL]
    arms = group([run, other], ["recipe"])
    (line,) = lines(arms, SETTINGS)
    assert line.values[TAIL] is None
    assert cells(line)[header().index("tail perplexity")] == ""
    assert TAIL not in rounds_csv(arms, SETTINGS)
    assert TRAIT in rounds_csv(arms, SETTINGS)
    panels, whole = (figure([*untrained(each), *each], SETTINGS, NARROW).height for each in (arms, arms_of(runs)))
    assert panels < whole
