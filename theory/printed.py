"""The closed equations as text: a LaTeX document, SymPy code that builds them again, a NumPy module that integrates them.

Importing this module imports SymPy.
"""

import re
import textwrap
from collections.abc import Iterable
from typing import Any

import sympy
from sympy.printing.latex import LatexPrinter
from sympy.printing.numpy import NumPyPrinter
from sympy.printing.str import StrPrinter

from theory.symbolic import ClosedEquations, Group
from theory.tilting import Expr

_CODE_WIDTH = 110
_LINE_WIDTH = 72
"""How many characters a line of code has at most, and how many letters a line of an equation."""


def _described(equations: ClosedEquations) -> str:
    """What the equations are of, in a line."""
    problem = equations.problem
    units, teachers = problem.units
    rows = "rows of unit length" if problem.adapter.normalized else "free rows"
    return (
        f"K = {units} student{'s' * (units > 1)} {problem.student.name}, P = {teachers} "
        f"teacher{'s' * (teachers > 1)} {problem.teacher.name}, rank {problem.adapter.rank}, {rows}"
    )


def _groups(equations: ClosedEquations) -> dict[str, Group]:
    """What is defined before the flow, by title, as far as there is any."""
    groups = {
        "Covariances of the preactivations": equations.covariances,
        "Loss and its gradient": equations.gradient,
        "Noise": equations.noise,
        "Overlaps of the gradient, growth of the rows": equations.overlaps,
    }
    return {title: group for title, group in groups.items() if group}


class _SymPyPrinter(StrPrinter):
    """Prints expressions so that Python does not make floating point numbers of fractions."""

    def _print_Rational(self, expr: Any) -> str:
        return f"Rational({expr.p}, {expr.q})"


def _statement(start: str, code: str, end: str = "") -> str:
    """A line of code that holds an expression, in brackets over several lines where it is long."""
    if len(start) + len(code) + len(end) <= _CODE_WIDTH:
        return f"{start}{code}{end}"
    indent = " " * (len(start) - len(start.lstrip()))
    return f"{start}(\n{_filled(code, indent + '    ')}\n{indent}){end}"


def _filled(words: str, indent: str) -> str:
    """Words in lines, broken at spaces alone."""
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(words, _CODE_WIDTH, initial_indent=indent, subsequent_indent=indent, **options)


def _dictionary(name: str, groups: dict[str, Group], printer: Any) -> str:
    """The statement that makes a dictionary of some groups."""
    lines = []
    for title, group in groups.items():
        lines += [f"    # {title}"] if len(groups) > 1 else []
        lines += [_statement(f"    {symbol}: ", printer.doprint(value), ",") for symbol, value in group.items()]
    return "\n".join([f"{name} = {{", *lines, "}"])


def as_sympy(equations: ClosedEquations) -> str:
    """SymPy code that builds the equations again when it is executed.

    It makes every symbol under its own name, and by symbols: `parameters`, the values of the problem's numbers; `definitions`, which
    hold earlier symbols alone; `flow`, the derivative of every overlap (its change in one step over the learning rate); `search`; and
    the matrix `pencil`, as in [`theory.symbolic.ClosedEquations`][].
    """
    printer = _SymPyPrinter()
    pencil = sympy.Matrix(0, 0, []) if equations.pencil is None else equations.pencil
    symbols = dict.fromkeys([*equations.given, *equations.definitions, *equations.search, *sorted(pencil.free_symbols, key=str)])
    blocks = [
        f'"""Closed equations of {_described(equations)}.\n\nMade by `searchphase equations --format sympy`: executed, it builds them again.\n"""',
        "from sympy import Matrix, Rational, asin, pi, sqrt, symbols",
        "\n".join(
            [
                "(",
                _filled(", ".join(map(str, symbols)) + ",", "    "),
                ") = symbols(",
                _filled(" ".join(map(str, symbols)), "    ").replace("    ", '    "').replace("\n", ' "\n') + '",',
                "    real=True,\n)",
            ]
        ),
        "# Values of the problem's numbers\n" + _dictionary("parameters", {"": equations.parameters}, printer),
        "# All that the flow is made of; every expression holds earlier symbols alone\n"
        + _dictionary("definitions", _groups(equations), printer),
        f"# {_FLOW[equations.finite_steps]} of every overlap\n" + _dictionary("flow", {"": equations.flow}, printer),
    ]
    if equations.pencil is not None:
        rows = [f"    [{', '.join(map(printer.doprint, row))}]," for row in pencil.tolist()]
        blocks += [
            "# The search phase, at U = 0 and no overlap\n" + _dictionary("search", {"": equations.search}, printer),
            "# Its determinant vanishes at the rates lam\n" + "\n".join(["pencil = Matrix([", *rows, "])"]),
        ]
    return "\n\n".join(blocks) + "\n"


