"""The Python API: the same bits as a run's steps, without a run folder."""

import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import heal
from heal import choices
from heal.decoding import decode
from heal.evaluation.metrics import BaselineMetrics, RoundMetrics
from heal.evaluation.stats import Estimate
from heal.records import record_bytes
from heal.run.folder import RunFolder
from tests import running, tiny

DTYPE = "float32"  # that both have, whatever `auto` means here


def keys(section: object, *without: str) -> dict[str, Any]:
    """What a run's recipe sets in a section, as keywords; `barrier`, a section of its own, among them."""
    values = {item.name: getattr(section, item.name) for item in dataclasses.fields(section)}  # type: ignore[arg-type]
    values |= {
        item.name: "auto"
        for item in dataclasses.fields(section)  # type: ignore[arg-type]
        if values[item.name] is None and item.metadata.get("auto")
    }
    barrier = values.pop("barrier", None)
    values |= keys(barrier) if barrier else {}
    return {name: value for name, value in values.items() if name not in without}


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two rounds, on as many threads as this process has."""
    root = tmp_path_factory.mktemp("run")
    line = running.words(tiny_folder, root, "run.name=there", f"model.dtype={DTYPE}", "run.seed=3")
    assert running.finish(line, root / "log.txt") == 0, (root / "log.txt").read_text()
    return RunFolder(root / "there")


LORA = ("rank", "alpha", "band", "init")  # keys of the heal section that `accumulate` takes


@dataclasses.dataclass(frozen=True)
class Round:
    """What the API made of one round."""

    vector: heal.SteeringVector
    dose: heal.Calibration
    collection: heal.Collection
    steered: heal.Measurement
    training: heal.Healed
    healed: heal.Measurement


@dataclasses.dataclass(frozen=True)
class Made:
    """The same as the run by the API: its student, and its rounds."""

    student: heal.Accumulator
    trait: heal.Trait
    baseline: heal.Baseline
    rounds: list[Round]


@pytest.fixture(scope="module")
def made(run: RunFolder) -> Made:
    recipe = run.recipe()
    seed, rounds = recipe.run.seed, list[Round]()
    model = heal.load_model(recipe.model.name, device="cpu", dtype=DTYPE)
    trait = heal.load_trait(recipe.trait)
    student = heal.accumulate(model, **{name: getattr(recipe.heal, name) for name in LORA})
    asked = keys(recipe.evaluation, "steered", "doses", "judge") | {"max_repetition": recipe.filter.max_repetition}
    baseline = heal.baseline(student, trait, seed=seed, **asked)
    for _ in range(2):
        vector = heal.extract(model, trait, **keys(recipe.steer))
        start = rounds[-1].dose.c_star if rounds else None
        dose = heal.calibrate(model, vector, trait, start=start, seed=seed, **keys(recipe.calibration, "reference"))
        vector = vector.with_c_star(dose.c_star)
        sampling = keys(recipe.generation) | keys(recipe.filter)
        collection = heal.generate(student, vector, trait, seed=seed, **sampling)
        steered = heal.measure(student, baseline, vector=vector, name="steered")
        strength = rounds[-1].training.figures.strength if rounds else None
        training = heal.heal(student, collection, seed=seed, start=strength, **keys(recipe.heal, "use_dora", *LORA))
        student.fold()
        healed = heal.measure(student, baseline, name="healed")
        rounds.append(Round(vector, dose, collection, steered, training, healed))
    return Made(student, trait, baseline, rounds)


def test_two_rounds_are_those_of_a_run_bit_for_bit(run: RunFolder, made: Made) -> None:
    for index, ours in enumerate(made.rounds):
        at, which = run.round(index), f"round {index + 1}"
        files = {
            "vector.safetensors": ours.vector.to_bytes(),
            "calibration.json": record_bytes(ours.dose),
            **ours.collection.files(),
            **ours.training.files(),
            **ours.steered.stage.files(),
            **ours.healed.stage.files(),
        }
        for name, content in files.items():
            assert (at / name).read_bytes() == content, f"{which}: {name}"


def test_signals_coherence_and_verdict_are_those_of_a_run(run: RunFolder, made: Made) -> None:
    assert made.baseline.metrics == BaselineMetrics.load(run.baseline)
    for index, ours in enumerate(made.rounds):
        metrics, healed = RoundMetrics.load(run.round(index)), ours.healed
        assert (healed.signals, healed.coherence, healed.verdict) == (
            metrics.healed,
            metrics.coherence,
            metrics.verdict,
        )
        assert ours.steered.signals == metrics.steered
        assert healed.trait == metrics.trait
        assert len(healed.answers) == metrics.trait.n
    asked = keys(run.recipe().evaluation, "steered", "doses", "judge") | {"prompts": 2, "questions": 2}
    lettered = heal.baseline(made.student, made.trait, choose_ways=False, **asked).metrics
    assert made.baseline.metrics.asking
    assert not lettered.asking
    assert lettered.base["accuracy"].n == 2


def test_the_exported_adapter_is_that_of_a_run_and_the_student_in_plain_peft(
    run: RunFolder, made: Made, tiny_folder: Path, tmp_path: Path
) -> None:
    export = heal.export_adapter(made.student, made.trait, tmp_path / "adapter")
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (export.path, run.adapter))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    fresh = tiny.load(tiny_folder)
    loaded = PeftModel.from_pretrained(fresh.model, str(export.path)).eval()
    ids_BT = torch.tensor([fresh.chat.ids("Be calm.", "Name a cat.")])
    with torch.inference_mode():
        wanted = made.student.language_model.model(input_ids=ids_BT).logits
        error = (loaded(input_ids=ids_BT).logits - wanted).abs().max()
    assert error < 1e-4 * wanted.abs().max()  # the same sums, in another order
    card = (export.path / "README.md").read_text()
    assert "made in 2 rounds" in card
    assert "This card records no measurements" in card
    assert "below" not in card


def test_the_student_is_exported_as_a_whole_model_at_any_gate(made: Made, tmp_path: Path) -> None:
    export = heal.export_merged(made.student, made.trait, tmp_path / "model", gate=0.5)
    merged = heal.load_model(export.path, dtype=DTYPE, device="cpu")
    with made.student.gates(0.5, 0.0):
        half = heal.answer(made.student.language_model, list(made.trait.heldout_prompts), tokens=8)
    assert heal.answer(merged, list(made.trait.heldout_prompts), tokens=8) == half


def test_the_base_of_a_student_and_its_gates_are_contexts(made: Made, tiny_folder: Path) -> None:
    model, prompts = made.student.language_model, list(made.trait.heldout_prompts)
    base = heal.answer(heal.load_model(tiny_folder, dtype=DTYPE, device="cpu"), prompts, tokens=16)
    with made.student.base():
        assert heal.answer(model, prompts, tokens=16) == base
    assert heal.answer(model, prompts, tokens=16) != base
    off = heal.measure(made.student, made.baseline, gates=(0, 0), name="base")
    assert off.stage == made.baseline.base
    assert off.trait.delta.value == 0.0


def test_answers_are_greedy_steered_or_sampled(tiny_folder: Path) -> None:
    model = heal.load_model(tiny_folder, dtype=DTYPE, device="cpu", system="Be brief.")
    prompts, vector = ["Name a cat.", "Name a dog.", "Name an elk."], tiny.vector(model, norm=40.0)
    rows = [model.chat.ids("Be brief.", prompt) for prompt in prompts]

    def said(*arguments: Any) -> list[str]:
        return [model.chat.decode(list(completion.ids)).strip() for completion in decode(model, rows, 12, *arguments)]

    assert heal.answer(model, prompts, tokens=12) == said()
    assert heal.answer(model, prompts[0], tokens=12) == said()[:1]
    assert heal.answer(model, prompts, tokens=12, vector=vector, c=1.0) == said(vector, [1.0] * 3)
    assert heal.answer(model, prompts, tokens=12, vector=vector.with_c_star(1.0)) == said(vector, [1.0] * 3)
    assert heal.answer(model, prompts, tokens=12, vector=vector, c=[0.0, 1.0, 2.0]) == said(vector, [0.0, 1.0, 2.0])
    with vector.applied(model, 1.0):
        assert heal.answer(model, prompts, tokens=12) == said()
        assert heal.answer(model, prompts, tokens=12) == heal.answer(model, prompts, tokens=12, vector=vector, c=0.0)
    assert heal.answer(model, prompts, tokens=12, system="Be long.") != said()
    sampled = [heal.answer(model, prompts, tokens=12, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert heal.answer(model, []) == []


def test_a_dose_against_base_counts_the_drift_of_the_student(made: Made) -> None:
    small = {"prompts": 2, "audit_prompts": 0, "tokens": 4, "tolerance": 0.5, "max_passes": 2}
    model, vector = made.student.language_model, made.rounds[0].vector
    unreachable = small | {"target": 1e-3, "tolerance": 1e-4}
    with pytest.warns(UserWarning, match="the dose is not on target"):
        dose = heal.calibrate(model, vector, made.trait, off=made.student.base, **unreachable)
    assert dose.reference == "base"
    assert heal.calibrate(model, vector, made.trait, **small).reference == "student"


def test_a_vector_is_saved_loaded_and_exported(made: Made, tiny_folder: Path, tmp_path: Path) -> None:
    vector, path = made.rounds[0].vector, tmp_path / "vectors" / "v.safetensors"
    vector.save(path)
    for again in (heal.SteeringVector.load(str(path)), heal.load_intervention(path)):
        assert again.to_bytes() == vector.to_bytes()
        assert again.c_star == made.rounds[0].dose.c_star
    model = heal.load_model(tiny_folder, dtype=DTYPE, device="cpu")
    export = heal.export_vector(model, vector, tmp_path / "adapter", c=0.5)
    assert export.facts.c == 0.5
    assert (export.path / "adapter_config.json").is_file()


def test_a_mistake_is_one_line_that_names_the_nearest(made: Made, tiny_folder: Path, tmp_path: Path) -> None:
    student, trait, vector, written = made.student, made.trait, made.rounds[0].vector, made.rounds[0].collection
    model, bare = student.language_model, dataclasses.replace(vector, c_star=None)
    long = "word " * 2000
    mistakes = {
        "load_model(): unknown keyword 'dtpye'; did you mean 'dtype'?": lambda: heal.load_model(dtpye="float32"),
        "model.dtype=float33 in load_model()": lambda: heal.load_model(dtype="float33"),
        "device=abacus": lambda: heal.load_model(tiny_folder, device="abacus"),
        "trait=lvoe: no such trait; did you mean 'love'?": lambda: heal.load_trait("lvoe"),
        "extract(): unknown keyword 'metod'; did you mean 'method'?": lambda: heal.extract(model, trait, metod="pca"),
        "did you mean 'mean_diff'?": lambda: heal.extract(model, trait, method="meandiff"),
        "steer.clusters=3: not a setting of": lambda: heal.extract(model, trait, clusters=3),
        "steer.pairs=1 in extract(): out of range": lambda: heal.extract(model, trait, pairs=1),
        "calibrate(): unknown keyword 'reference'": lambda: heal.calibrate(model, vector, trait, reference="base"),
        "within calibration.tolerance": lambda: heal.calibrate(model, vector, trait, target=0.01),
        "generate(): unknown keyword 'alpha'; did you mean 'alphas'?": lambda: heal.generate(
            student, vector, trait, alpha=1
        ),
        "the vector has no dose": lambda: heal.generate(student, bare, trait),
        "accumulate(): the model carries adapters already": lambda: heal.accumulate(model),
        "accumulate(): unknown keyword 'rnak'; did you mean 'rank'?": lambda: heal.accumulate(model, rnak=4),
        "heal.init=dora": lambda: heal.accumulate(model, init="dora"),
        "heal(): unknown keyword 'tua'; did you mean 'tau'?": lambda: heal.heal(
            student, made.rounds[0].collection, tua=1
        ),
        "heal.epochs=0 in heal(): out of range": lambda: heal.heal(student, written, epochs=0),
        "heal(): no completion was kept": lambda: heal.heal(student, []),
        "baseline(): unknown keyword 'promts'; did you mean 'prompts'?": lambda: heal.baseline(
            student, trait, promts=4
        ),
        "evaluation.skip=3": lambda: heal.baseline(student, trait, skip=3),
        "give c, or": lambda: heal.measure(student, made.baseline, vector=bare),
        "2 coefficients for 1 prompts": lambda: heal.answer(model, "x", vector=vector, c=[1, 2]),
        "exceed the context": lambda: heal.answer(model, long),
        "tokens=0": lambda: heal.answer(model, "x", tokens=0),
        "rank=99": lambda: heal.export_adapter(student, trait, tmp_path / "adapter", rank=99),
        "a steering vector of model": lambda: heal.answer(
            model, "x", vector=dataclasses.replace(vector, model="another"), c=1.0
        ),
    }
    for said, mistake in mistakes.items():
        with pytest.raises(heal.UserError) as raised:
            mistake()
        assert said in str(raised.value), raised.value
        assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_student_without_a_folded_round_is_not_exported(tiny_folder: Path, tmp_path: Path) -> None:
    student = heal.accumulate(heal.load_model(tiny_folder, dtype=DTYPE, device="cpu"), rank=2)
    with pytest.raises(heal.UserError, match="no round is folded"):
        heal.export_adapter(student, tiny.trait(), tmp_path / "adapter")


def test_every_function_shows_the_keys_of_the_recipe_with_their_defaults_and_help() -> None:
    for function, section in {
        heal.extract: heal.api.steering._STEER,
        heal.heal: heal.api.training._HEAL,
        heal.baseline: heal.api.measuring._EVALUATION,
    }.items():
        parameters = inspect.signature(function).parameters
        for name, item in section.taken.items():
            assert parameters[name].default == item.written(item.default), (function, name)
            assert f"{name}: {item.help}" in (function.__doc__ or ""), (function, name)
        assert "keywords" not in parameters


def test_heal_is_imported_without_torch_and_its_names_are_no_modules() -> None:
    code = """
