"""The YAML files that come with heal, and how a name or a path finds one."""

from pathlib import Path

from heal.errors import UserError, nearest


def _recipes_folder(package: Path) -> Path:
    """The shipped recipes: in an installed package inside it, in a clone beside it."""
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


RECIPES = _recipes_folder(Path(__file__).resolve().parent)


def available(folder: Path) -> list[str]:
    """The names of the YAML files in `folder`."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_yaml(what: str, name: str, folder: Path) -> Path:
    """The file of recipe or trait `name`: a name in `folder`, or the path of a YAML file.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return find_file(what, name)
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{what}={name}: no such {what}{nearest(name, available(folder))}")
    return path


def find_file(what: str, name: str) -> Path:
    """The file that `what=name` names; UserError when there is none."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{what}={name}: no such file")
    return path
