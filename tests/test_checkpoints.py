"""Verdicts on checkpoints and remedies: the search for the best, the commands, bad input, theory against the chain."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from odes import SGD, Escape, Problem, Transfer
from theory import VERDICTS, Turn, fine_tuning, judge, remedies
from validation.cli.main import main
from validation.simulation.fine_tuning import simulated_fine_tuning

judged = importlib.import_module("theory.pretraining")
remedied = importlib.import_module("theory.remedy")


@pytest.mark.parametrize(
    "costs, kind, critical",
    [
        ([3, 2, 1], "helps", None),
        ([1, 2, 3], "hurts", 0),
        ([3, 1, 2], "optimum", 1),
        ([1, 3, 2], "barrier", None),
        ([2, 1, 3, 2.5], "both", None),
        ([3, 2, 2.5, 1], "mixed", None),
        ([1, 2, 1.5, 3], "mixed", 2),
        ([1, 1.005, 1], "indifferent", None),
        ([1, 2, 1.99], "hurts", 0),
        ([3, 1, 0], "helps", None),
    ],
)
def test_kind_and_critical_time(costs, kind, critical):
    known = [Turn(float(i), "swept", float(cost)) for i, cost in enumerate(costs)]
    assert judged._kind(known) == kind
    assert judged._critical(known) == critical
    assert kind in VERDICTS


def test_the_best_checkpoint_is_the_minimum(key):
    """The slope's zero against a bounded minimisation of the fine-tuning time itself."""
    transfer = Transfer("erf", cosine=0.8, sgd=SGD(learning_rate=0.05, batch_size=500, dimension=1e4))
    times, goal = np.concatenate([np.zeros(1), np.geomspace(0.1, 5, 7)]), Escape("absolute", 0.0232)
    verdict = judge(transfer, times, goal)
    assert verdict.kind == "optimum" and verdict.best is not None

    def cost(at):
        grid = at * np.arange(1, times.size + 1) / times.size
        return float(judged.checkpoints(transfer, grid, goal).tuning.time[-1])

    found = optimize.minimize_scalar(cost, bounds=(0.1, 0.6), method="bounded", options={"xatol": 1e-4})
    np.testing.assert_allclose(verdict.best.cost, found.fun, rtol=1e-5)
    np.testing.assert_allclose(verdict.best.at, found.x, rtol=2e-2)
    assert verdict.critical == verdict.best.at
    simulated = simulated_fine_tuning(transfer, 1.0, goal, longest=120.0, seeds=60, key=key)
    error = simulated.std(ddof=1) / np.sqrt(simulated.size)
    assert abs(simulated.mean() - cost(1.0)) < 4 * error


def test_cheapest_finds_the_least_samples():
    """A quadratic in the logarithms whose minimum, (2, 30), is off every grid; not reached beyond 50."""

    def way(numbers):
        x, y = jnp.log(numbers)
        samples = 1 + (x - jnp.log(2.0)) ** 2 + 0.3 * (y - jnp.log(30.0)) ** 2
        zero = jnp.zeros_like(x)
        return remedied.Outcome(zero, jnp.where(numbers[1] < 50, samples, jnp.nan), zero, zero, zero, zero, zero)

    chosen, outcome = remedied.cheapest(way, ([0.1, 0.1], [100.0, 1000.0]), 8)
    np.testing.assert_allclose(chosen, [2, 30], rtol=2e-2)
    np.testing.assert_allclose(outcome.samples, 1, rtol=1e-3)


@pytest.mark.slow
def test_best_noise_scale():
    """t/θ by the remedies' search against SciPy's minimisation; the other ways are no worse than their start."""
    sgd = SGD(learning_rate=0.05, batch_size=500, dimension=1e4)
    problem = Problem.single_index("erf", strength=0.7, sgd=sgd)
    found = {remedy.name: remedy for remedy in remedies(problem, ways=["noise", "lr-ratio", "full"])}

    @jax.jit
    def samples(log_theta):
        changed = remedied.with_noise_scale(problem, jnp.exp(log_theta))
        return fine_tuning(changed).time / jnp.exp(log_theta)

    best = optimize.minimize_scalar(lambda x: float(samples(jnp.asarray(x))), bounds=(3, 4.5), method="bounded")
    np.testing.assert_allclose(found["noise scale"].samples, best.fun, rtol=1e-3)
    assert found["lr ratio"].samples <= (1 + 1e-6) * found["noise scale"].samples
    assert found["full weights"].samples < found["noise scale"].samples < found["as given"].samples


def test_checkpoints_command(capsys, tmp_path):
    flags = ["--points", "5", "--pretraining-time", "4", "--cosine", "0.8", "--criterion", "absolute"]
    flags += ["--threshold", "0.0232", "--goal", "0.0232"]
    files = ["--output", str(tmp_path / "run.nc"), "--plot", str(tmp_path / "run.png")]
    assert main(["checkpoints", *flags, "--json", *files]) == 0
    first, second = json.loads(capsys.readouterr().out)["cases"]
    assert first == second
    assert first["verdict"] == "optimum" and first["reached"] == [0, 4]
    assert first["critical"] == first["best"]["pretraining_time"]
    point = first["checkpoints"][0]
    assert point["pretraining_time"] == 0 and point["alignment"] == pytest.approx(0.008)
    assert (tmp_path / "run.nc").stat().st_size > 1000 and (tmp_path / "run.png").stat().st_size > 5000


@pytest.mark.slow
def test_pretraining_time_zero_is_a_random_w0(capsys):
    assert main(["checkpoints", "--pretraining-time", "0"]) == 0
    assert capsys.readouterr().out.count("pretraining time 0 means random weights: fine-tuning from them takes") == 2


@pytest.mark.parametrize(
    "command, words",
    [
        (["checkpoints", "--cosine", "1.5"], "--cosine must be between -1 and 1, but is 1.5"),
        (["checkpoints", "--points", "2"], "--points must be at least 3"),
        (["checkpoints", "--pretraining-time", "-1"], "--pretraining-time must be non-negative"),
        (["checkpoints", "--pretraining-time", "0", "--plot", "run.png"], "--pretraining-time above 0"),
        (["checkpoints", "--pretraining-batch-size", "0"], "--pretraining-batch-size must be at least 1"),
        (["checkpoints", "--source", "relux"], "--source must be a name"),
        (["checkpoints", "--goal", "-1"], "--goal must be positive"),
        (["checkpoints", "--confirm", "1"], "--confirm must be at least 2"),
        (["checkpoints", "--spherical", "--length", "2"], "--length must be 1 for spherical"),
        (["remedies", "--ways", "nois"], "did you mean 'noise'"),
        (["remedies", "--batch-size", "inf"], "--batch-size must be finite"),
        (["remedies", "--strength", "0.2", "0.3"], "take one value here"),
        (["remedies", "--goal", "0"], "--goal must be positive"),
    ],
)
def test_bad_input(command, words, capsys):
    assert main(command) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and not printed.out
