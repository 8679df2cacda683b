"""Provenance: where the numbers of a table or a figure were made."""

from __future__ import annotations

from collections.abc import Sequence

from .digits import ranges
from .runs import Run


def provenance(runs: Sequence[Run]) -> str:
    """Return commits, machines, versions of torch, seeds, and whether the code was committed."""
    if not runs:
        return "No run yet."
    places = [place for run in runs for place in run.environments]

    def all_of(name: str, short: int | None = None) -> str:
        found = {str(place.get(name) or "unknown")[:short] for place in places}
        return ", ".join(sorted(found)) or "unknown"

    known = [[place.get("dirty") for place in run.environments] for run in runs]
    changed = sum(any(dirty) for dirty in known)
    unknown = sum(not dirty or None in dirty for dirty in known)
    code = f"{changed} with uncommitted changes" if changed else "all code committed"
    if unknown:
        code += f", {unknown} of unknown code" if changed else f" but for {unknown} of unknown code"
    seeds = ranges([run.config.seed for run in runs])
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return (
        f"{count}, {code}. Commits: {all_of('commit', 7)}. Machines: {all_of('device')}. "
        f"torch {all_of('torch')}. Seeds {seeds}."
    )
