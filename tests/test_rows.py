"""Training rows: what is learned from a completion, and what is refused."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from heal.generation.collect import Completion
from heal.healing.references import batch_states
from heal.healing.rows import (
    Collator,
    SharedStep,
    StepCollator,
    StepOrder,
    TrainingRow,
    cut,
    dataset,
    split,
    steps_of,
    training_rows,
)
from tests.cases import case
from tests.closeness import assert_near
from tests.students import completions, student
from tests.training import ROWS

# Rows.


def test_a_row_is_the_prompt_and_the_sampled_ids_and_says_where_they_begin(tiny_folder: Path):
    model, _ = student(tiny_folder)
    for row, made in zip(ROWS, training_rows(model, ROWS), strict=True):
        assert made.input_ids == [*row.prompt_ids, *row.ids]
        assert made.start == len(row.prompt_ids)


def test_the_end_of_turn_of_a_completion_that_ended_is_trained_on(tiny_folder: Path):
    model, _ = student(tiny_folder)
    ended = [made for row, made in zip(ROWS, training_rows(model, ROWS), strict=True) if row.ended]
    assert len(ended) > 3
    assert all(made.input_ids[-1] in model.end_ids for made in ended)


def test_a_completion_that_would_teach_the_wrong_thing_is_an_error(tiny_folder: Path):
    for broken, complaint in [
        (replace(ROWS[0], ids=(5, 6), ended=True), "completion 0 ended, but its last token is not an end of turn"),
        (replace(ROWS[1], ids=()), "completion 1 is empty"),
        (replace(ROWS[1], ids=(5,) * 1024), "completion 1 has 10.. tokens, over the context of 1024"),
    ]:
        with case(broken, complaint), pytest.raises(ValueError, match=complaint):
            training_rows(student(tiny_folder)[0], [broken])


def alike(count: int) -> list[Completion]:
    """Completions of three prompts that begin alike."""
    begin = tuple(range(10, 30))
    return [
        replace(row, prompt_ids=(*begin, *range(40, 44 + index % 3))) for index, row in enumerate(completions(count))
    ]


def test_a_batch_says_where_each_completion_token_is_predicted(tiny_folder: Path):
    for rows in [ROWS[:7], alike(7)]:
        with case(rows):
            model, _ = student(tiny_folder)
            made = training_rows(model, rows)
            batch = Collator(model)(made)
            h_ND = batch_states(model, batch)
            by_key = {row.key: row for row in made}
            assert sorted(batch["key"].tolist()) == sorted(by_key)
            for line, key in enumerate(batch["key"].tolist()):
                row = by_key[key]
                alone_TD = model.decoder(input_ids=torch.tensor([row.input_ids])).last_hidden_state[0]
                mine = batch["line"] == line
                assert batch["labels"][mine].tolist() == row.completion
                assert_near(h_ND[mine], alone_TD[row.start - 1 : -1])


def test_rows_come_back_from_the_trainer_s_dataset_as_they_were_whatever_was_added_to_it(tiny_folder: Path):
    model, _ = student(tiny_folder)
    rows = training_rows(model, ROWS[:7])
    table = dataset(rows).add_column("labels", [0] * 7)
    step = StepCollator(model.batching, 4)(list(table))
    assert (step.completions, step.passes) == (7, 2)
    assert step.tokens == sum(len(row.completion) for row in rows)
    assert step.parts == [rows[:4], rows[4:]]


def test_a_step_in_smaller_passes_has_the_same_rows_and_all_of_them_bear_what_one_bore():
    rows = [TrainingRow([0, row], 1, row) for row in range(11)]
    for share, passes in ((11, 1), (8, 1), (8, 3), (3, 5), (1, 2)):
        with case(share, passes):
            step = SharedStep([rows[:share]], tokens=20, completions=20, passes=passes)
            while max(map(len, step.parts)) > 1:
                size, step = max(map(len, step.parts)), step.halved()
                assert [row for part in step.parts for row in part] == rows[:share]
                assert all(len(part) == size // 2 for part in step.parts[:-1])
                assert len(step.parts) / step.passes == pytest.approx(1 / passes)


def test_completions_that_begin_alike_share_a_row(tiny_folder: Path):
    model, _ = student(tiny_folder)
    made = training_rows(model, alike(7))
    batch = Collator(model)(made)
    assert batch["input_ids"].shape[0] == 1
    assert batch["input_ids"].numel() < sum(len(row.input_ids) for row in made) - 6 * 20
    assert Collator(model)(training_rows(model, ROWS[:7]))["input_ids"].shape[0] == 7


def test_every_completion_stands_in_one_step_beside_those_of_its_prompt(tiny_folder: Path):
    for size in [1, 3, 4, 40]:
        with case(size):
            made = training_rows(student(tiny_folder)[0], alike(14))
            steps = steps_of(made, range(14), size, 0)
            assert sorted(index for step in steps for index in step) == list(range(14))
            assert all(len(step) == size for step in steps[:-1])
            prompts = [tuple(made[index].prompt) for step in steps for index in step]
            assert sum(a != b for a, b in pairwise(prompts)) == len(set(prompts)) - 1


def test_epochs_go_through_the_same_steps_in_another_order():
    order = StepOrder(14, 4, 0, "epoch")
    epochs = [list(order) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(14)) == list(range(len(order)))
        assert {tuple(step) for step in cut(epoch, 4)} == {tuple(step) for step in cut(list(range(14)), 4)}
        assert epoch[-2:] == [12, 13]
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_longer_prompts_come_later_so_that_little_is_padded(tiny_folder: Path):
    made = training_rows(student(tiny_folder)[0], ROWS)
    lengths = [len(made[step[0]].input_ids) for step in steps_of(made, range(len(ROWS)), 1, 0)]
    assert lengths == sorted(lengths)


def test_a_split_parts_the_completions_and_keeps_their_order():
    for count in [0, 1, 5, 16, 40]:
        for share in [0.0, 0.125, 0.5]:
            with case(count, share):
                parts = split(count, share, 3, 1, "validation")
                assert sorted(parts.train + parts.validation) == list(range(count))
                assert len(parts.validation) == round(share * count)
                assert parts.train == sorted(parts.train)
                assert parts.validation == sorted(parts.validation)


def test_a_split_is_a_function_of_its_seed():
    assert split(40, 0.25, 3, 1) == split(40, 0.25, 3, 1)
    assert split(40, 0.25, 3, 1) != split(40, 0.25, 3, 2)
