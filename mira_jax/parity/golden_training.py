"""Golden trajectories: whole trainings of the reference, by our train step.

Model, loss, schedule, layer-wise decay, optimiser and step are those that
`train.py` runs; only the clips, soft targets and masks come from the case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax.devices import sharding
from mira_jax.parity import golden_cases
from mira_jax.parity.golden_cases import Arrays
from mira_jax.train import losses, optim
from mira_jax.train.losses import Objective
from mira_jax.train.step import init_state, make_train_step
from mira_jax.weights import torch_names


def run_training(
  case: Mapping[str, Any], arrays: Arrays, dtype: Any, attention: str
) -> Iterator[tuple[str, Any]]:
  """Loss, gradient norm, averages and parameters of every stored step."""
  if case['kind'] == 'train_finetune':
    model = golden_cases.classifier(case, dtype, attention)
    table, objective = torch_names.CLASSIFIER, _classification(model)
    sizes = {}
  else:
    model = golden_cases.autoencoder(case, dtype, attention)
    masked = int(arrays['step0/mask'][0].sum())
    sizes = {'num_masked': masked}
    table, objective = torch_names.AUTOENCODER, _reconstruction(model, masked)
  settings = dict(case['optimizer'])
  schedule = optim.warmup_cosine(
    **{n: settings[n] for n in ('peak', 'final', 'warmup_steps', 'total_steps')}
  )
  optimizer = optim.OPTIMIZERS[settings['name']](
    schedule,
    **{n: settings[n] for n in ('weight_decay', 'b1', 'b2', 'layer_decay')},
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  step = make_train_step(objective, optimizer, schedule, mesh)
  batch = _batch(arrays, 'step0/', dtype)
  inputs = [batch[name] for name in ('video', 'masked') if name in batch]
  variables = golden_cases.load(model, arrays, table, dtype, *inputs, **sizes)
  key = jax.random.key(0)  # nothing is drawn
  state = init_state(lambda key: variables, optimizer, key)
  for i in range(case['steps']):
    prefix = f'step{i}/'
    state, metrics = step(state, _batch(arrays, prefix, dtype), key)
    yield f'{prefix}loss', metrics['loss']
    yield f'{prefix}grad_norm', metrics['grad_norm']
    yield from golden_cases.named({'mira': state.mira}, table, f'{prefix}ema/')
    if any(name.startswith(f'{prefix}param/') for name in arrays):
      params = {'params': state.params}
      yield from golden_cases.named(params, table, f'{prefix}param/')
  yield 'lr', jnp.stack([schedule(i) for i in range(case['steps'])])


def _batch(arrays: Arrays, prefix: str, dtype: Any) -> dict[str, jax.Array]:
  video = golden_cases.channels_last(arrays[f'{prefix}video_bcthw'], dtype)
  batch = {'video': video}
  if f'{prefix}mask' in arrays:
    batch['masked'] = jnp.asarray(arrays[f'{prefix}mask'])
  else:
    batch['target'] = jnp.asarray(arrays[f'{prefix}target'], dtype)
  return batch


def _classification(model: Any) -> Objective:
  def objective(params, mira, batch, key):
    video, targets = batch['video'], batch['target']
    every = jnp.ones(len(video), bool)
    return losses.classify(model, params, mira, video, targets, every, key)

  return objective


def _reconstruction(model: Any, masked: int) -> Objective:
  def objective(params, mira, batch, key):
    video, mask = batch['video'], batch['masked']
    return losses.reconstruct(model, params, mira, video, mask, masked, key)

  return objective
