"""Variants against an oracle in NumPy, which shares no line with them."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from mira_jax.mira import MiraConfig
from mira_jax.models.layers import sinusoid
from oracle import (
  Hyper,
  attention,
  exact_gain,
  flash_gain,
  inverse_entropy,
  softmax,
)
from tiny_models import (
  B,
  C,
  N,
  T,
  block_and_variables,
  model_and_variables,
)

FACTORISED = ('factorised_self_attention', 'factorised_dot_product')
MODES = [None, 'exact', 'flashlite']


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
    # One token per frame: the equations add the constant 1e6 / 2 to every
    # score, and take it away again, at the price of some ten digits.
    run = functools.partial(joint, mode=mode)
    x = block(x, p['temporal'][f'block_{i}'], run)
  want = norm(x.mean(1), p['norm']) @ p['head']['kernel'] + p['head']['bias']
  got = jax.jit(model.apply)(variables, video)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-7 if mode else 1e-11)
