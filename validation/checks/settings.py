"""What is checked: settings, given by flags or read from a TOML file; and the jobs that they make."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
from jaxtyping import PRNGKeyArray

from odes import SGD, Adapter, Escape, Family, Transfer, read_either
from odes.arguments import ArgumentError, nearest
from odes.files import read_tables
from odes.problem import mixture_place
from validation.checks import CHECKS
from validation.checks.base import Case, Effort, Result

_BESIDE_A_FILE = ("name", "problem", "criterion", "threshold", "teacher_unit", "checks", "quick")
"""What a setting says of itself where its problem is in a file."""

_OF_ONE_UNIT = {"approach", "noise-limit"}
"""Checks that several units do not have."""

_IN_STAGES = {"stages", "checkpoints"}
"""Checks of a pretraining and the fine-tuning after it."""

SHIPPED = Path(__file__).parent / "settings.toml"
"""The settings that are checked if none are given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneUnit:
    r"""One unit with pretrained weights, and its adapter: the fields are named like the flags and have their defaults.

    - `activation`, `teacher`: names of link functions ([`odes.activation`][]); the teacher's is the student's unless given;
    - `strength` ρ = |w0|, `alignment` c, its cosine with the target; or in place of both a `mixture` μ,
        $w_0 = \mu\,\omega^* + (1 - \mu)\,\xi$;
    - `rank` r, `scale` α with κ = α/r (r unless given), `lr_ratio` χ; `free_rows` of the adapter change their length.
    """

    activation: str = "erf"
    teacher: str | None = None
    strength: float = 0.5
    alignment: float = 1.0
    mixture: float | None = None
    rank: int = 1
    scale: float | None = None
    lr_ratio: float = 1.0
    free_rows: bool = False

    @property
    def place(self) -> tuple[float, float]:
        """Strength and alignment, those of the mixture if it is given."""
        return (self.strength, self.alignment) if self.mixture is None else mixture_place(self.mixture)

    def trained_by(self, sgd: SGD) -> Family:
        """All of the problem but strength and alignment."""
        adapter = Adapter(self.rank, scale=self.scale, lr_ratio=self.lr_ratio, normalized=not self.free_rows)
        return Family(self.activation, teacher=self.teacher, adapter=adapter, sgd=sgd)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(OneUnit):
    """A problem, its escape, and which checks are made of it; the fields are named like the flags.

    `problem` is the file of a problem with any numbers of units, at its own dimension and noise scale, and leaves room for the
    escape alone; some checks are for one unit. It may also be the file of a pretraining and the fine-tuning after it
    ([`odes.read_either`][]), of which stages and checkpoints are checked. `noise_scale` is kept at every dimension that is simulated;
    trajectories and the law are simulated at the dimension `dim`, the effort's unless given; `checks` are made by a full
    validation, `quick` by a quick one.

    **Raises** ArgumentError for checks that there are not and for a negative or infinite noise scale.
    """

    name: str
    problem: str | None = None
    learning_rate: float = 0.05
    noise_scale: float = 1.0
    label_noise: float = 0.0
    criterion: str = "loss"
    threshold: float = 0.5
    teacher_unit: int = 1
    dim: float | None = None
    checks: tuple[str, ...] = ("trajectory", "law")
    quick: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("checks", "quick"):
            for kind in getattr(self, name):
                if kind not in CHECKS:
                    raise ArgumentError(name, f"takes {', '.join(CHECKS)}, not {kind!r}{nearest(kind, CHECKS)}")
        if not (math.isfinite(self.noise_scale) and self.noise_scale >= 0):
            raise ArgumentError("noise_scale", f"must be non-negative and finite, but is {self.noise_scale:g}")
        for field in dataclasses.fields(self):
            if self.problem and field.name not in _BESIDE_A_FILE and getattr(self, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise ArgumentError("problem", f"holds all of the problem: leave out --{flag}")

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> "Setting":
        """The setting of a TOML table; ArgumentError also for keys that there are not and values of the wrong type."""
        kinds, values = {field.name: cast(type, field.type) for field in dataclasses.fields(cls)}, {}
        for key, given in table.items():
            if key not in kinds:
                raise ArgumentError(None, f"unknown key {key!r}{nearest(key, kinds)}")
            whole = isinstance(given, int) and kinds[key] in (float, float | None)
            value: Any = float(given) if whole else given
            several = key in ("checks", "quick")
            if not isinstance(value, list if several else kinds[key]):
                raise ArgumentError(key, f"is of the wrong type: {value!r}")
            values[key] = tuple(value) if several else value
        return cls(**values)

    @property
    def command(self) -> str:
        """The command that makes the checks of this setting."""
        words = ["searchphase", "validate"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("name", "checks", "quick") and value != field.default:
                flag = f"--{field.name.replace('_', '-')}"
                text = f"{value:.17g}" if isinstance(value, float) else str(value)
                words += [flag] if value is True else [flag, f"'{text}'" if "*" in text else text]
        return " ".join([*words, "--checks", *self.checks])

    def case(self, effort: Effort, key: PRNGKeyArray) -> Case:
        """The setting as a case under test."""
        if self.problem is not None:
            return self._stored_case(self.problem, effort, key)
        if self.dim is not None:
            effort = dataclasses.replace(effort, law_dimension=self.dim, trajectory_dimension=self.dim)
        theta, eta, dimension = self.noise_scale, self.learning_rate, effort.law_dimension
        batch = math.inf if theta == 0 else max(1.0, eta * dimension / theta)
        sgd = SGD(learning_rate=eta, batch_size=batch, dimension=dimension, label_noise=self.label_noise)
        problem = self.trained_by(sgd).at(*self.place)
        return Case(self.name, problem, problem, effort, key, Escape(self.criterion, self.threshold, self.teacher_unit))

    def _stored_case(self, path: str, effort: Effort, key: PRNGKeyArray) -> Case:
        found = read_either(path)
        if isinstance(found, Transfer):
            problem, transfers, what, possible = found.lora, (found, found), "a pretraining", _IN_STAGES
        else:
            several = found.units != (1, 1)
            problem, transfers, what = found, None, "several units"
            possible = CHECKS.keys() - (_OF_ONE_UNIT | _IN_STAGES if several else set())
        if others := {*self.checks, *self.quick} - possible:
            known = ", ".join(kind for kind in CHECKS if kind in possible)
            raise ArgumentError("checks", f"of {what} takes {known}, not {min(others)}")
        dimension = float(problem.sgd.dimension)
        effort = dataclasses.replace(effort, law_dimension=dimension, trajectory_dimension=dimension)
        escape = Escape(self.criterion, self.threshold, self.teacher_unit)
        return Case(self.name, problem, problem, effort, key, escape, transfers)


def read_settings(path: Path) -> list[Setting]:
    """The settings of a TOML file with one table [[setting]] for each; ArgumentError says what is wrong otherwise."""
    tables = read_tables(path).get("setting", [])
    if not isinstance(tables, list) or not tables:
        raise ArgumentError("settings", f"{str(path)!r} has no [[setting]]")
    settings = []
    for number, table in enumerate(tables, 1):
        try:
            if isinstance(table.get("problem"), str):
                table = table | {"problem": str(path.parent / table["problem"])}
            settings.append(Setting.from_table({"name": f"setting {number}"} | table))
        except ArgumentError as error:
            complaint = error.complaint if error.name is None else f"{error.name} {error.complaint}"
            raise ArgumentError("settings", f"{str(path)!r}, setting {number}: {complaint}") from None
    return settings


@dataclasses.dataclass(frozen=True)
class CheckJob:
    """One kind of check of a case, with random numbers of its own."""

    kind: str
    case: Case
    number: int
    size: int = 1

    @property
    def name(self) -> str:
        """What it is called among the others."""
        return f"check-{self.number}-{self.kind}"

    def run(self, advanced: Any) -> list[Result]:
        """The results of the check."""
        return list(CHECKS[self.kind](self.case))


def plan(settings: Sequence[Setting], effort: Effort, seed: int, *, full: bool) -> list[CheckJob]:
    """The checks that the settings ask for.

    **Raises** ArgumentError, before any of them is carried out, if a setting is wrong, or none has checks of the kind that is asked for.
    """
    jobs: list[CheckJob] = []
    for setting in settings:
        case = setting.case(effort, jax.random.key(seed))
        for kind in setting.checks if full else setting.quick:
            jobs.append(CheckJob(kind, case.stream(len(jobs)), len(jobs)))
    if not jobs:
        key = "checks" if full else "quick"
        raise ArgumentError(
            "settings",
            f"must have a setting with a list `{key}`, which says what --{'full' if full else 'quick'} checks",
        )
    return jobs
