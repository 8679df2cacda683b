"""Architecture search: the network is that of the sampled cell; steps move their own parameters."""

import gzip
import hashlib
import itertools
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gradthrough as gt
from gradthrough import cli
from gradthrough.bench import _files, nas_tables
from gradthrough.bench._files import DataFile
from gradthrough.bench.config import RunConfig
from gradthrough.bench.data import load
from gradthrough.bench.nas_tables import EDGES, OPS, AccuracyTable, cell_name, numbered_cell
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks import _labelled, nas
from gradthrough.bench.tasks._labelled import load_labelled
from gradthrough.bench.tasks._search_data import augmented
from gradthrough.bench.tasks._supernet import Network, Supernet
from gradthrough.bench.tasks.nas import NAS
from gradthrough.bench.together import run_together
from gradthrough.bench.train import run
from gradthrough.rollout import Bound

TASK = NAS("digits", channels=4, cells=1, images=200)
WAYS = ("published", "chosen", "all")
SERVED = [key for key in gt.ESTIMATORS if TASK.refuses(gt.estimator(key)) is None]
CELLS = [(3, 2, 3, 1, 4, 3), (1, 0, 4, 2, 0, 1), (0, 0, 0, 0, 0, 0), (4, 3, 2, 0, 0, 0)]


def one_hot(cell):
    return F.one_hot(torch.tensor(cell), len(OPS)).double()


def normal(x, module):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    out = (x - mean) / (var + module.eps).sqrt()
    if module.weight is None:
        return out
    return out * module.weight.view(1, -1, 1, 1) + module.bias.view(1, -1, 1, 1)


def plain(net, images, z, shift=None):
    """Return what the network is to compute, op by op: sum_k z_k op_k(x) + shift on each edge."""
    shift = torch.zeros(len(EDGES), dtype=z.dtype) if shift is None else shift

    def block(m, x):
        return normal(
            F.conv2d(x.relu(), m.conv.weight, None, m.conv.stride, m.conv.padding), m.norm
        )

    def cell(m, x):
        nodes = [x, 0, 0, 0]
        for edge, (start, end) in enumerate(EDGES):
            y = nodes[start]
            count = F.avg_pool2d(torch.ones_like(y), 3, 1, 1)
            ops = {
                "none": 0 * y,
                "skip_connect": y,
                "nor_conv_1x1": block(m.nor_conv_1x1[edge], y),
                "nor_conv_3x3": block(m.nor_conv_3x3[edge], y),
                "avg_pool_3x3": F.avg_pool2d(y, 3, 1, 1) / count,
            }
            mixed = sum(z[edge, k] * ops[name] for k, name in enumerate(OPS))
            nodes[end] = nodes[end] + mixed + shift[edge]
        return nodes[3]

    x = normal(F.conv2d(images, net.stem.weight, padding=1), net.stem_norm)
    for depth, stage in enumerate(net.stages):
        if depth:
            m = net.reductions[depth - 1]
            short = F.conv2d(F.avg_pool2d(x, 2), m.shortcut.weight)
            x = short + block(m.second, block(m.first, x))
        for m in stage:
            x = cell(m, x)
    return net.head(normal(x, net.head_norm).relu().mean((2, 3)))


@pytest.fixture
def supernet():
    """Return a small network in float64, its images and their labels."""
    net = Supernet(3, 2, "published").double()
    with torch.no_grad():
        for p in net.network.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    images = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    return net, images, torch.tensor([3, 1, 4, 1, 5])


def slope(scores, labels, *wrt):
    return torch.autograd.grad(F.cross_entropy(scores, labels), wrt, allow_unused=True)


# The network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_one_hot_point_is_the_discrete_cell(supernet, cell, way):
    net, images, _ = supernet
    net.evaluate_ops = way
    z = one_hot(cell)
    want = plain(net.network, images, z)
    torch.testing.assert_close(net.scores(images, z), want, rtol=0, atol=1e-12)
    learned = net.scores(images, z.requires_grad_(), learned=False)
    torch.testing.assert_close(learned, want, rtol=0, atol=1e-12)


