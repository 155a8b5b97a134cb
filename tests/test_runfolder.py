"""A run on disk: written whole, checked when read, continued, and never mistaken for another."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from heal.config import Recipe
from heal.errors import UserError
from heal.recipe import load_recipe
from heal.records import json_bytes, read_json, record_bytes
from heal.run.facts import Facts, Sizes
from heal.run.files import sha256, write_atomic
from heal.run.folder import EXPORT_RECORD, FORMAT, STEPS, RunFolder
from heal.run.manifest import MANIFEST
from tests import tiny
from tests.cases import case
from tests.finished import as_earlier
from tests.folders import files_below

FACTS = Facts("float32", tiny.trait(), format=FORMAT)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def recipe(*words: str) -> Recipe:
    return load_recipe(["recipe=smoke", "run.name=here", *words])


def finish_round(run: RunFolder, index: int, upto: str = STEPS[-1]) -> Path:
    """Finishes a round's steps up to `upto`, each with a file of its own."""
    folder = run.round(index)
    for step in STEPS[: STEPS.index(upto) + 1]:
        run.finish(folder, step, {f"{step}.json": json_bytes({"round": index})}, 1.0)
    return folder


# Steps.


def test_a_step_is_finished_once_it_says_so(run: RunFolder):
    folder = run.round(0)
    assert not run.finished(folder, "extract")
    run.finish(folder, "extract", {"vector.safetensors": b"v", "sub/more.json": b"{}"}, 2.5)
    assert run.finished(folder, "extract")
    assert not run.finished(folder, "calibrate")
    assert files_below(folder) == {"vector.safetensors", "sub/more.json", MANIFEST}
    assert run.seconds(folder) == {"extract": 2.5}


def test_files_without_their_mark_are_not_finished(run: RunFolder):
    """Killed between the last file and the manifest: the step is done again."""
    write_atomic(run.round(0) / "extract.json", b"{}")
    assert not run.finished(run.round(0), "extract")


def test_a_damaged_file_of_the_last_step_makes_it_unfinished_until_it_is_done_again(run: RunFolder):
    for damage in ("truncated", "one byte", "missing"):
        folder = finish_round(run, 0, "calibrate")
        path = folder / "calibrate.json"
        content = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes(content[:-3] if damage == "truncated" else bytes([content[0] ^ 1]) + content[1:])
        assert not run.finished(folder, "calibrate"), damage
        assert run.finished(folder, "extract"), damage
        run.finish(folder, "calibrate", {"calibrate.json": b"again"}, 1.0)
        assert run.finished(folder, "calibrate"), damage


def test_a_folder_in_the_place_of_a_file_is_refused_before_its_step_is_done_again(run: RunFolder):
    for name in ("calibrate.json", MANIFEST):
        path = finish_round(run, 0, "calibrate") / name
        path.unlink()
        path.mkdir()
        with pytest.raises(UserError, match=name):
            run.finished(run.round(0), "calibrate")
        path.rmdir()


