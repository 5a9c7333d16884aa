"""Commands on problems from files, those of the examples among them."""

import json
from pathlib import Path

import numpy as np
import pytest

from odes import load, read_problem
from tests.command_line import assert_refused, run

EXAMPLES = Path(__file__).parents[3] / "examples"
COMMITTEE, READOUTS, SINGLE = (str(EXAMPLES / f"{name}.toml") for name in ("committee", "readouts", "single"))


def test_solve_speaks_of_units(capsys, tmp_path):
    output, plot = tmp_path / "run.nc", tmp_path / "run.png"
    words = f"solve --problem {COMMITTEE} --t1 60 --records 4 --output {output} --plot {plot} --json"
    code, out, _ = run(capsys, *words.split())
    found = json.loads(out)
    assert code == 0 and plot.stat().st_size > 5000
    assert list(found) == ["t", "loss", "Q", "M", "escape_time", "steps_taken", "result"]
    assert np.shape(found["Q"]) == np.shape(found["M"]) == (4, 2, 2) and 40 < found["escape_time"] < 60
    again = load(output)
    np.testing.assert_allclose(again.covariances.M, found["M"])
    assert again.problem.to_dict() == read_problem(COMMITTEE).to_dict()
    _, out, _ = run(capsys, *f"solve --problem {COMMITTEE} --t1 60 --records 4".split())
    assert out.split()[:8] == ["t", "loss", "Q1,1", "Q2,2", "M1,1", "M1,2", "M2,1", "M2,2"]


def test_simulate_goes_on_with_readouts(capsys, tmp_path):
    """Readouts are printed, drawn, stored and resumed."""
    output, plot = tmp_path / "run.nc", tmp_path / "run.png"
    words = f"simulate --problem {READOUTS} --t1 2 --records 2 --method chain --output {output} --resume --json --seeds"
    _, out, _ = run(capsys, *words.split(), "2")
    (two,) = json.loads(out)["points"]
    assert two["strength"] is None and two["rank"] == 2
    assert np.shape(two["readout_mean"]) == (3, 3) and np.shape(two["M_std"]) == (3, 3, 1)
    code, out, _ = run(capsys, *words.split(), "3", "--plot", str(plot))
    assert code == 0 and len(json.loads(out)["points"][0]["escape_times"]) == 3 and plot.stat().st_size > 5000
    import validation.simulation  # noqa: F401

    (simulation,) = load(output)
    assert simulation.overlaps.readout.shape == (3, 3, 3) and simulation.seed.tolist() == [0, 1, 2]
    assert np.any(simulation.readout[:, 2] != simulation.readout[:, 0])


def test_simulate_runs_to_the_time_asked_for_at_the_file_s_learning_rate(capsys, tmp_path):
    file = tmp_path / "slow.toml"
    file.write_text(Path(SINGLE).read_text().replace("[sgd]", "[sgd]\nlearning_rate = 0.05"))
    _, out, _ = run(capsys, *f"simulate --problem {file} --t1 3 --records 2 --method chain --seeds 2 --json".split())
    assert json.loads(out)["points"][0]["t"] == pytest.approx([0, 1.5, 3])


def test_one_unit_from_a_file_is_the_one_of_the_flags(capsys):
    _, out, _ = run(capsys, *f"escape --problem {SINGLE} --json".split())
    (point,) = json.loads(out)["points"]
    flags = "--strength 0.5 --alignment 0.6 --dim 1e4 --batch-size 5000 --json"
    _, out, _ = run(capsys, "escape", *flags.split())
    (other,) = json.loads(out)["points"]
    assert [name for name in point if name != "modes"] == list(other)
    for name in ("tau", "escape_time_mean", "escape_time_std", "dimension"):
        np.testing.assert_allclose(point[name], other[name], rtol=1e-9)


@pytest.mark.parametrize(
    "words, message",
    [
        (f"escape --problem {READOUTS}", "--problem must have readouts at rest"),
        (f"escape --problem {SINGLE} --strength 0.2", "--problem holds all of the problem: leave out --strength"),
        (f"solve --problem {COMMITTEE} --rank 3 --t1 1", "--problem holds all of the problem: leave out --rank"),
        (f"solve --problem {READOUTS}", "--t1 must be given where nothing is frozen, or readouts are trained"),
        (
            f"solve --problem {COMMITTEE} --t1 1 --criterion overlap --teacher-unit 3",
            "--teacher-unit must be one of the teacher's 2, but is 3",
        ),
        (f"escape --problem {COMMITTEE} --teacher-unit 2", "--teacher-unit is for the criterion overlap alone"),
        (f"simulate --problem {COMMITTEE} --dim 100 --t1 1", "leave out --dim"),
        (
            f"simulate --problem {READOUTS} --t1 1 --method gaussian",
            "readouts.toml: `readout_lr_ratio` must be 0 for normal batches",
        ),
        ("solve --problem nowhere.toml --t1 1", "there is no file nowhere.toml"),
        (f"solve --problem {EXAMPLES} --t1 1", "is a folder"),
        (f"solve --problem {__file__} --t1 1", "is no TOML file"),
    ],
)
def test_what_files_cannot_do_is_one_line(words, message, capsys):
    assert_refused(capsys, words.split(), message)


def test_a_misspelt_key_names_the_file(capsys, tmp_path):
    path = tmp_path / "problem.toml"
    path.write_text(Path(COMMITTEE).read_text().replace("targets", "target"))
    assert_refused(capsys, f"solve --problem {path} --t1 1".split(), f"{path}: `target` is not known; did you mean")
