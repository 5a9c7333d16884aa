"""Where compiled programs are kept, and that those of others are left alone."""

import os

import jax
import pytest

from validation.cli import work
from validation.cli.compilation import compile_barely, own_folder, set_up
from validation.cli.main import parsed
from validation.jobs.remote import Surroundings

KEPT = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")


@pytest.fixture
def settings(monkeypatch):
    """Changes of the environment for `set_up`, which end with the test."""
    before = {name: getattr(jax.config, name) for name in KEPT}
    yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_process_that_computes_alone_has_one_thread_unless_told_otherwise(settings):
    """Those that work for it have as many: it is part of their surroundings."""
    settings.setenv("PJRT_NPROC", "")  # whatever it was is what it will be again
    settings.delenv("PJRT_NPROC")
    set_up()
    assert "PJRT_NPROC" not in os.environ
    set_up(alone=True)
    assert Surroundings.here().environment["PJRT_NPROC"] == "1"
    settings.setenv("PJRT_NPROC", "3")
    set_up(alone=True)
    assert os.environ["PJRT_NPROC"] == "3"


def test_loops_alone_are_compiled_with_care(settings):
    """Here and in the processes that work for this one; what the user says of either holds."""
    settings.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true")
    settings.setenv("SEARCHPHASE_LONG_PROGRAMS", "")
    settings.delenv("SEARCHPHASE_LONG_PROGRAMS")
    set_up()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == ["--xla_cpu_use_fusion_emitters=true", "--xla_backend_optimization_level=2"]
    assert "SEARCHPHASE_LONG_PROGRAMS" not in os.environ
    settings.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true")
    set_up(loops=True)
    assert os.environ["XLA_FLAGS"].split() == flags
    there = Surroundings.here().environment
    assert there["SEARCHPHASE_LONG_PROGRAMS"] == "--xla_backend_optimization_level=3"
    settings.setenv("SEARCHPHASE_LONG_PROGRAMS", "--xla_backend_optimization_level=1")
    set_up(loops=True)
    assert os.environ["SEARCHPHASE_LONG_PROGRAMS"] == "--xla_backend_optimization_level=1"


def test_what_a_short_command_computes_is_compiled_without_optimisations(settings):
    """Here and in the processes that work for this one; what the user says of either holds."""
    settings.setenv("SEARCHPHASE_SHORT_PROGRAMS", "")
    settings.delenv("SEARCHPHASE_SHORT_PROGRAMS")
    compile_barely("--xla_backend_optimization_level=1")
    assert "SEARCHPHASE_SHORT_PROGRAMS" not in os.environ
    compile_barely("")
    assert Surroundings.here().environment["SEARCHPHASE_SHORT_PROGRAMS"] == "--xla_backend_optimization_level=0"
    settings.setenv("SEARCHPHASE_SHORT_PROGRAMS", "--xla_backend_optimization_level=1")
    compile_barely("")
    assert os.environ["SEARCHPHASE_SHORT_PROGRAMS"] == "--xla_backend_optimization_level=1"


@pytest.mark.parametrize(
    ("brief", "words"),
    [
        (True, "escape --dim 1000"),
        (True, "escape --strength 0.1:0.8:8 --dim 1000"),
        (False, "escape --strength 0.1:0.9:9 --dim 1000"),
        (False, "escape --strength 0.1:0.5:5 --dim 1000 --rank 1 2"),
        (False, "escape --dim 1000 --noise-limit"),
        (False, "escape --dim 1000 --activation tanh"),
        (False, "escape --problem examples/committee.toml"),
        (True, "solve --activation He2"),
        (False, "solve --teacher tanh"),
        (True, "checkpoints --cosine 0.8"),
        (False, "checkpoints --source tanh"),
        (False, "checkpoints --cosine 0.8 0.5"),
        (True, "simulate"),
        (True, "simulate --plot flow.png"),
        (False, "simulate --activation tanh"),
        (False, "simulate --problem examples/committee.toml"),
        (False, "phase-diagram"),
    ],
)
def test_commands_are_short_where_they_compute_little(brief, words):
    assert parsed(words.split()).brief == brief


@pytest.mark.parametrize("cores, flags, alone", [(1, "", 9), (2, "", 3), (2, "--workers 1", 9), (2, "--workers 2", 1)])
def test_how_many_jobs_a_process_does_itself(monkeypatch, cores, flags, alone):
    """What is compiled for jobs that others do is compiled there."""
    monkeypatch.setattr(work, "usable_cores", lambda: cores)
    command = parsed(f"checkpoints {flags}".split())
    assert [command.alone(jobs) for jobs in range(1, 10)] == [jobs <= alone for jobs in range(1, 10)]


def old_program(folder, name):
    """A program that JAX has kept long ago."""
    file = folder / f"{name}-cache"
    file.write_bytes(b"a program")
    os.utime(file, (0, 0))
    return file


def test_a_folder_that_the_environment_names_keeps_what_it_has(settings, tmp_path):
    """JAX notes no times of use in a folder without a bound."""
    settings.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    file = old_program(tmp_path, "jit_f-12")
    set_up()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path) and file.exists()


def test_programs_without_a_time_of_use_leave_the_user_s_own_folder(settings, tmp_path):
    settings.delenv("JAX_COMPILATION_CACHE_DIR")
    settings.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = own_folder()
    folder.mkdir(parents=True)
    lost, used = old_program(folder, "jit_f-12"), old_program(folder, "jit_f-13")
    (folder / "jit_f-13-atime").write_bytes(bytes(8))
    set_up()
    assert jax.config.jax_compilation_cache_dir == str(folder) and used.exists() and not lost.exists()
    assert jax.config.jax_compilation_cache_max_size == 2**30
