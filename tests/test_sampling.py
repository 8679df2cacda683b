import pytest
import torch
from scipy import stats

import gradthrough as gt
from gradthrough._random import gumbels
from gradthrough.estimators.pathwise import AbstractPathwise
from gradthrough.kernels.dispatch import draw
from gradthrough.sampling import race
from problems import DISCRETE

PATHWISE = {k: e for k, e in gt.ESTIMATORS.items() if issubclass(e, AbstractPathwise)}
FUNCTIONS = {k: getattr(gt, n) for k, n in {
    "st": "straight_through", "stgs": "straight_through_gumbel_softmax",
    "gumbel_softmax": "gumbel_softmax", "gst": "gapped_straight_through",
    "decoupled_st": "decoupled_straight_through",
}.items()} | {k: getattr(gt, k) for k in PATHWISE if hasattr(gt, k)}  # fmt: skip


def logits(*shape):
    g = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


def slope(z, x):
    return torch.autograd.grad((z * torch.linspace(-1, 2, z.shape[-1])).sin().sum(), x)[0]


@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("key", PATHWISE)
def test_it_is_the_plain_function(key, dim):
    x = logits(3, 4, 3)
    found, wanted = (
        f(torch.Generator().manual_seed(2))
        for f in (
            lambda g: gt.sample(x, gt.estimator(key), dim=dim, generator=g),
            lambda g: FUNCTIONS[key](x, dim=dim, generator=g),
        )
    )
    assert torch.equal(found, wanted)
    assert torch.equal(slope(found, x), slope(wanted, x))


@pytest.mark.parametrize("key", PATHWISE)
def test_noise_can_be_given(key):
    one, x = gt.estimator(key), logits(5, 4)
    noise = one.noise(gt.Categorical(x))
    found = gt.sample(x, one, noise=noise)
    assert torch.equal(found, one.sample(x, noise))


@pytest.mark.parametrize("kind", ["variable", "variable+seed"])
@pytest.mark.parametrize("shape", [(7, 4), (2, 3, 5), (6,), (4, 1)])
def test_the_race_draws_the_argmax_of_the_perturbed_logits(shape, kind):
    x = logits(*shape)
    u = torch.rand(500, *shape, dtype=torch.float64)
    rows = x.detach().expand(500, *shape)
    noise = race(rows, u, kind)
    at = noise if kind == "variable" else noise[..., 0]
    assert torch.equal(draw(rows, at)[1], (rows + gumbels(u, torch.float64)).argmax(-1))


def test_masked_classes_lose_the_race():
    x = torch.tensor([0.0, -torch.inf, 1.0]).expand(200, 3)
    noise = race(x, torch.rand(200, 3, dtype=torch.float64), "variable+seed")
    assert noise.isfinite().all()
    assert not (draw(x, noise[..., 0])[1] == 1).any()


@pytest.mark.slow
def test_the_seed_of_the_race_is_uniform_whoever_wins():
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).expand(100_000, 3)
    u = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    noise = race(x, u, "variable+seed")
    index = draw(x, noise[..., 0])[1]
    for c in range(3):
        assert stats.kstest(noise[..., 1][index == c].numpy(), "uniform").pvalue > 1e-5


def test_the_ends_of_the_noise_stay_within_it():
    x = torch.zeros(2, 3, dtype=torch.float64)
    for u in (0.0, 1.0 - 2.0**-53):
        noise = race(x, torch.full((2, 3), u, dtype=torch.float64), "variable+seed")
        assert bool(((noise >= 0) & (noise < 1)).all())


@pytest.mark.parametrize("key", [k for k in DISCRETE if k not in PATHWISE])
def test_estimators_without_a_sample_are_refused(key):
    options = {"control": gt.controls.Control((4,))} if key == "relax" else {}
    with pytest.raises(gt.UnsupportedError, match="values of f"):
        gt.sample(logits(5, 4), gt.estimator(key, **options))


@pytest.mark.parametrize(
    ("given", "words"), [("reinmax", "Build it"), (gt.ReinMax, "Instantiate it"), (3, "3 came")]
)
def test_what_is_no_estimator_is_refused(given, words):
    with pytest.raises(gt.UnsupportedError, match=words):
        gt.sample(logits(5, 4), given)


def test_noise_and_torch_s_own_are_refused_together():
    with pytest.raises(gt.ConfigError, match="Pass one"):
        gt.sample(logits(2, 3), gt.ReinMax(), noise=torch.rand(2).double(), like_torch=True)


def test_under_vmap():
    x = logits(3, 4, 5).detach()
    z = torch.vmap(
        lambda row: gt.sample(row, gt.GumbelRao(k=2), like_torch=True), randomness="different"
    )(x)
    assert torch.equal(z.sum(-1), torch.ones(3, 4, dtype=torch.float64))


WITH_TAU = [
    k for k, e in PATHWISE.items()
    if hasattr(gt.estimator(k), "tau") and e.traits.noise in ("variable", "class")
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("key", WITH_TAU)
def test_a_temperature_that_moves_is_not_compiled_again(key, compiler):
    seen = []
    compiled = compiler(FUNCTIONS[key], lambda graph, inputs: seen.append(1) or graph)
    noise = torch.rand(gt.estimator(key).noise_shape(gt.Categorical(torch.zeros(5, 4))))
    for i in range(12):  # more than torch compiles one function anew
        x, tau = logits(5, 4), 1.0 - 0.05 * i
        options = {"noise": noise.double()}
        found, wanted = (f(x, tau, **options) for f in (compiled, FUNCTIONS[key]))
        torch.testing.assert_close(slope(found, x), slope(wanted, x))
    assert len(seen) == 2  # a number, then a symbol


def test_the_families_are_all_walked():
    assert set(FUNCTIONS) == set(PATHWISE)
