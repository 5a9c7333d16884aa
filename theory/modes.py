r"""The escape modes of an adapter: all rates and vectors of the search phase, for any number of units."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from odes import Problem, gradient_at, noise_at, pretrained
from odes.arguments import positive, require
from odes.diagonals import diagonal
from odes.overlaps import orthonormal_components
from odes.programs import program
from odes.shown import Shown

_ROUNDING = 64
"""A row of the gradient that is smaller than so many units of rounding of its two terms is 0."""

_NEGLIGIBLE = 1e-3
"""Modes that grow slower than this part of the fastest are not waited for."""

_ASLEEP = 1e-12
"""A mode of unit length whose part in U is smaller does not move U."""


class EscapeModes(Shown):
    r"""The 2K modes of the search phase of K student units, each of which exists once for every row of the adapter.

    - `C` (K, P), `D` (K, K): the gradient's coefficients at w0, $\nabla_W\ell = DW_0 - CT =: -g$;
    - `gram` (K, K): $gg^T$; `noise` (K, K): N; `loss`, at w0;
    - `rates` (2K,): λ, first the K modes that grow or rest, then the K that decay or rest, each in decreasing order;
    - `up` (2K, K): the mode's column of U; `cross` (2K, K): its row of V along `span`; both together are of unit length, and 0
        for a mode at rest;
    - `span` (K, f): overlaps with the frame of orthonormal directions that span the rows of g, in their order, 0 for rows that those
        before span;
    - `directions` (2K, f): overlaps with the frame of the unit vector that the mode's rows of V learn, along $g^Tu$, 0 if that is 0;
    - `teachers` (2K, P): its cosines with the teacher's directions.
    """

    C: Float[Array, "K P"]
    D: Float[Array, "K K"]
    gram: Float[Array, "K K"]
    noise: Float[Array, "K K"]
    loss: Float[Array, ""]
    rates: Float[Array, " n"]
    up: Float[Array, "n K"]
    cross: Float[Array, "n K"]
    span: Float[Array, "K f"]
    directions: Float[Array, "n f"]
    teachers: Float[Array, "n P"]

    @property
    def rate(self) -> Float[Array, ""]:
        """The largest rate."""
        return self.rates[0]

    @property
    def searched(self) -> Bool[Array, " n"]:
        """Which modes grow above a thousandth of the largest rate: so many directions the adapter has to learn, one search each."""
        return (self.rates > 0) & (self.rates > _NEGLIGIBLE * self.rate)

    @property
    def slowest(self) -> Float[Array, ""]:
        """The smallest rate of a mode that is searched for, the largest where none is: further searches take so long."""
        return jnp.min(jnp.where(self.searched, self.rates, self.rate))

    @property
    def leading(self) -> Float[Array, " K"]:
        """The unit vector along the column of U of the mode that grows fastest; all units alike where none grows."""
        up = jnp.where(self.rate > 0, self.up[0], 1.0)
        return up / jnp.linalg.norm(up)

    @property
    def grows_alone(self) -> Float[Array, " K"]:
        r"""The eigenvalues of D at w0, increasing: along those below 0 U grows without any overlap, to a plateau."""
        return jnp.linalg.eigvalsh(self.D)


def escape_rate(
    D: ScalarLike, G: ScalarLike, *, kappa: ScalarLike = 1.0, lr_ratio: ScalarLike = 1.0
) -> Float[Array, ""]:
    r"""The growth rate of the unstable mode of one unit,

    $$\lambda_+ = \tfrac12\left(-\chi\kappa^2D + \sqrt{\chi^2\kappa^4D^2 + 4\chi\kappa^2G}\right),$$

    the larger root of $\lambda^2 + \chi\kappa^2D\lambda - \chi\kappa^2G = 0$, evaluated without cancellation. κ and the learning rate
    ratio χ enter only as χκ². As χ grows, λ₊ tends to G/D if D > 0.
    """
    speed = jnp.asarray(lr_ratio * kappa**2, jnp.result_type(float))
    damping, drive = speed * D, speed * G
    root = jnp.sqrt(damping**2 + 4 * drive)
    damped = damping > 0
    return jnp.where(damped, 2 * drive / jnp.where(damped, damping + root, 1), (root - damping) / 2)


def escape_modes(problem: Problem) -> EscapeModes:
    r"""All modes of the search phase of any number of student and teacher units.

    Near w0, a row v of the adapter with the column u of U and the overlaps $p = gv$, $g = CT - DW_0$, obeys
    $\dot u = \chi\kappa(p - \kappa Du)$, $\dot p = \kappa gg^Tu$, so that the modes $u\,e^{\lambda t}$ are those of

    $$\lambda^2u + \lambda\chi\kappa^2Du - \chi\kappa^2gg^Tu = 0.$$

    With $gg^T = BB^T$ and $p = Bx$ the system $\dot u = \chi\kappa(Bx - \kappa Du)$, $\dot x = \kappa B^Tu$ is symmetric in
    $(u, \sqrt\chi x)$: rates are real, and at most K of them are positive. Each is the root, plus or minus, of
    the quadratic of one unit ([`escape_rate`][]) with $D \to \hat u^TD\hat u$, $G \to \hat u^Tgg^T\hat u$, which is stationary in
    the unit vector $\hat u$; so derivatives of rates need none of $\hat u$. Derivatives of the vectors are those at fixed
    $\hat u$, exact for one unit.

    >>> from odes import Adapter, Problem
    >>> problem = Problem.committee("erf(x/sqrt(2))", pretrained=[0.3, 0.6], adapter=Adapter(2))
    >>> modes = escape_modes(problem)
    >>> modes.rates.round(3).tolist(), modes.teachers[:2].round(3).tolist()
    ([0.108, 0.002, -0.076, -1.234], [[0.915, 0.403], [0.399, -0.917]])

    **Raises** ArgumentError for a problem without pretrained weights, or whose readouts are trained, or where a pretrained row is 0 and
    the link has a kink there, so that nothing is linear.
    """
    problem.require_known_search()
    if problem.student.kinked:
        rows = "without pretrained rows of length 0, where the link has a kink and nothing is linear"
        require("problem", problem.lengths, rows, positive)
    return _escape_modes(problem)


@program
def _escape_modes(problem: Problem) -> EscapeModes:
    units, adapter, start = problem.units[0], problem.adapter, pretrained(problem)
    kappa, chi = adapter.kappa, adapter.lr_ratio
    gradient, noise = gradient_at(problem, start), noise_at(problem, start)
    frame = orthonormal_components(problem.frame_gram)
    learnt, kept = gradient.C @ problem.target @ frame, gradient.D @ problem.frozen @ frame
    rows = learnt - kept
    least = (_ROUNDING * jnp.finfo(rows.dtype).eps) ** 2 * jnp.sum(learnt**2 + kept**2, axis=1)
    rows = jnp.where((jnp.sum(rows**2, axis=1) < least)[:, None], 0, rows)
    coefficients, D = gradient.C @ problem.target - gradient.D @ problem.frozen, gradient.D
    overlaps = coefficients @ problem.frame_gram
    # the value without cancellation, with derivatives that are finite where rows of the frame become parallel
    known = overlaps @ coefficients.T
    gram = known + jax.lax.stop_gradient(rows @ rows.T - known)
    components = orthonormal_components(gram)
    span = orthonormal_components(jnp.block([[gram, overlaps], [overlaps.T, problem.frame_gram]]))[units:, :units].T
    unit = _directions_of_up(chi * kappa**2 * D, jnp.sqrt(chi) * kappa * components)
    damping, drive = jnp.sum(unit @ D * unit, axis=1), jnp.sum(unit @ gram * unit, axis=1)
    grown = jax.vmap(functools.partial(escape_rate, kappa=kappa, lr_ratio=chi))(damping, drive)
    growing = jnp.arange(2 * units) < units
    rates = jnp.where(growing, grown, 0.0 - (chi * kappa**2 * damping + grown))  # 0, not -0, where nothing is trained
    moving = rates != 0
    cross = kappa * unit @ components / jnp.where(moving, rates, 1)[:, None]
    length = jnp.sqrt(jnp.sum(unit**2 + cross**2, axis=1))
    up, cross = (jnp.where(moving[:, None], x / _safe(length)[:, None], 0) for x in (unit, cross))
    learns = drive > _ROUNDING * jnp.finfo(drive.dtype).eps * jnp.trace(gram)
    directions = jnp.where(learns[:, None], unit @ overlaps, 0) / jnp.sqrt(jnp.where(learns, drive, 1))[:, None]
    lengths = jnp.sqrt(diagonal(problem.target @ problem.frame_gram @ problem.target.T))
    teachers = directions @ problem.target.T / _safe(lengths)[None]
    return EscapeModes(gradient.C, D, gram, noise, gradient.loss, rates, up, cross, span, directions, teachers)


def _directions_of_up(damping: Float[Array, "K K"], coupling: Float[Array, "K K"]) -> Float[Array, "n K"]:
    """The unit vectors along the modes' columns of U, their largest entry positive, 0 for modes that do not move U.

    For one unit they need not be looked for.
    """
    units = damping.shape[0]
    if units == 1:
        return jnp.ones((2, 1), damping.dtype)
    matrix = jnp.block([[-damping, coupling], [coupling.T, jnp.zeros_like(damping)]])
    _, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
    up = vectors[:units, ::-1].T
    length = jnp.linalg.norm(up, axis=1, keepdims=True)
    largest = jnp.take_along_axis(up, jnp.argmax(jnp.abs(up), axis=1, keepdims=True), axis=1)
    return jnp.where(length > _ASLEEP, up / _safe(length) * jnp.where(largest < 0, -1, 1), 0)


def _safe(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)
