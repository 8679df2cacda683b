import json

import pytest
import torch

import gradthrough as gt
from gradthrough import cli, cli_audit
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.gaussian_vae import GaussianVAE
from gradthrough.bench.tasks.polynomial import Polynomial
from gradthrough.bench.tasks.vae import VAE

MODULE = """
import torch
import gradthrough as gt

def function():
    return {"f": lambda z: z[..., 0] ** 2, "dist": torch.zeros(2, 3)}

def program():
    theta = torch.zeros(2, 3, requires_grad=True)
    f = lambda z: (z[..., 0] - 0.3) ** 3
    return {"loss_fn": lambda expect: expect(f, gt.Categorical(theta)), "params": [theta]}

def wrong():
    return {"f": 1}

def listed():
    return [1]
"""
FEW = ["--estimators", "st", "rloo", "--replicates", "20", "--evaluations", "2"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_problem.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["function", "program"])
def test_a_problem_of_ones_own_is_audited_and_written(name, module, capsys):
    cli.main(["audit", f"my_problem:{name}", *FEW, "--out", "found"])
    out = capsys.readouterr().out
    assert "st " in out
    assert "Take " in out
    found = json.loads((module / "found" / "audit.json").read_text())
    assert [row["estimator"] for row in found["rows"]] == ["st", "rloo"]
    assert (module / "found" / "audit.html").read_text().startswith("<!doctype html>")
    assert (module / "found" / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (module / "found").iterdir()) == [
        "audit.html",
        "audit.json",
        "audit.png",
    ]


@pytest.mark.parametrize("name", ["wrong", "listed", "absent"])
def test_a_problem_that_is_none_ends_in_one_line(name, module, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["audit", f"my_problem:{name}", *FEW])
    err = capsys.readouterr().err
    assert err.startswith("gradthrough: ")
    assert f"my_problem:{name}" in err


@pytest.mark.parametrize("on", ["logits", "weights"])
def test_a_task_is_audited_where_one_asks(on, module, capsys):
    words = ["--length", "3", "--p", "3", "--batch-size", "4", "--on", on, *FEW]
    cli.main(["audit", "polynomial", *words])
    found = json.loads((module / "audit" / "audit.json").read_text())
    assert found["dimensions"] == (4 * 3 * 2 if on == "logits" else 3 * 2)
    assert found["reference"]["kind"] == "exact"


def test_the_temperature_is_searched_for(module, capsys):
    words = ["--estimators", "st", "--replicates", "20", "--tune", "tau"]
    cli.main(["audit", "my_problem:function", *words])
    assert "Take st, tau=" in capsys.readouterr().out


@pytest.mark.parametrize(
    "task",
    [
        VAE(dataset="digits", latents=2, classes=3, hidden=(8,), bound_samples=0),
        GaussianVAE(dataset="digits", latents=2, hidden=(8,), bound_samples=0),
    ],
    ids=lambda task: task.name,
)
def test_the_weights_in_front_are_those_that_the_law_depends_on(task):
    model = task.model(Seeds(0))
    batch = next(task.batches("train", Seeds(0), epoch=0, size=5))
    found = cli_audit.in_front(task, model, batch)
    assert [id(p) for p in found] == [id(p) for p in model.encoder.parameters()]


def test_a_checkpoint_is_what_is_audited(module, capsys):
    task = Polynomial(length=3, p=3.0)
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.0]])
    torch.save({"model": {"logits": logits}}, module / "run.ckpt")
    words = ["--length", "3", "--p", "3", "--batch-size", "1", *FEW, "--checkpoint", "run.ckpt"]
    cli.main(["audit", "polynomial", *words])
    found = json.loads((module / "audit" / "audit.json").read_text())
    leaf = logits[None].requires_grad_()
    bits = task.model(Seeds(0))
    exact = gt.expect(bits.cost, gt.Categorical(leaf, event_dims=1), gt.Enumerate())
    (gradient,) = torch.autograd.grad(exact.sum(), leaf)
    assert found["reference"]["norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["audit", "polynomial", *FEW, "--checkpoint", "absent.ckpt"])
    assert "absent.ckpt" in capsys.readouterr().err
