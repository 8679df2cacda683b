"""The Triton kernels equal the eager ones, and keep their laws.

Whether Triton interprets its kernels is settled when it is first imported, and torch.compile
imports it, too. So the functions named ``law_*`` are the tests of a process of their own: on the
GPU if there is one, else with the interpreter, on the CPU.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gradthrough.kernels.eager import (
    DecoupledStraightThrough,
    Exact,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    Kept,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    SoftGumbelSoftmax,
    StraightThrough,
    contract,
)
from gradthrough.kernels.softmax import centre, one_hot

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
LARGEST = 1.0 - 2.0**-53
# exp(x) is off by x times the rounding of float32, and x goes to -90.
ROUNDING = 1e-5

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
    # numpy, in which the interpreter computes, speaks up where an unsound row becomes NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

ONE_UNIFORM = (
    Exact(),
    StraightThrough(1.0),
    StraightThrough(0.5, importance=True),
    DecoupledStraightThrough(0.7, 1.3),
    GappedStraightThrough(0.5, 1.0),
    GappedStraightThrough(1.0, "p"),
    ReinMax(1.0),
    ReinMax(1.4),
)
INNER = (GumbelRao(0.5, 3), GumbelRao(1.0, 2), ReinMaxRao(0.7, 2))
KERNELS = (*ONE_UNIFORM, GumbelSoftmax(0.6), SoftGumbelSoftmax(0.6), *INNER)

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


@pytest.mark.parametrize("some", ["Rao", "not Rao"])  # half of the time each
def test_the_laws_hold_in_a_process_of_their_own(some):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    if not GPU:
        env["TRITON_INTERPRET"] = "1"
    own = ("-o", "python_functions=law_*", "-o", "addopts=--import-mode=importlib", "-k", some)
    out = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *own, __file__],
        capture_output=True, text=True, env=env, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert out.returncode == 0, out.stdout[-8000:] + out.stderr[-2000:]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
def test_the_compiler_sees_that_a_short_row_is_read_once(monkeypatch, tmp_path):
    # To compile takes no GPU. What is counted are the loads of a thread, four numbers each.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = importlib.import_module("gradthrough.kernels.triton")
    tiles = kernels._tiles(1000)
    quarter = tiles["height"] * tiles["block"] // (tiles["num_warps"] * 32) // 4
    drawn = compiled(kernels.draw.draw, tiles, stride=1, dense=True)
    assert loads(drawn) == Counter({"ld.global.v4.b32": quarter, "ld.global.b64": 1})
    for kind in (kernels.pull.SOFT.value, kernels.pull.REINMAX.value):
        pulled = compiled(kernels.pull.pull, tiles, kind=kind, unit=True)
        assert loads(pulled)["ld.global.v4.b32"] == 2 * quarter
    streamed = {"halved": False, "given": False, "root": True, "slots": 4}
    assert loads(compiled(kernels.pull.pull_inner, tiles, **streamed))["ld.global.v4.b32"] == (
        2 * quarter
    )
    relaxed = compiled(kernels.draw.relax, tiles, copy=1)
    assert loads(relaxed) == Counter({"ld.global.v4.b32": quarter, "ld.global.v2.b64": 2 * quarter})


def compiled(kernel, tiles, **constants):
    """Return the PTX of a kernel for float32 logits."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    whole = {"rows": "i32", "units": "i32", "times": "i32", "period": "i32", "count": "i32"}
    double = {"u_ptr": "*fp64", "noise_ptr": "*fp64", "index_ptr": "*i64"}
    fixed = ("align", "blocks", "block", "height")
    constants |= {name: tiles[name] for name in fixed}
    signature, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = double.get(name, "*fp32")
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = whole.get(name, "fp32")
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, values, aligned)
    options = {name: tiles[name] for name in ("num_warps", "enable_fp_fusion")}
    return compile(source, GPUTarget("cuda", 90, 32), options).asm["ptx"]


def loads(ptx):
    return Counter(word for word in ptx.split() if word.startswith("ld.global"))


@pytest.fixture
def kernels():
    return importlib.import_module("gradthrough.kernels.triton")


