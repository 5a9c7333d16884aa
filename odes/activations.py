"""Link functions by name: `activation("erf")`, `activation("erf(x/sqrt(2))")`, `activation("He2+0.5*He4")`, `activation("erf^2")`."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import hermite_e

from odes.arguments import ArgumentError, finite, nearest, positive, require, require_integer, require_kind, scalar
from odes.quadrature import gaussian_average, line_rule, plane_rule
from odes.shown import Shown

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


@dataclasses.dataclass(frozen=True)
class Scaled:
    """f(x) = g(s x) of an [`Activation`][] g, equal for equal functions whatever they are called."""

    base: "Activation" = dataclasses.field(compare=False)
    scale: float
    function: Callable = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "function", self.base.function)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.base(self.scale * x)


class Activation(Shown):
    """A link function f: R -> R, applied elementwise.

    Two activations made from the same name are equal, so compiled functions are reused. Get one with
    [`activation`][] by name, or [`Activation.from_function`][] from a JAX function of your own.

    **Attributes:**

    - `name`: what the user called it.
    - `function`: the elementwise JAX function; its derivative is taken by JAX.
    - `kinks`: the places where a derivative of f jumps, as that of relu does at 0.
    - `growth`: the power of |x| with which f grows at infinity at most; Gaussian averages reach as far as it needs.
    - `hermite`: (a_0, ..., a_n) with f = sum_k a_k He_k if f is a polynomial, else None.
    """

    name: str = eqx.field(static=True)
    function: Callable = eqx.field(static=True)
    kinks: tuple[float, ...] = eqx.field(static=True, default=())
    growth: int = eqx.field(static=True, default=1)
    hermite: tuple[float, ...] | None = eqx.field(static=True, default=None)

    @classmethod
    def from_function(
        cls,
        function: Callable,
        *,
        name: str | None = None,
        kinks: Sequence[float | int] = (),
        growth: int = 1,
        largest: float = 4.0,
    ) -> "Activation":
        """Makes an activation of your own elementwise JAX function.

        - `kinks`: all places where its first or second derivative jumps; nodes are graded towards them, so that a place where it
            changes fast may be one too;
        - `growth`: the power of |x| with which it grows at infinity at most;
        - `largest`: its averages are tested at variances up to this one.

        >>> gelu = Activation.from_function(jax.nn.gelu)
        >>> gelu.name
        'gelu'
        >>> clipped = Activation.from_function(lambda x: jnp.clip(x, -1, 1), name="hard tanh", kinks=(-1, 1))

        **Raises** ArgumentError if the function is not elementwise, and where its Gaussian averages are off by more than 1e-6
        (a thousand roundings in single precision): if it jumps, has a kink that is not among the `kinks`, or changes on too
        short a scale ([`averaging_errors`][]).
        """
        require_kind("function", function, Callable, "a function")
        called = getattr(function, "__name__", "custom") if name is None else name
        require_kind("name", called, str, "a text")
        require_integer("growth", growth, "a whole number of at least 0")
        require("growth", growth, "a whole number of at least 0", lambda x: x >= 0)
        places = tuple(sorted(float(scalar("kinks", kink, "finite numbers", finite)) for kink in _several(kinks)))
        largest = float(scalar("largest", largest, "positive and finite", positive))
        _require_elementwise(function)
        made = cls(called, function, places, int(growth))
        most = max(_LARGEST_ERROR, 1e3 * float(jnp.finfo(jnp.result_type(float)).eps))
        for why, error in averaging_errors(made, [*_TRIED, largest]).items():
            if not error <= most:
                raise ArgumentError("function", f"cannot be averaged accurately: {why}; off by {error:.1e}")
        return made

    @property
    def kinked(self) -> bool:
        """Whether f has kinks, so that averages are not differentiated by Price's theorem."""
        return bool(self.kinks)

    @property
    def known(self) -> bool:
        """Whether the name alone says what f is, as [`activation`][] reads it, and how it is averaged."""
        try:
            return bool(activation(self.name) == self)
        except ArgumentError:
            return False

    def __reduce__(self) -> tuple[Any, ...]:
        """A link function with a name is pickled as its name; one of your own by its function, which must be importable."""
        if self.known:
            return activation, (self.name,)
        return Activation, (self.name, self.function, self.kinks, self.growth, self.hermite)

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """f(x), elementwise."""
        return self.function(x)

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """f'(x), elementwise."""
        return jax.jvp(self.function, (x,), (jnp.ones_like(x),))[1]

    def scaled(self, scale: float) -> "Activation":
        r"""The activation x -> f(s x) with s = `scale`, a polynomial where f is one:

        $$\mathrm{He}_n(sx) = \sum_k \frac{n!\,(s^2 - 1)^k s^{n-2k}}{2^k\,k!\,(n - 2k)!}\,\mathrm{He}_{n-2k}(x).$$

        >>> activation("erf").scaled(0.5).name
        'erf(0.5*x)'

        **Raises** ArgumentError for a scale that is 0, infinite or no number.
        """
        scale = float(scalar("scale", scale, "finite and not 0", lambda s: finite(s) & (s != 0)))
        if isinstance(self.function, Scaled):
            return self.function.base.scaled(self.function.scale * scale)
        if scale == 1:
            return self
        name = f"{self.name if self.name in ATOMS else f'({self.name})'}({scale!r}*x)"
        if self.hermite is None:
            return Activation(
                name, Scaled(self, scale), tuple(sorted(kink / scale + 0.0 for kink in self.kinks)), self.growth
            )
        total = np.zeros(len(self.hermite))
        for n, a in enumerate(self.hermite):
            for k in range(n // 2 + 1):
                ways = math.factorial(n) / (2**k * math.factorial(k) * math.factorial(n - 2 * k))
                total[n - 2 * k] += a * ways * (scale**2 - 1) ** k * scale ** (n - 2 * k)
        return _polynomial(name, total)

    def squared(self) -> "Activation":
        """The activation x -> f(x)^2, a polynomial where f is one.

        >>> activation("He1").squared().hermite
        (1.0, 0.0, 1.0)
        """
        name = f"{self.name}^2" if self.name in ATOMS else f"({self.name})^2"
        if self.hermite is not None:
            return _polynomial(name, hermite_e.hermemul(self.hermite, self.hermite))
        return Activation(name, Square(self.function), self.kinks, 2 * self.growth)


_LARGEST_ERROR = 1e-6
"""Of the averages of a user's function, relative to their root mean squares."""

_TRIED = (0.1, 1.0)
"""The variances at which its averages are tried, besides the largest."""


def _several(values: Any) -> list[Any]:
    """The values of a sequence; anything else alone."""
    return list(values) if isinstance(values, list | tuple | np.ndarray) else [values]


def _require_elementwise(function: Callable) -> None:
    """Raises ArgumentError unless a JAX function maps every number by itself to a finite one."""
    x = jnp.linspace(-2.9, 3.1, 7)
    try:
        jax.eval_shape(function, jax.ShapeDtypeStruct(x.shape, x.dtype))
        whole, single = function(x), [function(x[i : i + 1]) for i in range(7)]
    except Exception as error:  # whatever the user's function raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ArgumentError("function", f"must be an elementwise function of JAX arrays, but fails: {reason}") from None
    if not isinstance(whole, jax.Array) or not jnp.issubdtype(whole.dtype, jnp.floating):
        raise ArgumentError("function", "must return real numbers in floating point")
    if whole.shape != x.shape or not jnp.allclose(whole, jnp.concatenate(single), equal_nan=True):
        raise ArgumentError(
            "function", "must be elementwise: the value at x must depend on x alone, and on nothing else"
        )
    if not jnp.all(jnp.isfinite(whole)):
        raise ArgumentError("function", "must be finite for every x, negative ones too")


def averaging_errors(f: Activation, variances: Sequence[float]) -> dict[str, float]:
    r"""By how much Gaussian averages of f and its derivative are off, at the worst of some variances, by what is the matter.

    Averages of $f^2$, $f'^2$ and of $f(x)f(y)$, $f'(x)f'(y)$ at correlation ½ are compared with those by a rule of twice the nodes.
    Stein's lemma, $E[xf] = pE[f']$, fails where f jumps, that for f' or f'' where these do: they may at declared kinks alone, since
    averages are differentiated by Price's theorem elsewhere. All errors are relative to mean squares, or to their roots.
    """

    def second(x: Array) -> Array:
        return jax.jvp(f.derivative, (x,), (jnp.ones_like(x),))[1]

    def along(x: Array) -> Array:
        image, slope = f(x), f.derivative(x)
        bend, twist = jax.jvp(second, (x,), (jnp.ones_like(x),))
        return jnp.stack([image**2, slope**2, bend**2, x * image, slope, x * slope, bend, x * bend, twist])

    def across(x: Array, y: Array) -> Array:
        return jnp.stack([f(x) * f(y), f.derivative(x) * f.derivative(y)])

    @jax.jit
    @jax.vmap
    def errors(p: Array) -> Array:
        degree = 2 * f.growth
        lines = [gaussian_average(along, p, rule=line_rule(degree, f.kinks, n), smooth=False) for n in (1, 2)]
        rules = [plane_rule(degree, f.kinks, f.kinks, n) for n in (1, 2)]
        pairs = [gaussian_average(across, p, p, p / 2, rule=rule, smooth=False) for rule in rules]
        (usual, finer), squares = lines, jnp.where(lines[1][:3] > 0, lines[1][:3], 1)
        unresolved = jnp.abs(jnp.stack([usual[:2] - finer[:2], pairs[0] - pairs[1]])) / squares[None, :2]
        stein = jnp.abs(usual[3::2] - p * usual[4::2]) / jnp.sqrt(p * squares)
        return jnp.stack([unresolved.max(), stein[0], 0 if f.kinks else stein[1], 0 if f.kinks else stein[2]])

    unresolved, jump, kink, bend = np.asarray(errors(jnp.asarray(variances, float))).max(axis=0)
    return {
        "it changes too fast, or has a kink or a jump between the nodes (kinks=(x1, x2, ...) puts nodes there)": unresolved.item(),
        "it jumps, or has another derivative than SGD would follow": jump.item(),
        "its derivative jumps (declare kinks=(x1, x2, ...))": kink.item(),
        "its second derivative jumps (declare kinks=(x1, x2, ...))": bend.item(),
    }


def _relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.relu(x)


def _polynomial(name: str, coefficients) -> Activation:
    series = tuple(float(a) for a in coefficients)
    return Activation(name, HermiteSeries(series), growth=len(series) - 1, hermite=series)


ATOMS: dict[str, Activation] = {
    "linear": _polynomial("linear", (0, 1)),
    "relu": Activation("relu", _relu, kinks=(0.0,)),
    "erf": Activation("erf", jax.scipy.special.erf),
    "sigmoid": Activation("sigmoid", jax.nn.sigmoid),
    "tanh": Activation("tanh", jnp.tanh),
} | {f"He{k}": _polynomial(f"He{k}", np.eye(k + 1)[k]) for k in range(MAX_DEGREE + 1)}
"""The link functions that have a name of their own."""

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|(?P<name>[A-Za-z]\w*)|(?P<sign>\^2|[-+*/()]))")


