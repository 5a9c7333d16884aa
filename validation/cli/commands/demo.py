"""`searchphase demo`: escape times, the ODE and finite-d SGD side by side, in about a minute."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from odes import SGD, Escape, Problem, Solution, solve
from odes.storage import write_dataset, write_whole
from theory import sweep
from validation.cli.report import table
from validation.cli.values import DeviceOptions, writable_folder
from validation.figures.style import COLOURS, LOSS_LABEL, STRENGTH_LABEL, TAU_LABEL, TIME_LABEL, figure_style
from validation.simulation.direct import simulate_direct
from validation.simulation.result import Simulation, even_steps

ACTIVATIONS = ("linear", "relu", "erf", "sigmoid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(DeviceOptions):
    """The main job in about a minute: tau(mu), the ODE and SGD at d = 1000 from the same start, one figure, its data."""

    output: str = "demo"
    """Folder for demo.png, demo.pdf and demo.nc; made if it is missing."""
    seeds: int = 6
    """Number of SGD runs."""
    seed: int = 0
    """Seed of the random numbers."""

    def run(self) -> int:
        began = time.perf_counter()
        folder = writable_folder("output", self.output)
        strengths = np.linspace(0.05, 0.95, 181)
        taus = {name: np.asarray(sweep(name, strength=strengths).tau) for name in ACTIVATIONS}
        print("Search-phase time tau at pretrained strength mu (w0 = mu * target, gradient flow, kappa = chi = 1):\n")
        rows = range(10, 181, 20)
        print(table([{"mu": strengths[i].round(2)} | {name: taus[name][i] for name in ACTIVATIONS} for i in rows]))

        problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=1000, batch_size=500, learning_rate=0.2))
        print(
            f"\nTraining {self.seeds} seeds from one start: erf, mu = 0.5, d = 1000, B = 500, eta = 0.2 ...", flush=True
        )
        simulation = simulate_direct(
            problem,
            key=jax.random.key(self.seed),
            seeds=self.seeds,
            steps=even_steps(300.0, 0.2, 30),
            escape=Escape(),
            shared_start=True,
            progress=True,
        )
        start = jax.tree.map(lambda x: x[0, 0], simulation.overlaps)
        solution = solve(problem, start, t1=300.0, escape=Escape())
        simulated = np.asarray(simulation.escape_times)
        spread = np.nanstd(simulated, ddof=1) if self.seeds > 1 else np.nan
        print(f"Escape (loss halved): ODE t = {float(solution.escape_time):.1f}, ", end="")
        print(f"SGD t = {np.nanmean(simulated):.1f} +- {spread / np.sqrt(self.seeds):.1f} (standard error)")

        for suffix in ("png", "pdf"):
            with figure_style():
                write_whole(folder / f"demo.{suffix}", _figure(strengths, taus, solution, simulation).savefig)
        dataset = simulation.to_dataset().assign_coords(strength=strengths)
        for name, tau in taus.items():
            dataset[f"tau_{name}"] = ("strength", tau)
        for name, values in solution.to_dataset().rename(time="ode_time").items():
            dataset[f"ode_{name}"] = values
        write_dataset(dataset, folder / "demo.nc", kind="demo", problem=problem.to_dict(), seed=self.seed)
        print(f"Wrote {folder}/demo.png, demo.pdf and demo.nc in {time.perf_counter() - began:.0f} s")
        return 0


def _figure(strengths: np.ndarray, taus: dict[str, np.ndarray], solution: Solution, simulation: Simulation):
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(6.9, 2.3))
    for name, tau in taus.items():
        left.plot(strengths, tau, color=COLOURS[name], label=name)
    left.set(yscale="log", xlabel=STRENGTH_LABEL, ylabel=TAU_LABEL, title="search phase, theory")
    left.legend()

    def points(ax, values, colour):
        error = values.std(axis=0, ddof=1) if values.shape[0] > 1 else None
        ax.errorbar(simulation.t, values.mean(axis=0), error, fmt="o", color=colour, markersize=2.5, elinewidth=0.7)

    curves = (
        (r"$|v\cdot\omega^*|$", jnp.abs(solution.m[:, 0]), jnp.abs(simulation.m[..., 0])),
        (r"$w\cdot\omega^*$", solution.target_overlap, simulation.target_overlap),
    )
    for i, (label, theory, simulated) in enumerate(curves):
        middle.plot(solution.t, theory, color=f"C{i}", label=label)
        points(middle, simulated, f"C{i}")
    middle.set(xlabel=TIME_LABEL, ylabel="overlap", title=r"erf, $\mu = 0.5$, $d = 1000$")
    middle.legend(loc="lower right")
    right.plot(solution.t, solution.loss, color=COLOURS["erf"], label="ODE")
    points(right, simulation.loss, COLOURS["erf"])
    right.plot([], [], "o", color=COLOURS["erf"], markersize=2.5, label="SGD")
    right.axvline(float(solution.escape_time), color="0.5", linestyle=":", label="escape")
    right.set(xlabel=TIME_LABEL, ylabel=LOSS_LABEL, title=f"same start, {simulation.loss.shape[0]} seeds")
    right.legend(loc="upper right", handlelength=1.2)
    return figure
