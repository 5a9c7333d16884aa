r"""SGD at any dimension d as an exact Markov chain on the overlaps.

A step meets the input x only through the preactivations W x and T x. In every direction orthogonal to the rows of W
and T the components of x are standard normals that know nothing of the gradient's amplitudes g, so that there the
batch gradient $\frac1B\sum_ig_ix_i^T$ is, given the amplitudes, a Gaussian matrix with left covariance
$\frac1{B^2}\sum_ig_ig_i^T$. Only the K + P preactivations need a draw per sample, whatever rank and dimension are, and the
d - rank F - r directions that no weight points to enter by one Wishart matrix (one chi-squared number for K = 1).
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from odes import Overlaps, Problem, covariances, gradient_at, noise_of, random_overlaps, with_own_readout
from odes.arguments import ArrayLike, require
from odes.devices import at_once, full_precision
from validation.simulation.basis import Coordinates, FrameBasis, frame_basis, to_coordinates, to_overlaps
from validation.simulation.ensemble import simulate
from validation.simulation.result import Simulation
from validation.simulation.simulator import Simulator, whole_number

LARGEST_BATCH = 2**26
"""Batches above this are not sampled one by one."""

_SAMPLES_AT_ONCE = 2**16
"""On a CPU seeds advance together while their batches hold no more samples than this."""

_COPIES = 4
"""So many arrays of the size of a batch's preactivations are alive at once."""

_AVERAGE_COST = 2**11
"""Gaussian averages instead of a batch count as this many samples."""


class BatchMeans(eqx.Module):
    r"""What a batch leaves of its samples: means over it, in an orthonormal basis of the preactivations.

    `teacher` (K, P') and `student` (K, K) are the components of $\frac1B\sum_ig_ix_i^T$ along the teachers' directions and along
    the student's n other directions; `root` (K, K) is a lower-triangular root of $\frac1{B^2}\sum_ig_ig_i^T$; `readout` (K,) is the
    mean of $e\,\sigma(\lambda_k)$.
    """

    teacher: Float[Array, "K teachers"]
    student: Float[Array, "K n"]
    root: Float[Array, "K K"]
    readout: Float[Array, " K"]


def _lower_root(rows: Array) -> Array:
    """A lower-triangular L (n, n) with L L^T = rows rows^T, for rows (n, p)."""
    count, length = rows.shape
    if count == 1:
        return jnp.linalg.norm(rows, axis=1, keepdims=True)
    return jnp.linalg.qr(jnp.pad(rows, ((0, 0), (0, max(count - length, 0)))).T, mode="r").T


def _directions(rows: Array) -> tuple[Array, Array]:
    """L (K, n) and Q (n, p) with rows (K, p) = L Q and n = min(K, p); Q's rows are orthonormal, the one of K = 1 may be zero."""
    if rows.shape[0] == 1:
        length = jnp.linalg.norm(rows, axis=1, keepdims=True)
        return length, jnp.where(length > 0, rows / jnp.where(length > 0, length, 1), 0)
    q, r = jnp.linalg.qr(rows.T)
    return r.T, q.T


def sampled_means(
    problem: Problem,
    basis: FrameBasis,
    student: Array,
    lengths: Array,
    key: PRNGKeyArray,
    *,
    batch: int,
    noisy: bool,
    dtype,
) -> BatchMeans:
    """The means over `batch` samples, drawn one by one, for a student with the given coordinates.

    The samples are drawn and their amplitudes computed in `dtype`; label noise is drawn only if `noisy`.
    """
    teachers = basis.teacher.shape[1]
    input_key, noise_key = jax.random.split(key)
    inputs = jax.random.normal(input_key, (teachers + lengths.shape[1], batch), dtype)
    own = jnp.concatenate([student[:, :teachers], lengths], axis=1).astype(dtype) @ inputs
    target = basis.teacher.astype(dtype) @ inputs[:teachers]
    readout, teacher_readout = problem.readout.astype(dtype), problem.teacher_readout.astype(dtype)
    images = problem.student(own)
    error = readout @ images - teacher_readout @ problem.teacher(target)
    if noisy:
        deviation = jnp.sqrt(problem.sgd.label_noise).astype(dtype)
        error -= deviation * jax.random.normal(noise_key, (batch,), dtype)
    amplitudes = readout[:, None] * problem.student.derivative(own) * error[None]
    products = jnp.sum(amplitudes[:, None] * inputs[None], axis=2) / batch
    root, by_readout = _lower_root(amplitudes) / batch, images @ error / batch
    means = BatchMeans(products[:, :teachers], products[:, teachers:], root, by_readout)
    return jax.tree.map(lambda x: x.astype(student.dtype), means)


