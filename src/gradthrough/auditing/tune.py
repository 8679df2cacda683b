"""A small search for the temperature with the least error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ..estimators import AbstractEstimator
from .recommend import error
from .rows import AuditRow

TEMPERATURES = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)


@dataclass(frozen=True)
class Search:
    """What can measure more of a problem that was audited.

    Args:
        estimators: those of the audit, by label.
        measure: returns rows of estimators by label, from so many replicates.
    """

    estimators: Mapping[str, AbstractEstimator]
    measure: Callable[[Mapping[str, AbstractEstimator], int], list[AuditRow]]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave the problem behind where a report is pickled: it holds functions."""
        return type(None), ()

    def temperatures(self, replicates: int, averaging: float) -> dict[str, AuditRow]:
        """Return the row of the best temperature of each estimator that has one.

        Each is tried with a quarter of the replicates. The best is measured anew, with all of
        them: the least of several noisy numbers is too small.
        """
        finalists: dict[str, AbstractEstimator] = {}
        for name, one in self.estimators.items():
            tried = {
                f"{name}, tau={tau:g}": dataclasses.replace(cast(Any, one), tau=tau)
                for tau in TEMPERATURES
                if has_temperature(one)
            }
            rows = self.measure(tried, max(20, replicates // 4)) if tried else []
            found = [row for row in rows if row.skipped is None]
            if found:
                best = min(found, key=lambda row: error(row, averaging)).estimator
                finalists[best] = tried[best]
        rows = self.measure(finalists, replicates) if finalists else []
        return {row.estimator: row for row in rows if row.skipped is None}


def has_temperature(one: AbstractEstimator) -> bool:
    """Return whether an estimator has a temperature that is a number."""
    return dataclasses.is_dataclass(one) and isinstance(getattr(one, "tau", None), int | float)
