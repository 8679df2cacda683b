"""The tasks of the bench, in the order of their table."""

from gradthrough.bench.tasks import TASKS


def table() -> str:
    """Return what each task is, and its headline."""
    rows = [("task", "what it is", "headline"), ("---",) * 3]
    for name, kind in TASKS.items():
        about = (kind.__doc__ or "").strip().splitlines()[0]
        rows.append((f"`{name}`", about, kind.metrics[0].title))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
