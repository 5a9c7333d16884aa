"""Programs that are kept on disk: found again by another process, by nothing else than what they were made of."""

import concurrent.futures
import dataclasses
import functools
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import (
    Activation,
    Adapter,
    Escape,
    Problem,
    activation,
    flow,
    pretrained,
    programs,
    random_overlaps,
    solve,
    spread,
)
from odes import kept as kept_files
from odes.pickles import packed
from odes.programs import _NO_TRACE as NO_TRACE
from odes.programs import program, trace_state
from tests.helpers import same_bits


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which programs are kept, however fast they are made."""
    monkeypatch.setattr(kept_files, "_WORTH", 0.0)
    programs.keep(tmp_path)
    yield tmp_path
    programs.keep(None)


def kept(folder, name=""):
    """The names of the files of programs."""
    return {file.name for file in folder.glob(f"program-{name}*-cache")}


def reread(folder):
    """Forgets what is in memory, as in a new process."""
    programs.keep(None)
    programs.keep(folder)


def run(problem):
    start = random_overlaps(problem, jax.random.key(3))
    return solve(problem, start, t1=50.0, times=[0.0, 20.0, 50.0], escape=Escape("overlap", 0.1))


def same(one, other):
    """The same numbers to the last bit, in the same objects."""
    same_bits(one, other)
    assert jax.tree.structure(one) == jax.tree.structure(other)


def test_what_is_read_gives_the_same_result_and_is_not_traced(folder, monkeypatch):
    """Numbers to the last bit, and all that is no array: result, problem, criterion."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    written = run(problem)
    files = kept(folder)
    assert kept(folder, "solve") and kept(folder, "drawn")
    reread(folder)
    monkeypatch.setattr(kept_files, "_made", lambda *_: pytest.fail("compiled again"))
    read = run(problem)
    same(read, written)
    assert read.problem == written.problem and read.message == written.message and kept(folder) == files
    programs.keep(None)
    same(run(problem), written)


def test_other_numbers_are_the_same_program_and_anything_else_is_another(folder):
    def count(strength=0.4, link="erf", rank=1, **options):
        before = kept(folder, "flow")
        problem = Problem.single_index(link, strength=strength, adapter=Adapter(rank))
        flow(problem, pretrained(problem), **options)
        return len(kept(folder, "flow") - before)

    assert count() == 1
    assert count(strength=0.7) == 0
    assert count(link="erf(x)") == 1  # its name is shown in results
    assert count(rank=2) == 1
    assert count(noise=False) == 1


def test_configuration_and_code_decide_too(folder, monkeypatch):
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    start = pretrained(problem)

    def count():
        before = kept(folder)
        flow(problem, start)
        return len(kept(folder) - before)

    assert count() == 1 and count() == 0
    with jax.default_matmul_precision("highest"):
        assert count() == 1
    reread(folder)
    assert count() == 0
    monkeypatch.setattr(kept_files, "_content", lambda package: package.encode())
    reread(folder)
    assert count() == 1
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} ")
    reread(folder)
    assert count() == 1


def test_code_that_was_written_since_it_was_imported_is_not_kept(folder, monkeypatch):
    monkeypatch.setattr(kept_files, "_IMPORTED", 0.0)
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    assert np.isfinite(flow(problem, pretrained(problem)).up).all() and not kept(folder)


