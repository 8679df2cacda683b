"""The backends compute what the specification says, keep little, and draw by the same uniforms."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import gradthrough as gt
from gradthrough.estimators.pathwise import AbstractLaunched
from gradthrough.kernels import drawing, layout
from problems import F64, HARD, PATHWISE, VARIANTS, noise_for_rows, normal, plain, refuses, uniform

TWO = gt.Categorical(torch.zeros(1, 2))
LAUNCHED = [n for n in PATHWISE if isinstance(VARIANTS[n](TWO), AbstractLaunched)]
CLASSES = [1, 2, 3, 10, 20, 21, 64, 251, 257, 300]


def pull(name, x, noise, g, **options):
    leaf = x.detach().requires_grad_()
    z = plain(VARIANTS[name](gt.Categorical(x)))(leaf, noise=noise, **options)
    return z.detach(), torch.autograd.grad(z, leaf, g)[0]


def problem(name, classes, dtype=F64, rows=(3, 9)):
    x = normal(*rows, classes, seed=classes).to(dtype) * 2.0
    if classes > 2:
        x[0, :, classes // 2] = -torch.inf
    noise = noise_for_rows(VARIANTS[name](gt.Categorical(x)), x, seed=5)
    return x, noise, normal(*rows, classes, seed=7).to(dtype)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", LAUNCHED)
def test_fused_equals_the_specification(name, classes):
    x, noise, g = problem(name, classes)
    want = pull(name, x, noise, g, backend="eager")
    for got, one in zip(pull(name, x, noise, g, backend="fused"), want, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 10, 64, 300])
@pytest.mark.parametrize("name", LAUNCHED)
def test_fused_equals_the_specification_in_low_precision(name, classes, dtype):
    x, noise, g = problem(name, classes, dtype)
    z, slope = pull(name, x, noise, g, backend="fused")
    want_z, want = pull(name, x.double(), noise, g.double(), backend="eager")
    eps = torch.finfo(dtype).eps
    assert z.dtype == slope.dtype == dtype
    torch.testing.assert_close(z.double(), want_z, rtol=0.0, atol=8 * eps)
    scale = float(want.abs().max()) + 1.0
    torch.testing.assert_close(slope.double(), want, rtol=0.0, atol=16 * eps * scale)


@pytest.mark.parametrize("classes", [2, 3, 64, 300])
@pytest.mark.parametrize("name", LAUNCHED)
def test_rows_in_parts_are_rows_at_once(name, classes, monkeypatch):
    x, noise, g = problem(name, classes)
    want = pull(name, x, noise, g)
    for use in layout.PARTS:
        monkeypatch.setitem(layout.PARTS, use, 4 * classes)
    for got, one in zip(pull(name, x, noise, g), want, strict=True):
        torch.testing.assert_close(got, one, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("classes", [2, 10, 300])
@pytest.mark.parametrize("name", ["reinmax", "stgs tau", "gumbel_rao k"])
def test_compiled_kernels_equal_the_specification(name, classes, compiler):  # no poison to trace
    x, noise, g = problem(name, classes)
    want = pull(name, x, noise, g, backend="eager")
    for got, one in zip(pull(name, x, noise, g, backend="compile"), want, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-11, atol=1e-13)


def test_a_compiled_embedding(compiler):
    x, w, noise = normal(5, 300), normal(300, 4, seed=1), uniform(5)
    out = [gt.embed(x, w, gt.ReinMax(), noise=noise, backend=b) for b in ("eager", "compile")]
    torch.testing.assert_close(*out)


def test_a_compiled_kernel_serves_all_shapes_of_rows(compiler):
    for shape in [(3,), (1, 3), (2, 3), (5, 3), (1, 1, 3), (2, 1, 3), (2, 2, 3), (2, 2, 2, 3),
                  (1, 1, 1, 3), (0, 3), (2, 0, 3), (7, 1, 3)]:  # fmt: skip
        x = torch.zeros(shape, requires_grad=True)
        z = gt.straight_through(x, 1.7, backend="compile")
        z.sum().backward()
        assert z.shape == x.grad.shape == shape


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("rows", [4, 2**17])
@pytest.mark.parametrize("name", LAUNCHED)
def test_samples_and_gradients_are_contiguous(name, rows, backend):
    estimator = VARIANTS[name](gt.Categorical(torch.zeros(1, 3)))
    if rows > 4 and estimator.traits.noise == "variable+seed":
        pytest.skip("slow, and cut into parts as the others")
    x = torch.zeros(rows, 3, requires_grad=True)
    z = plain(estimator)(x, backend=backend)
    assert z.is_contiguous()
    assert torch.autograd.grad(z, x, torch.ones_like(z))[0].is_contiguous()


def test_sound_rows_at_the_end_of_float64_are_drawn_from():
    for classes in (2, 3):
        gt.reinmax(torch.full((2, classes), 1e308, dtype=F64))


def test_a_backend_asked_for_by_name_runs_or_raises():
    with refuses(gt.BackendError, "nonsense", "'fused'", "'triton'"):
        gt.reinmax(torch.zeros(2, 3), backend="nonsense")
    with refuses(gt.BackendError, "triton"):
        gt.reinmax(torch.zeros(2, 3, dtype=F64), backend="triton")


# --- draws


@pytest.mark.parametrize("classes", [2, 3, 20, 21, 256, 300, 1009])
def test_each_class_owns_an_interval_of_uniforms_as_long_as_its_probability(classes):
    p = normal(classes, seed=classes).mul(3.0).softmax(-1)
    cdf = p.cumsum(0)
    inside = (cdf - p / 2).clamp(0.0, 1.0 - 2.0**-53)
    x = p.log().expand(classes, classes).contiguous()
    z = gt.reinmax(x, noise=inside)
    assert torch.equal(z.argmax(-1), torch.arange(classes))
    near = float(p.min()) / 4
    for side in (near, -near):  # just inside of either end
        edge = cdf[:-1] + side
        index = gt.reinmax(x[1:], noise=edge).argmax(-1)
        assert torch.equal(index, torch.arange(classes - 1) + (side > 0))


@pytest.mark.parametrize("classes", [2, 5, 64, 4096])
def test_a_rare_class_at_either_end_of_a_row_keeps_its_rate(classes):
    """In float32, where a running sum near 1 has steps of 6e-8."""
    rare = 1e-9
    for place, u in ((classes - 1, 1.0 - rare / 2), (0, rare / 2)):
        x = torch.zeros(1, classes)
        x[0, place] = torch.tensor(rare * (classes - 1)).log()
        for noise, want in ((u, True), (1.0 - 2 * rare if place else 2 * rare, False)):
            z = gt.reinmax(x, noise=torch.tensor([noise], dtype=F64))
            assert (int(z.argmax(-1)) == place) == want


@pytest.mark.parametrize("classes", [2, 3, 64, 300, 1009])
@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_uniforms_never_draw_a_masked_class(classes, u):
    x = torch.zeros(4, classes)
    x[0, 0] = x[1, -1] = -torch.inf
    x[2, : classes // 2] = x[3, classes // 2 :] = -torch.inf
    z = gt.reinmax(x, noise=torch.full((4,), u, dtype=F64))
    assert bool((z * x.isinf()).eq(0).all())
    assert torch.equal(z.sum(-1), torch.ones(4))


def test_several_draws_from_one_softmax():
    p, u = normal(6, 300).softmax(-1), uniform(6, 4)
    together = drawing.draw(p, u, -1)
    apart = torch.cat([drawing.draw(p, one.unsqueeze(-1), -1) for one in u.unbind(-1)], -1)
    assert torch.equal(together, apart)


@pytest.mark.parametrize("shape", [(400, 8), (4096, 64), (50, 1000), (3000, 2)])
def test_with_torch_s_seed_the_draws_are_those_of_torch(shape):
    for seed in range(5):
        x = normal(*shape, seed=seed).float().requires_grad_()
        g = normal(*shape, seed=seed + 100).float()
        out = []
        for function in (F.gumbel_softmax, gt.gumbel_softmax):
            torch.manual_seed(seed)
            hard = function(x, 0.7, hard=True)
            torch.manual_seed(seed)
            out.append((hard.detach(), torch.autograd.grad(hard, x, g)[0], function(x, 0.7)))
        torch_s, ours = out
        assert torch.equal(ours[0], torch_s[0].round())
        torch.testing.assert_close(ours[1], torch_s[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[2], torch_s[2], rtol=1e-4, atol=1e-6)


# --- what is kept


def kept_bytes(run):
    seen = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: seen.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t,
        lambda t: t,
    ):
        z = run()
    assert z.requires_grad
    return sum(seen.values())


@pytest.mark.parametrize("name", [n for n in LAUNCHED if n in HARD])
@pytest.mark.parametrize("shape", [(64, 4), (64, 64), (8, 1000)])
def test_little_but_the_logits_is_kept(name, shape):
    x = torch.randn(shape, requires_grad=True)
    estimator = VARIANTS[name](gt.Categorical(x))
    size = x.numel() * x.element_size()
    more = {"class": 1.0, "variable+seed": 16.0 / (4 * shape[-1])}.get(estimator.traits.noise, 0.0)
    assert kept_bytes(lambda: plain(estimator)(x)) <= (1.1 + more) * size


def peak(run):
    """Bytes of CPU memory that a call holds at most, over what was held before."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as p:
        run()
    held = most = 0
    for event in p.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_gumbel_rao_with_a_thousand_draws_holds_no_more_than_reinmax():
    x, g = torch.randn(4096, 64, requires_grad=True), torch.randn(4096, 64)

    def step(function):
        x.grad = None
        function(x).backward(g)

    by_reinmax = peak(lambda: step(gt.reinmax))
    by_rao = peak(lambda: step(lambda x: gt.gumbel_rao(x, 0.5, 1000)))
    assert by_reinmax > x.numel() * 8  # the sample and the gradient, at the least
    assert by_rao <= 1.2 * by_reinmax
