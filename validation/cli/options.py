"""The command line's options: one dataclass per group of flags, shared by the commands that take them."""

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from odes import SGD, Activation, Adapter, Escape, Problem, activation
from odes.storage import write_whole
from theory import search_phase

Numbers = Annotated[tuple[str, ...], tyro.conf.arg(metavar="X [X ...]|LOW:HIGH:N", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
OptionalPath = Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]


_LARGEST_RANK = 4096


class BadInput(Exception):
    """What the user gave cannot be used; the message says what and how to mend it."""


def numbers(flag: str, words: tuple[str, ...]) -> np.ndarray:
    """The numbers that a list of words stands for, each a number or an even range LOW:HIGH:N.

    >>> numbers("--strength", ("0.5:1.5:3", "2")).tolist()
    [0.5, 1.0, 1.5, 2.0]
    """
    values: list[float] = []
    for word in words:
        parts = word.split(":")
        try:
            if len(parts) == 1:
                values.append(float(word))
            else:
                low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
                if len(parts) != 3 or count < 1 or not math.isfinite(low + high):
                    raise ValueError
                values.extend(np.linspace(low, high, count))
        except (ValueError, IndexError):
            raise BadInput(f"{flag} takes numbers or ranges LOW:HIGH:N such as 0.1:0.9:9, not {word!r}") from None
    if not values:
        raise BadInput(f"{flag} takes at least one number")
    return np.asarray(values)


def link(flag: str, name: str | None, default: Activation) -> Activation:
    """The link function that a flag names, the default if it was not given."""
    if name is None:
        return default
    try:
        return activation(name)
    except ValueError as error:
        raise BadInput(str(error).replace("Argument `activation`", flag)) from None


def checked_places(strength: tuple[str, ...], alignment: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The strengths and the alignments that the words of the flags stand for."""
    strengths, alignments = numbers("--strength", strength), numbers("--alignment", alignment)
    for flag, values, allowed, good in (
        ("--strength", strengths, "positive and finite", (strengths < 1e100) & (strengths > 0)),
        ("--alignment", alignments, "between -1 and 1", np.abs(alignments) <= 1),
    ):
        if not good.all():
            raise BadInput(f"{flag} must be {allowed}, but is {values[~good][0]:g}")
    return strengths, alignments


def check_writable(flag: str, path: str | None, suffixes: tuple[str, ...]) -> None:
    """Raises BadInput, before any work is done, if a result could not be written to `path` afterwards."""
    if path is None:
        return
    if Path(path).suffix not in suffixes:
        raise BadInput(f"{flag} must end in {' or '.join(suffixes)}, but is {path!r}")
    folder = Path(path).parent
    if not folder.is_dir():
        raise BadInput(f"{flag} names a file in {str(folder)!r}, which is not a folder")
    try:
        if Path(path).is_dir():
            raise IsADirectoryError
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        raise BadInput(f"{flag} cannot be written: {path!r}") from None


def check_seed(seed: int) -> None:
    """Raises BadInput for a seed that JAX does not take."""
    if not -(2**63) <= seed < 2**63:
        raise BadInput(f"--seed must be a 64-bit integer, but is {seed}")


def end_time(t1: float | None, problem: Problem) -> float:
    """`--t1`, or 20 times the search phase's time scale if it was not given."""
    if t1 is None:
        t1 = 20 * float(search_phase(problem).tau)
        if not np.isfinite(t1):
            place = f"strength {float(problem.strength):g}"
            raise BadInput(f"--t1 must be given, because the search phase never ends at {place} (tau is infinite)")
    if not (np.isfinite(t1) and t1 > 0):
        raise BadInput(f"--t1 must be positive and finite, but is {t1:g}")
    return t1


def save_figure(figure, path: str) -> None:
    """Writes a figure whole or not at all."""
    write_whole(path, figure.savefig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkOptions:
    activation: str = "erf"
    """Student's link function: linear, relu, erf, sigmoid, tanh, He1 ... He20, sums ("He2+0.5*He4"), squares ("erf^2")."""
    teacher: OptionalText = None
    """Teacher's link function; the student's unless given."""

    @property
    def links(self) -> tuple[Activation, Activation]:
        """The student's and the teacher's link function."""
        student = activation(self.activation)
        return student, link("--teacher", self.teacher, student)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    rank: int = 1
    """Rank r of the adapter."""
    scale: OptionalFloat = None
    """LoRA's alpha, kappa = alpha / r; r unless given, so kappa = 1."""
    lr_ratio: float = 1.0
    """Learning rate of the up-matrix over that of the down-matrix (LoRA+)."""
    free_rows: bool = False
    """Let the rows of the down-matrix change length (they are rescaled to unit length after each step unless given)."""

    @property
    def adapter(self) -> Adapter:
        if self.rank > _LARGEST_RANK:
            raise BadInput(f"--rank must be at most {_LARGEST_RANK}, but is {self.rank}")
        return Adapter(self.rank, scale=self.scale, lr_ratio=self.lr_ratio, normalized=not self.free_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedOptions:
    strength: Numbers = ()
    """Length of the pretrained weights, rho = |w0| (0.5 unless given)."""
    alignment: Numbers = ()
    """Their cosine with the target, c (1 unless given: w0 = mu * target with mu = rho)."""
    mixture: Numbers = ()
    """Instead of strength and alignment: w0 = mu * target + (1 - mu) * an orthogonal unit vector."""

    def pretrained(self) -> list[tuple[float, float]]:
        """Every (strength, alignment) that the flags ask for."""
        if self.mixture:
            if self.strength or self.alignment:
                raise BadInput("--mixture sets strength and alignment: give it alone, or give those two")
            mus = numbers("--mixture", self.mixture)
            if not np.all(np.isfinite(mus)):
                raise BadInput(f"--mixture must be finite, but is {' '.join(self.mixture)}")
            return [(rho, mu / rho) for mu, rho in zip(mus, np.hypot(mus, 1 - mus), strict=True)]
        strengths, alignments = checked_places(self.strength or ("0.5",), self.alignment or ("1",))
        return [(rho, cosine) for cosine in alignments for rho in strengths]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions(AdapterOptions, PretrainedOptions, LinkOptions):
    def problems(self, sgd: SGD) -> list[Problem]:
        """The problem at every (strength, alignment) that the flags ask for."""
        student, teacher = self.links
        adapter = self.adapter
        return [
            Problem.single_index(
                student, strength=strength, alignment=alignment, teacher=teacher, adapter=adapter, sgd=sgd
            )
            for strength, alignment in self.pretrained()
        ]

    def problem(self, sgd: SGD) -> Problem:
        """The one problem that the flags ask for."""
        places = len(self.pretrained())
        if places != 1:
            raise BadInput(f"--strength, --alignment and --mixture take one value here, but stand for {places}")
        return self.problems(sgd)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGDOptions:
    dim: float = 1000.0
    """Dimension d of the inputs."""
    batch_size: float = 500.0
    """Fresh samples per SGD step; inf is gradient flow."""
    learning_rate: float = 0.2
    """Learning rate eta of the down-matrix; time is t = eta * step."""
    label_noise: float = 0.0
    """Variance of the noise on the labels."""

    @property
    def sgd(self) -> SGD:
        return SGD(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            dimension=self.dim,
            label_noise=self.label_noise,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions(SGDOptions):
    up: float = 0.0
    """Value of every entry of the up-matrix at the start."""
    seed: int = 0
    """Seed of the random numbers."""

    def check_start(self) -> None:
        """Raises BadInput for a start or a seed that cannot be used."""
        if not math.isfinite(self.up):
            raise BadInput(f"--up must be finite, but is {self.up:g}")
        check_seed(self.seed)


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
        """Raises BadInput for a goal, a number of seeds or a seed that cannot be used."""
        if self.goal is not None and not (math.isfinite(self.goal) and self.goal > 0):
            raise BadInput(f"--goal must be positive and finite, but is {self.goal:g}")
        if self.confirm < 0 or self.confirm == 1:
            raise BadInput(f"--confirm must be at least 2 seeds (or 0 for none), but is {self.confirm}")
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EscapeOptions:
    criterion: str = "loss"
    """Escape: "loss" (fallen to the threshold times its start), "overlap" (w.target has come so far), "absolute" (loss at threshold)."""
    threshold: float = 0.5
    """The fraction of the criterion, between 0 and 1 (any positive loss for "absolute")."""

    @property
    def escape(self) -> Escape:
        return Escape(self.criterion, self.threshold)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    json: bool = False
    """Print JSON instead of a table."""
    output: OptionalPath = None
    """Also write the result, with all that made it, to this netCDF file (.nc)."""
    plot: OptionalPath = None
    """Also draw the result to this file (.png, .pdf or .svg)."""

    def check_paths(self) -> None:
        check_writable("--output", self.output, (".nc",))
        check_writable("--plot", self.plot, (".png", ".pdf", ".svg"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(OutputOptions, EscapeOptions, TrainingOptions, ModelOptions):
    t1: OptionalFloat = None
    """Time at which a run ends; 20 times tau unless given."""

    def check(self) -> None:
        """Raises BadInput, before any work is done, for flags that cannot be used whatever the problem is."""
        self.check_paths()
        self.check_start()

    def only_run(self) -> tuple[Problem, float]:
        """The one problem that the flags ask for and the time at which its run ends."""
        self.check()
        problem = self.problem(self.sgd)
        return problem, end_time(self.t1, problem)

    def runs(self) -> list[tuple[Problem, float]]:
        """Every problem that the flags ask for and the time at which its run ends."""
        self.check()
        return [(problem, end_time(self.t1, problem)) for problem in self.problems(self.sgd)]
