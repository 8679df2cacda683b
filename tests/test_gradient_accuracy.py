"""Gradients held against the exact one: the table is the decoder, and the numbers are right."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import gradthrough as gt
from gradthrough.bench import records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks import TASKS
from gradthrough.bench.tasks._codes import Codes, accuracy, decoded, gradient_spread, hard
from gradthrough.bench.tasks.gradient_accuracy import GradientAccuracy
from gradthrough.bench.tasks.vae import VAE
from gradthrough.bench.train import run
from gradthrough.bench.variances import Spread

TINY = GradientAccuracy(
    "digits",
    latents=2,
    classes=4,
    hidden=(16, 8),
    bound_samples=0,
    estimators=("reinmax", "stgs"),
    probe_epochs=(1, 3),
    images=5,
    draws=6,
)
SERVED = [key for key, kind in gt.ESTIMATORS.items() if "categorical" in kind.traits.families]
CODES = pytest.mark.parametrize("code", ["onehot", "corners"])


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def problem(code="onehot", sharpness=20.0):
    """Return a model in float64, images, and logits of a q that is neither flat nor peaked."""
    task = replace(TINY, code=code)
    vae = task.model(Seeds(0)).double()
    x = next(task.batches("train", Seeds(0), epoch=0, size=5)).double()
    return vae, x, sharpness * vae.encode(x).logits.detach()


@CODES
def test_the_table_is_the_decoder(code):
    vae, x, _ = problem(code)
    support = vae.prior().support()
    z = support.unsqueeze(1).expand(16, 5, 2, 4).clone().requires_grad_()
    values = vae.reconstruction(z, x)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    whole = Codes(vae, x)
    close(whole.values, values.detach())
    close(whole.slopes, slopes)
    parts = Codes(vae, x, block=3)
    close(parts.values, whole.values)
    close(parts.slopes, whole.slopes)
    flipped = z.detach().flip(0).requires_grad_()
    looked_up = whole(flipped)
    close(looked_up.detach(), values.detach().flip(0))
    close(torch.autograd.grad(looked_up.sum(), flipped)[0], slopes.flip(0))
    assert not whole(z.detach()).requires_grad


@CODES
def test_the_exact_gradient_is_that_of_the_enumerated_expectation(code):
    vae, x, logits = problem(code)
    leaf = logits.clone().requires_grad_()
    q = gt.Categorical(leaf, event_dims=1)
    value = gt.expect(decoded(vae, x), q, gt.Enumerate())
    (want,) = torch.autograd.grad(value.sum(), leaf)
    close(Codes(vae, x).gradient(logits), want)
    close(Codes(vae, x, block=5).gradient(logits), want)


def test_the_exact_gradient_of_one_variable():
    task = replace(TINY, latents=1)
    vae = task.model(Seeds(0)).double()
    x = task.data.train[:3].double()
    logits = torch.randn(3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    codes = Codes(vae, x)
    pi, f = logits[:, 0].softmax(-1), codes.values.T
    want = pi * (f - (pi * f).sum(-1, keepdim=True))
    close(codes.gradient(logits)[:, 0], want)


@pytest.mark.parametrize("key", SERVED)
def test_an_estimator_does_the_same_on_the_table_as_on_the_decoder(key):
    vae, x, logits = problem()
    estimator, codes = gt.estimator(key), Codes(vae, x)
    if not hard(estimator):
        pytest.skip("evaluates f at relaxed points")
    one, other = (
        gradient_spread(f, logits, estimator, draws=3, seed=7) for f in (codes, decoded(vae, x))
    )
    close(one.mean, other.mean, 1e-11)
    assert math.isclose(one.variance, other.variance, rel_tol=1e-9, abs_tol=1e-20)


def test_enumeration_is_exact_and_has_no_spread():
    vae, x, logits = problem()
    codes = Codes(vae, x)
    spread = gradient_spread(codes, logits, gt.Enumerate(), draws=50, seed=0)
    assert spread.count == 2
    found = accuracy(codes.gradient(logits), spread)
    for name in ("cosine", "corrected cosine"):
        assert found[name] == pytest.approx(1, abs=1e-12)
    for name in ("error/exact", "error/mean", "bias", "std/mean"):
        assert found[name] == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("estimator", [gt.StraightThrough(), gt.ReinMax()], ids=repr)
def test_the_draws_follow_q(estimator):
    # Every draw at the noise that gives it, weighted: what mean and variance of draws tend to.
    vae, x, logits = problem()
    codes, q = Codes(vae, x), gt.Categorical(logits, event_dims=1)
    points = q.support().unsqueeze(1).expand(16, 5, 2, 4)
    leaf = logits.expand(16, 5, 2, 4).clone().requires_grad_()
    noise = q.noise_for(points).unsqueeze(0)
    value = gt.expect(codes, gt.Categorical(leaf, event_dims=1), estimator, noise=noise)
    (draws,) = torch.autograd.grad(value.sum(), leaf)
    weights = q.log_prob(points).exp()[..., None, None]
    mean = (weights * draws).sum(0)
    variance = float((weights * (draws - mean).square()).sum())
    spread = gradient_spread(codes, logits, estimator, draws=4000, seed=0)
    assert float((spread.mean - mean).square().sum()) < 3 * variance / 4000
    assert spread.variance == pytest.approx(variance, rel=0.1)


def test_estimators_with_one_kind_of_noise_get_the_same():
    vae, x, logits = problem()
    one, other = (
        gradient_spread(Codes(vae, x), logits, e, draws=3, seed=s).mean
        for e, s in ((gt.ReinMax(tau=1.0), 4), (gt.ReinMax(tau=1.0), 5))
    )
    assert not torch.equal(one, other)
    seen = []
    for estimator in (gt.StraightThrough(), gt.ReinMax(), gt.GappedStraightThrough()):
        points = []

        def f(z, points=points):
            points.append(z.detach())
            return decoded(vae, x)(z)

        gradient_spread(f, logits, estimator, draws=3, seed=4)
        seen.append(torch.cat(points, 1))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def spread_of(rows, chunks):
    spread = Spread()
    for part in rows.split(chunks):
        spread.add(part)
    return spread


@pytest.mark.parametrize("chunks", [1, 2, 3, 7, [2, 5], [6, 1]], ids=str)
def test_a_spread_is_mean_and_variance_however_it_is_fed(chunks):
    rows = 1e3 + torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    spread = spread_of(rows, chunks)
    close(spread.mean, rows.mean(0), 1e-10)
    assert spread.variance == pytest.approx(float(rows.var(0).sum()), rel=1e-9)


def test_a_spread_is_unbiased():
    # Every triple of draws from a law of three vectors, weighted by its probability.
    values = torch.tensor([[1.0, 0.0], [-2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    mean = p @ values
    variance = float(p @ (values - mean).square().sum(-1))
    found = torch.zeros(2, dtype=torch.float64)
    for triple in itertools.product(range(3), repeat=3):
        spread = spread_of(values[list(triple)], 2)
        found += p[list(triple)].prod() * torch.tensor(
            [spread.variance, spread.square], dtype=torch.float64
        )
    close(found, torch.tensor([variance, float(mean.square().sum())], dtype=torch.float64))


def test_the_numbers_are_what_they_say():
    exact = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    spread = spread_of(torch.tensor([[[3.0, 0.0]], [[3.0, 2.0]], [[3.0, 4.0]]]), 3)
    # The mean is (3, 2) with variance 4 a draw, so 4/3 of its square, 13, is noise.
    assert accuracy(exact, spread) == pytest.approx(
        {
            "error/exact": 2 / 5,
            "bias": math.sqrt(4 - 4 / 3) / 5,
            "error/mean": 2 / math.sqrt(13),
            "std/mean": 2 / math.sqrt(13),
            "cosine": 17 / (5 * math.sqrt(13)),
            "corrected cosine": 17 / (5 * math.sqrt(13 - 4 / 3)),
        }
    )


def test_numbers_without_a_divisor_are_left_out():
    zero, one = torch.zeros(1, 2), torch.ones(1, 2).double()
    still, moving = spread_of(torch.zeros(2, 1, 2), 1), spread_of(torch.ones(2, 1, 2), 1)
    assert accuracy(zero, still) == {}
    assert accuracy(one, still) == {"error/exact": 1, "bias": 1}
    assert accuracy(zero, moving) == {"error/mean": 1, "std/mean": 0}
    noisy = spread_of(torch.tensor([[[-1.0, 2.0]], [[1.0, 0.0]]]), 2)
    assert "corrected cosine" not in accuracy(one, noisy)
    assert len(accuracy(one, noisy)) == 5


def test_a_q_that_is_a_point_gives_no_nan():
    task = replace(TINY, estimators=tuple(SERVED), draws=2)
    model = task.model(Seeds(0))
    with torch.no_grad():
        model.encoder[-1].weight.mul_(1e5)
    found = task.probe(model, config(task), epoch=1)
    assert all(math.isfinite(x) for x in found.values())
    assert len(found) < 6 * len(SERVED)
    assert "cosine st" not in found


def config(task=TINY, estimator="reinmax", **changes):
    return RunConfig(task.name, task.options(), estimator, **({"epochs": 3} | changes))


def test_the_probe_is_at_its_epochs_and_the_same_for_one_seed():
    model = TINY.model(Seeds(0))
    assert TINY.probe(model, config(), epoch=2) == {}
    found = TINY.probe(model, config(), epoch=3)
    names = ("error/exact", "bias", "error/mean", "std/mean", "cosine")
    assert found.keys() >= {f"{n} {e}" for n in names for e in ("reinmax", "stgs")}
    assert found == TINY.probe(model, config(), epoch=3)
    assert found != TINY.probe(model, config(), epoch=1)
    assert found != TINY.probe(model, config(seed=1), epoch=3)
    # Which others are probed, and what the run trains with, makes no difference.
    alone = replace(TINY, estimators=("stgs",)).probe(model, config(estimator="st"), epoch=3)
    assert alone == {k: v for k, v in found.items() if k.endswith("stgs")}


def test_tau_is_that_of_the_probe():
    model = TINY.model(Seeds(0))
    hot = replace(TINY, tau=3.0).probe(model, config(), epoch=1)
    cold = TINY.probe(model, config(), epoch=1)
    assert hot.keys() == cold.keys()
    assert not any(hot[name] == cold[name] for name in cold)


@pytest.mark.parametrize("key", SERVED)
def test_a_run_with_any_estimator_probes_any_estimator(key, tmp_path):
    task = replace(TINY, valid=1377, estimators=(key, "enumerate"), draws=2, images=3)
    one = config(task, key, epochs=1, batch_size=20, lr=1e-3)  # three steps
    result = run(one, out=tmp_path, progress=False, task=task)
    assert result.status == "done"
    assert result.records[-1].step == 3
    probed = {r.metric: r.value for r in records.read(result.path) if r.split == "probe"}
    assert probed.keys() >= {f"error/exact {key}", "cosine enumerate"}
    assert probed["cosine enumerate"] == pytest.approx(1, abs=1e-5)


def test_refusals_have_a_reason():
    with pytest.raises(gt.ConfigError, match=r"281,474,976,710,656 codes.*fewer latents"):
        GradientAccuracy("digits", latents=24, classes=4)
    with pytest.raises(gt.ConfigError, match="Did you mean 'reinmax'"):
        replace(TINY, estimators=("reinmaxx",))
    with pytest.raises(gt.ConfigError, match=r"'disarm'.*serves bernoulli"):
        replace(TINY, estimators=("st", "disarm"))
    with pytest.raises(gt.DomainError, match="tau"):
        replace(TINY, tau=0.0)
    with pytest.raises(gt.DomainError, match="draws"):
        replace(TINY, draws=1)
    assert "disarm" not in SERVED
    assert "serves bernoulli" in TINY.refuses(gt.DisARM())


def test_options_make_a_config_and_a_config_makes_the_task():
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in TINY.options().items()}
    assert TASKS["gradient_accuracy"](**listed) == TINY  # as JSON has them
    assert replace(TINY, tau=1).options() == TINY.options()
    assert isinstance(TINY, VAE)
