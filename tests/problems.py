"""Problems that several tests look at, built from plain numbers."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odes import SGD, Adapter, Covariances, Family, Overlaps, Problem, Transfer, noise_of


def single(
    link="erf",
    *,
    d=1e4,
    eta=0.2,
    theta=1.0,
    batch=None,
    strength=0.5,
    alignment=1.0,
    teacher=None,
    noise=0.0,
    rank=1,
    **adapter,
):
    """A single-index problem. The noise scale theta sets the batch size, unless that is given."""
    if batch is None:
        batch = np.inf if theta == 0 else eta * d / theta
    sgd = SGD(dimension=d, batch_size=batch, learning_rate=eta, label_noise=noise)
    adapter = Adapter(rank, **adapter)
    return Problem.single_index(link, strength=strength, alignment=alignment, teacher=teacher, adapter=adapter, sgd=sgd)


PARAMETERS = {"overlap": 0.45, "square": 0.3, "scale": 2.6, "lr_ratio": 1.3, "learning_rate": 0.1, "dimension": 1e5}


def of_parameters(values):
    """An erf problem of rank 2 as a function of the numbers (6,) named in `PARAMETERS`, to be differentiated."""
    overlap, square, scale, lr_ratio, learning_rate, dimension = values
    sgd = SGD(learning_rate=learning_rate, dimension=dimension, batch_size=2e4)
    return Family("erf", adapter=Adapter(2, scale=scale, lr_ratio=lr_ratio), sgd=sgd).with_overlap(overlap, square)


def two_by_three(link, **options):
    """A problem of K = 2 student and P = 3 teacher units."""
    gram = [
        [1, 0.1, 0.2, 0.3, 0.1],
        [0.1, 1, 0, 0.2, 0.4],
        [0.2, 0, 0.8, 0.1, 0],
        [0.3, 0.2, 0.1, 0.5, 0.1],
        [0.1, 0.4, 0, 0.1, 0.6],
    ]
    readouts = dict(readout=[1.0, -0.7], teacher_readout=[0.8, 0.5, -0.3])
    return Problem(link, frame_gram=gram, target=np.eye(5)[:3], frozen=np.eye(5)[3:], **readouts, **options)


def noise_of_one(student, teacher, p, q, c):
    """N of one student and one teacher unit with the readouts 1.5 and 0.7 and label noise 0.3 at given variances and covariance."""
    options = dict(readout=[1.5], teacher_readout=[0.7], sgd=SGD(label_noise=0.3))
    problem = Problem(student, teacher=teacher, frame_gram=np.eye(2), frozen=[[0, 1]], target=[[1, 0]], **options)
    Q, M, P = (jnp.reshape(jnp.asarray(x, float), (1, 1)) for x in (p, c, q))
    return noise_of(problem, Covariances(Q, M, P))[0, 0]


def frame_vectors(problem, d, key):
    """Vectors in R^d with the Gram matrix of the problem's frame."""
    values, basis = np.linalg.eigh(np.asarray(problem.frame_gram))
    root = basis * np.sqrt(np.maximum(values, 0))
    orthonormal = np.linalg.qr(np.asarray(jax.random.normal(key, (d, root.shape[1]))))[0].T
    return jnp.asarray(root @ orthonormal)


def fine_tuned(transfer, state):
    """The single-index problem of fine-tuning from a joint state with the adapter's U = 0, and its start."""
    start = Overlaps(
        state.up[:, 1:],
        jnp.stack([state.cross[1:, 0], state.down_gram[1:, 0]], axis=1),
        state.down_gram[1:, 1:],
    )
    return transfer.fine_tuning(state), start


def two_by_two(d):
    """Two student and two teacher units in a frame of three directions."""
    return Problem(
        "erf",
        frame_gram=[[1.0, 0.2, 0.1], [0.2, 1.0, 0.3], [0.1, 0.3, 0.5]],
        frozen=[[0.0, 0.2, 0.8], [0.5, 0.0, -0.3]],
        target=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        readout=[1.0, -0.7],
        adapter=Adapter(2, scale=3.0, normalized=False),
        sgd=SGD(dimension=d, batch_size=4, learning_rate=0.3, label_noise=0.1),
    )


def three_on_one(link="erf", *, d=20, batch=4, eta=0.2, rank=1, **sgd):
    """Three student units whose frozen rows lie along the one teacher, readouts trained: more units than directions."""
    return Problem(
        link,
        frame_gram=[[1.0]],
        frozen=[[0.3], [0.0], [-0.4]],
        target=[[1.0]],
        readout=[1.0, 0.5, -0.7],
        teacher_readout=[1.2],
        adapter=Adapter(rank),
        sgd=SGD(**(dict(dimension=d, batch_size=batch, learning_rate=eta, readout_lr_ratio=0.6) | sgd)),
    )


def dependent_rows(d):
    """Two equal teachers and a third opposite to them, students of which one starts at zero, more units than samples."""
    return Problem(
        "He2",
        teacher="He1+0.5*He2",
        frame_gram=[[1.0, 0.3], [0.3, 0.25]],
        frozen=[[0.0, 0.8], [0.0, 0.0], [0.2, 0.4], [0.1, 0.2]],
        target=[[1.0, 0.0], [1.0, 0.0], [-0.5, 0.0]],
        readout=[0.5, -0.4, 0.3, 0.2],
        adapter=Adapter(2, normalized=False),
        sgd=SGD(dimension=d, batch_size=3, learning_rate=0.05, label_noise=0.2, readout_lr_ratio=2.0),
    )


_toy = functools.partial(single, d=20, batch=4, eta=0.4, strength=0.6)

SMALL = {
    "aligned": _toy(),
    "not aligned, label noise": _toy("relu", batch=3, alignment=0.5, noise=0.3),
    "free rows": _toy("tanh", alignment=-0.3, teacher="relu", normalized=False),
    "rank 3": _toy("He2", batch=8, eta=0.05, alignment=0.4, rank=3, scale=2.0, lr_ratio=2.0),
    "rank 3, free rows": _toy(rank=3, normalized=False),
    "two units": two_by_two(20),
    "three units on one, readouts": three_on_one(),
    "dependent rows": dependent_rows(20),
}
"""Problems of dimension 20, whose every step changes much."""

STAGES = ["pretraining", "spherical pretraining", "LoRA", "LoRA, free rows", "target weights"]


def steady(stage, eta):
    """One of STAGES with an infinite batch, rank 2 and scale 3 (weight decay in pretraining), and overlaps to start."""
    sgd = SGD(dimension=20, batch_size=np.inf, learning_rate=eta)
    adapter = Adapter(2, scale=3.0, lr_ratio=0.7, normalized=stage != "LoRA, free rows")
    spherical = stage == "spherical pretraining"
    transfer = Transfer("erf", cosine=0.6, adapter=adapter, sgd=sgd, spherical=spherical, weight_decay=0.5)
    start = transfer.random_start(jax.random.key(5))
    moved = eqx.tree_at(lambda x: x.up, start, start.up + jnp.array([[0.0, 0.3, -0.2]]))
    if "pretraining" in stage:
        return transfer.pretraining, moved
    return (transfer.problem("target", "weights") if stage == "target weights" else transfer.lora), moved
