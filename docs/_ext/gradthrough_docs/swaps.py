"""What a swap costs, from its recorded benchmark."""

import csv
from pathlib import Path

RECORD = Path(__file__).parents[3] / "benchmarks" / "results" / "swap.csv"


def cost() -> str:
    """Return the ratios to plain torch as a table."""
    with RECORD.open(newline="") as file:
        found = list(csv.DictReader(file))
    rows = [("a training step", "ratio to plain torch", "quartiles"), ("---", "---:", "---:")]
    for row in found:
        low, high = (f"{float(row[name]):.2f}" for name in ("quartile_low", "quartile_high"))
        ratio = f"{float(row['ratio_to_plain_torch']):.2f}"
        rows.append((row["candidate"], ratio, f"{low} to {high}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
