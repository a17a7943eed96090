"""Which implementation of attention runs, why, and on which part of a batch."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  NamedSharding,
  PartitionSpec,
)

import plain_passes
from mira_jax.kernels import dispatch, gpu, operations, vjp
from mira_jax.kernels.attention import (
  attention_marginal,
  mira_attention,
  redistributed_attention,
)
from mira_jax.kernels.tpu import blocks
from mira_jax.mira import MiraConfig


def request(
  length,
  platform,
  kind,
  dtype=jnp.bfloat16,
  mode='exact',
  dim=64,
  batch=2,
):
  return dispatch.Request(
    (batch, length, 12, dim), dtype, mode, dispatch.Target(platform, kind)
  )


@pytest.mark.parametrize(
  ('asked', 'name'),
  [
    (request(128, 'cpu', 'cpu'), 'reference'),
    (request(1568, 'cpu', 'cpu'), 'streaming'),
    (request(1568, 'tpu', 'TPU v5 lite'), 'pallas_tpu'),
    (request(1568, 'gpu', 'NVIDIA H200'), 'pallas_gpu'),
    (request(1568, 'gpu', 'NVIDIA H200', jnp.float32), 'reference'),
    (request(32768, 'gpu', 'NVIDIA H200', jnp.float32), 'streaming'),
    (request(1568, 'gpu', 'NVIDIA A100-SXM4-80GB'), 'reference'),
    (request(1568, 'gpu', 'NVIDIA B200', batch=32), 'streaming'),
    (request(1568, 'gpu', 'Tesla V100-SXM2', mode='plain'), 'reference'),
    (request(1568, 'tpu', 'TPU v4'), 'reference'),
    (request(1568, 'gpu', 'NVIDIA A100', mode='flashlite'), 'cudnn'),
    (
      request(1568, 'gpu', 'NVIDIA A100', mode='flashlite', dim=128),
      'reference',
    ),
  ],
)
def test_the_choice_fits_device_shape_and_dtype(asked, name):
  chosen, reason, _ = dispatch.choose(asked)
  assert chosen == name
  assert reason
  if asked.target.platform != 'cpu' and chosen in ('reference', 'streaming'):
    assert ' cannot: ' in reason


def test_errors_of_a_named_implementation():
  q = k = v = jnp.ones((1, 8, 1, 4))
  with pytest.raises(
    ValueError, match=r"not on cpu; leave it out.*'reference'"
  ):
    redistributed_attention(q, k, v, None, implementation='pallas_gpu')
  with pytest.raises(ValueError, match='runs on TPU v5e'):
    attention_marginal(q, k, implementation='pallas_tpu')
  with pytest.raises(ValueError, match='runs on NVIDIA GPUs'):
    mira_attention(q, k, v, num_frames=2, config=None, implementation='cudnn')
  with pytest.raises(ValueError, match="'flash'"):
    mira_attention(q, k, v, num_frames=2, config=None, implementation='flash')
  asked = request(1568, 'gpu', 'NVIDIA H200')
  assert 'no exact mode' in dispatch.refusal('cudnn', asked)


@pytest.fixture
def not_imported(monkeypatch):
  """The GPU kernels are imported anew, by this test alone."""
  for name in ('passes', 'forward', 'backward', 'sweep', 'warpgroup'):
    monkeypatch.delitem(sys.modules, f'{gpu.__name__}.{name}', raising=False)
    monkeypatch.delattr(gpu, name, raising=False)


HOPPER = request(1568, 'gpu', 'NVIDIA H200', mode='flashlite')


@pytest.mark.usefixtures('not_imported')
def test_a_jax_without_mosaic_gpu_is_a_reason(monkeypatch):
  monkeypatch.setitem(sys.modules, plgpu.__name__, None)
  monkeypatch.delattr(sys.modules['jax.experimental.pallas'], 'mosaic_gpu')
  assert 'no Mosaic GPU' in dispatch.refusal('pallas_gpu', HOPPER)
  assert dispatch.choose(HOPPER).name == 'cudnn'


@pytest.mark.usefixtures('not_imported')
@pytest.mark.parametrize(
  ('module', 'name', 'error'),
  [(operations, 'mark', ImportError), (plgpu, 'Layout', AttributeError)],
)
def test_a_mistake_in_a_kernel_is_not_a_reason(
  monkeypatch, module, name, error
):
  monkeypatch.delattr(module, name)
  with pytest.raises(error, match=name):
    dispatch.choose(HOPPER)


@pytest.mark.parametrize(
  ('batch', 'axes'),
  [
    (3, {'data': 4}),
    (8, {'data': 2, 'model': 2}),
  ],
)
@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_kernels_lower_for_any_mesh(batch, axes, platform):
  kind = {'tpu': 'TPU v5 lite', 'cuda': 'NVIDIA H200'}[platform]
  mesh = AbstractMesh(
    tuple(axes.values()),
    tuple(axes),
    (AxisType.Auto,) * len(axes),
    abstract_device=AbstractDevice(kind, None, platform),
  )
  x = jax.ShapeDtypeStruct((batch, 32, 2, 64), jnp.bfloat16)
  with jax.sharding.use_abstract_mesh(mesh):
    attend = functools.partial(
      mira_attention, num_frames=4, config=MiraConfig()
    )
    traced = jax.jit(lambda *x: attend(*x).output).trace(x, x, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
  kernel = {'tpu': 'tpu_custom_call', 'cuda': 'mosaic_gpu'}[platform]
  assert kernel in text
  local = batch // axes.get('data', 1) if batch % 4 == 0 else batch
  assert f'tensor<{local}x32x' in text
  if axes.get('model') == 2:
    assert f'tensor<{local}x32x1x64xbf16>' in text


def draw(shape):
  keys = jax.random.split(jax.random.key(0), 3)
  return tuple(jax.random.normal(key, shape) for key in keys)


# ----- one batch on several devices -------------------------------------------


@pytest.mark.parametrize(
  ('name', 'mode', 'axes'),
  [
    ('streaming', 'exact', {'data': 2, 'fsdp': 2}),
    ('passes', 'exact', {'data': 2, 'model': 2}),
    ('pallas_tpu', 'flashlite', {'fsdp': 2, 'model': 2}),
  ],
  ids=str,
)
def test_devices_attend_to_their_own_clips_and_heads(
  monkeypatch, name, mode, axes
):
  served = dispatch.IMPLEMENTATIONS['pallas_tpu']._replace(
    refusal=lambda request: None
  )
  monkeypatch.setitem(dispatch.IMPLEMENTATIONS, 'pallas_tpu', served)
  plain = vjp.operations(plain_passes.PASSES)
  served = dispatch.Implementation(lambda _: plain, lambda _: None)
  monkeypatch.setitem(dispatch.IMPLEMENTATIONS, 'passes', served)
  monkeypatch.setattr(blocks, 'INTERPRET', True)
  mesh = jax.make_mesh(
    tuple(axes.values()),
    tuple(axes),
    (AxisType.Auto,) * len(axes),
    devices=jax.devices('cpu')[:4],
  )
  clips = tuple(axis for axis in axes if axis != 'model')
  heads = 'model' if 'model' in axes else None
  config = None if mode == 'plain' else MiraConfig(mode=mode)

  @functools.partial(jax.jit, static_argnums=3)
  def gradients(q, k, v, implementation):
    return jax.grad(
      lambda *x: jnp.square(
        mira_attention(
          *x, num_frames=4, config=config, implementation=implementation
        ).output
      ).sum(),
      (0, 1, 2),
    )(q, k, v)

  x = draw((8, 24, 4, 4))
  expected = gradients(*x, 'reference')
  split = NamedSharding(mesh, PartitionSpec(clips, None, heads))
  sharded = jax.device_put(x, split)
  with jax.set_mesh(mesh):
    compiled = gradients.lower(*sharded, name).compile()
    found = compiled(*sharded)
  assert 'all-gather' not in compiled.as_text()
  for a, b in zip(found, expected, strict=True):
    assert a.sharding.is_equivalent_to(split, a.ndim)
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * abs(b).max())


def test_a_batch_that_does_not_divide_is_whole():
  mesh = jax.make_mesh((4,), ('data',), (AxisType.Auto,))
  q, k, v = draw((3, 16, 1, 4))
  with jax.set_mesh(mesh):
    found = redistributed_attention(q, k, v, None, implementation='streaming')
  expected = redistributed_attention(q, k, v, None, implementation='reference')
  np.testing.assert_allclose(found, expected, atol=1e-6)
