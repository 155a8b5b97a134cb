"""What holds for every activation method."""

import math

import pytest
import torch

from heal.errors import UserError
from heal.keys import keys
from heal.steering.method import NoDirection
from heal.steering.methods import METHODS, method_named
from tests.cases import case
from tests.planted import PAIRS, WIDTH, cosine, draw, fitted, on_plants, planted_pairs, positions, shifted

# All of them


def test_the_recipe_offers_every_method_and_no_other_and_tables_begin_with_the_default():
    (method,) = [item for item in keys() if item.name == "steer.method"]
    assert sorted(METHODS) == list(method.names)
    assert list(METHODS) == [method.default, *(name for name in method.names if name != method.default)]
    for name, how in METHODS.items():
        with case(name):
            assert how.name == name
            assert method.meanings[name].startswith(f"{name}: ")


def test_a_method_that_is_none_is_an_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"'pcaa': no such steering method; did you mean 'pca'"):
        method_named("pcaa")


def test_a_planted_direction_is_recovered_with_its_sign():
    for name in METHODS:
        with case(name):
            direction_D, positive_PD, negative_PD = planted_pairs()
            assert cosine(fitted(name, positive_PD, negative_PD)["v"], direction_D) > 0.99
            assert cosine(fitted(name, negative_PD, positive_PD)["v"], direction_D) < -0.99


def test_what_is_kept_is_float32_finite_and_what_the_method_names():
    for name in METHODS:
        with case(name):
            state = on_plants(name)
            assert state.keys() == {"v", *METHODS[name].tensors}
            assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in state.values())


def test_the_neutral_coefficient_is_the_identity_bit_for_bit():
    for dtype in [torch.float32, torch.bfloat16]:
        for name in [name for name, method in METHODS.items() if method.neutral is not None]:
            with case(dtype, name):
                h_BTD = positions().to(dtype)
                assert METHODS[name].neutral == 0.0
                assert torch.equal(shifted(name, on_plants(name), h_BTD, 0.0), h_BTD)


def test_what_has_no_neutral_coefficient_does_something_at_zero():
    for name in [name for name, method in METHODS.items() if method.neutral is None]:
        with case(name):
            assert not torch.allclose(shifted(name, on_plants(name), positions(), 0.0), positions(), atol=0.1)


def test_a_coefficient_for_each_row_is_that_coefficient_for_that_row_alone():
    for name in METHODS:
        with case(name):
            state, h_BTD, doses = on_plants(name), positions(), [0.3, -0.7, 0.9]
            together = shifted(name, state, h_BTD, doses)
            for row, dose in enumerate(doses):
                torch.testing.assert_close(together[row], shifted(name, state, h_BTD[row : row + 1], dose)[0])


def test_every_position_is_shifted_as_it_would_be_alone():
    for name in METHODS:
        with case(name):
            state, h_BTD = on_plants(name), positions()
            together = shifted(name, state, h_BTD, 0.7)
            alone = [[shifted(name, state, h_BTD[b : b + 1, t : t + 1], 0.7)[0, 0] for t in range(5)] for b in range(3)]
            torch.testing.assert_close(together, torch.stack([torch.stack(row) for row in alone]))


def test_bfloat16_is_shifted_as_float32_up_to_its_rounding():
    for name in METHODS:
        with case(name):
            state, h_BTD = on_plants(name), positions().bfloat16()
            half, whole = shifted(name, state, h_BTD, 0.7), shifted(name, state, h_BTD.float(), 0.7)
            assert half.dtype == torch.bfloat16
            torch.testing.assert_close(half.float(), whole, rtol=2**-7, atol=2**-7)


def test_a_broken_coefficient_leaves_the_other_rows_alone():
    for name in METHODS:
        with case(name):
            state, h_BTD = on_plants(name), positions(2)
            found = shifted(name, state, h_BTD, [0.7, math.nan])
            torch.testing.assert_close(found[:1], shifted(name, state, h_BTD[:1], 0.7))
            assert not found[1].isfinite().all()


def test_no_result_depends_on_the_number_of_threads():
    for name in METHODS:
        with case(name):
            before = torch.get_num_threads()
            try:
                found = []
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    found.append(on_plants(name))
            finally:
                torch.set_num_threads(before)
            assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_where_centring_is_refused_the_origin_changes_nothing():
    for name in [name for name, method in METHODS.items() if method.origin_free]:
        with case(name):
            _, positive_PD, negative_PD = planted_pairs()
            moved_D = 2 * draw(WIDTH, seed=9)
            here = fitted(name, positive_PD, negative_PD)
            there = fitted(name, positive_PD + moved_D, negative_PD + moved_D)
            expected = shifted(name, here, positions(), 0.7) + moved_D
            torch.testing.assert_close(shifted(name, there, positions() + moved_D, 0.7), expected, rtol=1e-3, atol=1e-3)


def test_where_centring_is_taken_it_changes_the_shift():
    for name in [name for name, method in METHODS.items() if "centre" in method.settings]:
        with case(name):
            plain, centred = on_plants(name), on_plants(name, centre=True)
            _, positive_PD, negative_PD = planted_pairs()
            torch.testing.assert_close(centred["centre"], (positive_PD.mean(0) + negative_PD.mean(0)) / 2)
            one, other = shifted(name, plain, positions(), 0.7), shifted(name, centred, positions(), 0.7)
            assert not torch.allclose(one, other, atol=0.01)
            if METHODS[name].neutral == 0:
                assert torch.equal(shifted(name, centred, positions(), 0.0), positions())


def test_personas_that_do_not_differ_give_no_direction_or_shift_nothing():
    same_PD = draw(PAIRS, WIDTH)
    for name in METHODS:
        with case(name):
            try:
                state = fitted(name, same_PD, same_PD)
            except NoDirection:
                continue
            torch.testing.assert_close(shifted(name, state, positions(), 0.7), positions())
