"""What every estimator promises, exactly: draws are enumerated, never sampled."""

import dataclasses

import pytest
import torch

import gradthrough as gt
from problems import (
    F64,
    HARD,
    PATHWISE,
    SCORE,
    UNBIASED,
    VARIANTS,
    draws,
    exact,
    mean,
    noise_for_rows,
    normal,
    plain,
    problem,
    samples_for,
    select,
    uniform,
)

EXACT = 1e-12
BIASED = 1e-3
CLASSES_OF_F = ("affine", "quadratic", "cubic")
FAMILY = pytest.mark.parametrize("family", ["categorical", "bernoulli"])
ENUMERABLE = select(lambda e: e.traits.noise != "class")
PLAIN_TAU = select(lambda e: e.traits.pathwise and e.tau == 1.0)


def everywhere(names=tuple(VARIANTS)):
    return pytest.mark.parametrize("name", names)


def small(name, family="categorical"):
    """A problem whose draws can be enumerated: one variable of two classes for noise per class."""
    if VARIANTS[name](gt.Categorical(torch.zeros(1, 2))).traits.noise == "class":
        return problem(family, variables=1, classes=2, seed=7)
    return problem(family)


def close(got, want, tolerance):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def distance(got, want):
    return float((got - want).abs().max())


def run(name, p, f, logits, samples=1, seed=0):
    """One estimate with fixed noise, (rows,)."""
    dist = p.dist(logits)
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator, samples)
    noise = uniform(*estimator.noise_shape(dist.expand(n)), seed=seed)
    return gt.expect(f, dist, estimator, samples=n, noise=noise)


def test_the_table_and_the_variants_agree():
    assert set(gt.ESTIMATORS) <= set(VARIANTS)
    assert PATHWISE
    assert SCORE
    assert HARD
    assert UNBIASED
    for key, kind in gt.ESTIMATORS.items():
        assert gt.estimator(key) == gt.estimator(key) or kind is gt.Reinforce
        assert type(gt.estimator(key)) is kind
        assert kind.__doc__
        assert kind.traits.reference


def test_an_estimator_is_frozen_and_its_class_abstract_or_final():
    for key, kind in gt.ESTIMATORS.items():
        assert not kind.__subclasses__()
        assert not getattr(kind, "__abstractmethods__", None)
        for field in dataclasses.fields(kind):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(gt.estimator(key), field.name, None)


@FAMILY
@everywhere(ENUMERABLE)
@pytest.mark.parametrize("samples", [1, 2])
def test_the_value_is_an_unbiased_estimate(name, family, samples):
    p = small(name, family)
    got = mean(name, p, p.cubic, samples)
    close(got.value, exact(p, p.cubic)[0], EXACT)


@FAMILY
@everywhere(select(lambda e: e.traits.noise == "class" and not e.traits.relaxed))
def test_noise_per_class_draws_from_the_law(name, family):
    p = small(name, family)
    close(mean(name, p, p.cubic).value, exact(p, p.cubic)[0], 1e-4)


@FAMILY
@everywhere(UNBIASED)
@pytest.mark.parametrize("f", [*CLASSES_OF_F, "lookup"])
def test_the_gradient_of_an_unbiased_estimator_is_exact(name, family, f):
    p = problem(family)
    close(mean(name, p, getattr(p, f)).gradient, exact(p, getattr(p, f))[1], EXACT)


@everywhere(UNBIASED)
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_the_gradient_is_exact_for_several_samples(name, samples):
    p = problem(variables=1, classes=3)
    close(mean(name, p, p.lookup, samples).gradient, exact(p, p.lookup)[1], EXACT)


@FAMILY
@everywhere(select(lambda e: not e.traits.unbiased))
def test_an_estimator_that_says_it_is_biased_is(name, family):
    p = small(name, family)
    assert distance(mean(name, p, p.cubic).gradient, exact(p, p.cubic)[1]) > BIASED


@FAMILY
@everywhere(PLAIN_TAU)
def test_exact_for_what_the_traits_say_and_for_no_more(name, family):
    p = small(name, family)
    kind = VARIANTS[name](p.dist(p.logits)).traits.exact_for
    if kind == "all":
        pytest.skip("covered by the unbiased ones")
    promised = CLASSES_OF_F[: 0 if kind == "none" else CLASSES_OF_F.index(kind) + 1]
    for f in promised:
        close(mean(name, p, getattr(p, f)).gradient, exact(p, getattr(p, f))[1], EXACT)
    if family == "bernoulli":  # two classes can be served better than promised
        return
    beyond = getattr(p, CLASSES_OF_F[len(promised)])
    assert distance(mean(name, p, beyond).gradient, exact(p, beyond)[1]) > BIASED


@FAMILY
@everywhere()
def test_the_parameters_of_f_get_the_gradient_of_the_value(name, family):
    p = small(name, family)
    w = normal(p.linear.numel(), seed=9).requires_grad_()

    def f(z):
        return (p.flat(z) @ w) ** 2 + w.sum()

    dist = p.dist(p.logits)
    one = VARIANTS[name](dist)
    n = samples_for(one)
    noise, weight = draws(one, dist, n)
    rows = p.dist(p.logits.expand(len(weight), *p.logits.shape))
    estimator = VARIANTS[name](rows)
    value = gt.expect(f, rows, estimator, samples=n, noise=noise)
    (got,) = torch.autograd.grad((value * weight).sum(), w)
    if one.traits.noise == "class":  # its grid is not exact at the boundary
        expected = (f(estimator.draw(rows.expand(n), noise).points).mean(0) * weight).sum()
    else:
        expected = exact(p, f)[0]
    close(got, torch.autograd.grad(expected, w)[0], EXACT)


