"""Numbers as people read them: percent, engineering units, a true minus sign. What is unknown is a dash."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from stillroom.words import is_share

DASH, SPACE, MINUS = "–", "\u00a0", "\u2212"

PREFIXES = {-4: "p", -3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}


def known(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: float | None) -> str:
    """A share in [0, 1] in percent with one decimal."""
    return f"{_plain(100 * value, 1)}{SPACE}%" if known(value) else DASH


def significant(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, without zeros that say nothing."""
    if not known(value):
        return DASH
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{float(text):.0f}" if 0 <= int(exponent) <= 5 else f"{mantissa}e{int(exponent)}"
    return text.replace("-", MINUS)


def engineering(value: float | None, unit: str = "") -> str:
    """Three significant digits with an SI prefix, such as 16.8 k, 1.2 M or 34 µs."""
    if not known(value):
        return DASH
    rounded = float(f"{value:.3g}")
    power = math.floor(math.log10(abs(rounded)) / 3 + 1e-9) if rounded else 0
    power = max(min(power, max(PREFIXES)), min(PREFIXES))
    tail = PREFIXES[power] + unit
    number = significant(rounded / 1000**power)
    return f"{number}{SPACE}{tail}" if tail else number


def duration(value: float | None) -> str:
    """Seconds, as a fraction of a second, seconds, minutes or hours."""
    if not known(value) or abs(value) < 1:
        return engineering(value, "s")
    for size, unit in ((3600, "h"), (60, "min")):
        if abs(value) >= size:
            return f"{_plain(value / size, 1)}{SPACE}{unit}"
    return f"{_plain(value, 1)}{SPACE}s"


def ratio(value: float | None, other: float | None) -> str:
    """How many times `other` a value is, to two decimals or two digits; a dash where that says nothing."""
    if not known(value) or not known(other) or not other:
        return DASH
    quotient = value / other
    return _plain(quotient, 2) if 0.1 <= abs(quotient) < 100 else significant(quotient, 2)


def amount(metric: str, value: float | None, signed: bool = False, unit: bool = True) -> str:
    """A value of `metric`, or with `signed` a difference of two: of shares in points of a percent."""
    if not known(value):
        return DASH
    if not signed:
        return percent(value) if is_share(metric) else significant(value)
    number = _plain(100 * value, 1) if is_share(metric) else significant(value)
    sign = "+" if value > 0 and number.strip("0.") else ""
    return f"{sign}{number}{SPACE}points" if unit and is_share(metric) else f"{sign}{number}"


def span(metric: str, interval: Sequence[float] | None, unit: bool = True) -> str:
    """An interval of differences in words; '' where there is none."""
    if interval is None or not all(known(end) for end in interval):
        return ""
    return f"{amount(metric, interval[0], True, unit=False)} to {amount(metric, interval[1], True, unit)}"


def spoken(name: str) -> str:
    """A key of a table as words."""
    return name.replace("_", " ")


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, value) rows in their own order."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, str) else _literal(value)))
    return rows


def _literal(value: Any) -> str:
    return DASH if value is None else json.dumps(value, ensure_ascii=False)


def _plain(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", MINUS)
