"""What one sees of a sweep: bars while it runs, lines where there is no terminal, tables."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .engine import Watcher
from .job import Job, Outcome
from .pace import Pace, Tail
from .plan import Row, seeds_text
from .states import Standing
from .sweep import Summary

_LOOK = 1.0  # seconds between two looks at the records
_STYLES = {"done": "green", "diverged": "yellow", "skipped": "dim", "failed": "red"}


class _Shown:
    """A job that runs: since when, and its records."""

    def __init__(self, job: Job) -> None:
        self.job, self.began = job, time.monotonic()
        self.tails = [Tail(path) for path in job.paths]


class View(Watcher):
    """Shows a sweep: a bar for each job on a terminal, elsewhere a line for each that ends.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        drawn = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False, transient=True) if drawn else None
        self._running: list[_Shown] = []
        self._counts: Counter[str] = Counter()
        self._ended: set[Path] = set()
        self._planned: set[Path] = set()
        self._total = 0
        self._began = self._looked = 0.0
        self._pace = Pace(())

    def begin(self, rows: Sequence[Row], further: int) -> None:
        """Take in the plan."""
        runs = {run.path: run for row in rows for run in row.runs}
        self._pace = Pace(list(runs.values()), further)
        self._planned = set(runs)
        self._total = len(runs) + further
        self._began = time.monotonic()
        for path, run in runs.items():
            if run.standing.ended:
                self._count(path, run.standing.state)
        if self._live is not None:
            self._live.start()

    def started(self, job: Job) -> None:
        """Show a job."""
        for config, path in zip(job.configs, job.paths, strict=True):
            if path not in self._planned:
                self._planned.add(path)
                self._pace.asked()
                self._pace.note(path, config, Standing())
        self._running.append(_Shown(job))
        self._draw()

    def lost(self, job: Job) -> None:
        """Say that a worker is gone."""
        self._drop(job)
        self._say(Text(f"{_name(job)}: its worker died; another one goes on from the checkpoint"))

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Say how a job ended."""
        began = self._drop(job)
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for config, path in zip(job.configs, job.paths, strict=True):
            state = outcome.status.get(config.key)
            if state is None or path in self._ended:
                continue
            self._count(path, state)
            self._pace.note(path, config, Tail(path).look())
            groups[state, outcome.reasons.get(config.key, "")].append(config.seed)
        took = "" if began is None else f" in {clock(time.monotonic() - began)}"
        for (state, reason), seeds in groups.items():
            line = Text(f"[{len(self._ended)}/{self._most()}] {_name(job, seeds)}: ")
            line.append(state, _STYLES.get(state, ""))
            line.append(f"{took}. {reason}" if reason else took)
            if self._live is None or state != "done":
                self._say(line)
        self._draw()

    def tick(self) -> None:
        """Look again at what runs."""
        if self._live is not None and time.monotonic() - self._looked > _LOOK:
            self._draw()

    def finish(self) -> None:
        """Take the bars away."""
        if self._live is not None:
            self._live.stop()

    def _drop(self, job: Job) -> float | None:
        """Forget a job that ran, or what was left of it; return when it started."""
        for shown in self._running:
            if set(shown.job.paths) <= set(job.paths):
                self._running.remove(shown)
                return shown.began
        return None

    def _count(self, path: Path, state: str) -> None:
        self._ended.add(path)
        self._counts[state] += 1

    def _most(self) -> int:
        """Return how many runs there are; a search may have asked for more than it said."""
        return max(self._total, len(self._planned | self._ended))

    def _say(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True, highlight=False)

    def _draw(self) -> None:
        if self._live is not None:
            self._looked = time.monotonic()
            self._live.update(self.picture(), refresh=True)

    def picture(self) -> RenderableType:
        """Return the bars as they are now."""
        bars = Table.grid(padding=(0, 1))
        room = max(1, self._console.height - 4)
        for shown in self._running:
            job, seen = shown.job, [tail.look() for tail in shown.tails]
            for config, path, now in zip(job.configs, job.paths, seen, strict=True):
                self._pace.note(path, config, now)
            if bars.row_count < room:
                bars.add_row(*_bar(job, seen))
        more = len(self._running) - bars.row_count
        ended, most = len(self._ended), self._most()
        left = self._pace.left(time.monotonic() - self._began)
        others = [f"{n} {state}" for state, n in self._counts.items() if state != "done"]
        whole = Table.grid(padding=(0, 1))
        words = (f"{ended}/{most} runs", *others, f"{clock(left)} left")
        whole.add_row(ProgressBar(total=most, completed=ended, width=30), ", ".join(words))
        return Group(bars, *([Text(f"and {more} more")] if more else []), whole)


def _bar(job: Job, seen: Sequence[Standing]) -> tuple[RenderableType, ...]:
    epochs, steps = sum(s.epochs for s in seen), sum(s.steps for s in seen)
    seconds, wanted = sum(s.seconds for s in seen), job.config.epochs * len(seen)
    speed = f"{steps / seconds:.0f} steps/s" if seconds else "-"
    bar = ProgressBar(total=wanted, completed=epochs, width=20)
    # Seeds that train together are as far as one another, but for those that diverged.
    return Text(_name(job)), bar, f"{epochs // len(seen)}/{job.config.epochs}", speed


def _name(job: Job, seeds: Sequence[int] | None = None) -> str:
    return f"{job.title or job.config.label}, seed {seeds_text(seeds or job.seeds)}"


def clock(seconds: float | None) -> str:
    """Return a time as one reads it, "-" for one that is not known.

    Example:
        >>> from gradthrough.bench.sweep.view import clock
        >>> clock(7), clock(3723), clock(None)
        ('0:07', '1:02:03', '-')
    """
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plan_table(rows: Sequence[Row], title: str) -> Table:
    """Return a plan as a table: each cell, the key of its first run, seeds, how far they are."""
    table = Table("cell", "key", "seeds", "status", title=title, title_justify="left", box=None)
    for row in rows:
        key = "-" if row.searched else row.cell.config.key
        table.add_row(Text(row.cell.title), key, seeds_text(row.cell.seeds), row.status)
    return table


def summary_table(summary: Summary) -> Table:
    """Return how the runs ended: what is done as a number, the rest with its reasons."""
    title = f"{summary.experiment}, budget {summary.budget}"
    table = Table("status", "runs", "cell", "seeds", "reason", title=title, box=None)
    table.title_justify = "left"
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for run in summary.runs:
        if run.state != "done":
            groups[run.state, run.title, run.reason].append(run.seed)
    table.add_row(Text("done", _STYLES["done"]), str(summary.count("done")))
    order = ("skipped", "diverged", "failed", "unfinished", "not started")
    for state, title, reason in sorted(groups, key=lambda group: order.index(group[0])):
        seeds = groups[state, title, reason]
        words = Text(title), seeds_text(seeds), Text(reason)
        table.add_row(Text(state, _STYLES.get(state, "")), str(len(seeds)), *words)
    return table
