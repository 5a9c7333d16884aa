"""`searchphase simulate`: SGD at finite dimension."""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from odes import Problem
from odes.arguments import ArgumentError
from validation.cli.options import RunOptions
from validation.cli.report import lines_of, print_sample, table
from validation.cli.values import OptionalInt, check
from validation.figures.style import ESCAPE_LABEL, STRENGTH_LABEL
from validation.simulation.chain import chain_simulator
from validation.simulation.direct import direct_simulator
from validation.simulation.points import simulate_points
from validation.simulation.result import Simulation, even_steps, observables
from validation.simulation.simulator import Simulator
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

    def compute(self) -> list[Simulation]:
        check("records", self.records, "at least 1", self.records >= 1)
        if self.resume and self.output is None:
            raise ArgumentError("resume", "goes on with what --output stored: give both")
        self.check_start()
        problems = self.problems(self.sgd)
        return simulate_points(
            problems,
            self.simulator,
            places=self.pretrained(),
            key=jax.random.key(self.seed),
            seeds=self.seeds,
            steps=[even_steps(self.end_time(problem), self.learning_rate, self.records) for problem in problems],
            escape=self.escape,
            until_escape=self.until_escape,
            block=self.block,
            parts=None if self.output is None else Parts(self.output, dataclasses.asdict(self), self.resume),
        )

    def store(self, result: list[Simulation], path: str) -> None:
        """Nothing is left to do: the result is stored as it comes."""

    def simulator(self, problem: Problem) -> Simulator:
        """The simulator that `--method` names."""
        if self.method == "direct":
            return direct_simulator(problem, up=self.up, dtype=self.dtype)
        return chain_simulator(problem, up=self.up, normal_batches=self.method == "gaussian", dtype=self.dtype)

    def placed(self, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What there is to say of every point, after where it is."""
        return [
            {"strength": strength, "alignment": alignment} | point
            for (strength, alignment), point in zip(self.pretrained(), points, strict=True)
        ]

    def document(self, result: list[Simulation]) -> dict[str, Any]:
        return {"points": self.placed([self.point(simulation) for simulation in result])}

    def point(self, simulation: Simulation) -> dict[str, Any]:
        """What is printed of one point: moments over the seeds that did not diverge, at every record, and escape times."""
        times = {"escape_times": simulation.escape_times, "diverged": int(simulation.diverged.sum())}
        return moments(simulation) | times

    def report(self, result: list[Simulation]) -> None:
        if len(result) > 1:
            print(table(self.placed([self.statistics(simulation) for simulation in result])))
            print(f"{self.seeds} seeds at every point; escape times are those of the seeds that escaped")
            return
        (simulation,) = result
        escaped = self.statistics(simulation)
        print_sample(moments(simulation))
        print(simulation)
        mean = f": mean {escaped['escape_time_mean']:.5g}" if escaped["escaped"] else ""
        spread = ", standard error {standard_error:.2g}, std {escape_time_std:.3g}" if escaped["escaped"] > 1 else ""
        print(f"{escaped['escaped']} of {self.seeds} seeds escaped{mean}{spread.format(**escaped)}")
        if escaped["diverged"]:
            print(f"{escaped['diverged']} seeds diverged and are left out of the means: try a smaller --learning-rate")

    def statistics(self, simulation: Simulation) -> dict[str, Any]:
        """How many seeds escaped, the mean of their escape times with its standard error, their standard deviation."""
        times = np.asarray(simulation.escape_times)
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

    def draw(self, result: list[Simulation]) -> Any:
        """The loss of one simulation, or the mean escape times of several, with their standard errors, against strength."""
        import matplotlib.pyplot as plt

        figure, ax = plt.subplots(figsize=(3.4, 2.5))
        if len(result) == 1:
            result[0].plot(ax)
            return figure
        points = self.placed([self.statistics(simulation) for simulation in result])
        for label, strengths, chosen in lines_of(points, mixture=bool(self.mixture)):
            means, errors = ([point[name] for point in chosen] for name in ("escape_time_mean", "standard_error"))
            ax.errorbar(strengths, means, errors, fmt="o", markersize=3, elinewidth=0.8, label=label)
        ax.set(yscale="log", xlabel=STRENGTH_LABEL, ylabel=ESCAPE_LABEL, title=f"{self.activation}, $d$ = {self.dim:g}")
        if len(ax.containers) > 1:
            ax.legend()
        return figure


def moments(simulation: Simulation) -> dict[str, Any]:
    """Mean and standard deviation at every record over the seeds that did not diverge; NaN where some seed has no record."""
    columns: dict[str, Any] = {"t": simulation.t}
    seen, diverged = observables(simulation), simulation.diverged
    for name in ("m", "loss", "target_overlap"):
        values = np.asarray(seen[name])
        whole = np.full_like(values, np.nan) if diverged.all() else values[~diverged]
        columns |= {f"{name}_mean": whole.mean(axis=0), f"{name}_std": whole.std(axis=0)}
    return columns
