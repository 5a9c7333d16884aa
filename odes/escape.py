r"""What counts as escape from the search phase: one definition for theory, ODE and simulators."""

from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from odes.arguments import (
    ArgumentError,
    concrete,
    positive,
    real_array,
    require,
    require_integer,
    require_known,
    scalar,
)
from odes.equations import gradient_at
from odes.overlaps import Overlaps, pretrained, target_overlaps
from odes.problem import Problem
from odes.shown import Shown

CRITERIA = {
    "loss": "the population loss has fallen to `threshold` times its value at w0",
    "overlap": "a unit's |w.omega* - w0.omega*| has reached `threshold` times |1 - w0.omega*|",
    "absolute": "the population loss has fallen to `threshold`",
}


_THERE = 1e-9
"""A unit whose overlap differs by less from 1 has no way to go."""


class Escape(Shown):
    r"""The first time at which a run has left the search phase, or reached a goal.

    - `criterion` "loss": $\ell(t) \le \vartheta\,\ell(w_0)$; blind to signs, rank and basis;
    - `criterion` "overlap": $|w\cdot\omega^* - w_0\cdot\omega^*| \ge \vartheta\,|1 - w_0\cdot\omega^*|$ for one of the student's
        units that is not there already, both overlaps in units of $|\omega^*|^2$; ω* is the direction of the teacher's unit
        number `teacher_unit`, from 1;
    - `criterion` "absolute": $\ell(t) \le \vartheta$, which weights w0 of different quality share as a goal;
    - `threshold`: ϑ in (0, 1), for "absolute" any positive number.

    The criteria "loss" and "absolute" differ by the array `relative` alone and share compiled programs.

    **Raises** ArgumentError for an unknown criterion, a threshold outside its range or a unit that is no whole number from 1.
    """

    observable: Literal["loss", "overlap"] = eqx.field(static=True)
    teacher_unit: int = eqx.field(static=True)
    relative: Bool[Array, ""]
    threshold: Float[Array, ""]

    def __init__(self, criterion: str = "loss", threshold: ScalarLike = 0.5, teacher_unit: int = 1):
        require_known("criterion", criterion, CRITERIA)
        require_integer("teacher_unit", teacher_unit, "a whole number of at least 1")
        require("teacher_unit", teacher_unit, "a whole number of at least 1", lambda n: n >= 1)
        if teacher_unit > 1 and criterion != "overlap":
            raise ArgumentError("teacher_unit", "is for the criterion overlap alone")
        self.teacher_unit = teacher_unit
        self.observable = "overlap" if criterion == "overlap" else "loss"
        self.relative = jnp.asarray(criterion != "absolute")
        allowed, condition = "between 0 and 1, both excluded", lambda x: (x > 0) & (x < 1)
        if criterion == "absolute":
            allowed, condition = "positive and finite", positive
        self.threshold = real_array(scalar("threshold", threshold, allowed, condition))

    def shown(self) -> dict[str, Any]:
        known = concrete(self.relative)
        named = {"criterion": self.criterion if known else self.observable, "threshold": self.threshold}
        return named | self._unit

    @property
    def criterion(self) -> str:
        """The criterion's name, a key of `CRITERIA`; not known while the criterion is being traced."""
        return self.observable if self.relative else "absolute"

    def to_dict(self) -> dict[str, Any]:
        """Criterion, threshold and the teacher's unit unless it is the first, as JSON can hold them."""
        return {"criterion": self.criterion, "threshold": float(self.threshold)} | self._unit

    @property
    def _unit(self) -> dict[str, Any]:
        return {} if self.teacher_unit == 1 else {"teacher_unit": self.teacher_unit}

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> "Escape | None":
        """The criterion that `to_dict` described, None for none."""
        return None if values is None else cls(**values)

    def value(
        self, problem: Problem, overlaps: Overlaps, loss: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        """What the criterion looks at: the loss (computed here unless given, which many overlaps need), or w·ω* (..., K)."""
        if self.observable == "overlap":
            teachers = problem.units[1]
            require("teacher_unit", self.teacher_unit, f"one of the teacher's {teachers}", lambda n: n <= teachers)
            direction = problem.target[self.teacher_unit - 1]
            overlap = target_overlaps(problem, overlaps)[..., self.teacher_unit - 1]
            return overlap / (direction @ problem.frame_gram @ direction)
        return gradient_at(problem, overlaps).loss if loss is None else loss

    def reference(self, problem: Problem, origin: Overlaps | None = None) -> Float[Array, "*K"]:
        """The criterion's value at w0, that is at U = 0 and no overlap, or at the `origin` of a problem that has no frozen w0."""
        return self.value(problem, pretrained(problem) if origin is None else origin)

    def distance(self, value: Float[Array, "..."], reference: Float[Array, "..."]) -> Float[Array, "..."]:
        """How far `value` is from escape: as a fraction of the loss to be reached, or of the way to the target (overlap).

        Positive before escape, zero at it.
        """
        if self.observable == "overlap":
            reference = jnp.broadcast_to(reference, value.shape)
            way = 1 - reference
            gone = jnp.where(jnp.abs(way) > _THERE, (value - reference) / jnp.where(jnp.abs(way) > _THERE, way, 1), 0)
            return jnp.min(self.threshold - jnp.abs(gone), axis=-1)
        return value / (self.threshold * jnp.where(self.relative, reference, 1)) - 1

    def margin(self, problem: Problem, overlaps: Overlaps, reference: Float[Array, "*K"]) -> Float[Array, ""]:
        """The [`Escape.distance`][] of given overlaps."""
        return self.distance(self.value(problem, overlaps), reference)
