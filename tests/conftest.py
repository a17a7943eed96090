"""What every test shares."""

from __future__ import annotations

import jax
import pytest

# Before any array is made: sharding is tested on four devices of the CPU.
jax.config.update('jax_num_cpu_devices', 4)


@pytest.fixture
def x64():
  """Double precision for the length of one test."""
  with jax.enable_x64(True):
    yield
