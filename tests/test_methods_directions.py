"""The activation methods that steer along a direction or turn towards one, each by what it promises."""

import math

import pytest
import torch
from torch import Tensor

from heal.steering.method import NoDirection, State
from tests.cases import case
from tests.planted import PAIRS, WIDTH, components, cosine, draw, fitted, on_plants, planted_pairs, positions, shifted

# Plain directions


def test_mean_diff_adds_its_shift_in_the_model_s_own_dtype_and_normalize_makes_it_one_long():
    state = on_plants("mean_diff")
    _, positive_PD, negative_PD = planted_pairs()
    assert torch.equal(state["v"], (positive_PD.double().mean(0) - negative_PD.double().mean(0)).float())
    for dtype in (torch.float32, torch.bfloat16):
        h_BTD = positions().to(dtype)
        expected = h_BTD + (torch.tensor(0.7) * state["v"]).to(dtype)
        assert torch.equal(shifted("mean_diff", state, h_BTD, 0.7), expected)

    plain, normalized = on_plants("mean_diff")["v"], on_plants("mean_diff", normalize=True)["v"]
    torch.testing.assert_close(normalized, plain / plain.norm())


def test_pca_finds_what_varies_between_the_pairs_with_the_sign_of_most_of_them():
    varies_D, shared_D = draw(WIDTH) / draw(WIDTH).norm(), 50 * draw(WIDTH, seed=1)
    difference_PD = shared_D + draw(PAIRS, 1, seed=2) * 5 * varies_D + 0.1 * draw(PAIRS, WIDTH, seed=3)
    found_D = fitted("pca", difference_PD, torch.zeros(PAIRS, WIDTH))["v"]
    assert abs(cosine(found_D, varies_D)) > 0.99
    assert (difference_PD @ found_D > 0).sum() > PAIRS / 2

    along_P1 = torch.tensor([1.0] * 7 + [-10.0] * 3)[:, None]
    axis_D = torch.eye(WIDTH)[3]
    found_D = fitted("pca", along_P1 * axis_D, torch.zeros(10, WIDTH))["v"]
    torch.testing.assert_close(found_D, axis_D)


def test_directional_ablation_sets_the_component_or_centres_it_and_leaves_the_rest():
    for c in [0.0, 2.5, -1.0]:
        with case(c):
            state, h_BTD = on_plants("directional_ablation"), positions()
            found = shifted("directional_ablation", state, h_BTD, c)
            torch.testing.assert_close(components(state, found), torch.full((3, 5), c), atol=1e-5, rtol=0)
            rest = [h - components(state, h)[..., None] * state["v"] for h in (h_BTD, found)]
            torch.testing.assert_close(*rest)

    h_BTD = positions()
    assert (
        shifted("directional_ablation", on_plants("directional_ablation"), h_BTD, 0.0).norm(dim=-1) < h_BTD.norm(dim=-1)
    ).all()

    state = on_plants("directional_ablation", centre=True)
    found = components(state, shifted("directional_ablation", state, positions(), 0.0))
    torch.testing.assert_close(found, components(state, state["centre"]).expand_as(found), atol=1e-4, rtol=0)


def test_the_gate_opens_with_the_cosine_on_either_side():
    state = on_plants("cosine_gated", gate=0.5)
    v_D, across_D = state["v"], draw(WIDTH, seed=9)
    across_D = across_D - (across_D @ v_D) * v_D
    across_D = across_D / across_D.norm()
    h_1TD = torch.stack([cos * v_D + math.sqrt(1 - cos**2) * across_D for cos in (0.0, 0.4, -0.4, 0.7, -0.9)])[None]
    pushed = components(state, shifted("cosine_gated", state, 5 * h_1TD, 2.0) - 5 * h_1TD)[0]
    torch.testing.assert_close(pushed, torch.tensor([0.0, 0.0, 0.0, 0.4, 0.8]), atol=1e-5, rtol=0)


# Rotations


def test_spherical_turns_by_a_fraction_of_the_angle_and_keeps_the_norm_along_the_direction_too():
    for c in [0.0, 0.3, 1.0, -0.6]:
        with case(c):
            state, h_BTD = on_plants("spherical"), positions()
            found = shifted("spherical", state, h_BTD, c)
            torch.testing.assert_close(found.norm(dim=-1), h_BTD.norm(dim=-1))
            target_D = state["v"] * math.copysign(1, c)
            angle, left = (torch.cosine_similarity(h, target_D, dim=-1).clamp(-1, 1).acos() for h in (h_BTD, found))
            torch.testing.assert_close(left, (1 - abs(c)) * angle, atol=1e-3, rtol=0)

    state = on_plants("spherical")
    nearly_D = state["v"] + 1e-5 * draw(WIDTH)
    h_1TD = torch.stack([state["v"], -2 * state["v"], nearly_D, -nearly_D, torch.zeros(WIDTH)])[None]
    found = shifted("spherical", state, h_1TD, 0.5)
    torch.testing.assert_close(found.norm(dim=-1), h_1TD.norm(dim=-1), atol=1e-4, rtol=0)


