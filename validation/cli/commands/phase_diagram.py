"""`searchphase phase-diagram`: where more pretraining helps fine-tuning and where it hurts."""

import dataclasses

import numpy as np

from odes.storage import write_dataset
from theory import KINDS, REGIONS, Boundaries, Regimes, boundaries, regimes
from validation.cli.options import (
    AdapterOptions,
    BadInput,
    EscapeOptions,
    LinkOptions,
    Numbers,
    OutputOptions,
    SGDOptions,
    checked_places,
    save_figure,
)
from validation.cli.report import print_json, table
from validation.figures.phase_diagram import ALIGNMENT_LABEL, draw_diagram, to_dataset
from validation.figures.style import COLUMN, figure_style

_SHOWN = 5
"""At so many strengths the table names the region."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseDiagram(OutputOptions, EscapeOptions, SGDOptions, AdapterOptions, LinkOptions):
    """Where more pretraining makes fine-tuning faster and where slower, and the strengths between, at every alignment.

    Half a minute for links with closed forms; sigmoid and tanh take up to a second for every strength and alignment.
    """

    strength: Numbers = ("0.05:1.5:30",)
    """Lengths of the pretrained weights, rho = |w0|, of the grid on which boundaries are looked for."""
    alignment: Numbers = ("0:0.9:19", "0.92:1:5")
    """Their cosines with the target, c; boundaries are located at each."""

    def run(self) -> int:
        self.check_paths()
        strengths, alignments = self.grid()
        student, teacher = self.links
        found = regimes(
            student,
            strengths=strengths,
            alignments=alignments,
            teacher=teacher,
            adapter=self.adapter,
            sgd=self.sgd,
            goal=self.escape,
        )
        edges = boundaries(found)
        if self.json:
            print_json(as_json(found, edges))
        else:
            report(found, edges)
        if self.output:
            write_dataset(to_dataset(found, edges), self.output, kind="phase-diagram", command=dataclasses.asdict(self))
        if self.plot:
            self.draw(self.plot, found, edges)
        return 0

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """The strengths and the alignments, increasing and without repetition."""
        strengths, alignments = checked_places(self.strength, self.alignment)
        strengths, alignments = np.unique(strengths), np.unique(alignments)
        if strengths.size < 2:
            raise BadInput("--strength takes at least two different strengths here, such as 0.05:1.5:30")
        if self.plot and alignments.size < 2:
            raise BadInput("--plot needs at least two different alignments, such as --alignment 0:1:11")
        return strengths, alignments

    def draw(self, path: str, found: Regimes, edges: Boundaries) -> None:
        with figure_style():
            import matplotlib.pyplot as plt

            figure, ax = plt.subplots(figsize=(COLUMN, 3.4))
            handles = draw_diagram(ax, to_dataset(found, edges))
            teacher = "" if self.teacher is None else f", teacher {self.teacher}"
            ax.set(title=self.activation + teacher, ylabel=ALIGNMENT_LABEL)
            figure.legend(handles=handles, loc="outside upper center", ncols=2)
            save_figure(figure, path)


def edge_rows(edges: Boundaries) -> list[dict]:
    """The boundaries as rows, regions and kinds by name."""
    kinds, regions = list(KINDS), list(REGIONS)
    columns = {
        "alignment": np.asarray(edges.alignment).tolist(),
        "strength": np.asarray(edges.strength).tolist(),
        "kind": [kinds[i] for i in edges.kind],
        "before": [regions[i] for i in edges.before],
        "after": [regions[i] for i in edges.after],
        "time": np.asarray(edges.time).tolist(),
        "line": np.asarray(edges.line).tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def as_json(found: Regimes, edges: Boundaries) -> dict:
    """All numbers of a diagram; grids are lists (alignments) of lists (strengths)."""
    regions = list(REGIONS)
    grids = {name: getattr(found, name) for name in ("time", "slope", "share", "searching", "tau", "D", "trusted")}
    return {
        "strength": found.strength,
        "alignment": found.alignment,
        "region": [[regions[i] for i in row] for row in np.asarray(found.region)],
        **grids,
        "boundaries": edge_rows(edges),
        "regions": REGIONS,
        "kinds": KINDS,
    }


def report(found: Regimes, edges: Boundaries) -> None:
    """Prints the regions at a few strengths and the boundaries of every alignment, and what else is to be known."""
    region, strengths = np.asarray(found.region), np.asarray(found.strength)
    names, located = list(REGIONS), edge_rows(edges)
    shown = np.unique(np.linspace(0, strengths.size - 1, _SHOWN).round().astype(int))
    rows = []
    for row, cosine in enumerate(np.asarray(found.alignment).tolist()):
        here = [f"{edge['kind']} {edge['strength']:.6g}" for edge in located if edge["alignment"] == cosine]
        at = {f"at {strengths[i]:.3g}": names[region[row, i]] for i in shown}
        rows.append({"alignment": cosine, **at, "boundaries": ", ".join(here) or "none"})
    print(table(rows))
    for number, (name, meaning) in enumerate(REGIONS.items()):
        if (region == number).any():
            print(f"{name}: {meaning}")
    for name in dict.fromkeys(edge["kind"] for edge in located):
        print(f"{name}: {KINDS[name]}")
    time, trusted = np.asarray(found.time), np.asarray(found.trusted)
    timed = np.isfinite(np.asarray(found.share))
    print(
        f"the search takes more than half of the time at {int(found.searching.sum())} of {timed.sum()} places of the grid"
    )
    slow = int((np.isnan(time) & np.isin(region, [names.index(name) for name in ("helps", "hurts")])).sum())
    if slow:
        print(f"search too long to be integrated, helps or hurts read off tau: at {slow} places")
    if doubtful := int((timed & ~trusted).sum()):
        print(f"not mean times (D <= 0, or the start is no small perturbation at this dimension): at {doubtful} places")
