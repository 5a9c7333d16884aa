"""`searchphase checkpoints`: which checkpoint of a pretraining run is fine-tuned fastest, and does more pretraining hurt?"""

import dataclasses
import itertools
import json
import math
from typing import Any

import jax
import numpy as np

from odes import Escape, Transfer, self_moments
from odes.arguments import ArgumentError
from theory import Validity, Verdict, judge, pretraining_times
from validation.checks.confirm import confirmed_checkpoints
from validation.cli.options import ConfirmOptions, EscapeOptions, TransferOptions
from validation.cli.output import OutputOptions
from validation.cli.report import rows_of, spread_over, table
from validation.cli.values import OptionalFloat, check
from validation.figures.style import log_height, time_axis

_SHOWN = 9
_CLOSE = 0.3
"""Weights nearer than this to the target show how the fine-tuning time diverges."""


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
    def words(self) -> str:
        """The goal in words."""
        size = f"{float(self.goal.threshold):.3g}"
        return {"loss": f"loss at {size} of its start", "absolute": f"loss {size}"}.get(
            self.goal.criterion, f"{size} of the way to the target"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints(OutputOptions, EscapeOptions, ConfirmOptions, TransferOptions):
    """Pretrain, freeze, fine-tune: the fine-tuning time as a function of when pretraining stopped; the best and the worst checkpoint.

    Two goals: escape from the search phase (--criterion, --threshold), relative to the checkpoint's own loss, and an absolute
    loss (--goal, or a tenth of that of a student whose output is always 0), the same for all. Theory at typical random starts.
    """

    pretraining_time: OptionalFloat = None
    """When pretraining ends at the latest (0: random weights); when the source loss is a thousandth of its start unless given."""
    points: int = 32
    """Number of checkpoints in the sweep."""

    def compute(self) -> list[Judged]:
        self.check_confirm()
        end = self.pretraining_time
        if end is not None:
            check("pretraining_time", end, "non-negative and finite", math.isfinite(end) and end >= 0)
        if end == 0 and self.plot:
            raise ArgumentError("plot", "needs a --pretraining-time above 0")
        check("points", self.points, "at least 3", self.points >= 3)
        transfers = self.transfers(self.sgd)
        loss = self.goal
        if loss is None:
            loss = float(self_moments(transfers[0].target, 1.0).value) / 20
        goals, key, cases = (self.escape, Escape("absolute", loss)), jax.random.key(self.seed), []
        for transfer in transfers:
            times = np.zeros(1) if end == 0 else pretraining_times(transfer, self.points, end=end)
            price = float(transfer.sgd.noise_scale / transfer.pretraining_sgd.noise_scale)
            for goal in goals:
                verdict = judge(transfer, times, goal)
                samples = None
                if np.isfinite(price):
                    samples = judge(transfer, times, goal, price=price, swept=verdict.swept)
                simulated = None
                if self.confirm:
                    own = jax.random.fold_in(key, len(cases))
                    simulated = confirmed_checkpoints(transfer, goal, verdict, seeds=self.confirm, key=own)
                cases.append(Judged(transfer, goal, verdict, samples, simulated))
        return cases

    def document(self, result: list[Judged]) -> dict[str, Any]:
        return {"cases": [row(case) for case in result]}

    def report(self, result: list[Judged]) -> None:
        for case in result:
            print(f"cosine {float(case.transfer.cosine):g}, to {case.words}:")
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
        cosines = list(dict.fromkeys(float(case.transfer.cosine) for case in result))
        for case in result:
            draw_case(panels[case.words], case, f"C{cosines.index(float(case.transfer.cosine))}")
        times = result[0].verdict.swept.time
        for goal, ax in panels.items():
            ax.set(title=f"to {goal}")
            log_height(ax)
            time_axis(ax, float(times[1]), float(times[-1]))
        if len(cosines) > 1:
            panels[goals[0]].legend(title=r"cosine $\omega_s\cdot\omega^*$")
        return figure


def row(case: Judged) -> dict[str, Any]:
    """Everything that is known of a case, under stable keys."""
    verdict = case.verdict
    goal = {"criterion": case.goal.criterion, "threshold": float(case.goal.threshold)}
    found: dict[str, Any] = {"cosine": float(case.transfer.cosine), "goal": goal, "verdict": verdict.kind.name}
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
        return [f"pretraining time 0 means random weights: fine-tuning from them {arrives}"]
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
    for code in np.unique(np.asarray(verdict.swept.tuning.validity)[np.isfinite(verdict.swept.tuning.time)]):
        if code != Validity.holds:
            lines.append(f"at some checkpoints times are those of a typical start, not means: {Validity(code).meaning}")
    return lines


def draw_case(ax: Any, case: Judged, colour: str) -> None:
    """One line with its best and worst checkpoint, and the simulated points."""
    verdict = case.verdict
    swept = verdict.swept
    searched = np.where(np.asarray(swept.tuning.time) > 0, swept.tuning.time, np.nan)  # 0 where w0 meets the goal
    ax.plot(swept.time, searched, color=colour, label=f"{float(case.transfer.cosine):g}")
    for turn in verdict.turns:
        ax.plot(turn.at, turn.cost, marker="v" if turn.kind == "best" else "^", color=colour, markersize=5)
    for point in case.simulated or []:
        ax.errorbar(
            point["pretraining_time"], point["chain"], point["standard_error"], fmt="o", color=colour, markersize=3
        )
