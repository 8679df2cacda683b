"""The callbacks in the loop of Lightning's own Trainer."""

import copy
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradthrough as gt
from gradthrough.swapping.active import STATE
from problems import refuses

STOCK = F.gumbel_softmax
pytestmark = [
    # More workers for its loaders than a test has use for.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Of Lightning's own use of torch.
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated:FutureWarning"),
]


def anneal(step):
    return max(0.5, 2.0 * 0.8**step)


class Code(pl.LightningModule):
    """Three letters of four classes for each row, and one bit from torch's own function."""

    def __init__(self, *, fails_at=None):
        super().__init__()
        self.encoder = gt.nn.CategoricalLayer(6, 4, variables=3, tau=anneal)
        self.gate = nn.Linear(6, 2)
        self.decoder = nn.Linear(14, 6)
        self.fails_at, self.taus, self.grads, self.valid = fails_at, [], [], []

    def loss(self, x):
        q = self.encoder.law(x)
        z = self.encoder.draw(q)
        gate = F.gumbel_softmax(self.gate(x), hard=True)
        loss = (self.decoder(torch.cat((z.flatten(1), gate), -1)) - x).square().mean()
        return loss, q, z, gate

    def training_step(self, batch, batch_idx):
        loss, q, z, gate = self.loss(batch[0])
        self.taus.append(self.encoder.tau.value)
        self.grads.append(gate.grad_fn.name())
        if len(self.taus) == self.fails_at:
            raise KeyError("broken")
        return {"loss": loss, "q": q, "z": z}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Plain(Code):
    """Nothing but torch's own function, called by training_step itself."""

    def training_step(self, batch, batch_idx):
        gate = F.gumbel_softmax(self.gate(batch[0]), hard=True)
        return (gate * torch.arange(2.0)).sum()


class Validated(Code):
    """Notes what comes out in a validation."""

    def validation_step(self, batch, batch_idx):
        loss, q, z, gate = self.loss(batch[0])
        self.valid.append((loss.item(), gate))
        return {"loss": loss, "q": q, "z": z}


