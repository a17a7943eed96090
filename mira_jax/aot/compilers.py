"""The compilers of machines that are not there: which, where, and for what.

libtpu compiles for TPUs and jax's CUDA wheels for NVIDIA GPUs, on any machine.
They go into a folder of their own: an installed libtpu would look for a TPU
whenever jax starts. A TPU's compiler reads its options when it is loaded and
serves one kind of chip a process; hence `environment`, for a process of its
own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import jax
from jax.experimental import topologies

from mira_jax import output
from mira_jax.errors import ExitCode, MiraInputError

# Platform -> the variable that may name a folder, and a module of the wheels.
VARIABLES = {'tpu': 'MIRA_AOT_TPU', 'cuda': 'MIRA_AOT_CUDA'}
MODULES = {'tpu': 'libtpu', 'cuda': 'jax_cuda13_plugin'}
SIZES = {'tpu': '0.2 GB', 'cuda': '0.1 GB'}  # to download


class Target(NamedTuple):
  """A machine to compile for.

  Attributes:
    platform: 'tpu' or 'cuda'.
    name: of a topology, such as 'v5e:16x16', or of a card, a key of GPUS.
    slices: how many such TPU slices, joined by the data centre's network.
  """

  platform: str
  name: str
  slices: int = 1

  def __str__(self) -> str:
    return f'{self.slices} x {self.name}' if self.slices > 1 else self.name

  @property
  def chips(self) -> int:
    """Of all slices."""
    shape = self.name.partition(':')[2]
    return self.slices * math.prod(int(x) for x in shape.split('x') if x)

  @property
  def devices(self) -> int:
    """That jax sees: the two cores of a v4 are one each."""
    return self.chips * (2 if self.name.startswith('v4') else 1)


# ----- where a compiler is ----------------------------------------------------


def requirements(platform: str) -> list[str]:
  """The wheels that the installed jax asks for."""
  if platform == 'cuda':
    version = importlib.metadata.version('jax')
    return [f'jax-cuda13-{part}=={version}' for part in ('plugin', 'pjrt')]
  asked = importlib.metadata.requires('jax')
  (libtpu,) = (x for x in asked if re.match(r'libtpu\b.*extra == .tpu', x))
  return [libtpu.partition(';')[0].strip()]


def versions(platform: str) -> dict[str, str]:
  """Of jax and the compiler; in a process with those of `environment`."""
  names = 'jax', {'tpu': 'libtpu', 'cuda': 'jax-cuda13-plugin'}[platform]
  return {name: importlib.metadata.version(name) for name in names}


def command(platform: str, folder: str | os.PathLike[str]) -> list[str]:
  """The call of pip that unpacks the wheels into a folder."""
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps']
  target = ['--upgrade', '--target', os.fspath(folder)]
  return [*pip, *target, *requirements(platform)]


def install(platform: str, folder: str | os.PathLike[str]) -> None:
  """Unpacks the wheels; what lies there already stays.

  Raises:
    MiraInputError: pip fails.
  """
  done = pathlib.Path(folder) / 'installed.txt'
  wanted = repr(requirements(platform))
  if done.exists() and done.read_text() == wanted:
    return
  call = command(platform, folder)
  if subprocess.run(call).returncode:
    hint = 'pip could not install it; what it says is above'
    raise MiraInputError('no_compiler', ' '.join(call), hint)
  done.write_text(wanted)


def cache(platform: str) -> pathlib.Path:
  """Where `mira aot --install` unpacks a compiler."""
  return output.cache() / 'aot' / platform


def find(platform: str, folder: str | None = None) -> pathlib.Path | None:
  """The folder of a platform's wheels; None if they are installed with jax.

  Args:
    platform: 'tpu' or 'cuda'.
    folder: the only one to look at; by default those of the environment and
      then `cache`.

  Raises:
    MiraInputError: they are nowhere.
  """
  named = folder or os.environ.get(VARIABLES[platform])
  if not named and importlib.util.find_spec(MODULES[platform]):
    return None
  place = pathlib.Path(named) if named else cache(platform)
  place = place.expanduser()
  if (place / MODULES[platform]).is_dir():
    return place.resolve()
  call = ' '.join(['pip', *command(platform, place)[3:]])
  hint = f'no compiler is there; run `{call}` ({SIZES[platform]}), or --install'
  raise MiraInputError('no_compiler', place, hint, exit_code=ExitCode.USAGE)


def environment(platform: str, folder: pathlib.Path | None) -> dict[str, str]:
  """Variables of a process that compiles, beside those of this one."""
  root = pathlib.Path(__file__).parents[2]
  paths = [str(root), *([str(folder)] if folder else [])]
  paths += os.environ.get('PYTHONPATH', '').split(os.pathsep)
  variables = {
    # Without it jax would look for the machine, and complain.
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join(x for x in paths if x),
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # there is no TPU that two could want
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',  # of no consequence; some is asked
    'TPU_WORKER_HOSTNAMES': 'localhost',
  }
  if platform == 'tpu' and folder:
    variables['TPU_LIBRARY_PATH'] = str(folder / 'libtpu' / 'libtpu.so')
  return variables


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
# What XLA asks of a card: bandwidth, second-level cache and memory in bytes.
GPUS = {
  'h100': _HOPPER % (3350 * 10**9, 52428800, 80 * 10**9, 'H100'),
  'h200': _HOPPER % (4800 * 10**9, 62914560, 141 * 10**9, 'H200'),
}
# Kind of TPU -> shapes of a slice, by its number of chips.
_FLAT = {4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16'}
_FLAT |= {256: '16x16'}
_CUBES = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4'}
_CUBES |= {128: '4x4x8', 256: '4x8x8', 512: '8x8x8', 1024: '8x8x16'}
_CUBES |= {2048: '8x16x16', 4096: '16x16x16'}
SLICES = {'v4': _CUBES, 'v5e': _FLAT, 'v5p': _CUBES, 'v6e': _FLAT}


def tpu(text: str, slices: int = 1) -> Target:
  """The target of '--topology', such as 'v5e:16x16'.

  Raises:
    MiraInputError: it has no such form, or is of no kind of TPU that we know.
  """
  found = re.fullmatch(r'(v4|v5e|v5p|v6e):\d+x\d+(x\d+)?', text)
  if not found:
    hint = 'name a TPU and its shape, such as v5e:16x16, v5p:4x4x4 or v6e:2x4'
    raise MiraInputError('bad_topology', text, hint)
  return Target('tpu', text, slices)


def tpu_of(kind: str, chips: int) -> Target:
  """The slice, or slices, of a kind of TPU that have so many chips.

  Raises:
    MiraInputError: there are none.
  """
  shapes = SLICES.get(kind, {})
  if chips in shapes:
    return Target('tpu', f'{kind}:{shapes[chips]}')
  largest = max(shapes, default=0)
  if largest and chips % largest == 0:
    return Target('tpu', f'{kind}:{shapes[largest]}', chips // largest)
  hint = f'use {", ".join(map(str, shapes))} or a multiple of {largest}'
  if not shapes:
    hint = f'use one of {", ".join(SLICES)}'
  raise MiraInputError('bad_scale', f'{chips} chips of {kind}', hint)


def devices(target: Target) -> list[jax.Device]:
  """Its devices; in a process with the variables of `environment`.

  Raises:
    MiraInputError: the compiler knows no such machine.
  """
  try:
    if target.platform == 'cuda':
      topology = topologies.get_topology_desc(
        platform='cuda', target_config=GPUS[target.name], topology='1x1x1'
      )
    else:
      slices = {'num_slices': target.slices} if target.slices > 1 else {}
      topology = topologies.get_topology_desc(
        platform='tpu', topology_name=target.name, **slices
      )
  except jax.errors.JaxRuntimeError as error:
    line = str(error).splitlines()[0]
    raise MiraInputError('bad_topology', str(target), line) from error
  return list(topology.devices)
