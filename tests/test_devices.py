"""Several devices: gradients of the whole batch, streams of noise for each rank, low precision."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

import gradthrough as gt
import ranks
from problems import normal, refuses, uniform
from ranks import KEYS, ROWS, WORLD

ROOT = Path(__file__).parents[1]


def blocks_of(page):
    spec = importlib.util.spec_from_file_location("check", ROOT / "scripts" / "check_wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [(line, code) for line, code, run in module.python_blocks(page.read_text()) if run]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes reports: to start them takes longer than all they do."""
    folder = tmp_path_factory.mktemp("ranks")
    blocks = blocks_of(ROOT / "docs" / "devices.md")
    torch.multiprocessing.spawn(ranks.main, (blocks, folder), nprocs=WORLD)
    out = [torch.load(folder / f"rank{r}.results", weights_only=False) for r in range(WORLD)]

    def get(name):
        found = [one[name] for one in out]
        for one in found:
            assert not isinstance(one, str), one
        return found

    return get


def assert_all_close(got, want, tolerance=1e-12):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- data parallel, sharded


@pytest.mark.parametrize("key", KEYS)
def test_the_mean_over_ranks_is_the_gradient_of_the_whole_batch(key, results, alone):
    want = alone[key]
    assert any(g.abs().max() > 1e-3 for name, g in want.items() if "encoder" in name)
    for one in results("task"):
        assert one[key].keys() == want.keys()
        assert_all_close(one[key].values(), want.values())


@pytest.fixture(scope="module")
def alone():
    return ranks.task_gradients(ranks.task_model())


def test_what_an_estimator_learns_is_averaged_too(results):
    want = ranks.tuned_gradients()
    assert all(g.abs().max() > 0 for g in want)
    for one in results("tuned"):
        assert_all_close(one, want)


def test_sharded_layers_have_the_gradients_of_whole_ones(results):
    model = ranks.coder()
    gt.nn.step_temperatures(model, 3)
    model.quantizer.observe(ranks.coded(model))
    for rank, one in enumerate(results("sharded")):
        assert one["local"] == (3 - rank, 6)  # of 5 rows
        for name, p in model.named_parameters():
            torch.testing.assert_close(one["gradients"][name], p.grad, rtol=1e-12, atol=1e-12)
            assert p.grad.abs().max() > 0


def test_the_state_of_sharded_layers_is_that_of_whole_ones(results):
    model = ranks.coder()
    gt.nn.step_temperatures(model, 3)
    model.quantizer.observe(ranks.coded(model))
    other = ranks.Coder().double()
    other.load_state_dict(results("sharded")[0]["state"])
    assert other.layer.tau.steps == 3
    assert other.state_dict().keys() == model.state_dict().keys()
    assert_all_close(other.state_dict().values(), model.state_dict().values(), 0.0)


def test_codes_of_all_ranks_are_counted_on_each(results):
    model, want = ranks.coder(), []
    for _ in range(2):
        model.quantizer.observe(ranks.coded(model))
        want.append(model.quantizer.counts.clone())
    assert want[0].sum() == 2 * ROWS * 2**16
    for first, second, after in results("observed"):
        assert torch.equal(first, want[0])
        assert torch.equal(second, want[1])
        assert torch.equal(after, second)  # of rank 0, as all buffers: the same


# --- generators


def test_each_rank_has_a_stream_of_its_own_and_takes_it_up_again(results):
    for rank, (before, after, again) in enumerate(results("drawn")):
        assert torch.equal(before, torch.rand(4, generator=gt.generator(0, rank=rank)))
        assert torch.equal(after, again)
    (first, *_), (second, *_) = results("drawn")
    assert not bool((first == second).any())


def test_without_ranks_there_is_rank_0():
    g, h = gt.generator(3), gt.generator(3, rank=0)
    assert torch.equal(torch.rand(9, generator=g), torch.rand(9, generator=h))


def test_no_two_streams_are_alike_for_near_seeds_and_ranks():
    pairs = itertools.product((0, 1, 2, -1, 2**32, 2**70), range(200))
    # On CPU the low 32 bits are all that counts.
    low = [gt.generator(seed, rank=rank).initial_seed() % 2**32 for seed, rank in pairs]
    assert len(set(low)) == len(low)