@everywhere(UNBIASED)
def test_logits_that_f_uses_too_get_both_parts(name):
    """An ELBO: d/dtheta E_theta f_theta, with f from the logits and the point."""
    p = problem(variables=1, classes=3)
    theta = p.logits.clone().requires_grad_()

    def energy(z, logits):
        return (z * logits.log_softmax(-1)).sum((-2, -1)) * p.lookup(z)

    one = VARIANTS[name](p.dist(theta))
    n = samples_for(one)
    noise, weight = draws(one, p.dist(theta), n)
    rows = p.dist(theta.expand(len(weight), *theta.shape))
    value = gt.expect(
        lambda z: energy(z, theta), rows, VARIANTS[name](rows), samples=n, noise=noise
    )
    (got,) = torch.autograd.grad((value * weight).sum(), theta)
    points = torch.eye(3, dtype=F64).reshape(3, 1, 1, 3)
    total = (theta.softmax(-1)[0] * energy(points, theta)[:, 0]).sum()
    close(got, torch.autograd.grad(total, theta)[0], EXACT)


@FAMILY
@everywhere()
def test_evaluations_is_how_often_f_is_called(name, family):
    p = problem(family)
    dist = p.dist(p.logits.expand(4, *p.logits.shape))
    estimator = VARIANTS[name](dist)
    counts, seen = [samples_for(estimator), samples_for(estimator, 3)], []
    for samples in counts:
        gt.expect(lambda z: seen.append(z.shape) or p.cubic(z), dist, estimator, samples=samples)
    assert seen == [(estimator.evaluations(dist, n), 4, *p.logits.shape) for n in counts]


@everywhere()
def test_the_same_noise_gives_the_same_result_bit_for_bit(name):
    p = problem()
    theta = p.logits.expand(5, 2, 3).clone().requires_grad_()
    values, gradients = [], []
    for seed in (3, 3, 4):
        value = run(name, p, p.cubic, theta, samples=2, seed=seed)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value.sum(), theta)[0])
    assert torch.equal(values[0], values[1])
    assert torch.equal(gradients[0], gradients[1])
    finite = VARIANTS[name](p.dist(theta)).traits.noise == "none"
    assert torch.equal(gradients[0], gradients[2]) == finite


@everywhere()
def test_a_generator_gives_what_its_noise_gives(name):
    p = problem()
    dist = p.dist(p.logits.expand(5, 2, 3))
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator)
    noise = estimator.noise(dist.expand(n), generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    by_generator = gt.expect(p.cubic, dist, estimator, samples=n, generator=generator)
    assert torch.equal(by_generator, gt.expect(p.cubic, dist, estimator, samples=n, noise=noise))


@everywhere()
def test_nothing_else_gets_a_gradient_and_nothing_is_modified(name):
    p = problem()
    theta = p.logits.expand(5, 2, 3).clone().requires_grad_()
    dist = p.dist(theta)
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator)
    noise = uniform(*estimator.noise_shape(dist.expand(n))).requires_grad_()
    before = theta.detach().clone(), noise.detach().clone()
    gt.expect(p.cubic, dist, estimator, samples=n, noise=noise).sum().backward()
    assert theta.grad is not None
    assert theta.grad.abs().max() > 0
    assert noise.grad is None
    assert torch.equal(theta, before[0])
    assert torch.equal(noise, before[1])


@everywhere(select(lambda e: e.traits.min_samples > 1))
def test_a_constant_in_f_does_not_change_a_leave_one_out_gradient(name):
    p = problem()
    theta = p.logits.expand(5, 2, 3).clone().requires_grad_()
    gradients = [
        torch.autograd.grad(run(name, p, f, theta, samples=3).sum(), theta)[0]
        for f in (p.lookup, lambda z: p.lookup(z) + 100.0)
    ]
    close(gradients[1], gradients[0], EXACT)


@everywhere(PATHWISE)
def test_pathwise_gradients_sum_to_zero_over_classes(name):
    p = problem(classes=5)
    theta = p.logits.expand(50, 2, 5).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(name, p, p.cubic, theta).sum(), theta)
    close(gradient.sum(-1), torch.zeros(50, 2, dtype=F64), EXACT)
    assert gradient.abs().max() > BIASED


@everywhere()
def test_permuting_the_batch_permutes_the_gradient(name):
    p = problem()
    theta = normal(6, 2, 3)
    order = torch.tensor([3, 1, 5, 0, 4, 2])

    def gradient(logits, rows):
        leaf = logits[rows].clone().requires_grad_()
        dist = p.dist(leaf)
        estimator = VARIANTS[name](dist)
        n = samples_for(estimator)
        noise = uniform(*estimator.noise_shape(p.dist(logits).expand(n)))
        noise = noise if estimator.traits.noise == "none" else noise[:, rows]
        return torch.autograd.grad(
            gt.expect(p.cubic, dist, estimator, samples=n, noise=noise).sum(), leaf
        )[0]

    close(gradient(theta, order), gradient(theta, torch.arange(6))[order], EXACT)


@everywhere(PATHWISE)
def test_the_function_form_equals_the_class_form(name):
    theta = normal(5, 3).requires_grad_()
    estimator = VARIANTS[name](gt.Categorical(theta))
    noise = noise_for_rows(estimator, theta)
    weights = normal(3, seed=2)
    by_function = ((plain(estimator)(theta, noise=noise) @ weights) ** 2).sum()
    by_class = gt.expect(lambda z: (z @ weights) ** 2, theta, estimator, noise=noise[None]).sum()
    assert torch.equal(by_function, by_class)
    first, second = (torch.autograd.grad(v, theta)[0] for v in (by_function, by_class))
    close(first, second, 1e-15)
