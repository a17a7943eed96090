"""FLOPs of traced programs and of models."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mira_jax.aot import counts
from mira_jax.devices import sharding
from mira_jax.kernels import vjp
from mira_jax.kernels.tpu import passes as pallas_tpu
from mira_jax.models.vivit import SIZES, ViViT


def flops(f, *shapes, dtype=jnp.float32) -> counts.Counts:
  x = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  return counts.flops(jax.jit(f).trace(*x).jaxpr)


def convolve(x, kernel):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=numbers
  )


def scan(x, w):
  """Products that nothing needs do not count."""

  def step(carry, w):
    kept, idle = carry
    return (kept @ w, idle @ w @ w), kept @ kept @ w

  (kept, _), _ = jax.lax.scan(jax.jit(step), (x, x), w)
  return kept


def branch(x):
  """The dearest branch counts."""
  return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)


def on_devices(x, w):
  return jax.shard_map(
    lambda x, w: x @ w,
    mesh=sharding.make_mesh(),
    in_specs=(sharding.BATCH, PartitionSpec()),
    out_specs=sharding.BATCH,
    check_vma=False,
  )(x, w)


@pytest.mark.parametrize(
  ('f', 'shapes', 'total'),
  [
    (functools.partial(jnp.einsum, 'bqd,bkd->bqk'), [(2, 3, 5), (2, 7, 5)],
     2 * 2 * 3 * 7 * 5),
    (convolve, [(2, 8, 8, 3), (5, 5, 3, 4)], 2 * (2 * 8 * 8 * 4) * (5 * 5 * 3)),
    (scan, [(4, 4), (6, 4, 4)], 6 * 2 * 4**3),
    (branch, [(4, 4)], 2 * 2 * 4**3),
    (on_devices, [(16, 4), (4, 4)], 2 * 16 * 4 * 4),
  ],
)  # fmt: skip
def test_a_product_is_a_multiply_and_an_add_per_term(f, shapes, total):
  assert flops(f, *shapes).total() == total


@pytest.mark.parametrize(('again', 'products'), [(False, 6), (True, 8)])
def test_what_is_computed_again_counts_again(again, products):
  """Two products, each with two gradients; and again the two."""

  def loss(x):
    def block(x):
      return jnp.sin(jnp.sin(x @ x) @ x)

    return (jax.checkpoint(block) if again else block)(x).sum()

  total = flops(jax.value_and_grad(loss), (4, 4)).total()
  assert total == products * 2 * 4**3


SHAPE = (2, 160, 3, 64)
UNIT = 2 * 2 * 3 * 160 * 160 * 64  # one L x L x D product of all heads


@pytest.mark.parametrize(
  ('name', 'units'),
  # docs/kernels.md; without the rows' sums of a marginal, a GPU needs 1 more.
  [
    ('pallas_tpu', {'redistribute': 3, 'redistribute_backward': 5}),
    (
      'pallas_gpu',
      {
        'logsumexp': 1,
        'redistribute': 3,
        'redistribute_dq': 3,
        'redistribute_dkv': 4,
      },
    ),
  ],
)
def test_kernels_report_what_they_compute(name, units):
  kernels = pallas_tpu
  if name == 'pallas_gpu':
    pytest.importorskip('jax.experimental.pallas.mosaic_gpu')
    from mira_jax.kernels.gpu import passes as kernels

  def attention(*x):
    operations = vjp.operations(kernels.PASSES)
    y = operations.redistributed(*x, jnp.ones(SHAPE[:2]), 0.5, 0.1, True)
    return y.astype(jnp.float32).sum()

  found = flops(
    jax.value_and_grad(attention, (0, 1, 2)), *[SHAPE] * 3, dtype=jnp.bfloat16
  )
  del found['dot_general']  # a vector per head
  assert {x.name: n / UNIT for x, n in found.items()} == units
  assert {x.shape for x in found} == {'2x160x3x64'}


def test_a_classifier_needs_its_closed_form():
  model = ViViT(**SIZES['B'], num_classes=7, scan=True, attention='reference')
  video = jax.ShapeDtypeStruct((1, 16, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), video)
  found = counts.flops(jax.jit(model.apply).trace(variables, video).jaxpr)
  # 12 C^2 per token, and two L x L products.
  block = 2 * 1568 * 12 * 768**2 + 4 * 1568**2 * 768
  total = 2 * 1568 * 1536 * 768 + 12 * block + 2 * 768 * 7
  assert found.total() == total
  # Twice the multiply-adds that are published.
  assert total / 1e9 == pytest.approx(361, rel=0.01)