def test_neighbouring_streams_are_uncorrelated():
    n = 4000
    u = torch.stack([torch.rand(n, generator=gt.generator(0, rank=r)) for r in range(20)])
    u = torch.cat(
        (u, torch.stack([torch.rand(n, generator=gt.generator(s)) for s in range(1, 20)]))
    )
    r = torch.corrcoef(u).fill_diagonal_(0.0)
    assert r.abs().max() < 6 / n**0.5
    assert (u.mean(1) - 0.5).abs().max() < 6 / (12 * n) ** 0.5


def test_a_generator_lives_where_it_is_asked_to():
    for device in ("cpu", torch.device("cpu")):
        g = gt.generator(0, device=device)
        assert g.device == torch.device("cpu")
        assert g.initial_seed() == gt.generator(0).initial_seed()


@pytest.mark.parametrize(
    ("inputs", "kind", "words"),
    [
        ({"seed": 0.5}, gt.UnsupportedError, ("seed", "float")),
        ({"seed": True}, gt.UnsupportedError, ("seed", "bool")),
        ({"seed": 0, "rank": "1"}, gt.UnsupportedError, ("rank", "str")),
        ({"seed": 0, "rank": -1}, gt.DomainError, ("rank", "-1")),
        ({"seed": 0, "rank": 2**32}, gt.DomainError, ("rank", str(2**32))),
    ],
)
def test_seeds_and_ranks_are_checked(inputs, kind, words):
    with refuses(kind, *words):
        gt.generator(**inputs)


# --- low precision


def half_precision_steps(dtype, scaler, steps=5):
    """Train in autocast; return the gradient of each step, and the weights before and after."""
    torch.manual_seed(0)
    layer, head = gt.nn.CategoricalLayer(8, 5, variables=3), torch.nn.Linear(15, 1)
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    x = normal(16, 8, dtype=torch.float32)
    gradients, weights = [], [[p.detach().clone() for p in parameters]]
    for i in range(steps):
        noise = uniform(16, 3, seed=i)
        with torch.autocast("cpu", dtype=dtype):
            out = head(layer(x, noise=noise).flatten(-2))
        scaler.scale(10 * out.float().square().mean()).backward()
        scaler.unscale_(optimizer)
        gradients.append([p.grad.clone() for p in parameters])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        weights.append([p.detach().clone() for p in parameters])
    return gradients, weights


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@HALVES
def test_a_scaled_loss_has_the_gradients_of_the_loss(dtype):
    plain = half_precision_steps(dtype, torch.amp.GradScaler("cpu", enabled=False))
    scaled = half_precision_steps(dtype, torch.amp.GradScaler("cpu", init_scale=2.0**10))
    # float16 runs out of exponents for what is not scaled.
    tolerance = 2e-3 if dtype == torch.float16 else 1e-6
    for got, want in zip(itertools.chain(*scaled), itertools.chain(*plain), strict=True):
        assert all(x.isfinite().all() and x.dtype == torch.float32 for x in got)
        assert_all_close(got, want, tolerance)
    assert not torch.equal(plain[1][0][0], plain[1][-1][0])


@HALVES
def test_a_step_whose_gradients_overflow_is_left_out(dtype):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-118)
    gradients, weights = half_precision_steps(dtype, scaler)
    assert not all(g.isfinite().all() for g in gradients[0])
    assert_all_close(weights[1], weights[0], 0.0)
    _, plain = half_precision_steps(dtype, torch.amp.GradScaler("cpu", enabled=False), 1)
    assert_all_close(weights[0], plain[0], 0.0)
    assert all(g.isfinite().all() for gradient in gradients[1:] for g in gradient)
    for before, after in itertools.pairwise(weights[1:]):
        assert not torch.equal(before[0], after[0])


# --- the page


def test_the_page_of_devices_runs_on_two_processes(results):
    (first, rows), (second, others) = results("page")
    assert first.keys() == second.keys()
    assert_all_close(first.values(), second.values(), 0.0)
    assert not torch.equal(rows, others)
