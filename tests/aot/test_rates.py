"""Times of kernels and the estimate of a step, from the recorded figures."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from mira_jax.aot import chips, counts, rates
from mira_jax.kernels import vjp
from mira_jax.kernels.operations import Kernel
from mira_jax.kernels.tpu import passes as pallas_tpu

KINDS = 'TPU v5 lite', 'TPU v5', 'TPU v6 lite', 'NVIDIA H200'
CYCLES = json.loads(rates.CYCLES.read_text())


def kernels_of(chip: chips.Chip, shape: tuple[int, ...]) -> counts.Counts:
  """FLOPs of all operations on a chip, forward and backward."""
  passes = pallas_tpu.PASSES
  if chip.name not in rates.CORES:
    pytest.importorskip('jax.experimental.pallas.mosaic_gpu')
    from mira_jax.kernels.gpu import passes as pallas_gpu

    passes = pallas_gpu.PASSES
  operations = vjp.operations(passes)

  def loss(q, k, v):
    bias = k.astype(jnp.float32).mean((2, 3))
    mass, lse = operations.marginal(q, k)
    y = operations.biased(q, k, v, bias, True)
    y += operations.redistributed(q, k, v, mass, 0.5, 0.1, True, lse)
    return y.astype(jnp.float32).sum()

  x = [jax.ShapeDtypeStruct(shape, jnp.bfloat16)] * 3
  grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
  return counts.flops(grad.trace(*x).jaxpr)


@pytest.mark.parametrize('kind', KINDS)
def test_every_kernel_has_a_time_and_none_is_faster_than_the_peak(kind):
  chip = chips.of_kind(kind)
  found = kernels_of(chip, rates.SHAPES['decoder'])
  kernels = [x for x in found if isinstance(x, Kernel)]
  assert len(kernels) >= 6
  for kernel in kernels:
    seconds = rates.of_kernel(chip, kernel).seconds
    assert 0.02 < kernel.flops / seconds / chip.flops < 0.75, kernel


@pytest.mark.parametrize('name', rates.SHAPES)
def test_a_recorded_shape_takes_its_own_cycles(name):
  kernel = Kernel('attend', *rates.SHAPES[name], products=2)
  for chip, (hertz, cores) in rates.CORES.items():
    (found,) = (x for x in chips.CHIPS if x.name == chip)
    seconds, shape = rates.of_kernel(found, kernel)
    assert seconds * hertz * cores == pytest.approx(
      CYCLES[chip][f'attend {name}']
    )
    assert shape == kernel.shape


@pytest.mark.parametrize(
  ('shape', 'nearest', 'ratio'),
  [
    ((16, 1568, 12, 64), 'decoder', 2),
    ((8, 3136, 6, 64), 'decoder', 2),
    ((8, 1568, 16, 128), 'huge', 1),  # both fill the lanes once
    ((8, 1568, 16, 256), 'huge', 2),
    ((64, 160, 16, 80), 'encoder', 16 / 12),  # length before width
    ((1, 16384, 12, 72), 'long', 1 / 4),
  ],
)
def test_other_shapes_take_a_share_of_the_nearest(shape, nearest, ratio):
  chip = chips.of_kind('TPU v5 lite')
  seconds, of = rates.of_kernel(chip, Kernel('marginal', *shape, products=1))
  recorded = Kernel('marginal', *rates.SHAPES[nearest], products=1)
  assert of == recorded.shape
  assert seconds == pytest.approx(
    ratio * rates.of_kernel(chip, recorded).seconds
  )


def test_an_h100_takes_longer_for_wider_heads():
  chip = chips.of_kind('NVIDIA H100')
  known, wide = (
    rates.of_kernel(chip, Kernel('dq', 32, 1568, 16, width, 3))
    for width in (80, 96)
  )
  assert known == (1.35e-3, wide.shape) == (1.35e-3, '32x1568x16x80')
  assert wide.seconds == pytest.approx(96 / 80 * known.seconds)


@pytest.mark.parametrize('shape', rates.HOPPER)
def test_the_times_of_an_h200_are_those_of_the_model(shape):
  path = pathlib.Path(__file__).parents[2] / 'bench' / 'results'
  name = f'hopper_{"x".join(map(str, shape))}.json'
  model = json.loads((path / name).read_text())
  found = {x['sweep']: round(x['ms'][1], 2) for x in model['sweeps']}
  assert found == rates.HOPPER[shape]


def test_an_estimate_is_a_sum_and_no_less_than_the_bound():
  chip = chips.of_kind('TPU v6 lite')
  kernel = Kernel('attend', *rates.SHAPES['huge'], products=2)
  work = counts.Counts({'dot_general': chip.flops, kernel: 3 * kernel.flops})
  sent = [chips.Collective('all-reduce', 4, 2, 10**9)]
  found = rates.estimate(chip, work, sent)
  assert found is not None
  (attend,) = found['kernels']
  assert attend['seconds'] == 3 * rates.of_kernel(chip, kernel).seconds
  assert attend['kernel'] == 'attend 8x1568x16x80'
  assert found['products'] == 1
  assert found['attention'] == attend['seconds']
  assert found['collectives'] == 2 * 3 / 4 * 1e9 / 400e9
  assert found['seconds'] == pytest.approx(
    1 + found['attention'] + found['collectives']
  )
  bound = chips.bound(chip, work.total(), sent)
  assert found['seconds'] > bound['seconds'] > 1


def test_without_kernels_there_is_no_estimate():
  chip = chips.of_kind('TPU v5')
  assert rates.estimate(chip, counts.Counts({'dot_general': 1}), []) is None
