"""Wav2Vec2 as Hugging Face ships it, swapped; and the callbacks, as a Trainer calls them."""

import copy
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradthrough as gt
from gradthrough.swapping.active import STATE
from problems import refuses

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HF_HUB_OFFLINE", "1")
    import safetensors.torch
    from transformers import (
        PretrainedConfig,
        PreTrainedModel,
        TrainerControl,
        TrainerState,
        Wav2Vec2Config,
        Wav2Vec2ForPreTraining,
    )
    from transformers.models.wav2vec2 import modeling_wav2vec2 as helpers
    from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

STOCK = F.gumbel_softmax
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # of float32, over the layers below the quantizer


def wav2vec2():
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, num_codevectors_per_group=4,
        codevector_dim=8, proj_codevector_dim=8, num_negatives=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return Wav2Vec2ForPreTraining(config).train()


def batch(model, seed=0):
    np.random.seed(seed)  # the helpers draw from numpy's own stream
    audio = torch.randn(3, 1000, generator=torch.Generator().manual_seed(seed))
    shape = 3, int(model._get_feat_extract_output_lengths(1000))
    mask = helpers._compute_mask_indices(shape, mask_prob=0.4, mask_length=2)
    negatives = helpers._sample_negative_indices(shape, model.config.num_negatives, mask)
    return {
        "input_values": audio,
        "mask_time_indices": torch.from_numpy(mask),
        "sampled_negative_indices": torch.from_numpy(negatives),
    }


def outcome(model):
    """Loss, code vectors, and all gradients, from one seed."""
    vectors = []
    hook = model.quantizer.register_forward_hook(lambda m, a, out: vectors.append(out[0].detach()))
    model.zero_grad()
    torch.manual_seed(1)
    out = model(**batch(model))
    out.loss.backward()
    hook.remove()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return out.loss.detach(), vectors[0], grads


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was():
    yield
    assert STATE.swaps == ()
    assert F.gumbel_softmax is STOCK


# --- the model


@pytest.mark.parametrize("confined", [True, False])
def test_torch_s_estimator_gives_the_stock_loss_and_gradients(confined):
    model = wav2vec2()
    loss, vectors, grads = outcome(model)
    with gt.swap("stgs", model=model if confined else None) as swapped:
        ours = outcome(model)
    torch.testing.assert_close(ours[0], loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[1], vectors, rtol=1e-6, atol=1e-7)
    assert ours[2].keys() == grads.keys()
    for name, g in grads.items():
        torch.testing.assert_close(ours[2][name], g, **ROUNDING)
    ((place, calls),) = swapped.sites.items()
    assert "modeling_wav2vec2.py" in place
    assert calls == 1


@pytest.mark.parametrize("key", ["st", "reinmax", "gst"])
def test_another_estimator_has_the_same_codes_and_another_gradient(key):
    model = wav2vec2()
    loss, vectors, grads = outcome(model)
    with gt.swap(key, tau=1.0, model=model):
        ours = outcome(model)
    torch.testing.assert_close(ours[0], loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[1], vectors, rtol=1e-6, atol=1e-7)
    book = model.quantizer.codevectors.detach().unflatten(1, (2, 4))
    found = ours[1].unflatten(-1, (2, -1)).unsqueeze(-2) == book
    assert found.all(-1).any(-1).all()  # each is exactly one of the codebook
    same = "quantizer.codevectors"
    torch.testing.assert_close(ours[2][same], grads[same], **ROUNDING)
    name = "quantizer.weight_proj.weight"
    assert (ours[2][name] - grads[name]).norm() > 0.1 * grads[name].norm()


def test_the_temperature_of_the_model_holds_unless_there_is_another():
    model = wav2vec2()
    found = {}
    for own in (0.5, 2.0):
        model.set_gumbel_temperature(own)
        for tau in ({}, {"tau": 1.0}):
            with gt.swap("reinmax", **tau, model=model):
                found[own, bool(tau)] = outcome(model)[2]["quantizer.weight_proj.weight"]
    torch.testing.assert_close(found[0.5, True], found[2.0, True], rtol=0, atol=0)
    assert not torch.allclose(found[0.5, False], found[2.0, False])


@pytest.mark.parametrize("key", ["stgs", "reinmax"])
def test_with_activation_checkpointing(key):
    model = wav2vec2()
    with gt.swap(key, tau=1.0, model=model) as swapped:
        plain = outcome(model)
        model.activation_checkpointing_enable()
        again = outcome(model)
        counted = swapped.calls
        quantize = model.quantizer.forward  # the library checkpoints other layers
        model.quantizer.forward = lambda *args, **kwargs: torch.utils.checkpoint.checkpoint(
            quantize, *args, **kwargs, use_reentrant=False
        )
        whole = outcome(model)
    assert (counted, swapped.calls) == (2, 4)  # the last one draws again in the backward
    for other in (again, whole):
        assert torch.equal(other[0], plain[0])
        for name, g in plain[2].items():
            torch.testing.assert_close(other[2][name], g, **ROUNDING)


