"""How much is computed for a figure."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is computed for a figure.

    - `points`: of a theory curve; `marks`: simulated points along it;
    - `seeds`, `dimension`: of the chain; `direct_seeds`, `direct_dimension`: of the direct simulator;
    - `most_steps`: simulations that would need more steps are left out, or end there;
    - `simulated_links`: of how many link functions of one figure τ is simulated;
    - `seed`: of the random numbers.
    """

    points: int
    marks: int
    seeds: int
    dimension: float = 2000.0
    direct_seeds: int
    direct_dimension: float
    most_steps: int
    simulated_links: int
    seed: int = 0


QUICK = Effort(
    points=60, marks=4, seeds=60, direct_seeds=4, direct_dimension=200.0, most_steps=15_000, simulated_links=1
)
FULL = Effort(
    points=120, marks=6, seeds=200, direct_seeds=12, direct_dimension=400.0, most_steps=25_000, simulated_links=10
)
