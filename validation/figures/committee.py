r"""Several units: the modes of the search, the law of the escape time, the plateau before specialisation, and the rank that it takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import SGD, Adapter, Escape, Problem, log_times, random_overlaps, solve
from odes.programs import program
from theory import EscapeLaw, EscapeModes, escape_law, escape_modes, passage, saddles
from validation.figures.figure import Figure, as_dataset
from validation.figures.style import ESCAPE_LABEL, LOSS_LABEL, TIME_LABEL, draw_simulated, panels
from validation.figures.work import Work
from validation.simulation import mean_and_error

_LINK = "erf(x/sqrt(2))"

_WEAKER, _AMONG = 0.6, 0.1
"""Of the second unit to the first, and of a unit's overlap with the other teacher, in the modes' figure."""

_COMMITTEES = {
    "$K = P = 2$": [[0.5, 0.05], [0.03, 0.45]],
    "$K = 4$, $P = 2$": [[0.5, 0.05], [0.03, 0.45], [0.3, -0.1], [-0.1, 0.2]],
}
_RANKS = 1, 2, 4
_LAW_SGD = SGD(learning_rate=0.05, batch_size=1000, dimension=2e4)

_DIMENSIONS = tuple(10.0**k for k in range(3, 9))
_SPECIALISING = SGD(learning_rate=0.05, batch_size=np.inf)
_STARTS, _LENGTH, _END = 32, 0.5, 400.0

_NEW, _POOR, _MOST_RANK = (1, 2, 3), 0.3, 6
_GOAL = Escape("loss", 0.01)
_RANK_SGD = SGD(learning_rate=0.05, batch_size=np.inf, dimension=1e4)


@program
def _modes(rows: Float[Array, "n K P"]) -> EscapeModes:
    """The modes of adapters on erf units with many pretrained rows."""
    return jax.vmap(lambda B: escape_modes(Problem.committee(_LINK, pretrained=B)))(rows)


def compute_modes(work: Work) -> Any:
    """Rates and the cosines of what modes learn, over the strength of the pretrained rows and over the angle by which they err."""
    strengths = np.linspace(0.05, 1.3, 2 * work.effort.points)
    angles = np.linspace(0, np.pi / 2, 2 * work.effort.points)
    shape = np.array([[1.0, _AMONG], [_AMONG, _WEAKER]])
    strong = _modes(jnp.asarray(strengths[:, None, None] * shape))
    turned = [0.6 * np.array([[np.cos(a), np.sin(a)], [0.8 * np.sin(a), 0.8 * np.cos(a)]]) for a in angles]
    wrong = _modes(jnp.asarray(np.stack(turned)))
    variables = {}
    for name, modes in (("strength", strong), ("angle", wrong)):
        variables[f"rate_over_{name}"] = ((name, "mode"), modes.rates[:, :2])
        variables[f"cosine_over_{name}"] = ((name, "mode", "teacher"), modes.teachers[:, :2])
    return as_dataset(variables, coords={"strength": strengths, "angle": angles})


def draw_modes(dataset: Any) -> Any:
    """Colour says which teacher's direction a mode learns."""
    figure, axes = panels(1, 2, 2.5)
    labels = {"strength": r"strength $\mu$ of the pretrained rows", "angle": "angle between units and teachers"}
    drawn = None
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        places, rates = dataset[name].values, dataset[f"rate_over_{name}"].values
        cosines = np.abs(dataset[f"cosine_over_{name}"].values)
        share = cosines[..., 0] ** 2 / np.maximum(np.sum(cosines**2, axis=-1), 1e-12)
        for mode in range(2):
            drawn = ax.scatter(places, rates[:, mode], c=share[:, mode], cmap="coolwarm", vmin=0, vmax=1, s=4)
        ax.set(xlabel=label, ylabel=r"rate $\lambda$", yscale="log", ylim=(1e-4, None))
    axes[1].set_xticks([0, np.pi / 4, np.pi / 2], ["0", r"$\pi/4$", r"$\pi/2$"])
    axes[0].set_title(r"erf, $K = P = 2$, second unit weaker")
    axes[1].set_title(r"strengths 0.6 and 0.48")
    assert drawn is not None
    figure.colorbar(drawn, ax=axes, label="part of teacher 1")
    return figure


def _committee(rows: list[list[float]], rank: int) -> Problem:
    readout = "1" if len(rows) == 2 else "1/sqrt(n)"
    return Problem.committee("erf", pretrained=rows, readout=readout, adapter=Adapter(rank), sgd=_LAW_SGD)


