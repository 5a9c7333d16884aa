# %% [markdown]
# # Theory against simulation for your own link
#
# The link function of the student is any function of one variable that JAX can compute. This page takes one of its
# own, asks theory how long the search takes, and trains the same problem to see whether theory is right.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from odes import SGD, Activation, Escape, Family, solve
from odes.activations import averaging_errors
from theory import critical_points, hermite_coefficients, information_exponent, resting_start, sweep
from validation.simulation import chain_simulator, even_steps, mean_and_error, simulate

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The function
#
# Theory needs averages of the function over Gaussian variables, by quadrature. Where the function's derivative jumps
# the places are named, `kinks=(-1, 1)`. When the function is given its averages are tested, and a function that is not
# averaged accurately is refused.

# %%
softsign = Activation.from_function(lambda x: x / jnp.sqrt(1 + x**2), name="softsign")
for what, error in averaging_errors(softsign, [0.1, 1.0, 4.0]).items():
    print(f"{error:.1e}  {what}")

# %%
print("Hermite coefficients:", np.round(hermite_coefficients(softsign, 5), 4))
print("information exponent:", int(information_exponent(softsign)))

# %% [markdown]
# ## Where the search takes forever
#
# A family holds all of a problem but the pretrained weights. The teacher has another link function here, erf, so that
# the student must grow a little longer than the target to be right.

# %%
family = Family(softsign, teacher="erf", sgd=SGD(dimension=10_000, batch_size=1000, learning_rate=0.2))
zeros = critical_points(family, low=0.1, high=2.0).strength
print("the gradient vanishes at strength", float(zeros[0]))
strengths = np.linspace(0.1, 1.9, 91)
fig, ax = plt.subplots(figsize=(5, 3))
for alignment in (1.0, 0.9, 0.6):
    ax.plot(strengths, sweep(family, strength=strengths, alignment=alignment).tau, label=f"alignment {alignment}")
ax.axvline(float(zeros[0]), color="0.6", linestyle=":")
ax.set(yscale="log", xlabel="strength of pretraining", ylabel=r"time scale $\tau$ of the search")
ax.legend()
plt.show()

# %% [markdown]
# ## Prediction
#
# The equations are integrated from one start, an adapter with the overlap that is typical in $10^4$ dimensions.
# `finite_steps` gives them the learning rate that SGD really has.

# %%
problem = family.at(0.4, 0.6)
start = resting_start(problem)
solution = solve(problem, start, t1=60.0, escape=Escape(), finite_steps=True)
print("the loss is halved at", round(float(solution.escape_time), 2))

# %% [markdown]
# ## Experiment
#
# Then 64 networks are trained from the same start, each with samples of its own.

# %%
runs = simulate(
    chain_simulator(problem, start=start),
    key=jax.random.key(0),
    seeds=64,
    steps=even_steps(60.0, 0.2, records=30),
    escape=Escape(),
)
times = np.asarray(runs.escape_times)
print(f"simulated: {times.mean():.2f} +- {times.std(ddof=1) / 8:.2f}")

# %%
mean, error = mean_and_error(runs.loss)
fig, ax = plt.subplots(figsize=(5, 3))
ax.plot(solution.t, solution.loss, "k", label="equations")
ax.errorbar(runs.t, mean, error, fmt="o", markersize=3, label="64 runs, mean and its error")
ax.set(xlabel="time", ylabel="population loss")
ax.legend()
plt.show()

# %% [markdown]
# Nothing was fitted: the function, the weights and SGD's numbers are all that theory knows. `escape_law(problem)`
# gives the law of the escape time over random starts for such a function too. It takes a few minutes, because every
# average is a sum over nodes; functions with a name, their sums, squares and scaled ones are much faster.
