r"""Gaussian averages in symbols: of polynomials, erf of scaled variables and sums of both, for any numbers of variables.

Two rules give them all. Factors $e^{-\sum_iw_ix_i^2}$ tilt a Gaussian x of covariance S: with $\Lambda_w = \det(1 + 2wS)$

$$E\big[e^{-\sum_iw_ix_i^2}g(x)\big] = \Lambda_w^{-1/2}E_w[g(x)],\qquad S^w = (S^{-1} + 2w)^{-1} = \Lambda^w/\Lambda_w,$$

where $\Lambda^w$ is a polynomial in S as well. Stein's lemma $E_w[x_ag(x)] = \sum_bS^w_{ab}E_w[\partial_bg]$ takes one power off, and
makes a Gaussian factor of weight $s^2$ of the derivative of $\mathrm{erf}(sx)$, until there is nothing left, or two erf:

$$E_w[\mathrm{erf}(sx_i)\,\mathrm{erf}(tx_j)] = \frac2\pi\arcsin\frac{2st\Lambda^w_{ij}}{\sqrt{\Lambda_{w+s^2_i}\Lambda_{w+t^2_j}}}.$$

For polynomials this is Isserlis' theorem, for erf the averages I2, I3 and I4 of Saad & Solla 1995, of equal variables too.
Importing this module imports SymPy.
"""

import functools
import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import sympy
from numpy.polynomial import hermite_e

from odes.activations import ATOMS, Activation, HermiteSeries, LinearCombination, Scaled
from odes.arguments import ArgumentError

Expr = Any
"""An expression of SymPy, which has no types of its own."""

Function = dict[tuple[int, Expr, Expr], Expr]
"""A function $\\sum cx^n\\,\\mathrm{erf}(sx)\\,e^{-wx^2}$: the coefficients c of (n, s, w); s = 0 stands for no erf."""

_LARGEST_DENOMINATOR = 1000
_ROUNDINGS = 16


def exact(number: Any) -> Expr:
    """The fraction, or root of one, with a denominator up to 1000 that a number is to rounding; the number's decimals otherwise.

    >>> exact(0.5), exact(2**-0.5), exact(0.123456789)
    (1/2, sqrt(2)/2, 123456789/1000000000)
    """
    value = float(number)
    for power in (1, 2):
        near = sympy.Rational(Fraction(abs(value) ** power).limit_denominator(_LARGEST_DENOMINATOR))
        candidate = sympy.sign(value) * sympy.root(near, power)
        if abs(float(candidate) - value) <= _ROUNDINGS * np.finfo(float).eps * abs(value):
            return candidate
    return sympy.Rational(repr(value))


def function_of(link: Activation, name: str) -> Function:
    """A link function in symbols; `name` is what the argument is called.

    >>> from odes import activation
    >>> function_of(activation("He2+0.5*erf(2*x)"), "student")
    {(0, 0, 0): -1, (2, 0, 0): 1, (0, 2, 0): 1/2}

    **Raises** ArgumentError unless it is a polynomial, erf of a scaled argument, or a sum of such.
    """
    found = _function(link.function)
    if found is None:
        raise ArgumentError(
            name, f"must be a polynomial, erf of x or of a scaled x, or a sum of these, but is {link.name!r}"
        )
    return found


def _function(function: Callable) -> Function | None:
    """A link function in symbols, None if averages of it have no closed form."""
    if isinstance(function, HermiteSeries):
        powers = hermite_e.herme2poly(function.coefficients)
        return {(n, 0, 0): exact(c) for n, c in enumerate(powers) if c}
    if isinstance(function, LinearCombination):
        total: Function = {}
        for c, part in function.terms:
            if (terms := _function(part)) is None:
                return None
            for key, value in terms.items():
                total[key] = total.get(key, 0) + exact(c) * value
        return {key: value for key, value in total.items() if value != 0}
    if isinstance(function, Scaled):
        scale, terms = exact(function.scale), _function(function.function)
        return terms and {(n, scale * s, scale**2 * w): scale**n * c for (n, s, w), c in terms.items()}
    return {(0, 1, 0): sympy.Integer(1)} if function == ATOMS["erf"].function else None


def derivative(function: Function) -> Function:
    """The derivative of a function.

    >>> derivative({(3, 0, 0): 1, (1, 0, 0): -3})
    {(2, 0, 0): 3, (0, 0, 0): -3}
    """
    total: Function = {}
    for (n, s, w), c in function.items():
        slopes = {(n - 1, s, w): n * c, (n, 0, w + s**2): 2 * s / sympy.sqrt(sympy.pi) * c, (n + 1, s, w): -2 * w * c}
        for key, value in slopes.items():
            if value != 0:
                total[key] = total.get(key, 0) + value
    return total


Gaussians = tuple[tuple[int, Expr], ...]
"""Gaussian factors $e^{-wx_i^2}$: (i, w) of each, sorted."""


def _itself(_: Gaussians, __: tuple[int, ...], value: Expr) -> Expr:
    return value


