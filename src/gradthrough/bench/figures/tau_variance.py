"""The figure `tau-variance`: what a small temperature costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...auditing.axes import axis_of
from ...estimators.gumbel_softmax import StraightThroughGumbelSoftmax
from ..reporting.charts import Chart, Line, Mark, Panel
from ..reporting.style import COLOURS, Style
from ..seeds import Seeds
from .linear import CLASSES, gradients, spread, uniform_rewards
from .quadrature import binary_moments, forms
from .sheet import Sheet

TAUS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
LOGIT = 0.3
DRAWS, CHUNK = 2_000_000, 200_000
ANCHOR = 0.1  # where the line of 1/tau^2 leaves the exact one
LOOKS = {
    "exact": Style(COLOURS[2], 0),
    "drawn": Style(COLOURS[0], 2),
    "what 1/τ would be": Style(COLOURS[6], 1),
    "what 1/τ² would be": Style(COLOURS[1], 3),
}
Row = Mapping[str, Any]


def tau_variance(seed: int, smoke: bool) -> Sheet:
    """Multiply the variance of STGS by tau, as tau goes to 0.

    Of one sample, f linear: a bit of logit 0.3, and 8 classes of logit 0 with the rewards of the
    figure `variance`. The limits are ``p (1 - p) / 6`` and ``sum_j pi_0 pi_j (r_0 - r_j)^2 / 6``.
    The exponent is that of tau in the exact variance, from the row above to this one.
    """
    draws, taus = (20_000, TAUS[1:8]) if smoke else (DRAWS, TAUS)
    seeds = Seeds(seed)
    p = 1.0 / (1.0 + math.exp(-LOGIT))
    logits = torch.tensor((LOGIT, 0.0), dtype=torch.float64)
    bit = [binary_moments(StraightThroughGumbelSoftmax(t), LOGIT, t)[1] for t in taus]
    rows = _rows("1 bit", taus, bit, p * (1 - p) / 6)
    _draw(rows, logits, torch.tensor((1.0, 0.0), dtype=torch.float64), draws, seeds)
    r = uniform_rewards(seeds, 1)[0]
    flat = torch.zeros_like(r)
    eight = [forms(flat, t).moments(r)[1].item() for t in taus]
    limit = (r[0] - r).square().sum().item() / CLASSES**2 / 6
    more = _rows(f"{CLASSES} classes", taus, eight, limit)
    _draw(more, flat, r, draws, seeds)
    return Sheet((*rows, *more), lambda: _png((*rows, *more)))


def _rows(
    title: str, taus: Sequence[float], exact: Sequence[float], limit: float
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i, (tau, value) in enumerate(zip(taus, exact, strict=True)):
        exponent = None
        if i:
            exponent = math.log(value / exact[i - 1]) / math.log(tau / taus[i - 1])
        row = {"law": title, "tau": tau, "variance": value, "tau x variance": tau * value}
        rows.append(row | {"limit": limit, "exponent": exponent})
    return rows


def _draw(
    rows: Sequence[dict[str, Any]], logits: Tensor, rewards: Tensor, draws: int, seeds: Seeds
) -> None:
    """Add the variance of so many draws to each row, with its 95 % interval."""
    for row in rows:
        purpose = ("tau-variance", row["law"], str(row["tau"]))
        generator = torch.Generator().manual_seed(seeds.of(*purpose))
        one = StraightThroughGumbelSoftmax(row["tau"])
        parts: list[Tensor] = []
        for start in range(0, draws, CHUNK):
            wide = rewards.expand(min(CHUNK, draws - start), -1)
            parts.append(gradients(one, wide, logits=logits, generator=generator))
        value, error = spread(torch.cat(parts))
        ends = {"low": value - 1.96 * error, "high": value + 1.96 * error}
        row.update({"drawn": value, **ends, "draws": draws})


def _png(rows: Sequence[Row]) -> bytes:
    from ..reporting.picture import png

    panels = tuple(_panel(title, rows) for title in dict.fromkeys(row["law"] for row in rows))
    ruler = axis_of("τ", [row["tau"] for row in rows])
    y = "τ × variance of the gradient"
    return png(Chart("", "", "curves", "τ", y, ruler, {}, panels, LOOKS, ()))


def _panel(title: str, rows: Sequence[Row]) -> Panel:
    own = [row for row in rows if row["law"] == title]
    (anchor,) = (row["tau x variance"] for row in own if row["tau"] == ANCHOR)
    marks = {
        "exact": [_mark(row, row["tau x variance"]) for row in own],
        "drawn": [
            _mark(row, *(row["tau"] * row[name] for name in ("drawn", "low", "high")))
            for row in own
        ],
        "what 1/τ would be": [_mark(row, row["limit"]) for row in own],
        "what 1/τ² would be": [
            _mark(row, anchor * ANCHOR / row["tau"]) for row in own if row["tau"] <= ANCHOR
        ],
    }
    log = axis_of(title, [m.y for line in marks.values() for m in line])
    lines = tuple(Line(name, LOOKS[name], tuple(found), ()) for name, found in marks.items())
    return Panel(title, lines, None, log)


def _mark(row: Row, y: float, low: float | None = None, high: float | None = None) -> Mark:
    return Mark(row["tau"], y, y if low is None else max(low, 1e-9), y if high is None else high)
