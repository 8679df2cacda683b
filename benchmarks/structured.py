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
import mpmath
import torch
import torch.distributions as td
from torch import Tensor

import gradthrough as gt
from gradthrough.auditing.cost import allocated_bytes, now
from gradthrough.bench import records
from gradthrough.bench.environment import environment
from gradthrough.laws.gamma_quantile import log_gamma_quantile

COMMITTED = Path(__file__).parent / "results" / "structured.csv"
LEAST, MOST, SECONDS = 15, 101, 5.0  # repeats of a case, and how long they may take
POINTS = 200  # at which derivatives are compared
HEAD = (
    "function", "size", "peer", "part", "repeats", "ours_us", "peer_us", "ratio", "ratio_low",
    "ratio_high", "ours_bytes", "peer_bytes", "bytes_ratio", "ours_error", "peer_error", "device",
    "torch", "threads", "commit", "load", "environment",
)  # fmt: skip
Row = dict[str, str]
mp: Any = mpmath


# --- The peers. `noise` is what the library calls so: with it both sides draw the same.


def _gumbels(x: Tensor, noise: Tensor | None) -> Tensor:
    e = torch.empty_like(x).exponential_() if noise is None else -torch.log1p(-noise)
    return -e.log()


def recursion(theta: Tensor, *, k: int) -> Tensor:
    """SIMPLE by the paper's recursion over classes: log Z, its gradient, and a draw."""
    rows = [torch.zeros_like(theta[:, :1])]  # log sums over 0 to min(i, k) of the first i classes
    for i in range(theta.shape[-1]):
        out, with_it = rows[-1], rows[-1] + theta[:, i : i + 1]
        parts = [out[:, :1], torch.logaddexp(out[:, 1:], with_it[:, :-1]), with_it[:, -1:]]
        rows.append(torch.cat(parts if i < k else parts[:2], -1))
    mu = torch.autograd.grad(rows[-1][:, k].sum(), theta, create_graph=True)[0]
    with torch.no_grad():
        left = torch.full_like(theta[:, :1], k, dtype=torch.int64)
        u, z = torch.rand_like(theta).log(), torch.zeros_like(theta)
        for i in reversed(range(theta.shape[-1])):
            taken = rows[i].gather(-1, (left - 1).clamp_min(0)) + theta[:, i : i + 1]
            take = (u[:, i : i + 1] < taken - rows[i + 1].gather(-1, left)) & (left > 0)
            z[:, i : i + 1] = take.to(z.dtype)
            left = left - take.long()
    return z + mu - mu.detach()


def softmax_loop(logits: Tensor, *, k: int, tau: float, noise: Tensor | None = None) -> Tensor:
    """Relaxed k-hot points: k softmaxes, what is taken leaves the next."""
    a, point = logits + _gumbels(logits, noise), torch.zeros_like(logits)
    for _ in range(k):
        p = (a / tau).softmax(-1)
        point = point + p
        a = a + (1.0 - p).clamp_min(torch.finfo(p.dtype).tiny).log()
    return point


def top_k(logits: Tensor, *, k: int, noise: Tensor | None = None) -> Tensor:
    """Gumbel-top-k: the k largest of log-probabilities and Gumbel noise."""
    return (logits.log_softmax(-1) + _gumbels(logits, noise)).topk(k, -1)[1]


def unrolled(scores: Tensor, *, iterations: int) -> Tensor:
    """Sinkhorn in log space, differentiated by autograd."""
    for _ in range(iterations):
        scores = scores - scores.logsumexp(-1, keepdim=True)
        scores = scores - scores.logsumexp(-2, keepdim=True)
    return scores.exp()


def gates(log_alpha: Tensor, *, noise: Tensor | None = None) -> Tensor:
    """Hard Concrete as the paper has it."""
    u = torch.rand_like(log_alpha) if noise is None else noise
    s = ((u.log() - (1.0 - u).log() + log_alpha) / (2 / 3)).sigmoid()
    return (s * 1.2 - 0.1).clamp(0.0, 1.0)


def straight_through(logits: Tensor) -> Tensor:
    """Multiplier of a drawn expert: its entry of a one-hot sample with softmax's derivative."""
    p = logits.softmax(-1)
    index = torch.multinomial(p.detach(), 1)
    z = torch.zeros_like(p).scatter(-1, index, 1.0) + p - p.detach()
    return z.gather(-1, index)


