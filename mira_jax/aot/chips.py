"""Peaks of the chips that a step can be compiled for, as their makers say."""

from __future__ import annotations

import re
from typing import NamedTuple


class Chip(NamedTuple):
  """One chip, and its share of what ties it to others.

  Attributes:
    name: in tables.
    kind: pattern of the `device_kind` that jax gives it.
    flops: bfloat16 FLOP/s, dense.
    hbm: bytes of memory.
    bandwidth: of that memory, bytes/s.
    links: ports to other chips.
    link: bytes/s of a port, one way.
    network: bytes/s of a chip's share of the network between slices, one way.
  """

  name: str
  kind: str
  flops: float
  hbm: float
  bandwidth: float
  links: int
  link: float
  network: float


GIB = 2**30
CHIPS = (
  # docs.cloud.google.com/tpu/docs/v4: 275 TFLOPs, 32 GiB, 1200 GBps; 6 ports of
  # 400 Gbps each way (Jouppi et al., arXiv 2304.01433); network as of a v5e.
  Chip('v4', r'TPU v4$', 275e12, 32 * GIB, 1.2e12, 6, 50e9, 3.125e9),
  # docs.cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 16 GB, 819 GBps; ICI 400
  # GBps both ways over 4 ports; network 6.4 Tbps per pod of 256.
  Chip('v5e', r'TPU v5 ?(lite|e)', 197e12, 16 * GIB, 819e9, 4, 50e9, 3.125e9),
  # docs.cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 95 GB, 2765 GBps; ICI 4800
  # Gbps, 6 ports of a 3D torus; network 50 Gbps per chip.
  Chip('v5p', r'TPU v5p?$', 459e12, 95 * GIB, 2.765e12, 6, 100e9, 6.25e9),
  # docs.cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 32 GB, 1600 GBps; ICI 800
  # GBps both ways over 4 ports; network 25.6 Tbps per pod of 256.
  Chip('v6e', r'TPU v6 ?(lite|e)', 918e12, 32 * GIB, 1.6e12, 4, 100e9, 12.5e9),
  # NVIDIA H100 SXM data sheet: 989 TFLOPS without sparsity, 80 GB, 3.35 TB/s;
  # NVLink 900 GB/s both ways, 18 links; 400 Gbps of InfiniBand as in a DGX.
  Chip('H100', r'NVIDIA H100', 989e12, 80e9, 3.35e12, 18, 25e9, 50e9),
  # NVIDIA H200 SXM data sheet: the same, but 141 GB and 4.8 TB/s.
  Chip('H200', r'NVIDIA G?H200', 989e12, 141e9, 4.8e12, 18, 25e9, 50e9),
)


def of_kind(kind: str) -> Chip:
  """The chip of a `device_kind`, such as 'TPU v5 lite' or 'NVIDIA H200'.

  Raises:
    ValueError: an unknown one.
  """
  for chip in CHIPS:
    if re.match(chip.kind, kind):
      return chip
  names = ', '.join(chip.name for chip in CHIPS)
  raise ValueError(f'no peaks are known of {kind!r}, but of {names}')
