"""`phase-diagram`."""

import json

import numpy as np

from odes import read_dataset
from tests.command_line import run

COMMAND = "phase-diagram --activation linear --strength 0.2:1.2:4 --alignment 0.5".split()


def test_command_prints_draws_and_stores(capsys, tmp_path):
    file, plot = tmp_path / "diagram.nc", tmp_path / "diagram.png"
    code, out, _ = run(capsys, *COMMAND, "0.8", "--output", str(file), "--plot", str(plot), "--json")
    result = json.loads(out)
    keys = "strength alignment region time slope share searching tau D trusted boundaries regions kinds"
    assert code == 0 and list(result) == keys.split()
    assert list(result["boundaries"][0]) == "alignment strength kind before after time line".split()
    assert [edge["kind"] for edge in result["boundaries"]] == ["maximum", "maximum"]
    np.testing.assert_allclose([edge["strength"] for edge in result["boundaries"]], [0.5, 0.8], rtol=1e-6)
    stored = read_dataset(file)
    np.testing.assert_array_equal(stored["time"], np.array(result["time"]))
    assert stored["region"].values.tolist() == result["region"] and stored.attrs["kind"] == '"phase-diagram"'
    assert plot.stat().st_size > 5000


def test_command_prints_a_table(capsys):
    code, out, _ = run(capsys, *COMMAND)
    lines = out.splitlines()
    assert (
        code == 0
        and lines[0].split()[0] == "alignment"
        and "maximum 0.5" in lines[1]
        and lines[1].split()[1] == "hurts"
    )
    assert any(line.startswith("maximum: the worst strength") for line in lines)
    assert "the search takes more than half of the time at 4 of 4 places of the grid" in lines
