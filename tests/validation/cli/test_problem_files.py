"""Commands on problems from files, those of the examples among them."""

import json
from pathlib import Path

import numpy as np
import pytest

import theory.lanes
import validation.cli.commands.escape
from odes import Problem, load, read_dataset, read_problem
from tests.command_line import assert_refused, run
from tests.reference import HE3_CRITICAL
from theory import escape_modes

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
    """Readouts are printed, drawn, stored and resumed; of units whose averages are closed formulas, which the drawn flow takes least."""
    file, output, plot = tmp_path / "readouts.toml", tmp_path / "run.nc", tmp_path / "run.png"
    file.write_text(Path(READOUTS).read_text().replace("tanh", "erf"))
    words = f"simulate --problem {file} --t1 2 --records 2 --method chain --output {output} --resume --json --block 1 --seeds"
    _, out, _ = run(capsys, *words.split(), "1")
    (one,) = json.loads(out)["points"]
    assert one["strength"] is None and one["rank"] == 2
    assert np.shape(one["readout_mean"]) == (3, 3) and np.shape(one["M_std"]) == (3, 3, 1)
    code, out, _ = run(capsys, *words.split(), "2", "--plot", str(plot))
    assert code == 0 and len(json.loads(out)["points"][0]["escape_times"]) == 2 and plot.stat().st_size > 5000
    (simulation,) = load(output)
    assert simulation.overlaps.readout.shape == (2, 3, 3) and simulation.seed.tolist() == [0, 1]
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
    assert [name for name in point if name not in ("new_directions", "modes", "grows_alone")] == list(other)
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


@pytest.mark.parametrize(
    "words, message",
    [
        ("checkpoints --problem {pretraining} --cosine 0.5", "leave out --cosine"),
        ("checkpoints --problem {committee}", "`targets` is not known"),
        ("remedies --problem {committee} --rank 2", "leave out --rank"),
        ("remedies --problem {committee} --ways curriculum", "for one student and one teacher unit alone"),
        ("escape --problem {committee} --factor 0.5 0", "--factor must be positive and finite, but is 0"),
        ("escape --problem {committee} --factor 2 --factor-units 3", "--factor-units must be from 1 to 2"),
        ("escape --problem {committee} --factor-units 1", "--factor-units says whose rows --factor multiplies"),
        ("escape --problem {committee} --rank 1.5", "--rank must be a whole number from 1 to 4096, but is 1.5"),
        ("escape --problem {committee} --noise-limit", "--noise-limit is for one student and one teacher unit alone"),
        ("escape --factor 2", "--factor multiplies the pretrained rows of a --problem"),
        ("validate --problem {committee} --checks approach", "of several units takes trajectory"),
        ("validate --problem {committee} --checks stages", "of several units takes trajectory"),
        ("validate --problem {pretraining} --checks law", "of a pretraining takes stages, checkpoints, not law"),
    ],
)
def test_what_a_file_leaves_no_room_for(capsys, words, message):
    files = {"pretraining": str(EXAMPLES / "pretraining.toml"), "committee": COMMITTEE}
    assert_refused(capsys, words.format(**files).split(), message)


def test_pretraining_from_a_file(capsys, monkeypatch):
    """One checkpoint, random weights: halving their loss takes two times in one, and the means are known."""
    monkeypatch.setattr(theory.lanes, "_ON_CPU", 1)
    words = f"checkpoints --problem {EXAMPLES / 'pretraining.toml'} --pretraining-time 0 --goal 0.3 --json"
    code, out, _ = run(capsys, *words.split())
    first, second = json.loads(out)["cases"]
    assert code == 0 and first["cosine"] == [1.0, 0.3] == second["cosine"]
    point = first["checkpoints"][0]
    assert point["target_loss"] == pytest.approx(0.667, abs=0.01) and 5 < point["fine_tuning_time"] < 15
    assert 0 < point["fine_tuning_time_error"] < 0.03 * point["fine_tuning_time"]
    assert second["checkpoints"][0]["fine_tuning_time"] > point["fine_tuning_time"]


def test_growth_without_overlap_is_named(capsys, tmp_path):
    """Even units of small strength: an eigenvalue of D is negative, and U grows to a plateau at a rate of minus that."""
    file = tmp_path / "even.toml"
    file.write_text(
        'student = "He2"\ntargets = [[1, 0], [0, 1]]\npretrained = [[0.3, 0.1], [0.0, 0.4]]\n[sgd]\ndimension = 1e4\n'
    )
    _, out, _ = run(capsys, *f"escape --problem {file} --json".split())
    (point,) = json.loads(out)["points"]
    assert point["grows_alone"] == pytest.approx(
        [-x for x in escape_modes(read_problem(file)).grows_alone.tolist() if x < 0]
    )
    assert point["grows_alone"][0] > 0
    _, out, _ = run(capsys, *f"escape --problem {file}".split())
    assert out.count("U grows without overlap") == len(point["grows_alone"])


HE3_BESIDE_ONE_THAT_IS_PERFECT = """
student = "He3"
targets = [[1, 0], [0, 1]]
pretrained = [[1, 0], [0, 1]]
"""


def test_critical_factors_of_pretrained_rows(capsys, tmp_path, monkeypatch):
    """The first of two units, which do not know of each other, is critical where one unit is; its modes are those of the problem."""
    law = dict.fromkeys(("mean", "std", "mean_error", "std_error", "probability", "escaping"), 1.0)
    law |= {"doubt": None, "quantiles": dict.fromkeys(("0.05", "0.25", "0.5", "0.75", "0.95"), 1.0)}
    monkeypatch.setattr(validation.cli.commands.escape, "law_of", lambda *_: law)
    file, output = tmp_path / "two.toml", tmp_path / "two.nc"
    file.write_text(HE3_BESIDE_ONE_THAT_IS_PERFECT)
    words = f"escape --problem {file} --factor 0.2:0.6:2 --factor-units 1 --rank 1 3 --output {output}".split()
    _, out, _ = run(capsys, *words, "--json")
    found = json.loads(out)
    (zero,) = found["critical_factors"]
    assert zero["factor"] == pytest.approx(HE3_CRITICAL, abs=1e-10) and zero["prefactor"] > 0
    points = found["points"]
    assert [(point["factor"], point["rank"]) for point in points] == [(0.2, 1), (0.6, 1), (0.2, 3), (0.6, 3)]
    assert [point["new_directions"] for point in points] == [1, 1, 1, 1]
    alone = Problem.committee("He3", pretrained=[0.6, 1.0])
    np.testing.assert_allclose([mode["rate"] for mode in points[1]["modes"]], escape_modes(alone).rates, atol=1e-12)
    dataset = read_dataset(output)
    assert dataset["mode_teachers"].shape == (4, 4, 2) and dataset["critical_factor_factor"].size == 1
    code, out, _ = run(capsys, *words)
    assert code == 0 and "new_directions" in out and "-0 " not in out
    assert f"gradient vanishes at factor {HE3_CRITICAL:.9g}" in out
