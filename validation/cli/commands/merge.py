"""`searchphase merge`: parts of a simulation that were computed apart, as one."""

import dataclasses
import json
from typing import Annotated, Any

import tyro

from odes.arguments import ArgumentError
from odes.storage import open_dataset
from validation.cli.commands.simulate import Seen, draw, points_of, report
from validation.cli.output import OutputOptions
from validation.jobs.parts import differing
from validation.simulation.sweeps import merged

Files = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]

_APART = ("seeds", "seed_offset", "strength", "alignment", "mixture", "rank", "dim", "t1", "block")
"""Flags in which the parts may differ."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge(OutputOptions):
    """Put together what `searchphase simulate` stored apart: other seeds (--seed-offset) of the same points, or other points.

    Prints what one run of all seeds and points would have printed, up to rounding; with --until-escape blocks of other seeds end at
    other records.
    """

    files: Files = ()
    """Two or more netCDF files of `simulate --output` (no default: they must be given)."""

    def compute(self) -> Seen:
        if len(self.files) < 2:
            raise ArgumentError(None, "needs two files or more that simulate --output wrote")
        datasets = [open_dataset(file) for file in self.files]
        for file, dataset in zip(self.files, datasets, strict=True):
            if json.loads(dataset.attrs["kind"]) not in ("simulations", "merged") or "seed" not in dataset.coords:
                raise ArgumentError(None, f"{file} is not a file that simulate --output wrote")
            if different := differing(_simulated(dataset), _simulated(datasets[0]), _APART):
                raise ArgumentError(None, f"{file} was made with {', '.join(different)}, unlike {self.files[0]}")
        return Seen.of(merged(datasets))

    def document(self, result: Seen) -> dict[str, Any]:
        return {"points": points_of(result.sweep)}

    def report(self, result: Seen) -> None:
        report(result)

    def store(self, result: Seen, path: str) -> None:
        flags = json.loads(_simulated(open_dataset(self.files[0]))["command"])
        kept = {name: value for name, value in flags.items() if name not in _APART}
        result.sweep.save(path, kind="merged", command=dataclasses.asdict(self), simulated=kept)

    def draw(self, result: Seen) -> Any:
        return draw(result)


def _simulated(dataset: Any) -> dict[str, str]:
    """What made a stored dataset, with the flags of `simulate` as its command."""
    return dataset.attrs | {"command": dataset.attrs.get("simulated", dataset.attrs["command"])}
