r"""The phase diagram of pretraining: where more of it makes fine-tuning faster and where slower."""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odes import Activation, Escape, Family
from odes.arguments import ArrayLike, require
from odes.programs import program
from odes.shown import Shown
from theory.lanes import in_lanes
from theory.meanings import Meaning
from theory.search import search_phase
from theory.trust import Validity, met, too_fast
from theory.tuning import fine_tuning


class Region(Meaning):
    """The regions of a phase diagram."""

    helps = "more pretraining makes fine-tuning faster: its time falls with the strength"
    hurts = "more pretraining makes fine-tuning slower: its time rises with the strength"
    plateau = "D <= 0 at w0: U grows to a plateau before the search; the goal is reached"
    unreached = "fine-tuning does not reach the goal"
    met = "w0 itself meets the goal"
    coarse = (
        "the learning rate is too large at w0 (eta * rate above 0.6, or eta * lr_ratio * kappa^2 times -D above 0.05, "
        "or times a curvature above 1.25)"
    )


_SLOWEST = 1000.0
"""A search of more damping times than this is not integrated; what pretraining does there is read off τ."""

_SEARCHED = 0.9
"""The search lasts until the loss is this fraction of its value at w0."""


class PhaseDiagram(Shown):
    r"""Fine-tuning from weights of n strengths ρ and m alignments c; fields without another shape are (m, n).

    - `strength` (n,), `alignment` (m,), both increasing;
    - `time` T(ρ, c): how long fine-tuning takes to the `goal` ([`theory.fine_tuning`][]), 0 where w0 meets it. NaN where it is
        not reached, where the learning rate is too large, and where the search takes more than 1000 damping times
        1/(χκ²D): too long to be integrated;
    - `slope` ∂T/∂ρ at fixed c, NaN where `time` is;
    - `share`: of the search in it, that is the time after which the loss is a tenth below its value at w0, over T; 1 where it is
        not yet so at the goal. NaN where T is NaN or 0;
    - `tau`, `D`: of the search phase ([`theory.search_phase`][]);
    - `validity`: whether T is the mean over random starts and SGD noise, a number of [`theory.Validity`][];
    - `region`: a number of [`theory.Region`][]. Where the search is too long to be integrated, whether
        pretraining helps or hurts is read off ∂τ/∂ρ, since T is then in proportion to τ up to a logarithm;
    - `family`, `goal`: what was asked.
    """

    strength: Float[Array, " n"]
    alignment: Float[Array, " m"]
    time: Float[Array, "m n"]
    slope: Float[Array, "m n"]
    share: Float[Array, "m n"]
    tau: Float[Array, "m n"]
    D: Float[Array, "m n"]
    validity: Int[Array, "m n"]
    region: Int[Array, "m n"]
    family: Family
    goal: Escape

    @classmethod
    def stacked(cls, parts: Sequence["PhaseDiagram"]) -> "PhaseDiagram":
        """One diagram of several that are alike but for their alignments, which increase from one to the next."""
        first, names = parts[0], ("time", "slope", "share", "tau", "D", "validity", "region")
        rows = {name: jnp.concatenate([getattr(part, name) for part in parts]) for name in names}
        alignment = jnp.concatenate([part.alignment for part in parts])
        return cls(strength=first.strength, alignment=alignment, family=first.family, goal=first.goal, **rows)

    @property
    def trusted(self) -> Bool[Array, "m n"]:
        """Where T is the mean over random starts and SGD noise."""
        return self.validity == Validity.holds

    @property
    def searching(self) -> Bool[Array, "m n"]:
        """Where the search takes more than half of the time."""
        return self.share > 0.5


class _Place(eqx.Module):
    """What is known of some places without integration."""

    tau: Any
    tau_slope: Any
    D: Any
    damping_times: Any
    coarse: Any
    met: Any


class _Tuned(eqx.Module):
    """Fine-tuning from some places."""

    time: Any
    slope: Any
    validity: Any


@program
def _places(family: Family, goal: Escape, strengths: Array, alignments: Array) -> _Place:
    def one(strength: Array, alignment: Array) -> _Place:
        problem = family.at(strength, alignment)
        tau, slope, phase = jax.jvp(
            lambda rho: (lambda phase: (phase.tau, phase))(search_phase(family.at(rho, alignment))),
            (strength,),
            (jnp.ones_like(strength),),
            has_aux=True,
        )
        damping = family.adapter.lr_ratio * family.adapter.kappa**2 * phase.D
        return _Place(tau, slope, phase.D, tau * damping, too_fast(problem, phase), met(problem, goal))

    return jax.vmap(one)(strengths, alignments)


@program
def _tuned(family: Family, goal: Escape, strengths: Array, alignments: Array) -> _Tuned:
    def one(strength: Array, alignment: Array) -> _Tuned:
        def time(rho: Array) -> tuple[Array, Array]:
            tuning = fine_tuning(family.at(rho, alignment), goal, adjoint=diffrax.ForwardMode())
            return tuning.time, tuning.validity

        return _Tuned(*jax.jvp(time, (strength,), (jnp.ones_like(strength),), has_aux=True))

    return jax.vmap(one)(strengths, alignments)


