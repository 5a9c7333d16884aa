"""What the explorer shows are the numbers of the commands and of the packages, whatever slider was moved."""

import json
import shlex
from urllib.parse import parse_qsl

import numpy as np
import pytest

from odes import Adapter, Escape, Problem, solve
from odes.arguments import ArgumentError
from tests.command_line import run
from theory import escape_law, search_phase, typical_start, unstable_mode
from validation.explore import numbers
from validation.explore.settings import Settings

PLACES = (
    Settings(),
    Settings(strength=0.3, alignment=0.7, rank=3, scale=4.5, lr_ratio=2.0),
    Settings(teacher="He3", batch_size=float("inf"), label_noise=0.1, learning_rate=0.1, dimension=1e4),
)
FREE = Settings(mixture=0.4, free_rows=True)
WITH_FREE = (*PLACES, pytest.param(FREE, marks=pytest.mark.slow))


@pytest.mark.parametrize("settings", WITH_FREE, ids=lambda settings: settings.query)
def test_rows_at_rest_change_neither_the_search_nor_the_flow(settings):
    found, problem = numbers.search(settings), settings.problem()
    phase = search_phase(problem)
    for name in ("C", "D", "G", "noise", "loss", "rate", "tau"):
        np.testing.assert_allclose(found[name], getattr(phase, name), rtol=1e-10, atol=1e-14)
    start = typical_start(problem, phase, unstable_mode(problem))
    flow = found["flow"]
    apart = solve(problem, start, t1=flow["t"][-1], times=flow["t"], escape=Escape())
    np.testing.assert_allclose(flow["escape_time"], apart.escape_time, rtol=1e-5)
    for name in ("loss", "target_overlap"):
        np.testing.assert_allclose(flow[name], getattr(apart, name), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(flow["m"], apart.m.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(flow["u"], apart.u.T, rtol=1e-4, atol=1e-6)
    assert flow["m"].shape[0] == settings.rank


@pytest.mark.parametrize(
    "settings",
    [Settings(strength=0.3, alignment=0.9), pytest.param(FREE, marks=pytest.mark.slow)],
    ids=lambda settings: settings.query,
)
def test_the_copied_command_prints_the_same_numbers(capsys, settings):
    program, *words = shlex.split(settings.command)
    code, out, _ = run(capsys, *words, "--json")
    (point,), shown, law = json.loads(out)["points"], numbers.search(settings), numbers.law(settings)
    assert program == "searchphase" and code == 0
    np.testing.assert_allclose([shown["tau"], shown["G"]], [point["tau"], point["G"]], rtol=1e-10)
    np.testing.assert_allclose(
        [law["mean"], law["std"]], [point["escape_time_mean"], point["escape_time_std"]], rtol=1e-10
    )
    assert law["quantiles"]["0.5"] == pytest.approx(point["escape_time_quantiles"]["0.5"])
    assert np.all(np.diff(law["t"]) >= 0) and law["words"] == ""


@pytest.mark.parametrize("settings", WITH_FREE[1::2], ids=lambda settings: settings.query)
def test_the_copied_python_lines_compute_the_same_numbers(capsys, settings):
    exec(settings.python, {})
    printed = capsys.readouterr().out
    assert str(search_phase(settings.problem())) in printed and str(escape_law(settings.problem())) in printed


def test_a_mixture_stands_in_place_of_strength_and_alignment():
    assert FREE.command == "searchphase escape --dim 1000 --mixture 0.4 --free-rows"
    assert "Problem.mixture('erf', mu=0.4, adapter=Adapter(normalized=False))" in FREE.python
    problem = Problem.mixture("erf", mu=0.4, adapter=Adapter(normalized=False))
    np.testing.assert_allclose(FREE.place, (problem.strength, problem.alignment), rtol=1e-15)
    assert FREE.problem().adapter == problem.adapter


def test_a_slider_compiles_nothing():
    numbers.search(Settings())
    moved = [Settings(strength=0.61), Settings(rank=7), Settings(alignment=-0.3), Settings(batch_size=float("inf"))]
    sizes = [traced.compiled._cached._cache_size() for traced in (numbers._search, numbers._flow)]
    for settings in moved:
        assert np.isfinite(numbers.search(settings)["flow"]["escape_time"])
    assert [traced.compiled._cached._cache_size() for traced in (numbers._search, numbers._flow)] == sizes


def test_what_never_ends_is_said():
    critical = Settings(strength=1.0)
    shown = numbers.search(critical)
    assert not np.isfinite(shown["tau"]) and "never ends" in shown["flow"]["words"]
    np.testing.assert_allclose(shown["critical"], [1.0], rtol=1e-9)
    assert numbers.law(critical)["words"] and numbers.law(critical)["t"].size == 0
    assert "for ever" in numbers.chain(critical)["words"]
    slow = numbers.search(Settings(strength=0.99))["flow"]
    assert "slider" in slow["words"] and np.isnan(slow["loss"][-1])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"activation": "exec(1)"}, "activation"),
        ({"activation": "relux"}, "activation"),
        ({"strength": "-1"}, "strength"),
        ({"strength": "much"}, "strength"),
        ({"alignment": "nan"}, "alignment"),
        ({"rank": "1.5"}, "rank"),
        ({"rank": "inf"}, "rank"),
        ({"dimension": "1"}, "dimension"),
        ({"mixture": "0.3", "alignment": "0.5"}, "mixture"),
        ({"mixture": "inf"}, "mixture"),
        ({"free_rows": "perhaps"}, "free_rows"),
        ({"colour": "red"}, "address"),
    ],
)
def test_wrong_settings_are_refused_by_name(words, name):
    with pytest.raises(ArgumentError) as caught:
        numbers.search(Settings.of(words))
    assert caught.value.name == name and "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", (*PLACES, FREE), ids=lambda settings: settings.query)
def test_the_address_holds_the_settings(settings):
    assert Settings.of(dict(parse_qsl(settings.query))) == settings


@pytest.mark.slow
def test_the_place_in_the_diagram_is_that_of_the_diagram():
    here = numbers.region(Settings())
    assert here["name"] == "hurts" and here["slope"] > 0 and here["words"] == ""
    around = numbers.diagram(Settings())
    assert {"helps", "hurts"} <= set(around["region"])


@pytest.mark.slow
def test_the_chain_escapes_when_the_law_says():
    runs, law = numbers.chain(Settings()), numbers.law(Settings())
    assert runs["loss"].shape[0] == numbers.SEEDS
    assert abs(runs["escape_times"].mean() - law["mean"]) < 4 * law["std"] / np.sqrt(numbers.SEEDS)
