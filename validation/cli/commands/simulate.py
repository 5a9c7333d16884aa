"""`searchphase simulate`: SGD at finite dimension."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import numpy as np

from odes import Problem, solve
from odes.gaussian import has_closed_form
from validation.cli.options import FileOptions, RunOptions, SweepOptions, noise_forbids, place_of
from validation.cli.report import lines_of, print_sample, table
from validation.cli.units import of_units, scalars
from validation.cli.values import OptionalInt, check
from validation.cli.work import ResumeOptions
from validation.figures.style import ESCAPE_LABEL, link_label, log_height, sweep_axis
from validation.jobs.engine import Failure
from validation.simulation.chain import chain_simulator
from validation.simulation.direct import direct_simulator
from validation.simulation.points import simulate_points
from validation.simulation.result import Simulation, even_steps, observables
from validation.simulation.simulator import Simulator
from validation.simulation.sweeps import Place, Sweep

_LINES = 64
"""The mean flow is that of so many seeds' starts."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """A sweep, and its table: of every point where it is, and what there is to say of its escape times."""

    sweep: Sweep
    table: list[dict[str, Any]]

    @classmethod
    def of(cls, sweep: Sweep) -> "Seen":
        """Looks at every point, once."""
        rows = zip(sweep.places, sweep.simulations, strict=True)
        return cls(sweep, [place._asdict() | statistics(some) for place, some in rows])

    @property
    def seeds(self) -> int:
        """How many there are at every point."""
        return self.table[0]["seeds"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulate(ResumeOptions, RunOptions, SweepOptions, FileOptions):
    """Train at finite dimension by one-pass SGD: several seeds, at one or several strengths, alignments, ranks and dimensions.

    With --output every block of seeds is stored as soon as it is finished, so that an interrupted run can go on. Seed n has the same
    random numbers in every run with the same --seed, and at every point.
    """

    method: Literal["direct", "chain", "gaussian"] = "direct"
    """"direct" trains d-dimensional weights; "chain" is exact in law at any d; "gaussian" is the chain with normal batch means."""
    seeds: int = 8
    """Number of independent runs at every point."""
    seed_offset: int = 0
    """Number of the first seed, so that parts of a run can be computed apart and put together by `searchphase merge`."""
    records: int = 100
    """Number of recorded times after the start."""
    until_escape: bool = False
    """Stop a block of seeds once all of them have escaped; its later records are left out (null)."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the samples."""
    block: OptionalInt = None
    """How many seeds, at most, advance together and are stored together; as many as are fastest unless given."""
    resume: bool = False
    """Go on with the run that stored to --output, same flags; start it if there is none, print it again if it is finished. More
    --seeds than a finished run has are added to it."""

    @property
    def brief(self) -> bool:
        return self.problem is None and has_closed_form(*self.links)  # but for its loops

    def compute(self) -> Seen:
        check("records", self.records, "at least 1", self.records >= 1)
        self.check_start()
        most = 2**32 - self.seeds
        check("seed_offset", self.seed_offset, "at least 0, with all seeds below 2^32", 0 <= self.seed_offset <= most)
        points = self.sweep()
        parts = self.parts(may_be_finished=True)
        steps = [even_steps(self.end_time(p), float(p.sgd.learning_rate), self.records) for p in points.values()]
        with self.work() as work:
            sweep = simulate_points(
                list(points.values()),
                self.simulator,
                places=list(points),
                key=jax.random.key(self.seed),
                seeds=self.seeds,
                first_seed=self.seed_offset,
                steps=steps,
                escape=self.escape,
                until_escape=self.until_escape,
                block=self.block,
                parts=parts,
                **work,
            )
        return Seen.of(sweep)

    def sweep(self) -> dict[Place, Problem]:
        problem = self.stored()
        return super().sweep() if problem is None else {place_of(problem): problem}

    def store(self, result: Seen, path: str) -> None:
        """Nothing is left to do: the result is stored as it comes."""

    def simulator(self, problem: Problem) -> Simulator:
        """The simulator that `--method` names."""
        if self.method == "direct":
            return direct_simulator(problem, up=self.up, dtype=self.dtype)
        return chain_simulator(problem, up=self.up, normal_batches=self.method == "gaussian", dtype=self.dtype)

    def document(self, result: Seen) -> dict[str, Any]:
        failed = {failure.name: failure.reason for failure in result.sweep.failures}
        return {"points": points_of(result.sweep)} | ({"failed": failed} if failed else {})

    def report(self, result: Seen) -> None:
        report(result)
        for row, problem in zip(result.table, result.sweep.simulations.problems, strict=True):
            if row["escaped"] == 0 and (words := noise_forbids(problem, self.escape, row["end"])):
                print(words)

    def failures(self, result: Seen) -> Sequence[Failure]:
        return result.sweep.failures

    def exit_code(self, result: Seen) -> int:
        return 1 if result.sweep.failures or any(row["diverged"] == row["seeds"] for row in result.table) else 0

    def draw(self, result: Seen) -> Any:
        return draw(result)


def described(simulation: Simulation) -> dict[str, Any]:
    """What is printed of one point: moments over the seeds that did not diverge, at every record, and escape times."""
    times = {"escape_times": simulation.escape_times, "diverged": int(simulation.diverged.sum())}
    return moments(simulation) | times


def points_of(sweep: Sweep) -> list[dict[str, Any]]:
    """What there is to say of every point, after where it is."""
    return [place._asdict() | described(some) for place, some in zip(sweep.places, sweep.simulations, strict=True)]


def statistics(simulation: Simulation) -> dict[str, Any]:
    """How many of the seeds escaped by the end, the mean of their escape times with its standard error, their standard deviation."""
    times = np.asarray(simulation.escape_times)
    times = times[np.isfinite(times)]
    std = times.std(ddof=1) if times.size > 1 else np.nan
    return {
        "escaped": times.size,
        "escape_time_mean": times.mean() if times.size else np.nan,
        "standard_error": std / np.sqrt(max(times.size, 1)),
        "escape_time_std": std,
        "diverged": int(simulation.diverged.sum()),
        "seeds": simulation.seed.size,
        "end": float(simulation.t[-1]),
    }


def report(seen: Seen) -> None:
    """Prints the statistics of several points, or one point at some of its records."""
    if len(seen.table) > 1:
        alike = {name for name in ("rank", "dimension") if len({row[name] for row in seen.table}) == 1}
        left_out = alike | {"seeds", "end"}
        print(table([{name: value for name, value in row.items() if name not in left_out} for row in seen.table]))
        print(f"{seen.seeds} seeds at every point; escape times are those of the seeds that escaped")
    else:
        (simulation,), (escaped,) = seen.sweep.simulations, seen.table
        print_sample(scalars(moments(simulation)))
        print(simulation)
        mean = f": mean {escaped['escape_time_mean']:.5g}" if escaped["escaped"] else ""
        spread = ", standard error {standard_error:.2g}, std {escape_time_std:.3g}" if escaped["escaped"] > 1 else ""
        print(f"{escaped['escaped']} of {seen.seeds} seeds escaped{mean}{spread.format(**escaped)}")
    if diverged := sum(row["diverged"] for row in seen.table):
        print(f"{diverged} seeds diverged and are left out of the means: try a smaller --learning-rate")


def moments(simulation: Simulation) -> dict[str, Any]:
    """Mean and standard deviation at every record over the seeds that did not diverge; NaN where some seed has no record."""
    columns: dict[str, Any] = {"t": simulation.t}
    diverged = simulation.diverged
    if simulation.problem.units == (1, 1):
        seen = {name: observables(simulation)[name] for name in ("m", "loss", "target_overlap")}
    else:
        seen = {"loss": simulation.loss} | of_units(simulation)
    for name, values in seen.items():
        values = np.asarray(values)
        whole = np.full_like(values, np.nan) if diverged.all() else values[~diverged]
        columns |= {f"{name}_mean": whole.mean(axis=0), f"{name}_std": whole.std(axis=0)}
    return columns


def draw(seen: Seen) -> Any:
    """The loss of one simulation, with theory's, or the mean escape times of several, with their standard errors, against strength."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(3.4, 2.6))
    title = link_label(seen.sweep.simulations.problems[0].student.name)
    if len(seen.table) == 1:
        (simulation,), (place,) = seen.sweep.simulations, seen.sweep.places
        simulation.plot(ax)
        times, loss = flow_beside(simulation)
        ax.plot(times, loss, "k-", linewidth=0.8, label="theory, mean over the starts")
        escapes = np.asarray(simulation.escape_times)
        if np.isfinite(escapes).any():
            ax.axvline(float(np.nanmean(escapes)), color="C0", linestyle=":", linewidth=1, label="mean escape")
        weights = rf"$\rho$ = {place.strength:g}, $c$ = {place.alignment:g}"
        if not simulation.problem.is_single_index:
            weights = "$K$ = {}, $P$ = {}".format(*simulation.problem.units)
        where = f"{weights}, $r$ = {place.rank}, $d$ = {place.dimension:g}"
        ax.set_title(f"{title}, {where}")
        ax.legend()
        return figure
    against, lines = lines_of(seen.table)
    for label, numbers, chosen in lines:
        means, errors = ([point[name] for point in chosen] for name in ("escape_time_mean", "standard_error"))
        ax.errorbar(numbers, means, errors, fmt="o", markersize=3, elinewidth=0.8, label=label)
    sweep_axis(ax, against)
    ax.set(ylabel=ESCAPE_LABEL, title=title)
    log_height(ax)
    if len(ax.containers) > 1:
        ax.legend()
    return figure


def flow_beside(simulation: Simulation) -> tuple[np.ndarray, np.ndarray]:
    """Times, to the last one that was recorded, and the mean loss of the flow of finite steps from the seeds' starts, 64 at most."""
    starts = jax.tree.map(lambda x: x[:_LINES], simulation.start)
    last = simulation.t[int(np.max(simulation.recorded)) - 1]
    options = {"finite_steps": True, "rtol": 1e-6, "atol": 1e-8, "adjoint": diffrax.ForwardMode()}
    runs = eqx.filter_vmap(lambda start: solve(simulation.problem, start, t1=last, **options))(starts)
    return np.asarray(runs.t[0]), np.asarray(runs.loss).mean(axis=0)
