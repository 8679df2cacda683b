"""What every estimator promises, exactly: draws are enumerated, never sampled."""

import dataclasses

import pytest
import torch

import gradthrough as gt
from problems import (
    ANY,
    DISCRETE,
    F64,
    HARD,
    PATHWISE,
    PLAIN_TAU,
    SCORE,
    UNBIASED,
    VARIANTS,
    draws,
    every,
    exact,
    expectation,
    family_of,
    mean,
    noise_for_rows,
    normal,
    plain,
    problem,
    samples_for,
    select,
    served,
    uniform,
    value_under,
)

EXACT = 1e-12
BIASED = 1e-3
PER_CLASS = ("class", "class+variable")
CLASSES_OF_F = ("affine", "quadratic", "cubic")
GRIDDED = select(lambda e: e.traits.pathwise and e.traits.noise == "class")
ENUMERABLE = [name for name in VARIANTS if name not in GRIDDED]
# No derivative of f is asked for, so f may be a table.
ANY_F = select(lambda e: not e.traits.needs_point_gradients or getattr(e, "eta", None) == 0.0)


def small(name, family=None, samples=1):
    """A problem whose draws can be enumerated: fewer variables or classes for noise per class."""
    family, one = family or family_of(name), VARIANTS[name](ANY)
    if one.traits.noise in PER_CLASS and one.traits.pathwise:
        return problem(family, variables=1, classes=2, seed=7)
    many = isinstance(one, gt.ARSM) and samples > 1
    return problem(family, classes=2 if many or one.traits.noise == "class2" else 3)


def functions(name):
    """Every kind of f that the estimator serves."""
    return [*CLASSES_OF_F, *(["lookup"] if name in ANY_F else [])]


def hardest(name, p):
    """The f that assumes least."""
    return getattr(p, functions(name)[-1])


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
    assert set(DISCRETE) <= set(VARIANTS)
    assert PATHWISE
    assert SCORE
    assert HARD
    assert UNBIASED
    for key, kind in gt.ESTIMATORS.items():
        tuned = kind is gt.Reinforce or kind.traits.scalars  # may hold tensors
        assert gt.estimator(key) == gt.estimator(key) or tuned
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


@served(ENUMERABLE)
@pytest.mark.parametrize("samples", [1, 2])
def test_the_value_is_an_unbiased_estimate(name, family, samples):
    p = small(name, family, samples)
    got = mean(name, p, p.cubic, samples)
    close(got.value, value_under(VARIANTS[name](p.dist(p.logits)), p, p.cubic), EXACT)


@served([name for name in GRIDDED if name in HARD])
def test_noise_per_class_draws_from_the_law(name, family):
    p = small(name, family)
    close(mean(name, p, p.cubic).value, exact(p, p.cubic)[0], 1e-4)


@served(UNBIASED)
def test_the_gradient_of_an_unbiased_estimator_is_exact(name, family):
    p = small(name, family)
    for f in functions(name):
        close(mean(name, p, getattr(p, f)).gradient, exact(p, getattr(p, f))[1], EXACT)


@served(UNBIASED)
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_value_and_gradient_are_exact_for_several_samples(name, family, samples):
    p = small(name, family, samples)
    if family == "categorical":
        p = problem(variables=1, classes=p.logits.shape[-1])
    for scale in (1.0, 0.2):  # coupled coins hit together only if they are not rare
        p = p._replace(logits=scale * p.logits)
        f = hardest(name, p)
        value, gradient = exact(p, f)
        got = mean(name, p, f, samples)
        close(got.value, value, EXACT)
        close(got.gradient, gradient, EXACT)


@pytest.mark.parametrize("masks", [((1,), (0,)), ((0, 2), (1,)), ((), (2,)), ((1, 2), (0, 1))])
@every([name for name in UNBIASED if "categorical" in VARIANTS[name](ANY).traits.families])
def test_masked_classes_leave_the_gradient_exact(name, masks):
    """Of three classes, each variable masks others; moderate logits, for the quadrature's sake."""
    if VARIANTS[name](ANY).traits.noise == "class2" and () in masks:
        pytest.skip("the quadrature is for at most two classes")
    p = problem()
    masked = torch.tensor([[c in mask for c in range(3)] for mask in masks])
    p = p._replace(logits=(p.logits / 2).masked_fill(masked, -torch.inf))
    for samples in (1, 2) if not isinstance(VARIANTS[name](ANY), gt.ARSM) else (1,):
        got, (value, want) = mean(name, p, hardest(name, p), samples), exact(p, hardest(name, p))
        close(got.value, value, EXACT)
        close(got.gradient, want, EXACT)
        assert bool((got.gradient[masked] == 0).all())


@served([name for name in UNBIASED if "bernoulli" in VARIANTS[name](ANY).traits.families])
def test_a_masked_one_leaves_the_gradient_of_the_others_exact(name, family):
    p = problem("bernoulli", variables=3)
    masked = torch.tensor([False, True, False])
    p = p._replace(logits=p.logits.masked_fill(masked, -torch.inf))
    got, (value, want) = mean(name, p, hardest(name, p)), exact(p, hardest(name, p))
    close(got.value, value, EXACT)
    close(got.gradient, want, EXACT)
    assert float(got.gradient[1]) == 0


@served(select(lambda e: not e.traits.unbiased))
def test_an_estimator_that_says_it_is_biased_is(name, family):
    p = small(name, family)
    assert distance(mean(name, p, p.cubic).gradient, exact(p, p.cubic)[1]) > BIASED


