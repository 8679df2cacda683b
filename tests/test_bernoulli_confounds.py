"""What published Bernoulli VAEs differ in: each option does what it says, and nothing else."""

import json
from dataclasses import replace

import pytest
import torch

import gradthrough as gt
from gradthrough.bench.config import RunConfig
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.bernoulli_vae import BernoulliVAE
from gradthrough.rollout import Bound

PLAIN = BernoulliVAE("digits", 4, hidden=(8, 6), valid=100, bound_samples=3, binarize="none")
OPTIONS = ("link", "centre", "mean_bias")
# Of Shi et al.: what each method takes where it may evaluate f two or three times.
SAMPLES = {
    2: {"disarm": 1, "double_cv": 2, "rodeo": 2, "rloo": 2, "reinmax": 2},
    3: {"relax": 1, "arms": 3, "double_cv": 3, "rodeo": 3, "rloo": 3, "reinmax": 3},
}


def model_of(**options):
    return replace(PLAIN, **options).model(Seeds(0))


def test_defaults_are_left_out_of_the_options():
    assert not set(OPTIONS) & set(PLAIN.options())
    named = replace(PLAIN, link="logit", centre=False, mean_bias=False)
    assert named.options() == PLAIN.options()
    changed = replace(PLAIN, link="paired", centre=True, mean_bias=True).options()
    assert changed == PLAIN.options() | {"link": "paired", "centre": True, "mean_bias": True}
    assert BernoulliVAE(**json.loads(json.dumps(changed))).options() == changed


def test_records_of_before_keep_their_keys():
    options = BernoulliVAE(kl="sampled").options()
    one = RunConfig(
        "bernoulli_vae", options, "disarm", lr=1e-3, epochs=40, evaluate_every=5, seed=1
    )
    assert one.key == "068f42aa823a"


def test_a_default_model_has_the_weights_of_before():
    names = {n for n, _ in model_of().state_dict().items()}
    layers = {
        f"{part}.{i}.{x}"
        for part in ("encoder", "decoder")
        for i in (0, 2, 4)
        for x in ("weight", "bias")
    }
    assert names == layers | {"prior_logits"}


@pytest.mark.parametrize("options", [{"link": "paired"}, {"centre": True}, {"mean_bias": True}])
def test_an_option_leaves_all_other_weights_as_they_were(options):
    plain, other = model_of().state_dict(), model_of(**options).state_dict()
    changed = {n for n, x in plain.items() if not torch.equal(x, other[n])}
    assert changed == ({"decoder.4.bias"} if "mean_bias" in options else set())
    assert set(other) - set(plain) == ({"centre"} if "centre" in options else set())


def test_a_paired_output_is_the_difference_of_two_logits():
    x = PLAIN.data.test[:7]
    h = model_of().encode(x).logits
    q = model_of(link="paired").encode(x)
    classes = torch.stack((1 - h, h), -1).softmax(-1)
    torch.testing.assert_close(q.logits.sigmoid(), classes[..., 1], rtol=1e-6, atol=0)


def test_a_centred_encoder_sees_the_distance_to_the_mean_training_image():
    mean, x = PLAIN.data.train.mean(0), PLAIN.data.test[:7]
    centred, plain = model_of(centre=True), model_of()
    assert torch.equal(centred.encode(x).logits, plain.encode(x - mean).logits)
    assert torch.equal(centred.encode(mean[None]).logits, plain.encode(0 * mean[None]).logits)


def test_the_reconstruction_still_is_that_of_the_image_itself():
    z, x = torch.ones(1, 7, 4), PLAIN.data.test[:7]
    assert torch.equal(model_of(centre=True).reconstruction(z, x), model_of().reconstruction(z, x))


def test_a_decoder_without_a_code_starts_at_the_mean_training_image():
    model, mean = model_of(mean_bias=True), PLAIN.data.train.mean(0)
    started = model.decoder[-1].bias.detach().sigmoid()
    torch.testing.assert_close(started, mean.clamp(1e-3, 1 - 1e-3), rtol=1e-5, atol=0)
    assert (mean == 0).any()  # in the digits some pixels never are lit


def test_the_mean_is_of_the_training_split_alone():
    whole = replace(PLAIN, valid=0)
    assert torch.equal(model_of(centre=True).centre, PLAIN.data.train.mean(0))
    assert not torch.equal(model_of(centre=True).centre, whole.data.train.mean(0))


def _wrong_prior(pi):
    """Return the prior weights (L, 2) of a listing by block, read variable by variable."""
    return torch.cat((pi, 1 - pi)).reshape(-1, 2)


def test_a_misread_prior_is_an_upper_bound_that_contains_the_fixed_one():
    pi = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = _wrong_prior(pi)
    totals = weights.sum(-1)
    pairs = totals[:3] * totals[3:]
    torch.testing.assert_close(pairs, totals[:3] * (2 - totals[:3]))
    assert (pairs <= 1).all()
    fair = _wrong_prior(torch.full((6,), 0.5))
    assert torch.equal(fair, torch.full((6, 2), 0.5))
    # KL to the weights: KL to their normalised law, which a learned prior can be, and no less.
    q = torch.rand(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q = torch.cat((q, 1 - q), -1)
    reported = (q * (q / weights).log()).sum()
    law = weights / totals[:, None]
    assert reported >= (q * (q / law).log()).sum()


@pytest.mark.parametrize(
    ("evaluations", "key", "samples"),
    [(n, key, k) for n, keys in SAMPLES.items() for key, k in keys.items()],
)
def test_every_method_trains_with_its_share_of_evaluations(evaluations, key, samples):
    task = replace(PLAIN, kl="sampled", binarize="dynamic")
    model = task.model(Seeds(0))
    batch = next(task.batches("train", Seeds(0), epoch=0, size=10))
    bound = Bound(gt.estimator(key), samples, torch.Generator().manual_seed(0))
    losses = task.losses(model, batch, bound)
    losses.mean().backward()
    assert bound.evaluations == evaluations * len(batch)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any((p.grad != 0).any() for p in model.encoder.parameters())


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("link", ["logit", "paired"])
def test_the_options_train_with_a_sampled_and_an_analytic_divergence_alike(link, centre):
    gradients = []
    for kl in ("sampled", "analytic"):
        model = model_of(kl=kl, link=link, centre=centre, prior="learned")
        x = PLAIN.data.test[:5]
        replace(PLAIN, kl=kl).losses(model, x, Bound(gt.Enumerate())).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_unknown_links_are_refused():
    with pytest.raises(gt.ConfigError, match="logit or paired"):
        BernoulliVAE(link="probit")