import sys, heal
trait = heal.load_trait("love")
assert isinstance(trait, heal.Trait) and issubclass(heal.UserError, Exception)
print(sorted(name for name in ("torch", "transformers", "peft") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines(), done.returncode) == (["[]"], 0), done.stderr
    assert set(heal.__all__) & set(choices.names("heal")) == set()
    assert all(callable(getattr(heal, name)) for name in heal.__all__)
    with pytest.raises(AttributeError, match="no attribute 'extrat'"):
        heal.extrat  # noqa: B018  # type: ignore[attr-defined]


def test_a_type_checker_sees_the_names_that_there_are() -> None:
    tree = ast.parse(Path(heal.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    imported = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == heal._PLACES
    assert sorted(imported) == sorted(heal.__all__)
    assert set(heal.__all__) <= set(dir(heal))


def test_what_the_readme_and_the_notebook_call_is_there() -> None:
    root = Path(__file__).resolve().parent.parent
    cells = json.loads((root / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = [(root / "README.md").read_text(encoding="utf-8"), *("".join(cell["source"]) for cell in cells)]
    called = {name for text in texts for name in re.findall(r"\bheal\.(\w+)\(", text)}
    assert called <= set(heal.__all__)
    assert len(called) > 8


def test_an_estimate_is_shown_with_its_interval() -> None:
    estimate = Estimate(0.2101, 0.1642, -0.2494, 12)
    assert f"{estimate:+.3f}" == "+0.210 [+0.164, -0.249]"
    assert f"{estimate}" == str(estimate)
