r"""Runs in stages: what is trained, and on which labels, changes; the overlaps go on."""

import json
import os
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, ScalarLike

from odes.activations import Activation
from odes.arguments import ArrayLike, concrete, non_negative, real_array, require, scalar
from odes.equations import losses
from odes.escape import Escape
from odes.integration import solve
from odes.overlaps import Overlaps, with_own_readout
from odes.problem import Problem
from odes.programs import program
from odes.shown import Shown
from odes.storage import described, loads, write_dataset
from odes.trajectory import Trajectory


class Stage(Shown):
    """A part of a run: the `problem` says what is trained on which labels, `duration` for how long in t = η * step.

    `name` is for the reader; with `restart` the trained columns of U are 0 again at its start.

    **Raises** ArgumentError for a negative or infinite duration.
    """

    name: str = eqx.field(static=True)
    problem: Problem
    duration: Float[Array, ""]
    restart: bool = eqx.field(static=True)

    def __init__(self, name: str, problem: Problem, duration: ScalarLike, *, restart: bool = False):
        self.name, self.problem, self.restart = name, problem, restart
        self.duration = real_array(scalar("duration", duration, "non-negative and finite", non_negative))


class StagedSolution(Trajectory):
    """A solved run in stages.

    - `t` (T,): the output times from the start of the first stage; a border between stages is there twice, as the end of one
        and the start of the next;
    - `overlaps`: with T in front of every shape; `stage` (T,): the number of the stage that each time belongs to;
    - `losses` (stages, T): at every time, the loss on the labels of every stage (transfer and forgetting);
    - `borders` (stages + 1,): when stages begin and end; `final`: the overlaps at the end;
    - `escape_time`: when the last stage's escape criterion was met, counted from the start of stage `since`; NaN if it was not;
    - `stages`, `escape`, `since`: what was solved; `problem`: the last stage's; `messages`: how the integrator fared in every stage.
    """

    t: Float[Array, " T"]
    overlaps: Overlaps
    stage: Int[Array, " T"]
    losses: Float[Array, "stages T"]
    borders: Float[Array, " borders"]
    final: Overlaps
    escape_time: Float[Array, ""]
    problem: Problem
    stages: tuple[Stage, ...]
    escape: Escape | None
    since: int = eqx.field(static=True)
    messages: tuple[str, ...] = eqx.field(static=True)

    def to_dataset(self):
        """The run as an `xarray.Dataset`."""
        import xarray

        return described(
            xarray.Dataset(
                self.overlaps.variables("time")
                | self.final.variables(prefix="final_")
                | {
                    "losses": (("labels", "time"), np.asarray(self.losses)),
                    "stage": ("time", np.asarray(self.stage)),
                    "borders": ("border", np.asarray(self.borders)),
                    "escape_time": ((), np.asarray(self.escape_time)),
                },
                coords={
                    "time": np.asarray(self.t),
                    "labels": [stage.name for stage in self.stages],
                    "frame": list(self.problem.directions),
                },
            )
        )

    def save(self, path: str | os.PathLike, **what: Any) -> None:
        """Writes `to_dataset()` to a netCDF file, whole or not at all, with every stage's problem; [`odes.load`][] reads it."""
        stages = [
            {"name": s.name, "problem": s.problem.to_dict(), "duration": float(s.duration), "restart": s.restart}
            for s in self.stages
        ]
        own = {"stages": stages, "messages": self.messages, "since": self.since}
        own["escape"] = None if self.escape is None else self.escape.to_dict()
        write_dataset(self.to_dataset(), path, kind="stages", **own, **what)

    def plot(self, ax=None):
        """Draws every stage's loss against time on `ax` (a new one if None), stage borders marked; returns the axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        for stage, loss in zip(self.stages, self.losses, strict=True):
            ax.plot(self.t, loss, label=f"labels of {stage.name}")
        for border in self.borders[1:-1]:
            ax.axvline(float(border), color="0.6", linestyle=":", linewidth=0.8)
        if bool(jnp.isfinite(self.escape_time)):
            ax.axvline(float(self.borders[self.since] + self.escape_time), color="0.3", linestyle="--", linewidth=0.8)
        ax.set(xlabel=r"time $t = \eta\cdot$step", ylabel=r"population loss $\ell$")
        ax.legend()
        return ax

    def __str__(self) -> str:
        lines = [
            f"{stage.name}: t = {float(begin):g} to {float(end):g}, {message}"
            for stage, begin, end, message in zip(
                self.stages, self.borders[:-1], self.borders[1:], self.messages, strict=True
            )
        ]
        if self.escape is not None:
            spent = float(self.borders[-1] - self.borders[self.since])
            escaped = f"escape {float(self.escape_time):.6g} after"
            if not bool(jnp.isfinite(self.escape_time)):
                escaped = f"no escape within {spent:g} of"
            lines.append(f"{escaped} the start of {self.stages[self.since].name}")
        return "\n".join(lines)


@loads("stages")
def _loaded(dataset: Any, **links: Activation) -> StagedSolution:
    """The run in a stored dataset."""
    own = {name: json.loads(dataset.attrs[name]) for name in ("stages", "messages", "since", "escape")}
    stages = [stage | {"problem": Problem.from_dict(stage["problem"], **links)} for stage in own["stages"]]
    numbers = ("stage", "losses", "borders", "escape_time")
    return StagedSolution(
        t=jax.device_put(dataset["time"].values),
        overlaps=Overlaps.from_variables(dataset),
        **{name: jax.device_put(dataset[name].values) for name in numbers},
        final=Overlaps.from_variables(dataset, "final_"),
        problem=stages[-1]["problem"],
        stages=tuple(Stage(**stage) for stage in stages),
        escape=Escape.from_dict(own["escape"]),
        since=own["since"],
        messages=tuple(own["messages"]),
    )


def restarted(problem: Problem, overlaps: Overlaps) -> Overlaps:
    """The same rows of V, and U = 0 in the columns of those that are trained."""
    return eqx.tree_at(lambda o: o.up, overlaps, overlaps.up * (1 - problem.adapter.trained[None]))


_losses = program(losses)


def require_alike(stages: Sequence[Stage]) -> None:
    """Raises ArgumentError unless there is a stage and all are of the same units, rank, frame and dimension."""
    require("stages", len(stages), "at least one", lambda n: n >= 1)
    shapes = {(p.units, p.adapter.rank, p.directions) for p in (stage.problem for stage in stages)}
    arrays = [(stage.problem.frame_gram, stage.problem.sgd.dimension) for stage in stages]
    known = [values for values in zip(*arrays, strict=True) if all(map(concrete, values))]
    alike = len(shapes) == 1 and all(np.array_equal(value, values[0]) for values in known for value in values)
    require("stages", alike, "of the same units, rank, frame and dimension", lambda x: x)


def require_stage(name: str, number: int, stages: Sequence[Stage]) -> None:
    """Raises ArgumentError unless there is a stage of that number."""
    require(name, number, "the number of a stage", lambda n: (n >= 0) & (n < len(stages)))


def solve_stages(
    stages: Sequence[Stage],
    start: Overlaps,
    *,
    records: int | Sequence[ArrayLike] = 101,
    escape: Escape | None = None,
    since: int | None = None,
    **options: Any,
) -> StagedSolution:
    r"""Integrates the closed equations stage after stage, each from where the one before has ended.

    - `records`: the number of output times of every stage, evenly spaced, its borders among them; or for every stage the
        list of its output times, counted from its start. A stage of duration 0 has one;
    - `escape`: is looked for in the last stage; its time is counted from the start of stage `since` (the last unless given). It is
        relative to the frozen w0 or, where nothing is frozen, to the whole student at that start. The run goes on to the end;
    - `options`: of [`odes.solve`][].

    **Raises** ArgumentError for no stages, fewer than two records, an unknown `since`, and stages whose names are alike or whose
    units, ranks, frames or dimensions differ.

    >>> import jax
    >>> from odes import Transfer
    >>> transfer = Transfer("erf", cosine=0.8)
    >>> stages = [Stage("pretraining", transfer.pretraining, 20.0), Stage("LoRA", transfer.lora, 60.0)]
    >>> print(solve_stages(stages, transfer.random_start(jax.random.key(0)), escape=Escape()))  # doctest: +ELLIPSIS
    pretraining: t = 0 to 20, reached t1
    LoRA: t = 20 to 80, reached t1
    escape ... after the start of LoRA
    """
    require_alike(stages)
    if isinstance(records, int):
        require("records", records, "at least 2", lambda n: n >= 2)
    since = len(stages) - 1 if since is None else since
    require_stage("since", since, stages)
    names = len({stage.name for stage in stages}) == len(stages)
    require("stages", names, "of different names", lambda x: x)
    for stage in stages:
        start = with_own_readout(stage.problem, start)
    state, origin, borders, parts = start, None, [jnp.zeros_like(stages[0].duration)], []
    never = jnp.full_like(stages[0].duration, jnp.nan)
    escape_time, messages = never, []
    for number, stage in enumerate(stages):
        last, begin = number == len(stages) - 1, borders[-1]
        if stage.restart:
            state = restarted(stage.problem, state)
        if number == since and not stages[-1].problem.has_frozen_weights:
            origin = state
        if concrete(stage.duration) and float(stage.duration) == 0:
            parts.append((begin[None], jax.tree.map(lambda x: x[None], state)))
            messages.append("skipped")
            if last and escape is not None:
                left = escape.margin(stage.problem, state, escape.reference(stage.problem, origin)) > 0
                escape_time = jnp.where(left, never, begin - borders[since])
        else:
            even = isinstance(records, int)
            times = stage.duration * jnp.linspace(0, 1, records) if even else real_array(records[number])
            looked_for = {"escape": escape, "origin": origin} if last else {}
            solution = solve(stage.problem, state, t1=stage.duration, times=times, **looked_for, **options)
            parts.append((begin + times, solution.overlaps))
            state = solution.final
            messages.append(solution.message if concrete(solution.t_final) else "")
            if last and escape is not None:
                escape_time = begin - borders[since] + solution.escape_time
        borders.append(begin + stage.duration)
    t, overlaps = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return StagedSolution(
        t=t,
        overlaps=overlaps,
        stage=jnp.repeat(
            jnp.arange(len(parts)), np.array([part[0].size for part in parts]), total_repeat_length=t.size
        ),
        losses=jnp.stack([_losses(stage.problem, overlaps) for stage in stages]),
        borders=jnp.stack(borders),
        final=state,
        escape_time=escape_time,
        problem=stages[-1].problem,
        stages=tuple(stages),
        escape=escape,
        since=since,
        messages=tuple(messages),
    )
