"""Losses of training: pure functions of (params, mira, batch, key).

`classification` and `action_units` are fine-tuning, `reconstruction` is masked
pre-training. All draw their augmentation from the key, on the device.
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
from mira_jax.models.head import Inputs
from mira_jax.param_names import is_probe, path_name
from mira_jax.train import system_losses
from mira_jax.train.means import masked_mean, weighted_mean
from mira_jax.train.system_losses import Context

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
  return weighted_mean(losses, mask, weights)


def inverse_sqrt_weights(counts: Sequence[int]) -> list[float]:
  """`inverse_weights` of classes of n clips, as the authors' `weighted_ce`."""
  return inverse_weights(counts, 0.5)


def inverse_weights(
  frequencies: Sequence[float], power: float = 1.0
) -> list[float]:
  """Weights `frequency ** -power`, scaled to a mean of 1.

  What never occurs has weight 0 and is left out of the mean. With a power of 1
  they are those of action units in the field (Shao et al., Deep Adaptive
  Attention for Joint Facial Action Unit Detection and Face Alignment, ECCV
  2018, arXiv 1803.05588; our reconstruction).
  """
  raw = [x**-power if x else 0.0 for x in frequencies]
  scale = sum(x > 0 for x in frequencies) / (sum(raw) or 1.0)
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
  subjects: Sequence[int] | None = None,
) -> Objective:
  """Cross-entropy against soft targets, and what other systems add.

  Its metrics are the accuracy, of the class with the largest target, and those
  of the systems.

  Args:
    model: flax module with a field `num_classes`, as `models.vivit.ViViT`.
    augmentation: (key, uint8 video) -> normalised video.
    smoothing: of labels.
    mixup_alpha: see `mixup.mix`; 0 leaves mixup out.
    cutmix_alpha: likewise for cutmix. Either needs batches without masked rows.
    copies: rows of one clip side by side, see there.
    class_weights: [K], of the clips of a class in the mean loss.
    subjects: numbers of the subjects of all training clips, -1 where unknown,
      for identity adversarial training.
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
    context = system_losses.context(batch, subjects)
    return classify(
      model,
      params,
      mira,
      video,
      targets,
      batch['mask'],
      dropout_key,
      weights,
      context,
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
  context: Context = Context(),
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
    context: of the systems.
  """
  logits, terms, mira = _predict(model, params, mira, key, video, context)
  each, metrics = system_losses.classification_loss(
    model, logits, targets, terms, context
  )
  metrics['accuracy'] = logits.argmax(-1) == targets.argmax(-1)
  metrics = {n: masked_mean(x, mask) for n, x in metrics.items()}
  added, more = system_losses.additions(model, params, terms, mask, context)
  loss = weighted_mean(each, mask, weights) + added
  return loss, (metrics | more, mira)


def action_units(
  model: Any,
  augmentation: Augmentation,
  *,
  positive_from: int = 1,
  smoothing: float = 0.0,
  unit_weights: Sequence[float] | None = None,
  subjects: Sequence[int] | None = None,
) -> Objective:
  """Cross-entropy of the sigmoid of each action unit, and other systems'.

  The batch has 'units', int [B, A], or [B, T, A] with a model that gives logits
  of every temporal token: intensities, -1 where unknown, which count nowhere.
  Its metrics are the accuracy, and the F1 of all units at once.

  Args:
    model: flax module, as `models.vivit.ViViT`.
    augmentation: (key, uint8 video) -> normalised video.
    positive_from: the intensity from which a unit is shown.
    smoothing: of labels, towards a half.
    unit_weights: [A], of the units in the mean loss.
    subjects: as in `classification`.
  """

  def objective(params: PyTree, mira: PyTree, batch: Batch, key: Array):
    augment_key, dropout_key = jax.random.split(key)
    video = augmentation(augment_key, batch['video'])
    context = system_losses.context(batch, subjects)
    logits, terms, mira = _predict(
      model, params, mira, dropout_key, video, context
    )
    units = batch['units']
    if logits.shape != units.shape:
      raise ValueError(
        f'logits are {logits.shape}, units {units.shape}; unit_labels="token" '
        'goes with pool="frame"'
      )
    mask = batch['mask'].reshape(-1, *[1] * (units.ndim - 1))
    known = (units >= 0) & mask
    shown = units >= positive_from
    loss = unit_cross_entropy(logits, shown, known, smoothing, unit_weights)
    added, metrics = system_losses.additions(
      model, params, terms, batch['mask'], context
    )
    metrics |= unit_metrics(logits, shown, known)
    return loss + added, (metrics, mira)

  return objective


def unit_cross_entropy(
  logits: Array,
  shown: Array,
  known: Array,
  smoothing: float = 0.0,
  weights: Sequence[float] | None = None,
) -> Array:
  """Mean cross-entropy of the known units; 0 when none is.

  Logits, bool `shown` and `known` are [..., A]; see `action_units`.
  """
  targets = shown * (1 - smoothing) + smoothing / 2
  each = optax.sigmoid_binary_cross_entropy(logits, targets)
  scale = jnp.asarray(1.0 if weights is None else weights, jnp.float32)
  scale = jnp.where(known, scale, 0)
  return (each * scale).sum() / jnp.maximum(scale.sum(), 1e-12)


def unit_metrics(logits: Array, shown: Array, known: Array) -> Metrics:
  """Accuracy and F1 of the known units of a batch; 0 when none is."""
  said = logits >= 0
  true = (known & said & shown).sum()
  right, wrong = ((known & x).sum() for x in (said == shown, said != shown))
  return {
    'accuracy': right / jnp.maximum(known.sum(), 1),
    'f1': 2 * true / jnp.maximum(2 * true + wrong, 1),
  }


def freeze_backbone(objective: Objective) -> Objective:
  """The same loss, with gradients for the head and other systems alone."""

  def frozen(params: PyTree, mira: PyTree, batch: Batch, key: Array):
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: (
        x if is_probe(path_name(path)) else jax.lax.stop_gradient(x)
      ),
      params,
    )
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


def _predict(
  model: Any,
  params: PyTree,
  mira: PyTree,
  key: Array,
  video: Array,
  context: Context,
) -> tuple[Array, system_losses.Terms, PyTree]:
  """Logits in training, what losses of systems need, and the new averages."""
  if not getattr(model, 'reads_inputs', False):
    logits, mira = _apply(model, params, mira, key, video)
    return logits, {}, mira
  inputs = Inputs(units=context.units, progress=jnp.asarray(context.progress))
  output, mira = _apply(model, params, mira, key, video, inputs=inputs)
  return *output, mira


def _apply(
  model: Any,
  params: PyTree,
  mira: PyTree,
  key: Array,
  *inputs: Any,
  **options: Any,
) -> tuple[Array, PyTree]:
  """The output of a model in training, and its new averages."""
  output, updates = model.apply(
    {'params': params, 'mira': mira},
    *inputs,
    **options,
    train=True,
    rngs={'dropout': key},
    mutable=['mira'],
  )
  return output, updates.get('mira', {})
