r"""Settings drawn at random over the whole input space.

The prior. Links: linear, He2, He3, He4, the sum He2 + He3/2, relu and erf; every fourth polynomial has another one as its
teacher. One setting in sixteen has a link whose averages are sums over thousands of nodes, which takes a minute or two: tanh, sigmoid,
erf^2, relu + He2/2, tanh(2x) or the field's erf(x/sqrt(2)). Rank: 1, 2, 3, 4, 8, 16 or 32; a quarter with free rows. Criterion:
loss (seven tenths), overlap, absolute. Eight settings have these in common, since what differs in them is compiled anew, which
takes longer than all the rest.

Strength: log-uniform from 0.01 to 5. Alignment: 1 (a quarter), -1, 0, within 0.1 of 0 (a tenth each), else uniform; κ log-uniform
from 1/4 to 4 and lr ratio from 1/4 to 16, each in half of the settings and else 1. Dimension: log-uniform from 50 to a million.
Learning rate: log-uniform from 0.01 to 1.5 of the time of the fastest process at w0, so that it also passes what is stable. Noise
scale: 0 in a tenth, else log-uniform from 0.01 to 30 of that at which SGD noise feeds the search as much as the start does
([`theory.noise_unit`][]), beyond its limit, as far as batches of one sample allow; batches are powers of two. Label noise: none in three
fifths, else log-uniform from 0.01 to 10 of the loss at w0. Any threshold.
"""

import math

import numpy as np

from odes import Problem, self_moments
from theory import noise_unit, search_phase
from validation.checks.settings import Setting

_POLYNOMIALS = ("linear", "He2", "He3", "He4", "He2+0.5*He3")
_LINKS = (*_POLYNOMIALS, "relu", "relu", "erf", "erf")
_SUMMED = ("tanh", "sigmoid", "erf^2", "relu+0.5*He2", "tanh(2*x)", "erf(x/sqrt(2))")
_SUMMED_SHARE = 1 / 16
_RANKS = (1, 1, 2, 3, 4, 8, 16, 32)
ALIKE = 8
"""So many settings in a row are compiled once."""

_FURTHER = {1: ("noise-limit",), 3: ("mean-step",), 5: ("checkpoints",), 7: ("remedies",)}
"""What is checked besides the law in one setting of ten, by the last digit of its number."""


def drawn(seed: int, number: int) -> Setting:
    """The setting of that number."""
    stream = [seed % 2**64, number // ALIKE]  # NumPy takes no negative numbers
    rng = np.random.default_rng([*stream, 0])
    teacher = student = str(rng.choice(_LINKS))
    if student in _POLYNOMIALS and rng.uniform() < 0.25:
        teacher = str(rng.choice(_POLYNOMIALS))
    others = np.random.default_rng([*stream, ALIKE + 1])
    if others.uniform() < _SUMMED_SHARE:
        teacher = student = str(others.choice(_SUMMED))
    rank, free_rows = int(rng.choice(_RANKS)), bool(rng.uniform() < 0.25)
    criterion = str(rng.choice(["loss", "overlap", "absolute"], p=[0.7, 0.18, 0.12]))
    rng = np.random.default_rng([*stream, 1 + number % ALIKE])

    def spread(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    strength, kind, sign = spread(0.01, 5.0), rng.uniform(), float(rng.choice([-1, 1]))
    edges = np.array([0.25, 0.35, 0.45, 0.55])
    alignment = [1.0, -1.0, 0.0, sign * spread(1e-3, 0.1), float(rng.uniform(-1, 1))][int(np.sum(kind >= edges))]
    kappa = spread(0.25, 4.0) if rng.uniform() < 0.5 else 1.0
    lr_ratio = spread(0.25, 16.0) if rng.uniform() < 0.5 else 1.0
    dim = float(round(spread(50.0, 1e6)))
    speed, noise = spread(0.01, 1.5), spread(0.01, 30.0) * bool(rng.uniform() < 0.9)
    label_noise = spread(0.01, 10.0) * bool(rng.uniform() < 0.4)
    low, high = {"loss": (0.02, 0.95), "overlap": (0.1, 0.9), "absolute": (0.05, 1.3)}[criterion]
    threshold = float(rng.uniform(low, high))
    problem = Problem.single_index(student, strength=strength, alignment=alignment, teacher=teacher)
    problem = problem.replace(kappa=kappa, lr_ratio=lr_ratio)
    phase = search_phase(problem)
    if criterion == "absolute":
        threshold = max(threshold * float(phase.loss), 1e-12)
    curvature = max(float(self_moments(problem.student, 1.0).cross), abs(float(phase.D)))
    eta = speed / max(curvature * kappa**2 * max(1.0, lr_ratio), float(phase.rate))
    problem = problem.replace(label_noise=label_noise * float(phase.loss), learning_rate=eta)
    unit = float(noise_unit(problem))
    theta = noise * unit if math.isfinite(unit) else 0.0
    if theta > 0:
        theta = eta * dim / 2.0 ** max(round(math.log2(eta * dim / theta)), 0)
    return Setting(
        name=f"setting {number}",
        activation=student,
        teacher=None if teacher == student else teacher,
        strength=strength,
        alignment=alignment,
        rank=rank,
        scale=None if kappa == 1 else kappa * rank,
        lr_ratio=lr_ratio,
        free_rows=free_rows,
        learning_rate=eta,
        noise_scale=theta,
        label_noise=float(problem.sgd.label_noise),
        criterion=criterion,
        threshold=threshold,
        dim=dim,
        checks=("law", *_FURTHER.get(number % 10, ())),
    )
