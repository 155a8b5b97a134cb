"""Seeds derive from what a number is for."""

import subprocess
import sys
from pathlib import Path

import torch

from heal.randomness import derive_seed, generator, shuffled
from tests.cases import case

ROOT = Path(__file__).resolve().parent.parent
PARTS = [
    (0,),
    (1,),
    (0, 0),
    (0, "generate"),
    (0, "generate", 1),
    (0, "heal", 1),
    ("0", "generate", 11),
    (0, 1, 1),
    ("a",),
]


def test_the_same_parts_give_the_same_seed():
    assert [derive_seed(*parts) for parts in PARTS] == [derive_seed(*parts) for parts in PARTS]


def test_different_parts_give_different_seeds():
    assert len({derive_seed(*parts) for parts in PARTS}) == len(PARTS)


def test_parts_do_not_run_together():
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("a", "bc") != derive_seed("ab", "c")


def test_the_order_of_the_parts_matters():
    assert derive_seed(1, 2) != derive_seed(2, 1)


def test_another_process_derives_the_same_seed():
    code = "from heal.randomness import derive_seed; print(derive_seed(3, 'generate', 7))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(said) == derive_seed(3, "generate", 7)


def test_a_seed_fits_a_torch_generator():
    for parts in PARTS:
        with case(parts):
            assert 0 <= derive_seed(*parts) < 2**63
            assert generator(*parts).initial_seed() == derive_seed(*parts)


def test_a_generator_does_not_depend_on_the_running_stream():
    first = torch.rand(4, generator=generator(0, "x"))
    torch.rand(100)
    assert torch.equal(torch.rand(4, generator=generator(0, "x")), first)


def test_shuffling_keeps_every_item_and_leaves_the_list_as_it_was():
    items = list(range(50))
    mixed = shuffled(items, 0, "order")
    assert items == list(range(50))
    assert sorted(mixed) == items
    assert mixed != items


def test_the_order_depends_on_the_parts_alone():
    items = list(range(50))
    assert shuffled(items, 0, "order") == shuffled(items, 0, "order") != shuffled(items, 1, "order")
