"""What one step computes: the state, the training step, the evaluation step.

The model is any object with `init` and `apply` as flax modules have them.
Randomness is an argument: every draw comes from a key folded with the step, so
a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mira_jax import augment, mixing, sharding

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]
Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(kw_only=True)
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: int32 [], how many updates were made.
    params: the 'params' collection.
    mira: the 'mira' collection (averages of MiRA); {} without.
    opt_state: of the optimizer.
  """

  step: Array
  params: PyTree
  mira: PyTree
  opt_state: PyTree

  @property
  def variables(self) -> dict[str, PyTree]:
    """What `model.apply` takes."""
    return {'params': self.params, 'mira': self.mira}


def init_state(
  model: Any,
  optimizer: optax.GradientTransformation,
  key: Array,
  video_shape: tuple[int, ...],
) -> TrainState:
  """A fresh state for clips of `video_shape` [B, T, H, W, 3]."""
  variables = model.init(key, jnp.zeros(video_shape, jnp.float32))
  params = variables['params']
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    mira=variables.get('mira', {}),
    opt_state=optimizer.init(params),
  )


def abstract(
  init: Callable[[Array], TrainState], key: Array, mesh: Mesh
) -> TrainState:
  """`init(key)` as shapes with shardings: what a checkpoint restores to."""
  shapes = jax.eval_shape(init, key)
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    sharding.shardings(shapes, mesh),
  )


def soft_targets(label: Array, num_classes: int, smoothing: float) -> Array:
  """int [B] -> float32 [B, K], rows of sum 1.

  Args:
    label: [B], in 0 to K - 1.
    num_classes: K.
    smoothing: s; a class gets s / K, the label 1 - s more.
  """
  return optax.smooth_labels(jax.nn.one_hot(label, num_classes), smoothing)


def cross_entropy(logits: Array, targets: Array, mask: Array) -> Array:
  """Mean cross-entropy of the clips whose mask is True; 0 when none is.

  Args:
    logits: [B, K].
    targets: [B, K], see `soft_targets`.
    mask: bool [B].
  """
  return masked_mean(optax.softmax_cross_entropy(logits, targets), mask)


def masked_mean(values: Array, mask: Array) -> Array:
  """Mean of values [B] where mask [B] is True; 0 when it nowhere is."""
  total = jnp.where(mask, values, 0).sum()
  return total / jnp.maximum(mask.sum(), 1)


def make_train_step(
  model: Any,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  augmentation: Callable[[Array, Array], Array],
  mesh: Mesh,
  *,
  smoothing: float = 0.0,
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """The jitted training step (state, batch, key) -> (state, metrics).

  The state is donated: the one passed in is gone afterwards. `key` is the
  run's; the step folds itself into it.

  Args:
    model: flax module with a field `num_classes`.
    optimizer: as in `optim.adamw`.
    schedule: of the optimizer, to report the learning rate.
    augmentation: (key, uint8 video) -> what the model is fed.
    mesh: the devices, see `sharding`.
    smoothing: of labels.
    mixup_alpha: see `mixing.mix`; 0 leaves mixup out.
    cutmix_alpha: likewise for cutmix. Either needs batches without masked rows.

  Returns:
    A function whose metrics are scalars: loss, accuracy (of the class with the
    largest target), grad_norm, learning_rate.
  """

  def loss_fn(params: PyTree, mira: PyTree, batch: Batch, key: Array):
    augment_key, dropout_key, mix_key = jax.random.split(key, 3)
    video, targets = mixing.mix(
      mix_key,
      augmentation(augment_key, batch['video']),
      soft_targets(batch['label'], model.num_classes, smoothing),
      mixup_alpha=mixup_alpha,
      cutmix_alpha=cutmix_alpha,
    )
    logits, updates = model.apply(
      {'params': params, 'mira': mira},
      video,
      train=True,
      rngs={'dropout': dropout_key},
      mutable=['mira'],
    )
    loss = cross_entropy(logits, targets, batch['mask'])
    correct = logits.argmax(-1) == targets.argmax(-1)
    return loss, (correct, updates.get('mira', {}))

  def step(state: TrainState, batch: Batch, key: Array):
    key = jax.random.fold_in(key, state.step)
    with sharding.ambient(mesh):
      (loss, (correct, mira)), grads = jax.value_and_grad(
        loss_fn, has_aux=True
      )(state.params, state.mira, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
      'loss': loss,
      'accuracy': masked_mean(correct, batch['mask']),
      'grad_norm': optax.tree.norm(grads),
      'learning_rate': schedule(state.step),
    }
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      mira=mira,
      opt_state=opt_state,
    )
    # The new state lies as the old one did, or the next step would compile
    # again.
    where = sharding.shardings(state, mesh)
    return jax.lax.with_sharding_constraint(state, where), metrics

  return jax.jit(step, donate_argnums=0)


def make_eval_step(
  model: Any, mesh: Mesh
) -> Callable[[PyTree, Batch], dict[str, Array]]:
  """The jitted evaluation step (variables, batch) -> probabilities.

  Returns:
    A function that keeps every field of the batch but the video and adds
    `probabilities` [B, K], all of them whole on every device.
  """

  def step(variables: PyTree, batch: Batch) -> dict[str, Array]:
    with sharding.ambient(mesh):
      logits = model.apply(variables, augment.prepare(batch['video']))
    rest = {name: x for name, x in batch.items() if name != 'video'}
    return {'probabilities': jax.nn.softmax(logits), **rest}

  return jax.jit(step, out_shardings=sharding.replicated(mesh))
