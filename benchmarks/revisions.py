"""Compares what two revisions of the project print: `revisions.py OLD_CHECKOUT` against this one, number by number.

A list of commands is run in both checkouts, each as a process of its own, with `--json`; what they print and the files that they
write are compared key by key. What may differ depends on the kind of number:

- closed forms by 1e-9 of their size;
- times that integration gives by 1e-5: the integrator's relative tolerances are 1e-5 to 1e-8;
- their slopes, derivatives through the integrator, whose step size heeds the solution alone, by 1e-4;
- trajectories by 1e-5 or 1e-8 in all, the integrator's tolerance for overlaps of order one: a small loss is a difference of these;
- the number of the integrator's steps by 5 %: at the limit of its stability rounding decides which steps are rejected;
- simulations not at all: differences up to 1e-5 pass, but are called rounding;
- the direct simulation of stages as far as random numbers do: it starts from rows of equal length in directions that are given up to
  a rotation, which rounding chooses;
- z, a difference of two numbers over its standard error, by 0.001;
- the numbers of a table by one unit of the last digit that is printed (its numbers of steps are left out).

Numbers that differ by no more than 1e-12 count as equal, except those of simulations. Words, null, exit codes and the lengths of
lists have to be equal; keys may be added, not removed. The flags of every command and their defaults have to be there still.

The exit code is 1 if anything differs by more than that. Four to eight minutes per checkout on two cores; with `--cache` the older
one is run only once.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeGuard

import jax
import xarray
from tqdm import tqdm

from validation.cli.report import plain, table

HERE = Path(__file__).resolve().parent.parent
_PACKAGES = ("odes", "theory", "validation")
_SHOWN = 8
"""So many differences of a command are spelled out."""

_INCIDENTAL = ("python", "device", "dtype")
"""Attributes of stored files that say where they were made, beside the versions of packages."""

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
_STEPS = re.compile(r"\d+ steps \(\d+ rejected\)")
_FLAG = re.compile(r"^[│|\s]*(?:-\w, )?(--[a-z0-9][a-z0-9-]*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of number: the relative difference that is allowed, and the absolute one below which numbers are equal."""

    name: str
    limit: float
    floor: float = 1e-12

    def __str__(self) -> str:
        return f"{self.name} {self.limit if self.floor < self.limit else self.floor:.0e}"


CLOSED = Kind("closed", 1e-9)
INTEGRATED = Kind("integrated", 1e-5)
SLOPE = Kind("slope", 1e-4)
TRAJECTORY = Kind("trajectory", 1e-5, floor=1e-8)
STEPS = Kind("steps", 0.05, floor=0.0)
SIMULATED = Kind("simulated", 1e-5, floor=0.0)
DEVIATION = Kind("z", 1e-5, floor=1e-3)
TEXT = Kind("last digit", 0.0)

