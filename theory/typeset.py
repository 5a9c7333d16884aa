r"""The closed equations as a LaTeX document, which needs amsmath, geometry and longtable alone.

Importing this module imports SymPy.
"""

import re
from typing import Any

import sympy
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import precedence_traditional

from theory.printed import broken, described, groups_of
from theory.symbolic import ClosedEquations, Group
from theory.tilting import Expr

_WIDTH = 80.0
"""How many letters a line of an equation has at most, where it can be broken."""

_BRACES = 100
"""No line is broken in braces, which count as so many brackets."""

_WIDE = 40
"""The width of a numerator whose sums stand behind the fraction."""

_SCRIPT = 0.7
"""The width of a letter in an index."""

_PREAMBLE = r"""\documentclass[a4paper]{article}
\usepackage{amsmath,longtable}
\usepackage[margin=2cm]{geometry}
\allowdisplaybreaks
\setlength{\parindent}{0pt}
\begin{document}
"""

_MODEL = r"""The student $\hat y = \sum_k a_k\sigma(w_k\cdot x)$ learns the teacher
$y = \sum_j b_j\phi(t_j\cdot x) + \sqrt\Delta\,z$ from inputs $x \sim \mathcal N(0, I_d)$ by one-pass SGD on
$(\hat y - y)^2/2$. Its weights are $W = W^0 + \kappa UV$ with $W^0$ at rest, U of K rows and r columns, and V of r rows
$v_a$. The learning rate of V is $\eta$, that of U is $\chi\eta$, and time is $\eta$ times the number of steps. The
equations hold for $d\to\infty$ and $\eta\to0$ at a fixed noise scale $\theta = \eta d/B$, B the size of a batch.
"""

_ABOUT = {
    "Covariances of the preactivations": r"""The preactivations $w_k\cdot x$ and $t_j\cdot x$ are jointly Gaussian with the
covariances $Q = WW^T$, $M = WT^T$ and $P = TT^T$.""",
    "Loss and its gradient": r"""$\ell$ is the population loss $\frac12E[(\hat y - y)^2]$ without the labels' noise
$\Delta/2$, and its gradient is $\nabla_W\ell = DW - CT$.""",
    "Noise": r"""N is the covariance $E[g_kg_l]$ of the amplitudes $g_k = a_k(\hat y - y)\sigma'(w_k\cdot x)$ of one
sample's gradient.""",
    "Overlaps of the gradient, growth of the rows": r"""With $G = DW - CT$, $H^t = GT^T$, $H^w = G(W^0)^T$, $J = GV^T$ and
$\mathcal G = GG^T$, as far as they have names. Rows of unit length would grow at the rate $h_a$, or in one step to
the squared length $L_a$, if they were not rescaled.""",
}

_TILTED = r"""\medskip
$\Lambda_{ij\dots}$ is $\det(1 + 2wS)$, S the covariance of all preactivations, where the diagonal matrix w adds up the
factors $e^{-w_ix_i^2}$ that stand in its index: one for every $\sigma'$, or erf, of the unit (a star marks teachers).
$\Lambda^{ij\dots}_{kl}/\Lambda_{ij\dots}$ is the covariance of k and l that is tilted by these factors,
$(S^{-1} + 2w)^{-1}_{kl}$.
"""


class _Printer(LatexPrinter):
    """Prints an arcsin, and sums in a wide numerator or one with fractions, behind the fraction, where lines can be broken."""

    def _print_Mul(self, expr: Any) -> str:
        behind = [factor for factor in expr.args if isinstance(factor, sympy.asin)]
        numerator, denominator = sympy.fraction(expr / sympy.Mul(*behind))
        if denominator != 1:
            latex = super().doprint(numerator)
            if r"\frac" in latex or width(latex) > _WIDE:
                behind += [factor for factor in expr.args if factor.is_Add]
        if not behind:
            return super()._print_Mul(expr)
        level = precedence_traditional(expr)
        front = self.parenthesize(expr / sympy.Mul(*behind), level, strict=True)
        return " ".join([front, *(self.parenthesize(factor, level) for factor in behind)])


def as_latex(equations: ClosedEquations) -> str:
    """A document with the model, the meanings and values of all symbols, and every equation, in lines that fit an A4 page."""
    student, teacher = equations.problem.student.name, equations.problem.teacher.name
    names = {name: rf"\verb|{link}|" for name, link in ((r"\sigma", student), (r"\phi", teacher))}
    parts = [
        f"% Closed equations of {described(equations)}. Made by `searchphase equations`.",
        _PREAMBLE,
        r"\section*{Closed equations of a LoRA adapter}",
        _MODEL + "Here " + ", ".join(f"${symbol}$ is {link}" for symbol, link in names.items()) + ".",
        r"\section*{Symbols}",
        _table(equations),
    ]
    groups = groups_of(equations)
    for title, group in groups.items():
        parts += [rf"\section*{{{title}}}", _ABOUT[title], _aligned(equations, group)]
    if any(str(symbol).startswith("Lambda") for symbol in equations.definitions):
        parts.append(_TILTED)
    parts += _flow(equations) + _search(equations)
    return "\n".join([*parts, r"\end{document}", ""])


