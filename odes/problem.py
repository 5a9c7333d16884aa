r"""The learning problem: teacher, frozen pretrained weights, LoRA adapter, SGD; and families of problems. Checked when made."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes.activations import Activation
from odes.activations import activation as parse_activation
from odes.arguments import (
    ArgumentError,
    ArrayLike,
    concrete,
    finite,
    numbers,
    positive,
    real_array,
    require,
    require_integer,
    require_kind,
    require_known,
    require_shape,
    scalar,
    together,
    within_one,
)
from odes.diagonals import diagonal
from odes.shown import Shown
from odes.training import SGD, Adapter


class Problem(Shown):
    r"""A student $\sum_k a_k \sigma(w_k \cdot x)$ with $W = W_0 + \kappa UV$ learns $\sum_j b_j \phi(t_j \cdot x)$.

    The inputs are $x \sim \mathcal N(0, I_d)$. Every fixed direction is a row of the frame F (f x d), of which only the
    Gram matrix is needed:

    - `frame_gram` (f, f): $\Gamma = F F^T$, positive semi-definite;
    - `directions`: the names of the frame's rows, "direction 1" and so on unless given;
    - `frozen` (K, f): A in $W_0 = A F$; `target` (P, f): $\tilde B$ in $T = \tilde B F$;
    - `readout` (K,): a; `teacher_readout` (P,): b; ones unless given;
    - `student`, `teacher`: the link functions σ, φ; `adapter`; `sgd`.

    For one student and one teacher unit use [`Family`][], [`Problem.single_index`][] or [`Problem.mixture`][], whose
    frame has the directions "target" and "pretrained".

    **Raises** ArgumentError naming the argument whose shape or value is not allowed.
    """

    student: Activation
    teacher: Activation
    frame_gram: Float[Array, "f f"]
    directions: tuple[str, ...] = eqx.field(static=True)
    frozen: Float[Array, "K f"]
    target: Float[Array, "P f"]
    readout: Float[Array, " K"]
    teacher_readout: Float[Array, " P"]
    adapter: Adapter
    sgd: SGD

    def __init__(
        self,
        student: str | Activation,
        *,
        frame_gram: ArrayLike,
        frozen: ArrayLike,
        target: ArrayLike,
        directions: Sequence[str] | None = None,
        teacher: str | Activation | None = None,
        readout: ArrayLike | None = None,
        teacher_readout: ArrayLike | None = None,
        adapter: Adapter | None = None,
        sgd: SGD | None = None,
    ):
        self.student = parse_activation(student)
        self.teacher = self.student if teacher is None else parse_activation(teacher)
        self.frame_gram, self.frozen, self.target = real_array(frame_gram), real_array(frozen), real_array(target)
        units, frame = np.shape(self.frozen) if np.ndim(self.frozen) == 2 else (0, 0)
        teachers = np.shape(self.target)[0] if np.ndim(self.target) else 0
        require_shape("frozen", self.frozen, "(K, f)", (max(units, 1), max(frame, 1)))
        require_shape("target", self.target, "(P, f)", (max(teachers, 1), frame))
        require_shape("frame_gram", self.frame_gram, "(f, f)", (frame, frame))
        unnamed = (f"direction {number}" for number in range(1, frame + 1))
        self.directions = tuple(unnamed if directions is None else directions)
        require("directions", len(set(self.directions)), f"{frame} different names", lambda n: n == frame)
        self.readout = real_array(np.ones(units) if readout is None else readout)
        self.teacher_readout = real_array(np.ones(teachers) if teacher_readout is None else teacher_readout)
        require_shape("readout", self.readout, "(K,)", (units,))
        require_shape("teacher_readout", self.teacher_readout, "(P,)", (teachers,))
        for name in ("frame_gram", "frozen", "target", "readout", "teacher_readout"):
            require(name, getattr(self, name), "finite", np.isfinite)
        require(
            "frame_gram",
            self.frame_gram,
            "symmetric and positive semi-definite",
            lambda g: np.allclose(g, g.T) and np.linalg.eigvalsh(g).min() > -_rounding() * max(np.trace(g), 1),
        )
        self.adapter, self.sgd = _trained_by(adapter, sgd)

    @classmethod
    def single_index(
        cls, activation: str | Activation, *, strength: ScalarLike, alignment: ScalarLike = 1.0, **family: Any
    ) -> "Problem":
        r"""[`Family.at`][]: one student and one teacher unit, $w_0$ of length `strength` and cosine `alignment` with ω*.

        `family` is what a [`Family`][] takes: `teacher`, `adapter`, `sgd`.

        >>> Problem.single_index("erf", strength=0.5, alignment=0.6).frame_gram.tolist()
        [[1.0, 0.3], [0.3, 0.25]]
        """
        return Family(activation, **family).at(strength, alignment)

    @classmethod
    def mixture(cls, activation: str | Activation, *, mu: ScalarLike, **family: Any) -> "Problem":
        r"""[`Family.mixture`][]: one student and one teacher unit, $w_0 = \mu\,\omega^* + (1 - \mu)\,\xi$.

        >>> float(Problem.mixture("erf", mu=0.5).strength)
        0.7071067811865476
        """
        return Family(activation, **family).mixture(mu)

    @classmethod
    def full_weights(
        cls,
        activation: str | Activation,
        *,
        learns: Literal["target", "source"] = "target",
        cosine: ScalarLike = 1.0,
        normalized: bool = True,
        **parts: Any,
    ) -> "Problem":
        r"""One student unit whose weights w are trained themselves: from scratch, or the pretraining of a w0.

        No frozen weights, rank 1, κ = 1, U = 1 fixed (lr ratio 0): w is the one row of V, so that a start needs `up` = 1. The
        frame has rows (ω*, ω_s), target and source with ω*·ω_s = `cosine`, so that m = w·ω* and s = w·ω_s; w `learns` one of
        them. `normalized` keeps its length; `parts` are `teacher` and `sgd`.

        >>> Problem.full_weights("erf", learns="source", cosine=0.5).target.tolist()
        [[0.0, 1.0]]
        """
        adapter = Adapter(1, lr_ratio=0.0, normalized=normalized)
        return cls.between_tasks(activation, learns=learns, cosine=cosine, adapter=adapter, **parts)

    @classmethod
    def between_tasks(
        cls,
        activation: str | Activation,
        *,
        learns: Literal["target", "source"],
        cosine: ArrayLike,
        units: int = 1,
        teachers: int = 1,
        **parts: Any,
    ) -> "Problem":
        r"""K = `units` student units without frozen weights in the frame (ω*, ω_s) of a target and a source task.

        $\omega^*\cdot\omega_s$ = `cosine`. Each task has P = `teachers` directions, orthonormal, and those of the same number have this
        cosine, one for all or (P,) of them; they are called "target 1" and so on where there are several. The student `learns` one of
        the tasks; all its weights are rows of V. `parts` are the `teacher` that makes the labels, readouts, `adapter` and `sgd`.
        """
        require_known("learns", learns, ("target", "source"))
        cosines = task_cosines(cosine, teachers)
        endings = [""] if teachers == 1 else [f" {j + 1}" for j in range(teachers)]
        own = np.eye(teachers, 2 * teachers, teachers * (learns == "source"))
        library = np if isinstance(cosines, np.ndarray) else jnp
        along, alone = library.diag(cosines), library.eye(teachers, dtype=cosines.dtype)
        return cls(
            activation,
            frame_gram=library.block([[alone, along], [along, alone]]),
            directions=[task + ending for task in ("target", "source") for ending in endings],
            frozen=np.zeros((units, 2 * teachers)),
            target=own,
            **parts,
        )

    @classmethod
    def committee(
        cls,
        activation: str | Activation,
        *,
        pretrained: ArrayLike,
        teachers: int | None = None,
        teacher_gram: ArrayLike | None = None,
        own: ArrayLike | None = None,
        readout: ArrayLike | str = "1",
        teacher_readout: ArrayLike | str = "1",
        trains: Literal["adapter", "weights"] = "adapter",
        **parts: Any,
    ) -> "Problem":
        r"""K student units that learn P teacher units, $W_0 = BT + \mathrm{diag}(\beta)\,\Xi$ with rows of Ξ of length 1 across the rest.

        - `pretrained`: B (K, P), or its diagonal $\mu_1 \dots \mu_K$: row k is then $\mu_kt_k$, and 0 for k > P;
        - `teachers`: P; the number of columns of B, or of rows of the Gram matrix, unless given, and else K;
        - `teacher_gram` (P, P): $TT^T$, the identity unless given;
        - `own` (K,): β, the lengths of the students' own directions, none unless given;
        - `readout`, `teacher_readout`: "1", "1/n" or "1/sqrt(n)" with n the number of units, or numbers (K,), (P,);
        - `trains`: the "adapter", or the "weights" themselves: nothing is frozen then, and V is W, of rank K with U = 1 at rest and free
            rows; [`odes.frame_overlaps`][] starts it from W0 and [`odes.random_overlaps`][] with `up` = 1 from random rows.
        - `parts`: `teacher`, `adapter`, `sgd`.

        The directions are "target 1" to "target P" and, where β is not 0, "own 1" to "own K".

        >>> problem = Problem.committee("erf(x/sqrt(2))", pretrained=[0.3, 0.3, 1, 1], readout="1/sqrt(n)", adapter=Adapter(2))
        >>> problem.units, problem.readout.tolist()
        ((4, 4), [0.5, 0.5, 0.5, 0.5])

        **Raises** ArgumentError where shapes do not fit, for a Gram matrix that is none and for an adapter where weights are trained.
        """
        require_known("trains", trains, ("adapter", "weights"))
        words = "a list of numbers or a matrix, not empty"
        rows = numbers("pretrained", pretrained, words)
        if rows.ndim not in (1, 2) or rows.size == 0:
            raise ArgumentError("pretrained", f"must be {words}, but is {pretrained!r:.60}")
        gram = None if teacher_gram is None else numbers("teacher_gram", teacher_gram, "a matrix")
        likely = rows.shape[1] if rows.ndim == 2 else len(rows) if gram is None else len(gram)
        count = likely if teachers is None else teachers
        require_integer("teachers", count, "a whole number of at least 1")
        require("teachers", count, "a whole number of at least 1", lambda n: n >= 1)
        if rows.ndim == 1:
            rows = jnp.eye(len(rows), count, dtype=rows.dtype) * rows[:, None]
        units = len(rows)
        require_shape("pretrained", rows, "(K, P)", (units, count))
        gram = jnp.eye(count, dtype=rows.dtype) if gram is None else gram
        require_shape("teacher_gram", gram, "(P, P)", (count, count))
        lengths = np.zeros(units) if own is None else np.asarray(numbers("own", own, "a list of numbers"))
        require_shape("own", lengths, "(K,)", (units,))
        alone = np.flatnonzero(lengths)
        frame = jnp.eye(count + alone.size, dtype=rows.dtype).at[:count, :count].set(gram)
        frozen = jnp.concatenate([rows, np.diag(lengths)[:, alone].astype(rows.dtype)], axis=1)
        if trains == "weights":
            require("adapter", "adapter" in parts, "left out where weights are trained", lambda given: not given)
            frozen, parts = np.zeros(frozen.shape), parts | {"adapter": Adapter(units, lr_ratio=0.0, normalized=False)}
        return cls(
            activation,
            frame_gram=frame,
            directions=[f"target {j + 1}" for j in range(count)] + [f"own {k + 1}" for k in alone],
            frozen=frozen,
            target=np.eye(count, len(frame)),
            readout=_readouts("readout", readout, units),
            teacher_readout=_readouts("teacher_readout", teacher_readout, count),
            **parts,
        )

    def replace(self, **changes: Any) -> "Problem":
        """The problem with some fields changed, its own or those of its adapter and SGD ([`Adapter.replace`][], [`SGD.replace`][]).

        >>> problem = Problem.mixture("erf", mu=0.5).replace(rank=4, dimension=1e6, noise_scale=2.0, teacher="tanh")
        >>> problem.adapter.rank, problem.sgd.noise_scale.item(), problem.teacher.name
        (4, 2.0, 'tanh')
        """
        for name, part, more in (("adapter", self.adapter, "kappa"), ("sgd", self.sgd, "noise_scale")):
            names = {field.name for field in dataclasses.fields(part)} | {more}
            if own := {key: changes.pop(key) for key in names & set(changes)}:
                changes[name] = changes.get(name, part).replace(**own)
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            require_known("changes", name, known)
        return dataclasses.replace(self, **changes)

    @property
    def units(self) -> tuple[int, int]:
        """(K, P), the numbers of student and of teacher units."""
        return self.frozen.shape[0], self.target.shape[0]

    @property
    def frame_size(self) -> int:
        """f, the number of fixed directions."""
        return self.frame_gram.shape[0]

    @property
    def is_single_index(self) -> bool:
        """Whether the problem fine-tunes one student unit from pretrained weights w0 on the labels of one teacher unit."""
        return self.units == (1, 1) and "pretrained" in self.directions

    @property
    def has_frozen_weights(self) -> bool:
        """Whether there are frozen weights W0, from which an escape is measured; traced ones count unless there is a source task."""
        if any(name.startswith("source") for name in self.directions):
            return False
        return not concrete(self.frozen) or bool(np.any(np.asarray(self.frozen) != 0))

    def require_one_unit(self) -> None:
        """Raises ArgumentError unless the problem has one student and one teacher unit."""
        require("problem", np.asarray(self.units), "of one student and one teacher unit", lambda units: units == 1)

    def require_single_index(self) -> None:
        """Raises ArgumentError unless the problem has one student and one teacher unit and a direction "pretrained"."""
        if not self.is_single_index:
            raise ArgumentError(
                "problem",
                "must be single-index with pretrained weights (K = P = 1, a direction 'pretrained'), "
                f"but has K, P = {self.units} and the directions {', '.join(self.directions)}",
            )

    def require_known_search(self) -> None:
        """Raises ArgumentError unless there are pretrained weights and readouts are at rest: the search phase is known."""
        if self.units == (1, 1) and not self.has_frozen_weights:
            self.require_single_index()
        if not self.has_frozen_weights:
            raise ArgumentError("problem", "must have pretrained weights W0, from which the search begins")
        if self.sgd.trains_readouts:
            raise ArgumentError("problem", "must have readouts at rest for its search phase to be known")

    def along(self, name: str) -> int:
        """The number of the frame's row of that name. **Raises** ArgumentError, with those that there are, for another name."""
        require_known("direction", name, self.directions)
        return self.directions.index(name)

    @property
    def lengths(self) -> Float[Array, " K"]:
        """The lengths of the pretrained rows of W0."""
        return _lengths(self.frozen, self.frame_gram)

    @property
    def strength(self) -> Float[Array, ""]:
        """ρ = |w0| of a single-index problem."""
        self.require_single_index()
        return self.lengths[0]

    @property
    def alignment(self) -> Float[Array, ""]:
        """c = cos(w0, ω*) of a single-index problem."""
        self.require_single_index()
        return _cosine(self.frozen, self.target, self.frame_gram)

    def shown(self) -> dict[str, Any]:
        fields = super().shown()
        single = self.frozen.ndim == 2 and self.is_single_index
        if single and all(map(concrete, (self.frozen, self.frame_gram, self.target))):
            for name in ("frame_gram", "directions", "frozen", "target", "readout", "teacher_readout"):
                del fields[name]
            place = {"strength": self.strength, "alignment": self.alignment}
            return {name: fields.pop(name) for name in ("student", "teacher")} | place | fields
        return fields

    def to_dict(self) -> dict[str, Any]:
        """Everything that defines the problem, as plain lists, numbers and names that JSON can hold."""
        links = {"student": self.student, "teacher": self.teacher}
        values: dict[str, Any] = {name: f.name if f.known else {"custom": f.name} for name, f in links.items()}
        values["directions"] = list(self.directions)
        for field in ("frame_gram", "frozen", "target", "readout", "teacher_readout"):
            values[field] = np.asarray(getattr(self, field)).tolist()
        for part in (self.adapter, self.sgd):
            for field in dataclasses.fields(part):
                values[field.name] = np.asarray(getattr(part, field.name)).tolist()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], **links: Activation) -> "Problem":
        """The problem that `to_dict` described; `student` and `teacher` among the `links` stand for functions of your own.

        >>> problem = Problem.mixture("erf", mu=0.3, sgd=SGD(label_noise=0.1))
        >>> Problem.from_dict(problem.to_dict()).to_dict() == problem.to_dict()
        True

        **Raises** ArgumentError where the problem has a link function of the user's own that is not given.
        """
        names = ("frame_gram", "directions", "frozen", "target", "readout", "teacher_readout")
        stored: dict[str, Any] = {name: values[name] for name in ("student", "teacher")}
        for name, link in links.items():
            require_known("links", name, stored)
            if not isinstance(stored[name], dict):
                raise ArgumentError(name, f"is stored, {stored[name]!r}, and cannot be given")
            require_kind(name, link, Activation, "an Activation")
            stored[name] = link
        for name, link in stored.items():
            if isinstance(link, dict):
                raise ArgumentError(
                    name, f"must be given: {link['custom']!r} is a function of the user's own, which is not stored"
                )
        adapter, sgd = ({f.name: values[f.name] for f in dataclasses.fields(part)} for part in (Adapter, SGD))
        fields: dict[str, Any] = {name: values.get(name) for name in names}
        return cls(**stored, **fields, adapter=Adapter(**adapter), sgd=SGD(**sgd))


