"""Optimisers, with the learning rates and weight decay of the authors' code."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from mira_jax import param_names

PyTree = Any


def warmup_cosine(
  *, peak: float, final: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Learning rate: linear from 0 to `peak`, then half a cosine to `final`.

  As in the authors' code, the first step has rate 0, the last of the warm-up
  and the first after it have `peak`, and `final` would be reached one step
  after the last. No `warmup_steps` start at `peak`. Rates are computed in the
  default precision, float64 under `jax.enable_x64`.
  """

  def schedule(step: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.result_type(float))  # int32 would give float32
    warm = peak * step / max(warmup_steps - 1, 1)
    part = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    cosine = final + (peak - final) * (1 + jnp.cos(jnp.pi * part)) / 2
    return jnp.where(step < warmup_steps, warm, cosine)

  return schedule


def decayed(params: PyTree) -> PyTree:
  """True where weight decay applies: to kernels.

  Biases, scales, positions and tokens are not decayed.

  Raises:
    KeyError: a parameter that `param_names.ROLES` lacks.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: param_names.role_of(param_names.path_name(path)).inputs > 0,
    params,
  )


def layer_scales(params: PyTree, decay: float) -> PyTree:
  """Factor on the learning rate of every leaf (layer-wise decay).

  Layer 0 is the embedding with positions and class token, layer i + 1 is
  block i, and layer depth + 1 follows the blocks. Layer n has the factor
  `decay ** (depth + 1 - n)`. The blocks of a temporal encoder count on from the
  spatial ones; its positions belong to the layer before it.

  Args:
    params: of a `models.vivit.ViViT`; only names and shapes are read.
    decay: above 0; the authors fine-tune with 0.75, and 1 is no decay.

  Returns:
    A float64 scalar per leaf; for stacked blocks [depth, 1, ...], with as many
    axes as the leaf.
  """
  spatial = _depth(params['encoder'])
  depth = spatial + _depth(params.get('temporal', {}))
  before = {'encoder': 0, 'temporal': spatial}  # layers, without layer 0

  def one(path: tuple[Any, ...], leaf: jax.Array) -> np.ndarray | np.float64:
    name = param_names.path_name(path)
    part = name.split('/')[0]
    if part in param_names.EMBEDDED:
      layer = 0
    elif part in param_names.TIME_EMBEDDED:
      layer = spatial
    elif part not in before:
      layer = depth + 1
    else:
      block = param_names.block_index(name)
      if block is None:  # stacked blocks
        block = np.arange(leaf.shape[0]).reshape(-1, *[1] * (leaf.ndim - 1))
      layer = before[part] + block + 1
    return np.float64(decay) ** (depth + 1 - layer)

  return jax.tree_util.tree_map_with_path(one, params)


def _depth(encoder: PyTree) -> int:
  """Number of blocks of an encoder, stacked or not."""
  stacked = jax.tree.leaves(encoder.get('blocks'))
  return stacked[0].shape[0] if stacked else len(encoder)


def adamw(
  schedule: optax.Schedule,
  *,
  weight_decay: float = 0.05,
  b1: float = 0.9,
  b2: float = 0.999,
  **around: float,
) -> optax.GradientTransformation:
  """AdamW; `around`: see `_around`."""
  optimizer = optax.adamw(
    schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed
  )
  return _around(optimizer, **around)


def muon(
  schedule: optax.Schedule,
  *,
  weight_decay: float = 0.05,
  b1: float = 0.9,
  b2: float = 0.999,
  **around: float,
) -> optax.GradientTransformation:
  """Muon for the matrices of the blocks and the embedding, Adam for the rest.

  Orthogonalised momentum (Jordan et al., 2024), scaled so that its updates are
  as large as AdamW's (Liu et al., arXiv 2502.16982): learning rates carry over.
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
  return _around(optimizer, **around)


def matrix_axes(params: PyTree) -> PyTree:
  """Input and output axes of each kernel; None where Adam serves.

  Leading axes beyond these (stacked blocks) are matrices of their own. The
  classification head is Adam's, and not decayed.
  """

  def one(path: tuple[Any, ...], leaf: jax.Array):
    name = param_names.path_name(path)
    axes = param_names.kernel_axes(name, leaf.ndim)
    if axes is None or param_names.is_head(name):
      return None
    return optax.contrib.MuonDimensionNumbers(*axes)

  return jax.tree_util.tree_map_with_path(one, params)


def head_only(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Updates the head and what other systems add alone: a probe."""

  def labels(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: param_names.is_probe(param_names.path_name(path)), params
    )

  frozen = optax.set_to_zero()
  return optax.partition({True: optimizer, False: frozen}, labels)


OPTIMIZERS = {'adamw': adamw, 'muon': muon}


def _around(
  optimizer: optax.GradientTransformation,
  clip_norm: float = 0.0,
  layer_decay: float = 1.0,
  direction_factor: float = 1.0,
) -> optax.GradientTransformation:
  """Clips the gradients of an optimiser and scales its updates.

  `clip_norm` 0 doesn't clip; `layer_decay`: see `layer_scales`; the directions
  of `systems.orientation` learn `direction_factor` times as fast. Updates are
  scaled, because Adam and Muon divide gradients by their size. Clipping is no
  chain: a run can begin to clip with the state that it has.
  """

  def scale(updates: PyTree, _: PyTree | None) -> PyTree:
    factors = layer_scales(updates, layer_decay)

    def one(path: tuple[Any, ...], x: jax.Array, factor: Any) -> jax.Array:
      role = param_names.role_of(param_names.path_name(path))
      own = direction_factor if role.name == 'direction' else 1.0
      return x * jnp.asarray(factor * own, x.dtype)

    return jax.tree_util.tree_map_with_path(one, updates, factors)

  if layer_decay != 1 or direction_factor != 1:
    optimizer = optax.chain(optimizer, optax.stateless(scale))
  if not clip_norm:
    return optimizer
  clip = optax.clip_by_global_norm(clip_norm)

  def update(updates: PyTree, state: PyTree, params: Any = None):
    updates, _ = clip.update(updates, clip.init(params))
    return optimizer.update(updates, state, params)

  return optax.GradientTransformation(optimizer.init, update)
