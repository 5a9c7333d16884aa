"""The result of a simulation: escape times between records, its file, even steps."""

from odes import load
from tests.helpers import pairs, same_bits
from tests.problems import single
from validation.simulation import even_steps, simulate_direct

PROBLEM = single(d=100, batch=40, strength=0.4)


def test_save_and_load(key, tmp_path):
    run = simulate_direct(PROBLEM, key=key, seeds=2, steps=[0, 5])
    run.save(tmp_path / "run.nc")
    again = load(tmp_path / "run.nc")
    for ours, known in pairs(again, run):
        same_bits(ours, known)
    assert str(again) == str(run) and (again.method, again.dtype) == (run.method, run.dtype)


def test_even_steps():
    assert even_steps(1.0, 0.1, 5).tolist() == [0, 2, 4, 6, 8, 10]
    assert even_steps(0.25, 0.1, 10).tolist() == [0, 1, 2, 3]
