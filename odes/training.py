r"""How weights are trained: the LoRA adapter and SGD. Frozen, checked when made."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes.arguments import (
    ArrayLike,
    concrete,
    finite,
    non_negative,
    numbers,
    positive,
    real_array,
    require,
    require_integer,
    require_kind,
    require_shape,
    scalar,
)
from odes.shown import Shown


class Adapter(Shown):
    r"""A LoRA adapter, $W = W_0 + \kappa\, U V$ with U (K x r) and V (r x d).

    - `rank`: r.
    - `scale`: LoRA's α; $\kappa = \alpha / r$. None means α = r, so κ = 1.
    - `lr_ratio`: $\chi = \eta_U/\eta$, the learning rate of U over that of V (LoRA+); 0 leaves U as it starts.
    - `normalized`: whether every trained row of V is rescaled to unit length after each step.
    - `weight_decay`: λ; each step takes the fraction ηλ off the trained rows of V (without effect if they are normalised). The
        linear theory of the search phase does not know it: it is meant for pretraining.
    - `trained` (r,): 1 for rows of V that are trained, with their columns of U, and 0 for rows at rest; all are trained unless
        given. This is how the stages of a run share one state ([`odes.Transfer`][]).

    >>> float(Adapter(rank=4, scale=8.0).kappa)
    2.0
    """

    rank: int = eqx.field(static=True)
    scale: Float[Array, ""]
    lr_ratio: Float[Array, ""]
    normalized: bool = eqx.field(static=True)
    weight_decay: Float[Array, ""]
    trained: Float[Array, " r"]

    def __init__(
        self,
        rank: int = 1,
        *,
        scale: ScalarLike | None = None,
        lr_ratio: ScalarLike = 1.0,
        normalized: bool = True,
        weight_decay: ScalarLike = 0.0,
        trained: ArrayLike | None = None,
    ):
        words = "a whole number of at least 1"
        require_integer("rank", rank, words)
        require("rank", rank, words, lambda x: x >= 1)
        require_kind("normalized", normalized, bool | np.bool_, "True or False")
        self.rank, self.normalized = int(rank), bool(normalized)
        self.scale = real_array(scalar("scale", rank if scale is None else scale, "positive and finite", positive))
        self.lr_ratio = real_array(scalar("lr_ratio", lr_ratio, "non-negative and finite", non_negative))
        self.weight_decay = real_array(scalar("weight_decay", weight_decay, "non-negative and finite", non_negative))
        self.trained = numbers("trained", np.ones(rank) if trained is None else trained, "0 or 1 for every row")
        require_shape("trained", self.trained, "(r,)", (rank,))
        require("trained", self.trained, "0 or 1 for every row", lambda x: (x == 0) | (x == 1))

    def shown(self) -> dict[str, Any]:
        usual = {"normalized": True, "weight_decay": 0.0, "trained": 1.0}
        fields = super().shown() | {"kappa": self.kappa}
        return {
            name: value
            for name, value in fields.items()
            if name not in usual or not (concrete(value) and np.all(np.asarray(value) == usual[name]))
        }

    @property
    def kappa(self) -> Float[Array, ""]:
        """The LoRA scaling κ = α / r."""
        return self.scale / self.rank

    @property
    def trained_rows(self) -> Float[Array, ""]:
        """The number of rows that are trained: the rank, less the rows at rest."""
        return jnp.sum(self.trained)

    def replace(self, *, kappa: ScalarLike | None = None, **changes: Any) -> "Adapter":
        """The adapter with some fields changed; unless it is given, κ stays what it was, also where the rank changes.

        >>> Adapter(2, scale=3.0, weight_decay=0.1).replace(rank=4).scale.item()
        6.0

        **Raises** ArgumentError for another rank where some rows are at rest, unless `trained` says which are then.
        """
        rank = changes.setdefault("rank", self.rank)
        if rank != self.rank and "trained" not in changes:
            require("trained", self.trained, "given with the rank, since rows are at rest", lambda x: x == 1)
            changes["trained"] = None
        if kappa is not None or "scale" not in changes:
            changes["scale"] = rank * (self.kappa if kappa is None else kappa)
        return dataclasses.replace(self, **changes)


class SGD(Shown):
    r"""One-pass stochastic gradient descent on the loss $(\hat y - y)^2/2$.

    - `learning_rate`: η. Time is t = η * step everywhere.
    - `batch_size`: B fresh samples a step; infinity is gradient flow.
    - `dimension`: d.
    - `label_noise`: Δ, the variance of the noise on the labels.
    - `readout_lr_ratio`: $\chi_a = \eta_a/\eta$, the learning rate of the student's readouts over that of V; 0 leaves them at rest.
    - `trains_readouts`: whether the readouts are part of the state; unless given, where their learning rate is not known to be 0.

    Unless given η = 0.2, B = 500 and d = 1000, hence the noise scale θ = 0.4, here and in every command. At a larger dimension θ is
    larger unless B grows with it; above [`theory.largest_noise_scale`][] the flow does not escape.

    >>> SGD().noise_scale.item()
    0.4
    """

    learning_rate: Float[Array, ""]
    batch_size: Float[Array, ""]
    dimension: Float[Array, ""]
    label_noise: Float[Array, ""]
    readout_lr_ratio: Float[Array, ""]
    trains_readouts: bool = eqx.field(static=True)

    def __init__(
        self,
        *,
        learning_rate: ScalarLike = 0.2,
        batch_size: ScalarLike = 500,
        dimension: ScalarLike = 1000,
        label_noise: ScalarLike = 0.0,
        readout_lr_ratio: ScalarLike = 0.0,
        trains_readouts: bool | None = None,
    ):
        self.learning_rate = real_array(scalar("learning_rate", learning_rate, "positive and finite", positive))
        self.batch_size = real_array(scalar("batch_size", batch_size, "at least 1", lambda x: x >= 1))
        at_least = "at least 2 and finite"
        self.dimension = real_array(scalar("dimension", dimension, at_least, lambda x: (x >= 2) & finite(x)))
        allowed = "non-negative and finite"
        self.label_noise = real_array(scalar("label_noise", label_noise, allowed, non_negative))
        self.readout_lr_ratio = real_array(scalar("readout_lr_ratio", readout_lr_ratio, allowed, non_negative))
        if trains_readouts is None:
            trains_readouts = not (concrete(readout_lr_ratio) and bool(np.all(np.asarray(readout_lr_ratio) == 0)))
        require_kind("trains_readouts", trains_readouts, bool | np.bool_, "True or False")
        self.trains_readouts = bool(trains_readouts)

    def shown(self) -> dict[str, Any]:
        fields = super().shown() | {"noise_scale": self.noise_scale}
        hidden = {"trains_readouts"} if self.trains_readouts else {"trains_readouts", "readout_lr_ratio"}
        return {name: value for name, value in fields.items() if name not in hidden}

    @property
    def noise_scale(self) -> Float[Array, ""]:
        """θ = η d / B, the one combination of SGD's parameters that is left in the limit; 0 is gradient flow."""
        return self.learning_rate * self.dimension / self.batch_size

    def replace(self, *, noise_scale: ScalarLike | None = None, **changes: Any) -> "SGD":
        """SGD with some fields changed; `noise_scale` θ sets the batch size B = ηd/θ (θ = 0 is an infinite batch).

        >>> SGD(learning_rate=0.2, dimension=1000).replace(noise_scale=0.5, dimension=5000).batch_size.item()
        2000.0
        """
        if noise_scale is not None:
            noise_scale = scalar("noise_scale", noise_scale, "non-negative and finite", non_negative)
            rate, dimension = (changes.get(name, getattr(self, name)) for name in ("learning_rate", "dimension"))
            changes["batch_size"] = real_array(rate) * dimension / real_array(noise_scale)
        if "readout_lr_ratio" in changes:
            changes.setdefault("trains_readouts", None)
        return dataclasses.replace(self, **changes)

    def whole_batches(self, noise_scale: ScalarLike | None = None) -> "SGD":
        """SGD with a whole number of samples in a batch, at the learning rate that keeps the noise scale, or gives the `noise_scale`.

        >>> SGD(learning_rate=0.2, batch_size=2.5, dimension=10).whole_batches().learning_rate.item()
        0.16
        """
        theta, batch = self.noise_scale, self.batch_size
        if noise_scale is not None:
            theta = real_array(noise_scale)
            batch = self.learning_rate * self.dimension / theta
        batch = jnp.maximum(1.0, jnp.round(batch))
        rate = jnp.where(jnp.isfinite(batch), theta * batch / self.dimension, self.learning_rate)
        return self.replace(batch_size=batch, learning_rate=rate)

    def samples_per_dimension(self, t: ArrayLike) -> Float[Array, "*t"]:
        """n / d = t / θ, the fresh samples seen by time t over the dimension (infinite for gradient flow)."""
        return real_array(t) / self.noise_scale

    def steps(self, t: ArrayLike) -> Float[Array, "*t"]:
        """t / η, the number of SGD steps that reach time t."""
        return real_array(t) / self.learning_rate
