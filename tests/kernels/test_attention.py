"""One test class that every implementation of attention must pass."""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  NamedSharding,
  PartitionSpec,
)

import plain_passes
from mira_jax.kernels import cudnn, dispatch, gpu, streaming, vjp
from mira_jax.kernels import reference as meaning
from mira_jax.kernels.attention import (
  attention_marginal,
  mira_attention,
  redistributed_attention,
)
from mira_jax.kernels.gpu import passes as pallas_gpu
from mira_jax.kernels.tpu import blocks
from mira_jax.kernels.tpu import passes as pallas_tpu
from mira_jax.mira import MiraConfig

CONFIGS = {
  'plain': None,
  **{
    f'{mode}-{statistics}': MiraConfig(mode=mode, statistics=statistics)
    for mode in ('exact', 'flashlite')
    for statistics in ('instance', 'batch', 'batch_ema')
  },
  'replaced': MiraConfig(residual_mix=1.0, floor=0.0),
  'floor': MiraConfig(floor=0.3),
  'constant gain': MiraConfig(gain_gradient=False),
}


class Case(NamedTuple):
  """An implementation as it can run on a CPU, and how near it must come."""

  dtype: Any
  value: float  # bounds, relative to the largest number
  gradient: float
  # B, L, H, D; T is 4.
  shapes: tuple[tuple[int, ...], ...]
  configs: tuple[str, ...] = tuple(CONFIGS)


# 28 rows in tiles of 10 leave one unfilled; so do 36 rows in blocks of 16.
SMALL = ((2, 28, 3, 8), (1, 24, 1, 5))
CASES = {
  'streaming': Case(np.float64, 1e-12, 1e-10, SMALL),
  'passes': Case(np.float64, 1e-12, 1e-10, SMALL[:1]),
  'pallas_tpu': Case(np.float32, 1e-5, 1e-4, ((2, 36, 2, 64),)),
  # Its interpreter takes a second for every block.
  'pallas_gpu': Case(
    jnp.bfloat16,
    1e-2,
    2e-2,
    ((2, 32, 1, 16),),
    ('plain', 'flashlite-instance', 'exact-batch_ema'),
  ),
}
ALL = [
  pytest.param(name, shape, config, id=f'{name}-{config}-{shape}')
  for name, case in CASES.items()
  for shape in case.shapes
  for config in case.configs
]
IN_FLOAT64 = ['streaming', 'passes']


def draw(shape, dtype=np.float64):
  rng = np.random.default_rng(0)
  q, k, v, weight = (rng.normal(size=shape) for _ in range(4))
  k = k * np.linspace(0.4, 1.6, shape[1])[:, None, None]  # frames differ
  return tuple(jnp.asarray(x, dtype) for x in (q, k, v, weight))


def relative(ours, meaning):
  ours, meaning = (np.asarray(x, np.float64) for x in (ours, meaning))
  return np.abs(ours - meaning).max() / np.abs(meaning).max()


@pytest.fixture
def small_tiles(monkeypatch):
  monkeypatch.setattr(streaming, 'TILE', 10 * 28)
  monkeypatch.setattr(blocks, 'ROWS', (16, 16))


@pytest.fixture
def interpreters(monkeypatch):
  """Kernels that run here, and the algebra of `flash` on plain passes."""
  sets = {
    'passes': plain_passes.PASSES,
    'pallas_tpu': pallas_tpu.passes(interpret=True),
    'pallas_gpu': pallas_gpu.passes(interpret=True),
  }
  for name, passes in sets.items():
    implementation = dispatch.Implementation(
      functools.partial(vjp.operations, passes), lambda request: None
    )
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, name, implementation)


def interpreter(name):
  """Where GPU kernels run on a CPU: a private part of jax, which may move."""
  if name != 'pallas_gpu':
    return contextlib.nullcontext()
  params = pytest.importorskip('jax._src.pallas.mosaic_gpu.interpret.params')
  return params.force_gpu_interpret_mode(
    params.InterpretGPUParams(
      out_of_bounds_reads='uninitialized', uninitialized_memory='zero'
    )
  )


