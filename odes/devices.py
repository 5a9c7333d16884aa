r"""One computation for many starts, seeds or parameters, its rows split over several devices that never talk to each other."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from odes.arguments import ArgumentError, concrete
from odes.programs import program

_AXIS = "devices"

_SHARE = 8
"""What is computed together may fill one part in so many of an accelerator's memory; the rest is for results and the compiler."""


def full_precision() -> contextlib.AbstractContextManager[None]:
    """A context in which products of float32 matrices are computed in float32.

    GPUs with tensor cores round the factors to 10 bits unless told otherwise: a relative error of 5e-4, more than the fluctuations
    of overlaps at large d. Products in float64, and those on a CPU, are the same with and without it.
    """
    return jax.default_matmul_precision("highest")


def available_memory() -> float:
    """The bytes that this process may use on JAX's device: the device's own, or the machine's and its control group's."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return float(limit) if limit else machine_memory()


def machine_memory() -> float:
    """The bytes of the machine, or of its part that the process's control group may use."""
    sizes = [float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # "max" where the group has no limit
        sizes.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)


def at_once(on_cpu: int, *, bytes_each: float | int) -> int:
    """How many pieces of work are done together: `on_cpu` on a CPU, whose caches hold no more of them.

    An accelerator is the faster the more it does at a time: there, as many as fill an eighth of its memory
    ([`available_memory`][]) with `bytes_each`, at least `on_cpu`.
    """
    if jax.default_backend() == "cpu":
        return on_cpu
    return max(on_cpu, int(available_memory() / (_SHARE * bytes_each)))


def spread(
    function: Callable[..., Any], *, in_axes: Any = 0, devices: Sequence[Any] | None = None
) -> Callable[..., Any]:
    r"""`function` of one row, mapped over the rows of its arguments like `equinox.filter_vmap`, the rows split over devices.

    The result is a function of the same positional arguments, of which some have an axis of n rows in front; every array that it
    returns has this axis too. Each of k devices computes a whole number of rows, $\lceil n/k\rceil$, with nothing from the others:
    the compiled program holds no communication. Where k does not divide n, the last row is computed again as often as it takes.
    On one device it is the compiled `filter_vmap` of the function. Works under jit and vmap. The derivative of a [`odes.solve`][] is
    taken inside, as in `spread(jax.grad(function))`, since Diffrax cannot differentiate what is split already.

    - `in_axes`: 0 for what has rows, None for what all rows share, which every device gets a copy of. One of these for all arguments,
        or a tuple with one for each argument, or in its place a tree of them, as in `jax.vmap`. Numbers of Python, strings and
        functions are always shared;
    - `devices`: the devices; all of JAX's default platform (`jax.devices()`) unless given.

    What comes out is left on the devices that computed it, row by row, if k divides n, else on the first. A row's result depends on
    the devices by rounding alone, and as a rule not even by that if each of them computes as many rows. Under an outer jit a number of
    rows that k does not divide costs one exchange between devices, after the computation.

    **Raises** ArgumentError for `in_axes` other than 0 and None or not of the arguments' structure, arguments without rows or with
    different numbers of them, and an empty list of devices.

    >>> import jax.numpy as jnp
    >>> spread(lambda x, scale: scale * x, in_axes=(0, None))(jnp.arange(3.0), jnp.asarray(2.0)).tolist()
    [0.0, 2.0, 4.0]
    """
    return _wrapped(function, in_axes, devices, True)


def spread_batched(
    function: Callable[..., Any], *, in_axes: Any = 0, devices: Sequence[Any] | None = None
) -> Callable[..., Any]:
    """A `function` that takes many rows already, the rows split over devices; everything else is as in [`spread`][].

    Each device calls `function` once, with its rows of what is split and with the whole of what is shared. Every array that the
    function returns must have as many rows as it was given.

    >>> import jax.numpy as jnp
    >>> spread_batched(lambda x, scale: scale * x, in_axes=(0, None))(jnp.arange(3.0), jnp.asarray(2.0)).tolist()
    [0.0, 2.0, 4.0]
    """
    return _wrapped(function, in_axes, devices, False)


class _Shared(eqx.Module):
    """What is no array passes through JAX's transformations as a part of the tree's structure."""

    value: Any = eqx.field(static=True)


