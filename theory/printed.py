"""The closed equations as code: SymPy that builds them again, and a NumPy module that integrates them.

Importing this module imports SymPy.
"""

import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import sympy
from sympy.printing.numpy import NumPyPrinter
from sympy.printing.str import StrPrinter

from theory.symbolic import ClosedEquations, Group
from theory.tilting import Expr

_WIDTH = 110
"""How many characters a line of code has at most, where it can be broken."""

_DEEPEST = 4
"""So many brackets deep lines are broken at most."""

_FLOW = ("The time derivative", "The change in one SGD step, over the learning rate,")


def described(equations: ClosedEquations) -> str:
    """What the equations are of, in a line."""
    problem = equations.problem
    units, teachers = problem.units
    rows = "rows of unit length" if problem.adapter.normalized else "free rows"
    return (
        f"K = {units} student{'s' * (units > 1)} {problem.student.name}, P = {teachers} "
        f"teacher{'s' * (teachers > 1)} {problem.teacher.name}, rank {problem.adapter.rank}, {rows}"
    )


def groups_of(equations: ClosedEquations) -> dict[str, Group]:
    """What is defined before the flow, by title, as far as there is any."""
    groups = {
        "Covariances of the preactivations": equations.covariances,
        "Loss and its gradient": equations.gradient,
        "Noise": equations.noise,
        "Overlaps of the gradient, growth of the rows": equations.overlaps,
    }
    return {title: group for title, group in groups.items() if group}


def broken(
    text: str, width: float | int, brackets: dict[str, int], length: Callable[[str], float | int] = len
) -> list[str]:
    """The lines of an expression, broken before signs that are as little inside brackets as will do for the width.

    `brackets` says by how much a character leads into brackets, or out of them.

    >>> broken("a*(b + c) - d + e", 14, {"(": 1, ")": -1})
    ['a*(b + c) - d', '+ e']
    """
    chunks: list[str] = []
    for most in range(_DEEPEST + 1):
        chunks, depth = [""], 0
        for word in text.split(" "):
            if word in ("+", "-") and depth <= most and chunks[-1]:
                chunks.append(word)
            else:
                chunks[-1] += f" {word}" if chunks[-1] else word
            depth += sum(brackets.get(character, 0) for character in word)
        if all(length(chunk) <= width for chunk in chunks):
            break
    lines, left = [chunks[0]], width - length(chunks[0])
    for chunk in chunks[1:]:
        taken = length(chunk) + 1
        if taken <= left:
            lines[-1] += f" {chunk}"
            left -= taken
        else:
            lines.append(chunk)
            left = width - taken
    return lines


def _statement(start: str, code: str, end: str = "") -> str:
    """A line of code that holds an expression, in brackets over several lines where it is long."""
    if len(start) + len(code) + len(end) <= _WIDTH:
        return f"{start}{code}{end}"
    outer = " " * (len(start) - len(start.lstrip()))
    inner = outer + "    "
    lines = broken(code, _WIDTH - len(inner), {"(": 1, ")": -1})
    return "\n".join([f"{start}(", *(inner + line for line in lines), f"{outer}){end}"])


