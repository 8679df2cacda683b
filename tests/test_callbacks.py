"""Callbacks in loops that call their hooks as trainers do; the trainers are in tests/clients."""

import copy
import functools
import importlib
import pickle
import sys
import types
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradthrough as gt
from gradthrough.monitoring.illnesses import MonitorWarning
from gradthrough.swapping.active import STATE
from problems import refuses

STOCK = F.gumbel_softmax


def halve(step):
    return 0.5 ** min(step, 6)


def stairs(step):
    return 2.0 if step < 3 else 1.0


class Net(nn.Module):
    """Logits, and a sample of them; notes which temperature it saw."""

    def __init__(self, tau=None):
        super().__init__()
        self.encoder = nn.Linear(4, 3)
        self.layer = None if tau is None else gt.nn.CategoricalLayer(4, 3, tau=tau)
        self.seen, self.grads = [], []

    def forward(self, x):
        logits = self.encoder(x)
        z = F.gumbel_softmax(logits, hard=True)
        self.grads.append(z.grad_fn.name())
        if self.layer is not None:
            self.seen.append(self.layer.tau.value)
            z = z + self.layer(x)
        loss = (z * torch.arange(3.0)).sum(-1).square().mean()
        return {"loss": loss, "q": gt.Categorical(logits), "z": z}


class LightningLoop:
    """The hooks of a Lightning Trainer, in its order, with clipped gradients."""

    package = "pytorch_lightning"
    module = gt.lightning

    class Base:
        def setup(self, trainer, pl_module, stage): ...
        def teardown(self, trainer, pl_module, stage): ...
        def on_fit_start(self, trainer, pl_module): ...
        def on_fit_end(self, trainer, pl_module): ...
        def on_exception(self, trainer, pl_module, exception): ...
        def on_train_start(self, trainer, pl_module): ...
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx): ...
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx): ...
        def on_before_optimizer_step(self, trainer, pl_module, optimizer): ...

    @classmethod
    def run(cls, callbacks, model, steps, *, accumulate=1, start=0, resumed=None, broken=None):
        trainer = SimpleNamespace(global_step=0)

        def call(hook, *args, **named):
            for one in callbacks:
                getattr(one, hook)(trainer, model, *args, **named)

        call("setup", stage="fit")
        for one, state in (resumed or {}).items():
            one.load_state_dict(state)
        call("on_fit_start")
        trainer.global_step = start
        try:
            call("on_train_start")
            for i in range(steps * accumulate):
                call("on_train_batch_start", None, i)
                optimizer, outputs = descend(model, i, accumulate)
                if broken == i:
                    raise KeyError("broken")
                if optimizer is not None:
                    call("on_before_optimizer_step", optimizer)
                    clip(model)
                    optimizer.step()
                    trainer.global_step += 1
                call("on_train_batch_end", outputs, None, i)
        except KeyError as error:
            call("on_exception", error)
            raise
        call("on_fit_end")
        call("teardown", stage="fit")


class HuggingFaceLoop:
    """The hooks of a Hugging Face Trainer, in its order: gradients are clipped before any."""

    package = "transformers"
    module = gt.transformers

    class Base:
        def on_train_begin(self, args, state, control, **kwargs): ...
        def on_train_end(self, args, state, control, **kwargs): ...
        def on_step_begin(self, args, state, control, **kwargs): ...
        def on_step_end(self, args, state, control, **kwargs): ...
        def on_substep_end(self, args, state, control, **kwargs): ...
        def on_pre_optimizer_step(self, args, state, control, **kwargs): ...

    @classmethod
    def run(cls, callbacks, model, steps, *, accumulate=1, start=0, resumed=None, broken=None):
        state = SimpleNamespace(global_step=start)

        def call(hook):
            for one in callbacks:
                getattr(one, hook)(None, state, None, model=model, optimizer=None)

        call("on_train_begin")
        for i in range(steps * accumulate):
            if i % accumulate == 0:
                call("on_step_begin")
            optimizer, _ = descend(model, i, accumulate)
            if broken == i:
                raise KeyError("broken")
            if optimizer is not None:
                clip(model)
                call("on_pre_optimizer_step")
                optimizer.step()
                model.zero_grad()
                state.global_step += 1
                call("on_step_end")
            else:
                call("on_substep_end")
        call("on_train_end")


