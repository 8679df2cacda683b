"""A number: what the runs of a cell found, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from .runs import Run


@dataclass(frozen=True)
class Number:
    """One number over seeds.

    Args:
        values: one for each seed.
        runs: whose they are, in the same order.
        epoch: after which.
        lost: how many other seeds have none, by why.
        short: (n, m) if it is of n epochs where the published protocol has m.
        other: how its protocol differs from that of the budget "paper" otherwise, "" if not at all.
        trials: of how many trials of a search it is the best one; 0 where nothing was searched.
    """

    values: tuple[float, ...] = ()
    runs: tuple[Run, ...] = ()
    epoch: int = 0
    lost: Mapping[str, int] = field(default_factory=dict[str, int])
    short: tuple[int, int] | None = None
    other: str = ""
    trials: int = 0

    @property
    def n(self) -> int:
        """Of how many seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def median(self) -> float:
        """Over the seeds."""
        return statistics.median(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds, with n - 1; None of a single one."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The middle half of the seeds; None of a single one."""
        if self.n < 2:
            return None
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high