def _integrated(
    family: Family, goal: Escape, strengths: np.ndarray, alignments: np.ndarray, place: _Place, chosen: np.ndarray
) -> _Tuned:
    """Fine-tuning from the chosen places, NaN at the others; those that take equally long are integrated together."""
    real = strengths.dtype
    unknown = np.full(chosen.size, np.nan, real)
    tuned = _Tuned(unknown.copy(), unknown.copy(), np.full(chosen.size, int(Validity.trapped)))
    order = np.lexsort((place.tau, place.D <= 0))
    order = order[chosen[order]]
    if order.size:
        part = in_lanes(lambda *x: _tuned(family, goal, *x), strengths[order], alignments[order])
        tuned.time[order], tuned.slope[order], tuned.validity[order] = part.time, part.slope, part.validity
    return tuned


def classified(
    family: Family, goal: Escape, strengths: np.ndarray, alignments: np.ndarray, integrate: Any = True
) -> tuple[_Place, _Tuned, np.ndarray]:
    """Everything but the search's share at some places, each a strength and an alignment: with the regions.

    Without `integrate` a region that w0 itself does not decide is "unreached".
    """
    place = in_lanes(lambda *x: _places(family, goal, *x), strengths, alignments)
    slow = place.damping_times > _SLOWEST
    tuned = _integrated(family, goal, strengths, alignments, place, integrate & ~(place.coarse | slow | place.met))
    time = np.where(place.met, 0, tuned.time)
    reached = np.isfinite(time)
    slope = np.where(reached, tuned.slope, np.nan)
    rising = np.where(slow, place.tau_slope, slope)
    known = reached | (slow & np.isfinite(rising))
    region = np.select(
        [time == 0, place.coarse, ~known, place.D <= 0, rising < 0],
        [Region.met, Region.coarse, Region.unreached, Region.plateau, Region.helps],
        Region.hurts,
    )
    valid = np.where(place.coarse, Validity.coarse, tuned.validity)
    return place, _Tuned(time, np.where(time == 0, 0, slope), valid), region


def phase_diagram(
    family: str | Activation | Family,
    *,
    strengths: ArrayLike,
    alignments: ArrayLike,
    goal: Escape | None = None,
) -> PhaseDiagram:
    r"""The phase diagram of pretraining on a grid of strengths ρ = |w0| (n,) and alignments c = cos(w0, ω*) (m,).

    The time T of fine-tuning to the `goal` (escape unless given) is that of [`theory.fine_tuning`][], from the typical start of the
    search at the dimension, batch size and learning rate of the family's SGD. Its slope is the derivative of the flow itself,

    $$\frac{\partial T}{\partial\rho}\bigg|_c = -\frac{\partial_\rho z}{\dot z}\bigg|_{t = T},$$

    z the goal's margin ([`odes.Escape.margin`][]) along the flow, carried forward with it (`jax.jvp`). Pretraining helps where it is
    negative, and hurts where it is positive. Where other criteria say what the goal is, the search still ends when the loss has
    fallen by a tenth.

    Compiled once for each pair of link functions, rank and criterion (ten to twenty seconds), and then fast for links with closed
    forms, milliseconds for each place unless its search is long; sigmoid and tanh take about a second. Looks at its numbers, and
    so does not work under jit or vmap.

    **Raises** ArgumentError unless strengths are positive and finite, at least two, alignments between -1 and 1, at least one,
    and both increasing.
    """
    strengths, alignments = (np.asarray(x, jnp.result_type(float)) for x in (strengths, alignments))
    require("strengths", strengths, "a list of at least two numbers", lambda x: x.ndim == 1 and x.size > 1)
    require("alignments", alignments, "a list of at least one number", lambda x: x.ndim == 1 and x.size > 0)
    good = "positive, finite and increasing"
    require("strengths", strengths, good, lambda x: (x > 0) & np.isfinite(x) & np.all(np.diff(x) > 0))
    require(
        "alignments", alignments, "increasing, between -1 and 1", lambda x: (np.abs(x) <= 1) & np.all(np.diff(x) > 0)
    )
    family = Family.of(family)
    goal = Escape() if goal is None else goal
    rho, cosine = (x.ravel() for x in np.meshgrid(strengths, alignments))
    place, tuned, region = classified(family, goal, rho, cosine)
    reached = np.isfinite(tuned.time) & (tuned.time > 0)
    search = _integrated(family, Escape("loss", _SEARCHED), rho, cosine, place, reached).time
    share = np.minimum(np.where(np.isfinite(search), search, np.inf) / np.where(reached, tuned.time, np.nan), 1)

    def grid(values: np.ndarray) -> Array:
        return jnp.asarray(values.reshape(alignments.size, strengths.size))

    return PhaseDiagram(
        strength=jnp.asarray(strengths),
        alignment=jnp.asarray(alignments),
        time=grid(tuned.time),
        slope=grid(tuned.slope),
        share=grid(share),
        tau=grid(place.tau),
        D=grid(place.D),
        validity=grid(tuned.validity),
        region=grid(region),
        family=family,
        goal=goal,
    )
