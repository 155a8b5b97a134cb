"""Descriptions of signals: whole, consistent, cheap to read, and all that a new readout takes."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

from heal import choices
from heal.config import EvaluationConfig, Recipe
from heal.evaluation.signal import READOUTS, TRAIT, Limit, Signal, limited, limits_of, signals
from heal.evaluation.stats import Estimate
from heal.keys import keys
from tests.stages import around, summary

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {item.name.removeprefix("evaluation."): item for item in keys() if item.name.startswith("evaluation.")}


def test_every_signal_says_what_it_is_which_way_is_good_and_rests_on_signals_that_are_there():
    described = signals()
    for name, signal in described.items():
        assert name == signal.name
        assert all((signal.title, signal.unit, signal.note)), name
        assert len(signal.explain(Recipe())) > 20, name
        assert "{" not in signal.explain(Recipe()), name
        assert signal.better in ("higher", "lower", None)
        assert signal.role == "off_target" or signal.better is not None, f"{name}: which way is good?"
        rests_on = signal.validity.signals if signal.validity else ()
        assert set(rests_on) <= described.keys(), name
    assert len({signal.title + signal.note for signal in described.values()}) == len(described)


def test_every_limit_is_a_key_of_the_recipe_on_the_bad_side_of_its_signal():
    for name, limit in limited().items():
        assert (limit.kind == "floor") == (signals()[name].better == "higher"), name
        known = SETTINGS[limit.key]
        assert (known.type, known.default, known.help) == (float, limit.default, limit.help)
        assert (known.minimum, known.maximum) == (limit.minimum, limit.maximum)
        assert limit.words.format(1.0) != limit.words
        assert f"{limit.kind} {limit.default:g}" in signals()[name].explain(Recipe())
    assert limits_of(EvaluationConfig()) == {name: limit.default for name, limit in limited().items()}


def test_the_keys_of_the_limits_stand_after_the_others_in_the_order_of_the_signals():
    own = [name for name in SETTINGS if "." not in name]  # a section inside is listed after its own keys
    assert own[-len(limited()) :] == [limit.key for limit in limited().values()]


def test_the_trait_stands_first_then_what_is_of_coherence_then_side_effects():
    described = list(signals().values())
    assert described[0].name == TRAIT
    assert [signal.is_side_effect for signal in described] == sorted(signal.is_side_effect for signal in described)
    assert [signal.role for signal in described].count("trait") == 1


def test_a_limit_lies_where_its_key_says_and_a_value_is_past_it_on_one_side_alone():
    floor = Limit("k", 0.5, "", "floor", "{:g}")
    ceiling = Limit("k", 0.5, "", "ceiling", "{:g}")
    assert floor.at(0.5, 3.0) == ceiling.at(0.5, 3.0) == 0.5
    assert dataclasses.replace(ceiling, over_base=True).at(0.5, 3.0) == 3.5
    assert dataclasses.replace(floor, over_base=True).at(0.5, 3.0) == 2.5
    for value, below, above in (
        (0.4, True, False),
        (0.5, False, False),
        (0.6, False, True),
        (float("nan"), *[False] * 2),
    ):
        assert (floor.past(value, 0.5), ceiling.past(value, 0.5)) == (below, above)


def test_beyond_the_noise_only_that_part_of_a_change_counts_of_which_its_whole_interval_speaks():
    floor = Limit("k", 0.5, "", "floor", "{:g}", over_base=True, beyond_noise=True)
    for low, high, to_floor, to_ceiling in (
        (-0.5, -0.25, 0.5, 0.75),  # base is 0.75
        (-0.5, 0.25, 0.75, 0.75),
        (0.25, 0.5, 0.75, 1.0),
        (-0.5, 0.0, 0.75, 0.75),
        (0.0, 0.5, 0.75, 0.75),
    ):
        value = 0.75 + (low + high) / 2
        (figures,) = summary({"x": around(value)}, {"x": Estimate((low + high) / 2, low, high, 4)}).values()
        assert floor.counted(figures) == to_floor
        assert dataclasses.replace(floor, kind="ceiling").counted(figures) == to_ceiling
        assert dataclasses.replace(floor, beyond_noise=False).counted(figures) == value
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    (unscored,) = summary({"x": nothing}, {"x": nothing}).values()
    assert math.isnan(floor.counted(unscored))


def test_a_difference_is_worse_where_its_whole_interval_is_on_the_bad_side():
    down, up, none = Estimate(-1, -2, -0.5, 4), Estimate(1, 0.5, 2, 4), Estimate(0, -1, 1, 4)
    for better, worse in (("higher", [True, False, False]), ("lower", [False, True, False]), (None, [False] * 3)):
        signal = Signal("x", "u", "t", "n", "d", "coherence", better)
        assert [signal.worsened(shift) for shift in (down, up, none)] == worse


def test_values_carry_their_description_into_the_file():
    signal = signals()["tail_perplexity"]
    measured = signal.measured([1.0, 2.0])
    assert dataclasses.asdict(measured) == {
        "name": "tail_perplexity",
        "unit": "perplexity",
        "role": "coherence",
        "statistic": "median",
        "values": (1.0, 2.0),
        "items": "answers",
    }


def run(script: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_descriptions_are_read_without_torch_numpy_or_a_model():
    heavy = run(
        "import sys; from heal.evaluation.signal import signals; from heal.keys import help_text\n"
        "assert signals() and 'max_scaffold_rise' in help_text()\n"
        "print(*({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert heavy.strip() == ""


NEW_READOUT = '''
"""How often an answer shouts."""

from heal.evaluation.signal import Limit, Signal

SHOUTING = Signal(
    "shouting_share", unit="share", title="Shouting", note="fraction of answers",
    detail="fraction of answers in capitals", role="coherence", better="lower",
    limit=Limit("max_shouting_share", 0.25, "coherence floor: share of shouting answers", kind="ceiling",
                words="shouting answers {:.0%}", minimum=0, maximum=1),
)
SIGNALS = (SHOUTING,)


def measure(subject, answers):
    return [SHOUTING.measured([float(answer.text.isupper()) for answer in answers])]
'''

USES_IT = """
import sys
import heal.evaluation.readouts as readouts
readouts.__path__.append(sys.argv[1])

