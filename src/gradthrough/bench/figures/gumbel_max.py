"""The figure `gumbel-max`: how often each class has the largest perturbed logit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...estimators.gumbel_softmax import straight_through_gumbel_softmax
from ..reporting.charts import Chart, Line, Mark, Panel
from ..reporting.style import COLOURS, Style
from ..seeds import Seeds
from .sheet import Sheet, numbers

DRAWS = 8_000
CLASSES = 8
NORMAL = 1.96  # standard errors on either side hold 95 %


def gumbel_max(seed: int, smoke: bool) -> Sheet:
    """Count 8,000 draws ``argmax(theta + G)``, beside ``softmax(theta)``; theta ~ N(0, 1).

    `low` and `high` are 1.96 standard errors around the frequency.
    """
    draws = 500 if smoke else DRAWS
    seeds = Seeds(seed)
    theta = torch.randn(CLASSES, generator=_generator(seeds, "logits"), dtype=torch.float64)
    rows = theta.expand(draws, CLASSES)
    z = straight_through_gumbel_softmax(rows, generator=_generator(seeds, "draws"))
    columns = zip(numbers(theta.softmax(-1)), numbers(z.mean(0)), strict=True)
    found = [_row(k, p, frequency, draws) for k, (p, frequency) in enumerate(columns)]
    return Sheet(tuple(found), lambda: _png(found, draws))


def _generator(seeds: Seeds, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(seeds.of("gumbel-max", purpose))


def _row(kind: int, probability: float, frequency: float, draws: int) -> Mapping[str, Any]:
    error = math.sqrt(frequency * (1 - frequency) / draws)
    return {
        "class": kind,
        "draws": draws,
        "softmax": probability,
        "frequency": frequency,
        "low": frequency - NORMAL * error,
        "high": frequency + NORMAL * error,
    }


def _png(rows: Sequence[Mapping[str, Any]], draws: int) -> bytes:
    from ..reporting.picture import png

    exact = [Mark(str(row["class"]), *[row["softmax"]] * 3) for row in rows]
    drawn = [Mark(str(row["class"]), row["frequency"], row["low"], row["high"]) for row in rows]
    counted = f"{draws:,} draws of argmax(θ + G), 95 %"
    looks = {"softmax(θ)": Style(COLOURS[6], 0), counted: Style(COLOURS[5], 0)}
    lines = [
        Line(name, style, tuple(marks), ())
        for (name, style), marks in zip(looks.items(), (exact, drawn), strict=True)
    ]
    groups = {str(row["class"]): str(row["class"]) for row in rows}
    panels = (Panel("", tuple(lines)),)
    return png(Chart("", "", "bars", "class", "probability", None, groups, panels, looks, ()))