class Family(Shown):
    r"""All of a single-index problem but its pretrained weights: links, adapter and SGD.

    - `student`, `teacher`: the link functions σ and φ, the teacher's like the student's unless given;
    - `adapter`, `sgd`: those of [`Adapter`][] and [`SGD`][] without arguments unless given.

    The frame of its problems has the directions "target" and "pretrained" (ω*, w0), so that the overlaps of the adapter's
    rows are m = v·ω* and s = v·w0.

    >>> Family("erf").at(0.5, 0.6).directions
    ('target', 'pretrained')
    """

    student: Activation
    teacher: Activation
    adapter: Adapter
    sgd: SGD

    def __init__(
        self,
        student: str | Activation,
        *,
        teacher: str | Activation | None = None,
        adapter: Adapter | None = None,
        sgd: SGD | None = None,
    ):
        self.student = parse_activation(student)
        self.teacher = self.student if teacher is None else parse_activation(teacher)
        self.adapter, self.sgd = _trained_by(adapter, sgd)

    @classmethod
    def of(cls, link: "str | Activation | Family") -> "Family":
        """The family of a link function with the usual adapter and SGD; a family is passed through."""
        return link if isinstance(link, Family) else cls(link)

    def at(self, strength: ScalarLike, alignment: ScalarLike = 1.0) -> Problem:
        r"""$w_0 = \rho\,(c\,\omega^* + \sqrt{1 - c^2}\,\xi)$ with unit $\omega^* \perp \xi$.

        ρ = `strength` is positive, c = `alignment` in [-1, 1]; c = 1 is the aligned family w0 = μ ω* with μ = ρ. What is not
        allowed is refused; in a value that is being traced (by jit, vmap or grad) it cannot be seen, and NaN comes out. For links
        with kinks averages have a square-root edge at c = ±1: the one-sided derivative with respect to c is infinite there, and
        that of automatic differentiation means nothing.
        """
        strength = scalar("strength", strength, "positive and finite", positive)
        alignment = scalar("alignment", alignment, "between -1 and 1", within_one)
        strength, alignment = together(strength, alignment)
        return self.with_overlap(strength * alignment, strength**2)

    def mixture(self, mu: ScalarLike) -> Problem:
        r"""$w_0 = \mu\,\omega^* + (1 - \mu)\,\xi$: $\rho^2 = \mu^2 + (1-\mu)^2$, $c = \mu/\rho$."""
        mu = scalar("mixture", mu, "finite", finite)
        return self.with_overlap(mu, mu**2 + (1 - mu) ** 2)

    def with_overlap(self, overlap: ScalarLike, square: ScalarLike) -> Problem:
        r"""$w_0\cdot\omega^*$ = `overlap` and $|w_0|^2$ = `square`, at least overlap²."""
        return Problem(
            self.student,
            frame_gram=_gram(1.0, overlap, square),
            directions=("target", "pretrained"),
            frozen=[[0.0, 1.0]],
            target=[[1.0, 0.0]],
            teacher=self.teacher,
            adapter=self.adapter,
            sgd=self.sgd,
        )