def _wrapped(
    function: Callable[..., Any], in_axes: Any, devices: Sequence[Any] | None, mapped: bool
) -> Callable[..., Any]:
    if devices is not None and len(devices) == 0:
        raise ArgumentError("devices", "must hold at least one device")

    def spread_function(*arguments: Any) -> Any:
        chosen = tuple(jax.devices() if devices is None else devices)
        split = _split(in_axes, arguments)
        rows = _rows(arguments, split)
        at_each = -(-rows // len(chosen))
        extra = at_each * len(chosen) - rows
        if extra:
            indices = np.minimum(np.arange(rows + extra), rows - 1)
            arguments = jax.tree.map(lambda x, cut: x[indices] if cut else x, arguments, split)
        if devices is not None or len(chosen) > 1:
            arguments = jax.tree.map(lambda x, cut: _placed(x, chosen, cut), arguments, split)
        result = _run(function, arguments, split, chosen if len(chosen) > 1 else (), mapped)
        return jax.tree.map(lambda x: _cut(x, rows, chosen), result) if extra else result

    return spread_function


def _split(in_axes: Any, arguments: tuple[Any, ...]) -> Any:
    """The tree of the arguments with True for every array that has rows, and False for all else."""
    axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)

    def over(axis: Any, part: Any) -> Any:
        if not (axis is None or (isinstance(axis, int) and not isinstance(axis, bool) and axis == 0)):
            raise ArgumentError("in_axes", f"must hold 0 and None alone, but has {axis!r:.60}")
        return jax.tree.map(lambda x: axis is not None and eqx.is_array(x), part)

    try:
        return jax.tree.map(over, axes, arguments, is_leaf=lambda axis: axis is None)
    except ArgumentError:
        raise
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError("in_axes", f"does not have the structure of the arguments: {reason}") from None


def _rows(arguments: Any, split: Any) -> int:
    """The number of rows that all split arguments have."""
    shapes = {np.shape(x) for x, cut in zip(*map(jax.tree.leaves, (arguments, split)), strict=True) if cut}
    if not shapes:
        raise ArgumentError("in_axes", "must be 0 for at least one array, whose rows are split")
    if () in shapes:
        raise ArgumentError("in_axes", "must be None for an array without axes, which has no rows")
    numbers = sorted({shape[0] for shape in shapes})
    if len(numbers) > 1:
        raise ArgumentError("in_axes", f"is 0 for arrays with different numbers of rows, {numbers}")
    if numbers[0] == 0:
        raise ArgumentError("in_axes", "is 0 for arrays with no rows at all")
    return numbers[0]


def _mesh(devices: tuple[Any, ...]) -> Mesh:
    return Mesh(np.asarray(devices), (_AXIS,), axis_types=(AxisType.Auto,))


def _placed(x: Any, devices: tuple[Any, ...], cut: bool) -> Any:
    """An array where it is needed, each device's rows or a copy for each; what is being traced has no place."""
    if not eqx.is_array(x) or not concrete(x):
        return x
    return jax.device_put(x, NamedSharding(_mesh(devices), PartitionSpec(_AXIS) if cut else PartitionSpec()))


def _cut(x: Any, rows: int, devices: tuple[Any, ...]) -> Any:
    """The first rows; JAX has no arrays with more rows on one device than on another."""
    if not eqx.is_array(x):
        return x
    return (jax.device_put(x, devices[0]) if concrete(x) else x)[:rows]


@functools.partial(program, long=True)
def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], split: Any, devices: tuple[Any, ...], mapped: bool
) -> Any:
    """The function of rows whose number is a multiple of the devices'; none are named where there is one, so that it can be kept."""
    cut, common = eqx.partition(arguments, split)
    code, fixed = eqx.partition((function, common), eqx.is_array)

    def one(cut: Any, code: Any) -> tuple[Any, _Shared]:
        function, common = eqx.combine(code, fixed)
        arrays, rest = eqx.partition(function(*eqx.combine(cut, common)), eqx.is_array)
        return arrays, _Shared(rest)

    whole = jax.vmap(one, in_axes=(0, None)) if mapped else one
    if len(devices) > 1:
        whole = _on_each(whole, devices, cut, code)
    arrays, rest = whole(cut, code)
    return eqx.combine(arrays, rest.value)


def _on_each(whole: Callable[..., Any], devices: tuple[Any, ...], cut: Any, code: Any) -> Callable[..., Any]:
    """`whole`, called by each device with its rows of `cut` and with all of `code`.

    It is traced beforehand: inside `shard_map` every shape names the mesh, and the derivative of Optimistix's root finders takes
    this for another function than the one that it knows.
    """

    def at_each(x: jax.Array, rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((x.shape[0] // len(devices), *x.shape[1:]) if rows else x.shape, x.dtype)

    shapes_of = [jax.tree.map(functools.partial(at_each, rows=rows), some) for some, rows in ((cut, 1), (code, 0))]
    jaxpr, shapes = jax.make_jaxpr(whole, return_shape=True)(*shapes_of)
    rows, every = PartitionSpec(_AXIS), PartitionSpec()

    def flat(cut: Any, code: Any) -> list[jax.Array]:
        return jaxpr_as_fun(jaxpr)(*jax.tree.leaves((cut, code)))

    mapped = jax.shard_map(flat, mesh=_mesh(devices), in_specs=(rows, every), out_specs=rows, check_vma=False)
    return lambda cut, code: jax.tree.unflatten(jax.tree.structure(shapes), mapped(cut, code))