def test_another_model_beside_it_is_stock():
    model, other = wav2vec2(), wav2vec2()
    stock = outcome(other)
    with gt.swap("reinmax", tau=1.0, model=model) as swapped:
        beside = outcome(other)
        assert swapped.calls == 0
        outcome(model)
    for name, g in stock[2].items():
        assert torch.equal(beside[2][name], g)


def test_in_evaluation_nothing_is_drawn():
    model = wav2vec2().eval()
    with pytest.warns(gt.SwapWarning), gt.swap("reinmax", tau=1.0, model=model), torch.no_grad():
        model(**batch(model))


@pytest.mark.parametrize("key", ["stgs", "reinmax"])
def test_training_lowers_the_loss(key):
    model = wav2vec2()
    weight = model.quantizer.weight_proj.weight
    start, data, losses = weight.detach().clone(), batch(model), []
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with gt.swap(key, tau=1.0, model=model):
        for _ in range(30):
            loss = model(**data).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert max(losses[-5:]) < 0.7 * losses[0]
    assert (weight - start).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("wav2vec2_conformer", "Wav2Vec2Conformer"), ("unispeech", "UniSpeech")],
)
def test_models_with_the_same_quantizer(name, prefix):
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    config = SimpleNamespace(
        conv_dim=[8], num_codevector_groups=2, num_codevectors_per_group=4, codevector_dim=6
    )
    quantizer = getattr(module, f"{prefix}GumbelVectorQuantizer")(config).train()
    nn.init.normal_(quantizer.codevectors)
    with gt.swap("reinmax", tau=1.0, model=quantizer) as swapped:
        out, _ = quantizer(torch.randn(2, 5, 8))
    out.sin().sum().backward()
    assert quantizer.weight_proj.weight.grad.abs().max() > 0
    ((place, calls),) = swapped.sites.items()
    assert f"modeling_{name}.py" in place
    assert calls == 1


# --- the callbacks, in the order in which Trainer.train calls them


def train(model, callbacks, data, *, accumulate=1, state=None, saves=lambda state: None, norm=0.0):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    args = SimpleNamespace(
        logging_first_step=False, logging_strategy="no", eval_strategy="no", save_strategy="no",
        eval_delay=0,
    )  # fmt: skip
    state, control = state or TrainerState(max_steps=100), TrainerControl()
    handler = CallbackHandler([DefaultFlowCallback(), *callbacks], model, None, optimizer, schedule)
    handler.on_train_begin(args, state, control)
    handler.on_epoch_begin(args, state, control)
    for step in range(state.global_step * accumulate, len(data)):
        if step % accumulate == 0:
            handler.on_step_begin(args, state, control)
        model.train()
        (model(**data[step])["loss"] / accumulate).backward()
        if (step + 1) % accumulate:
            handler.on_substep_end(args, state, control)
            continue
        if norm:
            nn.utils.clip_grad_norm_(model.parameters(), norm)
        handler.on_pre_optimizer_step(args, state, control)
        optimizer.step()
        handler.on_optimizer_step(args, state, control)
        schedule.step()
        model.zero_grad()
        state.global_step += 1
        handler.on_step_end(args, state, control)
        saves(state)  # a Trainer writes its checkpoints here
    handler.on_epoch_end(args, state, control)
    handler.on_train_end(args, state, control)
    return state


