"""Training rows: what is learned from a completion, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from heal.generation.collect import Row
from heal.healing.rows import IGNORED, Collator, split, training_rows
from tests.students import student
from tests.training import ROWS

# Rows.


def test_labels_are_the_sampled_ids_and_the_prompt_is_masked(tiny_folder: Path):
    model, _ = student(tiny_folder)
    for number, (row, made) in enumerate(zip(ROWS, training_rows(model, ROWS), strict=True)):
        assert made["input_ids"] == [*row.prompt_ids, *row.ids]
        assert made["labels"] == [IGNORED] * len(row.prompt_ids) + list(row.ids)
        assert made["completion"] == number


def test_the_end_of_turn_of_a_completion_that_ended_is_trained_on(tiny_folder: Path):
    model, _ = student(tiny_folder)
    ended = [made for row, made in zip(ROWS, training_rows(model, ROWS), strict=True) if row.ended]
    assert len(ended) > 3
    assert all(made["labels"][-1] in model.end_ids for made in ended)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (replace(ROWS[0], ids=(5, 6), ended=True), "completion 0 ended, but its last token is not an end of turn"),
        (replace(ROWS[1], ids=()), "completion 1 is empty"),
        (replace(ROWS[1], ids=(5,) * 1024), "completion 1 has 10.. tokens, over the context of 1024"),
    ],
)
def test_a_completion_that_would_teach_the_wrong_thing_is_an_error(tiny_folder: Path, broken: Row, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        training_rows(student(tiny_folder)[0], [broken])


def test_a_batch_is_padded_on_the_right_and_the_padding_is_ignored(tiny_folder: Path):
    model, _ = student(tiny_folder)
    rows = training_rows(model, ROWS[:5])
    batch = Collator(model.pad_id)(rows)
    for line, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][line, :length].tolist() == row["input_ids"]
        assert batch["labels"][line, :length].tolist() == row["labels"]
        assert (batch["input_ids"][line, length:] == model.pad_id).all()
        assert (batch["labels"][line, length:] == IGNORED).all()
    assert batch["completion"].tolist() == list(range(5))


@pytest.mark.parametrize("count", [0, 1, 5, 16, 40])
@pytest.mark.parametrize("share", [0.0, 0.125, 0.5])
def test_a_split_parts_the_completions_and_keeps_their_order(count: int, share: float):
    parts = split(count, share, 3, 1, "validation")
    assert sorted(parts.train + parts.validation) == list(range(count))
    assert len(parts.validation) == round(share * count)
    assert parts.train == sorted(parts.train)
    assert parts.validation == sorted(parts.validation)


def test_a_split_is_a_function_of_its_seed():
    assert split(40, 0.25, 3, 1) == split(40, 0.25, 3, 1)
    assert split(40, 0.25, 3, 1) != split(40, 0.25, 3, 2)
