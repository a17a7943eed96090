"""Compiles the GPU kernels with NVIDIA's compiler, without a GPU.

MIRA_AOT_CUDA names a folder that holds two wheels unpacked, and nothing else of
CUDA is needed:

  pip install --no-deps --target FOLDER jax-cuda13-plugin jax-cuda13-pjrt

both of the version of the installed jax.
"""

from __future__ import annotations

import functools
import os
import re
import sys

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from mira_jax.aot import compilers

FOLDER = compilers.VARIABLES['cuda']
# Pallas looks for the wheels when it is imported: after this module.
if FOLDER in os.environ:
  sys.path.insert(0, os.environ[FOLDER])

SHAPES = {
  'decoder': (32, 1568, 12, 64),
  'huge': (32, 1568, 16, 80),
  'encoder': (128, 160, 12, 64),
  'long': (1, 32768, 12, 64),
}


@functools.cache
def mesh() -> Mesh:
  """One H200 that is not there."""
  topology = topologies.get_topology_desc(
    platform='cuda', target_config=compilers.GPUS['h200'], topology='1x1x1'
  )
  return Mesh(np.array(topology.devices), ('data',), (AxisType.Auto,))


def device() -> SingleDeviceSharding:
  """Where arrays of the mesh are."""
  return SingleDeviceSharding(mesh().devices.flat[0])


def spills(log: str) -> dict[str, int]:
  """Bytes of registers that each kernel keeps in memory, as ptxas reports."""
  return {
    name: int(stores) + int(loads)
    for name, stores, loads in re.findall(
      r'properties for mira_(\w+)_mosaic_gpu\w*\n.*?'
      r'(\d+) bytes spill stores, (\d+) bytes spill loads',
      log,
    )
  }
