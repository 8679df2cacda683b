"""What an audit costs: ten estimators, 1,000 replicates each, on a VAE of digits.

python benchmarks/audit_cost.py --out benchmarks/results/audit_cost.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import gradthrough as gt
from gradthrough.bench.environment import environment
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.vae import VAE

KEYS = (
    "st", "stgs", "gumbel_rao", "gst", "reinmax", "decoupled_st", "reinforce", "rloo", "vargrad",
    "coupled",
)  # fmt: skip
HEAD = ("on", "repeat", "seconds", "peak_gib", "imports_gib", "biased", "environment")
GIB = 2**20  # of the kilobytes that the system counts


def measure(on: str) -> tuple[float, float, float, str]:
    """Return seconds, peak memory of the process, that before the audit, and who is biased."""
    task, seeds = VAE("digits", latents=4, classes=8), Seeds(0)
    task.prepare(torch.device("cpu"))
    model = task.model(seeds)
    batch = next(task.batches("train", seeds, epoch=0, size=100))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    if on == "logits":

        def f(z: Tensor) -> Tensor:
            return model.reconstruction(z, batch)

        report = gt.audit(f, model.encode(batch), KEYS, generator=generator)
    else:
        report = gt.audit_model(
            lambda expect: task.losses(model, batch, expect),
            model.encoder,
            KEYS,
            generator=generator,
        )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    assert len(report.measured) == len(KEYS)
    biased = " ".join(row.estimator for row in report.measured if row.biased)
    return seconds, peak, before, biased


def main() -> None:
    """Measure each in a process of its own, whose peak is then its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=("logits", "weights"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        facts = json.dumps(environment(torch.device("cpu")), sort_keys=True)
        seconds, peak, before, biased = measure(options.one)
        row = [f"{seconds:.1f}", f"{peak:.2f}", f"{before:.2f}", biased, facts]
        csv.writer(sys.stdout, lineterminator="\n").writerow(row)
        return
    rows: list[list[str]] = [list(HEAD)]
    for on in ("logits", "weights"):
        for repeat in range(options.repeats):
            words = [sys.executable, __file__, "--one", on, "--threads", str(options.threads)]
            text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            (found,) = csv.reader([text.splitlines()[-1]])
            rows.append([on, str(repeat), *found])
            print(*rows[-1][:-1], flush=True)
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
