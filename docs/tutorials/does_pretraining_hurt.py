# %% [markdown]
# # Will pretraining hurt here?
#
# A network is pretrained on one task, the source, and fine-tuned on another one, the target, whose direction has a
# known cosine with the source's. Does more pretraining make fine-tuning faster or slower? The answer depends on the
# goal.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from odes import SGD, Escape, Transfer, self_moments
from theory import judge, pretraining_times
from validation.simulation import simulated_fine_tuning

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## A transfer
#
# Pretraining starts from random weights of length 1 in $10^4$ dimensions. `pretraining_times` gives 0, when nothing
# has been learnt yet, and times up to the one at which the source is learnt.

# %%
transfer = Transfer("erf", cosine=0.8, sgd=SGD(dimension=10_000, learning_rate=0.05, batch_size=500))
times = pretraining_times(transfer, 24)
print(np.round(times[[0, 1, 12, 23]], 3))

# %% [markdown]
# ## Two goals
#
# The first goal is to halve the loss that the checkpoint itself has on the target. The second is the same loss for all
# checkpoints, a tenth of that of a student whose output is always 0.

# %%
constant = float(self_moments(transfer.target, 1.0).value) / 2
goals = {"half of its own loss": Escape("loss", 0.5), "the same loss for all": Escape("absolute", constant / 10)}
verdicts = {name: judge(transfer, times, goal) for name, goal in goals.items()}
for name, verdict in verdicts.items():
    print(f"{name}: {verdict.kind.meaning}")
    print(f"  fastest from pretraining time {verdict.best.at:.3f}: {verdict.best.cost:.1f}")
    print(f"  slowest from pretraining time {verdict.worst.at:.3f}: {verdict.worst.cost:.1f}")

# %% [markdown]
# With the first goal every bit of pretraining makes fine-tuning slower: a better checkpoint has less to lose, and its
# pull on the adapter is weaker. With the second goal there is a best time to stop, and pretraining beyond it hurts
# again. A claim that pretraining hurts means nothing without the goal.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3))
for ax, (name, verdict) in zip(axes, verdicts.items(), strict=True):
    ax.plot(verdict.swept.time[1:], verdict.swept.tuning.time[1:])
    ax.axvline(verdict.best.at, color="0.6", linestyle=":")
    ax.set(xscale="log", xlabel="pretraining time", ylabel="fine-tuning time", title=name)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## How theory knows
#
# Each checkpoint is described by two numbers, the strength and the alignment of its weights. The derivative of the
# fine-tuning time in the pretraining time goes through the whole computation, so that the best checkpoint is the root
# of this derivative and not the best point of a grid.

# %%
swept = verdicts["the same loss for all"].swept
print(" time  strength  alignment  fine-tuning   slope")
for i in (1, 6, 12, 18, 23):
    row = (swept.time, swept.strength, swept.alignment, swept.tuning.time, swept.slope)
    print("{:5.2f}  {:8.3f}  {:9.3f}  {:11.2f}  {:6.2f}".format(*(float(column[i]) for column in row)))

# %% [markdown]
# ## Does training agree?
#
# `simulated_fine_tuning` pretrains and fine-tunes 64 networks by the exact chain of their overlaps, from random
# weights, here from the checkpoint that theory calls the best.

# %%
goal = goals["the same loss for all"]
best = verdicts["the same loss for all"].best
runs = simulated_fine_tuning(transfer, best.at, goal, longest=3 * best.cost, seeds=64, key=jax.random.key(0))
print(f"theory {best.cost:.2f}, simulated {runs.mean():.2f} +- {runs.std(ddof=1) / 8:.2f}")
