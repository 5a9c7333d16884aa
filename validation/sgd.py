r"""Direct simulation of one-pass SGD in d dimensions."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from tqdm import tqdm

from odes import Overlaps, Problem
from odes.arguments import ArrayLike, require
from validation.trajectories import Simulation, checked_steps, collect

_NUMBERS_AT_ONCE = 2**19
"""Seeds are trained one after the other, or several at once while their inputs stay below this many numbers."""


class Weights(eqx.Module):
    """The trained matrices of one run: `up` (K, r) and `down` (r, d)."""

    up: Float[Array, "K r"]
    down: Float[Array, "r d"]


def frame(problem: Problem, dimension: int) -> Float[Array, "f d"]:
    r"""Vectors with the Gram matrix Γ, in the first directions of R^d (the input's law is isotropic)."""
    eigenvalues, vectors = np.linalg.eigh(np.asarray(problem.frame_gram))
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0))
    return jnp.asarray(np.pad(root, ((0, 0), (0, dimension - root.shape[0]))))


def initial_weights(problem: Problem, dimension: int, key: PRNGKeyArray, *, up: float, dtype) -> Weights:
    """Rows of V uniform on the unit sphere, every entry of U equal to `up`."""
    rank = problem.adapter.rank
    down = jax.random.normal(key, (rank, dimension), dtype)
    down /= jnp.linalg.norm(down, axis=1, keepdims=True)
    return Weights(jnp.full((problem.units[0], rank), up, dtype), down)


def sgd_step(problem: Problem, directions: Array, weights: Weights, inputs: Array, label_noise: Array) -> Weights:
    r"""One step on the batch `inputs` (B, d) with label noise `label_noise` (B,) already scaled by $\sqrt\Delta$.

    $U \leftarrow U - \chi\eta\,\nabla_UL$, $V \leftarrow V - \eta\,\nabla_VL$ for the batch loss $L = \frac{1}{2B}\sum(\hat y - y)^2$ (both
    gradients at the old weights); then the rows of V are rescaled to unit length if the adapter is normalised.
    """
    adapter, sgd = problem.adapter, problem.sgd
    kappa = adapter.kappa
    student = problem.frozen @ directions + kappa * weights.up @ weights.down
    units = student.shape[0]
    preactivations = inputs @ jnp.concatenate([student, problem.target @ directions]).T
    own, target = preactivations[:, :units], preactivations[:, units:]
    error = problem.student(own) @ problem.readout - problem.teacher(target) @ problem.teacher_readout - label_noise
    amplitude = jnp.outer(error, problem.readout) * problem.student.derivative(own)
    gradient = amplitude.T @ inputs / inputs.shape[0]
    up = weights.up - sgd.learning_rate * adapter.lr_ratio * kappa * gradient @ weights.down.T
    down = weights.down - sgd.learning_rate * kappa * weights.up.T @ gradient
    if adapter.normalized:
        down /= jnp.linalg.norm(down, axis=1, keepdims=True)
    return Weights(up, down)


def _overlaps(directions: Array, weights: Weights) -> Overlaps:
    return Overlaps(weights.up, weights.down @ directions.T, weights.down @ weights.down.T)


@eqx.filter_jit
def _advance(
    problem: Problem, directions: Array, weights: Weights, keys: Array, first: Array, last: Array, batch: int
) -> tuple[Weights, Overlaps]:
    """Takes every seed from step `first` to step `last`; draws depend on the seed's key and the step alone."""
    dimension, dtype = directions.shape[1], directions.dtype

    def one_seed(seed: tuple[Weights, PRNGKeyArray]) -> Weights:
        start, key = seed

        def step(i: Array, weights: Weights) -> Weights:
            inputs_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
            inputs = jax.random.normal(inputs_key, (batch, dimension), dtype)
            noise = jnp.sqrt(problem.sgd.label_noise) * jax.random.normal(noise_key, (batch,), dtype)
            return sgd_step(problem, directions, weights, inputs, noise)

        return jax.lax.fori_loop(first, last, step, start)

    at_once = max(1, _NUMBERS_AT_ONCE // (batch * dimension))
    weights = jax.lax.map(one_seed, (weights, keys), batch_size=at_once)
    return weights, jax.vmap(lambda w: _overlaps(directions, w))(weights)


def simulate_direct(
    problem: Problem,
    *,
    key: PRNGKeyArray,
    seeds: int,
    steps: ArrayLike,
    up: float = 0.0,
    shared_start: bool = False,
    dtype: str = "float32",
    progress: bool = False,
) -> Simulation:
    r"""One-pass SGD with d-dimensional weights, for independent `seeds`, the overlaps recorded at chosen `steps`.

    Time is t = η * step. Memory is that of a batch, the weights and the records, whatever the number of steps; a run to
    more steps continues the same random numbers, and recording more often does not change them. The input's isotropy
    lets the frame lie in the first coordinates.

    - `steps` (T,): increasing step numbers, 0 for the start (see [`validation.even_steps`][]);
    - `up`: the value of every entry of U at the start; `shared_start`: whether all seeds start from the same V, so that
        they differ by their data alone;
    - `dtype`: "float32" or "float64", of the whole simulation;
    - `progress`: show a progress bar on standard error if that is a terminal.

    **Raises** ValueError for fewer than one seed, steps that do not increase, an infinite or fractional batch or
    dimension, and a dimension below the number of fixed directions plus the rank.
    """
    batch, dimension = (_whole(name, getattr(problem.sgd, name)) for name in ("batch_size", "dimension"))
    require("seeds", seeds, "at least 1", lambda x: x >= 1)
    least = problem.frame_size + problem.adapter.rank
    require("dimension", dimension, f"at least {least}, the number of directions", lambda x: x >= least)
    steps = checked_steps(steps)
    cast = jax.tree.map(lambda x: x.astype(dtype), problem)
    directions = frame(problem, dimension).astype(dtype)
    start_key, run_key = jax.random.split(key)
    start_keys = jax.random.split(start_key, seeds)
    if shared_start:
        start_keys = jnp.broadcast_to(start_keys[0], (seeds,))
    weights = jax.vmap(lambda k: initial_weights(cast, dimension, k, up=up, dtype=directions.dtype))(start_keys)
    run_keys = jax.random.split(run_key, seeds)

    def records() -> Iterator[Overlaps]:
        current, done = weights, 0
        hide = None if progress else True
        with tqdm(total=int(steps[-1]), unit="step", disable=hide, desc=f"{seeds} seeds, d = {dimension}") as bar:
            for step in steps:
                current, overlaps = _advance(
                    cast, directions, current, run_keys, jnp.asarray(done), jnp.asarray(step), batch
                )
                jax.block_until_ready(overlaps)
                bar.update(int(step) - done)
                done = int(step)
                yield overlaps

    return collect(problem, records(), steps, method="direct", dtype=dtype)


def _whole(name: str, value: Array) -> int:
    require(name, value, "a whole number to simulate", lambda x: np.isfinite(x) & (x == np.round(x)))
    return int(value)
