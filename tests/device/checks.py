"""What is checked on the device: `python -m tests.device.checks FOLDER NAMES`, in a process of its own.

A check that fails ends the process with its traceback.
"""

from tests.device import device  # isort: skip  (before torch)

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from heal.accumulator import Accumulator
from heal.api.training import heal
from heal.cli import main
from heal.config import ModelConfig
from heal.console import Console, StepLine
from heal.decoding import Sampling, decode
from heal.errors import RoundError, UserError
from heal.healing import passes as fitting
from heal.healing.barrier import position_losses
from heal.models.batch_sizes import batching_for
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.models.packing import pack
from heal.models.recorded import Recorded
from heal.models.supported import record_steps
from heal.records import read_jsonl
from heal.run.memory_plan import FITS
from heal.run.open import opened
from heal.run.session import Session
from heal.steering.extract import extract
from heal.steering.methods import METHODS
from tests import machine, tiny
from tests.cases import case
from tests.closeness import ROUNDING
from tests.dealt import gradients_of_steps
from tests.device.rounds import SIZES, recipe, run
from tests.divergences import DIVERGENCES
from tests.students import ALPHA, LAYERS, RANK, learn
from tests.students import completions as kept
from tests.training import CONFIG, ONE_STEP, close, healed, with_barrier

DEVICE = torch.device("cuda", 0)
ROWS = 20
# Per token of 20 rows in a Llama of four blocks: kernels and waits. Attention is not fused here and counts six; the
# mask that transformers makes anew each step counts 25, and one wait; what was said is looked at every eight steps.
DECODING = {"greedy": (235.5, 1.25), "steered": (239.5, 1.25), "sampled": (253.5, 1.25)}
RECORDED = (3.5, 0.25)  # the same in a recorded step, whatever the model: the graph, and its results set aside

LOSSES = 36  # kernels for each chunk of positions, none of which waits
TRAINING = (775, 14)  # kernels and waits of an optimiser step of 8 completions, two of whose four blocks are trained


