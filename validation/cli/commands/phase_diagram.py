"""`searchphase phase-diagram`: where more pretraining helps fine-tuning and where it hurts."""

import dataclasses
from typing import Any

import numpy as np

import theory
from odes import Escape, Family
from odes.arguments import ArgumentError
from theory import Boundaries, BoundaryKind, Region, boundaries
from validation.cli.options import AdapterOptions, EscapeOptions, LinkOptions, SGDOptions, checked_places
from validation.cli.report import rows_of, table
from validation.cli.values import Numbers, numbers
from validation.cli.work import ResumeOptions
from validation.figures.phase_diagram import draw_diagram, to_dataset
from validation.figures.style import ALIGNMENT_LABEL, COLUMN
from validation.jobs.engine import Advanced, all_results, carry_out

Found = tuple[theory.PhaseDiagram, Boundaries]

_ROWS = 8
"""So many alignments are looked at together: their boundaries, two or so at each, fill what is compiled for eight places."""

_EDGE = ("alignment", "strength", "kind", "before", "after", "time", "line")
_SHOWN = 5
"""At so many strengths the table names the region."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseDiagram(ResumeOptions, EscapeOptions, SGDOptions, AdapterOptions, LinkOptions):
    """Where more pretraining makes fine-tuning faster and where slower, and the strengths between, at every alignment.

    Half a minute for links with closed forms; sigmoid and tanh take up to a second for every strength and alignment.
    """

    strength: Numbers = numbers(["0.05:1.5:30"])
    """Lengths of the pretrained weights, rho = |w0|, of the grid on which boundaries are looked for."""
    alignment: Numbers = numbers(["0:0.9:19", "0.92:1:5"])
    """Their cosines with the target, c; boundaries are located at each."""

    def compute(self) -> Found:
        strengths, alignments = self.grid()
        student, teacher = self.links
        family = Family(student, teacher=teacher, adapter=self.adapter, sgd=self.sgd)
        parts = self.parts()
        jobs = [
            RowsJob(first, family, strengths, alignments[first : first + _ROWS], self.escape)
            for first in range(0, alignments.size, _ROWS)
        ]
        with self.work() as work:
            rows = all_results(carry_out(jobs, unit="row", parts=parts, **work))
        found = theory.PhaseDiagram.stacked([some for some, _ in rows])
        return found, Boundaries.joined([edges for _, edges in rows], found)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """The strengths and the alignments, increasing and without repetition."""
        strengths, alignments = checked_places(self.strength, self.alignment)
        strengths, alignments = np.unique(strengths), np.unique(alignments)
        if strengths.size < 2:
            raise ArgumentError("strength", "takes at least two different strengths here, such as 0.05:1.5:30")
        if self.plot and alignments.size < 2:
            raise ArgumentError("plot", "needs at least two different alignments, such as --alignment 0:1:11")
        return strengths, alignments

    def document(self, result: Found) -> dict[str, Any]:
        """All numbers of a diagram; grids are lists (alignments) of lists (strengths)."""
        found, edges = result
        grids = {name: getattr(found, name) for name in ("time", "slope", "share", "searching", "tau", "D", "trusted")}
        return {
            "strength": found.strength,
            "alignment": found.alignment,
            "region": [[Region(i).name for i in row] for row in np.asarray(found.region)],
            **grids,
            "boundaries": edge_rows(edges),
            "regions": Region.meanings(),
            "kinds": BoundaryKind.meanings(),
        }

    def report(self, result: Found) -> None:
        """Prints the regions at a few strengths and the boundaries of every alignment, and what else is to be known."""
        found, edges = result
        region, strengths = np.asarray(found.region), np.asarray(found.strength)
        located = edge_rows(edges)
        shown = np.unique(np.linspace(0, strengths.size - 1, _SHOWN).round().astype(int))
        rows = []
        for row, cosine in enumerate(np.asarray(found.alignment).tolist()):
            here = [f"{edge['kind']} {edge['strength']:.6g}" for edge in located if edge["alignment"] == cosine]
            at = {f"at {strengths[i]:.3g}": Region(region[row, i]).name for i in shown}
            rows.append({"alignment": cosine, **at, "boundaries": ", ".join(here) or "none"})
        print(table(rows))
        kinds = (BoundaryKind[name] for name in dict.fromkeys(edge["kind"] for edge in located))
        for member in (*(some for some in Region if (region == some).any()), *kinds):
            print(f"{member.name}: {member.meaning}")
        time, trusted = np.asarray(found.time), np.asarray(found.trusted)
        timed = np.isfinite(np.asarray(found.share))
        print(
            f"the search takes more than half of the time at {int(found.searching.sum())} of {timed.sum()} places of the grid"
        )
        slow = int((np.isnan(time) & np.isin(region, [Region.helps, Region.hurts])).sum())
        if slow:
            print(f"search too long to be integrated, helps or hurts read off tau: at {slow} places")
        if doubtful := int((timed & ~trusted).sum()):
            print(f"not mean times, since the law of the escape time does not hold there: at {doubtful} places")

    def dataset(self, result: Found) -> Any:
        return to_dataset(*result)

    def draw(self, result: Found) -> Any:
        import matplotlib.pyplot as plt

        figure, ax = plt.subplots(figsize=(COLUMN, 3.4))
        handles = draw_diagram(ax, self.dataset(result))
        teacher = "" if self.teacher is None else f", teacher {self.teacher}"
        ax.set(title=self.activation + teacher, ylabel=ALIGNMENT_LABEL)
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
        return figure


@dataclasses.dataclass(frozen=True)
class RowsJob:
    """Some alignments of a phase diagram, from the one with number `first` on, and their boundaries."""

    first: int
    family: Family
    strengths: np.ndarray
    alignments: np.ndarray
    goal: Escape

    @property
    def name(self) -> str:
        """What it is called among the others."""
        return f"rows-{self.first}-to-{self.first + self.alignments.size - 1}"

    @property
    def size(self) -> int:
        """The number of alignments."""
        return self.alignments.size

    def run(self, advanced: Advanced) -> Found:
        """The part of the diagram."""
        grid = {"strengths": self.strengths, "alignments": self.alignments}
        found = theory.phase_diagram(self.family, **grid, goal=self.goal)
        return found, boundaries(found)


def edge_rows(edges: Boundaries) -> list[dict]:
    """The boundaries as rows, regions and kinds by name."""
    columns: dict[str, Any] = {name: np.asarray(getattr(edges, name)).tolist() for name in _EDGE}
    for name, meanings in (("kind", BoundaryKind), ("before", Region), ("after", Region)):
        columns[name] = [meanings(number).name for number in columns[name]]
    return rows_of(columns)
