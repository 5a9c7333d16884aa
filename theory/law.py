r"""The law of the escape time at dimension d: not only how fast overlaps grow, but when they have grown."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.scipy.special import digamma, gammaincc, polygamma
from jaxtyping import Array, Float, Int

from odes import (
    Escape,
    Overlaps,
    Problem,
    Solution,
    flow,
    gradient_at,
    kurtosis_at,
    noise_at,
    pretrained,
    solve,
)
from odes.arguments import ArrayLike
from theory.search import SearchPhase, search_phase

_LEVELS = 6
_DIRECTIONS = 4
"""The flow is solved from so many amplitudes, each split in so many ways among the adapter's rows (one way at rank 1)."""

_PATIENCE = 50
"""A run that has not escaped after this many time scales of the search phase does not escape."""

_LARGEST_AMPLITUDE = 0.1
_FASTEST_GROWTH = 0.4
_LARGEST_UP_NOISE = 0.01
_LARGEST_HEAD_START = 0.025
_HEAVIEST_TAIL = 0.015
"""Beyond these the law is more than 3 % from simulated means."""


class UnstableMode(eqx.Module):
    r"""The growing mode of the search phase, in the coordinates $(u, p/\sqrt G)$ of one adapter row.

    - `up`, `cross`: the unit right eigenvector $e \propto (\lambda_+, \kappa\sqrt G)$;
    - `rate`: $\log(1 + \eta\lambda_+)/\eta$, the rate of growth at the problem's learning rate; `tau` its inverse;
    - `variance`: that of the amplitude with which random starts and SGD noise feed the mode.
    """

    up: Float[Array, ""]
    cross: Float[Array, ""]
    rate: Float[Array, ""]
    tau: Float[Array, ""]
    variance: Float[Array, ""]


def unstable_mode(problem: Problem, phase: SearchPhase | None = None) -> UnstableMode:
    r"""The growing mode of a single-index problem's search phase and the variance of its amplitude at dimension d.

    The linear system has the matrix $\begin{pmatrix} -\chi\kappa^2D & \chi\kappa\sqrt G \\ \kappa\sqrt G & 0 \end{pmatrix}$, the unit
    right eigenvector $e$ and the left eigenvector $f \propto (\lambda_+, \chi\kappa\sqrt G)$ with $f\cdot e = 1$. The second
    coordinate starts with variance 1/d. Each step multiplies the mode by $1 + \eta\lambda_+$ and adds noise of variance
    $\eta\chi^2\kappa^2\theta N/d$ to u; hence the amplitude, referred to the start, has per row the variance

    $$\mathrm{Var} = \frac1d\left(f_p^2 + \frac{f_u^2\,\chi^2\kappa^2\theta N}{2\lambda_+ + \eta\lambda_+^2}\right).$$

    **Raises** ArgumentError unless the problem is single-index.
    """
    phase = search_phase(problem) if phase is None else phase
    kappa, chi, eta = problem.adapter.kappa, problem.adapter.lr_ratio, problem.sgd.learning_rate
    slope = kappa * jnp.sqrt(phase.G)
    unit = jnp.sqrt(phase.rate**2 + slope**2)
    overlap = (phase.rate**2 + chi * slope**2) / unit
    left_up, left_cross = phase.rate / overlap, chi * slope / overlap
    diffusion = (chi * kappa) ** 2 * problem.sgd.noise_scale * phase.noise
    fed = left_cross**2 + left_up**2 * diffusion / (2 * phase.rate + eta * phase.rate**2)
    rate = jnp.log1p(eta * phase.rate) / eta
    return UnstableMode(phase.rate / unit, slope / unit, rate, 1 / rate, fed / problem.sgd.dimension)


def mode_start(problem: Problem, phase: SearchPhase, mode: UnstableMode, amplitudes: Float[Array, " r"]) -> Overlaps:
    """The overlaps of an adapter whose rows have the given amplitudes along the unstable mode."""
    direction = (phase.C * problem.target - phase.D * problem.frozen) @ problem.frame_gram / jnp.sqrt(phase.G)
    still = pretrained(problem)
    return Overlaps(mode.up * amplitudes[None], mode.cross * amplitudes[:, None] * direction, still.down_gram)