LAW = {
    name: INTEGRATED for name in ("escape_time_mean", "escape_time_std", "escape_time_quantiles", "largest_noise_scale")
}
GIVEN = {"t": CLOSED}
SOLVED = GIVEN | {"escape_time": INTEGRATED, "steps_taken": STEPS}
REGIMES = {
    name: INTEGRATED
    for name in ("time", "share", "boundaries", "boundary_strength", "boundary_time", "boundary_alignment")
} | {"slope": SLOPE}
CHAIN = {name: SIMULATED for name in ("chain", "chain_samples", "standard_error", "reached")}
SAMPLES = {
    "theory": INTEGRATED,
    "simulation": Kind("sample", 0.05),
    "standard_error": Kind("sample", 1.0),
    "z": Kind("sample", 1.0, floor=8.0),
}
THEORY = {"theory": INTEGRATED, "z": DEVIATION, "z_limit": CLOSED, "accuracy": CLOSED, "dimension": CLOSED}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, and of which kind its numbers are: those below a key of `kinds` of that kind, all others `kind`.

    `words` may hold `{folder}`, an empty folder; the files that the command writes there are compared as well. Without
    `json` the printed text is compared, and with `wrong` the message on standard error.
    Checks whose names end with `resampled` may have other random numbers.
    """

    name: str
    words: str
    kind: Kind = CLOSED
    kinds: dict[str, Kind] = dataclasses.field(default_factory=dict)
    json: bool = True
    wrong: bool = False
    resampled: str | None = None

    def kind_of(self, path: tuple[str, ...]) -> Kind:
        """The kind of the number at a path of keys."""
        named = [self.kinds[key] for key in path if key in self.kinds]
        return named[-1] if named else self.kind

    @property
    def arguments(self) -> list[str]:
        """The words of the command line."""
        return [*self.words.split(), *(["--json"] if self.json else [])]


def _text(name: str, words: str) -> Command:
    return Command(f"{name}, table", words, TEXT, json=False)


def _wrong(name: str, words: str) -> Command:
    return Command(f"{name}, refused", words, TEXT, json=False, wrong=True)


_LARGE = "--dim 1e4 --batch-size 2000"
_SMALL = "--dim 100 --batch-size 50"

COMMANDS = (
    Command("escape", "escape --strength 0.1:0.9:9"),
    Command("escape He3", "escape --activation He3 --strength 0.2 0.3 0.5 --alignment 0.8 1"),
    Command("escape He2, plateau, file", "escape --activation He2 --strength 0.3 0.5 0.8 --output {folder}/run.nc"),
    Command(
        "escape sum, plateau, rank 4",
        "escape --activation He2+0.5*He4 --strength 0.4 1.2 --alignment 0.5 --rank 4 --scale 2 --lr-ratio 3",
    ),
    Command(
        "escape relu, rank 4",
        "escape --activation relu --strength 0.3:1.5:4 --alignment 0.2 1 --rank 4 --lr-ratio 2 --scale 3 --free-rows",
    ),
    Command("escape sigmoid, mixture", "escape --activation sigmoid --mixture 0.1:0.9:5"),
    Command("escape tanh, teacher", "escape --activation tanh --teacher erf --strength 0.5 --alignment 0.7"),
    Command("escape law, doubt", "escape --strength 0.5 1 --dim 1000 --batch-size 500 --label-noise 0.1", kinds=LAW),
    Command(
        "escape law, absolute, rank 4",
        "escape --strength 0.7 --alignment 0.6 --rank 4 --lr-ratio 4 --scale 2 --free-rows --learning-rate 0.05"
        f" --criterion absolute --threshold 0.05 {_LARGE}",
        kinds=LAW,
    ),
    Command(
        "escape law, overlap, noise limit",
        f"escape --mixture 0.5 --criterion overlap --threshold 0.3 --noise-limit {_LARGE}",
        kinds=LAW,
    ),
    Command("solve", "solve --strength 0.5", TRAJECTORY, SOLVED),
    Command(
        "solve He3, overlap, log times",
        "solve --activation He3 --mixture 0.5 --criterion overlap --threshold 0.4 --learning-rate 0.01 --t1 20"
        " --rtol 1e-9 --atol 1e-11 --label-noise 0.1 --log-times --records 40 --seed 3 --up 0.1",
        TRAJECTORY,
        SOLVED,
    ),
    Command(
        "solve, rank 2, mixture, files",
        "solve --mixture 0.5 --rank 2 --scale 4 --lr-ratio 2 --free-rows --batch-size inf --t1 100 --records 50"
        " --output {folder}/run.nc --plot {folder}/run.png",
        TRAJECTORY,
        SOLVED,
    ),
    Command(
        "simulate direct, float64, rank 2",
        f"simulate --activation relu --mixture 0.5 --rank 2 --label-noise 0.1 --dtype float64 --up 0.1 --t1 20 {_SMALL}",
        SIMULATED,
        GIVEN,
    ),
    Command(
        "simulate direct, until escape",
        f"simulate --activation linear --strength 0.3 0.5 --seeds 2 --until-escape {_SMALL}",
        SIMULATED,
        GIVEN,
    ),
    Command(
        "simulate chain, until escape",
        f"simulate --method chain --strength 0.3:0.5:2 --seeds 8 --until-escape {_LARGE}",
        SIMULATED,
        GIVEN,
    ),
    Command(
        "simulate chain, rank 3, file",
        "simulate --method chain --dim 1e6 --rank 3 --free-rows --t1 60 --seeds 5 --block 2 --records 10"
        " --criterion overlap --threshold 0.1 --output {folder}/run.nc",
        SIMULATED,
        GIVEN,
    ),
    Command(
        "simulate gaussian",
        "simulate --method gaussian --dim 1e8 --batch-size 1e8 --strength 0.4 --alignment 0.9 --t1 80 --seeds 4",
        SIMULATED,
        GIVEN,
    ),
    Command(
        "phase-diagram linear, file",
        "phase-diagram --activation linear --strength 0.1:1.4:6 --alignment 0.3 0.9 1 --output {folder}/run.nc",
        kinds=REGIMES,
    ),
    Command(
        "phase-diagram erf",
        f"phase-diagram --strength 0.2:1.4:5 --alignment 0 0.8 --rank 2 --learning-rate 0.1 {_LARGE}",
        kinds=REGIMES,
    ),
    Command(
        "checkpoints, confirmed",
        "checkpoints --cosine 0.8 --points 12 --confirm 4 --dim 500 --batch-size 100 --pretraining-batch-size 50",
        INTEGRATED,
        CHAIN | {"slope": SLOPE},
    ),
    Command(
        "remedies, confirmed",
        "remedies --strength 0.3 --ways noise scale --confirm 4 --dim 1e4 --batch-size 1000",
        INTEGRATED,
        CHAIN,
    ),
    Command(
        "validate",
        "validate --activation linear --strength 0.5 --quick --checks trajectory law",
        SIMULATED,
        THEORY,
    ),
    Command(
        "validate stages",
        "validate --activation linear --strength 0.7 --alignment 0.8 --noise-scale 0.5 --learning-rate 0.05"
        " --seed 1 --checks stages",
        SIMULATED,
        THEORY,
        resampled=", direct",
    ),
    Command("figures", "figures --list"),
    _text("escape He2", "escape --activation He2 --strength 0.5 0.8"),
    _text("solve", "solve --t1 200"),
    _text("simulate", f"simulate --method chain --strength 0.3 0.5 --seeds 4 --until-escape {_LARGE}"),
    _text(
        "checkpoints relu, goal",
        "checkpoints --activation relu --cosine 0.6 --spherical --weight-decay 0.01 --rank 2 --goal 0.05 --points 4"
        f" --pretraining-time 5 {_LARGE}",
    ),
    _text("figures", "figures --list"),
    _wrong("strength", "escape --strength 0"),
    _wrong("link function", "solve --activation eff"),
    _wrong("no number", "escape --rank two"),
    _wrong("flag", "simulate --sead 1"),
    _wrong("resume", "simulate --resume"),
    _wrong("infinite batch", "remedies --batch-size inf"),
    _wrong("endless search", "solve --strength 1"),
)


@dataclasses.dataclass
class Findings:
    """What a comparison found: how many numbers, the one that uses most of what it may differ by, and all that is wrong."""

    numbers: int = 0
    largest: float = 0.0
    where: str = ""
    used: float = 0.0
    kinds: dict[str, None] = dataclasses.field(default_factory=dict)
    rounded: bool = False
    wrong: list[str] = dataclasses.field(default_factory=list)
    added: list[str] = dataclasses.field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In one word."""
        if self.wrong:
            return "DIFFERS"
        return "rounding" if self.rounded else "same" if self.largest == 0 else "agrees"

    def compare(self, command: Command, old: Any, new: Any, path: tuple[str, ...] = ()) -> None:
        """Compares two JSON values and all that is in them."""
        here = ".".join(path)
        if isinstance(old, dict) and isinstance(new, dict):
            if command.resampled and str(old.get("name")).endswith(command.resampled):
                command = dataclasses.replace(command, kind=CLOSED, kinds=SAMPLES)
            self.wrong += [f"{'.'.join([*path, key])} is missing" for key in old if key not in new]
            self.added += [".".join([*path, key]) for key in new if key not in old]
            for key in old:
                if key in new:
                    self.compare(command, old[key], new[key], (*path, key))
        elif isinstance(old, list) and isinstance(new, list):
            if len(old) != len(new):
                self.wrong.append(f"{here}: {len(new)} entries instead of {len(old)}")
            for number, (one, other) in enumerate(zip(old, new, strict=False)):
                self.compare(command, one, other, (*path, str(number)))
        elif is_number(old) and is_number(new):
            self.number(command.kind_of(path), old, new, here)
        elif type(old) is not type(new) or old != new:
            self.wrong.append(f"{here}: {json.dumps(new)[:200]} instead of {json.dumps(old)[:200]}")

    def number(self, kind: Kind, old: float, new: float, where: str) -> None:
        """Compares two numbers."""
        self.numbers += 1
        self.kinds.setdefault(str(kind))
        if old == new or (math.isnan(old) and math.isnan(new)):
            return
        difference = abs(new - old)
        if difference <= kind.floor:
            return
        relative = difference / max(abs(old), abs(new))
        used = relative / kind.limit
        self.rounded |= kind is SIMULATED
        if used > self.used:
            self.largest, self.where, self.used = relative, where, used
        if not used <= 1:
            self.wrong.append(f"{where}: {new!r} instead of {old!r}, by {relative:.1e} ({kind})")

    def text(self, old: str, new: str, where: str) -> None:
        """Compares two texts: the same words, and numbers that differ by no more than one unit of the last digit."""
        self.kinds.setdefault(TEXT.name)
        old, new = (_STEPS.sub("steps", words) for words in (old, new))
        before, after = _NUMBER.findall(old), _NUMBER.findall(new)
        self.numbers += len(before)
        if old == new:
            return
        if before == after or _NUMBER.sub("#", old).split() != _NUMBER.sub("#", new).split():
            self.wrong += [f"{where}: {line}" for line in differing_lines(old, new)]
            return
        self.rounded = True
        for one, other in zip(before, after, strict=True):
            a, b = float(one), float(other)
            relative = abs(a - b) / max(abs(a), abs(b), math.ulp(0.0))
            if relative > self.largest:
                self.largest, self.where = relative, f"{where}: {one}"
            if abs(a - b) > max(1.01 * unit(one), 1.01 * unit(other), TEXT.floor):
                self.wrong.append(f"{where}: {other} instead of {one}")


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def unit(number: str) -> float:
    """One unit of the last digit of a printed number.

    >>> unit("1.25e-3")
    1e-05
    """
    mantissa, _, exponent = number.partition("e")
    return float(f"1e{int(exponent or 0) - len(mantissa.partition('.')[2])}")


