"""The settings of steering methods: what each takes, and what is refused."""

import pytest

from heal.config import SteerConfig
from heal.errors import UserError
from heal.steering.methods import METHODS
from heal.steering.settings import check_settings, method_settings, settled
from tests.cases import case


def test_the_defaults_suit_every_method():
    for method in METHODS:
        with case(method):
            check_settings(SteerConfig(method=method), [method])
            assert method_settings(SteerConfig(method=method)).keys() == set(METHODS[method].settings)


def test_a_setting_that_a_method_does_not_take_is_refused():
    for settings, message in [
        (
            {"centre": True},
            "steer.centre=true: the mean of both personas' activations cancels out in mean_diff, so centring changes "
            "nothing; leave it out",
        ),
        (
            {"method": "chars", "centre": True},
            "steer.centre=true: the mean of both personas' activations cancels out in chars, so centring changes "
            "nothing; leave it out",
        ),
        (
            {"method": "sspace", "centre": True},
            "steer.centre=true: not a setting of steer.method=sspace; it has none of its own",
        ),
        (
            {"method": "spherical", "clusters": 8},
            "steer.clusters=8: not a setting of steer.method=spherical; it takes centre",
        ),
        (
            {"method": "chars", "gate": 0.1},
            "steer.gate=0.1: not a setting of steer.method=chars; it takes clusters and entropy",
        ),
        ({"method": "topk_clusters", "pairs": 3}, "steer.clusters=4: more than steer.pairs=3"),
    ]:
        with case(settings, message):
            steer = SteerConfig(**settings)
            with pytest.raises(UserError) as caught:
                check_settings(steer, [steer.method])
            assert str(caught.value) == message


def test_a_setting_that_one_of_several_methods_takes_is_accepted():
    check_settings(SteerConfig(clusters=8, gate=0.2), ["mean_diff", "topk_clusters", "cosine_gated"])
    with pytest.raises(UserError, match=r"not a setting of steer\.method=mean_diff or steer\.method=chars"):
        check_settings(SteerConfig(gate=0.2), ["mean_diff", "chars"])


def test_a_setting_that_a_method_takes_is_passed_on():
    found = method_settings(SteerConfig(method="cosine_gated", gate=0.2, centre=True))
    assert found == {"gate": 0.2, "centre": True}


def test_only_a_run_chooses_where_to_steer() -> None:
    for steer, name in ((SteerConfig(band=None), "band"), (SteerConfig(method=None), "method")):
        with pytest.raises(UserError, match=f"steer.{name}=auto: only heal train chooses it"):
            settled(steer)
