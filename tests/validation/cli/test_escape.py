"""`escape`."""

import json

import pytest

from odes import read_dataset
from tests.command_line import run
from tests.reference import HE3_CRITICAL, REFERENCE_POINTS


@pytest.mark.parametrize("name, teacher, family, mu, C, D, noise, loss, tau", REFERENCE_POINTS)
def test_escape_prints_the_reference_values(capsys, name, teacher, family, mu, C, D, noise, loss, tau):
    flag = "--mixture" if family == "mixture" else "--strength"
    words = ["escape", "--activation", name, flag, str(mu), "--json"] + (["--teacher", teacher] if teacher else [])
    code, out, err = run(capsys, *words)
    point = json.loads(out)["points"][0]
    assert code == 0 and err == ""
    for key, known in dict(C=C, D=D, noise=noise, loss=loss, tau=tau).items():
        assert abs(point[key] - known) <= 1e-8 * abs(known) + 1e-14, key


def test_escape_finds_the_critical_strength_and_prints_every_contract_key(capsys):
    code, out, _ = run(
        capsys, "escape", "--activation", "He3", "--strength", "0.1:0.9:9", "--alignment", "1", "0.5", "--json"
    )
    result = json.loads(out)
    assert min(abs(zero - HE3_CRITICAL) for zero in result["critical_strengths"]) < 1e-12
    assert len(result["points"]) == 18
    keys = "strength alignment C D G noise loss rate tau plateau escape_time_mean escape_time_std".split()
    assert list(result["points"][0])[: len(keys)] == keys


def test_escape_with_dimension_gives_the_law_and_plateaus_are_reported(capsys, tmp_path):
    words = "escape --strength 0.5 1 --dim 1e4 --batch-size 2000 --noise-limit --output".split()
    code, out, err = run(capsys, *words, str(tmp_path / "e.nc"), "--json")
    escapes, trapped = json.loads(out)["points"]
    assert code == 0 and 200 < escapes["escape_time_mean"] < 260 and escapes["escape_time_doubt"] is None
    quantiles = list(escapes["escape_time_quantiles"].values())
    assert quantiles == sorted(quantiles) and 20 < escapes["largest_noise_scale"] < 30
    assert trapped["escape_time_mean"] is None and "gradient vanishes" in trapped["escape_time_doubt"]
    assert "escape_time_quantile_0.5" in read_dataset(tmp_path / "e.nc")
    code, out, _ = run(capsys, "escape", "--activation", "He2", "--strength", "0.1", "--json")
    assert abs(json.loads(out)["points"][0]["plateau"]["up"] - 0.56862407) < 1e-7


def test_infinite_tau_is_null(capsys):
    assert json.loads(run(capsys, "escape", "--strength", "1", "--json")[1])["points"][0]["tau"] is None