def task_cosines(cosine: ArrayLike, teachers: int) -> Float[Array, " P"] | Float[np.ndarray, " P"]:
    """The cosines of P pairs of directions, one for all or (P,) of them; NumPy's where they are known now.

    **Raises** ArgumentError for other shapes and for cosines beyond 1.
    """
    if np.shape(cosine) != ():
        require_shape("cosine", cosine, "(P,)", (teachers,))
        require("cosine", cosine, "between -1 and 1", within_one)
        known = together(cosine)[0]
    else:
        known = together(scalar("cosine", cosine, "between -1 and 1", within_one))[0]
    return (np if isinstance(known, np.ndarray) else jnp).broadcast_to(known, (teachers,))


def mixture_place(mu: float) -> tuple[float, float]:
    r"""Strength and alignment of [`Family.mixture`][], $w_0 = \mu\,\omega^* + (1 - \mu)\,\xi$."""
    strength = math.hypot(mu, 1 - mu)
    return strength, mu / strength


@jax.jit
def _lengths(rows: Float[Array, "n k"], gram: Float[Array, "k k"]) -> Float[Array, " n"]:
    return jnp.sqrt(diagonal(rows @ gram @ rows.T))


@jax.jit
def _cosine(one: Float[Array, "1 k"], other: Float[Array, "1 k"], gram: Float[Array, "k k"]) -> Float[Array, ""]:
    return (other @ gram @ one.T)[0, 0] / (_lengths(one, gram)[0] * _lengths(other, gram)[0])


