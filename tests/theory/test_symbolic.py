"""The equations in symbols against the compiled ones, at random overlaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy

from odes import SGD, Adapter, Overlaps, Problem, flow, gradient_at, noise_at, random_overlaps
from tests.problems import single, three_on_one, two_by_three, two_by_two
from theory.symbolic import closed_equations


def units(link, *, students=2, teachers=2, rank=2, seed=0, teacher=None, sgd=None, **adapter):
    """A problem of random fixed directions and readouts."""
    draw = np.random.default_rng(seed).normal
    rows = 0.6 * draw(size=(teachers + students, 6))
    return Problem(
        link,
        teacher=teacher,
        frame_gram=rows @ rows.T,
        target=np.eye(teachers + students)[:teachers],
        frozen=np.eye(teachers + students)[teachers:],
        readout=draw(size=students),
        teacher_readout=draw(size=teachers),
        adapter=Adapter(rank, scale=1.7, lr_ratio=1.3, **adapter),
        sgd=SGD(dimension=100, batch_size=60, learning_rate=0.3, label_noise=0.2) if sgd is None else sgd,
    )


def general_readouts(link, rank):
    """A single-index problem whose readouts are not 1."""
    return Problem(
        link,
        frame_gram=[[1.0, 0.3], [0.3, 0.4]],
        directions=("target", "pretrained"),
        target=[[1.0, 0.0]],
        frozen=[[0.0, 1.0]],
        readout=[0.7],
        teacher_readout=[-1.4],
        adapter=Adapter(rank, normalized=False),
        sgd=SGD(label_noise=0.5),
    )


PROBLEMS = {
    "He3": single("He3", alignment=0.6, rank=2, noise=0.3, scale=3.0, lr_ratio=1.5),
    "erf": single("erf", alignment=0.6, noise=0.3),
    "He2+0.5*He3": single("He2+0.5*He3", strength=0.8, alignment=-0.4),
    "linear, gradient flow": single("linear", theta=0, rank=3, alignment=0.1),
    "He3(x/sqrt(2)), another teacher": single("He3(x/sqrt(2))", teacher="He1+He2", alignment=0.3),
    "general readouts": general_readouts("He2+0.5*He3", 2),
    "general readouts, erf": general_readouts("erf(0.7*x)", 1),
    "erf, K = P = 2": units("erf(x/sqrt(2))"),
    "erf of two scales, K = P = 2": units("erf(x/sqrt(2))", teacher="erf(2*x)", rank=1, normalized=False),
    "He3, K = 2, P = 3": two_by_three("He3", adapter=Adapter(1)),
    "He2, K = 2, P = 3": units("He2", students=2, teachers=3, rank=1, normalized=False),
    "another frame": two_by_two(50),
    "readouts are trained": three_on_one("erf", rank=2),
    "rows at rest, weight decay": units("He1+0.3*He2", trained=[1, 0], weight_decay=0.4, normalized=False),
    "rows at rest, normalised": units("erf", trained=[0, 1], students=1, teachers=2),
    "the weights are trained": Problem.full_weights("He2", cosine=0.5),
}


def moved(problem, seed=1):
    """Random overlaps that are not small: a random start of a low dimension, with U and readouts."""
    keys = jax.random.split(jax.random.key(seed))
    low = problem.replace(dimension=problem.frame_size + problem.adapter.rank + 1)
    up = 0.7 * jax.random.normal(keys[0], (problem.units[0], problem.adapter.rank))
    lengths = 1.0 if problem.adapter.normalized else jnp.linspace(0.6, 1.3, problem.adapter.rank)
    start = random_overlaps(low, keys[1], up=up, length=lengths)
    readout = problem.readout * 1.2 + 0.1 if problem.sgd.trains_readouts else None
    return Overlaps(start.up, start.cross, start.down_gram, readout)


def evaluated(equations, overlaps):
    """The values of all symbols and of the flow at some overlaps."""
    values = equations.parameters | dict(zip(equations.state, equations.values_of(overlaps), strict=True))

    def at(expression):
        symbols = sorted(expression.free_symbols, key=str)
        return float(sympy.lambdify(symbols, expression, "numpy")(*(values[symbol] for symbol in symbols)))

    for symbol, expression in (equations.definitions | equations.search).items():
        values[symbol] = at(expression)
    return {str(symbol): value for symbol, value in values.items()}, np.array([at(f) for f in equations.flow.values()])


def entries(name, matrix):
    """The entries of a matrix as the equations name them."""
    shape = np.shape(matrix)
    return {
        name + "".join(str(i + 1) for i, n in zip(place, shape, strict=True) if n > 1): float(matrix[place])
        for place in np.ndindex(shape)
    }


def assert_same(values, known, rtol=1e-12):
    for name, value in known.items():
        if name in values:
            np.testing.assert_allclose(
                values[name], value, rtol=rtol, atol=rtol * max(map(abs, known.values())), err_msg=name
            )


@pytest.mark.parametrize("name", PROBLEMS)
def test_equations_are_those_of_the_flow(name):
    problem = PROBLEMS[name]
    equations, overlaps = closed_equations(problem), moved(problem)
    values, derivatives = evaluated(equations, overlaps)
    gradient = gradient_at(problem, overlaps)
    np.testing.assert_allclose(values["loss"], gradient.loss, rtol=1e-12)
    assert_same(values, entries("C", gradient.C))
    assert_same(values, entries("D", gradient.D))
    assert_same(values, entries("N", noise_at(problem, overlaps)))
    known = equations.values_of(flow(problem, overlaps))
    np.testing.assert_allclose(derivatives, known, rtol=1e-12, atol=1e-12 * np.abs(known).max())
