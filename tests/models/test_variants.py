"""The baselines: printed numbers, independent oracles, and what must hold."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from test_vivit import by_formula, count, shapes_of, stack_blocks

from mira_jax import config
from mira_jax.cli import predict
from mira_jax.devices import sharding
from mira_jax.errors import MiraInputError
from mira_jax.inference import engine
from mira_jax.mira import MiraConfig
from mira_jax.models import variants
from mira_jax.models.blocks import BLOCKS, Block, BlockSpec
from mira_jax.models.layers import sinusoid
from mira_jax.models.options import VARIANTS
from mira_jax.models.vivit import SIZES, TEMPORAL_DEPTH, ViViT
from mira_jax.train import build, optim
from mira_jax.weights.weights_file import flatten
from oracle import (
  Hyper,
  attention,
  exact_gain,
  flash_gain,
  formula_video,
  inverse_entropy,
  softmax,
)

TINY = {
  'dim': 8,
  'depth': 2,
  'heads': 2,
  'num_classes': 3,
  'frames': 6,
  'image_size': 8,
  'patch': 4,
  'head_scale': 50.0,
}
B, T, N, C, H = 2, 3, 4, 8, 2  # of the blocks below; TINY has the same
FACTORISED = ('factorised_self_attention', 'factorised_dot_product')
MODES = [None, 'exact', 'flashlite']


def draw(template, seed=0, scale=0.4):
  """Normal arrays of these shapes, in float64; the buffers are uniform."""
  rng = np.random.default_rng(seed)
  drawn = jax.tree.map(lambda x: scale * rng.normal(size=x.shape), template)
  if 'mira' in template:
    drawn['mira'] = jax.tree.map(
      lambda x: np.full(x.shape, 1 / x.shape[-1]), template['mira']
    )
  return drawn


def spec_of_block(variant, **fields):
  return BlockSpec(
    heads=H, num_frames=T, variant=variant, dtype=jnp.float64, **fields
  )


def block_and_variables(variant, mira=None, **fields):
  """A block of float64, its drawn variables and an input [B, T * N, C]."""
  block = BLOCKS[variant](spec_of_block(variant, mira=mira, **fields))
  x = np.random.default_rng(1).normal(size=(B, T * N, C))
  init = functools.partial(block.init, jax.random.key(0))
  return block, draw(jax.eval_shape(init, x, 0.0)), x


def model_and_variables(variant, seed=0, **fields):
  """A tiny float64 model with drawn variables, and two clips."""
  model = ViViT(**TINY | fields, variant=variant, dtype=jnp.float64)
  video = np.random.default_rng(7).normal(size=(B, 6, 8, 8, 3))
  return model, draw(shapes_of(model), seed), video


# ----- printed numbers --------------------------------------------------------

LOGITS = {
  'st_block': (
    [
      -0.139658184,
      -0.584069821,
      -0.76396005,
      -0.594094814,
      -0.160943877,
      0.321068098,
      0.61723379,
    ],
    -0.163379765,
  ),
  'intra_as_shipped': (
    [
      -0.595505218,
      -0.596320833,
      -0.299630782,
      0.131728892,
      0.469183569,
      0.535272998,
      0.294198648,
    ],
    -0.530509347,
  ),
}


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
  logits = jax.jit(model.apply)(by_formula(model), formula_video(2, 8, 32))
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


@pytest.mark.parametrize(
  ('variant', 'millions'),
  [
    ('joint', 88.9),
    ('factorised_encoder', 115.1),
    ('factorised_self_attention', 117.3),
    ('factorised_dot_product', 88.9),
  ],
)
def test_sizes_are_those_of_the_vivit_paper(variant, millions):
  # For Kinetics 400, in its comparison of models 1 to 4; it has key biases
  # (12 thousand parameters), and we do not.
  model = ViViT(
    **SIZES['B'],
    num_classes=400,
    frames=32,
    positions='learned',
    variant=variant,
  )
  assert abs(count(shapes_of(model)) / 1e6 - millions) < 0.06


# ----- an oracle in NumPy -----------------------------------------------------


def norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  return scaled * p['scale'] + p['bias']


def mlp(x, p):
  x = x @ p['fc1']['kernel'] + p['fc1']['bias']
  x = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
  return x @ p['fc2']['kernel'] + p['fc2']['bias']


def attend(x, p, run):
  """Projections around `run`, which maps q, k, v [B, H, L, D] to the same."""
  q, k, v = (
    np.einsum('blc,chd->bhld', x, p['qkv']['kernel'][:, i]) for i in range(3)
  )
  y = run(q + p['q_bias'][:, None], k, v + p['v_bias'][:, None])
  y = np.einsum('bhld,hdc->blc', y, p['proj']['kernel'])
  return y + p['proj']['bias']


def block(x, p, run):
  x = x + attend(norm(x, p['norm1']), p['attn'], run)
  return x + mlp(norm(x, p['norm2']), p['mlp'])


def plain(q, k, v):
  return softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v


def frame_by_frame(q, k, v):
  """Every frame alone."""
  y = np.zeros_like(v)
  for t in range(T):
    own = slice(t * N, (t + 1) * N)
    y[:, :, own] = plain(q[:, :, own], k[:, :, own], v[:, :, own])
  return y


class OverTime:
  """Every place alone, and one gain per clip and frame."""

  def __init__(self, mode, statistics='instance', train=False):
    self.mode, self.statistics, self.train = mode, statistics, train
    self.average = np.full(T, 1 / T)

  def __call__(self, q, k, v):
    heads, depth = q.shape[1], q.shape[-1]
    logits = np.zeros((B, N, heads, T, T))
    for n in range(N):
      at = slice(n, None, N)
      logits[:, n] = q[:, :, at] @ k[:, :, at].swapaxes(-1, -2)
    logits /= math.sqrt(depth)
    after = softmax(logits)
    if self.mode:
      mass = (k**2).mean((1, 3)).reshape(B, T, N)
      if self.mode == 'exact':  # over heads and queries; [B, T, N]
        mass = after.mean((2, 3)).swapaxes(1, 2)
      self.gain = self._gain(mass)
      gain = self.gain[:, None, None, None, :]
      if self.mode == 'exact':
        moved = 0.999 * after * gain + 0.001 / T
        moved /= moved.sum(-1, keepdims=True)
        after = (after + moved) / 2
      else:
        after = softmax(logits + np.log(gain))
    y = np.zeros_like(v)
    for n in range(N):
      y[:, :, n::N] = after[:, n] @ v[:, :, n::N]
    return y

  def _gain(self, mass):
    own = mass.sum(2) / mass.sum((1, 2))[:, None]
    c, h = own, inverse_entropy(mass)
    if self.statistics != 'instance':
      c, h = c.mean(0, keepdims=True), h.mean(0, keepdims=True)
    if self.statistics == 'batch_ema' and self.train:
      self.average = 0.9 * self.average + 0.1 * c[0]
      c = self.average[None]
    estimate = exact_gain if self.mode == 'exact' else flash_gain
    return estimate(own, c, h, Hyper())[2]


def joint(q, k, v, mode):
  if mode is None:
    return plain(q, k, v)
  return attention(
    q,
    k,
    v,
    frames=T,
    mode={'exact': 'exact', 'flashlite': 'flash'}[mode],
    statistics='instance',
    train=False,
    average=None,
    hyper=Hyper(),
  ).y


def halves(first, second):
  """Two attentions on one half of the heads each."""

  def run(q, k, v):
    a, b = zip(*(np.split(x, 2, axis=1) for x in (q, k, v)), strict=True)
    return np.concatenate([first(*a), second(*b)], axis=1)

  return run


def block_by_hand(variant, x, p, over_time):
  if variant == 'factorised_dot_product':
    return block(x, p, halves(frame_by_frame, over_time))
  x = x + attend(norm(x, p['norm1']), p['attn'], frame_by_frame)
  x = x + attend(norm(x, p['time_norm']), p['time_attn'], over_time)
  return x + mlp(norm(x, p['norm2']), p['mlp'])


CASES = [(None, 'instance', False)] + [
  (mode, statistics, train)
  for mode in ('exact', 'flashlite')
  for statistics, train in (
    ('instance', True),
    ('batch', False),
    ('batch_ema', True),
  )
]


@pytest.mark.parametrize('variant', FACTORISED)
@pytest.mark.parametrize(('mode', 'statistics', 'train'), CASES)
def test_factorised_blocks_by_hand(x64, variant, mode, statistics, train):
  mira = mode and MiraConfig(mode=mode, statistics=statistics)
  module, variables, x = block_and_variables(
    variant, mira, train=train, record=True
  )
  (got, record), updates = module.apply(variables, x, 0.0, mutable=['mira'])
  over_time = OverTime(mode, statistics, train)
  want = block_by_hand(variant, x, variables['params'], over_time)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
  if mode:
    gain = np.broadcast_to(record['gain'], (B, T))
    np.testing.assert_allclose(gain, over_time.gain, rtol=1e-9)
    assert np.ptp(gain, axis=1).min() > 0.01
    (average,) = jax.tree.leaves(updates['mira'])
    np.testing.assert_allclose(average, over_time.average, rtol=1e-12)
    moved = statistics == 'batch_ema'
    assert (np.abs(average - 1 / T).max() > 1e-5) == moved


@pytest.mark.parametrize('mode', MODES)
def test_intra_block_by_hand(x64, mode):
  mira = mode and MiraConfig(mode=mode)
  module, variables, x = block_and_variables('intra', mira)
  got, _ = module.apply(variables, x, 0.0)

  def run(q, k, v):
    return (joint(q, k, v, mode) + frame_by_frame(q, k, v)) / 2

  want = block(x, variables['params'], run)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize('mode', MODES)
def test_factorised_encoder_by_hand(x64, mode):
  model, variables, video = model_and_variables(
    'factorised_encoder', mira=mode and MiraConfig(mode=mode)
  )
  p = variables['params']
  x = video.reshape(B, T, 2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7)
  kernel = p['embed']['kernel'].reshape(-1, C)
  x = x.reshape(B * T, N, -1) @ kernel + p['embed']['bias'] + sinusoid(N, C)
  for i in range(2):
    x = block(x, p['encoder'][f'block_{i}'], plain)
  x = x.mean(1).reshape(B, T, C) + sinusoid(T, C)
  for i in range(4):
    x = block(x, p['temporal'][f'block_{i}'], one_token_per_frame(mode))
  want = norm(x.mean(1), p['norm']) @ p['head']['kernel'] + p['head']['bias']
  got = jax.jit(model.apply)(variables, video)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


def one_token_per_frame(mode):
  """Joint attention of T tokens; there is no concentration then."""

  def run(q, k, v):
    if mode is None:
      return plain(q, k, v)
    logits = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    mass = (k**2).mean((1, 3))
    if mode == 'exact':
      mass = softmax(logits).mean((1, 2))
    c = mass / mass.sum(1, keepdims=True)
    if mode == 'flashlite':
      gain = flash_gain(c, c, 0, Hyper())[2][:, None, None]
      return softmax(logits + np.log(gain)) @ v
    before = softmax(logits)
    moved = 0.999 * before * exact_gain(c, c, 0, Hyper())[2][:, None, None]
    moved += 0.001 / T
    moved /= moved.sum(-1, keepdims=True)
    return (before + moved) / 2 @ v

  return run


@pytest.mark.parametrize('width', [16, 400])
def test_framewise_part_of_the_st_block_has_its_own_sizes(width):
  spec = BlockSpec(heads=2, num_frames=2, variant='st_block')
  module = BLOCKS['st_block'](spec)
  tokens = jax.ShapeDtypeStruct((1, 6, width), jnp.float32)
  params = jax.eval_shape(module.init, jax.random.key(0), tokens, 0.0)['params']
  head, hidden = {16: (32, 64), 400: (50, 100)}[width]
  assert params['framewise_attn']['q_bias'].shape == (3, head)
  assert params['framewise_attn']['proj']['kernel'].shape == (3, head, width)
  assert params['framewise_mlp']['fc1']['kernel'].shape == (width, hidden)


# ----- what must hold ---------------------------------------------------------

IDENTITIES = {
  'residual_mix 0': MiraConfig(residual_mix=0.0),
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


@pytest.mark.parametrize('mode', ['exact', 'flashlite'])
@pytest.mark.parametrize('variant', sorted(set(BLOCKS) - {'intra_as_shipped'}))
def test_permuted_frames_give_permuted_outputs_and_gains(x64, variant, mode):
  module, variables, x = block_and_variables(
    variant, MiraConfig(mode=mode), record=True
  )
  order = np.array([2, 0, 1])

  def permute(tokens):
    return tokens.reshape(B, T, N, C)[:, order].reshape(x.shape)

  want, record = module.apply(variables, x, 0.0)
  got, again = module.apply(variables, permute(x), 0.0)
  np.testing.assert_allclose(got, permute(np.asarray(want)), atol=1e-12)
  np.testing.assert_allclose(again['gain'], record['gain'][:, order], rtol=1e-9)


def test_frames_are_no_groups_as_shipped(x64):
  # Runs of T tokens are no frames: it matters which frame comes first.
  module, variables, x = block_and_variables('intra_as_shipped')
  flipped = x.reshape(B, T, N, C)[:, ::-1].reshape(x.shape)
  want, _ = module.apply(variables, x, 0.0)
  got, _ = module.apply(variables, flipped, 0.0)
  back = np.asarray(got).reshape(B, T, N, C)[:, ::-1].reshape(x.shape)
  assert np.abs(back - want).max() > 1e-4


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


def step(model, variables, video, key=None):
  """Loss, moved buffers and gradients of one training step."""

  def loss(params):
    logits, updates = model.apply(
      variables | {'params': params},
      video,
      train=True,
      mutable=['mira'],
      rngs={} if key is None else {'dropout': key},
    )
    return jnp.sin(3 * logits).sum(), updates

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])


# The others differ in what their attention does with q, k and v.
@pytest.mark.parametrize(
  'variant', ['st_block', 'factorised_self_attention', 'factorised_encoder']
)
def test_scan_and_remat_train_as_the_plain_loop_does(x64, variant):
  mira = MiraConfig(statistics='batch_ema')
  model, variables, video = model_and_variables(variant, mira=mira, depth=1)
  (value, updates), gradients = step(model, variables, video)
  scanned = model.clone(scan=True, remat='attention')
  stacked = {name: stack_all(tree) for name, tree in variables.items()}
  assert jax.tree.map(np.shape, stacked) == jax.tree.map(
    lambda x: x.shape, shapes_of(scanned)
  )
  (other, moved), again = step(scanned, stacked, video)
  np.testing.assert_allclose(other, value, rtol=1e-10)
  for a, b in ((again, stack_all(gradients)), (moved, stack_all(updates))):
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


def stack_all(tree):
  """Blocks of every encoder stacked, as scan=True has them."""
  if 'mira' in tree:
    return {'mira': stack_all(tree['mira'])}
  stacked = dict(tree)
  for name in {'encoder', 'temporal'} & set(tree):
    renamed = {'encoder': tree[name]}
    stacked[name] = stack_blocks(renamed)['encoder']
  return stacked


@pytest.mark.parametrize('mode', [None, 'exact'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_trains(variant, mode):
  mira = mode and MiraConfig(mode=mode, statistics='batch_ema')
  small = {'depth': 1, 'scan': True, 'drop_path': 0.5}
  model = ViViT(**TINY | small, variant=variant, mira=mira)
  run = functools.partial(
    model.apply,
    train=True,
    mutable=['mira'],
    rngs={'dropout': jax.random.key(0)},
  )
  video = jax.ShapeDtypeStruct((B, 6, 8, 8, 3), jnp.float32)
  variables = shapes_of(model)
  logits, updates = jax.eval_shape(run, variables, video)
  assert logits.shape == (B, 3)
  shapes = [x.shape for x in jax.tree.leaves(updates)]
  depth = TEMPORAL_DEPTH if variant == 'factorised_encoder' else 1
  assert shapes == ([(depth, T)] if mode else [])
  if mode:
    frozen = functools.partial(model.clone(drop_path=0.0).apply, train=True)
    with pytest.raises(ValueError, match='trains with mutable'):
      jax.eval_shape(frozen, variables, video)


@pytest.mark.parametrize('variant', BLOCKS)
def test_every_block_has_a_training_step(x64, variant):
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
  y, _ = module.apply(variables, x, 0.5, rngs={'dropout': jax.random.key(0)})
  lost = (y == x).reshape(64, T, N * C)
  assert (lost.all(-1) | ~lost.any(-1)).all()  # whole frames
  share = lost.all(-1).mean(-1)  # of each clip
  assert set(np.round(np.asarray(share) * T)) == {0, 1, 2, 3}


# ----- records and pictures ---------------------------------------------------


@pytest.mark.parametrize('mode', [None, 'exact'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_records_are_of_clips(variant, mode):
  mira = mode and MiraConfig(mode=mode)
  model = ViViT(**TINY, variant=variant, mira=mira)
  run = functools.partial(model.apply, record=True)
  _, records = jax.eval_shape(
    run, shapes_of(model), jax.ShapeDtypeStruct((B, 6, 8, 8, 3), jnp.float32)
  )
  encoder = variant == 'factorised_encoder'
  assert len(records) == 2 + TEMPORAL_DEPTH * encoder
  for i, record in enumerate(records):
    spatial, temporal = encoder and i < 2, encoder and i >= 2
    length = T if temporal else T * N
    assert record['before'].shape == record['after'].shape == (B, length)
    assert ('gain' in record) == (mode is not None and not spatial)
    if 'gain' in record:
      assert record['gain'].shape == (B, T)
      assert ('concentration' in record) != temporal
    heads = H * (2 if variant == 'factorised_self_attention' else 1)
    maps = (B, T, H, N, N) if spatial else (B, heads, length, length)
    assert record['attention_after'].shape == maps


@pytest.mark.parametrize('variant', sorted(set(VARIANTS) - {'joint'}))
def test_marginals_on_record_are_shares(x64, variant):
  model, variables, video = model_and_variables(variant, mira=MiraConfig())
  run = jax.jit(functools.partial(model.apply, record=True))
  logits, records = run(variables, video)
  np.testing.assert_allclose(
    logits, jax.jit(model.apply)(variables, video), atol=1e-12
  )
  for record in records:
    for name in ('before', 'after'):
      np.testing.assert_allclose(record[name].sum(-1), 1, rtol=1e-9)
    if 'gain' in record:
      assert np.abs(record['after'] - record['before']).max() > 1e-6


def test_two_encoders_can_be_drawn(tmp_path):
  model = ViViT(
    **TINY, variant='factorised_encoder', scan=True, mira=MiraConfig()
  )
  views = np.random.default_rng(0).integers(0, 256, (1, 6, 8, 8, 3), np.uint8)
  variables = jax.jit(model.init)(
    jax.random.key(0), jnp.zeros(views.shape, jnp.float32)
  )
  runner = engine.Engine(model, variables, batch_size=1)
  path = tmp_path / 'clip.png'
  predict._draw(
    runner,
    str(path),
    views,
    np.arange(6)[None],
    np.full(3, 1 / 3),
    ['a', 'b', 'c'],
    'clip',
  )
  assert path.read_bytes().startswith(b'\x89PNG')
  before = np.load(path.with_suffix('.npz'))['before']
  assert before.shape == (T, 2, 2)
  np.testing.assert_allclose(before.sum(), 1, rtol=1e-5)


# ----- options ----------------------------------------------------------------


def test_the_factorised_encoder_reads_class_tokens(x64):
  model, variables, video = model_and_variables(
    'factorised_encoder', pool='cls', positions='learned', mira=MiraConfig()
  )
  params = variables['params']
  assert params['cls'].shape == params['cls_time'].shape == (1, 1, C)
  assert params['positions'].shape == (N, C)
  assert params['positions_time'].shape == (T, C)
  run = jax.jit(functools.partial(model.apply, record=True))
  logits, records = run(variables, video)
  assert records[0]['output'].shape == (B, T, 1 + N, C)
  assert records[-1]['output'].shape == (B, 1 + T, C)
  x = norm(np.asarray(records[-1]['output'][:, 0]), params['norm'])
  want = x @ params['head']['kernel'] + params['head']['bias']
  np.testing.assert_allclose(logits, want, atol=1e-12)
  for name in ('cls', 'cls_time', 'positions', 'positions_time'):
    changed = {'params': params | {name: params[name] + np.arange(C)}}
    assert np.abs(run(changed, video)[0] - logits).max() > 1e-4, name


@pytest.mark.parametrize('variant', ['intra', 'factorised_encoder'])
def test_other_sizes_are_interpolated(variant):
  model = ViViT(**TINY, variant=variant, positions='learned', mira=MiraConfig())
  variables = shapes_of(model)
  larger = jax.ShapeDtypeStruct((1, 8, 12, 16, 3), jnp.float32)
  run = functools.partial(model.apply, record=True, interpolate_positions=True)
  logits, records = jax.eval_shape(run, variables, larger)
  assert logits.shape == (1, 3)
  assert records[-1]['gain'].shape == (1, 4)
  with pytest.raises(ValueError, match='interpolate_positions=True'):
    jax.eval_shape(model.apply, variables, larger)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'variant': 'axial'}, 'axial.*joint'),
    ({'variant': 'intra', 'pool': 'cls'}, "pool: 'cls'.*intra.*use 'mean'"),
    (
      {'variant': 'factorised_dot_product', 'heads': 1},
      'heads: 1 must be even',
    ),
    ({'heads': 3}, 'dim: 8 must be a multiple of heads 3, such as 6'),
    ({'image_size': 9}, 'image_size: 9 must be a multiple of patch 4'),
    (
      {'variant': 'intra_as_shipped', 'image_size': 4},
      '3 tokens are one group of 3',
    ),
    (
      {
        'variant': 'factorised_encoder',
        'mira': MiraConfig(),
        'mira_last_blocks': 1,
        'scan': True,
      },
      'last 1 of 4',
    ),
  ],
)
def test_what_cannot_be_is_an_error(fields, words):
  with pytest.raises(ValueError, match=words):
    shapes_of(ViViT(**TINY | fields))


def test_the_configuration_has_the_same_rules():
  cfg = config.Config()
  for variant in VARIANTS:
    cfg.model.variant = variant
    config.validate(cfg)
  for fields, words in (
    ({'variant': 'factorised_dot_product', 'heads': 3}, r'heads.*must be even'),
    ({'variant': 'intra', 'pool': 'cls'}, r"model\.pool.*use 'mean'"),
    ({'variant': 'axial'}, r'model\.variant.*axial'),
  ):
    cfg = config.Config(model=config.ModelConfig(**fields))
    with pytest.raises(MiraInputError, match=words):
      config.validate(cfg)


@pytest.mark.parametrize(
  ('variant', 'tokens'),
  [
    ('intra', 1568),
    ('factorised_dot_product', 196),
  ],
)
def test_the_attention_that_is_announced_is_the_largest(variant, tokens):
  model = ViViT(**SIZES['B'], num_classes=2, variant=variant, mira=MiraConfig())
  line = build.attention_choice(model, (8, 196), 4, sharding.make_mesh())
  name = 'streaming' if tokens == 1568 else 'reference'
  assert line.startswith(f'attention: {name}')


# ----- optimisers -------------------------------------------------------------


def params_of(variant, scan):
  options = {'positions': 'learned', 'layer_scale': 0.1, 'scan': scan}
  if variant == 'factorised_encoder':
    options['pool'] = 'cls'
  return shapes_of(ViViT(**TINY, variant=variant, **options))['params']


@pytest.mark.parametrize('scan', [False, True])
def test_temporal_layers_come_after_spatial_ones(scan):
  params = params_of('factorised_encoder', scan)
  scales = flatten(optim.layer_scales(params, 0.5))
  # Seven layers follow the inputs: two spatial, four temporal, and the head.
  want = {
    'embed': 0,
    'positions': 0,
    'cls': 0,
    'encoder/block_0': 1,
    'encoder/block_1': 2,
    'positions_time': 2,
    'cls_time': 2,
    'temporal/block_0': 3,
    'temporal/block_1': 4,
    'temporal/block_2': 5,
    'temporal/block_3': 6,
    'norm': 7,
    'head': 7,
    'encoder/blocks': np.array([1, 2]),
    'temporal/blocks': np.array([3, 4, 5, 6]),
  }
  for name, leaf in flatten(params).items():
    parts = name.split('/')
    inside = parts[0] in ('encoder', 'temporal')
    layer = want['/'.join(parts[: 1 + inside])]
    np.testing.assert_array_equal(
      np.squeeze(scales[name]), 0.5 ** (7.0 - layer), err_msg=name
    )
    if 'blocks' in parts:
      assert scales[name].ndim == leaf.ndim


@pytest.mark.parametrize('variant', ['factorised_encoder', 'st_block'])
def test_muon_steps_on_the_largest_trees(variant):
  params = draw({'params': params_of(variant, scan=True)})['params']
  params = jax.tree.map(lambda x: x.astype(np.float32), params)
  optimizer = optim.muon(lambda step: 0.1, layer_decay=0.5)

  @jax.jit
  def update(grads):
    return optimizer.update(grads, optimizer.init(grads), grads)[0]

  for leaf in jax.tree.leaves(update(params)):
    assert np.isfinite(leaf).all()
    assert np.abs(leaf).max() > 0