def on_device(architecture: str, folder: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A tiny model, loaded as a run loads it."""
    return load_language_model(ModelConfig(name=str(tiny.save(architecture, folder / architecture))), dtype, DEVICE)


def rules(folder: Path) -> None:
    """The device is none of the CPU's: memory counts and ends, and tensors of both do not mix."""
    before = device.allocated()
    held = torch.zeros(1000, device=DEVICE)
    assert device.allocated() - before == 4000
    with device.limited(before + 5000), pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 4000 bytes"):
        held + 1
    assert torch.cuda.memory_allocated() == before + 4000
    del held
    assert device.allocated() == before

    model = on_device("llama", folder)
    rows, trees = tiny.prompts(model), [[0], [1]]
    model.hidden_states(pack(rows, trees, model.pad_id, DEVICE))
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        model.hidden_states(pack(rows, trees, model.pad_id, torch.device("cpu")))
    with pytest.raises(RuntimeError, match="draws random numbers on the device"):
        torch.rand(3, device=DEVICE)


def decoding(folder: Path) -> None:
    """No step of decoding starts more kernels, or waits more often, than it did."""
    model = on_device("llama", folder)
    prompts = [model.chat.ids("You are helpful.", f"Say {index}.") for index in range(ROWS)]
    seeds = [(0, row) for row in range(ROWS)]
    kinds = {
        "greedy": {},
        "steered": {"intervention": tiny.vector(model), "coefficients": [1.0] * ROWS},
        "sampled": {"sampling": Sampling(1.0, 0.95, 64), "seeds": seeds},
    }
    for kind, keywords in kinds.items():
        with case(kind):
            kernels, waits, by_name = a_step(model, prompts, (16, 32), **keywords)
            assert kernels <= DECODING[kind][0], (kernels, by_name)
            assert waits <= DECODING[kind][1], (waits, by_name)


def a_step(model: LanguageModel, prompts: list[list[int]], tokens: tuple[int, int], **keywords) -> tuple:
    """Kernels and waits of each step between two token budgets, and those of the whole by name."""
    counts = []
    for budget in tokens:
        with device.counted() as counted:
            decode(model, prompts, budget, **keywords)
        counts.append(counted)
    steps = tokens[1] - tokens[0]
    return *((getattr(counts[1], of) - getattr(counts[0], of)) / steps for of in ("kernels", "waits")), counts[
        1
    ].by_name


def graphs(folder: Path) -> None:
    """Recorded steps say what steps say that are not, under every method and as rows leave, and start together."""
    for architecture in ("llama", "gemma3_text", "qwen3"):
        model = on_device(architecture, folder)
        assert record_steps(model) == []
        prompts = [model.chat.ids("You are helpful.", "Say it. " * (1 + row % 5)) for row in range(8)]
        seeds = [(0, row) for row in range(8)]
        vectors = {"random": tiny.vector(model)}
        if architecture == "llama":
            pairs = [f"Say {row}." for row in range(8)]
            vectors |= {name: extract(model, tiny.trait(), pairs, name, [1, 2]) for name in METHODS}
        for name, vector in vectors.items():
            with case(architecture, name):
                steered = {"intervention": vector, "coefficients": [0.1 * row for row in range(8)]}
                drawn = {"sampling": Sampling(1.0, 0.95, 64), "seeds": seeds, "until": lambda said: sum(said) % 13 == 0}
                recorded = decode(model, prompts, 48, **steered, **drawn)
                model.records = False
                assert recorded == decode(model, prompts, 48, **steered, **drawn)
                assert len({len(row.ids) for row in recorded}) > 2  # rows left at different steps
                model.records = True
        kernels, waits, by_name = a_step(model, prompts, (64, 80))
        assert (kernels, waits) <= RECORDED, (kernels, waits, by_name)

    model.blocks[0].register_forward_hook(lambda module, inputs, output: None if output[0, 0, 0] > 0 else output)
    assert "one by one, which is slower: called a synchronizing CUDA operation" in record_steps(model)[0]
    assert not model.records
    model.records = True
    with pytest.raises(RoundError, match=r"set compute\.graphs=false"):
        decode(model, prompts, 32)
    torch.cuda.empty_cache()  # nothing was begun that broke off, after which this would fail

    number = torch.zeros((), device=DEVICE)
    asked: list[int] = []
    elsewhere = Recorded(lambda: (asked.append(torch.cuda.current_device()), (number,))[1], torch.device("cuda", 1))
    for _ in range(3):
        elsewhere()
    assert asked == [1, 1]  # as it stands and recorded, where the model is; the third time nothing was called
    assert torch.cuda.current_device() == 0

    waits = iter((False, True))  # as what waits unnoticed
    late = Recorded(lambda: (number + number.item() if next(waits) else number,), number.device)
    late()
    with pytest.raises(RoundError, match=r"broke off \(CUDA error: operation not permitted .*compute\.graphs=false"):
        late()


def sizes(folder: Path) -> None:
    """Sizes that are measured stop where memory does, and give back what the largest of them took."""
    model = on_device("llama", folder)
    with device.limited(device.allocated() + 300_000):  # too little for the smallest sizes that are tried
        measured = batching_for(model)
    assert device.refused()
    assert (measured.rows, measured.tokens) == (8, 512)
    assert torch.cuda.memory_reserved() == device.allocated()


def lines(folder: Path) -> None:
    """What cannot be halved ends in one line that says what to change."""
    with (
        device.limited(device.allocated() + 10**5),
        pytest.raises(RoundError, match=r"out of memory while loading .*Tried to allocate.*; use .* model\.load_4bit"),
    ):
        on_device("llama", folder)
    model = on_device("llama", folder)
    accumulator = Accumulator(model, RANK, ALPHA, LAYERS)
    accumulator.start_round(0)
    with (
        device.limited(device.allocated() + 30_000),
        pytest.raises(RoundError, match=r"while folding a round .*; set compute\.merge_history=false"),
    ):
        accumulator.fold()


def bases(folder: Path) -> None:
    """The eigenvectors that a basis of weights needs are computed on the device, in float64, and kept on the CPU."""
    model = on_device("llama", folder, torch.bfloat16)
    with device.counted() as counted:
        vector = extract(model, tiny.trait(), ["Hello.", "Bye."], "sspace", [1, 2])
    assert counted.by_name["aten::_linalg_eigh"] == 4, counted.by_name
    assert {tensor.device.type for state in vector.states.values() for tensor in state.values()} == {"cpu"}


def training(folder: Path) -> None:
    """A step of healing starts no more kernels, and waits for the device no more often, than it did."""
    model = on_device("llama", folder)
    accumulator = Accumulator(model, RANK, ALPHA, LAYERS)
    counts = []
    for epochs in (1, 3):
        accumulator.start_round(0)
        with device.counted() as counted:
            healed(model, accumulator, replace(CONFIG, epochs=epochs))
        counts.append(counted)
    assert (counts[1].kernels - counts[0].kernels) / 4 <= TRAINING[0], counts[1].by_name
    assert (counts[1].waits - counts[0].waits) / 4 <= TRAINING[1], counts[1].by_name


def losses(folder: Path) -> None:
    """The losses over the vocabulary keep to the head's memory, and nothing in them waits for the device."""
    model = on_device("llama", folder, torch.bfloat16)
    assert batching_for(model, 96, 4096).head_bytes == 2**31
    model.batching.head_bytes = 2**24
    count = model.head_positions
    h_ND, reference_ND = (torch.randn(count, tiny.HIDDEN).bfloat16().to(DEVICE) for _ in range(2))
    target_N = torch.zeros(count, dtype=torch.long, device=DEVICE)
    for divergence in DIVERGENCES:
        with case(divergence.name):
            before = device.allocated()
            device.reset_peak()
            with device.counted() as counted:
                position_losses(model, h_ND, target_N, reference_ND, divergence)
            assert device.peak() - before < 1.1 * 2**24
            assert counted.kernels <= LOSSES, counted.by_name
            assert counted.waits == 0, counted.by_name


@contextmanager
def measured() -> Iterator[dict[str, int]]:
    """The device's peak in each step of the runs inside the context, by the step's name, bytes."""
    peaks: dict[str, int] = {}
    step = Console.step

    @contextmanager
    def watched(console: Console, name: str) -> Iterator[StepLine]:
        device.reset_peak()
        with step(console, name) as line:
            yield line
        peaks[name] = max(peaks.get(name, 0), device.peak())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Console, "step", watched)
        yield peaks


