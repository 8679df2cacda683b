"""The demo's report: a table, one HTML page that works offline, and one picture."""

from __future__ import annotations

import base64
import csv
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import matplotlib.image
import plotly.graph_objects as go
from matplotlib.figure import Figure
from rich.table import Column, Table
from torch import Tensor

from . import records
from .seeds import Seeds
from .tasks.vae import VAE

if TYPE_CHECKING:
    from .demo import DemoRow

HEADER = (
    "estimator",
    "unbiased",
    "train -ELBO",
    "test -ELBO",
    "cosine, start",
    "cosine, end",
    "ms a step",
)
CAPTIONS = {
    "reconstructions": "test images above, reconstructions below",
    "samples": "samples of the prior",
}
_COLOURS = ("#000000", "#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#009e73")

_NOTES = (
    "-ELBO in nats, lower is better: train is the mean over the last epoch as the weights moved, "
    "with the estimator's own samples (exact for Enumerate); test draws one exact sample for each "
    "image.",
    "Cosine: the estimator's mean gradient over many draws against the exact one, of the "
    "reconstruction term in the logits of one batch of 100 images, at the fresh model and at the "
    "one that the exact gradient trained, the same for all. An unbiased estimator stays below 1 "
    "only by the noise of the draws.",
    "Milliseconds: median of training steps taken in turn in one process. Enumerate evaluates the "
    "decoder at every point of the latent space, RLOO at 2, the others at 1.",
    "One seed: differences of a few tenths of a nat mean nothing.",
)


def cells(row: DemoRow) -> tuple[str, ...]:
    """Return a row of the table as text."""
    traits = row.result.config.build_estimator().traits
    last = row.result.last

    def number(split: str) -> str:
        value = last(split, "neg_elbo")
        return row.result.status if value is None else f"{value:.2f}"

    return (
        row.label,
        "yes" if traits.unbiased else "no",
        number("train"),
        number("test"),
        f"{row.cosine_start:.3f}",
        f"{row.cosine_end:.3f}",
        f"{row.milliseconds:.2f}",
    )


def table(rows: list[DemoRow], title: str) -> Table:
    """Return the table for a terminal."""
    first = Column(HEADER[0], no_wrap=True)
    out = Table(first, *HEADER[1:], title=title, title_justify="left", box=None)
    for column in out.columns[1:]:
        column.justify = "right"
    for row in rows:
        out.add_row(*cells(row))
    return out


def title_of(task: VAE) -> str:
    """Return what was done, in a line."""
    return (
        f"VAE on {task.dataset}, {task.latents} latents of {task.classes} classes: one model, one "
        "budget, seven gradients"
    )


def write(rows: list[DemoRow], task: VAE, out: Path) -> None:
    """Write ``report.html``, ``report.png`` and ``report.csv``."""
    pictures = {
        row.label: task.pictures(row.result.model, Seeds(row.result.config.seed))
        for row in rows
        if row.result.model is not None
    }
    records.replace(out / "report.html", _page(rows, task, pictures).encode())
    records.replace(out / "report.png", _picture(rows, task, pictures))
    lines = [("key", *HEADER), *((row.result.config.key, *cells(row)) for row in rows)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    records.replace(out / "report.csv", text.getvalue().encode())


def _range(rows: list[DemoRow]) -> tuple[float, float]:
    """Return the -ELBO where the curves differ; the first steps fall from far above."""
    best = min(min(row.curve[1]) for row in rows if row.curve[1])
    worst = max(row.curve[1][-1] for row in rows if row.curve[1])
    return best - 0.1 * (worst - best), worst + 1.5 * (worst - best)


def _png(picture: Tensor, scale: int = 5) -> str:
    buffer = io.BytesIO()
    big = picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    matplotlib.image.imsave(buffer, big.numpy(), cmap="gray_r", vmin=0, vmax=1, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _page(rows: list[DemoRow], task: VAE, pictures: dict[str, dict[str, Tensor]]) -> str:
    figure = go.Figure()
    for row, colour in zip(rows, _COLOURS, strict=False):
        steps, values = row.curve
        figure.add_scatter(x=steps, y=values, name=row.label, line={"color": colour, "width": 2})
    figure.update_layout(
        template="plotly_white",
        yaxis_range=_range(rows),
        xaxis_title="training step",
        yaxis_title="train -ELBO (nats)",
        hovermode="x unified",
        margin={"t": 20},
        height=480,
    )
    curves: str = figure.to_html(full_html=False, include_plotlyjs=True)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in cells(row)) + "</tr>"
        for row in rows
    )
    images = "".join(_figures(label, named) for label, named in pictures.items())
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _NOTES)
    title = html.escape(title_of(task))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>gradthrough demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
figure {{ margin: 0 0 1.2rem; }}
img {{ max-width: 100%; image-rendering: pixelated; display: block; }}
.pair {{ display: grid; grid-template-columns: 1fr 2fr; gap: 1rem; align-items: start; }}
li {{ margin: .3rem 0; }} figcaption {{ color: #555; font-size: .9rem; }}
</style></head><body>
<h1>{title}</h1>
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
<ul>{notes}</ul>
<h2>Training curves</h2>{curves}
<h2>Pictures</h2>
{images}
</body></html>
"""


def _figures(label: str, named: dict[str, Tensor]) -> str:
    parts = "".join(
        f'<figure><img alt="{html.escape(label)}: {name}" '
        f'src="data:image/png;base64,{_png(picture)}">'
        f"<figcaption>{CAPTIONS[name]}</figcaption></figure>"
        for name, picture in named.items()
    )
    return f"<h3>{html.escape(label)}</h3>{parts}"


def _picture(rows: list[DemoRow], task: VAE, pictures: dict[str, dict[str, Tensor]]) -> bytes:
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        upper, lower = cast("tuple[Any, Any]", figure.subfigures(2, 1, height_ratios=(3, 1)))
        curves, bars = upper.subplots(1, 2, width_ratios=(3, 2))
        for row, colour in zip(rows, _COLOURS, strict=False):
            curves.plot(*row.curve, label=row.label, color=colour, linewidth=1.4)
        curves.set_ylim(*_range(rows))
        curves.set_xlabel("training step")
        curves.set_ylabel("train -ELBO (nats)")
        curves.legend(frameon=False, fontsize=9)
        places = range(len(rows))[::-1]
        bars.barh(places, [row.cosine_end for row in rows], color=_COLOURS[: len(rows)])
        bars.plot([row.cosine_start for row in rows], places, "o", color="white", mec="black")
        bars.set_yticks(places, [row.label for row in rows], fontsize=9)
        bars.set_xlabel("cosine with the exact gradient\nbar: trained model, circle: fresh model")
        label, named = next(reversed(pictures.items()))
        for axes, (name, picture) in zip(lower.subplots(1, 2), named.items(), strict=True):
            axes.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1, aspect="equal")
            axes.set_axis_off()
            axes.set_title(f"{label}: {CAPTIONS[name]}", fontsize=9)
        figure.suptitle(title_of(task), x=0.01, ha="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
