import pytest

from tests.browsers import CHROMIUM


@pytest.fixture(scope="session")
def linear_diagram():
    """The phase diagram of linear links, where closed forms are known, and its boundaries."""
    from theory import boundaries, phase_diagram

    found = phase_diagram("linear", strengths=[0.1, 0.33, 0.55, 0.88, 1.3], alignments=[0.0, 0.3, 0.5, 0.8, 1.0])
    return found, boundaries(found)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; what needs it is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright comes with searchphase[docs]")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()
