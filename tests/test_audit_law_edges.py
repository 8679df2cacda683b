"""What an audit of laws without classes meets at its edges: one number, no row, no reference."""

import pytest
import torch
import torch.distributions as td

import gradthrough as gt
from gradthrough.auditing.function_problem import FunctionProblem
from gradthrough.auditing.model import ModelProblem
from problems import refuses


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("law", [td.Normal(0.3, 0.8), td.Poisson(torch.tensor(0.7))])
def test_a_law_of_one_number_is_a_batch_of_one_row(law):
    names = ["rloo", "measure_valued"]
    alone = gt.audit(torch.sin, law, names, replicates=40, generator=seeded())
    row = gt.audit(torch.sin, law.expand((1,)), names, replicates=40, generator=seeded())
    assert alone.problem == row.problem
    assert alone.problem.startswith("one row of one ")
    for one, same in zip(alone.rows, row.rows, strict=True):
        assert one.variance == pytest.approx(same.variance, rel=1e-5)


def test_what_has_no_sum_does_not_ask_for_fewer_rows():
    with refuses(gt.UnsupportedError, "out of reach", "Normal") as caught:
        gt.audit(torch.square, td.Normal(0.0, 1.0), ["rloo"], reference="exact")
    assert "fewer rows" not in str(caught.value)


def test_a_reference_that_is_not_finite_is_told_from_an_estimator():
    with refuses(gt.UnsupportedError, "reference", "coupled samples", "not finite"):
        gt.audit(torch.sqrt, td.Normal(torch.zeros(4), 1.0), ["rloo"], generator=seeded())


def test_a_law_with_a_single_class_is_a_choice_around_others_too():
    loc = torch.zeros(4, 1, requires_grad=True)

    def nested(expect):
        return expect(lambda z: expect(torch.square, td.Normal(z[..., 0] * loc[:, 0], 1.0)), loc)

    heard = ModelProblem(nested, loc, seeded()).heard
    assert [x.shape for x in heard.values] == [(4,)]


def test_a_program_that_samples_beside_a_law_without_score_has_no_reference():
    theta = torch.zeros(4, 3, requires_grad=True)
    low = torch.zeros(4, requires_grad=True)

    def program(expect):
        z = expect.sample(theta)
        return z[:, 0] + expect(torch.square, td.Uniform(low, low + 1))

    with refuses(gt.UnsupportedError, "'auto' is out of reach", "tensor"):
        gt.audit_model(program, [theta, low], ["st"], replicates=20, generator=seeded())


@pytest.mark.parametrize("law", [lambda x: td.Normal(x[:, 0], 1.0), gt.Categorical])
def test_an_empty_batch_is_refused(law):
    theta = torch.zeros(4, 3, requires_grad=True)

    def program(expect):
        return expect(lambda z: z if z.ndim < 3 else z[..., 0], law(theta[:0]))

    with refuses(gt.ShapeError, "no loss", "at least one row"):
        gt.audit_model(program, theta, ["rloo"], replicates=20, generator=seeded())


def test_several_parameters_are_named_as_a_list():
    law = td.StudentT(torch.full((2,), 5.0), torch.zeros(2), torch.ones(2))
    assert FunctionProblem(torch.sin, law).words.endswith("6 numbers of df, loc and scale")


def test_a_reference_that_is_mostly_noise_says_no_number():
    q = td.Normal(torch.zeros(4, requires_grad=True), 1.0)
    drawn = [
        gt.audit(
            torch.square,
            q,
            ["rloo"],
            replicates=20,
            reference="score function",
            generator=seeded(i),
        ).reference
        for i in range(20)  # of a gradient that is zero
    ]
    noisy = [one for one in drawn if 0 < one.norm < one.standard_error]
    assert noisy
    assert all("more than its norm" in one.words for one in noisy)


def test_a_bit_alone_is_a_batch_of_one_row():
    logit = torch.tensor(0.3, dtype=torch.float64)
    report = gt.audit(torch.sin, gt.Bernoulli(logit), ["arm"], replicates=20, generator=seeded())
    p = logit.sigmoid()
    assert report.reference.norm == pytest.approx(float(p * (1 - p) * torch.tensor(1.0).sin()))


def test_rounding_is_no_bias_where_there_is_no_score():
    """A float32 f near 1e6 is off by 0.03 at each point, and a score would say so."""
    low = torch.zeros(4, requires_grad=True)
    problem = FunctionProblem(lambda z: 1e6 + z, td.Uniform(low, low + 1.0))
    assert problem.magnitude(seeded()) > 0.0
