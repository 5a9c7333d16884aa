import jax
import pytest

from odes import random_overlaps
from tests.problems import single


@pytest.fixture(scope="session")
def problem():
    """Escapes at about t = 100."""
    return single(theta=0.0, d=1000, alignment=0.9)


@pytest.fixture(scope="session")
def start(problem):
    return random_overlaps(problem, jax.random.key(3))
