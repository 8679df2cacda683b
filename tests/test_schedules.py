import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

import gradthrough as gt
from gradthrough import schedules

ALL = {
    "constant": schedules.Constant(0.7),
    "exponential": schedules.Exponential(1.0, rate=1e-2, floor=0.5, every=7),
    "linear": schedules.Linear(2.0, 0.5, steps=40),
    "cosine": schedules.Cosine(2.0, 0.5, steps=40),
}


def every():
    return pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)


@every()
def test_it_is_a_number_that_falls_and_ends(schedule):
    taus = [schedule(step) for step in range(200)]
    assert all(type(tau) is float and 0.0 < tau for tau in taus)
    assert taus == sorted(taus, reverse=True)
    assert taus[-1] == taus[-2] == schedule(10**9)


@every()
def test_it_can_be_pickled_and_compared(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert again(17) == schedule(17)


@every()
def test_any_estimator_any_layer_and_any_loop_takes_it(schedule):
    logits = torch.zeros(3, 4, requires_grad=True)
    gt.straight_through(logits, schedule(3)).sum().backward()
    layer = gt.nn.CategoricalLayer(2, 3, tau=schedule)
    gt.nn.step_temperatures(layer, 5)
    assert layer.tau.value == schedule(5)


def test_numbers_of_other_libraries_and_whole_ones_are_numbers():
    for kind in (np.float32, np.float64, Fraction, int):
        one, two = kind(1), kind(2)
        made = (
            schedules.Constant(two),
            schedules.Exponential(two, kind(0), one),
            schedules.Linear(two, one, 4),
            schedules.Cosine(two, one, 4),
        )
        for schedule in made:
            assert schedule(0) == 2.0
            assert type(schedule(0)) is type(schedule(3)) is float


def test_ways_of_one_kind_are_equal_and_of_two_are_not():
    assert schedules.Linear(2.0, 0.5, 40) == ALL["linear"] != ALL["cosine"]
    assert repr(ALL["linear"]) == "Linear(start=2.0, end=0.5, steps=40)"


def test_the_formulas():
    assert schedules.Exponential(1.0, 1e-5, 0.5)(69_315) == 0.5
    assert schedules.Exponential(1.0, 1e-5, 0.5)(69_314) > 0.5
    stairs = schedules.Exponential(1.0, 1e-3, 0.1, every=500)
    assert stairs(499) == 1.0
    assert stairs(500) == stairs(999) == math.exp(-0.5)
    assert schedules.Linear(1.0, 3.0, 4)(1) == 1.5
    assert schedules.Cosine(1.0, 3.0, 4)(2) == pytest.approx(2.0)
    assert schedules.Cosine(1.0, 3.0, 4)(1) == pytest.approx(2.0 - math.cos(math.pi / 4))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: schedules.Constant(0.0), gt.DomainError, "tau must be finite and above 0"),
        (lambda: schedules.Constant("1"), gt.UnsupportedError, "a str came"),
        (lambda: schedules.Exponential(1.0, -1e-3, 0.5), gt.DomainError, "at least 0"),
        (lambda: schedules.Exponential(1.0, 1e-3, 0.0), gt.DomainError, "floor"),
        (lambda: schedules.Exponential(1.0, 1e-3, 0.5, every=0), gt.DomainError, "at least 1"),
        (lambda: schedules.Linear(1.0, math.inf, 5), gt.DomainError, "end must be finite"),
        (lambda: schedules.Linear(1.0, 0.5, 2.5), gt.UnsupportedError, "steps must be an int"),
        (lambda: schedules.Cosine(math.nan, 0.5, 5), gt.DomainError, "start"),
    ],
)
def test_what_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_a_step_that_is_none_is_refused_and_a_tensor_is_a_step(schedule):
    with pytest.raises(gt.UnsupportedError, match="a str came"):
        schedule("seven")
    with pytest.raises(gt.DomainError, match="from 0, but step is -1"):
        schedule(-1)
    assert schedule(torch.tensor(7)) == pytest.approx(schedule(7))
