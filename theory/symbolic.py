r"""The closed equations in symbols, for polynomials, erf and sums of both: what [`odes.flow`][] computes, to be read and printed.

The links, the numbers of units, the rank and what is trained shape the equations; all numbers of the problem stay symbols. The fixed
directions are the teachers $t_j$ and the pretrained rows $w^0_k$, with the overlaps P, $M^0$ and $Q^0$ (1, $\rho c$ and $\rho^2$ of a
single-index problem), so that a row $v_a$ of the adapter has the overlaps $m_{aj} = v_a\cdot t_j$ and $s_{ak} = v_a\cdot w^0_k$.

Importing this module imports SymPy, which the rest of `theory` does not need; `theory.printed` prints what it derives.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import sympy

from odes import Overlaps, Problem
from odes.arguments import ArgumentError
from theory.tilting import Averages, Expr, Function, Gaussians, derivative, function_of

MOST_UNITS = 5
"""The largest number K + P of students and teachers whose equations are derived."""

MOST_OVERLAPS = 50
"""The largest number of overlaps in the state."""

MOST_DEGREE = 16
"""The largest degree of a link times K + P."""

MOST_TERMS = 3000
"""The largest number of terms that the loss, its gradient and the noise may have."""

_SHORT = 4
"""An expression of up to so many terms stands where it is used; a longer one gets a name."""

Group = dict[Any, Expr]
"""Symbols and the expressions that they stand for, which hold earlier symbols only."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What a symbol that is given means, and its value if it is a number of the problem and no overlap."""

    meaning: str
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class ClosedEquations:
    r"""The closed equations of a problem in symbols.

    - `problem`; `finite_steps`: whether they are those of one SGD step, $\Delta/\eta$, or its limit, the time derivative;
    - `given`: the symbols of the problem's numbers and of the overlaps; `latex`: the names of all symbols in LaTeX;
    - `state`: the symbols of the overlaps, in the order U, m, s, R, a; lengths of rows that are normalised are 1, and left out;
    - `covariances`: Q and M;
    - `gradient`: the loss, C and D ($\nabla_W\ell = DW - CT$), and the readouts' gradient where they are trained;
    - `noise`: N, empty where θ = 0;
    - `overlaps`: what is named of the gradient's overlaps $H^t = GT^T$, $H^w = GW_0^T$, $J = GV^T$ with $G = DW - CT$, and how rows grow;
    - `flow`: the derivative of every overlap, or its change;
    - `search`: C, D and $\mathcal G = gg^T$, $g = DW_0 - CT$, at U = 0 and no overlap, and for one student the `rate` $\lambda_+$;
    - `pencil` (K, K): $\lambda^2 + \lambda\chi\kappa^2D - \chi\kappa^2\mathcal G$; its determinant vanishes at the rates λ of the search.

    Every group holds symbols that are given or defined in an earlier place. The search is empty and its pencil None where readouts are
    trained or weights decay, since that phase does not start at a fixed point.
    """

    problem: Problem
    finite_steps: bool
    given: dict[Any, Given]
    latex: dict[Any, str]
    state: tuple[Any, ...]
    covariances: Group
    gradient: Group
    noise: Group
    overlaps: Group
    flow: Group
    search: Group
    pencil: Expr | None

    @property
    def definitions(self) -> Group:
        """All that the flow is made of, in the order in which it is to be computed."""
        return self.covariances | self.gradient | self.noise | self.overlaps

    @property
    def parameters(self) -> dict[Any, float]:
        """The symbols of the problem's numbers and their values."""
        return {symbol: some.value for symbol, some in self.given.items() if some.value is not None}

    def expanded(self, expression: Expr) -> Expr:
        """An expression in what is given alone."""
        for symbol, value in reversed((self.definitions | self.search).items()):
            expression = expression.subs(symbol, value)
        return expression

    def values_of(self, overlaps: Overlaps) -> np.ndarray:
        """The values of `state` at overlaps of the problem, or their derivatives if these are the derivatives of overlaps."""
        problem = self.problem
        arrays = (
            overlaps.up,
            overlaps.cross @ problem.target.T,
            overlaps.cross @ problem.frozen.T,
            overlaps.down_gram[np.triu_indices(problem.adapter.rank)],
            problem.readout if overlaps.readout is None else overlaps.readout,
        )
        values = np.concatenate([np.ravel(array) for array in arrays])
        return values[[place for place, symbol in enumerate(_Symbols(problem).overlaps) if symbol in self.state]]


