"""Integration against SciPy, escape events, gradients, batching, storage."""

import json

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize

from odes import SGD, Adapter, Escape, Overlaps, Problem, load, log_times, pretrained, random_overlaps, solve

T1 = 300.0


@pytest.fixture(scope="module")
def problem():
    return Problem.single_index("erf", strength=0.5, alignment=0.9, sgd=SGD(batch_size=np.inf))


@pytest.fixture(scope="module")
def start(problem):
    return random_overlaps(problem, jax.random.key(3))


def scipy_erf_trajectory(rho, c, start, t_eval):
    """u, m, s of rank one by SciPy from a right-hand side written out for erf in NumPy; the loss as a function too."""

    def averages(y):
        u, m, s = y
        Q, M = rho**2 + 2 * u * s + u**2, rho * c + u * m
        C = 4 / np.pi / np.sqrt((1 + 2 * Q) * 3 - 4 * M**2)
        slope = 4 / np.pi / np.sqrt((1 + 2 * Q) ** 2 - 4 * Q**2)
        D = slope - 2 * Q / (1 + 2 * Q) * slope + 2 * M / (1 + 2 * Q) * C
        loss = (
            np.arcsin(2 * Q / (1 + 2 * Q)) - 2 * np.arcsin(2 * M / np.sqrt(3 * (1 + 2 * Q))) + np.arcsin(2 / 3)
        ) / np.pi
        return C, D, loss

    def rhs(t, y):
        u, m, s = y
        C, D, _ = averages(y)
        J = D * (s + u) - C * m
        h = -u * J
        return [-J, -u * (D * (rho * c + u * m) - C) - h * m, -u * (D * (rho**2 + u * s) - C * rho * c) - h * s]

    y0 = [float(start.up[0, 0]), float(start.cross[0, 0]), float(start.cross[0, 1])]
    solution = integrate.solve_ivp(rhs, (0, t_eval[-1]), y0, method="DOP853", rtol=1e-12, atol=1e-14, dense_output=True)
    return solution.sol, lambda t: averages(solution.sol(t))[2]


def test_trajectory_and_escape_match_scipy(problem, start):
    times = np.linspace(0, T1, 31)
    solution = solve(problem, start, t1=T1, times=times, escape=Escape(), rtol=1e-10, atol=1e-12)
    path, loss = scipy_erf_trajectory(0.5, 0.9, start, times)
    u, m, s = path(times)
    np.testing.assert_allclose(solution.u[:, 0], u, atol=1e-8)
    np.testing.assert_allclose(solution.m[:, 0], m, atol=1e-8)
    np.testing.assert_allclose(solution.s[:, 0], s, atol=1e-8)
    np.testing.assert_allclose(solution.loss, loss(times), atol=1e-9)
    escape = optimize.brentq(lambda t: loss(t) - loss(0) / 2, 1, T1, xtol=1e-12)
    np.testing.assert_allclose(solution.escape_time, escape, rtol=1e-8)
    assert solution.successful and solution.message == "reached t1"


@pytest.mark.parametrize("criterion", ["loss", "overlap"])
def test_escape_is_where_the_criterion_says(problem, start, criterion):
    escape = Escape(criterion, 0.3)
    solution = solve(problem, start, t1=T1, escape=escape, until_escape=True)
    assert abs(float(escape.margin(problem, solution.final, escape.reference(problem)))) < 1e-7
    assert float(solution.t_final) == float(solution.escape_time)
    after = solution.t > solution.escape_time
    assert after.any() and jnp.isnan(solution.loss[after]).all() and jnp.isnan(solution.overlaps.up[after]).all()
    assert jnp.isfinite(solution.loss[~after]).all()
    assert solution.message == "stopped at the escape"


def test_no_escape_is_nan_and_an_escaped_start_is_zero(problem, start):
    assert jnp.isnan(solve(problem, start, t1=1.0, escape=Escape()).escape_time)
    arrived = Overlaps(jnp.array([[0.5]]), jnp.array([[1.0, 0.45]]), jnp.ones((1, 1)))
    assert float(solve(problem, arrived, t1=1.0, escape=Escape()).escape_time) == 0.0


@pytest.mark.parametrize(
    "activation, strength, kwargs",
    [
        ("erf", 0.4, {}),
        pytest.param("relu", 0.4, {}, marks=pytest.mark.slow),
        pytest.param("tanh", 0.4, dict(alignment=0.7), marks=pytest.mark.slow),
        pytest.param("He3", 0.6, {}, marks=pytest.mark.slow),
    ],
)
def test_gradient_of_the_escape_time_matches_finite_differences(activation, strength, kwargs, key):
    start = random_overlaps(Problem.single_index(activation, strength=0.6, **kwargs), key)

    @jax.jit
    def escape_time(strength, chi, noise):
        sgd = SGD(dimension=1000, batch_size=500, learning_rate=0.01, label_noise=noise)
        adapter = Adapter(1, lr_ratio=chi)
        problem = Problem.single_index(activation, strength=strength, adapter=adapter, sgd=sgd, **kwargs)
        fixed = Overlaps(start.up, start.cross, start.down_gram)
        tolerances = dict(rtol=1e-11, atol=1e-13)
        return solve(
            problem, fixed, t1=2000.0, times=jnp.ones(1), escape=Escape(), until_escape=True, **tolerances
        ).escape_time

    point = (strength, 1.3, 0.02)
    exact = jax.grad(escape_time, (0, 1, 2))(*point)
    for i, step in enumerate((1e-4, 1e-3, 1e-3)):
        up, down = list(point), list(point)
        up[i], down[i] = point[i] + step, point[i] - step
        numeric = (escape_time(*up) - escape_time(*down)) / (2 * step)
        np.testing.assert_allclose(exact[i], numeric, rtol=2e-4, atol=1e-6 * float(escape_time(*point)))


