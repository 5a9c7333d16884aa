"""What a problem, an adapter and SGD refuse, and how they show themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import SGD, Adapter, Escape, Problem


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Problem.single_index("erf", strength=0.0), "`strength` must be positive and finite, but is 0.0"),
        (lambda: Problem.single_index("erf", strength=-1.0), "`strength` must be positive and finite, but is -1.0"),
        (lambda: Problem.single_index("erf", strength=np.nan), "`strength` must be positive"),
        (
            lambda: Problem.single_index("erf", strength=0.5, alignment=1.5),
            "`alignment` must be between -1 and 1, but is 1.5",
        ),
        (lambda: Adapter(0), "`rank` must be a whole number of at least 1, but is 0"),
        (lambda: Adapter(1, scale=-1.0), "`scale` must be positive"),
        (lambda: Adapter(1, lr_ratio=-1.0), "`lr_ratio` must be non-negative"),
        (lambda: Adapter(2, trained=[1.0, 0.5]), "`trained` must be 0 or 1 for every row"),
        (lambda: Adapter(2, trained=[1.0]), "`trained` must have shape"),
        (lambda: Adapter(2, weight_decay=-1.0), "`weight_decay` must be non-negative"),
        (lambda: SGD(learning_rate=0.0), "`learning_rate` must be positive"),
        (lambda: SGD(batch_size=0), "`batch_size` must be at least 1, but is 0.0"),
        (lambda: SGD(dimension=1), "`dimension` must be at least 2"),
        (lambda: SGD(label_noise=-0.1), "`label_noise` must be non-negative"),
        (
            lambda: Problem("erf", frame_gram=[[1, 2], [2, 1]], frozen=[[0, 1]], target=[[1, 0]]),
            "`frame_gram` must be symmetric and positive",
        ),
        (
            lambda: Problem("erf", frame_gram=np.eye(2), frozen=[[0, 1]], target=[[1, 0, 0]]),
            r"`target` must have shape \(P, f\) = \(1, 2\), but has shape \(1, 3\)",
        ),
        (
            lambda: Problem("erf", frame_gram=np.eye(3), frozen=[[0, 1]], target=[[1, 0]]),
            r"`frame_gram` must have shape \(f, f\) = \(2, 2\)",
        ),
        (
            lambda: Problem("erf", frame_gram=np.eye(2), frozen=[[0, 1]], target=[[1, 0]], readout=[1, 2]),
            r"`readout` must have shape \(K,\) = \(1,\)",
        ),
    ],
)
def test_bad_shapes_and_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Problem.single_index("erf", strength=x).strength,
        lambda x: Problem.single_index("erf", strength=0.5, alignment=x - 1.0).alignment,
        lambda x: SGD(learning_rate=x).learning_rate,
        lambda x: SGD(batch_size=x).batch_size,
        lambda x: Adapter(scale=x).kappa,
        lambda x: Escape(threshold=x).threshold,
    ],
)
def test_where_values_are_traced_nan_stands_for_what_is_not_allowed(make):
    np.testing.assert_array_equal(np.isnan(jax.vmap(make)(jnp.array([-1.0, np.nan]))), True)
    assert np.isnan(jax.jit(make)(-1.0))


def test_what_is_shown_are_numbers():
    problem = Problem.single_index("erf", strength=0.5, alignment=0.25, adapter=Adapter(4), sgd=SGD(dimension=2000))
    shown = repr(problem)
    for word in ("erf", "strength=0.5", "alignment=0.25", "rank=4", "dimension=2000", "noise_scale=0.8"):
        assert word in shown, word
    assert str(problem) == shown and "f64[" not in shown
