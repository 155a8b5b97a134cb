"""The wheel that `pip install .` makes: everything that a run reads is inside, and it works from another folder."""

import os
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

import heal
from heal.choices import names
from heal.cli import COMMANDS
from heal.recipe import RECIPES
from tests.commanded import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path of Python into which the wheel was unpacked, as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder / "dist"), versions=["standard"])
    with ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def installed(site: Path, line: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python in another folder, with the unpacked wheel before every other heal."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    line = [sys.executable, *line]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_everything_of_the_package_and_every_recipe_is_inside_and_nothing_else(site: Path) -> None:
    package = files(ROOT / "heal") | {Path("recipes") / path for path in files(ROOT / "recipes")}
    assert files(site / "heal") == package
    assert {path.name for path in site.iterdir()} == {"heal", f"heal-{heal.__version__}.dist-info"}


def test_the_wheel_says_what_it_is_and_names_the_command(site: Path) -> None:
    described = Distribution.at(site / f"heal-{heal.__version__}.dist-info")
    assert described.version == heal.__version__
    assert described.metadata["License-Expression"] == "Apache-2.0"
    assert described.read_text("licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert described.metadata.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    (entry,) = described.entry_points
    assert (entry.group, entry.name, entry.value) == ("console_scripts", "heal", "heal.cli:main")
    assert callable(entry.load())


def test_an_installed_heal_finds_its_recipes_and_traits_from_another_folder(site: Path, tmp_path: Path) -> None:
    code = """
import heal.cli, heal.recipe, heal.recipe_files, heal.trait
for name in heal.recipe_files.available(heal.recipe.RECIPES):
    heal.recipe.load_recipe([f"recipe={name}"])
for name in heal.recipe_files.available(heal.recipe.RECIPES / "traits"):
    heal.trait.load_trait(name)
heal.trait.make_trait("Be warm.", "Be cold.")
print(heal.__file__, heal.recipe.RECIPES, sep="\\n")
heal.cli.main(["train", "--help"])
"""
    done = installed(site, ["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    where, recipes, shown = done.stdout.split("\n", 2)
    assert (where, recipes) == (str(site / "heal" / "__init__.py"), str(site / "heal" / "recipes"))
    assert f"recipes: {', '.join(sorted(path.stem for path in RECIPES.glob('*.yaml')))}\n" in shown


def test_every_installed_command_starts_from_another_folder(site: Path, tmp_path: Path) -> None:
    typed = [name.replace("_", "-") for name in names(COMMANDS)]
    code = f"import heal.cli\nfor name in {typed}: heal.cli.main([name, '--help'])"
    done = installed(site, ["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [name for name in typed if f"usage: heal {name} " not in done.stdout] == []
    launched = installed(site, [str(site / "heal" / "train.py"), "recipe=smok"], tmp_path)
    assert launched.stderr == "heal: recipe=smok: no such recipe; did you mean 'smoke'?\n"
