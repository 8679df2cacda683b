"""Mixtures of experts: only the chosen expert computes a row; every accepted routing trains."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import gradthrough as gt
from gradthrough.bench import records
from gradthrough.bench.cells import cells
from gradthrough.bench.config import RunConfig
from gradthrough.bench.experiment_file import load
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks import TASKS
from gradthrough.bench.tasks._labelled import load_labelled
from gradthrough.bench.tasks._moe_model import Choice, Classifier, Experts
from gradthrough.bench.tasks.moe import MoE
from gradthrough.bench.train import run
from gradthrough.rollout import Bound
from gradthrough.routing import load_balance, sparsemixer_v2
from problems import F64, normal, refuses

N = 4
TASK = MoE("digits", experts=N, width=12, hidden=6)
SERVED = [key for key in gt.ESTIMATORS if TASK.refuses(gt.estimator(key)) is None]
ALONE = ("sparsemixer_v2", "dense")  # routings without an estimator
WAYS = [("estimator", key) for key in SERVED] + [(routing, "st") for routing in ALONE]
ways = pytest.mark.parametrize(("routing", "key"), WAYS)
CHOSEN = torch.tensor([2, 0, 2, 2, 1, 0, 2])  # expert 3 gets no row


def experts(rows=7):
    torch.manual_seed(1)
    return Experts(N, 5, 3).double(), normal(rows, 5)


def one_expert(m, i, x):
    """What expert i makes of rows."""
    inner = F.linear(x, m.up[i].T, m.up_bias[i]).relu()
    return F.linear(inner, m.down[i].T, m.down_bias[i])


# --- the experts


def test_the_grouped_experts_are_the_masked_dense_ones_with_their_gradients():
    m, x = experts()
    x.requires_grad_()
    got, evaluated = m(x, CHOSEN)
    mask = F.one_hot(CHOSEN, N).double()
    want = torch.stack([mask[:, i, None] * one_expert(m, i, x) for i in range(N)]).sum(0)
    torch.testing.assert_close(got, want)
    assert evaluated == len(x)
    every, dense_work = m.every(x)
    torch.testing.assert_close(torch.einsum("rn,nrw->rw", mask, every), want)
    assert dense_work == N * len(x)
    leaves, g = [x, *m.parameters()], normal(7, 5, seed=2)
    for a, b in zip(
        torch.autograd.grad(got, leaves, g), torch.autograd.grad(want, leaves, g), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_an_expert_computes_its_own_rows_alone():
    m, x = experts()
    with torch.no_grad():
        for w in m.parameters():
            w[2] = torch.nan
    out, _ = m(x, CHOSEN)
    assert torch.equal(out.isnan().all(-1), CHOSEN == 2)
    assert torch.equal(out.isnan().any(-1), CHOSEN == 2)


def test_an_expert_without_rows_gets_a_gradient_of_zero():
    m, x = experts()
    m(x, CHOSEN)[0].sum().backward()
    for w in m.parameters():
        assert w.grad[:3].any()
        assert not w.grad[3].any()


def test_no_rows_are_no_work():
    m, x = experts(rows=0)
    out, evaluated = m(x, CHOSEN[:0])
    assert (out.shape, evaluated) == ((0, 5), 0)


# --- the classifier


def plain(net, images, route):
    """The classifier for one sample, row by row in its sums: scores, balance of each layer."""
    x, balances = net.stem(images.flatten(1)), []
    for m in net.mixtures:
        normed = F.layer_norm(x, x.shape[-1:], m.norm.weight, m.norm.bias)
        logits = normed @ m.router.weight.T
        weights, used = route(logits)
        x = x + sum(weights[:, i, None] * one_expert(m.experts, i, normed) for i in range(N))
        balances.append(load_balance(logits.softmax(-1), used))
    head = net.head[1]
    scores = F.layer_norm(x, x.shape[-1:], net.head[0].weight, net.head[0].bias)
    return head(scores), sum(balances) / len(balances)


def classifier():
    torch.manual_seed(2)
    return Classifier(64, 2, N, 12, 6).double(), normal(9, 1, 8, 8)


def soft(logits):
    return logits.softmax(-1), torch.arange(N).expand(logits.shape)


def best(logits):
    one = logits.argmax(-1)
    return F.one_hot(one, N).to(logits.dtype), one.unsqueeze(-1)


def mixed(logits):
    p = logits.softmax(-1)
    one = p.argmax(-1)
    return p * F.one_hot(one, N), one.unsqueeze(-1)


ROUTES = {
    "dense": (soft, lambda x: Choice(x.softmax(-1), None), N),
    "best": (best, lambda x: Choice(torch.ones_like(x[..., :1]), x.argmax(-1, True)), 1),
    "mixed": (
        mixed,
        lambda x: Choice(x.softmax(-1).amax(-1, True), x.argmax(-1, True)),
        1,
    ),
}


@pytest.mark.parametrize("name", ROUTES)
def test_the_classifier_is_a_sum_over_all_experts_with_most_weights_zero(name):
    net, images = classifier()
    route, choice, share = ROUTES[name]
    out = net(images, 1, choice)
    scores, balance = plain(net, images, route)
    torch.testing.assert_close(out.scores, scores.unsqueeze(0))
    torch.testing.assert_close(out.balance, balance)
    assert out.evaluated == 2 * share * len(images)


def test_samples_are_routed_each_on_its_own():
    net, images = classifier()
    turns = itertools.count()

    def choice(logits):
        expert = torch.arange(3).view(3, 1, 1).expand(3, 9, 1)
        return Choice(torch.ones(3, 9, 1, dtype=F64), (expert + next(turns)) % N)

    out = net(images, 3, choice)
    for s in range(3):
        ones = iter((s % N, (s + 1) % N))

        def route(logits, ones=ones):
            one = torch.full((9,), next(ones))
            return F.one_hot(one, N).double(), one.unsqueeze(-1)

        torch.testing.assert_close(out.scores[s], plain(net, images, route)[0])
    assert out.evaluated == 2 * 3 * 9


# --- the task


def bound(key):
    estimator = gt.estimator(key)
    return Bound(estimator, estimator.traits.min_samples, torch.Generator().manual_seed(1))


def trained(task, key, steps=3):
    """Train a fresh model for some steps; return the losses and the parameters."""
    seeds, expect = Seeds(0), bound(key)
    model = task.model(seeds)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for batch in itertools.islice(task.batches("train", seeds, epoch=0, size=20), steps):
        loss = task.losses(model, batch, expect)
        assert loss.shape == (20,)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    assert expect.evaluations == steps * 20 * expect.samples
    return torch.stack(losses), dict(model.named_parameters())


@ways
def test_every_accepted_routing_trains_routers_and_experts(routing, key):
    task = replace(TASK, routing=routing)
    assert task.refuses(gt.estimator(key)) is None
    losses, after = trained(task, key)
    assert losses.isfinite().all()
    for name, x in task.model(Seeds(0)).named_parameters():
        assert after[name].isfinite().all()
        assert not torch.equal(x, after[name]), name
    again, repeated = trained(task, key)
    assert torch.equal(losses, again)
    assert all(torch.equal(x, repeated[name]) for name, x in after.items())


@pytest.mark.parametrize("key", gt.ESTIMATORS)
def test_a_routing_without_an_estimator_takes_the_placeholder_alone(key):
    for routing in ALONE:
        reason = replace(TASK, routing=routing).refuses(gt.estimator(key))
        assert (reason is None) == (key == "st")
        assert reason is None or (routing in reason and '"st"' in reason)
    assert "StraightThrough" in replace(TASK, routing="dense").refuses(gt.StraightThrough(2.0))


def test_an_estimator_must_serve_several_latents_with_hard_samples():
    for key, kind in gt.ESTIMATORS.items():
        traits = kind.traits
        fits = traits.many_draws and not traits.relaxed and "categorical" in traits.families
        assert (key in SERVED) == fits
    assert {"reinmax", "stgs", "rloo"} <= set(SERVED)
    assert "soft" in TASK.refuses(gt.GumbelSoftmax())
    assert "one latent" in TASK.refuses(gt.Enumerate())


@ways
def test_in_training_a_row_passes_through_one_expert_or_all(routing, key, monkeypatch):
    task, expect = replace(TASK, routing=routing), bound(key)
    model, seen = task.model(Seeds(0)), []
    for m in model.mixtures:
        for name in ("forward", "every"):
            real = getattr(m.experts, name)
            monkeypatch.setattr(m.experts, name, lambda *x, f=real: seen.append(f(*x)) or seen[-1])
    batch = next(task.batches("train", Seeds(0), epoch=0, size=20))
    task.losses(model, batch, expect)
    want = 20 * (N if routing == "dense" else expect.samples)
    assert [evaluated for _, evaluated in seen] == [want, want]


@ways
def test_the_balance_is_added_with_its_weight(routing, key):
    found = []
    for balance in (0.0, 0.5):
        task = replace(TASK, routing=routing, balance=balance)
        model, inside = task.model(Seeds(0)), []
        model.register_forward_hook(lambda m, x, out, inside=inside: inside.append(out.balance))
        batch = next(task.batches("train", Seeds(0), epoch=0, size=20))
        found.append((task.losses(model, batch, bound(key)), inside[0]))
    (without, one), (weighed, other) = found
    assert one == other
    torch.testing.assert_close(weighed, without + 0.5 * one)


def test_sparsemixer_of_the_task_is_that_of_the_library():
    task = replace(TASK, routing="sparsemixer_v2", eps=0.3)
    choice = task._route(True, torch.Generator().manual_seed(5))(normal(6, N))
    want = sparsemixer_v2(normal(6, N), eps=0.3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(choice.weights, want.multiplier)
    assert torch.equal(choice.expert, want.index)


def sparse_best(logits):
    weight, one = sparsemixer_v2(logits, training=False)
    return weight * F.one_hot(one[:, 0], N), one


@ways
def test_training_draws_from_the_generator_it_is_given(routing, key):
    task = replace(TASK, routing=routing)
    model, estimator = task.model(Seeds(0)), gt.estimator(key)
    batch = next(task.batches("train", Seeds(0), epoch=0, size=50))
    a, b = (
        task.losses(model, batch, Bound(estimator, estimator.traits.min_samples, g))
        for g in (torch.Generator().manual_seed(s) for s in (1, 2))
    )
    assert torch.equal(a, b) == (routing == "dense")


def test_weights_are_those_of_the_seed_and_the_global_state_stays():
    before = torch.get_rng_state()
    a, b, c = (TASK.model(Seeds(s)).head[1].weight for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    assert torch.equal(TASK.model(Seeds(0)).head[1].weight, a)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_one_dense_expert_is_a_network_without_a_router():
    task = replace(TASK, experts=1, routing="dense")
    net = task.model(Seeds(0))
    batch = next(task.batches("train", Seeds(0), epoch=0, size=20))
    x = net.stem(batch.images.flatten(1))
    for m in net.mixtures:
        x = x + one_expert(m.experts, 0, m.norm(x))
    want = F.cross_entropy(net.head(x), batch.labels, reduction="none") + task.balance
    torch.testing.assert_close(task.losses(net, batch, bound("st")), want)


WEIGHTS = {"estimator": best, "sparsemixer_v2": sparse_best, "dense": soft}


@pytest.mark.parametrize("routing", WEIGHTS)
def test_an_evaluation_is_that_of_the_best_experts(routing):
    task = replace(TASK, routing=routing)
    net = task.model(Seeds(0))
    before = torch.get_rng_state()
    found = task.evaluate(net, "test", Seeds(0))
    assert torch.equal(torch.get_rng_state(), before)
    _, test = load_labelled("digits")
    scores, balance = plain(net, test.images, WEIGHTS[routing])
    assert found["loss"] == pytest.approx(F.cross_entropy(scores, test.labels).item(), rel=1e-5)
    right = (scores.argmax(-1) == test.labels).double().mean().item()
    assert found["accuracy"] == pytest.approx(100 * right)
    assert found["work"] == (100.0 if routing == "dense" else 100.0 / N)
    assert found["evaluations"] == (N if routing == "dense" else 1)
    assert found["balance"] == pytest.approx(balance.item(), rel=1e-5)
    assert set(found) == {m.name for m in task.metrics}
    assert task.evaluate(net, "valid", Seeds(0)) == {}
    assert task.evaluate(net, "test", Seeds(0), final=True) == {}


def test_batches_are_all_images_once_and_the_last_are_held_out():
    task = replace(TASK, valid=137)
    train, _ = load_labelled("digits")
    batches = [list(task.batches("train", Seeds(0), epoch=e, size=100)) for e in (0, 0, 1)]
    first, again, other = (torch.cat([b.images for b in x]) for x in batches)
    assert first.shape[0] == 1300
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    kept = train.images[:1300]
    assert torch.equal(first.sort(0).values, kept.sort(0).values)
    held = torch.cat([b.images for b in task.batches("valid", Seeds(0), epoch=0, size=50)])
    assert torch.equal(held, train.images[1300:])


def test_a_law_is_that_of_the_first_router():
    net = TASK.model(Seeds(0))
    batch = next(TASK.batches("train", Seeds(0), epoch=0, size=20))
    law = TASK.latent(net, batch)
    m, x = net.mixtures[0], net.stem(batch.images.flatten(1))
    want = F.layer_norm(x, x.shape[-1:]) @ m.router.weight.T
    torch.testing.assert_close(law.logits, want)
    assert TASK.law().class_logits().shape == (1, N)


def test_the_cells_of_the_experiment_are_accepted_and_differ_in_the_routing_alone():
    experiment = load(Path(__file__).parents[1] / "experiments" / "moe.toml")
    found = {}
    for cell in cells(experiment, "laptop"):
        task = MoE(**cell.config.task_options)
        assert task.refuses(cell.config.build_estimator()) is None
        found.setdefault(cell.levels["size"], []).append(cell.config)
    for configs in found.values():
        shared = []
        for config in configs:
            plain = config.as_dict()
            for name in ("estimator", "estimator_options"):
                plain.pop(name)
            moved = {"routing", "experts"}
            options = {k: v for k, v in plain["task_options"].items() if k not in moved}
            shared.append(plain | {"task_options": options})
        assert all(one == shared[0] for one in shared)


@pytest.mark.parametrize(("routing", "key"), [("estimator", "rloo"), *WAYS[-2:]])
def test_a_run_leaves_the_records_of_all_metrics(routing, key, tmp_path):
    options = replace(TASK, routing=routing, valid=100).options()
    config = RunConfig("moe", options, key, epochs=2, batch_size=200, lr=3e-3)
    assert TASKS["moe"](**config.task_options).options() == options
    result = run(config, out=tmp_path, accelerator="cpu", progress=False)
    assert result.status == "done"
    found = [r for r in records.read(result.path) if r.kind == "metric"]
    names = {f"{s}/{m.name}" for s in ("valid", "test") for m in TASK.metrics} | {"train/loss"}
    assert {f"{r.split}/{r.metric}" for r in found} == names


def test_a_run_that_is_refused_says_why(tmp_path):
    options = replace(TASK, routing="dense").options()
    result = run(RunConfig("moe", options, "reinmax"), out=tmp_path, progress=False)
    assert result.status == "skipped"
    end = list(records.read(result.path))[-1]
    assert "uses no estimator" in end.reason


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"dataset": "omniglot"}, gt.ConfigError, ["omniglot", "mnist"]),
        ({"routing": "top"}, gt.ConfigError, ["routing", "dense"]),
        ({"experts": 0}, gt.DomainError, ["experts", "1"]),
        ({"layers": 0}, gt.DomainError, ["layers"]),
        ({"balance": -0.1}, gt.DomainError, ["balance"]),
        ({"eps": -0.1}, gt.DomainError, ["eps"]),
    ],
)
def test_options_are_checked(options, kind, words):
    with refuses(kind, *words):
        MoE(**options)


def test_not_all_images_can_be_held_out():
    with refuses(gt.DomainError, "1437", "train"):
        MoE("digits", valid=1437).prepare(torch.device("cpu"))
