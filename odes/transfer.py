r"""Pretraining on a source task and fine-tuning on a target task, in one set of overlaps."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from odes.activations import Activation
from odes.activations import activation as parse_activation
from odes.arguments import non_negative, positive, real_array, require, require_known, scalar, within_one
from odes.overlaps import Overlaps, covariances, random_overlaps
from odes.problem import Family, Problem
from odes.shown import Shown
from odes.training import SGD, Adapter


class Transfer(Shown):
    r"""One student unit with weights $w$ and a LoRA adapter, a source task to pretrain on and a target task to fine-tune for.

    The labels are $\phi_s(\omega_s\cdot x)$ and $\phi(\omega^*\cdot x)$, with $\omega_s\cdot\omega^*$ = `cosine`. The weights are the first
    row of an adapter of rank 1 + r whose column of U rests at 1/κ, so that $W = w + \kappa\sum_a u_av_a$: what is trained in
    a stage is a matter of which rows are ([`Transfer.problem`][]), and every stage acts on the same overlaps in the frame
    (ω*, ω_s). Nothing but overlaps passes from one stage to the next.

    - `student`; `source`, `target`: the link functions σ, φ_s, φ, those of the labels like the student's unless given;
    - `adapter`, `sgd`: of fine-tuning; `pretraining_sgd`: of pretraining, like `sgd` unless given;
    - `spherical`: whether the weights keep unit length in pretraining; `weight_decay`: λ in pretraining;
    - `length`: of the random weights from which pretraining starts.

    **Raises** ArgumentError for a cosine beyond 1, a length that is not positive or, if spherical, not 1, SGDs of different
    dimensions, and an adapter with weight decay or rows at rest.

    >>> transfer = Transfer("erf", cosine=0.8, adapter=Adapter(2))
    >>> transfer.problem("source", "weights").adapter.trained.tolist(), transfer.lora.adapter.trained.tolist()
    ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0])
    """

    student: Activation
    source: Activation
    target: Activation
    cosine: Float[Array, ""]
    adapter: Adapter
    sgd: SGD
    pretraining_sgd: SGD
    spherical: bool = eqx.field(static=True)
    weight_decay: Float[Array, ""]
    length: Float[Array, ""]

    def __init__(
        self,
        student: str | Activation,
        *,
        cosine: ScalarLike = 1.0,
        source: str | Activation | None = None,
        target: str | Activation | None = None,
        adapter: Adapter | None = None,
        sgd: SGD | None = None,
        pretraining_sgd: SGD | None = None,
        spherical: bool = False,
        weight_decay: ScalarLike = 0.0,
        length: ScalarLike = 1.0,
    ):
        self.student = parse_activation(student)
        self.source, self.target = (self.student if f is None else parse_activation(f) for f in (source, target))
        self.cosine = real_array(scalar("cosine", cosine, "between -1 and 1", within_one))
        self.weight_decay = real_array(scalar("weight_decay", weight_decay, "non-negative and finite", non_negative))
        self.length = real_array(scalar("length", length, "positive and finite", positive))
        self.adapter = Adapter() if adapter is None else adapter
        self.sgd = SGD() if sgd is None else sgd
        self.pretraining_sgd = self.sgd if pretraining_sgd is None else pretraining_sgd
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
        rows = jnp.arange(1 + adapter.rank)
        whole = trains == "weights"
        decays = whole and pretrains
        joined = Adapter(
            1 + adapter.rank,
            scale=adapter.kappa * (1 + adapter.rank),
            lr_ratio=0.0 if whole else adapter.lr_ratio,
            normalized=(pretrains and self.spherical) if whole else adapter.normalized,
            weight_decay=self.weight_decay if decays else 0.0,
            trained=jnp.where((rows == 0) == whole, 1.0, 0.0),
        )
        return Problem.between_tasks(
            self.student,
            learns=learns,
            cosine=self.cosine,
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
    def up(self) -> Float[Array, " rows"]:
        """U at the start: 1/κ for the weights, 0 for the adapter's rows."""
        return jnp.zeros(1 + self.adapter.rank).at[0].set(1 / self.adapter.kappa)

    @property
    def lengths(self) -> Float[Array, " rows"]:
        """The lengths of the rows at the start: those of the weights and, 1, of the adapter's rows."""
        return jnp.ones(1 + self.adapter.rank).at[0].set(self.length)

    def random_start(self, key: PRNGKeyArray) -> Overlaps:
        """Random weights and a random adapter with U = 0 at dimension d ([`odes.random_overlaps`][])."""
        return random_overlaps(self.pretraining, key, up=self.up, length=self.lengths)

    def typical_start(self) -> Overlaps:
        r"""Weights with the typical overlap $|w|/\sqrt d$ with ω_s, and an adapter without overlaps, U = 0."""
        overlap = self.length / jnp.sqrt(self.sgd.dimension)
        cross = jnp.zeros((1 + self.adapter.rank, 2)).at[0].set(overlap * jnp.stack([self.cosine, jnp.ones(())]))
        return Overlaps(self.up[None], cross, jnp.diag(self.lengths**2))

    def fine_tuning(self, overlaps: Overlaps) -> Problem:
        """Fine-tuning from the weights at the given overlaps as a single-index problem of its own, in the frame (ω*, w0 = W)."""
        covariance = covariances(self.lora, overlaps)
        family = Family(self.student, teacher=self.target, adapter=self.adapter, sgd=self.sgd)
        return family.with_overlap(covariance.M[0, 0], covariance.Q[0, 0])
