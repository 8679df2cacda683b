"""The page of estimators, in the order of the table: classes, and functions where there are."""

import gradthrough as gt
from gradthrough.cli import trait_cells


def anchor(kind: type[gt.AbstractEstimator]) -> str:
    """Return where on the page of estimators a class stands."""
    return kind.__name__.lower()


def function_of(kind: type[gt.AbstractEstimator]) -> str | None:
    """Return the name of an estimator's plain function."""
    if not kind.traits.pathwise:
        return None
    name = kind.__name__.lower()
    return next((n for n in vars(gt) if n.islower() and n.replace("_", "") == name), None)


def estimators() -> str:
    """Return a section for each estimator."""
    return "\n".join(_section(key, kind) for key, kind in gt.ESTIMATORS.items())


def _section(key: str, kind: type[gt.AbstractEstimator]) -> str:
    unbiased, exact, needs, samples = trait_cells(kind)
    bias = "unbiased" if unbiased == "yes" else "biased"
    exact = "" if exact in ("-", "every f") else f", exact for {exact}"
    learns = ", ".join(f"`{name}`" for name in kind.traits.scalars)
    promises = (
        f"`gt.estimator({key!r})`: {bias}{exact}; needs {needs}; samples: {samples}"
        f"{f'; can learn {learns}' if learns else ''}."
    )
    name = function_of(kind)
    lines = ["```{eval-rst}", f".. autoclass:: gradthrough.{kind.__name__}"]
    lines += ["", f".. autofunction:: gradthrough.{name}"] if name else []
    return "\n".join((f"## {kind.__name__}", "", promises, "", *lines, "```", ""))
