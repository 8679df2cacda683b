"""The compiled step: the same noise and the same numbers as the eager one, or a reason why not."""

from dataclasses import replace
from functools import partial, wraps

import pytest
import torch

import gradthrough as gt
from gradthrough.bench.compiled import compiled
from gradthrough.bench.config import RunConfig
from gradthrough.bench.tasks.bernoulli_vae import BernoulliVAE
from gradthrough.bench.tasks.vae import VAE, CategoricalVAE
from gradthrough.bench.train import run

# torch's own tracer makes an instance of every autograd.Function that it meets.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")

SMALL = VAE("digits", latents=2, classes=3, hidden=(32, 16), valid=137, bound_samples=0)
BINARY = BernoulliVAE("digits", 4, hidden=(32, 16), valid=137, bound_samples=0, kl="sampled")


@pytest.fixture
def traced(compiler, monkeypatch):
    """Let torch.compile trace only, and count its calls: to build is slow."""
    calls = []
    real = torch.compile

    @wraps(real)
    def trace(function, *, mode, **options):
        calls.append(mode)
        return real(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", trace)
    return calls


def config(key, task=SMALL, **changes):
    return RunConfig(task.name, task.options(), key, batch_size=120, epochs=1, lr=1e-3, **changes)


def train(folder, one):
    return run(one, out=folder, progress=False, accelerator="cpu")


def assert_same(folder, one, tolerance):
    """Train compiled, and eager; return the compiled run."""
    quick, plain = (train(folder, replace(one, compile=c)) for c in ("default", "none"))
    assert quick.path != plain.path
    assert quick.status == "done"
    torch.testing.assert_close(
        quick.model.state_dict(), plain.model.state_dict(), rtol=0, atol=tolerance
    )
    for a, b in zip(quick.records, plain.records, strict=True):
        assert (a.step, a.split, a.metric, a.evaluations) == (
            b.step,
            b.split,
            b.metric,
            b.evaluations,
        )
        assert a.value == pytest.approx(b.value, abs=10 * tolerance)
    return quick


@pytest.mark.parametrize("key", ["reinmax", "rloo", "reinforce", "double_cv"])
def test_a_traced_step_is_the_eager_one(key, traced, tmp_path):
    task = SMALL if "categorical" in gt.ESTIMATORS[key].traits.families else BINARY
    assert_same(tmp_path, config(key, task), 1e-5)  # ten whole batches, and a smaller one
    assert traced == ["default"]


def test_a_compiled_step_is_the_eager_one(compiler, tmp_path):
    one = config("reinmax", replace(SMALL, hidden=(8,)))
    result = assert_same(tmp_path, replace(one, batch_size=130), 1e-5)  # one shape: it takes long
    assert result.records[0].config["compile"] == "default"


def test_low_precision_compiles(traced, tmp_path):
    assert train(tmp_path, config("reinmax", precision="bf16-mixed", compile="default")).model
    assert traced == ["default"]


def test_what_is_not_compiled_keeps_its_key():
    one = config("reinmax")
    assert "compile" not in one.as_dict()
    assert one.key == replace(one, compile="none").key != replace(one, compile="default").key


def test_many_runs_of_one_process_compile(traced, tmp_path):
    for width in range(4, 9):  # of two graphs each; torch keeps eight of one piece of code
        one = config("st", replace(SMALL, hidden=(width,)), compile="default")
        assert train(tmp_path, one).status == "done"


def test_what_diverges_says_so(traced, tmp_path):
    one = config("st", optimizer="sgd", compile="default")
    result = train(tmp_path, replace(one, lr=1e30))
    assert result.status == "diverged"
    assert "the loss is" in result.records[-1].reason


class Branching(CategoricalVAE):
    """A network that looks at numbers."""

    def encode(self, x):
        return super().encode(x if self.encoder[0].bias.sum() > 0 else -x)


def test_what_cannot_be_compiled_is_refused(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(VAE, "_network", lambda self, pixels: Branching(pixels, (8,), 2, 3))
    with pytest.raises(gt.ConfigError, match="cannot be compiled"):
        train(tmp_path, config("reinmax", compile="default"))


def test_graphs_want_cuda_and_nothing_else_is_taken_for_them(tmp_path):
    with pytest.raises(gt.ConfigError, match="CUDA graphs, but the device is cpu"):
        train(tmp_path, config("reinmax", compile="reduce-overhead"))
    assert not list(tmp_path.glob("*/*.jsonl"))


def test_graphs_are_asked_for_and_their_output_is_copied(traced, monkeypatch):
    marked = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", partial(marked.append, 1))
    kept = torch.ones(3)
    monkeypatch.setattr(
        torch, "compile", wraps(torch.compile)(lambda f, **options: lambda *a: kept)
    )
    step = compiled(lambda batch, noise: batch, "reduce-overhead", torch.device("cuda"))
    out = step(torch.zeros(3), ())
    assert marked == [1]
    assert torch.equal(out, kept)
    assert out is not kept


def test_what_learns_is_not_compiled():
    with pytest.raises(gt.ConfigError, match="tuning_lr"):
        config("reinforce", tuning_lr=1e-2, compile="default")
    with pytest.raises(gt.ConfigError, match="compile is 'fast'"):
        config("reinforce", compile="fast")
