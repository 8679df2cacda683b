"""Estimators at the sites of Pyro programs: the gradient of the ELBO, exactly, and handlers."""

import re
from itertools import product
from pathlib import Path

import pytest
import torch

import gradthrough as gt

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import (  # noqa: E402
    SVI,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.reparam.reparam import Reparam  # noqa: E402

F64 = torch.float64
N, C = 4, 3
EXACT = [
    key
    for key, kind in gt.ESTIMATORS.items()
    if kind.traits.pathwise and kind.traits.noise == "variable"
    and kind.traits.exact_for in ("affine", "quadratic")
]  # fmt: skip
REFUSED = [k for k, kind in gt.ESTIMATORS.items() if not kind.traits.pathwise]
SITES = {
    "one-hot": lambda: dist.OneHotCategorical(logits=normal(N, C)),
    "one-hot of probabilities": lambda: dist.OneHotCategorical(probs=normal(N, C).softmax(-1)),
    "straight-through": lambda: dist.OneHotCategoricalStraightThrough(logits=normal(N, C)),
    "relaxed": lambda: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=normal(N, C)),
    "relaxed straight-through": lambda: dist.RelaxedOneHotCategoricalStraightThrough(
        torch.tensor(0.5, dtype=F64), logits=normal(N, C)
    ),
    "bernoulli": lambda: dist.Bernoulli(logits=normal(N, C)),
    "bernoulli of probabilities": lambda: dist.Bernoulli(normal(N, C).sigmoid()),
    "relaxed bernoulli": lambda: dist.RelaxedBernoulli(
        torch.tensor(0.5, dtype=F64), logits=normal(N, C)
    ),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def site(fn):
    """A Pyro message, as a reparameterizer sees it."""
    return {"name": "z", "fn": fn, "value": None, "is_observed": False}


def replaced(fn, estimator=None):
    return gt.pyro.EstimatorReparam(estimator or gt.ReinMax()).apply(site(fn))["fn"]


class Problem:
    """Rows with two one-hot latents under a plate; an ELBO affine or quadratic in them."""

    def __init__(self, degree):
        self.degree = degree
        self.theta = [normal(N, C, seed=s).requires_grad_() for s in (1, 2)]
        self.prior = [normal(C, seed=s).requires_grad_() for s in (3, 4)]
        self.table = [normal(C, 2, seed=s).requires_grad_() for s in (5, 6)]
        self.data = normal(N, 2, seed=7)

    @property
    def parameters(self):
        return (*self.theta, *self.prior, *self.table)

    def model(self):
        with pyro.plate("rows", N):
            z, y = (
                pyro.sample(n, dist.OneHotCategorical(logits=p))
                for n, p in zip("zy", self.prior, strict=True)
            )
            mean = z @ self.table[0] + y @ self.table[1]
            if self.degree == "quadratic":
                pyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=self.data)
            else:
                pyro.factor("x", (mean * self.data).sum(-1))

    def guide(self):
        with pyro.plate("rows", N):
            for name, logits in zip("zy", self.theta, strict=True):
                pyro.sample(name, dist.OneHotCategorical(logits=logits))

    def exact(self):
        guide = config_enumerate(self.guide, "parallel")
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(self.model, guide)
        return loss.detach(), torch.autograd.grad(loss, self.parameters)

    def mean(self, monkeypatch, model, guide, elbo, sites="zy"):
        """The mean of loss and gradients over all draws of the sites that have an estimator.

        Rows are independent of each other, and draw the same classes: each is counted alone, with
        the weight of its draw.
        """
        value, grads = 0.0, [torch.zeros_like(p) for p in self.parameters]
        laws = [gt.Categorical(t.detach()) for t in self.theta[: len(sites)]]
        queue = []
        monkeypatch.setattr("gradthrough.sampling.uniforms", lambda *_: queue.pop(0))
        for classes in product(torch.eye(C, dtype=F64), repeat=len(sites)):
            draws = [(law, z.expand(N, C)) for law, z in zip(laws, classes, strict=True)]
            weight = sum(law.log_prob(z) for law, z in draws).exp()
            for row in range(N):
                queue[:] = [law.noise_for(z) for law, z in draws]
                with poutine.mask(mask=torch.arange(N) == row):
                    loss = elbo.differentiable_loss(model, guide)
                value = value + weight[row] * loss.detach()
                found = torch.autograd.grad(loss, self.parameters)
                grads = [g + weight[row] * x for g, x in zip(grads, found, strict=True)]
        return value, grads


