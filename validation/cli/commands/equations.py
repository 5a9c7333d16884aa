"""`searchphase equations`: the closed equations in symbols."""

import dataclasses
from pathlib import Path
from typing import Literal

from odes.arguments import ArgumentError
from odes.storage import write_whole
from validation.cli.options import FileOptions, ModelOptions, SGDOptions
from validation.cli.values import OptionalPath, check_writable

_SUFFIXES = {"latex": ".tex", "sympy": ".py", "python": ".py"}
_MADE = "Closed equations of "
"""What the first line of everything that this command writes says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equations(SGDOptions, ModelOptions, FileOptions):
    """Derive the closed equations in symbols: covariances, loss and gradient, noise, flow, search phase (polynomials, erf, sums of them).

    Links, numbers of units, rank, free rows and an infinite batch size (no noise) shape the equations; every other number stays a symbol,
    whose value is listed with its meaning.
    """

    format: Literal["latex", "sympy", "python"] = "latex"
    """A LaTeX document, SymPy code that builds the equations again, or a NumPy module that integrates them."""
    finite_steps: bool = False
    """The mean change in one SGD step of learning rate eta, not its limit, the flow."""
    output: OptionalPath = None
    """Write to this file (.tex or .py), not to standard output."""
    force: bool = False
    """Write it even where --output holds something else than equations."""

    def run(self) -> int:
        """Derives and prints the equations; returns the exit code."""
        check_writable("output", self.output, (_SUFFIXES[self.format],))
        if self.output and not self.force and not _may_replace(Path(self.output)):
            raise ArgumentError(
                "output", f"{self.output} holds something else: name another file, or replace it by --force"
            )
        text = self.text()
        if self.output:
            write_whole(self.output, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            print(f"written to {self.output}: {len(text.splitlines())} lines")
        else:
            print(text, end="")
        return 0

    def text(self) -> str:
        """The equations as text."""
        from theory.printed import as_python, as_sympy
        from theory.symbolic import closed_equations
        from theory.typeset import as_latex

        problem = self.stored() or self.asked(self.sgd)
        equations = closed_equations(problem, finite_steps=self.finite_steps)
        return {"latex": as_latex, "sympy": as_sympy, "python": as_python}[self.format](equations)


def _may_replace(file: Path) -> bool:
    """Whether a file may be written: it is not there, or this command made it."""
    if not file.exists():
        return True
    try:
        with file.open(encoding="utf-8") as lines:
            return _MADE in lines.readline()
    except (OSError, UnicodeDecodeError):
        return False
