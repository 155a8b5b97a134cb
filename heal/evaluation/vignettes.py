"""Moral-foundations vignettes: short scenes, each with the foundation that it violates.

One JSON object a line: `id`, `text` (somebody else does it) and `foundation`; `self_text` (one does it
oneself) and whatever else a published set carries are left alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from heal.errors import UserError, nearest

EMBEDDED = Path(__file__).resolve().parents[1] / "data" / "vignettes.jsonl"

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
    """One scene; `foundation` is a key of FOUNDATIONS."""

    id: str
    text: str
    foundation: str


def read_vignettes(where: str, count: int) -> tuple[Vignette, ...]:
    """The first `count` vignettes of a file.

    Args:
        where: `embedded`, the path of a JSON-lines file, or `none`.
        count: at most so many.

    Raises:
        UserError: no such file, or a line that is no vignette.
    """
    if where == "none":
        return ()
    path = EMBEDDED if where == "embedded" else Path(where).expanduser()
    if not path.is_file():
        raise UserError(f"evaluation.vignettes={where}: no such file; give 'embedded', 'none' or a path")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return tuple(_vignette(line, f"{path}, line {number}") for number, line in enumerate(lines[:count], start=1))


def _vignette(line: str, where: str) -> Vignette:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    missing = [name for name in ("id", "text", "foundation") if not isinstance(content, dict) or not content.get(name)]
    if missing:
        raise UserError(f"{where}: a vignette needs {', '.join(missing)}")
    foundation = str(content["foundation"]).strip().lower().replace(" ", "_")
    if foundation not in FOUNDATIONS:
        raise UserError(
            f"{where}: unknown foundation '{content['foundation']}'{nearest(foundation, list(FOUNDATIONS))}"
        )
    return Vignette(str(content["id"]), str(content["text"]), foundation)
