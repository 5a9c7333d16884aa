"""`searchphase solve`: the closed equations from a random start."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from odes import log_times, random_overlaps, solve
from validation.cli.options import BadInput, RunOptions, save_figure
from validation.cli.report import print_json, table
from validation.figures.style import TIME_LABEL, figure_style


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solve(RunOptions):
    """Integrate the closed equations of the overlaps from a random start at dimension d (exit code 1 if that fails)."""

    records: int = 201
    """Number of output times."""
    log_times: bool = False
    """Space the output times evenly in log t."""
    rtol: float = 1e-8
    """Relative tolerance of the integrator."""
    atol: float = 1e-10
    """Absolute tolerance of the integrator."""

    def run(self) -> int:
        problem, t1 = self.only_run()
        if self.records < 2:
            raise BadInput(f"--records must be at least 2, but is {self.records}")
        times = log_times(t1, self.records) if self.log_times else jnp.linspace(0, t1, self.records)
        start = random_overlaps(problem, jax.random.key(self.seed), up=self.up)
        solution = solve(problem, start, t1=t1, times=times, escape=self.escape, rtol=self.rtol, atol=self.atol)
        columns = {
            "t": solution.t,
            "loss": solution.loss,
            "m": solution.m.T,
            "u": solution.u.T,
            "s": solution.s.T,
            "target_overlap": solution.target_overlap,
        }
        if self.json:
            stats = {"escape_time": solution.escape_time, "steps_taken": solution.steps_taken}
            print_json(columns | stats | {"result": solution.message})
        else:
            shown = np.unique(np.linspace(0, self.records - 1, 11).astype(int))
            first = {name: x if x.ndim == 1 else x[0] for name, x in columns.items()}
            print(table([{name: float(x[i]) for name, x in first.items()} for i in shown]))
            print(solution)
        if self.output:
            solution.save(self.output, command=dataclasses.asdict(self))
        if self.plot:
            with figure_style():
                import matplotlib.pyplot as plt

                figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.5))
                solution.plot(axes[0])
                for label, values in (("$m$", solution.m), ("$u$", solution.u)):
                    lines = axes[1].plot(solution.t, values, color=f"C{len(axes[1].lines) > 0:d}")
                    lines[0].set_label(label)
                axes[1].plot(solution.t, solution.target_overlap, "k--", label=r"$w\cdot\omega^*$")
                axes[1].set(xlabel=TIME_LABEL, ylabel="overlap")
                axes[1].legend()
                save_figure(figure, self.plot)
        return 0 if solution.successful else 1
