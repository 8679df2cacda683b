"""Summaries: many records in, one row for each run or for each setting out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from .._errors import ConfigError, DomainError
from . import records
from .config import RunConfig
from .records import Record
from .reporting.digits import measured
from .tasks import TASKS


def collect(folder: Path) -> pl.DataFrame:
    """Return one row for each run below a folder of results.

    Columns: experiment, key, setting (the config without its seed, as JSON), label, task, dataset
    and the other plain options, status, reason, epochs, seconds, and for each split and metric
    its latest value, named ``split/metric``. An empty file is of a run that is about to begin, and
    left out.

    Raises:
        ConfigError: no records there.
        DomainError: a file that is not records.
    """
    found = ((path, _read(path)) for path in sorted(folder.rglob("*.jsonl")))
    rows = [_row(path, lines) for path, lines in found if lines]
    if not rows:
        raise ConfigError(
            f"no records (*.jsonl) below {folder}. Run something first: gradthrough bench run vae "
            f"--out {folder}"
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def _read(path: Path) -> list[Record]:
    try:
        return records.read(path)
    except DomainError as error:
        raise DomainError(f"{path}: {error}") from error


def _row(path: Path, lines: Sequence[Record]) -> dict[str, Any]:
    start, last = lines[0], lines[-1]
    data = dict(start.config or {})
    config = RunConfig(**data)
    seed = data.pop("seed")
    values = {f"{r.split}/{r.metric}": r.value for r in lines if r.kind == "metric"}
    plain = {k: v for k, v in config.task_options.items() if isinstance(v, str | int | float)}
    compiled = {} if config.compile == "none" else {"compile": config.compile}
    return {
        "experiment": path.parent.name,
        "key": start.key,
        "setting": json.dumps(data, sort_keys=True),
        "label": config.label,
        "task": config.task,
        **plain,
        "optimizer": config.optimizer,
        "samples": config.samples,
        "lr": config.lr,
        "epochs": config.epochs,
        **compiled,
        "seed": seed,
        "status": last.status or "unfinished",
        "reason": last.reason,
        "seconds": last.seconds,
        **values,
    }


def settings(runs: pl.DataFrame) -> pl.DataFrame:
    """Return one row for each setting: mean and standard deviation over its finished seeds."""
    metrics = [c for c in runs.columns if "/" in c]
    done = pl.col("status") == "done"
    numbers = [
        aggregate
        for c in metrics
        for aggregate in (
            pl.col(c).filter(done).mean().alias(c),
            pl.col(c).filter(done).std().alias(f"{c} sd"),
        )
    ]
    fixed = [
        c
        for c in runs.columns
        if c not in {*metrics, "key", "setting", "seed", "status", "reason", "seconds"}
    ]
    return (
        runs.group_by("experiment", "setting", maintain_order=True)
        .agg(
            *(pl.col(c).first() for c in fixed if c != "experiment"),
            done.sum().alias("seeds"),
            (~done).sum().alias("not done"),
            pl.col("seconds").filter(done).mean(),
            *numbers,
        )
        .drop("setting")
    )


def columns(table: pl.DataFrame) -> list[tuple[str, str]]:
    """Return (column, title) of the numbers worth a table, headline metrics first."""
    names = list(dict.fromkeys(table["task"].to_list()))
    metrics = {
        m.name: m.title for name in names for m in TASKS[name].metrics if m.better != "neither"
    }
    return [
        (f"{split}/{metric}", f"{split} {title}")
        for metric, title in metrics.items()
        for split in ("train", "valid", "test")
        if f"{split}/{metric}" in table.columns
    ]


def cell(value: float | None, deviation: float | None) -> str:
    """Return a mean with its standard deviation, as text.

    Example:
        >>> from gradthrough.bench.summary import cell
        >>> cell(0.20381, 0.00012), cell(0.20381, None), cell(None, None)
        ('0.20381 ± 0.00012', '0.2038', '-')
    """
    return "-" if value is None else measured(value, deviation)
