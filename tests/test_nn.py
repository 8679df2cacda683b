"""The layers: a draw as a module, a codebook, and temperatures that follow the steps."""

import copy
import io
import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import gradthrough as gt
from gradthrough.nn import CategoricalLayer, GumbelQuantizer, Temperature, step_temperatures
from problems import F64, HARD, PATHWISE, VARIANTS, normal, refuses, uniform

# torch's own tracer makes an instance of every autograd.Function that it meets.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")

ROW = gt.Categorical(torch.zeros(1, 3))
X = normal(5, 4)
DOWN = lambda step: 2.0 / (1 + step)  # noqa: E731
WITH_TAU = [n for n in PATHWISE if "tau" in {f.name for f in fields(VARIANTS[n](ROW))}]
KINDS = {
    "layer": lambda **options: CategoricalLayer(4, 3, variables=2, **options),
    "quantizer": lambda **options: GumbelQuantizer(4, 3, 2, groups=2, **options),
}


def inner_draws(name):
    """Whether its graph has a part for each of many inner draws, and takes long to trace."""
    return VARIANTS[name](ROW).traits.noise == "variable+seed"


pathwise = pytest.mark.parametrize("name", PATHWISE)
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind, **options):
    torch.manual_seed(3)
    return KINDS[kind](dtype=F64, **options)


def noise_for(estimator, logits, seed=0):
    return uniform(*estimator.noise_shape(gt.Categorical(logits)), seed=seed)


def setting(kind, name="reinmax tau"):
    """A layer with an estimator, and the noise for X."""
    estimator = VARIANTS[name](ROW)
    return made(kind, estimator=estimator), noise_for(estimator, torch.zeros(5, 2, 3))


def first(out):
    """What a layer passes on."""
    return out[0] if isinstance(out, tuple) else out


def gradients(layer, out):
    weights = normal(*out.shape, seed=4).to(out.dtype)
    loss = (out * weights).exp().sum()
    return torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)


def assert_all_close(got, want, tolerance=1e-12):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- temperatures


def test_a_number_stays_and_a_callable_is_asked_for_each_step():
    still, falling = Temperature(0.7), Temperature(DOWN)
    for one in (still, falling):
        one.step()
        one.step(2)
    assert (still.value, still.steps) == (0.7, 3)
    assert (falling.value, falling.steps) == (0.5, 3)


def test_temperatures_of_a_model_are_stepped_once_each():
    shared = Temperature(DOWN)
    layers = [CategoricalLayer(4, 3, tau=tau) for tau in (shared, shared, DOWN, 0.3, None)]
    model = torch.nn.Sequential(*layers)
    assert step_temperatures(model, 4) == 3
    assert [m.steps for m in model.modules() if isinstance(m, Temperature)] == [4, 4, 4]
    assert step_temperatures(torch.nn.Linear(2, 2)) == 0


@kinds
def test_no_forward_counts_a_step(kind):
    layer = made(kind, tau=DOWN)
    for _ in range(2):
        first(layer(X)).sum().backward()
        first(checkpoint(layer, X, use_reentrant=False)).sum().backward()
    layer.eval()(X)
    assert layer.tau.steps == 0


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (0.0, gt.DomainError),
        (-1.0, gt.DomainError),
        (math.nan, gt.DomainError),
        (math.inf, gt.DomainError),
        ("1", gt.UnsupportedError),
        (None, gt.UnsupportedError),
    ],
)
def test_a_schedule_that_leaves_the_temperatures_is_refused_where_it_does(bad, kind):
    tau = Temperature(lambda step: 1.0 if step < 3 else bad)
    tau.step(2)
    with refuses(kind, "step 3", repr(bad), "above 0"):
        tau.step()
    assert (tau.steps, tau.value) == (2, 1.0)
    with refuses(kind, "tau"):
        Temperature(bad)


