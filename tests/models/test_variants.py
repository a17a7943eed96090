"""The baselines: printed numbers, independent oracles, and what must hold."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mira_jax.inference import predictor
from mira_jax.mira import MiraConfig
from mira_jax.models import variants
from mira_jax.models.blocks import BLOCKS, Block
from mira_jax.models.options import VARIANTS
from mira_jax.models.vivit import SIZES, TEMPORAL_DEPTH, ViViT
from oracle import formula_video
from small_models import save_model
from tiny_models import (
  TINY,
  B,
  C,
  H,
  N,
  T,
  block_and_variables,
  by_formula,
  count,
  model_and_variables,
  shapes_of,
  spec_of_block,
  stacked,
  train_step,
)

MODES = [None, 'exact', 'flashlite']


# ----- printed numbers --------------------------------------------------------

LOGITS = {
  'st_block': (
    [-0.139658184, -0.584069821, -0.76396005, -0.594094814, -0.160943877,
     0.321068098, 0.61723379],
    -0.163379765,
  ),
  'intra_as_shipped': (
    [-0.595505218, -0.596320833, -0.299630782, 0.131728892, 0.469183569,
     0.535272998, 0.294198648],
    -0.530509347,
  ),
}  # fmt: skip


@pytest.mark.parametrize('variant', LOGITS)
def test_logits_are_the_printed_ones(x64, variant):
  model = ViViT(
    dim=32,
    depth=2,
    heads=2,
    num_classes=7,
    frames=8,
    image_size=32,
    variant=variant,
    dtype=jnp.float64,
  )
  logits = jax.jit(model.apply)(
    by_formula(shapes_of(model)), formula_video(2, 8, 32)
  )
  first, second = LOGITS[variant]
  np.testing.assert_allclose(logits[0], first, rtol=0, atol=1e-9)
  np.testing.assert_allclose(logits[1, 0], second, rtol=0, atol=1e-9)


@pytest.mark.parametrize('variant', VARIANTS)
def test_parameter_counts(variant):
  plain = shapes_of(ViViT(**SIZES['B'], num_classes=7, variant=variant))
  block = plain['params']['encoder']['block_0']
  per_block = {
    'st_block': 8_272_128,
    # Four matrices of 768 x 768, biases on three of them, and a norm.
    'factorised_self_attention': 7_087_104 + 4 * 768**2 + 3 * 768 + 2 * 768,
  }.get(variant, 7_087_104)
  assert count(block) == per_block
  temporal = plain['params'].get('temporal', {})
  assert count(temporal) == 7_087_104 * len(temporal)
  assert len(temporal) == (4 if variant == 'factorised_encoder' else 0)
  rest = 86_232_583 - 12 * 7_087_104
  assert count(plain) == rest + 12 * per_block + count(temporal)
  tiny = ViViT(**TINY, variant=variant)
  with_mira = shapes_of(tiny.clone(mira=MiraConfig()))
  assert with_mira['params'] == shapes_of(tiny)['params']


# ----- what must hold ---------------------------------------------------------

IDENTITIES = {
  'gain 1': MiraConfig(gain_min=1.0, gain_max=1.0, floor=0.0),
  'flashlite gain 1': MiraConfig(mode='flashlite', gain_min=1.0, gain_max=1.0),
}


def with_mira(module, mira):
  return module.clone(spec=dataclasses.replace(module.spec, mira=mira))


@pytest.mark.parametrize('variant', BLOCKS)
def test_mira_without_effect_is_the_plain_block(x64, variant):
  module, variables, x = block_and_variables(variant)
  want, _ = module.apply(variables, x, 0.0)
  for name, mira in IDENTITIES.items():
    got, _ = with_mira(module, mira).apply(variables, x, 0.0)
    np.testing.assert_allclose(got, want, atol=1e-12, err_msg=name)
  moved, _ = with_mira(module, MiraConfig()).apply(variables, x, 0.0)
  assert np.abs(moved - want).max() > 1e-4


@pytest.mark.parametrize('variant', sorted(set(BLOCKS) - {'intra_as_shipped'}))
def test_permuted_frames_give_permuted_outputs_and_gains(x64, variant):
  module, variables, x = block_and_variables(variant, MiraConfig(), record=True)
  order = np.array([2, 0, 1])

  def permute(tokens):
    return tokens.reshape(B, T, N, C)[:, order].reshape(x.shape)

  want, record = module.apply(variables, x, 0.0)
  got, again = module.apply(variables, permute(x), 0.0)
  np.testing.assert_allclose(got, permute(np.asarray(want)), atol=1e-12)
  np.testing.assert_allclose(again['gain'], record['gain'][:, order], rtol=1e-9)


def test_kept_maps_are_the_attention(x64):
  rng = np.random.default_rng(2)
  q, k, v = rng.normal(size=(3, B, T * N, H, 4))
  spec = spec_of_block('joint', mira=MiraConfig(), record=True)
  within = variants.within_frames(spec, q, k, v)
  outside = variants.outside_groups(spec, q, k, v)
  for attended in (within, outside, variants.over_time(spec, q, k, v)):
    assert attended.after.shape == (B, H, T * N, T * N)
    output = np.einsum('bhqk,bkhd->bqhd', attended.after, v)
    np.testing.assert_allclose(attended.output, output, atol=1e-13)
    np.testing.assert_allclose(attended.before.sum(-1), 1, rtol=1e-12)
  frame, place = np.divmod(np.arange(T * N), N)
  same_place = place[:, None] == place
  assert (attended.after[:, :, ~same_place] == 0).all()
  assert (within.after[:, :, frame[:, None] != frame] == 0).all()
  group = np.arange(T * N) // T
  assert (outside.after[:, :, group[:, None] == group] == 0).all()


# The others differ in what their attention does with q, k and v.
@pytest.mark.parametrize(
  'variant', ['factorised_self_attention', 'factorised_encoder']
)
def test_scan_and_remat_train_as_the_plain_loop_does(x64, variant):
  mira = MiraConfig(statistics='batch_ema')
  model, variables, video = model_and_variables(variant, mira=mira, depth=1)
  (value, updates), gradients = train_step(model, variables, video)
  scanned = model.clone(scan=True, remat='attention')
  stacks = stacked(variables)
  assert jax.tree.map(np.shape, stacks) == jax.tree.map(
    lambda x: x.shape, shapes_of(scanned)
  )
  (other, moved), again = train_step(scanned, stacks, video)
  np.testing.assert_allclose(other, value, rtol=1e-10)
  for a, b in ((again, stacked(gradients)), (moved, stacked(updates))):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-9), a, b)
  # Every parameter has a gradient, and every average has moved.
  for leaf in jax.tree.leaves(gradients):
    assert np.isfinite(leaf).all()
    assert np.abs(leaf).max() > 0
  last = model.depth if variant != 'factorised_encoder' else TEMPORAL_DEPTH
  averages = jax.tree.leaves(updates)
  assert len(averages) == last
  for average in averages:
    np.testing.assert_allclose(average.sum(), 1, rtol=1e-12)
    assert np.abs(average - 1 / T).max() > 1e-6


def test_training_with_an_average_needs_a_place_for_it():
  model = ViViT(**TINY, mira=MiraConfig(statistics='batch_ema'))
  video = jax.ShapeDtypeStruct((B, 6, 8, 8, 3), jnp.float32)
  run = functools.partial(model.apply, train=True)
  with pytest.raises(ValueError, match='trains with mutable'):
    jax.eval_shape(run, shapes_of(model), video)


@pytest.mark.parametrize(
  'variant', ['intra', 'st_block', 'factorised_dot_product']
)
def test_blocks_have_a_training_step(x64, variant):
  module, variables, x = block_and_variables(
    variant, MiraConfig(statistics='batch_ema'), train=True, drop_paths=True
  )

  def loss(params):
    (y, _), updates = module.apply(
      variables | {'params': params},
      x,
      0.25,
      mutable=['mira'],
      rngs={'dropout': jax.random.key(1)},
    )
    return jnp.sin(y).sum(), updates

  gradients, updates = jax.jit(jax.grad(loss, has_aux=True))(
    variables['params']
  )
  for leaf in jax.tree.leaves(gradients):
    assert np.isfinite(leaf).all()
    assert np.abs(leaf).max() > 0
  (average,) = jax.tree.leaves(updates)
  assert np.abs(average - 1 / T).max() > 1e-6


def test_drop_path_rises_through_both_encoders():
  rates = []

  def note(call, args, kwargs, context):
    if isinstance(context.module, Block) and context.method_name == '__call__':
      rates.append(float(args[1]))
    return call(*args, **kwargs)

  model = ViViT(**TINY, variant='factorised_encoder', drop_path=0.5)
  with nn.intercept_methods(note):
    shapes_of(model)
  np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)


def test_the_light_block_loses_single_frames(x64):
  module, variables, _ = block_and_variables(
    'st_block', train=True, drop_paths=True
  )
  x = np.random.default_rng(1).normal(size=(64, T * N, C))
  params = variables['params']
  # Of the four branches only the framewise attention is left.
  for outer, inner in (
    ('attn', 'proj'),
    ('mlp', 'fc2'),
    ('framewise_mlp', 'fc2'),
  ):
    zeros = jax.tree.map(np.zeros_like, params[outer][inner])
    params[outer] = params[outer] | {inner: zeros}
  run = functools.partial(module.apply, rngs={'dropout': jax.random.key(0)})
  y, _ = jax.jit(run)(variables, x, 0.5)
  lost = (y == x).reshape(64, T, N * C)
  assert (lost.all(-1) | ~lost.any(-1)).all()  # whole frames
  share = lost.all(-1).mean(-1)  # of each clip
  assert set(np.round(np.asarray(share) * T)) == {0, 1, 2, 3}


# ----- records and pictures ---------------------------------------------------


@pytest.mark.parametrize('variant', VARIANTS)
def test_records_are_of_clips(x64, variant):
  model, variables, video = model_and_variables(variant, mira=MiraConfig())
  run = jax.jit(functools.partial(model.apply, record=True))
  logits, records = run(variables, video)
  np.testing.assert_allclose(
    logits, jax.jit(model.apply)(variables, video), atol=1e-12
  )
  encoder = variant == 'factorised_encoder'
  assert len(records) == 2 + TEMPORAL_DEPTH * encoder
  for i, record in enumerate(records):
    spatial, temporal = encoder and i < 2, encoder and i >= 2
    length = T if temporal else T * N
    for name in ('before', 'after'):
      assert record[name].shape == (B, length)
      np.testing.assert_allclose(record[name].sum(-1), 1, rtol=1e-9)
    assert ('gain' in record) != spatial
    if 'gain' in record:
      assert record['gain'].shape == (B, T)
      assert ('concentration' in record) != temporal
      assert np.abs(record['after'] - record['before']).max() > 1e-6
    heads = H * (2 if variant == 'factorised_self_attention' else 1)
    maps = (B, T, H, N, N) if spatial else (B, heads, length, length)
    assert record['attention_after'].shape == maps


def test_two_encoders_have_records_of_a_clip(tmp_path):
  weights = save_model(
    tmp_path / 'two.safetensors',
    MiraConfig(),
    variant='factorised_encoder',
    frames=4,
    scan=True,
  )
  clip = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
  records = predictor.load(weights, views=1).records(clip)
  assert records.gain.shape == (4, 2)
  assert records.before.shape == (2, 4, 4)
  for marginal in (records.before, records.after):
    np.testing.assert_allclose(marginal.sum(), 1, rtol=1e-5)