def test_vmap_over_every_parameter_equals_a_loop(start):
    def run(strength, alignment, scale, chi, dimension, noise):
        adapter = Adapter(1, scale=scale, lr_ratio=chi)
        sgd = SGD(dimension=dimension, batch_size=100, label_noise=noise)
        problem = Problem.single_index("erf", strength=strength, alignment=alignment, adapter=adapter, sgd=sgd)
        return solve(problem, start, t1=50.0, times=jnp.array([10.0, 50.0]), escape=Escape()).overlaps

    values = jnp.array(
        [[0.3, 0.9, 1.0, 1.0, 500.0, 0.0], [0.8, -0.2, 2.0, 0.5, 2000.0, 0.1], [1.4, 0.1, 0.7, 4.0, 50.0, 0.3]]
    )
    batched = jax.vmap(run)(*values.T)
    for i, row in enumerate(values):
        single = run(*row)
        for mine, alone in zip(jax.tree.leaves(batched), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(mine[i], alone, atol=1e-7)


def test_dense_output_and_log_times(problem, start):
    times = log_times(T1, 12)
    assert times.shape == (12,) and float(times[0]) == 0 and float(times[-1]) == T1
    np.testing.assert_allclose(np.diff(np.log(times[1:])), np.log(1000) / 10, rtol=1e-10)
    solution = solve(problem, start, t1=T1, times=times, escape=Escape(), dense=True)
    for i in (3, 7, 11):
        np.testing.assert_allclose(solution.evaluate(times[i]).cross, solution.overlaps.cross[i], atol=1e-7)
    with pytest.raises(ValueError, match="`dense`"):
        solve(problem, start, t1=T1).evaluate(1.0)


def test_stiff_solver_agrees(problem, start):
    explicit = solve(problem, start, t1=T1, escape=Escape())
    implicit = solve(problem, start, t1=T1, escape=Escape(), solver=diffrax.Kvaerno5())
    np.testing.assert_allclose(explicit.escape_time, implicit.escape_time, rtol=1e-6)


def test_rank_is_a_relabelling_when_rows_are_equal():
    """Unnormalised rank 2 with the second row unused equals rank 1 at the same kappa."""
    one = Problem.single_index("erf", strength=0.5, adapter=Adapter(1, normalized=False), sgd=SGD(batch_size=np.inf))
    two = Problem.single_index(
        "erf", strength=0.5, adapter=Adapter(2, scale=2.0, normalized=False), sgd=SGD(batch_size=np.inf)
    )
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
        (dict(t1=1.0, times=[]), "`times` must be a list of at least one number"),
        (dict(t1=1.0, rtol=1e-16), "`rtol` must be at least"),
    ]:
        with pytest.raises(ValueError, match=message):
            solve(problem, start, **arguments)
    with pytest.raises(ValueError, match="`criterion` must be one of .* did you mean 'overlap'"):
        Escape("overlaps")
    with pytest.raises(ValueError, match="`threshold` must be between 0 and 1"):
        Escape("loss", 1.0)


def test_single_precision_refuses_tolerances_out_of_reach():
    with jax.enable_x64(False):
        problem = Problem.single_index("erf", strength=0.5)
        start = random_overlaps(problem, jax.random.key(0))
        with pytest.raises(ValueError, match="`rtol` must be at least .* in float32, but is 1e-08; jax.config.update"):
            solve(problem, start, t1=10.0)
        loose = solve(problem, start, t1=300.0, escape=Escape(), rtol=1e-5, atol=1e-6)
        assert loose.loss.dtype == jnp.float32 and 50 < float(loose.escape_time) < 300


def test_save_and_load(problem, start, tmp_path):
    solution = solve(problem, start, t1=T1, escape=Escape())
    solution.save(tmp_path / "run.nc")
    stored = load(tmp_path / "run.nc")
    np.testing.assert_array_equal(stored.loss, solution.loss)
    np.testing.assert_array_equal(stored.cross[..., 0], solution.m)
    again = Problem.from_dict(json.loads(stored.attrs["problem"]))
    assert again.to_dict() == problem.to_dict()
    assert stored.attrs["version_jax"] == jax.__version__ and json.loads(stored.attrs["kind"]) == "solution"
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]
    with pytest.raises(OSError):
        solution.save(tmp_path / "missing" / "run.nc")


def test_interrupted_write_leaves_nothing(tmp_path):
    from odes.storage import write_whole

    (tmp_path / "kept.txt").write_text("old")

    def fail(path):
        path.write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "kept.txt", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"] and (tmp_path / "kept.txt").read_text() == "old"


def test_print_says_what_happened(problem, start):
    assert "no escape criterion" in str(solve(problem, start, t1=1.0))
    assert "no escape;" in str(solve(problem, start, t1=1.0, escape=Escape()))
    assert str(solve(problem, pretrained(problem), t1=1.0)).startswith("Solution to t = 1: reached t1")