from heal import choices
from heal.evaluation.results import Answer, StageResult, headline, summarise
from heal.evaluation.signal import READOUTS, Evidence, limits_of, signals
from heal.evaluation.validity import validity
from heal.evaluation.verdict import coherence, incoherences
from heal.keys import help_text
from heal.recipe import load_recipe, to_yaml

recipe = load_recipe(["recipe=smoke", "evaluation.max_shouting_share=0.5"])
assert "evaluation.max_shouting_share=0.25" in help_text()
assert "max_shouting_share: 0.5" in to_yaml(recipe)
limits = limits_of(recipe.evaluation)
assert limits["shouting_share"] == 0.5

def stage(name, *texts):
    answers = tuple(Answer("x", (1,), (2,), text, True) for text in texts)
    return StageResult(name, answers, tuple(choices.load(READOUTS, "shouting", "measure")(None, answers)))

base, loud = stage("base", "a", "b", "c", "d"), stage("healed", "A", "B", "C", "d")
before, after = (summarise(result, base, 100, 0) for result in (base, loud))
assert after["shouting_share"].delta.value == 0.75
judged = validity(Evidence(before, {}), limits)
assert judged["shouting_share"].valid and "ceiling 0.5" in judged["shouting_share"].why
assert incoherences(after, limits, ["shouting_share"]) == ["shouting answers 75% > 0.5"]
assert coherence(after, limits, ["shouting_share"]).worst == "shouting_share"
assert headline(loud) == "shouting_share 0.750"
assert signals()["shouting_share"].explain(recipe) == "fraction of answers in capitals; ceiling 0.5"
print("ok")
"""


def test_a_readout_with_a_limit_is_one_new_file(tmp_path: Path):
    """The recipe's key, `--help`, summaries, validity, coherence and the verdict's reasons follow from it."""
    (tmp_path / "shouting.py").write_text(NEW_READOUT)
    assert run(USES_IT, str(tmp_path)).strip() == "ok"


def test_a_key_of_a_limit_is_refused_like_any_other():
    from heal.errors import UserError
    from heal.recipe import load_recipe

    for word, complaint in (
        ("evaluation.min_alive_share=1.5", "must be >= 0 and <= 1"),
        ("evaluation.min_alive_shar=0.5", "min_alive_share"),
        ("evaluation.max_tail_perplexity=much", "expected float"),
    ):
        with pytest.raises(UserError, match=complaint):
            load_recipe(["recipe=smoke", word])


def test_readouts_are_found_by_their_files_and_have_what_they_need():
    for name, described in choices.load_all(READOUTS, "SIGNALS").items():
        assert described, name
        assert callable(choices.load(READOUTS, name, "measure")), name
        assert choices.summary(READOUTS, name), name