def near(plan: dict[str, int], peaks: dict[str, int]) -> None:
    """What a run said that it would need is what it took, within a fifth, whole and in healing."""
    standing = sum(plan[name] for name in ("weights", "lora", "history", "merged"))
    healing = standing + plan["optimiser"] + plan["healing"]
    for needed, took in ((plan["need"], max(peaks.values())), (healing, peaks["heal"])):
        assert abs(needed - took) < 0.2 * took, (needed, took, plan, peaks)


def plan_of(session: Session) -> dict[str, int]:
    """What a run recorded of its plan."""
    events = read_jsonl(session.folder.path / "events.jsonl")
    return next(event for event in events if event["kind"] == "memory")


@contextmanager
def warned() -> Iterator[list[str]]:
    """The warnings that consoles print."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Console, "warn", lambda console, *texts: said.extend(texts))
        yield said


def planned(folder: Path) -> None:
    """Runs of other shapes take the memory that they said before; one that does not fit is cut down or refused."""
    more = ("run.rounds=1", "evaluation.steered=false")
    for architecture in ("gemma3_text", "Qwen3-MoE"):
        with case(architecture), measured() as peaks:
            near(plan_of(run(architecture, folder, f"planned-{architecture}", *more)), peaks)
    with pytest.MonkeyPatch.context() as patch:  # others take memory at every look, and enough is left
        left = count(2**40, -(2**20))
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (next(left), 2**40))
        with warned() as warnings, opened(recipe("gemma3_text", folder, "beside others")):
            assert not [text for text in warnings if "smaller passes" in text]
    with device.limited(10 * 2**20), warned() as warnings, opened(recipe("gemma3_text", folder, "cut")) as session:
        sizes = session.model.batching
        assert (sizes.rows, sizes.tokens) == (96, 1024)
        plan = plan_of(session)
        assert (plan["rows"], plan["tokens"]) == (sizes.rows, sizes.tokens)
        assert [text for text in warnings if "smaller passes" in text]
    with (
        device.limited(6 * 2**20),
        pytest.raises(
            UserError, match=r"MiB are needed .* for healing\) and 6\.0 MiB are there; set heal\.gradient_ch"
        ),
        opened(recipe("gemma3_text", folder, "refused", "generation.tokens=800")),
    ):
        pass
    assert not (folder / "refused").exists()


def rounds(folder: Path) -> None:
    """Two rounds, then what is done with a run, and a study of interventions."""
    with measured() as peaks:
        session = run("llama", folder, "device")
    near(plan_of(session), peaks)
    assert session.model.device == DEVICE
    assert torch.get_float32_matmul_precision() == "highest"
    path = session.folder.path
    main(["chat", f"run={path}", "prompt=Hello", "tokens=8"])
    main(["export", f"run={path}"])
    main(["export", f"run={path}", "format=model"])
    words = (f"model={folder / 'llama'}", f"trait={folder / 'warm.yaml'}", "steer.pairs=4", "model.dtype=float32")
    dose = ("calibration.prompts=2", "calibration.audit_prompts=0", "calibration.tolerance=0.5", "calibration.tokens=6")
    place = (f"run.root={folder}", "evaluation.prompts=4", "run.name=survival", "tracking.mode=disabled", *SIZES)
    main(["survival", *words, *dose, *place, "tokens=8", "forks=2", "prompts=2", "alphas=0,1", "signs=+"])


def halved(folder: Path) -> None:
    """A bfloat16 Gemma 3 whose passes do not fit at first: memory runs out, and the run goes on with halves."""
    before = device.refused()
    room = 10 * 2**20  # of which it learns when it has opened
    session = run("gemma3_text", folder, "halved", "model.dtype=bfloat16", "run.rounds=1", limit=device.limited(room))
    assert session.model.model.dtype == torch.bfloat16
    assert torch.get_float32_matmul_precision() == "high"
    assert device.refused() > before
    assert session.model.batching.tokens < 4096


def passes(folder: Path) -> None:
    """A run trains as many completions at once as pay and fit, and goes on with half as many where they do not."""
    words = ("heal.batch_size=2", "heal.accumulation=4")  # and 8 completions a round

    def tried(name: str, seconds: Sequence[float], *more: str) -> tuple[LanguageModel, list[dict]]:
        with pytest.MonkeyPatch.context() as patch:
            timed = iter(seconds)
            patch.setattr(fitting, "quickest", lambda work, device: work() or next(timed))
            with opened(recipe("llama", folder, name, *words, *more)) as session:
                assert all(p.grad is None for p in session.model.model.parameters())
                return session.model, read_jsonl(session.folder.path / "events.jsonl")

    for seconds, chosen in (((1, 1, 1), 8), ((1, 1, 1.9), 4), ((1, 2), 2)):
        with case(seconds):
            model, events = tried(f"seconds-{chosen}", seconds)
            assert model.batching.completions == chosen
            found = next(event for event in events if event["kind"] == "passes")
            assert (found["completions"], found["step"], len(found["trials"])) == (chosen, 8, len(seconds))
            assert all(trial["held"] > 0 for trial in found["trials"])
            again, events = tried(f"seconds-{chosen}", ())
            assert again.batching.completions == chosen
            plans = [event for event in events if event["kind"] == "memory"]
            assert [plan["completions"] for plan in plans] == [chosen] * 2
    assert tried("asked", (), "compute.train_batch=3")[0].batching.completions == 3

    plan = next(event for event in read_jsonl(folder / "seconds-8" / "events.jsonl") if event["kind"] == "memory")
    standing = sum(plan[name] for name in ("weights", "lora", "history", "merged"))
    with device.limited(int((standing + plan["optimiser"] + 0.75 * plan["healing"]) / FITS)):
        before = device.refused()
        model, events = tried("short", (1, 1, 1))
        assert (model.batching.completions, device.refused()) == (4, before)
        assert next(event for event in events if event["kind"] == "passes")["most"] == 4

    model = on_device("llama", folder)
    accumulator = Accumulator(model, RANK, ALPHA, LAYERS)
    model.batching.head_bytes = 1  # the vocabulary's tensors are not what the passes differ by

    def trained(completions: int) -> tuple[dict[str, torch.Tensor], int]:
        model.batching.completions = completions
        accumulator.start_round(0)
        learn(accumulator, 0)
        device.reset_peak()
        with gradients_of_steps() as gradients:
            healed(model, accumulator, with_barrier(replace(ONE_STEP, epochs=2), operator_norm=0.1))
        return {name: gradient.cpu() for name, gradient in gradients[0].items()}, device.peak()

    expected, _ = trained(1)
    for completions in (16, 5):
        with case(completions):
            close(trained(completions)[0], expected, ROUNDING)
    _, room = trained(4)
    before = device.refused()
    with device.limited(room + 2**10):
        close(trained(16)[0], expected, ROUNDING)
    assert (model.batching.completions, device.refused() > before) == (4, True)
    model.batching.completions = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "quickest", lambda work, device: work() or 1.0)
        heal(accumulator, kept(16), epochs=1, batch_size=3, accumulation=4)
    assert model.batching.completions == 12
    with (
        device.limited(room // 2),
        pytest.raises(RoundError, match=r"out of memory while healing .*checkpointing=true"),
    ):
        trained(16)


if __name__ == "__main__":
    machine.prepare()
    for name in sys.argv[2:]:
        globals()[name](Path(sys.argv[1]))
