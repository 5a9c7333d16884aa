"""`searchphase checkpoints`: which checkpoint of a pretraining run is fine-tuned fastest, and does more pretraining hurt?"""

import dataclasses
import itertools
import json
import math
from typing import Any

import jax
import numpy as np

from odes import Escape, Transfer, gradient_at
from odes.arguments import ArgumentError
from odes.gaussian import has_closed_form
from theory import Validity, Verdict, judge, pretraining_times
from theory.pretraining import begin
from validation.checks.confirm import confirming_checkpoints
from validation.cli.options import ConfirmOptions, EscapeOptions, TransferOptions
from validation.cli.report import rows_of, spread_over, table
from validation.cli.values import OptionalFloat, check
from validation.cli.work import ResumeOptions
from validation.figures.style import log_height, time_axis
from validation.jobs.engine import Advanced, all_results, carry_out

_SHOWN = 9
_CLOSE = 0.3
"""Weights nearer than this to the target show how the fine-tuning time diverges."""


_GOALS = 2
"""Every transfer is judged by the escape and by an absolute loss."""

_FEW = 32
"""So many checkpoints are judged sooner than what judges them is compiled with care."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """One cosine and goal: the verdicts on the fine-tuning time and (None without noise) on all samples, and what was simulated."""

    transfer: Transfer
    goal: Escape
    verdict: Verdict
    samples: Verdict | None
    simulated: list[dict[str, float]] | None

    @property
    def exponent(self) -> tuple[float, float] | None:
        """The exponents of τ and of the fine-tuning time in the distance |w - ω*| of the nearest weights; None if none are near."""
        swept = self.verdict.swept
        distance, time, tau = (np.asarray(x) for x in (swept.distance, swept.tuning.time, swept.tuning.tau))
        near = np.flatnonzero((distance < _CLOSE) & np.isfinite(time) & (time > 0))
        if near.size < 3:
            return None
        logs = np.log(distance[near])
        return float(np.polyfit(logs, np.log(tau[near]), 1)[0]), float(np.polyfit(logs, np.log(time[near]), 1)[0])

    @property
    def cosine(self) -> float | list[float]:
        """The cosine of source and target, or those of all pairs of directions."""
        return np.asarray(self.transfer.cosine).tolist()

    @property
    def pair(self) -> str:
        """The cosine, or those of all pairs of directions, in words."""
        cosines = np.atleast_1d(self.transfer.cosine).tolist()
        return ", ".join(f"{cosine:g}" for cosine in cosines)

    @property
    def words(self) -> str:
        """The goal in words."""
        size = f"{float(self.goal.threshold):.3g}"
        return {"loss": f"loss at {size} of its start", "absolute": f"loss {size}"}.get(
            self.goal.criterion, f"{size} of the way to the target"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints(ResumeOptions, EscapeOptions, ConfirmOptions, TransferOptions):
    """Pretrain, freeze, fine-tune: the fine-tuning time as a function of when pretraining stopped; the best and the worst checkpoint.

    Two goals: escape from the search phase (--criterion, --threshold), relative to the checkpoint's own loss, and an absolute
    loss (--goal, or a tenth of that of a student whose output is always 0), the same for all. Theory at typical random starts.
    """

    pretraining_time: OptionalFloat = None
    """When pretraining ends at the latest (0: random weights); when the source loss is a thousandth of its start unless given."""
    points: int = 32
    """Number of checkpoints in the sweep."""

    @property
    def brief(self) -> bool:
        student, target = self.links
        links = (target, self.link("source", student))
        return (
            self.problem is None
            and len(self.cosine) * self.points <= _FEW
            and all(has_closed_form(student, f) for f in links)
        )

    def compute(self) -> list[Judged]:
        self.check_confirm()
        self.check_work()
        parts = self.parts()
        end = self.pretraining_time
        if end is not None:
            check("pretraining_time", end, "non-negative and finite", math.isfinite(end) and end >= 0)
        if end == 0 and self.plot:
            raise ArgumentError("plot", "needs a --pretraining-time above 0")
        check("points", self.points, "at least 3", self.points >= 3)
        transfers = self.transfers(self.sgd)
        if self.alone(_GOALS * len(transfers)):
            begin(transfers[0], self.escape, end=end)
        loss = self.goal
        if loss is None:
            loss = untrained_loss(transfers[0]) / 10
        goals, jobs = (self.escape, Escape("absolute", loss)), []
        for transfer in transfers:
            times = np.zeros(1) if end == 0 else pretraining_times(transfer, self.points, end=end)
            jobs += [JudgeJob(f"case-{len(jobs) + n}", transfer, times, goal) for n, goal in enumerate(goals)]
        with self.work() as work:
            cases = all_results(carry_out(jobs, unit="case", parts=parts, **work))
            if not self.confirm:
                return cases
            key, confirming = jax.random.key(self.seed), []
            for number, case in enumerate(cases):
                options = {"seeds": self.confirm, "key": jax.random.fold_in(key, number), "name": f"confirm-{number}"}
                confirming.append(confirming_checkpoints(case.transfer, case.goal, case.verdict, **options))
            found = iter(all_results(carry_out(sum(confirming, []), unit="checkpoint", parts=parts, **work)))
        return [
            dataclasses.replace(case, simulated=[next(found) for _ in some])
            for case, some in zip(cases, confirming, strict=True)
        ]

    def document(self, result: list[Judged]) -> dict[str, Any]:
        return {"cases": [row(case) for case in result]}

    def report(self, result: list[Judged]) -> None:
        for case in result:
            print(f"cosine {case.pair}, to {case.words}:")
            points = rows_of(sweep_columns(case))
            print(table([points[i] for i in spread_over(len(points), _SHOWN)]))
            print(*sentences(case), sep="\n")
            if case.simulated:
                print(table(case.simulated))
            print()

    def rows(self, result: list[Judged]) -> list[dict[str, Any]]:
        return [
            {"cosine": float(case.transfer.cosine), "goal": case.words} | point
            for case in result
            for point in rows_of(sweep_columns(case))
        ]

    def dataset(self, result: list[Judged]) -> Any:
        import xarray

        swept, verdicts = [sweep_columns(case) for case in result], [row(case) for case in result]
        for verdict in verdicts:
            del verdict["checkpoints"]
        columns = {name: (("case", "checkpoint"), np.array([some[name] for some in swept])) for name in swept[0]}
        return xarray.Dataset(columns, attrs={"verdicts": json.dumps(verdicts)})

    def draw(self, result: list[Judged]) -> Any:
        """The fine-tuning time against the pretraining time, one panel for each goal, one line for each cosine."""
        import matplotlib.pyplot as plt

        goals = list(dict.fromkeys(case.words for case in result))
        figure, axes = plt.subplots(1, len(goals), figsize=(3.4 * len(goals), 2.7))
        panels = dict(zip(goals, np.atleast_1d(axes), strict=True))
        cosines = list(dict.fromkeys(case.pair for case in result))
        for case in result:
            draw_case(panels[case.words], case, f"C{cosines.index(case.pair)}")
        times = result[0].verdict.swept.time
        for goal, ax in panels.items():
            ax.set(title=f"to {goal}")
            log_height(ax)
            time_axis(ax, float(times[1]), float(times[-1]))
        if len(cosines) > 1:
            panels[goals[0]].legend(title=r"cosine $\omega_s\cdot\omega^*$")
        return figure


@dataclasses.dataclass(frozen=True)
class JudgeJob:
    """One transfer and goal, to be judged at some pretraining times."""

    name: str
    transfer: Transfer
    times: np.ndarray
    goal: Escape
    size: int = 1

    def run(self, advanced: Advanced) -> Judged:
        """The verdicts."""
        price = float(self.transfer.sgd.noise_scale / self.transfer.pretraining_sgd.noise_scale)
        verdict, samples = judge(self.transfer, self.times, self.goal), None
        if np.isfinite(price):
            samples = judge(self.transfer, self.times, self.goal, price=price, swept=verdict.swept)
        return Judged(self.transfer, self.goal, verdict, samples, None)


def untrained_loss(transfer: Transfer) -> float:
    """The target's loss of a student whose output is always 0."""
    silent = transfer.lora.replace(readout=np.zeros(transfer.units))
    return float(gradient_at(silent, transfer.random_start(jax.random.key(0))).loss)


