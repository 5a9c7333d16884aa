"""What trajectories of the overlaps have in common, integrated or simulated, one or many."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odes.overlaps import Covariances, Overlaps, covariances, target_overlap
from odes.problem import Problem
from odes.programs import program
from odes.shown import Shown


class Trajectory(Shown):
    """Overlaps along a trajectory, (T,) or (seeds, T) in front of every shape, and the names of their parts for one unit."""

    overlaps: eqx.AbstractVar[Overlaps]
    problem: eqx.AbstractVar[Problem]

    def __repr__(self) -> str:
        return str(self)

    @property
    def m(self) -> Float[Array, "*batch r"]:
        """Overlap of every adapter row with the target, v·ω*."""
        return self._along("target")

    @property
    def s(self) -> Float[Array, "*batch r"]:
        """Overlap of every adapter row with the frozen weights, v·w0, or with the source where none are frozen."""
        return self._along("pretrained" if self.problem.is_single_index else "source")

    @property
    def u(self) -> Float[Array, "*batch r"]:
        """The up-projection of the one student unit, one entry per adapter row."""
        self.problem.require_one_unit()
        return self.overlaps.up[..., 0, :]

    @property
    def target_overlap(self) -> Float[Array, "*batch"]:
        """w·ω* of the whole student, ω* being what it learns."""
        return target_overlap(self.problem, self.overlaps)

    @property
    def covariances(self) -> Covariances:
        """Q (*batch, K, K), M (*batch, K, P) and P of the preactivations."""
        return _covariances(self.problem, self.overlaps)

    @property
    def readout(self) -> Float[Array, "*batch K"]:
        """The readouts a, those of the problem where they rest."""
        if self.overlaps.readout is not None:
            return self.overlaps.readout
        return jnp.broadcast_to(self.problem.readout, (*self.overlaps.up.shape[:-2], self.problem.units[0]))

    def _along(self, direction: str) -> Float[Array, "*batch r"]:
        self.problem.require_one_unit()
        return self.overlaps.cross[..., self.problem.along(direction)]


@program
def _covariances(problem: Problem, overlaps: Overlaps) -> Covariances:
    batch = overlaps.up.shape[:-2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), overlaps)
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), jax.vmap(lambda at: covariances(problem, at))(flat))
