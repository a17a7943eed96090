"""Compilers of TPUs and NVIDIA GPUs that this machine does not have.

libtpu and jax's CUDA wheels compile on any machine. They go into a folder of
their own: an installed libtpu would search for a TPU whenever jax starts. It
serves one kind of chip per process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
import sys
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from mira_jax import files
from mira_jax.errors import ExitCode, MiraInputError

# Platform -> the variable that may name a folder, and a module of the wheels.
VARIABLES = {'tpu': 'MIRA_AOT_TPU', 'cuda': 'MIRA_AOT_CUDA'}
MODULES = {'tpu': 'libtpu', 'cuda': 'jax_cuda13_plugin'}


class Target(NamedTuple):
  """A machine to compile for."""

  platform: str  # 'tpu' or 'cuda'
  name: str  # a topology, such as 'v5e:16x16', or a key of GPUS
  slices: int = 1  # of that topology, joined by the network

  def __str__(self) -> str:
    return f'{self.slices} x {self.name}' if self.slices > 1 else self.name

  @property
  def chips(self) -> int:
    """Of all slices."""
    shape = self.name.partition(':')[2]
    return self.slices * math.prod(int(x) for x in shape.split('x') if x)


# ----- where a compiler is ----------------------------------------------------


def pip_command(platform: str, folder: str | os.PathLike[str]) -> list[str]:
  """The command that unpacks the wheels of the installed jax into a folder."""
  if platform == 'cuda':
    version = importlib.metadata.version('jax')
    wheels = [f'jax-cuda13-{part}=={version}' for part in ('plugin', 'pjrt')]
  else:
    needed = importlib.metadata.requires('jax') or []
    (libtpu,) = (x for x in needed if re.match(r'libtpu\b.*extra == .tpu', x))
    wheels = [libtpu.partition(';')[0].strip()]
  pip = ['pip', 'install', '--quiet', '--no-deps', '--upgrade', '--target']
  return [*pip, os.fspath(folder), *wheels]


def find(platform: str, folder: str | None = None) -> pathlib.Path | None:
  """The folder of a platform's wheels; None if they are installed with jax.

  By default the one of the environment, then one in the cache.

  Raises:
    MiraInputError: they are missing.
  """
  named = folder or os.environ.get(VARIABLES[platform])
  if not named and importlib.util.find_spec(MODULES[platform]):
    return None
  path = pathlib.Path(named) if named else files.cache() / 'aot' / platform
  path = path.expanduser()
  if (path / MODULES[platform]).is_dir():
    return path.resolve()
  command = ' '.join(pip_command(platform, path))
  hint = f'it holds no compiler; run `{command}`'
  raise MiraInputError('no_compiler', path, hint, exit_code=ExitCode.USAGE)


def load(platform: str, folder: pathlib.Path | None) -> None:
  """Lets this process compile for a platform; call it before jax is used."""
  # Otherwise jax would search for the machine.
  jax.config.update('jax_platforms', 'cpu')
  if folder:
    sys.path.insert(0, str(folder))
  if platform == 'tpu':
    os.environ |= {
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
      'TPU_SKIP_MDS_QUERY': '1',
      'TPU_ACCELERATOR_TYPE': 'v5litepod-4',  # any; libtpu requires one
      'TPU_WORKER_HOSTNAMES': 'localhost',
    }
    if folder:
      os.environ['TPU_LIBRARY_PATH'] = str(folder / 'libtpu' / 'libtpu.so')


# ----- machines ---------------------------------------------------------------

_HOPPER = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: %d
  l2_cache_size: %d
  clock_rate_ghz: 1.98
  device_memory_size: %d
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 28 }
device_description_str: "NVIDIA %s"
"""
# XLA's description of a GPU: bandwidth, second-level cache, memory in bytes.
GPUS = {
  'h100': _HOPPER % (3350 * 10**9, 52428800, 80 * 10**9, 'H100'),
  'h200': _HOPPER % (4800 * 10**9, 62914560, 141 * 10**9, 'H200'),
}


def tpu(text: str, slices: int = 1) -> Target:
  """The target of '--topology', such as 'v5e:16x16'.

  Raises:
    MiraInputError: it has another form, or names an unknown kind of TPU.
  """
  if not re.fullmatch(r'(v5e|v5p|v6e):\d+x\d+(x\d+)?', text):
    hint = 'name a TPU and its shape, such as v5e:16x16, v5p:4x4x4 or v6e:2x4'
    raise MiraInputError('bad_topology', text, hint)
  return Target('tpu', text, slices)


def devices(target: Target) -> list[Any]:
  """Its devices, after `load`.

  Raises:
    MiraInputError: the compiler does not know the machine.
  """
  options: dict[str, Any] = {'topology_name': target.name}
  if target.platform == 'cuda':
    options = {'target_config': GPUS[target.name], 'topology': '1x1x1'}
  elif target.slices > 1:
    options['num_slices'] = target.slices
  try:
    found = topologies.get_topology_desc(platform=target.platform, **options)
  except jax.errors.JaxRuntimeError as error:
    line = str(error).splitlines()[0]
    raise MiraInputError('bad_topology', str(target), line) from error
  return list(found.devices)
