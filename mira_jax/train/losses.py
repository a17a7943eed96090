"""Losses of training: pure functions of (params, mira, batch, key).

`classification` is fine-tuning, `reconstruction` is masked pre-training. Both
draw their augmentation from the key, on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mira_jax.augment import mixup
from mira_jax.augment.transforms import denormalise
from mira_jax.models import mae
from mira_jax.param_names import PROBE

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]
Metrics = dict[str, Array]
Augmentation = Callable[[Array, Array], Array]
# (params, mira, batch, key) -> loss [], its metrics and the new mira.
Objective = Callable[
  [PyTree, PyTree, Batch, Array], tuple[Array, tuple[Metrics, PyTree]]
]


def soft_targets(label: Array, num_classes: int, smoothing: float) -> Array:
  """int [B] -> float32 [B, K]: smoothing / K, the label 1 - smoothing more."""
  return optax.smooth_labels(jax.nn.one_hot(label, num_classes), smoothing)


def cross_entropy(
  logits: Array, targets: Array, mask: Array, weights: Array | None = None
) -> Array:
  """Mean cross-entropy of the clips whose mask [B] is True; 0 when none is.

  Logits and targets are [B, K]; `weights` [B] of clips in the mean are 1 by
  default.
  """
  losses = optax.softmax_cross_entropy(logits, targets)
  if weights is None:
    return masked_mean(losses, mask)
  weights = jnp.where(mask, weights, 0)
  return (losses * weights).sum() / jnp.maximum(weights.sum(), 1e-12)


def masked_mean(values: Array, mask: Array) -> Array:
  """Mean of values [B] where mask [B] is True; 0 when it nowhere is."""
  total = jnp.where(mask, values, 0).sum()
  return total / jnp.maximum(mask.sum(), 1)


def inverse_sqrt_weights(counts: Sequence[int]) -> list[float]:
  """Weights `n ** -0.5` of classes of n clips, scaled to a mean of 1.

  A class without clips has weight 0 and is left out of the mean, as in the
  authors' `weighted_ce`.
  """
  raw = [n**-0.5 if n else 0.0 for n in counts]
  scale = sum(n > 0 for n in counts) / sum(raw)
  return [x * scale for x in raw]


def classification(
  model: Any,
  augmentation: Augmentation,
  *,
  smoothing: float = 0.0,
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
  copies: int = 1,
  class_weights: Sequence[float] | None = None,
) -> Objective:
  """Cross-entropy against soft targets.

  Its metric is the accuracy, of the class with the largest target.

  Args:
    model: flax module with a field `num_classes`, as `models.vivit.ViViT`.
    augmentation: (key, uint8 video) -> normalised video.
    smoothing: of labels.
    mixup_alpha: see `mixup.mix`; 0 leaves mixup out.
    cutmix_alpha: likewise for cutmix. Either needs batches without masked rows.
    copies: rows of one clip side by side, see there.
    class_weights: [K], of the clips of a class in the mean loss.
  """

  def objective(params: PyTree, mira: PyTree, batch: Batch, key: Array):
    augment_key, dropout_key, mix_key = jax.random.split(key, 3)
    video, targets = mixup.mix(
      mix_key,
      augmentation(augment_key, batch['video']),
      soft_targets(batch['label'], model.num_classes, smoothing),
      mixup_alpha=mixup_alpha,
      cutmix_alpha=cutmix_alpha,
      copies=copies,
    )
    weights = None
    if class_weights is not None:
      weights = jnp.asarray(class_weights, jnp.float32)[batch['label']]
    return classify(
      model, params, mira, video, targets, batch['mask'], dropout_key, weights
    )

  return objective


def classify(
  model: Any,
  params: PyTree,
  mira: PyTree,
  video: Array,
  targets: Array,
  mask: Array,
  key: Array,
  weights: Array | None = None,
) -> tuple[Array, tuple[Metrics, PyTree]]:
  """The loss of `classification` for augmented clips.

  Args:
    model: see there.
    params: of the model.
    mira: its averages.
    video: normalised, [B, F, H, W, 3].
    targets: [B, K].
    mask: bool [B], clips that count.
    key: of dropout.
    weights: see `cross_entropy`.
  """
  logits, mira = _apply(model, params, mira, key, video)
  loss = cross_entropy(logits, targets, mask, weights)
  correct = logits.argmax(-1) == targets.argmax(-1)
  return loss, ({'accuracy': masked_mean(correct, mask)}, mira)


def freeze_backbone(objective: Objective) -> Objective:
  """The same loss, without gradients for anything but the head."""

  def frozen(params: PyTree, mira: PyTree, batch: Batch, key: Array):
    params = {
      name: part if name in PROBE else jax.lax.stop_gradient(part)
      for name, part in params.items()
    }
    return objective(params, mira, batch, key)

  return frozen


def reconstruction(
  model: mae.MaskedAutoencoder,
  augmentation: Augmentation,
  *,
  kind: str = 'tube',
  ratio: float = 0.9,
  normalise: bool = True,
) -> Objective:
  """Mean squared error of the pixels, or histograms, of masked tubelets.

  Augmentation as in `classification`; kind and ratio of the mask as in
  `mae.draw_mask`, `normalise` as in `mae.tubelet_targets`.
  """

  def objective(params: PyTree, mira: PyTree, batch: Batch, key: Array):
    augment_key, dropout_key, mask_key = jax.random.split(key, 3)
    video = augmentation(augment_key, batch['video'])
    mask, num_masked = mae.draw_mask(
      mask_key, video.shape, model.tubelet, model.patch, kind=kind, ratio=ratio
    )
    return reconstruct(
      model, params, mira, video, mask, num_masked, dropout_key, normalise
    )

  return objective


def reconstruct(
  model: mae.MaskedAutoencoder,
  params: PyTree,
  mira: PyTree,
  video: Array,
  mask: Array,
  num_masked: int,
  key: Array,
  normalise: bool = True,
) -> tuple[Array, tuple[Metrics, PyTree]]:
  """The loss of `reconstruction` for augmented clips and a mask.

  Args:
    model: see there.
    params: of the model.
    mira: its averages.
    video: normalised, [B, F, H, W, 3].
    mask: bool [B, L], True where masked.
    num_masked: of each row of the mask.
    key: of dropout.
    normalise: see there.
  """
  targets = model.targets(denormalise(video), normalise=normalise)
  prediction, mira = _apply(
    model, params, mira, key, video, mask, num_masked=num_masked
  )
  loss = mae.reconstruction_loss(
    prediction.astype(targets.dtype), targets, mask
  )
  return loss, ({}, mira)


def _apply(
  model: Any,
  params: PyTree,
  mira: PyTree,
  key: Array,
  *inputs: Any,
  **sizes: int,
) -> tuple[Array, PyTree]:
  """The output of a model in training, and its new averages."""
  output, updates = model.apply(
    {'params': params, 'mira': mira},
    *inputs,
    **sizes,
    train=True,
    rngs={'dropout': key},
    mutable=['mira'],
  )
  return output, updates.get('mira', {})
