r"""What the explorer shows: functions of settings whose compiled parts do not change when a number among the settings does.

Rows of the adapter beyond its rank are kept at rest, so that the rank is a number too. The equations and what theory says of them are those
of rank r: rows at rest have U = 0 and no overlap, and move nothing. Only the law of the escape time and the chain, whose random numbers
belong to the rows, are compiled for each rank.

All times are t = η * step. A function raises ArgumentError for settings that are not allowed.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import Escape, Family, Solution, solve
from odes.gaussian import has_closed_form
from odes.programs import program
from theory import (
    CriticalPoints,
    Region,
    SearchPhase,
    Validity,
    critical_points,
    escape_law,
    escape_modes,
    leading_phase,
    search_phase,
    typical_start,
    unstable_mode,
)
from theory.diagram import classified
from validation.explore.settings import Settings
from validation.simulation import chain_simulator, even_steps, simulate

_CURVE = 161
"""The time scale of the search is drawn at so many strengths."""

_TIMES = 241
"""The flow is drawn at so many times."""

_ROWS = 16
"""The adapter is given so many rows, or the next power of two if its rank is larger; those beyond the rank are at rest."""

_SEARCHES = 20.0
"""The flow is followed for so many time scales of the search, as `searchphase solve` follows it."""

_MOST_STEPS, _FEW_STEPS, _MORE_STEPS = 2**11, 2**10, 2**17
"""A flow of more steps of the integrator before the escape, or after it, is given up, so that the page answers; fewer where averages
are sums over nodes; and more where one waits."""

_WIDEST, _WIDER, _LOWEST = 1.5, 1.25, 0.01
"""Strengths are drawn from the lowest to the widest, or to so many times that of the problem if that is more."""

_LEVELS = np.linspace(0.005, 0.995, 100)
_QUANTILES = np.asarray([0.05, 0.25, 0.5, 0.75, 0.95])
_GRID = (15, 9)
"""Strengths and alignments of the coarse phase diagram."""

SEEDS, _RECORDS, _LONGEST_CHAIN = 8, 120, 2e5
"""Seeds of the chain, their recorded times, and the most steps that are simulated while a page waits."""


def has_fast_averages(settings: Settings) -> bool:
    """Whether Gaussian averages of the settings' links are closed formulas, and not sums over nodes."""
    family = settings.family()
    return has_closed_form(family.student, family.teacher)


def padded(settings: Settings) -> Family:
    """The family of the settings, with rows at rest that fill the adapter up to 16 (or a power of two)."""
    family = settings.family()
    rank = family.adapter.rank
    rows = max(_ROWS, 2 ** (rank - 1).bit_length())
    adapter = family.adapter.replace(rank=rows, trained=(np.arange(rows) < rank).astype(float))
    return Family(family.student, teacher=family.teacher, adapter=adapter, sgd=family.sgd)


def search(settings: Settings) -> dict[str, Any]:
    r"""The search phase, and the flow.

    - `strength` (n,), `curve` (n,): τ(ρ) at the alignment of the settings, infinite where the search never ends;
    - `C`, `D`, `G`, `noise`, `loss`, `rate`, `tau`: those of [`theory.search_phase`][] at the strength of the settings;
    - `critical` (k,), `prefactor` (k,): where the gradient vanishes along the same line of weights, $\tau \simeq A/(\rho - \rho_c)^2$;
    - `place`: strength and alignment;
    - `theta`: the noise scale ηd/B;
    - `flow`: what [`flow`][] gives;
    - `fast`: whether Gaussian averages of the links are closed formulas, so that all this takes a few milliseconds.
    """
    place = _place(settings)
    high = max(_WIDEST, _WIDER * settings.place[0])
    strengths = np.linspace(_LOWEST, high, _CURVE)
    phase, curve, zeros = _search(padded(settings), place, jnp.asarray(strengths))
    found = np.isfinite(np.asarray(zeros.strength))
    numbers = {name: np.asarray(getattr(phase, name)) for name in ("C", "D", "G", "noise", "loss", "rate", "tau")}
    return numbers | {
        "strength": strengths,
        "curve": np.asarray(curve),
        "critical": np.asarray(zeros.strength)[found],
        "prefactor": np.asarray(zeros.prefactor)[found],
        "place": np.asarray(place),
        "theta": np.asarray(settings.family().sgd.noise_scale),
        "flow": flow(settings),
        "fast": has_fast_averages(settings),
    }


def flow(settings: Settings, *, patient: bool = False) -> dict[str, Any]:
    r"""The flow for 20 τ from the typical start, on the unstable mode ([`theory.typical_start`][]).

    - `t` (T,), `loss` (T,), `target_overlap` w·ω* (T,), `m`, `u` (r, T): NaN beyond the time where the integrator gave up;
    - `escape_time`: when the loss has halved, NaN if it has not;
    - `words`: why there is no flow, or no end of it; empty if all is well.

    `patient` lets the integrator take 2^17 steps before the escape and as many after it, not 2^11, or 2^10 where averages are
    sums over nodes.
    """
    rank, place = settings.rank, _place(settings)
    steps = _MORE_STEPS if patient else _MOST_STEPS if has_fast_averages(settings) else _FEW_STEPS
    solution = _flow(padded(settings), Escape(), place, steps)
    words = ""
    if not np.isfinite(solution.t[-1]):
        words = "the search phase never ends (tau is infinite)"
    elif not bool(solution.successful):
        words = "the flow takes more steps of the integrator than a slider waits for"
        words = f"the integrator gave up: {solution.message}" if patient else words
    return {
        "t": np.asarray(solution.t),
        "loss": np.asarray(solution.loss),
        "target_overlap": np.asarray(solution.target_overlap),
        "m": np.asarray(solution.m).T[:rank],
        "u": np.asarray(solution.u).T[:rank],
        "escape_time": np.asarray(solution.escape_time),
        "words": words,
    }