class _Parser:
    """sum := [-] term ((+|-) term)*;  term := [number *] factor;  factor := (name | "(" sum ")") ["(" scaled ")"] ["^2"];
    scaled := [-] part ((*|/) part)*, one part of which is x, the others number or "sqrt(" number ")".

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
        if self.take("("):
            inside = inside.scaled(self.scale())
        if self.take("^2"):
            inside = inside.squared()
        if inside.growth > 2 * MAX_DEGREE:
            raise self.error(f"it grows faster than the square of He{MAX_DEGREE}")
        return inside

    def scale(self) -> float:
        """The s of "s*x)", where the bracket has been opened."""
        scale, operation, seen = -1.0 if self.take("-") else 1.0, "*", 0
        while True:
            if self.take("x"):
                seen += 1 if operation == "*" else 2
            else:
                part = self.root() if self.take("sqrt") else self.number()
                scale = scale * part if operation == "*" else scale / part
            operation = self.take("*", "/")
            if operation is None:
                break
        if not self.take(")") or seen != 1:
            raise self.error(
                "the argument of a link function is x times or over numbers, as in 'erf(x/sqrt(2))' or 'tanh(2*x)'"
            )
        return scale

    def number(self) -> float:
        if not self.tokens or not (self.tokens[0][0].isdigit() or self.tokens[0][0] == "."):
            raise self.error(
                "the argument of a link function is x times or over numbers, as in 'erf(x/sqrt(2))' or 'tanh(2*x)'"
            )
        value = float(self.tokens.pop(0))
        if not 0 < value < np.inf:
            raise self.error("a scale must be finite and not 0")
        return value

    def root(self) -> float:
        if not self.take("("):
            raise self.error("'sqrt' needs a number in brackets")
        value = math.sqrt(self.number())
        if not self.take(")"):
            raise self.error("a ')' is missing")
        return value


def unscaled(f: Activation) -> tuple[float, Activation]:
    """s and g with f(x) = g(s x), so that what is known of g is known of f; 1 and f unless f was made by scaling."""
    return (f.function.scale, f.function.base) if isinstance(f.function, Scaled) else (1.0, f)


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
    kinks = sorted({kink for _, f in terms for kink in f.kinks})
    return Activation(name, combination, tuple(kinks), max(f.growth for _, f in terms))


def activation(name: str | Activation) -> Activation:
    """The link function called `name`; an [`Activation`][] is passed through.

    Names: linear, relu, erf (of x itself), sigmoid, tanh, He0 ... He20 (probabilists' Hermite
    polynomials, not normalised); any of them of a scaled argument; sums of them with coefficients; `^2` of any of them.

    >>> activation("He2+0.5*He4").hermite
    (0.0, 0.0, 1.0, 0.0, 0.5)
    >>> activation("erf^2")(jnp.zeros(2)).tolist()
    [0.0, 0.0]

    **Raises** ArgumentError for an unknown name, with the nearest known ones.
    """
    if isinstance(name, Activation):
        return name
    words = "the name of a link function, or what Activation.from_function makes of your own"
    require_kind("activation", name, str, words)
    return _Parser(name).parse()
