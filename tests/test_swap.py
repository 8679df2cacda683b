import copy
import threading
import types
import warnings
import weakref

import pytest
import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import gumbel_softmax as alias
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import gradthrough as gt
from gradthrough.estimators.pathwise import AbstractPathwise
from gradthrough.swapping import copies, functional
from gradthrough.swapping.active import STATE

CODE = F.gumbel_softmax.__code__
FUNCTION = F.gumbel_softmax
STOCK = types.FunctionType(CODE, vars(F), "stock", F.gumbel_softmax.__defaults__)
WEIGHTS = torch.tensor([0.3, -1.0, 2.0, 0.7])
PATHWISE = [k for k, e in gt.ESTIMATORS.items() if issubclass(e, AbstractPathwise)]
HARD = [k for k in PATHWISE if not gt.ESTIMATORS[k].traits.relaxed]
LIKE_TORCH = [k for k in HARD if not gt.ESTIMATORS[k].traits.approximate]
# Tracing an autograd.Function, torch.compile makes an instance of it.
TRACING = pytest.mark.filterwarnings("ignore:.*should not be instantiated")
CALLS = {
    "attribute": lambda x, **o: F.gumbel_softmax(x, hard=True, **o),
    "alias": lambda x, **o: alias(x, hard=True, **o),
}


def logits(*shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (6, 4)), generator=g, dtype=dtype).requires_grad_()


def outcome(f, x=None, seed=3):
    """(sample, gradient in x) of a program, from a seed."""
    x = logits() if x is None else x
    torch.manual_seed(seed)
    z = f(x)
    x.grad = None
    (z * WEIGHTS).sin().sum().backward()  # a reentrant checkpoint does without autograd.grad
    return z.detach(), x.grad


def drawn(estimator, **options):
    return outcome(lambda x: gt.sample(x, estimator, like_torch=True, **options))


def assert_same(one, other, **tolerance):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} | tolerance))


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was():
    def tables():
        return [
            dict(vars(owner))
            for owner in (F, td.OneHotCategoricalStraightThrough, td.RelaxedOneHotCategorical)
        ]

    before = tables()
    yield
    for was, now in zip(before, tables(), strict=True):
        assert was.keys() == now.keys()
        assert all(was[k] is now[k] for k in was)
    assert STATE.swaps == ()
    assert STATE.patches == {}
    assert FUNCTION.__code__ is CODE
    assert torch.overrides._len_torch_function_stack() == 0


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("key", LIKE_TORCH)
def test_the_sample_is_torch_s_and_the_gradient_the_estimator_s(key, call):
    stock, _ = outcome(lambda x: STOCK(x, hard=True))
    with gt.swap(key) as swapped:
        found = outcome(call)
    assert torch.equal(found[0], stock.round())
    assert_same(found, drawn(gt.estimator(key, **({"tau": 1} if swapped_tau(key) else {}))))
    assert swapped.calls == 1


def swapped_tau(key):
    return hasattr(gt.estimator(key), "tau")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (500, 4), (4,)])
