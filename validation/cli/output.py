"""What a command does with its result: prints, stores and draws it."""

import dataclasses
import re
from typing import Any

from odes.storage import write_dataset, write_whole
from validation.cli.report import print_json
from validation.cli.values import OptionalPath, check_writable


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    json: bool = False
    """Print JSON instead of a table."""
    output: OptionalPath = None
    """Also write the result, with all that made it, to this netCDF file (.nc)."""
    plot: OptionalPath = None
    """Also draw the result to this file (.png, .pdf or .svg)."""

    def run(self) -> int:
        """Computes, prints, stores and draws; returns the exit code."""
        check_writable("output", self.output, (".nc",))
        check_writable("plot", self.plot, (".png", ".pdf", ".svg"))
        result = self.compute()
        if self.json:
            print_json(self.document(result))
        else:
            self.report(result)
        if self.output:
            self.store(result, self.output)
        if self.plot:
            from validation.figures.style import figure_style

            with figure_style():
                write_whole(self.plot, self.draw(result).savefig)
        return self.exit_code(result)

    def compute(self) -> Any:
        """The command's result."""
        raise NotImplementedError

    def document(self, result: Any) -> Any:
        """What `--json` prints."""
        raise NotImplementedError

    def report(self, result: Any) -> None:
        """Prints the result for people."""
        raise NotImplementedError

    def dataset(self, result: Any) -> Any:
        """The result as an `xarray.Dataset`; what is no array goes into its attributes, as JSON."""
        raise NotImplementedError

    def draw(self, result: Any) -> Any:
        """The result as a Matplotlib figure."""
        raise NotImplementedError

    def store(self, result: Any, path: str) -> None:
        """Writes the result, with all flags, to a netCDF file."""
        kind = re.sub("(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()
        write_dataset(self.dataset(result), path, kind=kind, command=dataclasses.asdict(self))

    def exit_code(self, result: Any) -> int:
        """0 if all is well."""
        return 0
