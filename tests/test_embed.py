"""embed: the embedding of a sampled class, as if its one-hot had been made."""

import pytest
import torch
import torch.utils.checkpoint

import gradthrough as gt
from gradthrough.estimators.pathwise import AbstractLaunched
from gradthrough.kernels import layout
from problems import F64, HARD, PATHWISE, VARIANTS, normal, refuses, uniform

TWO = gt.Categorical(torch.zeros(1, 2))
HARD_PATHWISE = [
    n for n in PATHWISE if n in HARD and isinstance(VARIANTS[n](TWO), AbstractLaunched)
]
ROWS, CLASSES, WIDTH = 7, 11, 5
X, W = normal(2, ROWS, CLASSES), normal(CLASSES, WIDTH, seed=1)
G = normal(2, ROWS, WIDTH, seed=2)


def setting(name, x=X):
    estimator = VARIANTS[name](gt.Categorical(x))
    return estimator, uniform(*estimator.noise_shape(gt.Categorical(x)))


def by_one_hot(estimator, x, w, noise):
    return estimator.sample(x, noise) @ w


def pull(make, g, *inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = make(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, g)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("name", HARD_PATHWISE)
def test_embed_is_the_one_hot_sample_times_the_table(name, backend):
    estimator, noise = setting(name)
    got = pull(lambda x, w: gt.embed(x, w, estimator, noise=noise, backend=backend), G, X, W)
    want = pull(lambda x, w: by_one_hot(estimator, x, w, noise), G, X, W)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", HARD_PATHWISE)
def test_rows_are_worked_on_in_parts(name, monkeypatch):
    estimator, noise = setting(name)
    whole = pull(lambda x, w: gt.embed(x, w, estimator, noise=noise), G, X, W)
    monkeypatch.setattr("gradthrough.kernels.lookup._PART", 4 * CLASSES)
    monkeypatch.setitem(layout.PARTS, "once", 3 * CLASSES)
    parts = pull(lambda x, w: gt.embed(x, w, estimator, noise=noise), G, X, W)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-13)


def test_the_classes_come_with_the_embeddings_on_demand():
    noise = uniform(2, ROWS)
    out, index = gt.embed(X, W, gt.ReinMax(), noise=noise, with_index=True)
    assert index.dtype == torch.int64
    assert torch.equal(index, gt.reinmax(X, noise=noise).argmax(-1))
    assert torch.equal(out, W[index])