_FLOW = ("The time derivative", "The change in one SGD step, over the learning rate,")


def as_python(equations: ClosedEquations) -> str:
    """A Python module that needs NumPy alone.

    `STATE` names the overlaps in a state y, `PARAMETERS` the problem's numbers, with their values; `rhs(t, y, parameters)` is what
    `scipy.integrate.solve_ivp` takes; `quantities(y, parameters)` gives the loss, C, D, N and whatever else has a name; for a problem
    with a linear search phase `search_phase(parameters)` gives its C, D, G and rates.
    """
    printer = NumPyPrinter({"fully_qualified_modules": False})

    def assigned(groups: dict[str, Group]) -> list[str]:
        lines = []
        for title, group in groups.items():
            lines += [f"    # {title}"]
            lines += [_statement(f"    {symbol} = ", printer.doprint(value)) for symbol, value in group.items()]
        return lines

    def unpacked(names: Iterable[str], source: str) -> str:
        return f"    (\n{_filled(', '.join(names) + ',', ' ' * 8)}\n    ) = {source}"

    parameters = unpacked(map(str, equations.parameters), "(parameters[name] for name in PARAMETERS)")
    given = equations.given
    body = [
        "def _evaluated(y, parameters):",
        unpacked(map(str, equations.state), "y"),
        parameters,
        *assigned(_groups(equations)),
        "    named = {",
        *(f'        "{symbol}": {symbol},' for symbol in equations.definitions),
        "    }",
        "    derivatives = [",
        *(
            line
            for symbol, value in equations.flow.items()
            for line in (f"        # {symbol}", _statement("        ", printer.doprint(value), ","))
        ),
        "    ]",
        "    return named, numpy.stack(numpy.broadcast_arrays(*derivatives))",
    ]
    blocks = [
        f'"""Closed equations of {_described(equations)}.\n\nMade by `searchphase equations --format python`.\n"""',
        "import numpy\nfrom numpy import arcsin, pi, sqrt",
        "\n".join(
            [
                "STATE = (",
                *(f'    "{symbol}",  # {given[symbol].meaning}' for symbol in equations.state),
                ")",
                '"""The overlaps in the state y."""',
            ]
        ),
        "\n".join(
            [
                "PARAMETERS = {",
                *(f'    "{symbol}": {value!r},  # {given[symbol].meaning}' for symbol, value in equations.parameters.items()),
                "}",
                '"""The numbers of the problem."""',
            ]
        ),
        "\n".join(body),
        "def rhs(t, y, parameters=PARAMETERS):\n"
        f'    """{_FLOW[equations.finite_steps]} of the overlaps y (n,) or (n, points), for `scipy.integrate.solve_ivp`."""\n'
        "    return _evaluated(y, parameters)[1]",
        "def quantities(y, parameters=PARAMETERS):\n"
        '    """Loss, gradient, noise and what else has a name, at overlaps y (n,) or (n, points)."""\n'
        "    return _evaluated(y, parameters)[0]",
    ]
    if equations.pencil is not None:
        size = equations.pencil.rows
        lam = next(symbol for symbol in equations.latex if str(symbol) == "lam")
        matrix = equations.pencil.applyfunc(lambda entry: sympy.Poly(entry, lam))
        damping, force = (
            matrix.applyfunc(lambda entry, power=power: entry.coeff_monomial(lam**power)) for power in (1, 0)
        )

        def array(value: Expr) -> str:
            return f"numpy.array([{', '.join('[' + ', '.join(map(printer.doprint, row)) + ']' for row in value.tolist())}])"

        blocks.append(
            "\n".join(
                [
                    "def search_phase(parameters=PARAMETERS):",
                    '    """C, D and the gradient\'s Gram matrix G at U = 0 and no overlap, and the `rates` of all modes, largest first."""',
                    parameters,
                    *assigned({"At the pretrained weights": equations.search}),
                    f"    damping = {array(damping)}",
                    f"    force = {array(force)}",
                    f"    one, none = numpy.eye({size}), numpy.zeros(({size}, {size}))",
                    "    rates = numpy.linalg.eigvals(numpy.block([[-damping, -force], [one, none]]))",
                    "    named = {",
                    *(f'        "{symbol}": {symbol},' for symbol in equations.search),
                    "    }",
                    '    return named | {"rates": rates[numpy.argsort(-rates.real)]}',
                ]
            )
        )
    return "\n\n".join(blocks[:4]) + "\n\n\n" + "\n\n\n".join(blocks[4:]) + "\n"