def test_a_damaged_file_that_later_steps_rest_on_is_refused_by_name(run: RunFolder):
    folder = finish_round(run, 0, "generate")
    (folder / "calibrate.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"calibrate\.json: .*later results are built on it"):
        run.finished(folder, "calibrate")


def test_what_was_measured_last_is_measured_and_judged_again_where_it_is_damaged(run: RunFolder):
    """The judgement is made again for nothing, so it is no result that would be lost."""
    finish_round(run, 0)
    folder = finish_round(run, 1)
    (folder / "healed.json").unlink()
    assert run.rounds() == [0]
    assert not run.finished(folder, "healed")
    run.finish(folder, "healed", {"healed.json": b"again"}, 1.0)
    assert not run.finished(folder, "judge")


def test_a_damaged_step_of_a_round_that_a_later_one_rests_on_is_refused(run: RunFolder):
    for step in ("healed", "judge"):
        finish_round(run, 0)
        finish_round(run, 1, "extract")
        (run.round(0) / f"{step}.json").unlink()
        with pytest.raises(UserError, match=rf"{step}\.json"):
            run.finished(run.round(0), step)


def test_a_baseline_that_rounds_rest_on_is_refused_when_damaged(run: RunFolder):
    for step in ("probe", "base", "prompted", "opposite", "judge"):
        run.finish(run.baseline, step, {f"{step}.json": b"{}"}, 1.0)
    (run.baseline / "judge.json").unlink()
    assert not run.finished(run.baseline, "judge")
    finish_round(run, 0)
    with pytest.raises(UserError, match=r"judge\.json"):
        run.finished(run.baseline, "judge")


def test_a_file_that_two_steps_write_is_the_later_one_s(run: RunFolder):
    folder = run.round(0)
    run.finish(folder, "extract", {"vector.safetensors": b"bare"}, 1.0)
    run.finish(folder, "calibrate", {"vector.safetensors": b"with its dose", "calibration.json": b"{}"}, 1.0)
    assert (folder / "vector.safetensors").read_bytes() == b"with its dose"
    assert run.finished(folder, "extract")
    assert run.finished(folder, "calibrate")


def test_a_damaged_file_that_two_steps_wrote_undoes_both(run: RunFolder):
    """The later step reads what the earlier one wrote: it must not go on from a damaged vector."""
    folder = run.round(0)
    run.finish(folder, "extract", {"vector.safetensors": b"bare"}, 1.0)
    run.finish(folder, "calibrate", {"vector.safetensors": b"with its dose", "calibration.json": b"{}"}, 1.0)
    (folder / "vector.safetensors").write_bytes(b"with its d0se")
    assert not run.finished(folder, "extract")
    run.finish(folder, "extract", {"vector.safetensors": b"bare"}, 1.0)
    assert run.finished(folder, "extract")
    assert not run.finished(folder, "calibrate")


def test_a_damaged_file_that_two_steps_wrote_is_refused_once_a_third_rests_on_it(run: RunFolder):
    folder = run.round(0)
    run.finish(folder, "extract", {"vector.safetensors": b"bare"}, 1.0)
    run.finish(folder, "calibrate", {"vector.safetensors": b"with its dose"}, 1.0)
    run.finish(folder, "generate", {"completions.jsonl": b"{}"}, 1.0)
    (folder / "vector.safetensors").unlink()
    for step in ("extract", "calibrate"):
        with pytest.raises(UserError, match=r"vector\.safetensors"):
            run.finished(folder, step)


def test_finished_rounds_are_those_up_to_the_first_gap(run: RunFolder):
    assert run.rounds() == []
    finish_round(run, 0)
    finish_round(run, 1)
    finish_round(run, 2, "heal")
    finish_round(run, 3)
    assert run.rounds() == [0, 1]


def test_a_round_without_the_steered_stage_is_finished_only_where_the_recipe_leaves_it_out(tmp_path: Path):
    for steered in (True, False):
        run = RunFolder(tmp_path / str(steered))
        run.start(recipe(f"evaluation.steered={str(steered).lower()}"), FACTS)
        assert run.steps() == (STEPS if steered else tuple(step for step in STEPS if step != "steered"))
        for step in STEPS:
            if step != "steered":
                run.finish(run.round(0), step, {f"{step}.json": b"{}"}, 1.0)
        assert run.rounds() == ([] if steered else [0])


def test_a_manifest_that_is_truncated_or_none_is_named(run: RunFolder):
    folder = finish_round(run, 0)
    for content, said in ((b'{"extract": {"fi', "truncated"), (b'{"extract": 7}', "not what"), (b"[]", "not what")):
        (folder / MANIFEST).write_bytes(content)
        with pytest.raises(UserError, match=rf"{MANIFEST}: {said}"):
            run.finished(folder, "extract")


def test_the_manifest_of_an_older_folder_is_read_and_becomes_a_new_one_with_the_next_step(run: RunFolder):
    """There the last step measured and summed up at once, under another name."""
    folder = run.round(0)
    contents = {"heal": ["training.jsonl"], "evaluate": ["healed.json", "metrics.json", "outputs.jsonl"]}
    stages = {}
    for step, names in contents.items():
        for name in names:
            write_atomic(folder / name, name.encode())
        stages[step] = {"files": {name: sha256(folder / name) for name in names}, "seconds": 2.0}
    write_atomic(folder / "stages.json", json_bytes(stages))
    assert list(run.seconds(folder)) == ["heal", "healed", "judge"]
    assert all(run.finished(folder, step) for step in ("heal", "healed", "judge"))
    run.finish(folder, "judge", {"metrics.json": b"new", "outputs.jsonl": b"new"}, 1.0)
    assert files_below(folder) == {name for names in contents.values() for name in names} | {MANIFEST}
    assert run.seconds(folder) == {"heal": 2.0, "healed": 2.0, "judge": 1.0}


# Whose folder it is.


def test_a_new_folder_holds_recipe_facts_and_format_and_the_same_recipe_continues(run: RunFolder):
    asked = recipe()
    assert run.start(asked, FACTS) is False
    assert run.recipe() == asked
    assert replace(run.facts(), recipes=()) == FACTS

    run.start(recipe(), FACTS)
    assert run.start(recipe(), FACTS) is True

    run.start(recipe(), FACTS)
    assert read_json(run.path / "facts.json")["format"] == FORMAT == 2


def test_a_run_whose_texts_look_like_something_else_continues_and_another_text_is_another_run(run: RunFolder):
    for number, text in enumerate(
        ["Pay ${price}", "Pay \\${price}", "${oc.env:HOME", "\\???", "null", "007", "a: b # c\n"]
    ):
        with case(text):
            folder, words = RunFolder(run.path / str(number)), (f"model.system={text}", f"run.root={text}")
            assert not folder.start(recipe(*words), FACTS)
            assert folder.start(recipe(*words), FACTS)
            assert (folder.recipe().model.system, folder.recipe().run.root) == (text, text)
            with pytest.raises(UserError, match="is a run of another recipe"):
                folder.refuse_other(recipe(f"model.system={text}$"), FACTS)


def test_another_recipe_is_refused_with_what_differs_and_nothing_is_written(run: RunFolder):
    run.start(recipe(), FACTS)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    for word, shown in {
        "heal.barrier.tau=0.9": r"heal\.barrier\.tau: \S+ there, 0\.9 asked",
        "run.seed=5": r"run\.seed: 0 there, 5 asked",
        "model.name=elsewhere": r"model\.name: embedded there, elsewhere asked",
        "recipe=nll": r"recipe: smoke there, nll asked",
        "trait=candour": r"trait: \w+ there, candour asked",
        "generation.alphas=[0.25,0.5]": r"generation\.alphas: \[.*\] there, \[0\.25, 0\.5\] asked",
    }.items():
        for again in (run.start, run.refuse_other):
            with pytest.raises(UserError, match=shown):
                again(recipe(word), FACTS)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_keys_that_do_not_change_the_result_may_change(run: RunFolder):
    run.start(recipe(), FACTS)
    for word in ("run.rounds=9", "run.root=elsewhere", "tracking.mode=disabled", "compute.decode_batch=7"):
        assert run.start(recipe(word), FACTS) is True
        assert run.recipe() == recipe(word)


def test_changed_facts_are_refused_by_name_but_for_sizes_and_versions(run: RunFolder):
    run.start(recipe(), FACTS)
    for name, value in {
        "dtype": "bfloat16",
        "trait": replace(FACTS.trait, name="cold"),
        "vignettes": "0" * 64,
        "chat_template": "0" * 64,
    }.items():
        with pytest.raises(UserError, match=f"{name}: changed since the run started"):
            run.start(recipe(), replace(FACTS, **{name: value}))
    assert run.start(recipe(), replace(FACTS, batching=Sizes(7, 9), heal="later")) is True


def test_a_run_made_before_a_key_existed_continues_with_the_key_at_its_default_and_with_no_other(run: RunFolder):
    run.start(recipe(), FACTS)
    path = run.path / "recipe.yaml"
    lines = [line for line in path.read_text().splitlines() if "  clusters:" not in line]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"recipe\.yaml: changed or damaged"):
        run.recipe()
    as_earlier(run)
    assert run.recipe() == recipe()
    assert run.start(recipe(), FACTS) is True
    with pytest.raises(UserError, match=r"steer\.clusters: 4 there, 5 asked"):
        run.refuse_other(recipe("steer.clusters=5"), FACTS)


