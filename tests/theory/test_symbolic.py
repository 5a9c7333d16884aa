"""The equations in symbols against the compiled ones, at random overlaps."""

import functools
import re
import shutil
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy
from scipy.integrate import solve_ivp

from odes import (
    SGD,
    Adapter,
    Overlaps,
    Problem,
    flow,
    gradient_at,
    mean_change,
    noise_at,
    pretrained,
    random_overlaps,
    solve,
)
from odes.arguments import ArgumentError
from tests.problems import single, three_on_one, two_by_three, two_by_two
from theory import search_phase
from theory.printed import as_python, as_sympy
from theory.symbolic import MOST_TERMS, closed_equations
from theory.tilting import exact
from theory.typeset import as_latex, width


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


@functools.cache
def equations_of(name, *, finite_steps=False):
    """The equations of one of the problems."""
    return closed_equations(PROBLEMS[name], finite_steps=finite_steps)


@eqx.filter_jit
def compiled(problem, overlaps):
    """The flow, the gradient and its noise, in one program."""
    return flow(problem, overlaps), gradient_at(problem, overlaps), noise_at(problem, overlaps)


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


def assert_same(values, known):
    """Every entry of a matrix that the equations name has the known value; the lower half of symmetric ones has no names."""
    named = {name: value for name, value in known.items() if name in values}
    assert len(named) > len(known) / 2
    for name, value in named.items():
        np.testing.assert_allclose(
            values[name], value, rtol=1e-12, atol=1e-12 * max(map(abs, known.values())), err_msg=name
        )


def assert_same_flow(derivatives, known):
    np.testing.assert_allclose(derivatives, known, rtol=1e-12, atol=1e-12 * np.abs(known).max())


@pytest.mark.parametrize("name", PROBLEMS)
def test_equations_are_those_of_the_flow(name):
    problem = PROBLEMS[name]
    equations, overlaps = equations_of(name), moved(problem)
    values, derivatives = evaluated(equations, overlaps)
    change, gradient, noise = compiled(problem, overlaps)
    np.testing.assert_allclose(values["loss"], gradient.loss, rtol=1e-12)
    assert_same(values, entries("C", gradient.C))
    assert_same(values, entries("D", gradient.D))
    if problem.sgd.noise_scale > 0:
        assert_same(values, entries("N", noise))
    else:
        assert not equations.noise
    assert_same_flow(derivatives, equations.values_of(change))


@pytest.mark.parametrize(
    "name",
    ["He3", "general readouts, erf", "rows at rest, weight decay", "rows at rest, normalised", "He2, K = 2, P = 3"],
)
def test_finite_steps_are_those_of_the_mean_step(name):
    problem = PROBLEMS[name]
    equations, overlaps = equations_of(name, finite_steps=True), moved(problem)
    derivatives = evaluated(equations, overlaps)[1]
    known = equations.values_of(eqx.filter_jit(mean_change)(problem, overlaps))
    np.testing.assert_allclose(derivatives, known, rtol=1e-10, atol=1e-12 * np.abs(known).max())


@pytest.mark.parametrize("link", ["He1+0.5*erf(x/sqrt(2))", "He2-erf(2*x)"])
def test_sums_of_polynomials_and_erf_agree_with_quadrature(link):
    problem = single(link, alignment=0.6, teacher="He1+0.3*He3")
    equations, overlaps = closed_equations(problem), moved(problem)
    derivatives, known = evaluated(equations, overlaps)[1], equations.values_of(flow(problem, overlaps))
    np.testing.assert_allclose(derivatives, known, rtol=1e-9, atol=1e-9 * np.abs(known).max())


@pytest.mark.parametrize("name", ["He3", "erf", "general readouts"])
def test_rate_of_one_unit_is_that_of_the_search_phase(name):
    problem = PROBLEMS[name]
    values, phase = evaluated(equations_of(name), moved(problem))[0], search_phase(problem)
    for symbol, field in {"C0": "C", "D0": "D", "G0": "G", "rate": "rate"}.items():
        np.testing.assert_allclose(values[symbol], getattr(phase, field), rtol=1e-12)


