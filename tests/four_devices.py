"""What [`odes.spread`][] gives on four devices and on one, as JSON; a process of its own, since JAX counts its devices once.

With the argument "gradient" that of the escape time.
"""

import json
import re
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odes import SGD, Escape, Problem, random_overlaps, solve, spread, spread_batched
from validation.cli.compilation import set_up
from validation.simulation import chain_simulator

COLLECTIVES = re.compile(
    r"\b(all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter|collective-broadcast)[\w-]*\("
)


def collectives(function, *arguments):
    """How many collectives the compiled function has."""
    compiled = eqx.filter_jit(function).lower(*arguments).compile()
    text = compiled.compiled.as_text()
    assert "ENTRY" in text
    return len(COLLECTIVES.findall(text))


def places(tree):
    """On how many devices the arrays of a tree are."""
    return sorted({len(x.devices()) for x in jax.tree.leaves(tree)})


def difference(x, y):
    """The largest one, relative to numbers above 1; 0 where both are NaN or the same whole number, infinite where one is."""
    if np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
        return 0.0
    far = np.abs(x.astype(float) - y) / np.maximum(1, np.abs(y))
    return float(np.max(np.where(np.isnan(x) & np.isnan(y), 0, np.nan_to_num(far, nan=np.inf))))


def escapes(problem, key):
    start = random_overlaps(problem, key)
    return solve(problem, start, t1=100.0, times=[50.0, 100.0], escape=Escape())


def slope(strength, key):
    def time(strength):
        problem = Problem.single_index("erf", strength=strength, alignment=0.9)
        start = random_overlaps(problem, key)
        return solve(problem, start, t1=100.0, times=[], escape=Escape(), until_escape=True).escape_time

    return jax.value_and_grad(time)(strength)


def chain(simulator, states, keys, first, last):
    """Many seeds of a simulator at once, from step to step."""

    def step(i, states):
        return jax.vmap(lambda state, key: simulator.step(state, jax.random.fold_in(key, i)))(states, keys)

    return jax.lax.fori_loop(first, last, step, states)


def compared(many, few, count):
    """`many` at once on four devices against the same on one device, as many rows at a time as each of the four had."""
    parts = [few(slice(first, first + count // 4)) for first in range(0, count, count // 4)]
    whole = jax.tree.map(lambda *x: np.concatenate([np.asarray(y) for y in x]), *parts)
    leaves = zip(*map(jax.tree.leaves, (many, whole)), strict=True)
    return max(difference(np.asarray(x), y) for x, y in leaves)


def gradient(keys):
    """The slope of the escape time in the strength, from eight starts."""
    slopes, few = (spread(slope, in_axes=(None, 0), devices=some) for some in (None, jax.devices()[:1]))
    strength, keys = jnp.asarray(0.5), keys[:8]
    return {
        "gradient": compared(slopes(strength, keys), lambda part: few(strength, keys[part]), 8),
        "collectives of gradient": collectives(slopes, strength, keys),
    }


def values(keys):
    """Solutions, steps of the chain, and what becomes of rows that devices cannot share evenly."""
    one = jax.devices()[:1]
    problem = Problem.single_index("erf", strength=0.5, alignment=0.9, sgd=SGD(dimension=1000, batch_size=500))
    found = {}
    solved, alone = (spread(escapes, in_axes=(None, 0), devices=some) for some in (None, one))
    many = solved(problem, keys)
    found["escaped"] = int(np.isfinite(many.escape_time).sum())
    found["places"] = places(many.escape_time)
    found["solve"] = compared(many, lambda part: alone(problem, keys[part]), 16)
    found["collectives of solve"] = collectives(solved, problem, keys)
    uneven = solved(problem, keys[:13])
    found["uneven"] = [
        uneven.loss.shape[0],
        float(np.abs(np.asarray(uneven.loss) - np.asarray(many.loss)[:13]).max()),
        places(uneven),
    ]

    simulator = chain_simulator(problem)
    states = jax.vmap(simulator.start)(keys)
    axes = (None, 0, 0, None, None)
    advanced, alone = (spread_batched(chain, in_axes=axes, devices=some) for some in (None, one))
    steps = jnp.asarray(0), jnp.asarray(30)

    def seeds(part):
        return alone(simulator, jax.tree.map(lambda x: x[part], states), keys[part], *steps)

    found["chain"] = compared(advanced(simulator, states, keys, *steps), seeds, 16)
    found["collectives of chain"] = collectives(advanced, simulator, states, keys, *steps)
    inside = spread_batched(lambda x: jnp.full(x.shape, x.shape[0]))(np.zeros(10))
    found["rows of each device"] = sorted(set(np.asarray(inside).tolist()))

    grad = jax.grad(lambda s: jnp.sum(spread(lambda s, x: jnp.sin(s * x), in_axes=(None, 0))(s, jnp.arange(6.0))))
    found["outer gradient"] = [float(grad(0.5)), float(np.sum(np.arange(6) * np.cos(0.5 * np.arange(6))))]
    summed = spread_batched(lambda x: jax.numpy.cumsum(x) + jnp.sum(x))
    found["collectives of a sum over rows"] = collectives(lambda x: jnp.sum(summed(x)), jnp.arange(8.0))
    return found


if __name__ == "__main__":
    set_up()
    assert jax.device_count() == 4
    keys = jax.random.split(jax.random.key(0), 16)
    print(json.dumps(gradient(keys) if sys.argv[1:] == ["gradient"] else values(keys)))
