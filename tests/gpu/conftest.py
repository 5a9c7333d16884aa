"""These tests compare an accelerator with the CPU of its machine; where there is none, they are skipped."""

import os

import jax
import pytest

CHECKED = os.environ.get("GPU_CHECK_ON", "gpu")
"""GPU_CHECK_ON=cpu compares the CPU with itself, to try the tests out."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)
            if jax.default_backend() != CHECKED:
                item.add_marker(pytest.mark.skip(reason="JAX finds no GPU here"))
