r"""When the law is refused: one rule for mean times from random starts, in the law, fine-tuning, checkpoints and diagrams."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from odes import Escape, Overlaps, Problem, flow, gradient_at, kurtosis_at, noise_at
from theory.meanings import Meaning
from theory.search import SearchPhase, UnstableMode, fastest_decay
from theory.starts import moves

_LARGEST_AMPLITUDE = 0.2
_LARGEST_FED = 0.05
_FASTEST_GROWTH = 0.6
_FASTEST_DECAY = 1.25
_LARGEST_UP_NOISE = 0.015
_LARGEST_HEAD_START = 0.025
_HEAVIEST_TAIL = 0.01
"""Beyond these the law is more than 3 % from simulated means."""


class Validity(Meaning):
    """Why a mean time does not hold, in the order in which the reasons are looked for; the first member is where it does.

    The last two are those of a single typical start, not of the law from many.
    """

    holds = ""
    still = "the gradient vanishes at w0, or U is not trained"
    large_start = "the dimension is too small: the start is no small perturbation (above 0.2; with kinks 0.2 |w0|, from noise 0.05 |w0|)"
    coarse = "the learning rate is too large (eta * rate above 0.6, or eta * lr_ratio * kappa^2 times D or E[f'^2] above 1.25)"
    trapped = "SGD at this noise scale does not escape"
    up_noise = "the noise on U at the escape is too large for this dimension (above 1.5 % of |U|^2, or 2.5 % of the mean time ahead)"
    heavy_tails = "the batches are too small for the gradient's heavy tails: they shrink the rows by 1 % less than the limit predicts"
    plateau = "D <= 0 at w0: a plateau comes before the search, and no start is typical"
    split = "SGD noise shrinks the rows: the time depends on how they share the start, and no start is typical"


def validity(
    problem: Problem,
    goal: Escape,
    phase: SearchPhase,
    mode: UnstableMode,
    *,
    time: Float[Array, ""],
    reached: Bool[Array, ""],
    crossing: Overlaps,
) -> Int[Array, ""]:
    r"""Whether the mean `time` that the flow takes from random starts to a goal is that of SGD; a number of [`Validity`][].

    The goal is `reached` at the overlaps `crossing`. The mean is given for amplitude $a_0 \le 0.2$ of the unstable mode at the start
    (links with a kink feel U as soon as it is like w0: $0.2|w_0|$, and $0.05|w_0|$ for the part that SGD noise feeds),
    $\eta\lambda_+ \le 0.6$, $\eta\chi\kappa^2\max(D, E[\sigma'^2]) \le 1.25$ (at unit length, where training ends) and noise on U at
    the escape ([`up_noise`][]) of at most 1.5 % of $|U|^2$, a head start of at most 2.5 % of the mean and a tail of at most 1 %; there
    it was found within 3 % of simulated means.
    """
    noise = up_noise(problem, goal, phase, crossing)
    amplitude, fed = (jnp.sqrt(problem.adapter.rank * x) for x in (mode.variance, mode.variance - mode.initial))
    large = amplitude > _LARGEST_AMPLITUDE
    if problem.student.kinked or problem.teacher.kinked:
        large |= (amplitude > _LARGEST_AMPLITUDE * problem.strength) | (fed > _LARGEST_FED * problem.strength)
    doubts = {
        Validity.still: ~moves(problem, phase),
        Validity.large_start: large,
        Validity.coarse: too_fast(problem, phase),
        Validity.trapped: ~reached,
        Validity.up_noise: (noise.relative > _LARGEST_UP_NOISE) | (noise.head_start > _LARGEST_HEAD_START * time),
        Validity.heavy_tails: noise.tail > _HEAVIEST_TAIL,
    }
    return jnp.select(list(doubts.values()), [jnp.asarray(int(doubt)) for doubt in doubts], int(Validity.holds))


def too_fast(problem: Problem, phase: SearchPhase) -> Bool[Array, ""]:
    """Whether the learning rate is too large for the flow of finite steps: ηλ₊ > 0.6, or ηχκ² times D or E[σ'^2] at unit length > 1.25."""
    eta = problem.sgd.learning_rate
    return (eta * phase.rate > _FASTEST_GROWTH) | (eta * fastest_decay(problem, phase) > _FASTEST_DECAY)


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
