"""Draws a figure by its name, and writes it with its numbers beside it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import torch

from ..._errors import ConfigError
from .. import records
from ..environment import environment
from . import FIGURES
from .sheet import Sheet, table


def figure(name: str) -> Callable[[int, bool], Sheet]:
    """Return what makes a figure from a seed, and for a smoke test if the second word is True.

    Raises:
        ConfigError: unknown name; the nearest ones are named.

    Example:
        >>> from gradthrough.bench.figures.make import figure
        >>> len(figure("gumbel-max")(0, True).rows)
        8
    """
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ConfigError(f"unknown figure {name!r}.{hint} Known: {', '.join(FIGURES)}.")
    return FIGURES[name]


def make(name: str, *, out: Path, seed: int = 0, smoke: bool = False) -> tuple[Path, Path]:
    """Write ``<out>/<name>.png`` and ``<out>/<name>.csv``, and return where they are.

    Every row of the numbers has the environment: commit, machine, versions and seed.

    Args:
        name: one of ``FIGURES``.
        out: folder.
        seed: of everything random.
        smoke: with so few draws that it takes seconds, to see whether it works.

    Raises:
        ConfigError: unknown name, or the files cannot be written.
    """
    sheet = figure(name)(seed, smoke)
    where = environment(torch.device("cpu")) | {"seed": seed, "smoke": smoke}
    picture, numbers = out / f"{name}.png", out / f"{name}.csv"
    try:
        records.replace(numbers, table(sheet.rows, where))
        records.replace(picture, sheet.draw())
    except OSError as error:
        raise ConfigError(f"the figure cannot be written: {error}.") from error
    return picture, numbers
