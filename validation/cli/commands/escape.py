"""`searchphase escape`: the search phase of pretrained weights, analytically."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ScalarLike

from odes import Escape as Criterion
from odes import Family, Problem
from odes.arguments import ArgumentError
from odes.gaussian import has_closed_form
from odes.programs import ahead
from theory import (
    EscapeModes,
    SearchPhase,
    critical_points,
    escape_law,
    escape_modes,
    largest_noise_scale,
    leading_phase,
    plateau,
    sweep,
)
from validation.cli.options import EscapeOptions, FileOptions, SweepOptions, check_rank, place_of
from validation.cli.output import OutputOptions
from validation.cli.report import lines_of, rows_of, table
from validation.cli.values import Numbers, check, positive
from validation.figures.style import TAU_LABEL, link_label, log_height, sweep_axis

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_PLATEAU = ("up", "rate", "tau", "drift")
_PLACE = ("strength", "alignment", "factor", "rank", "dimension")
_MOMENTS = ("mean", "std", "mean_error", "std_error", "probability", "escaping")
_NO_LAW = dict.fromkeys(_MOMENTS, np.nan) | {"quantiles": None, "doubt": None}


_FEW = 8
"""So many laws are computed sooner than they are compiled with care."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What is known of every point, and the gradient's zeros along strengths or along factors of the pretrained rows."""

    points: list[dict[str, Any]]
    critical: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    factors: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Escape(OutputOptions, EscapeOptions, SweepOptions, FileOptions):
    """Rate and time scale of the search phase, critical strengths and, at a dimension, the law of the escape time."""

    dim: Numbers = ()
    """Dimension d; gives the law of the escape time over random starts and SGD noise (needs more time; no law unless given)."""
    rank: Numbers = ()
    """Rank r of the adapter (1, or that of --problem, unless given)."""
    factor: Numbers = ()
    """With --problem: multiply the pretrained rows by each of these, and find the factors between them at which nothing grows."""
    factor_units: tuple[int, ...] = ()
    """With --factor: the numbers of the units whose rows are multiplied (all unless given)."""
    noise_limit: bool = False
    """Also find the largest noise scale theta = eta * d / B at which SGD still escapes (needs more time)."""

    @property
    def brief(self) -> bool:
        laws = len(self.pretrained()) * max(len(self.rank), 1) * len(self.dim)
        return self.problem is None and not self.noise_limit and laws <= _FEW and has_closed_form(*self.links)

    def compute(self) -> Found:
        escape = self.escape
        if (problem := self.stored("rank")) is not None:
            return self.around(problem, escape)
        if self.factor or self.factor_units:
            raise ArgumentError("factor", "multiplies the pretrained rows of a --problem: give that, or --strength")
        check("teacher_unit", self.teacher_unit, "1, the only one", self.teacher_unit == 1)
        families, places, points = self.families(), np.asarray(self.pretrained()), []
        problems = [[family.at(*place) for place in places.tolist()] for family in families]
        if self.gives_law:
            ahead(lambda: escape_modes(problems[0][0]))
        at = {"strength": places[:, 0], "alignment": places[:, 1]}
        ahead(lambda: sweep(families[0], **at))
        ahead(lambda: self.critical(families[0], places))
        for family, some in zip(families, problems, strict=True):
            points += self.points(some, sweep(family, **at), escape)
        return Found(points, self.critical(families[0], places))

    def around(self, problem: Problem, escape: Criterion) -> Found:
        """What is known of a problem, with its pretrained rows multiplied by every factor, at every rank."""
        check("factor", self.factor, "positive and finite", positive)
        units = problem.units[0]
        if self.noise_limit and not problem.is_single_index:
            raise ArgumentError(
                "noise_limit", "is for one student and one teacher unit alone: of several it is not known"
            )
        check("factor_units", self.factor_units, f"from 1 to {units}, the number of units", lambda k: 1 <= k <= units)
        if self.factor_units and not self.factor:
            raise ArgumentError("factor_units", "says whose rows --factor multiplies: give that, too")
        chosen = np.isin(np.arange(1, units + 1), self.factor_units or np.arange(1, units + 1))

        def times(factor: ScalarLike) -> Problem:
            return problem.replace(frozen=problem.frozen * jnp.where(chosen, factor, 1.0)[:, None])

        for rank in self.rank:
            check_rank(rank)
            check("rank", rank, "at most the dimension", rank <= float(problem.sgd.dimension))
        ranks = [int(rank) for rank in self.rank] or [problem.adapter.rank]
        places = [(factor, rank) for rank in ranks for factor in self.factor or (1.0,)]
        problems = [times(factor).replace(rank=rank) for factor, rank in places]
        modes = [escape_modes(some) for some in problems]
        points = self.points(problems, jax.tree.map(lambda *x: jnp.stack(x), *map(leading_phase, modes)), escape)
        for point, some, found, (factor, _) in zip(points, problems, modes, places, strict=True):
            point |= {"factor": factor} if self.factor else {}
            point |= {"new_directions": int(found.searched.sum())}
            point |= {"modes": rows_of_modes(found), "grows_alone": growth_alone(some, found)}
        zeros = []
        if self.factor and min(self.factor) < max(self.factor):
            low, high = jnp.asarray(min(self.factor)), jnp.asarray(max(self.factor))
            found = critical_points(times, low=low, high=high)
            for factor, prefactor in zip(found.strength.tolist(), found.prefactor.tolist(), strict=True):
                if np.isfinite(factor):
                    zeros.append({"factor": factor, "prefactor": prefactor})
        return Found(points, factors=zeros)

    @property
    def gives_law(self) -> bool:
        """Whether the law of the escape time is asked for: a dimension is given, or a problem, which has one."""
        return bool(self.dim) or self.problem is not None

    def points(self, problems: Sequence[Problem], phase: SearchPhase, escape: Criterion) -> list[dict[str, Any]]:
        """What is known of some problems, whose search phases are known."""
        places = [place_of(problem) for problem in problems]
        columns: dict[str, Any] = {
            name: [getattr(place, name) for place in places] for name in ("strength", "alignment")
        }
        names = ("C", "D", "G", "noise", "loss", "rate", "tau")
        columns |= {name: np.asarray(getattr(phase, name)) for name in names}
        columns["plateau"] = [
            settled(problem) if D < 0 else None for problem, D in zip(problems, columns["D"], strict=True)
        ]
        laws = [law_of(problem, escape) if self.gives_law else _NO_LAW for problem in problems]
        columns |= {_column(name): [law[name] for law in laws] for name in _NO_LAW}
        columns["largest_noise_scale"] = np.full(len(places), np.nan)
        if self.noise_limit:
            columns["largest_noise_scale"] = np.asarray([largest_noise_scale(p, escape) for p in problems])
        columns["rank"] = [place.rank for place in places]
        columns["dimension"] = [place.dimension if self.gives_law else np.nan for place in places]
        return rows_of(columns)

    def critical(self, family: Family, places: np.ndarray) -> list[dict[str, float]]:
        """The gradient's zeros along each family, up to the largest strength asked for or 1 (to mu = 1 for mixtures)."""
        families = [None] if self.mixture else [float(c) for c in dict.fromkeys(places[:, 1])]
        low, high = jnp.asarray(0.01), jnp.asarray(1.0 if self.mixture else max(1.0, float(places[:, 0].max())))
        found = []
        for alignment in families:
            cosine = None if alignment is None else jnp.asarray(alignment)
            zeros = critical_points(family, low=low, high=high, alignment=cosine)
            for strength, prefactor in zip(zeros.strength.tolist(), zeros.prefactor.tolist(), strict=True):
                if np.isfinite(strength):
                    found.append({"strength": strength, "alignment": alignment, "prefactor": prefactor})
        return found

    def document(self, result: Found) -> dict[str, Any]:
        zeros = [zero["strength"] for zero in result.critical]
        found = {"points": result.points, "critical_strengths": zeros, "divergences": result.critical}
        return found | ({"critical_factors": result.factors} if self.factor else {})

    def report(self, result: Found) -> None:
        hidden = {"escape_time_quantiles", "escape_time_doubt", "modes", "grows_alone"}
        if not self.gives_law:
            hidden |= {_column(name) for name in _MOMENTS}
        hidden |= {name for name in ("rank", "dimension") if len({str(point[name]) for point in result.points}) == 1}
        hidden |= {name for name in _PLACE if name not in result.points[0]}
        if "rank" in hidden:
            hidden.add("new_directions")
        hidden |= {name for name in ("strength", "alignment") if not np.isfinite(result.points[0][name])}
        if not self.noise_limit:
            hidden.add("largest_noise_scale")
        if not any(point["plateau"] for point in result.points):
            hidden.add("plateau")
        names = [name for name in dict.fromkeys((*_PLACE, *result.points[0])) if name not in hidden]
        rows = [{name: point[name] for name in names} for point in result.points]
        for row in rows:
            if row.get("plateau"):
                row["plateau"] = "|u| = {up:.4g}, rate {rate:.4g}, drift {drift:.4g}".format(**row["plateau"])
        print(table(rows))
        if len(result.points) == 1:
            self.report_modes(result.points[0].get("modes", []))
        for point in result.points:
            place = ", ".join(f"{name} {point[name]:g}" for name in _PLACE if name not in hidden)
            place = f" at {place}" if place else ""
            for rate in point.get("grows_alone", []):
                print(
                    f"U grows without overlap{place}, to a plateau, where an eigenvalue of D is negative: at the rate {rate:.4g}"
                )
            if point["escape_time_doubt"]:
                print(f"no escape time{place}: {point['escape_time_doubt']}")
                if point["escaping_starts"] > 0:
                    print(f"  (from {point['escaping_starts']:.0%} of random starts the flow does)")
            elif self.gives_law:
                spread = ", ".join(f"{level}: {time:.4g}" for level, time in point["escape_time_quantiles"].items())
                met = " (w0 meets the goal)" if point["escape_time_std"] == 0 else ""
                print(f"quantiles of the escape time{place}: {spread}{met}")
        for zero in result.critical:
            family = "mixture mu" if zero["alignment"] is None else f"alignment {zero['alignment']:g}, strength"
            grows = f": tau ~ {zero['prefactor']:.4g} / (distance)^2" if np.isfinite(zero["prefactor"]) else ""
            print(f"gradient vanishes at {family} {zero['strength']:.12g}{grows}")
        for zero in result.factors:
            grows = f": tau ~ {zero['prefactor']:.4g} / (distance)^2" if np.isfinite(zero["prefactor"]) else ""
            print(f"gradient vanishes at factor {zero['factor']:.12g}{grows}")

    def report_modes(self, modes: list[dict[str, Any]]) -> None:
        """The modes of several units: how fast each grows, which units move, and the cosines of what it learns with the teacher's."""
        if len(modes) <= 2:
            return
        print("modes of the search phase, each once for every row of the adapter:")
        rows = [
            {"rate": mode["rate"], "tau": mode["tau"]}
            | {f"unit {k + 1}": share for k, share in enumerate(mode["up"])}
            | {f"teacher {p + 1}": cosine for p, cosine in enumerate(mode["teachers"])}
            for mode in modes
        ]
        print(table(rows))

    def rows(self, result: Found) -> list[dict[str, Any]]:
        names = [f"plateau_{name}" for name in _PLATEAU]
        rows = []
        for point in result.points:
            settled = point["plateau"] or dict.fromkeys(_PLATEAU, np.nan)
            quantiles = point["escape_time_quantiles"] or {}
            row = {
                name: value
                for name, value in point.items()
                if name not in ("plateau", "escape_time_quantiles", "modes", "grows_alone")
            }
            row |= {f"escape_time_quantile_{level}": time for level, time in quantiles.items()}
            rows.append(row | dict(zip(names, settled.values(), strict=True)))
        return rows

    def dataset(self, result: Found) -> Any:
        import xarray

        columns: dict[str, Any] = {name: [point[name] for point in result.points] for name in result.points[0]}
        plateaus, quantiles = columns.pop("plateau"), columns.pop("escape_time_quantiles")
        modes, alone = columns.pop("modes", []), columns.pop("grows_alone", [])
        columns["escape_time_doubt"] = [doubt or "" for doubt in columns["escape_time_doubt"]]
        for level in _QUANTILES if self.gives_law else ():
            columns[f"escape_time_quantile_{level}"] = [times[str(level)] for times in quantiles]
        for name in _PLATEAU:
            columns[f"plateau_{name}"] = [np.nan if some is None else some[name] for some in plateaus]
        numbers: dict[str, Any] = {name: ("point", np.asarray(values)) for name, values in columns.items()}
        for name in ("strength", "alignment", "prefactor"):
            values = [np.nan if zero[name] is None else zero[name] for zero in result.critical]
            numbers[f"critical_{name}"] = ("zero", np.asarray(values, float))
        for name in ("factor", "prefactor"):
            numbers[f"critical_factor_{name}"] = (
                "zero_factor",
                np.asarray([zero[name] for zero in result.factors], float),
            )
        if modes:
            rates = [np.pad(some, (0, len(modes[0]) // 2 - len(some)), constant_values=np.nan) for some in alone]
            numbers["grows_alone"] = (("point", "direction_of_up"), np.asarray(rates, float))
            for name, axes in (("rate", ()), ("up", ("unit",)), ("teachers", ("teacher",))):
                values = np.asarray([[mode[name] for mode in some] for some in modes])
                numbers[f"mode_{name}"] = (("point", "mode", *axes), values)
        return xarray.Dataset(numbers)

    def draw(self, result: Found) -> Any:
        import matplotlib.pyplot as plt

        figure, ax = plt.subplots(figsize=(3.4, 2.5))
        against, lines = lines_of(result.points, mixture=bool(self.mixture))
        for label, numbers, chosen in lines:
            marker = "." if len(numbers) < 30 else ""
            ax.plot(numbers, [point["tau"] for point in chosen], marker=marker, label=label)
        several, (low, high) = len(ax.lines) > 1, ax.get_xlim()
        zeros = {"strength": [zero["strength"] for zero in result.critical]}
        zeros |= {"mu": zeros["strength"], "factor": [zero["factor"] for zero in result.factors]}
        for zero in zeros.get(against, []):
            if low <= zero <= high:
                ax.axvline(zero, color="0.6", linestyle=":", linewidth=0.8)
        sweep_axis(ax, against)
        problem = self.stored("rank")
        ax.set(ylabel=TAU_LABEL, title=link_label(self.activation if problem is None else problem.student.name))
        log_height(ax)
        if several:
            ax.legend()
        return figure


def _column(name: str) -> str:
    """What a number of the law is called among the columns."""
    named = {"probability": "escape_probability", "escaping": "escaping_starts"}
    return named.get(name, f"escape_time_{name}")


def rows_of_modes(modes: EscapeModes) -> list[dict[str, Any]]:
    """Every mode: its rate and time scale, the unit vector along its column of U, and its cosines with the teacher's directions."""
    length = np.linalg.norm(modes.up, axis=1, keepdims=True)
    shares = np.asarray(modes.up) / np.where(length > 0, length, 1) + 0.0  # no -0
    return [
        {"rate": rate, "tau": 1 / rate if rate else math.inf, "up": share, "teachers": cosines}
        for rate, share, cosines in zip(
            modes.rates.tolist(), shares.tolist(), (modes.teachers + 0.0).tolist(), strict=True
        )
    ]


def growth_alone(problem: Problem, modes: EscapeModes) -> list[float]:
    """The rates at which U grows without any overlap, -χκ² times the negative eigenvalues of D, decreasing."""
    speed = float(problem.adapter.lr_ratio * problem.adapter.kappa**2)
    return [-speed * value for value in modes.grows_alone.tolist() if value < 0 < speed]


def settled(problem: Problem) -> dict[str, float] | None:
    """The plateau of a problem of one unit, None where there is none."""
    if problem.units != (1, 1):
        return None
    found = plateau(problem)
    return {name: float(getattr(found, name)) for name in _PLATEAU} if np.isfinite(found.up) else None


def law_of(problem: Problem, escape: Criterion) -> dict[str, Any]:
    """The law of the escape time: its moments, quantiles, and why it is not given where it is not."""
    law = jax.device_get(escape_law(problem, escape, adjoint=diffrax.ForwardMode()))
    times = np.asarray(law.quantile(np.array(_QUANTILES)))
    quantiles = dict(zip(map(str, _QUANTILES), times.tolist(), strict=True))
    moments = {name: float(getattr(law, name)) for name in _MOMENTS}
    return moments | {"quantiles": quantiles, "doubt": law.doubt or None}
