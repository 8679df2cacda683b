"""What holds for every function of gt.structured: dtypes, masks, noise, transforms, refusals."""

from typing import NamedTuple

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

import gradthrough as gt
from gradthrough import structured as s
from problems import F64, normal, uniform

# Raised while tracing, within torch itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")
INF = torch.inf
N, K = 5, 2
ORDER = torch.tensor([3, 1])
RAMP = torch.linspace(-1.0, 1.0, N, dtype=F64)
POINT = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0], dtype=F64)


class Case(NamedTuple):
    """A function of logits whose rows are independent, and what its noise is like."""

    call: object  # (logits, noise keywords) to a tensor
    noise: object = None  # from the shape of the logits to that of the noise
    rows: int = 1  # dims of one row
    smooth: bool = True  # its gradient is the derivative of its value
    k: int = 1


def same(shape):
    return shape


def chain(x, u, k=2):
    """A beam search whose logits do not depend on the prefix."""
    step = lambda state, tokens: (state, state)  # noqa: E731
    start = torch.zeros(x.shape[:-1], dtype=torch.int64)
    return s.stochastic_beam_search(step, x, k, start=start, max_length=2, end=0, **u).log_probs


def spread(index, x):
    return index.expand(*x.shape[:-1], *index.shape)


CASES = {
    "gumbel_top_k": Case(lambda x, u: s.gumbel_top_k(x, K, **u).perturbed, same, smooth=False, k=K),
    "plackett_luce_log_prob": Case(lambda x, _: s.plackett_luce_log_prob(x, spread(ORDER, x))),
    "plackett_luce_subset_log_prob": Case(
        lambda x, _: s.plackett_luce_subset_log_prob(x, spread(ORDER, x))
    ),
    "importance_weights": Case(
        lambda x, u: s.importance_weights(x, s.gumbel_top_k(x, K, **u)), same, smooth=False, k=K
    ),
    "relaxed_k_hot": Case(lambda x, u: s.relaxed_k_hot(x, K, 0.7, **u), same, k=K),
    "straight_through_k_hot": Case(
        lambda x, u: s.straight_through_k_hot(x, K, 0.7, **u), same, smooth=False, k=K
    ),
    "simple": Case(
        lambda x, u: s.simple(x, K, **u), lambda n: (*n[:-1], n[-1] - 1), smooth=False, k=K
    ),
    "sample_subset": Case(
        lambda x, u: s.sample_subset(x, K, **u), lambda n: (*n[:-1], n[-1] - 1), smooth=False, k=K
    ),
    "subset_marginals": Case(lambda x, _: s.subset_marginals(x, K), k=K),
    "subset_log_partition": Case(lambda x, _: s.subset_log_partition(x, K), k=K),
    "subset_log_prob": Case(lambda x, _: s.subset_log_prob(x, K, POINT.expand(x.shape or N)), k=K),
    "subset_entropy": Case(lambda x, _: s.subset_entropy(x, K), k=K),
    "subset_kl": Case(lambda x, _: s.subset_kl(x, 0.5 * x + RAMP, K), k=K),
    "stochastic_beam_search": Case(chain, lambda n: (2, *n[:-1], 3, n[-1]), smooth=False),
    "sinkhorn": Case(lambda x, _: s.sinkhorn(x, 0.7), rows=2),
    "gumbel_sinkhorn": Case(lambda x, u: s.gumbel_sinkhorn(x, 0.7, **u), same, rows=2),
    "gumbel_sinkhorn, hard": Case(
        lambda x, u: s.gumbel_sinkhorn(x, 0.7, hard=True, **u), same, rows=2, smooth=False
    ),
    "hard_concrete": Case(lambda x, u: s.hard_concrete(x, **u), same, rows=0),
    "hard_concrete_penalty": Case(lambda x, _: s.hard_concrete_penalty(x), rows=0),
    "hard_concrete_open": Case(lambda x, _: s.hard_concrete_open(x), rows=0),
    "hard_concrete_gate": Case(lambda x, _: s.hard_concrete_gate(x), rows=0),
}
NOISY = [name for name, case in CASES.items() if case.noise]
SMOOTH = [name for name, case in CASES.items() if case.smooth]
CHOOSING = [name for name, case in CASES.items() if case.k > 1]
CONSTANT = ("gumbel_top_k", "sample_subset")  # no gradient
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def every(names=CASES):
    return pytest.mark.parametrize("name", names)