def test_steps_are_whole_and_go_forward():
    with refuses(gt.DomainError, "n", "-1"):
        Temperature(1.0).step(-1)
    with refuses(gt.UnsupportedError, "float"):
        Temperature(1.0).step(1.0)


@kinds
def test_a_state_dict_of_tensors_takes_everything_up_again(kind):
    layer = made(kind, tau=DOWN)
    step_temperatures(layer, 3)
    if kind == "quantizer":
        layer.observe(layer(X).codes)
    state = layer.state_dict()
    assert all(isinstance(x, torch.Tensor) for x in state.values())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    torch.manual_seed(7)
    other = KINDS[kind](dtype=F64, tau=DOWN)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.tau.steps, other.tau.value) == (3, 0.5)
    noise = noise_for(layer.estimator, torch.zeros(5, 2, 3))
    assert torch.equal(first(layer(X, noise=noise)), first(other(X, noise=noise)))
    assert_all_close(other.buffers(), layer.buffers(), 0.0)


@kinds
def test_a_deep_copy_goes_its_own_way(kind):
    layer = made(kind, tau=DOWN)
    other = copy.deepcopy(layer)
    step_temperatures(other)
    assert (layer.tau.steps, other.tau.steps) == (0, 1)
    assert all(a is not b for a, b in zip(layer.parameters(), other.parameters(), strict=True))


@kinds
@pytest.mark.parametrize("name", WITH_TAU)
def test_the_temperature_of_the_step_is_that_of_the_gradient(kind, name):
    estimator = VARIANTS[name](ROW)
    layer, noise = made(kind, estimator=estimator, tau=DOWN), None
    for steps, tau in ((0, 2.0), (1, 1.0), (3, 0.5)):
        step_temperatures(layer, steps - layer.tau.steps)
        noise = noise_for(estimator, torch.zeros(5, 2, 3))
        own = made(kind, estimator=replace(estimator, tau=tau))
        got, want = (gradients(one, first(one(X, noise=noise))) for one in (layer, own))
        assert_all_close(got, want, 0.0)


@kinds
def test_estimators_without_tau_refuse_one(kind):
    for name in set(PATHWISE) - set(WITH_TAU):
        with refuses(gt.ConfigError, "tau", "no tau", "Leave tau out"):
            made(kind, estimator=VARIANTS[name](ROW), tau=1.0)


@kinds
def test_only_pathwise_estimators_serve(kind):
    for name in set(VARIANTS) - set(PATHWISE):
        with refuses(gt.UnsupportedError, "carries a gradient"):
            made(kind, estimator=VARIANTS[name](ROW))


# --- the categorical layer


@pathwise
def test_a_layer_is_a_sample_of_its_linear(name):
    layer, noise = setting("layer", name)
    want = gt.sample(F.linear(X, *layer.parameters()).view(5, 2, 3), layer.estimator, noise=noise)
    got = layer(X, noise=noise)
    assert torch.equal(got, want)
    assert_all_close(gradients(layer, got), gradients(layer, want), 0.0)