def reparameterized(problem, key="reinmax", sites="zy"):
    """The model and the guide with an estimator at the sites."""
    estimators = dict.fromkeys(sites, gt.ESTIMATORS[key]())
    return gt.pyro.reparam(problem.model, problem.guide, estimators)


# --- the gradient of the ELBO


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("key", EXACT)
def test_the_mean_gradient_is_that_of_the_sum_over_classes(monkeypatch, key, elbo):
    """Where the ELBO is what the estimator is exact for, for guide and model parameters."""
    problem = Problem(gt.ESTIMATORS[key].traits.exact_for)
    loss, grads = problem.exact()
    got, means = problem.mean(monkeypatch, *reparameterized(problem, key), elbo())
    close(got, loss)
    for mean, grad in zip(means, grads, strict=True):
        assert grad.abs().max() > 1e-3
        close(mean, grad)


def test_the_gradient_through_the_models_log_prob_is_lost_without_its_reparam(monkeypatch):
    problem = Problem("affine")
    _, grads = problem.exact()
    _, guide = reparameterized(problem, "st")
    loss, means = problem.mean(monkeypatch, problem.model, guide, Trace_ELBO())
    close(loss, problem.exact()[0])
    assert (means[0] - grads[0]).abs().max() > 0.01


ROWS = normal(20, 2, seed=8) + 2.0 * torch.eye(2, dtype=F64)[torch.arange(20) % 2]
SUM = TraceEnum_ELBO(max_plate_nesting=1)
SAMPLES = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)


def mixture():
    table = pyro.param("table", normal(C, 2, seed=9))
    with pyro.plate("rows", len(ROWS)):
        z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(C, dtype=F64)))
        pyro.sample("x", dist.Normal(z @ table, 1.0).to_event(1), obs=ROWS)


def posterior():
    logits = pyro.param("logits", torch.zeros(len(ROWS), C, dtype=F64))
    with pyro.plate("rows", len(ROWS)):
        pyro.sample("z", dist.OneHotCategorical(logits=logits))


def trained(model, guide, loss):
    """The exact ELBO of a row after 250 steps."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.98}), loss)
    for _ in range(250):
        svi.step()
    return -SUM.loss(mixture, config_enumerate(posterior, "parallel")) / len(ROWS)


def test_training_reaches_the_elbo_of_the_sum_over_classes():
    """To 0.02 nats a row, which Pyro's own REINFORCE misses by 0.05 and more."""
    best = trained(mixture, config_enumerate(posterior, "parallel"), SUM)
    reinmax = trained(*gt.pyro.reparam(mixture, posterior, {"z": gt.ReinMax()}), SAMPLES)
    reinforce = trained(mixture, posterior, SAMPLES)
    assert -2.90 < best < -2.89
    assert best - 0.02 < reinmax <= best
    assert reinforce < best - 0.05


# --- what becomes of a site