def problem(kernel, *shape, dtype=torch.float32):
    """(logits, noise, gradient), with a masked class in the first row."""
    logits = (2.0 * torch.randn(shape)).to(dtype)
    if shape[-1] > 2 and logits.numel():
        logits.view(-1, shape[-1])[0, shape[-1] // 2] = -torch.inf
    tail = {"variable": (), "variable+seed": (2,), "class": shape[-1:]}[kernel.noise]
    noise = torch.rand(*shape[:-1], *tail, dtype=torch.float64)
    return logits.to(DEVICE), noise.to(DEVICE), torch.randn(shape).to(DEVICE, dtype)


def run(kernels, kernel, logits, noise, g, inner=None):
    """(z, class, total, derivative) of the Triton kernels."""
    assert not kernels.unsupported(kernel, logits)
    z, chosen, total, saved = kernels.forward(kernel, logits, noise)
    inner = noise.new_empty(0) if inner is None else inner
    out = kernels.backward(kernel, Kept(logits, chosen, noise, inner, saved), g)
    assert z.shape == logits.shape
    assert out.shape == logits.shape
    assert z.dtype == out.dtype == logits.dtype
    assert chosen.dtype == torch.int64
    return z, chosen, total, out


class Reference(NamedTuple):
    z: Tensor
    chosen: Tensor
    total: Tensor
    out: Tensor
    size: Tensor  # of the numbers that the derivative is a sum of


def reference(kernel, logits, noise, g, inner=None):
    """The same by the eager kernels, in float64."""
    inner = noise.new_empty(0) if inner is None else inner
    x, g = centre(logits.double()), g.double()
    chosen, total, saved = kernel.forward(x, noise)
    z = saved[0] if kernel.soft else one_hot(chosen, x.shape[-1], x.dtype)
    terms = list(kernel.terms(Kept(x, chosen, noise, inner, saved)))
    size = torch.zeros_like(g)
    for p, weight, tau in terms:
        size += abs(weight) / tau * p * (g.abs() + (p * g.abs()).sum(-1, keepdim=True))
    return Reference(z, chosen, total.squeeze(-1), contract(terms, (g,)), size)


def assert_equal(found, wanted):
    z, chosen, total, out = found
    assert torch.equal(chosen, wanted.chosen)
    torch.testing.assert_close(z.double(), wanted.z, rtol=ROUNDING, atol=1e-30)
    torch.testing.assert_close(total.double(), wanted.total, rtol=ROUNDING, atol=0.0)
    assert bool(((out - wanted.out).abs() <= ROUNDING * wanted.size + 1e-30).all())


def equals_eager(kernels, kernel, logits, noise, g, inner=None):
    found = run(kernels, kernel, logits, noise, g, inner)
    assert_equal(found, reference(kernel, logits, noise, g, inner))


@every_kernel
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 64, 130])
def law_sample_and_derivative_equal_eager(kernels, kernel, classes):
    equals_eager(kernels, kernel, *problem(kernel, 2, 3, classes))


@every_kernel
def law_a_row_of_several_blocks_equals_eager(kernels, kernel, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 8)
    logits, noise, g = problem(kernel, 2, 29)
    logits[1, :8] = logits[1, 16:24] = -torch.inf  # whole blocks, the first of them one
    equals_eager(kernels, kernel, logits, noise, g)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def law_half_precision_rounds_once_at_the_end(kernels, kernel, dtype):
    logits, noise, g = problem(kernel, 3, 10, dtype=dtype)
    z, chosen, total, out = run(kernels, kernel, logits, noise, g)
    wanted = reference(kernel, logits, noise, g)
    exact = run(kernels, kernel, logits.float(), noise, g.float())
    assert_equal(exact, wanted)
    step = torch.finfo(dtype).eps  # one ulp: the interpreter truncates
    torch.testing.assert_close(z.double(), exact[0].double(), rtol=step, atol=1e-7)
    torch.testing.assert_close(out.double(), exact[3].double(), rtol=step, atol=1e-7)
    assert torch.equal(chosen, exact[1])
    assert torch.equal(total, exact[2])


