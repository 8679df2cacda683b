"""A progress bar with loss, speed and time left."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A bar over training steps; silent when not shown.

    Args:
        total: number of steps.
        title: what runs.
        shown: draw it.
    """

    def __init__(self, total: int, title: str, shown: bool) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} steps/s"),
            TimeRemainingColumn(),
            disable=not shown,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task(title, total=total, loss="-", speed="-")
        self._pending = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        self._bar.stop()

    def advance(self, steps: int) -> None:
        """Count steps; drawn in portions, since a step may be shorter than drawing."""
        self._pending += steps
        if self._pending >= 20:
            self._flush()

    def show(self, loss: float) -> None:
        """Show a loss."""
        speed = self._bar.tasks[0].speed
        text = "-" if speed is None else f"{speed:.0f}"
        self._bar.update(self._task, loss=f"{loss:.2f}", speed=text)

    def _flush(self) -> None:
        self._bar.update(self._task, advance=self._pending)
        self._pending = 0
