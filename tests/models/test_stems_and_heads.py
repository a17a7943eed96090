"""Stems and heads that are not the reference's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, special

from mira_jax.mira import MiraConfig
from mira_jax.models.layers import TubeletEmbed, oriented_gradients
from mira_jax.models.vivit import ViViT

TINY = {
  'dim': 32,
  'depth': 2,
  'heads': 2,
  'num_classes': 7,
  'frames': 8,
  'image_size': 32,
}


@pytest.mark.parametrize('tubelet', [1, 2])
def test_the_convolutional_stem_is_that_of_scipy(x64, tubelet):
  embed = TubeletEmbed(6, tubelet, 4, 'conv', jnp.float64)
  video = np.random.default_rng(0).normal(size=(1, 2, 8, 8, 3))
  params = embed.init(jax.random.key(1), video)['params']
  rows = []
  for frame in video[0]:
    x = frame
    for i in range(2):
      kernel = np.asarray(params[f'conv_{i}']['kernel'])
      padded = np.pad(x, ((0, 1), (0, 1), (0, 0)))
      x = np.stack(
        [
          sum(
            signal.correlate2d(padded[..., c], kernel[..., c, k], 'valid')
            for c in range(x.shape[-1])
          )[::2, ::2]
          for k in range(kernel.shape[-1])
        ],
        -1,
      )
      x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 1e-6
      )
      x = np.maximum(x, 0)
    rows.append(x.reshape(4, 3))
  slots = np.stack(rows).reshape(2 // tubelet, tubelet, 4, 3)
  kernel = np.asarray(params['kernel']).reshape(tubelet, 3, 6)
  wanted = np.einsum('tdnc,dck->tnk', slots, kernel).reshape(-1, 6)
  found = embed.apply({'params': params}, video)[0]
  np.testing.assert_allclose(found, wanted + params['bias'], atol=1e-12)


def test_tokens_of_histograms_do_not_depend_on_light():
  embed = TubeletEmbed(5, 2, 8, 'hog')
  video = np.random.default_rng(0).normal(size=(1, 2, 16, 8, 3))
  params = embed.init(jax.random.key(1), video)['params']
  found = embed.apply({'params': params}, video)
  assert found.shape == (1, 2, 5)
  darker = embed.apply({'params': params}, 0.9 * video - 1)
  np.testing.assert_allclose(darker, found, atol=0.02)
  # Of the second token, cells of 4 pixels in both of its frames.
  cells = np.array(oriented_gradients(jnp.asarray(video), 4))[0, :, 2:]
  blocks = cells.reshape(2, -1)
  blocks /= np.sqrt((blocks**2).mean(1, keepdims=True) + 0.1)
  wanted = blocks.ravel() @ params['kernel'].reshape(-1, 5) + params['bias']
  np.testing.assert_allclose(found[0, 1], wanted, atol=1e-5)


def test_a_head_of_places_has_weights_for_each():
  model = ViViT(**TINY | {'num_classes': 3}, pool='grid')
  video = jax.random.normal(jax.random.key(1), (1, 8, 32, 32, 3))
  variables = model.init(jax.random.key(0), video)
  kernel = variables['params']['head']['kernel']
  assert kernel.shape == (4 * 32, 3)
  features = ViViT(**TINY | {'num_classes': 0}, pool='grid')
  body = {n: x for n, x in variables['params'].items() if n != 'head'}
  found = features.apply({'params': body}, video)
  assert found.shape == (1, 4 * 32)
  wanted = found @ kernel + variables['params']['head']['bias']
  logits = model.apply(variables, video)
  np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)


def test_queries_weigh_tokens_for_their_part_of_the_channels():
  options = TINY | {'num_classes': 0, 'frames': 2}
  model = ViViT(**options, pool='attention')
  video = jax.random.normal(jax.random.key(1), (1, 2, 32, 32, 3))
  params = model.init(jax.random.key(0), video)['params']
  body = {n: x for n, x in params.items() if n != 'query'}
  # One token in time: features of places are the normalised tokens.
  grid = ViViT(**options, pool='grid').apply({'params': body}, video)
  tokens = np.array(grid, np.float64).reshape(4, 32)
  start = model.apply({'params': params}, video)
  np.testing.assert_allclose(start[0], tokens.mean(0), rtol=1e-5, atol=1e-6)
  query = np.random.default_rng(0).normal(size=(2, 32))
  found = model.apply({'params': body | {'query': query}}, video)
  parts = []
  for head, part in enumerate(np.split(tokens, 2, axis=1)):
    weights = special.softmax(tokens @ query[head] / 32**0.5)
    parts.append(weights @ part)
  np.testing.assert_allclose(
    found[0], np.concatenate(parts), rtol=1e-4, atol=1e-6
  )


def test_mirror_images_count_as_much_as_clips():
  options = TINY | {'mira': MiraConfig()}
  model, plain = (ViViT(**options, mirror=on) for on in (True, False))
  video = jax.random.normal(jax.random.key(1), (2, 8, 32, 32, 3))
  variables = plain.init(jax.random.key(0), video)
  run = jax.jit(functools.partial(model.apply, record=True))
  logits, records = run(variables, video)
  each = jax.jit(functools.partial(plain.apply, record=True))
  own, wanted = each(variables, video)
  other, _ = each(variables, video[:, :, :, ::-1])
  np.testing.assert_allclose(logits, (own + other) / 2, rtol=1e-5, atol=1e-7)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), records, wanted
  )
  assert np.abs(own - other).max() > 1e-6
  np.testing.assert_allclose(
    run(variables, video[:, :, :, ::-1])[0], logits, rtol=1e-5, atol=1e-7
  )
  train = {'train': True, 'mutable': ['mira']}
  trained, _ = model.apply(variables, video, **train)
  np.testing.assert_allclose(trained, own, rtol=1e-5, atol=1e-6)