def closed_equations(problem: Problem, *, finite_steps: bool = False) -> ClosedEquations:
    r"""The closed equations of a problem's links, numbers of units, rank and way of training, in symbols.

    They are those of [`odes.flow`][], or with `finite_steps` those of [`odes.mean_change`][]:

    $$\dot U = -\chi\kappa J,\quad (\dot m, \dot s) = -\kappa U^T(H^t, H^w),\quad \dot R = -\kappa(U^TJ + J^TU) + \theta\kappa^2U^TNU,$$

    with what normalised rows, rows at rest, weight decay and trained readouts add. Numbers whose effect is a whole term, θ, weight decay
    and the readouts' learning rate, are left out where they are 0.

    >>> from odes import Adapter
    >>> equations = closed_equations(Problem.single_index("linear", strength=0.5, adapter=Adapter(normalized=False)))
    >>> equations.state
    (u, m, s, R)
    >>> equations.flow[equations.state[0]]
    chi*kappa*(C*m - D*(R*kappa*u + s))
    >>> equations.gradient
    {loss: -M*a*b + Q*a**2/2 + b**2/2, C: a*b, D: a**2}

    **Raises** ArgumentError for other links than polynomials, erf and sums of these, and for equations that are too long to be read.
    """
    student, teacher = function_of(problem.student, "student"), function_of(problem.teacher, "teacher")
    _require_readable(problem, {"student": student, "teacher": teacher})
    return _Derivation(problem, student, teacher, finite_steps).result()


def _require_readable(problem: Problem, links: dict[str, Function]) -> None:
    """Raises ArgumentError for sizes whose equations would be too long."""
    units, teachers = problem.units
    if units + teachers > MOST_UNITS:
        raise ArgumentError(
            None,
            f"the equations of K = {units} students and P = {teachers} teachers are too long to read: K + P must be at most {MOST_UNITS}",
        )
    most = MOST_DEGREE // (units + teachers)
    for name, link in links.items():
        degree = max((n for n, _, _ in link), default=0)
        if degree > most:
            raise ArgumentError(
                name,
                f"must have a degree of at most {most} where K + P = {units + teachers}, or equations are too long, but has {degree}",
            )
    rank = problem.adapter.rank
    overlaps = rank * (2 * units + teachers) + rank * (rank + 1) // 2
    if overlaps > MOST_OVERLAPS:
        raise ArgumentError(
            "rank",
            f"must be smaller for equations that can be read: {rank} makes {overlaps} overlaps, {MOST_OVERLAPS} at most are allowed",
        )


