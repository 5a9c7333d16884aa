"""`searchphase checkpoints`: which checkpoint of a pretraining run is fine-tuned fastest, and does more pretraining hurt?"""

import dataclasses
import re
from typing import Any

import jax
import numpy as np

from odes import SGD, Escape, Transfer, self_moments
from odes.storage import write_dataset
from theory import VERDICTS, Verdict, checkpoints, judge, pretraining_times
from validation.cli.options import (
    AdapterOptions,
    BadInput,
    ConfirmOptions,
    EscapeOptions,
    LinkOptions,
    Numbers,
    OptionalFloat,
    OptionalText,
    OutputOptions,
    link,
    numbers,
    save_figure,
)
from validation.cli.report import print_json, table
from validation.figures.style import figure_style, time_axis
from validation.simulation.fine_tuning import simulated_fine_tuning
from validation.simulation.result import mean_and_error

_SHOWN = 9
_CONFIRMED = 6
_MOST_STEPS = 40_000
_CLOSE = 0.3
"""Weights nearer than this to the target show how the fine-tuning time diverges."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferOptions(AdapterOptions, LinkOptions):
    source: OptionalText = None
    """Link function of the source task's labels; the student's unless given (--teacher is that of the target task)."""
    cosine: Numbers = ("1",)
    """Cosine of the source's and the target's direction (default: 1, the same direction)."""
    spherical: bool = False
    """Keep the weights at unit length in pretraining (their length is free unless given)."""
    weight_decay: float = 0.0
    """Weight decay in pretraining."""
    length: float = 1.0
    """Length of the random weights from which pretraining starts."""
    pretraining_learning_rate: OptionalFloat = None
    """Learning rate of pretraining; that of fine-tuning unless given."""
    pretraining_batch_size: OptionalFloat = None
    """Batch size of pretraining; that of fine-tuning unless given."""

    def transfers(self, sgd: SGD) -> list[Transfer]:
        """The transfer at every cosine that the flags ask for."""
        student, target = self.links
        rate, batch = self.pretraining_learning_rate, self.pretraining_batch_size
        try:
            first = SGD(
                learning_rate=sgd.learning_rate if rate is None else rate,
                batch_size=sgd.batch_size if batch is None else batch,
                dimension=sgd.dimension,
                label_noise=sgd.label_noise,
            )
        except ValueError as error:
            raise BadInput(re.sub(r"Argument `(\w+)`", _pretraining_flag, str(error))) from None
        return [
            Transfer(
                student,
                cosine=cosine,
                source=link("--source", self.source, student),
                target=target,
                adapter=self.adapter,
                sgd=sgd,
                pretraining_sgd=first,
                spherical=self.spherical,
                weight_decay=self.weight_decay,
                length=self.length,
            )
            for cosine in numbers("--cosine", self.cosine)
        ]


def _pretraining_flag(match: re.Match[str]) -> str:
    return f"--pretraining-{match[1]}".replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Case:
    """One cosine and goal: its transfer, the verdict on the fine-tuning time and, None without noise, on all samples."""

    transfer: Transfer
    goal: Escape
    verdict: Verdict
    samples: Verdict | None

    def at(self, time: float) -> tuple[float, float]:
        """Fine-tuning time and τ of the checkpoint at a pretraining time."""
        grid = np.asarray(self.verdict.swept.time)
        times = grid if time == 0 else time * np.arange(1, grid.size + 1) / grid.size
        place = 0 if time == 0 else -1
        tuning = checkpoints(self.transfer, times, self.goal).tuning
        return float(tuning.time[place]), float(tuning.tau[place])

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
    loss (--goal, or a tenth of that of a student that says nothing), the same for all. Theory at typical random starts.
    """

    pretraining_time: OptionalFloat = None
    """When pretraining ends at the latest (0: random weights); when the source loss is a thousandth of its start unless given."""
    points: int = 32
    """Number of checkpoints in the sweep."""

    def run(self) -> int:
        self.check_paths()
        self.check_confirm()
        end = self.pretraining_time
        if end is not None and not (np.isfinite(end) and end >= 0):
            raise BadInput(f"--pretraining-time must be non-negative and finite, but is {end:g}")
        if end == 0 and self.plot:
            raise BadInput("--plot needs a --pretraining-time above 0")
        if self.points < 3:
            raise BadInput(f"--points must be at least 3, but is {self.points}")
        cases = self.cases()
        simulated = [self.simulated(number, case) for number, case in enumerate(cases)] if self.confirm else None
        self.report(cases, simulated)
        if self.output:
            self.save(self.output, cases, simulated)
        if self.plot:
            self.draw(self.plot, cases, simulated)
        return 0

    def cases(self) -> list[Case]:
        """Every cosine and goal, judged."""
        transfers = self.transfers(self.sgd)
        loss = self.goal
        if loss is None:
            loss = float(self_moments(transfers[0].target, 1.0).value) / 20
        goals = [self.escape, Escape("absolute", loss)]
        cases = []
        for transfer in transfers:
            times = self.times(transfer)
            price = float(transfer.sgd.noise_scale / transfer.pretraining_sgd.noise_scale)
            for goal in goals:
                verdict = judge(transfer, times, goal)
                total = judge(transfer, times, goal, price=price) if np.isfinite(price) else None
                cases.append(Case(transfer, goal, verdict, total))
        return cases

    def times(self, transfer: Transfer) -> np.ndarray:
        """The pretraining times of the sweep."""
        end = self.pretraining_time
        return np.zeros(1) if end == 0 else pretraining_times(transfer, self.points, end=end)

    def simulated(self, number: int, case: Case) -> list[dict[str, float]]:
        """Theory and chain at the turns, the ends and some checkpoints between, where no run needs too many steps."""
        verdict, grid = case.verdict, np.asarray(case.verdict.swept.time)
        if verdict.reached is None or verdict.last is None:
            return []
        between = grid[np.linspace(0, grid.size - 1, _CONFIRMED).astype(int)]
        rows = []
        for place, at in enumerate(sorted({*between.tolist(), *(turn.at for turn in verdict.turns)})):
            expected, tau = case.at(at)
            longest = 1.5 * expected + 8 * tau
            if not longest <= _MOST_STEPS * self.learning_rate:
                continue
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), number), place)
            times = simulated_fine_tuning(
                case.transfer, at, case.goal, longest=longest, seeds=self.confirm, key=key, progress=True
            )
            times = times[np.isfinite(times)]
            row = {"pretraining_time": at, "theory": expected, "chain": np.nan, "standard_error": np.nan}
            if times.size > 1:
                row["chain"], row["standard_error"] = mean_and_error(times)
            rows.append(row | {"reached": times.size})
        return rows

    def report(self, cases: list[Case], simulated: list[list[dict[str, float]]] | None) -> None:
        rows = [self.case_json(i, case, simulated) for i, case in enumerate(cases)]
        if self.json:
            print_json({"cases": rows})
            return
        for i, (case, row) in enumerate(zip(cases, rows, strict=True)):
            print(f"cosine {float(case.transfer.cosine):g}, to {case.words}:")
            points = row["checkpoints"]
            shown = np.unique(np.linspace(0, len(points) - 1, _SHOWN).astype(int))
            print(table([points[j] for j in shown]))
            for line in sentences(case):
                print(line)
            if simulated is not None and simulated[i]:
                print(table(simulated[i]))
            print()

    def case_json(self, number: int, case: Case, simulated: list[list[dict[str, float]]] | None) -> dict[str, Any]:
        """Everything that is known of a case, under stable keys."""
        verdict = case.verdict
        goal = {"criterion": case.goal.criterion, "threshold": float(case.goal.threshold)}
        columns = sweep_columns(case)
        points = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        row: dict[str, Any] = {"cosine": float(case.transfer.cosine), "goal": goal, "verdict": verdict.kind}
        for name in ("best", "worst", "last"):
            turn = getattr(verdict, name)
            row[name] = None if turn is None else {"pretraining_time": turn.at, "fine_tuning_time": turn.cost}
        row["turns"] = [dataclasses.asdict(turn) for turn in verdict.turns]
        row |= {"critical": verdict.critical, "reached": verdict.reached}
        row["fewest_samples_at"] = case.samples.best.at if case.samples and case.samples.best else None
        exponents = case.exponent
        row["exponents"] = None if exponents is None else {"tau": exponents[0], "fine_tuning_time": exponents[1]}
        row["checkpoints"] = points
        row["simulated"] = None if simulated is None else simulated[number]
        return row

    def save(self, path: str, cases: list[Case], simulated: list[list[dict[str, float]]] | None) -> None:
        import xarray

        swept = [sweep_columns(case) for case in cases]
        variables = {
            name: (("case", "checkpoint"), np.array([columns[name] for columns in swept])) for name in swept[0]
        }
        verdicts = [self.case_json(i, case, simulated) for i, case in enumerate(cases)]
        for row in verdicts:
            del row["checkpoints"]
        write_dataset(
            xarray.Dataset(variables), path, kind="checkpoints", command=dataclasses.asdict(self), verdicts=verdicts
        )

    def draw(self, path: str, cases: list[Case], simulated: list[list[dict[str, float]]] | None) -> None:
        """The fine-tuning time against the pretraining time, one panel for each goal, one line for each cosine."""
        with figure_style():
            import matplotlib.pyplot as plt

            goals = list(dict.fromkeys(case.words for case in cases))
            figure, axes = plt.subplots(1, len(goals), figsize=(3.4 * len(goals), 2.7))
            cosines = list(dict.fromkeys(float(case.transfer.cosine) for case in cases))
            for ax, goal in zip(np.atleast_1d(axes), goals, strict=True):
                for i, case in enumerate(cases):
                    if case.words == goal:
                        colour = f"C{cosines.index(float(case.transfer.cosine))}"
                        draw_case(ax, case, colour, None if simulated is None else simulated[i])
                times = cases[0].verdict.swept.time
                ax.set(yscale="log", title=f"to {goal}")
                time_axis(ax, float(times[1]), float(times[-1]))
            if len(cosines) > 1:
                np.atleast_1d(axes)[0].legend(title=r"cosine $\omega_s\cdot\omega^*$")
            save_figure(figure, path)


