"""One look for each method, in every figure of every experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...estimators import ESTIMATORS
from ..experiment import Experiment

# Of the palette of Okabe and Ito, which colour-blind eyes tell apart; grey stands for its black,
# which a dark page would hide.
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#cc79a7", "#009e73", "#56b4e9", "#767676")
# Those that most figures have, so that none of them shares its colour.
_FIRST = ("reinmax", "st", "stgs", "gumbel_rao", "gst", "rloo", "reinforce")
_DASHES = 4


@dataclass(frozen=True)
class Style:
    """How a line looks.

    Args:
        colour: as hexadecimal digits.
        dash: 0 is a whole line, up to 3. Lines may lie on one another: dashed ones are drawn above,
            and show what is below.
    """

    colour: str
    dash: int


def styles(experiment: Experiment, name: str, levels: Sequence[str]) -> dict[str, Style]:
    """Return the looks of lines.

    Lines of an axis that sets the estimator have its colour wherever they are drawn; a second line
    of the same estimator has other dashes.

    Args:
        experiment: theirs.
        name: of what they spread: an axis, "metric" or "".
        levels: of it, one for each line.
    """
    axis = experiment.axes.get(name, {})
    keys = [axis.get(level, {}).get("estimator") for level in axis]
    if not axis or None in keys:
        return {level: _style(i, 0) for i, level in enumerate(levels)}
    order = [*_FIRST, *(key for key in ESTIMATORS if key not in _FIRST)]
    found: dict[str, Style] = {}
    for i, (level, key) in enumerate(zip(axis, keys, strict=True)):
        place = order.index(key) if key in order else len(order)
        found[level] = _style(place, keys[:i].count(key))
    return {level: found[level] for level in levels}


def _style(place: int, repeated: int) -> Style:
    count = len(COLOURS)
    return Style(COLOURS[place % count], (place % count + place // count + repeated) % _DASHES)