def test_expanded_holds_given_symbols_alone():
    equations, overlaps = equations_of("erf"), moved(PROBLEMS["erf"])
    values, derivatives = evaluated(equations, overlaps)
    whole = [equations.expanded(change) for change in equations.flow.values()]
    assert set().union(*(change.free_symbols for change in whole)) <= set(equations.given)
    numbers = {symbol: values[str(symbol)] for symbol in equations.given}
    np.testing.assert_allclose([float(change.subs(numbers)) for change in whole], derivatives, rtol=1e-12)


def test_known_averages():
    """He3 has the C and D, erf the I3 and I4, of the literature."""
    Q, M, a, b, Delta = (sympy.Symbol(name, real=True) for name in ("Q", "M", "a", "b", "Delta"))
    cubic, erf = (closed_equations(single(link)) for link in ("He3", "erf"))
    by_name = {str(symbol): value for symbol, value in (cubic.gradient | cubic.search).items()}
    assert sympy.expand(by_name["C"] - 18 * a * b * M**2) == 0
    assert sympy.expand(by_name["D"] - 9 * a**2 * (5 * Q**2 - 4 * Q + 1)) == 0
    by_name = {str(symbol): value for symbol, value in (erf.gradient | erf.noise).items()}
    assert sympy.simplify(by_name["C"] - 4 * a * b / (sympy.pi * sympy.sqrt((1 + 2 * Q) * 3 - 4 * M**2))) == 0
    tilted = sympy.asin((2 + 8 * Q - 8 * M**2) / (3 + 12 * Q - 8 * M**2))  # of the teacher with itself, P = 1
    assert sympy.diff(by_name["N"], b, 2).equals(16 * a**2 * tilted / (sympy.pi**2 * sympy.sqrt(1 + 4 * Q)))


CODES = ["He3", "erf, K = P = 2", "readouts are trained", "linear, gradient flow"]


@pytest.mark.parametrize("name", CODES)
def test_python_code_is_the_flow(name):
    problem = PROBLEMS[name]
    equations, overlaps = equations_of(name), moved(problem)
    change, gradient, _ = compiled(problem, overlaps)
    module = {}
    exec(as_python(equations), module)
    y = equations.values_of(overlaps)
    assert module["STATE"] == tuple(map(str, equations.state))
    assert_same_flow(module["rhs"](0.0, y), equations.values_of(change))
    pair = module["rhs"](0.0, np.stack([y, 1.1 * y], axis=1))
    assert_same_flow(pair[:, 0], module["rhs"](0.0, y))
    np.testing.assert_allclose(module["quantities"](y)["loss"], gradient.loss, rtol=1e-12)
    other = problem.replace(scale=0.9 * problem.adapter.rank)
    moved_on = module["rhs"](0.0, y, module["PARAMETERS"] | {"kappa": 0.9})
    assert_same_flow(moved_on, equations.values_of(compiled(other, overlaps)[0]))


def test_python_code_integrates():
    problem = single("erf", theta=0.0, alignment=0.8)
    equations, start, module = closed_equations(problem), moved(problem), {}
    exec(as_python(equations), module)
    times = np.linspace(0, 3, 4)
    found = solve_ivp(module["rhs"], (0, 3), equations.values_of(start), t_eval=times, rtol=1e-10, atol=1e-12)
    known = solve(problem, start, t1=3.0, times=times)
    np.testing.assert_allclose(module["quantities"](found.y)["loss"], known.loss, rtol=1e-6)


