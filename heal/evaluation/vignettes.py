"""Moral-foundations vignettes: short scenes, each with the foundation that it violates.

One JSON object a line, so that published sets can be read as they are:

| key | what it holds |
| --- | --- |
| `id` | any name |
| `text` | the scene as somebody else's deed |
| `foundation` | what it violates, a key of FOUNDATIONS in any case, with spaces or underscores |
| `self_text` | optional: the same scene as one's own deed |
| `labels` | optional: percentages of people's votes by foundation, missing ones 0; they need not add to 100 |

Other keys are left alone. The embedded set has 140 lines, 20 a foundation, and any seven lines in a row from a
multiple of seven on hold each foundation once. Shape suffixes: V vignettes, K foundations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from heal.errors import UserError, nearest
from heal.yaml_text import read_utf8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EMBEDDED = Path(__file__).resolve().parents[1] / "data" / "vignettes.jsonl"
# Scenes by which ways of asking are chosen, and nothing else; more of those that are merely odd, which are the rarer.
APART, ODD_APART = EMBEDDED.with_name("vignettes_apart.jsonl"), EMBEDDED.with_name("oddities_apart.jsonl")

Perspective = Literal["other", "self", "both"]

# What each foundation's violation is called among the options.
FOUNDATIONS = {
    "care": "making someone suffer",
    "fairness": "cheating or taking an unfair share",
    "loyalty": "betraying one's own group",
    "authority": "disobeying someone in charge",
    "sanctity": "degrading the body or what is holy",
    "liberty": "controlling another's choices",
    "social_norms": "odd behaviour that harms nobody",
}


@dataclass(frozen=True)
class Vignette:
    """One scene; `foundation` and the keys of `labels` (percentages of votes, if known) are keys of FOUNDATIONS."""

    id: str
    text: str
    foundation: str
    labels: dict[str, float] | None = None


def read_vignettes(
    where: str | Path, count: int | None = None, perspective: Perspective = "other"
) -> tuple[Vignette, ...]:
    """The vignettes of the first `count` lines of a file.

    Args:
        where: `embedded`, the path of a JSON-lines file, or `none`.
        count: at most so many lines; None: all.
        perspective: `other`: each line's `text`; `self`: its `self_text`; `both`: the one and then the other,
            whose id ends in `/self`.

    Raises:
        UserError: no such file, one that is empty or not UTF-8, or a line that is no vignette or lacks the
            perspective; says which.
    """
    if where == "none":
        return ()
    path = EMBEDDED if where == "embedded" else Path(where).expanduser()
    if not path.is_file():
        raise UserError(f"evaluation.vignettes={where}: no such file; give 'embedded', 'none' or a path")
    try:
        lines = [line for line in read_utf8(path).split("\n") if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error})") from error
    if not lines:
        raise UserError(f"{path}: there is no scene in it")
    vignettes: list[Vignette] = []
    for number, line in enumerate(lines[:count], start=1):
        vignettes += _vignettes(line, f"{path}, line {number}", perspective)
    return tuple(vignettes)


def soft_labels(vignettes: Sequence[Vignette]) -> NDArray[np.float64]:
    """The distribution of labels of each vignette over FOUNDATIONS, in their order, `[V, K]`.

    Percentages are scaled to add to 1; a vignette without labels has all of it on its foundation.
    """
    import numpy as np

    votes = [vignette.labels or {vignette.foundation: 1.0} for vignette in vignettes]
    rows = [[of_scene.get(name, 0.0) for name in FOUNDATIONS] for of_scene in votes]
    table_VK = np.array(rows, dtype=float).reshape(len(rows), len(FOUNDATIONS))
    return table_VK / table_VK.sum(axis=1, keepdims=True)


def _vignettes(line: str, where: str, perspective: Perspective) -> list[Vignette]:
    """What one line says, seen from one side or from both."""
    try:
        content = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    required = ["id", "text", "foundation", *([] if perspective == "other" else ["self_text"])]
    missing = [name for name in required if not isinstance(content, dict) or not content.get(name)]
    if missing:
        raise UserError(f"{where}: a vignette needs {', '.join(missing)}")
    name, foundation = str(content["id"]), _foundation(content["foundation"], where)
    labels = None if content.get("labels") is None else _labels(content["labels"], where)
    other = Vignette(name, str(content["text"]), foundation, labels)
    if perspective == "other":
        return [other]
    own = str(content["self_text"])
    if perspective == "self":
        return [Vignette(name, own, foundation, labels)]
    return [other, Vignette(f"{name}/self", own, foundation, labels)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object; ValueError for a key that is there twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{max(names, key=names.count)}' is there twice; keep one")
    return content


def _foundation(name: Any, where: str) -> str:
    foundation = str(name).strip().lower().replace(" ", "_")
    if foundation not in FOUNDATIONS:
        raise UserError(f"{where}: unknown foundation '{name}'{nearest(foundation, list(FOUNDATIONS))}")
    return foundation


def _labels(content: Any, where: str) -> dict[str, float]:
    if not isinstance(content, dict):
        raise UserError(f"{where}: labels must map foundations to percentages, not be {content!r}")
    labels: dict[str, float] = {}
    for key, percent in content.items():
        name = _foundation(key, where)
        if name in labels:
            raise UserError(f"{where}: labels name '{name}' twice")
        if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent < math.inf:
            raise UserError(f"{where}: labels.{key} must be a percentage from 0 on, not {percent!r}")
        labels[name] = float(percent)
    if not any(labels.values()):
        raise UserError(f"{where}: labels are all 0; give a percentage to a foundation, or leave labels out")
    return labels
