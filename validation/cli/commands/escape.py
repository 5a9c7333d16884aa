"""`searchphase escape`: the search phase of pretrained weights, analytically."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odes import Problem
from odes.storage import write_dataset
from theory import REGIMES, EscapeLaw, critical_points, escape_law, largest_noise_scale, plateau, sweep
from validation.cli.options import (
    EscapeOptions,
    ModelOptions,
    OptionalFloat,
    OutputOptions,
    TrainingOptions,
    save_figure,
)
from validation.cli.report import print_json, table
from validation.figures.style import STRENGTH_LABEL, TAU_LABEL, figure_style

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Escape(OutputOptions, EscapeOptions, ModelOptions):
    """Rate and time scale of the search phase, critical strengths and, at a dimension, the law of the escape time."""

    dim: OptionalFloat = None
    """Dimension d; gives the law of the escape time over random starts and SGD noise (needs more time)."""
    noise_limit: bool = False
    """Also find the largest noise scale theta = eta * d / B at which SGD still escapes (needs more time)."""
    batch_size: float = float("inf")
    """Fresh samples per SGD step; inf is gradient flow."""
    learning_rate: float = 0.2
    """Learning rate eta of the down-matrix; time is t = eta * step."""
    label_noise: float = 0.0
    """Variance of the noise on the labels."""

    def run(self) -> int:
        self.check_paths()
        places = np.asarray(self.pretrained())
        student, teacher = self.links
        escape, adapter = self.escape, self.adapter
        sgd = TrainingOptions(
            dim=1000.0 if self.dim is None else self.dim,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            label_noise=self.label_noise,
        ).sgd
        phase = sweep(student, strength=places[:, 0], alignment=places[:, 1], teacher=teacher, adapter=adapter, sgd=sgd)

        def problem_at(place) -> Problem:
            return Problem.single_index(
                student, strength=place[0], alignment=place[1], teacher=teacher, adapter=adapter, sgd=sgd
            )

        columns: dict[str, Any] = {"strength": places[:, 0], "alignment": places[:, 1]}
        columns |= {name: np.asarray(getattr(phase, name)) for name in ("C", "D", "G", "noise", "loss", "rate", "tau")}
        plateaus: list[dict[str, float] | None] = [None] * len(places)
        columns["plateau"] = plateaus
        if np.any(columns["D"] < 0):
            settled = jax.jit(jax.vmap(lambda place: plateau(problem_at(place))))(places)
            for i in np.flatnonzero(np.isfinite(settled.up)):
                names = ("up", "rate", "tau", "drift")
                plateaus[i] = {name: float(getattr(settled, name)[i]) for name in names}
        columns |= self.law(places, lambda place: escape_law(problem_at(place), escape))
        columns["largest_noise_scale"] = np.full(len(places), np.nan)
        if self.noise_limit:
            limits = [largest_noise_scale(problem_at(jnp.asarray(place)), escape) for place in places]
            columns["largest_noise_scale"] = np.asarray(limits)
        points = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        critical = self.critical(student, teacher, places)
        self.report(points, critical)
        if self.output:
            self.save(self.output, columns, critical)
        if self.plot:
            self.draw(self.plot, points, critical)
        return 0

    def law(self, places: np.ndarray, law_at: Callable[[jax.Array], EscapeLaw]) -> dict[str, Any]:
        """The law's columns: mean, std, quantiles, and why it is not given where it is not (all empty without a dimension)."""
        if self.dim is None:
            empty = {f"escape_time_{name}": np.full(len(places), np.nan) for name in ("mean", "std")}
            return empty | {f"escape_time_{name}": [None] * len(places) for name in ("quantiles", "doubt")}

        def summary(place: jax.Array) -> tuple[jax.Array, ...]:
            law = law_at(place)
            return law.mean, law.std, law.quantile(np.array(_QUANTILES)), law.regime

        mean, std, quantiles, regime = (np.asarray(x) for x in jax.jit(jax.vmap(summary))(places))
        named = [dict(zip(map(str, _QUANTILES), row.tolist(), strict=True)) for row in quantiles]
        columns = {"mean": mean, "std": std, "quantiles": named, "doubt": [REGIMES[i] or None for i in regime]}
        return {f"escape_time_{name}": values for name, values in columns.items()}

    def critical(self, student, teacher, places: np.ndarray) -> list[dict[str, float]]:
        """The gradient's zeros along each family, up to the largest strength asked for or 1 (to mu = 1 for mixtures)."""
        families = [None] if self.mixture else [float(c) for c in dict.fromkeys(places[:, 1])]
        low, high = jnp.asarray(0.01), jnp.asarray(1.0 if self.mixture else max(1.0, float(places[:, 0].max())))
        found = []
        for alignment in families:
            cosine = None if alignment is None else jnp.asarray(alignment)
            zeros = critical_points(student, low=low, high=high, teacher=teacher, alignment=cosine)
            for strength, prefactor in zip(zeros.strength.tolist(), zeros.prefactor.tolist(), strict=True):
                if np.isfinite(strength):
                    found.append({"strength": strength, "alignment": alignment, "prefactor": prefactor})
        return found

    def report(self, points: list[dict], critical: list[dict]) -> None:
        if self.json:
            zeros = [zero["strength"] for zero in critical]
            print_json({"points": points, "critical_strengths": zeros, "divergences": critical})
            return
        hidden = {"escape_time_quantiles", "escape_time_doubt"}
        if self.dim is None:
            hidden |= {"escape_time_mean", "escape_time_std"}
        if not self.noise_limit:
            hidden.add("largest_noise_scale")
        if not any(point["plateau"] for point in points):
            hidden.add("plateau")
        rows = [{name: value for name, value in point.items() if name not in hidden} for point in points]
        for row in rows:
            if row.get("plateau"):
                row["plateau"] = "|u| = {up:.4g}, rate {rate:.4g}, drift {drift:.4g}".format(**row["plateau"])
        print(table(rows))
        for point in points:
            place = f"strength {point['strength']:g}, alignment {point['alignment']:g}"
            if point["escape_time_doubt"]:
                print(f"no escape time at {place}: {point['escape_time_doubt']}")
            elif self.dim is not None:
                spread = ", ".join(f"{level}: {time:.4g}" for level, time in point["escape_time_quantiles"].items())
                print(f"quantiles of the escape time at {place}: {spread}")
        for zero in critical:
            family = "mixture mu" if zero["alignment"] is None else f"alignment {zero['alignment']:g}, strength"
            grows = f": tau ~ {zero['prefactor']:.4g} / (distance)^2" if np.isfinite(zero["prefactor"]) else ""
            print(f"gradient vanishes at {family} {zero['strength']:.12g}{grows}")

    def save(self, path: str, columns: dict, critical: list[dict]) -> None:
        import xarray

        plain = [name for name in columns if name not in ("plateau", "escape_time_quantiles", "escape_time_doubt")]
        numbers = {name: ("point", np.asarray(columns[name])) for name in plain}
        numbers["escape_time_doubt"] = ("point", np.array([doubt or "" for doubt in columns["escape_time_doubt"]]))
        for level in _QUANTILES if self.dim is not None else ():
            times = [quantiles[str(level)] for quantiles in columns["escape_time_quantiles"]]
            numbers[f"escape_time_quantile_{level}"] = ("point", np.asarray(times))
        for name in ("up", "rate", "tau", "drift"):
            values = [np.nan if p is None else p[name] for p in columns["plateau"]]
            numbers[f"plateau_{name}"] = ("point", np.asarray(values))
        for name in ("strength", "alignment", "prefactor"):
            values = [np.nan if zero[name] is None else zero[name] for zero in critical]
            numbers[f"critical_{name}"] = ("zero", np.asarray(values, float))
        write_dataset(xarray.Dataset(numbers), path, kind="escape", command=dataclasses.asdict(self))

    def draw(self, path: str, points: list[dict], critical: list[dict]) -> None:
        with figure_style():
            import matplotlib.pyplot as plt

            figure, ax = plt.subplots(figsize=(3.4, 2.5))
            alignments = [None] if self.mixture else list(dict.fromkeys(p["alignment"] for p in points))
            for alignment in alignments:
                chosen = [p for p in points if alignment is None or p["alignment"] == alignment]
                x = [p["strength"] * (p["alignment"] if self.mixture else 1) for p in chosen]
                label = "mixture" if alignment is None else f"alignment {alignment:g}"
                ax.plot(x, [p["tau"] for p in chosen], marker="." if len(x) < 30 else "", label=label)
            low, high = ax.get_xlim()
            for zero in critical:
                if low <= zero["strength"] <= high:
                    ax.axvline(zero["strength"], color="0.6", linestyle=":", linewidth=0.8)
            ax.set(yscale="log", xlabel=STRENGTH_LABEL, ylabel=TAU_LABEL, title=self.activation)
            if len(alignments) > 1:
                ax.legend()
            save_figure(figure, path)