def _table(equations: ClosedEquations) -> str:
    """The table of all symbols that are given."""
    rows = []
    for symbol, some in equations.given.items():
        value = "" if some.value is None else f"${_number(some.value)}$"
        rows.append(rf"${equations.latex[symbol]}$ & {some.meaning.replace('*', 'times')} & {value} \\")
    head = [r"\begin{longtable}{lll}", r"symbol & meaning & value \\", r"\hline", r"\endhead"]
    return "\n".join([*head, *rows, r"\end{longtable}"])


def _number(value: float) -> str:
    """A number with up to six digits."""
    digits, _, exponent = f"{value:.6g}".partition("e")
    return digits.replace("inf", r"\infty") + (rf" \times 10^{{{int(exponent)}}}" if exponent else "")


def _flow(equations: ClosedEquations) -> list[str]:
    """The section of the flow, or of one step."""
    if equations.finite_steps:
        title, mark = "One step", r"\\Delta \g<0>/\\eta"
        about = r"""A step of the learning rate $\eta$ changes the overlaps, in the mean, by $\Delta$. Rows of unit length
are rescaled to it exactly."""
    else:
        title, mark, about = "Flow", r"\\dot{\1}\2", "The dot is the derivative with respect to time."
    sides = {
        re.sub(r"^([A-Za-z]+)(.*)$", mark, equations.latex[symbol]): value for symbol, value in equations.flow.items()
    }
    return [rf"\section*{{{title}}}", about, _align(equations, sides)]


def _search(equations: ClosedEquations) -> list[str]:
    """The section of the search phase."""
    if equations.pencil is None:
        return []
    one = equations.pencil.rows == 1
    about = r"""Linearised at $U = 0$ and rows of V that have no overlap with $W^0$ and T. With $g = D^0W^0 - C^0T$ and
$\mathcal G^0 = gg^T$, every row of V with its column u of U has the modes
$\lambda^2u + \lambda\chi\kappa^2D^0u - \chi\kappa^2\mathcal G^0u = 0$"""
    about += (
        r", of which $\lambda_+$ grows."
        if one
        else r" at the rates $\lambda$ for which the matrix in front of u is singular."
    )
    return [r"\section*{Search phase}", about, _aligned(equations, equations.search)]


def _aligned(equations: ClosedEquations, group: Group) -> str:
    """The equations of a group."""
    return _align(equations, {equations.latex[symbol]: value for symbol, value in group.items()})


def _align(equations: ClosedEquations, sides: dict[str, Expr]) -> str:
    """Numbered equations, by their left sides."""
    printer = _Printer({"symbol_names": equations.latex, "inv_trig_style": "full"})
    lines = []
    for left, value in sides.items():
        text = _unpaired(printer.doprint(value))
        right = broken(text, _WIDTH - width(left), {"(": 1, ")": -1, "{": _BRACES, "}": -_BRACES}, width)
        lines.append(" \\notag \\\\\n&\\quad ".join([f"{left} &= {right[0]}", *right[1:]]))
    return "\\begin{align}\n" + " \\\\\n".join(lines) + "\n\\end{align}"


def _unpaired(latex: str) -> str:
    r"""The formula with brackets that need not be closed on the same line: none outside braces that begins with `\left`."""
    found, depth, opened, sizes = [], 0, [], {False: r"\bigl", True: r"\Bigl"}
    pieces = re.split(r"(\\left\(|\\right\)|\\left\[|\\right\]|[{}])", latex)
    for place, piece in enumerate(pieces):
        depth += (piece == "{") - (piece == "}")
        found.append(piece)
        if depth == 0 and piece in (r"\left(", r"\left["):
            opened.append(place)
        elif depth == 0 and piece in (r"\right)", r"\right]") and opened:
            start = opened.pop()
            left = sizes[r"\frac" in "".join(pieces[start:place])]
            found[start] = left + pieces[start][-1]
            found[place] = left[:-1] + "r" + piece[-1]
    return "".join(found)


def width(latex: str) -> float:
    r"""About how many letters wide a formula is.

    >>> width(r"a^{2} + \\frac{b}{c}")
    5.7
    """
    text = re.sub(r"\\(left|right|[bB]ig[lr])|\\[,;! ]|\\q?quad", "", latex).replace(r"\arcsin", "arcsin")
    text = re.sub(r"\\(?!frac|sqrt|dot)[A-Za-z]+", "x", text)
    total, scripts = text, 0.0
    while "{" in total:
        before = total
        scripts += sum(len(inner) for inner in re.findall(r"[_^]\{([^{}]*)\}", total)) * _SCRIPT
        total = re.sub(r"[_^]\{[^{}]*\}", "", total)
        total = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", lambda match: max(match.groups(), key=len), total)
        total = re.sub(r"\\(sqrt|dot)\{([^{}]*)\}", r"x\2", total)
        if total == before:
            total = re.sub(r"\{([^{}]*)\}", r"\1", total, count=1)
    return round(len(total.replace(" ", "")) + 0.5 * total.count(" ") + scripts, 1)