def test_a_soft_point_weighs_all_ops(supernet):
    net, images, labels = supernet
    z = torch.randn(6, 5, dtype=torch.float64).softmax(-1).requires_grad_()
    params = (z, *net.network.parameters())
    scores, want = net.scores(images, z), plain(net.network, images, z)
    torch.testing.assert_close(scores, want, rtol=0, atol=1e-12)
    for a, b in zip(slope(scores, labels, *params), slope(want, labels, *params), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_weights_get_the_gradient_of_the_discrete_cell(supernet, cell):
    net, images, labels = supernet
    z, params = one_hot(cell), list(net.network.parameters())
    found = slope(net.scores(images, z), labels, *params)
    want = slope(plain(net.network, images, z), labels, *params)
    for a, b in zip(found, want, strict=True):
        # An op that was not chosen is not computed: it gets no gradient instead of zeros.
        torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b, rtol=0, atol=1e-11)
    convolutions = sum(op in (2, 3) for op in cell)
    in_cells = [n for n, _ in net.network.named_parameters() if "nor_conv" in n]
    given = {
        n for (n, _), a in zip(net.network.named_parameters(), found, strict=True) if a is not None
    }
    assert len(in_cells) == 6 * 6 * 2
    assert len(given & set(in_cells)) <= 6 * convolutions


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_gradient_in_the_point_is_what_the_option_says(supernet, cell):
    net, images, labels = supernet
    hard = one_hot(cell)
    z, shift = hard.clone().requires_grad_(), torch.zeros(6, dtype=torch.float64).requires_grad_()
    exact, by_shift = slope(plain(net.network, images, z, shift), labels, z, shift)
    want = {
        "all": exact,
        "chosen": exact * hard,
        "published": exact * hard + by_shift.unsqueeze(-1) * (1 - hard),
    }
    for way in WAYS:
        net.evaluate_ops = way
        for learned in (True, False):
            point = hard.clone().requires_grad_()
            (found,) = slope(net.scores(images, point, learned=learned), labels, point)
            torch.testing.assert_close(found, want[way], rtol=0, atol=1e-12)


def test_with_all_ops_the_gradient_is_that_of_finite_differences(supernet):
    net, images, labels = supernet
    net.evaluate_ops = "all"
    hard, h = one_hot(CELLS[0]), 1e-5
    (found,) = slope(net.scores(images, hard.requires_grad_()), labels, hard)
    want = torch.zeros_like(found)
    with torch.no_grad():
        for place in itertools.product(range(6), range(5)):
            ends = []
            for sign in (1, -1):
                z = hard.clone()
                z[place] += sign * h
                ends.append(F.cross_entropy(net.scores(images, z), labels))
            want[place] = (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-8)
    assert int((found.abs() > 1e-6).sum()) >= 20


def test_only_the_chosen_ops_are_computed(supernet):
    net, images, _ = supernet
    used = []
    for name, module in net.network.named_modules():
        if "nor_conv" in name and name.count(".") == 4:
            module.register_forward_hook(lambda m, a, out, name=name: used.append(name))
    for way, count in {"published": 4, "chosen": 4, "all": 12}.items():
        net.evaluate_ops = way
        net.scores(images, one_hot(CELLS[0]))
        assert len(used) == 6 * 4  # without a gradient in the point nothing else is wanted
        used.clear()
        net.scores(images, one_hot(CELLS[0]).requires_grad_(), learned=False)
        assert len(used) == 6 * count
        used.clear()