def row(case: Judged) -> dict[str, Any]:
    """Everything that is known of a case, under stable keys."""
    verdict = case.verdict
    goal = {"criterion": case.goal.criterion, "threshold": float(case.goal.threshold)}
    found: dict[str, Any] = {"cosine": case.cosine, "goal": goal, "verdict": verdict.kind.name}
    for name in ("best", "worst", "last"):
        turn = getattr(verdict, name)
        found[name] = None if turn is None else {"pretraining_time": turn.at, "fine_tuning_time": turn.cost}
    found["turns"] = [dataclasses.asdict(turn) for turn in verdict.turns]
    found |= {"critical": verdict.critical, "reached": verdict.reached}
    found["fewest_samples_at"] = case.samples.best.at if case.samples and case.samples.best else None
    exponents = case.exponent
    found["exponents"] = None if exponents is None else {"tau": exponents[0], "fine_tuning_time": exponents[1]}
    found["checkpoints"] = rows_of(sweep_columns(case))
    found["simulated"] = case.simulated
    return found


def sweep_columns(case: Judged) -> dict[str, np.ndarray]:
    """The sweep's checkpoints, column by column; samples are per dimension."""
    swept = case.verdict.swept
    before, total = swept.samples(case.transfer)
    columns = {
        "pretraining_time": swept.time,
        "strength": swept.strength,
        "alignment": swept.alignment,
        "source_loss": swept.source_loss,
        "target_loss": swept.target_loss,
        "tau": swept.tuning.tau,
        "fine_tuning_time": swept.tuning.time,
        "fine_tuning_time_error": swept.tuning.error,
        "slope": swept.slope,
        "pretraining_samples": before,
        "all_samples": total,
    }
    return {name: np.asarray(values) for name, values in columns.items()}


