"""What trajectories of the overlaps have in common, integrated or simulated, one or many."""

import equinox as eqx
from jaxtyping import Array, Float

from odes.overlaps import Overlaps, target_overlap
from odes.problem import Problem


class Trajectory(eqx.Module):
    """Overlaps along a trajectory, (T,) or (seeds, T) in front of every shape, and the single-index names of their parts."""

    overlaps: eqx.AbstractVar[Overlaps]
    problem: eqx.AbstractVar[Problem]

    @property
    def m(self) -> Float[Array, "*batch r"]:
        """Overlap of every adapter row with the target, v·ω* (single-index)."""
        self.problem.require_single_index()
        return self.overlaps.cross[..., 0]

    @property
    def s(self) -> Float[Array, "*batch r"]:
        """Overlap of every adapter row with the frozen weights, v·w0 (single-index)."""
        self.problem.require_single_index()
        return self.overlaps.cross[..., 1]

    @property
    def u(self) -> Float[Array, "*batch r"]:
        """The up-projection of the one student unit, one entry per adapter row (single-index)."""
        self.problem.require_single_index()
        return self.overlaps.up[..., 0, :]

    @property
    def target_overlap(self) -> Float[Array, "*batch"]:
        """w·ω* of the whole student (single-index)."""
        return target_overlap(self.problem, self.overlaps)
