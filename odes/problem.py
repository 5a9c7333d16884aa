r"""The learning problem: teacher, frozen pretrained weights, LoRA adapter, SGD. Frozen, checked when made."""

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes.activations import Activation
from odes.activations import activation as parse_activation
from odes.arguments import ArrayLike, non_negative, positive, require, require_shape


def _array(value: Any) -> Array:
    return jnp.asarray(value, jnp.result_type(float))


class Adapter(eqx.Module):
    r"""A LoRA adapter, $W = W_0 + \kappa\, U V$ with U (K x r) and V (r x d).

    - `rank`: r.
    - `scale`: LoRA's α; $\kappa = \alpha / r$. None means α = r, so κ = 1.
    - `lr_ratio`: $\chi = \eta_U/\eta$, the learning rate of U over that of V (LoRA+); 0 leaves U as it starts.
    - `normalized`: whether every trained row of V is rescaled to unit length after each step.
    - `weight_decay`: λ; each step takes the fraction ηλ off the trained rows of V (without effect if they are normalised). The
        linear theory of the search phase does not know it: it is meant for pretraining.
    - `trained` (r,): 1 for rows of V that are trained, with their columns of U, and 0 for rows at rest; all are trained unless
        given. This is how the stages of a run share one state ([`odes.Transfer`][]).

    >>> float(Adapter(rank=4, scale=8.0).kappa)
    2.0
    """

    rank: int = eqx.field(static=True)
    scale: Float[Array, ""]
    lr_ratio: Float[Array, ""]
    normalized: bool = eqx.field(static=True)
    weight_decay: Float[Array, ""]
    trained: Float[Array, " r"]

    def __init__(
        self,
        rank: int = 1,
        *,
        scale: ScalarLike | None = None,
        lr_ratio: ScalarLike = 1.0,
        normalized: bool = True,
        weight_decay: ScalarLike = 0.0,
        trained: ArrayLike | None = None,
    ):
        self.rank = rank
        self.scale = _array(rank if scale is None else scale)
        self.lr_ratio = _array(lr_ratio)
        self.normalized = normalized
        self.weight_decay = _array(weight_decay)
        require("rank", rank, "an integer of at least 1", lambda x: (x >= 1) & (x == np.round(x)))
        self.trained = _array(jnp.ones(rank) if trained is None else trained)
        require_shape("trained", self.trained, "(r,)", (rank,))
        require("trained", self.trained, "0 or 1 for every row", lambda x: (x == 0) | (x == 1))
        require("weight_decay", self.weight_decay, "non-negative and finite", non_negative)
        require("scale", self.scale, "positive and finite", positive)
        require("lr_ratio", self.lr_ratio, "non-negative and finite", non_negative)

    @property
    def kappa(self) -> Float[Array, ""]:
        """The LoRA scaling κ = α / r."""
        return self.scale / self.rank


class SGD(eqx.Module):
    r"""One-pass stochastic gradient descent on the loss $(\hat y - y)^2/2$.

    - `learning_rate`: η. Time is t = η * step everywhere.
    - `batch_size`: B fresh samples a step; infinity is gradient flow.
    - `dimension`: d.
    - `label_noise`: Δ, the variance of the noise on the labels.

    >>> float(SGD(learning_rate=0.2, batch_size=500, dimension=1000).noise_scale)
    0.4
    """

    learning_rate: Float[Array, ""]
    batch_size: Float[Array, ""]
    dimension: Float[Array, ""]
    label_noise: Float[Array, ""]

    def __init__(
        self,
        *,
        learning_rate: ScalarLike = 0.2,
        batch_size: ScalarLike = 500,
        dimension: ScalarLike = 1000,
        label_noise: ScalarLike = 0.0,
    ):
        self.learning_rate = _array(learning_rate)
        self.batch_size = _array(batch_size)
        self.dimension = _array(dimension)
        self.label_noise = _array(label_noise)
        require("learning_rate", self.learning_rate, "positive and finite", positive)
        require("batch_size", self.batch_size, "at least 1", lambda x: x >= 1)
        require("dimension", self.dimension, "at least 2 and finite", lambda x: (x >= 2) & np.isfinite(x))
        require("label_noise", self.label_noise, "non-negative and finite", non_negative)

    @property
    def noise_scale(self) -> Float[Array, ""]:
        """θ = η d / B, the one combination of SGD's parameters that is left in the limit; 0 is gradient flow."""
        return self.learning_rate * self.dimension / self.batch_size

    def samples_per_dimension(self, t: ArrayLike) -> Float[Array, "*t"]:
        """n / d = t / θ, the fresh samples seen by time t over the dimension (infinite for gradient flow)."""
        return _array(t) / self.noise_scale

    def steps(self, t: ArrayLike) -> Float[Array, "*t"]:
        """t / η, the number of SGD steps that reach time t."""
        return _array(t) / self.learning_rate