class _Symbols:
    """The symbols of a problem: its numbers and overlaps as matrices of symbols, their names in LaTeX, meanings and values."""

    def __init__(self, problem: Problem):
        self.latex: dict[Any, str] = {}
        self.given: dict[Any, Given] = {}
        units, teachers = problem.units
        rank, adapter, sgd = problem.adapter.rank, problem.adapter, problem.sgd
        directions = np.concatenate([problem.target, problem.frozen])
        gram = directions @ np.asarray(problem.frame_gram) @ directions.T
        self.P, self.M0, self.Q0 = self.fixed(problem, gram)
        self.a = self.vector("a", "a", "readout of student {}", problem.readout)
        self.b = self.vector("b", "b", "readout of teacher {}", problem.teacher_readout)
        self.kappa = self.number("kappa", r"\kappa", "LoRA's scale over the rank", adapter.kappa)
        self.chi = self.number("chi", r"\chi", "learning rate of U over that of V", adapter.lr_ratio)
        self.theta = self.number(
            "theta", r"\theta", "noise scale, learning rate * dimension / batch size", sgd.noise_scale
        )
        self.eta = self.number("eta", r"\eta", "learning rate", sgd.learning_rate)
        self.Delta = self.number("Delta", r"\Delta", "variance of the noise on the labels", sgd.label_noise)
        self.chi_a = self.number(
            "chi_a", r"\chi_a", "learning rate of the readouts over that of V", sgd.readout_lr_ratio
        )
        self.decay = self.number("decay", r"\lambda_{\mathrm{wd}}", "weight decay", adapter.weight_decay)
        self.U = self.matrix("u", "u", (units, rank), "entry of U for student {} and row {}")
        self.m = self.matrix("m", "m", (rank, teachers), "overlap of row {} with target {}")
        self.s = self.matrix("s", "s", (rank, units), "overlap of row {} with pretrained weights {}")
        rows = self.matrix("R", "R", (rank, rank), "overlap of rows {} and {}", symmetric=True)
        self.overlaps = (*self.U, *self.m, *self.s, *_upper(rows), *self.a)
        kept = [bool(trained) and adapter.normalized for trained in adapter.trained]
        self.lengths = {rows[a, a] for a in range(rank) if kept[a]}
        self.R = _matrix(rank, rank, lambda a, b: sympy.Integer(1) if a == b and kept[a] else rows[a, b])

    def fixed(self, problem: Problem, gram: np.ndarray) -> tuple[Expr, Expr, Expr]:
        """P, M0 and Q0, of which a target of length 1 and pretrained weights that are not 0 leave strength and alignment."""
        teachers = len(problem.target)
        if problem.is_single_index and abs(gram[0, 0] - 1) < 1e-12 and gram[1, 1] > 0:
            rho = self.number("rho", r"\rho", "strength of the pretrained weights", problem.strength)
            c = self.number("c", "c", "their alignment with the target", problem.alignment)
            return sympy.Matrix([1]), sympy.Matrix([rho * c]), sympy.Matrix([rho**2])
        P, M0, Q0 = gram[:teachers, :teachers], gram[teachers:, :teachers], gram[teachers:, teachers:]
        return (
            self.matrix("P", "P", P.shape, "overlap of targets {} and {}", P, symmetric=True),
            self.matrix("M0", "M^0", M0.shape, "overlap of pretrained weights {} and target {}", M0),
            self.matrix("Q0", "Q^0", Q0.shape, "overlap of pretrained weights {} and {}", Q0, symmetric=True),
        )

    def symbol(self, name: str, latex: str, place: tuple[int, ...] = (), shape: tuple[int, ...] = ()) -> Expr:
        """A symbol; an entry of an array has indices, from 1, along the axes that are longer than 1."""
        index = "".join(str(i + 1) for i, n in zip(place, shape, strict=True) if n > 1)
        symbol = sympy.Symbol(f"{name}{'_' if index and name[-1].isdigit() else ''}{index}", real=True)
        self.latex[symbol] = f"{latex}_{{{index}}}" if index else latex
        return symbol

    def number(self, name: str, latex: str, meaning: str, value: Any) -> Expr:
        """The symbol of a number of the problem."""
        symbol = self.symbol(name, latex)
        self.given[symbol] = Given(meaning, float(value))
        return symbol

    def vector(self, name: str, latex: str, meaning: str, values: Any) -> Expr:
        """A column of symbols of numbers."""
        return self.matrix(name, latex, (len(values), 1), meaning, np.asarray(values)[:, None])

    def matrix(
        self,
        name: str,
        latex: str,
        shape: tuple[int, int],
        meaning: str = "",
        values: Any = None,
        *,
        symmetric: bool = False,
    ) -> Expr:
        """A matrix of symbols, which are given if they have a meaning, and are numbers if they have values."""

        def entry(i: int, j: int) -> Expr:
            place = (min(i, j), max(i, j)) if symmetric else (i, j)
            symbol = self.symbol(name, latex, place, shape)
            if meaning:
                words = meaning.format(*(k + 1 for k in place))
                self.given[symbol] = Given(words, None if values is None else float(values[place]))
            return symbol

        return _matrix(*shape, entry)