def compute_law(work: Work) -> Any:
    """The law for two committees at several ranks, and escape times of the chain."""
    effort, moments, simulated, density = work.effort, [], [], {}
    for rows in _COMMITTEES.values():
        for rank in _RANKS:
            problem = _committee(rows, rank)
            law = escape_law(problem)
            seeds = effort.seeds * (1 if density else 5)
            times = work.escape_times(problem, float(law.mean + 8 * law.std), Escape(), seeds=seeds)
            moments.append([float(law.mean), float(law.std)])
            simulated.append([*mean_and_error(times), times.std(ddof=1), times.std(ddof=1) / np.sqrt(2 * times.size)])
            density = density or _density(law, effort.points) | {"escape_time": ("seed", times)}
    shape = len(_COMMITTEES), len(_RANKS)
    return as_dataset(
        density
        | {
            "law": (("committee", "rank", "moment"), np.reshape(moments, (*shape, 2))),
            "chain": (("committee", "rank", "number"), np.reshape(simulated, (*shape, 4))),
        },
        coords={"committee": list(_COMMITTEES), "rank": list(_RANKS), "moment": ["mean", "std"]},
    )


def _density(law: EscapeLaw, points: int) -> dict[str, Any]:
    """The distribution function of the escape time."""
    grid = np.linspace(float(law.quantile(1e-3)), float(law.quantile(0.999)), 2 * points)
    return {"time": ("grid", grid), "distribution": ("grid", np.asarray(law.cdf(grid)))}


def draw_law(dataset: Any) -> Any:
    """Left the distribution at rank 1, right mean and standard deviation against the rank."""
    figure, (left, right) = panels(1, 2, 2.5)
    times = np.sort(dataset["escape_time"].values)
    left.step(times, (np.arange(times.size) + 0.5) / times.size, color="C0", label=f"chain, {times.size} seeds")
    left.plot(dataset["time"], dataset["distribution"], color="black", label="law")
    left.set(xlabel=f"{ESCAPE_LABEL} ($t = \\eta\\cdot$step)", ylabel="part that has escaped")
    left.set_title(f"{list(_COMMITTEES)[0]}, rank 1")
    left.legend()
    ranks = dataset["rank"].values
    for number, name in enumerate(dataset["committee"].values.tolist()):
        law, chain = dataset["law"].values[number], dataset["chain"].values[number]
        colour = f"C{number}"
        right.plot(ranks, law[:, 0], color=colour, label=f"{name}: mean")
        right.plot(ranks, law[:, 1], color=colour, linestyle="--", label="standard deviation")
        for mean, error in (chain[:, :2].T, chain[:, 2:].T):
            draw_simulated(right, ranks, mean, error, color=colour)
    right.set(xlabel="rank $r$", ylabel=f"{ESCAPE_LABEL}", ylim=(0, None), xticks=ranks)
    right.set_title("dots: chain")
    right.legend()
    return figure


def _scratch(dimension: float) -> Problem:
    sgd = _SPECIALISING.replace(dimension=dimension)
    return Problem.committee(_LINK, pretrained=[0.0, 0.0], trains="weights", sgd=sgd)


@program
def _specialisation_times(problem: Problem, goal: Escape, keys: Array) -> Array:
    def one(key: Array) -> Array:
        start = random_overlaps(problem, key, up=jnp.eye(2), length=_LENGTH)
        return solve(problem, start, t1=_END, times=np.zeros(0), escape=goal, until_escape=True).escape_time

    return jax.vmap(one)(keys)