@every_kernel
@pytest.mark.parametrize("block", [16, 8])
def law_a_masked_class_is_never_drawn_and_gets_gradient_zero(kernels, kernel, block, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", block)
    masked = torch.tensor([[1, 0, 0, 0, 1, 1, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1, 0, 0, 0, 0]]).bool()
    for extreme in (0.0, LARGEST):
        logits, noise, g = problem(kernel, 2, 10)
        logits[:] = torch.where(masked.to(DEVICE), -torch.inf, 0.0)
        noise[:] = extreme
        z, chosen, _, out = run(kernels, kernel, logits, noise, g)
        assert not bool((z[masked] != 0.0).any())
        assert not bool((out[masked] != 0.0).any())
        assert not bool(masked.to(DEVICE).gather(-1, chosen.unsqueeze(-1)).any())
        assert bool(out.isfinite().all())


@every_kernel
@pytest.mark.parametrize("block", [16, 8])
def law_an_unsound_row_is_nan_and_no_other(kernels, kernel, block, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", block)
    logits, noise, g = problem(kernel, 4, 10)
    logits[0, 16 - block], logits[1, block - 8], logits[2] = torch.nan, torch.inf, -torch.inf
    z, chosen, total, out = run(kernels, kernel, logits, noise, g)
    assert bool(z[:3].isnan().all())
    assert bool(out[:3].isnan().all()) or isinstance(kernel, Exact)
    assert not bool(total[:3].isfinite().any())
    assert bool(((chosen >= 0) & (chosen < 10)).all())
    found = (z[3:], chosen[3:], total[3:], out[3:])
    assert_equal(found, reference(kernel, logits[3:], noise[3:], g[3:]))


@every_kernel
def law_one_class_alone_may_be_unsound(kernels, kernel):
    logits, noise, g = problem(kernel, 4, 1)
    logits[:3, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    z, _, total, out = run(kernels, kernel, logits, noise, g)
    wanted = [True, True, True, False]
    assert z.isnan().squeeze(-1).tolist() == wanted
    assert total.isfinite().logical_not().tolist() == wanted
    assert out.isnan().squeeze(-1).tolist() == wanted or isinstance(kernel, Exact)


@pytest.mark.parametrize("kernel", [Exact(), DecoupledStraightThrough(0.7, 1.0), INNER[0]], ids=str)
@pytest.mark.parametrize(("block", "draws"), [(16, 1000), (8, 20)])
def law_a_grid_of_uniforms_draws_each_class_at_its_rate(kernels, kernel, block, draws, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", block)
    # What the logits share does not reach their differences, which float32 holds exactly.
    logits = torch.randn(1, 10, device=DEVICE).mul(8.0).round() / 8.0 + 2.0**19
    logits[0, 3] = -torch.inf
    u = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws).to(DEVICE)
    noise = u if kernel.noise == "variable" else torch.stack((u, u), -1)
    z, chosen, total, _ = kernels.forward(kernel, logits, noise)  # one softmax, many draws
    rate = torch.softmax((logits[0] - 2.0**19).double() / kernel.law, -1)
    counts = chosen.bincount(minlength=10)
    assert bool(((counts - draws * rate).abs() <= 1.0).all())
    assert torch.equal(z.sum(0), counts.float())
    assert bool((chosen.diff() >= 0).all())  # the first class whose cdf exceeds u
    assert total.shape == (1,)


def law_several_draws_of_each_row_are_those_of_rows_repeated(kernels):
    logits = torch.randn(2, 1, 3, 5, device=DEVICE)
    noise = torch.rand(2, 4, 3, dtype=torch.float64, device=DEVICE)
    z, chosen, total, _ = kernels.forward(Exact(), logits, noise)
    wanted = kernels.forward(Exact(), logits.expand(2, 4, 3, 5), noise)
    assert torch.equal(z, wanted[0])
    assert torch.equal(chosen, wanted[1])
    assert torch.equal(total.expand(2, 4, 3), wanted[2])


@pytest.mark.parametrize("block", [8192, 1024])
def law_a_rare_class_at_the_end_of_a_long_row_keeps_its_rate(kernels, block, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", block)
    rare, classes = 1e-9, 5000
    logits = torch.zeros(1, classes, device=DEVICE)
    logits[0, -1] = torch.tensor(rare * (classes - 1)).log()
    u = torch.tensor([0.0, 1.0 - 1.001 * rare, 1.0 - 0.999 * rare, LARGEST], dtype=torch.float64)
    _, chosen, _, _ = kernels.forward(Exact(), logits, u.to(DEVICE), dense=False)
    assert chosen.tolist() == [0, classes - 2, classes - 1, classes - 1]


@every_kernel
def law_layout_and_shape_of_the_rows_do_not_matter(kernels, kernel):
    logits, noise, g = problem(kernel, 2, 3, 7)
    wanted = run(kernels, kernel, logits, noise, g)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in (logits, noise, g)]
    single = [x[1, 2] for x in (logits, noise, g)]
    for one, two, three in zip(
        wanted, run(kernels, kernel, *strided), run(kernels, kernel, *single), strict=True
    ):
        assert torch.equal(one, two)
        assert torch.equal(one[1, 2], three)
    same = logits[0, 0].expand(2, 3, 7)
    constant = torch.ones(1, 1, 1, device=DEVICE).expand(2, 3, 7)
    for one, two in zip(
        run(kernels, kernel, same, noise, constant),
        run(kernels, kernel, same.contiguous(), noise, constant.contiguous()), strict=True,
    ):  # fmt: skip
        assert torch.equal(one, two)


@every_kernel
@pytest.mark.parametrize("rows", [(0,), (2, 0)], ids=str)
def law_no_rows_give_none(kernels, kernel, rows):
    z, chosen, total, out = run(kernels, kernel, *problem(kernel, *rows, 3))
    assert z.numel() == chosen.numel() == total.numel() == out.numel() == 0


@every_kernel
@pytest.mark.parametrize("offset", [0.0, 2.0**20])
def law_extreme_logits_overflow_nothing(kernels, kernel, offset):
    logits, noise, g = problem(kernel, 4, 6)
    far = [[200.0, -200, 0, 199, -torch.inf, -199], [-200, -200, -199.5, -200, -200, -201],
           [200, 200, 200, 200, 200, -200], [0, 0.5, -0.5, 1, -1, -200]]  # fmt: skip
    logits[:] = torch.tensor(far) + offset
    equals_eager(kernels, kernel, logits, noise, g)


@pytest.mark.parametrize("kernel", INNER, ids=str)
@pytest.mark.parametrize("block", [16, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def law_given_inner_draws_are_used(kernels, kernel, block, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", block)
    logits, noise, g = problem(kernel, 2, 12)
    inner = torch.empty(2, 12, kernel.k).exponential_().to(DEVICE, dtype).transpose(1, 2)
    equals_eager(kernels, kernel, logits, noise, g, inner)


@pytest.mark.parametrize("kernel", INNER, ids=str)
def law_seeds_at_the_ends_of_their_range_count_as_in_eager(kernels, kernel):
    logits, noise, g = problem(kernel, 3, 10)
    noise[:, 1] = torch.tensor([0.0, 2.0**-53, LARGEST])
    equals_eager(kernels, kernel, logits, noise, g)


@pytest.mark.parametrize("kernel", [GumbelSoftmax(0.6), SoftGumbelSoftmax(1.0)], ids=str)
def law_uniforms_at_the_ends_of_their_range_give_finite_gumbels(kernels, kernel):
    logits, noise, g = problem(kernel, 4, 5)
    ends = torch.tensor([0.0, 2.0**-53, 1e-9, 0.5, LARGEST], dtype=torch.float64)
    noise[:] = torch.stack([ends.roll(i) for i in range(4)])
    equals_eager(kernels, kernel, logits, noise, g)


@every_kernel
def law_without_its_sample_a_launch_draws_the_same_class(kernels, kernel):
    logits, noise, _ = problem(kernel, 3, 5)
    _, wanted, _, saved = kernels.forward(kernel, logits, noise)
    z, chosen, _, also = kernels.forward(kernel, logits, noise, dense=False)
    assert z.shape == (3, 0)
    assert torch.equal(chosen, wanted)
    assert all(torch.equal(a, b) for a, b in zip(saved, also, strict=True))
    assert len(saved) == (kernel.noise == "class")


def law_what_cannot_run_is_said(kernels, monkeypatch):
    fine = torch.zeros(2, 3, device=DEVICE)
    assert kernels.unsupported(ReinMax(1.0), fine) == ""
    assert "float64" in kernels.unsupported(ReinMax(1.0), fine.double())
    assert "ReinMaxCV" in kernels.unsupported(ReinMaxCV(1.0, 2, 1.0, 1.0), fine)
    assert "classes" in kernels.unsupported(ReinMax(1.0), fine[:, :0])
    long = fine[:1, :1].expand(1, 2**20 + 1)
    assert "classes" in kernels.unsupported(ReinMax(1.0), long)
    assert kernels.unsupported(GumbelRao(1.0, 1025), fine) == ""
    assert "inner" in kernels.unsupported(GumbelRao(1.0, 1025), long[:, :-1])
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    assert "cpu" in kernels.unsupported(ReinMax(1.0), fine.cpu())