class ByHand(Code):
    """Two optimizers that step by hand, one after the other in each batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            out = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(out["loss"])
            optimizer.step()
        return out

    def configure_optimizers(self):
        parts = (self.encoder, self.gate), (self.decoder,)
        return [torch.optim.SGD(nn.ModuleList(part).parameters(), lr=0.1) for part in parts]


def loader(rows=48):
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x), batch_size=8)


def trainer(tmp_path, callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    base = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False}
    root = {"default_root_dir": tmp_path, "callbacks": callbacks}
    return pl.Trainer(**quiet, **root, **(base | options))


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was():
    yield
    assert STATE.swaps == ()
    assert F.gumbel_softmax is STOCK
    assert torch.overrides._len_torch_function_stack() == 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_three_callbacks_of_one_fit(tmp_path, accumulate):
    model = Code()
    swap = gt.lightning.SwapCallback("reinmax", tau=9.0)
    watch = gt.lightning.MonitorCallback(gt.Monitor(model.encoder, every=1))
    seen = []
    steps = gt.lightning.TemperatureCallback(
        model.encoder.tau, [watch, swap, lambda tau: seen.append((tau, swap.swapped.estimator.tau))]
    )
    fit = trainer(tmp_path, [steps, swap, watch], accumulate_grad_batches=accumulate)
    fit.fit(model, loader())
    batches = [anneal(i // accumulate) for i in range(6)]
    assert model.taus == batches
    assert seen == [(tau, tau) for tau in batches]
    assert model.encoder.tau.steps == fit.global_step == 6 // accumulate
    rows = watch.monitor.history
    assert [row["tau"] for row in rows] == batches[::accumulate]
    assert all(row["grad_norm"] > 0 and row["loss"] > 0 for row in rows)
    assert swap.swapped.calls == 6
    assert all(Path(__file__).name in site for site in swap.swapped.sites)
    assert all(name.startswith("_Launch") for name in model.grads)
    model.training_step((torch.randn(2, 6),), 0)
    assert not model.grads[-1].startswith("_Launch")


def test_an_estimator_that_is_torch_s_own_trains_to_the_same_weights(tmp_path):
    start, found = Code(), {}
    for name, callbacks in (
        ("stock", []),
        ("stgs", [gt.lightning.SwapCallback("stgs")]),
        ("reinmax", [gt.lightning.SwapCallback("reinmax", tau=1.0)]),
    ):
        model = copy.deepcopy(start)
        torch.manual_seed(1)
        trainer(tmp_path, callbacks).fit(model, loader())
        found[name] = model.gate.weight.detach()
    torch.testing.assert_close(found["stgs"], found["stock"])
    assert not torch.allclose(found["reinmax"], found["stock"])


def test_validation_in_a_fit_is_swapped_and_has_the_values_of_torch(tmp_path):
    start, found = Validated(), []
    for callbacks in ([], [gt.lightning.SwapCallback("st", tau=1.0)]):
        model = copy.deepcopy(start)
        model.configure_optimizers = lambda: None
        torch.manual_seed(1)
        with pytest.warns(UserWarning, match="optimizer"):
            trainer(tmp_path, callbacks, limit_train_batches=1).fit(model, loader(), loader())
        found.append(model.valid)
        if callbacks:
            assert callbacks[0].swapped.calls == 2 + 1 + 6  # two before the fit, to check
    for (stock, gate), (ours, swapped) in zip(*found, strict=True):
        assert stock == pytest.approx(ours, rel=1e-6)
        assert torch.equal(gate.round(), swapped)


def test_a_validation_on_its_own_is_not_swapped(tmp_path):
    swap = gt.lightning.SwapCallback("st", tau=1.0)
    trainer(tmp_path, [swap]).validate(Validated(), loader(), verbose=False)
    assert swap.swapped is None


def test_after_an_exception_torch_is_as_it_was(tmp_path):
    swap = gt.lightning.SwapCallback("reinmax", tau=1.0)
    with pytest.raises(KeyError, match="broken"):
        trainer(tmp_path, [swap]).fit(Code(fails_at=3), loader())
    assert STATE.swaps == ()
    assert swap.swapped.calls == 3


# Tracing an autograd.Function, torch.compile makes an instance of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("model", [None, "trained"])
def test_a_training_step_that_is_compiled_needs_a_swap_of_all_calls(tmp_path, compiler, model):
    swap, code = gt.lightning.SwapCallback("reinmax", tau=1.0, model=model), Plain()
    fit = trainer(tmp_path, [swap], limit_train_batches=2)
    if model is None:
        fit.fit(torch.compile(code, backend="aot_eager"), loader())
    else:
        with pytest.warns(gt.SwapWarning, match="met no call"):
            fit.fit(torch.compile(code, backend="aot_eager"), loader())


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_is_taken_up_goes_on_at_the_same_temperature(tmp_path, accumulate, first):
    class Saves(pl.Callback):  # not a Checkpoint, which Lightning would call after all others
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2 and not (tmp_path / "two.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    def made(model):
        seen = []
        steps = gt.lightning.TemperatureCallback(anneal, seen.append)
        order = [Saves(), steps] if first == "theirs" else [steps, Saves()]
        options = {"accumulate_grad_batches": accumulate, "max_epochs": 2}
        return seen, trainer(tmp_path, order, **options)

    whole, again = Code(), Code()
    seen, fit = made(whole)
    fit.fit(whole, loader())
    resumed, fit = made(again)
    fit.fit(again, loader(), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    skipped = 2 * accumulate
    assert again.taus == whole.taus[skipped:]
    assert resumed == seen[skipped:]
    assert resumed[0] == anneal(2)
    assert again.encoder.tau.steps == fit.global_step == 12 // accumulate


def test_lightning_s_own_checkpoints_hold_the_steps(tmp_path):
    keeps = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    callbacks = [keeps, gt.lightning.TemperatureCallback()]
    trainer(tmp_path, callbacks, enable_checkpointing=True).fit(Code(), loader())
    for path in tmp_path.glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        assert int(saved["state_dict"]["encoder.tau._extra_state"]) == saved["global_step"]
    assert len(list(tmp_path.glob("*.ckpt"))) == 3


def test_steps_by_hand_are_those_of_the_trainer(tmp_path):
    model = ByHand()
    fit = trainer(tmp_path, [gt.lightning.TemperatureCallback()])
    fit.fit(model, loader())
    assert model.encoder.tau.steps == fit.global_step == 12  # both optimizers
    assert model.taus == [anneal(i // 2 * 2) for i in range(12)]  # moved between batches


def test_a_model_that_has_nothing_to_step_is_refused(tmp_path):
    model = Code()
    model.encoder = gt.nn.CategoricalLayer(6, 4, variables=3)
    with refuses(gt.ConfigError, "nothing to do"):
        trainer(tmp_path, [gt.lightning.TemperatureCallback()]).fit(model, loader())


def test_lightning_refuses_a_second_one_which_would_step_twice(tmp_path):
    both = [gt.lightning.TemperatureCallback(), gt.lightning.TemperatureCallback()]
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        trainer(tmp_path, both)


# --- the page


def test_the_page_shows_a_program_and_the_whole_change_to_it(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "lightning.md").read_text(encoding="utf-8")

    def fences(language):
        return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)

    monkeypatch.chdir(tmp_path)
    program, *more = fences("python")
    seen = {}
    exec(program, seen)
    for change in fences("diff"):
        gone, come = (
            "".join(line[1:] + "\n" for line in change.splitlines() if line[0] == sign)
            for sign in "-+"
        )
        assert program.count(gone) == 1
        exec(program.replace(gone, come), seen)
        assert seen["swap"].swapped.calls == seen["trainer"].global_step
    for one in more:
        exec(one, seen)
    assert seen["monitor"].history
    assert [row["tau"] for row in seen["monitor"].history][:2] == [2.0, 2.0 * 0.9]
