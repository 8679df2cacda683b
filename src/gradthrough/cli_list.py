"""The command line's list: every estimator with its traits and options."""

from __future__ import annotations

import dataclasses

from .estimators import ESTIMATORS, AbstractEstimator, Traits


def list_estimators(*, markdown: bool = False) -> None:
    """List the estimators with their traits and options.

    Args:
        markdown: print the table of the README.
    """
    if markdown:
        print(markdown_table())
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("key", "unbiased", "exact for", "needs", "samples", "options", box=None)
    table.columns[0].min_width = max(map(len, ESTIMATORS))  # keys are typed: never cut them
    wide = console.width >= 120
    if wide:
        table.add_column("paper")
    for key, kind in ESTIMATORS.items():
        cells = [key, *trait_cells(kind), ", ".join(option_names(kind)) or "-"]
        table.add_row(*cells, *((kind.traits.reference,) if wide else ()))
    console.print(table)


def markdown_table() -> str:
    """Return the table of the README, made from the traits."""
    head = ("key", "class", "unbiased", "exact for", "needs", "samples", "options", "paper")
    rows = [head, ("---",) * len(head)]
    for key, kind in ESTIMATORS.items():
        options = ", ".join(f"`{name}`" for name in option_names(kind)) or "-"
        cells = (f"`{key}`", f"`{kind.__name__}`", *trait_cells(kind), options)
        rows.append((*cells, kind.traits.reference))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def trait_cells(kind: type[AbstractEstimator]) -> tuple[str, str, str, str]:
    """Return an estimator's promises as text: unbiased, exact for, needs, samples."""
    traits = kind.traits
    return (
        "yes" if traits.unbiased else "no",
        {"all": "every f", "none": "-"}.get(traits.exact_for, f"{traits.exact_for} f"),
        _needs(traits),
        "all points" if traits.noise == "none" else f"{traits.min_samples} or more",
    )


def _needs(traits: Traits) -> str:
    """Return what an estimator asks of f, and of the variables where it does not serve all."""
    words = "gradient of f" if traits.pathwise else "values of f"
    if traits.needs_point_gradients:
        words = "values, gradient of f"
    if traits.needs_relaxed_points:
        words += ", soft points"
    return "; ".join((words, *_kinds(traits)))


def _kinds(traits: Traits) -> list[str]:
    """Return which laws an estimator serves, where that is not all that have classes."""
    if "categorical" in traits.families:
        return []
    named = {"bernoulli": "Bernoulli", "continuous": "continuous", "count": "counts"}
    return [", ".join(named[family] for family in named if family in traits.families)]


def option_names(kind: type) -> list[str]:
    """Return the options of an estimator's class."""
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
