"""What is not recorded, but follows from the records of a run: times, and steps to a threshold."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..._errors import ConfigError

if TYPE_CHECKING:
    from .runs import Run

SPLIT = "run/"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_STEPS = re.compile(rf"run/steps_to\(([^/()]+/[^()<>=]+?)\s*(<=|>=|<|>)\s*({_NUMBER})\)")
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_UNITS = {
    "run/seconds_per_epoch": ("training time of an epoch", "s"),
    "run/milliseconds_per_step": ("training time of a step", "ms"),
    "run/evaluations_per_step": ("evaluations of f in a step", ""),
}


def derived(run: Run, metric: str, epoch: int) -> float | None:
    """Return a derived number of the first epochs of a run, of which it has done at least one.

    Args:
        run: of which.
        metric: ``run/seconds_per_epoch``, ``run/milliseconds_per_step``,
            ``run/evaluations_per_step`` or ``run/steps_to(split/metric<number)``.
        epoch: how many epochs count.

    Raises:
        ConfigError: another name.
    """
    last = run.passes[epoch - 1]
    match metric:
        case "run/seconds_per_epoch":
            return last.seconds / epoch
        case "run/milliseconds_per_step":
            return 1000 * last.seconds / last.step
        case "run/evaluations_per_step":
            return last.evaluations / last.step
        case _:
            watched, sign, threshold = _threshold(metric)
    values = run.series.get(watched, {})
    hits = [e for e in sorted(values) if e <= epoch and _HOLDS[sign](values[e], threshold)]
    return run.step_at(hits[0]) if hits else None


def watched(metric: str) -> str | None:
    """Return the ``split/metric`` that a derived number waits for, None if it waits for none."""
    return None if metric in _UNITS else _threshold(metric)[0]


def title(metric: str, of: Callable[[str], str]) -> tuple[str, str]:
    """Return the title and the unit of a derived number.

    Args:
        metric: its name.
        of: the title of a recorded one.
    """
    if metric in _UNITS:
        return _UNITS[metric]
    name, sign, _ = _threshold(metric)
    limit = metric[:-1].split(sign, 1)[1].strip()
    return f"steps to {of(name)} {sign} {limit}", ""


def _threshold(metric: str) -> tuple[str, str, float]:
    found = _STEPS.fullmatch(metric)
    if found is None:
        raise ConfigError(
            f"there is no derived number {metric!r}. Known: {', '.join(_UNITS)}, and "
            "run/steps_to(split/metric<number) with one of < <= > >=."
        )
    return found[1], found[2], float(found[3])
