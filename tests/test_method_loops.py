"""Every kind of steering method in the loop: one whole round on a tiny model, from the vector to the folded student."""

import json
from pathlib import Path

from heal.run.folder import RunFolder
from heal.steering.methods import METHODS
from heal.steering.vector import SteeringVector
from tests.cases import case
from tests.running import finish, words

SMALL = ("run.rounds=1", "evaluation.steered=false", "evaluation.prompts=2", "evaluation.tokens=4", "heal.epochs=1")


def kinds() -> list[str]:
    """The first method of each kind: where it acts, in which basis, and how its coefficient counts."""
    first: dict[tuple[object, ...], str] = {}
    for name, method in METHODS.items():
        kind = (method.site, method.basis, method.neutral, method.largest is None, method.falling)
        first.setdefault(kind, name)
    return list(first.values())


def test_a_round_can_be_steered_by_each_kind_of_method(tiny_folder: Path, tmp_path: Path):
    for name in kinds():
        with case(name):
            few = ("steer.clusters=2",) if "clusters" in METHODS[name].settings else ()
            line = words(
                tiny_folder,
                tmp_path,
                f"steer.method={name}",
                f"run.name={name}",
                *SMALL,
                "calibration.audit_prompts=0",
                *few,
            )
            log = tmp_path / f"{name}.log"
            assert finish(line, log) == 0, log.read_text()
            run = RunFolder(tmp_path / name)
            assert run.rounds() == [0]
            vector = SteeringVector.load(run.round(0) / "vector.safetensors")
            dose = json.loads((run.round(0) / "metrics.json").read_text())["dose"]
            assert (vector.method, vector.c_star) == (name, dose["c_star"])
            assert (run.path / "report" / "index.html").is_file()
