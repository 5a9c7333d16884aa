r"""Direct simulation of one-pass SGD in d dimensions."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from odes import Overlaps, Problem, with_own_readout
from odes.arguments import ArrayLike, require
from odes.devices import at_once, full_precision
from validation.simulation.basis import spanning_basis, to_coordinates
from validation.simulation.ensemble import simulate
from validation.simulation.result import Simulation
from validation.simulation.simulator import Simulator, require_memory, whole_number

_NUMBERS_AT_ONCE = 2**19
"""On a CPU seeds advance together while their inputs stay below this many numbers."""

_COPIES = 3
"""So many arrays of the size of a batch and of V are alive at once."""


class Weights(eqx.Module):
    """What is trained in one run: `up` (K, r), `down` (r, d) and, unless they rest, the readouts (K,)."""

    up: Float[Array, "K r"]
    down: Float[Array, "r d"]
    readout: Float[Array, " K"] | None = None


def initial_weights(
    problem: Problem, dimension: int, key: PRNGKeyArray, *, up: ArrayLike, length: ArrayLike, dtype
) -> Weights:
    """Rows of V uniform on the sphere with radius `length`, U equal to `up` (each one number, or one for every row)."""
    rank = problem.adapter.rank
    down = jax.random.normal(key, (rank, dimension), dtype)
    down *= jnp.broadcast_to(jnp.asarray(length, dtype), (rank,))[:, None] / jnp.linalg.norm(
        down, axis=1, keepdims=True
    )
    readout = problem.readout if problem.sgd.trains_readouts else None
    return Weights(jnp.broadcast_to(jnp.asarray(up, dtype), (problem.units[0], rank)), down, readout)


def sgd_step(problem: Problem, directions: Array, weights: Weights, inputs: Array, label_noise: Array) -> Weights:
    r"""One step on the batch `inputs` (B, d) with label noise `label_noise` (B,) already scaled by $\sqrt\Delta$.

    $U \leftarrow U - \chi\eta\,\nabla_UL$, $V \leftarrow V - \eta(\nabla_VL + \lambda V)$ and, if readouts are trained,
    $a \leftarrow a - \chi_a\eta\,\nabla_aL$ for the batch loss $L = \frac{1}{2B}\sum(\hat y - y)^2$, gradients at the old weights, of
    the trained rows of V and their columns of U alone;
    then the trained rows of V are rescaled to unit length if the adapter is normalised.
    """
    adapter, sgd = problem.adapter, problem.sgd
    kappa = adapter.kappa
    student = problem.frozen @ directions + kappa * weights.up @ weights.down
    units = student.shape[0]
    preactivations = inputs @ jnp.concatenate([student, problem.target @ directions]).T
    own, target = preactivations[:, :units], preactivations[:, units:]
    readout, images = problem.readout if weights.readout is None else weights.readout, problem.student(own)
    error = images @ readout - problem.teacher(target) @ problem.teacher_readout - label_noise
    amplitude = jnp.outer(error, readout) * problem.student.derivative(own)
    gradient = amplitude.T @ inputs / inputs.shape[0]
    size, trained = sgd.learning_rate * kappa, adapter.trained[None]
    up = weights.up - size * adapter.lr_ratio * trained * (gradient @ weights.down.T)
    kept = (1 - sgd.learning_rate * adapter.weight_decay * trained).T * weights.down
    down = kept - size * (weights.up * trained).T @ gradient
    if adapter.normalized:
        down /= jnp.where(trained.T > 0, jnp.linalg.norm(down, axis=1, keepdims=True), 1)
    if weights.readout is None:
        return Weights(up, down)
    by_readout = images.T @ error / inputs.shape[0]
    return Weights(up, down, readout - sgd.learning_rate * sgd.readout_lr_ratio * by_readout)


class DirectSimulator(Simulator):
    """Training of d-dimensional weights; the frame lies in the first coordinates, since the inputs are isotropic."""

    problem: Problem
    basis: Float[Array, "f n"]
    initial: Weights | None
    up: Array
    length: Array
    dimension: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    method: str = eqx.field(static=True, default="direct")

    @property
    def directions(self) -> Float[Array, "f d"]:
        """The frame: its first coordinates, and zeros."""
        return _embedded(self.basis, self.dimension)

    @property
    def seeds_at_once(self) -> int:
        """So many that their inputs stay in a CPU's caches, or fill a part of an accelerator's memory ([`odes.devices.at_once`][])."""
        one = _COPIES * np.dtype(self.dtype).itemsize
        return max(1, at_once(_NUMBERS_AT_ONCE, bytes_each=one) // (self.batch * self.dimension))

    @property
    def _cast(self) -> Problem:
        return jax.tree.map(lambda x: x.astype(self.dtype), self.problem)

    def start(self, key: PRNGKeyArray) -> Weights:
        """The given weights, or those of a random start."""
        if self.initial is not None:
            return self.initial
        return initial_weights(self._cast, self.dimension, key, up=self.up, length=self.length, dtype=self.basis.dtype)

    def step(self, state: Weights, key: PRNGKeyArray) -> Weights:
        dimension, dtype, problem = self.dimension, self.basis.dtype, self._cast
        inputs_key, noise_key = jax.random.split(key)
        inputs = jax.random.normal(inputs_key, (self.batch, dimension), dtype)
        noise = jnp.sqrt(problem.sgd.label_noise) * jax.random.normal(noise_key, (self.batch,), dtype)
        with full_precision():
            return sgd_step(problem, self.directions, state, inputs, noise)

    def overlaps(self, state: Weights) -> Overlaps:
        with full_precision():
            return Overlaps(state.up, state.down @ self.directions.T, state.down @ state.down.T, state.readout)

    def taken_over(self, state: Weights, before: Simulator) -> Weights:
        if state.readout is None and self.problem.sgd.trains_readouts:
            return dataclasses.replace(state, readout=self._cast.readout)
        return state


def direct_simulator(
    problem: Problem,
    *,
    start: Overlaps | None = None,
    up: ArrayLike = 0.0,
    length: ArrayLike = 1.0,
    dtype: str = "float32",
) -> DirectSimulator:
    """The direct simulator of a problem.

    - `start`: the overlaps from which every seed starts, in one position of the rows of V (the input's law does not know
        positions); random rows unless given, with `up` for the entries of U and `length` for the rows' lengths (each one
        number, or one for every row);
    - `dtype`: "float32" or "float64", of the whole simulation.

    **Raises** ArgumentError for an infinite or fractional batch or dimension, and a dimension below the number of fixed
    directions plus the rank.
    """
    batch, dimension = (whole_number(name, getattr(problem.sgd, name)) for name in ("batch_size", "dimension"))
    least = problem.frame_size + problem.adapter.rank
    require("dimension", dimension, f"at least {least}, the number of directions", lambda x: x >= least)
    rows = problem.frame_size + _COPIES * (problem.adapter.rank + batch)
    require_memory(
        float(np.dtype(dtype).itemsize * dimension * rows),
        f"direct simulation at d = {dimension:g}, B = {batch} (method chain needs little)",
    )
    basis, initial = spanning_basis(problem), None

    if start is not None:
        place = to_coordinates(basis, with_own_readout(problem, start))
        down = np.concatenate([place.inside, place.outside], axis=1)
        readout = None if place.readout is None else place.readout.astype(dtype)
        initial = Weights(place.up.astype(dtype), _embedded(jax.device_put(down.astype(dtype)), dimension), readout)
    return DirectSimulator(
        problem=problem,
        basis=jax.device_put(np.asarray(basis, dtype)),
        initial=initial,
        up=jax.device_put(np.asarray(up, dtype)),
        length=jax.device_put(np.asarray(length, dtype)),
        dimension=dimension,
        batch=batch,
        dtype=dtype,
    )


def _embedded(rows: Float[Array, "m n"], dimension: int) -> Float[Array, "m d"]:
    """Rows given by their first coordinates."""
    return jnp.pad(rows, ((0, 0), (0, dimension - rows.shape[1])))


def simulate_direct(
    problem: Problem, *, start: Overlaps | None = None, up: ArrayLike = 0.0, dtype: str = "float32", **options: Any
) -> Simulation:
    """One-pass SGD with d-dimensional weights: [`direct_simulator`][] in [`validation.simulation.simulate`][] with its `options`."""
    return simulate(direct_simulator(problem, start=start, up=up, dtype=dtype), **options)