def test_a_folder_of_a_later_version_is_refused_in_one_line_that_says_what_to_do(run: RunFolder):
    run.start(recipe(), replace(FACTS, format=FORMAT + 1))
    for use in (run.recipe, run.facts, lambda: run.start(recipe(), FACTS)):
        with pytest.raises(UserError, match=r"later version of heal \(format \d+, this one knows \d+\); update heal$"):
            use()


def test_a_folder_of_something_else_is_refused_and_left_alone(run: RunFolder):
    run.path.mkdir()
    (run.path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run"):
        run.start(recipe(), FACTS)
    assert files_below(run.path) == {"thesis.txt"}


def test_a_start_that_was_killed_before_the_recipe_was_written_starts_anew(run: RunFolder):
    run.path.mkdir()
    (run.path / ".lock").touch()
    write_atomic(run.path / "facts.json", record_bytes(replace(FACTS, dtype="bfloat16")))
    assert run.start(recipe(), FACTS) is False
    assert replace(run.facts(), recipes=()) == FACTS


def test_only_the_temporary_files_of_a_start_that_was_killed_count_as_nothing(tmp_path: Path):
    for name in (".facts.json.4711.tmp", ".recipe.yaml.4711.tmp"):
        run = RunFolder(tmp_path / name)
        run.path.mkdir()
        (run.path / name).write_bytes(b"{")
        assert run.start(recipe(), FACTS) is False
    for name in (".thesis.tmp", "facts.json.tmp", ".facts.json.tmp.txt"):
        run = RunFolder(tmp_path / name)
        run.path.mkdir()
        (run.path / name).touch()
        with pytest.raises(UserError, match="not a run"):
            run.start(recipe(), FACTS)


def test_a_run_that_has_lost_its_facts_is_said_so_before_anything_is_read_from_them(run: RunFolder):
    run.start(recipe(), FACTS)
    (run.path / "facts.json").unlink()
    for use in (run.facts, lambda: run.start(recipe(), FACTS)):
        with pytest.raises(UserError, match=r"facts\.json is missing"):
            use()


def test_a_folder_without_a_readable_recipe_is_no_run(run: RunFolder):
    run.path.mkdir()
    for content in (None, b"not: [a mapping", b"- a list\n", b"run:\n  nmae: x\n"):
        if content is not None:
            (run.path / "recipe.yaml").write_bytes(content)
        with pytest.raises(UserError, match=run.path.name):
            run.recipe()


# One process at a time.

_HOLD = """
import sys
from pathlib import Path
from heal.errors import UserError
from heal.run.folder import RunFolder
try:
    with RunFolder(Path(sys.argv[1])).locked():
        print("held", flush=True)
        sys.stdin.read()
except UserError as error:
    print(error, flush=True)
    raise SystemExit(3)
"""


def holder(run: RunFolder) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )


def test_a_second_process_is_refused_until_the_first_is_gone_even_if_it_was_killed_or_failed(run: RunFolder):
    with holder(run) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is running"), run.locked():
            pass
        first.kill()
    with run.locked(), holder(run) as second:
        assert "another process is running" in second.communicate()[0]
        assert second.returncode == 3

    with pytest.raises(KeyboardInterrupt), run.locked():
        raise KeyboardInterrupt
    with run.locked():
        assert run.path.is_dir()


def test_the_rounds_of_the_exported_adapter_are_those_of_its_record(run: RunFolder):
    assert run.exported() == []
    write_atomic(run.adapter / EXPORT_RECORD, json_bytes({"rounds": [0, 1]}))
    assert run.exported() == [0, 1]