def logits_for(name, *batch, seed=0):
    return normal(*batch, *([N] * CASES[name].rows), seed=seed)


def noise_for(name, x, seed=0):
    """The keywords that give a function its noise."""
    make = CASES[name].noise
    return {"noise": uniform(*make(tuple(x.shape)), seed=seed)} if make else {}


def run(name, x, **noise):
    return CASES[name].call(x, noise or noise_for(name, x))


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def gradient(name, x, **noise):
    x = x.detach().clone().requires_grad_()
    out = run(name, x, **noise)
    weights = normal(*out.shape, seed=9).to(out.dtype)
    return torch.autograd.grad((out * weights).sum(), x)[0]


def test_every_public_function_is_in_the_table():
    public = {n for n, f in vars(s).items() if callable(f) and not isinstance(f, type)}
    assert public - {"beam_weights"} == {name.partition(",")[0] for name in CASES}


# --- numbers


@every()
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_gives_finite_numbers_near_those_of_float64(name, dtype):
    x = logits_for(name, 3).to(dtype)
    out, want = run(name, x), run(name, x.double())
    kept = torch.float32 if name in ("gumbel_top_k", "stochastic_beam_search") else dtype
    assert out.dtype == (torch.float64 if dtype == torch.float64 else kept)
    assert out.isfinite().all()
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, 0.05)
    close(out.double(), want, tolerance)
    if name not in CONSTANT:
        assert gradient(name, x).dtype == dtype
        close(gradient(name, x).double(), gradient(name, x.double()), 5 * tolerance)


@every()
def test_logits_of_200_are_finite_in_float32(name):
    x = (200.0 * normal(4, *([N] * CASES[name].rows), seed=3).sign()).float()
    out = run(name, x)
    assert out.isfinite().all()
    if name not in CONSTANT:
        assert gradient(name, x).isfinite().all()


@every()
def test_batches_are_rows_of_their_own_whatever_their_strides(name):
    x = logits_for(name, 3, 2)
    noise = noise_for(name, x)
    whole = run(name, x, **noise)
    for i in range(3):
        for j in range(2):
            lead = (slice(None),) if name == "stochastic_beam_search" else ()
            part = {key: u[(*lead, i, j)] for key, u in noise.items()}
            close(whole[i, j], run(name, x[i, j], **part), 1e-12)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    close(run(name, strided, **noise), whole, 0.0)


@every()
def test_an_empty_batch_gives_an_empty_result(name):
    x = logits_for(name, 0).requires_grad_()
    out = run(name, x)
    assert 0 in out.shape
    if name not in CONSTANT:
        out.sum().backward()
        assert x.grad.shape == x.shape


@every()
def test_inputs_are_not_modified(name):
    x = logits_for(name, 3)
    noise = noise_for(name, x)
    kept = x.clone(), {key: u.clone() for key, u in noise.items()}
    run(name, x, **noise)
    if name not in CONSTANT:
        gradient(name, x, **noise)
    assert torch.equal(x, kept[0])
    assert all(torch.equal(u, kept[1][key]) for key, u in noise.items())


@every([n for n in CASES if CASES[n].rows and n != "subset_log_partition"])
def test_a_constant_added_to_the_logits_changes_nothing(name):
    x = logits_for(name, 3)
    close(run(name, x + 1e3), run(name, x), 1e-9)


# --- noise


@every(NOISY)
def test_the_same_noise_gives_the_same_result_and_other_noise_another(name):
    x = logits_for(name, 20)
    assert torch.equal(run(name, x), run(name, x))
    assert not torch.equal(run(name, x), run(name, x, **noise_for(name, x, seed=1)))