def test_the_skeleton_is_the_published_one():
    net = Network(16, 5)
    assert [len(stage) for stage in net.stages] == [5, 5, 5]
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["stem.weight"] == (16, 1, 3, 3)
    assert shapes["stages.2.4.nor_conv_3x3.5.conv.weight"] == (64, 64, 3, 3)
    assert shapes["reductions.1.shortcut.weight"] == (64, 32, 1, 1)
    assert shapes["head.weight"] == (10, 64)
    assert not any("norm" in name for name in shapes if "nor_conv" in name)
    assert not list(net.buffers())


# Steps ---------------------------------------------------------------------------------------


def config(key="stgs", task=TASK, **options):
    settings = {"optimizer": "sgd", "lr": 0.025, "momentum": 0.9, "weight_decay": 5e-4}
    return RunConfig("nas", task.options(), key, **{**settings, "batch_size": 20, **options})


def steps(size=20, task=TASK):
    return task.batches("train", Seeds(0), epoch=0, size=size)


@pytest.mark.parametrize("key", SERVED)
def test_each_step_moves_its_own_parameters(key):
    estimator = gt.estimator(key)
    least = estimator.traits.min_samples
    model = TASK.model(Seeds(0))
    optimizers = TASK.optimizers(model, config(key))
    bound = Bound(estimator, least, torch.Generator().manual_seed(1))
    moved = set()
    for step in itertools.islice(steps(), 3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        bound.evaluations = 0
        losses = TASK.losses(model, step, bound)
        assert losses.shape == (20,)
        assert losses.isfinite().all()
        assert bool((losses == losses[0]).all())
        assert bound.evaluations == estimator.evaluations(TASK.law(), least)
        losses.mean().backward()
        weights = step.kind == "weights"
        assert (model.architecture.grad is None) == weights
        assert all((p.grad is None) or weights for p in model.network.parameters())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert changed <= (set(before) - {"architecture"} if weights else {"architecture"})
        assert not weights or "network.head.weight" in changed
        moved |= changed
    assert "architecture" in moved
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("key", gt.ESTIMATORS)
def test_who_would_train_too_many_networks_is_refused(key):
    reason = TASK.refuses(gt.estimator(key))
    traits = gt.ESTIMATORS[key].traits
    if "categorical" not in traits.families:
        assert "categorical" in reason
    elif key == "enumerate":
        assert "15625 networks" in reason
    else:
        assert reason is None


@pytest.mark.parametrize("way", WAYS)
def test_the_architecture_gets_the_gradient_of_the_estimator_for_the_mean_loss(way):
    task = replace(TASK, evaluate_ops=way)
    model = task.model(Seeds(0))
    step = next(itertools.islice(steps(), 1, 2))
    law = model.law()
    noise = torch.rand(1, 1, 6, dtype=torch.float64)
    z = law.sample(noise=noise[0]).requires_grad_()  # (1, edges, ops)
    scores = model.scores(step.data.images, z[0], learned=False)
    (g,) = slope(scores, step.data.labels, z)

    def expect(f, dist):
        return gt.expect(f, dist, gt.StraightThrough(), noise=noise)

    task.losses(model, step, expect).mean().backward()
    p = law.probs[0]
    want = p * (g[0] - (p * g[0]).sum(-1, keepdim=True))
    torch.testing.assert_close(model.architecture.grad, want.detach(), rtol=1e-4, atol=1e-7)


def test_the_loss_of_several_samples_is_the_mean_over_their_networks():
    model, step = TASK.model(Seeds(0)), next(steps())
    noise = torch.rand(3, 1, 6, dtype=torch.float64)
    points = model.law().expand(3).sample(noise=noise)

    def expect(f, dist):
        return gt.expect(f, dist, gt.RLOO(), samples=3, noise=noise)

    each = [
        F.cross_entropy(model.scores(step.data.images, z), step.data.labels) for z in points[:, 0]
    ]
    loss = TASK.losses(model, step, expect)
    torch.testing.assert_close(loss, torch.stack(each).mean().expand(20))
    params = list(model.network.parameters())
    found = torch.autograd.grad(loss.mean(), params, allow_unused=True, retain_graph=True)
    want = torch.autograd.grad(sum(each) / 3, params, allow_unused=True)
    for a, b in zip(found, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_a_cell_without_any_op_trains_like_others():
    model = TASK.model(Seeds(0))
    with torch.no_grad():
        model.architecture[:, 0] = 60.0
    for step in itertools.islice(steps(), 2):
        TASK.losses(model, step, Bound(gt.ReinMax())).mean().backward()
    assert model.architecture.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.network.parameters())
    assert all(p.grad is None for n, p in model.network.named_parameters() if "nor_conv" in n)


def test_the_weights_have_nesterov_and_the_architecture_an_adam_of_its_own():
    model = TASK.model(Seeds(0))
    first, second = TASK.optimizers(model, config())
    assert type(first) is torch.optim.SGD
    assert type(second) is torch.optim.Adam
    (group,) = first.param_groups
    want = {"lr": 0.025, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    assert {name: group[name] for name in want} == want
    assert {id(p) for p in group["params"]} == {id(p) for p in model.network.parameters()}
    (group,) = second.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.5, 0.999), 1e-3)
    assert group["params"] == [model.architecture]
    assert not TASK.optimizers(model, config(momentum=0.0))[0].param_groups[0]["nesterov"]
    adam = config(optimizer="adam", momentum=0.0)
    assert type(TASK.optimizers(model, adam)[0]) is torch.optim.Adam


