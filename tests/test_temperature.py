"""The sweep of tau and the sharpening of q: closed forms against the library's own gradients."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import gradthrough as gt
from gradthrough.bench import records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks import TASKS
from gradthrough.bench.tasks._codes import Codes, accuracy, decoded, gradient_spread
from gradthrough.bench.tasks.temperature import Temperature, own_slopes, rules, variances
from gradthrough.bench.train import run

TINY = Temperature(
    "digits",
    latents=2,
    classes=3,
    hidden=(16, 8),
    bound_samples=0,
    taus=(0.5, 1.5),
    sharpness=(1.0, 4.0),
    images=5,
    draws=6,
    backgrounds=3,
)
LARGE = replace(TINY, latents=24)  # whose codes cannot be enumerated
RULES = {
    "st": gt.StraightThrough(),
    "st_importance": gt.StraightThrough(importance=True),
    "reinmax": gt.ReinMax(),
}
SERVED = [key for key, kind in gt.ESTIMATORS.items() if "categorical" in kind.traits.families]


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def problem(task=TINY, sharpness=20.0):
    """Return a model in float64, images, and logits of a q that is neither flat nor peaked."""
    vae = task.model(Seeds(0)).double()
    x = next(task.batches("train", Seeds(0), epoch=0, size=task.images)).double()
    return vae, x, sharpness * vae.encode(x).logits.detach()


def gradient_at(f, logits, estimator, z):
    """Return the library's gradient in the logits for the draw z."""
    leaf = logits.clone().requires_grad_()
    q = gt.Categorical(leaf, event_dims=1)
    value = gt.expect(f, q, estimator, noise=q.noise_for(z).unsqueeze(0))
    return torch.autograd.grad(value.sum(), leaf)[0]


@pytest.mark.parametrize("name", RULES)
def test_the_closed_forms_are_the_gradients_of_the_library(name):
    vae, x, logits = problem()
    f = decoded(vae, x)
    q = gt.Categorical(logits, event_dims=1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        z = q.sample(generator=generator)
        every = rules(logits.softmax(-1), own_slopes(f, z))[name]
        close((z.unsqueeze(-1) * every).sum(-2), gradient_at(f, logits, RULES[name], z))


def test_the_slopes_of_a_variable_are_those_of_its_changes():
    vae, x, logits = problem()
    f = decoded(vae, x)
    z = gt.Categorical(logits, event_dims=1).sample(generator=torch.Generator().manual_seed(3))
    found = own_slopes(f, z)
    assert found.shape == (5, 2, 3, 3)
    for variable in range(2):
        for chosen in range(3):
            changed = z.clone()
            changed[:, variable] = torch.eye(3, dtype=torch.float64)[chosen]
            changed.requires_grad_()
            (g,) = torch.autograd.grad(f(changed.unsqueeze(0)).sum(), changed)
            close(found[:, variable, chosen], g[:, variable])
    close(own_slopes(Codes(vae, x), z), found)


@pytest.mark.parametrize("name", RULES)
def test_the_variance_of_one_variable_is_exact_whatever_is_drawn(name):
    vae, x, logits = problem(replace(TINY, latents=1))
    f = decoded(vae, x)
    support = torch.eye(3, dtype=torch.float64)[:, None, None].expand(3, 5, 1, 3)
    draws = torch.stack([gradient_at(f, logits, RULES[name], z) for z in support])
    weights = logits.softmax(-1).permute(2, 0, 1).unsqueeze(-1)
    mean = (weights * draws).sum(0)
    want = float((weights * (draws - mean).square()).sum()) / 5
    for seed in range(3):
        found = variances(f, logits, backgrounds=2, seed=seed)[name]
        assert found[0] == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("name", RULES)
def test_the_variance_of_several_variables_is_unbiased(name, monkeypatch):
    # All pairs of draws of the others, weighted by their probabilities: exactly the variance over
    # all codes. The variables act on one another, so the means within do vary.
    generator = torch.Generator().manual_seed(0)
    weights, logits = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator)

    def f(z):
        return (z * weights).sum((-1, -2)).pow(3)

    q = gt.Categorical(logits.unsqueeze(0), event_dims=1)
    support = q.support()
    p = [float(q.log_prob(z.unsqueeze(0)).exp()) for z in support]
    draws = torch.stack(
        [gradient_at(f, q.logits, RULES[name], z.unsqueeze(0)).squeeze(0) for z in support]
    )
    law = torch.tensor(p, dtype=torch.float64)[:, None, None]
    want = float((law * (draws - (law * draws).sum(0)).square()).sum())
    exact = drawn = 0.0
    for pair in itertools.product(range(9), repeat=2):
        upcoming = [support[i].unsqueeze(0) for i in pair]
        monkeypatch.setattr(gt.Categorical, "sample", lambda *_, u=upcoming, **__: u.pop())
        found = variances(f, q.logits, backgrounds=2, seed=0)[name]
        exact += p[pair[0]] * p[pair[1]] * found[0]
        drawn += p[pair[0]] * p[pair[1]] * found[1]
    assert exact == pytest.approx(want, rel=1e-10)
    assert drawn == pytest.approx(want, rel=1e-10)


