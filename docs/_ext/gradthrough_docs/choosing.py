"""What the page on choosing says of the estimators, read off their traits and records."""

import csv
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import gradthrough as gt
from gradthrough.cli import trait_cells

from .api import anchor

ROOT = Path(__file__).parents[3]
COSTS = ROOT / "benchmarks" / "results" / "costs.csv"
Kind = type[gt.AbstractEstimator]


def _values_alone(kind: Kind) -> bool:
    return not kind.traits.pathwise and not kind.traits.needs_point_gradients


def _at_corners(kind: Kind) -> bool:
    return not _values_alone(kind) and not kind.traits.needs_relaxed_points


def _exact_law(kind: Kind) -> bool:
    return not kind.traits.approximate and not kind.traits.relaxed


def _learns(kind: Kind) -> bool:
    return bool(kind.traits.scalars) or kind.learned is not gt.AbstractEstimator.learned


PROPERTIES: dict[str, Callable[[Kind], bool]] = {
    "need values of f alone": _values_alone,
    "need the gradient of f at hard samples": _at_corners,
    "need f at soft points": lambda k: k.traits.needs_relaxed_points,
    "are unbiased": lambda k: k.traits.unbiased,
    "are exact for quadratic f": lambda k: k.traits.exact_for == "quadratic",
    "are exact for affine f": lambda k: k.traits.exact_for == "affine",
    "are biased for every kind of f": lambda k: k.traits.exact_for == "none",
    "sample another law": lambda k: not _exact_law(k),
    "serve Bernoulli variables and no categorical ones": lambda k: (
        "bernoulli" in k.traits.families and "categorical" not in k.traits.families
    ),
    "serve continuous laws": lambda k: "continuous" in k.traits.families,
    "serve counts": lambda k: "count" in k.traits.families,
    "serve a rollout": lambda k: k.traits.many_draws,
    "take two samples or more": lambda k: k.traits.min_samples > 1,
    "can be differentiated twice": lambda k: k.traits.pathwise or k.traits.noise == "none",
    "learn": _learns,
}


def lists() -> dict[str, Callable[[], str]]:
    """Return what makes the list of estimators with each property."""
    return {name: partial(listed, name) for name in PROPERTIES}


def having(name: str) -> list[str]:
    """Return the keys of the estimators with a property."""
    return [key for key, kind in gt.ESTIMATORS.items() if PROPERTIES[name](kind)]


def listed(name: str) -> str:
    """Return a line of links to the estimators with a property."""
    return ", ".join(map(link, having(name))) or "None."


def link(key: str) -> str:
    """Return a link to an estimator's documentation."""
    return f"[`{key}`](api/estimators.md#{anchor(gt.ESTIMATORS[key])})"


def paper(kind: Kind) -> str:
    """Return where an estimator comes from, linked if it is on arXiv."""
    return re.sub(r"arXiv:(\S+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", kind.traits.reference)


# (variables of a row, classes)
SHAPES = ((1, 2), (1, 10), (1, 1000), (10, 2), (10, 10), (200, 2))


def evaluations() -> str:
    """Return how often f is evaluated for a row, by the shape of its variables."""
    counts: dict[tuple[str, ...], list[str]] = {}
    for key in gt.ESTIMATORS:
        counts.setdefault(tuple(_count(key, *shape) for shape in SHAPES), []).append(key)
    heads = [f"{m:,}×{c:,}" for m, c in SHAPES]
    rows = [("estimators", *heads), ("---", *("---:" for _ in SHAPES))]
    rows += [(", ".join(map(link, keys)), *row) for row, keys in counts.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _count(key: str, variables: int, classes: int) -> str:
    """Return the evaluations of one estimate with as few samples as there can be, - for none."""
    one = gt.estimator(key)
    samples = one.traits.min_samples
    if "categorical" in one.traits.families:
        q: gt.Distribution = gt.Categorical(torch.zeros(1, variables, classes), event_dims=1)
    elif classes == 2 and "bernoulli" in one.traits.families:
        q = gt.Bernoulli(torch.zeros(1, variables), event_dims=1)
    else:
        return "-"
    try:
        rows = q.expand(samples)
        one.draw(rows, one.noise(rows, generator=torch.Generator().manual_seed(0)))
    except gt.UnsupportedError:
        return "-"
    return f"{one.evaluations(q, samples):,}"


def table() -> str:
    """Return every estimator with what it promises and what it was measured to cost."""
    with COSTS.open(newline="", encoding="utf-8") as file:
        costs = {row["key"]: row for row in csv.DictReader(file)}
    head = ("key", "unbiased", "exact for", "needs", "samples", "time", "MiB", "paper")
    rows = [head, ("---",) * 5 + ("---:",) * 2 + ("---",)]
    for key, kind in gt.ESTIMATORS.items():
        cost = costs.get(key)
        measured = ("-", "-")
        if cost is not None:
            ratio, mib = float(cost["ratio_to_reinforce"]), float(cost["peak_mib"])
            measured = (f"{ratio:.2f}", f"{mib:.2f}")
        rows.append((link(key), *trait_cells(kind), *measured, paper(kind)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
