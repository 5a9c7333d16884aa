"""`checkpoints`."""

import json

import pytest

from tests.command_line import run


def test_checkpoints_command(capsys, tmp_path):
    flags = ["--points", "5", "--pretraining-time", "4", "--cosine", "0.8", "--criterion", "absolute"]
    flags += ["--threshold", "0.0232", "--goal", "0.0232"]
    files = ["--output", str(tmp_path / "run.nc"), "--plot", str(tmp_path / "run.png")]
    code, out, _ = run(capsys, "checkpoints", *flags, "--json", *files)
    first, second = json.loads(out)["cases"]
    assert code == 0 and first == second
    assert first["verdict"] == "optimum" and first["reached"] == [[0, 4]]
    assert first["critical"] == first["best"]["pretraining_time"]
    point = first["checkpoints"][0]
    assert point["pretraining_time"] == 0 and point["alignment"] == pytest.approx(0.008)
    assert (tmp_path / "run.nc").stat().st_size > 1000 and (tmp_path / "run.png").stat().st_size > 5000


@pytest.mark.slow
def test_pretraining_time_zero_is_a_random_w0(capsys):
    code, out, _ = run(capsys, "checkpoints", "--pretraining-time", "0")
    assert code == 0 and out.count("pretraining time 0 means random weights: fine-tuning from them takes") == 2