def compute_specialisation(work: Work) -> Any:
    """Runs of two units from scratch at several dimensions, the saddle that they pass, and when they leave it."""
    keys, times = jax.random.split(jax.random.key(5), _STARTS), np.linspace(0, 250.0, 8 * work.effort.points)
    problem = _scratch(_DIMENSIONS[-1])
    start = random_overlaps(problem, keys[0], up=jnp.eye(2), length=_LENGTH)
    (saddle,) = saddles(solve(problem, start, t1=_END, times=np.linspace(0, _END, 2001), rtol=1e-10, atol=1e-12))
    goal = Escape("absolute", float(saddle.loss) / 2)
    losses, flow, chain = [], [], []
    for dimension in _DIMENSIONS:
        problem = _scratch(dimension)
        start = random_overlaps(problem, keys[0], up=jnp.eye(2), length=_LENGTH)
        losses.append(solve(problem, start, t1=times[-1], times=times).loss)
        flow.append(mean_and_error(_specialisation_times(problem, goal, keys)))
        noisy = problem.replace(noise_scale=0.05)
        steps = np.unique(np.linspace(0, _END / 0.05, 400).astype(int))
        run = work.chain(noisy, steps, start=start, until=goal, seeds=max(work.effort.seeds // 4, 8))
        chain.append(mean_and_error(np.asarray(run.escape_times)))
    return as_dataset(
        {
            "loss": (("dimension", "time"), losses),
            "flow": (("dimension", "moment"), flow),
            "chain": (("dimension", "moment"), chain),
        },
        coords={"dimension": list(_DIMENSIONS), "time": times, "moment": ["mean", "error"]},
        attrs={"saddle_loss": float(saddle.loss), "rate": float(saddle.rates[0])},
    )


def draw_specialisation(dataset: Any) -> Any:
    r"""Left the loss along single runs, right the mean time of specialisation with the slope that the saddle predicts.

    Points approach it from above: on the plateau the parts of the units across all teachers fade as 1/t, which takes $a/t$ off the
    rate and adds $(a/\lambda)\log T$ to the time.
    """
    figure, (left, right) = panels(1, 2, 2.5)
    dimensions = dataset["dimension"].values
    for number, dimension in enumerate(dimensions):
        power = round(np.log10(dimension))
        left.plot(dataset["time"], dataset["loss"][number], color=f"C{number}", label=f"$10^{power}$")
    left.axhline(dataset.attrs["saddle_loss"], color="0.5", linestyle=":", linewidth=0.9)
    left.set(xlabel=TIME_LABEL, ylabel=LOSS_LABEL, yscale="log", ylim=(1e-5, None))
    left.set_title("erf, $K = P = 2$ from scratch; dotted: the saddle")
    left.legend(title="$d$", ncols=2)
    flow = dataset["flow"].values
    slope = 1 / (2 * dataset.attrs["rate"])
    line = flow[-1, 0] + slope * np.log(dimensions / dimensions[-1])
    right.plot(dimensions, line, color="black", label=r"slope $1/2\lambda$ of the saddle")
    right.errorbar(dimensions, *flow.T, color="C0", fmt="s", markersize=3, label=f"flow, {_STARTS} starts")
    draw_simulated(
        right, dimensions, *dataset["chain"].values.T, color="C1", label=r"chain, one start, $\theta = 0.05$"
    )
    right.set(xscale="log", xlabel="dimension $d$", ylabel="time of specialisation", ylim=(0, None))
    right.legend()
    return figure


def _with_new(new: int, rank: int) -> Problem:
    """Four units, `new` of which have learnt little of their teachers; readouts 1/2."""
    rows = [_POOR] * new + [1.0] * (4 - new)
    return Problem.committee(
        _LINK,
        pretrained=rows,
        readout="1/sqrt(n)",
        teacher_readout="1/sqrt(n)",
        adapter=Adapter(rank),
        sgd=_RANK_SGD,
    )


@program
def _times_to_goal(problem: Problem, keys: Array) -> Array:
    return jax.vmap(lambda key: passage(problem, random_overlaps(problem, key), _GOAL, 1e4).escape_time)(keys)


def compute_ranks(work: Work) -> Any:
    """The time to the goal from random starts at every rank, NaN where some start does not arrive; and loss curves."""
    keys, ranks = jax.random.split(jax.random.key(2), 8), range(1, _MOST_RANK + 1)
    times = log_times(1e4, 2 * work.effort.points, first=1.0)
    reached, losses = [], []
    for new in _NEW:
        for rank in ranks:
            problem = _with_new(new, rank)
            reached.append(mean_and_error(_times_to_goal(problem, keys)))
            if new == 2:
                losses.append(solve(problem, random_overlaps(problem, keys[0]), t1=times[-1], times=times).loss)
    return as_dataset(
        {
            "time_to_goal": (("new", "rank", "number"), np.reshape(reached, (len(_NEW), _MOST_RANK, 2))),
            "loss": (("rank", "time"), losses),
        },
        coords={"new": list(_NEW), "rank": list(ranks), "time": times},
    )


def draw_ranks(dataset: Any) -> Any:
    """Left the time to the goal against the rank, right the loss with two new directions."""
    figure, (left, right) = panels(1, 2, 2.5)
    for number, new in enumerate(dataset["new"].values.tolist()):
        style = {"color": f"C{number}", "marker": "o", "markersize": 3, "label": f"{new} new"}
        left.errorbar(dataset["rank"], *dataset["time_to_goal"].values[number].T, **style)
        left.axvline(new, color=f"C{number}", linestyle=":", linewidth=0.8)
    left.set(xlabel="rank $r$", ylabel=f"time to {float(_GOAL.threshold):g} of the loss", yscale="log")
    left.set_title("erf, four units; no point: not reached")
    left.legend(title="directions")
    for number, rank in enumerate(dataset["rank"].values.tolist()):
        right.plot(dataset["time"], dataset["loss"][number], color=f"C{number}", label=f"{rank}")
    right.set(xscale="log", yscale="log", xlabel=TIME_LABEL, ylabel=LOSS_LABEL, ylim=(1e-7, None))
    right.set_title("two new directions")
    right.legend(title="rank", ncols=2)
    return figure


FIGURES = (
    Figure(
        "escape-modes",
        "The rates at which adapters on two units search, against the strength of the pretrained rows and against their error.",
        compute_modes,
        draw_modes,
    ),
    Figure(
        "committee-law",
        "The law of the escape time of adapters on two and on four units against the chain.",
        compute_law,
        draw_law,
    ),
    Figure(
        "specialisation",
        "Two units from scratch: the plateau on which they are equal, and the time at which they specialise, from d = 1000 to 1e8.",
        compute_specialisation,
        draw_specialisation,
    ),
    Figure(
        "rank-directions",
        "The time that adapters need to learn one, two or three new directions against their rank.",
        compute_ranks,
        draw_ranks,
    ),
)
