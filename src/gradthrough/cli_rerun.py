"""The command `gradthrough bench rerun`: does a recorded run give the same numbers again?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from .bench.rerun import Again


def bench_rerun(
    records: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path = Path("runs/again"),
    accelerator: str = "auto",
) -> None:
    """Run a recorded run again from its own config; exit status 1 if a number has changed.

    For the same digits take the same machine, the commit of the record and its number of threads
    (which is set here). Times are not compared; a metric that is a time will differ.

    Args:
        records: file of the run, <key>.jsonl.
        out: folder of the new records.
        accelerator: cpu, cuda or auto.
    """
    import torch

    from .bench.rerun import recorded, rerun

    threads = (recorded(records).environment or {}).get("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    again = rerun(records, out=out, accelerator=accelerator)
    for line in described(again):
        print(line)
    if not again.same:
        sys.exit(1)


def described(again: Again) -> list[str]:
    """Return a comparison in lines of text."""
    config = again.result.config
    found = [f"{config.label} on {config.task}, seed {config.seed}: {again.compared} numbers"]
    if again.same:
        found[0] += ", the same to the last digit"
    for (split, metric, step), (was, now) in again.differing.items():
        found.append(f"  {split} {metric} at step {step}: {was} was recorded, now {now}")
    for split, metric, step in again.missing:
        found.append(f"  {split} {metric} at step {step}: in one of the two only")
    for name, (was, now) in again.environment.items():
        found.append(f"  {name}: {was} was recorded, now {now}")
    return found
