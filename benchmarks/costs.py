"""What every estimator costs: evaluations, backward passes, time and memory, at one shape.

    python benchmarks/costs.py --out benchmarks/results/costs.csv --page docs/costs.md

One shape that all of them serve: rows of Bernoulli variables, f a small network whose parameters
train too. Each is timed in turn with REINFORCE, and given as the ratio to it.
With ``--page`` alone, the page is made again from the committed rows.
"""

import argparse
import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradthrough as gt
from gradthrough.auditing import cost
from gradthrough.bench.environment import environment

ROWS, VARIABLES, HIDDEN = 100, 10, 256
PEER = "reinforce"
HEAD = (
    "key", "samples", "evaluations", "backward_passes", "median_ms", "ratio_to_reinforce",
    "quartile_low", "quartile_high", "peak_mib", "environment",
)  # fmt: skip


class _Passes(torch.autograd.Function):
    """Identity that counts how often it is differentiated."""

    count = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - torch's own type
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401
        _Passes.count += 1
        return grads[0]


def step_for(key: str) -> Callable[[], None]:
    """Return a forward and a backward pass with the estimator of that key."""
    estimator = gt.estimator(key)
    samples = estimator.traits.min_samples
    net = nn.Sequential(nn.Linear(VARIABLES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    logits = torch.randn(ROWS, VARIABLES, requires_grad=True)
    generator = torch.Generator()

    def f(points: Tensor) -> Tensor:
        return _Passes.apply(net(points).squeeze(-1))  # pyright: ignore[reportReturnType]

    def step() -> None:
        logits.grad = None
        q = gt.Bernoulli(logits, event_dims=1)
        gt.expect(f, q, estimator, samples=samples, generator=generator).mean().backward()
        net.zero_grad()

    return step


def _serves(kind: type[gt.AbstractEstimator]) -> bool:
    """Return whether an estimator has something to measure: a row of Bernoulli variables."""
    return "bernoulli" in kind.traits.families


def measure(rounds: int) -> list[tuple[str, ...]]:
    """Return one row for every estimator."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = {key: step_for(key) for key, kind in gt.ESTIMATORS.items() if _serves(kind)}
    facts = json.dumps(environment(torch.device("cpu")), sort_keys=True)
    q = gt.Bernoulli(torch.zeros(ROWS, VARIABLES), event_dims=1)
    rows: list[tuple[str, ...]] = []
    for key, step in steps.items():
        estimator = gt.estimator(key)
        samples = estimator.traits.min_samples
        _Passes.count = 0
        step()
        passes = _Passes.count
        # In pairs with the peer: a large neighbour would leave cold caches to the next in line.
        seconds = cost.step_times({PEER: steps[PEER], key: step}, rounds=rounds)
        ratios = [a / b for a, b in zip(seconds[key], seconds[PEER], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        numbers = (1000 * statistics.median(seconds[key]), middle, low, high)
        memory = cost.peak_bytes(step) / 2**20
        counts = (samples, estimator.evaluations(q, samples), passes)
        rows.append((key, *map(str, counts), *(f"{v:.3f}" for v in (*numbers, memory)), facts))
    return rows


def page(rows: list[dict[str, str]]) -> str:
    """Return the page of the docs."""
    facts = json.loads(rows[0]["environment"])
    where = f"{facts['device']}, {facts['threads']} thread, torch {facts['torch']}"
    lines = [
        "# What every estimator costs",
        "",
        f"One estimate and its backward pass for {ROWS} rows of {VARIABLES} Bernoulli variables, f",
        f"a network {VARIABLES}-{HIDDEN}-1 whose parameters get their gradient too; default",
        "options, as few samples as the estimator takes. *Evaluations*: points of f for each row.",
        "*Backward passes* through f: one trains the parameters of f; estimators that want the",
        "gradient of f at its points take one more. *Time*: median of the ratios to a step of",
        "`reinforce`, which makes one evaluation, the two taken in turn. *Memory*: the most bytes",
        "of tensors held at a time.",
        "",
        "| key | samples | evaluations | backward passes | time | quartiles | memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = (
            f"`{row['key']}`",
            row["samples"],
            row["evaluations"],
            row["backward_passes"],
            f"{float(row['ratio_to_reinforce']):.2f}",
            f"{float(row['quartile_low']):.2f} to {float(row['quartile_high']):.2f}",
            f"{float(row['peak_mib']):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "An estimator that makes several evaluations pays for them in one larger batch. How often",
        "f is evaluated grows with the problem for `enumerate` (all points), `leg` (1 + variables",
        "x (classes - 1)) and `arsm` (1 + classes (classes - 1) / 2), and for no other.",
        "",
        "Rows: [`benchmarks/results/costs.csv`](../benchmarks/results/costs.csv),",
        f"{where}, commit {facts['commit'][:7]};",
        "made by `python benchmarks/costs.py`.",
        "",
    ]
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, str]]:
    """Return the committed rows."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Measure, write the rows, and the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--page", type=Path)
    arguments.add_argument("--rounds", type=int, default=200)
    options = arguments.parse_args()
    committed = Path(__file__).parent / "results" / "costs.csv"
    if options.out is not None:
        rows = measure(options.rounds)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEAD, *rows])
    if options.page is not None:
        options.page.write_text(page(read(options.out or committed)))


if __name__ == "__main__":
    main()