@served(PLAIN_TAU)
def test_exact_for_what_the_traits_say_and_for_no_more(name, family):
    p = small(name, family)
    traits = VARIANTS[name](p.dist(p.logits)).traits
    kind = traits.exact_for
    if kind == "all":
        pytest.skip("covered by the unbiased ones")
    promised = CLASSES_OF_F[: 0 if kind == "none" else CLASSES_OF_F.index(kind) + 1]
    inner = traits.noise == "variable+seed"  # exact in its mean, for which see test_frontier.py
    for f in () if inner else promised:
        close(mean(name, p, getattr(p, f)).gradient, exact(p, getattr(p, f))[1], EXACT)
    if family == "bernoulli":  # two classes can be served better than promised
        return
    beyond = getattr(p, CLASSES_OF_F[len(promised)])
    assert distance(mean(name, p, beyond).gradient, exact(p, beyond)[1]) > BIASED


@served()
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
    if name in GRIDDED:  # its grid is not exact at the boundary
        expected = (f(estimator.draw(rows.expand(n), noise).points).mean(0) * weight).sum()
    else:
        expected = value_under(one, p, f)
    close(got, torch.autograd.grad(expected, w)[0], EXACT)


@served(UNBIASED)
def test_logits_that_f_uses_too_get_both_parts(name, family):
    """An ELBO: d/dtheta E_theta f_theta, with f from the logits and the point."""
    p = small(name, family)
    theta = p.logits.clone().requires_grad_()
    g = hardest(name, p)

    def energy(z):
        if family == "bernoulli":
            log_q = (z * theta - torch.nn.functional.softplus(theta)).sum(-1)
        else:
            log_q = (z * theta.log_softmax(-1)).sum((-2, -1))
        return log_q * g(z)

    one = VARIANTS[name](p.dist(theta))
    n = samples_for(one)
    noise, weight = draws(one, p.dist(theta), n)
    rows = p.dist(theta.expand(len(weight), *theta.shape))
    value = gt.expect(energy, rows, VARIANTS[name](rows), samples=n, noise=noise)
    (got,) = torch.autograd.grad((value * weight).sum(), theta)
    (want,) = torch.autograd.grad(expectation(p, energy, theta), theta)
    close(got, want, EXACT)


@served()
def test_evaluations_is_how_often_f_is_called(name, family):
    p = problem(family)
    dist = p.dist(p.logits.expand(4, *p.logits.shape))
    estimator = VARIANTS[name](dist)
    counts, seen = [samples_for(estimator), samples_for(estimator, 3)], []
    for samples in counts:
        gt.expect(lambda z: seen.append(z.shape) or p.cubic(z), dist, estimator, samples=samples)
    assert seen == [(estimator.evaluations(dist, n), 4, *p.logits.shape) for n in counts]


@served()
def test_the_same_noise_gives_the_same_result_bit_for_bit(name, family):
    p = problem(family)
    theta = p.logits.expand(5, *p.logits.shape).clone().requires_grad_()
    values, gradients = [], []
    for seed in (3, 3, 4):
        value = run(name, p, p.cubic, theta, samples=2, seed=seed)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value.sum(), theta)[0])
    assert torch.equal(values[0], values[1])
    assert torch.equal(gradients[0], gradients[1])
    match VARIANTS[name](p.dist(theta)):
        case gt.Enumerate():
            finite = True
        case gt.SumAndSample(k=k):
            finite = k + 1 >= p.dist(theta).support_size  # what is left is one point
        case _:
            finite = False
    assert torch.equal(gradients[0], gradients[2]) == finite


@served()
def test_a_generator_gives_what_its_noise_gives(name, family):
    p = problem(family)
    dist = p.dist(p.logits.expand(5, *p.logits.shape))
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator)
    noise = estimator.noise(dist.expand(n), generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    by_generator = gt.expect(p.cubic, dist, estimator, samples=n, generator=generator)
    assert torch.equal(by_generator, gt.expect(p.cubic, dist, estimator, samples=n, noise=noise))


@served()
def test_nothing_else_gets_a_gradient_and_nothing_is_modified(name, family):
    p = problem(family)
    theta = p.logits.expand(5, *p.logits.shape).clone().requires_grad_()
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


def looks_at_differences(e):
    """Whether a constant in f cancels, draw by draw."""
    match e:
        case gt.Reinforce():
            return e.baseline == "self_critical"
        case gt.MuProp() | gt.Rebar() | gt.Relax():
            return e.eta == 1.0
        case gt.Rodeo():
            return e.surrogate is None
        case gt.SumAndSample():
            return False
    return not e.traits.relaxed


@served(select(looks_at_differences))
def test_a_constant_in_f_does_not_change_the_gradient(name, family):
    p = problem(family)
    theta = p.logits.expand(5, *p.logits.shape).clone().requires_grad_()
    f = hardest(name, p) if name not in PATHWISE else p.cubic
    gradients = [
        torch.autograd.grad(run(name, p, g, theta, samples=3).sum(), theta)[0]
        for g in (f, lambda z: f(z) + 100.0)
    ]
    close(gradients[1], gradients[0], EXACT)


@every([name for name in VARIANTS if family_of(name) == "categorical"])
def test_gradients_sum_to_zero_over_classes(name):
    p = problem(classes=5)
    theta = p.logits.expand(50, 2, 5).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(name, p, p.cubic, theta).sum(), theta)
    close(gradient.sum(-1), torch.zeros(50, 2, dtype=F64), EXACT)
    assert gradient.abs().max() > BIASED


@served()
def test_permuting_the_batch_permutes_the_gradient(name, family):
    p = problem(family)
    theta = normal(6, *p.logits.shape)
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


@every(PATHWISE)
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
