r"""When the law is refused: one rule for mean times from random starts, in the law, fine-tuning, checkpoints and diagrams."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from odes import Escape, Overlaps, Problem, diffusion, gradient_at, kurtosis_at, mean_change, noise_at, pretrained
from odes.diagonals import diagonal
from odes.programs import program
from odes.quadrature import safe_sqrt
from odes.shown import Shown
from theory.meanings import Meaning
from theory.search import SearchPhase, UnstableMode, fastest_decay
from theory.starts import moves

_LARGEST_FED, _LARGEST_FED_KINKED, _LARGEST_SHAKEN = 0.07, 0.05, 0.02
_LARGEST_FED_SETTLING = 0.1
_FASTEST_GROWTH, _FASTEST_DECAY, _STABLE_DECAY, _FASTEST_TURN = 0.6, 1.25, 1.8, 0.6
_FASTEST_OVERSHOOT = 0.05
_LARGEST_SPREAD = 0.015
_LARGEST_HEAD_START = 0.025
_LARGEST_DELAY = 0.005
_HEAVIEST_TAIL, _MOST_OUTLYING = 0.01, 0.3
"""Beyond these the law is more than 3 % from simulated means."""


class Validity(Meaning):
    """Why a mean time does not hold; the first member is where it does.

    The reasons up to `heavy_tails` are looked for in this order, `given_up` before `trapped`; the four after them are those of few
    starts, not of the law from many.
    """

    holds = ""
    still = "the gradient vanishes at w0, or U is not trained"
    large_noise = (
        "the batches are too small for this dimension: SGD noise feeds the start by more than 0.07, "
        "or with kinks 0.05 |w0|, or a tenth of where U settles if D < 0, or shakes the weights by 0.02 |w0|"
    )
    coarse = (
        "the learning rate is too large (eta * rate above 0.6, or eta * lr_ratio * kappa^2 times -D above 0.05, or times a curvature, "
        "and times the longest row at the escape, above 1.25; with the largest eigenvalue of R there above 1.8)"
    )
    trapped = "SGD at this noise scale does not escape"
    fluctuations = "SGD noise at the escape is too large for this dimension (above 1.5 % of |U|^2, 2.5 % ahead of the mean or 0.5 % behind)"
    heavy_tails = "too few samples for the gradient's heavy tails: they shrink the rows by 1 % less than predicted, or a few decide"
    large_start = "the dimension is too small: the start is no small perturbation (above 0.2, with kinks 0.2 |w0|; rank above 1 % of d)"
    plateau = "D <= 0 at w0: a plateau comes before the search, and no start is typical"
    split = (
        "the mean time is not known to 3 %: SGD noise shrinks the rows and it depends on how they share the start, "
        "or several units search again, and it scatters"
    )
    unsettled = (
        "random weights are pretrained to something else than typical ones, or to different things, or faster or slower, "
        "which moves the mean time by more than 3 %"
    )
    given_up = "the integrator was given up after its maximum number of steps: whether SGD escapes is not known"


def validity(
    problem: Problem,
    goal: Escape,
    phase: SearchPhase,
    mode: UnstableMode,
    *,
    time: Float[Array, ""],
    reached: Bool[Array, ""],
    crossing: Overlaps,
    coarse: Bool[Array, ""],
    given_up: Bool[Array, ""],
    already: Bool[Array, ""],
) -> Int[Array, ""]:
    r"""Whether the mean `time` that the flow takes from random starts to a goal is that of SGD; a number of [`Validity`][].

    The goal is `reached` at the overlaps `crossing`, or whether it is is not known since the integrator was `given_up`. The mean is
    given where w0 meets the goal `already` ([`met`][]); else if the steps are not too `coarse` for the flow ([`too_fast`][]),
    SGD noise feeds an amplitude of the unstable mode of at most 0.07 (links with a
    kink feel U as soon as it is like w0: $0.05|w_0|$; and there it shakes W otherwise by at most $0.02|w_0|$,
    [`jitter`][]; where D < 0 a tenth of where U settles, [`settling`][]), and [`fluctuations`][] about the flow at the escape are at most
    1.5 % of $|U|^2$, the head start 2.5 % and the delay 0.5 % of the mean, the tail 1 % and the outliers 0.3; there it was found within
    3 % of simulated means.
    """
    problem, goal, phase, mode, time, crossing = jax.lax.stop_gradient((problem, goal, phase, mode, time, crossing))
    noise = fluctuations(problem, goal, phase, crossing)
    fed = jnp.sqrt(problem.adapter.trained_rows * (mode.variance - mode.initial))
    large_noise = fed > _LARGEST_FED
    if kinked(problem):
        shaken = safe_sqrt(jitter(problem, phase) ** 2 - fed**2)
        large_noise = (fed > _LARGEST_FED_KINKED * shortest(problem)) | (shaken > _LARGEST_SHAKEN * shortest(problem))
    large_noise |= fed * jnp.linalg.norm(mode.up) > _LARGEST_FED_SETTLING * settling(problem, phase, mode)
    doubts = {
        Validity.holds: already,
        Validity.still: ~moves(problem, phase),
        Validity.large_noise: large_noise,
        Validity.coarse: coarse,
        Validity.given_up: given_up,
        Validity.trapped: ~reached,
        Validity.fluctuations: ~(  # NaN is no small number
            (noise.relative <= _LARGEST_SPREAD)
            & (noise.head_start <= _LARGEST_HEAD_START * time)
            & (noise.delay <= _LARGEST_DELAY * time)
        ),
        Validity.heavy_tails: ~((noise.tail <= _HEAVIEST_TAIL) & (noise.outlying <= _MOST_OUTLYING * time)),
    }
    return jnp.select(list(doubts.values()), [jnp.asarray(int(doubt)) for doubt in doubts], int(Validity.holds))


def met(problem: Problem, goal: Escape) -> Bool[Array, ""]:
    """Whether w0 meets the goal already."""
    return goal.margin(problem, pretrained(problem), goal.reference(problem)) <= 0


def kinked(problem: Problem) -> bool:
    """Whether a link function has a kink, so that the search is linear only while U is small against w0."""
    return problem.student.kinked or problem.teacher.kinked


def jitter(problem: Problem, phase: SearchPhase) -> Float[Array, ""]:
    r"""The length by which SGD noise shakes W about what the search has learnt.

    U is fed by noise of variance $\chi^2\kappa^2\theta N/d$ per unit time and row, and forgets what is not of the growing mode at the rate
    $\chi\kappa^2D + \lambda_+$ of the other mode: $\kappa|U|$ is $\kappa(r\chi^2\kappa^2\theta N/2d(\chi\kappa^2D + \lambda_+))^{1/2}$.
    """
    adapter, sgd = problem.adapter, problem.sgd
    speed = adapter.lr_ratio * adapter.kappa**2
    forgotten = speed * phase.D + phase.rate
    fed = adapter.trained_rows * speed**2 * sgd.noise_scale * phase.noise / sgd.dimension
    return jnp.where(forgotten > 0, safe_sqrt(fed / jnp.where(forgotten > 0, 2 * forgotten, 1)), jnp.inf)


def settling(problem: Problem, phase: SearchPhase, mode: UnstableMode) -> Float[Array, ""]:
    r"""The length of U at which the negative D of the unstable mode vanishes and U alone settles; infinite where D >= 0 or falls further.

    Along the mode's column û it is $\hat u^TD\hat u \simeq D(0) + (D(\epsilon) - D(0))\,u^2/\epsilon^2$, with ε from
    $\kappa\epsilon = |w_0|/10$, which is exact for He2. A U that noise makes almost as long is not what random starts alone make it.
    """
    column = mode.up / safe_sqrt(jnp.sum(mode.up**2))
    begin, short = pretrained(problem), shortest(problem) / (10 * problem.adapter.kappa)
    moved = eqx.tree_at(lambda o: o.up, begin, begin.up.at[:, 0].set(short * column))
    rise = column @ gradient_at(problem, moved).D @ column - phase.D
    settles = (phase.D < 0) & (rise > 0)
    return jnp.where(settles, short * safe_sqrt(jnp.where(settles, -phase.D / jnp.where(settles, rise, 1), 1)), jnp.inf)


def shortest(problem: Problem) -> Float[Array, ""]:
    """The length of the shortest row of the pretrained weights."""
    return jnp.min(problem.lengths)


@program
def too_fast(problem: Problem, phase: SearchPhase) -> Bool[Array, ""]:
    r"""Whether the learning rate is too large for the flow of finite steps.

    That is so for $\eta\lambda_+ > 0.6$, where D < 0 for $\eta\chi\kappa^2|D| > 0.05$, since U that grows so fast is carried far
    beyond the plateau, for $\eta\chi\kappa^2$ times D at w0 or $E[\sigma'^2]$ at unit length above 1.25, and with
    kinks for $\eta\chi\kappa^2|D|$ above 0.6 where a unit's U is as long as its w0 and orthogonal to it: near a kink D is about $-1/|w|$.
    """
    eta, adapter = problem.sgd.learning_rate, problem.adapter
    fast = (eta * phase.rate > _FASTEST_GROWTH) | (eta * fastest_decay(problem) > _FASTEST_DECAY)
    fast |= eta * adapter.lr_ratio * adapter.kappa**2 * -phase.D > _FASTEST_OVERSHOOT
    if kinked(problem):
        begin, lengths = pretrained(problem), problem.lengths / adapter.kappa
        for unit in range(problem.units[0]):
            turned = eqx.tree_at(lambda o: o.up, begin, begin.up.at[unit, 0].set(lengths[unit]))
            turn = adapter.lr_ratio * adapter.kappa**2 * jnp.abs(gradient_at(problem, turned).D[unit, unit])
            fast |= eta * turn > _FASTEST_TURN
    return fast


def stretched(problem: Problem, crossing: Overlaps) -> Bool[Array, ""]:
    r"""Whether steps are too large for the flow where it escapes, though they are not at w0.

    There U relaxes as fast as $\chi\kappa^2D$ times what rows that grow, or turn to each other, make of R: $\eta$ times that is above
    1.25 for the longest row alone, or above 1.8 for the largest eigenvalue, which is stable up to 2.
    """
    gram = jnp.where(jnp.isfinite(crossing.down_gram), crossing.down_gram, 0)
    alone, together = jnp.max(diagonal(gram)), jnp.linalg.eigvalsh(gram)[-1]
    decay = problem.sgd.learning_rate * fastest_decay(problem)
    return (decay * alone > _FASTEST_DECAY) | (decay * together > _STABLE_DECAY)


class Fluctuations(Shown):
    r"""What SGD noise at finite dimension does to an escape, at the overlaps where the flow escapes.

    - `relative`: the variance of U, over $|U|^2$: by so much the mean runs away from the flow;
    - `head_start`: by how much earlier than the flow single runs are carried over the threshold, to first order;
    - `delay`: how long the flow takes for what the noise on U adds to the margin or takes from it on average;
    - `tail`: by what fraction batches of few, heavy-tailed samples shrink normalised rows less than their mean square says;
    - `outlying`: in how long a time the samples are as many as the amplitudes' kurtosis; the sum of fewer is not normal, but
        decided by a few.
    """

    relative: Float[Array, ""]
    head_start: Float[Array, ""]
    delay: Float[Array, ""]
    tail: Float[Array, ""]
    outlying: Float[Array, ""]


def fluctuations(problem: Problem, escape: Escape, phase: SearchPhase, crossing: Overlaps) -> Fluctuations:
    r"""The fluctuations about the mean step f where it escapes.

    In the direction g (the gradient of the margin z, [`odes.Escape.margin`][]) the overlaps get noise of variance $g\cdot Kg$ per
    unit time ([`odes.diffusion`][]) and forget it at the rate $\delta = -g\cdot f'Kg/(g\cdot Kg)$ while the flow grows at
    $\lambda_+$; with $\gamma = \delta + \lambda_+$ this leaves on z the variance $\varsigma^2 = g\cdot Kg/(2\gamma - \eta\delta^2)$. For
    the last $\varsigma$ before the threshold the mean took $T = 2\varsigma/(|\dot z| + \sqrt{\dot z^2 + 2\ddot z\varsigma})$.
    Fluctuations that are forgotten much faster carry a run over by all of it, slow ones by nothing on average; the head start is
    $T^2/(T + 1/\gamma)$.

    In the same way every $U_{ka}$ alone fluctuates, by the variance of the noise on it over twice the rate at which that is
    forgotten. This adds $\tfrac12\sum\mathrm{Var}(U_{ka})\,\partial^2z/\partial U_{ka}^2$ to the mean of z, which the flow passes in
    the delay
    $|\Delta z/\dot z|$. What it adds to the noise and to the damping on the way makes runs later by a few times as much.

    A step multiplies the squared length of a row by 1 + x, x of mean $\bar x = \eta\theta\kappa^2\,\mathrm{tr}\,U^TNU$ and variance
    $\bar x^2K/B$ with the amplitudes' kurtosis K, the largest of the units'; since $E\log(1 + x) \simeq \bar x - E[x^2]/2$, the
    rows shrink less by the fraction
    $\bar xK/(2B) = \theta^2\kappa^2K\,\mathrm{tr}\,U^TNU/(2d)$, the tail. K samples are drawn in a time $\theta K/d$.
    """
    adapter, sgd = problem.adapter, problem.sgd
    reference = escape.reference(problem)

    def margin(at: Overlaps) -> Array:
        return escape.margin(problem, at, reference)

    change, linear = jax.linearize(functools.partial(mean_change, problem), crossing)
    slope, bend = jax.linearize(jax.grad(margin), crossing)
    still = jax.tree.map(jnp.zeros_like, crossing)
    each = jnp.eye(crossing.up.size, dtype=slope.up.dtype).reshape(-1, *crossing.up.shape)
    of_up = jax.vmap(lambda up: eqx.tree_at(lambda o: o.up, still, up))(each)
    slopes = _above(slope, of_up)
    kicks = jax.vmap(functools.partial(diffusion, problem, crossing))(slopes)
    bent = jax.vmap(lambda along: _dot(along, bend(along)))(_above(change, of_up))
    pushed = jax.vmap(lambda slope, along: _dot(slope, linear(along)))(_above(slope, slopes), _above(change, kicks))
    velocity, acceleration = _dot(slope, change), bent[0] + pushed[0]
    sizes = jax.vmap(_dot)(slopes, kicks)
    noisy = sizes > 0
    decays = jnp.maximum(jnp.where(noisy, -pushed[1:] / jnp.where(noisy, sizes, 1), 0), 0)
    both = (2 - sgd.learning_rate * decays) * decays + 2 * phase.rate
    squares = jnp.where(both > 0, sizes / jnp.where(both > 0, both, 1), jnp.inf)
    deviation, rate, length = safe_sqrt(squares[0]), decays[0] + phase.rate, jnp.sum(crossing.up**2)
    root = jnp.sqrt(jnp.maximum(velocity**2 + 2 * acceleration * deviation, 0))
    last = jnp.where(deviation == 0, 0, 2 * deviation / (jnp.abs(velocity) + root))
    bending = squares[1:] @ bent[1:]
    shrinking = jnp.vdot(crossing.up, noise_at(problem, crossing) @ crossing.up)
    outlying = sgd.noise_scale * jnp.max(kurtosis_at(problem, crossing)) / sgd.dimension
    tail = sgd.noise_scale * adapter.kappa**2 * shrinking * outlying / 2
    return Fluctuations(
        relative=jnp.sum(squares[1:]) / length,
        head_start=last**2 / (last + 1 / rate),
        delay=jnp.where(bending == 0, 0, jnp.abs(bending / (2 * velocity))),
        tail=tail if adapter.normalized else jnp.zeros_like(tail),
        outlying=outlying,
    )


def _above(first: Overlaps, others: Overlaps) -> Overlaps:
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, others)


def _dot(a: Overlaps, b: Overlaps) -> Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, a, b))
