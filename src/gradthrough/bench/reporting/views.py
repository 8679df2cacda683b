"""Views: which number of which cell stands where in a table or a figure, and what was published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..._errors import ConfigError
from ..cells import grid
from ..experiment import Experiment, FigureView, TableView, View
from . import derived
from .digits import decimals_of
from .names import is_number, level_title


@dataclass(frozen=True)
class Place:
    """What is shown somewhere.

    Args:
        levels: the cell, by axis.
        metric: ``split/metric``.
        epoch: after which; None: the last.
    """

    levels: Mapping[str, str]
    metric: str
    epoch: int | None


@dataclass(frozen=True)
class Published:
    """A published number.

    Args:
        mean: of some seeds.
        sd: its standard deviation over them.
        text: as it was published.
        decimals: that it was published with.
    """

    mean: float
    sd: float | None
    text: str
    decimals: int


class Reader:
    """Reads one table or figure of an experiment.

    Args:
        experiment: it is of.
        view: the table or the figure.

    Raises:
        ConfigError: the view does not say what it shows, or has published numbers for what it does
            not show.
    """

    def __init__(self, experiment: Experiment, view: View) -> None:
        self.experiment, self.view = experiment, view
        self._exist = [tuple(levels.items()) for levels in grid(experiment)]
        epochs, epoch = (), None
        if isinstance(view, TableView):
            self.spread = (view.rows, view.columns)
            epochs = view.epochs
        elif isinstance(view, FigureView):
            own = () if view.x in ("epoch", "step") else (view.x,)
            self.spread = tuple(name for name in (view.lines, view.panels) if name) + own
            epoch = view.epoch
        else:
            self.spread = ()
        self._epochs: tuple[int, ...] = epochs
        self._epoch: int | None = epoch
        self._check()
        continuous = isinstance(view, FigureView) and view.x in ("epoch", "step")
        self._leaves: dict[str, list[float]] = {}  # by metric, all published numbers
        self._check_published(view.published, self.spread, continuous, "")

    def error(self, what: str) -> ConfigError:
        """Return an error about the view."""
        return ConfigError(f"{self.experiment.name}, {self.view.title!r}: {what}")

    def levels(self, name: str) -> list[str]:
        """Return the levels of an axis, or the metrics or epochs that stand beside the axes."""
        if name == "metric":
            return list(self.view.metrics)
        if name == "epoch":
            return [str(epoch) for epoch in self._epochs]
        return [x for x in self.experiment.axes[name] if x in self.view.where.get(name, (x,))]

    def shown(self, name: str, level: str) -> str:
        """Return a level as a title."""
        axis = name == "epoch" or name in self.experiment.axes
        return level_title(name, level) if axis else level

    def place(self, path: Sequence[str]) -> Place | None:
        """Return what is shown where some levels meet, one of each spread; None: no such cell."""
        at = dict(zip(self.spread, path, strict=True))
        levels = {
            axis: at[axis] if axis in at else self.levels(axis)[0] for axis in self.experiment.axes
        }
        if tuple(levels.items()) not in self._exist:
            return None
        name = at.get("metric", next(iter(self.view.metrics)))
        epoch = next(iter(self._epochs), None) if "epoch" not in at else int(at["epoch"])
        return Place(levels, self.view.metrics[name], self._epoch if epoch is None else epoch)

    def published(self, path: Sequence[str]) -> Published | None:
        """Return what was published for a place."""
        found: Any = self.view.published
        for level in path:
            found = found.get(level)
            if found is None:
                return None
        return self._number(found, path)

    def curve(self, path: Sequence[str]) -> list[tuple[float, Published]]:
        """Return what was published of a curve, by epoch or step."""
        found: Any = self.view.published
        for level in path:
            found = found.get(level, {})
        return sorted((float(x), self._number(value, path)) for x, value in found.items())

    def _check(self) -> None:
        view = self.view
        if not view.metrics:
            raise self.error("it has no metrics. Name one: metrics = { name = 'split/metric' }.")
        if len(view.metrics) > 1 and "metric" not in self.spread:
            names = ", ".join(view.metrics)
            raise self.error(f"it has the metrics {names}. Spread 'metric', or name one.")
        if len(self._epochs) > 1 and "epoch" not in self.spread:
            raise self.error(f"it has epochs {self._epochs}. Spread 'epoch', or name one.")
        if "epoch" in self.spread and not self._epochs:
            raise self.error(
                "it spreads 'epoch', which only a table can, and needs epochs = [...]."
            )
        for metric in view.metrics.values():
            if metric.startswith(derived.SPLIT):
                derived.watched(metric)
            elif not all(metric.partition("/")):
                raise self.error(f"the metric {metric!r} must be 'split/metric'.")

    def _check_published(
        self,
        found: Any,  # noqa: ANN401 - of TOML
        spread: Sequence[str],
        continuous: bool,
        metric: str,
    ) -> None:
        if not spread and not continuous:
            parts = self._parts(found)
            self._leaves.setdefault(metric, []).extend(parts[:2])
            return
        wanted = spread[0] if spread else "epoch or step"
        if not isinstance(found, Mapping):
            raise self.error(f"published has {found!r} where there should be a table by {wanted}.")
        for level, value in cast("Mapping[str, Any]", found).items():
            if spread and level not in (known := self.levels(spread[0])):
                raise self.error(
                    f"published has {level!r}, which is no level of {spread[0]}. Known: "
                    f"{', '.join(known)}."
                )
            if not spread and not is_number(level):
                raise self.error(f"published has {level!r} where an epoch or a step should be.")
            inner = level if wanted == "metric" else metric
            self._check_published(value, spread[1:], continuous and bool(spread), inner)

    def _parts(self, found: object) -> list[float]:
        parts = cast("list[object]", found) if isinstance(found, list) else [found]
        if not 1 <= len(parts) <= 3 or not all(_finite(x) for x in parts):
            raise self.error(
                f"published has {found!r}, but must be a number, [mean, spread] or [mean, spread, "
                "n]."
            )
        numbers = cast("list[float]", parts)
        n = numbers[2] if len(numbers) == 3 else 1
        if any(x < 0 for x in numbers[1:2]) or n < 1 or n != int(n):
            raise self.error(
                f"published has {found!r}, but a spread is at least 0, and n a whole number from 1."
            )
        if len(numbers) == 2 and self.view.spread == "se" and self.view.n is None:
            raise self.error(
                f"published has {found!r} with a standard error, which needs n, of how many seeds."
            )
        return numbers

    def _number(self, found: object, path: Sequence[str]) -> Published:
        mean, *more = self._parts(found)
        metric = next(
            (x for x, name in zip(path, self.spread, strict=False) if name == "metric"), ""
        )
        decimals = decimals_of(self._leaves[metric])
        text = " ± ".join(f"{x:.{decimals}f}" for x in (mean, *more[:1]))
        n = int(more[1]) if len(more) > 1 else self.view.n
        sd = more[0] if more else None
        if sd is not None and n is not None and self.view.spread == "se":
            sd *= math.sqrt(n)
        # What all of them share is said once, with their source.
        return Published(mean, sd, text if n == self.view.n else f"{text} (n={n})", decimals)


def _finite(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