@pytest.mark.parametrize("wrap", ["plain", "event", "mask", "event mask", "expand", "no"])
@pytest.mark.parametrize("name", SITES)
def test_a_site_keeps_its_law_and_shapes(name, wrap):
    mask = torch.tensor([True, False, True, True])
    wraps = {
        "plain": lambda fn: fn,
        "event": lambda fn: fn.to_event(1),
        "mask": lambda fn: fn.mask(mask.unsqueeze(-1) if len(fn.batch_shape) == 2 else mask),
        "event mask": lambda fn: fn.to_event(len(fn.batch_shape) - 1).mask(mask),
        "expand": lambda fn: fn.expand((2, *fn.batch_shape)).to_event(1),
        "no": lambda fn: fn.mask(False),
    }
    fn = wraps[wrap](SITES[name]())
    got = replaced(fn)
    assert got.has_rsample
    assert got.batch_shape == fn.batch_shape
    assert got.event_shape == fn.event_shape
    z = got()
    assert z.shape == fn.shape()
    if "relaxed" not in name:
        close(got.log_prob(z.detach()), fn.log_prob(z.detach()))
    else:
        logits, bare = normal(N, C), replaced(SITES[name]())
        want = logits.sigmoid() if "bernoulli" in name else logits.softmax(-1)
        close(bare.probs, want)


def test_what_no_handler_of_pyro_makes_but_a_user_may_is_expanded():
    narrow = dist.torch_distribution.ExpandedDistribution(SITES["one-hot"](), (2, N))
    assert replaced(narrow).batch_shape == (2, N)


def test_a_site_is_replaced_by_a_law_of_its_kind():
    one_hot, bernoulli = replaced(SITES["one-hot"]()), replaced(SITES["bernoulli"]())
    assert isinstance(one_hot, dist.OneHotCategorical | gt.distributions.OneHotCategorical)
    assert isinstance(one_hot, gt.distributions.OneHotCategorical)
    assert isinstance(bernoulli, gt.distributions.Bernoulli)
    assert isinstance(bernoulli, dist.Bernoulli)
    assert one_hot.estimator == gt.ReinMax()
    assert replaced(one_hot, gt.StraightThrough()).estimator == gt.StraightThrough()


@pytest.mark.parametrize(
    ("fn", "remedy"),
    [
        (dist.Normal(0.0, 1.0), "Leave the site out"),
        (dist.Categorical(logits=torch.zeros(3)), "z @ table"),
        (dist.Poisson(torch.ones(2)).to_event(1), "Leave the site out"),
    ],
)
def test_another_kind_of_site_is_refused(fn, remedy):
    with pytest.raises(gt.UnsupportedError, match=f"(?s)'z'.*serves.*{remedy}"):
        replaced(fn)


@pytest.mark.parametrize("key", REFUSED)
def test_an_estimator_without_a_pathwise_sample_is_refused_with_what_pyro_has(key):
    one = gt.ESTIMATORS[key]
    built = one(lambda z: z.sum(-1)) if key == "relax" else one()
    with pytest.raises(gt.UnsupportedError, match="Trace_ELBO does REINFORCE itself"):
        gt.pyro.EstimatorReparam(built)


def test_a_soft_sample_and_no_estimator_are_refused():
    with pytest.raises(gt.UnsupportedError, match="relaxed points"):
        gt.pyro.EstimatorReparam(gt.GumbelSoftmax())
    with pytest.raises(gt.UnsupportedError, match="expected an estimator"):
        gt.pyro.reparam(None, None, {"z": "reinmax"})


# --- handlers


def test_an_observed_site_is_left_alone():
    fn, value = SITES["one-hot"](), torch.eye(C, dtype=F64)[[0, 1, 2, 0]]
    msg = {"name": "z", "fn": fn, "value": value, "is_observed": True}
    got = gt.pyro.EstimatorReparam(gt.ReinMax()).apply(msg)
    assert got["fn"] is fn
    assert got["value"] is value
    assert got["is_observed"] is True
    assert isinstance(gt.pyro.EstimatorReparam(gt.ReinMax()), Reparam)


def test_a_conditioned_site_has_its_log_prob():
    problem = Problem("quadratic")
    values = {n: torch.eye(C, dtype=F64)[[0, 1, 2, 0]] for n in "zy"}
    model, _ = reparameterized(problem)
    sums = [
        poutine.trace(poutine.condition(one, data=values)).get_trace().log_prob_sum()
        for one in (model, problem.model)
    ]
    close(*sums)


