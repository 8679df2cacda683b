"""The figure `temperature`: samples of Gumbel-Softmax as tau falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._random import uniforms
from ...estimators.gumbel_softmax import gumbel_softmax
from ..reporting.charts import Chart, Line, Mark, Panel
from ..reporting.style import COLOURS, Style
from ..seeds import Seeds
from .sheet import Sheet, numbers

TAUS = (5.0, 1.0, 0.5, 0.1)
CLASSES = 6
DRAWS = 20_000
SHOWN = 3
NEARLY = 0.95


def temperature(seed: int, smoke: bool) -> Sheet:
    """Relax the same draws at tau = 5, 1, 0.5 and 0.1; theta ~ N(0, 1).

    Beside the first samples stand the mean of all and ``softmax(theta)``, which the mean is at
    no tau above 0. Rows "nearly one-hot": the share of samples whose largest entry is above 0.95;
    rows "distance": half the sum of the differences between mean and softmax.
    """
    seeds = Seeds(seed)
    theta = torch.randn(
        CLASSES,
        generator=torch.Generator().manual_seed(seeds.of("temperature", "logits")),
        dtype=torch.float64,
    )
    generator = torch.Generator().manual_seed(seeds.of("temperature", "draws"))
    draws = 500 if smoke else DRAWS
    noise = uniforms((draws, CLASSES), theta.device, generator)
    rows = tuple(row for tau in TAUS for row in _rows(theta, tau, noise))
    return Sheet(rows, lambda: _png(rows, draws))


def _rows(theta: Tensor, tau: float, noise: Tensor) -> list[Mapping[str, Any]]:
    samples = gumbel_softmax(theta.expand(noise.shape), tau, noise=noise)
    pi, mean = theta.softmax(-1), samples.mean(0)
    shown = {f"sample {i + 1}": samples[i] for i in range(SHOWN)} | {"mean": mean, "softmax": pi}
    rows: list[Mapping[str, Any]] = [
        {"tau": tau, "what": what, "class": k, "value": value}
        for what, values in shown.items()
        for k, value in enumerate(numbers(values))
    ]
    nearly = (samples.amax(-1) > NEARLY).double().mean().item()
    distance = (mean - pi).abs().sum().item() / 2
    for what, value in (("nearly one-hot", nearly), ("distance", distance)):
        rows.append({"tau": tau, "what": what, "class": None, "value": value})
    return rows


def _png(rows: Sequence[Mapping[str, Any]], draws: int) -> bytes:
    from ..reporting.picture import png

    names = {f"sample {i + 1}": f"sample {i + 1}" for i in range(SHOWN)}
    names |= {"mean": f"mean of {draws:,}", "softmax": "softmax(θ)"}
    colours = (5, 4, 3, 0, 6)
    looks = {what: Style(COLOURS[i], 0) for what, i in zip(names, colours, strict=True)}
    panels = tuple(
        Panel(f"τ = {tau:g}", tuple(_line(rows, tau, w, names[w], looks[w]) for w in names), (0, 1))
        for tau in TAUS
    )
    legend = {names[what]: style for what, style in looks.items()}
    groups = {str(k): str(k) for k in range(CLASSES)}
    return png(Chart("", "", "bars", "class", "entry", None, groups, panels, legend, ()))


def _line(
    rows: Sequence[Mapping[str, Any]], tau: float, what: str, name: str, style: Style
) -> Line:
    found = [row for row in rows if (row["tau"], row["what"]) == (tau, what)]
    marks = tuple(Mark(str(row["class"]), *[row["value"]] * 3) for row in found)
    return Line(name, style, marks, ())
