"""Link functions by name: `activation("erf")`, `activation("He2+0.5*He4")`, `activation("erf^2")`."""

import dataclasses
import re
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import hermite_e

from odes.arguments import ArgumentError, nearest

MAX_DEGREE = 20
"""The largest k for which the Hermite polynomial He_k has a name."""


@dataclasses.dataclass(frozen=True)
class HermiteSeries:
    """f(x) = sum_k a_k He_k(x), with probabilists' Hermite polynomials, by Clenshaw's recurrence."""

    coefficients: tuple[float, ...]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        last, before_last = jnp.zeros_like(x), jnp.zeros_like(x)
        for k in reversed(range(len(self.coefficients))):
            last, before_last = self.coefficients[k] + x * last - (k + 1) * before_last, last
        return last


@dataclasses.dataclass(frozen=True)
class LinearCombination:
    """f(x) = sum_i c_i f_i(x)."""

    terms: tuple[tuple[float, Callable], ...]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return sum((c * f(x) for c, f in self.terms), jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class Square:
    """f(x) = g(x)^2."""

    base: Callable

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.base(x) ** 2


class Activation(eqx.Module):
    """A link function f: R -> R, applied elementwise.

    Two activations made from the same name are equal, so compiled functions are reused. Get one with
    [`activation`][] by name, or [`Activation.from_function`][] from a JAX function of your own.

    **Attributes:**

    - `name`: what the user called it.
    - `function`: the elementwise JAX function; its derivative is taken by JAX.
    - `kinked`: whether f or one of its derivatives jumps at x = 0 (as relu does). Kinks elsewhere are not
        resolved by the Gaussian averages.
    - `growth`: the power of |x| with which f grows at infinity at most; Gaussian averages reach as far as it needs.
    - `hermite`: (a_0, ..., a_n) with f = sum_k a_k He_k if f is a polynomial, else None.
    """

    name: str = eqx.field(static=True)
    function: Callable = eqx.field(static=True)
    kinked: bool = eqx.field(static=True, default=False)
    growth: int = eqx.field(static=True, default=1)
    hermite: tuple[float, ...] | None = eqx.field(static=True, default=None)

    @classmethod
    def from_function(
        cls, function: Callable, *, name: str | None = None, kinked: bool = False, growth: int = 1
    ) -> "Activation":
        """Makes an activation of your own elementwise JAX function.

        >>> gelu = Activation.from_function(jax.nn.gelu)
        >>> gelu.name
        'gelu'

        **Raises** ArgumentError if the function is not elementwise.
        """
        probe = jax.eval_shape(function, jax.ShapeDtypeStruct((3,), jnp.zeros(()).dtype))
        if getattr(probe, "shape", None) != (3,):
            raise ArgumentError("function", "must be elementwise: it must map shape (3,) to shape (3,)")
        return cls(name or getattr(function, "__name__", "custom"), function, kinked, growth)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """f(x), elementwise."""
        return self.function(x)

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """f'(x), elementwise."""
        return jax.jvp(self.function, (x,), (jnp.ones_like(x),))[1]

    def squared(self) -> "Activation":
        """The activation x -> f(x)^2, a polynomial where f is one.

        >>> activation("He1").squared().hermite
        (1.0, 0.0, 1.0)
        """
        name = f"{self.name}^2" if self.name in ATOMS else f"({self.name})^2"
        if self.hermite is not None:
            return _polynomial(name, hermite_e.hermemul(self.hermite, self.hermite))
        return Activation(name, Square(self.function), self.kinked, 2 * self.growth)


def _relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.relu(x)


def _polynomial(name: str, coefficients) -> Activation:
    series = tuple(float(a) for a in coefficients)
    return Activation(name, HermiteSeries(series), growth=len(series) - 1, hermite=series)


ATOMS: dict[str, Activation] = {
    "linear": _polynomial("linear", (0, 1)),
    "relu": Activation("relu", _relu, kinked=True),
    "erf": Activation("erf", jax.scipy.special.erf),
    "sigmoid": Activation("sigmoid", jax.nn.sigmoid),
    "tanh": Activation("tanh", jnp.tanh),
} | {f"He{k}": _polynomial(f"He{k}", np.eye(k + 1)[k]) for k in range(MAX_DEGREE + 1)}
"""The link functions that have a name of their own."""

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|(?P<name>[A-Za-z]\w*)|(?P<sign>\^2|[-+*()]))")