@every(NOISY)
def test_a_generator_is_the_source_and_gives_what_its_uniforms_give(name):
    x = logits_for(name, 20)
    first, second = (
        CASES[name].call(x, {"generator": torch.Generator().manual_seed(4)}) for _ in range(2)
    )
    assert torch.equal(first, second)
    torch.manual_seed(5)
    assert not torch.equal(first, CASES[name].call(x, {}))
    if name != "stochastic_beam_search":  # which draws as it goes
        shape = CASES[name].noise(tuple(x.shape))
        u = torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(4))
        assert torch.equal(first, run(name, x, noise=u))


@every(NOISY)
def test_noise_at_the_ends_of_its_range_is_fine(name):
    x = logits_for(name, 3)
    shape = CASES[name].noise(tuple(x.shape))
    for end in (0.0, 1 - 2.0**-53):
        assert run(name, x, noise=torch.full(shape, end, dtype=F64)).isfinite().all()


@every(NOISY)
def test_noise_that_does_not_fit_is_refused(name):
    x = logits_for(name, 3)
    u = noise_for(name, x)["noise"]
    with pytest.raises(gt.ShapeError, match="noise must have shape"):
        run(name, x, noise=u[..., None])
    with pytest.raises(gt.UnsupportedError, match="float64"):
        run(name, x, noise=u.float())
    with pytest.raises(gt.DomainError, match=r"\[0, 1\)"):
        run(name, x, noise=u + 1.0)
    with pytest.raises(gt.ConfigError, match="Pass one"):
        run(name, x, noise=u, generator=torch.Generator())


# --- derivatives and transforms


@every(SMOOTH)
def test_gradients_are_those_of_the_value(name):
    x = logits_for(name, 2).requires_grad_()
    noise = noise_for(name, x)
    assert torch.autograd.gradcheck(lambda y: run(name, y, **noise), (x,))
    assert torch.autograd.gradgradcheck(lambda y: run(name, y, **noise), (x,))


@every([n for n in SMOOTH if CASES[n].rows])
def test_gradients_are_those_of_the_value_beside_a_masked_class(name):
    x = logits_for(name, 2)
    free = torch.ones_like(x, dtype=torch.bool)
    if CASES[name].rows == 1:
        free[..., 0] = False
    else:
        free[..., 0, 1] = False
    noise = noise_for(name, x)

    def f(y):
        return run(name, torch.full_like(x, -INF).masked_scatter(free, y), **noise)

    assert torch.autograd.gradcheck(f, (x[free].requires_grad_(),))
    assert torch.autograd.gradgradcheck(f, (x[free].requires_grad_(),))


@every()
def test_vmap_and_vmap_of_grad_are_a_loop(name):
    x = logits_for(name, 3, 2)
    noises = [noise_for(name, x[0], seed=i) for i in range(3)]
    stacked = {key: torch.stack([n[key] for n in noises]) for key in noises[0]}

    def value(row, u):
        return run(name, row, **u)

    def loss(row, u):
        return (run(name, row, **u).sin()).sum()

    want = torch.stack([value(x[i], noises[i]) for i in range(3)])
    close(vmap(value)(x, stacked), want)
    if name not in CONSTANT:
        want = torch.stack([grad(loss)(x[i], noises[i]) for i in range(3)])
        close(vmap(grad(loss))(x, stacked), want)
        close(want[0], torch.autograd.functional.jacobian(lambda y: loss(y, noises[0]), x[0]))


@every([n for n in CASES if n not in CONSTANT])
def test_forward_mode_agrees_with_reverse_mode(name):
    x, v = logits_for(name, 2), logits_for(name, 2, seed=1)
    noise = noise_for(name, x)
    out, tangent = jvp(lambda y: run(name, y, **noise), (x,), (v,))
    w = normal(*out.shape, seed=5)
    close((tangent * w).sum(), (grad(lambda y: (run(name, y, **noise) * w).sum())(x) * v).sum())
    if CASES[name].smooth:
        assert hessian(lambda y: run(name, y, **noise).square().sum())(x).isfinite().all()


