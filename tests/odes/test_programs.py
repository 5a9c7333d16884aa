"""Programs that are kept on disk: found again by another process, by nothing else than what they were made of."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import Activation, Adapter, Escape, Problem, flow, pretrained, programs, random_overlaps, solve
from odes.programs import program


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which programs are kept, however fast they are made."""
    monkeypatch.setattr(programs, "_WORTH", 0.0)
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
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a, b)
    assert jax.tree.structure(one) == jax.tree.structure(other)


def test_what_is_read_gives_the_same_result_and_is_not_traced(folder, monkeypatch):
    """Numbers to the last bit, and all that is no array: result, problem, criterion."""
    problem = Problem.single_index("erf", strength=0.4, alignment=0.6)
    written = run(problem)
    files = kept(folder)
    assert kept(folder, "solve") and kept(folder, "drawn")
    reread(folder)
    monkeypatch.setattr(programs, "_made", lambda *_: pytest.fail("compiled again"))
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
    double = program(lambda x: 2 * x)
    monkeypatch.setattr(programs, "named", lambda _: True)

    def count():
        before = kept(folder)
        double(jnp.ones(3))
        return len(kept(folder) - before)

    assert count() == 1 and count() == 0
    with jax.default_matmul_precision("highest"):
        assert count() == 1
    with jax.numpy_dtype_promotion("standard"):
        double(jnp.ones(3, jnp.float32))
    assert len(kept(folder)) == 3
    monkeypatch.setattr(programs, "_content", lambda package: package.encode())
    reread(folder)
    assert count() == 1
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} ")
    reread(folder)
    assert count() == 1


def test_code_above_a_program_does_not_decide():
    """odes knows neither theory nor validation."""
    alone = programs._code(b"odes.integration")
    assert programs._code(b"odes.integration theory.law") == programs._code(b"theory.law") != alone
    assert programs._code(b"odes validation") not in (alone, programs._code(b"theory.law"))


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


def test_another_process_reads_them(tmp_path):
    """Of a program that calls LAPACK, which that process has not been told of; it says the same and writes nothing."""
    words = f"""
        import jax
        from odes import Problem, programs, random_overlaps
        programs.keep({str(tmp_path)!r})
        print(random_overlaps(Problem.single_index("erf", strength=0.4, alignment=0.6), jax.random.key(3)).cross.tolist())
    """
    command = [sys.executable, "-c", textwrap.dedent(words)]
    first, second = (
        (subprocess.run(command, capture_output=True, text=True, check=True).stdout, kept(tmp_path)) for _ in range(2)
    )
    assert first == second and len(first[1]) == 1


def test_methods_are_programs_of_their_instance(folder):
    @dataclasses.dataclass(frozen=True)
    class Scale:
        by: float

        @program
        def __call__(self, x):
            return self.by * x

    assert Scale(2.0)(jnp.ones(1)).item() == 2.0 and not kept(folder)
