"""MiRA attention against the NumPy oracle, and both against printed numbers."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.kernels.attention import mira_attention
from mira_jax.mira import MiraConfig
from mira_jax.models.blocks import Attention, BlockSpec
from mira_jax.weights import torch_names
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


# Every mode at one shape (B, T, N, H, D), and the two ends at other shapes.
CASES = [
  (mode, statistics, train, (3, 4, 5, 2, 16))
  for mode in MODES
  for statistics in STATISTICS
  for train in (False, True)
] + [
  ('exact', 'batch_ema', True, (1, 8, 3, 1, 4)),
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


@pytest.mark.parametrize('mode', MODES)
def test_one_token_per_frame_agrees_with_the_equations(x64, mode):
  # The equations then add the constant 1e6 / 2 to every score, which min-max
  # and z-score take away again, at the price of about ten digits.
  qkv = random_qkv((2, 6, 2, 8), 3)
  want = ask_oracle(
    qkv,
    frames=6,
    mode=mode,
    statistics='instance',
    train=False,
    average=np.full(6, 1 / 6),
    hyper=Hyper(),
  )
  got = jax.jit(
    functools.partial(
      mira_attention, num_frames=6, config=MiraConfig(mode=mode)
    )
  )(*qkv)
  assert got.frames.concentration is None
  np.testing.assert_allclose(got.frames.gain, want.alpha, rtol=1e-7)
  np.testing.assert_allclose(got.output.swapaxes(1, 2), want.y, atol=1e-7)


# The published fixture: B = 3, T = 4, N = 5, C = 32, H = 2, by formulas.


class Fixture(NamedTuple):
  x: np.ndarray
  state: dict[str, np.ndarray]


def fixture() -> Fixture:
  b, l, c = np.ogrid[:3, :20, :32]
  x = np.sin(1 + 0.7 * b + 0.11 * l + 0.23 * c)
  x = x + 0.5 * np.cos(0.05 * l * c + 0.3 * b)
  o, j = np.ogrid[:96, :32]
  qkv = 0.2 * np.sin(0.3 * o + 0.7 * j + 0.1) + 0.1 * np.cos(0.013 * o * j)
  n = np.arange(32)
  return Fixture(
    x,
    {
      'qkv.weight': qkv,
      'proj.weight': 0.15 * np.cos(0.5 * o[:32] - 0.9 * j + 0.2),
      'q_bias': 0.05 * np.cos(n),
      'v_bias': 0.05 * np.sin(2 * n),
      'proj.bias': 0.01 * n,
      'c_buf': np.array([[0.4, 0.3, 0.2, 0.1]]),
    },
  )


class Printed(NamedTuple):
  total: float  # sum(y)
  first: list[float]  # y[0, 0, :3]
  gain: list[float] | None  # alpha[0]
  grad_x: float | None  # norms of gradients
  grad_qkv: float | None
  ema: list[float]


START = [0.4, 0.3, 0.2, 0.1]
PLAIN = Printed(
  304.457878413, [0.331472820, 0.273857130, 0.151640013], None, None, None, []
)
EXACT_INSTANCE = Printed(
  305.157671772,
  [0.31389297, 0.26218228, 0.14872858],
  [0.7, 0.7, 0.7, 1.4],
  4.028760286,
  31.255500229,
  START,
)
EXACT_BATCH = Printed(
  305.157802506,
  [0.3139211, 0.26220186, 0.14873481],
  [0.7, 0.7, 0.7, 1.39816859],
  4.030889108,
  31.259756683,
  START,
)
EXACT_EMA = Printed(
  304.706991278,
  [0.34795853, 0.29336878, 0.16940048],
  [1.4, 1.23940644, 0.7, 0.7],
  4.134466107,
  34.919230052,
  [0.37625763, 0.28271242, 0.19590265, 0.14512729],
)
FLASH_INSTANCE = Printed(
  304.074434588,
  [0.32255504, 0.25856629, 0.13371985],
  [0.85849096, 0.85251112, 1.22751593, 1.06148199],
  4.387473191,
  32.085979385,
  START,
)
FLASH_BATCH = Printed(
  304.052770289,
  [0.32145185, 0.25815452, 0.13410031],
  [0.85641299, 0.8497782, 1.21479172, 1.07901709],
  4.385563864,
  32.019471175,
  START,
)
FLASH_EMA = Printed(
  304.265498834,
  [0.33735115, 0.27717469, 0.15158454],
  [1.26603818, 0.84499176, 0.98775213, 0.90121793],
  4.325198527,
  34.352562044,
  [0.36931224, 0.27792036, 0.23527039, 0.11749701],
)
ROWS = [
  (None, 'instance', False, PLAIN),
  ('exact', 'instance', False, EXACT_INSTANCE),
  ('exact', 'instance', True, EXACT_INSTANCE),
  ('exact', 'batch', False, EXACT_BATCH),
  ('exact', 'batch', True, EXACT_BATCH),
  ('exact', 'batch_ema', False, EXACT_BATCH),
  ('exact', 'batch_ema', True, EXACT_EMA),
  ('flashlite', 'instance', False, FLASH_INSTANCE),
  ('flashlite', 'instance', True, FLASH_INSTANCE),
  ('flashlite', 'batch', False, FLASH_BATCH),
  ('flashlite', 'batch', True, FLASH_BATCH),
  ('flashlite', 'batch_ema', False, FLASH_BATCH),
  ('flashlite', 'batch_ema', True, FLASH_EMA),
]


def near(got, printed, digits):
  """Agrees with a number printed with so many digits after the point."""
  np.testing.assert_allclose(got, printed, rtol=0, atol=0.6 * 10.0**-digits)


def run_module(config, train):
  """Output, gain, gradients by PyTorch name and buffers of the module."""
  x, state = fixture()
  module = Attention(
    BlockSpec(
      heads=2, num_frames=4, mira=config, train=train, dtype=jnp.float64
    )
  )
  template = jax.eval_shape(module.init, jax.random.key(0), x)
  if config is None:
    del state['c_buf']
  variables = torch_names.from_torch(state, template, torch_names.ATTENTION)
  weight = np.cos(0.017 * np.arange(x.size)).reshape(x.shape)

  def loss(params, x):
    (y, attended), updates = module.apply(
      variables | {'params': params}, x, mutable=['mira']
    )
    return (y * weight).sum(), (y, attended.frames, updates)

  gradients, (y, frames, updates) = jax.jit(
    jax.grad(loss, argnums=(0, 1), has_aux=True)
  )(variables['params'], x)
  return y, frames, *gradients, updates


def test_fixture_is_the_published_one():
  x, state = fixture()
  near(x.sum(), 40.39725430, 8)
  near(state['qkv.weight'].sum(), 18.17127650, 8)
  near(state['proj.weight'].sum(), 1.27865933, 8)


@pytest.mark.parametrize(('mode', 'statistics', 'train', 'printed'), ROWS)
def test_module_gives_printed_numbers(x64, mode, statistics, train, printed):
  config = mode and MiraConfig(mode=mode, statistics=statistics)
  y, frames, grads, grad_x, updates = run_module(config, train)
  near(y.sum(), printed.total, 9)
  near(y[0, 0, :3], printed.first, 8)
  if mode is None:
    assert frames is None
    assert not updates
    return
  near(frames.gain[0], printed.gain, 8)
  near(np.linalg.norm(grad_x), printed.grad_x, 9)
  near(np.linalg.norm(grads['qkv']['kernel']), printed.grad_qkv, 9)
  near(updates['mira']['confidence'], printed.ema, 8)


INTERMEDIATES = {
  'exact': {
    'confidence': [0.11622255, 0.12156789, 0.14667008, 0.61553948],
    'concentration': [0.62154395, 0.62455699, 0.68193666, 0.74428621],
    'score': [0, 0.01343662, 0.1460315, 1],
    'prior': [0.025, 0.02632587, 0.07249984, 0.87617429],
  },
  'flashlite': {
    'confidence': [0.12691825, 0.12031223, 0.58693704, 0.16583248],
    'concentration': [0.63171688, 0.62823109, 0.67716319, 0.89516391],
    'score': [-0.92010468, -0.96666412, 1.41190312, 0.47486569],
    'prior': [0.21462274, 0.21312778, 0.30687898, 0.2653705],
  },
}


@pytest.mark.parametrize('mode', MODES)
def test_module_gives_printed_intermediates(x64, mode):
  _, frames, *_ = run_module(MiraConfig(mode=mode), False)
  for name, printed in INTERMEDIATES[mode].items():
    near(getattr(frames, name)[0], printed, 8)


def project(x, state):
  """Queries, keys and values [B, L, H, D] of the fixture, in NumPy."""
  bias = np.concatenate([state['q_bias'], np.zeros(32), state['v_bias']])
  qkv = (x @ state['qkv.weight'].T + bias).reshape(3, 20, 3, 2, 16)
  return np.moveaxis(qkv, 2, 0)


@pytest.mark.parametrize(
  ('mode', 'statistics', 'train', 'printed'), [ROWS[6], ROWS[12]]
)
def test_oracle_gives_printed_numbers(mode, statistics, train, printed):
  x, state = fixture()
  got = ask_oracle(
    project(x, state),
    frames=4,
    mode=mode,
    statistics=statistics,
    train=train,
    average=state['c_buf'][0],
    hyper=Hyper(),
  )
  y = got.y.swapaxes(1, 2).reshape(3, 20, 32)
  y = y @ state['proj.weight'].T + state['proj.bias']
  near(y.sum(), printed.total, 9)
  near(y[0, 0, :3], printed.first, 8)
  near(got.alpha[0], printed.gain, 8)
  near(got.average, printed.ema, 8)