def test_what_jax_alone_can_heed_is_left_to_it(folder):
    """Numbers that are to be looked at on the way, and another device."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    with jax.debug_nans(True):
        assert np.isfinite(random_overlaps(problem, jax.random.key(3)).cross).all()
    with jax.default_device(jax.devices()[0]):
        assert np.isfinite(random_overlaps(problem, jax.random.key(3)).cross).all()
    assert not kept(folder)


def test_programs_can_be_forgotten(folder):
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    random_overlaps(problem, jax.random.key(3))
    assert programs._store is not None and programs._store.loaded
    programs.forget()
    assert not programs._store.loaded and kept(folder)


def test_threads_share_a_program_and_leave_jax_as_it_was(folder):
    problems = [Problem.single_index(link, strength=0.4) for link in ("erf", "erf(x)", "erf", "He1")]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        changes = list(pool.map(lambda problem: flow(problem, pretrained(problem)), problems))
    same(changes[0], changes[2])
    assert len(kept(folder, "flow")) == 3 and jax.config.jax_enable_compilation_cache


def test_equal_arguments_are_one_program_be_they_the_same_object_or_two():
    """What another program gave is another object after that has been read."""
    one, other = activation("erf"), activation("erf")
    same_one, two = (packed(pair, of=("odes",)) for pair in ((one, one), (one, other)))
    assert one is not other and same_one == two != packed((one, activation("erf(x)")), of=("odes",))


def test_code_above_a_program_does_not_decide():
    """odes knows neither theory nor validation."""
    alone = kept_files._code(b"odes.integration")
    assert kept_files._code(b"odes.integration theory.law") == kept_files._code(b"theory.law") != alone
    assert kept_files._code(b"odes validation") not in (alone, kept_files._code(b"theory.law"))


def test_a_function_of_the_user_s_own_is_compiled_as_always(folder):
    """Its name says nothing about what it does."""
    own = Activation("own", lambda x: jnp.tanh(2 * x) / 2)
    problem = Problem.single_index(own, strength=0.4)
    change = flow(problem, pretrained(problem))
    assert not kept(folder, "flow")
    programs.keep(None)
    same(change, flow(problem, pretrained(problem)))


def test_what_is_traced_stays_traced(folder):
    """vmap, grad and jit go through, and leave no files of their own."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    start = random_overlaps(problem, jax.random.key(3))
    files = kept(folder)

    def change(u):
        return flow(problem, eqx.tree_at(lambda o: o.up, start, u)).cross.sum()

    value, slope = jax.value_and_grad(change)(start.up)
    np.testing.assert_allclose(jax.jit(jax.vmap(change))(start.up[None])[0], value, rtol=1e-12)
    assert np.isfinite(slope).all() and kept(folder) == files


def test_a_link_function_that_is_averaged_otherwise_is_another(folder):
    """What it is called and computes is not all of it."""
    usual = activation("tanh")
    kinked = Activation("tanh", usual.function, kinks=(0.0, 2.0))
    assert usual.known and not kinked.known
    for link, files in ((usual, 1), (kinked, 2)):
        problem = Problem.single_index(link, strength=0.4)
        flow(problem, pretrained(problem))
        assert len(kept(folder, "flow")) == files


def test_functions_of_other_modules_are_compiled_as_always(folder):
    """Nothing is known of their code."""

    def twice(x):
        return 2 * x

    assert program(twice)(jnp.ones(1)).item() == 2.0 and program(jnp.sin)(jnp.zeros(1)).item() == 0.0
    assert not kept(folder)


def test_programs_that_run_long_have_flags_of_their_own(monkeypatch):
    """XLA refuses a flag that it does not know; as a part of another program they are compiled as that is."""

    def twice(x):
        return 2 * x

    quick, long, x = program(twice), program(twice, long=True), jnp.ones(())
    monkeypatch.setenv("SEARCHPHASE_LONG_PROGRAMS", "--xla_no_such_flag=true")
    assert quick(x) == 2.0
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_flag"):
        long(x)
    assert jax.jit(lambda: long(1.0))() == jax.jit(long)(x) == jax.grad(long)(x) == 2.0
    inside = jax.grad(lambda a: long(spread(lambda x: a * x)(jnp.arange(3.0)).sum()))
    assert inside(1.0) == jax.vmap(inside)(jnp.ones(2))[1] == 6.0
    monkeypatch.setenv(
        "SEARCHPHASE_LONG_PROGRAMS", "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes"
    )
    assert long(x) == 2.0


def test_flags_of_all_other_programs_do_not_decide_about_those_that_run_long(monkeypatch):
    quick, long, x = program(lambda x: 2 * x), program(lambda x: 2 * x, long=True), jnp.ones(())
    monkeypatch.setenv("SEARCHPHASE_LONG_PROGRAMS", "")
    monkeypatch.setenv("SEARCHPHASE_SHORT_PROGRAMS", "--xla_no_such_flag=true")
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_flag"):
        quick(x)
    assert long(x) == 2.0


@pytest.fixture
def traced(monkeypatch):
    """The names of the functions that are traced to be kept, in order."""
    names, usual = [], kept_files._Traced.__init__

    def noted(self, asked):
        names.append(asked.name)
        usual(self, asked)

    monkeypatch.setattr(kept_files._Traced, "__init__", noted)
    return names