def test_rates_of_several_units_are_those_of_the_linearised_flow():
    """The eigenvalues of the flow's Jacobian at U = 0 and no overlap, R = 1."""
    problem = units("erf(x/sqrt(2))", rank=1)
    module, start = {}, pretrained(problem)
    exec(as_python(closed_equations(problem)), module)
    sizes = start.up.size, start.cross.size

    def moving(x):
        state = Overlaps(
            x[: sizes[0]].reshape(start.up.shape), x[sizes[0] :].reshape(start.cross.shape), start.down_gram
        )
        change = flow(problem, state)
        return jnp.concatenate([change.up.ravel(), change.cross.ravel()])

    known = np.linalg.eigvals(jax.jit(jax.jacfwd(moving))(jnp.zeros(sum(sizes))))
    rates = module["search_phase"]()["rates"]
    assert len(rates) == 4
    for rate in rates:
        assert np.abs(known - rate).min() < 1e-10


@pytest.mark.parametrize("name", CODES)
def test_sympy_code_builds_the_equations_again(name):
    equations, built = equations_of(name), {}
    exec(as_sympy(equations), built)
    assert built["parameters"] == equations.parameters
    for group in ("definitions", "flow") + (("search",) if equations.search else ()):
        assert list(built[group]) == list(getattr(equations, group))
        for symbol, value in getattr(equations, group).items():
            assert sympy.expand(built[group][symbol] - value) == 0, symbol
    assert equations.pencil is None or sympy.expand(built["pencil"] - equations.pencil).is_zero_matrix


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", ["He3", "erf", "erf, K = P = 2", "He2, K = 2, P = 3", "rows at rest, weight decay"])
def test_latex_compiles_and_fits_the_page(name, tmp_path):
    for finite_steps in (False, True):
        (tmp_path / "equations.tex").write_text(as_latex(equations_of(name, finite_steps=finite_steps)))
        words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "equations.tex"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize("name", PROBLEMS)
def test_latex_is_balanced(name):
    """Braces, brackets of either kind, and alignment marks: what a TeX engine would stumble over."""
    text = as_latex(equations_of(name))
    assert text.count("{") == text.count("}") and text.count(r"\left") == text.count(r"\right")
    assert text.count(r"\bigl") + text.count(r"\Bigl") == text.count(r"\bigr") + text.count(r"\Bigr")
    for block in re.findall(r"\\begin{align}\n(.*?)\n\\end{align}", text, re.DOTALL):
        assert all(line.count("&") == 1 for line in block.split("\\\\\n"))
        assert all(width(line) < 140 for line in block.split("\n"))


@pytest.mark.parametrize(
    "problem, message",
    [
        (single("tanh"), "`student` must be a polynomial, erf of x or of a scaled x, or a sum of these, but is 'tanh'"),
        (single("erf", teacher="relu"), "`teacher` must be a polynomial"),
        (single("erf^2"), "`student` must be a polynomial"),
        (single("He9"), "`student` must have a degree of at most 8 where K + P = 2"),
        (units("He4", teachers=3), "`student` must have a degree of at most 3"),
        (single("erf", rank=8), "`rank` must be smaller"),
        (units("erf", students=3, teachers=3), "K = 3 students and P = 3 teachers are too long"),
    ],
)
def test_what_cannot_be_read_is_refused(problem, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        closed_equations(problem)


def test_too_many_terms_are_refused(monkeypatch):
    monkeypatch.setattr("theory.symbolic.MOST_TERMS", 20)
    with pytest.raises(ArgumentError, match="more than 20 terms"):
        closed_equations(single("He3"))
    assert 1000 < MOST_TERMS


@pytest.mark.parametrize("value", [0.5, -0.75, 2**0.5, -(3**-0.5), 1e-9, 0.1234567891, 7.0, 1 / 3])
def test_numbers_are_exact_to_rounding(value):
    assert float(exact(value)) == pytest.approx(value, rel=1e-15)
    assert exact(value).is_algebraic


def test_the_theory_does_not_import_sympy():
    words = [sys.executable, "-c", "import sys, theory, validation.cli.main; print('sympy' in sys.modules)"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == "False"
