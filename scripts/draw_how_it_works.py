"""Draw the pictures of docs/how-it-works.md; every number in them is computed with the library.

Usage: python scripts/draw_how_it_works.py [FOLDER]
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gradthrough as gt

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
from gradthrough_docs.one_bit import TARGET, Segment, exact_gradient, f, moments, segment  # noqa: E402

OUT = DOCS / "figures"
# Okabe and Ito's, told apart by the colour-blind too; each line also has a style of its own.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
# On a screen of 400 pixels the letters are still 12 pixels high.
WIDTH, LETTERS = 4.6, 10.0


def _axes(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)


def _along(ax: Axes, y: str) -> None:
    """Finish an axis that runs from the corner drawn to the other one."""
    ax.set(xlim=(-0.04, 1.0), xticks=[0, 1], xticklabels=["D", "the other\ncorner"])
    _axes(ax, "", y)


def _values(ax: Axes, s: Segment) -> None:
    t = torch.linspace(0.0, 1.0, 101)
    ax.plot(t, f(t), color=GREY, lw=2)
    for guess, color, style in ((s.euler, ORANGE, "--"), (s.heun, BLUE, "-.")):
        end = s.drawn + guess
        ax.plot([0, 1], [s.drawn, end], color=color, ls=style, lw=2)
        ax.plot([1], [end], "o", ms=9, mfc="none", mec=color, mew=2, clip_on=False)
    ax.plot([0, 1], [s.drawn, s.other], "o", color="black", ms=5, clip_on=False)
    ax.text(0.54, -0.04, "f", color=GREY)
    ax.text(0.02, -0.42, "Euler: along the\nslope at D", color=ORANGE)
    ax.text(0.03, 0.34, "Heun: along the mean\nof both slopes", color=BLUE)
    ax.text(1.03, s.other, f"{s.exact:+.1f}, which\nis exact", color=BLUE, va="center")
    words = f"{s.euler:+.1f}".replace("-", "−")
    ax.text(1.03, s.drawn + s.euler, words, color=ORANGE, va="center")
    ax.set(ylim=(-0.62, 0.62), yticks=[-0.5, 0, 0.5])
    _along(ax, "value of f")


def _slopes(ax: Axes, s: Segment) -> None:
    ends = [s.slope_drawn, s.slope_other]
    ax.fill_between([0, 1], ends, color=BLUE, alpha=0.25, lw=0)
    ax.fill_between([0, 1], [ends[0]] * 2, fc="none", ec=ORANGE, hatch="///", lw=0, alpha=0.8)
    ax.plot([0, 1], ends, color=GREY, lw=2)
    ax.plot([0, 1], [ends[0]] * 2, color=ORANGE, ls="--", lw=2)
    ax.axhline(0.0, color="black", lw=0.8)
    ax.plot([0, 1], ends, "o", color="black", ms=5, clip_on=False)
    ax.text(0.45, 0.62, "slope of f", color=GREY, ha="right")
    ax.text(1.03, 0.7, "Heun: the\ntrapezoid", color=BLUE, va="center")
    ax.text(1.03, -0.4, "Euler: the\nrectangle", color=ORANGE, va="center")
    ax.set(ylim=(-0.9, 1.6), yticks=[-0.5, 0, 0.5, 1, 1.5])
    _along(ax, "slope of f")


def quadrature() -> Figure:
    """Return the picture of one difference, as two rules see it."""
    figure = Figure(figsize=(WIDTH, 5.8), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    s = segment()
    _values(top, s)
    _slopes(bottom, s)
    return figure


def _lines(ps: list[float]) -> Iterator[tuple[list[float], str, str, str]]:
    """Give the lines of the second picture: numbers, words, colour and style."""
    yield [exact_gradient(p) for p in ps], "exact", "black", "-"
    for words, estimator, color, style in (
        ("straight-through", gt.StraightThrough(), ORANGE, "--"),
        ("STGS, τ = 1", gt.StraightThroughGumbelSoftmax(1.0), GREEN, ":"),
        ("STGS, τ = 0.1", gt.StraightThroughGumbelSoftmax(0.1), GREEN, "-."),
    ):
        yield [moments(estimator, p).mean for p in ps], words, color, style


def mean_gradients() -> Figure:
    """Return the picture of mean gradients, by the probability of the bit."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    ax = figure.subplots()
    ps = [i / 100 for i in range(1, 100)]
    for ys, words, color, style in _lines(ps):
        ax.plot(ps, ys, color=color, ls=style, lw=2, label=words)
    some = ps[4::10]
    heun = [moments(gt.ReinMax(), p).mean for p in some]
    ax.plot(some, heun, "o", ms=7, mfc="none", mec=BLUE, mew=2, label="ReinMax")
    ax.axhline(0.0, color="black", lw=0.8)
    ax.plot([TARGET], [0], "X", color=ORANGE, ms=9)
    ax.annotate(
        "straight-through\nrests here", (TARGET, 0), (0.42, -0.075), color=ORANGE,
        arrowprops={"arrowstyle": "-", "color": ORANGE},
    )  # fmt: skip
    ax.legend(frameon=False, loc="upper left", fontsize=LETTERS - 1)
    ax.set(xlim=(0, 1), ylim=(-0.12, 0.22))
    _axes(ax, "probability that the bit is 1", "mean gradient in its logit")
    return figure


def main(out: Path) -> None:
    """Write both pictures."""
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"font.size": LETTERS, "hatch.linewidth": 0.8}):
        for name, draw in (("quadrature", quadrature), ("mean-gradient", mean_gradients)):
            # Without its version, so that the same pictures are the same bytes.
            draw().savefig(out / f"how-{name}.png", dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
