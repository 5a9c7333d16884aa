r"""Integration of the closed equations: `solve(problem, start, t1=...)` gives a `Solution`."""

import json
import os
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float, Int, ScalarLike

from odes.activations import Activation
from odes.arguments import (
    ArgumentError,
    ArrayLike,
    concrete,
    positive,
    real_array,
    require,
    require_kind,
    scalar,
    together,
)
from odes.devices import full_precision
from odes.equations import flow, gradient_at, mean_change, modified_flow
from odes.escape import Escape
from odes.gaussian import self_moments
from odes.overlaps import Overlaps, require_start, with_own_readout
from odes.problem import Problem
from odes.programs import program
from odes.storage import described, loads, write_dataset
from odes.trajectory import Trajectory

_FIRST_STEP = 0.02
"""The integrator's first step in units of the fastest time scale, 1/E[σ'^2] at unit length; an estimate from the equations
themselves would compile them twice more."""

_LOCATED = 1e-3
"""The escape is located to this part of the integrator's relative tolerance."""

_OUTCOMES = ("successful", "event_occurred", "max_steps_reached", "dt_min_reached", "nonfinite", "internal_error")
"""How an integration may fare, as files name it."""


class Solution(Trajectory):
    """A solved trajectory of the overlaps.

    - `t` (T,): the output times; `overlaps`: an [`odes.Overlaps`][] with T in front of every shape; `loss` (T,).
        Times that the integration did not reach (after the escape with `until_escape`, or after a failure) are NaN in
        `overlaps` and `loss`.
    - `escape_time`: when the escape criterion was met; NaN if it was not by t1 or if none was given.
    - `final`: the overlaps where the integration ended, at time `t_final`.
    - `steps_taken`, `steps_rejected`: the integrator's, over the whole run; `result`: how it fared.
    - `problem`, `escape`: what was solved.
    """

    t: Float[Array, " T"]
    overlaps: Overlaps
    loss: Float[Array, " T"]
    escape_time: Float[Array, ""]
    t_final: Float[Array, ""]
    final: Overlaps
    steps_taken: Int[Array, ""]
    steps_rejected: Int[Array, ""]
    result: diffrax.RESULTS
    problem: Problem
    escape: Escape | None
    _interpolations: diffrax.AbstractPath | None

    @property
    def successful(self) -> bool:
        """Whether the integrator reached the end (t1, or the escape if asked to stop there)."""
        return bool(diffrax.is_okay(self.result))

    @property
    def message(self) -> str:
        """How the integrator fared, in words."""
        if self.result == diffrax.RESULTS.successful:
            return "reached t1"
        if self.result == diffrax.RESULTS.event_occurred:
            return "stopped at the escape"
        return str(diffrax.RESULTS[self.result]).splitlines()[0] or "failed"

    def evaluate(self, t: Float[Array, ""] | float) -> Overlaps:
        """The overlaps at any time from 0 to `t_final`, by the integrator's interpolant; needs `solve(..., dense=True)`."""
        if self._interpolations is None:
            raise ArgumentError("dense", "of `solve` must be True for `Solution.evaluate`")
        later = (t > self.escape_time) & (self.escape_time > 0)  # a start that has escaped already is one leg

        def chosen(legs: Array) -> Array:
            return legs[0] if legs.shape[0] == 1 else legs[jnp.where(later, -1, 0)]

        return jax.tree.map(chosen, self._interpolations).evaluate(t)

    def to_dataset(self):
        """The trajectory as an `xarray.Dataset`, with the problem and the integrator's report among its attributes."""
        import xarray

        rank, units = self.problem.adapter.rank, self.problem.units[0]
        numbers = {"escape_time": ((), np.asarray(self.escape_time)), "final_time": ((), np.asarray(self.t_final))}
        outcome = next((name for name in _OUTCOMES if self.result == getattr(diffrax.RESULTS, name)), _OUTCOMES[-1])
        return described(
            xarray.Dataset(
                self.overlaps.variables("time")
                | self.final.variables(prefix="final_")
                | {"loss": ("time", np.asarray(self.loss))}
                | numbers,
                coords={
                    "time": np.asarray(self.t),
                    "unit": np.arange(units),
                    "rank": np.arange(rank),
                    "frame": list(self.problem.directions),
                },
                attrs={
                    "result": outcome,
                    "steps_taken": int(self.steps_taken),
                    "steps_rejected": int(self.steps_rejected),
                },
            )
        )

    def save(self, path: str | os.PathLike, **what: Any) -> None:
        """Writes `to_dataset()` to a netCDF file, whole or not at all; [`odes.load`][] reads it.

        The problem, the escape criterion, package versions, device and floating point type go with it, and `what` else
        the caller wants recorded.
        """
        escape = None if self.escape is None else self.escape.to_dict()
        write_dataset(self.to_dataset(), path, kind="solution", problem=self.problem.to_dict(), escape=escape, **what)

    def plot(self, ax=None):
        """Draws the loss against time on `ax` (a new one if None), the escape marked; returns the axes.

        The axis ends seven decades below the largest loss, where the integrator's errors are.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        (line,) = ax.plot(self.t, self.loss)
        if bool(jnp.isfinite(self.escape_time)):
            ax.axvline(float(self.escape_time), color=line.get_color(), linestyle=":", linewidth=1)
        ax.set(xlabel=r"time $t = \eta\cdot$step", ylabel=r"population loss $\ell$")
        reached = self.loss[jnp.isfinite(self.loss)]
        if reached.size and float(reached.max()) > 0:
            ax.set(
                yscale="log",
                ylim=(max(float(reached.min()), 1e-7 * float(reached.max())) / 2, 2 * float(reached.max())),
            )
        return ax

    def __str__(self) -> str:
        if self.t_final.ndim:
            return f"Solution of {self.t_final.size} problems, batch shape {self.t_final.shape}"
        escaped = "no escape" if self.escape is not None else "no escape criterion"
        if bool(jnp.isfinite(self.escape_time)):
            escaped = f"escape at t = {float(self.escape_time):.6g}"
        return (
            f"Solution to t = {float(self.t_final):g}: {self.message}; {escaped}; "
            f"{int(self.steps_taken)} steps ({int(self.steps_rejected)} rejected), {self.t.size} output times"
        )


def log_times(t1: ScalarLike, n: int, *, first: ScalarLike | None = None) -> Float[Array, " n"]:
    """n output times, 0 and then evenly spaced in log t from `first` (t1 / 1000 unless given) to t1.

    >>> log_times(100.0, 4, first=1.0).round(9).tolist()
    [0.0, 1.0, 10.0, 100.0]
    """
    end = jnp.asarray(t1, jnp.result_type(float))
    spaced = jnp.geomspace(end / 1000 if first is None else jnp.asarray(first, end.dtype), end, n - 1)
    return jnp.concatenate([jnp.zeros(1), spaced[:-1], end[None]])


def _check_tolerances(rtol: ScalarLike, atol: ScalarLike) -> None:
    scalar("rtol", rtol, "positive and finite", positive)
    scalar("atol", atol, "positive and finite", positive)
    dtype = jnp.result_type(float)
    smallest = float(50 * jnp.finfo(dtype).eps)
    if concrete(rtol) and np.asarray(rtol) < smallest:
        mend = "; jax.config.update('jax_enable_x64', True) makes it float64" if dtype == jnp.float32 else ""
        raise ArgumentError("rtol", f"must be at least {smallest:.1e} in {dtype}, but is {rtol}{mend}")


def solve(
    problem: Problem,
    start: Overlaps,
    *,
    t1: ScalarLike,
    times: ArrayLike | None = None,
    escape: Escape | None = None,
    origin: Overlaps | None = None,
    until_escape: bool = False,
    dense: bool = False,
    finite_steps: bool = False,
    iterated: bool = False,
    rtol: ScalarLike = 1e-8,
    atol: ScalarLike = 1e-10,
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    largest_step: ScalarLike | None = None,
    max_steps: int = 2**18,
) -> Solution:
    """Integrates the overlaps' closed equations ([`odes.flow`][]) from `start` at t = 0 to `t1`.

    - `times` (T,): increasing output times in [0, t1], none if empty; 201 even ones unless given ([`odes.log_times`][] for others).
    - `escape`: locate the escape by root finding; the run goes on to t1, or ends there if `until_escape`. A start that
        meets the criterion already has escape time 0 and is integrated to t1. It is measured from w0, or from `origin`,
        which is the start where nothing is frozen.
    - `finite_steps`: integrate [`odes.modified_flow`][], which holds for a finite learning rate to first order, instead of
        the flow of its limit 0.
    - `iterated`: iterate [`odes.mean_change`][] in steps of η instead: right at any learning rate, whatever it takes; the
        overlaps are linear between two steps. An escape ends the run (`until_escape`).
    - `dense`: keep the interpolant for `Solution.evaluate`.
    - `rtol`, `atol`: tolerances of the adaptive step size (a PID controller, PI-tuned).
    - `solver`: a Diffrax solver, Tsit5 unless given (`diffrax.Kvaerno5()` where t1 is thousands of the fastest time
        scale, as for He6 at t1 = 10); `adjoint`: how gradients pass through (Diffrax's default unless given).
    - `largest_step`: of the integrator. An explicit solver at the limit of its stability keeps the solution within the
        tolerance, but not its derivatives: where these matter over many fast time scales, give about one.

    A failing integration does not raise: the solution says so and holds NaN where it did not get. Works under jit, vmap
    and grad; `escape_time` is differentiable by the implicit function theorem, with derivative NaN where there is no escape. For
    forward mode (jvp, jacfwd) the adjoint has to be `diffrax.ForwardMode()`. Values that are being traced cannot be
    looked at: where one is not allowed, NaN comes out.

    **Raises** ArgumentError for t1 <= 0, times outside [0, t1] or not increasing, tolerances that the floating point type
    cannot reach, and steps that are to be iterated beyond the escape.

    >>> from odes import Escape, Problem, random_overlaps
    >>> problem = Problem.single_index("erf", strength=0.5)
    >>> start = random_overlaps(problem, jax.random.key(0))
    >>> print(solve(problem, start, t1=400.0, escape=Escape()))  # doctest: +ELLIPSIS
    Solution to t = 400: reached t1; escape at t = ...; ... output times
    """
    require_kind("problem", problem, Problem, "a Problem")
    require_start(problem, start)
    start = with_own_readout(problem, start)
    if origin is None and not problem.has_frozen_weights:
        origin = start
    if escape is not None:
        require_kind("escape", escape, Escape, "an Escape, such as Escape('loss', 0.5)")
    t1 = scalar("t1", t1, "positive and finite", positive)
    _check_tolerances(rtol, atol)
    if times is None:
        times = together(t1)[0] * (np if concrete(t1) else jnp).linspace(0, 1, 201)
    times = real_array(times)
    if concrete(times) and concrete(t1):
        inside = "increasing, between 0 and t1"
        end = np.asarray(t1)
        require("times", times, "a list of numbers", lambda x: x.ndim == 1)
        require("times", times, inside, lambda x: np.all((x >= 0) & (x <= end)) & np.all(np.diff(x) > 0))
    if iterated and escape is not None:
        require("until_escape", until_escape, "True where steps are iterated", bool)
    batch = problem.sgd.batch_size
    try:
        with full_precision():
            return _solve(
                problem,
                start,
                real_array(t1),
                times,
                escape,
                origin,
                (real_array(rtol), real_array(atol)),
                until_escape=until_escape,
                dense=dense,
                field=mean_change if iterated else modified_flow if finite_steps else flow,
                iterated=iterated,
                noise=not (concrete(batch) and np.all(np.isinf(np.asarray(batch)))),
                solver=diffrax.Euler() if iterated else diffrax.Tsit5() if solver is None else solver,
                adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
                largest_step=None if largest_step is None else real_array(largest_step),
                max_steps=max_steps,
            )
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        forward = "must be diffrax.ForwardMode() for derivatives in forward mode (jvp, jacfwd, hessian)"
        raise ArgumentError("adjoint", forward) from error


@loads("solution")
def _loaded(dataset: Any, **links: Activation) -> Solution:
    """The solution in a stored dataset, without interpolant."""
    return Solution(
        t=jax.device_put(dataset["time"].values),
        overlaps=Overlaps.from_variables(dataset),
        loss=jax.device_put(dataset["loss"].values),
        escape_time=jax.device_put(dataset["escape_time"].values),
        t_final=jax.device_put(dataset["final_time"].values),
        final=Overlaps.from_variables(dataset, "final_"),
        steps_taken=jnp.asarray(int(dataset.attrs["steps_taken"])),
        steps_rejected=jnp.asarray(int(dataset.attrs["steps_rejected"])),
        result=getattr(diffrax.RESULTS, dataset.attrs["result"]),
        problem=Problem.from_dict(json.loads(dataset.attrs["problem"]), **links),
        escape=Escape.from_dict(json.loads(dataset.attrs["escape"])),
        _interpolations=None,
    )


class _Bisection(optx.Bisection):
    """Ends when the time is known, however small or steep the margin is there: its rounding can exceed any tolerance."""

    rtol: Any

    def terminate(self, fn, y, args, options, state, tags):
        return jnp.abs(state.upper - state.lower) <= self.rtol * jnp.abs(y), optx.RESULTS.successful


def _size(error: Any) -> Array:
    """The root mean square of the scaled errors; infinite if a step left the numbers, so that a shorter one is tried."""
    size = optx.rms_norm(error)
    return jnp.where(jnp.isnan(size), jnp.inf, size)


class _Leg(eqx.Module):
    """One call of the integrator: the whole run, or the part before or after the escape."""

    saved: Overlaps
    end_time: Array
    end: Overlaps
    steps: Array
    rejected: Array
    result: diffrax.RESULTS
    interpolation: diffrax.AbstractPath | None


@program
def _solve(
    problem: Problem,
    start: Overlaps,
    t1: Array,
    times: Array,
    escape: Escape | None,
    origin: Overlaps | None,
    tolerances: tuple[Any, Any],
    *,
    until_escape: bool,
    dense: bool,
    field: Callable[..., Overlaps],
    iterated: bool,
    noise: bool,
    solver: diffrax.AbstractSolver,
    adjoint: diffrax.AbstractAdjoint,
    largest_step: Array | None,
    max_steps: int,
) -> Solution:
    if iterated:
        controller, dt0 = diffrax.ConstantStepSize(), problem.sgd.learning_rate
        rounding = 16 * jnp.finfo(t1.dtype).eps  # the controller divides the whole time by a whole number of steps
        t1 = jax.lax.stop_gradient(jnp.ceil(t1 / dt0 * (1 - rounding))) * dt0 * (1 - rounding / 2)
    else:
        controller = diffrax.PIDController(
            rtol=tolerances[0], atol=tolerances[1], pcoeff=0.3, icoeff=0.4, dtmax=largest_step, norm=_size
        )
        adapter = problem.adapter
        first = _FIRST_STEP / (
            adapter.kappa**2 * jnp.maximum(adapter.lr_ratio, 1) * self_moments(problem.student, 1.0).cross
        )
        dt0 = jax.lax.stop_gradient(jnp.minimum(first, t1))
    zero = jnp.zeros_like(t1)
    reference, event = zero, None
    if escape is not None:
        reference = escape.reference(problem, origin)

        def margin(t, y, args, **_):
            problem, reference, sought = args
            return jnp.where(sought, escape.margin(problem, y, reference), 1)

        closest: Any = jnp.maximum(_LOCATED * tolerances[0], 16 * jnp.finfo(t1.dtype).eps)
        event = diffrax.Event(margin, _Bisection(rtol=closest, atol=0.0, flip=True), direction=False)

    def integrate(begin: tuple[Array, Overlaps], sought: Array) -> tuple[tuple[Array, Overlaps], _Leg]:
        """From `begin` to t1, or to the escape if it is sought; and where the rest of the run begins, t1 if there is none."""
        t0, y0 = begin
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: field(args[0], y, noise=noise)),
            solver,
            t0=t0,
            t1=t1,
            dt0=dt0,
            y0=y0,
            args=(problem, reference, sought),
            saveat=diffrax.SaveAt(
                subs=[
                    diffrax.SubSaveAt(t1=True),
                    *([diffrax.SubSaveAt(ts=jnp.clip(times, t0, t1))] if times.size else []),
                ],
                dense=dense,
            ),
            stepsize_controller=controller,
            adjoint=adjoint,
            event=event,
            max_steps=max_steps,
            throw=False,
        )
        assert solution.ts is not None and solution.ys is not None
        leg = _Leg(
            saved=solution.ys[1] if times.size else jax.tree.map(lambda y: y[:0], solution.ys[0]),
            end_time=solution.ts[0][0],
            end=jax.tree.map(lambda y: y[0], solution.ys[0]),
            steps=solution.stats["num_steps"],
            rejected=solution.stats["num_rejected_steps"],
            result=solution.result,
            interpolation=solution.interpolation,
        )
        escaped = leg.result == diffrax.RESULTS.event_occurred
        return (jnp.where(escaped, leg.end_time, t1), leg.end), leg

    if escape is None or until_escape:
        _, only = integrate((zero, start), jnp.asarray(True))
        legs = jax.tree.map(lambda x: x[None], only)
    else:
        _, legs = jax.lax.scan(integrate, (zero, start), jnp.array([True, False]))
    first, last = (jax.tree.map(lambda x, i=i: x[i], legs) for i in (0, -1))
    escape_time = jnp.full_like(t1, jnp.nan)
    escaped = first.result == diffrax.RESULTS.event_occurred
    if escape is not None:
        already = escape.margin(problem, start, reference) <= 0
        escape_time = jnp.where(already | ~escaped, 0, first.end_time)
        escape_time += _derivative_too(jnp.where(already | escaped, 0, jnp.nan), first.end)
    late = escaped & (times > first.end_time)
    overlaps = jax.tree.map(lambda a, b: jnp.where(_column(late, a), b, a), first.saved, last.saved)
    overlaps = jax.tree.map(lambda y: jnp.where(jnp.isfinite(y), y, jnp.nan), overlaps)
    end = jax.tree.map(lambda a, b: jnp.where(escaped, b, a), first, last)
    return Solution(
        t=times,
        overlaps=overlaps,
        loss=jax.vmap(lambda o: gradient_at(problem, o).loss)(overlaps),
        escape_time=escape_time,
        t_final=end.end_time,
        final=end.end,
        steps_taken=legs.steps.sum(),
        steps_rejected=legs.rejected.sum(),
        result=end.result,
        problem=problem,
        escape=escape,
        _interpolations=legs.interpolation,
    )


def _derivative_too(missing: Array, of: Overlaps) -> Array:
    """`missing`, 0 or NaN, and the derivatives likewise: a number that is not there has no slope, rather than slope 0."""
    return missing * sum(jnp.sum(jnp.where(jnp.isfinite(y), y, 0)) for y in jax.tree.leaves(of))


def _column(mask: Array, like: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))
