"""The video transformer: sizes, printed numbers, and what must not matter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.mira import MiraConfig
from mira_jax.models.blocks import Block
from mira_jax.models.encoder import Encoder
from mira_jax.models.layers import (
  gelu,
  resize_positions,
  sinusoid,
)
from mira_jax.models.spec import BlockSpec
from mira_jax.models.vivit import SIZES, ViViT
from oracle import formula_video
from tiny_models import by_formula, count, shapes_of, stacked, train_step

TINY = {
  'dim': 32,
  'depth': 2,
  'heads': 2,
  'num_classes': 7,
  'frames': 8,
  'image_size': 32,
}


def largest_difference(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  return max(
    float(np.abs(np.asarray(x) - np.asarray(y)).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


# Sizes.


@pytest.mark.parametrize(
  ('size', 'seven'),
  [
    ('S', 21_882_631),
    ('B', 86_232_583),
    ('L', 303_867_911),
    ('H', 631_616_007),
  ],
)
def test_parameter_counts_and_mira_adds_none(size, seven):
  plain = shapes_of(ViViT(**SIZES[size], num_classes=7))
  mira = shapes_of(ViViT(**SIZES[size], num_classes=7, mira=MiraConfig()))
  assert plain.keys() == {'params'}
  assert count(plain) == seven
  assert mira['params'] == plain['params']
  depth = SIZES[size]['depth']
  assert [x.shape for x in jax.tree.leaves(mira['mira'])] == [(8,)] * depth


def test_variables_of_the_plain_model_serve_mira():
  plain, mira = ViViT(**TINY), ViViT(**TINY, mira=MiraConfig())
  variables = by_formula(shapes_of(plain), dtype=np.float32)
  video = jnp.asarray(formula_video(1, 8, 32), jnp.float32)
  logits = jax.jit(mira.apply)(variables, video)
  with_buffers = jax.jit(mira.apply)(
    by_formula(shapes_of(mira), dtype=np.float32), video
  )
  np.testing.assert_array_equal(logits, with_buffers)


# Positions.


@pytest.mark.parametrize(
  ('dim', 'total'),
  [(768, 245744.989567), (384, 122425.857873), (1280, 410130.259973)],
)
def test_position_table_sums(dim, total):
  table = sinusoid(1568, dim)
  assert table.dtype == np.float32
  np.testing.assert_allclose(
    table.astype(np.float64).sum(), total, rtol=0, atol=6e-7
  )


def test_gelu_and_its_gradient_are_those_of_the_normal_distribution(x64):
  del x64
  x = jnp.linspace(-9, 9, 400)
  own, reference = (
    jax.vmap(jax.grad(f))(x)
    for f in (gelu, functools.partial(jax.nn.gelu, approximate=False))
  )
  np.testing.assert_allclose(own, reference, rtol=0, atol=1e-15)
  expected = jax.nn.gelu(x, approximate=False)
  np.testing.assert_allclose(gelu(x), expected, rtol=0, atol=2e-15)


def test_resizing_positions_keeps_what_it_must():
  table = jnp.asarray(sinusoid(4 * 2 * 3, 5))
  assert resize_positions(table, (4, 2, 3), (4, 2, 3)) is table
  assert resize_positions(table, (4, 2, 3), (8, 5, 6)).shape == (240, 5)
  constant = resize_positions(jnp.ones((24, 5)), (4, 2, 3), (8, 5, 6))
  np.testing.assert_allclose(constant, 1, rtol=1e-5)


# Printed numbers.

LOGITS = [
  (
    None,
    None,
    [-0.595466621, -0.596342918, -0.2997024, 0.131643895, 0.469128101,
     0.535275061, 0.2942572],
    -0.530463435,
  ),
  (
    'exact',
    None,
    [-0.595587806, -0.598187634, -0.302339396, 0.129545828, 0.468628111,
     0.536625552, 0.296776417],
    -0.530367217,
  ),
  (
    'flashlite',
    None,
    [-0.595917641, -0.597033565, -0.30028402, 0.131464915, 0.469442114,
     0.535923546, 0.29491279],
    -0.530631263,
  ),
  (
    'flashlite',
    1,
    [-0.595712784, -0.596680854, -0.299961512, 0.131594413, 0.469313228,
     0.535601341, 0.294559921],
    -0.530496831,
  ),
]  # fmt: skip


@pytest.mark.parametrize(('mode', 'last', 'first', 'second'), LOGITS)
def test_logits_are_the_printed_ones(x64, mode, last, first, second):
  model = ViViT(
    **TINY,
    mira=mode and MiraConfig(mode=mode),
    mira_last_blocks=last,
    dtype=jnp.float64,
  )
  logits = jax.jit(model.apply)(
    by_formula(shapes_of(model)), formula_video(2, 8, 32)
  )
  assert logits.dtype == jnp.float64
  np.testing.assert_allclose(logits[0], first, rtol=0, atol=1e-8)
  np.testing.assert_allclose(logits[1, 0], second, rtol=0, atol=1e-8)


# What must not matter.


TRAINED = {**TINY, 'mira': MiraConfig(statistics='batch_ema')}


@pytest.mark.parametrize(
  ('scan', 'policy'),
  [(False, 'attention'), (True, 'linear')],
)
def test_remat_changes_no_number_and_moves_the_average_once(x64, scan, policy):
  plain = ViViT(**TRAINED, scan=scan, drop_path=0.5, dtype=jnp.float64)
  remat = plain.clone(remat=policy)
  variables = by_formula(
    shapes_of(ViViT(**TRAINED))
  )  # in float64, by its default
  if scan:
    variables = stacked(variables)
  video, key = formula_video(2, 8, 32), jax.random.key(3)
  (value, updates), gradients = train_step(plain, variables, video, key)
  (other, again), recomputed = train_step(remat, variables, video, key)
  np.testing.assert_allclose(other, value, rtol=1e-12)
  assert largest_difference(recomputed, gradients) < 1e-11
  assert largest_difference(again, updates) < 1e-15
  assert largest_difference(again['mira'], variables['mira']) > 1e-6


def test_remat_computes_no_attention_twice():
  tokens, mira = jnp.ones((1, 16, 8)), MiraConfig()

  def exponentials(remat: str | None) -> int:
    spec = BlockSpec(heads=2, num_frames=4, mira=mira, attention='streaming')
    model = Encoder(spec, depth=1, remat=remat, scan=True)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)

    def loss(params):
      return model.apply(variables | {'params': params}, tokens)[0].sum()

    # Only softmaxes have any.
    jaxpr = jax.make_jaxpr(jax.grad(loss))(variables['params'])
    return str(jaxpr).count('= exp ')

  least = exponentials(None)
  assert exponentials('attention') == exponentials('linear') == least > 0
  assert exponentials('full') > least


# Options.


def test_layer_scale_zero_silences_the_blocks():
  model = ViViT(**TINY, layer_scale=0.0)
  video = jnp.asarray(formula_video(1, 8, 32), jnp.float32)
  variables = jax.jit(model.init)(jax.random.key(0), video)
  run = jax.jit(functools.partial(model.apply, record=True))
  _, records = run(variables, video)
  np.testing.assert_array_equal(records[0]['output'], records[1]['output'])


def test_drop_path_loses_whole_branches_and_keeps_the_mean():
  block = Block(BlockSpec(heads=2, num_frames=2, train=True, drop_paths=True))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 8)), jnp.float32)
  clips = jnp.broadcast_to(x, (4096, 6, 8))
  params = jax.jit(block.init)(jax.random.key(0), x, 0.0)['params']
  # Only the branch of the MLP is left: the other projects to zero.
  params['attn']['proj'] = jax.tree.map(jnp.zeros_like, params['attn']['proj'])
  run = jax.jit(
    lambda rate, key: (
      block.apply({'params': params}, clips, rate, rngs={'dropout': key})[0]
      - clips
    )
  )
  whole = run(0.0, jax.random.key(1))
  dropped = run(0.25, jax.random.key(1))
  lost = np.asarray(jnp.all(dropped == 0, axis=(1, 2)))
  # 4096 draws of 0.25 have a standard deviation of 0.0068.
  assert abs(lost.mean() - 0.25) < 0.035
  np.testing.assert_allclose(
    dropped[~lost], whole[~lost] / 0.75, rtol=1e-3, atol=1e-5
  )


def test_drop_path_follows_the_key_and_is_off_in_evaluation():
  model = ViViT(**TINY, drop_path=0.9, head_scale=50.0)
  video = jnp.asarray(formula_video(8, 8, 32), jnp.float32)
  variables = jax.jit(model.init)(jax.random.key(0), video)

  @jax.jit
  def train(key):
    return model.apply(variables, video, train=True, rngs={'dropout': key})

  one, same, other = (train(jax.random.key(i)) for i in (1, 1, 2))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 1e-3
  np.testing.assert_array_equal(
    jax.jit(model.apply)(variables, video),
    jax.jit(model.clone(drop_path=0.0).apply)(variables, video),
  )


def test_bfloat16_stays_near_float32():
  single = ViViT(**TINY, mira=MiraConfig())
  half = single.clone(dtype=jnp.bfloat16)
  variables = by_formula(shapes_of(single), dtype=np.float32)
  video = jnp.asarray(formula_video(2, 8, 32), jnp.float32)
  want, got = (jax.jit(x.apply)(variables, video) for x in (single, half))
  assert got.dtype == jnp.float32
  dtypes = {x.dtype for x in jax.tree.leaves(shapes_of(half))}
  assert dtypes == {jnp.dtype('float32')}
  assert 0 < np.abs(got - want).max() < 0.03 * np.abs(want).max()


# Records.


def test_records_have_their_names_and_shapes():
  model = ViViT(**TINY, mira=MiraConfig(mode='flashlite'), scan=True)
  video = jnp.asarray(formula_video(3, 8, 32), jnp.float32)
  variables = jax.jit(model.init)(jax.random.key(0), video)
  run = jax.jit(functools.partial(model.apply, record=True))
  logits, records = run(variables, video)
  np.testing.assert_allclose(
    logits, jax.jit(model.apply)(variables, video), atol=1e-6
  )
  frames = ('gain', 'prior', 'score', 'confidence', 'concentration')
  assert len(records) == 2
  for record in records:
    assert {name: x.shape for name, x in record.items()} == {
      'attention_before': (3, 2, 16, 16),
      'attention_after': (3, 2, 16, 16),
      'before': (3, 16),
      'after': (3, 16),
      'heads_before': (3, 2, 16),
      'heads_after': (3, 2, 16),
      'output': (3, 16, 32),
    } | dict.fromkeys(frames, (3, 4))
    np.testing.assert_allclose(record['after'].sum(-1), 1, rtol=1e-5)
    heads = record['heads_after'].mean(1)
    np.testing.assert_allclose(heads, record['after'], rtol=1e-5)
    assert np.abs(record['after'] - record['before']).max() > 1e-5


def test_records_lack_gains_where_mira_is_not():
  model = ViViT(**TINY, mira=MiraConfig(), mira_last_blocks=1)
  variables = shapes_of(model)
  assert variables['mira']['encoder'].keys() == {'block_1'}
  _, (first, second) = jax.eval_shape(
    functools.partial(model.apply, record=True),
    variables,
    jnp.zeros((1, 8, 32, 32, 3)),
  )
  assert 'gain' not in first
  assert second['gain'].shape == (1, 4)


# Errors.


@pytest.mark.parametrize(
  ('shape', 'words'),
  [
    ((1, 8, 32, 32, 1), r'\(1, 8, 32, 32, 1\)'),
    ((1, 8, 30, 32, 3), r'\(8, 30, 32\).*\(2, 16, 16\)'),
    (
      (1, 8, 64, 64, 3),
      r'\(4, 4, 4\).*\(4, 2, 2\); resample it',
    ),
  ],
)
def test_errors_name_the_shape_of_the_video(shape, words):
  model = ViViT(**TINY)
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
