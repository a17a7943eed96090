"""How long a step would take if a chip reached its peaks: an estimate.

  time = max(hardware FLOPs / peak, bytes of memory / its bandwidth)
         + bytes of collectives / bandwidth of the links

It leaves out what no peak knows: products that do not fill the matrix unit,
exponentials, latencies, the input pipeline. It adds communication as if nothing
else ran meanwhile, and takes links for idle otherwise. Real steps are slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mira_jax.aot.chips import Chip
from mira_jax.aot.hlo import Collective


class Estimate(NamedTuple):
  """Seconds of a step, were each part alone, and what becomes of them.

  Attributes:
    compute: FLOPs of a device over its peak.
    memory: bytes of its memory over their bandwidth.
    collectives: see `communication`.
    seconds: of the step.
    utilisation: FLOPs that the model needs over what the peak would do in this
      time.
    bound: 'compute', 'memory' or 'collectives', the largest of the three.
  """

  compute: float
  memory: float
  collectives: float
  seconds: float
  utilisation: float
  bound: str


def estimate(
  chip: Chip,
  *,
  model_flops: float,
  hardware_flops: float,
  traffic: float,
  collectives: Sequence[Collective],
  share: float = 1.0,
) -> Estimate:
  """The estimate for one device of many alike.

  Args:
    chip: its peaks.
    model_flops: that the model needs, on this device.
    hardware_flops: that are computed, on this device.
    traffic: bytes to and from its memory.
    collectives: of the step, see `hlo.collectives`.
    share: of a chip that a device is: half of it on a v4, whose two cores jax
      sees.
  """
  peak = share * chip.flops
  parts = {
    'compute': hardware_flops / peak,
    'memory': traffic / (share * chip.bandwidth),
    'collectives': sum(communication(chip, x, share) for x in collectives),
  }
  seconds = max(parts['compute'], parts['memory']) + parts['collectives']
  utilisation = model_flops / (seconds * peak)
  bound = max(parts, key=parts.get)
  return Estimate(
    **parts, seconds=seconds, utilisation=utilisation, bound=bound
  )


def communication(chip: Chip, x: Collective, share: float = 1.0) -> float:
  """Seconds of a collective on rings over all links of a chip.

  Of n devices in a ring each sends (n - 1) / n of the array to gather, scatter
  or exchange it, and twice that to sum it. A permutation takes a single link.
  Between slices it is the network that counts.
  """
  n = len(x.group)
  if n < 2:
    return 0.0
  part = (n - 1) / n * x.bytes
  if x.kind.endswith('between slices'):
    rate = share * chip.network
  else:
    rate = share * chip.links * chip.link
  if x.kind.startswith('all-reduce'):
    return 2 * part / rate
  if 'permute' in x.kind:
    return x.bytes / (rate if 'slices' in x.kind else chip.link)
  return part / rate