def expected_means(
    problem: Problem, basis: FrameBasis, overlaps: Overlaps, student: Array, lengths: Array
) -> BatchMeans:
    r"""The means over an infinite batch: the components of $DW - CT$, and no amplitude in the other directions."""
    teachers = basis.teacher.shape[1]
    gradient = gradient_at(problem, overlaps)
    along = gradient.D @ student[:, :teachers] - gradient.C @ basis.teacher
    return BatchMeans(along, gradient.D @ lengths, jnp.zeros_like(gradient.D), gradient.readout)


def normal_means(
    problem: Problem, basis: FrameBasis, overlaps: Overlaps, student: Array, lengths: Array, key: PRNGKeyArray
) -> BatchMeans:
    r"""The normal limit of [`sampled_means`][], for finite batches too large to sample, with readouts at rest.

    In an orthonormal basis z of the preactivations x = Az, one sample has by Stein's lemma
    $$E[g_kg_lzz^T] = N_{kl}\,1 + A^TE[\nabla^2(g_kg_l)]A,$$
    where Price's theorem gives the second derivatives as those of N in the covariances, $2\partial_QN_{kl}$, $\partial_MN_{kl}$ and
    $2\partial_PN_{kl}$. The batch's average fluctuates around its mean with this, less the mean's square, over B. What is left out is
    of relative order $B^{-1/2}$: the third cumulant of one step, and the fluctuation of the mean of $gg^T$.
    """
    covariance, (units, teachers) = covariances(problem, overlaps), (student.shape[0], basis.teacher.shape[1])
    noise = noise_of(problem, covariance)
    slope = jax.jacrev(lambda c: noise_of(problem, c))(covariance)
    own, target = slope.Q + jnp.swapaxes(slope.Q, 2, 3), slope.P + jnp.swapaxes(slope.P, 2, 3)
    curvature = jnp.concatenate(
        [jnp.concatenate([own, slope.M], axis=3), jnp.concatenate([jnp.swapaxes(slope.M, 2, 3), target], axis=3)],
        axis=2,
    )
    rows = jnp.concatenate([student[:, :teachers], lengths], axis=1)
    mixing = jnp.concatenate([rows, jnp.pad(basis.teacher, ((0, 0), (0, lengths.shape[1])))])
    mean = expected_means(problem, basis, overlaps, student, lengths)
    flat = jnp.concatenate([mean.teacher, mean.student], axis=1)
    second = jnp.einsum("kl,ab->kalb", noise, jnp.eye(flat.shape[1], dtype=noise.dtype))
    second += jnp.einsum("ia,klij,jb->kalb", mixing, curvature, mixing)
    second -= jnp.einsum("ka,lb->kalb", flat, flat)
    eigenvalues, vectors = jnp.linalg.eigh(second.reshape(flat.size, flat.size))
    deviations = jnp.sqrt(jnp.maximum(eigenvalues, 0) / problem.sgd.batch_size)
    flat += (vectors @ (deviations * jax.random.normal(key, (flat.size,), flat.dtype))).reshape(flat.shape)
    eigenvalues, vectors = jnp.linalg.eigh(noise)
    root = _lower_root(vectors * jnp.sqrt(jnp.maximum(eigenvalues, 0) / problem.sgd.batch_size)[None])
    return BatchMeans(flat[:, :teachers], flat[:, teachers:], root, jnp.zeros(units, flat.dtype))


