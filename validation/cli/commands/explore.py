"""`searchphase explore`: a local page with sliders."""

import dataclasses
import importlib.util

from odes.arguments import ArgumentError
from validation.cli.values import DeviceOptions, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explore(DeviceOptions):
    """Open a page in the browser on which sliders move a problem and all that theory says of it follows: the time scale of the search, the
    flow, the law of the escape time, the place in the phase diagram, a few simulated seeds.

    It is served from this machine, for this machine alone, until Ctrl-C. Needs the extra [app]: pip install 'searchphase[app]'.
    """

    port: int = 8017
    """Port of this machine on which the page is served; 0 takes one that is free."""
    no_browser: bool = False
    """Only print the address, and do not open it."""

    def run(self) -> int:
        check("port", self.port, "between 0 and 65535", 0 <= self.port <= 65535)
        for package in ("bokeh", "tornado"):
            if importlib.util.find_spec(package) is None:
                raise ArgumentError(None, f"needs the package {package}: pip install 'searchphase[app]'")
        from validation.explore.server import explore

        explore(self.port, browser=not self.no_browser)
        return 0

    def interrupted(self) -> str:
        """What is said when Ctrl-C ends the server."""
        return "the page is closed"
