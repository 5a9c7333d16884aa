# %% [markdown]
# # First steps
#
# A pretrained network is fine-tuned by LoRA. How long does the adapter search before the loss falls? This page
# computes that time in three ways: from theory, from the closed equations, and by training. All of it takes less than
# a minute.
#
# Double precision is switched on first; the packages do not change global settings by themselves.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from odes import SGD, Escape, Problem, random_overlaps, solve
from theory import escape_law, search_phase, sweep
from validation.simulation import chain_simulator, even_steps, simulate

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## A problem
#
# The student is one unit, $\hat y = \mathrm{erf}(w \cdot x)$ with $w = w_0 + \kappa\, u v$. The pretrained weights
# $w_0$ are frozen. They have the length `strength`, and `alignment` is their cosine with the target's direction. The
# adapter has the rank 1 unless another is given, and SGD sees every sample once.

# %%
problem = Problem.single_index("erf", strength=0.5, alignment=0.6, sgd=SGD(dimension=10_000, batch_size=1000))
print(problem)

# %% [markdown]
# ## The search phase
#
# Near $w_0$ the overlaps grow like $e^{t/\tau}$, where time is the learning rate times the number of steps.
# `search_phase` gives the rate and what it is made of: the gradient at $w_0$ is $D w_0 - C \omega^*$, and $G$ is its
# squared length.

# %%
phase = search_phase(problem)
print(f"C = {phase.C:.4f}, D = {phase.D:.4f}, G = {phase.G:.4f}: tau = {phase.tau:.3f}")

# %% [markdown]
# Theory is made of functions of arrays, so that a sweep is one call. More pretraining in the right direction makes the
# search longer, and where nothing is left to be learnt it never ends.

# %%
strengths = np.linspace(0.05, 0.95, 91)
fig, ax = plt.subplots(figsize=(5, 3))
for alignment in (1.0, 0.9, 0.6):
    ax.plot(strengths, sweep("erf", strength=strengths, alignment=alignment).tau, label=f"alignment {alignment}")
ax.set(yscale="log", xlabel="strength of pretraining", ylabel=r"time scale $\tau$ of the search")
ax.legend()
plt.show()

# %% [markdown]
# ## The law of the escape time
#
# An adapter starts from a random direction, so that its escape time is random. The escape is the time at which the
# loss has fallen to half of its value at $w_0$, unless another criterion is given. `escape_law` knows its
# distribution, and says so where it does not.

# %%
law = escape_law(problem)
print(f"mean {law.mean:.2f} +- {law.mean_error:.2f}, standard deviation {law.std:.2f}, doubt: {law.doubt or 'none'}")
print("nine of ten runs have escaped by", round(float(law.quantile(0.9)), 2))

# %% [markdown]
# ## The closed equations
#
# In high dimension the overlaps obey ordinary differential equations. `solve` integrates them from a random start,
# here to $t = 60$.

# %%
solution = solve(problem, random_overlaps(problem, jax.random.key(0)), t1=60.0, escape=Escape(), finite_steps=True)
print(solution)

# %% [markdown]
# ## Training
#
# `chain_simulator` trains on the overlaps, which is exact in law at any dimension; `direct_simulator` trains the
# weights themselves. Here are 64 runs with other random starts.

# %%
steps = even_steps(60.0, float(problem.sgd.learning_rate), records=60)
runs = simulate(chain_simulator(problem), key=jax.random.key(1), seeds=64, steps=steps, escape=Escape())
times = np.asarray(runs.escape_times)
print(f"simulated: mean {times.mean():.2f} +- {times.std(ddof=1) / 8:.2f}, standard deviation {times.std(ddof=1):.2f}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.plot(runs.t, runs.loss.T, color="0.8", linewidth=0.5)
left.plot(solution.t, solution.loss, "k", label="equations, one start")
left.axvline(float(solution.escape_time), color="k", linestyle=":", label="its escape")
left.set(xlabel="time", ylabel="population loss", title="64 runs (grey)")
left.legend()
grid = np.linspace(0.0, times.max(), 200)
right.step(np.sort(times), np.arange(1, 65) / 64, where="post", label="64 runs")
right.plot(grid, law.cdf(grid), "k", label="law")
right.set(xlabel="escape time", ylabel="part that has escaped")
right.legend()
plt.show()

# %% [markdown]
# Nothing was fitted. The same from the command line: `searchphase escape --strength 0.5 --alignment 0.6 --dim 1e4
# --batch-size 1000`.
