"""What an audit of 1,000 replicates can see on a VAE of digits."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import gradthrough as gt
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.vae import VAE

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Tilted(gt.AbstractEstimator):
    """RLOO with a gradient that is five per cent too long, and thus off by that much."""

    traits: ClassVar[gt.Traits] = gt.RLOO.traits

    def draw(self, dist, noise):
        return gt.RLOO().draw(dist, noise)

    def combine(self, draws, values, point_gradients=None):
        value = gt.RLOO().combine(draws, values, point_gradients).value
        return gt.Estimate(value + 0.05 * (value - value.detach()))


def test_a_bias_of_five_per_cent_is_found_and_none_is_not():
    task, seeds = VAE("digits", latents=4, classes=8), Seeds(0)
    task.prepare(torch.device("cpu"))
    model = task.model(seeds)
    batch = next(task.batches("train", seeds, epoch=0, size=100))
    with torch.no_grad():
        q = model.encode(batch)
    report = gt.audit(
        lambda z: model.reconstruction(z, batch),
        q,
        {"rloo": gt.RLOO(), "tilted": Tilted()},
        replicates=1000,
        generator=torch.Generator().manual_seed(0),
    )
    plain, tilted = report.row("rloo"), report.row("tilted")
    assert not plain.biased
    assert plain.bias_low == 0.0
    assert tilted.biased
    size = 0.05 * report.reference.norm
    assert tilted.bias_low > 0
    assert tilted.bias == pytest.approx(size, rel=0.5)  # how sure: see the calibration
