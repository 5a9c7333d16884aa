"""Bad input is one line: on standard error, of the command that was called, with exit code 2 and no file; or our own exception."""

import json
import subprocess
import sys

import pytest

from tests.command_line import assert_refused, on_its_own

BAD = [
    ("escape --strength 0", "--strength must be positive and finite, but is 0"),
    ("escape --strength -1", "--strength must be positive and finite, but is -1"),
    ("escape --strength nan", "--strength must be positive and finite, but is nan"),
    ("escape --strength abc", "--strength takes numbers or ranges LOW:HIGH:N such as 0.1:0.9:9, not 'abc'"),
    ("escape --strength 0.1:0.9", "--strength takes numbers or ranges"),
    ("escape --alignment 1.5", "--alignment must be between -1 and 1, but is 1.5"),
    ("escape --mixture 0.5 --strength 1", "--mixture sets strength and alignment"),
    ("escape --activation elu2", "there is no 'elu2'; did you mean 'relu'"),
    ("escape --rank 0", "--rank must be a whole number from 1 to 4096, but is 0"),
    ("escape --rank x", "--rank"),
    ("escape --rank 10000000", "--rank must be a whole number from 1 to 4096, but is 10000000"),
    ("escape --teacher foo", "--teacher must be a name"),
    ("escape --activation 1e999*He1", "a coefficient must be finite"),
    ("escape --activation ((He20)^2)^2", "grows faster"),
    ("escape --output /proc/x.nc", "--output cannot be written: '/proc/x.nc'"),
    ("solve --up nan --t1 1", "--up must be finite"),
    ("solve --seed 99999999999999999999999 --t1 1", "--seed must be a 64-bit integer"),
    ("solve --dim 2 --alignment 0.5 --t1 1", "--dim must be at least 3, the number of directions, but is 2"),
    ("simulate --learning-rate 1e-300", "--t1 must be at most a trillion steps"),
    ("simulate --activation tanh --strength 1", "--t1 must be given"),
    ("simulate --dim 20 --batch-size 1e13 --t1 1", "GiB of memory, but there are"),
    ("escape --threshold 2", "--threshold must be between 0 and 1"),
    ("escape --criterion losss", "did you mean 'loss'"),
    ("escape --dim 1", "--dim must be at least 2"),
    ("escape --plot x.gif", "--plot must end in .png or .pdf or .svg"),
    ("escape --output /nowhere/x.nc", "--output names a file in '/nowhere', which is not a folder"),
    ("escape --bogus 1", "--bogus"),
    ("solve --t1 0", "--t1 must be positive and finite, but is 0"),
    ("solve --t1 -3", "--t1 must be positive and finite, but is -3"),
    ("solve --strength 0.1 0.2", "too many values: 0.2 (flags take one value here)"),
    ("solve --strength 1", "--t1 must be given"),
    ("solve --batch-size 0", "--batch-size must be at least 1"),
    ("solve --rtol 1e-20 --t1 1", "--rtol must be at least"),
    ("solve --records 1 --t1 1", "--records must be at least 2"),
    ("simulate --batch-size inf --t1 1", "--batch-size must be a whole number"),
    ("simulate --seeds 0 --t1 1", "--seeds must be at least 1"),
    ("simulate --method exact", "--method"),
    ("simulate --dim 2 --t1 1", "--dim must be at least 3"),
    ("simulate --block 0 --t1 1 --output x.nc", "--block must be at least 1, but is 0"),
    ("simulate --block 1.5 --t1 1", "--block takes a whole number, not '1.5'"),
    ("simulate --seeds 0 --t1 1 --output x.nc", "--seeds must be at least 1, but is 0"),
    ("simulate --resume --t1 1", "--resume goes on with what --output stored: give both"),
    ("simulate --workers 0 --t1 1", "--workers must be at least 1, but is 0"),
    ("simulate --retries -1 --t1 1", "--retries must be at least 0, but is -1"),
    ("simulate --workers 2 --scheduler tcp://host:1 --t1 1", "--scheduler has workers of its own: leave out --workers"),
    ("simulate --scheduler nonsense --t1 1", "--scheduler nonsense does not answer as a Dask scheduler"),
    ("validate --resume --strength 0.5", "--resume goes on with what --output stored: give both"),
    ("simulate --method chain --seeds 10000000 --records 10000 --t1 3000", "keeping all records of all seeds"),
    ("simulate --method chain --batch-size 1e9 --t1 1", "method gaussian takes larger ones"),
    ("simulate --strength 0.5 1", "--t1 must be given, because the search phase never ends at strength 1"),
    ("solve --t1 zz", "--t1 takes a number, not 'zz'"),
    ("solve --dim zz", "--dim takes a number, not 'zz'"),
    ("escape --rank 1.5", "--rank must be a whole number from 1 to 4096, but is 1.5"),
    ("demo --output /proc/x", "--output '/proc/x' cannot be written"),
    ("escap", "escap"),
    ("", "Expected"),
    ("checkpoints --cosine 1.5", "--cosine must be between -1 and 1, but is 1.5"),
    ("checkpoints --points 2", "--points must be at least 3"),
    ("checkpoints --pretraining-time -1", "--pretraining-time must be non-negative"),
    ("checkpoints --pretraining-time 0 --plot run.png", "--pretraining-time above 0"),
    ("checkpoints --pretraining-batch-size 0", "--pretraining-batch-size must be at least 1"),
    ("checkpoints --source relux", "--source must be a name"),
    ("checkpoints --goal -1", "--goal must be positive"),
    ("checkpoints --confirm 1", "--confirm must be at least 2"),
    ("checkpoints --spherical --length 2", "--length must be 1 for spherical"),
    ("remedies --ways nois", "did you mean 'noise'"),
    ("remedies --batch-size inf", "--batch-size must be finite"),
    ("remedies --strength 0.2 0.3", "too many values: 0.3"),
    ("remedies --goal 0", "--goal must be positive"),
    ("phase-diagram --activation linear --strength 0.5", "--strength takes at least two different strengths"),
    ("phase-diagram --activation linear --strength 0.5 x", "--strength takes numbers or ranges"),
    ("phase-diagram --activation linear --alignment 0:1.5:4", "--alignment must be between -1 and 1, but is 1.5"),
    ("phase-diagram --activation linear --mixture 0.5", "--mixture"),
    (
        "phase-diagram --activation linear --alignment 0.5 --plot a.png",
        "--plot needs at least two different alignments",
    ),
    (
        "phase-diagram --activation linear --criterion los",
        "--criterion must be one of loss, overlap, absolute, but is 'los'",
    ),
    ("phase-diagram --activation linear --threshold 1.5", "--threshold must be between 0 and 1"),
    ("phase-diagram --activation linear --teacher Relu", "--teacher must be"),
    ("phase-diagram --activation linear --batch-size 0", "--batch-size must be at least 1"),
    ("phase-diagram --activation linear --output diagram.txt", "--output must end in .nc"),
    ("figures escape-tme", "there is no figure 'escape-tme'; did you mean 'escape-time'? (--list names them)"),
    ("figures bias --redraw --folder .", "does not exist"),
    ("figures bias --redraw --again", "exclude each other"),
    ("figures bias --folder /proc/nowhere", "--folder '/proc/nowhere' cannot be written"),
    ("validate --quick --full", "--quick and --full exclude each other"),
    ("validate --checks lw", "--checks takes trajectory, law"),
    ("validate --noise-scale -1", "--noise-scale must be non-negative"),
    ("validate --settings none.toml", "none.toml"),
    ("validate --random -1", "--random must be at least 0"),
    ("validate --minutes 1", "--minutes must be given with --random"),
    ("validate --random 2 --strength 0.5", "--random draws the settings"),
    ("simulate --dim 1e9 --t1 1", "GiB of memory, but there are"),
    ("simulate --seed-offset -1 --t1 1", "--seed-offset must be at least 0"),
    ("simulate --seed-offset 4294967296 --t1 1", "--seed-offset must be at least 0, with all seeds below 2^32"),
    ("escape --dim 10 --rank 20", "--dim must be at least 22, the number of directions"),
    ("simulate --rank 1 2 x --t1 1", "--rank takes numbers or ranges"),
    ("simulate --dim 10.5 --t1 1", "--dim must be a whole number"),
    ("simulate --batch-size 10.5 --t1 1", "--batch-size must be a whole number"),
    ("simulate --dtype float16 --t1 1", "--dtype"),
    ("escape --rank", "--rank takes at least one number"),
    ("escape --strength 0.1:0.5:0", "--strength takes numbers or ranges"),
    ("escape --scale 0", "--scale must be positive and finite, but is 0"),
    ("escape --lr-ratio -1", "--lr-ratio must be non-negative and finite, but is -1"),
    ("escape --label-noise -1", "--label-noise must be non-negative and finite"),
    ("solve --learning-rate 0 --t1 1", "--learning-rate must be positive and finite"),
    ("solve --alignment 0.5 --mixture 0.5 --t1 1", "--mixture sets strength and alignment"),
    ("solve --rank 1.5 --t1 1", "--rank takes a whole number, not '1.5'"),
    ("merge", "two files or more"),
    ("merge a.nc b.nc", "there is no file a.nc"),
    ("cache --bogus", "--bogus"),
]