def test_the_generator_decides():
    draws = [
        gt.embed(X, W, gt.ReinMax(), generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("logits", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_each_tensor_keeps_its_dtype(logits, weight):
    x, w = X.to(logits).requires_grad_(), W.to(weight).requires_grad_()
    out = gt.embed(x, w, gt.ReinMax())
    assert out.dtype == weight
    out.float().square().sum().backward()
    assert x.grad.dtype == logits
    assert w.grad.dtype == weight
    assert bool(x.grad.isfinite().all())


def test_masked_classes_are_never_looked_up_and_get_no_gradient():
    x = X.clone()
    x[..., ::2] = -torch.inf
    leaf, table = x.requires_grad_(), W.clone().requires_grad_()
    out, index = gt.embed(leaf, table, gt.ReinMax(), with_index=True)
    out.square().sum().backward()
    assert bool((index % 2 == 1).all())
    assert bool((leaf.grad[..., ::2] == 0).all())
    assert bool((table.grad[::2] == 0).all())


def test_nothing_of_the_size_of_the_logits_is_kept_but_the_logits():
    x = torch.randn(64, 500, requires_grad=True)
    w = torch.randn(500, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gt.embed(x, w, gt.ReinMax())
    own = sum(t.numel() * t.element_size() for t in kept if t.data_ptr() != w.data_ptr())
    assert own <= 1.1 * x.numel() * x.element_size()


def test_zero_rows():
    x, w = torch.zeros(0, 4, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    out = gt.embed(x, w, gt.ReinMax())
    assert out.shape == (0, 3)
    out.sum().backward()
    assert x.grad.shape == (0, 4)


def test_transforms_make_the_sample_and_agree():
    noise = uniform(ROWS)
    f = lambda x, w, u: (gt.embed(x, w, gt.ReinMax(), noise=u) * G[0, 0]).sum()  # noqa: E731
    single = torch.func.grad(f, (0, 1))(X[0], W, noise)
    leaf, table = X[0].clone().requires_grad_(), W.clone().requires_grad_()
    f(leaf, table, noise).backward()
    torch.testing.assert_close(single, (leaf.grad, table.grad))
    row = torch.func.vmap(torch.func.grad(f), (0, None, 0))(X[0], W, noise)
    torch.testing.assert_close(row, leaf.grad)


def test_a_second_derivative_is_refused():
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    (g,) = torch.autograd.grad(gt.embed(x, w, gt.ReinMax()).sum(), x, create_graph=True)
    with refuses(gt.UnsupportedError, "first derivative"):
        g.sum().backward()


def test_what_cannot_be_looked_up_is_refused():
    with refuses(gt.ShapeError, "weight", r"\(11, E\)", r"\(5, 11\)"):
        gt.embed(X, W.T, gt.ReinMax())
    with refuses(gt.UnsupportedError, "weight", "int64"):
        gt.embed(X, torch.zeros(11, 2, dtype=torch.int64), gt.ReinMax())
    with refuses(gt.UnsupportedError, "GumbelSoftmax", "relaxed"):
        gt.embed(X, W, gt.GumbelSoftmax())
    for wrong in (gt.RLOO(), gt.ReDGE(), gt.ReinMax, "reinmax"):
        with refuses(gt.UnsupportedError, "pathwise"):
            gt.embed(X, W, wrong)
    with refuses(gt.UnsupportedError, "two classes"):
        gt.embed(X, W, gt.GumbelRao(k="exact"))
    with refuses(gt.DomainError, "NaN"):
        gt.embed(X.clone().fill_(torch.nan), W, gt.ReinMax())
    with refuses(gt.ShapeError, "noise"):
        gt.embed(X, W, gt.ReinMax(), noise=uniform(3))
    with refuses(gt.BackendError, "weight", "meta"):
        gt.embed(X, W.to("meta"), gt.ReinMax())


def test_unchecked_unsound_rows_are_nan():
    gt.set_validation(False)
    x = X[0].clone()
    x[2, 3] = torch.nan
    leaf = x.requires_grad_()
    out = gt.embed(leaf, W, gt.ReinMax())
    assert bool(out[2].isnan().all())
    assert bool(out[[0, 1, 3]].isfinite().all())
    table = W.clone().requires_grad_()
    out = gt.embed(leaf, table, gt.ReinMax(), noise=torch.zeros(ROWS, dtype=F64))
    out.sum().backward()
    assert bool(leaf.grad[2].isnan().all())
    assert bool(table.grad.isnan().any())


def test_more_than_2_24_classes():
    """torch.multinomial ends there, and a float32 index would."""
    classes = 2**24 + 5
    x = torch.full((1, classes), -30.0)
    x[0, -2] = 4.0
    x[0, 3] = 3.0
    leaf, w = x.requires_grad_(), torch.ones(classes, 1)
    p = torch.softmax(x.detach().double(), -1)
    noise = torch.tensor([0.9], dtype=F64)
    out, index = gt.embed(leaf, w, gt.ReinMax(), with_index=True, noise=noise)
    assert index.tolist() == [classes - 2]
    out.sum().backward()
    assert float(leaf.grad.abs().max()) < 1e-6  # a constant f
    assert float(p[0, -2]) > 0.7


def test_activation_checkpointing_and_a_jacobian_of_many_directions():
    noise = uniform(ROWS)
    f = lambda x, w: gt.embed(x, w, gt.ReinMax(), noise=noise)  # noqa: E731
    leaf, table = X[0].clone().requires_grad_(), W.clone().requires_grad_()
    want = torch.autograd.grad(f(leaf, table), (leaf, table), G[0])
    again = torch.utils.checkpoint.checkpoint(f, leaf, table, use_reentrant=False)
    got = torch.autograd.grad(again, (leaf, table), G[0])
    out = f(leaf, table)
    many = torch.autograd.grad(out, (leaf, table), torch.stack((G[0], G[1])), is_grads_batched=True)
    for one, other, batch in zip(got, want, many, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(batch[0], other)


def test_a_large_gradient_at_the_sample_does_not_overflow_half_precision():
    x = torch.zeros(2, 4, dtype=torch.float16, requires_grad=True)
    w = torch.ones(4, 3)
    w[0] = 2
    (gt.embed(x, w, gt.ReinMax(), noise=torch.zeros(2, dtype=F64)) * 3e4).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_an_embedding_of_no_numbers():
    x, w = X[0].clone().requires_grad_(), torch.zeros(CLASSES, 0, dtype=F64, requires_grad=True)
    gt.embed(x, w, gt.ReinMax()).sum().backward()
    assert bool((x.grad == 0).all())
