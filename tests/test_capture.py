"""What can be captured: no look at a number on the way, one draw for forward and backward.

A CUDA graph, or one of torch.compile, replays what was launched. Code that reads a number of a
tensor, or copies one from the host, cannot be replayed; a draw that the backward takes anew gives
the gradient of another sample.
"""

import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import gradthrough as gt
from problems import F64, PATHWISE, VARIANTS, every, normal, plain, samples_for, select, uniform

LONG = select(lambda e: e.traits.noise == "variable+seed" and e.k > 10)  # more of the same
LAUNCHED = [*(name for name in PATHWISE if name not in LONG), "rloo"]
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal.default")
# torch's own tracer makes an instance of every autograd.Function that it meets.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")


class Watch(TorchDispatchMode):
    """Note each operation that reads a number, and each that has to do with a device."""

    def __init__(self):
        super().__init__()
        self.reads, self.devices = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if any(word in str(function) for word in READS):
            self.reads.add(str(function))
        for x in tree_leaves((args, kwargs, out)):
            if isinstance(x, torch.Tensor):
                self.devices.add(x.device.type)
        return out


def objective(name, classes=3, device="cpu", dtype=F64):
    """The sum of estimates as a function of logits (6, 2, C) and noise, those logits, and noise."""
    x = normal(6, 2, classes, dtype=dtype).to(device)
    table = normal(2, classes, seed=3, dtype=dtype).to(device)

    def loss(x, u=None):
        q = gt.Categorical(x, event_dims=1)
        one = VARIANTS[name](q)
        f = lambda z: ((z * table).flatten(-2).sum(-1) + 0.3) ** 3  # noqa: E731
        return gt.expect(f, q, one, samples=samples_for(one, 2), noise=u).sum()

    q = gt.Categorical(x, event_dims=1)
    one = VARIANTS[name](q)
    noise = uniform(*one.noise_shape(q.expand(samples_for(one, 2)))).to(device)
    return loss, x, noise


@every(LAUNCHED)
@pytest.mark.parametrize("classes", [2, 3, 300])
def test_off_the_cpu_nothing_is_read_nor_copied_from_the_host(name, classes):
    """On the device meta, where to read a number is an error."""
    loss, x, noise = objective(name, classes, "meta")
    y = x.clone().requires_grad_()
    with Watch() as watch:
        loss(y, noise).backward()
        if name in PATHWISE:
            plain(VARIANTS[name](gt.Categorical(x)))(y).sum().backward()  # draws by itself
    assert y.grad.shape == x.shape
    assert watch.devices == {"meta"}
    assert not watch.reads


@every(LAUNCHED)
@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # asks for a copy of several draws
def test_without_validation_nothing_is_read(name):
    loss, x, noise = objective(name, 30)
    gt.set_validation(False)
    with Watch() as watch:
        for u in (None, noise):
            loss(x.clone().requires_grad_(), u).backward()
    assert not watch.reads
    gt.set_validation(True)
    with Watch() as watch:
        loss(x, noise)
    assert watch.reads


@every(LAUNCHED)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_draws_the_same_again(name, reentrant):
    loss, x, _ = objective(name)
    y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(5)
    loss(y).backward()
    torch.manual_seed(5)
    out = checkpoint(loss, z, use_reentrant=reentrant)
    torch.rand(7)  # moves the generator on between forward and backward
    out.backward()
    assert torch.equal(y.grad, z.grad)


DOORS = {"attach": "rloo", "launch": "reinmax", "substitute": "redge"}
TRANSFORMS = {
    "vmap of grad": lambda loss, x, u: vmap(
        lambda x, u: grad(lambda x: loss(x[None], u[:, None]))(x), (0, 1)
    )(x, u),
    "jvp": lambda loss, x, u: jvp(lambda x: loss(x, u), (x,), (x.cos(),))[1],
    "hessian": lambda loss, x, u: hessian(loss)(x, u),
}


@pytest.mark.parametrize("name", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_within_compiled_code_finds_the_chosen_gradient(name, transform, compiler):
    """torch.compile by itself would differentiate the forward."""
    loss, x, noise = objective(name)
    run = lambda x, u: TRANSFORMS[transform](loss, x, u)  # noqa: E731
    if transform == "hessian" and name not in PATHWISE:
        with pytest.raises(gt.UnsupportedError, match="second derivative"):
            run(x, noise)
        with pytest.raises(RuntimeError, match=r"(?s)UnsupportedError.*second derivative"):
            compiler(run)(x, noise)
        return
    want = run(x, noise)
    assert want.abs().max() > 1e-3
    torch.testing.assert_close(compiler(run)(x, noise), want, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", ["rloo", "reinmax"])
def test_autograd_around_a_compiled_transform(name, compiler):
    loss, x, noise = objective(name)

    def run(x, u):
        return vmap(lambda x, u: loss(x[None], u[:, None]), (0, 1))(x, u).square().sum()

    want, got = (
        torch.autograd.grad(call(y := x.clone().requires_grad_(), noise), y)[0]
        for call in (run, compiler(run))
    )
    torch.testing.assert_close(got, want, rtol=0.0, atol=1e-12)


def test_a_compiled_transform_says_that_it_wants_its_inputs_detached(compiler):
    loss, x, noise = objective("rloo")
    run = compiler(lambda x, u: grad(loss)(x, u))
    with pytest.raises(RuntimeError, match="detach it"):
        run(x.clone().requires_grad_(), noise)
    with torch.no_grad():
        got = run(x.clone().requires_grad_(), noise)
    assert torch.equal(got, grad(loss)(x, noise))


@pytest.mark.parametrize("name", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("warm", [False, True])
def test_forward_mode_around_compiled_code_is_refused(name, warm, compiler):
    """What is compiled loses the tangents."""
    loss, x, noise = objective(name)
    run = compiler(loss)
    if warm:
        run(x, noise)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="Put the transform inside"):
            run(dual, noise)


@pytest.mark.parametrize("outer", [vmap, jacrev])
def test_a_transform_around_compiled_code_is_refused_by_torch(outer, compiler):
    loss, x, _ = objective("rloo")
    one = compiler(lambda x: loss(x[None]))
    with pytest.raises(RuntimeError, match="functorch"):
        outer(one)(x)