def _filled(words: str, indent: str) -> str:
    """Words in lines."""
    return textwrap.fill(
        words, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


class _SymPyPrinter(StrPrinter):
    """Prints expressions so that Python does not make floating point numbers of fractions."""

    def _print_Rational(self, expr: Any) -> str:
        return f"Rational({expr.p}, {expr.q})"


def as_sympy(equations: ClosedEquations) -> str:
    """SymPy code that builds the equations again when it is executed.

    It makes every symbol under its own name and, by symbols: `parameters`, the values of the problem's numbers; `definitions`, which
    hold earlier symbols alone; `flow`, the derivative of every overlap (its change in one step over the learning rate); `search`; and
    the matrix `pencil`, as in [`theory.symbolic.ClosedEquations`][].
    """
    printer: Any = _SymPyPrinter()

    def dictionary(name: str, groups: dict[str, Group]) -> str:
        lines = []
        for title, group in groups.items():
            lines += [f"    # {title}"] if title else []
            lines += [_statement(f"    {symbol}: ", printer.doprint(value), ",") for symbol, value in group.items()]
        return "\n".join([f"{name} = {{", *lines, "}"])

    names = [str(symbol) for symbol in equations.latex]
    symbols = "\n".join(
        [
            "(",
            _filled(", ".join(names) + ",", "    "),
            ") = symbols(",
            '    """',
            _filled(" ".join(names), "    "),
            '    """,',
            "    real=True,\n)",
        ]
    )
    blocks = [
        f'"""Closed equations of {described(equations)}.\n\nMade by `searchphase equations`: executed, it builds them again.\n"""',
        "from sympy import Matrix, Rational, asin, pi, sqrt, symbols",
        symbols,
        "# The values of the problem's numbers\n" + dictionary("parameters", {"": equations.parameters}),
        "# All that the flow is made of; every expression holds earlier symbols alone\n"
        + dictionary("definitions", groups_of(equations)),
        f"# {_FLOW[equations.finite_steps]} of every overlap\n" + dictionary("flow", {"": equations.flow}),
    ]
    if equations.pencil is not None:
        rows = [f"        [{', '.join(map(printer.doprint, row))}]," for row in equations.pencil.tolist()]
        blocks += [
            "# The search phase, at U = 0 and no overlap\n" + dictionary("search", {"": equations.search}),
            "\n".join(
                ["# Its determinant vanishes at the rates lam", "pencil = Matrix(", "    [", *rows, "    ]", ")"]
            ),
        ]
    return "\n\n".join(blocks) + "\n"


def as_python(equations: ClosedEquations) -> str:
    """A Python module that needs NumPy alone.

    `STATE` names the overlaps in a state y, `PARAMETERS` the problem's numbers, with their values; `rhs(t, y, parameters)` is what
    `scipy.integrate.solve_ivp` takes; `quantities(y, parameters)` gives the loss, C, D, N and whatever else has a name; for a problem
    with a linear search phase `search_phase(parameters)` gives its C, D, G and rates.
    """
    printer: Any = NumPyPrinter({"fully_qualified_modules": False})

    def assigned(groups: dict[str, Group]) -> list[str]:
        lines = []
        for title, group in groups.items():
            lines += [f"    # {title}"]
            lines += [_statement(f"    {symbol} = ", printer.doprint(value)) for symbol, value in group.items()]
        return lines

    def unpacked(symbols: Iterable[Expr], source: str) -> str:
        return f"    (\n{_filled(', '.join(map(str, symbols)) + ',', ' ' * 8)}\n    ) = {source}"

    def named(group: Group) -> list[str]:
        return [
            "    named = dict(",
            _filled(", ".join(f"{symbol}={symbol}" for symbol in group) + ",", " " * 8),
            "    )",
        ]

    def constant(name: str, brackets: str, entries: dict[Expr, str], meaning: str) -> str:
        lines = [f"    {entry},  # {equations.given[symbol].meaning}" for symbol, entry in entries.items()]
        return "\n".join([f"{name} = {brackets[0]}", *lines, brackets[1], f'"""{meaning}"""'])

    parameters = unpacked(equations.parameters, "(parameters[name] for name in PARAMETERS)")
    flow = equations.flow.items()
    numbers = {symbol: f'"{symbol}": {value!r}' for symbol, value in equations.parameters.items()}
    derivatives = [
        f"        # {symbol}\n{_statement('        ', printer.doprint(value), ',')}" for symbol, value in flow
    ]
    constants = [
        f'"""Closed equations of {described(equations)}.\n\nMade by `searchphase equations`.\n"""',
        "import numpy\nfrom numpy import arcsin, pi, sqrt",
        constant("STATE", "()", {symbol: f'"{symbol}"' for symbol in equations.state}, "The overlaps in a state y."),
        constant("PARAMETERS", "{}", numbers, "The numbers of the problem."),
    ]
    functions = [
        [
            "def _evaluated(y, parameters):",
            unpacked(equations.state, "y"),
            parameters,
            *assigned(groups_of(equations)),
            *named(equations.definitions),
            "    derivatives = [",
            *derivatives,
            "    ]",
            "    return named, numpy.stack(numpy.broadcast_arrays(*derivatives))",
        ],
        [
            "def rhs(t, y, parameters=PARAMETERS):",
            f'    """{_FLOW[equations.finite_steps]} of the overlaps y (n,) or (n, points), for `scipy.integrate.solve_ivp`."""',
            "    return _evaluated(y, parameters)[1]",
        ],
        [
            "def quantities(y, parameters=PARAMETERS):",
            '    """Loss, gradient, noise and what else has a name, at overlaps y (n,) or (n, points)."""',
            "    return _evaluated(y, parameters)[0]",
        ],
    ]
    if equations.pencil is not None:
        functions.append(
            [
                "def search_phase(parameters=PARAMETERS):",
                '    """C, D and the gradient\'s Gram matrix G at U = 0 and no overlap, and the `rates` of all modes, largest first."""',
                parameters,
                *assigned({"At the pretrained weights": equations.search}),
                *named(equations.search),
                *_companion(equations.pencil, printer),
                "    rates = numpy.linalg.eigvals(companion)",
                "    return named | dict(rates=rates[numpy.argsort(-rates.real)])",
            ]
        )
    return "\n\n".join(constants) + "\n\n\n" + "\n\n\n".join("\n".join(lines) for lines in functions) + "\n"


def _companion(pencil: Expr, printer: Any) -> list[str]:
    r"""The matrix $\begin{pmatrix}-D&G\\1&0\end{pmatrix}$ whose eigenvalues are those of the pencil $\lambda^2 + \lambda D - G$."""
    lam, size = sympy.Symbol("lam", real=True), pencil.rows
    lines = ["    companion = numpy.zeros(({0}, {0}))".format(2 * size)]
    for i, j in ((i, j) for i in range(size) for j in range(size)):
        for power, column in ((1, j), (0, size + j)):
            value = -sympy.expand(pencil[i, j]).coeff(lam, power)
            lines.append(_statement(f"    companion[{i}, {column}] = ", printer.doprint(value)))
        lines += [f"    companion[{size + i}, {i}] = 1"] if i == j else []
    return lines
