"""The words of a script: typed by its dataclass, texts taken as they stand, mistakes in one line."""

from dataclasses import dataclass
from typing import Literal

import pytest

from heal.config import key
from heal.errors import UserError
from heal.options import options_help, read_options, resolve_device


@dataclass
class Options:
    run: str = key("", "a run folder")
    prompt: str | None = key(None, "a text")
    kind: Literal["red", "blue"] = key("red", "a colour")
    count: int | None = key(None, "how many", 1, 9)
    dose: float = key(1.0, "how much")


@pytest.mark.parametrize("text", ["yes", "a: b=c", "[1, 2]", "", "none", "007", "2026-01-01", "'quoted'"])
def test_a_text_is_taken_as_it_stands(text: str) -> None:
    assert read_options(Options, ["run=x", f"prompt={text}"]).prompt == text


def test_numbers_are_read_as_their_type_and_what_is_left_out_keeps_its_default() -> None:
    assert read_options(Options, ["run=1", "dose=1e-3", "count=3"]) == Options("1", None, "red", 3, 1e-3)
    assert read_options(Options, ["run=x", "count=none"]) == Options("x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run=... is needed: a run folder"),
        (["run"], "expected key=value"),
        (["rum=x"], "unknown key 'rum'; did you mean 'run'"),
        (["run=x", "kind=blu"], "did you mean 'blue'"),
        (["run=x", "count=0"], ">= 1 and <= 9"),
        (["run=x", "count=1.5"], "expected int"),
        (["run=x", "dose=inf"], "finite"),
        (["run=x", "dose=much"], "expected float"),
    ],
)
def test_a_mistake_names_the_key_and_what_it_takes(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_options(Options, words)


def test_help_lists_every_key_with_its_meaning() -> None:
    text = options_help(Options, "usage", "purpose")
    assert all(name in text for name in ("run=", "kind=red  (red|blue)", "how many"))


def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match="device=gpu"):
        resolve_device("gpu")
    assert resolve_device("cpu").type == "cpu"
