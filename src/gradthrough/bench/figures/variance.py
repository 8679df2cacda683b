"""The figure `variance`: of the gradient of E r^T z, over the number of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...auditing.axes import axis_of
from ...estimators import AbstractEstimator
from ...estimators.gumbel_softmax import GumbelSoftmax, StraightThroughGumbelSoftmax
from ...estimators.leave_one_out import RLOO
from ...estimators.reinmax import ReinMax
from ...estimators.score_function import Reinforce
from ..reporting.charts import Chart, Line, Mark, Panel
from ..reporting.style import COLOURS, Style
from ..seeds import Seeds
from .linear import exact, gradients, slope, spread, uniform_rewards
from .sheet import Sheet, numbers

TRIALS = 200
SAMPLES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
OFFSETS = {"U(0, 1) − 1/2": -0.5, "U(0, 1)": 0.0, "U(0, 1) + 1": 1.0, "U(0, 1) + 3": 3.0}
REWARDS = 10_000  # drawn anew, for the spread of the ratios
REFERENCE = "GS, τ = 0.5"  # whose variance the ratios are to
LOOKS = {
    "REINFORCE": Style(COLOURS[6], 0),
    "exact baseline": Style(COLOURS[1], 0),
    "RLOO": Style(COLOURS[5], 1),
    REFERENCE: Style(COLOURS[4], 0),
    "STGS, τ = 0.5": Style(COLOURS[2], 2),
    "ReinMax": Style(COLOURS[0], 3),
}
Row = Mapping[str, Any]


def variance(seed: int, smoke: bool) -> Sheet:
    """Measure the variance of the gradient in logit 0 of ``E r^T z``, 8 classes, logits 0.

    r has 8 entries ~ U(0, 1), the same ones in every panel, plus an offset. Rows by `statistic`:
    the variance of 200 trials with its 95 % interval; the slope of its logarithm over that of the
    number of samples; the mean of the trials with the most samples; there, the ratio of variances
    to that of Gumbel-Softmax, all of them beside what is exact; and the median of the exact ratio
    of one sample over 10,000 other r, with its 5 % and 95 % quantiles.
    """
    trials, counts = (50, SAMPLES[:6]) if smoke else (TRIALS, SAMPLES)
    seeds = Seeds(seed)
    r = uniform_rewards(seeds, 1)[0]
    others = uniform_rewards(seeds, 100 if smoke else REWARDS)
    rows: list[Row] = []
    for title, offset in OFFSETS.items():
        found: list[Row] = []
        for name, one in methods(r + offset).items():
            found += _measured(title, name, one, r + offset, trials, counts, seeds)
        rows += (*found, *_ratios(found), *_any_reward(title, others + offset))
    return Sheet(tuple(rows), lambda: _png(rows))


def methods(rewards: Tensor) -> dict[str, AbstractEstimator]:
    """Return the estimators, by what they are called in the figure, for rewards (..., 8)."""
    made = (
        Reinforce(),
        Reinforce(baseline=rewards.mean(-1)),
        RLOO(),
        GumbelSoftmax(0.5),
        StraightThroughGumbelSoftmax(0.5),
        ReinMax(),
    )
    return dict(zip(LOOKS, made, strict=True))


def _row(
    reward: str, estimator: str, statistic: str, samples: int | None, *numbers: float | None
) -> Row:
    row: dict[str, Any] = {"reward": reward, "estimator": estimator, "statistic": statistic}
    names = ("value", "low", "high", "exact")
    return row | {"samples": samples} | dict(zip(names, numbers, strict=True))


def _measured(
    title: str,
    name: str,
    estimator: AbstractEstimator,
    r: Tensor,
    trials: int,
    counts: Sequence[int],
    seeds: Seeds,
) -> list[Row]:
    rows: list[Row] = []
    known, found = exact(estimator, r), r
    for n in counts:
        if n < estimator.traits.min_samples:
            continue
        generator = torch.Generator().manual_seed(seeds.of("variance", title, name, n))
        found = gradients(estimator, r.expand(trials, -1), samples=n, generator=generator)
        drawn = _interval(*spread(found))
        rows.append(_row(title, name, "variance", n, *drawn, known.variance(n).item()))
    points = [[(row["samples"], row[what]) for row in rows] for what in ("value", "exact")]
    slopes = [slope(one) for one in points]
    rows.append(_row(title, name, "slope", None, slopes[0], None, None, slopes[1]))
    error = found.std().item() / math.sqrt(trials)
    drawn = _interval(found.mean().item(), error)
    return [*rows, _row(title, name, "mean", counts[-1], *drawn, known.mean.item())]


def _interval(value: float, error: float) -> tuple[float, float, float]:
    return value, value - 1.96 * error, value + 1.96 * error


def _ratios(rows: Sequence[Row]) -> list[Row]:
    """Return the ratios of the variances at the most samples."""
    last = {row["estimator"]: row for row in rows if row["statistic"] == "variance"}
    below = last[REFERENCE]
    found: list[Row] = []
    for name, row in last.items():
        drawn, want = (row[what] / below[what] for what in ("value", "exact"))
        found.append(_row(row["reward"], name, "ratio", row["samples"], drawn, None, None, want))
    return found


def _any_reward(title: str, r: Tensor) -> list[Row]:
    """Return the median of the exact ratios of one sample over many r."""
    made = methods(r.unsqueeze(-2))  # a baseline for each r, not for each draw
    below = exact(made[REFERENCE], r).one
    found: list[Row] = []
    for name, one in made.items():
        # RLOO with many samples is the exact mean; the other one with Gumbels, the reference.
        if one.traits.min_samples > 1 or one.traits.noise == "class":
            continue
        ratio = exact(one, r).one / below
        low, middle, high = numbers(ratio.quantile(ratio.new_tensor((0.05, 0.5, 0.95))))
        found.append(_row(title, name, "ratio, any r", 1, middle, low, high, None))
    return found


def _png(rows: Sequence[Row]) -> bytes:
    from ..reporting.picture import png

    own = [row for row in rows if row["statistic"] == "variance"]
    log = axis_of("variance", [x for row in own for x in (row["value"], row["high"])])
    panels = tuple(
        Panel(f"r ~ {title}", tuple(_line(own, title, name) for name in LOOKS), None, log)
        for title in OFFSETS
    )
    ruler = axis_of("samples", [float(row["samples"]) for row in own])
    y = "variance of the gradient"
    return png(Chart("", "", "curves", "Monte Carlo samples", y, ruler, {}, panels, LOOKS, ()))


def _line(rows: Sequence[Row], title: str, name: str) -> Line:
    found = [row for row in rows if (row["reward"], row["estimator"]) == (title, name)]
    marks = [Mark(float(x["samples"]), x["value"], _above(x["low"]), x["high"]) for x in found]
    return Line(name, LOOKS[name], tuple(marks), ())


def _above(x: float) -> float:
    return max(x, 1e-9)  # the axis is logarithmic