def test_the_importance_weights_blow_up_where_q_is_sharp():
    vae, x, logits = problem()
    found = [
        variances(decoded(vae, x), s * logits, backgrounds=4, seed=0) for s in (1.0, 10.0, 100.0)
    ]
    importance, reinmax = ([row[k][0] for row in found] for k in ("st_importance", "reinmax"))
    assert importance[2] > 1e6 * importance[0]
    assert reinmax[2] < reinmax[0]


def config(task=TINY, estimator="reinmax", **changes):
    return RunConfig(task.name, task.options(), estimator, **({"epochs": 2} | changes))


def test_the_probe_is_at_the_end_and_the_same_for_one_seed():
    model = TINY.model(Seeds(0))
    assert TINY.probe(model, config(), epoch=1) == {}
    found = TINY.probe(model, config(), epoch=2)
    kinds = ("variance", "bias", "cosine")
    assert found.keys() - {f"corrected cosine tau={t}" for t in ("0.5", "1.5")} == {
        "squared gradient",
        *(f"{k} tau={t}" for k in kinds for t in ("0.5", "1.5")),
        *(
            f"{k} {rule} sharpness={s}"
            for k in ("variance", "sampled variance")
            for rule in RULES
            for s in ("1", "4")
        ),
    }
    assert found == TINY.probe(model, config(), epoch=2)
    assert found != TINY.probe(model, config(seed=1), epoch=2)


def test_the_sweep_is_of_the_estimator_of_the_run():
    vae, x, logits = problem()
    codes = Codes(vae, x)
    exact = codes.gradient(logits)
    for base in (gt.ReinMax(), gt.StraightThroughGumbelSoftmax()):
        found = TINY._swept(codes, logits, base, exact, 5)
        for tau in TINY.taus:
            spread = gradient_spread(codes, logits, type(base)(tau), draws=6, seed=5)
            assert found[f"variance tau={tau}"] == spread.variance / 5
            assert found[f"bias tau={tau}"] == accuracy(exact, spread)["bias"]
        assert found["squared gradient"] == pytest.approx(float(exact.square().sum()) / 5)


def test_where_codes_cannot_be_enumerated_there_are_variances_alone():
    found = LARGE.probe(LARGE.model(Seeds(0)), config(LARGE), epoch=2)
    assert all("variance" in name and math.isfinite(x) for name, x in found.items())
    assert len(found) == 2 + 2 * 2 * 3


def test_numbers_beyond_float64_are_left_out():
    model = TINY.model(Seeds(0))
    with torch.no_grad():
        model.encoder[-1].weight.mul_(1e6)
    found = TINY.probe(model, config(), epoch=2)
    assert all(math.isfinite(x) for x in found.values())
    assert "variance st sharpness=4" in found
    assert "variance st_importance sharpness=4" not in found


@pytest.mark.parametrize("key", SERVED)
def test_a_run_with_any_estimator_that_has_a_tau_is_probed(key, tmp_path):
    task = replace(TINY, valid=1377, draws=2, images=3)
    one = config(task, key, epochs=1, batch_size=20, lr=1e-3)  # three steps
    result = run(one, out=tmp_path, progress=False, task=task)
    if not hasattr(gt.estimator(key), "tau"):
        assert result.status == "skipped"
        assert "temperature sweeps tau" in result.records[-1].reason
        return
    assert result.status == "done"
    assert result.records[-1].step == 3
    probed = {r.metric: r.value for r in records.read(result.path) if r.split == "probe"}
    assert probed.keys() >= {"variance tau=0.5", "bias tau=1.5", "variance st sharpness=4"}
    assert all(math.isfinite(x) for x in probed.values())


def test_refusals_have_a_reason():
    assert "RLOO does not have" in TINY.refuses(gt.RLOO())
    assert "serves bernoulli" in TINY.refuses(gt.DisARM())
    for option in ("taus", "sharpness"):
        with pytest.raises(gt.DomainError, match=option):
            replace(TINY, **{option: (1.0, 0.0)})
    for option in ("images", "draws", "backgrounds"):
        with pytest.raises(gt.DomainError, match=option):
            replace(TINY, **{option: 0})


def test_options_make_a_config_and_a_config_makes_the_task():
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in TINY.options().items()}
    assert TASKS["temperature"](**listed) == TINY  # as JSON has them
    assert replace(TINY, sharpness=(1, 4)).options() == TINY.options()