@every()
def test_compile_takes_it_whole(name, compiler):
    x = logits_for(name, 3)
    noise = noise_for(name, x)
    call = CASES[name].call
    given = compiler(lambda y, u: call(y, {"noise": u} if noise else {}))
    u = noise.get("noise")
    close(given(x, u), run(name, x, **noise), 1e-12)
    if name not in CONSTANT:
        y = x.clone().requires_grad_()
        out = given(y, u)
        weights = normal(*out.shape, seed=9)
        close(torch.autograd.grad((out * weights).sum(), y)[0], gradient(name, x, **noise), 1e-12)
    if noise:
        assert compiler(lambda y: call(y, {}))(x).isfinite().all()


# --- masks and refusals


@every(CHOOSING)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_classes_get_no_gradient_and_make_no_nan(name, dtype):
    x = torch.tensor(
        [[0.3, 0.1, -INF, 1.0, -INF], [-INF, 0.0, -INF, 0.0, -INF], [9.0, -9.0, -INF, 1e4, 0.0]]
    ).to(dtype)
    out = run(name, x)
    assert not out.isnan().any()
    if out.shape == x.shape and name != "gumbel_top_k":
        assert bool((out[x.isneginf()] == 0).all())
    if name not in CONSTANT:
        g = gradient(name, x)
        assert g.isfinite().all()
        assert bool((g[x.isneginf()] == 0).all())


@every(CHOOSING)
def test_fewer_allowed_classes_than_k_are_refused(name):
    x = logits_for(name, 3)
    x[1, 1:] = -INF
    noise = noise_for(name, x)
    with pytest.raises(gt.DomainError, match=r"k=2 classes are wanted, but 1 of 3 rows"):
        run(name, x, **noise)
    with pytest.raises(gt.DomainError, match="k=2 classes are wanted"):
        vmap(lambda y, u: run(name, y, **u))(x[:, None], {k: u[:, None] for k, u in noise.items()})
    gt.set_validation(False)
    out = run(name, x, **noise)
    assert out[1].isnan().all()
    assert out[::2].isfinite().all()


# A gate whose log alpha is -inf is closed.
UNSOUND = [
    (name, value)
    for name, case in CASES.items()
    for value in (torch.nan, INF, -INF)
    if case.rows or value != -INF
]


@pytest.mark.parametrize(("name", "value"), UNSOUND)
def test_unsound_logits_are_refused_and_unchecked_are_nan(name, value):
    x = logits_for(name, 3)
    x[1] = value
    noise = noise_for(name, x)
    with pytest.raises(gt.DomainError, match=r"have no distribution|holds NaN"):
        run(name, x, **noise)
    gt.set_validation(False)
    out = run(name, x, **noise)
    assert out[1].isnan().all()
    assert out[::2].isfinite().all()
    if name not in CONSTANT:
        assert gradient(name, x, **noise)[::2].isfinite().all()


@every()
def test_what_is_no_logits_is_refused(name):
    with pytest.raises(gt.UnsupportedError):
        CASES[name].call(logits_for(name, 3).long(), {})
    if CASES[name].rows and name != "stochastic_beam_search":
        with pytest.raises(gt.ShapeError):
            CASES[name].call(torch.zeros(()), {})


@pytest.mark.parametrize("k", [0, -1, 6, 2.0, True])
def test_a_k_that_cannot_be_is_refused(k):
    x = normal(3, N)
    wrong = gt.UnsupportedError if not isinstance(k, int) or k is True else gt.DomainError
    for f in (
        s.gumbel_top_k, s.relaxed_k_hot, s.straight_through_k_hot, s.simple, s.sample_subset,
        s.subset_marginals, s.subset_log_partition, s.subset_entropy,
    ):  # fmt: skip
        with pytest.raises(wrong, match="k"):
            f(x, k)
