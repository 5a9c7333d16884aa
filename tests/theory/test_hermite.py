"""Hermite coefficients against SciPy, information exponents."""

import numpy as np
import pytest

from tests.reference import FUNCTIONS, hermite_coefficient
from theory import hermite_coefficients, information_exponent


@pytest.mark.parametrize("name", ["relu", "erf", "sigmoid", "tanh^2", "He5"])
@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_hermite_coefficients_match_scipy(name, variance):
    ours = hermite_coefficients(name, 8, variance=variance)
    expected = [hermite_coefficient(FUNCTIONS[name][0], k, variance) for k in range(9)]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name, exponent", [("erf", 1), ("He7", 7), ("He2+0.5*He4", 2), ("relu^2", 1), ("He3^2", 2), ("He0", None)]
)
def test_information_exponent(name, exponent):
    assert information_exponent(name) == exponent
