"""The gallery: pictures of the repository with what made them; those not there are left out."""

import tomllib
from pathlib import Path
from typing import NamedTuple

from gradthrough.bench.reporting.assembly import slug

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
REPORT = "gradthrough bench report experiments --markdown docs/results.md"
RESULTS = DOCS / "results.md"


class Picture(NamedTuple):
    """One picture."""

    path: str  # from docs/
    title: str
    line: str  # what it shows, and of which records
    command: str  # what makes it


PICTURES = (
    Picture(
        "demo/report.png",
        "Seven estimators on one VAE",
        "Training curves, and the cosine to the exact gradient, of the demo: one seed on digits. "
        "Numbers: [report.csv](demo/report.csv).",
        "gradthrough demo",
    ),
    Picture(
        "kernels-amd-epyc.png",
        "What a draw and its gradient cost",
        "Time of both ways against a plain softmax, shape by shape: [What the kernels "
        "cost](kernels.md). Rows: [kernels.csv](../benchmarks/results/kernels.csv).",
        "make bench",
    ),
    Picture(
        "figures/how-quadrature.png",
        "Euler and Heun",
        "How straight-through and ReinMax see the difference between two corners: "
        "[How it works](how-it-works.md).",
        "python scripts/draw_how_it_works.py",
    ),
    Picture(
        "figures/how-mean-gradient.png",
        "What the rules do to a gradient",
        "Mean gradients of one bit, by its probability: [How it works](how-it-works.md).",
        "python scripts/draw_how_it_works.py",
    ),
    Picture(
        "figures/tutorial/gumbel.png",
        "Gumbel noise",
        "Density, inverse cdf, and 20,000 draws: [For readers of a tutorial](tutorial.md). "
        "Numbers: [gumbel.csv](figures/tutorial/gumbel.csv).",
        "gradthrough bench figure gumbel --out docs/figures/tutorial",
    ),
    Picture(
        "figures/tutorial/gumbel-max.png",
        "The Gumbel-max trick",
        "How often each class is drawn, beside softmax: [For readers of a tutorial](tutorial.md). "
        "Numbers: [gumbel-max.csv](figures/tutorial/gumbel-max.csv).",
        "gradthrough bench figure gumbel-max --out docs/figures/tutorial",
    ),
    Picture(
        "figures/tutorial/temperature.png",
        "Gumbel-Softmax by temperature",
        "The same draws at four temperatures: [For readers of a tutorial](tutorial.md). "
        "Numbers: [temperature.csv](figures/tutorial/temperature.csv).",
        "gradthrough bench figure temperature --out docs/figures/tutorial",
    ),
    Picture(
        "figures/tutorial/variance.png",
        "Variance over samples",
        "For rewards with four offsets: [For readers of a tutorial](tutorial.md). "
        "Numbers: [variance.csv](figures/tutorial/variance.csv).",
        "gradthrough bench figure variance --out docs/figures/tutorial",
    ),
    Picture(
        "figures/tutorial/tau-variance.png",
        "Variance over temperature",
        "Of straight-through Gumbel-Softmax, times τ: [For readers of a tutorial](tutorial.md). "
        "Numbers: [tau-variance.csv](figures/tutorial/tau-variance.csv).",
        "gradthrough bench figure tau-variance --out docs/figures/tutorial",
    ),
)


def gallery() -> str:
    """Return the Markdown of all pictures that are there."""
    found = [one for one in (*PICTURES, *experiments()) if (DOCS / one.path).is_file()]
    return "\n\n".join(
        f"## {one.title}\n\n{one.line}\n\n![{one.title}]({one.path})\n\nMade by `{one.command}`."
        for one in found
    )


def experiments() -> list[Picture]:
    """Return the figures that the report draws of the experiments, in the order of their files."""
    out: dict[str, Picture] = {}
    for path in sorted((ROOT / "experiments").glob("*.toml")):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = f"[{path.name}](../experiments/{path.name})"
        tables = "; tables and records: [Results](results.md)" if RESULTS.is_file() else ""
        line = f"After {data['paper']}. Settings: {settings}{tables}."
        for i, figure in enumerate(data.get("figures", ())):
            name = slug(f"{path.stem}-{figure['title']}")
            name = name if name not in out else f"{name}-{i}"
            title = f"{data['title']}: {figure['title']}"
            out[name] = Picture(f"figures/{name}.png", title, line, REPORT)
    return list(out.values())
