"""What the kernels cost: time, memory and launches, against their peers and the byte floor.

    python benchmarks/kernels.py --out benchmarks/results/kernels.csv --page docs/kernels.md

About ten minutes; ``--minutes`` gives it another time, ``--full`` as long as it takes, with both
dtypes. Rows of the same device, version of torch and number of threads are replaced, others are
kept. With ``--page`` alone, the page and its pictures are made again from the committed rows.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _contestants as who
import _kernel_page as pages
import _timing as timing
import torch
from _kernel_page import Row

import gradthrough as gt
from gradthrough.bench import records
from gradthrough.bench.environment import environment

COMMITTED = Path(__file__).parent / "results" / "kernels.csv"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEAST, MOST, MOST_HEAVY = 30, 200, 50  # repeats of a row
OVERHEAD = 6  # repeats' worth of time that the measurements of memory take
PATIENCE = 20.0  # seconds that a row gets with --full, if its least repeats take no longer


@dataclass(frozen=True)
class Job:
    """A contestant at a shape and dtype: three rows."""

    contestant: who.Contestant
    shape: who.Shape
    dtype: str

    @property
    def weight(self) -> int:
        """Return its share of the time: the heavy ones need more for their least repeats."""
        c = self.contestant
        return 1 if c.other_backend else (1, 2, 8)[who.HEAVY.get(c.name, 0)]

    def __str__(self) -> str:
        c = self.contestant
        return f"{'x'.join(map(str, self.shape))} {self.dtype} {c.name} {c.backend}".rstrip()


def jobs(shapes: Iterable[who.Shape], dtypes: Iterable[str], backends: Iterable[str]) -> list[Job]:
    """Return the jobs in the order of the rows."""
    return [
        Job(contestant, shape, dtype)
        for dtype in dtypes
        for shape in shapes
        for contestant in who.contestants(shape, backends)
    ]


def facts_of(device: torch.device, commit: str | None) -> dict[str, Any]:
    """Return what every row says of where it was made; git knows the commit better than we do."""
    facts = environment(device) | {"reinmax": version("reinmax")}
    if facts["commit"] is None and commit is not None:
        facts |= {"commit": commit, "dirty": False}
    if facts["dirty"] is not False:
        print("The library is not as in a commit: rows for a look, not to be committed.")
    return facts


def measure(
    todo: list[Job], device: torch.device, seconds: float | None, facts: dict[str, Any]
) -> list[Row]:
    """Return the rows of all jobs that fit into the seconds, None for all."""
    began = time.perf_counter()
    done: dict[Job, list[Row]] = {}
    # The small ones first: what they leave of their share goes to the large ones.
    queue = sorted(todo, key=lambda j: (j.contestant.rank, torch.Size(j.shape).numel()))
    for place, job in enumerate(queue):
        left = None if seconds is None else began + seconds - time.perf_counter()
        if left is not None and left <= 0:
            print(f"{job}: left out, the time is over", flush=True)
            continue
        weights = sum(j.weight for j in queue[place:])
        share = PATIENCE if left is None else left * job.weight / weights
        try:
            done[job] = _rows(job, device, share, left, facts)
        except (gt.BackendError, torch.OutOfMemoryError) as error:
            print(f"{job}: left out, {str(error).splitlines()[0]}", flush=True)
    return [row for job in todo for row in done.get(job, [])]


def repeats_for(job: Job, one: float, share: float, left: float | None) -> int:
    """Return how many repeats of so many seconds to make, 0 if the least do not fit."""
    if left is not None and (LEAST + OVERHEAD) * one > left:
        return 0
    most = MOST_HEAVY if job.contestant.name in who.HEAVY else MOST
    return min(most, max(LEAST, int(share / one)))


def _rows(
    job: Job, device: torch.device, share: float, left: float | None, facts: dict[str, Any]
) -> list[Row]:
    if job.contestant.backend:
        torch.compiler.reset()  # each shape compiled for itself, none past a limit of recompiles
    torch.manual_seed(0)
    problem = timing.Problem.make(job.shape, DTYPES[job.dtype], device)
    timers = _timers(job, problem)
    cost = timing.warm_up(timers)
    one = timing.round_seconds(cost)
    repeats = repeats_for(job, one, share, left)
    if not repeats:
        print(f"{job}: left out, {LEAST} repeats would take {LEAST * one:.0f} s", flush=True)
        return []
    times = timing.paired(timers, cost, repeats)
    fixed = _fixed(job, problem, facts) | {"repeats": str(repeats)}
    rows = [fixed | numbers for numbers in _numbers(job, problem, times)]
    last = rows[-1]
    print(f"{job}: {float(last['median_us']):.0f} us, softmax x {last['ratio_to_softmax']}, "
          f"{repeats} repeats", flush=True)  # fmt: skip
    return [{name: row[name] for name in pages.HEAD} for row in rows]


def _timers(job: Job, problem: timing.Problem) -> dict[str, Callable[[], timing.Numbers]]:
    """Return the contestant and those it is paired with."""
    forwards = who.peers() | {job.contestant.name: job.contestant.forward}
    if job.contestant.name == who.STREAMED and job.shape in who.DIRECT_SHAPES:
        forwards[who.DIRECT] = who.direct()
    timers = {name: problem.timer(forward) for name, forward in forwards.items()}
    return {**timers, "floor": problem.floor_timer()}


def _fixed(job: Job, problem: timing.Problem, facts: dict[str, Any]) -> Row:
    """Return what the three rows of a job have in common."""
    return {
        "device": facts["device"],
        "torch": facts["torch"],
        "threads": str(facts["threads"]),
        "commit": facts["commit"] or "",
        "contestant": job.contestant.name,
        "backend": job.contestant.backend,
        "shape": "x".join(map(str, job.shape)),
        "dtype": job.dtype,
        "saved_bytes": str(timing.saved_bytes(problem, job.contestant.forward)),
        "logits_bytes": str(problem.size),
        "environment": json.dumps(facts, sort_keys=True),
    }


def _numbers(
    job: Job, problem: timing.Problem, times: dict[str, list[timing.Numbers]]
) -> Iterator[Row]:
    """Yield what differs between forward, backward and both."""
    forward = job.contestant.forward
    peaks, launched = timing.peak_bytes(problem, forward), timing.launches(problem, forward)
    floor = statistics.median(t.both for t in times["floor"])
    for place, part in enumerate(timing.PARTS):
        mine = [t[place] for t in times[job.contestant.name]]
        low, _, _, high = statistics.quantiles(mine, n=5, method="inclusive")
        yield {
            "part": part,
            "median_us": f"{statistics.median(mine):.2f}",
            "low_us": f"{low:.2f}",
            "high_us": f"{high:.2f}",
            **{f"ratio_to_{name}": _ratio(times, name, mine, place) for name in pages.RATIOS},
            "copy_gb_s": f"{timing.FLOOR_UNITS[-1] * problem.size / floor / 1e3:.2f}",
            "peak_bytes": str(int(peaks[place])),
            "launches": "" if launched is None else str(int(launched[place])),
        }


def _ratio(times: dict[str, list[timing.Numbers]], name: str, mine: list[float], place: int) -> str:
    """Return the median of the ratios to another, repeat by repeat; empty if it took no part."""
    if name not in times:
        return ""
    pairs = zip(mine, times[name], strict=True)
    return f"{statistics.median(a / b[place] for a, b in pairs):.4f}"


def _shape(text: str) -> who.Shape:
    return tuple(int(size) for size in text.split("x"))


def options() -> argparse.Namespace:
    """Return the options, the ones that depend on the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="measure, and put the rows into this file")
    parser.add_argument("--page", type=Path, help="write the page and, beside it, the pictures")
    parser.add_argument("--full", action="store_true", help="all dtypes, as long as it takes")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all threads together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 2; on a GPU 1")
    parser.add_argument("--shapes", type=_shape, nargs="+", help="such as 100x4x8 4096x64")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES))
    parser.add_argument("--backends", nargs="+")
    parser.add_argument("--commit", help="of the tree, where it has travelled without its git")
    chosen = parser.parse_args()
    cuda = chosen.device.startswith("cuda")
    chosen.threads = chosen.threads or ([1] if cuda else [1, 2])
    chosen.shapes = chosen.shapes or (who.SHAPES + who.CUDA_SHAPES if cuda else who.SHAPES)
    chosen.dtypes = chosen.dtypes or (list(DTYPES) if cuda or chosen.full else ["float32"])
    chosen.backends = chosen.backends or ["auto", "compile", *(["triton"] if cuda else [])]
    return chosen


def main() -> None:
    """Measure, write the rows, the page and the pictures."""
    chosen = options()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler notes each start and stop
    if chosen.out is not None:
        device = torch.device(chosen.device)
        backends = who.available(chosen.backends, device)
        todo = jobs(chosen.shapes, chosen.dtypes, backends)
        seconds = None if chosen.full else 60.0 * chosen.minutes / len(chosen.threads)
        for threads in chosen.threads:
            torch.set_num_threads(threads)
            print(f"{threads} threads, {len(todo)} contestants and shapes", flush=True)
            facts = facts_of(device, chosen.commit)
            rows = measure(todo, device, seconds, facts)
            pages.write(chosen.out, pages.merged(pages.read(chosen.out), rows))
    if chosen.page is not None:
        rows = pages.read(chosen.out or COMMITTED)
        for device in dict.fromkeys(row["device"] for row in rows):
            name = pages.picture_name(device)
            records.replace(chosen.page.with_name(name), pages.picture(rows, device))
        records.replace(chosen.page, pages.page(rows).encode())


if __name__ == "__main__":
    main()