def differing_lines(old: str, new: str) -> list[str]:
    """The lines in which two texts differ."""
    before, after = old.splitlines(), new.splitlines()
    if len(before) != len(after):
        return [f"{len(after)} lines instead of {len(before)}: {new[:200]!r} instead of {old[:200]!r}"]
    return [f"{b!r} instead of {a!r}" for a, b in zip(before, after, strict=True) if a != b]


def process(checkout: Path, arguments: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a checkout's packages, on one wide line per flag of `--help`."""
    path = os.pathsep.join([str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, *(word.replace("{folder}", folder) for word in arguments)]
    environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}
    return subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True)


def run(checkout: Path, arguments: list[str]) -> dict[str, Any]:
    """What a command prints and which files it writes, with its exit code and how long it takes."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = process(checkout, ["-m", "validation", *arguments], folder)
        seconds = time.perf_counter() - began
        files = {str(path.relative_to(folder)): content(path) for path in sorted(Path(folder).rglob("*"))}
        streams = {name: getattr(done, name).replace(folder, "{folder}") for name in ("stdout", "stderr")}
    return {"code": done.returncode, "seconds": seconds, "files": files} | streams


def content(path: Path) -> dict[str, Any] | None:
    """The variables and attributes of a netCDF file, None for other files."""
    if path.suffix != ".nc":
        return None
    dataset = xarray.load_dataset(path, engine="h5netcdf")
    attributes = {}
    for name, value in dataset.attrs.items():
        if name.startswith("version_") or name in _INCIDENTAL:
            continue
        try:
            attributes[name] = json.loads(value)
        except (ValueError, TypeError):
            attributes[name] = plain(value)
    attributes["command"] = dict.fromkeys(attributes.get("command", ()))
    variables = {
        str(name): {"dimensions": [str(dimension) for dimension in values.dims], "values": plain(values.values)}
        for name, values in dataset.variables.items()
    }
    return {"variables": variables, "attributes": attributes}


def compared(command: Command, old: dict[str, Any], new: dict[str, Any]) -> Findings:
    """Two runs of a command."""
    findings = Findings()
    if old["code"] != new["code"]:
        findings.wrong.append(f"exit code {new['code']} instead of {old['code']}: {new['stderr'][-500:].strip()}")
    if command.wrong:
        findings.text(old["stderr"], new["stderr"], "standard error")
    try:
        values = [json.loads(one["stdout"]) for one in (old, new)] if command.json else None
    except ValueError:
        findings.wrong.append("what is printed is not JSON")
        return findings
    if values is None:
        findings.text(old["stdout"], new["stdout"], "text")
    else:
        findings.compare(command, *values)
    findings.compare(command, old["files"], new["files"], ("files",) if old["files"] else ())
    return findings


def flags(help_text: str) -> dict[str, str | None]:
    """The flags that a help text explains, and their defaults."""
    places = list(_FLAG.finditer(help_text))
    ends = [place.start() for place in places[1:]] + [len(help_text)]
    found = {}
    for place, end in zip(places, ends, strict=True):
        words = " ".join(help_text[place.end() : end].replace("│", " ").split())
        default = re.search(r"\(default: (.*?)\)", words)
        found[place[1]] = default and default[1]
    return found


def names_of(help_text: str) -> list[str]:
    """The commands that the help text of the whole program lists."""
    listed = re.search(r"\{([a-z,-]+)\}", help_text)
    if listed is None:
        raise SystemExit("`--help` does not list the commands")
    return listed[1].split(",")


class Outputs:
    """The outputs of a checkout's commands, run once or read from a file made by an earlier run of the same code."""

    def __init__(self, checkout: Path, cache: Path | None = None):
        self.checkout, self.cache = checkout, cache
        self.code = fingerprint(checkout)
        self.stored: dict[str, Any] = {}
        if cache is not None and cache.exists():
            read = json.loads(cache.read_text())
            if read["code"] == self.code and read["jax"] == jax.__version__:
                self.stored = read["outputs"]
        where = process(checkout, ["-c", f"import {', '.join(_PACKAGES)}; print(validation.__file__)"], "")
        if where.returncode or Path(where.stdout.strip()).resolve().parent.parent != checkout:
            raise SystemExit(f"{checkout} does not hold the project: {where.stdout}{where.stderr}")

    def of(self, arguments: list[str]) -> dict[str, Any]:
        """What a command prints and writes."""
        line = " ".join(arguments)
        if line not in self.stored:
            self.stored[line] = run(self.checkout, arguments)
            if self.cache is not None:
                self.cache.write_text(
                    json.dumps({"code": self.code, "jax": jax.__version__, "outputs": self.stored}, indent=1)
                )
        return self.stored[line]


