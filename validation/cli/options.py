"""The command line's options: one dataclass per group of flags, shared by the commands that take them."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from odes import SGD, Activation, Adapter, Escape, Family, Problem, Transfer, activation, read_problem, read_transfer
from odes.arguments import ArgumentError
from odes.problem import mixture_place
from theory import largest_noise_scale, search_phase
from validation.cli.output import OutputOptions
from validation.cli.values import (
    Numbers,
    OptionalFloat,
    OptionalPath,
    OptionalText,
    check,
    check_seed,
    positive,
)
from validation.simulation.sweeps import Place

_LARGEST_RANK = 4096
_LONG = 10.0
"""Runs shorter than so many time scales of the search may just have ended too early."""


@contextlib.contextmanager
def named(rename: dict[str, str]) -> Iterator[None]:
    """Gives an ArgumentError from inside the name of the flag that it is about, where that is not the argument's own."""
    try:
        yield
    except ArgumentError as error:
        raise ArgumentError(rename.get(error.name or "", error.name), error.complaint) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileOptions:
    problem: OptionalPath = None
    """TOML file with a problem of any numbers of units, instead of the flags for links, pretrained weights, adapter and SGD."""

    def stored(self, *free: str) -> Problem | None:
        """The problem in the file, if there is one; flags that it makes meaningless, all but the `free`, must not be given."""
        self.require_alone(*free)
        return None if self.problem is None else read_problem(self.problem)

    def require_alone(self, *free: str) -> None:
        """Raises ArgumentError for a flag that a file makes meaningless, all but the `free`."""
        groups = (
            LinkOptions,
            RowOptions,
            AdapterOptions,
            ModelOptions,
            RateOptions,
            SweepOptions,
            SGDOptions,
            TransferOptions,
        )
        for group in groups if self.problem else ():
            for field in dataclasses.fields(group):
                own = type(self).__dataclass_fields__.get(field.name)
                if (
                    own is not None
                    and field.name not in ("problem", *free)
                    and getattr(self, field.name) != own.default
                ):
                    raise ArgumentError(
                        "problem", f"holds all of the problem: leave out --{field.name.replace('_', '-')}"
                    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkOptions:
    activation: str = "erf"
    """Student's link function: linear, relu, erf, sigmoid, tanh, He1 ... He20, sums ("He2+0.5*He4"), squares ("erf^2"),
    of a scaled argument ("erf(x/sqrt(2))")."""
    teacher: OptionalText = None
    """Teacher's link function; the student's unless given."""

    @property
    def links(self) -> tuple[Activation, Activation]:
        """The student's and the teacher's link function."""
        student = activation(self.activation)
        return student, self.link("teacher", student)

    def link(self, name: str, default: Activation) -> Activation:
        """The link function that the flag with this name gives, the default if it was not given."""
        given = getattr(self, name)
        with named({"activation": name}):
            return default if given is None else activation(given)


def check_rank(rank: float | int) -> None:
    """Raises ArgumentError unless an adapter may have this rank."""
    whole = 1 <= rank <= _LARGEST_RANK and rank == round(rank)
    check("rank", rank, f"a whole number from 1 to {_LARGEST_RANK}", whole)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOptions:
    scale: OptionalFloat = None
    """LoRA's alpha, kappa = alpha / r; r unless given, so kappa = 1."""
    lr_ratio: float = 1.0
    """Learning rate of the up-matrix over that of the down-matrix (LoRA+)."""
    free_rows: bool = False
    """Let the rows of the down-matrix change length (they are rescaled to unit length after each step unless given)."""

    def adapter_of(self, rank: float | int) -> Adapter:
        """The adapter of a rank."""
        check_rank(rank)
        return Adapter(int(rank), scale=self.scale, lr_ratio=self.lr_ratio, normalized=not self.free_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterOptions(RowOptions):
    rank: int = 1
    """Rank r of the adapter."""

    @property
    def adapter(self) -> Adapter:
        return self.adapter_of(self.rank)


def _places(
    strengths: tuple[float, ...], alignments: tuple[float, ...], mixtures: tuple[float, ...]
) -> list[tuple[float, float]]:
    """Every (strength, alignment) that the flags ask for; none are empty."""
    if mixtures:
        if strengths or alignments:
            raise ArgumentError("mixture", "sets strength and alignment: give it alone, or give those two")
        check("mixture", mixtures, "finite", math.isfinite)
        return [mixture_place(mu) for mu in mixtures]
    strengths, alignments = checked_places(strengths or (0.5,), alignments or (1.0,))
    return [(rho, cosine) for cosine in alignments for rho in strengths]


def checked_places(strength: tuple[float, ...], alignment: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Strengths and alignments; ArgumentError for those that are not allowed."""
    check("strength", strength, "positive and finite", lambda rho: 0 < rho < 1e100)
    check("alignment", alignment, "between -1 and 1", lambda cosine: abs(cosine) <= 1)
    return strength, alignment


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions(AdapterOptions, LinkOptions):
    """One problem."""

    strength: OptionalFloat = None
    """Length of the pretrained weights, rho = |w0| (0.5 unless given)."""
    alignment: OptionalFloat = None
    """Their cosine with the target, c (1 unless given: w0 = mu * target with mu = rho)."""
    mixture: OptionalFloat = None
    """Instead of strength and alignment: w0 = mu * target + (1 - mu) * an orthogonal unit vector."""

    def place(self) -> tuple[float, float]:
        """The (strength, alignment) that the flags ask for."""
        given = (self.strength, self.alignment, self.mixture)
        (place,) = _places(*(() if value is None else (value,) for value in given))
        return place

    def asked(self, sgd: SGD) -> Problem:
        """The problem that the flags ask for."""
        student, teacher = self.links
        return Family(student, teacher=teacher, adapter=self.adapter, sgd=sgd).at(*self.place())


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateOptions:
    batch_size: float = 500.0
    """Fresh samples per SGD step; inf is gradient flow."""
    learning_rate: float = 0.2
    """Learning rate eta of the down-matrix; time is t = eta * step."""
    label_noise: float = 0.0
    """Variance of the noise on the labels."""

    def sgd_at(self, dimension: float) -> SGD:
        """SGD at a dimension."""
        return SGD(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            dimension=dimension,
            label_noise=self.label_noise,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions(RateOptions, RowOptions, LinkOptions):
    """Problems at several strengths, alignments, ranks and dimensions."""

    strength: Numbers = ()
    """Length of the pretrained weights, rho = |w0| (0.5 unless given)."""
    alignment: Numbers = ()
    """Their cosine with the target, c (1 unless given: w0 = mu * target with mu = rho)."""
    mixture: Numbers = ()
    """Instead of strength and alignment: w0 = mu * target + (1 - mu) * an orthogonal unit vector."""
    rank: Numbers = ()
    """Rank r of the adapter (1 unless given)."""
    dim: Numbers = ()
    """Dimension d of the inputs (1000 unless given)."""

    @property
    def dimensions(self) -> tuple[float, ...]:
        """The dimensions, one unless given."""
        return self.dim or (1000.0,)

    def pretrained(self) -> list[tuple[float, float]]:
        """Every (strength, alignment) that the flags ask for."""
        return _places(self.strength, self.alignment, self.mixture)

    def families(self) -> list[Family]:
        """All of the problems but the pretrained weights, at every rank and dimension that the flags ask for."""
        student, teacher = self.links
        return [
            Family(student, teacher=teacher, adapter=self.adapter_of(rank), sgd=self.sgd_at(dimension))
            for dimension in self.dimensions
            for rank in self.rank or (1.0,)
        ]

    def sweep(self) -> dict[Place, Problem]:
        """The problem at every place that the flags ask for."""
        return {
            Place(*place, family.adapter.rank, float(family.sgd.dimension)): family.at(*place)
            for family in self.families()
            for place in self.pretrained()
        }


def place_of(problem: Problem) -> Place:
    """Where a problem is; several units have no strength and no alignment."""
    weights = (float(problem.strength), float(problem.alignment)) if problem.is_single_index else (math.nan, math.nan)
    return Place(*weights, problem.adapter.rank, float(problem.sgd.dimension))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferOptions(AdapterOptions, LinkOptions, FileOptions):
    problem: OptionalPath = None
    """TOML file with a pretraining of any numbers of units and the fine-tuning after it, instead of the flags for them."""
    source: OptionalText = None
    """Link function of the source task's labels; the student's unless given (--teacher is that of the target task)."""
    cosine: Numbers = (1.0,)
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
        """The transfer in the file, or that at every cosine that the flags ask for."""
        if self.problem is not None:
            self.require_alone()
            return [read_transfer(self.problem)]
        student, target = self.links
        given = {"learning_rate": self.pretraining_learning_rate, "batch_size": self.pretraining_batch_size}
        given = {name: value for name, value in given.items() if value is not None}
        with named({name: f"pretraining_{name}" for name in given}):
            pretraining_sgd = sgd.replace(**given)
        return [
            Transfer(
                student,
                cosine=cosine,
                source=self.link("source", student),
                target=target,
                adapter=self.adapter,
                sgd=sgd,
                pretraining_sgd=pretraining_sgd,
                spherical=self.spherical,
                weight_decay=self.weight_decay,
                length=self.length,
            )
            for cosine in self.cosine
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGDOptions(RateOptions):
    dim: float = 1000.0
    """Dimension d of the inputs."""

    @property
    def sgd(self) -> SGD:
        return self.sgd_at(self.dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfirmOptions(SGDOptions):
    dim: float = 1e4
    """Dimension d of the inputs."""
    learning_rate: float = 0.05
    """Learning rate eta, small against the fastest rate; time is t = eta * step."""
    goal: OptionalFloat = None
    """The absolute loss to reach (see above for what is done unless it is given)."""
    confirm: int = 0
    """Simulate the exact chain, with this many seeds, beside the theory."""
    seed: int = 0
    """Seed of the random numbers."""

    def check_confirm(self) -> None:
        """Raises ArgumentError for a goal, a number of seeds or a seed that cannot be used."""
        if self.goal is not None:
            check("goal", self.goal, "positive and finite", positive)
        check("confirm", self.confirm, "at least 2 seeds (or 0 for none)", self.confirm == 0 or self.confirm >= 2)
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EscapeOptions:
    criterion: str = "loss"
    """Escape: "loss" (fallen to the threshold times its start), "overlap" (w.target has come so far), "absolute" (loss at threshold)."""
    threshold: float = 0.5
    """The fraction of the criterion, between 0 and 1 (any positive loss for "absolute")."""
    teacher_unit: int = 1
    """Number of the teacher's unit whose direction is the target of "overlap", where there are several."""

    @property
    def escape(self) -> Escape:
        return Escape(self.criterion, self.threshold, self.teacher_unit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(OutputOptions, EscapeOptions):
    t1: OptionalFloat = None
    """Time at which a run ends; 20 times tau unless given."""
    up: float = 0.0
    """Value of every entry of the up-matrix at the start."""
    seed: int = 0
    """Seed of the random numbers."""

    def check_start(self) -> None:
        """Raises ArgumentError for a start or a seed that cannot be used."""
        check("up", self.up, "finite", math.isfinite)
        check_seed(self.seed)

    def end_time(self, problem: Problem) -> float:
        """`--t1`, or 20 times the search phase's time scale if it was not given."""
        if self.t1 is not None:
            check("t1", self.t1, "positive and finite", positive)
            return self.t1
        if not problem.has_frozen_weights or problem.sgd.trains_readouts:
            raise ArgumentError("t1", "must be given where nothing is frozen, or readouts are trained")
        end = 20 * float(search_phase(problem).tau)
        if not np.isfinite(end):
            place = f" at strength {float(problem.strength):g}" if problem.is_single_index else ""
            raise ArgumentError("t1", f"must be given, because the search phase never ends{place} (tau is infinite)")
        return end


def noise_forbids(problem: Problem, escape: Escape, end: float) -> str:
    """What is to be said of a run to time `end` without escape if SGD noise does not let the flow escape; empty if that is not why, or
    not known, as it is for one unit alone."""
    theta = float(problem.sgd.noise_scale)
    if not (problem.is_single_index and problem.has_frozen_weights) or problem.sgd.trains_readouts:
        return ""
    if not theta > 0 or end < _LONG * float(search_phase(problem).tau):
        return ""
    largest = float(largest_noise_scale(problem, escape))
    if not theta > largest:
        return ""
    return (
        f"SGD noise forbids the escape: theta = eta * d / B = {theta:.4g}, but the flow escapes only up to {largest:.4g} "
        "(try a larger --batch-size or a smaller --learning-rate)"
    )