def sweep_columns(case: Case) -> dict[str, np.ndarray]:
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


def sentences(case: Case) -> list[str]:
    """The verdict in words."""
    verdict = case.verdict
    if verdict.swept.time.size == 1:
        time = float(verdict.swept.tuning.time[0])
        arrives = f"takes {time:.4g}" if np.isfinite(time) else "does not reach the goal"
        return [f"pretraining time 0 means random weights: fine-tuning from them {arrives}"]
    lines = [f"verdict: {verdict.kind}: {VERDICTS[verdict.kind]}"]
    if verdict.reached is None or not (verdict.best and verdict.worst and verdict.last):
        return lines
    first, end = verdict.reached
    swept = np.asarray(verdict.swept.time)
    if first > swept[0]:
        lines.append(f"from checkpoints before pretraining time {first:.4g} the goal is never reached")
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
    if not bool(np.all(np.asarray(verdict.swept.tuning.trusted)[np.isfinite(verdict.swept.tuning.time)])):
        lines.append(
            "at some checkpoints D <= 0 or the start is not small: there times are those of a typical start, not means"
        )
    return lines


def draw_case(ax: Any, case: Case, colour: str, simulated: list[dict[str, float]] | None) -> None:
    """One line with its best and worst checkpoint, and the simulated points."""
    verdict = case.verdict
    swept = verdict.swept
    ax.plot(swept.time, swept.tuning.time, color=colour, label=f"{float(case.transfer.cosine):g}")
    for turn in verdict.turns:
        ax.plot(turn.at, turn.cost, marker="v" if turn.kind == "best" else "^", color=colour, markersize=5)
    for row in simulated or []:
        ax.errorbar(row["pretraining_time"], row["chain"], row["standard_error"], fmt="o", color=colour, markersize=3)
