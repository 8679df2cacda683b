"""The cells of NAS-Bench-201 and how accurate each one is: a search is judged by looking it up."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from .._errors import ConfigError, DomainError
from ._files import DataFile, content

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # (from, to), as the names have them
CELLS = len(OPS) ** len(EDGES)
Cell: TypeAlias = tuple[int, ...]  # the place in OPS of the op of each edge

# On which data each column trained, on which it was measured, and for how many epochs it trained.
COLUMNS = {
    "cifar10_valid_12ep": ("cifar10-valid", "x-valid", 12),
    "cifar10_test_12ep": ("cifar10", "ori-test", 12),
    "cifar100_valid_12ep": ("cifar100", "x-valid", 12),
    "cifar100_test_12ep": ("cifar100", "x-test", 12),
    "imagenet16_120_valid_12ep": ("ImageNet16-120", "x-valid", 12),
    "imagenet16_120_test_12ep": ("ImageNet16-120", "x-test", 12),
    "cifar10_test_200ep": ("cifar10", "ori-test", 200),
    "cifar100_test_200ep": ("cifar100", "x-test", 200),
    "imagenet16_120_test_200ep": ("ImageNet16-120", "x-test", 200),
}
TABLE = DataFile(
    "nas-bench-201/nasbench201_accuracies.csv.gz",
    "1267440e1d41b8d9637ff00dad15fae26a9bb0b24ba260c20a51e446978a0606",
    (CELLS, len(COLUMNS)),
)


def cell_name(cell: Sequence[int]) -> str:
    """Return the name of a cell as the benchmark writes it, node by node.

    Example:
        >>> from gradthrough.bench.nas_tables import cell_name
        >>> cell_name((3, 1, 0, 4, 2, 1))[:44]
        '|nor_conv_3x3~0|+|skip_connect~0|none~1|+|av'
    """
    nodes: dict[int, str] = {}
    for (start, end), op in zip(EDGES, cell, strict=True):
        nodes[end] = f"{nodes.get(end, '|')}{OPS[op]}~{start}|"
    return "+".join(nodes.values())


def parse_cell(name: str) -> Cell:
    """Return the cell of a name.

    Raises:
        DomainError: no cell has that name.

    Example:
        >>> from gradthrough.bench.nas_tables import cell_name, parse_cell
        >>> parse_cell(cell_name((3, 1, 0, 4, 2, 1)))
        (3, 1, 0, 4, 2, 1)
    """
    words = [word for word in name.replace("+", "").split("|") if word]
    cell = tuple(OPS.index(op) for op in (word.partition("~")[0] for word in words) if op in OPS)
    if len(cell) != len(EDGES) or cell_name(cell) != name:
        raise DomainError(
            f"{name!r} is no cell of NAS-Bench-201. One is {cell_name((1,) * len(EDGES))!r}, with "
            f"ops of {', '.join(OPS)}."
        )
    return cell


def cell_number(cell: Sequence[int]) -> int:
    """Return the cell's number in [0, 15625), whose digits to base five are its ops.

    It is the place of the cell in ``Categorical.support``, not the benchmark's index, which is
    `AccuracyTable.index`.

    Example:
        >>> from gradthrough.bench.nas_tables import cell_number
        >>> cell_number((0, 0, 0, 0, 1, 2))
        7
    """
    return functools.reduce(lambda number, op: len(OPS) * number + op, cell, 0)


def numbered_cell(number: int) -> Cell:
    """Return the cell of a number: the inverse of `cell_number`.

    Raises:
        DomainError: a number out of range.
    """
    if not 0 <= number < CELLS:
        raise DomainError(f"a cell's number is in [0, {CELLS}), but is {number}.")
    places = range(len(EDGES) - 1, -1, -1)
    return tuple(number // len(OPS) ** place % len(OPS) for place in places)


def random_cells(seed: int, n: int) -> list[Cell]:
    """Return n uniformly random cells, the same for the same seed.

    Example:
        >>> from gradthrough.bench.nas_tables import random_cells
        >>> random_cells(0, 3) == random_cells(0, 3) != random_cells(1, 3)
        True
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(OPS), (n, len(EDGES)), generator=generator)
    return [tuple(int(op) for op in row) for row in drawn]


@dataclass(frozen=True, eq=False, repr=False)
class AccuracyTable:
    """Accuracies of all cells, in percent, in the benchmark's order.

    There are no 200-epoch *validation* accuracies: a published protocol that reports those cannot
    be looked up here. Official files have them: see `gradthrough.bench.nats`.

    Args:
        names: of the cells.
        columns: names of the columns, those of ``COLUMNS``.
        accuracies: float64 (15625, columns).
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    accuracies: Tensor

    def __repr__(self) -> str:
        return f"AccuracyTable({len(self.names)} cells, {len(self.columns)} columns)"

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def index(self, cell: Sequence[int]) -> int:
        """Return the benchmark's index of a cell."""
        return self._rows[cell_name(cell)]

    def row(self, cell: Sequence[int]) -> dict[str, float]:
        """Return the accuracies of a cell by column."""
        found = self.accuracies[self.index(cell)]
        return {name: float(x) for name, x in zip(self.columns, found, strict=True)}

    def random_search(
        self, draws: int = 1, by: str = "cifar10_valid_12ep"
    ) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation of what random search finds, exactly, by column.

        It draws cells uniformly, with replacement, and keeps the one that is best in one column; of
        cells that are equal there, the one with the higher index. With one draw it is the mean over
        all cells.

        Args:
            draws: how many cells are compared, >= 1.
            by: the column that they are compared in.

        Raises:
            ConfigError: no such column.
            DomainError: draws < 1.
        """
        if by not in self.columns:
            raise ConfigError(f"there is no column {by!r}. Known: {', '.join(self.columns)}.")
        if draws < 1:
            raise DomainError(f"draws must be at least 1, but is {draws}.")
        order = self.accuracies[:, self.columns.index(by)].argsort(stable=True)
        n = len(order)
        # The best of the draws is among the first r with probability (r / n)^draws.
        below = (torch.arange(n + 1, dtype=torch.float64) / n) ** draws
        weights, ranked = below.diff().unsqueeze(-1), self.accuracies[order]
        mean = (weights * ranked).sum(0)
        sd = (weights * (ranked - mean).square()).sum(0).sqrt()
        numbers = zip(self.columns, mean, sd, strict=True)
        return {name: (float(m), float(s)) for name, m, s in numbers}


def load_table(root: str | os.PathLike[str] | None = None) -> AccuracyTable:
    """Load the table from ``nas-bench-201/`` below a folder.

    Args:
        root: the folder, instead of ``$GRADTHROUGH_DATA``.

    Raises:
        ConfigError: the file is not there. It is published nowhere in this form.
        DomainError: the file is another one.
    """
    folder = os.environ.get("GRADTHROUGH_DATA") if root is None else root
    raw, _ = content(TABLE, Path(folder).expanduser() if folder else None)
    rows = csv.reader(io.StringIO(gzip.decompress(raw).decode()))
    columns = tuple(next(rows)[2:])  # behind the index and the name
    cells = list(rows)
    numbers = [[float(x) for x in cell[2:]] for cell in cells]
    names = tuple(cell[1] for cell in cells)
    return AccuracyTable(names, columns, torch.tensor(numbers, dtype=torch.float64))
