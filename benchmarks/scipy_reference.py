"""The same quantities written the way a notebook does: NumPy and SciPy, one point and one trajectory at a time."""

import math

import numpy as np
from scipy import integrate, special

FUNCTIONS = {
    "linear": (lambda x: x, lambda x: 1.0),
    "relu": (lambda x: max(x, 0.0), lambda x: float(x > 0)),
    "erf": (math.erf, lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x)),
    "sigmoid": (special.expit, lambda x: special.expit(x) * special.expit(-x)),
}


def _hermite(k: int):
    value, slope = special.hermitenorm(k), k * special.hermitenorm(k - 1)
    return (lambda x: value(x)), (lambda x: slope(x))


def aligned_tau(name: str, mu: float) -> float:
    """tau of w0 = mu * target from `scipy.integrate.quad` of C and D (kappa = chi = 1)."""
    f, slope = FUNCTIONS[name] if name in FUNCTIONS else _hermite(int(name.removeprefix("He")))

    def average(function):
        def integrand(z):
            return function(mu * z, z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        return sum(integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-10)[0] for a, b in ((-12, 0), (0, 12)))

    C = average(lambda own, target: slope(own) * slope(target))
    D = (average(lambda own, target: (f(own) - f(target)) * slope(own) * own) + mu * C) / mu**2
    G = (C - D * mu) ** 2
    return 2 / (-D + math.sqrt(D**2 + 4 * G))


def erf_trajectory(mu: float, m0: float, times: np.ndarray, rtol: float) -> np.ndarray:
    """m(t) of the aligned erf problem (rank 1, gradient flow) by `solve_ivp` with a NumPy right-hand side."""

    def rhs(t, y):
        u, m = y
        Q, M = mu**2 + 2 * mu * u * m + u**2, mu + u * m
        C = 4 / np.pi / np.sqrt(3 * (1 + 2 * Q) - 4 * M**2)
        slope = 4 / np.pi / np.sqrt((1 + 2 * Q) ** 2 - 4 * Q**2)
        D = slope + 2 * (M * C - Q * slope) / (1 + 2 * Q)
        J = D * (mu * m + u) - C * m
        return np.array([-J, -u * (D * M - C) + u * J * m])

    return integrate.solve_ivp(rhs, (0, times[-1]), [0.0, m0], "DOP853", times, rtol=rtol, atol=rtol * 1e-2).y[1]


def committee_trajectory(
    W0: np.ndarray, start: tuple[np.ndarray, ...], theta: float, end: float, rtol: float
) -> np.ndarray:
    """The final (U, X, R) of erf units that learn orthonormal teachers with readouts 1, frozen rows W0 (K x P) and a normalised
    adapter, by `solve_ivp` with a NumPy right-hand side (averages of Saad & Solla)."""
    units, teachers = W0.shape
    c = np.concatenate([np.ones(units), -np.ones(teachers)])
    shapes = [part.shape for part in start]
    cuts = np.cumsum([part.size for part in start])[:-1]

    def noise(S: np.ndarray) -> np.ndarray:
        N = np.empty((units, units))
        for k in range(units):
            for l in range(k + 1):
                E = S[:, [k, l]]
                H = 0.5 * np.eye(2) + S[np.ix_([k, l], [k, l])]
                T = S - E @ np.linalg.solve(H, E.T)
                room = np.sqrt(1 + 2 * np.diagonal(T))
                kernel = 2 / np.pi * np.arcsin(2 * T / np.outer(room, room))
                N[k, l] = N[l, k] = 4 / np.pi / np.sqrt(np.linalg.det(2 * H)) * (c @ kernel @ c)
        return N

    def rhs(t, y):
        U, X, R = (part.reshape(shape) for part, shape in zip(np.split(y, cuts), shapes, strict=True))
        Q, M = W0 @ W0.T + W0 @ X.T @ U.T + U @ X @ W0.T + U @ R @ U.T, W0 + U @ X
        S = np.block([[Q, M], [M.T, np.eye(teachers)]])
        room = 1 + 2 * np.diagonal(S)
        root = np.sqrt(np.outer(room, room) - 4 * S**2)
        cross, curvature = 4 / np.pi / root, -8 / np.pi * S / (room[:, None] * root)
        D = cross[:units, :units] + np.diag((curvature @ c)[:units])
        C = cross[:units, units:]
        H, J = D @ (W0 + U @ X) - C, D @ (W0 @ X.T + U @ R) - C @ X.T
        dX, dR = -U.T @ H, -(U.T @ J + J.T @ U) + theta * U.T @ noise(S) @ U
        h = np.diagonal(dR) / 2
        return np.concatenate([(-J).ravel(), (dX - h[:, None] * X).ravel(), (dR - np.add.outer(h, h) * R).ravel()])

    y0 = np.concatenate([part.ravel() for part in start])
    return integrate.solve_ivp(rhs, (0, end), y0, "DOP853", rtol=rtol, atol=rtol * 1e-2).y[:, -1]