REGIMES = (
    "",
    "D <= 0 at w0: a plateau comes before the search",
    "the gradient vanishes at w0, or U is not trained",
    "SGD at this noise scale does not escape",
    "the dimension is too small: the start is not a small perturbation (amplitude above 0.1, with kinks also above 0.1 |w0|)",
    "the learning rate is too large for the search phase (eta * rate above 0.4 or eta * lr_ratio * kappa^2 * D above 1)",
    "the noise on U at the escape is too large for this dimension (above 1 % of |U|^2, or 2.5 % of the mean time ahead)",
    "the batches are too small for the gradient's heavy tails (they shrink the rows less by 1.5 % than the limit says)",
)
"""Why the law of the escape time does not hold, by `EscapeLaw.regime`; the first is where it does."""


class EscapeLaw(eqx.Module):
    r"""The law of the escape time over random starts and SGD noise.

    - `mean`, `std`: NaN where the law is not to be trusted;
    - `regime`: why not, an index into `REGIMES`, 0 where it is;
    - `tau`: the time scale of growth at the problem's learning rate;
    - `amplitude`: $a_0 = \sqrt{r\,\mathrm{Var}}$, the root mean square amplitude of the unstable mode referred to the start;
    - `log_radii`, `offsets` (n,): the escape time at amplitude a is offset(log a) - τ log a;
    - `rank`: the number of adapter rows among which the amplitude is spread.
    """

    mean: Float[Array, ""]
    std: Float[Array, ""]
    regime: Int[Array, ""]
    tau: Float[Array, ""]
    amplitude: Float[Array, ""]
    log_radii: Float[Array, " n"]
    offsets: Float[Array, " n"]
    rank: int = eqx.field(static=True)

    @property
    def doubt(self) -> str:
        """Why the law does not hold, in words; empty where it does."""
        return REGIMES[int(self.regime)]

    def time(self, log_radius: ArrayLike) -> Float[Array, "..."]:
        """The escape time of a run whose mode has the amplitude exp(log_radius)."""
        log_radius = jnp.asarray(log_radius)
        time = jnp.interp(log_radius, self.log_radii, self.offsets) - self.tau * log_radius
        return jnp.where(self.regime == 0, time, jnp.nan)

    def quantile(self, probability: ArrayLike) -> Float[Array, "..."]:
        """The time by which a fraction `probability` of the runs has escaped."""
        p = np.asarray(probability, float)
        deviation = jnp.asarray(scipy.special.gammainccinv(self.rank / 2, p) * 2 / self.rank)
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
    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS
    radii = np.sqrt(2 * scipy.special.gammaincinv(rank / 2, levels) / rank)
    vectors = np.random.default_rng(0).normal(size=(1 if rank == 1 else _DIRECTIONS, rank))
    return radii, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@eqx.filter_jit
