"""What choices beyond one class cost: time and memory against the formula written plainly.

    python benchmarks/structured.py --out benchmarks/results/structured.csv

Two minutes; with ``--page docs/structured.md`` the table there is made from the rows, without
``--out`` from the committed ones. Every peer is torch's own, or the paper's formula in the fewest
lines. The two are timed in turn, and a ratio is that of one turn. Parameters are float32, and so is
what peers compute; what the library does in float64 is in its time.

An error is the largest relative one of dz/d(concentration), of float64 samples, against the
implicit derivative with 50 digits. (Student's t has none of its own: its is that of a gamma.)
"""

import argparse
import csv
import io
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import _timing as timing
import torch
import torch.distributions as td
from _implicit import POINTS, errors
from _plain import (
    count,
    gates,
    recursion,
    rsample,
    softmax_loop,
    straight_through,
    top_k,
    unrolled,
)
from torch import Tensor

import gradthrough as gt
from gradthrough.auditing.cost import allocated_bytes, now
from gradthrough.bench import records
from gradthrough.bench.environment import environment

COMMITTED = Path(__file__).parent / "results" / "structured.csv"
LEAST, MOST, SECONDS = 15, 101, 5.0  # repeats of a case, and how long they may take
HEAD = (
    "function", "size", "peer", "part", "repeats", "ours_us", "peer_us", "ratio", "ratio_low",
    "ratio_high", "ours_bytes", "peer_bytes", "bytes_ratio", "ours_error", "peer_error", "device",
    "torch", "threads", "commit", "load", "environment",
)  # fmt: skip
Row = dict[str, str]


def _pathwise(kind: Callable[..., Any], *parameters: Tensor) -> Tensor:
    law, one = cast(Any, gt.as_distribution(kind(*parameters)).expand(1)), gt.Pathwise()
    return one.draw(law, one.noise(law)).points[0]


def _count(logits: Tensor, *, total_count: int) -> Tensor:
    law = gt.as_distribution(td.Binomial(total_count, logits=logits)).expand(1)
    return law.draw(torch.rand(law.noise_shape("variable"), dtype=torch.float64))[0]


@dataclass(frozen=True)
class Case:
    """Something the library offers, and its peer."""

    function: str
    peer: str
    shape: tuple[int, ...]
    ours: Callable[..., object]
    theirs: Callable[..., object]
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    parameters: str = "r"  # what each is: real or positive
    entries: int = 0  # of the points of `errors`
    differentiable: bool = True

    @property
    def size(self) -> str:
        """The shape, and what else decides the work."""
        shown = [f"{name}={x}" for name, x in self.options.items() if name != "tau"]
        return " ".join(["x".join(map(str, self.shape)), *shown])

    def inputs(self) -> list[Tensor]:
        """Return parameters."""
        draws = ((kind, torch.randn(self.shape)) for kind in self.parameters)
        grad = self.differentiable
        return [(x.exp() if kind == "p" else x).requires_grad_(grad) for kind, x in draws]


def _sample(kind: Any, parameters: str, shape: tuple[int, ...], entries: int = 0) -> Case:  # noqa: ANN401
    name = kind.__name__
    both = partial(_pathwise, kind), partial(rsample, kind)
    peer = f"`{name}.rsample`"
    return Case(f"`Pathwise`, {name}", peer, shape, *both, {}, parameters, entries)


