"""A figure as numbers and a picture, and the files that they become."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor


@dataclass(frozen=True)
class Sheet:
    """A figure: its numbers, and what draws them.

    Args:
        rows: the numbers, all with the same names; None where there is none.
        draw: returns the picture, as PNG.
    """

    rows: tuple[Mapping[str, Any], ...]
    draw: Callable[[], bytes]


def table(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> bytes:
    """Return rows as CSV, each with the environment that they were made in.

    Example:
        >>> from gradthrough.bench.figures.sheet import table
        >>> print(table([{"tau": 0.1, "value": None}], {"seed": 0}).decode())
        tau,value,environment
        0.1,,"{""seed"": 0}"
    """
    out = io.StringIO()
    names = [*rows[0], "environment"]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    behind = json.dumps(environment, sort_keys=True)
    for row in rows:
        writer.writerow({**{k: _cell(x) for k, x in row.items()}, "environment": behind})
    return out.getvalue().encode()


def numbers(x: Tensor) -> list[float]:
    """Return the numbers of a tensor (n,)."""
    return cast("list[float]", x.tolist())


def _cell(x: object) -> object:
    return f"{x:.8g}" if isinstance(x, float) else x
