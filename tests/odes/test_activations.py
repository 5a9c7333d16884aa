"""Link functions by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import Activation, activation
from odes.activations import MAX_DEGREE
from odes.arguments import ArgumentError
from tests.reference import FUNCTIONS

X = np.linspace(-3, 3, 41) + 0.01


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_derivative_match_numpy(name):
    f = activation(name)
    value, slope = FUNCTIONS[name]
    np.testing.assert_allclose(f(jnp.asarray(X)), value(X), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(f.derivative(jnp.asarray(X)), slope(X), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("k", [0, 1, 7, MAX_DEGREE])
def test_hermite_polynomials_match_numpy(k):
    expected = np.polynomial.hermite_e.hermeval(X, np.eye(k + 1)[k])
    np.testing.assert_allclose(
        activation(f"He{k}")(jnp.asarray(X)), expected, rtol=1e-12, atol=1e-12 * abs(expected).max()
    )


@pytest.mark.parametrize(
    "text, same",
    [
        ("2*(erf - 0.5*relu)^2", lambda x: 2 * (FUNCTIONS["erf"][0](x) - 0.5 * np.maximum(x, 0)) ** 2),
        ("-He1 + 1e-1*He2", lambda x: -x + 0.1 * (x**2 - 1)),
        ("He2^2", lambda x: (x**2 - 1) ** 2),
        ("3*He0", lambda x: 3 + 0 * x),
        ("erf(x/sqrt(2))", lambda x: FUNCTIONS["erf"][0](x / np.sqrt(2))),
        ("-2*tanh(-2*x/4)", lambda x: 2 * np.tanh(x / 2)),
        ("He3(sqrt(3)*x)", lambda x: 3 * np.sqrt(3) * x**3 - 3 * np.sqrt(3) * x),
        ("He2(x/2)+0.5*erf(x)", lambda x: x**2 / 4 - 1 + FUNCTIONS["erf"][0](x) / 2),
        ("(He2+relu)(3*x)^2", lambda x: (9 * x**2 - 1 + np.maximum(3 * x, 0)) ** 2),
    ],
)
def test_expressions(text, same):
    np.testing.assert_allclose(activation(text)(jnp.asarray(X)), same(X), rtol=1e-13, atol=1e-13)


def test_polynomials_stay_polynomials_and_kinks_are_kept():
    assert activation("He2^2 + He1").hermite == (2.0, 1.0, 4.0, 0.0, 1.0)
    assert activation("erf + 0.1*relu").kinked and activation("relu^2").kinked
    assert not activation("erf^2").kinked


def test_equal_names_give_equal_activations_so_compiled_functions_are_reused():
    compilations = []

    @jax.jit
    def apply(f, x):
        compilations.append(1)
        return f(x)

    for name in ("erf^2", "He2+0.5*He4", "0.5*erf+tanh"):
        before = len(compilations)
        apply(activation(name), jnp.ones(2))
        apply(activation(name), jnp.zeros(2))
        assert len(compilations) == before + 1


@pytest.mark.parametrize(
    "text, hint",
    [
        ("elu2", "relu"),
        ("sigmod", "sigmoid"),
        ("He21", "He20"),
        ("2erf", r"needs '\*'"),
        ("erf+", "missing at the end"),
        ("(erf", r"'\)' is missing"),
        ("erf relu", "left over"),
        ("erf^3", "cannot read"),
        ("", "missing at the end"),
        ("erf(2)", "x times or over numbers"),
        ("erf(x*x)", "x times or over numbers"),
        ("erf(1/x)", "x times or over numbers"),
        ("erf(x", "x times or over numbers"),
        ("erf(0*x)", "finite and not 0"),
        ("erf(x/sqrt 2)", "number in brackets"),
    ],
)
def test_bad_names_are_refused_with_a_reason(text, hint):
    with pytest.raises(ValueError, match=f"Argument `activation`.*{hint}"):
        activation(text)


def test_own_function_is_passed_through():
    softplus = Activation.from_function(jax.nn.softplus)
    assert activation(softplus) is softplus


@pytest.mark.parametrize(
    "function, kinks, reason",
    [
        (jnp.sum, (), "elementwise"),
        (lambda x: x > 0, (), "floating point"),
        (lambda x: jnp.asarray(x, complex), (), "floating point"),
        (jnp.log, (), "finite for every x"),
        (lambda x: {}[0], (), "but fails: KeyError"),
        (jax.nn.elu, (), "its second derivative jumps"),
        (lambda x: jax.nn.relu(x) ** 2, (), "its second derivative jumps"),
        (lambda x: jnp.tanh(x) + 0 * jax.lax.stop_gradient(x) + jax.lax.stop_gradient(x), (), "another derivative"),
        (jax.nn.softmax, (), "elementwise"),
        (np.tanh, (), "of JAX arrays"),
        (jnp.sign, (0,), "it jumps"),
        (jnp.sign, (), "it jumps"),
        (lambda x: jnp.where(x > 1, 1.0, 0.0), (1,), "it jumps"),
        (lambda x: jnp.where(x > 1, 1.0, 0.0), (), "between the nodes"),
        (lambda x: jnp.sin(10 * x), (), "too fast.*off by"),
        (jax.nn.relu, (), "its derivative jumps.*off by"),
        (lambda x: jax.nn.relu(x - 1), (), r"kinks=\(x1"),
        (jax.nn.hard_tanh, (), r"kinks=\(x1"),
        (jax.nn.relu, (float("nan"),), "finite numbers"),
    ],
)
def test_own_functions_that_cannot_be_averaged_are_refused(function, kinks, reason):
    with pytest.raises(ArgumentError, match=reason):
        Activation.from_function(function, kinks=kinks)


def test_averages_are_tested_up_to_the_largest_variance():
    Activation.from_function(lambda x: jnp.cos(2 * x))
    with pytest.raises(ArgumentError, match="too fast"):
        Activation.from_function(lambda x: jnp.cos(2 * x), largest=50.0)


def test_known_is_what_the_name_alone_says():
    assert activation("He2+0.5*erf").known
    assert not Activation.from_function(lambda x: x**3, name="erf").known


def test_scaled_activations_are_those_of_their_names():
    for name, scale, whole in (
        ("erf", 0.5, "erf(x/2)"),
        ("He4", 3.0, "He4(3*x)"),
        ("tanh+relu", -2.0, "(tanh+relu)(-2*x)"),
    ):
        scaled = activation(name).scaled(scale)
        assert scaled.function == activation(whole).function == activation(scaled.name).function and scaled.known
        assert scaled.kinks == activation(whole).kinks
    assert activation("erf").scaled(2.0).scaled(0.5) == activation("erf")
    assert Activation.from_function(jax.nn.hard_tanh, kinks=(-1, 1)).scaled(-4.0).kinks == (-0.25, 0.25)