@pytest.mark.parametrize("words, message", BAD)
def test_bad_input_is_refused(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, words.split(), message)
    assert list(tmp_path.iterdir()) == []


WRONG = [
    ("SGD(learning_rate=0)", "`learning_rate` must be positive and finite, but is 0"),
    ("SGD(learning_rate='fast')", "`learning_rate` must be a number, but is 'fast'"),
    ("SGD(learning_rate=[0.1, 0.2])", "`learning_rate` must be one number, but has shape (2,)"),
    ("SGD(batch_size=0.5)", "`batch_size` must be at least 1"),
    ("SGD(dimension=inf)", "`dimension` must be at least 2 and finite"),
    ("SGD(dimension=nan)", "`dimension` must be at least 2 and finite"),
    ("SGD(label_noise=-1)", "`label_noise` must be non-negative"),
    ("SGD().replace(noise_scale=-1)", "`noise_scale` must be non-negative"),
    ("Adapter(2.0)", "`rank` must be a whole number of at least 1, but is 2.0 (float)"),
    ("Adapter('4')", "`rank` must be a whole number of at least 1, but is '4' (str)"),
    ("Adapter(0)", "`rank` must be a whole number of at least 1, but is 0"),
    ("Adapter(scale=nan)", "`scale` must be positive and finite"),
    ("Adapter(lr_ratio=-1)", "`lr_ratio` must be non-negative"),
    ("Adapter(normalized='yes')", "`normalized` must be True or False"),
    ("Adapter(2, trained=[1])", "`trained` must have shape (r,) = (2,)"),
    ("Adapter(2, trained=[1, 0.5])", "`trained` must be 0 or 1"),
    ("Adapter(weight_decay=-1)", "`weight_decay` must be non-negative"),
    ("Problem.single_index('erf', strength=-1)", "`strength` must be positive and finite, but is -1"),
    ("Problem.single_index('erf', strength=[0.1, 0.2])", "(jax.vmap takes many)"),
    ("Problem.single_index('erf', strength=0.5, alignment=2)", "`alignment` must be between -1 and 1"),
    ("Problem.single_index(jnp.tanh, strength=0.5)", "what Activation.from_function makes of your own"),
    ("Problem.single_index('elu2', strength=0.5)", "did you mean 'relu'"),
    (
        "Problem.single_index('erf', strength=0.5, adapter=4)",
        "`adapter` must be an Adapter, such as Adapter(rank=4), but is 4",
    ),
    ("Problem.single_index('erf', strength=0.5, sgd={'dimension': 5})", "`sgd` must be an SGD"),
    ("Problem.single_index('erf', strength=0.5, teacher=3)", "must be the name of a link function"),
    ("Problem.mixture('erf', mu=inf)", "`mixture` must be finite"),
    ("Problem.full_weights('erf', learns='tagret')", "did you mean 'target'"),
    ("Problem.between_tasks('erf', learns='source', cosine=2)", "`cosine` must be between -1 and 1"),
    ("problem.along('sorce')", "`direction` must be one of target, pretrained"),
    (
        "Problem('erf', frame_gram=[[1, nan], [nan, 1]], frozen=[[0, 1]], target=[[1, 0]])",
        "`frame_gram` must be finite",
    ),
    ("Problem('erf', frame_gram=[[1, 2], [2, 1]], frozen=[[0, 1]], target=[[1, 0]])", "positive semi-definite"),
    ("Problem('erf', frame_gram=[[1, 0], [0, 1]], frozen=[[0, nan]], target=[[1, 0]])", "`frozen` must be finite"),
    (
        "Problem('erf', frame_gram=[[1, 0], [0, 1]], frozen=[[0, 1]], target=[[1, 0]], readout=[1, 1])",
        "`readout` must have shape",
    ),
    ("Problem('erf', frame_gram=[[1]], frozen=[[0, 1]], target=[[1, 0]])", "`frame_gram` must have shape"),
    ("Escape('los')", "did you mean 'loss'"),
    ("Escape('loss', 1.5)", "`threshold` must be between 0 and 1"),
    ("Escape('absolute', 0)", "`threshold` must be positive"),
    ("Stage('s', problem, -1)", "`duration` must be non-negative"),
    ("Transfer('erf', cosine=2)", "`cosine` must be between -1 and 1"),
    ("Transfer('erf', length=0)", "`length` must be positive"),
    ("Transfer('erf').problem('taget', 'adapter')", "did you mean 'target'"),
    ("Transfer('erf').problem('target', 'adaptor')", "did you mean 'adapter'"),
    ("random_overlaps(problem, 0)", "`key` must be a random key such as jax.random.key(0), but is 0 (int)"),
    ("random_overlaps(problem, jax.random.split(key, 3))", "`key` must be a random key"),
    ("random_overlaps('erf', key)", "`problem` must be a Problem"),
    ("random_overlaps(problem, key, up=nan)", "`up` must be finite"),
    ("solve(problem, start, t1=-1)", "`t1` must be positive and finite"),
    ("solve(problem, start, t1=1, times=[0, 2])", "`times` must be increasing, between 0 and t1"),
    (
        "solve(problem, start, t1=1, escape='loss')",
        "`escape` must be an Escape, such as Escape('loss', 0.5), but is 'loss'",
    ),
    ("solve(problem, 0.1, t1=1)", "`start` must be Overlaps"),
    ("solve(problem.replace(rank=3), start, t1=1)", "`start.up` must have shape (K, r) = (1, 3), but has shape (1, 1)"),
    ("solve(problem, start, t1=1, rtol=0)", "`rtol` must be positive"),
    ("solve('erf', start, t1=1)", "`problem` must be a Problem"),
    ("solve(problem, start, t1=1).evaluate(0.5)", "`dense` of `solve` must be True"),
    ("solve_stages([], start)", "stage"),
    (
        "jax.jvp(lambda x: solve(problem, start, t1=x).final.up.sum(), (1.0,), (1.0,))",
        "`adjoint` must be diffrax.ForwardMode()",
    ),
    ("SGD(readout_lr_ratio=-1)", "`readout_lr_ratio` must be non-negative"),
    ("SGD(trains_readouts='yes')", "`trains_readouts` must be True or False"),
    ("escape_law(problem.replace(readout_lr_ratio=0.5))", "must have readouts at rest"),
    ("Problem.committee('erf', pretrained=[0.5], trains='all')", "must be one of adapter, weights"),
    ("Problem.committee('erf', pretrained=[0.5], readout='1/k')", "must be one of 1, 1/n, 1/sqrt(n)"),
    ("Transfer('erf', units=0)", "`units` must be a whole number of at least 1"),
    ("Transfer('erf', units=2, readout=[1])", "`readout` must have shape (K,) = (2,)"),
    ("Transfer('erf', units=2).typical_start()", "of one student and one teacher unit"),
    ("Transfer('erf', units=2, teachers=2, cosine=[0.5, 0.1, 0.2])", "`cosine` must have shape (P,) = (2,)"),
    ("Transfer('erf', units=2, teachers=2, cosine=[0.5, 2.0])", "`cosine` must be between -1 and 1"),
    ("read_transfer(__file__)", "is no TOML file"),
    ("random_overlaps(committee, key, up=[1, 2, 3])", "`up` must be one number, (r,) or (K, r)"),
    ("read_problem(__file__)", "is no TOML file"),
    (
        "simulate_chain(committee.replace(readout_lr_ratio=1.0), key=key, seeds=1, steps=[0], normal_batches=True)",
        "`readout_lr_ratio` must be 0 for normal batches",
    ),
    ("search_phase(Problem.full_weights('erf'))", "must be single-index with pretrained weights"),
    ("escape_law(problem, starts=1)", "`starts` must be at least 2"),
    (
        "escape_law(Problem.committee('erf', pretrained=[0.0], trains='weights'))",
        "must be single-index with pretrained",
    ),
    ("escape_law(Problem.committee('erf', pretrained=[0.0, 0.0]))", "must have pretrained weights W0"),
    ("escape_law(committee, Escape('overlap', 0.5, 3))", "must be one of the teacher's"),
    ("Escape('loss', 0.5, 2)", "`teacher_unit` is for the criterion overlap alone"),
    ("plateau(committee)", "must be single-index with pretrained weights"),
    ("list(remedies(committee, ways=['curriculum']))", "for one student and one teacher unit alone"),
    ("fine_tuning(committee.replace(readout_lr_ratio=1.0))", "must have readouts at rest"),
    ("list(remedies(problem, ways=['nois']))", "did you mean 'noise'"),
    ("critical_points('erf', low=0, high=1)", "`low` must be positive"),
    ("hermite_coefficients('erf', -1)", "`order` must be"),
    ("Activation.from_function(jnp.sign)", "`function` cannot be averaged accurately: it jumps"),
    ("Activation.from_function(jax.nn.softmax)", "`function` must be elementwise"),
    ("simulate_chain(problem, key=0, seeds=2, steps=[0, 1])", "`key` must be a random key"),
    ("simulate_chain(problem, key=key, seeds=0, steps=[0, 1])", "`seeds` must be at least 1"),
    ("simulate_chain(problem, key=key, seeds=2.0, steps=[0, 1])", "`seeds` must be a whole number"),
    ("simulate_chain(problem, key=key, seeds=2, steps=[0, 1.5])", "`steps` must be a list of increasing whole numbers"),
    ("simulate_chain(problem, key=key, seeds=2, steps=[2, 1])", "`steps` must be a list of increasing whole numbers"),
    ("simulate_chain(problem, key=key, seeds=2, steps=[0, 1], escape='loss')", "`escape` must be an Escape"),
    ("simulate_chain(problem, key=key, seeds=2, steps=[0, 1], until_escape=True)", "`escape` must be given"),
    ("simulate_chain(problem, key=key, seeds=2, steps=[0, 1], first_seed=-1)", "`first_seed` must be at least 0"),
    ("simulate_direct(problem.replace(dimension=1e9), key=key, seeds=1, steps=[0, 1])", "GiB of memory"),
    ("simulate_chain(problem, key=key, seeds=2, steps=[0, 1], first_seed=2**32)", "below 2^32"),
    ("problem.replace(foo=3)", "must be one of student"),
    ("Problem.from_dict(problem.to_dict(), student='relu')", "`student` is stored, 'erf', and cannot be given"),
    ("Problem.from_dict(problem.to_dict(), foo=3)", "must be one of student, teacher"),
    ("escape_law(problem.replace(rank=20, dimension=10))", "`dimension` must be at least 22"),
    ("Activation.from_function(jnp.tanh, growth=1.5)", "`growth` must be a whole number"),
    ("Activation.from_function(4)", "`function` must be a function"),
    ("Activation.from_function(jnp.tanh, kinks=('a',))", "`kinks` must be a number"),
    ("Activation.from_function(jnp.tanh, kinks=None)", "`kinks` must be finite numbers"),
    ("Activation.from_function(jnp.tanh, name=3)", "`name` must be a text"),
    ("load(__file__)", "cannot be read as a netCDF file"),
    ("load(3)", "`path` must be the path of a file"),
]

_TRIED = """
import json, sys
import diffrax, jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
from math import inf, nan
from odes import *
from theory import *
from validation.simulation import *
key = jax.random.key(0)
problem = Problem.single_index("erf", strength=0.5)
committee = Problem("erf", frame_gram=[[1, 0], [0, 1]], frozen=[[1, 0], [0, 1]], target=[[1, 0]])
start = random_overlaps(problem, key)
__file__ = sys.argv[0]
for line in json.load(sys.stdin):
    try:
        eval(line)
        print(json.dumps(["nothing", ""]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What every wrong line raises where nothing checks types, as with a user."""
    script = tmp_path_factory.mktemp("wrong") / "tried.py"
    script.write_text(_TRIED)
    words = json.dumps([line for line, _ in WRONG])
    ran = subprocess.run(
        [sys.executable, str(script)], input=words, capture_output=True, text=True, env=on_its_own(), check=True
    )
    return dict(zip([line for line, _ in WRONG], map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("line, message", WRONG)
def test_a_wrong_argument_is_named(line, message, answers):
    kind, said = answers[line]
    assert kind == "ArgumentError" and "\n" not in said and message in said, (kind, said)
