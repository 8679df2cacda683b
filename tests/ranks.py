"""What each of two processes does for test_devices. Spawned: everything stands at module level."""

import datetime
import functools
import os
import traceback

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

import gradthrough as gt
from gradthrough.bench.noise import Given
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.vae import VAE

WORLD, ROWS = 2, 8
F64 = torch.float64
TASK = VAE("digits", latents=2, classes=3, hidden=(16, 8))
KEYS = [key for key, kind in gt.ESTIMATORS.items() if TASK.law().family in kind.traits.families]


def uniform(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def images():
    return uniform(ROWS, 64)


def share(x, rank, dim=0):
    """The rows of a rank, or all."""
    return x if rank is None else x.chunk(WORLD, dim)[rank]


# --- a task of the bench


def noise_of(estimator, samples, rank):
    """The noise of the whole batch, or of a rank's share of it."""
    law = gt.Categorical(torch.zeros(ROWS, TASK.latents, TASK.classes), event_dims=1)
    noise = uniform(*estimator.noise_shape(law.expand(samples)))
    return noise if noise.numel() == 0 else share(noise, rank, 1)


def given(estimator, rank):
    """An estimator with its noise."""
    n = max(estimator.traits.min_samples, 2)
    return Given(estimator, n, [noise_of(estimator, n, rank)])


def task_model():
    return TASK.model(Seeds(0)).double()


def task_gradients(model, rank=None):
    """The gradient of the mean loss for each estimator, by the parameters' names."""
    out = {}
    for key in KEYS:
        model.zero_grad()
        TASK.losses(model, share(images(), rank), given(gt.estimator(key), rank)).mean().backward()
        inner = getattr(model, "module", model)
        out[key] = {name: p.grad.clone() for name, p in inner.named_parameters()}
    return out


class Tuned(nn.Module):
    """A model that owns what its estimator learns: one backward trains both."""

    def __init__(self):
        super().__init__()
        self.vae, self.baseline = task_model(), gt.controls.Critic(6, hidden=(5,)).double()

    def forward(self, x, rank):
        one = gt.Reinforce(baseline=self.baseline)
        f = lambda z: self.vae.reconstruction(z, x)  # noqa: E731
        out = gt.estimate(f, self.vae.encode(x), one, samples=2, noise=noise_of(one, 2, rank))
        return out.value.mean() + out.tuning_loss


def tuned_gradients(wrap=lambda model: model, rank=None):
    torch.manual_seed(0)
    model = wrap(Tuned())
    model(share(images(), rank), rank).backward()
    return [p.grad for p in model.parameters()]


# --- layers


class Coder(nn.Module):
    """A categorical layer, and a codebook after it."""

    def __init__(self):
        super().__init__()
        self.layer = gt.nn.CategoricalLayer(64, 3, variables=2, tau=lambda step: 2.0 / (1 + step))
        self.middle = nn.Linear(6, 5)
        self.quantizer = gt.nn.GumbelQuantizer(5, 4, 3, groups=2, estimator=gt.ReinMax())

    def forward(self, x, noise):
        q = self.layer.law(x)
        z = self.layer.draw(q, noise=noise[..., 0])
        out = self.quantizer(self.middle(z.flatten(-2)), noise=noise[..., 1])
        return out.quantized.exp().sum(-1) - q.entropy(), out.codes


def coder():
    torch.manual_seed(0)
    return Coder().double()


def coded(model, rank=None):
    """One step of the model: the codes of the rows."""
    noise = share(uniform(ROWS, 2, 2), rank)
    loss, codes = model(share(images(), rank), noise)
    loss.mean().backward()
    return codes


def whole(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def sharded(rank):
    model = coder()
    mesh = init_device_mesh("cpu", (WORLD,))
    for part in (model.layer, model.quantizer, model):
        fully_shard(part, mesh=mesh)
    register_fsdp_forward_method(model.layer, "law")
    gt.nn.step_temperatures(model, 3)
    codes = coded(model, rank)
    model.quantizer.observe(codes)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    gradients = {name: whole(p.grad) for name, p in model.named_parameters()}
    return {"gradients": gradients, "state": state, "local": model.middle.weight.to_local().shape}


def observed(rank):
    """The counts of two steps of a data-parallel model, and where one more forward leaves them."""
    model = DistributedDataParallel(coder())
    seen = []
    for _ in range(2):
        model.module.quantizer.observe(coded(model, rank))
        seen.append(model.module.quantizer.counts.clone())
    coded(model, rank)
    return [*seen, model.module.quantizer.counts]


# --- generators


def drawn(rank):
    g = gt.generator(0)
    before = torch.rand(4, generator=g)
    state = g.get_state()
    after = gt.reinmax(torch.zeros(50, 3), generator=g)
    other = gt.generator(7)
    other.set_state(state)
    return before, after, gt.reinmax(torch.zeros(50, 3), generator=other)


# --- the page


def page(rank, blocks, folder):
    """Run the Python blocks of a page as torchrun would; they make the process group."""
    os.chdir(folder)
    namespace = {"__name__": "__main__"}
    for line, code in blocks:
        exec(compile("\n" * (line - 1) + code, "devices.md", "exec"), namespace)
    model = namespace["model"]
    return {name: whole(x) for name, x in model.state_dict().items()}, namespace["x"]


WORK = {
    "task": lambda rank: task_gradients(DistributedDataParallel(task_model()), rank),
    "tuned": lambda rank: tuned_gradients(DistributedDataParallel, rank),
    "sharded": sharded,
    "observed": observed,
    "drawn": drawn,
}


def attempt(work, *inputs):
    """What came of it, or how it failed: then the others still run."""
    try:
        return work(*inputs)
    except Exception:
        return traceback.format_exc()


def main(rank, blocks, folder):
    torch.set_num_threads(1)
    # What torchrun says by its variables and a port; a file cannot be taken by someone else.
    dist.init_process_group = functools.partial(
        dist.init_process_group,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    out = {"page": attempt(page, rank, blocks, folder)}
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    out |= {name: attempt(work, rank) for name, work in WORK.items()}
    torch.save(out, folder / f"rank{rank}.results")
    dist.destroy_process_group()