class ChainSimulator(Simulator):
    """SGD as a Markov chain on the overlaps.

    `sampling` says how a batch's means are drawn: "samples" draws every sample (exact), "mean" takes an infinite batch
    (exact), "normal" takes the normal limit of a large batch.
    """

    problem: Problem
    basis: FrameBasis
    initial: Overlaps | None
    up: Array
    length: Array
    batch: int = eqx.field(static=True)
    noisy: bool = eqx.field(static=True)
    sampling: Literal["samples", "mean", "normal"] = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    method: str = eqx.field(static=True, default="chain")

    @property
    def seeds_at_once(self) -> int:
        """So many that their samples stay in a CPU's caches, or fill a part of an accelerator's memory ([`odes.devices.at_once`][])."""
        one = _COPIES * sum(self.problem.units) * np.dtype(self.dtype).itemsize
        return max(1, at_once(_SAMPLES_AT_ONCE, bytes_each=one) // self.batch)

    def start(self, key: PRNGKeyArray) -> Coordinates:
        """The given overlaps, or those of a random start."""
        start = self.initial
        if start is None:
            start = random_overlaps(self.problem, key, up=self.up, length=self.length)
        return to_coordinates(self.basis.rows, with_own_readout(self.problem, start))

    def overlaps(self, state: Coordinates) -> Overlaps:
        return to_overlaps(self.basis.rows, state)

    def taken_over(self, state: Coordinates, before: Simulator) -> Coordinates:
        return to_coordinates(self.basis.rows, with_own_readout(self.problem, before.overlaps(state)))

    def step(self, state: Coordinates, key: PRNGKeyArray) -> Coordinates:
        r"""One SGD step, exact in law at dimension d.

        With the batch gradient G (K x d), $U \leftarrow U - \chi\eta\kappa\,GV^T$ and
        $V \leftarrow V - \eta(\kappa\,U^TG + \lambda V)$, both at the old weights and of trained rows alone; then these rows get unit
        length if the adapter is normalised. Trained readouts go against the mean of $e\,\sigma(\lambda)$. G is put together from
        the batch's means along the preactivations, a Gaussian matrix along the other directions of span(F, V), and the root of a
        Wishart matrix (Bartlett) for the d - f' - r directions outside.
        """
        basis = self.basis
        problem = (
            self.problem if state.readout is None else eqx.tree_at(lambda p: p.readout, self.problem, state.readout)
        )
        adapter, sgd = problem.adapter, problem.sgd
        span, teachers = basis.rows.shape[1], basis.teacher.shape[1]
        (units, rank), real = state.up.shape, state.up.dtype
        sample_key, inside_key, outside_key, length_key = jax.random.split(key, 4)
        down = jnp.concatenate([state.inside, state.outside], axis=1)
        frozen = jnp.pad(problem.frozen @ basis.rows, ((0, 0), (0, rank)))
        student = frozen + adapter.kappa * state.up @ down
        lengths, directions = _directions(student[:, teachers:])
        if self.sampling == "samples":
            with full_precision():
                means = sampled_means(
                    problem, basis, student, lengths, sample_key, batch=self.batch, noisy=self.noisy, dtype=self.dtype
                )
        elif self.sampling == "mean":
            means = expected_means(problem, basis, self.overlaps(state), student, lengths)
        else:
            means = normal_means(problem, basis, self.overlaps(state), student, lengths, sample_key)
        free = jax.random.normal(inside_key, (units, span + rank - teachers), real)
        free -= (free @ directions.T) @ directions
        gradient = jnp.concatenate([means.teacher, means.student @ directions + means.root @ free], axis=1)
        freedom = sgd.dimension - span - rank - jnp.arange(units, dtype=real)
        bartlett = jnp.diag(jnp.sqrt(jax.random.chisquare(length_key, freedom, dtype=real)))
        if units > 1:
            bartlett += jnp.tril(jax.random.normal(outside_key, (units, units), real), -1)
        size, trained = sgd.learning_rate * adapter.kappa, adapter.trained[None]
        moving = size * (state.up * trained).T
        kept = (1 - sgd.learning_rate * adapter.weight_decay * trained).T * down
        moved = jnp.concatenate([kept - moving @ gradient, moving @ means.root @ bartlett], axis=1)
        if adapter.normalized:
            moved /= jnp.where(trained.T > 0, jnp.linalg.norm(moved, axis=1, keepdims=True), 1)
        up = state.up - size * adapter.lr_ratio * trained * (gradient @ down.T)
        readout = None
        if state.readout is not None:
            readout = state.readout - sgd.learning_rate * sgd.readout_lr_ratio * means.readout
        return Coordinates(up, moved[:, :span], _lower_root(moved[:, span:]), readout)


def chain_simulator(
    problem: Problem,
    *,
    start: Overlaps | None = None,
    up: ArrayLike = 0.0,
    length: ArrayLike = 1.0,
    normal_batches: bool = False,
    dtype: str = "float32",
) -> ChainSimulator:
    """The chain of a problem; an infinite batch is taken as such (gradient descent on the population loss).

    - `start`: the overlaps from which every seed starts; a random start at dimension d unless given, with `up` for the
        entries of U and `length` for the lengths of V's rows (each one number, or one for every row);
    - `normal_batches`: draw every batch's mean gradient from its normal limit, whose cost does not depend on B;
    - `dtype`: "float32" or "float64", of the samples; the state is always in JAX's default type.

    **Raises** ArgumentError for a dimension below rank F + r + K, a fractional batch, one of more than [`LARGEST_BATCH`][]
    samples unless `normal_batches`, and normal batches of trained readouts.
    """
    basis = frame_basis(problem)
    least = basis.rows.shape[1] + problem.adapter.rank + problem.units[0]
    require("dimension", problem.sgd.dimension, f"at least {least}, the number of directions", lambda d: d >= least)
    sampling, batch, real = "samples", 1, jnp.result_type(float)
    if np.isinf(problem.sgd.batch_size):
        sampling = "mean"
    elif normal_batches:
        sampling = "normal"
        require("readout_lr_ratio", problem.sgd.readout_lr_ratio, "0 for normal batches", lambda ratio: ratio == 0)
    else:
        batch = whole_number("batch_size", problem.sgd.batch_size)
        allowed = f"at most {LARGEST_BATCH} to be sampled (method gaussian takes larger ones)"
        require("batch_size", batch, allowed, lambda b: b <= LARGEST_BATCH)
    return ChainSimulator(
        problem=problem,
        basis=basis,
        initial=start,
        up=jax.device_put(np.asarray(up, real)),
        length=jax.device_put(np.asarray(length, real)),
        batch=batch if sampling == "samples" else _AVERAGE_COST,
        noisy=float(problem.sgd.label_noise) > 0,
        sampling=sampling,
        dtype=dtype if sampling == "samples" else str(real),
        method="gaussian" if sampling == "normal" else "chain",
    )


def affordable_chain(problem: Problem, steps: ArrayLike, *, samples: float = 1e8, **start: Any) -> ChainSimulator:
    """The exact chain, or that of normal batches where a seed would need more than so many `samples` for the `steps`."""
    needed = float(problem.sgd.batch_size) * float(np.asarray(steps)[-1])
    return chain_simulator(problem, normal_batches=bool(samples < needed < np.inf), **start)


def simulate_chain(
    problem: Problem,
    *,
    start: Overlaps | None = None,
    up: ArrayLike = 0.0,
    normal_batches: bool = False,
    dtype: str = "float32",
    **options: Any,
) -> Simulation:
    """One-pass SGD at any dimension, exact in law: [`chain_simulator`][] in [`validation.simulation.simulate`][] with its `options`.

    >>> from odes import SGD
    >>> problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=1e6, batch_size=500, learning_rate=2e-4))
    >>> print(simulate_chain(problem, key=jax.random.key(0), seeds=2, steps=[0, 10]))
    Simulation (chain) of 2 seeds at d = 1e+06 to t = 0.002, 2 records
    """
    simulator = chain_simulator(problem, start=start, up=up, normal_batches=normal_batches, dtype=dtype)
    return simulate(simulator, **options)