def _rsample(kind: Callable[..., Any], *parameters: Tensor) -> Tensor:
    return kind(*parameters).rsample()


def _pathwise(kind: Callable[..., Any], *parameters: Tensor) -> Tensor:
    law, one = cast(Any, gt.as_distribution(kind(*parameters)).expand(1)), gt.Pathwise()
    return one.draw(law, one.noise(law)).points[0]


def _count(logits: Tensor, *, total_count: int) -> Tensor:
    law = gt.as_distribution(td.Binomial(total_count, logits=logits)).expand(1)
    return law.draw(torch.rand(law.noise_shape("variable"), dtype=torch.float64))[0]


def _torch_count(logits: Tensor, *, total_count: int) -> Tensor:
    return td.Binomial(total_count, logits=logits).sample()


# --- Derivatives of implicit reparameterisation, against 50 digits.


def _implicit(cdf: Callable[[Any], Any], a: float, density: Any) -> Any:  # noqa: ANN401
    h = mp.mpf(10) ** -16  # the error of the quotient is of the order of h squared
    return -(cdf(a + h) - cdf(a - h)) / (2 * h) / density


def gamma_slope(a: float, log_z: float) -> Any:  # noqa: ANN401 - a number of mpmath
    """Return d log z / da of the quantile z of Gamma(a, 1)."""
    a, z = mp.mpf(a), mp.exp(mp.mpf(log_z))
    density = mp.exp(a * mp.log(z) - z - mp.loggamma(a))
    return _implicit(lambda x: mp.gammainc(x, 0, z, regularized=True), a, density)


def beta_slope(a: float, b: float, z: float) -> Any:  # noqa: ANN401
    """Return dz/da of the quantile z of Beta(a, b)."""
    a, b, z = mp.mpf(a), mp.mpf(b), mp.mpf(z)
    density = z ** (a - 1) * (1 - z) ** (b - 1) / mp.beta(a, b)
    return _implicit(lambda x: mp.betainc(x, b, 0, z, regularized=True), a, density)


def errors(entries: int, points: int = POINTS) -> tuple[float, float]:
    """Return our largest error and torch's for Gamma (1 entry), Beta (2), Dirichlet (more)."""
    c = torch.randn(points, entries, dtype=torch.float64).exp().clamp(0.3, 30.0).requires_grad_()
    if entries == 1:
        law: Any = td.Gamma(c, torch.ones_like(c))
    else:
        law = td.Beta(c[:, 0], c[:, 1]) if entries == 2 else td.Dirichlet(c)
    ours, one = cast(Any, gt.as_distribution(law).expand(1)), gt.Pathwise()
    noise = one.noise(ours)
    logs = log_gamma_quantile(c.detach(), noise.reshape(c.shape)).tolist()
    samples = (one.draw(ours, noise).points[0], law.rsample())
    found = [_first_slopes(z, c) for z in samples]
    plain = samples[1].detach().reshape(points, -1)[:, 0].tolist()
    worst = [0.0, 0.0]
    with mp.workdps(50):
        for i, (each, log_z) in enumerate(zip(c.tolist(), logs, strict=True)):
            sizes = [mp.exp(mp.mpf(x)) for x in log_z]
            rest = sum(sizes[1:]) / sum(sizes) if entries > 1 else 1
            share = sizes[0] / sum(sizes) if entries > 1 else sizes[0]
            direct = share * rest * gamma_slope(each[0], log_z[0])  # of what is made from gammas
            torchs = (
                plain[i] * gamma_slope(each[0], mp.log(plain[i]))
                if entries == 1
                else beta_slope(each[0], sum(each[1:]), plain[i])
            )
            for side, want in enumerate((direct, torchs)):
                worst[side] = max(worst[side], float(abs(found[side][i] / want - 1)))
    return worst[0], worst[1]


def _first_slopes(z: Tensor, c: Tensor) -> list[float]:
    first = z if z.ndim == 1 else z[:, 0]
    return torch.autograd.grad(first.sum(), c)[0][:, 0].tolist()


# --- What is measured.


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
    both = partial(_pathwise, kind), partial(_rsample, kind)
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
    Case("draw of a Binomial", "`Binomial.sample`", (64, 100), _count, _torch_count,
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
