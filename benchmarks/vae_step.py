"""A training step of the 10 x 30 VAE against the same loop in plain torch.

    python benchmarks/vae_step.py --out benchmarks/results/vae_step.csv

Every row is a ratio of medians: steps of all candidates are taken in turn in one process, so that
a slow moment of the machine hits all alike. The peer draws with ``F.gumbel_softmax(hard=True)``
and is otherwise the same model, optimiser, data and loss.
"""

import argparse
import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

import gradthrough as gt
from gradthrough.auditing import cost
from gradthrough.bench.environment import environment
from gradthrough.bench.tasks.vae import CategoricalVAE
from gradthrough.rollout import Bound

LATENTS, CLASSES, BATCH = 30, 10, 100
PEER = "plain torch"
CANDIDATES = {
    "st": gt.StraightThrough(tau=1.4),
    "stgs": gt.StraightThroughGumbelSoftmax(tau=0.5),
    "gst": gt.GappedStraightThrough(tau=0.5),
    "reinmax": gt.ReinMax(tau=1.3),
    "gumbel_rao k=100": gt.GumbelRao(tau=1.0, k=100),
    "rloo": gt.RLOO(),
}


def model() -> CategoricalVAE:
    """Return the model of both sides."""
    return CategoricalVAE(784, (512, 256), LATENTS, CLASSES)


def batches(images: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return the input pipeline: a shuffled order, and one gather for each batch."""
    order = torch.randperm(len(images))
    at = 0

    def following() -> torch.Tensor:
        nonlocal at
        at = (at + BATCH) % (len(images) - BATCH)
        return images[order[at : at + BATCH]]

    return following


def ours(images: torch.Tensor, estimator: gt.AbstractEstimator) -> Callable[[], None]:
    """Return a step with gradthrough."""
    vae, following = model(), batches(images)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-6, fused=True)
    bound = Bound(estimator, estimator.traits.min_samples, torch.Generator())

    def step() -> None:
        vae(following(), bound).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain(images: torch.Tensor, vae: CategoricalVAE | None = None) -> Callable[[], None]:
    """Return the same step as people write it in torch."""
    following, vae = batches(images), vae or model()
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        x = following()
        logits = vae.encoder(x).view(-1, LATENTS, CLASSES)
        z = F.gumbel_softmax(logits, tau=0.5, hard=True)
        out = vae.decoder(z.flatten(-2))
        bce = F.binary_cross_entropy_with_logits(out, x, reduction="none").sum(-1)
        q = logits.softmax(-1)
        kl = (q * (q + 1e-10).log()).sum((-1, -2)) + LATENTS * math.log(CLASSES)
        (bce + kl).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def arguments(description: str | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=200)
    return parser.parse_args()


def compare(
    steps: Mapping[str, Callable[[], object]], rounds: int, out: Path, peer: str = PEER
) -> None:
    """Time steps in turn, print their ratios to the peer's, and write them as CSV."""
    seconds = cost.step_times(steps, rounds=rounds)
    facts = json.dumps(environment(torch.device("cpu")), sort_keys=True)
    ratio = f"ratio_to_{peer.replace(' ', '_')}"
    head = ("candidate", "median_ms", ratio, "quartile_low", "quartile_high")
    rows = []
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[peer], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = 1000 * statistics.median(values)
        rows.append((name, *(f"{v:.4f}" for v in (median, middle, low, high))))
        print(f"{name:24} {median:8.3f} ms   ratio {middle:.3f}  [{low:.3f}, {high:.3f}]")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([(*head, "environment"), *((*row, facts) for row in rows)])


def main() -> None:
    """Time, print and write."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    images = torch.rand(6000, 784)
    steps: dict[str, Callable[[], object]] = {PEER: plain(images)}
    steps |= {name: ours(images, one) for name, one in CANDIDATES.items()}
    steps["input pipeline"] = batches(images)
    compare(steps, options.rounds, options.out)


if __name__ == "__main__":
    main()