# Data ----------------------------------------------------------------------------------------


def test_steps_come_in_turns_and_each_half_comes_once():
    found = list(steps(size=30))
    assert [step.kind for step in found] == ["weights", "architecture"] * 4
    assert [len(step) for step in found] == [30, 30, 30, 30, 30, 30, 10, 10]
    train, _ = load_labelled("digits")
    for first, kind in enumerate(("weights", "architecture")):
        seen = torch.cat([step.data.images for step in found if step.kind == kind]).flatten(1)
        want = train.images[first:200:2].flatten(1)
        assert torch.equal(seen.sort(0).values, want.sort(0).values)
        assert not torch.equal(seen, want)
    again = list(steps(size=30))
    assert all(torch.equal(a.data.images, b.data.images) for a, b in zip(found, again, strict=True))
    other = next(TASK.batches("train", Seeds(0), epoch=1, size=30))
    assert not torch.equal(other.data.images, found[0].data.images)


def test_a_step_gives_shares_of_itself():
    step = next(steps())
    shares = [step[rank::3] for rank in range(3)]
    assert [len(share) for share in shares] == [7, 7, 6]
    assert {share.kind for share in shares} == {"weights"}
    assert torch.equal(shares[1].data.labels, step.data.labels[1::3])
    assert torch.equal(shares[1].data.images, step.data.images[1::3])


def test_what_is_held_out_is_the_half_of_the_architecture_and_the_test_images():
    train, test = load_labelled("digits")
    for split, want in (("valid", train[1:200:2]), ("test", test)):
        parts = list(TASK.batches(split, Seeds(0), epoch=0, size=64))
        assert torch.equal(torch.cat([p.data.images for p in parts]), want.images)
        assert torch.equal(torch.cat([p.data.labels for p in parts]), want.labels)


def test_digits_keep_their_labels():
    sklearn = pytest.importorskip("sklearn.datasets")
    digits = sklearn.load_digits()
    label_of = {
        (x / 16).astype(np.float32).tobytes(): y for x, y in zip(*digits_of(digits), strict=True)
    }
    data = load("digits")
    for images, part in zip((data.train, data.test), load_labelled("digits"), strict=True):
        assert [label_of[x.numpy().tobytes()] for x in images] == part.labels.tolist()
        scaled = (images - data.train.mean()) / data.train.std(correction=0)
        torch.testing.assert_close(part.images.flatten(1), scaled)


def digits_of(digits):
    return digits.images.reshape(-1, 64), digits.target


