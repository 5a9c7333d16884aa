r"""The law of the escape time at dimension d: not only how fast overlaps grow, but when they have grown."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaincc, polygamma
from jaxtyping import Array, Float, Int

from odes import Escape, Problem, Solution, pretrained
from odes.arguments import ArrayLike
from theory.passages import passage, patience
from theory.search import SearchPhase, UnstableMode, search_phase, unstable_mode
from theory.starts import mode_start, moves
from theory.trust import Validity, validity

_LEVELS = 6
_DIRECTIONS = 4
"""The flow is solved from so many amplitudes, each split in so many ways among the adapter's rows (one way at rank 1)."""


class EscapeLaw(eqx.Module):
    r"""The law of the escape time over random starts and SGD noise.

    - `mean`, `std`: NaN where the law does not hold;
    - `validity`: why it does not, a number of [`theory.Validity`][], 0 where it does;
    - `tau`: the time scale of growth at the problem's learning rate;
    - `amplitude`: $a_0 = \sqrt{r\,\mathrm{Var}}$, the root mean square amplitude of the unstable mode referred to the start;
    - `log_radii`, `offsets` (n,): the escape time at amplitude a is offset(log a) - τ log a;
    - `rank`: the number of adapter rows among which the amplitude is spread.
    """

    mean: Float[Array, ""]
    std: Float[Array, ""]
    validity: Int[Array, ""]
    tau: Float[Array, ""]
    amplitude: Float[Array, ""]
    log_radii: Float[Array, " n"]
    offsets: Float[Array, " n"]
    rank: int = eqx.field(static=True)

    @property
    def doubt(self) -> str:
        """Why the law does not hold, in words; empty where it does."""
        return Validity(int(self.validity)).meaning

    def time(self, log_radius: ArrayLike) -> Float[Array, "..."]:
        """The escape time of a run whose mode has the amplitude exp(log_radius)."""
        log_radius = jnp.asarray(log_radius)
        time = jnp.interp(log_radius, self.log_radii, self.offsets) - self.tau * log_radius
        return jnp.where(self.validity == Validity.holds, time, jnp.nan)

    def quantile(self, probability: ArrayLike) -> Float[Array, "..."]:
        """The time by which a fraction `probability` of the runs has escaped."""
        from scipy import special

        p = np.asarray(probability, float)
        deviation = jnp.asarray(special.gammainccinv(self.rank / 2, p) * 2 / self.rank)
        return self.time(jnp.log(self.amplitude) + jnp.log(deviation) / 2)

    def cdf(self, t: ArrayLike) -> Float[Array, "..."]:
        """The fraction of runs that have escaped by time t."""
        grid = jnp.linspace(-12.0, 3.0, 2001) + jnp.log(self.amplitude)
        log_radius = jnp.interp(-jnp.asarray(t), -self.time(grid), grid)
        deviation = jnp.exp(2 * (log_radius - jnp.log(self.amplitude)))
        return gammaincc(jnp.asarray(self.rank / 2), deviation * self.rank / 2)