def test_what_is_begun_is_what_is_called(folder, traced):
    """All of it is traced at once, and nothing later; the numbers are the same."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    programs.ahead(lambda: run(problem))
    begun = list(traced)
    assert begun == ["_drawn", "_solve"]
    result = run(problem)
    assert traced == begun and len(kept(folder)) == 2
    programs.keep(None)
    same(run(problem), result)


def test_a_look_ahead_ends_where_something_is_there(folder, traced):
    """In memory, on disk; a program that the work needs twice is the same one."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    start = random_overlaps(problem, jax.random.key(3))
    seen = []

    def work():
        seen.append(trace_state() != NO_TRACE)
        flow(problem, flow(problem, flow(problem, start)))
        seen.append("flow")
        random_overlaps(problem, jax.random.key(3))
        seen.append("start")

    programs.ahead(work)
    assert seen == [True, "flow"] and traced == ["_drawn", "flow"]
    flow(problem, start)
    reread(folder)
    programs.ahead(work)
    assert seen == [True, "flow", True] and traced == ["_drawn", "flow"]


def test_a_look_ahead_ends_where_a_number_is_looked_at_or_something_is_wrong(folder, traced):
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)

    def looks():
        float(random_overlaps(problem, jax.random.key(3)).cross[0, 0])
        flow(problem, pretrained(problem))

    programs.ahead(looks)
    programs.ahead(lambda: flow(problem, 3.0))
    assert traced[0] == "_drawn" and not kept(folder, "flow")
    assert np.isfinite(flow(problem, pretrained(problem)).up).all()


def test_what_is_computed_for_many_is_not_begun_for_one(folder, traced):
    """Functions of the work that are mapped, differentiated or compiled as a whole have other programs; looks within a look are none."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    start = pretrained(problem)

    def work():
        programs.ahead(lambda: flow(problem, start))
        jax.vmap(lambda u: flow(problem, eqx.tree_at(lambda o: o.up, start, u)))(start.up[None])
        jax.jit(functools.partial(flow, problem))(start)
        return jax.grad(lambda u: flow(problem, eqx.tree_at(lambda o: o.up, start, u)).cross.sum())(start.up)

    programs.ahead(work)
    assert not traced


def test_nothing_is_begun_where_nothing_is_kept():
    programs.ahead(lambda: pytest.fail("called"))


def test_nothing_is_begun_by_what_is_traced_itself(folder, traced):
    """It is compiled as a part of the whole."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)

    def change(u):
        programs.ahead(lambda: pytest.fail("called"))
        return flow(problem, eqx.tree_at(lambda o: o.up, pretrained(problem), u)).cross.sum()

    u = pretrained(problem).up
    for made in (jax.jit(change), jax.grad(change), jax.jacfwd(change)):
        assert np.isfinite(made(u)).all()
    assert np.isfinite(jax.vmap(change)(u[None])).all() and not traced


def test_without_threads_all_is_compiled_where_it_is_called(folder, monkeypatch):
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no more threads")))
    programs.ahead(lambda: flow(problem, pretrained(problem)))
    assert np.isfinite(flow(problem, pretrained(problem)).up).all()


def test_a_program_that_cannot_be_compiled_says_so_where_it_is_called(folder):
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    start = pretrained(problem)
    with pytest.MonkeyPatch.context() as wrong:
        wrong.setenv("SEARCHPHASE_SHORT_PROGRAMS", "--xla_no_such_flag=1")
        programs.ahead(lambda: flow(problem, start))
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_flag"):
            flow(problem, start)
    assert np.isfinite(flow(problem, start).up).all() and jax.config.jax_enable_compilation_cache


def test_programs_can_be_sent_to_another_process():
    """As Dask does, within functions that call them."""
    cloudpickle = pytest.importorskip("cloudpickle")
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    there = cloudpickle.loads(cloudpickle.dumps(lambda at: flow(problem, at)))
    same(there(pretrained(problem)), flow(problem, pretrained(problem)))