_PAPER = "the paper's recursion"
CASES = [
    *(
        Case("`simple`", _PAPER, (64, n), gt.structured.simple, recursion, {"k": k})
        for n, k in ((100, 10), (1000, 10), (1000, 100))
    ),
    Case("`relaxed_k_hot`", "loop of softmaxes", (64, 100), gt.structured.relaxed_k_hot,
         softmax_loop, {"k": 10, "tau": 0.5}),
    Case("`gumbel_top_k`", "`topk` of `log_softmax` + noise", (64, 1000),
         gt.structured.gumbel_top_k, top_k, {"k": 10}, differentiable=False),
    Case("`sinkhorn`", "unrolled loop", (64, 100, 100), gt.structured.sinkhorn, unrolled,
         {"iterations": 20}),
    Case("`hard_concrete`", "its formula", (64, 1000), gt.structured.hard_concrete, gates),
    _sample(td.Gamma, "pp", (64, 100), 1),
    _sample(td.Beta, "pp", (64, 100), 2),
    _sample(td.Dirichlet, "p", (640, 10), 10),
    _sample(td.StudentT, "prp", (64, 100)),
    Case("draw of a Binomial", "`Binomial.sample`", (64, 100), _count, count,
         {"total_count": 1000}, differentiable=False),
    Case("`sparsemixer_v2`", "one-hot straight-through", (4096, 8),
         lambda x: gt.sparsemixer_v2(x).multiplier, straight_through),
]  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One of the two, with its parameters and the gradient that reaches its sample."""

    forward: Callable[[], Any]
    leaves: list[Tensor]
    upstream: Tensor | None  # None: no backward

    def gradient(self, z: Any) -> object:  # noqa: ANN401 - a sample
        """Go back."""
        return None if self.upstream is None else torch.autograd.grad(z, self.leaves, self.upstream)

    def timed(self) -> timing.Numbers:
        """Return microseconds of each part."""
        began = now()
        z = self.forward()
        middle = now()
        gradient = self.gradient(z)
        end = now()
        del z, gradient
        return timing.Numbers(*(1e6 * t for t in (middle - began, end - middle, end - began)))

    def peaks(self) -> timing.Numbers:
        """Return the most bytes held at a time beyond those held before, for each part."""
        cpu, z = torch.device("cpu"), self.forward()
        return timing.Numbers(
            allocated_bytes(self.forward, cpu),
            allocated_bytes(lambda: self.gradient(z), cpu),
            allocated_bytes(lambda: self.gradient(self.forward()), cpu),
        )


def _sides(case: Case) -> dict[str, Side]:
    leaves = case.inputs()
    out: dict[str, Side] = {}
    for name, function in (("ours", case.ours), ("peer", case.theirs)):
        forward = partial(function, *leaves, **case.options)
        z: Any = forward()
        out[name] = Side(forward, leaves, torch.randn_like(z) if case.differentiable else None)
    return out


def measure(case: Case, facts: Row, points: int = POINTS) -> list[Row]:
    """Return a row for each part of a case."""
    torch.manual_seed(0)
    sides = _sides(case)
    timers = {name: side.timed for name, side in sides.items()}
    seconds = timing.warm_up(timers)
    repeats = min(MOST, max(LEAST, int(SECONDS / timing.round_seconds(seconds))))
    times = timing.paired(timers, seconds, repeats)
    peaks = {name: side.peaks() for name, side in sides.items()}
    torch.manual_seed(0)  # however many repeats there were
    shown = [f"{x:.1e}" for x in errors(case.entries, points)] if case.entries else ["", ""]
    rows: list[Row] = []
    for part in timing.PARTS if case.differentiable else timing.PARTS[:1]:
        ours, peer = ([float(getattr(t, part)) for t in times[name]] for name in sides)
        ratios = [a / b for a, b in zip(ours, peer, strict=True)]
        numbers = (statistics.median(ratios), min(ratios), max(ratios))
        held, taken = (int(getattr(peaks[name], part)) for name in sides)
        values = (
            case.function, case.size, case.peer, part, str(repeats),
            *(f"{statistics.median(t):.1f}" for t in (ours, peer)), *map(_short, numbers),
            str(held), str(taken), _short(held / taken), *shown,
        )  # fmt: skip
        rows.append(dict(zip(HEAD, values, strict=False)) | facts)
    return rows


def _short(x: float) -> str:
    return f"{x:.2f}" if x >= 0.095 else f"{x:.3f}"


def facts_of() -> Row:
    """Return what every row says of where and when it was made."""
    found = environment(torch.device("cpu"))
    named = {name: str(found[name]) for name in ("device", "torch", "threads", "commit")}
    load = f"{os.getloadavg()[0]:.2f}"  # of the last minute, before this run
    return named | {"load": load, "environment": json.dumps(found, sort_keys=True)}


def table(rows: list[Row]) -> str:
    """Return the table of the docs: what it shows is in the rows as it stands there."""
    lines = [
        "| | size | peer | forward | backward | both | memory | error, peer's |",
        "| --- | --- | --- | ---: | ---: | --- | ---: | --- |",
    ]
    parts: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        parts.setdefault((row["function"], row["size"]), {})[row["part"]] = row
    for (function, size), found in parts.items():
        whole = found.get("both", found["forward"])
        error = ", ".join(filter(None, (whole["ours_error"], whole["peer_error"])))
        back = found["backward"]["ratio"] if "backward" in found else ""
        both = f"{whole['ratio']} ({whole['ratio_low']} to {whole['ratio_high']})"
        cells = (function, size, whole["peer"], found["forward"]["ratio"], back, both)
        lines.append(f"| {' | '.join((*cells, whole['bytes_ratio'], error))} |")
    first = rows[0]
    where = f"{first['device']}, {first['threads']} thread, torch {first['torch']}"
    lines += ["", f"{where}, commit {first['commit'][:7]}, load {first['load']}."]
    return "\n".join(lines)


def read(path: Path) -> list[Row]:
    """Return the committed rows."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    """Write all rows, or leave the file as it was."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, HEAD, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    records.replace(path, text.getvalue().encode())


def insert(page: Path, text: str) -> None:
    """Put the table between its marks in a page."""
    start, end = "<!-- structured costs -->\n", "<!-- /structured costs -->"
    head, found, rest = page.read_text().partition(start)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} lacks {start.strip()} or {end}: where should the table go?")
    records.replace(page, f"{head}{start}{text}\n{end}{tail}".encode())


def main() -> None:
    """Measure, write the rows, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.out is not None:
        facts = facts_of()
        rows: list[Row] = []
        for case in CASES:
            rows += measure(case, facts)
            last = rows[-1]
            print(last["function"], last["size"], f"x {last['ratio']}, memory x "
                  f"{last['bytes_ratio']}, {last['repeats']} repeats", flush=True)  # fmt: skip
        write(options.out, rows)
    if options.page is not None:
        insert(options.page, table(read(options.out or COMMITTED)))


if __name__ == "__main__":
    main()