def descend(model, i, accumulate):
    """One batch; an optimizer if it is to step."""
    if i % accumulate == 0:
        model.zero_grad()
    outputs = model(torch.randn(8, 4))
    outputs["loss"].backward()
    outputs["loss"] = outputs["loss"].detach()
    due = (i + 1) % accumulate == 0
    return (torch.optim.SGD(model.parameters(), lr=0.01) if due else None), outputs


def clip(model):
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


@pytest.fixture
def package(monkeypatch):
    """Put a fake package there under a name."""

    def give(name, **bases):
        made = types.ModuleType(name)
        for key, base in bases.items():
            setattr(made, key, type(key, (base,), {}))
        for part in (name.split(".")[0], name):
            monkeypatch.setitem(sys.modules, part, made)
        return made

    return give


@pytest.fixture(params=[LightningLoop, HuggingFaceLoop], ids=["lightning", "transformers"])
def loop(request, package, monkeypatch):
    kind = request.param
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    name = {"pytorch_lightning": "Callback", "transformers": "TrainerCallback"}[kind.package]
    package(kind.package, **{name: kind.Base})
    return kind


@pytest.fixture
def lightning(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    package("pytorch_lightning", Callback=LightningLoop.Base)
    return LightningLoop


@pytest.fixture
def hugging(package):
    package("transformers", TrainerCallback=HuggingFaceLoop.Base)
    return HuggingFaceLoop


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was():
    yield
    assert STATE.swaps == ()
    assert F.gumbel_softmax is STOCK


def monitor_of(loop, model, **options):
    monitor = gt.Monitor(model.encoder, every=1, **options)
    if loop is LightningLoop:
        return gt.lightning.MonitorCallback(monitor)
    return gt.transformers.MonitorCallback(monitor, "encoder")


# --- what they are


def test_callbacks_are_of_the_package_and_of_ours(loop):
    base = vars(sys.modules[loop.package])
    base = base.get("Callback") or base["TrainerCallback"]
    for one in (
        monitor_of(loop, Net()),
        loop.module.TemperatureCallback(),
        loop.module.SwapCallback("st"),
    ):
        assert isinstance(one, base)
        assert isinstance(one, getattr(loop.module, type(one).__name__))
        assert type(one).__module__ == loop.module.__name__
        assert type(copy.copy(one)) is type(one)
    assert type(type(one)("st")) is type(one)
    taken = list(loop.module.SwapCallback.__signature__.parameters)
    assert taken == ["estimator", "model", "also", "options"]


def test_a_class_of_the_user_s_own_is_one_as_well(loop):
    class Mine(loop.module.SwapCallback):
        pass

    mine = Mine("st")
    assert type(mine).__name__ == "Mine"
    assert isinstance(mine, Mine)


def test_callbacks_can_be_copied_and_pickled(loop):
    model = Net()
    swap = loop.module.SwapCallback("reinmax", tau=1.5)
    loop.run([swap], model, 1)
    for make in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        again = make(swap)
        assert type(again) is type(swap)
        assert again.swapped is None
        loop.run([again], model, 1)
        assert again.swapped.estimator == gt.ReinMax(tau=1.5)
        steps = make(loop.module.TemperatureCallback(halve, swap))
        assert type(steps) is type(loop.module.TemperatureCallback())
        assert type(make(monitor_of(loop, model))) is type(monitor_of(loop, model))


def test_a_copy_of_a_swap_that_is_on_is_off(loop):
    seen = []

    class Copying(Net):
        def forward(self, x):
            seen.append(copy.deepcopy(swap))
            return super().forward(x)

    swap = loop.module.SwapCallback("st", tau=1.0)
    loop.run([swap], Copying(), 1)
    seen[0].close()
    assert seen[0].swapped is None


@pytest.mark.parametrize(
    ("kind", "packages"),
    [
        ("lightning", ("lightning.pytorch", "pytorch_lightning")),
        ("transformers", ("transformers",)),
    ],
)
def test_without_the_package_they_say_so(kind, packages, monkeypatch):
    for name in (*packages, packages[0].split(".")[0]):
        monkeypatch.setitem(sys.modules, name, None)
    module = importlib.import_module(f"gradthrough.{kind}")
    for make in (
        functools.partial(module.SwapCallback, "st"),
        module.TemperatureCallback,
        functools.partial(module.MonitorCallback, gt.Monitor(nn.Linear(2, 2))),
    ):
        with refuses(gt.BackendError, *packages, "step_temperatures", "monitor.step"):
            make()


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_of_two_packages_the_imported_one_counts(name, package, tmp_path, monkeypatch):
    for other in {"lightning", "pytorch_lightning"} - {name.split(".")[0]}:
        (tmp_path / other / "pytorch").mkdir(parents=True)
        for part in (tmp_path / other, tmp_path / other / "pytorch"):
            (part / "__init__.py").write_text("class Callback: ...")
    monkeypatch.syspath_prepend(tmp_path)
    for part in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, part, raising=False)
    made = package(name, Callback=LightningLoop.Base)
    assert isinstance(gt.lightning.SwapCallback("st"), made.Callback)


