"""The figures: every one computes and draws, resumes, and shows the numbers it should."""

import dataclasses

import numpy as np
import pytest

from odes import Problem
from tests.problems import single
from theory import search_phase
from validation.figures import escape_time
from validation.figures.effort import Effort
from validation.figures.escape_time import Link
from validation.figures.figure import Figure
from validation.figures.registry import all_figures
from validation.figures.work import Work

pytestmark = pytest.mark.carefully

HE3_AT_HALF = 2 / (np.hypot(2.8125, 2 * 3.09375) - 2.8125)
"""tau of He3, aligned at q = mu^2 = 1/4: D = 45 q^2 - 36 q + 9, sqrt(G) = 9 mu (4 mu^2 + 2 mu - 1 - 5 mu^4)."""


TINY = Effort(
    points=8,
    marks=2,
    seeds=4,
    dimension=400.0,
    direct_seeds=3,
    direct_dimension=60.0,
    most_steps=400,
    simulated_links=1,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", all_figures())
def test_every_figure_computes_and_draws(name, tmp_path):
    paths = all_figures()[name].files(tmp_path, all_figures()[name].compute(Work(TINY)))
    assert [path.name for path in paths] == [f"{name}.pdf", f"{name}.png"]
    assert all(path.stat().st_size > 5000 for path in paths)


def test_an_interrupted_figure_goes_on_with_what_is_kept(tmp_path):
    """The simulations that were finished are not run again, and the result is that of an uninterrupted run."""
    runs, broken = [], True

    def compute(work):
        import xarray

        values = []
        for number in range(3):
            if broken and number == 2:
                raise KeyboardInterrupt
            run = work.chain(Problem.single_index("linear", strength=0.5), [0, 5], seeds=3)
            runs.append(number)
            values.append(np.asarray(run.loss[:, -1]))
        return xarray.Dataset({"loss": (("run", "seed"), np.stack(values))})

    figure = Figure("test", "A test.", compute, lambda dataset: None)
    with pytest.raises(KeyboardInterrupt):
        figure.computed(tmp_path, TINY)
    (first,) = (tmp_path / "test.nc.parts").glob("simulation-1-seeds-0-to-2.*")
    kept = first.stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        figure.computed(tmp_path, TINY)
    assert first.stat().st_mtime_ns == kept
    broken = False
    resumed = figure.computed(tmp_path, TINY)
    assert not (tmp_path / "test.nc.parts").exists()
    np.testing.assert_array_equal(resumed["loss"], figure.compute(Work(TINY))["loss"])


@pytest.mark.parametrize(
    "plan, expected",
    [
        (escape_time.Plan([Link("linear")]), [4.828427125]),
        pytest.param(
            escape_time.Plan([Link("linear"), Link("relu")]), [4.828427125, 9.656854249], marks=pytest.mark.slow
        ),
        pytest.param(
            escape_time.Plan([Link("erf"), Link("sigmoid")]), [45.59417214, 178.6088705], marks=pytest.mark.slow
        ),
        pytest.param(escape_time.Plan([Link("erf")], squared=True, noise=0.0), [8.044551184], marks=pytest.mark.slow),
        pytest.param(escape_time.Plan([Link("He3")], noise=0.0), [HE3_AT_HALF], marks=pytest.mark.slow),
    ],
)
def test_tau_of_the_escape_time_figures(plan, expected):
    """The lines against values computed apart; the markers, from simulated escape times alone, within 4.5 standard errors."""
    settings = dataclasses.replace(TINY, seeds=80, dimension=2e4, most_steps=8000, simulated_links=9)
    data = escape_time.compute(Work(settings), plan)
    middle = data["strength"].size // 2
    assert abs(float(data["strength"][middle]) - 0.5) < 1e-12
    np.testing.assert_allclose(data["tau"][:, middle], expected, rtol=1e-8)
    for i, link in enumerate(plan.links):
        marked = [single(link.name, strength=mu, teacher=plan.teacher(link.name)) for mu in data["mark"].values]
        tau = np.array([1 / float(search_phase(problem).rate) for problem in marked])
        z = (data["simulated_tau"][i] - tau) / np.hypot(data["standard_error"][i], 0.01 * tau)
        assert np.isfinite(z).any() and np.nanmax(np.abs(z)) < 4.5