def idx(x):
    return gzip.compress(struct.pack(f">4B{x.ndim}I", 0, 0, 8, x.ndim, *x.shape) + x.tobytes())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_labels_lie_beside_their_images(name, tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    labels = {}
    for split, n in (("train", 6), ("test", 4)):
        key = f"{name} {split}"
        for table, shape, most in ((_files.FILES, (n, 8, 8), 256), (_labelled.LABELS, (n,), 10)):
            content = random.randint(0, most, shape).astype(np.uint8)
            path = table[key].path
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(packed := idx(content))
            monkeypatch.setitem(
                table, key, DataFile(path, hashlib.sha256(packed).hexdigest(), shape)
            )
        labels[split] = content.tolist()
    train, test = load_labelled(name, root=tmp_path)
    assert train.labels.tolist() == labels["train"]
    assert test.labels.tolist() == labels["test"]
    assert train.images.shape == (6, 1, 8, 8)
    assert abs(float(train.images.mean())) < 1e-6
    monkeypatch.setenv("GRADTHROUGH_DATA", str(tmp_path))
    assert len(NAS(name, images=5).data.weights) == 2


def test_the_files_of_labels_are_those_of_their_images():
    for key, file in _labelled.LABELS.items():
        beside = _files.FILES[key]
        assert file.path == beside.path.replace("images-idx3", "labels-idx1")
        assert file.mirrors == tuple(
            m.replace("images-idx3", "labels-idx1") for m in beside.mirrors
        )
        assert file.shape == beside.shape[:1]
        assert len(file.sha256) == 64


def test_augmentation_mirrors_and_shifts_each_image_on_its_own():
    x = torch.randn(40, 1, 6, 8)
    generator = torch.Generator().manual_seed(0)
    assert augmented(x, 0, False, generator) is x
    flipped = augmented(x, 0, True, generator)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, x, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, flipped, x, strict=True))
    assert 5 < sum(mirrored) < 35
    padded = F.pad(x, (2, 2, 2, 2))
    found = set()
    for image, wide in zip(augmented(x, 2, False, generator), padded, strict=True):
        fits = {
            (i, j)
            for i, j in itertools.product(range(5), range(5))
            if torch.equal(image, wide[:, i : i + 6, j : j + 8])
        }
        assert len(fits) == 1
        found |= fits
    assert len(found) > 12
    moved = NAS("digits", 4, 1, images=200, crop=1, flip=True)
    assert not torch.equal(next(steps(task=moved)).data.images, next(steps()).data.images)


# Runs ----------------------------------------------------------------------------------------


def trained(folder, one):
    return run(one, out=folder, progress=False, accelerator="cpu")


def test_a_search_reports_the_most_probable_cell(tmp_path):
    # tau moves, and so does the rate of the weights, but not that of the architecture.
    one = config(
        "stgs",
        estimator_options={"tau": 10.0},
        tau_end=0.1,
        schedule="cosine",
        lr_end=0.001,
        epochs=2,
        batch_size=50,
        clip=5.0,
    )
    result = trained(tmp_path, one)
    assert result.status == "done"
    model = result.model
    cell = model.cell()
    assert cell == tuple(model.architecture.argmax(-1).tolist())
    assert result.last("probe", "cell") == nas.cell_number(cell)
    assert result.last("probe", "entropy") == pytest.approx(float(model.law().entropy().detach()))
    assert 9.6 < result.last("probe", "entropy") < 9.6567
    z = one_hot(cell).float()
    for split, half in (("valid", TASK.data.architecture), ("test", TASK.data.test)):
        parts = [half[i : i + 250] for i in range(0, len(half), 250)]
        scores = torch.cat([model.scores(p.images, z).detach() for p in parts])
        loss = float(F.cross_entropy(scores, half.labels))
        right = 100 * float((scores.argmax(-1) == half.labels).float().mean())
        assert result.last(split, "loss") == pytest.approx(loss, rel=1e-5)
        assert result.last(split, "accuracy") == pytest.approx(right, rel=1e-6)
    assert sum(r.metric == "accuracy" for r in result.records) == 3  # test: at the end alone
    assert result.last("train", "loss") > 0