# --- temperatures


@pytest.mark.parametrize("accumulate", [1, 3])
def test_layers_follow_the_steps_of_the_optimizer(loop, accumulate):
    model = Net(tau=halve)
    loop.run([loop.module.TemperatureCallback()], model, 4, accumulate=accumulate)
    assert model.seen == [halve(i // accumulate) for i in range(4 * accumulate)]
    assert model.layer.tau.steps == 4


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_kind_of_target_follows_the_schedule(loop, accumulate):
    seen = []

    class Watching(Net):
        def forward(self, x):
            swaps = swap.estimator.tau, callback.swapped.estimator.tau
            seen.append((monitor.tau, held.monitor.tau, *swaps, called[-1]))
            return super().forward(x)

    model, called = Watching(), []
    monitor, held = gt.Monitor(model.encoder, tau=9.0), monitor_of(loop, model, tau=9.0)
    swap = gt.swap("reinmax", tau=9.0)
    callback = loop.module.SwapCallback(gt.StraightThrough(tau=9.0))

    targets = [monitor, held, swap, callback, called.append]
    steps = loop.module.TemperatureCallback(halve, targets)
    loop.run([steps, callback, held], model, 4, accumulate=accumulate)
    assert seen == [(halve(i // accumulate),) * 5 for i in range(4 * accumulate)]


@pytest.mark.parametrize("order", [1, -1])
def test_a_monitor_notes_the_temperature_of_its_step_wherever_it_stands(loop, order):
    model = Net(tau=halve)
    watch = monitor_of(loop, model, tau=1.0)
    both = [watch, loop.module.TemperatureCallback(model.layer.tau, watch)][::order]
    loop.run(both, model, 4, accumulate=2)
    assert [row["tau"] for row in watch.monitor.history] == [halve(i) for i in range(4)]
    assert model.seen[::2] == [halve(i) for i in range(4)]


def test_a_run_that_is_taken_up_goes_on_at_the_same_temperature(loop):
    model, called = Net(tau=halve), []
    loop.run([loop.module.TemperatureCallback(halve, called.append)], model, 3)
    again, resumed = Net(tau=halve), []
    again.load_state_dict(model.state_dict())
    loop.run([loop.module.TemperatureCallback(halve, resumed.append)], again, 2, start=3)
    assert called + resumed == model.seen + again.seen == [halve(i) for i in range(5)]


def test_a_callback_serves_a_second_run(loop):
    called = []
    steps = loop.module.TemperatureCallback(halve, called.append)
    for _ in range(2):
        loop.run([steps], Net(), 3)
    loop.run([steps], Net(), 2, start=1)
    assert called == [halve(i) for i in (0, 1, 2, 0, 1, 2, 1, 2)]


def test_a_second_run_goes_on_where_the_layers_are(loop):
    model, steps = Net(tau=halve), loop.module.TemperatureCallback()
    for start in (0, 0, 10):  # the trainer's steps; the layers have counted their own
        loop.run([steps], model, 2, start=start)
    assert model.seen == [halve(i) for i in range(6)]


def test_a_checkpoint_between_the_optimizer_s_step_and_ours_loses_none(lightning):
    saved = []

    class Saving(LightningLoop.Base):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            state = copy.deepcopy(pl_module.state_dict())
            saved.append((trainer.global_step, state, steps.state_dict()))

    model, steps = Net(tau=halve), gt.lightning.TemperatureCallback()
    lightning.run([Saving(), steps], model, 3)
    assert int(saved[1][1]["layer.tau._extra_state"]) == 1  # the second step is not in it
    for step, state, ours in saved:
        again, fresh = Net(tau=halve), gt.lightning.TemperatureCallback()
        again.load_state_dict(state)
        lightning.run([fresh], again, 2, start=step, resumed={fresh: ours})
        assert again.seen == [halve(step), halve(step + 1)]


def test_the_estimator_stays_while_the_temperature_does(loop, monkeypatch):
    swap, sets = gt.swap("reinmax", tau=9.0), []
    setter = gt.Swap.estimator.fset

    def noted(self, value):
        sets.append(value)
        setter(self, value)

    monkeypatch.setattr(gt.Swap, "estimator", gt.Swap.estimator.setter(noted))
    with swap:
        loop.run([loop.module.TemperatureCallback(stairs, swap)], Net(), 6)
    assert len(sets) == 2


def test_what_can_be_no_schedule_is_refused_at_once(loop):
    make = loop.module.TemperatureCallback
    monitor = gt.Monitor(nn.Linear(2, 2))
    with refuses(gt.ConfigError, "schedule is missing"):
        make(targets=monitor)
    with refuses(gt.ConfigError, "targets is missing", "layers"):
        make(halve)
    with refuses(gt.ConfigError, "Temperature has a schedule of its own"):
        make(halve, gt.nn.Temperature(1.0))
    for wrong, name in ((nn.Linear(2, 2), "Linear"), (nn.Sequential(), "Sequential"), ([1], "int")):
        with refuses(gt.UnsupportedError, "target", name):
            make(halve, wrong)
    with refuses(gt.DomainError, "above 0"):
        make(lambda step: 0.0, monitor)


def test_what_shows_when_training_begins_is_refused_there(loop):
    make = loop.module.TemperatureCallback
    with refuses(gt.ConfigError, "nothing to do"):
        loop.run([make()], Net(), 1)
    with refuses(gt.ConfigError, "model does not have"):
        loop.run([make(gt.nn.Temperature(halve), gt.Monitor(nn.Linear(2, 2)))], Net(), 1)
    with refuses(gt.ConfigError, "never on", "trainer"):
        loop.run([make(halve, loop.module.SwapCallback("reinmax", tau=1.0))], Net(), 1)
    with refuses(gt.ConfigError, "has no tau"), gt.swap(gt.DecoupledStraightThrough()) as swap:
        F.gumbel_softmax(torch.zeros(2, 3, requires_grad=True), hard=True)  # or the swap warns
        loop.run([make(halve, swap)], Net(), 1)


# --- swaps


def test_the_swap_is_on_while_a_model_trains_and_belongs_to_it(loop):
    model, other = Net(), Net()
    swap = loop.module.SwapCallback("reinmax", tau=1.0)
    assert swap.swapped is None
    loop.run([swap, Outside(other)], model, 3)
    assert swap.swapped.calls == 3
    assert {name.startswith("_Launch") for name in model.grads} == {True}
    assert {name.startswith("_Launch") for name in other.grads} == {False}
    model(torch.randn(2, 4))
    assert not model.grads[-1].startswith("_Launch")


class Outside(LightningLoop.Base, HuggingFaceLoop.Base):
    """Calls another model while one trains."""

    def __init__(self, other):
        self.other = other

    def on_train_batch_start(self, *args, **kwargs):
        self.other(torch.randn(2, 4))

    on_step_begin = on_train_batch_start


@pytest.mark.parametrize("where", ["all", "other"])
def test_the_swap_may_be_wider_or_elsewhere(loop, where):
    model, other = Net(), Net()
    swap = loop.module.SwapCallback("reinmax", tau=1.0, model=None if where == "all" else other)
    loop.run([swap, Outside(other)], model, 3)
    assert swap.swapped.calls == (6 if where == "all" else 3)
    assert all(name.startswith("_Launch") for name in other.grads)


def test_a_swap_that_met_no_call_warns_at_the_end(loop):
    swap = loop.module.SwapCallback("reinmax", tau=1.0, model=nn.Linear(2, 2))
    with pytest.warns(gt.SwapWarning, match="met no call"):
        loop.run([swap], Net(), 1)


def test_after_an_exception_torch_is_as_it_was(lightning):
    swap = gt.lightning.SwapCallback("reinmax", tau=1.0)
    with pytest.raises(KeyError):
        lightning.run([swap], Net(), 4, broken=2)
    assert STATE.swaps == ()
    assert swap.swapped.calls == 3
    idle = gt.lightning.SwapCallback("reinmax", tau=1.0, model=nn.Linear(2, 2))
    with pytest.raises(KeyError):  # and no warning that the swap met no call
        lightning.run([idle], Net(), 4, broken=2)


def test_a_fit_that_ends_without_its_hook_turns_the_swap_off_too(lightning):
    swap, model = gt.lightning.SwapCallback("reinmax", tau=1.0), Net()
    swap.on_fit_start(None, model)
    assert len(STATE.swaps) == 1
    swap.teardown(None, model, stage="fit")
    assert STATE.swaps == ()


def test_a_trainer_that_says_nothing_of_an_exception_leaves_the_swap_on(hugging):
    swap, model = gt.transformers.SwapCallback("reinmax", tau=1.0), Net()
    for _ in range(2):  # the second run takes the swap of the first down
        with pytest.raises(KeyError):
            hugging.run([swap], model, 4, broken=2)
        assert len(STATE.swaps) == 1
    swap.close()
    swap.close()
    assert STATE.swaps == ()
    hugging.run([swap], model, 1)
    assert swap.swapped.calls == 1


def test_what_cannot_be_swapped_is_refused_when_the_callback_is_made(loop):
    make = loop.module.SwapCallback
    for error, args, options in (
        (gt.ConfigError, ("no such",), {}),
        (gt.ConfigError, ("st",), {"temperature": 1.0}),
        (gt.UnsupportedError, (gt.RLOO(),), {}),
        (gt.UnsupportedError, ("st",), {"model": "own"}),
        (gt.ConfigError, ("st",), {"also": "no such"}),
    ):
        with refuses(error):
            make(*args, **options)


# --- monitors: Lightning


def test_the_monitor_observes_the_steps_of_the_optimizer(lightning):
    model = Net()
    callback = gt.lightning.MonitorCallback(gt.Monitor(model.encoder, every=2, tau=1.0))
    lightning.run([callback], model, 4, accumulate=2)
    rows = callback.monitor.history
    assert [row["step"] for row in rows] == [0, 2]
    assert all(row["grad_norm"] > 1e-2 for row in rows)  # before the clipping
    assert callback.monitor.warnings == []


def test_the_monitor_minds_the_optimizer_of_its_parameters_alone(lightning):
    callback = gt.lightning.MonitorCallback(gt.Monitor(nn.Linear(4, 3), every=1))
    lightning.run([callback], Net(), 3)
    assert callback.monitor.history == []


def test_the_monitor_looks_at_evaluations(lightning):
    callback = gt.lightning.MonitorCallback(gt.Monitor(nn.Linear(4, 3), every=1))
    soft = torch.full((4, 3), 1 / 3)
    for outputs in (None, torch.zeros(()), {"loss": torch.zeros(())}):
        callback.on_validation_batch_end(None, None, outputs, None, 0)
    for hook in (callback.on_validation_batch_end, callback.on_test_batch_end):
        callback.monitor.warnings.clear()
        with pytest.warns(MonitorWarning, match="evaluated on soft samples"):
            hook(None, None, {"q": torch.zeros(4, 3), "z": soft}, None, 0, dataloader_idx=1)
    assert callback.monitor.history == []


def test_the_monitor_says_what_training_step_must_return(lightning):
    model = nn.Linear(4, 3)
    callback = gt.lightning.MonitorCallback(gt.Monitor(model))
    for outputs, came in (({"loss": torch.zeros(())}, "loss"), (None, "a NoneType")):
        callback.on_before_optimizer_step(None, model, torch.optim.SGD(model.parameters(), lr=0.1))
        with refuses(gt.ConfigError, "training_step", '"q": q', came):
            callback.on_train_batch_end(None, model, outputs, None, 0)


# --- monitors: Hugging Face


def hooks_of(model):
    return sum(len(one._forward_hooks) for one in model.modules())


class Recorder(HuggingFaceLoop.Base):
    """What a monitor should see at each step of the optimizer."""

    def __init__(self, model):
        self.rows, self.hooks = [], []
        model.register_forward_hook(self.hear)

    def hear(self, model, args, out):
        self.now = out["loss"].item(), out["q"].entropy().mean().item()

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        norm = torch.stack([p.grad.norm() for p in model.encoder.parameters()]).norm()
        self.rows.append((*self.now, norm.item()))

    def on_step_begin(self, args, state, control, *, model, **kwargs):
        self.hooks.append(hooks_of(model))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("how", ["name", "law", "callable"])
def test_the_monitor_hears_the_logits_and_the_loss_of_the_last_batch(hugging, how, accumulate):
    model = Net()
    probe = torch.randn(5, 4)
    q, law = {
        "name": ("encoder", None),
        "law": ("encoder", lambda out: gt.Categorical(logits=out)),
        "callable": (lambda net: net.encoder(probe), None),
    }[how]
    monitor = gt.Monitor(model.encoder, every=2)
    watch = gt.transformers.MonitorCallback(monitor, q, law=law)
    record = Recorder(model)
    own = hooks_of(model)
    hugging.run([watch, record], model, 5, accumulate=accumulate)
    rows = monitor.history
    assert [row["step"] for row in rows] == [0, 2, 4]
    for row, (loss, entropy, norm) in zip(rows, record.rows[::2], strict=True):
        assert row["loss"] == pytest.approx(loss)
        assert row["grad_norm"] == pytest.approx(norm)
        assert row["grad_norm"] < 1.1e-3  # what is left by the clipping
        assert (row["entropy"] == pytest.approx(entropy, rel=1e-4)) == (how != "callable")
    listening = own + (1 if how == "callable" else 2)
    assert record.hooks == [listening, own, listening, own, listening]
    assert hooks_of(model) == own


def test_hooks_are_gone_after_a_run_that_broke_off(hugging):
    model = Net()
    watch = gt.transformers.MonitorCallback(gt.Monitor(model.encoder, every=1), "encoder")
    with pytest.raises(KeyError):
        hugging.run([watch], model, 2, broken=1)
    hugging.run([watch], model, 1)
    assert hooks_of(model) == 0


def test_the_monitor_hears_a_loss_however_a_model_returns_it():
    class Tuple(Net):
        def forward(self, x):
            out = super().forward(x)
            return self.pack(out["loss"])

    for pack, want in (
        (lambda loss: {"loss": loss}, True),
        (lambda loss: (loss, None), True),
        (lambda loss: {"logits": loss}, False),
        (lambda loss: loss, False),
    ):
        model = Tuple()
        model.pack = pack
        watch = gt.transformers.MonitorCallback(gt.Monitor(model.encoder, every=1), "encoder")
        watch.on_step_begin(None, None, None, model=model)
        out = model(torch.randn(8, 4))
        loss = next(iter(out.values())) if isinstance(out, dict) else out
        loss = loss[0] if isinstance(loss, tuple) else loss
        loss.backward()
        watch.on_pre_optimizer_step(None, None, None, model=model)
        assert (watch.monitor.history[0]["loss"] == pytest.approx(loss.item())) == want


def test_logits_that_are_changed_in_place_are_heard_as_they_were():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(4, 3)

        def forward(self, x):
            self.out = self.encoder(x)
            self.was = self.out.detach().clone()
            return {"loss": self.out.mul_(0.0).sum()}

    model = InPlace()
    watch = gt.transformers.MonitorCallback(gt.Monitor(model.encoder, every=1), "encoder")
    watch.on_step_begin(None, None, None, model=model)
    model(torch.randn(8, 4))["loss"].backward()
    watch.on_pre_optimizer_step(None, None, None, model=model)
    want = gt.Categorical(model.was).entropy().mean().item()
    assert watch.monitor.history[0]["entropy"] == pytest.approx(want)


def test_a_callable_is_asked_without_gradients_when_a_step_is_looked_at(hugging):
    model, asked = Net(), []

    def q(net):
        assert net is model
        asked.append(torch.is_grad_enabled())
        return torch.zeros(5, 3)

    monitor = gt.Monitor(model.encoder, every=3)
    hugging.run([gt.transformers.MonitorCallback(monitor, q)], model, 7)
    assert asked == [False] * 3


def test_a_module_that_is_not_there_or_not_called_is_named(hugging):
    model = Net(tau=1.0)
    monitor = gt.Monitor(model.encoder, every=1)
    for name, near in (("coder", "encoder"), ("layer.nothing", "encoder, layer")):
        with refuses(gt.ConfigError, name, near):
            hugging.run([gt.transformers.MonitorCallback(monitor, name)], model, 1)
    model.layer.aside = nn.Linear(2, 2)
    with refuses(gt.ConfigError, "layer.aside", "not called"):
        hugging.run([gt.transformers.MonitorCallback(monitor, "layer.aside")], model, 1)
    with refuses(gt.ConfigError, "callable", "law"):
        gt.transformers.MonitorCallback(monitor, lambda model: None, law=lambda out: out)
