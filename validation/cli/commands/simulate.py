"""`searchphase simulate`: SGD at finite dimension."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from odes import Problem
from validation.cli.options import BadInput, OptionalInt, RunOptions, save_figure
from validation.cli.report import print_json, table
from validation.figures.style import ESCAPE_LABEL, STRENGTH_LABEL, figure_style
from validation.simulation.chain import chain_simulator
from validation.simulation.direct import direct_simulator
from validation.simulation.ensemble import Simulator, simulate
from validation.simulation.result import Simulation, even_steps
from validation.simulation.store import Parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulate(RunOptions):
    """Train at finite dimension by one-pass SGD: several seeds, at one or several strengths.

    With --output every block of seeds is stored as soon as it is finished, so that an interrupted run can go on.
    """

    method: Literal["direct", "chain", "gaussian"] = "direct"
    """"direct" trains d-dimensional weights; "chain" is exact in law at any d; "gaussian" is the chain with normal batch means."""
    seeds: int = 8
    """Number of independent runs at every strength."""
    records: int = 100
    """Number of recorded times after the start."""
    until_escape: bool = False
    """Stop a block of seeds once all of them have escaped; its later records are left out (null)."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the samples."""
    block: OptionalInt = None
    """How many seeds, at most, advance together and are stored together; as many as are fastest unless given."""
    resume: bool = False
    """Go on with the run that stored to --output, same flags; start it if there is none, print it again if it is finished."""

    def run(self) -> int:
        simulations = self.simulations()
        if self.json:
            points = [self.point(simulation) for simulation in simulations]
            print_json({"points": self.placed(points)} if len(points) > 1 else points[0])
        elif len(simulations) > 1:
            self.report_points(simulations)
        else:
            self.report_one(simulations[0])
        if self.plot:
            self.draw(self.plot, simulations)
        return 0

    def simulator(self, problem: Problem) -> Simulator:
        """The simulator that `--method` names."""
        if self.method == "direct":
            return direct_simulator(problem, up=self.up, dtype=self.dtype)
        return chain_simulator(problem, up=self.up, normal_batches=self.method == "gaussian", dtype=self.dtype)

    def simulations(self) -> list[Simulation]:
        """The simulation at every point, computed or read; stored if `--output` is given.

        A single point has the seed's own key, several have keys folded with their number.
        """
        if self.records < 1:
            raise BadInput(f"--records must be at least 1, but is {self.records}")
        if self.resume and self.output is None:
            raise BadInput("--resume goes on with what --output stored: give both")
        escape, runs = self.escape, self.runs()
        simulators = [self.simulator(problem) for problem, _ in runs]
        parts = None if self.output is None else Parts(self.output, dataclasses.asdict(self), self.resume)
        finished = None if parts is None else parts.result([problem for problem, _ in runs])
        if finished is not None:
            return finished
        block = None if parts is None else parts.block_size()
        if block is None:
            block = simulators[0].seeds_at_once if self.block is None else self.block
        key = jax.random.key(self.seed)
        simulations = [
            simulate(
                simulator,
                key=key if len(runs) == 1 else jax.random.fold_in(key, number),
                seeds=self.seeds,
                steps=even_steps(t1, self.learning_rate, self.records),
                until=escape if self.until_escape else None,
                block=block,
                progress=True,
                kept=None if parts is None else parts.kept(number, block),
            )
            for number, (simulator, (_, t1)) in enumerate(zip(simulators, runs, strict=True))
        ]
        if parts is not None:
            parts.finish(simulations, self.pretrained(), block)
        return simulations

    def placed(self, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What there is to say of every point, after where it is."""
        return [
            {"strength": strength, "alignment": alignment} | point
            for (strength, alignment), point in zip(self.pretrained(), points, strict=True)
        ]

    def point(self, simulation: Simulation) -> dict[str, Any]:
        """What is printed of one point: moments over the seeds that did not diverge, at every record, and escape times."""
        times = {"escape_times": simulation.escape_times(self.escape), "diverged": int(simulation.diverged.sum())}
        return moments(simulation) | times

    def report_one(self, simulation: Simulation) -> None:
        columns, escaped = moments(simulation), self.statistics(simulation)
        shown = np.unique(np.linspace(0, simulation.t.size - 1, 11).astype(int))
        print(table([{name: float(x[i]) for name, x in columns.items()} for i in shown]))
        print(simulation)
        mean = f": mean {escaped['escape_time_mean']:.5g}" if escaped["escaped"] else ""
        spread = ", standard error {standard_error:.2g}, std {escape_time_std:.3g}" if escaped["escaped"] > 1 else ""
        print(f"{escaped['escaped']} of {self.seeds} seeds escaped{mean}{spread.format(**escaped)}")
        if escaped["diverged"]:
            print(f"{escaped['diverged']} seeds diverged and are left out of the means: try a smaller --learning-rate")

    def report_points(self, simulations: list[Simulation]) -> None:
        print(table(self.placed([self.statistics(simulation) for simulation in simulations])))
        print(f"{self.seeds} seeds at every point; escape times are those of the seeds that escaped")

    def statistics(self, simulation: Simulation) -> dict[str, Any]:
        """How many seeds escaped, the mean of their escape times with its standard error, their standard deviation."""
        times = np.asarray(simulation.escape_times(self.escape))
        times = times[np.isfinite(times)]
        mean = times.mean() if times.size else np.nan
        std = times.std(ddof=1) if times.size > 1 else np.nan
        return {
            "escaped": times.size,
            "escape_time_mean": mean,
            "standard_error": std / np.sqrt(max(times.size, 1)),
            "escape_time_std": std,
            "diverged": int(simulation.diverged.sum()),
        }

    def draw(self, path: str, simulations: list[Simulation]) -> None:
        """The loss of one simulation, or the escape times of several against strength."""
        with figure_style():
            import matplotlib.pyplot as plt

            figure, ax = plt.subplots(figsize=(3.4, 2.5))
            if len(simulations) == 1:
                simulations[0].plot(ax)
            else:
                self.draw_escape_times(ax, simulations)
            save_figure(figure, path)

    def draw_escape_times(self, ax, simulations: list[Simulation]) -> None:
        """Mean escape time with its standard error against strength (mu for mixtures), one colour per alignment."""
        points = self.placed([self.statistics(simulation) for simulation in simulations])
        for alignment in [None] if self.mixture else dict.fromkeys(point["alignment"] for point in points):
            chosen = [point for point in points if alignment is None or point["alignment"] == alignment]
            strengths = [point["strength"] * (point["alignment"] if self.mixture else 1) for point in chosen]
            means, errors = ([point[name] for point in chosen] for name in ("escape_time_mean", "standard_error"))
            label = "mixture" if alignment is None else f"alignment {alignment:g}"
            ax.errorbar(strengths, means, errors, fmt="o", markersize=3, elinewidth=0.8, label=label)
        ax.set(yscale="log", xlabel=STRENGTH_LABEL, ylabel=ESCAPE_LABEL, title=f"{self.activation}, $d$ = {self.dim:g}")
        if len(ax.containers) > 1:
            ax.legend()


def moments(simulation: Simulation) -> dict[str, Any]:
    """Mean and standard deviation at every record over the seeds that did not diverge; NaN where some seed has no record."""
    lengths = {"m": jnp.linalg.norm(simulation.m, axis=-1), "loss": simulation.loss}
    lengths["target_overlap"] = simulation.target_overlap
    columns: dict[str, Any] = {"t": simulation.t}
    for name, values in lengths.items():
        kept = np.asarray(values)[~np.asarray(simulation.diverged)]
        whole = kept if len(kept) else np.full_like(values, np.nan)
        columns |= {f"{name}_mean": whole.mean(axis=0), f"{name}_std": whole.std(axis=0)}
    return columns
