"""The command `gradthrough bench figure`: draws a figure from fresh numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from .bench.figures import FIGURES


def bench_figure(
    name: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(help=f"of the figure: {', '.join(FIGURES)}")
    ],
    *,
    out: Path = Path("runs/figures"),
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Draw a figure of the tutorial from fresh numbers: <name>.png, and <name>.csv beside it.

    Each row of the numbers says the commit, the machine and the seed.

    Args:
        name: one of the table.
        out: folder of both.
        seed: of everything random.
        smoke: few draws, to see whether it works.
    """
    from .bench.figures.make import make

    for path in make(name, out=out, seed=seed, smoke=smoke):
        print(path)
