"""Peaks of chips, from their makers' pages, and step times estimated from them.

  time = max(hardware FLOPs / peak, bytes of memory / bandwidth)
         + bytes of collectives / bandwidth of the links

Left out: products that do not fill the matrix unit, exponentials, latencies,
the input pipeline, and the overlap of communication with work. Real steps are
slower.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mira_jax.aot.hlo import Collective


class Chip(NamedTuple):
  """One chip, and its share of the connections to others.

  Attributes:
    name: in tables.
    kind: pattern of jax's `device_kind`.
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
  raise ValueError(f'{kind!r} is not one of the known chips: {names}')


def estimate(
  chip: Chip,
  *,
  flops: dict[str, float],
  traffic: float,
  collectives: Sequence[Collective],
  share: float = 1.0,
) -> dict[str, float | str]:
  """The time of a step on one of many equal devices.

  Args:
    chip: its peaks.
    flops: on this device: 'model', those that the model needs, and 'hardware',
      those that are computed.
    traffic: bytes to and from its memory.
    collectives: of the step, see `hlo.collectives`.
    share: of a chip that a device is: half of it on a v4.

  Returns:
    Seconds of 'compute', 'memory' and 'collectives', each alone, and in all
    ('seconds'); 'utilisation', the model's share of the peak; and the 'bound',
    the name of the largest of the three.
  """
  peak = share * chip.flops
  parts = {
    'compute': flops['hardware'] / peak,
    'memory': traffic / (share * chip.bandwidth),
    'collectives': sum(communication(chip, x, share) for x in collectives),
  }
  seconds = max(parts['compute'], parts['memory']) + parts['collectives']
  return parts | {
    'seconds': seconds,
    'utilisation': flops['model'] / (seconds * peak),
    'bound': max(parts, key=lambda name: parts[name]),
  }


def communication(chip: Chip, x: Collective, share: float = 1.0) -> float:
  """Seconds of a collective on rings over all links of a chip.

  Of n devices in a ring each sends (n - 1) / n of the array to gather, scatter
  or exchange it, and twice that to sum it. A permutation takes a single link.
  Between slices the network counts.
  """
  if x.group < 2:
    return 0.0
  between = x.kind.endswith('between slices')
  rate = share * (chip.network if between else chip.links * chip.link)
  if 'permute' in x.kind:
    return x.bytes / (rate if between else chip.link)
  part = (x.group - 1) / x.group * x.bytes
  return (2 if x.kind.startswith('all-reduce') else 1) * part / rate
