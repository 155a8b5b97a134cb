"""How the page writes numbers. A number that is not there is a dash whose title says why."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from heal.evaluation.stats import Estimate

MINUS = "\N{MINUS SIGN}"


def dash(why: str) -> Markup:
    """A dash with its reason."""
    return Markup('<span class="none" title="{}">\N{EN DASH}</span>').format(why)


def number(value: float | None, digits: int = 3, sign: bool = False, why: str = "not a number") -> Markup:
    """Fixed digits with a real minus sign; a dash when `value` is None or NaN."""
    if value is None or math.isnan(value):
        return dash(why)
    if math.isinf(value):
        return Markup('<span title="the logits were not finite">{}\N{INFINITY}</span>').format(
            MINUS if value < 0 else ""
        )
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return Markup(text.replace("-", MINUS))


def percent(value: float | None, sign: bool = False, why: str = "not a number") -> Markup:
    """A fraction as whole percent."""
    shown = number(None if value is None else 100 * value, 0, sign, why)
    return shown if "<" in shown else shown + Markup("\N{NO-BREAK SPACE}%")


def interval(estimate: Estimate, digits: int = 3, sign: bool = False) -> Markup:
    """`0.210 [0.140, 0.290]`; a dash when no item could be scored."""
    if math.isnan(estimate.value):
        return dash(no_items(estimate))
    return number(estimate.value, digits, sign) + Markup("\N{NO-BREAK SPACE}") + bounds(estimate, digits, sign)


def bounds(estimate: Estimate, digits: int = 3, sign: bool = False) -> Markup:
    """`[0.140, 0.290]`."""
    why = no_items(estimate)
    low, high = number(estimate.low, digits, sign, why), number(estimate.high, digits, sign, why)
    return Markup('<span class="bounds">[{},\N{NO-BREAK SPACE}{}]</span>').format(low, high)


def no_items(estimate: Estimate) -> str:
    """Why an estimate has no value."""
    return "no item could be scored (n = 0)" if estimate.n == 0 else f"not a number (n = {estimate.n})"


def duration(seconds: float) -> str:
    """`2 min 01 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def of_rounds(numbers: Sequence[int]) -> str:
    """`round 1`, `rounds 4 and 5`, `rounds 1 and 3 to 7`: by their rising numbers."""
    stretches: list[list[int]] = []
    for one in numbers:
        if stretches and one == stretches[-1][-1] + 1:
            stretches[-1].append(one)
        else:
            stretches.append([one])
    parts: list[str] = []
    for first, *more in stretches:
        parts += [f"{first} to {more[-1]}"] if len(more) > 1 else [str(one) for one in (first, *more)]
    *others, last = parts
    listed = f"{', '.join(others)} and {last}" if others else last
    return f"{'round' if len(numbers) == 1 else 'rounds'} {listed}"


def plain(value: Any) -> str:
    """A setting as short text: `0.5`, `1e-4`."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def size_of(text: str) -> int:
    """Bytes of a text in the page."""
    return len(escape(text).encode(errors="replace"))