def anneal(step):
    return max(0.5, 2.0 * 0.8**step)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_three_callbacks_of_one_training(accumulate):
    model, taus = wav2vec2(), []
    data = [batch(model, seed) for seed in range(6)]
    groups = model.quantizer.num_groups, model.quantizer.num_vars
    monitor = gt.Monitor(model.quantizer.weight_proj, every=1)
    watch = gt.transformers.MonitorCallback(
        monitor, "quantizer.weight_proj",
        law=lambda out: gt.Categorical(out.unflatten(-1, groups), event_dims=1),
    )  # fmt: skip
    swap = gt.transformers.SwapCallback("reinmax", tau=9.0)
    model.quantizer.register_forward_pre_hook(
        lambda *_: taus.append((swap.swapped.estimator.tau, model.quantizer.temperature))
    )
    targets = [watch, swap, model.set_gumbel_temperature]
    steps = gt.transformers.TemperatureCallback(anneal, targets)
    state = train(model, [watch, steps, swap], data, accumulate=accumulate)
    assert state.global_step == 6 // accumulate
    assert taus == [(anneal(i // accumulate),) * 2 for i in range(6)]
    assert [row["tau"] for row in monitor.history] == [t for t, _ in taus[::accumulate]]
    assert all(row["loss"] > 1.0 and row["grad_norm"] > 0 for row in monitor.history)
    assert {row["classes"] for row in monitor.history} == {8.0}
    assert swap.swapped.calls == 6
    assert all("modeling_wav2vec2.py" in place for place in swap.swapped.sites)
    outcome(model)
    assert swap.swapped.calls == 6


def test_the_monitor_changes_nothing():
    start = wav2vec2()
    data = [batch(start, seed) for seed in range(3)]
    found = []
    for watched in (False, True):
        model = copy.deepcopy(start)
        monitor = gt.Monitor(model.quantizer.weight_proj, every=1)
        law = gt.transformers.MonitorCallback(monitor, "quantizer.weight_proj")
        torch.manual_seed(1)
        train(model, [law] if watched else [], data)
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name])


def test_gradients_are_seen_as_the_optimizer_gets_them():
    model = wav2vec2()
    data = [batch(model, seed) for seed in range(2)]
    monitor = gt.Monitor(model, every=1)
    watch = gt.transformers.MonitorCallback(monitor, "quantizer.weight_proj")
    train(model, [watch], data, norm=1.0)
    assert all(row["grad_norm"] == pytest.approx(1.0, rel=1e-4) for row in monitor.history)


class TinyConfig(PretrainedConfig):
    model_type = "tiny"


class Tiny(PreTrainedModel):
    """A model of Hugging Face with a layer of ours."""

    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = gt.nn.CategoricalLayer(6, 4, tau=anneal)
        self.decoder = nn.Linear(4, 6)
        self.post_init()
        self.seen = []

    def _init_weights(self, module):
        pass

    def forward(self, x):
        self.seen.append(self.encoder.tau.value)
        return {"loss": (self.decoder(self.encoder(x)) - x).square().mean()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_that_is_taken_up_goes_on_at_the_same_temperature(tmp_path, accumulate):
    data = [{"x": torch.randn(8, 6)} for _ in range(5 * accumulate)]
    whole, called = Tiny(TinyConfig()), []

    def made(to):
        return [gt.transformers.TemperatureCallback(anneal, to.append)]

    def saves(state):
        if state.global_step == 2:
            whole.save_pretrained(tmp_path)
            state.save_to_json(str(tmp_path / "trainer_state.json"))

    train(whole, made(called), data, accumulate=accumulate, saves=saves)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    plain = Tiny(TinyConfig())
    plain.load_state_dict(weights, strict=False)  # as a Trainer does
    for again in (plain, Tiny.from_pretrained(tmp_path)):
        state = TrainerState.load_from_json(str(tmp_path / "trainer_state.json"))
        resumed = []
        train(again, made(resumed), data, accumulate=accumulate, state=state)
        assert again.seen == whole.seen[2 * accumulate :]
        assert resumed == called[2:] == [anneal(i) for i in (2, 3, 4)]


def test_a_module_that_the_model_does_not_have_is_refused():
    model = wav2vec2()
    watch = gt.transformers.MonitorCallback(gt.Monitor(model, every=1), "weight_proj")
    with refuses(gt.ConfigError, "weight_proj", "Wav2Vec2ForPreTraining", "quantizer.weight_proj"):
        train(model, [watch], [batch(model)])


# --- the page


def test_the_page_shows_a_program_and_the_changes_to_it():
    page = (Path(__file__).parents[2] / "docs" / "wav2vec2.md").read_text(encoding="utf-8")

    def fences(language):
        return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)

    program, three, schedule = fences("python")
    change, *of_trainer = fences("diff")
    gone, come = (
        "".join(line[1:] + "\n" for line in change.splitlines() if line[0] == sign) for sign in "-+"
    )
    assert program.count(gone) == 1
    seen = {}
    exec(program, seen)
    exec(program.replace(gone, come), seen)
    assert seen["swapped"].calls == 1
    assert all("modeling_wav2vec2.py" in place for place in seen["swapped"].sites)
    exec(three, seen)
    model, data = seen["model"], [seen["batch"]] * 3
    train(model, seen["callbacks"], data)
    assert seen["swap"].swapped.calls == 3
    assert seen["swap"].swapped.estimator == gt.ReinMax(tau=2.0 * 0.9999**2)
    (row,) = seen["watch"].monitor.history
    assert row["tau"] == 2.0
    exec(schedule, seen)
    train(model, [seen["anneal"]], data)
    assert model.quantizer.temperature == 2.0 * 0.999995**2
    # A Trainer itself needs accelerate; what the page says of it is that it takes the list.
    assert "callbacks=callbacks" in of_trainer[-1]
