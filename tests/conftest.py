"""What every test starts from: poisoned memory, a fixed seed, the default checks."""

import pytest
import torch

import gradthrough as gt


def _poisoned(make):
    def poisoned(*args, **kwargs):
        out = make(*args, **kwargs)
        if torch.compiler.is_compiling() or out.device.type == "meta":
            return out
        if out.is_floating_point() or out.is_complex():
            return out.fill_(torch.nan)
        return out.fill_(1) if out.dtype == torch.bool else out.fill_(torch.iinfo(out.dtype).max)

    return poisoned


@pytest.fixture(autouse=True)
def poisoned_memory(request, monkeypatch):
    """Fill torch.empty and its kin with NaN, so that nothing can rely on what memory held."""
    if "compiler" in request.fixturenames:  # a tracer would have to trace the poison
        return
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


@pytest.fixture(autouse=True)
def fixed_seed():
    """Start every test from one global seed and the default validation."""
    torch.manual_seed(0)
    gt.set_validation(None)
    yield
    gt.set_validation(None)


@pytest.fixture
def compiler():
    """Give torch.compile(fullgraph=True), which by default traces only: to build is slow."""
    torch._dynamo.reset()
    # What torch knows its functions by, if that was noted while the poison stood in for some.
    torch._dynamo.trace_rules.clear_lru_cache()
    yield lambda function, backend="aot_eager": torch.compile(
        function, fullgraph=True, backend=backend
    )
    torch._dynamo.reset()