class _Derivation:
    """Derives the equations of one problem, group by group."""

    def __init__(self, problem: Problem, student: Function, teacher: Function, finite_steps: bool):
        self.problem, self.finite_steps, self.symbols = problem, finite_steps, _Symbols(problem)
        self.units, self.teachers = problem.units
        self.links = [student] * self.units + [teacher] * self.teachers
        self.slopes = [derivative(link) for link in self.links]
        self.readouts = [*self.symbols.a, *(-b for b in self.symbols.b)]
        self.group: Group = {}
        self.terms = 0

    def result(self) -> ClosedEquations:
        problem, symbols = self.problem, self.symbols
        noisy = float(problem.sgd.noise_scale) > 0
        still = not problem.sgd.trains_readouts and float(problem.adapter.weight_decay) == 0
        search, pencil = self.search() if still else ({}, None)
        covariances, Q, M = self.covariances()
        averages = Averages(_joint(Q, M, symbols.P), self.tilted)
        gradient, C, D, by_readout = self.gradient(averages)
        noise, N = self.noise(averages) if noisy else ({}, sympy.zeros(self.units))
        overlaps, flow = self.flow(Q, M, C, D, N, by_readout)
        groups = [covariances, gradient, noise, overlaps, flow, search]
        used = set(flow).union(*(value.free_symbols for group in groups for value in group.values()))
        given = {symbol: some for symbol, some in symbols.given.items() if symbol in used}
        for symbol in set(given) & set(flow):
            given[symbol] = Given(given[symbol].meaning)
        known = {
            *given,
            *(symbol for group in groups for symbol in group),
            *([] if pencil is None else pencil.free_symbols),
        }
        latex = {symbol: name for symbol, name in symbols.latex.items() if symbol in known}
        return ClosedEquations(
            problem=problem,
            finite_steps=self.finite_steps,
            given=given,
            latex=latex,
            state=tuple(flow),
            covariances=covariances,
            gradient=gradient,
            noise=noise,
            overlaps=overlaps,
            flow=flow,
            search=search,
            pencil=pencil,
        )

    def start(self) -> Group:
        """A new group, to which what is named from now on belongs."""
        self.group = {}
        return self.group

    def named(self, symbol: Expr, value: Expr) -> Expr:
        """The symbol, which is defined thereby; the value itself if it is a number."""
        self.group[symbol] = sympy.factor_terms(value, sign=False)
        return value if value.is_number else symbol

    def short(self, symbol: Expr, value: Expr) -> Expr:
        """The value where it is short, else the symbol, which is defined thereby."""
        return value if len(sympy.Add.make_args(sympy.expand(value))) <= _SHORT else self.named(symbol, value)

    def matrix(self, name: str, latex: str, value: Expr, *, symmetric: bool = False, short: bool = False) -> Expr:
        """A matrix whose entries are defined, or stand where they are used if they are short."""
        symbols = self.symbols.matrix(name, latex, value.shape, symmetric=symmetric)
        define = self.short if short else self.named
        found = {symbol: define(symbol, entry) for symbol, entry in zip(symbols, value, strict=True)}
        return symbols.applyfunc(found.__getitem__)

    def tilted(self, gaussians: Gaussians, place: tuple[int, ...], value: Expr) -> Expr:
        """The name of what the averages are made of, after the units that have Gaussian factors."""
        words, latex = _side_by_side(self.factor(i, w) for i, w in gaussians)
        if not place:
            return self.short(self.symbols.symbol(f"Lambda_{words}", rf"\Lambda_{{{latex}}}"), value)
        at, at_latex = _side_by_side(self.unit(i) for i in place)
        return self.short(self.symbols.symbol(f"Lambda_{words}_{at}", rf"\Lambda^{{{latex}}}_{{{at_latex}}}"), value)

    def unit(self, i: int) -> tuple[str, str]:
        """What a unit is called: students by their numbers, teachers by theirs with a star."""
        if i < self.units:
            return str(i + 1), str(i + 1)
        return f"{i - self.units + 1}t", f"{i - self.units + 1}^*"

    def factor(self, i: int, weight: Expr) -> tuple[str, str]:
        """What a Gaussian factor of a unit is called: as the unit, with primes if its link has several erf and this is not the first."""
        scales = [s for _, s, _ in self.links[i] if s != 0]
        words, latex = self.unit(i)
        primes = [s**2 for s in scales].index(weight)
        return words + "p" * primes, latex + "'" * primes

    def covariances(self) -> tuple[Group, Expr, Expr]:
        r"""$Q = Q^0 + \kappa(s^TU^T + Us) + \kappa^2URU^T$ and $M = M^0 + \kappa Um$."""
        group, symbols = self.start(), self.symbols
        U, kappa, linear = symbols.U, symbols.kappa, symbols.U * symbols.s
        Q = symbols.Q0 + kappa * (linear + linear.T) + kappa**2 * (U * symbols.R * U.T).applyfunc(sympy.expand)
        M = symbols.M0 + kappa * U * symbols.m
        return group, self.matrix("Q", "Q", Q, symmetric=True), self.matrix("M", "M", M)

    def mean(self, averages: Averages, *factors: tuple[int, Function]) -> Expr:
        """An average. **Raises** ArgumentError when there are too many terms in all."""
        value = averages.mean(*factors)
        self.terms += len(sympy.Add.make_args(value))
        if self.terms > MOST_TERMS:
            raise ArgumentError(
                None,
                f"the equations have more than {MOST_TERMS} terms, too many to read: take fewer units or simpler links",
            )
        return value

    def moments(self, averages: Averages) -> tuple[Expr, Expr, Expr, Expr]:
        r"""The loss, C, D and the readouts' gradient, by readouts; with $e = \sum_ic_if_i$, c = (a, -b), as docs/theory.md has them.

        $\ell = \frac12\sum_{ij}c_ic_jE[f_if_j]$, $C_{kj} = a_kb_jE[\sigma'_k\phi'_j]$,
        $D_{kl} = a_ka_lE[\sigma'_k\sigma'_l] + \delta_{kl}a_k\sum_ic_iE[\sigma''_kf_i]$,
        $\partial\ell/\partial a_k = \sum_ic_iE[\sigma_kf_i]$.
        """
        factors, students, every = self.readouts, range(self.units), range(len(self.links))
        links, slopes = list(enumerate(self.links)), list(enumerate(self.slopes))
        bends = [(k, derivative(self.slopes[k])) for k in students]
        pairs = itertools.combinations_with_replacement(every, 2)
        value = {(i, j): self.mean(averages, links[i], links[j]) for i, j in pairs}
        loss = _by_readouts((factors[i] * factors[j], value[i, j] / (1 + (i == j))) for i, j in value)

        def C(k: int, j: int) -> Expr:
            i = self.units + j
            return _by_readouts([(-factors[k] * factors[i], self.mean(averages, slopes[k], slopes[i]))])

        def D(k: int, l: int) -> Expr:
            terms = [(factors[k] * factors[l], self.mean(averages, slopes[k], slopes[l]))]
            if k == l:
                terms += [(factors[k] * factors[i], self.mean(averages, bends[k], links[i])) for i in every]
            return _by_readouts(terms)

        by_readout = [_by_readouts((factors[i], value[min(i, k), max(i, k)]) for i in every) for k in students]
        return (
            loss,
            _matrix(self.units, self.teachers, C),
            _matrix(self.units, self.units, D),
            sympy.Matrix(by_readout),
        )

    def gradient(self, averages: Averages) -> tuple[Group, Expr, Expr, Expr]:
        """The moments, named; the readouts' gradient is 0 where they rest."""
        group, (loss, C, D, by_readout) = self.start(), self.moments(averages)
        self.named(self.symbols.symbol("loss", r"\ell"), loss)
        C, D = self.matrix("C", "C", C), self.matrix("D", "D", D, symmetric=True)
        if not self.problem.sgd.trains_readouts:
            return group, C, D, sympy.zeros(self.units, 1)
        return group, C, D, self.matrix("loss_a", r"(\partial_a\ell)", by_readout)

    def noise(self, averages: Averages) -> tuple[Group, Expr]:
        r"""$N_{kl} = a_ka_l\big(\sum_{ij}c_ic_jE[f_if_j\sigma'_k\sigma'_l] + \Delta E[\sigma'_k\sigma'_l]\big)$, by readouts."""
        group, factors, links = self.start(), self.readouts, list(enumerate(self.links))
        pairs = list(itertools.combinations_with_replacement(range(len(links)), 2))

        def N(k: int, l: int) -> Expr:
            slopes = [(k, self.slopes[k]), (l, self.slopes[l])]
            terms = [(self.symbols.Delta, self.mean(averages, *slopes))]
            terms += [
                (factors[i] * factors[j], (2 - (i == j)) * self.mean(averages, links[i], links[j], *slopes))
                for i, j in pairs
            ]
            return factors[k] * factors[l] * _by_readouts(terms)

        upper = {place: N(*place) for place in itertools.combinations_with_replacement(range(self.units), 2)}
        value = _matrix(self.units, self.units, lambda k, l: upper[min(k, l), max(k, l)])
        return group, self.matrix("N", "N", value, symmetric=True)

    def flow(self, Q: Expr, M: Expr, C: Expr, D: Expr, N: Expr, by_readout: Expr) -> tuple[Group, Group]:
        """What the flow names, and the derivatives of the overlaps or their changes in one step over η (see [`odes.mean_change`][])."""
        group, symbols, adapter = self.start(), self.symbols, self.problem.adapter
        kappa, U, m, s, R = symbols.kappa, symbols.U, symbols.m, symbols.s, symbols.R
        trained = sympy.diag(*(int(row) for row in adapter.trained))
        decay = (symbols.decay if float(adapter.weight_decay) else 0) * trained
        along_targets = self.matrix("Ht", "H^t", D * M - C * symbols.P, short=True)
        pretrained = D * (symbols.Q0 + kappa * U * s) - C * symbols.M0.T
        along_pretrained = self.matrix("Hw", "H^w", pretrained, short=True)
        along_rows = self.matrix("J", "J", D * (s.T + kappa * U * R) - C * m.T, short=True)
        U = U * trained
        d_U = symbols.chi * kappa * -along_rows * trained
        d_m, d_s = kappa * U.T * -along_targets - decay * m, kappa * U.T * -along_pretrained - decay * s
        pull = U.T * -along_rows
        d_R = kappa * (pull + pull.T) - decay * R - R * decay
        d_R += symbols.theta * kappa**2 * (U.T * N * U).applyfunc(sympy.expand)
        if self.finite_steps:
            square = self.matrix("G", r"\mathcal G", _square(C, D, Q, M, symbols.P), symmetric=True, short=True)
            crossed = -kappa * pull * decay
            d_R += symbols.eta * (kappa**2 * U.T * square * U + crossed + crossed.T + decay * R * decay)
        d_m, d_s, d_R = self.kept(d_m, d_s, d_R)
        derivatives = [*d_U, *d_m, *d_s, *_upper(d_R), *(-symbols.chi_a * by_readout)]
        changes = zip(symbols.overlaps, derivatives, strict=True)
        left_out = symbols.lengths | (set() if self.problem.sgd.trains_readouts else set(symbols.a))
        return group, {
            symbol: sympy.factor_terms(change, sign=False) for symbol, change in changes if symbol not in left_out
        }

    def kept(self, d_m: Expr, d_s: Expr, d_R: Expr) -> tuple[Expr, Expr, Expr]:
        r"""The derivatives, or changes, of what rows that keep their length have.

        With $h_a = \dot R_{aa}/2$, $h_aX_a$ is taken off $\dot X_a$ and $(h_a + h_b)R_{ab}$ off $\dot R_{ab}$; in one step X + ΔX is
        divided by $\sqrt{L_a}$ and R + ΔR by $\sqrt{L_aL_b}$, with $L_a = 1 + \Delta R_{aa}$.
        """
        symbols, rank = self.symbols, self.problem.adapter.rank
        eta, keeps = symbols.eta, [sympy.Integer(int(self.finite_steps))] * rank
        for row in range(rank):
            if symbols.R[row, row] == 1:
                growth = 1 + eta * d_R[row, row] if self.finite_steps else d_R[row, row] / 2
                name = "L" if self.finite_steps else "h"
                keeps[row] = self.named(symbols.symbol(name, name, (row,), (rank,)), growth)

        def rescaled(change: Expr, value: Expr, *rows: int) -> Expr:
            if self.finite_steps:
                return ((value + eta * change) / sympy.prod(sympy.sqrt(keeps[row]) for row in rows) - value) / eta
            return change - sum(keeps[row] for row in rows) * value

        def of_rows(changes: Expr, values: Expr) -> Expr:
            return _matrix(rank, values.cols, lambda a, j: rescaled(changes[a, j], values[a, j], a))

        gram = _matrix(rank, rank, lambda a, b: rescaled(d_R[a, b], symbols.R[a, b], a, b))
        return of_rows(d_m, symbols.m), of_rows(d_s, symbols.s), gram

    def search(self) -> tuple[Group, Expr]:
        """C, D and the gradient's Gram matrix at w0, the rate of one student, and the matrix of the quadratic eigenvalue problem."""
        symbols = self.symbols
        _, C, D, _ = self.moments(Averages(_joint(symbols.Q0, symbols.M0, symbols.P)))
        group = self.start()
        C, D = self.matrix("C0", "C^0", C), self.matrix("D0", "D^0", D, symmetric=True)
        square = _square(C, D, symbols.Q0, symbols.M0, symbols.P)
        G = self.matrix("G0", r"\mathcal G^0", square, symmetric=True)
        speed, lam = symbols.chi * symbols.kappa**2, symbols.symbol("lam", r"\lambda")
        if self.units == 1:
            root = sympy.sqrt((speed * D[0]) ** 2 + 4 * speed * G[0])
            group[symbols.symbol("rate", r"\lambda_+")] = (root - speed * D[0]) / 2
        return group, sympy.eye(self.units) * lam**2 + speed * lam * D - speed * G