def test_a_forward_is_law_and_draw():
    layer, noise = setting("layer")
    law = layer.law(X)
    assert (law.batch_shape, law.event_shape, law.classes) == ((5,), (2,), 3)
    assert torch.equal(layer.draw(law, noise=noise), layer(X, noise=noise))
    flat = CategoricalLayer(4, 3, dtype=F64)
    assert (flat.law(X).batch_shape, flat.law(X).event_shape) == ((5,), ())
    assert flat(X[:, None]).shape == (5, 1, 3)
    assert flat(X[0]).shape == (3,)
    assert flat(X[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", ["st", "reinmax"])
def test_the_mean_gradient_of_the_weights_is_exact_where_the_estimator_is(name):
    layer = made("layer", estimator=gt.estimator(name))
    degree = {"affine": 1, "quadratic": 2}[layer.estimator.traits.exact_for]
    w = normal(2, 3, seed=9)
    q = layer.law(X[0])
    points = q.support()
    weights = q.log_prob(points).exp()
    want = torch.autograd.grad(
        (weights * (points * w).sum((-1, -2)) ** degree).sum(), list(layer.parameters())
    )
    got = [torch.zeros_like(p) for p in want]
    for point, weight in zip(points, weights.detach(), strict=True):
        z = layer(X[0], noise=q.noise_for(point))
        assert torch.equal(z, point)
        value = weight * (z * w).sum() ** degree
        got = [
            a + b
            for a, b in zip(got, torch.autograd.grad(value, list(layer.parameters())), strict=True)
        ]
    assert_all_close(got, want)


@pathwise
def test_evaluation_takes_the_most_probable_class_without_noise_or_gradient(name):
    layer, noise = setting("layer", name)
    layer.eval()
    state = torch.get_rng_state()
    z = layer(X, noise=noise)
    assert torch.equal(z, F.one_hot(layer.law(X).logits.argmax(-1), 3).to(F64))
    assert torch.equal(z, layer(X, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not z.requires_grad


def test_masked_classes_are_never_drawn():
    layer = made("layer")
    mask = torch.tensor([True, False, True])
    for mode in (True, False):
        assert layer.train(mode)(X.repeat(40, 1), mask=mask)[..., 1].abs().max() == 0
    each = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    each[..., 0] = True
    assert not bool((layer.train()(X, mask=each).bool() & ~each).any())
    with refuses(gt.DomainError, "masked"):
        layer(X, mask=torch.zeros(3, dtype=torch.bool))


def test_masks_that_do_not_fit_are_refused():
    layer = made("layer")
    with refuses(gt.UnsupportedError, "bool", "float64"):
        layer(X, mask=torch.ones(3, dtype=F64))
    for shape in ((2,), (4, 2, 3), (1, 5, 2, 3)):
        with refuses(gt.ShapeError, "mask", r"\(5, 2, 3\)"):
            layer(X, mask=torch.ones(shape, dtype=torch.bool))


# --- the codebook


@pathwise
def test_codes_are_those_of_a_sample_and_vectors_those_of_the_codes(name):
    layer, noise = setting("quantizer", name)
    out = layer(X, noise=noise)
    z = gt.sample(out.logits, layer.estimator, noise=noise)
    want = torch.einsum("bgv,gve->bge", z, layer.codebook).flatten(-2)
    assert out.codes.dtype == torch.int64
    assert torch.equal(out.codes, z.argmax(-1))
    assert_all_close([out.quantized], [want])
    assert_all_close(gradients(layer, out.quantized), gradients(layer, want))
    if name in HARD:
        assert torch.equal(layer.decode(out.codes), out.quantized)
        assert torch.equal(out.quantized[3, 2:], layer.codebook[1, out.codes[3, 1]])


@kinds
def test_a_generator_draws_what_it_draws_for_the_whole_logits(kind):
    layer = made(kind)
    logits = F.linear(X, layer.linear.weight, layer.linear.bias).view(5, 2, 3)
    g, h = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(2):
        out = layer(X, generator=g)
        z = gt.sample(logits, layer.estimator, generator=h)
        drawn = z.argmax(-1)
        assert torch.equal(out.codes if kind == "quantizer" else out.argmax(-1), drawn)
    assert torch.equal(g.get_state(), h.get_state())


def test_a_codebook_in_evaluation_takes_the_best_codes_and_learns_itself_alone():
    layer, noise = setting("quantizer")
    layer.eval()
    out = layer(X, noise=noise)
    assert torch.equal(out.codes, out.logits.argmax(-1))
    assert torch.equal(out.quantized, layer.decode(out.codes))
    asked = torch.autograd.grad(out.quantized.sum(), list(layer.parameters()), allow_unused=True)
    pairs = zip(layer.named_parameters(), asked, strict=True)
    assert [name for (name, _), g in pairs if g is not None] == ["codebook"]


def test_a_row_without_a_law_has_no_plausible_vector():
    layer = made("quantizer").eval()
    bad = X.clone()
    bad[2] = torch.nan
    with refuses(gt.DomainError, "NaN"):
        layer(bad)
    gt.set_validation(False)
    for mode in (True, False):
        out = layer.train(mode)(bad).quantized
        assert out[2].isnan().all()
        assert out[[0, 1, 3, 4]].isfinite().all()
    assert layer.decode(torch.tensor([-1, 0])).isnan().tolist() == [True, True, False, False]


def test_usage_is_the_fading_share_of_each_code():
    layer = made("quantizer", decay=0.5)
    assert layer.usage.isnan().all()
    assert layer.perplexity().isnan().all()
    layer.observe(torch.tensor([[0, 1], [0, 2]]))
    assert layer.usage.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    layer.observe(torch.tensor([[[1, 1]], [[2, 1]], [[0, 1]]]))  # more positions weigh more
    assert_all_close([layer.usage * 4], [torch.tensor([[2.0, 1, 1], [0.0, 3.5, 0.5]])], 1e-6)
    p = layer.usage.double()[0]
    assert layer.perplexity()[0].item() == pytest.approx((-(p * p.log()).sum()).exp().item())


def test_a_code_that_is_used_no_more_ends_at_nothing():
    layer = made("quantizer", decay=0.9)
    layer.observe(torch.tensor([[1, 1]]))
    for _ in range(150):
        layer.observe(torch.tensor([[0, 1]]))
    assert layer.usage.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert layer.perplexity().tolist() == [1.0, 1.0]


def test_perplexity_counts_the_codes_in_use():
    layer = made("quantizer")
    codes = torch.tensor([[0, 1], [1, 1], [2, 1]])
    assert_all_close([layer.perplexity(codes)], [torch.tensor([3.0, 1.0])], 1e-6)
    assert layer.usage.isnan().all()  # of a batch: nothing is observed


def test_masked_positions_leave_no_trace_in_the_statistics():
    whole, padded = made("quantizer"), made("quantizer")
    out = whole(X[None])
    whole.observe(out.codes)
    wide = [F.pad(x, (0,) * (2 * x.ndim - 4) + (0, 3), value=2) for x in (out.codes, out.logits)]
    mask = torch.arange(8)[None] < 5
    padded.observe(wide[0], mask=mask)
    assert torch.equal(padded.counts, whole.counts)
    assert torch.equal(padded.perplexity(wide[0], mask=mask), whole.perplexity(out.codes))
    assert_all_close([padded.diversity(wide[1], mask=mask)], [whole.diversity(out.logits)], 1e-12)
    before = whole.usage
    whole.observe(out.codes, mask=torch.zeros(1, 5, dtype=torch.bool))
    assert_all_close([whole.usage], [before], 1e-4)
    assert whole.diversity(out.logits, mask=torch.zeros(1, 5, dtype=torch.bool)) == 0


def test_statistics_change_when_they_are_asked_to_and_then_alone():
    layer = made("quantizer")
    layer.observe(layer(X).codes)
    before = layer.counts.clone()
    layer(X).quantized.sum().backward()
    checkpoint(lambda x: layer(x).quantized, X, use_reentrant=False).sum().backward()
    codes = layer.eval()(X).codes
    layer.observe(codes)  # in evaluation: nothing
    assert torch.equal(layer.counts, before)
    layer.train().observe(codes)
    assert not torch.equal(layer.counts, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_does_not_round_the_statistics(dtype):
    codes = normal(4000, 2).mul(2).abs().long().clamp_max(2)
    layer, half = made("quantizer"), made("quantizer").to(dtype)
    for one in (layer, half):
        for part in codes.chunk(40):
            one.observe(part)
    assert torch.equal(half.counts, layer.counts)
    assert torch.equal(half.to(F64).usage, layer.usage)


def test_the_diversity_loss_is_the_formula():
    layer, logits = made("quantizer"), 3 * normal(4, 5, 2, 3).requires_grad_()
    p = logits.softmax(-1).mean((0, 1))
    torch.testing.assert_close(layer.diversity(logits), (p * p.log()).sum() / 6)
    even = layer.diversity(torch.zeros(4, 2, 3, dtype=F64))
    assert even.item() == pytest.approx(-math.log(3) / 3)
    assert layer.diversity(logits) > even
    far = torch.tensor([[[0.0, -1e4, -1e4]] * 2] * 3, requires_grad=True)
    loss = layer.diversity(far)
    loss.backward()
    assert loss == 0
    assert far.grad.isfinite().all()


def test_codes_and_masks_that_do_not_fit_are_refused():
    layer, codes = made("quantizer"), torch.zeros(4, 2, dtype=torch.int64)
    for use in (layer.observe, layer.decode, layer.perplexity):
        with refuses(gt.DomainError, "between 0 and 2", "-1"):
            use(codes - 1)
        with refuses(gt.DomainError, "between 0 and 2", "3"):
            use(codes + 3)
        with refuses(gt.ShapeError, "one for each group"):
            use(codes[:, :1])
        with refuses(gt.UnsupportedError, "int64"):
            use(codes.int())
    with refuses(gt.ShapeError, "each position"):
        layer.observe(codes, mask=torch.ones(4, 2, dtype=torch.bool))
    with refuses(gt.UnsupportedError, "bool"):
        layer.observe(codes, mask=torch.ones(4))
    with refuses(gt.ShapeError, "logits"):
        layer.diversity(torch.zeros(4, 3, 2))


# --- both, in what surrounds them


@kinds
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", ["reinmax", "stgs", "gumbel_softmax", "redge"])
def test_compiled_layers_are_the_eager_ones(kind, mode, name, compiler):
    layer, noise = setting(kind, name)
    layer.train(mode)
    want, got = layer(X, noise=noise), compiler(layer)(X, noise=noise)
    assert_all_close([first(got)], [first(want)])
    if mode:
        assert_all_close(gradients(layer, first(got)), gradients(layer, first(want)))
    if kind == "quantizer":
        assert torch.equal(got.codes, want.codes)


@kinds
def test_a_compiled_layer_draws_its_own_noise(kind, compiler):
    layer = made(kind)
    run = compiler(lambda x: first(layer(x)))
    assert len(torch.stack([run(X.repeat(20, 1)) for _ in range(3)]).unique(dim=0)) == 3


@pytest.mark.parametrize("name", [n for n in WITH_TAU if n in gt.ESTIMATORS and not inner_draws(n)])
def test_compiled_layers_follow_the_temperature(name, compiler):
    estimator = VARIANTS[name](ROW)
    layer, noise = made("layer", estimator=estimator, tau=DOWN), setting("layer", name)[1]
    run = compiler(lambda x: first(layer(x, noise=noise)))
    for _ in range(3):
        got, want = (gradients(layer, f(X)) for f in (run, lambda x: first(layer(x, noise=noise))))
        assert_all_close(got, want)
        step_temperatures(layer)


@kinds
@pytest.mark.parametrize("name", ["reinmax", "stgs"])
def test_few_graphs_serve_every_temperature(kind, name, compiler):
    estimator, graphs = VARIANTS[name](ROW), []
    layer, noise = made(kind, estimator=estimator, tau=DOWN), setting(kind, name)[1]

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    run = compiler(lambda x: first(layer(x, noise=noise)), backend)
    for _ in range(12):
        run(X)
        step_temperatures(layer)
    assert len(graphs) <= 3


@kinds
@pytest.mark.parametrize("name", ["reinmax", "stgs"])
def test_gradients_of_single_examples_by_vmap_are_a_loop(kind, name):
    layer, noise = setting(kind, name)
    state = dict(layer.named_parameters()), dict(layer.named_buffers())
    w = normal(*first(layer(X)).shape[1:], seed=4)

    def loss(parameters, x, u):
        out = first(functional_call(layer, (parameters, state[1]), (x,), {"noise": u}))
        return (out * w).exp().sum()

    got = vmap(grad(loss), in_dims=(None, 0, 0))(state[0], X, noise)
    for i in range(len(X)):
        want = torch.autograd.grad(loss(state[0], X[i], noise[i]), state[0].values())
        assert_all_close([g[i] for g in got.values()], want)


@kinds
@pytest.mark.parametrize("name", ["reinmax", "stgs", "gumbel_rao"])
def test_checkpointed_layers_are_the_plain_ones(kind, name):
    layer, noise = setting(kind, name)
    run = lambda x: first(layer(x, noise=noise))  # noqa: E731
    want = gradients(layer, run(X))
    assert_all_close(gradients(layer, checkpoint(run, X, use_reentrant=False)), want, 0.0)
    g, h = (torch.Generator().manual_seed(5) for _ in range(2))
    again = lambda x: first(layer(x, generator=h))  # noqa: E731
    out = checkpoint(again, X, use_reentrant=False, context_fn=gt.preserve(h))
    assert_all_close(gradients(layer, out), gradients(layer, first(layer(X, generator=g))), 0.0)


@kinds
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])
def test_layers_move_to_every_dtype(kind, dtype):
    layer = made(kind).to(dtype)
    out = first(layer(X.to(dtype)))
    assert out.dtype == dtype
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients(layer, out / 4))
    assert first(layer.eval()(X.to(dtype))).dtype == dtype


@kinds
def test_autocast_draws_in_low_precision_and_learns_in_full(kind):
    layer, noise = setting(kind)
    layer.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(X.float(), noise=noise)
    codes = out.codes if kind == "quantizer" else out.argmax(-1)
    law = gt.Categorical(
        F.linear(X.bfloat16(), layer.linear.weight.bfloat16(), layer.linear.bias.bfloat16())
        .view(5, 2, 3)
    )  # fmt: skip
    assert torch.equal(codes, gt.sample(law.logits, layer.estimator, noise=noise).argmax(-1))
    assert all(g.dtype == torch.float32 for g in gradients(layer, first(out).float() / 4))


@kinds
def test_layers_say_what_they_are(kind):
    text = repr(made(kind, tau=DOWN, estimator=gt.ReinMax()))
    for part in ("in_features=4", "ReinMax(tau=1.0)", "steps=0, value=2", "Linear"):
        assert part in text
    assert ("variables=2" in text) == (kind == "layer")
    assert ("groups=2" in text) == (kind == "quantizer")


@kinds
def test_other_inputs_and_sizes_are_refused(kind):
    layer = made(kind)
    for x in (X[:, :3], torch.zeros((), dtype=F64)):
        with refuses(gt.ShapeError, "4", "in_features"):
            layer(x)
    with refuses(gt.ShapeError, "noise"):
        layer(X, noise=uniform(7))
    with refuses(gt.ConfigError, "noise", "generator"):
        layer(
            X, noise=noise_for(layer.estimator, torch.zeros(5, 2, 3)), generator=torch.Generator()
        )
    for bad in ((0, 3, 2), (4, 0, 2), (4, 3, 0)):
        with refuses(gt.DomainError, "at least 1"):
            GumbelQuantizer(*bad)
    for bad in (1.0, -0.1, math.nan):
        with refuses(gt.DomainError, "decay"):
            GumbelQuantizer(4, 3, 2, decay=bad)
    with refuses(gt.UnsupportedError, "decay", "str"):
        GumbelQuantizer(4, 3, 2, decay="0.9")
    with refuses(gt.DomainError, "variables"):
        CategoricalLayer(4, 3, variables=0)
