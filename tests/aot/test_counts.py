"""FLOPs of traced programs and of models."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from configs import dfew, voxceleb2
from mira_jax.aot import counts, measure
from mira_jax.devices import sharding
from mira_jax.kernels import vjp
from mira_jax.kernels.tpu import passes as pallas_tpu


def flops(f, *shapes, dtype=jnp.float32) -> counts.Counts:
  x = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  return counts.flops(jax.jit(f).trace(*x).jaxpr)


def test_a_product_is_a_multiply_and_an_add_per_term():
  assert flops(jnp.dot, (3, 5), (5, 7)) == {'dot_general': 2 * 3 * 5 * 7}
  batched = flops(
    lambda x, y: jnp.einsum('bqd,bkd->bqk', x, y), (2, 3, 5), (2, 7, 5)
  )
  assert batched.total() == 2 * 2 * 3 * 7 * 5


def test_a_convolution_is_a_product_per_place():
  def convolve(x, kernel):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=numbers
    )

  total = flops(convolve, (2, 8, 8, 3), (5, 5, 3, 4)).total()
  assert total == 2 * (2 * 8 * 8 * 4) * (5 * 5 * 3)


def test_a_scan_counts_as_often_as_it_runs():
  def run(x, w):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

  assert flops(run, (4, 4), (6, 4, 4)).total() == 6 * 2 * 4**3


def test_a_branch_counts_if_it_is_the_dearest():
  def run(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert flops(run, (4, 4)).total() == 2 * 2 * 4**3


def test_what_is_computed_again_counts_again():
  def loss(x, again):
    def block(x):
      return jnp.sin(jnp.sin(x @ x) @ x)

    return (jax.checkpoint(block) if again else block)(x).sum()

  kept, again = (
    flops(functools.partial(jax.value_and_grad(loss), again=a), (4, 4)).total()
    for a in (False, True)
  )
  # Two products, each with two gradients; and again the two.
  assert kept == 6 * 2 * 4**3
  assert again == 8 * 2 * 4**3


def test_what_nothing_needs_does_not_count():
  def run(x, w):
    def step(carry, w):
      kept, idle = carry
      return (kept @ w, idle @ w @ w), kept @ kept @ w

    (kept, _), _ = jax.lax.scan(jax.jit(step), (x, x), w)
    return kept

  assert flops(run, (4, 4), (6, 4, 4)).total() == 6 * 2 * 4**3


def test_each_device_counts():
  mesh = sharding.make_mesh()
  split = jax.shard_map(
    lambda x, w: x @ w,
    mesh=mesh,
    in_specs=(sharding.BATCH, PartitionSpec()),
    out_specs=sharding.BATCH,
    check_vma=False,
  )
  assert flops(split, (16, 4), (4, 4)).total() == 2 * 16 * 4 * 4


SHAPE = (2, 160, 3, 64)
UNIT = 2 * 2 * 3 * 160 * 160 * 64  # one L x L x D product of all heads


def attention(passes, *x):
  y = vjp.operations(passes).redistributed(
    *x, jnp.ones(SHAPE[:2]), 0.5, 0.1, True
  )
  return y.astype(jnp.float32).sum()


@pytest.mark.parametrize(
  ('name', 'units'),
  [('pallas_tpu', {3, 5}), ('pallas_gpu', {3 + 7})],  # docs/kernels.md
)
def test_kernels_say_what_they_compute(name, units):
  if name == 'pallas_gpu':
    pytest.importorskip('jax.experimental.pallas.mosaic_gpu')
    from mira_jax.kernels.gpu import passes as kernels
  else:
    kernels = pallas_tpu
  attend = functools.partial(attention, kernels.PASSES)
  found = flops(
    jax.value_and_grad(attend, (0, 1, 2)), *[SHAPE] * 3, dtype=jnp.bfloat16
  )
  del found['dot_general']  # a vector per head
  assert {x / UNIT for x in found.values()} == units


def of_blocks(depth: int, dim: int, tokens: int) -> int:
  """FLOPs of transformer blocks: 12 C^2 per token, and two L x L products."""
  return depth * (2 * tokens * 12 * dim**2 + 4 * tokens**2 * dim)


@pytest.mark.parametrize(
  ('size', 'dim', 'depth', 'giga'),
  [('B', 768, 12, 361), ('H', 1280, 32, 2382)],
)
def test_a_classifier_needs_its_closed_form(size, dim, depth, giga):
  cfg = dfew.get_config(f'{size},exact')
  cfg.model.num_classes, cfg.model.remat = 7, 'full'
  forward = 2 * 1568 * 1536 * dim + of_blocks(depth, dim, 1568) + 2 * dim * 7
  assert measure.model_flops(cfg) == 3 * forward
  # Twice the multiply-adds that are published.
  assert forward / 1e9 == pytest.approx(giga, rel=0.01)
  cfg.optim.freeze_backbone = True
  assert measure.model_flops(cfg) == forward


def test_pre_training_needs_its_closed_form():
  cfg = voxceleb2.get_config('B')
  forward = (
    2 * 1568 * 1536 * 768
    + of_blocks(12, 768, 160)
    + 2 * 160 * 768 * 384
    + of_blocks(4, 384, 1568)
    + 2 * 1408 * 384 * 1536
  )
  assert measure.model_flops(cfg) == 3 * forward