@pytest.mark.usefixtures('interpreters')
class TestImplementation:
  """Value and every gradient, for all configurations, shapes and dtypes."""

  @pytest.mark.usefixtures('small_tiles')
  @pytest.mark.parametrize(('name', 'shape', 'config'), ALL)
  def test_agrees_with_the_meaning(self, name, shape, config):
    case, config = CASES[name], CONFIGS[config]

    @functools.partial(jax.jit, static_argnums=3)
    def run(q, k, v, implementation):
      def loss(q, k, v):
        attended = mira_attention(
          q,
          k,
          v,
          num_frames=4,
          config=config,
          past=jnp.array([0.4, 0.3, 0.2, 0.1]),
          training=True,
          implementation=implementation,
        )
        return (attended.output * weight).sum(), attended

      gradients, attended = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
      return attended.output, attended.frames, gradients

    with jax.enable_x64(case.dtype == np.float64):
      *qkv, weight = draw(shape, case.dtype)
      with interpreter(name):
        ours = run(*qkv, name)
      # bfloat16 is compared with exact results for the same numbers.
      wide = jnp.promote_types(case.dtype, jnp.float32)
      weight = weight.astype(wide)
      meaning = run(*(x.astype(wide) for x in qkv), 'meaning')
    assert ours[0].dtype == case.dtype
    assert relative(ours[0], meaning[0]) < case.value
    for a, b in zip(
      jax.tree.leaves(ours[1]), jax.tree.leaves(meaning[1]), strict=True
    ):
      assert relative(a, b) < 10 * case.value
    for a, b in zip(ours[2], meaning[2], strict=True):
      assert relative(a, b) < case.gradient

  @pytest.mark.usefixtures('small_tiles')
  @pytest.mark.parametrize('name', IN_FLOAT64)
  @pytest.mark.parametrize('gain_gradient', [True, False])
  @pytest.mark.parametrize(
    ('mix', 'floor'), [(0.5, 1e-3), (1, 0), (1, 0.2), (0, 0.1), (0.5, 1)]
  )
  def test_is_differentiable_by_the_gain(
    self, x64, name, mix, floor, gain_gradient
  ):
    q, k, v, weight = draw((2, 24, 2, 4))
    gain = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1.6, (2, 24)))

    def loss(implementation, *x):
      y = redistributed_attention(
        *x,
        residual_mix=mix,
        floor=floor,
        gain_gradient=gain_gradient,
        implementation=implementation,
      )
      return (y * weight).sum()

    ours, meaning = (
      jax.grad(functools.partial(loss, which), (0, 1, 2, 3))(q, k, v, gain)
      for which in (name, 'meaning')
    )
    matters = gain_gradient and mix > 0 and floor < 1
    assert (np.abs(meaning[3]).max() > 0) == matters
    for a, b in zip(ours, meaning, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)

  @pytest.mark.usefixtures('small_tiles')
  @pytest.mark.parametrize('name', IN_FLOAT64)
  def test_the_marginal_has_its_gradient(self, x64, name):
    q, k, _, _ = draw((2, 24, 2, 4))
    lean = jnp.asarray(np.random.default_rng(1).normal(size=(2, 24)))

    def loss(implementation, q, k):
      return (
        attention_marginal(q, k, implementation=implementation) * lean
      ).sum()

    ours, meaning = (
      jax.value_and_grad(functools.partial(loss, which), (0, 1))(q, k)
      for which in (name, 'meaning')
    )
    for a, b in zip(
      jax.tree.leaves(ours), jax.tree.leaves(meaning), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)

  @pytest.mark.parametrize('name', IN_FLOAT64)
  @pytest.mark.parametrize(
    ('dtype', 'bound'), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)]
  )
  def test_keeps_the_dtype(self, name, dtype, bound):
    q, k, v, _ = draw((2, 32, 2, 8), dtype)
    config = MiraConfig()
    ours, meaning = (
      mira_attention(
        q, k, v, num_frames=4, config=config, implementation=which
      ).output
      for which in (name, 'meaning')
    )
    assert ours.dtype == dtype
    assert relative(ours.astype(jnp.float32), meaning) < bound

  @pytest.mark.parametrize('name', IN_FLOAT64)
  def test_a_prefix_belongs_to_no_frame(self, x64, name):
    q, k, v, _ = draw((2, 29, 2, 4))
    ours, meaning = (
      mira_attention(
        q,
        k,
        v,
        num_frames=4,
        config=MiraConfig(),
        num_prefix=1,
        implementation=which,
      )
      for which in (name, 'meaning')
    )
    np.testing.assert_allclose(
      ours.frames.gain, meaning.frames.gain, rtol=1e-12
    )
    np.testing.assert_allclose(ours.output, meaning.output, rtol=1e-10)

  @pytest.mark.parametrize('name', [*IN_FLOAT64, 'pallas_tpu'])
  def test_large_logits_stay_finite(self, name):
    q, k, v, _ = draw((1, 16, 1, 4), np.float32)
    loss = lambda q: mira_attention(  # noqa: E731
      q, k, v, num_frames=4, config=MiraConfig(), implementation=name
    ).output.sum()
    value, gradient = jax.value_and_grad(loss)(1e4 * q)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_bfloat16_queries_are_scaled_without_rounding():
  # 1 / sqrt(80) is no number of bfloat16, nor is q of 80 channels times it.
  q, k, _, _ = draw((1, 32, 1, 80), jnp.bfloat16)
  one = q[0, :, 0], k[0, :, 0]
  wide = [np.asarray(x, np.float64) for x in one]
  want = wide[0] @ wide[1].T / 80**0.5
  for logits in (meaning.scores(q, k)[0, 0], streaming._logits(*one)):
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_streaming_needs_a_tenth_of_the_memory():
  shape = jax.ShapeDtypeStruct((8, 1568, 12, 64), jnp.float32)

  def temporaries(name: str) -> int:
    def loss(q, k, v):
      return mira_attention(
        q, k, v, num_frames=8, config=MiraConfig(), implementation=name
      ).output.sum()

    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    compiled = step.lower(shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries('streaming') < temporaries('meaning') / 10


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
    (request(128, 'cpu', 'cpu'), 'meaning'),
    (request(1568, 'cpu', 'cpu'), 'streaming'),
    (request(1568, 'tpu', 'TPU v5 lite'), 'pallas_tpu'),
    (request(160, 'tpu', 'TPU v6 lite', jnp.float32), 'pallas_tpu'),
    (request(1568, 'gpu', 'NVIDIA H200'), 'pallas_gpu'),
    (request(1568, 'gpu', 'NVIDIA GH200 480GB'), 'pallas_gpu'),
    (request(1568, 'gpu', 'NVIDIA H200', jnp.float32), 'meaning'),
    (request(32768, 'gpu', 'NVIDIA H200', jnp.float32), 'streaming'),
    (request(1568, 'gpu', 'NVIDIA A100-SXM4-80GB'), 'meaning'),
    (request(1568, 'gpu', 'NVIDIA B200', batch=32), 'streaming'),
    (request(1568, 'gpu', 'AMD Instinct MI300X', mode='plain'), 'meaning'),
    (request(1568, 'gpu', 'Tesla V100-SXM2', mode='plain'), 'meaning'),
    (request(1568, 'tpu', 'TPU v4'), 'meaning'),
    (request(1568, 'gpu', 'NVIDIA A100', mode='flashlite'), 'cudnn'),
    (request(1568, 'gpu', 'NVIDIA A100', mode='plain', dim=128), 'cudnn'),
    (request(1568, 'gpu', 'NVIDIA A100', mode='flashlite', dim=128), 'meaning'),
  ],
)
def test_the_choice_fits_device_shape_and_dtype(asked, name):
  chosen, reason = dispatch.choose(asked)
  assert chosen == name
  assert reason
  if asked.target.platform != 'cpu' and chosen in ('meaning', 'streaming'):
    assert ' cannot: ' in reason