def law(settings: Settings) -> dict[str, Any]:
    """The law of the escape time over random starts and SGD noise ([`theory.escape_law`][]).

    - `mean`, `std`, `mean_error`, `probability`; `quantiles`, by level; NaN where the law is refused;
    - `t` (n,), `level` (n,): the part of the runs that has escaped by then; empty where there is no law, or w0 meets the goal;
    - `words`: why it is refused, empty where it holds.
    """
    found = escape_law(settings.problem())
    spread = not found.doubt and float(found.std) > 0
    levels = _LEVELS if spread else np.zeros(0)
    times = np.asarray(found.quantile(levels))
    known = np.isfinite(times)
    return {name: np.asarray(getattr(found, name)) for name in ("mean", "std", "mean_error", "probability")} | {
        "quantiles": dict(zip(map(str, _QUANTILES.tolist()), np.asarray(found.quantile(_QUANTILES)), strict=True)),
        "t": times[known],
        "level": levels[known],
        "words": found.doubt,
    }


def region(settings: Settings) -> dict[str, Any]:
    """Where the settings are in the phase diagram of pretraining ([`theory.phase_diagram`][]): `name`, `meaning`, and the mean `time`
    of the escape to leading order with its `slope` in the strength; `words` say why the time is not to be trusted, empty if it is."""
    settings.problem()
    place = np.split(np.asarray(settings.place), 2)
    _, tuned, regions = classified(padded(settings), Escape(), *place)
    there = Region(int(regions[0]))
    words = "" if there == Region.met else Validity(int(tuned.validity[0])).meaning
    return {
        "name": there.name,
        "meaning": there.meaning,
        "time": tuned.time[0],
        "slope": tuned.slope[0],
        "words": words,
    }


def diagram(settings: Settings) -> dict[str, Any]:
    """A coarse phase diagram: `strength`, `alignment` (n,) of its places and the names of their `region` (n,)."""
    settings.problem()
    high = max(_WIDEST, _WIDER * settings.place[0])
    rows, columns = np.linspace(-1, 1, _GRID[1]), high * (np.arange(_GRID[0]) + 0.5) / _GRID[0]
    strengths, alignments = (x.ravel() for x in np.meshgrid(columns, rows))
    *_, regions = classified(padded(settings), Escape(), strengths, alignments)
    size = np.asarray([columns[1] - columns[0], rows[1] - rows[0]])
    names = [Region(int(number)).name for number in regions]
    return {"strength": strengths, "alignment": alignments, "region": names, "size": size}


def chain(settings: Settings) -> dict[str, Any]:
    """Eight seeds of SGD on the overlaps, exact in law at the dimension ([`validation.simulation.chain_simulator`][]), for 20 τ.

    - `t` (T,), `loss`, `target_overlap` (seeds, T); `escape_times` (seeds,), NaN for seeds that did not escape;
    - `words`: why nothing is simulated; empty if it is.
    """
    problem = settings.problem()
    end, rate = _SEARCHES * float(search_phase(problem).tau), float(problem.sgd.learning_rate)
    if not end / rate <= _LONGEST_CHAIN:
        steps = "for ever" if not np.isfinite(end) else f"{end / rate:.3g} steps, more than {_LONGEST_CHAIN:g}"
        return {"words": f"20 tau take {steps}: `searchphase simulate --method chain` has the patience"}
    runs = simulate(
        chain_simulator(problem),
        steps=even_steps(end, rate, _RECORDS),
        key=jax.random.key(0),
        seeds=SEEDS,
        escape=Escape(),
    )
    return {
        "t": np.asarray(runs.t),
        "loss": np.asarray(runs.loss),
        "target_overlap": np.asarray(runs.target_overlap),
        "escape_times": np.asarray(runs.escape_times),
        "words": "",
    }


def _place(settings: Settings) -> Float[Array, "2"]:
    """Strength and alignment, looked at as those of a problem."""
    settings.problem()
    return jnp.asarray(settings.place)


@program
def _search(
    family: Family, place: Float[Array, "2"], strengths: Float[Array, " n"]
) -> tuple[SearchPhase, Float[Array, " n"], CriticalPoints]:
    def at(strength: Array) -> SearchPhase:
        return search_phase(family.at(strength, place[1]))

    zeros = critical_points(family, low=strengths[0], high=strengths[-1], alignment=place[1])
    return at(place[0]), jax.vmap(at)(strengths).tau, zeros


@program
def _flow(family: Family, escape: Escape, place: Float[Array, "2"], max_steps: int) -> Solution:
    problem = family.at(place[0], place[1])
    modes = escape_modes(problem)
    phase = leading_phase(modes)
    start = typical_start(problem, phase, unstable_mode(problem, modes))
    end = jnp.where(jnp.isfinite(phase.tau), _SEARCHES * phase.tau, jnp.nan)
    times = end * jnp.linspace(0, 1, _TIMES)
    options = {"adjoint": diffrax.ForwardMode(), "max_steps": max_steps}
    return solve(problem, start, t1=end, times=times, escape=escape, **options)
