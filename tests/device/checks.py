"""What is checked on the device: `python -m tests.device.checks NAME FOLDER`, in a process of its own.

A check that fails ends the process with its traceback.
"""

from tests.device import device  # isort: skip  (before torch)

import sys
from pathlib import Path

import pytest
import torch

from heal.cli import main
from heal.config import ModelConfig
from heal.decoding import Sampling, decode
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.models.packing import pack
from tests import machine, tiny
from tests.cases import case
from tests.device.rounds import SIZES, run

DEVICE = torch.device("cuda", 0)
ROWS = 20
# Per token of 20 rows in a Llama of four blocks: kernels and waits. Attention is not fused here and counts six; the
# mask that transformers makes anew each step counts 25, and one wait.
DECODING = {"greedy": (237, 3), "steered": (242, 4), "sampled": (254, 4)}


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
    model.hidden_states(pack(rows, trees, model.pad_id, torch.float32, DEVICE))
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        model.hidden_states(pack(rows, trees, model.pad_id, torch.float32, torch.device("cpu")))
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
            counts = []
            for tokens in (10, 20):
                with device.counted() as counted:
                    decode(model, prompts, tokens, **keywords)
                counts.append(counted)
            kernels, waits = ((getattr(counts[1], of) - getattr(counts[0], of)) / 10 for of in ("kernels", "waits"))
            assert kernels <= DECODING[kind][0], (kernels, counts[1].by_name)
            assert waits <= DECODING[kind][1], (waits, counts[1].by_name)


def rounds(folder: Path) -> None:
    """Two rounds, then what is done with a run, and a study of interventions."""
    session = run("llama", folder, "device")
    assert session.model.device == DEVICE
    path = session.folder.path
    main(["chat", f"run={path}", "prompt=Hello", "tokens=8"])
    main(["export", f"run={path}"])
    main(["export", f"run={path}", "format=model"])
    recipe = (f"model={folder / 'llama'}", f"trait={folder / 'warm.yaml'}", "steer.pairs=4", "model.dtype=float32")
    dose = ("calibration.prompts=2", "calibration.audit_prompts=0", "calibration.tolerance=0.5", "calibration.tokens=6")
    place = (f"run.root={folder}", "run.name=survival", "tracking.mode=disabled", *SIZES)
    main(["survival", *recipe, *dose, *place, "tokens=8", "forks=2", "prompts=2", "alphas=0,1", "signs=+"])


def halved(folder: Path) -> None:
    """A bfloat16 Gemma 3 whose passes do not fit at first: memory runs out, and the run goes on with halves."""
    with device.limited(ROOM):
        session = run("gemma3_text", folder, "halved", "model.dtype=bfloat16")
    print("peak", device.peak(), "refused", device.refused(), session.model.batching)
    assert session.model.model.dtype == torch.bfloat16
    assert device.refused()
    assert device.peak() <= ROOM


ROOM = 20 * 2**20

if __name__ == "__main__":
    machine.prepare()
    globals()[sys.argv[1]](Path(sys.argv[2]))
