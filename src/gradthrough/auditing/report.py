"""The report of an audit: a table to print, and the ways out of it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._errors import ConfigError
from .recommend import AVERAGING, Recommendation, choose
from .rows import AuditRow, Reference, not_measured
from .tune import Search

if TYPE_CHECKING:
    import polars
    from matplotlib.figure import Figure

HEADER = (
    "estimator",
    "evaluations",
    "bias",
    "95 % interval",
    "biased",
    "variance",
    "MSE",
    "cosine",
    "of one",
    "forward ms",
    "backward ms",
    "MiB",
)


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Args:
        rows: one for each estimator.
        reference: what they were held against.
        problem: what was audited, in words.
        dimensions: of the gradient.
        batch: rows that its mean is over.
        batches: how many were measured; bias and error are those on the first.
        evaluations: of f for each row and estimate, at most.
        replicates: estimates of each estimator.
        seed: of all draws.
        device: where.
        torch: its version.
        seconds: that the audit took.
        search: what can measure more of the same problem, for ``recommend(tune="tau")``.
    """

    rows: tuple[AuditRow, ...]
    reference: Reference
    problem: str
    dimensions: int
    batch: int
    batches: int
    evaluations: int
    replicates: int
    seed: int
    device: str
    torch: str
    seconds: float
    search: Search | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def measured(self) -> tuple[AuditRow, ...]:
        """The rows that were not skipped."""
        return tuple(row for row in self.rows if row.skipped is None)

    def row(self, estimator: str) -> AuditRow:
        """Return the row of a label."""
        for one in self.rows:
            if one.estimator == estimator:
                return one
        names = ", ".join(row.estimator for row in self.rows)
        raise ConfigError(f"{estimator!r} is not in this report, which has {names}.")

    def __str__(self) -> str:
        """Return an aligned table, what it is about, and what was left out."""
        lines = [self.problem[:1].upper() + self.problem[1:] + "."]
        lines += [f"Reference {self.reference.words}", *self.notes(), ""]
        lines += aligned([HEADER, *self.cells()])
        lines += [
            "",
            *(f"Not measured: {', '.join(who)}. {why}" for who, why in not_measured(self.rows)),
        ]
        return "\n".join(lines).rstrip()

    def cells(self) -> list[tuple[str, ...]]:
        """Return the measured rows as text, under `HEADER`."""
        return [cells(row, self.reference.norm) for row in self.measured]

    def notes(self) -> list[str]:
        """Return what the numbers mean, a line each."""
        norm = self.reference.norm
        unit = (
            f"relative to the norm of the reference ({number(norm)}) and to its square"
            if norm
            else "absolute: the reference is zero"
        )
        out = [
            f"{self.replicates:,} estimates of each, of at most {self.evaluations} evaluations of "
            f"f a row. Bias, variance and MSE are {unit}.",
            '"biased": the bias is not zero, tested at level 0.001 for all rows together. Where it '
            'says "no", none was found: the interval tells how large it may still be.',
        ]
        for row in self.measured:
            if row.minibatch_variance is not None and row.sampling_variance is not None:
                out.append(
                    f"{row.estimator}: over {self.batches} batches, the variance that the draws "
                    f"make is {number(row.sampling_variance / (norm or 1.0) ** 2)}, that of the "
                    f"data {number(row.minibatch_variance / (norm or 1.0) ** 2)}."
                )
        return out

    def to_markdown(self) -> str:
        """Return the table in Markdown, and the lines around it."""
        head, *rows = [HEADER, *self.cells()]
        lines = [f"{self.problem[:1].upper()}{self.problem[1:]}.", ""]
        lines += [f"| {' | '.join(head)} |", f"| --- {'| ---: ' * (len(head) - 1)}|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += ["", f"Reference {self.reference.words}", *self.notes()]
        for who, why in not_measured(self.rows):
            lines.append(f"* not measured: {', '.join(f'`{name}`' for name in who)}: {why}")
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data; what was not measured is None."""

        def plain(x: Any) -> Any:  # noqa: ANN401 - any JSON
            if isinstance(x, dict):
                return {key: plain(value) for key, value in x.items()}  # pyright: ignore[reportUnknownVariableType]
            if isinstance(x, list | tuple):
                return [plain(value) for value in x]  # pyright: ignore[reportUnknownVariableType]
            return None if isinstance(x, float) and not math.isfinite(x) else x

        found = dataclasses.asdict(dataclasses.replace(self, search=None))
        del found["search"]
        return plain(found)

    def to_json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    def to_polars(self) -> polars.DataFrame:
        """Return the rows as a data frame (needs the extra ``bench``)."""
        try:
            import polars
        except ImportError as error:
            raise _extra("to_polars", "polars", error) from error
        return polars.DataFrame(
            [dataclasses.asdict(row) for row in self.rows], infer_schema_length=None
        )

    def recommend(
        self, *, averaging: float = AVERAGING, tune: Literal["tau"] | None = None
    ) -> Recommendation:
        """Say which estimator to take, and why: see `Recommendation`.

        Args:
            averaging: k > 0, over how many estimates of this size training averages; 1 ranks by
                the error of a single one.
            tune: "tau": try each estimator that has a temperature at eight of them, with a
                quarter of the replicates, and measure the best in full.

        Raises:
            ConfigError: nothing was measured, or nothing can be measured any more.
            DomainError: averaging is not a positive number.
        """
        rows = self.rows
        if tune is not None:
            if tune != "tau":
                raise ConfigError(f'tune is {tune!r}, but must be "tau" or None.')
            if self.search is None:
                raise ConfigError(
                    "this report holds numbers only, and nothing to measure: call audit anew, and "
                    'recommend(tune="tau") on what it returns.'
                )
            best = self.search.temperatures(self.replicates, averaging)
            rows = (*(row for row in rows if row.estimator not in best), *best.values())
        return choose(rows, self.reference, averaging=averaging)

    def plot(self) -> Figure:
        """Return a picture: bias against variance, and cost against MSE (extra ``bench``)."""
        try:
            from .picture import draw
        except ImportError as error:
            raise _extra("plot", "matplotlib", error) from error
        return draw(self)

    def to_html(self, path: str | Path | None = None) -> str:
        """Return one interactive page that works offline, and write it if a path is given."""
        try:
            from .page import page
        except ImportError as error:
            raise _extra("to_html", "plotly", error) from error
        text = page(self)
        if path is not None:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            whole = target.with_name(target.name + ".part")
            whole.write_text(text, encoding="utf-8")
            whole.replace(target)
        return text


def _extra(method: str, library: str, error: ImportError) -> ImportError | ConfigError:
    if (error.name or "").partition(".")[0] != library:
        return error  # not what is missing
    return ConfigError(
        f"{method} needs {library}, of the extra `bench`: pip install 'gradthrough[bench]'"
    )


def cells(row: AuditRow, norm: float) -> tuple[str, ...]:
    """Return a measured row as text, under `HEADER`; relative to a norm, if it is not zero."""
    unit = norm or 1.0
    return (
        row.estimator,
        str(row.evaluations),
        number(row.bias / unit),
        f"{number(row.bias_low / unit)} to {number(row.bias_high / unit)}",
        "yes" if row.biased else "no",
        number(row.variance / unit**2),
        number(row.mse / unit**2),
        f"{row.cosine:.3f}",
        f"{row.cosine_single:.3f}",
        f"{1000 * row.seconds_forward:.2f}",
        f"{1000 * row.seconds_backward:.2f}",
        "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.2f}",
    )


def number(x: float) -> str:
    """Return three digits, without an exponent where that is short."""
    return f"{x:.3g}" if 1e-4 < abs(x) < 1e5 or x == 0 or not math.isfinite(x) else f"{x:.1e}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with the columns below each other, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
