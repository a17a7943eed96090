"""What other systems add to the loss of a classifier: per clip, [B]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mira_jax.models.head import Terms
from mira_jax.models.options import ModelOptions
from mira_jax.param_names import block_index, path_name
from mira_jax.systems.identity import identity_loss
from mira_jax.systems.orientation import angle_of, mean_axis
from mira_jax.systems.reliability import reliability_loss
from mira_jax.train.means import masked_mean

Array = jax.Array


class Context(NamedTuple):
  """What losses need beside a clip and its label.

  Attributes:
    progress: share of the training that is done, [].
    units: see `models.head.Inputs`, [B, U].
    subject: number of the subject, -1 where it is unknown, [B].
  """

  progress: Array | float = 1.0
  units: Array | None = None
  subject: Array | None = None


def context(
  batch: Mapping[str, Array], subjects: Sequence[int] | None
) -> Context:
  """That of a batch; `subjects` are the numbers of all training clips'."""
  return Context(
    progress=batch['progress'][0] if 'progress' in batch else 1.0,
    units=batch.get('oracle'),
    subject=None
    if subjects is None
    else jnp.asarray(subjects, jnp.int32)[batch['clip']],
  )


def classification_loss(
  model: ModelOptions,
  logits: Array,
  targets: Array,
  terms: Terms,
  context: Context,
) -> tuple[Array, dict[str, Array]]:
  """Cross-entropy [B] of logits [B, K], balanced if asked; and metrics [B]."""
  config = getattr(model, 'reliability', None)
  if config is None:
    return optax.softmax_cross_entropy(logits, targets), {}
  return reliability_loss(terms['balance'], targets, context.progress, config)


def angles(params: Any) -> dict[str, Array]:
  """The direction of SOA in each block, in degrees, as metrics.

  That of an ensemble is the mean axis of its members.
  """
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = path_name(path)
    if not name.endswith('orientation/direction'):
      continue
    block = block_index(name)
    if block is not None:
      found[f'block_{block}/angle'] = mean_axis(angle_of(leaf.reshape(-1, 2)))
    else:
      each = leaf.reshape(-1, leaf.shape[-2], 2)  # members, then blocks
      for i in range(each.shape[1]):
        found[f'block_{i}/angle'] = mean_axis(angle_of(each[:, i]))
  return found


def additions(
  model: ModelOptions,
  params: Any,
  terms: Terms,
  mask: Array,
  context: Context,
) -> tuple[Array | float, dict[str, Array]]:
  """The weighed losses of a model's systems, summed; and metrics."""
  if not terms:
    return 0.0, angles(params)
  weights = {}
  if model.channels is not None:
    weights['diversity'] = model.channels.diversity_weight
    weights['focus'] = model.channels.focus_weight
  if model.head_mix is not None:
    weights['head_diversity'] = model.head_mix.diversity_weight
  means = {name: masked_mean(terms[name], mask) for name in weights}
  if model.identity is not None:
    assert context.subject is not None
    logits, known = terms['subject'], context.subject >= 0
    loss = identity_loss(logits, context.subject, model.identity.loss)
    right = logits.argmax(-1) == context.subject
    weights['identity_loss'] = 1.0  # the reversal has the strength
    means['identity_loss'] = masked_mean(loss, mask & known)
    means['identity_accuracy'] = masked_mean(right, mask & known)
  total = sum(weight * means[name] for name, weight in weights.items())
  return total, means | angles(params)
