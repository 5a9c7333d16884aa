"""`searchphase simulate`: SGD at finite dimension."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from validation.options import (
    BadInput,
    EscapeOptions,
    ModelOptions,
    OptionalFloat,
    OutputOptions,
    TrainingOptions,
    end_time,
    save_figure,
)
from validation.report import print_json, table
from validation.sgd import simulate_direct
from validation.style import figure_style
from validation.trajectories import even_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulate(OutputOptions, EscapeOptions, TrainingOptions, ModelOptions):
    """Train at finite dimension by one-pass SGD, several seeds."""

    method: Literal["direct"] = "direct"
    """The simulator: "direct" trains d-dimensional weights."""
    t1: OptionalFloat = None
    """Time at which training ends; 20 times tau unless given."""
    seeds: int = 8
    """Number of independent runs."""
    records: int = 100
    """Number of recorded times after the start."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the simulation."""

    def run(self) -> int:
        self.check_paths()
        escape, problem = self.escape, self.problem(self.sgd)
        self.check_start()
        t1 = end_time(self.t1, problem)
        if self.records < 1:
            raise BadInput(f"--records must be at least 1, but is {self.records}")
        simulation = simulate_direct(
            problem,
            key=jax.random.key(self.seed),
            seeds=self.seeds,
            steps=even_steps(t1, self.learning_rate, self.records),
            up=self.up,
            dtype=self.dtype,
            progress=True,
        )
        times = simulation.escape_times(escape)
        lengths = {"m": jnp.linalg.norm(simulation.m, axis=-1), "loss": simulation.loss}
        lengths["target_overlap"] = simulation.target_overlap
        columns: dict[str, Any] = {"t": simulation.t}
        for name, values in lengths.items():
            kept = np.asarray(values)[~np.asarray(simulation.diverged)]
            whole = kept if len(kept) else np.full_like(values, np.nan)
            columns |= {f"{name}_mean": whole.mean(axis=0), f"{name}_std": whole.std(axis=0)}
        diverged = int(simulation.diverged.sum())
        if self.json:
            print_json(columns | {"escape_times": times, "diverged": diverged})
        else:
            shown = np.unique(np.linspace(0, simulation.t.size - 1, 11).astype(int))
            print(table([{name: float(x[i]) for name, x in columns.items()} for i in shown]))
            print(simulation)
            out = np.asarray(times)[np.isfinite(times)]
            spread = f": mean {out.mean():.5g}, std {out.std():.3g}" if out.size else ""
            print(f"{out.size} of {times.size} seeds escaped{spread}")
            if diverged:
                print(f"{diverged} seeds diverged and are left out of the means: try a smaller --learning-rate")
        if self.output:
            simulation.save(self.output, command=dataclasses.asdict(self))
        if self.plot:
            with figure_style():
                import matplotlib.pyplot as plt

                figure, ax = plt.subplots(figsize=(3.4, 2.5))
                simulation.plot(ax)
                save_figure(figure, self.plot)
        return 0
