"""The private copies that swap replaces when it is asked to, in the libraries themselves."""

import importlib
import warnings

import pytest
import torch

import gradthrough as gt
from gradthrough.swapping.copies import COPIES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for copy in COPIES.values():
        importlib.import_module(copy.module)


def logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def slope(z, x):
    weights = torch.linspace(-1.0, 2.0, z.shape[-1])
    return torch.autograd.grad((z * weights).sin().sum(), x, retain_graph=True)[0]


@pytest.mark.parametrize("name", COPIES)
def test_the_function_is_there_and_is_given_back(name):
    function = COPIES[name].find()
    code = function.__code__
    with pytest.warns(gt.SwapWarning), gt.swap("reinmax", also=name):
        assert function.__code__ is not code
    assert function.__code__ is code
    with pytest.warns(gt.SwapWarning), gt.swap("reinmax"):  # nobody asked
        assert function.__code__ is code


@pytest.mark.parametrize("name", COPIES)
def test_the_arguments_are_those_of_the_function(name):
    names = COPIES[name].find().__code__
    ours = COPIES[name].instead.__code__
    count = names.co_argcount
    assert ours.co_argcount == count
    assert ours.co_varnames[:count] == names.co_varnames[:count]
    assert COPIES[name].instead.__defaults__ == COPIES[name].find().__defaults__


def test_groupvit():
    module = importlib.import_module(COPIES["groupvit"].module)
    config = module.GroupViTVisionConfig(
        hidden_size=16, intermediate_size=16, depths=[1, 1, 0], num_hidden_layers=2,
        num_group_tokens=[4, 2, 0], num_output_groups=[4, 2, 0], num_attention_heads=2,
        image_size=16, patch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = module.GroupViTVisionModel(config).train()
    pixels = torch.randn(2, 3, 16, 16)
    with gt.swap("reinmax", tau=1.0, also="groupvit", model=model) as swapped:
        out = model(pixels)
    out.last_hidden_state.sum().backward()
    assert swapped.calls == 2  # a stage each
    assert all("modeling_groupvit" in site for site in swapped.sites)
    x = logits(2, 3, 5)
    with gt.swap("st", tau=1.0, also="groupvit"):
        z = module.gumbel_softmax(x, dim=-2, hard=True)
    assert torch.equal(z.sum(-2), torch.ones(2, 5))
    pi = x.softmax(-2)
    weights = torch.randn(2, 3, 5)
    (g,) = torch.autograd.grad((z * weights).sum(), x)
    torch.testing.assert_close(g, pi * (weights - (pi * weights).sum(-2, keepdim=True)))


@pytest.mark.parametrize("unimix", [0.0, 0.1])
def test_the_states_of_dreamer(unimix):
    function = COPIES["torchrl"].find()
    x, u = logits(50, 4, 6), torch.rand(50, 4)
    stock = function(x, unimix, u)
    with gt.swap("st", tau=1.0, also="torchrl") as swapped:
        z = function(x, unimix, u)
    assert swapped.calls == 1
    assert torch.equal(z, stock.detach().round())
    # theirs is the straight-through estimator of the mixed law
    torch.testing.assert_close(slope(z, x), slope(stock, x), rtol=1e-4, atol=1e-6)
    with gt.swap("reinmax", also="torchrl"):
        again = function(x, unimix, u)
    assert torch.equal(again, z)
    assert not torch.allclose(slope(again, x), slope(stock, x))
    with pytest.raises(gt.UnsupportedError, match="one uniform"), gt.swap("stgs", also="torchrl"):
        function(x, unimix, u)


def test_vector_quantize():
    package = importlib.import_module("vector_quantize_pytorch")
    options = {
        "stochastic_sample_codes": True,
        "straight_through": True,
        "rotation_trick": False,
        "route_gradients_to_input": False,  # else the codes' gradient goes past the sample
    }
    torch.manual_seed(0)
    model = package.VectorQuantize(dim=8, codebook_size=5, sample_codebook_temp=1.0, **options)
    x = torch.randn(2, 7, 8, requires_grad=True)
    found = {}
    for key in ("st", "reinmax"):
        torch.manual_seed(1)
        with gt.swap(key, tau=1.0, also="vector_quantize_pytorch") as swapped:
            quantized, indices, _ = model.train()(x, freeze_codebook=True)
        assert swapped.calls == 1
        found[key] = indices, torch.autograd.grad(quantized.sin().sum(), x)[0]
    assert torch.equal(found["st"][0], found["reinmax"][0])
    assert not torch.allclose(found["st"][1], found["reinmax"][1])
    with pytest.warns(gt.SwapWarning), gt.swap("st", also="vector_quantize_pytorch"):
        model.eval()(x)  # no sample is drawn: theirs


def test_the_straight_through_sample_of_vector_quantize_is_ours():
    function = COPIES["vector_quantize_pytorch"].find()
    x = logits(40, 5)
    options = {"temperature": 0.7, "stochastic": True, "straight_through": True}
    with gt.swap("st", tau=1.0, also="vector_quantize_pytorch"):
        index, z = function(x, **options)
    assert torch.equal(z.detach().argmax(-1), index)
    p = (x / 0.7).softmax(-1)
    torch.testing.assert_close(slope(z, x), slope(z.detach() + p - p.detach(), x))


def test_the_relaxed_straight_through_sites_of_pyro():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist = importlib.import_module("pyro.distributions")
    x = logits(6, 4)
    law = dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.7), logits=x)
    own = vars(dist.RelaxedOneHotCategoricalStraightThrough).copy()
    with gt.swap("reinmax", tau=1.0) as swapped:
        z = law.rsample()
        log_prob = law.log_prob(z)
    assert swapped.calls == 1
    assert torch.equal(z.sort(-1)[0], torch.eye(4)[-1].expand(6, 4))
    torch.testing.assert_close(log_prob, (z.detach() * x.log_softmax(-1)).sum(-1))
    assert dict(vars(dist.RelaxedOneHotCategoricalStraightThrough)) == dict(own)
    relaxed = law.rsample()  # theirs again, with the point that it came from
    torch.testing.assert_close(law.log_prob(relaxed), law.log_prob(relaxed._unquantize))
    with gt.swap("gumbel_softmax") as swapped:
        soft = dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=x).rsample()
        dist.OneHotCategoricalStraightThrough(logits=x).rsample()
    assert swapped.calls == 2
    assert bool((soft < 1).all())
