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
from mira_jax.parity.torch_peers import (
  LOGITS,
  Peer,
  PyTree,
  State,
  layer_of,
  stored,
)
from mira_jax.train import losses
from mira_jax.weights import torch_names
from mira_jax.weights.weights_file import flatten, restack, unflatten

DTYPES = ('float32', 'bfloat16', 'float64')


@dataclasses.dataclass(frozen=True)
class Row:
  """The difference between two arrays."""

  name: str  # of the layer, 'block 3' or 'logits'; 'd block 3' of gradients
  max_abs: float
  mean_abs: float
  relative: float  # largest difference over the largest number of PyTorch's
  distance: float  # norm of the difference over the norm of PyTorch's
  cosine: float  # between the two as vectors


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Two models in one number format."""

  dtype: str  # of the computation
  rows: Sequence[Row]  # by layer; those of gradients last
  top1: float  # share of clips whose best class is the same

  def row(self, name: str) -> Row:
    return next(row for row in self.rows if row.name == name)


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
  """The difference between two arrays of one shape, in float64."""
  a, b = (np.asarray(x, np.float64).ravel() for x in (ours, theirs))
  apart = np.abs(a - b)
  largest, norm = np.abs(b).max(), np.linalg.norm(b)
  norms = np.linalg.norm(a) * norm
  return Row(
    name=name,
    max_abs=float(apart.max()),
    mean_abs=float(apart.mean()),
    relative=float(apart.max() / (largest or 1)),
    distance=float(np.linalg.norm(apart) / (norm or 1)),
    cosine=float(a @ b / norms) if norms else float((a == b).all()),
  )


def ours(
  fields: Mapping[str, Any],
  variables: PyTree,
  video: np.ndarray,
  labels: np.ndarray | None,
  dtype: str = 'float32',
  attention: str | None = None,
) -> tuple[State, State]:
  """Our model's layers, then logits, and its gradients by the authors' names.

  Args:
    fields: of ViViT as JSON.
    variables: {'params': ..., 'mira': ...}, blocks stacked or not.
    video: float32 [B, F, H, W, 3], normalised.
    labels: int [B] of the cross-entropy; None: no gradients.
    dtype: of the computation.
    attention: its implementation; None is the model's choice.
  """
  model, variables = plain_model(fields, variables, dtype, attention)
  rest = {n: x for n, x in variables.items() if n != 'params'}

  def run(params: PyTree) -> tuple[jax.Array, State]:
    result: Any = model.apply(
      {'params': params, **rest}, jnp.asarray(video), record=True
    )
    logits, records = result
    layers = {
      f'block {i + 1}': record['output'].astype(logits.dtype)
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
    return jax.device_get(jax.jit(run)(params)[1]), {}
  differentiated = jax.jit(jax.grad(run, has_aux=True))
  gradients, layers = jax.device_get(differentiated(params))
  names = torch_names.CLASSIFIER
  return layers, torch_names.to_torch({'params': gradients}, names)


def plain_model(
  fields: Mapping[str, Any],
  variables: PyTree,
  dtype: str,
  attention: str | None,
) -> tuple[Any, PyTree]:
  """The model without what is random or saves memory, and its variables.

  Blocks are not stacked. Parameters are float64 for that `dtype`, else float32.
  """
  plain = {'scan': False, 'remat': None, 'drop_path': 0.0}
  own = {'attention': attention, 'dtype': dtype}
  model = build.build_model({**fields, **plain, **own})
  flat = restack(flatten(variables), stacked=False)
  kind = stored(dtype)
  return model, unflatten({n: np.asarray(x, kind) for n, x in flat.items()})


def normalise(video: np.ndarray, dtype: str) -> np.ndarray:
  """uint8 [..., 3], normalised in float32; float64 where `dtype` is that."""
  return np.asarray(transforms.prepare(jnp.asarray(video)), stored(dtype))


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
  """Compares our model with another on clips, uint8 [B, F, H, W, 3].

  The rest is as in `ours`. Gradients are of the cross-entropy; the labels are
  the numbers of the clips, modulo the classes.
  """
  normalised = normalise(video, dtype)
  labels = np.arange(len(video)) % fields['num_classes'] if gradients else None
  with jax.enable_x64(dtype == 'float64'):
    mine, own = ours(fields, variables, normalised, labels, dtype, attention)
  theirs, other_own = other.run(normalised, labels, fields['depth'], dtype)
  rows = [difference(n, mine[n], array) for n, array in theirs.items()]
  other_own = {n: x for n, x in other_own.items() if n in own}
  rows += by_layer(own, other_own, fields['depth'], 'd ')
  same = mine[LOGITS].argmax(-1) == theirs[LOGITS].argmax(-1)
  return Agreement(dtype, rows, float(same.mean()))


def by_layer(
  ours: State, theirs: State, depth: int, prefix: str = ''
) -> list[Row]:
  """The differences of parameters or gradients, a row for each layer."""
  rows = []
  blocks = [f'block {i + 1}' for i in range(depth)]
  for layer, label in enumerate(['embed', *blocks, 'head']):
    names = [n for n in sorted(theirs) if layer_of(n, depth) == layer]
    if names:
      a, b = (
        np.concatenate([np.ravel(x[n]) for n in names]) for x in (ours, theirs)
      )
      rows.append(difference(prefix + label, a, b))
  return rows
