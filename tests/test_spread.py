"""A base spread over processes is the base: the same bits, gradients and runs; and nobody waits for ever."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from heal import parallel
from heal.accumulator import Accumulator
from heal.decoding import decode
from heal.errors import RoundError
from heal.guard import command
from heal.healing.heal import checkpoint_blocks
from heal.models.language_model import LanguageModel
from heal.run import open as opening
from heal.scoring import final_states
from heal.steering.sites import band_gram
from tests import running, tiny
from tests.cases import case
from tests.commanded import refused
from tests.families import FAMILIES
from tests.processes import ended, launch, said, wait_for
from tests.students import learn

SPREAD = ("Llama 3", "Qwen3", "Gemma 2", "Gemma 3 (text)", "Gemma 3", "Qwen3-Next", "Granite-MoE-Hybrid")


def _run(checks, *arguments) -> None:
    command([], str, lambda _: checks(*arguments), several=True)


def _students(model: LanguageModel) -> Accumulator:
    accumulator = Accumulator(model, 2, 4, list(range(len(model.blocks))), merge=False)
    accumulator.start_round(1)
    learn(accumulator, 1, 0.2)
    accumulator.fold(0.5)
    accumulator.start_round(2)
    learn(accumulator, 2, 0.2)
    return accumulator


def _gradients(model: LanguageModel, accumulator: Accumulator, rows: list[list[int]]) -> list[torch.Tensor]:
    """Of two losses over the same pass."""
    h_ND = model.hidden_states(model.pack(rows[:2], [[0], [1]]))
    trained = list(accumulator.trainable().values())
    once = torch.autograd.grad(h_ND.square().sum(), trained, retain_graph=True)
    return [*once, *torch.autograd.grad(h_ND.sum(), trained)]


def _bits(folder: Path) -> None:
    rank = parallel.rank()
    for name in SPREAD:
        with case(name):
            family = FAMILIES[name]
            whole, spread = (tiny.load(folder / name, attention=family.attention, spread=one) for one in (False, True))
            for weight in whole.model.parameters():
                weight.data = weight.data.clone()
            assert spread.spread is not None
            assert sum(parallel.together(lambda part=spread.spread: part.here)) == spread.spread.blocks
            rows = tiny.prompts(spread)
            states = [torch.cat(final_states(model, rows, [0] * len(rows))) for model in (whole, spread)]
            assert torch.equal(*states)
            one, other = [_students(model) for model in (whole, spread)]
            again = [torch.cat(final_states(model, rows, [0] * len(rows))) for model in (whole, spread)]
            assert torch.equal(*again)
            assert not torch.equal(again[0], states[0])
            with other.base():
                assert torch.equal(torch.cat(final_states(spread, rows, [0] * len(rows))), states[0])
            assert one.save_current() == other.save_current()
            if name in ("Llama 3", "Qwen3"):  # whose weights a steering method can take its basis from
                assert torch.equal(band_gram(whole, [1, 2]), band_gram(spread, [1, 2]))
            for checkpointed in (False, True):
                if checkpointed:
                    checkpoint_blocks(whole)
                    checkpoint_blocks(spread)
                spread.spread.backwards = 2
                found = parallel.together(lambda: [] if rank else _gradients(spread, other, rows))[0]
                for ours, theirs in zip(found, _gradients(whole, one, rows), strict=True):
                    assert torch.equal(ours, theirs), checkpointed
            assert all(weight.grad is None for weight in other.trainable().values())
            mine = rows[: 1 if rank else 3]
            tokens = 3 if rank else 9
            found = parallel.together(lambda: decode(spread, mine, tokens))[rank]
            assert found == parallel.together(lambda: decode(whole, mine, tokens))[rank]
            print(name, flush=True)


def _failing(kind: str, folder: Path) -> None:
    model = tiny.load(folder, spread=True)
    rows = tiny.prompts(model)

    def fail(*_: object) -> None:
        if kind == "memory in a pass":
            raise MemoryError("can't allocate memory")
        if kind == "killed in a pass":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # until somebody stops it

    def work() -> None:
        if parallel.rank() == 0:
            decode(model, rows, 100)
        elif kind == "between passes":
            decode(model, rows, 3)
            raise RoundError("it looped")
        else:
            with model.blocks[2].register_forward_pre_hook(fail):
                decode(model, rows, 3)

    parallel.together(lambda: None)
    print("begun", flush=True)
    parallel.together(work)


def test_however_a_process_with_a_spread_base_fails_all_end_and_one_line_says_why(tmp_path: Path) -> None:
    kinds = {
        "memory in a pass": "heal: out of memory",
        "killed in a pass": "heal: another process of this run ended without a word",
        "between passes": "heal: it looped",
        "stopped in a pass": "heal: stopped.",
    }
    folder = tiny.save("llama", tmp_path / "llama")
    begun = {kind: launch(2, tmp_path / kind, _run, _failing, kind, folder) for kind in kinds}
    for kind, line in kinds.items():
        with case(kind):
            wait_for(lambda kind=kind: said(tmp_path / kind, "out") == ["begun"])
            if kind == "stopped in a pass":
                first, second = begun[kind]
                os.kill(first.pid or 0, signal.SIGTERM)
                first.join(30)  # within 10 s where nothing else computes
                second.kill()  # as torchrun does
            status = ended(begun[kind])
            assert not {None, 0}.intersection(status), status
            (told,) = said(tmp_path / kind)
            assert told.startswith(line), told


def test_a_spread_base_computes_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    for name in SPREAD:
        FAMILIES[name].save(tmp_path / "models" / name)
    processes = launch(2, tmp_path / "logs", _run, _bits, tmp_path / "models")
    assert ended(processes) == [0, 0], [path.read_text() for path in sorted((tmp_path / "logs").iterdir())]


def test_a_base_that_cannot_be_spread_is_refused_with_the_reason(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = running.words(tiny_folder, tmp_path, "compute.base=spread")
    there_is_one = "compute.base=spread: there is one process, which has to hold all of it"
    for name in (["train"], ["calibrate", "method=mean_diff"]):
        refused([*name, *words], there_is_one)
    monkeypatch.setattr(opening, "size", lambda: 2)
    refused(["calibrate", "method=mean_diff", *words], "compute.base=spread: heal train alone can do with a part")
    refused(["train", *words, "model.load_4bit=true"], "compute.base=spread: 4-bit weights cannot be gathered")
    refused(["train", *words, "heal.compile=true"], "compute.base=spread: a compiled decoder does not gather")
    assert [path.name for path in tmp_path.iterdir()] == ["warm.yaml"]