class Averages:
    r"""Averages over jointly Gaussian variables.

    - `covariance` (n, n): S, whose entries are any expressions;
    - `name`: what is to stand for $\Lambda_w$, of which the Gaussian factors are given, and for $\Lambda^w_{ij}$, of which i and j are too;
        it is given the value as well, which stands for itself unless there is a `name`.
    """

    def __init__(self, covariance: Expr, name: Callable[[Gaussians, tuple[int, ...], Expr], Expr] = _itself):
        self.covariance, self.name = covariance, name
        self._mean = functools.cache(self._mean)
        self.determinant, self.numerator = functools.cache(self.determinant), functools.cache(self.numerator)

    def mean(self, *factors: tuple[int, Function]) -> Expr:
        """The average of a product of functions, each of the variable whose number it comes with, of which at most two have an erf.

        >>> p, q, c = sympy.symbols("p q c", positive=True)
        >>> averages = Averages(sympy.Matrix([[p, c], [c, q]]))
        >>> averages.mean((0, {(2, 0, 0): 1}), (1, {(2, 0, 0): 1}))
        2*c**2 + p*q
        >>> averages.mean((0, {(0, 1, 0): 1}), (1, {(0, 1, 0): 1}))
        2*asin(2*c/(sqrt(2*p + 1)*sqrt(2*q + 1)))/pi
        """
        gathered: dict[tuple, Expr] = {}
        for parts in itertools.product(*(function.items() for _, function in factors)):
            powers, erfs, weights, c = [0] * self.covariance.rows, [], [], sympy.Integer(1)
            for (i, _), ((n, s, w), value) in zip(factors, parts, strict=True):
                powers[i] += n
                c *= value
                erfs += [(i, s)] if s != 0 else []
                weights += [(i, w)] if w != 0 else []
            key = (tuple(powers), tuple(erfs), tuple(sorted(weights, key=str)))
            gathered[key] = gathered.get(key, 0) + c
        total: dict[Expr, list[Expr]] = {}
        for key, c in gathered.items():
            for tail, value in self._mean(*key).items():
                total.setdefault(tail, []).append(c * value)
        return sympy.Add(*(sympy.expand(sympy.Add(*values)) * tail for tail, values in total.items()))

    def _mean(self, powers: tuple[int, ...], erfs: Gaussians, gaussians: Gaussians) -> dict[Expr, Expr]:
        r"""The average of a product of powers, erf and Gaussian factors: polynomials, by the $\Lambda_w$ and arcsin that they come with."""
        if (sum(powers) + len(erfs)) % 2:
            return {}
        first = next((i for i, n in enumerate(powers) if n), None)
        if first is None:
            return {self._angle(erfs, gaussians) / sympy.sqrt(self.determinant(gaussians)): sympy.Integer(1)}
        rest, total = _without(powers, first), {}
        for b, n in enumerate(rest):
            slopes = [(n, self._mean(_without(rest, b), erfs, gaussians))] if n else []
            for e, (i, s) in enumerate(erfs):
                if i == b:
                    inner = self._mean(rest, erfs[:e] + erfs[e + 1 :], _with(gaussians, (i, s**2)))
                    slopes.append((2 * s / sympy.sqrt(sympy.pi), inner))
            for factor, slope in slopes:
                for tail, value in slope.items():
                    value = factor * self.numerator(first, b, gaussians) * value
                    total.setdefault(tail / self.determinant(gaussians), []).append(value)
        return {tail: sympy.expand(sympy.Add(*values)) for tail, values in total.items()}

    def _angle(self, erfs: Gaussians, gaussians: Gaussians) -> Expr:
        """The tilted average of no erf, which is 1, or of two."""
        if not erfs:
            return sympy.Integer(1)
        (i, s), (j, t) = erfs
        roots = [sympy.sqrt(self.determinant(_with(gaussians, (k, r**2)))) for k, r in erfs]
        return 2 / sympy.pi * sympy.asin(2 * s * t * self.numerator(i, j, gaussians) / (roots[0] * roots[1]))

    def determinant(self, gaussians: Gaussians) -> Expr:
        r"""$\Lambda_w$, or what stands for it."""
        value = sympy.expand(self._tilt(gaussians)[1].det(method="berkowitz"))
        return self.name(gaussians, (), value)

    def numerator(self, i: int, j: int, gaussians: Gaussians) -> Expr:
        r"""$\Lambda^w_{ij}$, or what stands for it: the determinant $\Lambda_w$ with a row and a column of S at its border."""
        S, (inside, tilt), (i, j) = self.covariance, self._tilt(gaussians), sorted((i, j))
        column = sympy.Matrix(len(inside), 1, [2 * w * S[k, j] for k, w in inside])
        row = sympy.Matrix(1, len(inside), [S[i, k] for k, _ in inside])
        bordered = sympy.Matrix.vstack(
            sympy.Matrix.hstack(tilt, column), sympy.Matrix.hstack(row, S[i : i + 1, j : j + 1])
        )
        return self.name(gaussians, (i, j), sympy.expand(bordered.det(method="berkowitz")))

    def _tilt(self, gaussians: Gaussians) -> tuple[list[tuple[int, Expr]], Expr]:
        """The variables that have Gaussian factors, with their weights, and the matrix 1 + 2wS of these."""
        weights: dict[int, Expr] = {}
        for i, w in gaussians:
            weights[i] = weights.get(i, 0) + w
        inside = list(weights.items())
        rows = [[2 * w * self.covariance[i, j] + int(i == j) for j, _ in inside] for i, w in inside]
        return inside, sympy.Matrix(len(inside), len(inside), [entry for row in rows for entry in row])


def _without(powers: tuple[int, ...], i: int) -> tuple[int, ...]:
    return (*powers[:i], powers[i] - 1, *powers[i + 1 :])


def _with(gaussians: Gaussians, factor: tuple[int, Expr]) -> Gaussians:
    return tuple(sorted((*gaussians, factor), key=str))
