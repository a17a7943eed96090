"""What a golden case computes: the model of each kind, run on its inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.augment.transforms import MEAN, STD
from mira_jax.mira import MiraConfig, frame_gain, key_energy
from mira_jax.models import mae
from mira_jax.models.blocks import Attention
from mira_jax.models.layers import sinusoid
from mira_jax.models.spec import BlockSpec
from mira_jax.models.vivit import ViViT
from mira_jax.weights import torch_names

Arrays = Mapping[str, np.ndarray]


def mira_config(case: Mapping[str, Any]) -> MiraConfig | None:
  """The reference's hyper-parameters under our names."""
  if case['mode'] == 'plain':
    return None
  # Cases of whole models write what is not a default beside the rest.
  hyper = case.get('hyper', case)
  statistics = case['stats_mode']
  if statistics == 'batch_ema' and not hyper.get('use_ema', True):
    statistics = 'batch'
  names = {
    'w_self': 'confidence_weight',
    'w_entropy': 'concentration_weight',
    'lam': 'uniform_mix',
    'alpha_min': 'gain_min',
    'alpha_max': 'gain_max',
    'ema_m': 'ema_momentum',
    'beta': 'power',
    'eps': 'power_eps',
    'mix_eta': 'residual_mix',
    'floor_eps': 'floor',
    'flash_tau': 'temperature',
  }
  values = {ours: hyper[name] for name, ours in names.items() if name in hyper}
  if not hyper.get('use_residual', True):
    values['residual_mix'] = 1.0
  return MiraConfig(mode=case['mode'], statistics=statistics, **values)


def run_attention(case, arrays: Arrays, dtype, attention) -> Iterator:
  """One attention module over the steps of a case; the EMA is carried on."""
  config, table = mira_config(case), torch_names.ATTENTION
  spec: Any = {
    'heads': case['heads'],
    'num_frames': case['frames'],
    'mira': config,
    'train': case['training'],
    'attention': attention,
    'dtype': dtype,
  }
  module = Attention(BlockSpec(**spec))
  variables = load(module, arrays, table, dtype, arrays['step0/x'])
  params, buffers = variables['params'], variables['mira']

  def loss(params, x, buffers, cotangent):
    (y, attended), updates = module.apply(
      {'params': params, 'mira': buffers}, x, mutable=['mira']
    )
    return (y * cotangent).sum(), (y, attended, updates)

  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  for step in range(case['steps']):
    prefix = f'step{step}/'
    x, cotangent = (
      jnp.asarray(arrays[prefix + name], dtype) for name in ('x', 'cotangent')
    )
    gradients, (y, attended, updates) = run(params, x, buffers, cotangent)
    buffers = updates['mira']
    yield prefix + 'y', y
    yield prefix + 'ema', buffers['confidence'][None]
    yield prefix + 'grad/x', gradients[1]
    yield from named({'params': gradients[0]}, table, prefix + 'grad/')
    if attended.before is not None:
      yield prefix + 'attn_before_head0', attended.before[:, 0]
      yield prefix + 'attn_after_head0', attended.after[:, 0]
    for name, array in _statistics(attended, config, params, x, case):
      yield f'{prefix}stat/{name}', array


def _statistics(attended, config, params, x, case) -> Iterator:
  """Names of the reference -> what MiRA computed of each frame."""
  frames = attended.frames
  if (config.mode, config.statistics) == ('flashlite', 'batch_ema'):
    # The file reports c, f and pi of the batch mean, though the gain comes from
    # the average.
    keys = jnp.einsum('blc,chd->blhd', x, params['qkv']['kernel'][:, 1])
    config = dataclasses.replace(config, statistics='batch')
    frames = frame_gain(key_energy(keys), case['frames'], config)
  concentration = frames.concentration
  if concentration is None:  # 1 / (0 + 1e-6) in the reference
    concentration = jnp.full_like(frames.confidence, 1e6)
  yield 'c', frames.confidence
  yield 'H', concentration
  yield 'f', frames.score
  yield 'pi', frames.prior
  yield 'alpha', attended.frames.gain


def classifier(case: Mapping[str, Any], dtype, attention: str) -> ViViT:
  """The classifier of a case."""
  return ViViT(
    dim=case['dim'],
    depth=case['depth'],
    heads=case['heads'],
    num_classes=case['classes'],
    frames=case['frames'],
    image_size=case['image'],
    patch=case['patch'],
    tubelet=case['tubelet'],
    mira=mira_config(case),
    mira_last_blocks=case['mira_last_layers'],
    attention=attention,
    dtype=dtype,
  )


