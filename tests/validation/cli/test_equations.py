"""`equations`."""

import re
from pathlib import Path

import numpy as np
import pytest

from odes import Adapter, Problem, flow, random_overlaps, read_problem
from tests.command_line import assert_refused, run
from theory.symbolic import closed_equations

EXAMPLES = Path(__file__).parents[3] / "examples"
COMMITTEE, READOUTS, SINGLE = (str(EXAMPLES / f"{name}.toml") for name in ("committee", "readouts", "single"))


def test_latex_is_a_whole_document(capsys):
    code, out, err = run(capsys, *"equations --activation He3 --rank 2".split())
    assert code == 0 and err == ""
    assert r"\documentclass" in out and out.endswith("\\end{document}\n")
    for equation in (
        r"C &= 18 M^{2} a b",
        r"D &= 9 a^{2} \bigl(5 Q^{2} - 4 Q + 1\bigr)",
        r"\dot{R}_{12} &= ",
        r"\lambda_+ &= ",
    ):
        assert equation in out


def test_python_of_a_file_is_its_flow(capsys, tmp_path):
    import jax

    output, problem, module = tmp_path / "committee.py", read_problem(COMMITTEE), {}
    code, out, _ = run(capsys, *f"equations --problem {COMMITTEE} --format python --output {output}".split())
    assert code == 0 and re.fullmatch(rf"written to {re.escape(str(output))}: \d+ lines\n", out)
    exec(output.read_text(), module)
    overlaps = random_overlaps(problem, jax.random.key(0), up=0.3)
    equations = closed_equations(problem)
    known = equations.values_of(flow(problem, overlaps))
    found = module["rhs"](0.0, equations.values_of(overlaps))
    np.testing.assert_allclose(found, known, rtol=1e-12, atol=1e-12 * np.abs(known).max())
    assert module["PARAMETERS"]["theta"] == pytest.approx(float(problem.sgd.noise_scale))


def test_flags_shape_the_equations_and_give_the_values(capsys):
    words = "equations --activation erf(x/sqrt(2)) --mixture 0.5 --scale 3 --lr-ratio 2 --free-rows --batch-size inf --format sympy"
    code, out, _ = run(capsys, *words.split())
    built = {}
    exec(out, built)
    values = {str(symbol): value for symbol, value in built["parameters"].items()}
    assert code == 0 and values == pytest.approx(dict(rho=0.5**0.5, c=0.5**0.5, a=1, b=1, kappa=3, chi=2))
    assert [str(symbol) for symbol in built["flow"]] == ["u", "m", "s", "R"]
    problem = Problem.mixture("erf(x/sqrt(2))", mu=0.5, adapter=Adapter(scale=3.0, lr_ratio=2.0, normalized=False))
    known = closed_equations(problem.replace(noise_scale=0.0))
    assert {str(symbol): value for symbol, value in built["flow"].items()} == {
        str(symbol): value for symbol, value in known.flow.items()
    }
    code, out, _ = run(capsys, *"equations --activation linear --finite-steps --format python".split())
    assert code == 0 and "The change in one SGD step" in out and '"eta": 0.2' in out


def test_a_single_index_file_has_the_equations_of_the_flags(capsys):
    _, of_file, _ = run(capsys, *f"equations --problem {SINGLE} --format sympy".split())
    _, of_flags, _ = run(capsys, *"equations --format sympy".split())
    flow_of = r"definitions = .*?# The search"
    (first,), (second,) = (re.findall(flow_of, text, re.DOTALL) for text in (of_file, of_flags))
    assert first == second


def test_a_file_that_holds_something_else_is_kept(capsys, tmp_path):
    output = tmp_path / "equations.tex"
    words = f"equations --activation linear --output {output}".split()
    output.write_text("a paper\n")
    assert_refused(capsys, words, "holds something else: name another file, or replace it by --force")
    assert output.read_text() == "a paper\n"
    assert run(capsys, *words, "--force")[0] == 0 and output.read_text().startswith(
        "% Closed equations of K = 1 student linear"
    )
    assert run(capsys, *words)[0] == 0


@pytest.mark.parametrize(
    "words, message",
    [
        (
            "equations --activation tanh",
            "--activation must be a polynomial, erf of x or of a scaled x, or a sum of these, but is 'tanh'",
        ),
        ("equations --teacher relu", "--teacher must be a polynomial"),
        ("equations --activation He9", "--activation must have a degree of at most 8"),
        ("equations --rank 8", "--rank must be smaller for equations that can be read"),
        ("equations --format html", "--format takes one of 'latex', 'sympy', 'python', not 'html'"),
        ("equations --format python --output run.tex", "--output must end in .py, but is 'run.tex'"),
        (f"equations --problem {COMMITTEE} --rank 3", "--problem holds all of the problem: leave out --rank"),
        (f"equations --problem {READOUTS}", "readouts.toml: `student` must be a polynomial"),
    ],
)
def test_what_has_no_readable_equations_is_one_line(words, message, capsys):
    assert_refused(capsys, words.split(), message)
