"""The words of a command: typed by its dataclass, texts taken as they stand, mistakes in one line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from heal.config import key
from heal.errors import UserError
from heal.options import options_help, output_path, read_options, resolve_device, round_index


@dataclass
class Options:
    run: str = key("", "a run folder")
    prompt: str | None = key(None, "a text")
    kind: Literal["red", "blue"] = key("red", "a colour")
    shape: str = key("round", "a shape", choices={"round": "like a ball", "square": "like a box"})
    count: int | None = key(None, "how many", 1, 9)
    dose: float = key(1.0, "how much")


def test_a_text_is_taken_as_it_stands() -> None:
    for text in (
        "yes",
        "a: b=c",
        "[1, 2]",
        "",
        "none",
        "007",
        "2026-01-01",
        "'quoted'",
        "${oc.env:HOME}",
        "{}",
        "%d",
        "a # b",
    ):
        assert read_options(Options, ["run=x", f"prompt={text}"]).prompt == text


def test_numbers_are_read_as_their_type_and_what_is_left_out_keeps_its_default() -> None:
    assert read_options(Options, ["run=1", "dose=1e-3", "count=3"]) == Options("1", count=3, dose=1e-3)
    assert read_options(Options, ["run=x", "count=none"]) == Options("x")


def test_a_mistake_names_the_key_and_what_it_takes() -> None:
    mistakes = [
        ([], "run=... is needed: a run folder"),
        (["run"], "expected key=value"),
        (["rum=x"], "unknown key 'rum'; did you mean 'run'"),
        (["run=x", "kind=blu"], "did you mean 'blue'"),
        (["run=x", "shape=rond"], "did you mean 'round'"),
        (["run=x", "count=0"], ">= 1 and <= 9"),
        (["run=x", "count=1.5"], "expected int"),
        (["run=x", "dose=inf"], "finite"),
        (["run=x", "dose=much"], "expected float"),
    ]
    for words, message in mistakes:
        with pytest.raises(UserError, match=message):
            read_options(Options, words)


def test_help_lists_every_key_with_its_meaning() -> None:
    text = options_help(Options, "usage", "purpose")
    choices = ("kind=red  (red|blue)", "shape=round  (round|square)", "square: like a box")
    assert all(name in text for name in ("run=", "how many", *choices))


def test_a_place_that_can_be_written_is_taken_and_nothing_is_made_there(tmp_path: Path) -> None:
    for folder in (False, True):
        for text in (f"{tmp_path}/new", f"{tmp_path}/a/b/new", "new"):
            assert output_path(text, folder) == Path(text)
        assert output_path("~/new", folder) == Path.home() / "new"
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_before_may_be_written_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert output_path(str(tmp_path / "file"), folder=False).read_text() == "mine"
    assert output_path(str(tmp_path), folder=True) == tmp_path


def test_a_round_is_typed_from_1() -> None:
    assert [round_index(number, [0, 1, 2]) for number in (1, 2, 3)] == [0, 1, 2]
    for number, finished, said in ((0, [0], "counted from 1"), (2, [0], "is round=1"), (1, [], "no round is finished")):
        with pytest.raises(UserError, match=f"round={number}: .*{said}"):
            round_index(number, finished)


def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match="device=gpu"):
        resolve_device("gpu")
    assert resolve_device("cpu").type == "cpu"
