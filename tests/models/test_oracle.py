"""MiRA attention against the NumPy oracle, and both against printed numbers."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from mira_jax.kernels.attention import mira_attention
from mira_jax.mira import MiraConfig
from oracle import Hyper, attention

MODES = ('exact', 'flashlite')
STATISTICS = ('instance', 'batch', 'batch_ema')


def random_qkv(shape, seed):
  """Queries, keys and values [B, L, H, D], keys louder in some frames."""
  rng = np.random.default_rng(seed)
  q, k, v = rng.normal(size=(3, *shape))
  loud = np.exp(rng.normal(size=(shape[0], shape[1], 1, 1)))
  return 2 * q, k * loud, v


def ask_oracle(qkv, *, frames, mode, statistics, train, average, hyper):
  """The oracle on [B, L, H, D]; its own layout is [B, H, L, D]."""
  q, k, v = (x.swapaxes(1, 2) for x in qkv)
  return attention(
    q,
    k,
    v,
    frames=frames,
    mode=mode,
    statistics=statistics,
    train=train,
    average=average,
    hyper=hyper,
  )


# Every mode at one shape (B, T, N, H, D), and others.
CASES = [
  (mode, statistics, True, (3, 4, 5, 2, 16))
  for mode in MODES
  for statistics in STATISTICS
] + [
  ('exact', 'batch_ema', False, (1, 8, 3, 1, 4)),
  ('flashlite', 'instance', False, (2, 3, 7, 3, 5)),
]


@pytest.mark.parametrize(('mode', 'statistics', 'train', 'shape'), CASES)
def test_agrees_with_oracle(x64, mode, statistics, train, shape):
  batch, frames, tokens, heads, width = shape
  config = MiraConfig(mode=mode, statistics=statistics)
  ours = jax.jit(
    functools.partial(
      mira_attention, num_frames=frames, config=config, training=train
    )
  )
  for seed in range(3):
    qkv = random_qkv((batch, frames * tokens, heads, width), seed)
    past = np.random.default_rng(seed).dirichlet(np.ones(frames))
    want = ask_oracle(
      qkv,
      frames=frames,
      mode=mode,
      statistics=statistics,
      train=train,
      average=past,
      hyper=Hyper(),
    )
    got = ours(*qkv, past=past)
    assert got.frames.gain.min() < got.frames.gain.max()
    for name, a, b in (
      ('output', got.output.swapaxes(1, 2), want.y),
      ('before', got.before, want.before),
      ('after', got.after, want.after),
      ('score', got.frames.score, want.f),
      ('prior', got.frames.prior, want.pi),
      ('gain', got.frames.gain + np.zeros_like(want.alpha), want.alpha),
      ('ema', got.frames.ema, want.average),
    ):
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize('mode', MODES)
def test_agrees_with_oracle_at_other_hyperparameters(x64, mode):
  config = MiraConfig(
    mode=mode,
    confidence_weight=0.8,
    concentration_weight=0.3,
    uniform_mix=0.25,
    gain_min=0.2,
    gain_max=3.0,
    power=0.7,
    power_eps=1e-3,
    residual_mix=0.9,
    floor=0.05,
    temperature=1.1,
  )
  hyper = Hyper(
    w_self=0.8,
    w_entropy=0.3,
    lam=0.25,
    alpha_min=0.2,
    alpha_max=3.0,
    beta=0.7,
    eps=1e-3,
    mix_eta=0.9,
    floor_eps=0.05,
    flash_tau=1.1,
  )
  qkv = random_qkv((2, 24, 2, 8), 7)
  want = ask_oracle(
    qkv,
    frames=4,
    mode=mode,
    statistics='instance',
    train=False,
    average=np.full(4, 0.25),
    hyper=hyper,
  )
  got = jax.jit(functools.partial(mira_attention, num_frames=4, config=config))(
    *qkv
  )
  np.testing.assert_allclose(got.frames.gain, want.alpha, rtol=1e-12)
  np.testing.assert_allclose(
    got.output.swapaxes(1, 2), want.y, rtol=1e-12, atol=1e-12
  )