def test_the_model_replays_the_sample_of_the_guide():
    problem = Problem("quadratic")
    model, guide = reparameterized(problem)
    drawn = poutine.trace(guide).get_trace()
    played = poutine.trace(poutine.replay(model, trace=drawn)).get_trace()
    for name in "zy":
        z = drawn.nodes[name]["value"]
        assert z.shape == (N, C)
        assert z.requires_grad
        assert played.nodes[name]["value"] is z
        assert type(played.nodes[name]["fn"]) is gt.pyro.OneHotCategorical
    assert type(played.nodes["x"]["fn"]) is dist.Independent


@pytest.mark.parametrize("inside", [True, False])
def test_a_plate_draws_its_rows_independently(inside):
    fn = dist.OneHotCategorical(logits=torch.zeros(C, requires_grad=True))
    config = {"z": gt.pyro.EstimatorReparam(gt.ReinMax())}

    def bare():
        return pyro.sample("z", fn)

    def rows(program):
        with pyro.plate("rows", 50):
            return program()

    if inside:
        z = poutine.reparam(rows, config=config)(bare)
    else:
        z = rows(poutine.reparam(bare, config=config))
    assert z.shape == (50, C)
    assert z.requires_grad
    assert len(z.detach().unique(dim=0)) == C


def test_other_sites_may_be_enumerated(monkeypatch):
    """config_enumerate passes by the site with an estimator; y is summed over, z is drawn."""
    problem = Problem("quadratic")
    loss, grads = problem.exact()
    model, guide = reparameterized(problem, sites="z")
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    got, means = problem.mean(
        monkeypatch, model, config_enumerate(guide, "parallel"), elbo, sites="z"
    )
    close(got, loss)
    for mean, grad in zip(means, grads, strict=True):
        close(mean, grad)


def test_a_site_with_an_estimator_is_not_enumerated_too():
    problem = Problem("quadratic")

    def guide():
        with pyro.plate("rows", N):
            for name, logits in zip("zy", problem.theta, strict=True):
                q = dist.OneHotCategorical(logits=logits)
                pyro.sample(name, q, infer={"enumerate": "parallel"})

    programs = gt.pyro.reparam(problem.model, guide, {"z": gt.ReinMax()})
    with pytest.raises(gt.UnsupportedError, match="leave it out of the reparam"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(*programs)


def test_a_site_may_still_be_told_to_draw_without_a_gradient():
    fn = replaced(SITES["one-hot"]()).has_rsample_(False)
    assert not fn().requires_grad
    score = fn.score_parts(fn()).score_function
    assert torch.is_tensor(score)


def test_sites_that_are_not_named_are_left_alone():
    problem = Problem("quadratic")
    _, guide = gt.pyro.reparam(problem.model, problem.guide, {"z": gt.ReinMax()})
    nodes = poutine.trace(guide).get_trace().nodes
    assert type(nodes["z"]["fn"]) is gt.pyro.OneHotCategorical
    assert type(nodes["y"]["fn"]) is dist.OneHotCategorical


# --- the page


def test_the_page_shows_a_program_and_the_whole_change_to_it():
    page = (Path(__file__).parents[2] / "docs" / "pyro.md").read_text(encoding="utf-8")

    def fences(language):
        return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)

    program, by_hand = fences("python")
    (change,) = fences("diff")
    gone, come = (
        "".join(line[1:] + "\n" for line in change.splitlines() if line[0] == sign) for sign in "-+"
    )
    assert program.count(gone) == 1
    seen = {}
    pyro.clear_param_store()
    exec(program, seen)
    exec(program.replace(gone, come), seen)
    exec(by_hand, seen)
    for model, guide in ((seen["svi"].model, seen["svi"].guide), seen["programs"]):
        for one in (model, guide):
            node = poutine.trace(one).get_trace().nodes["z"]
            assert isinstance(node["fn"], gt.pyro.OneHotCategorical)
