"""Optimisers with the reference's learning rates and weight decay."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

PyTree = Any

# What is added to tokens, or scales them, is not decayed, of whatever rank:
# biases per head have two axes, and stacked blocks add one to everything.
UNDECAYED = re.compile(r'\w*bias|\w*scale\d?|pos\w*|cls|\w*token')


def warmup_cosine(
  *, peak: float, final: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Linear from 0 to `peak`, then half a cosine towards `final`.

  Both ends of the warm-up are reached, so the first step has rate 0 and the
  last of the warm-up has `peak`; the first step after it has `peak` again, and
  the last step of all stays a little above `final`.

  Args:
    peak: highest learning rate.
    final: where the cosine would arrive one step after the last.
    warmup_steps: 0 starts at `peak`.
    total_steps: steps of the whole run.

  Returns:
    Function of a step (from 0) to its float32 learning rate.
  """

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    warm = peak * step / max(warmup_steps - 1, 1)
    part = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    cosine = final + (peak - final) * (1 + jnp.cos(jnp.pi * part)) / 2
    return jnp.where(step < warmup_steps, warm, cosine)

  return schedule


def decayed(params: PyTree) -> PyTree:
  """True where weight decay applies: matrices and larger, see UNDECAYED."""

  def one(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return leaf.ndim > 1 and not UNDECAYED.fullmatch(name)

  return jax.tree_util.tree_map_with_path(one, params)


def adamw(
  schedule: optax.Schedule,
  *,
  weight_decay: float = 0.05,
  b1: float = 0.9,
  b2: float = 0.999,
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """AdamW, the reference's; gradients are first scaled to `clip_norm`.

  A `clip_norm` of 0 leaves them as they are.
  """
  optimizer = optax.adamw(
    schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed
  )
  return _clipped(optimizer, clip_norm)


def muon(
  schedule: optax.Schedule,
  *,
  weight_decay: float = 0.05,
  b1: float = 0.9,
  b2: float = 0.999,
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """Muon for the matrices of the blocks and the embedding, Adam for the rest.

  Orthogonalised momentum (Jordan et al., 2024), scaled so that its updates are
  as large as AdamW's (Liu et al., arXiv 2502.16982): learning rates carry over.
  A small transformer learns from scratch in a fraction of AdamW's steps.
  """
  optimizer = optax.contrib.muon(
    schedule,
    weight_decay=weight_decay,
    weight_decay_mask=decayed,
    beta=0.95,
    adam_b1=b1,
    adam_b2=b2,
    # Optax masks only Muon's own decay: this one would reach biases and norms.
    adam_weight_decay=0.0,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=matrix_axes,
  )
  return _clipped(optimizer, clip_norm)


def matrix_axes(params: PyTree) -> PyTree:
  """Which axes of each kernel are inputs and outputs; None if not Muon's.

  Leading axes beyond these (stacked blocks) are matrices of their own. The
  classification head is Adam's, and not decayed.
  """

  def one(path: tuple[Any, ...], leaf: jax.Array):
    names = [entry.key for entry in path]
    if names[-1] != 'kernel' or names[-2] == 'head':
      return None
    inputs = {'embed': 4, 'proj': 2}.get(names[-2], 1)
    outputs = 3 if names[-2] == 'qkv' else 1
    first = leaf.ndim - inputs - outputs
    return optax.contrib.MuonDimensionNumbers(
      tuple(range(first, first + inputs)),
      tuple(range(first + inputs, leaf.ndim)),
    )

  return jax.tree_util.tree_map_with_path(one, params)


OPTIMIZERS = {'adamw': adamw, 'muon': muon}


def _clipped(
  optimizer: optax.GradientTransformation, norm: float
) -> optax.GradientTransformation:
  if not norm:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(norm), optimizer)
