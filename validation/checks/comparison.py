r"""Theory against simulation, trajectory by trajectory, from the same realised start."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import Solution, solve
from odes.arguments import require
from odes.programs import program
from validation.simulation.result import OBSERVABLES, Simulation, observables


class Comparison(eqx.Module):
    r"""The deviation of simulated from predicted trajectories, each seed compared with the ODE from its own start.

    For each observable, (T,):

    - `deviation`: the mean over seeds of simulation - theory;
    - `standard_error` of that mean over seeds, with the resolution of the arithmetic (ten roundings of the simulation's
        floating point type, or the ODE's tolerance if that is coarser, times the observable's largest value) added in
        quadrature. Without it z would be meaningless once all seeds have converged to the same weights;
    - `scatter`: the standard deviation over seeds of the simulated trajectories themselves.
    """

    t: Float[Array, " T"]
    deviation: dict[str, Float[Array, " T"]]
    standard_error: dict[str, Float[Array, " T"]]
    scatter: dict[str, Float[Array, " T"]]
    theory: Solution

    @property
    def z(self) -> dict[str, Float[Array, " T"]]:
        """Deviation in standard errors."""
        return {name: self.deviation[name] / self.standard_error[name] for name in OBSERVABLES}

    def summary(self) -> list[dict[str, float | str]]:
        """Per observable: z averaged over the first and the second half of the records after the start, its root mean
        square and largest size, and the largest deviation in units of the seeds' largest scatter."""
        rows = []
        for name, z in self.z.items():
            first, second = np.array_split(np.asarray(z)[1:], 2)
            rows.append(
                {
                    "name": name,
                    "mean_z_first_half": float(first.mean()),
                    "mean_z_second_half": float(second.mean()),
                    "rms_z": float(np.sqrt(np.mean(np.asarray(z)[1:] ** 2))),
                    "max_abs_z": float(np.abs(z).max()),
                    "deviation_over_scatter": float(jnp.abs(self.deviation[name]).max() / self.scatter[name].max()),
                }
            )
        return rows


def compare(simulation: Simulation, *, rtol: float = 1e-8, atol: float = 1e-10) -> Comparison:
    """Solves the ODE from every seed's realised start and compares at every recorded time.

    **Raises** ArgumentError for fewer than two seeds, which have no scatter.
    """
    seeds = simulation.loss.shape[0]
    require("seeds", seeds, "at least 2 to be compared", lambda n: n >= 2)
    theory = _theory(simulation, rtol, atol)
    simulated, predicted = observables(simulation), eqx.filter_vmap(observables)(theory)
    resolution = max(10 * float(jnp.finfo(simulation.dtype).eps), rtol)

    def error(simulated: Array, difference: Array) -> Array:
        return jnp.hypot(difference.std(axis=0, ddof=1) / np.sqrt(seeds), resolution * jnp.abs(simulated).max())

    difference = {name: simulated[name] - predicted[name] for name in OBSERVABLES}
    return Comparison(
        t=simulation.t,
        deviation={name: x.mean(axis=0) for name, x in difference.items()},
        standard_error={name: error(simulated[name], x) for name, x in difference.items()},
        scatter={name: x.std(axis=0, ddof=1) for name, x in simulated.items()},
        theory=theory,
    )


@program
def _theory(simulation: Simulation, rtol: float, atol: float) -> Solution:
    """The ODE's solutions at the recorded times, from every seed's first record."""
    t = simulation.t - simulation.t[0]
    return eqx.filter_vmap(lambda y: solve(simulation.problem, y, t1=t[-1], times=t, rtol=rtol, atol=atol))(
        simulation.start
    )
