"""The tasks: every estimator trains the one that has its latents; the models are what they say."""

import itertools
import math

import pytest
import torch
from lightning_fabric import Fabric

import gradthrough as gt
from gradthrough.bench.config import RunConfig
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.task import bare
from gradthrough.bench.tasks import TASKS
from gradthrough.bench.tasks.bernoulli_vae import BernoulliVAE
from gradthrough.bench.tasks.vae import VAE
from gradthrough.rollout import Bound
from problems import DISCRETE

TINY = {"hidden": (16, 8), "bound_samples": 3}
CATEGORICAL = VAE("digits", latents=2, classes=3, **TINY)
BINARY = BernoulliVAE("digits", latents=4, valid=0, **TINY)
KINDS = ("analytic", "sampled")
EVERY = pytest.mark.parametrize("key", DISCRETE)


def task_of(estimator):
    return CATEGORICAL if "categorical" in estimator.traits.families else BINARY


def trained(task, estimator, steps=3, lr=1e-2):
    """Train a fresh model for some steps; return the losses and the parameters."""
    seeds = Seeds(0)
    model = task.model(seeds)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    bound = Bound(estimator, estimator.traits.min_samples, torch.Generator().manual_seed(1))
    losses = []
    for batch in itertools.islice(task.batches("train", seeds, epoch=0, size=20), steps):
        loss = task.losses(model, batch, bound)
        assert loss.shape == (20,)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses), dict(model.named_parameters())


@EVERY
def test_every_estimator_trains_encoder_and_decoder(key):
    estimator = gt.estimator(key)
    task = task_of(estimator)
    assert task.refuses(estimator) is None
    losses, after = trained(task, estimator)
    before = dict(task.model(Seeds(0)).named_parameters())
    assert losses.isfinite().all()
    for name, x in after.items():
        assert x.isfinite().all()
        assert not torch.equal(x, before[name]), name
    again, repeated = trained(task, estimator)
    assert torch.equal(losses, again)
    assert all(torch.equal(x, repeated[name]) for name, x in after.items())


@EVERY
def test_a_task_refuses_the_estimators_that_cannot_serve_its_latents(key):
    estimator = gt.estimator(key)
    for task in (CATEGORICAL, BINARY):
        reason = task.refuses(estimator)
        family = task.law().family
        assert (reason is None) == (family in estimator.traits.families)
        if reason is not None:
            assert family in reason


def test_every_task_of_the_table_says_what_it_is():
    for name, kind in TASKS.items():
        assert kind.name == name
        assert kind.metrics


def exact_gradient(task, model, x):
    """Return the gradient of the loss of one batch in all parameters."""
    task.losses(model, x, Bound(gt.Enumerate())).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("prior", ["fixed", "learned"])