def test_a_named_implementation_says_why_it_cannot_serve():
  q, k, v, _ = draw((1, 8, 1, 4), np.float32)
  with pytest.raises(ValueError, match=r'not on cpu; use None.*meaning'):
    redistributed_attention(q, k, v, None, implementation='pallas_gpu')
  with pytest.raises(ValueError, match='runs on TPU v5e'):
    attention_marginal(q, k, implementation='pallas_tpu')
  with pytest.raises(ValueError, match='runs on NVIDIA GPUs'):
    mira_attention(q, k, v, num_frames=2, config=None, implementation='cudnn')
  asked = request(1568, 'gpu', 'NVIDIA H200')
  assert 'no exact mode' in dispatch.refusal('cudnn', asked)


def test_an_unknown_implementation_is_named():
  q, k, v, _ = draw((1, 8, 1, 4), np.float32)
  with pytest.raises(ValueError, match="'flash'"):
    mira_attention(q, k, v, num_frames=2, config=None, implementation='flash')


def test_cudnn_gets_the_gain_in_spare_channels():
  q, k, v, _ = draw((2, 24, 2, 8), np.float32)
  q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
  bias = jnp.log(
    jnp.asarray(
      np.random.default_rng(1).uniform(0.7, 1.4, (2, 24)), jnp.float32
    )
  )
  wide = cudnn.with_bias(q, k, v, bias)
  assert all(x.shape[-1] == 16 for x in wide)
  ours = jax.nn.dot_product_attention(
    *(x.astype(jnp.float32) for x in wide), scale=8**-0.5
  )
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  expected = meaning.attend(meaning.attention_map(q, k, bias), v)
  # 16 bits of the log gain arrive, not bfloat16's 8.
  np.testing.assert_allclose(ours[..., :8], expected, atol=3e-5)
  np.testing.assert_array_equal(ours[..., 8:], 0)


