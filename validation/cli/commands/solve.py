"""`searchphase solve`: the closed equations from a random start."""

import dataclasses
from typing import Any

import diffrax
import jax
import numpy as np
from jaxtyping import Array

from odes import Problem, Solution, log_times, random_overlaps, solve
from odes.gaussian import has_closed_form
from odes.programs import ahead, program
from theory import Saddle, saddles
from validation.cli.options import FileOptions, ModelOptions, RunOptions, SGDOptions, noise_forbids
from validation.cli.report import print_sample, rows_of, table
from validation.cli.units import draw_units, of_units, points_error, scalars
from validation.cli.values import check
from validation.figures.style import TIME_LABEL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solve(RunOptions, SGDOptions, ModelOptions, FileOptions):
    """Integrate the closed equations of the overlaps from a random start at dimension d (exit code 1 if that fails)."""

    records: int = 201
    """Number of output times."""
    log_times: bool = False
    """Space the output times evenly in log t."""
    rtol: float = 1e-8
    """Relative tolerance of the integrator."""
    atol: float = 1e-10
    """Absolute tolerance of the integrator."""
    saddles: bool = False
    """Also find the saddles that the trajectory passes: their loss, the rates out of them, and how long it stays (records resolve them)."""

    @property
    def brief(self) -> bool:
        return self.problem is None and has_closed_form(*self.links)

    def compute(self) -> Solution:
        self.check_start()
        problem = self.stored() or self.asked(self.sgd)
        least = 3 if self.saddles else 2
        check("records", self.records, f"at least {least}", self.records >= least)
        ahead(lambda: columns(self.solved(problem, 1.0)))
        return self.solved(problem, self.end_time(problem))

    def solved(self, problem: Problem, t1: float) -> Solution:
        """The solution until a time."""
        times = log_times(t1, self.records) if self.log_times else np.linspace(0, t1, self.records)
        start = random_overlaps(problem, jax.random.key(self.seed), up=self.up)
        options = {"rtol": self.rtol, "atol": self.atol, "adjoint": diffrax.ForwardMode()}
        return solve(problem, start, t1=t1, times=times, escape=self.escape, **options)

    def document(self, result: Solution) -> dict[str, Any]:
        stats = {"escape_time": result.escape_time, "steps_taken": result.steps_taken, "result": result.message}
        passed = {"saddles": [rows_of_saddle(saddle) for saddle in saddles(result)]} if self.saddles else {}
        return columns(result) | stats | passed

    def report(self, result: Solution) -> None:
        print_sample(scalars(columns(result)))
        print(result)
        if error := points_error(result.problem, result.final):
            print(error)
        if self.saddles:
            self.report_saddles(result)
        if not np.isfinite(result.escape_time) and (
            words := noise_forbids(result.problem, self.escape, float(result.t_final))
        ):
            print(words)

    def report_saddles(self, result: Solution) -> None:
        """A line for every saddle."""
        rows = [rows_of_saddle(saddle) for saddle in saddles(result)]
        if not rows:
            print("no saddles on the way (more records may show some)")
            return
        print("saddles on the way (rates out of them, times that the rate is as large):")
        for row in rows:
            rates = zip(row.pop("rates"), row.pop("multiplicities"), strict=True)
            row["rates"] = ", ".join(f"{rate:.4g}" + (f" ({many} times)" if many > 1 else "") for rate, many in rates)
        print(table(rows))

    def rows(self, result: Solution) -> list[dict[str, Any]]:
        table = {name: np.asarray(values).tolist() for name, values in scalars(columns(result)).items()}
        return rows_of(table)

    def store(self, result: Solution, path: str) -> None:
        result.save(path, command=self.flags)

    def draw(self, result: Solution) -> Any:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.5))
        result.plot(axes[0])
        if result.problem.units != (1, 1):
            draw_units(axes[1], result)
            return figure
        for label, values in (("$m$", result.m), ("$u$", result.u)):
            lines = axes[1].plot(result.t, values, color=f"C{len(axes[1].lines) > 0:d}")
            lines[0].set_label(label)
        axes[1].plot(result.t, result.target_overlap, "k--", label=r"$w\cdot\omega^*$")
        axes[1].set(xlabel=TIME_LABEL, ylabel="overlap")
        axes[1].legend()
        return figure

    def exit_code(self, result: Solution) -> int:
        return 0 if result.successful else 1


def rows_of_saddle(saddle: Saddle) -> dict[str, Any]:
    """What is said of a saddle."""
    names = ("loss", "entered", "left", "residence", "predicted", "share")
    numbers = {name: float(getattr(saddle, name)) for name in names}
    return numbers | {"rates": saddle.rates.tolist(), "multiplicities": list(saddle.multiplicities)}


def columns(solution: Solution) -> dict[str, Any]:
    """What is printed of a solution, by name: overlaps of the one unit, or covariances of several and readouts that are trained."""
    if solution.problem.units != (1, 1):
        return {"t": solution.t, "loss": solution.loss} | of_units(solution)
    names = ("t", "loss", "m", "u", "s", "target_overlap")
    trained = {} if solution.overlaps.readout is None else {"readout": solution.overlaps.readout}
    return dict(zip(names, _columns(solution), strict=True)) | trained


@program
def _columns(solution: Solution) -> tuple[Array, ...]:
    return solution.t, solution.loss, solution.m.T, solution.u.T, solution.s.T, solution.target_overlap