def test_angular_sets_the_angle_in_its_plane_keeps_every_norm_and_turns_with_the_trait():
    for c in [0.0, 0.8, math.pi, -0.0, -1.0, -math.pi]:
        with case(c):
            state, h_BTD = on_plants("angular"), positions()
            axes_2D = torch.stack([state["v"], state["b2"]])
            torch.testing.assert_close(axes_2D @ axes_2D.T, torch.eye(2), atol=1e-5, rtol=0)
            before_BT2, found = h_BTD @ axes_2D.T, shifted("angular", state, h_BTD, c)
            after_BT2 = found @ axes_2D.T
            angle = c if math.copysign(1, c) > 0 else math.pi + c
            expected = before_BT2.norm(dim=-1, keepdim=True) * torch.tensor([math.cos(angle), math.sin(angle)])
            torch.testing.assert_close(after_BT2, expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(found - after_BT2 @ axes_2D, h_BTD - before_BT2 @ axes_2D, atol=1e-4, rtol=0)
            torch.testing.assert_close(found.norm(dim=-1), h_BTD.norm(dim=-1))

    for c in [0.0, 0.8, math.pi]:
        with case(c):
            _, positive_PD, negative_PD = planted_pairs()
            state, swapped = fitted("angular", positive_PD, negative_PD), fitted("angular", negative_PD, positive_PD)
            expected = shifted("angular", swapped, positions(), c)
            torch.testing.assert_close(shifted("angular", state, positions(), -c), expected, atol=1e-4, rtol=1e-4)


def test_the_second_axis_of_angular_is_the_first_component_and_points_to_where_the_activations_are():
    varies_D, shared_D = torch.eye(WIDTH)[0], torch.eye(WIDTH)[1]
    difference_PD = 3 * shared_D + draw(PAIRS, 1) * varies_D + 0.01 * draw(PAIRS, WIDTH, seed=1)
    state = fitted("angular", difference_PD, torch.zeros(PAIRS, WIDTH))
    assert cosine(state["v"], shared_D) > 0.99
    assert abs(cosine(state["b2"], varies_D)) > 0.99

    for along_b2 in [20.0, -20.0, -0.5]:
        with case(along_b2):
            state, mean_D = apart(along_b2)
            assert float(mean_D @ state["b2"]) == pytest.approx(abs(along_b2), rel=1e-3)


def apart(along_b2: float, **settings) -> tuple[State, Tensor]:
    """angular fitted to the plants with their mean put at `along_b2` on its second axis, and that mean."""
    _, positive_PD, negative_PD = planted_pairs()
    b2_D = on_plants("angular")["b2"]
    mean_D = (positive_PD.mean(0) + negative_PD.mean(0)) / 2
    moved_D = (along_b2 - mean_D @ b2_D) * b2_D
    return fitted("angular", positive_PD + moved_D, negative_PD + moved_D, **settings), mean_D + moved_D


def test_mirrored_blocks_have_one_natural_angle_and_a_centred_plane_does_not_depend_on_where_they_lie():
    angles = []
    for along_b2 in (20.0, -20.0):
        state, mean_D = apart(along_b2)
        angles.append(math.atan2(float(mean_D @ state["b2"]), float(mean_D @ state["v"])))
        torch.testing.assert_close(shifted("angular", state, mean_D[None, None], angles[-1])[0, 0], mean_D)
    assert angles[0] == pytest.approx(angles[1], rel=1e-4)
    assert 0 < angles[0] < math.pi

    here, there = (apart(along_b2, centre=True)[0] for along_b2 in (200.0, -200.0))
    for name in ("v", "b2"):
        torch.testing.assert_close(here[name], there[name], atol=1e-3, rtol=0)


def test_pairs_on_one_line_make_no_plane():
    along_PD = (1 + draw(PAIRS, 1).abs()) * torch.eye(WIDTH)[0]
    with pytest.raises(NoDirection):
        fitted("angular", along_PD, torch.zeros(PAIRS, WIDTH))
