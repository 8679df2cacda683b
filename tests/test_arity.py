"""Latents of many arities on corners, and the two parts of the variance of a gradient."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import gradthrough as gt
from gradthrough.bench import records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.vae import VAE, corners
from gradthrough.bench.together import run_together
from gradthrough.bench.train import run
from gradthrough.bench.variances import (
    REFERENCE_SAMPLES,
    Components,
    Spread,
    gradient_variances,
)
from gradthrough.rollout import Bound

TINY = VAE("digits", latents=3, classes=4, hidden=(16, 8), bound_samples=3, code="corners")
PROBED = replace(TINY, variance_minibatches=3, variance_draws=2, variance_batch=5)
SERVED = [key for key, kind in gt.ESTIMATORS.items() if "categorical" in kind.traits.families]
ARITIES = {2: 240, 4: 120, 8: 80, 16: 60}


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def config(task=TINY, estimator="stgs", **changes):
    return RunConfig(task.name, task.options(), estimator, **({"epochs": 1} | changes))


@pytest.mark.parametrize("classes", ARITIES)
def test_the_corners_are_those_of_the_cube(classes):
    found = corners(classes)
    bits = int(math.log2(classes))
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits)))
    assert torch.equal(found, every)


@pytest.mark.parametrize(("classes", "latents"), ARITIES.items())
def test_all_arities_give_the_decoder_as_many_inputs(classes, latents):
    task = VAE("mnist", latents=latents, classes=classes, code="corners")
    model = task._network(784)
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if "weight" in name]
    out = latents * classes
    assert shapes == [(512, 784), (256, 512), (out, 256), (256, 240), (512, 256), (784, 512)]


def test_the_decoder_sees_the_corners():
    vae = TINY.model(Seeds(0)).double()
    index = torch.tensor([[0, 3, 1], [2, 2, 0]])
    z = torch.nn.functional.one_hot(index, 4).double()
    numbers = corners(4).double()[index].flatten(-2)  # (2, 3 * 2)
    close(vae.decode(z), vae.decoder[1:](numbers).sigmoid())
    # Off the corners it is affine, as for one-hots: that is what relaxed points need.
    soft = torch.full((1, 3, 4), 0.25, dtype=torch.float64)
    close(vae.decode(soft), vae.decoder[1:](torch.zeros(1, 6, dtype=torch.float64)).sigmoid())


def test_corners_and_one_hots_share_encoder_and_are_models_of_the_same_code():
    flat, bent = (replace(TINY, code=code).model(Seeds(0)) for code in ("onehot", "corners"))
    for one, other in zip(flat.encoder.parameters(), bent.encoder.parameters(), strict=True):
        assert torch.equal(one, other)
    assert flat.decoder[0].in_features == 12
    assert bent.decoder[1].in_features == 6
    assert "corners" not in "".join(bent.state_dict())


@pytest.mark.parametrize("key", SERVED)
def test_every_estimator_trains_on_corners(key):
    model, estimator = TINY.model(Seeds(0)), gt.estimator(key)
    assert TINY.refuses(estimator) is None
    before = {name: x.clone() for name, x in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    bound = Bound(estimator, estimator.traits.min_samples, torch.Generator().manual_seed(1))
    for batch in itertools.islice(TINY.batches("train", Seeds(0), epoch=0, size=10), 3):
        TINY.losses(model, batch, bound).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, x in model.state_dict().items():
        assert x.isfinite().all()
        assert not torch.equal(x, before[name]), name


@pytest.mark.parametrize("optimizer", ["adam", "radam"])
@pytest.mark.parametrize(
    ("classes", "latents"), [(8, 4), (4, 24), (8, 16), (16, 12), (64, 8), (10, 30)]
)
def test_the_six_published_sizes_train(optimizer, classes, latents, tmp_path):
    task = VAE("digits", latents, (16, 8), valid=1377, bound_samples=0, classes=classes)
    one = config(
        task, "reinmax", batch_size=20, optimizer=optimizer, estimator_options={"tau": 1.3}
    )
    result = run(one, out=tmp_path, progress=False, task=task)
    assert (result.status, result.records[-1].step) == ("done", 3)


def test_the_slope_is_that_of_the_activation():
    found = {
        slope: {type(m).__name__ for m in replace(TINY, slope=slope).model(Seeds(0)).modules()}
        for slope in (0.0, 0.2)
    }
    assert "ReLU" in found[0.0]
    assert "LeakyReLU" not in found[0.0]
    assert "LeakyReLU" in found[0.2]
    leaky = replace(TINY, slope=0.2).model(Seeds(0))
    slopes = {m.negative_slope for m in leaky.modules() if isinstance(m, torch.nn.LeakyReLU)}
    assert slopes == {0.2}


def test_what_was_added_is_left_out_of_older_configs():
    old = {"dataset", "latents", "hidden", "binarize", "valid", "bound_samples", "classes"}
    assert VAE().options().keys() == old
    on_file = "42beb18726c3"
    assert RunConfig("vae", VAE().options(), "reinmax", {"tau": 1.3}).key == on_file
    assert TINY.options().keys() == old | {"code"}


def test_the_bound_may_be_of_the_first_images_alone():
    model, seeds = TINY.model(Seeds(0)), Seeds(0)
    whole = TINY.evaluate(model, "test", seeds, final=True)
    assert replace(TINY, bound_images=10_000).evaluate(model, "test", seeds, final=True) == whole
    few = replace(TINY, bound_images=7).evaluate(model, "test", seeds, final=True)
    generator = torch.Generator().manual_seed(seeds.of("bound", "test"))
    with torch.no_grad():
        want = TINY._bound(model, TINY.data.test[:7], generator).mean()
    assert few == {"neg_bound": pytest.approx(float(want), rel=1e-6)}
    early = replace(TINY, bound_images=7).evaluate(model, "test", seeds)
    assert early == TINY.evaluate(model, "test", seeds)
    assert replace(TINY, bound_images=7).evaluate(model, "valid", seeds, final=True) == {}


def test_the_parts_of_the_variance_are_unbiased():
    # Two minibatches out of three, each with two draws of the noise out of two: all 144 outcomes.
    centres = torch.tensor([[0.0, 1.0], [2.0, -1.0], [5.0, 0.0]], dtype=torch.float64)
    steps = torch.tensor([[1.0, 0.0], [3.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    found = torch.zeros(2, dtype=torch.float64)
    outcomes = list(itertools.product(range(3), range(3), *[range(2)] * 4))
    for a, b, *draws in outcomes:
        parts = Components()
        for batch, pair in ((a, draws[:2]), (b, draws[2:])):
            spread = Spread()
            spread.add(centres[batch] + signs[pair].unsqueeze(-1) * steps[batch])
            parts.add(spread)
        found += torch.tensor([parts.noise, parts.minibatch], dtype=torch.float64) / len(outcomes)
    noise = steps.square().sum(-1).mean()
    minibatch = (centres - centres.mean(0)).square().sum(-1).mean()
    close(found, torch.stack((noise, minibatch)))


def minibatches(task, n=4, size=5):
    return [task.data.train[10 * i : 10 * i + size] for i in range(n)]


def test_the_probe_is_a_plain_loop_over_minibatches_and_draws():
    vae = TINY.model(Seeds(0))
    parameters = list(vae.encoder.parameters())
    batches = minibatches(TINY)
    settings = {"draws": 3, "samples": 2}
    generator = torch.Generator().manual_seed(1)
    estimator = gt.StraightThroughGumbelSoftmax()
    found = gradient_variances(
        TINY, vae, batches, estimator, parameters, generator=generator, **settings
    )
    generator.manual_seed(1)
    pairs = ((estimator, 2), (gt.RLOO(), REFERENCE_SAMPLES))
    rows = [
        [
            torch.stack([gradient(vae, x, e, n, generator) for _ in range(3)]).double()
            for e, n in pairs
        ]
        for x in batches
    ]
    own = torch.stack([a for a, _ in rows])  # (minibatch, draw, parameter)
    means, reference = own.mean(1), torch.stack([b.mean(0) for _, b in rows])
    noise = own.var(1).sum(-1).mean()
    gap = means - reference

    def square(x):
        return x.mean(0).square().sum() - x.var(0).sum() / len(x)

    want = {
        "mc variance": noise,
        "minibatch variance": means.var(0).sum() - noise / 3,
        "squared bias": square(gap),
        "squared gradient": square(reference),
    }
    ratio = {"relative squared bias": want["squared bias"] / want["squared gradient"]}
    want |= ratio if want["squared gradient"] > 0 else {}
    assert found == pytest.approx({k: float(v) for k, v in want.items()}, rel=1e-6, abs=1e-9)
    assert all(p.grad is None for p in vae.parameters())


def gradient(vae, x, estimator, samples, generator):
    loss = vae(x, Bound(estimator, samples, generator)).mean()
    parts = torch.autograd.grad(loss, list(vae.encoder.parameters()))
    return torch.cat([p.flatten() for p in parts])


def test_without_noise_all_variance_is_that_of_the_minibatches():
    vae = TINY.model(Seeds(0))
    batches = minibatches(TINY)
    found = gradient_variances(
        TINY,
        vae,
        batches,
        gt.Enumerate(),
        list(vae.encoder.parameters()),
        draws=2,
        samples=1,
        generator=torch.Generator().manual_seed(0),
    )
    rows = torch.stack([gradient(vae, x, gt.Enumerate(), 1, None) for x in batches]).double()
    assert found["mc variance"] == 0
    assert found["minibatch variance"] == pytest.approx(float(rows.var(0).sum()), rel=1e-6)


def test_minibatches_are_drawn_anew_at_each_epoch():
    task = replace(PROBED, binarize="dynamic", variance_batch=50)
    one, again, later = (list(task._minibatches(Seeds(0), e)) for e in (1, 1, 2))
    assert len(one) == 3
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], later[0])
    plain = replace(task, binarize="none")
    for x in plain._minibatches(Seeds(0), 1):
        known = (x.unsqueeze(1) == plain.data.train).all(-1)
        assert known.any(-1).all()
        assert len(x.unique(dim=0)) == 50
    with_more = next(replace(plain, variance_batch=5000)._minibatches(Seeds(0), 1))
    assert len(with_more) == 1437


def test_the_probe_follows_tau():
    # With tau_end the tau of the epoch that has just ended is the one that is probed.
    model = PROBED.model(Seeds(0))
    moving = config(PROBED, epochs=3, estimator_options={"tau": 2.0}, tau_end=0.5)
    fixed = config(PROBED, epochs=3, estimator_options={"tau": 0.5})
    assert PROBED.probe(model, moving, epoch=3) == PROBED.probe(model, fixed, epoch=3)
    assert PROBED.probe(model, moving, epoch=1) != PROBED.probe(model, fixed, epoch=1)
    assert TINY.probe(model, fixed, epoch=1) == {}


@pytest.mark.parametrize("key", ["stgs", "gumbel_rao", "rloo", "rebar"])
def test_a_run_records_the_parts_of_the_variance(key, tmp_path):
    task = replace(PROBED, valid=1377, bound_images=10)
    one = config(task, key, epochs=2, batch_size=20, optimizer="sgd", momentum=0.9)
    result = run(one, out=tmp_path, progress=False, task=task)
    assert result.status == "done"
    probed = [(r.step, r.metric) for r in records.read(result.path) if r.split == "probe"]
    names = {"mc variance", "minibatch variance", "squared bias", "squared gradient"}
    for step in (3, 6):
        assert {m for s, m in probed if s == step} - {"relative squared bias"} == names


def test_seeds_that_train_together_are_probed_like_each_alone(tmp_path):
    task = replace(PROBED, valid=1377)
    one = config(task, "stgs", batch_size=20, lr=1e-3)
    together = run_together(one, (0, 1), out=tmp_path / "together", progress=False, task=task)
    for seed, result in enumerate(together):
        alone = run(replace(one, seed=seed), out=tmp_path / "alone", progress=False, task=task)
        found, want = (
            {r.metric: r.value for r in records.read(x.path) if r.split == "probe"}
            for x in (result, alone)
        )
        assert found == pytest.approx(want, rel=1e-3)


def test_refusals_have_a_reason():
    with pytest.raises(gt.ConfigError, match="onehot or corners"):
        replace(TINY, code="corner")
    with pytest.raises(gt.DomainError, match="power of two"):
        replace(TINY, classes=10)
    with pytest.raises(gt.DomainError, match="slope"):
        replace(TINY, slope=1.0)
    with pytest.raises(gt.DomainError, match="at least 2"):
        replace(TINY, variance_minibatches=1)
    for option in ("bound_images", "variance_batch", "variance_draws"):
        with pytest.raises(gt.DomainError, match=option):
            replace(TINY, **{option: 0})
    assert replace(TINY, code="onehot", classes=10).classes == 10
