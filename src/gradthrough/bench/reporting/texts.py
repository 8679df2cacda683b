"""What both reports say in the same words."""

from __future__ import annotations

from .coverage import Coverage
from .tables import Entry, Table
from .verdicts import ours_text

HEAD = "Results"
READ = (
    "Every number of ours is the mean over seeds of runs whose records lie in the folder of "
    "results, ± the standard deviation over the seeds (with n - 1); n counts them. One seed alone "
    "has no deviation.",
    "Beside it stands the published number, ± its standard deviation, and below them their "
    "difference in units of that published standard deviation (where standard errors were "
    "published, times the root of n). Up to 2 of them count as agreement. A number that was "
    "published without one is compared by the plain difference.",
    "What ran for fewer epochs than the published protocol says so, and gets no verdict; so does "
    "what ran with other settings. What has not been run is listed at the end of each section.",
)
BUDGETS = {
    "paper": "the published protocol",
    "laptop": "what one machine does in some hours",
    "smoke": "a test that everything runs; its numbers are in no table",
}


def title_of(entry: Entry) -> str:
    """Return which runs a cell of a table is made of, in a line."""
    runs = ", ".join(f"seed {run.config.seed}: {run.key}" for run in entry.ours.runs)
    return f"after epoch {entry.ours.epoch}; {runs}" if runs else ""


def lines_of(entry: Entry, remark: str = "") -> tuple[str, str, str]:
    """Return what a cell says: ours, published, verdict; "" for what there is not.

    A verdict that all cells share, `remark_of` the table, is said below it.
    """
    published = "" if entry.published is None else entry.published.text
    said = "" if entry.verdict.text == remark else entry.verdict.text
    return ours_text(entry.ours), published, said


def remark_of(table: Table) -> str:
    """Return what holds for every number of ours in a table, "" if they differ."""
    said = {entry.verdict for entry in table.entries.values() if entry.ours.values}
    one = said.pop() if len(said) == 1 else None
    return one.text if one is not None and one.kind in ("shorter", "other") else ""


def remark_line(table: Table) -> str:
    """Return that as a sentence."""
    remark = remark_of(table)
    return f"All of them: {remark.replace(': ', ', ', 1)}." if remark else ""


def source_of(table: Table) -> str:
    """Return where the published numbers of a table stand."""
    return f"Published: {table.source}." if table.source else ""


def coverage_line(found: Coverage) -> str:
    """Return how much of a budget is done."""
    return f"{found.budget} ({BUDGETS.get(found.budget, '')}): {found.line}"
