"""What every test shares."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os

# Before JAX is imported, and for the commands that tests start. Without LLVM's
# passes, and with fusions as loops instead of MLIR (which jax 0.11.2 no longer
# knows), programs are compiled in a quarter of the time, and round in other
# places; with `XLA_FLAGS= make test` they are as everybody compiles them.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true'
  + (
    ' --xla_cpu_use_fusion_emitters=false'
    if importlib.metadata.version('jaxlib') < '0.11'
    else ''
  ),
)

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Before any array is made: sharding is tested on eight devices of the CPU.
jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture
def x64():
  """Double precision for the length of one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='session')
def compiled(tmp_path_factory):
  """Where programs are kept that several test files run."""
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='session')
def caching(compiled):
  """A context in which programs are taken from there."""

  @contextlib.contextmanager
  def use():
    names = {
      'jax_compilation_cache_dir': str(compiled),
      'jax_persistent_cache_min_compile_time_secs': 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()

  return use


@pytest.fixture(scope='module')
def compile_cache(caching):
  """What many tests run is compiled once."""
  with caching():
    yield