def test_flags_of_programs_that_run_long_decide_about_these(folder, monkeypatch):
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    start = pretrained(problem)
    rows, change = jax.tree.map(lambda x: x[None], start), spread(flow, in_axes=(None, 0))

    def count():
        before = kept(folder)
        flow(problem, start)
        change(problem, rows)
        return sorted(name.split("-")[1] for name in kept(folder) - before)

    monkeypatch.setenv("SEARCHPHASE_LONG_PROGRAMS", "")
    assert count() == ["flow", "run"]
    monkeypatch.setenv("SEARCHPHASE_LONG_PROGRAMS", "--xla_backend_optimization_level=2")
    reread(folder)
    assert count() == ["run"]
    with pytest.MonkeyPatch.context() as wrong:
        wrong.setenv("SEARCHPHASE_LONG_PROGRAMS", "--xla_no_such_flag=1")
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_flag"):
            count()


@pytest.mark.parametrize("broken", [b"", b"no program", None], ids=["empty", "nonsense", "half"])
def test_a_broken_file_is_made_anew(folder, broken):
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    right = random_overlaps(problem, jax.random.key(3))
    (name,) = kept(folder, "drawn")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2] if broken is None else broken)
    reread(folder)
    same(random_overlaps(problem, jax.random.key(3)), right)
    assert len((folder / name).read_bytes()) > len(content) / 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    programs.keep(tmp_path / "missing")
    try:
        problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
        assert np.isfinite(random_overlaps(problem, jax.random.key(3)).cross).all()
    finally:
        programs.keep(None)


@pytest.fixture
def bounded(folder):
    """The folder, whose size JAX bounds."""
    bound = jax.config.jax_compilation_cache_max_size
    jax.config.update("jax_compilation_cache_max_size", 2**30)
    yield folder
    jax.config.update("jax_compilation_cache_max_size", bound)


def test_uses_are_noted_where_the_folder_is_bounded(bounded):
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    random_overlaps(problem, jax.random.key(3))
    (mark,) = bounded.glob("program-drawn-*-atime")
    first = int.from_bytes(mark.read_bytes(), "little")
    reread(bounded)
    random_overlaps(problem, jax.random.key(3))
    assert int.from_bytes(mark.read_bytes(), "little") > first


def test_what_has_not_been_used_for_longest_makes_room(bounded):
    """JAX's own programs too."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    start = random_overlaps(problem, jax.random.key(3))
    (drawn,) = kept(bounded, "drawn")
    for name, used in (("jit_f-1", 0), ("jit_f-2", 2**62)):
        (bounded / f"{name}-cache").write_bytes(bytes(1000))
        (bounded / f"{name}-atime").write_bytes(used.to_bytes(8, "little"))
    jax.config.update("jax_compilation_cache_max_size", (bounded / drawn).stat().st_size + 1000)
    flow(problem, start)
    assert not kept(bounded, "drawn") and kept(bounded, "flow")
    programs_left, marks = (
        {file.name.removesuffix(end) for file in bounded.glob(f"*{end}")} for end in ("-cache", "-atime")
    )
    assert programs_left == marks and "jit_f-2" in marks and "jit_f-1" not in marks


@pytest.mark.parametrize("devices", [1, 2])
def test_another_process_reads_them(tmp_path, devices):
    """Of a program that calls LAPACK, which that process has not been told of; it says the same and writes nothing."""
    words = f"""
        import jax
        jax.config.update("jax_num_cpu_devices", {devices})
        from odes import Problem, programs, random_overlaps
        programs.keep({str(tmp_path)!r})
        print(random_overlaps(Problem.single_index("erf", strength=0.4, alignment=0.6), jax.random.key(3)).cross.tolist())
    """
    command = [sys.executable, "-c", textwrap.dedent(words)]
    first, second = (
        (subprocess.run(command, capture_output=True, text=True, check=True).stdout, kept(tmp_path)) for _ in range(2)
    )
    assert first == second and len(first[1]) == 1


def test_a_full_disk_is_no_error(bounded, monkeypatch):
    """Neither where the use of a program is noted, nor where one is to be written."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    right = random_overlaps(problem, jax.random.key(3))
    reread(bounded)
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    same(random_overlaps(problem, jax.random.key(3)), right)
    assert np.isfinite(flow(problem, right).up).all() and not kept(bounded, "flow")


def test_methods_are_programs_of_their_instance(folder):
    @dataclasses.dataclass(frozen=True)
    class Scale:
        by: float

        @program
        def __call__(self, x):
            return self.by * x

    assert Scale(2.0)(jnp.ones(1)).item() == 2.0 and not kept(folder)
