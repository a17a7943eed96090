"""Peaks of chips, from their makers' pages, and the least time of a step.

  time >= FLOPs / peak, and bytes of collectives / bandwidth of the links

Left out: memory traffic, products that do not fill the matrix unit,
exponentials, latencies and the input pipeline.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mira_jax.aot.hlo import Collective


class Chip(NamedTuple):
  """One chip, and its share of the connections to others."""

  name: str  # in tables
  kind: str  # pattern of jax's `device_kind`
  flops: float  # bfloat16 FLOP/s, dense
  hbm: float  # bytes of memory
  links: int  # ports to other chips
  link: float  # bytes/s of a port, one way
  network: float  # bytes/s of its share of the network between slices, one way


GIB = 2**30
CHIPS = (
  # docs.cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 16 GB; ICI 400 GBps both
  # ways over 4 ports; network 6.4 Tbps per pod of 256.
  Chip('v5e', r'TPU v5 ?(lite|e)', 197e12, 16 * GIB, 4, 50e9, 3.125e9),
  # docs.cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 95 GB; ICI 4800 Gbps, 6
  # ports of a 3D torus; network 50 Gbps per chip.
  Chip('v5p', r'TPU v5p?$', 459e12, 95 * GIB, 6, 100e9, 6.25e9),
  # docs.cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 32 GB; ICI 800 GBps both
  # ways over 4 ports; network 25.6 Tbps per pod of 256.
  Chip('v6e', r'TPU v6 ?(lite|e)', 918e12, 32 * GIB, 4, 100e9, 12.5e9),
  # NVIDIA H100 SXM data sheet: 989 TFLOPS without sparsity, 80 GB; NVLink 900
  # GB/s both ways, 18 links; 400 Gbps of InfiniBand as in a DGX.
  Chip('H100', r'NVIDIA H100', 989e12, 80e9, 18, 25e9, 50e9),
  # NVIDIA H200 SXM data sheet: the same, but 141 GB.
  Chip('H200', r'NVIDIA G?H200', 989e12, 141e9, 18, 25e9, 50e9),
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


def bound(
  chip: Chip, flops: float, found: Sequence[Collective]
) -> dict[str, float]:
  """The least seconds of a step: of 'compute' and 'collectives' the longer."""
  compute, sent = flops / chip.flops, communication(chip, found)
  return {
    'compute': compute,
    'collectives': sent,
    'seconds': max(compute, sent),
  }


def communication(chip: Chip, found: Sequence[Collective]) -> float:
  """Seconds of collectives, one after the other."""
  return sum(of_collective(chip, x) for x in found)


def of_collective(chip: Chip, x: Collective) -> float:
  """Seconds of a collective on rings over all links of a chip.

  Of n devices in a ring each sends (n - 1) / n of the array to gather, scatter
  or exchange it, and twice that to sum it. A permutation takes a single link.
  Between slices the network counts.
  """
  if x.group < 2:
    return 0.0
  between = x.kind.endswith('between slices')
  rate = chip.network if between else chip.links * chip.link
  if 'permute' in x.kind:
    return x.bytes / (rate if between else chip.link)
  part = (x.group - 1) / x.group * x.bytes
  return (2 if x.kind.startswith('all-reduce') else 1) * part / rate
