"""The same weights and clips in JAX and in PyTorch, layer by layer.

Both get the same normalised clips; see `torch_peers` for the other models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.augment import transforms
from mira_jax.models import build
from mira_jax.parity.torch_peers import LOGITS, Outputs, Peer, PyTree, State
from mira_jax.train import losses
from mira_jax.weights import torch_names
from mira_jax.weights.weights_file import flatten, restack, unflatten

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Row:
  """The difference between two arrays.

  Attributes:
    name: of the layer, 'block 3' or 'logits'; 'd block 3' of gradients.
    max_abs: largest difference.
    mean_abs: mean difference.
    relative: largest difference over the largest number of PyTorch's.
    cosine: between the two as vectors.
  """

  name: str
  max_abs: float
  mean_abs: float
  relative: float
  cosine: float


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Two models in one number format.

  Attributes:
    dtype: of the computation.
    rows: by layer; those of gradients last.
    top1: share of clips whose best class is the same.
  """

  dtype: str
  rows: Sequence[Row]
  top1: float

  def row(self, name: str) -> Row:
    return next(row for row in self.rows if row.name == name)


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
  """The difference between two arrays of one shape, in float64."""
  a, b = (np.asarray(x, np.float64).ravel() for x in (ours, theirs))
  apart = np.abs(a - b)
  largest, norms = np.abs(b).max(), np.linalg.norm(a) * np.linalg.norm(b)
  return Row(
    name=name,
    max_abs=float(apart.max()),
    mean_abs=float(apart.mean()),
    relative=float(apart.max() / (largest or 1)),
    cosine=float(a @ b / norms) if norms else float((a == b).all()),
  )


def ours(
  fields: Mapping[str, Any],
  variables: PyTree,
  video: np.ndarray,
  labels: np.ndarray | None,
  dtype: str = 'float32',
  attention: str | None = None,
) -> Outputs:
  """Our model's layers and gradients.

  Args:
    fields: of ViViT as JSON.
    variables: {'params': ..., 'mira': ...}, blocks stacked or not.
    video: float32 [B, F, H, W, 3], normalised.
    labels: int [B] to differentiate by; None: no gradients.
    dtype: of the computation.
    attention: its implementation; None is the model's choice.
  """
  variables = unflatten(restack(flatten(variables), stacked=False))
  plain = {'scan': False, 'remat': None, 'attention': attention}
  model = build.build_model({**fields, **plain, 'dtype': dtype})
  rest = {n: x for n, x in variables.items() if n != 'params'}

  def run(params: PyTree) -> tuple[jax.Array, State]:
    result: Any = model.apply(
      {'params': params, **rest}, jnp.asarray(video), record=True
    )
    logits, records = result
    layers = {
      f'block {i + 1}': record['output'].astype(jnp.float32)
      for i, record in enumerate(records)
    }
    loss = jnp.zeros(())
    if labels is not None:
      targets = jax.nn.one_hot(labels, logits.shape[-1])
      known = jnp.ones(len(labels), bool)
      loss = losses.cross_entropy(logits, targets, known)
    return loss, layers | {LOGITS: logits}

  params = variables['params']
  if labels is None:
    return Outputs(jax.device_get(jax.jit(run)(params)[1]), {})
  differentiated = jax.jit(jax.grad(run, has_aux=True))
  gradients, layers = jax.device_get(differentiated(params))
  names = torch_names.CLASSIFIER
  return Outputs(layers, torch_names.to_torch({'params': gradients}, names))


def compare(
  fields: Mapping[str, Any],
  variables: PyTree,
  other: Peer,
  video: np.ndarray,
  *,
  dtype: str = 'float32',
  gradients: bool = False,
  attention: str | None = None,
) -> Agreement:
  """Compares our model with another on the same clips.

  Args:
    fields: of ViViT as JSON.
    variables: of it.
    other: see `torch_peers`.
    video: uint8 [B, F, H, W, 3].
    dtype: of the computation in both.
    gradients: whether to compare those of the cross-entropy, too; the labels
      are the numbers of the clips, modulo the classes.
    attention: implementation of it in our model.
  """
  normalised = np.asarray(transforms.prepare(jnp.asarray(video)))
  labels = np.arange(len(video)) % fields['num_classes'] if gradients else None
  mine = ours(fields, variables, normalised, labels, dtype, attention)
  theirs = other.run(normalised, labels, fields['depth'], dtype)
  rows = [
    difference(name, mine.layers[name], array)
    for name, array in theirs.layers.items()
  ]
  names = sorted(mine.gradients.keys() & theirs.gradients.keys())
  blocks = [f'block {i + 1}' for i in range(fields['depth'])]
  for group in ('embed', *blocks, 'head'):
    if own := [n for n in names if _group(n) == group]:
      a, b = (
        np.concatenate([np.ravel(x.gradients[n]) for n in own])
        for x in (mine, theirs)
      )
      rows.append(difference(f'd {group}', a, b))
  a, b = (x.layers[LOGITS].argmax(-1) for x in (mine, theirs))
  return Agreement(dtype, rows, float((a == b).mean()))


def _group(name: str) -> str:
  """The part of the model that a parameter belongs to."""
  first, _, rest = name.partition('.')
  if first == 'blocks':
    return f'block {int(rest.partition(".")[0]) + 1}'
  return {'head': 'head', 'fc_norm': 'head'}.get(first, 'embed')
