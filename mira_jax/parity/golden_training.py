"""Golden trajectories: whole trainings of the reference, by our train step.

Model, loss, schedule, layer-wise decay, optimiser and step are those that
`train.py` runs; only the clips, soft targets and masks come from the case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax.config import OptimConfig
from mira_jax.parity import golden_cases, training
from mira_jax.parity.golden_cases import Arrays
from mira_jax.train import losses
from mira_jax.train.losses import Objective
from mira_jax.weights import torch_names


def run_training(
  case: Mapping[str, Any], arrays: Arrays, dtype: Any, attention: str
) -> Iterator[tuple[str, Any]]:
  """Loss, gradient norm, averages and parameters of every stored step."""
  if case['kind'] == 'train_finetune':
    model = golden_cases.classifier(case, dtype, attention)
    table, objective = torch_names.CLASSIFIER, training.classification(model)
    sizes = {}
  else:
    model = golden_cases.autoencoder(case, dtype, attention)
    masked = int(arrays['step0/mask'][0].sum())
    sizes = {'num_masked': masked}
    table, objective = torch_names.AUTOENCODER, _reconstruction(model, masked)
  given = case['optimizer']
  settings = OptimConfig(
    lr=given['peak'],
    final_lr=given['final'],
    warmup_epochs=given['warmup_steps'],
    **{n: given[n] for n in ('name', 'weight_decay', 'b1', 'b2')},
    layer_decay=given['layer_decay'],
  )
  batch = _batch(arrays, 'step0/', dtype)
  inputs = [batch[name] for name in ('video', 'masked') if name in batch]
  variables = golden_cases.load(model, arrays, table, dtype, *inputs, **sizes)
  batches = (_batch(arrays, f'step{i}/', dtype) for i in range(case['steps']))
  rates = []
  for i, (state, metrics) in enumerate(
    training.run(
      model, objective, settings, variables, batches, given['total_steps']
    )
  ):
    prefix = f'step{i}/'
    yield f'{prefix}loss', metrics['loss']
    yield f'{prefix}grad_norm', metrics['grad_norm']
    yield from golden_cases.named({'mira': state.mira}, table, f'{prefix}ema/')
    if any(name.startswith(f'{prefix}param/') for name in arrays):
      params = {'params': state.params}
      yield from golden_cases.named(params, table, f'{prefix}param/')
    rates.append(metrics['learning_rate'])
  yield 'lr', jnp.stack(rates)


def _batch(arrays: Arrays, prefix: str, dtype: Any) -> dict[str, jax.Array]:
  video = golden_cases.channels_last(arrays[f'{prefix}video_bcthw'], dtype)
  batch = {'video': video}
  if f'{prefix}mask' in arrays:
    batch['masked'] = jnp.asarray(arrays[f'{prefix}mask'])
  else:
    batch['target'] = jnp.asarray(arrays[f'{prefix}target'], dtype)
  return batch


def _reconstruction(model: Any, masked: int) -> Objective:
  def objective(params, mira, batch, key):
    video, mask = batch['video'], batch['masked']
    return losses.reconstruct(model, params, mira, video, mask, masked, key)

  return objective