def _rounding() -> float:
    """By how much less than 0 an eigenvalue may be, relative to the trace."""
    return max(1e-10, 10 * float(jnp.finfo(jnp.result_type(float)).eps))


def _readouts(name: str, given: ArrayLike | str, units: int) -> ArrayLike:
    """Readouts by name, or as they are given."""
    if not isinstance(given, str):
        return given
    values = {"1": 1.0, "1/n": 1 / units, "1/sqrt(n)": units**-0.5}
    require_known(name, given, values)
    return np.full(units, values[given])


def _trained_by(adapter: Adapter | None, sgd: SGD | None) -> tuple[Adapter, SGD]:
    """An adapter and an SGD, the usual ones unless given."""
    adapter, sgd = Adapter() if adapter is None else adapter, SGD() if sgd is None else sgd
    require_kind("adapter", adapter, Adapter, "an Adapter, such as Adapter(rank=4)")
    require_kind("sgd", sgd, SGD, "an SGD, such as SGD(dimension=1e4)")
    return adapter, sgd


def _gram(first: ScalarLike, across: ScalarLike, second: ScalarLike) -> Float[Array, "2 2"]:
    """The Gram matrix of two directions, made without compilation where the numbers are known."""
    first, across, second = together(first, across, second)
    library = np if isinstance(first, np.ndarray) else jnp
    return real_array(library.stack([library.stack([first, across]), library.stack([across, second])]))