def test_the_sampled_kl_has_the_gradient_of_the_analytic_one(prior):
    tasks = [BernoulliVAE("digits", 3, valid=0, prior=prior, kl=kl, **TINY) for kl in KINDS]
    models = [task.model(Seeds(0)) for task in tasks]
    x = tasks[0].data.test[:5]
    for model in models:
        with torch.no_grad():
            model.prior_logits.add_(torch.tensor([0.3, -1.0, 2.0]))
    analytic, sampled = (
        exact_gradient(task, model, x) for task, model in zip(tasks, models, strict=True)
    )
    assert len(analytic) == 12 + (prior == "learned")
    for a, b in zip(analytic, sampled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", [gt.StraightThrough(), gt.ReinMax()], ids=repr)
def test_a_pathwise_estimator_of_the_sampled_kl_alone_is_exact(estimator):
    # log q and log p are affine in z, and these are exact in the mean where f is affine.
    model = BernoulliVAE("digits", 3, valid=0, kl="sampled", **TINY).model(Seeds(0))
    model.reconstruction = lambda z, x: 0.0 * z.sum(-1)
    logits = torch.tensor([0.5, -1.5, 2.0], requires_grad=True)
    model.encoder = torch.nn.Identity()
    (want,) = torch.autograd.grad(model.kl(gt.Bernoulli(logits, event_dims=1)), logits)
    corners = gt.Bernoulli(torch.zeros(3), event_dims=1).support()
    q = gt.Bernoulli(logits.detach(), event_dims=1)
    got = torch.zeros(3)
    for corner in corners:
        noise = q.noise_for(corner)

        def expect(f, dist, noise=noise):
            return gt.expect(f, dist, estimator, noise=noise.unsqueeze(0))

        (gradient,) = torch.autograd.grad(model(logits, expect), logits)
        got += q.log_prob(corner).exp() * gradient
    torch.testing.assert_close(got, want)


@EVERY
def test_a_sampled_kl_trains_with_all_but_soft_samples(key):
    estimator = gt.estimator(key)
    if "bernoulli" not in estimator.traits.families:
        pytest.skip("serves no Bernoulli latents")
    task = BernoulliVAE("digits", 4, valid=0, kl="sampled", prior="learned", **TINY)
    reason = task.refuses(estimator)
    if estimator.traits.relaxed:
        assert "soft" in reason
        return
    assert reason is None
    losses, after = trained(task, estimator)
    assert losses.isfinite().all()
    assert after["prior_logits"].abs().min() > 0


def test_the_closed_forms_are_those_of_the_library():
    model = BernoulliVAE("digits", 6, valid=0, prior="learned", **TINY).model(Seeds(0))
    with torch.no_grad():
        model.prior_logits.copy_(torch.linspace(-2, 2, 6))
    q = gt.Bernoulli(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), event_dims=1)
    z = q.expand(4).sample(generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.kl(q), q.kl(model.prior()))
    torch.testing.assert_close(model.log_posterior(q, z), q.log_prob(z))
    torch.testing.assert_close(model.log_prior(z), model.prior().log_prob(z))


def test_the_sizes_are_the_published_ones():
    model = BernoulliVAE("mnist")._network(784)
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if "weight" in name]
    assert shapes == [(200, 784), (200, 200), (200, 200), (200, 200), (200, 200), (784, 200)]
    assert {m.negative_slope for m in model.modules() if hasattr(m, "negative_slope")} == {0.3}
    assert len(list(model.parameters())) == 12
    assert torch.equal(model.prior().probs, torch.full((200,), 0.5))


def test_the_bound_of_many_samples_is_the_likelihood():
    task = BernoulliVAE("digits", 3, valid=0, hidden=(8,), bound_samples=4000, binarize="none")
    model = task.model(Seeds(0))
    x = task.data.test[:3]
    bound = task._bound(model, x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = model.prior().support().unsqueeze(1).expand(8, 3, 3)
        exact = -torch.logsumexp(-model.reconstruction(z, x) - 3 * math.log(2), 0)
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.02)


def test_options_are_checked():
    with pytest.raises(gt.ConfigError, match="fixed or learned"):
        BernoulliVAE("digits", prior="fxed")
    with pytest.raises(gt.ConfigError, match="analytic or sampled"):
        BernoulliVAE("digits", kl="none")
    with pytest.raises(gt.DomainError, match="latents"):
        BernoulliVAE("digits", latents=0)
    with pytest.raises(gt.DomainError, match="classes"):
        VAE("digits", classes=1)


def test_options_make_a_config_and_a_config_makes_the_task():
    for task in (CATEGORICAL, BINARY):
        config = RunConfig(task.name, task.options(), "st")
        assert TASKS[config.task](**config.task_options) == task


class Named(torch.nn.Module):
    """A model with a part that it calls "module" itself."""

    def __init__(self):
        super().__init__()
        self.module = torch.nn.Linear(2, 2)


@pytest.fixture
def one_process():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_comes_out_of_all_that_is_around_it(one_process):
    model = Named()
    wrappers = (
        Fabric(accelerator="cpu").setup,
        torch.compile,
        torch.nn.parallel.DistributedDataParallel,
        torch.nn.DataParallel,
    )
    assert bare(model) is model
    for wrap in wrappers:
        assert bare(wrap(model)) is model
    for outer, inner in itertools.permutations(wrappers, 2):
        assert bare(outer(inner(model))) is model