def run_classifier(case, arrays: Arrays, dtype, attention) -> Iterator:
  model = classifier(case, dtype, attention)
  video = channels_last(arrays['video_bcthw'], dtype)
  variables = load(model, arrays, torch_names.CLASSIFIER, dtype, video)
  buffers = {k: v for k, v in variables.items() if k != 'params'}

  def loss(params):
    (logits, records), updates = model.apply(
      {'params': params, **buffers},
      video,
      train=case['training'],
      record=True,
      mutable=['mira'],
    )
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, arrays['label'][:, None], axis=1)
    return -picked.mean(), (logits, records, updates)

  (value, (logits, records, updates)), gradients = jax.jit(
    jax.value_and_grad(loss, has_aux=True)
  )(variables['params'])
  yield 'logits', logits
  yield 'loss', value
  yield 'pos_embed', sinusoid(int(np.prod(model.grid)), model.dim)[None]
  for i, record in enumerate(records):
    yield f'block_out/{i}', record['output']
  yield from named({'params': gradients}, torch_names.CLASSIFIER, 'grad/')
  yield from named(updates or buffers, torch_names.CLASSIFIER, 'buffer_after/')


def autoencoder(
  case: Mapping[str, Any], dtype, attention: str
) -> mae.MaskedAutoencoder:
  """The autoencoder of a case."""
  return mae.MaskedAutoencoder(
    dim=case['dim'],
    depth=case['depth'],
    heads=case['heads'],
    decoder_dim=case['dec_dim'],
    decoder_depth=case['dec_depth'],
    decoder_heads=case['dec_heads'],
    tubelet=case['tubelet'],
    patch=case['patch'],
    mira=mira_config(case),
    attention=attention,
    dtype=dtype,
  )


def run_autoencoder(case, arrays: Arrays, dtype, attention) -> Iterator:
  model = autoencoder(case, dtype, attention)
  video = channels_last(arrays['video_bcthw'], dtype)
  mask = jnp.asarray(arrays['mask'])
  num_masked = int(arrays['mask'][0].sum())
  table = torch_names.AUTOENCODER
  static: Any = {'num_masked': num_masked}
  variables = load(model, arrays, table, dtype, video, mask, **static)
  buffers = {k: v for k, v in variables.items() if k != 'params'}
  targets = mae.tubelet_targets(
    video * jnp.asarray(STD, dtype) + jnp.asarray(MEAN, dtype),
    tubelet=case['tubelet'],
    patch=case['patch'],
  )

  def loss(params):
    prediction, updates = model.apply(
      {'params': params, **buffers},
      video,
      mask,
      **static,
      train=case['training'],
      mutable=['mira'],
    )
    value = mae.reconstruction_loss(prediction, targets, mask)
    return value, (prediction, updates)

  (value, (prediction, updates)), gradients = jax.jit(
    jax.value_and_grad(loss, has_aux=True)
  )(variables['params'])
  _, masked = mae.split_tokens(mask, num_masked)
  length = mask.shape[1]
  yield 'pred', prediction
  yield 'loss', value
  yield 'target', mae.take_tokens(targets, masked)
  yield 'encoder_pos_embed', sinusoid(length, model.dim)[None]
  yield 'decoder_pos_embed', sinusoid(length, model.decoder_dim)[None]
  yield from named({'params': gradients}, table, 'grad/')
  yield from named(updates, table, 'buffer_after/')


def channels_last(video: np.ndarray, dtype) -> jax.Array:
  """Video [B, C, T, H, W] -> [B, T, H, W, C]."""
  video = einops.rearrange(video, 'b c t h w -> b t h w c')
  return jnp.asarray(video, dtype)


def load(module, arrays: Arrays, table, dtype, *inputs, **static):
  """Variables of the module with the parameters of the case."""
  init = functools.partial(module.init, **static)
  template = jax.eval_shape(init, jax.random.key(0), *inputs)
  state = {
    name.removeprefix('param/'): array
    for name, array in arrays.items()
    if name.startswith('param/')
  }
  variables = torch_names.from_torch(state, template, table)
  # The EMA starts from the same 1/T in the precision of the run.
  buffers = jax.tree.map(
    lambda x: jnp.full(x.shape, 1 / x.size, dtype), variables.get('mira', {})
  )
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables['params'])
  return {'params': params} | ({'mira': buffers} if buffers else {})


def named(variables, table, prefix: str) -> Iterator:
  """Names of the reference, after a prefix, and arrays in its layout."""
  for name, array in torch_names.to_torch(variables, table).items():
    yield prefix + name, array