# One batch on several devices.


@pytest.mark.usefixtures('interpreters')
@pytest.mark.parametrize('name', ['streaming', 'passes', 'pallas_tpu'])
@pytest.mark.parametrize('mode', ['plain', 'flashlite', 'exact'])
@pytest.mark.parametrize(
  'axes',
  [{'data': 4}, {'data': 2, 'fsdp': 2}, {'fsdp': 2, 'model': 2}],
  ids=str,
)
def test_devices_attend_to_their_own_clips_and_heads(name, mode, axes):
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

  x = draw((8, 24, 4, 4), np.float32)[:3]
  expected = gradients(*x, 'meaning')
  split = NamedSharding(mesh, PartitionSpec(clips, None, heads))
  sharded = jax.device_put(x, split)
  with jax.set_mesh(mesh):
    compiled = gradients.lower(*sharded, name).compile()
    found = gradients(*sharded, name)
  assert 'all-gather' not in compiled.as_text()
  for a, b in zip(found, expected, strict=True):
    assert a.sharding.is_equivalent_to(split, a.ndim)
    assert relative(a, b) < 2e-5


@pytest.mark.parametrize(
  ('batch', 'axes'),
  [
    (8, {'data': 4}),
    (3, {'data': 4}),
    (8, {'data': 2, 'model': 2}),
    (8, {'data': 1, 'model': 4}),
    (8, {'batch': 4}),
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


@pytest.mark.parametrize(('batch', 'axis'), [(3, 'data'), (8, 'batch')])
def test_a_batch_that_is_not_split_is_whole(batch, axis):
  mesh = jax.make_mesh((4,), (axis,), (AxisType.Auto,))
  q, k, v, _ = draw((batch, 16, 1, 4), np.float32)
  with jax.set_mesh(mesh):
    found = redistributed_attention(q, k, v, None, implementation='streaming')
  expected = redistributed_attention(q, k, v, None, implementation='meaning')
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.usefixtures('interpreters')
@pytest.mark.parametrize('name', ['streaming', 'passes', 'pallas_tpu'])
def test_frames_without_gain_stay_finite(name):
  q, k, v, weight = draw((1, 16, 2, 8), np.float32)
  gain = jnp.zeros((1, 16))  # one row for all clips

  def loss(q, k, v, implementation):
    y = redistributed_attention(
      q, k, v, gain, residual_mix=0.5, floor=0.0, implementation=implementation
    )
    return (y * weight).sum()

  ours, meaning = (
    jax.value_and_grad(loss, (0, 1, 2))(q, k, v, which)
    for which in (name, 'meaning')
  )
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(meaning), strict=True):
    assert relative(a, b) < 1e-5


def test_arrays_must_be_alike():
  q, k, v, _ = draw((1, 16, 1, 4), np.float32)
  with pytest.raises(ValueError, match=r'\(1, 8, 1, 4\) float32'):
    redistributed_attention(q, k[:, :8], v, None)
  with pytest.raises(ValueError, match='bfloat16'):
    mira_attention(q, k, v.astype(jnp.bfloat16), num_frames=4, config=None)


def test_a_jax_without_the_kernels_is_a_reason(monkeypatch):
  monkeypatch.setitem(sys.modules, 'mira_jax.kernels.gpu.passes', None)
  monkeypatch.delattr(gpu, 'passes')
  asked = request(1568, 'gpu', 'NVIDIA H200', mode='flashlite')
  assert 'no Mosaic GPU' in dispatch.refusal('pallas_gpu', asked)
  assert dispatch.choose(asked)[0] == 'cudnn'


def test_a_constant_gain_saves_the_gradient_of_the_marginal():
  q, k, v, weight = draw((1, 24, 1, 4), np.float32)

  def gradient(gain_gradient):
    config = MiraConfig(gain_gradient=gain_gradient, gain_min=0.1, gain_max=9.0)

    def loss(q):
      attended = mira_attention(
        q, k, v, num_frames=4, config=config, implementation='streaming'
      )
      return (attended.output * weight).sum()

    return jax.grad(loss)

  assert relative(gradient(True)(q), gradient(False)(q)) > 1e-3
  products = [
    str(jax.make_jaxpr(gradient(wanted))(q)).count('dot_general')
    for wanted in (True, False)
  ]
  assert products[1] < products[0]
