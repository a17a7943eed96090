"""One test class that every implementation of attention must pass."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.kernels import streaming
from mira_jax.kernels.attention import (
  IMPLEMENTATIONS,
  attention_map,
  choose,
  mira_attention,
)
from mira_jax.mira import MiraConfig, key_marginal, redistribute

CONFIGS = {
  'plain': None,
  **{
    f'{mode}-{statistics}': MiraConfig(mode=mode, statistics=statistics)
    for mode in ('exact', 'flashlite')
    for statistics in ('instance', 'batch', 'batch_ema')
  },
  'replaced': MiraConfig(residual_mix=1.0, floor=0.0),
  'floor': MiraConfig(floor=0.3),
}
# B, L, H, D; T is 4; rows of a tile. 28 rows in tiles of 10 leave one unfilled.
SHAPES = {
  'one tile': (2, 28, 3, 8, 400),
  'tiles': (2, 28, 3, 8, 10),
  'one head': (1, 24, 1, 5, 7),
}


def draw(shape, dtype=np.float64):
  rng = np.random.default_rng(0)
  q, k, v, weight = (rng.normal(size=shape) for _ in range(4))
  k = k * np.linspace(0.4, 1.6, shape[1])[:, None, None]  # frames differ
  return tuple(jnp.asarray(x, dtype) for x in (q, k, v, weight))


def relative(ours, meaning):
  return float(jnp.abs(ours - meaning).max() / jnp.abs(meaning).max())


@pytest.mark.parametrize(
  'name', [name for name in IMPLEMENTATIONS if name != 'meaning']
)
class TestImplementation:
  """Value and every gradient, for all configurations, shapes and dtypes."""

  @pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS.keys())
  @pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
  def test_agrees_in_float64(self, x64, monkeypatch, name, shape, config):
    monkeypatch.setattr(streaming, 'TILE', shape[-1] * shape[1])
    q, k, v, weight = draw(shape[:-1])

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

    ours, meaning = run(q, k, v, name), run(q, k, v, 'meaning')
    assert relative(ours[0], meaning[0]) < 1e-12
    for a, b in zip(
      jax.tree.leaves(ours[1]), jax.tree.leaves(meaning[1]), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-11)
    for a, b in zip(ours[2], meaning[2], strict=True):
      assert relative(a, b) < 1e-10

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

  def test_large_logits_stay_finite(self, name):
    q, k, v, _ = draw((1, 16, 1, 4), np.float32)
    loss = lambda q: mira_attention(  # noqa: E731
      q, k, v, num_frames=4, config=MiraConfig(), implementation=name
    ).output.sum()
    value, gradient = jax.value_and_grad(loss)(1e4 * q)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize('rows', [400, 7])
@pytest.mark.parametrize(('mix', 'floor'), [(0.5, 1e-3), (1, 0), (1, 0.2)])
def test_streaming_parts_have_the_gradients_of_their_meaning(
  x64, monkeypatch, rows, mix, floor
):
  monkeypatch.setattr(streaming, 'TILE', rows * 24)
  q, k, v, weight = draw((2, 24, 2, 4))
  rng = np.random.default_rng(1)
  gain = jnp.asarray(rng.uniform(0.5, 1.6, (2, 24)))
  lean = jnp.asarray(rng.normal(size=(2, 24)))

  def apply(attention, v):
    return (jnp.einsum('bhqk,bkhd->bqhd', attention, v) * weight).sum()

  pairs = {
    'biased': (
      lambda q, k, v, g: (
        streaming.biased_attention(q, k, v, jnp.log(g)) * weight
      ).sum(),
      lambda q, k, v, g: apply(attention_map(q, k, jnp.log(g)), v),
    ),
    'marginal': (
      lambda q, k, v, g: (streaming.attention_marginal(q, k) * lean).sum(),
      lambda q, k, v, g: (key_marginal(attention_map(q, k)) * lean).sum(),
    ),
    'redistributed': (
      lambda q, k, v, g: (
        streaming.redistributed_attention(
          q, k, v, g, residual_mix=mix, floor=floor
        )
        * weight
      ).sum(),
      lambda q, k, v, g: apply(
        redistribute(attention_map(q, k), g, residual_mix=mix, floor=floor), v
      ),
    ),
  }
  for ours, meaning in pairs.values():
    got, want = (
      jax.jit(jax.value_and_grad(f, (0, 1, 2, 3)))(q, k, v, gain)
      for f in (ours, meaning)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


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


def test_the_choice_is_named_and_has_a_reason():
  for length in (128, 1568, 32768):
    for platform in ('cpu', 'gpu', 'tpu'):
      name, reason = choose(length, platform)
      assert name in IMPLEMENTATIONS
      assert reason
  assert choose(128, 'cpu')[0] == 'meaning'
  assert choose(1568, 'cpu')[0] == 'streaming'
  assert choose(32768, 'gpu')[0] == 'streaming'


def test_an_unknown_implementation_is_named():
  q, k, v, _ = draw((1, 8, 1, 4), np.float32)
  with pytest.raises(ValueError, match="'flash'"):
    mira_attention(q, k, v, num_frames=2, config=None, implementation='flash')