def test_the_cell_is_looked_up(tmp_path, monkeypatch):
    names = tuple(cell_name(numbered_cell(i)) for i in reversed(range(nas_tables.CELLS)))
    numbers = torch.arange(float(len(names))).unsqueeze(-1) * torch.tensor([1.0, 0.5])
    table = AccuracyTable(names, ("a", "cifar10_test_200ep"), numbers)
    monkeypatch.setattr(nas, "load_table", lambda: table)
    task = replace(TASK, lookup=True)
    task.prepare(torch.device("cpu"))
    model = task.model(Seeds(0))
    with torch.no_grad():
        model.architecture.copy_(4 * one_hot(CELLS[0]))
    found = task.probe(model, config(task=task), epoch=1)
    row = nas_tables.CELLS - 1 - found["cell"]
    assert found["cell"] == nas.cell_number(CELLS[0])
    assert (found["index"], found["a"], found["cifar10_test_200ep"]) == (row, row, row / 2)
    assert set(TASK.probe(model, config(), epoch=1)) == {"cell", "entropy"}


def test_without_its_file_there_is_no_look_up(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "cache_folder", lambda: tmp_path)
    monkeypatch.setenv("GRADTHROUGH_DATA", str(tmp_path))
    with pytest.raises(gt.ConfigError, match="nasbench201"):
        replace(TASK, lookup=True).prepare(torch.device("cpu"))


def test_seeds_at_once_are_refused_in_words(tmp_path):
    with pytest.raises(gt.ConfigError, match="optimizers of its own"):
        run_together(config(epochs=1), (0, 1), out=tmp_path, progress=False, accelerator="cpu")


def test_the_command_line_takes_the_options(tmp_path, capsys):
    words = "bench run nas --dataset digits --channels 2 --cells 1 --images 40 --epochs 1 --crop 1"
    more = f"--evaluate-ops all --flip --estimator reinmax --out {tmp_path} --optimizer sgd"
    cli.main([*words.split(), *more.split()])
    assert "done" in capsys.readouterr().out
    task = NAS("digits", 2, 1, "all", 40, 1, True)
    want = RunConfig("nas", task.options(), "reinmax", optimizer="sgd", epochs=1)
    assert (tmp_path / "nas" / f"{want.key}.jsonl").exists()


def test_models_of_a_seed_are_equal_and_the_global_state_is_kept():
    before = torch.get_rng_state()
    a, b = (TASK.model(Seeds(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert 0 < float(a.architecture.detach().abs().max()) < 1e-2


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"dataset": "omniglot"}, gt.ConfigError, "'omniglot', but must be one of digits"),
        ({"evaluate_ops": "some"}, gt.ConfigError, "evaluate_ops is 'some'"),
        ({"channels": 0}, gt.DomainError, "channels must be at least 1"),
        ({"cells": 0}, gt.DomainError, "cells must be at least 1"),
        ({"images": 1}, gt.DomainError, "images must be at least 2"),
        ({"crop": -1}, gt.DomainError, "crop must be at least 0"),
        ({"arch_lr": 0.0}, gt.DomainError, "arch_lr"),
        ({"arch_weight_decay": float("nan")}, gt.DomainError, "arch_weight_decay"),
    ],
)
def test_options_are_checked(options, kind, said):
    with pytest.raises(kind, match=said):
        NAS(**options)


def test_more_images_than_there_are_are_refused():
    with pytest.raises(gt.DomainError, match="images is 1438, but digits has 1437"):
        NAS("digits", images=1438).prepare(torch.device("cpu"))
    assert len(NAS("digits").data.weights) == len(NAS("digits").data.architecture) == 718
