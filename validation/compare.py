r"""Theory against simulation, trajectory by trajectory, from the same realised start."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import Escape, Overlaps, Solution, solve
from validation.trajectories import Simulation

OBSERVABLES = ("loss", "target_overlap", "m", "u")
"""The compared quantities; m and u enter as lengths over the adapter's rows, blind to the symmetry (u, X) -> (-u, -X)."""


def observables(trajectory: Simulation | Solution) -> dict[str, Array]:
    """The compared quantities of a simulation (seeds, T) or of a batch of solutions with as many rows."""
    return {
        "loss": trajectory.loss,
        "target_overlap": trajectory.target_overlap,
        "m": jnp.linalg.norm(trajectory.m, axis=-1),
        "u": jnp.linalg.norm(trajectory.u, axis=-1),
    }


class Comparison(eqx.Module):
    r"""The deviation of simulated from predicted trajectories, each seed compared with the ODE from its own start.

    For each observable, (T,): `deviation`, the mean over seeds of simulation - theory; `standard_error` of that mean;
    `scatter`, the standard deviation over seeds of the simulated trajectories themselves.
    """

    t: Float[Array, " T"]
    deviation: dict[str, Float[Array, " T"]]
    standard_error: dict[str, Float[Array, " T"]]
    scatter: dict[str, Float[Array, " T"]]
    theory: Solution

    @property
    def z(self) -> dict[str, Float[Array, " T"]]:
        """Deviation in standard errors, NaN where the seeds do not differ (at the start)."""
        return {
            name: jnp.where(error > 0, self.deviation[name] / jnp.where(error > 0, error, 1), jnp.nan)
            for name, error in self.standard_error.items()
        }

    def summary(self) -> list[dict[str, float | str]]:
        """Per observable: mean and largest |z|, the z of the deviation's trend in time, the largest deviation over scatter.

        The trend is the slope of a straight line through z(t); its standard error is that of independent seeds' z at
        full correlation in time, a lower bound on |trend z|'s uncertainty.
        """
        rows = []
        for name, z in self.z.items():
            z = np.asarray(z)[np.isfinite(z)]
            ratio = np.asarray(jnp.abs(self.deviation[name]) / jnp.where(self.scatter[name] > 0, self.scatter[name], jnp.inf))
            rows.append(
                {
                    "name": name,
                    "mean_z": float(z.mean()),
                    "rms_z": float(np.sqrt((z**2).mean())),
                    "max_abs_z": float(np.abs(z).max()),
                    "first_half_mean_z": float(z[: z.size // 2].mean()),
                    "second_half_mean_z": float(z[z.size // 2 :].mean()),
                    "max_deviation_in_scatter": float(ratio.max()),
                }
            )
        return rows


def compare(simulation: Simulation, *, rtol: float = 1e-8, atol: float = 1e-10) -> Comparison:
    """Solves the ODE from every seed's realised start and compares at every recorded time."""
    start = jax.tree.map(lambda x: x[:, 0], simulation.overlaps)
    theory = theory_from(simulation, start, rtol=rtol, atol=atol)
    simulated, predicted = observables(simulation), _batched_observables(theory)
    seeds = simulation.loss.shape[0]
    difference = {name: simulated[name] - predicted[name] for name in OBSERVABLES}
    return Comparison(
        t=simulation.t,
        deviation={name: x.mean(axis=0) for name, x in difference.items()},
        standard_error={name: x.std(axis=0, ddof=1) / np.sqrt(seeds) for name, x in difference.items()},
        scatter={name: x.std(axis=0, ddof=1) for name, x in simulated.items()},
        theory=theory,
    )


@eqx.filter_jit
def theory_from(
    simulation: Simulation, starts: Overlaps, *, escape: Escape | None = None, rtol: float = 1e-8, atol: float = 1e-10
) -> Solution:
    """The ODE's solutions at the simulation's recorded times from a batch of starts (seeds in front)."""
    t = simulation.t

    def one(start: Overlaps) -> Solution:
        return solve(simulation.problem, start, t1=t[-1], times=t, escape=escape, rtol=rtol, atol=atol)

    return eqx.filter_vmap(one)(starts)


_batched_observables = eqx.filter_vmap(observables)
