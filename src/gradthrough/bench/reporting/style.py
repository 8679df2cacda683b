"""One look for each method, in every figure of every experiment."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...estimators import ESTIMATORS
from ..experiment import Experiment, FigureView

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


def styles(experiment: Experiment, view: FigureView) -> dict[str, Style]:
    """Return the looks of the lines of a figure, by level.

    Lines of an axis that sets the estimator have its colour wherever they are drawn, and so have
    metrics whose last word is an estimator. A second line of the same estimator has other dashes,
    and where it is of another task, or its colour is taken, one that no line of the figure has yet.
    """
    name, metrics = view.lines, view.metrics
    axis = experiment.axes.get(name, {})
    keys: dict[str, str | None] = {level: axis[level].get("estimator") for level in axis}
    if name == "metric":
        keys = {level: metrics[level].split("/")[-1].split(" ")[-1] for level in metrics}
    order = [*_FIRST, *(key for key in ESTIMATORS if key not in _FIRST)]
    if not all(key in order for key in keys.values()):
        return {level: _style(i, 0) for i, level in enumerate(keys)}
    places = {level: order.index(key or "") for level, key in keys.items()}
    methods = {
        level: repr([key, *(axis.get(level, {}).get(x) for x in ("task", "task_options"))])
        for level, key in keys.items()
    }
    kept = {COLOURS[place % len(COLOURS)] for place in places.values()}
    spare = [*(c for c in COLOURS if c not in kept), *COLOURS]
    colours: dict[str, str] = {}
    for level in sorted(places, key=lambda level: places[level]):  # those that most figures have
        own = COLOURS[places[level] % len(COLOURS)]
        left = [c for c in (own, *spare) if c not in colours.values()]
        colours.setdefault(methods[level], left[0] if left else own)
    found: dict[str, Style] = {}
    seen: list[str | None] = []
    for level, key in keys.items():
        found[level] = replace(
            _style(places[level], seen.count(key)), colour=colours[methods[level]]
        )
        seen.append(key)
    return found or {"": _style(0, 0)}


def _style(place: int, repeated: int) -> Style:
    count = len(COLOURS)
    return Style(COLOURS[place % count], (place % count + place // count + repeated) % _DASHES)