class Problem(eqx.Module):
    r"""A student $\sum_k a_k \sigma(w_k \cdot x)$ with $W = W_0 + \kappa UV$ learns $\sum_j b_j \phi(t_j \cdot x)$.

    The inputs are $x \sim \mathcal N(0, I_d)$. Every fixed direction is a row of the frame F (f x d), of which only the
    Gram matrix is needed:

    - `frame_gram` (f, f): $\Gamma = F F^T$, positive semi-definite;
    - `frozen` (K, f): A in $W_0 = A F$; `target` (P, f): $\tilde B$ in $T = \tilde B F$;
    - `readout` (K,): a; `teacher_readout` (P,): b; ones unless given;
    - `student`, `teacher`: the link functions σ, φ; `adapter`; `sgd`.

    For one student and one teacher unit use [`Problem.single_index`][] or [`Problem.mixture`][].

    **Raises** ArgumentError naming the argument whose shape or value is not allowed.
    """

    student: Activation
    teacher: Activation
    frame_gram: Float[Array, "f f"]
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
        teacher: str | Activation | None = None,
        readout: ArrayLike | None = None,
        teacher_readout: ArrayLike | None = None,
        adapter: Adapter | None = None,
        sgd: SGD | None = None,
    ):
        self.student = parse_activation(student)
        self.teacher = self.student if teacher is None else parse_activation(teacher)
        self.frame_gram, self.frozen, self.target = _array(frame_gram), _array(frozen), _array(target)
        units, frame = np.shape(self.frozen) if np.ndim(self.frozen) == 2 else (0, 0)
        teachers = np.shape(self.target)[0] if np.ndim(self.target) else 0
        require_shape("frozen", self.frozen, "(K, f)", (max(units, 1), max(frame, 1)))
        require_shape("target", self.target, "(P, f)", (max(teachers, 1), frame))
        require_shape("frame_gram", self.frame_gram, "(f, f)", (frame, frame))
        self.readout = _array(jnp.ones(units) if readout is None else readout)
        self.teacher_readout = _array(jnp.ones(teachers) if teacher_readout is None else teacher_readout)
        require_shape("readout", self.readout, "(K,)", (units,))
        require_shape("teacher_readout", self.teacher_readout, "(P,)", (teachers,))
        require(
            "frame_gram",
            self.frame_gram,
            "symmetric and positive semi-definite",
            lambda g: np.allclose(g, g.T) and np.linalg.eigvalsh(g).min() > -1e-10 * max(np.trace(g), 1),
        )
        self.adapter = Adapter() if adapter is None else adapter
        self.sgd = SGD() if sgd is None else sgd

    @classmethod
    def single_index(
        cls,
        activation: str | Activation,
        *,
        strength: ScalarLike,
        alignment: ScalarLike = 1.0,
        teacher: str | Activation | None = None,
        adapter: Adapter | None = None,
        sgd: SGD | None = None,
    ) -> "Problem":
        r"""One student and one teacher unit, $w_0 = \rho\,(c\,\omega^* + \sqrt{1 - c^2}\,\xi)$ with unit $\omega^* \perp \xi$.

        `strength` is ρ = |w0| > 0, `alignment` is c in [-1, 1]; c = 1 is the aligned family w0 = μ ω* with μ = ρ. The
        frame has rows (ω*, w0), so the adapter's overlaps are m = v·ω* and s = v·w0. `teacher` None means the same
        link function as the student's.

        >>> Problem.single_index("erf", strength=0.5, alignment=0.6).frame_gram.tolist()
        [[1.0, 0.3], [0.3, 0.25]]
        """
        strength, alignment = _array(strength), _array(alignment)
        require("strength", strength, "positive and finite", positive)
        require("alignment", alignment, "between -1 and 1", lambda c: np.abs(c) <= 1)
        overlap, square = strength * alignment, strength**2
        return cls.single_index_from(
            activation, overlap=overlap, square=square, teacher=teacher, adapter=adapter, sgd=sgd
        )

    @classmethod
    def single_index_from(
        cls,
        activation: str | Activation,
        *,
        overlap: ScalarLike,
        square: ScalarLike,
        teacher: str | Activation | None = None,
        adapter: Adapter | None = None,
        sgd: SGD | None = None,
    ) -> "Problem":
        r"""[`Problem.single_index`][] with $w_0\cdot\omega^*$ = `overlap` and $|w_0|^2$ = `square`, at least overlap²."""
        overlap, square = _array(overlap), _array(square)
        one = jnp.ones_like(overlap)
        return cls(
            activation,
            frame_gram=jnp.stack([jnp.stack([one, overlap]), jnp.stack([overlap, square])]),
            frozen=[[0.0, 1.0]],
            target=[[1.0, 0.0]],
            teacher=teacher,
            adapter=adapter,
            sgd=sgd,
        )

    @classmethod
    def mixture(
        cls,
        activation: str | Activation,
        *,
        mu: ScalarLike,
        teacher: str | Activation | None = None,
        adapter: Adapter | None = None,
        sgd: SGD | None = None,
    ) -> "Problem":
        r"""[`Problem.single_index`][] with $w_0 = \mu\,\omega^* + (1 - \mu)\,\xi$: $\rho^2 = \mu^2 + (1-\mu)^2$, $c = \mu/\rho$.

        >>> float(Problem.mixture("erf", mu=0.5).strength)
        0.7071067811865476
        """
        mu = _array(mu)
        require("mixture", mu, "finite", np.isfinite)
        square = mu**2 + (1 - mu) ** 2
        return cls.single_index_from(activation, overlap=mu, square=square, teacher=teacher, adapter=adapter, sgd=sgd)

    @classmethod
    def full_weights(
        cls,
        activation: str | Activation,
        *,
        learns: Literal["target", "source"] = "target",
        cosine: ScalarLike = 1.0,
        teacher: str | Activation | None = None,
        normalized: bool = True,
        sgd: SGD | None = None,
    ) -> "Problem":
        r"""One student unit whose weights w are trained themselves: from scratch, or the pretraining of a w0.

        No frozen weights, rank 1, κ = 1, U = 1 fixed (lr ratio 0): w is the one row of V, so that a start needs `up` = 1. The
        frame has rows (ω*, ω_s), target and source with ω*·ω_s = `cosine`, so that m = w·ω* and s = w·ω_s; w `learns` one of
        them, with the link function `teacher`. `normalized` keeps its length.

        >>> Problem.full_weights("erf", learns="source", cosine=0.5).target.tolist()
        [[0.0, 1.0]]
        """
        adapter = Adapter(1, lr_ratio=0.0, normalized=normalized)
        return cls.between_tasks(activation, learns=learns, cosine=cosine, teacher=teacher, adapter=adapter, sgd=sgd)

    @classmethod
    def between_tasks(
        cls,
        activation: str | Activation,
        *,
        learns: Literal["target", "source"],
        cosine: ScalarLike,
        teacher: str | Activation | None = None,
        adapter: Adapter | None = None,
        sgd: SGD | None = None,
    ) -> "Problem":
        r"""One student unit without frozen weights in the frame (ω*, ω_s) of a target and a source task.

        $\omega^*\cdot\omega_s$ = `cosine`. The student `learns` one of the tasks, whose labels are made by the link function
        `teacher`; all its weights are rows of V.
        """
        cosine = _array(cosine)
        require("cosine", cosine, "between -1 and 1", lambda c: np.abs(c) <= 1)
        one = jnp.ones_like(cosine)
        return cls(
            activation,
            frame_gram=jnp.stack([jnp.stack([one, cosine]), jnp.stack([cosine, one])]),
            frozen=[[0.0, 0.0]],
            target=[[1.0, 0.0] if learns == "target" else [0.0, 1.0]],
            teacher=teacher,
            adapter=adapter,
            sgd=sgd,
        )

    def with_adapter(
        self, *, rank: int | None = None, kappa: ScalarLike | None = None, lr_ratio: ScalarLike | None = None
    ) -> "Problem":
        """The problem with another adapter, all of whose rows are trained; what is not given stays, κ also when the rank changes.

        >>> Problem.mixture("erf", mu=0.5, adapter=Adapter(2, scale=3.0)).with_adapter(rank=4).adapter.kappa.item()
        1.5
        """
        old = self.adapter
        rank = old.rank if rank is None else rank
        adapter = Adapter(
            rank,
            scale=rank * (old.kappa if kappa is None else kappa),
            lr_ratio=old.lr_ratio if lr_ratio is None else lr_ratio,
            normalized=old.normalized,
            weight_decay=old.weight_decay,
        )
        return eqx.tree_at(lambda p: p.adapter, self, adapter, is_leaf=lambda x: isinstance(x, Adapter))

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
        """Whether the problem has one student unit, one teacher unit and the frame (ω*, w0)."""
        return self.units == (1, 1) and self.frame_size == 2

    def require_single_index(self) -> None:
        """Raises ArgumentError unless the problem has one student and one teacher unit in the frame (ω*, w0)."""
        if not self.is_single_index:
            raise ValueError(
                f"Argument `problem` must be single-index (K = P = 1, f = 2), but has K, P = {self.units}, f = {self.frame_size}"
            )

    @property
    def strength(self) -> Float[Array, ""]:
        """ρ = |w0| of a single-index problem."""
        self.require_single_index()
        return jnp.sqrt(self.frame_gram[1, 1])

    @property
    def alignment(self) -> Float[Array, ""]:
        """c = cos(w0, ω*) of a single-index problem."""
        return self.frame_gram[0, 1] / self.strength

    def to_dict(self) -> dict[str, Any]:
        """Everything that defines the problem, as plain lists, numbers and names that JSON can hold."""
        values: dict[str, Any] = {"student": self.student.name, "teacher": self.teacher.name}
        for field in ("frame_gram", "frozen", "target", "readout", "teacher_readout"):
            values[field] = np.asarray(getattr(self, field)).tolist()
        for part in (self.adapter, self.sgd):
            for field in dataclasses.fields(part):
                values[field.name] = np.asarray(getattr(part, field.name)).tolist()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Problem":
        """The problem that `to_dict` described; activations of your own are not known by name.

        >>> problem = Problem.mixture("erf", mu=0.3, sgd=SGD(label_noise=0.1))
        >>> Problem.from_dict(problem.to_dict()).to_dict() == problem.to_dict()
        True
        """
        names = ("frame_gram", "frozen", "target", "teacher", "readout", "teacher_readout")
        adapter, sgd = ({f.name: values[f.name] for f in dataclasses.fields(part)} for part in (Adapter, SGD))
        return cls(
            values["student"], **{name: values[name] for name in names}, adapter=Adapter(**adapter), sgd=SGD(**sgd)
        )
