"""The callbacks in a Trainer of Hugging Face, offline, on a model of a few weights."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradthrough as gt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Trainer, TrainingArguments

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
DATA = [{"x": torch.randn(6), "labels": torch.tensor(i % 3)} for i in range(24)]


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.layer = gt.nn.CategoricalLayer(6, 4, tau=gt.schedules.Linear(2.0, 1.0, steps=4))
        self.head = nn.Linear(4, 3)

    def forward(self, x, labels):
        z = F.gumbel_softmax(self.gate(x), tau=0.5, hard=True) + self.layer(x)
        out = self.head(z)
        return {"loss": F.cross_entropy(out, labels), "logits": out}


def trained(folder, callbacks, steps=6, **options):
    torch.manual_seed(0)
    model = Gated()
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", gradient_accumulation_steps=2, save_steps=3,
        **options,
    )  # fmt: skip
    return model, Trainer(model, arguments, train_dataset=DATA, callbacks=callbacks)


def test_a_run_of_the_trainer(tmp_path):
    client = gt.transformers
    swap = client.SwapCallback("reinmax", tau=1.0)
    callbacks = [swap, client.TemperatureCallback(gt.schedules.Cosine(2.0, 1.0, 6), swap)]
    model, trainer = trained(tmp_path, callbacks, save_strategy="no")
    before = model.gate.weight.clone()
    trainer.train()
    assert model.layer.tau.steps == 6  # steps of the optimizer, not passes
    assert model.layer.tau.value == 1.0
    assert swap.swapped.calls == 12  # two passes a step
    assert swap.swapped.estimator.tau == gt.schedules.Cosine(2.0, 1.0, 6)(5)
    assert not torch.equal(model.gate.weight, before)
    F.gumbel_softmax(torch.zeros(2, 3), hard=True)
    assert swap.swapped.calls == 12  # it is off


def test_a_run_that_is_taken_up_again_goes_on_at_its_temperature(tmp_path):
    def callbacks():
        return [gt.transformers.TemperatureCallback()]

    _, first = trained(tmp_path, callbacks(), steps=3)
    first.train()
    model, second = trained(tmp_path, callbacks(), steps=4)
    second.train(resume_from_checkpoint=True)
    assert model.layer.tau.steps == 4
