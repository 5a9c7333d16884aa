"""Integration against SciPy, batching, failures, bad arguments."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from odes import Escape, Overlaps, Problem, log_times, mean_change, pretrained, random_overlaps, solve
from odes.arguments import ArgumentError
from tests.helpers import at, close
from tests.problems import single
from tests.reference import erf_trajectory

T1 = 300.0


def test_trajectory_and_escape_match_scipy(problem, start):
    solution = solve(problem, start, t1=T1, escape=Escape(), rtol=1e-10, atol=1e-12)
    times = np.asarray(solution.t)
    path, loss = erf_trajectory(0.5, 0.9, [float(x) for x in (start.up[0, 0], *start.cross[0])], T1)
    for ours, theirs in zip((solution.u, solution.m, solution.s), path(times), strict=True):
        np.testing.assert_allclose(ours[:, 0], theirs, atol=1e-8)
    np.testing.assert_allclose(solution.loss, loss(times), atol=1e-9)
    escape = optimize.brentq(lambda t: loss(t) - loss(0) / 2, 1, T1, xtol=1e-12)
    np.testing.assert_allclose(solution.escape_time, escape, rtol=1e-8)
    assert solution.successful and solution.message == "reached t1"


def test_vmap_over_every_parameter_equals_a_loop(start):
    def run(strength, alignment, scale, chi, dimension, noise):
        problem = single(
            d=dimension, batch=100, strength=strength, alignment=alignment, noise=noise, scale=scale, lr_ratio=chi
        )
        return solve(problem, start, t1=50.0, times=jnp.array([10.0, 50.0]), escape=Escape()).overlaps

    values = jnp.array(
        [[0.3, 0.9, 1.0, 1.0, 500.0, 0.0], [0.8, -0.2, 2.0, 0.5, 2000.0, 0.1], [1.4, 0.1, 0.7, 4.0, 50.0, 0.3]]
    )
    batched = jax.vmap(run)(*values.T)
    for i, row in enumerate(values):
        close(at(batched, i), run(*row), rtol=1e-7, atol=1e-7)


def test_dense_output_and_log_times(problem, start):
    times = log_times(T1, 12)
    assert times.shape == (12,) and float(times[0]) == 0 and float(times[-1]) == T1
    np.testing.assert_allclose(np.diff(np.log(times[1:])), np.log(1000) / 10, rtol=1e-10)
    solution = solve(problem, start, t1=T1, times=times, escape=Escape(), dense=True)
    for i in (3, 7, 11):
        np.testing.assert_allclose(solution.evaluate(times[i]).cross, solution.overlaps.cross[i], atol=1e-7)
    met = solve(problem, start, t1=T1, times=times, escape=Escape("absolute", 10.0), dense=True)
    assert float(met.escape_time) == 0
    np.testing.assert_allclose(met.evaluate(times[7]).cross, met.overlaps.cross[7], atol=1e-7)
    with pytest.raises(ValueError, match="`dense`"):
        solve(problem, start, t1=T1).evaluate(1.0)


def test_stiff_solver_agrees(problem, start):
    explicit = solve(problem, start, t1=T1, escape=Escape())
    implicit = solve(problem, start, t1=T1, escape=Escape(), solver=diffrax.Kvaerno5())
    np.testing.assert_allclose(explicit.escape_time, implicit.escape_time, rtol=1e-6)


def test_rank_is_a_relabelling_when_rows_are_equal():
    """Unnormalised rank 2 with the second row unused equals rank 1 at the same kappa."""
    one, two = (single(theta=0.0, rank=rank, scale=rank, normalized=False) for rank in (1, 2))
    small = Overlaps(jnp.array([[0.1]]), jnp.array([[0.2, 0.1]]), jnp.ones((1, 1)))
    padded = Overlaps(jnp.array([[0.1, 0.0]]), jnp.array([[0.2, 0.1], [0.0, 0.0]]), jnp.diag(jnp.array([1.0, 0.0])))
    np.testing.assert_allclose(
        solve(one, small, t1=80.0).target_overlap, solve(two, padded, t1=80.0).target_overlap, atol=1e-8
    )


def test_failed_integration_marks_itself(problem, start):
    for escape in (None, Escape()):
        solution = solve(problem, start, t1=T1, max_steps=20, escape=escape)
        assert not solution.successful and "maximum number of solver steps" in solution.message
        assert jnp.isnan(solution.loss[-1]) and jnp.isfinite(solution.loss[0]) and float(solution.t_final) < T1


def test_bad_arguments_are_named(problem, start):
    for arguments, message in [
        (dict(t1=0.0), "`t1` must be positive"),
        (dict(t1=float("inf")), "`t1` must be positive and finite"),
        (dict(t1=1.0, times=[0.5, 2.0]), "`times` must be increasing, between 0 and t1"),
        (dict(t1=1.0, times=[0.5, 0.5]), "`times` must be increasing"),
        (dict(t1=1.0, times=[[0.5]]), "`times` must be a list of numbers"),
        (dict(t1=1.0, rtol=1e-16), "`rtol` must be at least"),
    ]:
        with pytest.raises(ValueError, match=message):
            solve(problem, start, **arguments)


def test_single_precision_refuses_tolerances_out_of_reach():
    with jax.enable_x64(False):
        problem = Problem.single_index("erf", strength=0.5)
        start = random_overlaps(problem, jax.random.key(0))
        with pytest.raises(ValueError, match="`rtol` must be at least .* in float32, but is 1e-08; jax.config.update"):
            solve(problem, start, t1=10.0)
        loose = solve(problem, start, t1=300.0, escape=Escape(), rtol=1e-5, atol=1e-6)
        assert loose.loss.dtype == jnp.float32 and 50 < float(loose.escape_time) < 300


def test_print_says_what_happened(problem, start):
    assert "no escape criterion" in str(solve(problem, start, t1=1.0))
    assert "no escape;" in str(solve(problem, start, t1=1.0, escape=Escape()))
    assert str(solve(problem, pretrained(problem), t1=1.0)).startswith("Solution to t = 1: reached t1")


def test_iterated_steps_are_the_mean_steps_at_any_learning_rate():
    """A loop over the mean step, its escape linear between two steps; and the derivative in the learning rate."""
    problem, goal = single("linear", strength=0.1, eta=1.5, theta=1.0), Escape("overlap", 0.5)

    @jax.jit
    def stepped(now):
        margin = goal.margin(problem, now, goal.reference(problem))
        return jax.tree.map(lambda y, g: y + 1.5 * g, now, mean_change(problem, now)), margin

    start = now = random_overlaps(problem, jax.random.key(1), up=0.1)
    values = []
    for _ in range(40):
        now, margin = stepped(now)
        values.append(float(margin))
    first = next(i for i, value in enumerate(values) if value <= 0)
    run = solve(problem, start, t1=60.0, times=[60.0], iterated=True)
    close(run.final, now, rtol=1e-10, atol=1e-12)
    run = solve(problem, start, t1=60.0, escape=goal, until_escape=True, iterated=True)
    assert 1.5 * (first - 1) < float(run.escape_time) <= 1.5 * first

    def time(eta):
        sgd = problem.sgd.replace(learning_rate=eta, noise_scale=1.0)
        return solve(
            problem.replace(sgd=sgd), start, t1=60.1, escape=goal, until_escape=True, iterated=True
        ).escape_time

    np.testing.assert_allclose(jax.grad(time)(1.5), (time(1.5003) - time(1.4997)) / 6e-4, rtol=1e-4)
    with pytest.raises(ArgumentError, match="until_escape"):
        solve(problem, start, t1=1.0, escape=goal, iterated=True)


def test_the_integrator_recovers_from_a_first_step_that_leaves_the_numbers():
    """The curvature of He3 at 4.2 times its unit strength makes the usual first step far too long."""
    problem = single("He3", strength=4.2, scale=0.3, eta=2e-6, theta=2e-8, noise=3.5e5, d=1e3)
    start = Overlaps(jnp.array([[0.002]]), jnp.array([[0.04, 0.17]]), jnp.eye(1))
    run = solve(problem, start, t1=3e-3, escape=Escape("loss", 0.95), until_escape=True, finite_steps=True)
    assert run.steps_rejected > 0 and 0 < float(run.escape_time) < 1e-3


@pytest.mark.parametrize("until_escape", [True, False])
def test_where_there_is_no_escape_there_is_no_slope(until_escape, start):
    def time(strength, end, goal):
        problem = Problem.single_index("erf", strength=strength)
        return solve(problem, start, t1=end, escape=goal, until_escape=until_escape).escape_time

    slope, goal = jax.jit(jax.value_and_grad(time)), Escape()
    found, steep = slope(0.3, 400.0, goal)
    assert np.isfinite(found)
    later, earlier = (slope(strength, 400.0, goal)[0] for strength in (0.3003, 0.2997))
    np.testing.assert_allclose(steep, (later - earlier) / 6e-4, rtol=1e-4)
    assert all(map(np.isnan, slope(0.3, 3.0, goal)))
    assert slope(0.3, 1.0, Escape("absolute", 9.0)) == (0, 0)


def test_a_population_loss_is_not_negative(problem, start):
    """Where it is below the integrator's tolerance."""
    loss = np.asarray(solve(problem, start, t1=1200.0).loss)
    assert loss.min() >= 0 and loss[-1] < 1e-8