def sentences(case: Judged) -> list[str]:
    """The verdict in words."""
    verdict = case.verdict
    if verdict.swept.time.size == 1:
        time = float(verdict.swept.tuning.time[0])
        arrives = f"takes {time:.4g}" if np.isfinite(time) else "does not reach the goal"
        return [f"pretraining time 0 means random weights: fine-tuning from them {arrives}", *doubts(verdict)]
    lines = [f"verdict: {verdict.kind.name}: {verdict.kind.meaning}"]
    if not (verdict.best and verdict.worst and verdict.last):
        return lines
    swept, (first, end) = np.asarray(verdict.swept.time), (verdict.reached[0][0], verdict.reached[-1][1])
    if first > swept[0]:
        lines.append(f"from checkpoints before pretraining time {first:.4g} the goal is never reached")
    for (_, low), (high, _) in itertools.pairwise(verdict.reached):
        lines.append(f"from checkpoints between pretraining times {low:.4g} and {high:.4g} the goal is not reached")
    if end < swept[-1]:
        lines.append(f"from checkpoints after pretraining time {end:.4g} the goal is not reached")
    for turn in (verdict.best, verdict.worst):
        word = "fastest" if turn is verdict.best else "slowest"
        lines.append(f"{word} from the checkpoint at pretraining time {turn.at:.4g}: {turn.cost:.4g}")
    if verdict.best.cost > 0:
        ratio = verdict.last.cost / verdict.best.cost
        lines.append(f"fine-tuning from the last checkpoint takes {ratio:.3g} times as long as from the best")
    if verdict.critical is not None:
        lines.append(f"more pretraining slows fine-tuning beyond pretraining time {verdict.critical:.4g}")
    if case.samples is not None and case.samples.best is not None:
        best = case.samples.best
        total = float(case.transfer.sgd.samples_per_dimension(best.cost))
        lines.append(f"fewest samples in all: pretraining time {best.at:.4g}, {total:.4g} per dimension")
    if case.exponent is not None:
        tau, time = case.exponent
        lines.append(f"near the target tau ~ |w - target|^{tau:.2f}, fine-tuning time ~ |w - target|^{time:.2f}")
    return lines + doubts(verdict)


def doubts(verdict: Verdict) -> list[str]:
    """Why times are not means, for each reason that there is at a checkpoint."""
    tuning = verdict.swept.tuning
    codes = np.unique(np.asarray(tuning.validity)[np.isfinite(tuning.time)])
    return [
        f"at some checkpoints times are those of the flow from a few starts, not means: {Validity(code).meaning}"
        for code in codes
        if code != Validity.holds
    ]


def draw_case(ax: Any, case: Judged, colour: str) -> None:
    """One line with its best and worst checkpoint, and the simulated points."""
    verdict = case.verdict
    swept = verdict.swept
    searched = np.where(np.asarray(swept.tuning.time) > 0, swept.tuning.time, np.nan)  # 0 where w0 meets the goal
    ax.plot(swept.time, searched, color=colour, label=case.pair)
    for turn in verdict.turns:
        ax.plot(turn.at, turn.cost, marker="v" if turn.kind == "best" else "^", color=colour, markersize=5)
    for point in case.simulated or []:
        ax.errorbar(
            point["pretraining_time"], point["chain"], point["standard_error"], fmt="o", color=colour, markersize=3
        )