class _Parser:
    """sum := [-] term ((+|-) term)*;  term := [number *] factor;  factor := (name | "(" sum ")") ["^2"].

    By hand, since it says what is missing where Python's own parser (`ast`) says "invalid syntax".
    """

    def __init__(self, text: str):
        self.text = text
        self.tokens: list[str] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"cannot read {text[position:].strip()!r}")
            self.tokens.append(match.group().strip())
            position = match.end()

    def error(self, why: str) -> ArgumentError:
        return ArgumentError(
            "activation",
            f"must be a name ({', '.join(list(ATOMS)[:5])}, He0 ... He{MAX_DEGREE}), a sum such as "
            f"'He2+0.5*He4', or the square of one such as 'erf^2', but is {self.text!r}: {why}",
        )

    def take(self, *allowed: str) -> str | None:
        return self.tokens.pop(0) if self.tokens and self.tokens[0] in allowed else None

    def parse(self) -> Activation:
        result = self.sum()
        if self.tokens:
            raise self.error(f"{self.tokens[0]!r} is left over")
        return dataclasses.replace(result, name=self.text.strip())

    def sum(self) -> Activation:
        terms = [self.term(-1.0 if self.take("-") else 1.0)]
        while sign := self.take("+", "-"):
            terms.append(self.term(-1.0 if sign == "-" else 1.0))
        return _combination(terms)

    def term(self, sign: float) -> tuple[float, Activation]:
        if self.tokens and (self.tokens[0][0].isdigit() or self.tokens[0][0] == "."):
            coefficient = float(self.tokens.pop(0))
            if not self.take("*"):
                raise self.error("a coefficient needs '*' after it (a constant c is c*He0)")
            if not np.isfinite(coefficient):
                raise self.error("a coefficient must be finite")
            sign *= coefficient
        return sign, self.factor()

    def factor(self) -> Activation:
        if self.take("("):
            inside = self.sum()
            if not self.take(")"):
                raise self.error("a ')' is missing")
        elif not self.tokens:
            raise self.error("a name is missing at the end")
        else:
            name = self.tokens.pop(0)
            if name not in ATOMS:
                raise self.error(f"there is no {name!r}{nearest(name, ATOMS)}")
            inside = ATOMS[name]
        if self.take("^2"):
            inside = inside.squared()
        if inside.growth > 2 * MAX_DEGREE:
            raise self.error(f"it grows faster than the square of He{MAX_DEGREE}")
        return inside


def both_are(f: Activation, h: Activation, name: str) -> bool:
    """Whether f and h are both the link function called `name`, whatever the user called them."""
    return f.function == h.function == ATOMS[name].function


def _combination(terms: list[tuple[float, Activation]]) -> Activation:
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    name = "+".join(f"{c:g}*{f.name}" for c, f in terms)
    if all(f.hermite is not None for _, f in terms):
        total = np.zeros(1)
        for c, f in terms:
            total = hermite_e.hermeadd(total, c * np.asarray(f.hermite))
        return _polynomial(name, total)
    combination = LinearCombination(tuple((c, f.function) for c, f in terms))
    return Activation(name, combination, any(f.kinked for _, f in terms), max(f.growth for _, f in terms))


def activation(name: str | Activation) -> Activation:
    """The link function called `name`; an [`Activation`][] is passed through.

    Names: linear, relu, erf (of x itself), sigmoid, tanh, He0 ... He20 (probabilists' Hermite
    polynomials, not normalised); sums of them with coefficients; `^2` of any of them.

    >>> activation("He2+0.5*He4").hermite
    (0.0, 0.0, 1.0, 0.0, 0.5)
    >>> activation("erf^2")(jnp.zeros(2)).tolist()
    [0.0, 0.0]

    **Raises** ArgumentError for an unknown name, with the nearest known ones.
    """
    return name if isinstance(name, Activation) else _Parser(name).parse()