def _ways(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Radii (n,) at the midpoints of equal probability of a chi law of r degrees, in units of sqrt(r), increasing; and
    unit vectors (k, r): ways to split an amplitude among the rows."""
    from scipy import special

    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS
    radii = np.sqrt(2 * special.gammaincinv(rank / 2, levels) / rank)
    vectors = np.random.default_rng(0).normal(size=(1 if rank == 1 else _DIRECTIONS, rank))
    return radii, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@eqx.filter_jit
def escape_law(
    problem: Problem, escape: Escape | None = None, *, adjoint: diffrax.AbstractAdjoint | None = None
) -> EscapeLaw:
    r"""The law of the escape time at the problem's dimension, batch size, learning rate and rank.

    Let T(a) be the time that the flow of finite steps ([`odes.modified_flow`][], with its noise term) takes to the escape from
    amplitude a of the unstable mode. For small a it is $T_0 + \tau\log(1/a)$ with $\tau = \eta/\log(1 + \eta\lambda_+)$; the amplitudes
    of the r rows are Gaussian ([`unstable_mode`][]) and add in quadrature. To leading order therefore

    $$E[t] = T_0 - \tau\left[\log\sqrt{\mathrm{Var}} + \tfrac12(\psi(r/2) + \log 2)\right], \qquad
      \mathrm{std}[t] = \tfrac{\tau}{2}\sqrt{\psi'(r/2)}.$$

    Here T(a) itself is followed, at amplitudes of equal probability and, for r > 1, at several ways to split them among the
    rows: $T(a) + \tau\log a$ is smooth, so that six are enough, and the average of $\log a$ is known. Where the law holds is said by
    [`theory.validity`][]. It assumes U = 0 at the start. `adjoint` says how derivatives pass through, as in [`odes.solve`][].

    **Raises** ArgumentError unless the problem is single-index with pretrained weights.
    """
    escape = Escape() if escape is None else escape
    phase = search_phase(problem)
    mode = unstable_mode(problem, phase)
    rank, eta = problem.adapter.rank, problem.sgd.learning_rate
    amplitude = jnp.sqrt(rank * mode.variance)
    radii, splits = (jnp.asarray(x) for x in _ways(rank))
    rows = (amplitude * radii[:, None, None] * splits[None]).reshape(-1, rank)
    runs = jax.vmap(lambda row: _from_mode(problem, escape, phase, mode, row, rtol=1e-8, atol=1e-14, adjoint=adjoint))(
        rows
    )
    times = runs.escape_time
    logs = jnp.log(radii)
    followed = 1 / (phase.rate - eta * phase.rate**2 / 2)
    offsets = times.reshape(radii.size, -1).mean(axis=1) + followed * (jnp.log(amplitude) + logs)
    half = jnp.asarray(rank / 2, amplitude.dtype)
    mean = offsets.mean() - mode.tau * (jnp.log(amplitude) + (digamma(half) - jnp.log(half)) / 2)
    covariance = jnp.mean((offsets - offsets.mean()) * (logs - logs.mean()))
    std = jnp.sqrt(offsets.var() - 2 * mode.tau * covariance + mode.tau**2 * polygamma(1, half) / 4)
    crossing = jax.tree.map(lambda x: x[times.size // 2], runs.final)
    valid = validity(problem, escape, phase, mode, time=mean, reached=jnp.isfinite(times).all(), crossing=crossing)
    mean, std = (jnp.where(valid == Validity.holds, x, jnp.nan) for x in (mean, std))
    return EscapeLaw(mean, std, valid, mode.tau, amplitude, jnp.log(amplitude) + logs, offsets, rank)


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
    moved, still = mode_start(problem, phase, mode, amplitudes), pretrained(problem)
    start = jax.tree.map(lambda a, b: jnp.where(_grows(problem, phase), a, b), moved, still)
    return passage(problem, start, escape, patience(phase), **options)


@eqx.filter_jit
def largest_noise_scale(problem: Problem, escape: Escape | None = None) -> Float[Array, ""]:
    r"""The largest θ = ηd/B at which the flow still escapes, at the problem's learning rate and label noise.

    The noise shrinks the overlaps of normalised rows at the rate $\tfrac12\theta\kappa^2(U^TNU)_{aa}$, which grows with U and can
    end the growth before the escape. The flow is started on the unstable mode and counts as trapped if it has not escaped
    after 50 τ; θ is found by bisection between 1e-4 and 1e4, to 0.1 %. Infinite if 1e4 still escapes, 0 if not even 1e-4
    does, NaN where D(w0) <= 0 or G = 0. At finite dimension the fluctuations of single runs blur the border.

    **Raises** ArgumentError unless the problem is single-index.
    """
    escape = Escape() if escape is None else escape
    phase = search_phase(problem)
    amplitudes = jnp.full(problem.adapter.rank, 0.01 / np.sqrt(problem.adapter.rank))
    mode = unstable_mode(problem, phase)

    def escapes(log_theta: Array) -> Array:
        noisy = problem.replace(noise_scale=jnp.exp(log_theta))
        return jnp.isfinite(
            _from_mode(
                noisy, escape, phase, mode, amplitudes, rtol=1e-5, atol=1e-8, adjoint=diffrax.ForwardMode()
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
