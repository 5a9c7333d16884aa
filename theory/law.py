r"""The law of the escape time at dimension d: not only how fast overlaps grow, but when they have grown."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaincc
from jaxtyping import Array, Bool, Float, Int

from odes import Escape, Overlaps, Problem, Solution, in_closed_form, pretrained
from odes.arguments import ArrayLike, concrete, real_array, require
from odes.gaussian import has_closed_form
from odes.programs import ahead, program
from odes.quadrature import safe_sqrt
from odes.shown import Shown
from theory.averages import controlled_mean
from theory.modes import EscapeModes, escape_modes
from theory.passages import passage, patience
from theory.search import SearchPhase, UnstableMode, leading_phase, search_phase, unstable_mode
from theory.starts import chi_quantiles, mode_start, moves, random_start, start_normals, typical_amplitude
from theory.trust import Validity, met, stretched, too_fast, validity

_ROWS = 1024
_FEWEST, _MOST, _DEARER = 32, 128, 4
"""The flow is solved from random starts with so many rows together unless told otherwise, at least and at most so many of them; a
quarter, with a quarter of the steps, where averages are sums over nodes."""

_ESCAPING = 0.95
"""The law is given if at least this part of the starts escapes."""

_FAR = 20.0
"""Amplitudes that differ from the sampled ones by more than this factor's logarithm do not occur."""

_MOST_STEPS = 2**12
"""A run that takes more steps of the integrator is given up."""


class EscapeLaw(Shown):
    r"""The law of the escape time over random starts and SGD noise.

    - `mean`, `std`: of the runs that escape; 0 where w0 meets the goal already, NaN where the law does not hold;
    - `mean_error`, `std_error`: their standard errors, since they are averages over sampled starts;
    - `probability`: of an escape within the horizon ([`theory.patience`][]); NaN where the law does not hold;
    - `escaping`: the part of the starts from which the flow escapes within it, NaN where the law is refused before that is looked at.
        Where it is less than 0.95 the law is refused: noise decides about starts near the border, and the part of single runs
        differs from it by up to a few tenths;
    - `validity`: why the law does not hold, a number of [`theory.Validity`][], 0 where it does;
    - `tau`: the time scale of growth at the problem's learning rate;
    - `amplitude`: $a_0 = \sqrt{r\,\mathrm{Var}}$, the root mean square amplitude of the unstable mode referred to the start;
    - `log_radii`, `offsets` (n,): the escape time of the run that is as late as one of amplitude a is offset(log a) - τ log a;
        NaN where such a run does not escape;
    - `rank`: the number of adapter rows among which the amplitude is spread.
    """

    mean: Float[Array, ""]
    std: Float[Array, ""]
    mean_error: Float[Array, ""]
    std_error: Float[Array, ""]
    probability: Float[Array, ""]
    escaping: Float[Array, ""]
    validity: Int[Array, ""]
    tau: Float[Array, ""]
    amplitude: Float[Array, ""]
    log_radii: Float[Array, " n"]
    offsets: Float[Array, " n"]
    rank: int = eqx.field(static=True)

    def shown(self) -> dict[str, Any]:
        fields = super().shown() | {"validity": Validity.named(self.validity)}
        return {name: fields[name] for name in fields if name not in ("log_radii", "offsets")}

    @property
    def doubt(self) -> str:
        """Why the law does not hold, in words; empty where it does."""
        return Validity(int(self.validity)).meaning

    def time(self, log_radius: ArrayLike) -> Float[Array, "..."]:
        """The escape time of a run that is as late as one whose mode has the amplitude exp(log_radius)."""
        log_radius = jnp.asarray(log_radius)
        time = jnp.interp(log_radius, self.log_radii, self.offsets) - self.tau * log_radius
        time = jnp.where(self.std == 0, self.mean, time)
        return jnp.where(self.validity == Validity.holds, time, jnp.nan)

    def quantile(self, probability: ArrayLike) -> Float[Array, "..."]:
        """The time by which a fraction `probability` of the runs has escaped; NaN if so many never do."""
        from scipy import special

        deviation = special.gammainccinv(self.rank / 2, np.asarray(probability, float)) * 2 / self.rank
        return self._deviating(jnp.asarray(deviation))

    @program
    def _deviating(self, deviation: Float[Array, "..."]) -> Float[Array, "..."]:
        """The escape time where the square of the amplitude is `deviation` times its mean."""
        return self.time(jnp.log(self.amplitude) + jnp.log(deviation) / 2)

    def cdf(self, t: ArrayLike) -> Float[Array, "..."]:
        """The fraction of runs that have escaped by time t."""
        ends = jnp.array([-_FAR, _FAR], self.log_radii.dtype)
        grid = jnp.concatenate([self.log_radii[:1] + ends[:1], self.log_radii, self.log_radii[-1:] + ends[1:]])
        times = self.time(grid)
        log_radius = jnp.interp(
            -jnp.asarray(t), -jnp.where(jnp.isfinite(times), times, jnp.finfo(times.dtype).max), grid
        )
        deviation = jnp.exp(2 * (log_radius - jnp.log(self.amplitude)))
        smooth = gammaincc(jnp.asarray(self.rank / 2), deviation * self.rank / 2)
        return jnp.where(self.std == 0, (jnp.asarray(t) >= self.mean).astype(smooth.dtype), smooth)