def test_straight_through_gumbel_softmax_is_torch_s_own(shape, call):
    x = logits(*shape)
    stock = outcome(lambda x: STOCK(x, tau=0.4, hard=True), x)
    with gt.swap("stgs"):
        found = outcome(lambda x: call(x, tau=0.4), x)
    assert torch.equal(found[0], stock[0].round())
    # torch's "hard" sample is off by a rounding, so its f is taken elsewhere
    torch.testing.assert_close(found[1], stock[1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dim", [0, 1, -2])
def test_other_dims(dim):
    x = logits(3, 5, 4)
    torch.manual_seed(1)
    stock = STOCK(x, hard=True, dim=dim).detach().round()
    torch.manual_seed(1)
    with gt.swap("reinmax"):
        found = F.gumbel_softmax(x, hard=True, dim=dim)
    assert torch.equal(found, stock)


def test_both_taus_in_turn():
    with gt.swap("stgs"):
        callers = outcome(lambda x: F.gumbel_softmax(x, 0.3, hard=True))
    with gt.swap("stgs", tau=2.0):
        own = outcome(lambda x: F.gumbel_softmax(x, 0.3, hard=True))
    with gt.swap(gt.StraightThroughGumbelSoftmax(tau=2.0)):
        whole = outcome(lambda x: F.gumbel_softmax(x, 0.3, hard=True))
    assert_same(callers, drawn(gt.StraightThroughGumbelSoftmax(0.3)))
    assert_same(own, drawn(gt.StraightThroughGumbelSoftmax(2.0)))
    assert_same(whole, own)


def test_a_tau_that_is_learned():
    tau = torch.tensor(0.5, requires_grad=True)
    with gt.swap("stgs"):
        alias(logits(), tau, hard=True).sin().sum().backward()
    assert tau.grad is not None
    with pytest.raises(gt.UnsupportedError, match="no gradient in tau"), gt.swap("reinmax"):
        alias(logits(), tau, hard=True)
    with gt.swap("reinmax", tau=1.0):
        assert alias(logits(), tau, hard=True).requires_grad


def test_the_estimator_may_be_set_anew():
    for swapped in (gt.swap("reinmax", tau=1.0), gt.swap("reinmax")):
        with swapped:
            swapped.estimator = gt.StraightThrough(tau=1.5)
            found = outcome(lambda x: F.gumbel_softmax(x, 0.3, hard=True))
        assert_same(found, drawn(gt.StraightThrough(tau=1.5)))


@pytest.mark.parametrize("key", PATHWISE)
def test_soft_callers_get_a_soft_sample_or_are_told(key):
    try:
        gt.estimator(key).form(hard=False)
    except gt.UnsupportedError:
        with pytest.raises(gt.UnsupportedError, match="soft one is asked for"), gt.swap(key):
            F.gumbel_softmax(logits())
        return
    stock = outcome(lambda x: STOCK(x, tau=0.7))
    with gt.swap(key):
        assert_same(outcome(lambda x: alias(x, tau=0.7)), stock, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("key", PATHWISE)
def test_hard_callers_get_a_hard_sample(key):
    with gt.swap(key):
        z = F.gumbel_softmax(logits(), hard=True)
    assert torch.equal(z.sort(-1)[0], torch.eye(4)[-1].expand(6, 4))


def test_swaps_nest_and_the_innermost_has_the_call():
    with gt.swap("st") as outer:
        before = outcome(CALLS["alias"])
        with gt.swap("reinmax", tau=1.4) as inner:
            within = outcome(CALLS["alias"])
        after = outcome(CALLS["attribute"])
    assert_same(before, drawn(gt.StraightThrough()))
    assert_same(after, before)
    assert_same(within, drawn(gt.ReinMax(1.4)))
    assert (outer.calls, inner.calls) == (2, 1)


def test_one_swap_may_be_entered_again():
    swapped = gt.swap("reinmax")
    with swapped, swapped:
        F.gumbel_softmax(logits(), hard=True)
    with swapped:
        F.gumbel_softmax(logits(), hard=True)
    assert swapped.calls == 2


def test_a_decorator():
    swapped = gt.swap("reinmax", tau=1.2)
    assert_same(outcome(swapped(CALLS["alias"])), drawn(gt.ReinMax(1.2)))


class BoomError(Exception):
    pass


def test_an_exception_leaves_torch_as_it_was():
    def fail():
        with gt.swap("reinmax"), gt.swap("st"):
            F.gumbel_softmax(logits(), hard=True)
            raise BoomError

    with pytest.raises(BoomError):
        fail()
    assert F.gumbel_softmax.__code__ is CODE  # and the fixture looks at the rest


def test_a_patch_that_fails_leaves_torch_as_it_was(monkeypatch):
    class Broken:
        key = "broken"

        def install(self):
            raise BoomError

    monkeypatch.setattr(copies, "patches", lambda names: [Broken()])
    with pytest.raises(BoomError), gt.swap("reinmax"):
        pass


def test_somebody_else_s_patch_is_left_alone():
    other = (lambda logits, tau=1, hard=False, eps=0, dim=-1: logits).__code__
    with gt.swap("reinmax"):
        F.gumbel_softmax(logits(), hard=True)
        FUNCTION.__code__ = other
    left = FUNCTION.__code__
    FUNCTION.__code__ = CODE
    assert left is other


def test_calls_are_counted_by_where_they_came_from():
    def inner(x):
        return alias(x, hard=True)

    with gt.swap("reinmax") as swapped:
        for _ in range(3):
            inner(logits())
        F.gumbel_softmax(logits(), hard=True)
    (most, three), (least, one) = swapped.sites.items()
    line = inner.__code__.co_firstlineno + 1
    assert most.endswith(f"test_swap.py:{line} in {inner.__qualname__}")
    assert "test_swap.py" in least
    assert (three, one, swapped.calls) == (3, 1, 4)


class Spy(TorchFunctionMode):
    def __init__(self):
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_call_is_swapped_twice_and_other_modes_see_it_once(call):
    with gt.swap("st") as outer:
        call(logits())
        with gt.swap("reinmax", tau=1.0) as swapped, Spy() as spy:
            found = outcome(call)
    assert (outer.calls, swapped.calls, spy.seen.count(FUNCTION)) == (1, 1, 1)
    assert "test_swap.py" in next(iter(swapped.sites))
    assert_same(found, drawn(gt.ReinMax()))


def test_a_tensor_subclass():
    class Named(torch.Tensor):
        pass

    with gt.swap("reinmax") as swapped:
        z = F.gumbel_softmax(logits().detach().as_subclass(Named), hard=True)
    assert isinstance(z, Named)
    assert swapped.calls == 1


def test_a_swap_that_met_no_call_says_so():
    with pytest.warns(gt.SwapWarning, match="met no call"), gt.swap("reinmax"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BoomError), gt.swap("reinmax"):
            raise BoomError


# --- other threads, checkpoints, transforms, compiled code -----------------------------------


def test_other_threads_are_swapped_by_attribute():
    found = []
    with gt.swap("reinmax", tau=1.3):
        worker = threading.Thread(
            target=lambda: found.append(F.gumbel_softmax(logits(), hard=True))
        )
        worker.start()
        worker.join()
    assert found[0].grad_fn.name().startswith("_Launch")


def test_a_thread_that_ends_its_swap_leaves_the_others_on():
    inside, done = threading.Event(), threading.Event()

    def work():
        with gt.swap("st"):
            F.gumbel_softmax(logits(), hard=True)
            inside.set()
            done.wait(10)

    worker = threading.Thread(target=work)
    with gt.swap("reinmax", tau=1.3) as swapped:
        worker.start()
        inside.wait(10)
        done.set()
        worker.join()
        found = outcome(CALLS["attribute"])
    assert_same(found, drawn(gt.ReinMax(1.3)))
    assert swapped.calls == 1


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_checkpoint_draws_the_same_sample_again(call, reentrant):
    def program(x):
        return call(x * 1.0).cos() * 1.5

    with gt.swap("reinmax", tau=1.3):
        plain = outcome(program)
        again = outcome(lambda x: checkpoint(program, x, use_reentrant=reentrant))
    assert_same(again, plain)
    with gt.swap("st"):
        assert not torch.equal(outcome(program)[1], plain[1])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_under_the_transforms_of_torch_func(call):
    x = logits(3, 4).detach()

    def loss(row):
        return (call(row) * WEIGHTS).sin().sum()

    with gt.swap("reinmax", tau=1.3):
        torch.manual_seed(5)
        found = torch.vmap(torch.func.grad(loss), randomness="different")(x)
        torch.manual_seed(5)
        rows = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad((call(rows) * WEIGHTS).sin().sum(), rows)
    torch.testing.assert_close(found, slope)


@TRACING
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_compiled_code_is_swapped_and_given_back(call, compiler):
    compiled = compiler(lambda x: call(x))
    stock = outcome(lambda x: STOCK(x, hard=True))
    assert_same(outcome(compiled), stock)
    for estimator in (gt.ReinMax(1.3), gt.ReinMax(1.0), gt.StraightThroughGumbelSoftmax(0.5)):
        with gt.swap(estimator):
            assert_same(outcome(compiled), drawn(estimator))
            with gt.swap("st", tau=1.0) as swapped:
                assert_same(outcome(compiled), drawn(gt.StraightThrough()))
            assert swapped.calls == 0  # none is counted there, and none missed
            assert_same(outcome(compiled), drawn(estimator))
    assert_same(outcome(compiled), stock)


@TRACING
def test_an_estimator_that_is_set_anew_reaches_compiled_code(compiler):
    compiled = compiler(CALLS["alias"])
    with gt.swap("reinmax", tau=1.3) as swapped:
        compiled(logits())
        swapped.estimator = gt.StraightThrough()
        assert_same(outcome(compiled), drawn(gt.StraightThrough()))


@TRACING
@pytest.mark.parametrize("confined", [False, True])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_same_swap_again_is_not_compiled_again(call, confined, compiler):
    seen = []

    def backend(graph, inputs):
        seen.append({str(node.target) for node in graph.graph.nodes})
        return graph

    model = Gate(call=call)
    compiled = compiler(model, backend)
    for _ in range(10):  # more than torch compiles one function anew
        with gt.swap("reinmax", tau=1.3, model=model if confined else None):
            compiled(logits())
    assert len(seen) == 1
    # A graph that held the function would be stored as that of torch's own.
    assert not any("gumbel_softmax" in target for target in seen[0])


@TRACING
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_temperature_that_moves_is_not_compiled_again(call, compiler):
    seen = []
    compiled = compiler(call, lambda graph, inputs: seen.append(1) or graph)
    with gt.swap("reinmax") as swapped:
        for i in range(12):
            swapped.estimator = gt.ReinMax(tau=1.0 + 0.1 * i)
            assert_same(outcome(compiled), drawn(swapped.estimator), rtol=1e-6, atol=1e-6)
    assert len(seen) <= 3


@TRACING
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_code_that_another_thread_compiles_is_refused(call, compiler):
    compiled, errors = compiler(call), []

    def work():
        try:
            compiled(logits())
        except Exception as error:
            errors.append(error)

    worker = threading.Thread(target=work)
    with gt.swap("reinmax"):
        worker.start()
        worker.join()
        F.gumbel_softmax(logits(), hard=True)
    assert "Enter the swap in the thread" in str(errors[0])


def test_a_swap_inside_of_compiled_code_is_refused(compiler):

    def program(x):
        with gt.swap("reinmax"):
            return F.gumbel_softmax(x, hard=True)

    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        compiler(program)(logits())


# --- one model ------------------------------------------------------------------------------


class Gate(nn.Module):
    def __init__(self, how="plain", call=CALLS["attribute"], fail=False):
        super().__init__()
        self.how, self.call, self.fail = how, call, fail

    def body(self, x):
        if self.fail:
            raise BoomError
        return self.call(x * 1.0)

    def forward(self, x):
        if self.how == "method":
            return checkpoint(self.body, x, use_reentrant=False)
        if self.how == "closure":
            return checkpoint(lambda x: self.body(x), x, use_reentrant=False)
        if self.how == "reentrant":
            return checkpoint(self.body, x, use_reentrant=True)
        return self.body(x)


class Outer(nn.Module):
    def __init__(self, gate, how="plain"):
        super().__init__()
        self.gate, self.how = gate, how

    def forward(self, x):
        if self.how == "part":
            return checkpoint(self.gate, x, use_reentrant=False)
        return self.gate(x)


@pytest.mark.parametrize("how", ["plain", "method", "closure", "reentrant", "part"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_swap_confined_to_a_model(call, how):
    model, other = Outer(Gate(how, call), how), Outer(Gate(how, call), how)
    with gt.swap("reinmax", tau=1.3, model=model) as swapped:
        assert_same(outcome(model), drawn(gt.ReinMax(1.3)))
        assert_same(outcome(other), outcome(lambda x: STOCK(x, hard=True)))
        assert_same(outcome(call), outcome(lambda x: STOCK(x, hard=True)))
    assert swapped.calls == (1 if how == "plain" else 2)
    assert all("test_swap.py" in site for site in swapped.sites)
    assert not model._forward_hooks
    assert not model.gate._forward_pre_hooks


def block(x):
    return F.gumbel_softmax(x, hard=True)


class Plain(nn.Module):
    """Checkpoints a function that knows nothing of it."""

    def __init__(self, function, reentrant):
        super().__init__()
        self.function, self.reentrant = function, reentrant

    def forward(self, x):
        return checkpoint(self.function, x * 1.0, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_of_a_plain_function_in_the_model(reentrant):
    model, other = Plain(block, reentrant), Plain(lambda x: alias(x, hard=True), reentrant)
    with gt.swap("reinmax", tau=1.3, model=model):
        assert_same(outcome(model), drawn(gt.ReinMax(1.3)))
        assert_same(outcome(other), outcome(lambda x: STOCK(x, hard=True)))
        shared = Plain(block, reentrant)
        with pytest.raises(gt.UnsupportedError, match="inside of the model and outside"):
            outcome(shared)


def test_no_tensor_is_kept_that_the_caller_lets_go_of():
    class Trainer:
        def step(self):
            big = torch.randn(100)
            left = weakref.ref(big)
            F.gumbel_softmax(logits(), hard=True)
            del big
            return left() is None

    model = Gate()
    with gt.swap("reinmax", model=model):
        assert Trainer().step()
        model(logits())


def test_a_scripted_part_of_the_model_is_passed_by():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(Gate(), torch.jit.script(nn.Identity()))
    with gt.swap("reinmax", tau=1.3, model=model):
        assert_same(outcome(model), drawn(gt.ReinMax(1.3)))


def test_a_scope_that_cannot_be_opened_leaves_torch_as_it_was(monkeypatch):
    def broken(self):
        raise BoomError

    monkeypatch.setattr("gradthrough.swapping.scope.Scope.open", broken)
    with pytest.raises(BoomError), gt.swap("reinmax", model=Gate()):
        pass


def test_a_mode_that_was_entered_within_stays():
    swapped, spy = gt.swap("reinmax"), Spy()
    with swapped:
        F.gumbel_softmax(logits(), hard=True)
        spy.__enter__()
    assert torch.overrides._get_current_function_mode() is spy
    spy.__exit__(None, None, None)


def test_leaving_in_another_thread():
    swapped = gt.swap("reinmax")
    swapped.__enter__()
    F.gumbel_softmax(logits(), hard=True)
    depths = []

    def leave():
        swapped.__exit__(None, None, None)
        depths.append(functional._HELD.depth)

    worker = threading.Thread(target=leave)
    worker.start()
    worker.join()
    assert depths == [0]
    assert FUNCTION.__code__ is CODE
    assert_same(outcome(CALLS["alias"]), outcome(lambda x: STOCK(x, hard=True)))
    with gt.swap("reinmax"):  # the mode that was left here goes with this one
        F.gumbel_softmax(logits(), hard=True)
    while torch.overrides._len_torch_function_stack():
        torch.overrides._pop_mode()
    functional._HELD.depth = 0


def test_what_runs_later_cannot_be_decorated():
    def generator():
        yield F.gumbel_softmax(logits())

    async def coroutine():
        F.gumbel_softmax(logits())

    for function in (generator, coroutine):
        with pytest.raises(gt.UnsupportedError, match="generator or a coroutine"):
            gt.swap("reinmax")(function)


def test_a_model_that_fails_does_not_stay_open():
    model = Outer(Gate(fail=True))
    with gt.swap("reinmax", model=model) as swapped:
        with pytest.raises(BoomError):
            model(logits())
        assert_same(outcome(CALLS["attribute"]), outcome(lambda x: STOCK(x, hard=True)))
        model.gate.fail = False
        model(logits())
    assert swapped.calls == 1


def test_two_models_with_an_estimator_each():
    a, b = Gate(), Gate()
    with (
        gt.swap("reinmax", tau=1.3, model=a),
        gt.swap("st", model=b),
        gt.swap("stgs", model=Gate()),
    ):
        assert_same(outcome(a), drawn(gt.ReinMax(1.3)))
        assert_same(outcome(b), drawn(gt.StraightThrough(tau=1)))
        with pytest.warns(gt.SwapWarning, match="inside of the model"), gt.swap("st", model=Gate()):
            pass
        warnings.simplefilter("ignore", gt.SwapWarning)


def test_threads_that_run_a_part_of_the_model():
    model, found = Outer(Gate()), []
    with gt.swap("reinmax", model=model):
        for f in (lambda: model.gate(logits()), lambda: F.gumbel_softmax(logits(), hard=True)):
            worker = threading.Thread(target=lambda f=f: found.append(f()))
            worker.start()
            worker.join()
    assert [z.grad_fn.name().startswith("_Launch") for z in found] == [True, False]


def test_a_stranger_in_another_thread_while_the_model_runs():
    inside, done, found = threading.Event(), threading.Event(), []

    def call(x):
        inside.set()
        done.wait(10)
        return F.gumbel_softmax(x, hard=True)

    def stranger():
        inside.wait(10)
        found.append(F.gumbel_softmax(logits(), hard=True))
        done.set()

    worker, model = threading.Thread(target=stranger), Gate(call=call)
    worker.start()
    with gt.swap("reinmax", model=model) as swapped:
        model(logits())
        worker.join()
    assert not found[0].grad_fn.name().startswith("_Launch")
    assert swapped.calls == 1


def test_a_copy_that_runs_on_another_device():
    model = Gate()
    copy = model._replicate_for_data_parallel()  # a module of its own, with the hooks of the first
    with gt.swap("reinmax", tau=1.3, model=model):
        assert_same(outcome(copy), drawn(gt.ReinMax(1.3)))


@TRACING
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_function_in_the_model_and_outside(call, compiler):
    function = compiler(call)
    model = Gate(call=function)
    stock = outcome(lambda x: STOCK(x, hard=True))
    with gt.swap("reinmax", tau=1.3, model=model):
        for _ in range(2):
            assert_same(outcome(model), drawn(gt.ReinMax(1.3)))
            assert_same(outcome(function), stock)
    assert_same(outcome(model), stock)


@TRACING
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_compiled_model_and_a_compiled_stranger(call, compiler):
    model, other = Outer(Gate(call=call)), Gate(call=call)
    one, two = compiler(model), compiler(other)
    stock = outcome(lambda x: STOCK(x, hard=True))
    for compiled in (one, two):
        assert_same(outcome(compiled), stock)
    with gt.swap("reinmax", tau=1.3, model=model):
        assert_same(outcome(one), drawn(gt.ReinMax(1.3)))
        assert_same(outcome(two), stock)
    with gt.swap("reinmax", tau=1.3, model=other):
        assert_same(outcome(one), stock)
        assert_same(outcome(two), drawn(gt.ReinMax(1.3)))
    assert_same(outcome(one), stock)


@TRACING
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_model_and_stranger_compiled_as_one(call, compiler):
    model, other = Outer(Gate(call=call)), Gate(call=call)

    def first(f, *others):  # the draws after it are torch's own to order when it compiles
        return lambda x: f(x) + 0 * sum(other(x) for other in others)

    stock = outcome(lambda x: STOCK(x, hard=True))
    programs = [first(model, other), first(other, model), first(call, model)]
    compiled = [compiler(program) for program in programs]
    with gt.swap("reinmax", tau=1.3, model=model):
        for program, expected in zip(compiled, (drawn(gt.ReinMax(1.3)), stock, stock), strict=True):
            assert_same(outcome(program), expected, rtol=1e-6, atol=1e-6)
    for program in compiled:
        assert_same(outcome(program), stock, rtol=1e-6, atol=1e-6)


@TRACING
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_compiled_for_one_model_is_not_for_another(call, compiler):
    model, other = Gate(call=call), Gate(call=call)
    compiled = compiler(lambda x: model(x) * 1.0)  # whose hooks torch does not look at again
    stock = outcome(lambda x: STOCK(x, hard=True))
    for swapped, expected in ((other, stock), (model, drawn(gt.ReinMax(1.3))), (other, stock)):
        with warnings.catch_warnings(), gt.swap("reinmax", tau=1.3, model=swapped):
            warnings.simplefilter("ignore", gt.SwapWarning)
            assert_same(outcome(compiled), expected)
            swapped(logits())


def test_a_model_can_be_copied_and_saved_meanwhile(tmp_path):
    model = Gate(call=F.gumbel_softmax)
    model.call = None
    with warnings.catch_warnings(), gt.swap("reinmax", model=model):
        warnings.simplefilter("ignore", gt.SwapWarning)
        others = [copy.deepcopy(model)]
        torch.save(model, tmp_path / "model.pt")
        others.append(torch.load(tmp_path / "model.pt", weights_only=False))
        for one in others:  # it is another model
            one.call = CALLS["attribute"]
            assert_same(outcome(one), outcome(lambda x: STOCK(x, hard=True)))


# --- distributions --------------------------------------------------------------------------


@pytest.mark.parametrize("key", LIKE_TORCH)
def test_a_straight_through_distribution(key):
    def program(x):
        return td.OneHotCategoricalStraightThrough(logits=x).rsample()

    stock, _ = outcome(program)
    with gt.swap(key) as swapped:
        found = outcome(program)
    assert torch.equal(found[0], stock.round())
    normal = outcome(
        lambda x: gt.sample(x - x.logsumexp(-1, keepdim=True), gt.estimator(key), like_torch=True)
    )
    assert_same(found, normal)
    assert swapped.calls == 1


def test_several_samples_of_a_distribution():
    law = td.OneHotCategoricalStraightThrough(logits=logits())
    with gt.swap("reinmax"):
        z = law.expand((2, 6)).rsample((5, 3))
        soft = td.Independent(law, 1).rsample((5,))
    assert z.shape == (5, 3, 2, 6, 4)
    assert soft.shape == (5, 6, 4)
    assert z.requires_grad


def test_a_relaxed_distribution_is_soft():
    def program(x):
        return td.RelaxedOneHotCategorical(torch.tensor([0.6]), logits=x).rsample()

    with gt.swap("gumbel_softmax") as swapped:
        z, _ = outcome(program)
    assert swapped.calls == 1
    torch.testing.assert_close(z.sum(-1), torch.ones(6))
    assert_same(
        (z,),
        (outcome(lambda x: STOCK(x - x.logsumexp(-1, keepdim=True), 0.6))[0],),
        rtol=1e-6,
        atol=1e-6,
    )
    with pytest.raises(gt.UnsupportedError, match="soft one is asked for"), gt.swap("reinmax"):
        program(logits())


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("key", [k for k in gt.ESTIMATORS if k not in PATHWISE])
def test_estimators_without_a_sample_are_refused(key):
    options = {"control": gt.controls.Control((4,))} if key == "relax" else {}
    with pytest.raises(gt.UnsupportedError, match="no sample that carries a gradient"):
        gt.swap(key, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("reinmaxx",), {}, gt.ConfigError, "Did you mean 'reinmax'"),
        (("reinmax",), {"temperature": 1}, gt.ConfigError, "no option 'temperature'"),
        ((gt.ReinMax(),), {"tau": 1}, gt.ConfigError, "made already"),
        ((gt.ReinMax,), {}, gt.UnsupportedError, "Instantiate it"),
        (("reinmax",), {"also": "fairseq"}, gt.ConfigError, "Known: groupvit"),
        (("reinmax",), {"model": len}, gt.UnsupportedError, "torch.nn.Module"),
        (("reinmax",), {"tau": -1}, gt.DomainError, "above 0"),
    ],
)
def test_what_is_refused(arguments, options, error, words):
    with pytest.raises(error, match=words):
        gt.swap(*arguments, **options)


def test_unsound_logits_raise_as_they_do_elsewhere():
    with pytest.raises(gt.DomainError), gt.swap("reinmax"):
        F.gumbel_softmax(torch.full((2, 3), float("nan")), hard=True)
    with gt.swap("reinmax"):
        x = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
        F.gumbel_softmax(x, hard=True).sin().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[0, 1] == 0
