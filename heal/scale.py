"""How large a run is: the numbers that `scale=` stands for, and which of them fits the device.

Each scale is a file of recipes/scales/: what differs from the defaults of `heal.config`, which are those of `demo`.
"""

from functools import cache
from typing import Literal

from heal.launcher import on_cpu
from heal.recipe_files import RECIPES
from heal.yaml_text import Settings, flatten, read_yaml

Scale = Literal["auto", "demo", "standard", "thorough"]

AUTO: Scale = "auto"
DEMO: Scale = "demo"
STANDARD: Scale = "standard"


def sizes_of(scale: str) -> Settings:
    """The numbers of a scale by dotted key, as its file has them; those of `demo` are the defaults."""
    if scale in (AUTO, DEMO):
        return {}
    path = RECIPES / "scales" / f"{scale}.yaml"
    return flatten(read_yaml(path), str(path))


@cache
def sized_keys() -> frozenset[str]:
    """The keys that some scale has a number for."""
    return frozenset(key for path in (RECIPES / "scales").glob("*.yaml") for key in sizes_of(path.stem))


def resolved(scale: Scale) -> Scale:
    """The scale that `scale` stands for: `auto` is `standard` where accelerate would choose a GPU, else `demo`."""
    if scale != AUTO:
        return scale
    if on_cpu():
        return DEMO
    import torch  # as late as can be: it takes seconds

    return STANDARD if torch.cuda.is_available() else DEMO
