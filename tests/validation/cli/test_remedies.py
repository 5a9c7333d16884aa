"""`remedies`: what is said of ways of training of which no settings will do."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from odes import SGD, Problem
from odes.stages import Stage
from theory import Remedy
from validation.cli.commands.remedies import Remedies, describe
from validation.figures.style import figure_style

PROBLEM = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=1e3))
GIVEN = Remedy("as given", "nothing changed", {"noise_scale": 0.4}, (Stage("as given", PROBLEM, 8.0),))
NEVER = eqx.tree_at(lambda stage: stage.duration, Stage("scale", PROBLEM, 0.0), jnp.nan)
NONE = Remedy("scale", "larger scale", {}, (NEVER,), doubt="a plateau comes first")


def test_a_way_without_settings_has_no_numbers_but_a_reason(capsys):
    given, none = rows = [describe(remedy, [GIVEN, NONE]) for remedy in (GIVEN, NONE)]
    assert given["samples"] == pytest.approx(20) and given["learning_rate"] == 0.2 and given["batch_size"] == 500
    assert np.isnan([none[name] for name in ("samples", "gain", "time", "learning_rate", "batch_size")]).all()
    Remedies().report(rows)
    *_, first, second, third = capsys.readouterr().out.splitlines()
    assert first == "as given: nothing changed (noise_scale 0.4)"
    assert (second, third) == ("scale: larger scale", "  no mean time: a plateau comes first")
    doubted = describe(dataclasses.replace(GIVEN, doubt="few samples"), [GIVEN])
    Remedies().report([doubted])
    assert capsys.readouterr().out.splitlines()[-1] == "  not a mean time: few samples"


@pytest.mark.parametrize("shown", [[GIVEN, NONE], [NONE]], ids=["one", "none"])
def test_they_are_left_out_of_the_picture(shown):
    """Samples within a decade have numbers beside them."""
    seen = {"chain_samples": 21.0, "standard_error": 1.0}
    with figure_style():
        (ax,) = Remedies().draw([describe(remedy, [GIVEN]) | seen for remedy in shown]).axes
        ax.figure.canvas.draw()
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["as given"] * (len(shown) - 1)
    if names:
        assert len([float(label.get_text()) for label in ax.get_xticklabels()]) > 2
