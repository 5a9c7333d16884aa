"""What of a run is finished, on disk: result by result, under a hash of what determines it.

While a run whose result will be the file `run.nc` goes on, the folder `run.nc.parts` holds `settings.json`, all that
determines the run's numbers, and a file `NAME.HASH` for every job that is finished, written whole or not at all. The hash
is that of the settings and the job's name. Files are Python pickles, as executors send them: go on only with what you trust.
"""

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odes.arguments import ArgumentError
from odes.pickles import packed, unpacked
from odes.storage import provenance, write_whole

_INCIDENTAL = ("output", "plot", "json", "resume", "force", "workers", "scheduler", "retries", "device")
"""Flags that do not determine a result's numbers."""

_THREADS = "PJRT_NPROC"
"""What says how many threads XLA has on a CPU, which share long sums: their last digits go with the number."""

_DIGEST = 32
"""Bytes of a part's content hash, which stands in front of the content."""


class Parts:
    """What a run of a command with some `flags` has finished so far, with `path` as its final file.

    A run either starts, and then there must be no folder of parts, or goes on with `resume`. Parts are used only if the
    same flags, package versions, device, floating point type and number of XLA's threads made them: then a run that was
    interrupted ends in the numbers of an uninterrupted one, bit for bit.

    **Raises** ArgumentError if there are parts without `resume`, or with it some that other settings made.
    """

    def __init__(self, path: str, flags: dict[str, Any], resume: bool):
        self.path, self.flags, self.resume = path, flags, resume
        self._settings = _settings(provenance(command=flags)) | {_THREADS: os.environ.get(_THREADS)}
        self._fixed: dict[str, Any] = {}
        if self.folder.exists() and not self.folder.is_dir():
            raise ArgumentError(None, f"{self.folder} is where finished parts would be kept, but is no folder")
        if self.folder.exists() and not resume:
            raise ArgumentError(
                None, f"{self.folder} holds an unfinished run: go on with --resume, or remove that folder"
            )
        if self.begun:
            self._read_settings()

    @classmethod
    def temporary(cls) -> "Parts":
        """Parts of a run without a final file, in a temporary folder that is removed once nothing refers to them."""
        folder = tempfile.mkdtemp(prefix="searchphase-")
        parts = cls(f"{folder}/run", {}, resume=False)
        weakref.finalize(parts, shutil.rmtree, folder, ignore_errors=True)
        return parts

    @property
    def folder(self) -> Path:
        """Where the finished parts are."""
        return Path(f"{self.path}.parts")

    @property
    def begun(self) -> bool:
        """Whether anything was finished before."""
        return (self.folder / "settings.json").exists()

    def fixed(self, name: str, value: Any) -> Any:
        """A setting that is chosen when the run starts, `value`, and then stays what it was: a block's size, say."""
        return self._fixed.setdefault(name, value)

    def __contains__(self, name: str) -> bool:
        return self._file(name).exists()

    def read(self, name: str) -> Any:
        """The result that is kept under this name. **Raises** ArgumentError if it is damaged."""
        digest, content = (data := memoryview(self._file(name).read_bytes()))[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            raise ArgumentError(None, f"{self._file(name)} is damaged: remove it to have it computed again")
        return unpacked(content)

    def write(self, name: str, result: Any) -> None:
        """Keeps a result."""
        if not self.begun:
            self.folder.mkdir(exist_ok=True)
            text = json.dumps({"settings": self._settings, "fixed": self._fixed}, indent=1)
            write_whole(self.folder / "settings.json", lambda temporary: temporary.write_text(text))
        content = packed(result)
        digest = hashlib.sha256(content).digest()
        write_whole(self._file(name), lambda temporary: temporary.write_bytes(digest + content))

    def require_space(self, needed: float) -> None:
        """Raises ArgumentError, before anything is computed, if there is no room on disk for so many bytes."""
        place = self.folder.absolute().parent
        free = shutil.disk_usage(place).free
        if needed > free:
            words = f"{needed / 2**30:.3g} GiB in {place}, but {free / 2**30:.3g} GiB are free"
            raise ArgumentError(None, f"keeping all records of all seeds needs about {words}")

    def remove(self) -> None:
        """Removes the folder of parts."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _file(self, name: str) -> Path:
        what = json.dumps([self._settings, self._fixed, name], sort_keys=True)
        return self.folder / f"{name}.{hashlib.sha256(what.encode()).hexdigest()[:16]}"

    def _read_settings(self) -> None:
        file = self.folder / "settings.json"
        try:
            stored = json.loads(file.read_text())
            settings, self._fixed = stored["settings"], stored["fixed"]
        except (ValueError, KeyError, TypeError, OSError):
            raise ArgumentError(None, f"{file} is not that of a run: remove {self.folder}") from None
        refuse_other(file, _differences(settings, json.loads(json.dumps(self._settings)), against="now"))


def refuse_other(file: Path, different: Sequence[str]) -> None:
    """Raises ArgumentError if a file was made with different settings."""
    if different:
        raise ArgumentError(
            None,
            f"{file} was made with {', '.join(different)}: --resume takes the same again, or name another --output",
        )


def made_by(dataset: Any, flags: dict[str, Any]) -> bool:
    """Whether a command with the same `flags`, but for incidental ones, made a stored dataset."""
    return not any(word.startswith("--") for word in differing(dataset.attrs, provenance(command=flags)))


def differing(
    attributes: dict[str, str], others: dict[str, str], free: Sequence[str] = (), *, against: str = "there"
) -> list[str]:
    """Which of the settings that determine a stored result are not those of another, in words; `free` flags may differ."""
    return _differences(_settings(attributes), _settings(others), free, against=against)


def _settings(attributes: dict[str, str]) -> dict[str, Any]:
    """What determines the numbers of a stored result, by name."""
    flags = json.loads(attributes["command"])
    settings = {_flag(key): value for key, value in flags.items() if key not in _INCIDENTAL}
    settings |= {key.removeprefix("version_"): attributes[key] for key in attributes if key.startswith("version_")}
    return settings | {"device": attributes["device"], "floating point type": attributes["dtype"]}


def _differences(ours: dict[str, Any], theirs: dict[str, Any], free: Sequence[str] = (), *, against: str) -> list[str]:
    fixed = [name for name in dict.fromkeys([*theirs, *ours]) if name not in {_flag(key) for key in free}]
    return [
        f"{name} {_shown(ours.get(name))} ({against} {_shown(theirs.get(name))})"
        for name in fixed
        if ours.get(name) != theirs.get(name)
    ]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
