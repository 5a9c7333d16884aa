r"""Pretraining on a source task and fine-tuning on a target task, in one set of overlaps."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from odes.activations import Activation
from odes.activations import activation as parse_activation
from odes.arguments import (
    ArrayLike,
    non_negative,
    positive,
    real_array,
    require,
    require_integer,
    require_known,
    require_shape,
    scalar,
)
from odes.diagonals import diagonal_matrix
from odes.overlaps import Overlaps, covariances, random_overlaps, with_readout
from odes.problem import Family, Problem, task_cosines
from odes.shown import Shown
from odes.training import SGD, Adapter


class Transfer(Shown):
    r"""Student units with weights $w_k$ and a LoRA adapter, a source task to pretrain on and a target task to fine-tune for.

    The labels are $\phi_s(\omega_s\cdot x)$ and $\phi(\omega^*\cdot x)$, with $\omega_s\cdot\omega^*$ = `cosine`, or sums of P
    such terms with the `teacher_readout` ([`Problem.between_tasks`][]); `cosine` is one number for all pairs of directions, or (P,):
    those whose cosine is below 1 are the directions that fine-tuning has to learn. The weights are the first K rows of an adapter of
    rank K + r whose columns of U rest at 1/κ, so that $w_k + \kappa\sum_a u_{ka}v_a$ are the rows of W: what is trained in a stage
    is a matter of which rows are ([`Transfer.problem`][]), and every stage acts on the same overlaps in the frame (ω*, ω_s). Nothing
    but overlaps, and readouts where they are trained, passes from one stage to the next.

    - `student`; `source`, `target`: the link functions σ, φ_s, φ, those of the labels like the student's unless given;
    - `adapter`, `sgd`: of fine-tuning; `pretraining_sgd`: of pretraining, like `sgd` unless given;
    - `spherical`: whether the weights keep unit length in pretraining; `weight_decay`: λ in pretraining;
    - `length`: of the random weights from which pretraining starts;
    - `units`, `teachers`: K and P; `readout` (K,), `teacher_readout` (P,): ones unless given. The source's readouts are the target's.

    **Raises** ArgumentError for a cosine beyond 1, a length that is not positive or, if spherical, not 1, SGDs of different
    dimensions, and an adapter with weight decay or rows at rest.

    >>> transfer = Transfer("erf", cosine=0.8, adapter=Adapter(2))
    >>> transfer.problem("source", "weights").adapter.trained.tolist(), transfer.lora.adapter.trained.tolist()
    ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0])
    """

    student: Activation
    source: Activation
    target: Activation
    cosine: Float[Array, "*P"]
    adapter: Adapter
    sgd: SGD
    pretraining_sgd: SGD
    spherical: bool = eqx.field(static=True)
    weight_decay: Float[Array, ""]
    length: Float[Array, ""]
    units: int = eqx.field(static=True)
    teachers: int = eqx.field(static=True)
    readout: Float[Array, " K"]
    teacher_readout: Float[Array, " P"]

    def __init__(
        self,
        student: str | Activation,
        *,
        cosine: ArrayLike = 1.0,
        source: str | Activation | None = None,
        target: str | Activation | None = None,
        adapter: Adapter | None = None,
        sgd: SGD | None = None,
        pretraining_sgd: SGD | None = None,
        spherical: bool = False,
        weight_decay: ScalarLike = 0.0,
        length: ScalarLike = 1.0,
        units: int = 1,
        teachers: int = 1,
        readout: ArrayLike | None = None,
        teacher_readout: ArrayLike | None = None,
    ):
        self.student = parse_activation(student)
        self.source, self.target = (self.student if f is None else parse_activation(f) for f in (source, target))
        self.weight_decay = real_array(scalar("weight_decay", weight_decay, "non-negative and finite", non_negative))
        self.length = real_array(scalar("length", length, "positive and finite", positive))
        self.adapter = Adapter() if adapter is None else adapter
        self.sgd = SGD() if sgd is None else sgd
        self.pretraining_sgd = self.sgd if pretraining_sgd is None else pretraining_sgd
        for name, count in (("units", units), ("teachers", teachers)):
            require_integer(name, count, "a whole number of at least 1")
            require(name, count, "a whole number of at least 1", lambda n: n >= 1)
        self.units, self.teachers = int(units), int(teachers)
        task_cosines(cosine, self.teachers)
        self.cosine = real_array(cosine)
        self.readout = real_array(np.ones(units) if readout is None else readout)
        self.teacher_readout = real_array(np.ones(teachers) if teacher_readout is None else teacher_readout)
        require_shape("readout", self.readout, "(K,)", (units,))
        require_shape("teacher_readout", self.teacher_readout, "(P,)", (teachers,))
        self.spherical = spherical
        if spherical:
            require("length", self.length, "1 for spherical pretraining", lambda x: x == 1)
        plain = jnp.where(self.adapter.weight_decay == 0, self.adapter.trained, 0.0)
        require("adapter", plain, "one whose rows are all trained, without weight decay", lambda x: x == 1)
        same = self.sgd.dimension == self.pretraining_sgd.dimension
        require("pretraining_sgd", same, "of the dimension of `sgd`", lambda x: x)

    def problem(
        self,
        learns: Literal["target", "source"],
        trains: Literal["adapter", "weights"],
        *,
        teacher: str | Activation | None = None,
    ) -> Problem:
        """The problem of one stage: which task is learnt, and whether the adapter or the weights themselves are trained.

        `teacher` makes the labels instead of the task's own link function (a transformation of the labels). Weights are
        trained with `pretraining_sgd`, `spherical` and `weight_decay` on the source, with plain `sgd` on the target.
        """
        require_known("trains", trains, ("adapter", "weights"))
        adapter, pretrains = self.adapter, learns == "source"
        rank = self.units + adapter.rank
        whole = trains == "weights"
        decays = whole and pretrains
        joined = Adapter(
            rank,
            scale=adapter.kappa * rank,
            lr_ratio=0.0 if whole else adapter.lr_ratio,
            normalized=(pretrains and self.spherical) if whole else adapter.normalized,
            weight_decay=self.weight_decay if decays else 0.0,
            trained=np.where((np.arange(rank) < self.units) == whole, 1.0, 0.0),
        )
        return Problem.between_tasks(
            self.student,
            learns=learns,
            cosine=self.cosine,
            units=self.units,
            teachers=self.teachers,
            readout=self.readout,
            teacher_readout=self.teacher_readout,
            teacher=(self.source if pretrains else self.target) if teacher is None else teacher,
            adapter=joined,
            sgd=self.pretraining_sgd if pretrains else self.sgd,
        )

    @property
    def pretraining(self) -> Problem:
        """Training of the weights on the source task."""
        return self.problem("source", "weights")

    @property
    def lora(self) -> Problem:
        """Training of the adapter on the target task."""
        return self.problem("target", "adapter")

    @property
    def up(self) -> Float[Array, "K rows"]:
        """U at the start: 1/κ for every unit's own weights, 0 for the adapter's rows."""
        return jnp.eye(self.units, self.units + self.adapter.rank) / self.adapter.kappa

    @property
    def lengths(self) -> Float[Array, " rows"]:
        """The lengths of the rows at the start: those of the weights and, 1, of the adapter's rows."""
        return jnp.ones(self.units + self.adapter.rank).at[: self.units].set(self.length)

    def random_start(self, key: PRNGKeyArray) -> Overlaps:
        """Random weights and a random adapter with U = 0 at dimension d ([`odes.random_overlaps`][])."""
        return random_overlaps(self.pretraining, key, up=self.up, length=self.lengths)

    def typical_start(self) -> Overlaps:
        r"""Weights with the typical overlap $|w|/\sqrt d$ with ω_s, and an adapter without overlaps, U = 0, for one unit of each kind.

        **Raises** ArgumentError for several units, of which no start is typical.
        """
        self.pretraining.require_one_unit()
        overlap = self.length / jnp.sqrt(self.sgd.dimension)
        cross = jnp.zeros((1 + self.adapter.rank, 2)).at[0].set(overlap * jnp.stack([self.cosine, jnp.ones(())]))
        return Overlaps(self.up, cross, diagonal_matrix(self.lengths**2))

    def fine_tuning(self, overlaps: Overlaps) -> Problem:
        """Fine-tuning from the weights at the given overlaps as a problem of its own, in the frame (ω*, w0 = W).

        It is single-index for one unit of each kind; the directions of several are "target 1" and so on and "pretrained 1" and so on.
        """
        covariance = covariances(self.lora, overlaps)
        if (self.units, self.teachers) != (1, 1):
            Q, M, P = covariance.Q, covariance.M, covariance.P
            rows = jnp.eye(self.teachers + self.units)
            return Problem(
                self.student,
                teacher=self.target,
                frame_gram=jnp.block([[P, M.T], [M, Q]]),
                directions=[f"target {j + 1}" for j in range(self.teachers)]
                + [f"pretrained {k + 1}" for k in range(self.units)],
                target=rows[: self.teachers],
                frozen=rows[self.teachers :],
                readout=with_readout(self.lora, overlaps).readout,
                teacher_readout=self.teacher_readout,
                adapter=self.adapter,
                sgd=self.sgd,
            )
        family = Family(self.student, teacher=self.target, adapter=self.adapter, sgd=self.sgd)
        return family.with_overlap(covariance.M[0, 0], covariance.Q[0, 0])
