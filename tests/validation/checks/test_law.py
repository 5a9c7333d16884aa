"""The law of the escape time against the chain."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import special

from odes import SGD, Adapter, Escape, Problem
from tests.problems import single
from theory import escape_law, fluctuations, mode_start, passage, patience, search_phase, unstable_mode
from validation.checks.base import QUICK, z_limit
from validation.checks.law import law as law_checks
from validation.checks.settings import SHIPPED, read_settings
from validation.simulation import even_steps, simulate_chain


@pytest.mark.slow
def test_slow_crossing_gives_single_runs_a_head_start(key):
    """Runs cross before the flow by about the head start, as long as that is small."""
    escape = Escape("overlap", 0.4)
    for d, refused in ((2e4, True), (2e5, False)):
        problem = single(d=d, theta=20.0, normalized=False, noise=0.1, alignment=0.7)
        law, phase = escape_law(problem, escape), search_phase(problem)
        mode = unstable_mode(problem)
        start = mode_start(problem, mode, law.amplitude[None])
        flow_run = passage(problem, start, escape, patience(phase))
        ahead = float(fluctuations(problem, escape, phase, flow_run.final).head_start)
        run = simulate_chain(problem, key=key, seeds=200, steps=np.arange(0, 501), start=start, escape=escape)
        times = np.asarray(run.escape_times)
        error = times.std() / np.sqrt(times.size)
        assert abs(float(flow_run.escape_time) - times.mean() - ahead) < 0.35 * ahead + 3 * error
        assert ("SGD noise at the escape" in law.doubt) == refused


CHAIN_CASES = {
    "rank 8": single(rank=8, d=2e3),
    "mixture": Problem.mixture("erf", mu=0.5, sgd=SGD(dimension=2e3, batch_size=400)),
    "mixture, rank 8": Problem.mixture("erf", mu=0.5, adapter=Adapter(8), sgd=SGD(dimension=2e3, batch_size=400)),
    "LoRA+, label noise": single(
        "relu", strength=0.4, alignment=0.7, theta=1.0, noise=0.3, lr_ratio=4.0, scale=0.7, d=8e3
    ),
    "free rows, large noise": single(theta=5.0, normalized=False, d=2e4, noise=0.1, alignment=0.7),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CHAIN_CASES)
def test_law_against_the_exact_chain(case, key):
    """600 seeds: the mean within 3 standard errors or 3 %, the standard deviation within 4."""
    problem, escape = CHAIN_CASES[case], Escape("overlap", 0.4)
    law = escape_law(problem, escape)
    steps = even_steps(1.5 * float(law.quantile(1 - 1e-6)), 0.2, 300)
    times = np.asarray(
        simulate_chain(problem, key=key, seeds=600, steps=steps, escape=escape, until_escape=True).escape_times
    )
    assert np.isfinite(times).all()
    error = times.std() / np.sqrt(times.size)
    assert abs(times.mean() - float(law.mean)) < max(3 * error, 0.03 * float(law.mean))
    r = problem.adapter.rank
    excess = special.polygamma(3, r / 2) / special.polygamma(1, r / 2) ** 2
    assert abs(times.std() / float(law.std) - 1) < 4 * np.sqrt((excess + 2) / (4 * times.size))


@pytest.mark.slow
def test_a_committee_of_a_file_agrees_and_a_lighter_theory_is_caught(tmp_path):
    """The law of two units against the chain; a theory whose noise is that of larger batches is early at this noise scale."""
    settings = tmp_path / "settings.toml"
    settings.write_text('[[setting]]\nname = "two"\nproblem = "two.toml"\nchecks = ["law"]\n')
    problem = (SHIPPED.parent / "committee.toml").read_text()
    (tmp_path / "two.toml").write_text(problem.replace("batch_size = 1000", "batch_size = 100"))
    (setting,) = read_settings(settings)
    effort = dataclasses.replace(QUICK, law_seeds=100)
    case = setting.case(effort, jax.random.key(3))
    checks = list(law_checks(case))
    assert len(checks) == 4 and all(check.agrees(z_limit(len(checks))) for check in checks)
    wrong = dataclasses.replace(case, theory=case.theory.replace(batch_size=2000))
    assert not all(check.agrees(z_limit(4)) for check in law_checks(wrong))