def escape_law(problem: Problem, escape: Escape | None = None) -> EscapeLaw:
    r"""The law of the escape time at the problem's dimension, batch size, learning rate and rank.

    Let T(a) be the time that the flow of finite steps ([`odes.modified_flow`][], with its noise term) takes to the escape from
    amplitude a of the unstable mode. For small a it is $T_0 + \tau\log(1/a)$ with $\tau = \eta/\log(1 + \eta\lambda_+)$; the amplitudes
    of the r rows are Gaussian ([`unstable_mode`][]) and add in quadrature. To leading order therefore

    $$E[t] = T_0 - \tau\left[\log\sqrt{\mathrm{Var}} + \tfrac12(\psi(r/2) + \log 2)\right], \qquad
      \mathrm{std}[t] = \tfrac{\tau}{2}\sqrt{\psi'(r/2)}.$$

    Here T(a) itself is followed, at amplitudes of equal probability and, for r > 1, at several ways to split them among the
    rows: $T(a) + \tau\log a$ is smooth, so that six are enough, and the average of $\log a$ is known. The law is given for
    amplitude $a_0 \le 0.1$ ($0.1|w_0|$ for links with a kink, which feel U as soon as it is like w0), $\eta\lambda_+ \le 0.4$,
    $\eta\chi\kappa^2D \le 1$ and noise on U at the escape ([`up_noise`][]) of at most 1 % of $|U|^2$, a head start of at most 2.5 %
    of the mean and a tail of at most 1.5 %; there it was found within 3 % of simulated means. It assumes U = 0 at the
    start.

    **Raises** ArgumentError unless the problem is single-index.
    """
    escape = Escape() if escape is None else escape
    phase = search_phase(problem)
    mode = unstable_mode(problem, phase)
    rank, eta = problem.adapter.rank, problem.sgd.learning_rate
    moves = _moves(problem, phase)
    amplitude = jnp.sqrt(rank * mode.variance)
    radii, splits = (jnp.asarray(x) for x in _ways(rank))
    rows = (amplitude * radii[:, None, None] * splits[None]).reshape(-1, rank)
    runs = jax.vmap(lambda row: _from_mode(problem, escape, phase, mode, row, rtol=1e-8, atol=1e-14))(rows)
    times = runs.escape_time
    logs = jnp.log(radii)
    followed = 1 / (phase.rate - eta * phase.rate**2 / 2)
    offsets = times.reshape(radii.size, -1).mean(axis=1) + followed * (jnp.log(amplitude) + logs)
    half = jnp.asarray(rank / 2, amplitude.dtype)
    mean = offsets.mean() - mode.tau * (jnp.log(amplitude) + (digamma(half) - jnp.log(half)) / 2)
    covariance = jnp.mean((offsets - offsets.mean()) * (logs - logs.mean()))
    std = jnp.sqrt(offsets.var() - 2 * mode.tau * covariance + mode.tau**2 * polygamma(1, half) / 4)
    noise = up_noise(problem, escape, phase, jax.tree.map(lambda x: x[times.size // 2], runs.final))
    kinked = problem.student.kinked or problem.teacher.kinked
    size = jnp.minimum(problem.strength, 1) if kinked else 1
    doubts = [
        phase.D <= 0,
        ~moves,
        ~jnp.isfinite(times).all(),
        amplitude > _LARGEST_AMPLITUDE * size,
        too_fast(problem, phase),
        (noise.relative > _LARGEST_UP_NOISE) | (noise.head_start > _LARGEST_HEAD_START * mean),
        noise.tail > _HEAVIEST_TAIL,
    ]
    regime = jnp.select(doubts, list(jnp.arange(1, len(REGIMES))), 0)
    mean, std = (jnp.where(regime == 0, x, jnp.nan) for x in (mean, std))
    return EscapeLaw(mean, std, regime, mode.tau, amplitude, jnp.log(amplitude) + logs, offsets, rank)


def escape_from(
    problem: Problem,
    start: Overlaps,
    escape: Escape,
    phase: SearchPhase,
    *,
    finite_steps: bool = True,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    **options: Any,
) -> Solution:
    """The flow from `start` to the escape, or for 50 time scales of the search phase; `options` are [`odes.solve`][]'s."""
    t1 = jnp.where(jnp.isfinite(phase.tau), _PATIENCE * phase.tau, 1.0)
    return solve(
        problem,
        start,
        t1=t1,
        times=t1[None],
        escape=escape,
        until_escape=True,
        finite_steps=finite_steps,
        rtol=rtol,
        atol=atol,
        **options,
    )


def too_fast(problem: Problem, phase: SearchPhase) -> Array:
    """Whether the learning rate is too large for the flow of finite steps to describe the search: ηλ₊ > 0.4 or ηχκ²D > 1."""
    eta, adapter = problem.sgd.learning_rate, problem.adapter
    return (eta * phase.rate > _FASTEST_GROWTH) | (eta * adapter.lr_ratio * adapter.kappa**2 * phase.D > 1)


def _moves(problem: Problem, phase: SearchPhase) -> Array:
    """Whether the gradient at w0 and the training of U set the adapter going."""
    return (phase.G > 0) & (problem.adapter.lr_ratio > 0)


def _grows(problem: Problem, phase: SearchPhase) -> Array:
    """Whether the search phase has an unstable mode and no plateau comes first."""
    return (phase.D > 0) & _moves(problem, phase)


def _from_mode(
    problem: Problem,
    escape: Escape,
    phase: SearchPhase,
    mode: UnstableMode,
    amplitudes: Array,
    rtol: float,
    atol: float,
) -> Solution:
    """The flow of finite steps from the given amplitudes of the rows' unstable modes; from w0 itself if there is no mode."""
    moved, still = mode_start(problem, phase, mode, amplitudes), pretrained(problem)
    start = jax.tree.map(lambda a, b: jnp.where(_grows(problem, phase), a, b), moved, still)
    return escape_from(problem, start, escape, phase, rtol=rtol, atol=atol)


class UpNoise(eqx.Module):
    r"""What the fluctuations of U at finite dimension do to an escape, at the overlaps where the flow escapes.

    - `relative`: their variance, over $|U|^2$: by so much the mean runs away from the flow;
    - `head_start`: by how much earlier than the flow they carry single runs over the threshold, to first order;
    - `tail`: by what fraction batches of few, heavy-tailed samples shrink normalised rows less than their mean square says.
    """

    relative: Float[Array, ""]
    head_start: Float[Array, ""]
    tail: Float[Array, ""]


def up_noise(problem: Problem, escape: Escape, phase: SearchPhase, crossing: Overlaps) -> UpNoise:
    r"""The fluctuations of U where the flow escapes.

    In the direction g (the gradient in U of the margin z, [`odes.Escape.margin`][]) U gets noise of variance
    $\theta\chi^2\kappa^2N\,gRg^T/d$ per unit time and forgets it at the rate $\gamma = \chi\kappa^2D\,gRg^T/gg^T + \lambda_+$, which leaves
    on z the variance $\varsigma^2 = \theta\chi^2\kappa^2N\,gRg^T/(2d\gamma)$. For the last $\varsigma$ before the threshold the flow took
    $T = 2\varsigma/(|\dot z| + \sqrt{\dot z^2 + 2\ddot z\varsigma})$. Fluctuations that are forgotten much faster carry a run over by all
    of it, slow ones by nothing on average; the head start is $T^2/(T + 1/\gamma)$.

    A step multiplies the squared length of a row by 1 + x, x of mean $\bar x = \eta\theta\kappa^2N|U|^2$ and variance $\bar x^2K/B$ with
    the amplitudes' kurtosis K; since $E\log(1 + x) \simeq \bar x - E[x^2]/2$, the rows shrink less by the fraction
    $\bar xK/(2B) = \theta^2\kappa^2N|U|^2K/(2d)$, the tail.
    """
    adapter, sgd = problem.adapter, problem.sgd
    reference = escape.reference(problem)

    def margin(at: Overlaps) -> Array:
        return escape.margin(problem, at, reference)

    def speed(at: Overlaps) -> Array:
        return jax.jvp(margin, (at,), (flow(problem, at),))[1]

    velocity, acceleration = jax.jvp(speed, (crossing,), (flow(problem, crossing),))
    noise = noise_at(problem, crossing)[0, 0]
    damping = adapter.lr_ratio * adapter.kappa**2 * jnp.maximum(gradient_at(problem, crossing).D[0, 0], 0)
    kick = (adapter.lr_ratio * adapter.kappa) ** 2 * sgd.noise_scale * noise / sgd.dimension

    def fluctuation(directions: Array) -> tuple[Array, Array]:
        """The variance of U along the directions, and the rate at which it is forgotten."""
        spread = jnp.sum((directions @ crossing.down_gram) * directions)
        rate = damping * spread / jnp.sum(directions**2) + phase.rate
        return kick * spread / (2 * rate), rate

    variance, rate = fluctuation(jax.grad(margin)(crossing).up)
    deviation = jnp.sqrt(variance)
    root = jnp.sqrt(jnp.maximum(velocity**2 + 2 * acceleration * deviation, 0))
    last = 2 * deviation / (jnp.abs(velocity) + root)
    total, _ = fluctuation(jnp.eye(adapter.rank, dtype=noise.dtype))
    length = jnp.sum(crossing.up**2)
    tail = (
        (sgd.noise_scale * adapter.kappa) ** 2 * noise * length * kurtosis_at(problem, crossing) / (2 * sgd.dimension)
    )
    return UpNoise(
        relative=total / length,
        head_start=last**2 / (last + 1 / rate),
        tail=tail if adapter.normalized else jnp.zeros_like(tail),
    )


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
    phase, sgd = search_phase(problem), problem.sgd
    amplitudes = jnp.full(problem.adapter.rank, 0.01 / np.sqrt(problem.adapter.rank))
    mode = unstable_mode(problem, phase)

    def escapes(log_theta: Array) -> Array:
        batch = sgd.learning_rate * sgd.dimension * jnp.exp(-log_theta)
        noisy = eqx.tree_at(lambda p: p.sgd.batch_size, problem, batch)
        return jnp.isfinite(_from_mode(noisy, escape, phase, mode, amplitudes, rtol=1e-5, atol=1e-8).escape_time)

    def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        out = escapes(middle)
        return jnp.where(out, middle, low), jnp.where(out, high, middle)

    ends = (jnp.log(jnp.asarray(1e-4)), jnp.log(jnp.asarray(1e4)))
    low, high = jax.lax.fori_loop(0, 14, halve, ends)
    theta = jnp.where(escapes(ends[1]), jnp.inf, jnp.where(escapes(ends[0]), jnp.exp((low + high) / 2), 0))
    return jnp.where(_grows(problem, phase), theta, jnp.nan)
