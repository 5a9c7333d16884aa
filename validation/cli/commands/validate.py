"""`searchphase validate`: theory against simulation, check by check."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from odes import SGD
from odes.arguments import nearest
from odes.storage import write_dataset
from validation.checks import CHECKS, FULL, LAW_ACCURACY, QUICK, Case, Check, Effort, Note, Result, z_limit
from validation.cli.options import BadInput, EscapeOptions, ModelOptions, OptionalPath, OutputOptions, save_figure
from validation.cli.report import print_json, table
from validation.cli.workers import carry_out
from validation.figures.style import figure_style

SHIPPED = Path(__file__).parents[2] / "checks" / "settings.toml"
_MODEL_KEYS = ("activation", "teacher", "strength", "alignment", "mixture", "rank", "scale", "lr_ratio", "free_rows")
_TRAINING = {"learning_rate": 0.05, "noise_scale": 1.0, "label_noise": 0.0}
_KEYS = ("name", *_MODEL_KEYS, *_TRAINING, "criterion", "threshold", "checks", "quick")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validate(OutputOptions, EscapeOptions, ModelOptions):
    """Theory against the exact simulation: one setting if flags describe one, else a file of settings (exit code 1 if they disagree).

    Compared are trajectories, the law of the escape time, the approach to the limit, and whatever else --checks names.
    """

    settings: OptionalPath = None
    """A TOML file with one [[setting]] table per setting, its keys named like the flags (the shipped file unless given)."""
    quick: bool = False
    """Two to three minutes: fewer settings, dimensions and seeds (the default for a single setting)."""
    full: bool = False
    """Under an hour: every setting, high dimension, many seeds."""
    checks: tuple[str, ...] = ()
    """For a single setting: which of trajectory, law, approach, log-dimension, rank, learning-rate, stages (the first two unless given)."""
    learning_rate: float = _TRAINING["learning_rate"]
    """Learning rate eta of a single setting; should be small against the inverse of its fastest rate."""
    noise_scale: float = _TRAINING["noise_scale"]
    """theta = eta * d / B of a single setting, kept at every dimension that is simulated."""
    label_noise: float = _TRAINING["label_noise"]
    """Variance of the noise on the labels of a single setting."""
    seed: int = 0
    """Seed of the random numbers."""

    def run(self) -> int:
        self.check_paths()
        if self.quick and self.full:
            raise BadInput("--quick and --full exclude each other")
        effort = FULL if self.full else QUICK
        if self.settings is not None or not self._describes_a_setting:
            settings = read_settings(Path(self.settings) if self.settings else SHIPPED)
        else:
            settings = [self._own_setting()]
        results: list[Result] = []
        for some in carry_out(plan(settings, effort, self.seed, full=self.full), unit="check"):
            results.extend(some)
            if not self.json:
                print_checks([result for result in some if isinstance(result, Check)])
        checks = [result for result in results if isinstance(result, Check)]
        notes = [result for result in results if isinstance(result, Note)]
        limit = z_limit(len(checks))
        agrees = bool(checks) and all(check.agrees(limit) for check in checks)
        self.report(checks, notes, limit, agrees)
        if self.output:
            self.save(self.output, checks, notes, limit)
        if self.plot:
            draw(self.plot, checks, limit)
        return 0 if agrees else 1

    @property
    def _describes_a_setting(self) -> bool:
        """Whether any flag says something about a setting."""
        chosen = (*_MODEL_KEYS, *_TRAINING, "criterion", "threshold", "checks")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return any(getattr(self, name) != defaults[name] for name in chosen)

    def _own_setting(self) -> dict[str, Any]:
        """The flags as a setting."""
        names = set(_KEYS) - {"name", "quick", "checks"}
        checks = list(self.checks) or ["trajectory", "law"]
        for name in checks:
            _known_check("--checks", name)
        return {name: getattr(self, name) for name in names} | {"name": "flags", "checks": checks, "quick": checks}

    def report(self, checks: list[Check], notes: list[Note], limit: float, agrees: bool) -> None:
        if self.json:
            rows = [dataclasses.asdict(check) | {"agrees": check.agrees(limit)} for check in checks]
            skipped = [dataclasses.asdict(note) for note in notes]
            print_json({"agrees": agrees, "z_limit": limit, "checks": rows, "not_checked": skipped})
            return
        for note in notes:
            print(f"not checked: {note.setting}: {note.reason}")
        wrong = [check for check in checks if not check.agrees(limit)]
        if wrong:
            print("\nNO AGREEMENT:")
            print_checks(wrong)
        print(
            f"{len(checks) - len(wrong)} of {len(checks)} checks agree: |z| <= {limit:.2f} (one false alarm in 1000 reports), "
            "or within the 3 % that the escape-time law claims"
        )

    def save(self, path: str, checks: list[Check], notes: list[Note], limit: float) -> None:
        import xarray

        names = [field.name for field in dataclasses.fields(Check)]
        columns = {name: ("check", np.array([getattr(check, name) for check in checks])) for name in names}
        columns["agrees"] = ("check", np.array([check.agrees(limit) for check in checks]))
        skipped = [dataclasses.asdict(note) for note in notes]
        write_dataset(
            xarray.Dataset(columns), path, kind="validate", command=dataclasses.asdict(self), not_checked=skipped
        )


def print_checks(checks: list[Check]) -> None:
    """A table for each setting, and an empty line after it."""
    for setting in dict.fromkeys(check.setting for check in checks):
        names = ("name", "theory", "simulation", "standard_error", "z")
        rows = [{name: getattr(check, name) for name in names} for check in checks if check.setting == setting]
        print(f"{setting}:\n{table(rows)}\n", flush=True)


def _known_check(where: str, name: str) -> None:
    if name not in CHECKS:
        raise BadInput(f"{where} takes {', '.join(CHECKS)}, not {name!r}{nearest(name, CHECKS)}")


def read_settings(path: Path) -> list[dict[str, Any]]:
    """The settings of a TOML file, each a dict whose keys are known; BadInput says what is wrong otherwise."""
    try:
        settings = tomllib.loads(path.read_text()).get("setting", [])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--settings {str(path)!r} cannot be read: {error}") from None
    if not isinstance(settings, list) or not settings:
        raise BadInput(f"--settings {str(path)!r} has no [[setting]]")
    for number, setting in enumerate(settings, 1):
        where = f"--settings, setting {number}"
        for key in setting:
            if key not in _KEYS:
                raise BadInput(f"{where}: unknown key {key!r}{nearest(key, _KEYS)}")
        setting.setdefault("name", f"setting {number}")
        setting.setdefault("checks", ["trajectory", "law"])
        for kind in (*setting["checks"], *setting.get("quick", ())):
            _known_check(where, kind)
    return settings


def _words(value: Any) -> tuple[str, ...]:
    """A number of a settings file, or the words of a flag."""
    return value if isinstance(value, tuple) else (repr(value),)


def case_of(setting: dict[str, Any], effort: Effort, key: jax.Array) -> Case:
    """The case that a setting describes; BadInput names the setting."""
    try:
        model = {name: setting[name] for name in _MODEL_KEYS if name in setting}
        for name in ("strength", "alignment", "mixture"):
            if name in model:
                model[name] = _words(model[name])
        training = {name: setting.get(name, default) for name, default in _TRAINING.items()}
        theta, eta = (float(training[name]) for name in ("noise_scale", "learning_rate"))
        if not (np.isfinite(theta) and theta >= 0):
            raise BadInput(f"--noise-scale must be non-negative and finite, but is {theta:g}")
        dimension = effort.law_dimension
        batch = np.inf if theta == 0 else max(1.0, eta * dimension / theta)
        sgd = SGD(learning_rate=eta, batch_size=batch, dimension=dimension, label_noise=float(training["label_noise"]))
        problem = ModelOptions(**model).problem(sgd)
        escape = EscapeOptions(**{k: setting[k] for k in ("criterion", "threshold") if k in setting}).escape
    except TypeError as error:
        raise BadInput(f"--settings, {setting['name']}: {error}") from None
    return Case(setting["name"], problem, problem, effort, key, escape)


@dataclasses.dataclass(frozen=True)
class Job:
    """One kind of check on one setting, with random numbers of its own; plain data, so that another process can do it."""

    kind: str
    setting: dict[str, Any]
    effort: Effort
    seed: int
    number: int

    def run(self) -> list[Result]:
        key = jax.random.fold_in(jax.random.key(self.seed), self.number)
        return list(CHECKS[self.kind](case_of(self.setting, self.effort, key)))


def plan(settings: list[dict[str, Any]], effort: Effort, seed: int, *, full: bool) -> list[Job]:
    """The checks that the settings ask for. BadInput, before any of them is carried out, if a setting is wrong."""
    jobs = []
    for setting in settings:
        case_of(setting, effort, jax.random.key(0))
        for kind in setting["checks"] if full else setting.get("quick", []):
            jobs.append(Job(kind, setting, effort, seed, len(jobs)))
    return jobs


def draw(path: str, checks: list[Check], limit: float) -> None:
    """Mean escape times, simulated over predicted; against the dimension, where that was varied; z of every check."""
    with figure_style():
        import matplotlib.pyplot as plt

        means = [check for check in checks if check.name.startswith("escape time, mean")]
        varied = [check for check in means if ", d = " in check.name]
        widths = [1.0] * (bool(means) + bool(varied)) + [1.1]
        figure, axes = plt.subplots(1, len(widths), figsize=(2.6 * len(widths) + 1.2, 2.8), width_ratios=widths)
        panels = list(np.atleast_1d(axes))
        if means:
            _draw_ratios(panels.pop(0), means)
        if varied:
            _draw_dimensions(panels.pop(0), varied)
        _draw_deviations(panels.pop(0), checks, limit)
        save_figure(figure, path)


def _column(checks: list[Check], name: str) -> np.ndarray:
    return np.array([getattr(check, name) for check in checks])


def _draw_ratios(ax: Any, means: list[Check]) -> None:
    theory, simulation, error = (_column(means, name) for name in ("theory", "simulation", "standard_error"))
    ax.errorbar(theory, simulation / theory, error / theory, fmt="o", markersize=3, elinewidth=0.8)
    ax.axhspan(1 - LAW_ACCURACY, 1 + LAW_ACCURACY, color="0.9", zorder=0)
    ax.axhline(1, color="k", linewidth=0.8)
    ax.set(xscale="log", xlabel="mean escape time $t$, law", ylabel=r"simulated / law (band: 3 %)")


def _draw_dimensions(ax: Any, varied: list[Check]) -> None:
    for i, setting in enumerate(dict.fromkeys(check.setting for check in varied)):
        chosen = [check for check in varied if check.setting == setting]
        d, theory, simulation, error = (
            _column(chosen, name) for name in ("dimension", "theory", "simulation", "standard_error")
        )
        ax.plot(d, theory, color=f"C{i}", label=setting)
        ax.errorbar(d, simulation, error, fmt="o", color=f"C{i}", markersize=3, elinewidth=0.8)
    ax.set(xscale="log", xlabel="dimension $d$", ylabel="mean escape time $t$", ylim=(0, None))
    ax.legend(loc="upper left")


def _draw_deviations(ax: Any, checks: list[Check], limit: float) -> None:
    groups = list(dict.fromkeys(_group(check.name) for check in checks))
    for check in checks:
        place = groups.index(_group(check.name)) + 0.25 * np.sin(7 * check.simulation)
        ax.plot(check.z, place, "o", color="C0" if check.agrees(limit) else "C3", markersize=3, alpha=0.7)
    for sign in (-1, 1):
        ax.axvline(sign * limit, color="0.5", linestyle=":")
    ax.set(yticks=range(len(groups)), yticklabels=groups, xlabel="z (standard errors)")
    ax.invert_yaxis()


def _group(name: str) -> str:
    """What kind of number a check is about: its name up to the particulars."""
    for start in (" at t = ", ", rank ", ", d = ", ", eta"):
        name = name.split(start)[0]
    return name.replace("escape time from a given start", "escape from a start").replace(" about the mean", "")