def _side_by_side(names: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Names and names in LaTeX, each in one word."""
    words, latex = "", ""
    for name, name_latex in names:
        words, latex = words + name, latex + name_latex
    return words, latex


def _by_readouts(terms: Iterable[tuple[Expr, Expr]]) -> Expr:
    """The sum of products of readouts and averages, ordered by the products."""
    total: dict[Any, Expr] = {}
    for product, average in terms:
        sign, product = (-1, -product) if product.could_extract_minus_sign() else (1, product)
        total[product] = total.get(product, 0) + sign * average
    return sympy.Add(*(product * _joined(average) for product, average in total.items()))


def _joined(average: Expr) -> Expr:
    """An average whose terms with the same square roots and arcsin are one fraction."""
    total: dict[Any, Expr] = {}
    for term in sympy.Add.make_args(average):
        root = sympy.Integer(1)
        for base, power in (factor.as_base_exp() for factor in sympy.Mul.make_args(term)):
            if isinstance(base, sympy.asin):
                root *= base
            elif not base.is_number and sympy.denom(power) == 2:
                root /= sympy.sqrt(base)
        total[root] = total.get(root, 0) + term / root
    fractions = {root: sympy.fraction(sympy.together(value)) for root, value in total.items() if root != 1}
    joined = (root * sympy.expand(numerator) / denominator for root, (numerator, denominator) in fractions.items())
    return sympy.Add(total.get(sympy.Integer(1), 0), *joined)


def _joint(Q: Expr, M: Expr, P: Expr) -> Expr:
    """The covariance of all preactivations."""
    return sympy.Matrix.vstack(sympy.Matrix.hstack(Q, M), sympy.Matrix.hstack(M.T, P))


def _square(C: Expr, D: Expr, Q: Expr, M: Expr, P: Expr) -> Expr:
    r"""$GG^T$ of $G = DW - CT$ where W and T have the covariances Q, M and P."""
    across = D * M * C.T
    return D * Q * D - across - across.T + C * P * C.T


def _matrix(rows: int, columns: int, entry: Callable[[int, int], Expr]) -> Expr:
    """The matrix of some entries."""
    return sympy.Matrix(rows, columns, [entry(i, j) for i, j in itertools.product(range(rows), range(columns))])


def _upper(square: Expr) -> list[Expr]:
    """The entries of a matrix's upper triangle."""
    return [square[i, j] for i, j in itertools.combinations_with_replacement(range(square.rows), 2)]
