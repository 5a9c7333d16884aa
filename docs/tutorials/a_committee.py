# %% [markdown]
# # A committee
#
# Students and teachers with several units learn in more than one step. This page follows four units: where the adapter
# looks first, where it rests, and how many rows it needs.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from odes import SGD, Adapter, Problem, random_overlaps, solve
from theory import escape_law, escape_modes, saddles

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The problem
#
# Four student units are pretrained on four teachers: two of them a little, two almost perfectly. The adapter has the
# rank 2. The same problem as a file, for the command line, is [four.toml](../../examples/four.toml).

# %%
problem = Problem.committee(
    "erf(x/sqrt(2))",
    pretrained=[0.3, 0.2, 0.95, 0.95],
    readout="1/sqrt(n)",
    teacher_readout="1/sqrt(n)",
    adapter=Adapter(2),
    sgd=SGD(dimension=10_000, batch_size=5000, learning_rate=0.1),
)
print("units of student and teacher:", problem.units, "rank:", problem.adapter.rank)

# %% [markdown]
# ## What the adapter finds first
#
# A student of $K$ units searches in $2K$ modes, of which at most $K$ grow. Each learns one direction; the table gives
# its cosines with the teachers.

# %%
modes = escape_modes(problem)
print("       rate   teacher 1  teacher 2  teacher 3  teacher 4")
for rate, cosines in zip(modes.rates[:4], np.asarray(modes.teachers), strict=False):
    print(f"{float(rate):11.3g}", *(f"{cosine:10.3f}" for cosine in cosines))

# %% [markdown]
# The fastest mode does not learn one teacher but the sum of the first two. What tells these apart is the second mode,
# which is much slower. So a plateau is to be expected.

# %%
start = random_overlaps(problem, jax.random.key(0))
solution = solve(problem, start, t1=4000.0, times=np.linspace(0, 4000, 1001))
found = saddles(solution)
for saddle in found:
    print(f"loss {float(saddle.loss):.4g}, rate out of it {float(saddle.rates[0]):.3g}, stay {saddle.residence:.0f}")

# %% [markdown]
# `saddles` finds the fixed points near which the trajectory rests; here it is the search phase itself, out of which
# the first mode leads. The plateau that follows is passed at some distance by this run.

# %%
fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(solution.t, solution.loss)
for saddle in found:
    ax.axhline(float(saddle.loss), color="0.6", linestyle=":")
ax.set(yscale="log", xlabel="time", ylabel="population loss", title="dotted: the saddle of the search phase")
plt.show()

# %% [markdown]
# ## When
#
# The law of the escape time is the same function for any number of units.

# %%
law = escape_law(problem)
print(f"the loss is halved at {law.mean:.1f} +- {law.std:.1f}")

# %% [markdown]
# ## How many rows
#
# Two directions are missing. An adapter of rank 1 learns their sum and rests on the plateau; the one of rank 2, above,
# learns both.

# %%
single = problem.replace(rank=1)
alone = solve(single, random_overlaps(single, jax.random.key(0)), t1=4000.0)
for name, run in (("rank 1", alone), ("rank 2", solution)):
    print(f"{name}: loss {float(run.loss[-1]):.2e} at time 4000")

# %%
fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(alone.t, alone.loss, label="rank 1")
ax.plot(solution.t, solution.loss, label="rank 2")
ax.set(yscale="log", xlabel="time", ylabel="population loss")
ax.legend()
plt.show()
