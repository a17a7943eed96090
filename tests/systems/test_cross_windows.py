"""Window cross-attention: by hand, at the identity, and with every guide."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.systems import cross_windows
from mira_jax.systems.cross_windows import CrossWindows, CrossWindowsConfig

RNG = np.random.default_rng(0)
GRID = (3, 5, 4)  # no multiple of the window, nor of 2
B, D, HEADS, L = 2, 8, 2, 60
SMALL = CrossWindowsConfig(window=2, layer_scale=0.1)
TOKENS = RNG.normal(size=(B, L, D)).astype(np.float32)
POINTS = RNG.uniform(size=(B, 3, 6, 2)).astype(np.float32)


def model(config=SMALL, **options):
  # Kernels as large as tokens, or nothing would be seen of what they do.
  init = jax.nn.initializers.normal(0.5)
  return CrossWindows(config, HEADS, GRID, kernel_init=init, **options)


@functools.cache
def initialised(config=SMALL, **options):
  """A model and its parameters, with biases and position biases drawn."""
  block = model(config, **options)
  params = jax.jit(block.init)(jax.random.key(0), TOKENS, POINTS)
  drawn = np.random.default_rng(1)
  return block, jax.tree.map_with_path(
    lambda path, x: (
      drawn.normal(size=x.shape).astype(x.dtype)
      if 'bias' in jax.tree_util.keystr(path)
      else x
    ),
    params,
  )


def attention_by_hand(query, key, value, bias, window):
  """Every query and head in a loop: [H, W, D] each, in float64."""
  height, width, dim = query.shape
  wh, ww = window
  heads = bias.shape[1]
  size = dim // heads
  output = np.zeros((height, width, dim))
  for i, j, h in np.ndindex(height, width, heads):
    part = slice(h * size, (h + 1) * size)
    places = [
      (y, x)
      for y in range(height)
      for x in range(width)
      if y // wh == i // wh and x // ww == j // ww
    ]
    scores = [
      query[i, j, part] @ key[y, x, part] / np.sqrt(size)
      + bias[(i - y + wh - 1) * (2 * ww - 1) + j - x + ww - 1, h]
      for y, x in places
    ]
    weights = np.exp(scores) / np.exp(scores).sum()
    output[i, j, part] = sum(
      w * value[y, x, part] for w, (y, x) in zip(weights, places, strict=True)
    )
  return output


def pooled_by_hand(x, factor):
  height, width = (-(-size // factor) for size in x.shape[:2])
  return np.array(
    [
      [
        x[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].mean(
          (0, 1)
        )
        for j in range(width)
      ]
      for i in range(height)
    ]
  )


def block_by_hand(params, x, points, config):
  """The whole block for one clip [L, D], in float64."""
  params = jax.tree.map(np.float64, params['params'])
  x = np.float64(x)

  def dense(x, name):
    return x @ params[name]['kernel'] + params[name]['bias']

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-6
    )
    return x * params[name]['scale'] + params[name]['bias']

  normed = norm(x, 'norm').reshape(*GRID, D)
  guide = np.zeros_like(normed)
  for t in range(GRID[0]):
    if config.guide == 'difference':
      guide[t] = normed[t] - normed[max(t - 1, 0)]
    else:
      maps = np.zeros((*GRID[1:], points.shape[1]))
      for i, j, p in np.ndindex(maps.shape):
        dx = (j + 0.5) - points[t, p, 0] * GRID[2]
        dy = (i + 0.5) - points[t, p, 1] * GRID[1]
        maps[i, j, p] = np.exp(-(dx**2 + dy**2) / (2 * config.sigma**2))
      guide[t] = dense(maps, 'guide')
  added = np.zeros_like(normed)
  for t, s in np.ndindex(GRID[0], config.scales):
    image, query = (pooled_by_hand(y[t], 2**s) for y in (normed, guide))
    if config.query == 'dense':
      query = dense(query, f'query_{s}')
    key, value = np.split(dense(image, f'key_value_{s}'), 2, axis=-1)
    window = tuple(min(config.window, size) for size in image.shape[:2])
    y = attention_by_hand(
      query, key, value, params[f'position_bias_{s}'], window
    )
    y = dense(y, f'out_{s}') * params['attention_scale'][s]
    for i, j in np.ndindex(*GRID[1:]):
      added[t, i, j] += y[i // 2**s, j // 2**s]
  x = x + added.reshape(L, D)
  y = dense(norm(x, 'mlp_norm'), 'fc1')
  y = y * np.vectorize(_normal_cdf)(y)
  return x + params['mlp_scale'] * dense(y, 'fc2')


def _normal_cdf(x):
  return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize('window', [(1, 1), (2, 3), (5, 4), (7, 7)])
def test_attention_is_what_it_is_by_hand(x64, window):
  query, key, value = RNG.normal(size=(3, 2, 5, 4, D))
  size = (2 * window[0] - 1) * (2 * window[1] - 1)
  bias = RNG.normal(size=(size, HEADS))
  got = jax.jit(
    lambda *args: cross_windows.window_cross_attention(*args, window)
  )(query, key, value, bias)
  for image in range(2):
    expected = attention_by_hand(
      query[image], key[image], value[image], bias, window
    )
    np.testing.assert_allclose(got[image], expected, atol=1e-9)


@pytest.mark.parametrize('guide', ['difference', 'landmarks'])
@pytest.mark.parametrize('query', ['identity', 'dense'])
def test_block_is_what_it_is_by_hand(guide, query):
  config = dataclasses.replace(SMALL, guide=guide, query=query)
  block, params = initialised(config)
  got = jax.jit(block.apply)(params, TOKENS, POINTS)
  assert np.abs(got - TOKENS).max() > 0.1
  for b in range(B):
    expected = block_by_hand(params, TOKENS[b], POINTS[b], config)
    np.testing.assert_allclose(got[b], expected, atol=2e-5)


def test_relative_positions_of_a_window():
  table = cross_windows.relative_positions((2, 2))
  # Offsets of rows and columns from query to key, -1 to 1, in a 3 x 3 table.
  np.testing.assert_array_equal(
    table, [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
  )
  assert cross_windows.relative_positions((7, 7)).max() == 13 * 13 - 1


def test_frame_differences():
  x = RNG.normal(size=(B, 3, 4, D)).astype(np.float32)
  got = cross_windows.frame_differences(x)
  np.testing.assert_array_equal(got[:, 0], 0)
  np.testing.assert_array_equal(got[:, 1:], x[:, 1:] - x[:, :-1])
  np.testing.assert_array_equal(cross_windows.frame_differences(x[:, :1]), 0)


def test_pooled_grids_come_back():
  x = RNG.normal(size=(2, 5, 4, D))
  for factor in (1, 2, 4):
    pooled = cross_windows.pool_grid(jnp.asarray(x), factor)
    np.testing.assert_allclose(pooled[0], pooled_by_hand(x[0], factor), 1e-4)
    back = cross_windows.repeat_grid(pooled, factor, (5, 4))
    assert back.shape == x.shape
    np.testing.assert_array_equal(back[:, 4, 3], pooled[:, 4 // factor, -1])


def test_landmarks_are_where_they_are():
  # The middle of row 1, column 2 of a grid of 4 x 5.
  points = np.array([[[[2.5 / 5, 1.5 / 4], [np.nan, 0.5], [0.5, np.inf]]]])
  maps = cross_windows.landmark_maps(jnp.float32(points), (4, 5), 0.8)
  assert maps.shape == (1, 1, 20, 3)
  heat = maps[0, 0, :, 0].reshape(4, 5)
  assert np.unravel_index(heat.argmax(), heat.shape) == (1, 2)
  np.testing.assert_allclose(heat[1, 2], 1, atol=1e-6)
  np.testing.assert_allclose(heat[1, 3], np.exp(-1 / 1.28), atol=1e-6)
  np.testing.assert_allclose(heat[0, 2], heat[2, 2], atol=1e-6)
  np.testing.assert_array_equal(maps[..., 1:], 0)
  gradient = jax.grad(
    lambda p: cross_windows.landmark_maps(p, (4, 5), 0.8).sum()
  )(jnp.float32(points))
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('guide', ['difference', 'landmarks'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_is_the_identity_at_first_and_leaves_it(guide, dtype):
  config = CrossWindowsConfig(window=2, guide=guide)
  assert config.layer_scale == 0
  block, params = initialised(config, dtype=jnp.dtype(dtype))
  x = jnp.asarray(TOKENS, dtype)
  weight = RNG.normal(size=(B, L, D)).astype(np.float32)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient(params):
    y = block.apply(params, x, POINTS)
    return (weight * y).sum(), y

  gradients, y = gradient(params)
  assert y.dtype == dtype
  np.testing.assert_array_equal(y, x)
  for name in ('attention_scale', 'mlp_scale'):
    by_scale = np.asarray(gradients['params'][name], np.float32)
    assert (np.abs(by_scale) > 1e-3).all(), name
  # One step along them is enough for all else to learn.
  stepped = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)
  for path, leaf in jax.tree.leaves_with_path(gradient(stepped)[0]):
    leaf = np.asarray(leaf, np.float32)
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 0, path


def test_published_scale():
  config = CrossWindowsConfig(window=2, layer_scale=1e-5)
  block = model(config)
  params = jax.jit(block.init)(jax.random.key(0), TOKENS)
  for name in ('attention_scale', 'mlp_scale'):
    np.testing.assert_allclose(params['params'][name], 1e-5)
  moved = np.abs(jax.jit(block.apply)(params, TOKENS) - TOKENS).max()
  assert 0 < moved < 1e-3


def test_windows_and_frames_see_nothing_of_each_other():
  """With one scale and landmarks; a difference also sees the frame before."""
  config = dataclasses.replace(SMALL, scales=1, guide='landmarks')
  _, params = initialised(config)

  def moved(config, at):
    x = TOKENS.reshape(B, *GRID, D).copy()
    x[0, at[0], at[1], at[2]] += np.arange(D)  # a norm hides a constant
    apply = jax.jit(model(config).apply)
    change = np.abs(
      apply(params, x.reshape(TOKENS.shape), POINTS)
      - apply(params, TOKENS, POINTS)
    )
    where = np.argwhere(change.reshape(B, *GRID, D).max(-1) > 1e-6)
    return {tuple(int(i) for i in row) for row in where}

  window = {(0, 1, i, j) for i in (2, 3) for j in (0, 1)}
  assert moved(config, (1, 2, 1)) == window
  # The last row is alone in its windows.
  assert moved(config, (1, 4, 0)) == {(0, 1, 4, 0), (0, 1, 4, 1)}
  difference = dataclasses.replace(config, guide='difference')
  later = {(0, 2, 2, 1)}  # whose query the difference is
  assert moved(difference, (1, 2, 1)) == window | later


def test_a_window_larger_than_the_grid_is_the_grid():
  large = dataclasses.replace(SMALL, window=7)
  _, params = initialised(large)
  assert params['params']['position_bias_0'].shape == (9 * 7, HEADS)
  assert params['params']['position_bias_2'].shape == (3 * 1, HEADS)
  same = dataclasses.replace(SMALL, window=5)
  np.testing.assert_array_equal(
    jax.jit(model(large).apply)(params, TOKENS),
    jax.jit(model(same).apply)(params, TOKENS),
  )


def test_parameters_are_those_of_the_formula():
  config = CrossWindowsConfig(window=2, query='dense')
  _, params = initialised(config)
  params = params['params']
  count = {
    name: sum(x.size for x in jax.tree.leaves(part))
    for name, part in params.items()
  }
  for s in range(3):
    names = (f'key_value_{s}', f'query_{s}', f'out_{s}')
    kernels = sum(params[name]['kernel'].size for name in names)
    assert kernels == 4 * D**2
  assert count['position_bias_0'] == 3 * 3 * HEADS
  assert params['fc1']['kernel'].size + params['fc2']['kernel'].size == 8 * D**2


def test_gradients_are_those_of_finite_differences(x64):
  config = dataclasses.replace(SMALL, query='dense')
  _, params = initialised(config)
  params = jax.tree.map(np.float64, params)
  block = model(config, dtype=None)
  weight = RNG.normal(size=(B, L, D))

  @jax.jit
  def loss(params, x):
    return (weight * block.apply(params, x)).sum()

  args = params, np.float64(TOKENS)
  drawn = np.random.default_rng(2)
  gradients = jax.jit(jax.grad(loss, (0, 1)))(*args)
  for _ in range(4):
    step = jax.tree.map(lambda x: drawn.normal(size=x.shape) * 1e-6, args)
    ahead = loss(*jax.tree.map(np.add, args, step))
    behind = loss(*jax.tree.map(np.subtract, args, step))
    expected = jax.tree.reduce(
      np.add, jax.tree.map(lambda g, s: (g * s).sum(), gradients, step)
    )
    np.testing.assert_allclose((ahead - behind) / 2, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('window', 0),
    ('scales', 0),
    ('guide', 'flow'),
    ('sigma', 0.0),
    ('layer_scale', float('nan')),
    ('mlp_ratio', -1.0),
    ('query', 'linear'),
  ],
)
def test_values_outside_their_range_are_refused(field, value):
  with pytest.raises(ValueError, match=rf'CrossWindowsConfig.{field} is .*use'):
    CrossWindowsConfig(**{field: value})


def test_sizes_that_do_not_fit_are_refused():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match=r'needs \[B, 60, D\]'):
    model().init(key, TOKENS[:, 1:])
  with pytest.raises(ValueError, match='2 heads do not divide dim 7'):
    model().init(key, TOKENS[..., 1:])
  deep = dataclasses.replace(SMALL, scales=4)
  with pytest.raises(ValueError, match=r'scales is 4; a grid of 5 x 4 .* 3'):
    model(deep).init(key, TOKENS)
  landmarks = dataclasses.replace(SMALL, guide='landmarks')
  for points in (None, POINTS[:, 1:], POINTS[..., :1], POINTS[0]):
    with pytest.raises(ValueError, match="use guide='difference'"):
      model(landmarks).init(key, TOKENS, points)
