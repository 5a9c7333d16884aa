"""`searchphase cache`: the compiled programs that are kept on disk."""

import dataclasses

from validation.cli.compilation import cache_folder
from validation.cli.report import print_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Where compiled programs are kept, so that the next command starts faster, how many there are, and their size."""

    clear: bool = False
    """Remove all of them."""
    json: bool = False
    """Print JSON instead of a sentence."""

    def run(self) -> int:
        folder = cache_folder()
        if self.clear:
            for file in (*folder.glob("*-cache"), *folder.glob("*-atime")):
                file.unlink(missing_ok=True)
        sizes = [file.stat().st_size for file in folder.glob("*-cache")]
        if self.json:
            print_json({"folder": str(folder), "programs": len(sizes), "bytes": sum(sizes)})
        else:
            print(f"{len(sizes)} compiled programs, {sum(sizes) / 2**20:.1f} MiB, in {folder}")
        return 0
