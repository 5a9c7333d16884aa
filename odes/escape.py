r"""What counts as escape from the search phase: one definition for theory, ODE and simulators."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes.arguments import require, require_known
from odes.flow import gradient_at
from odes.overlaps import Overlaps, pretrained, target_overlap
from odes.problem import Problem

CRITERIA = {
    "loss": "the population loss has fallen to `threshold` times its value at w0",
    "overlap": "|w.omega* - w0.omega*| has reached `threshold` times |1 - w0.omega*|",
}


class Escape(eqx.Module):
    r"""The first time at which a run has left the search phase.

    - `criterion` "loss": $\ell(t) \le \vartheta\,\ell(w_0)$; blind to signs, rank and basis;
    - `criterion` "overlap" (single-index): $|w\cdot\omega^* - w_0\cdot\omega^*| \ge \vartheta\,|1 - w_0\cdot\omega^*|$;
    - `threshold`: ϑ in (0, 1).

    **Raises** ValueError for an unknown criterion or a threshold outside (0, 1).
    """

    criterion: str = eqx.field(static=True)
    threshold: Float[Array, ""]

    def __init__(self, criterion: str = "loss", threshold: ScalarLike = 0.5):
        require_known("criterion", criterion, CRITERIA)
        self.criterion = criterion
        self.threshold = jnp.asarray(threshold, jnp.result_type(float))
        require("threshold", self.threshold, "between 0 and 1, both excluded", lambda x: np.logical_and(x > 0, x < 1))

    def value(
        self, problem: Problem, overlaps: Overlaps, loss: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        """What the criterion looks at: the loss (computed here unless given, which many overlaps need), or w·ω*."""
        if self.criterion == "loss":
            return gradient_at(problem, overlaps).loss if loss is None else loss
        return target_overlap(problem, overlaps)

    def reference(self, problem: Problem) -> Float[Array, ""]:
        """The criterion's value at w0."""
        return self.value(problem, pretrained(problem))

    def distance(self, value: Float[Array, "..."], reference: Float[Array, ""]) -> Float[Array, "..."]:
        """How far `value` is from escape, as a fraction of `reference` (loss) or of the way to the target (overlap).

        Positive before escape, zero at it.
        """
        if self.criterion == "loss":
            return value / reference - self.threshold
        return self.threshold - jnp.abs((value - reference) / (1 - reference))

    def margin(self, problem: Problem, overlaps: Overlaps, reference: Float[Array, ""]) -> Float[Array, ""]:
        """The [`Escape.distance`][] of given overlaps."""
        return self.distance(self.value(problem, overlaps), reference)