def fingerprint(checkout: Path) -> str:
    """A number that changes with the code of a checkout."""
    digest = hashlib.sha256()
    for file in sorted(file for package in _PACKAGES for file in (checkout / package).rglob("*")):
        if file.suffix in (".py", ".toml", ".mplstyle"):
            digest.update(str(file.relative_to(checkout)).encode() + file.read_bytes())
    return digest.hexdigest()


def compare_flags(old: Outputs, new: Outputs) -> dict[str, Findings]:
    """The commands, and the flags of each with their defaults."""
    program = Findings()
    names = names_of(old.of(["--help"])["stdout"])
    present = names_of(new.of(["--help"])["stdout"])
    program.wrong = [f"the command {name} is missing" for name in names if name not in present]
    program.added = [name for name in present if name not in names]
    rows = {"commands": program}
    for name in tqdm([name for name in names if name in present], unit="help", disable=None):
        before, after = (flags(outputs.of([name, "--help"])["stdout"]) for outputs in (old, new))
        rows[f"flags of {name}"] = findings = Findings(where=f"{len(before)} flags")
        findings.compare(_text(name, name), before, after)
        if not before:
            findings.wrong.append("no flags were found in the help text")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the outputs of two revisions, number by number.")
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT", help="folder of the revision to compare with")
    parser.add_argument("--new", type=Path, default=HERE, help="folder of the other revision (this one unless given)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only commands, and flags, whose names begin like this"
    )
    parser.add_argument("--cache", type=Path, help="JSON file that keeps the outputs of OLD_CHECKOUT")
    options = parser.parse_args()
    old, new = Outputs(options.old.resolve(), options.cache), Outputs(options.new.resolve())
    wanted = tuple(options.only or [""])
    chosen = [command for command in COMMANDS if command.name.startswith(wanted)]
    found: dict[str, Findings] = {}
    seconds = [0.0, 0.0]
    if any("flags".startswith(name) for name in wanted):
        found |= compare_flags(old, new)
    if not chosen and not found:
        raise SystemExit("--only takes beginnings of: flags, " + ", ".join(command.name for command in COMMANDS))
    for command in tqdm(chosen, unit="command", disable=None):
        outputs = [checkout.of(command.arguments) for checkout in (old, new)]
        seconds = [total + one["seconds"] for total, one in zip(seconds, outputs, strict=True)]
        found[command.name] = compared(command, *outputs)
    print(f"{old.checkout} (old) and {new.checkout} (new); {seconds[0]:.0f} s and {seconds[1]:.0f} s\n")
    print(
        table(
            [
                {
                    "command": name,
                    "numbers": one.numbers,
                    "allowed": ", ".join(one.kinds) or "none",
                    "difference": one.largest,
                    "where": one.where or "-",
                    "verdict": one.verdict,
                }
                for name, one in found.items()
            ]
        )
    )
    for name, one in found.items():
        for line in one.wrong[:_SHOWN]:
            print(f"{name}: {line}")
        if len(one.wrong) > _SHOWN:
            print(f"{name}: and {len(one.wrong) - _SHOWN} more")
        if one.added:
            print(f"{name}: additional: {', '.join(one.added)}")
    wrong = sum(bool(one.wrong) for one in found.values())
    print(f"\n{len(found) - wrong} of {len(found)} agree")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