def escape_law(
    problem: Problem,
    escape: Escape | None = None,
    *,
    starts: int | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> EscapeLaw:
    r"""The law of the escape time at the problem's dimension, batch size, learning rate and rank.

    The flow of finite steps ([`odes.modified_flow`][], with its noise term) is followed from random starts
    ([`theory.random_start`][]), the same ones at every call; where the learning rate is too large for it ([`theory.too_fast`][]) the
    mean step itself is iterated, unless the problem is traced. From amplitude a of the unstable mode it takes $T = T_0 - \tau\log a$ for
    small a, with $\tau = \eta/\log(1 + \eta\lambda_+)$; the amplitudes of the r rows are Gaussian ([`unstable_mode`][]) and add in
    quadrature. To leading order therefore

    $$E[t] = T_0 - \tau\left[\log\sqrt{\mathrm{Var}} + \tfrac12(\psi(r/2) + \log 2)\right], \qquad
      \mathrm{std}[t] = \tfrac{\tau}{2}\sqrt{\psi'(r/2)}.$$

    What depends on the start beyond $\log a$ is $T + \tau\log a$: above all how the amplitude is split among the rows, which matters
    where SGD noise shrinks them, and what a second search finds when the first is over. Averages over the `starts` (128 up to rank 8,
    fewer above, and a quarter where Gaussian averages have no closed form) have $\log a$, whose law is known, as a control
    variate with the slope of least squares. Where the law holds is said by [`theory.validity`][]. It assumes U = 0 at the
    start. `adjoint` says how derivatives pass through, as in [`odes.solve`][].

    Several units whose links are close to sums of erf (tanh, sigmoid) are followed with those sums instead ([`odes.in_closed_form`][]),
    whose averages are closed formulas: the gradient and its noise are then those of links whose derivatives differ by less than 5e-4.

    **Raises** ArgumentError for a problem without pretrained weights or whose readouts are trained, for an adapter with rows at
    rest or weight decay, and for fewer than two starts.
    """
    problem.require_known_search()
    rank, adapter = problem.adapter.rank, problem.adapter
    require("trained", adapter.trained, "1 for every row, as the theory of the search assumes", lambda x: x == 1)
    require("weight_decay", adapter.weight_decay, "0, as the theory of the search assumes", lambda x: x == 0)
    least = problem.frame_size + rank
    require("dimension", problem.sgd.dimension, f"at least {least}, the number of directions", lambda d: d >= least)
    if problem.units != (1, 1):
        problem = in_closed_form(problem) or problem
    if starts is None:
        starts = min(max(_ROWS // rank, _FEWEST), _MOST) // _dearer(problem)
    require("starts", starts, "at least 2", lambda n: n >= 2)
    normals = real_array(start_normals(starts, rank, problem.frame_size, problem.units[0]))
    escape = Escape() if escape is None else escape
    modes = escape_modes(problem)
    fast = _too_fast(problem, modes)
    iterated = concrete(fast) and bool(fast)

    def law() -> EscapeLaw:
        runs = _runs(problem, modes, escape, normals, adjoint, iterated)
        return _law_of(runs, problem, modes, fast, escape, iterated)

    ahead(law)
    return law()


@program
def _too_fast(problem: Problem, modes: EscapeModes) -> Bool[Array, ""]:
    return too_fast(problem, leading_phase(modes))


def _dearer(problem: Problem) -> int:
    """By what factor less is computed since averages are sums over nodes."""
    return 1 if has_closed_form(problem.student, problem.teacher) else _DEARER


class _Runs(eqx.Module):
    """Runs from random starts: their escape times, when they ended and where, whether the integrator was given up, and the logarithms of
    their starts' amplitudes."""

    escape_time: Float[Array, "*n"]
    t_final: Float[Array, "*n"]
    final: Overlaps
    given_up: Bool[Array, "*n"]
    logs: Float[Array, "*n"]


@program
def _runs(
    problem: Problem,
    modes: EscapeModes,
    escape: Escape,
    normals: Float[Array, "n r k"],
    adjoint: diffrax.AbstractAdjoint | None,
    iterated: bool,
) -> _Runs:
    phase = leading_phase(modes)
    moving, already = moves(problem, phase), met(problem, escape)
    horizon = jnp.where(already, 1.0, patience(phase, modes))  # no run counts where w0 meets the goal

    def run(numbers: Array) -> _Runs:
        drawn, amplitude = random_start(problem, modes, numbers)
        start = jax.tree.map(lambda a, b: jnp.where(moving, a, b), drawn, pretrained(problem))
        options = {"rtol": 1e-7, "atol": 1e-12, "adjoint": adjoint, "max_steps": _MOST_STEPS // _dearer(problem)}
        found = passage(problem, start, escape, horizon, iterated=iterated, **options)
        given_up = found.result == diffrax.RESULTS.max_steps_reached
        return _Runs(found.escape_time, found.t_final, found.final, given_up, jnp.log(amplitude))

    return jax.vmap(run)(normals)


@program
def _law_of(
    runs: _Runs, problem: Problem, modes: EscapeModes, fast: Bool[Array, ""], escape: Escape, iterated: bool
) -> EscapeLaw:
    from scipy import special

    phase, mode = leading_phase(modes), unstable_mode(problem, modes)
    already = met(problem, escape)
    rank, lag, logs = problem.adapter.rank, jnp.zeros(()) if iterated else mode.lag, runs.logs
    # The derivative of an escape time that is NaN is NaN, and would make all derivatives NaN.
    found = jax.lax.stop_gradient(runs.escape_time)
    escaped = jnp.isfinite(found)
    times = jnp.where(escaped, jnp.where(found > 0, runs.t_final, 0), jnp.nan) + lag * logs
    number = jnp.sum(escaped)
    count = number.astype(times.dtype)
    share = escaped.astype(times.dtype) / jnp.maximum(count, 1)
    every = jnp.full_like(times, 1 / times.size)
    over = controlled_mean(times, logs, jnp.log(typical_amplitude(problem, mode)), every)
    mean, slope, rest, variance = over.mean, over.slope, over.rest, over.variance
    spread = special.polygamma(1, rank / 2) / 4  # what log a, whose law is known, explains
    std = safe_sqrt(variance + slope**2 * spread)
    mean_error = over.error(count)
    std_error = safe_sqrt((share @ (rest**2 - variance) ** 2 / 4 + slope**2 * spread * variance) / count) / std
    order = jnp.argsort(times)
    middle = order[jax.lax.div(number, 2)]
    crossing = jax.tree.map(lambda x: x[middle], runs.final)
    unknown = jnp.sum(runs.given_up).astype(count.dtype)
    # where large steps trap some starts, noise decides how many
    enough = escaped.size * (1.0 if iterated else _ESCAPING)
    reached = count >= enough
    given_up = unknown > 0 if iterated else ~reached & (count + unknown >= enough)
    coarse = jnp.zeros((), bool) if iterated else fast | stretched(problem, crossing)
    valid = validity(
        problem,
        escape,
        phase,
        mode,
        time=mean,
        reached=reached,
        crossing=crossing,
        coarse=coarse,
        given_up=given_up,
        already=already,
    )
    mean, std, mean_error, std_error = (
        jnp.where(already, 0, jnp.where(valid == Validity.holds, x, jnp.nan))
        for x in (mean, std, mean_error, std_error)
    )
    amplitude = jnp.sqrt(rank * mode.variance)
    radii = jnp.log(mode.variance) / 2 + jnp.asarray(np.log(chi_quantiles(rank, times.size)), times.dtype)
    offsets = times[order][::-1] + mode.tau * radii
    tried = (valid == Validity.holds) | (valid == Validity.trapped)
    escaping = jnp.where(already, 1, jnp.where(tried, count / escaped.size, jnp.nan))
    probability = jnp.where(valid == Validity.trapped, jnp.nan, escaping)
    return EscapeLaw(
        mean=mean,
        std=std,
        mean_error=mean_error,
        std_error=std_error,
        probability=probability,
        escaping=escaping,
        validity=valid,
        tau=mode.tau,
        amplitude=amplitude,
        log_radii=radii,
        offsets=offsets,
        rank=rank,
    )


def _grows(problem: Problem, phase: SearchPhase) -> Array:
    """Whether the search phase has an unstable mode and no plateau comes first."""
    return (phase.D > 0) & moves(problem, phase)


def _from_mode(
    problem: Problem,
    escape: Escape,
    phase: SearchPhase,
    mode: UnstableMode,
    amplitudes: Array,
    **options: Any,
) -> Solution:
    """The flow of finite steps from the given amplitudes of the rows' unstable modes; from w0 itself if there is no mode."""
    moved, still = mode_start(problem, mode, amplitudes), pretrained(problem)
    start = jax.tree.map(lambda a, b: jnp.where(_grows(problem, phase), a, b), moved, still)
    return passage(problem, start, escape, patience(phase), **options)


@program
def largest_noise_scale(problem: Problem, escape: Escape | None = None) -> Float[Array, ""]:
    r"""The largest θ = ηd/B at which the flow still escapes, at the problem's learning rate and label noise.

    The noise shrinks the overlaps of normalised rows at the rate $\tfrac12\theta\kappa^2(U^TNU)_{aa}$, which grows with U and can
    end the growth before the escape. The flow is started on the unstable mode, its amplitude shared by the rows equally, and counts
    as trapped if it has not escaped after 50 τ; θ is found by bisection between 1e-4 and 1e4, to 0.1 %. Infinite if 1e4
    still escapes, 0 if not even 1e-4 does, NaN where D(w0) <= 0 or G = 0. It is a limit of the flow: rows that are not normalised
    grow with the noise, and steps that are stable at w0 may become unstable before. At rank 1 it is sharp but for the fluctuations of
    single runs at finite dimension. At higher rank starts share the amplitude in other ways, which are trapped at other noise
    scales, often smaller ones: from which part of them the flow escapes is `EscapeLaw.escaping`.

    **Raises** ArgumentError unless the problem is single-index.
    """
    problem.require_single_index()
    escape = Escape() if escape is None else escape
    phase = search_phase(problem)
    amplitudes = jnp.full(problem.adapter.rank, 0.01 / np.sqrt(problem.adapter.rank))
    mode = unstable_mode(problem)

    def escapes(log_theta: Array) -> Array:
        noisy = problem.replace(noise_scale=jnp.exp(log_theta))
        return jnp.isfinite(
            _from_mode(
                noisy, escape, phase, mode, amplitudes, rtol=1e-8, atol=1e-12, adjoint=diffrax.ForwardMode()
            ).escape_time
        )

    def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        out = escapes(middle)
        return jnp.where(out, middle, low), jnp.where(out, high, middle)

    ends = (jnp.log(jnp.asarray(1e-4)), jnp.log(jnp.asarray(1e4)))
    low, high = jax.lax.fori_loop(0, 14, halve, ends)
    theta = jnp.where(escapes(ends[1]), jnp.inf, jnp.where(escapes(ends[0]), jnp.exp((low + high) / 2), 0))
    return jnp.where(_grows(problem, phase), theta, jnp.nan)
