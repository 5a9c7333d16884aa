import pytest


@pytest.fixture(scope="session")
def linear_diagram():
    """The phase diagram of linear links, where closed forms are known, and its boundaries."""
    from theory import boundaries, phase_diagram

    found = phase_diagram("linear", strengths=[0.1, 0.33, 0.55, 0.88, 1.3], alignments=[0.0, 0.3, 0.5, 0.8, 1.0])
    return found, boundaries(found)
