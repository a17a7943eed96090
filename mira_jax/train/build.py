"""Model, loss, optimiser and training step of a configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from mira_jax import config
from mira_jax.data.pool import Pool
from mira_jax.devices import sharding
from mira_jax.evaluation import results
from mira_jax.kernels import dispatch
from mira_jax.models import build, mae, options
from mira_jax.models.vivit import ViViT
from mira_jax.train import losses, optim
from mira_jax.train import step as steps

PyTree = Any
# Of frequencies, in the weights of classes or action units.
POWERS = {'none': 0.0, 'inverse_sqrt': 0.5, 'inverse': 1.0}
Model = ViViT | mae.MaskedAutoencoder


class Program(NamedTuple):
  """A model and its loss."""

  model: Model
  init: Callable[[jax.Array], PyTree]  # random key -> variables
  objective: losses.Objective
  attention: str  # the implementation that runs, and why, in one line


def make(cfg: config.Config, mesh: Mesh) -> Program:
  """The program of a valid configuration whose number of classes is known.

  Raises:
    MiraInputError: the configured attention does not run on this mesh.
  """
  if cfg.pretrain:
    return autoencoder(cfg, mesh)
  units = cfg.data.labels == results.UNITS
  return (action_units if units else classifier)(cfg, mesh)


def video_shape(cfg: config.Config, clips: int = 1) -> tuple[int, ...]:
  """Shape [B, F, H, W, 3] of the model's input."""
  model = cfg.model
  return (clips, model.frames, model.image_size, model.image_size, 3)


def classifier(
  cfg: config.Config,
  mesh: Mesh,
  counts: Sequence[int] = (),
  subjects: Sequence[int] = (0,),
) -> Program:
  """Classification, see `make`.

  `counts` of clips per class weigh the loss; `subjects` are the numbers of the
  subjects of all training clips, for identity adversarial training.
  """
  model = build.build_model(dataclasses.asdict(cfg.model))
  weights = None
  if power := POWERS[cfg.optim.class_weights]:
    even = [1] * model.num_classes  # no dataset is opened
    weights = losses.inverse_weights(counts if len(counts) else even, power)
  objective = losses.classification(
    model,
    config.augment(cfg.data),
    smoothing=cfg.optim.label_smoothing,
    mixup_alpha=cfg.data.mixup_alpha,
    cutmix_alpha=cfg.data.cutmix_alpha,
    copies=cfg.data.repeats,
    class_weights=weights,
    subjects=subjects if model.identity else None,
  )
  if cfg.optim.freeze_backbone:
    objective = losses.freeze_backbone(objective)

  def init(key: jax.Array) -> PyTree:
    return model.init(key, jnp.zeros(video_shape(cfg), jnp.float32))

  return Program(model, init, objective, _attention(cfg, model, mesh))


def action_units(
  cfg: config.Config,
  mesh: Mesh,
  clips: Pool | None = None,
  subjects: Sequence[int] = (0,),
) -> Program:
  """Action units, see `make`; of training clips that weigh the loss.

  `subjects` are as in `classifier`.
  """
  made = classifier(cfg, mesh)
  weights = None
  if clips is not None and (power := POWERS[cfg.optim.class_weights]):
    rates = clips.positive.sum(0) / np.maximum(clips.known.sum(0), 1)
    weights = losses.inverse_weights(rates.tolist(), power)
  objective = losses.action_units(
    made.model,
    config.augment(cfg.data),
    positive_from=1 if clips is None else clips.positive_from,
    smoothing=cfg.optim.label_smoothing,
    unit_weights=weights,
    subjects=subjects if made.model.identity else None,
  )
  if cfg.optim.freeze_backbone:
    objective = losses.freeze_backbone(objective)
  return made._replace(objective=objective)


def autoencoder(cfg: config.Config, mesh: Mesh) -> Program:
  """Masked pre-training, see `make`."""
  pretrain = cfg.pretrain
  assert pretrain is not None
  fields = dataclasses.asdict(pretrain).items()
  decoder = {n: x for n, x in fields if n.startswith('decoder_')}
  model = build.build_autoencoder(dataclasses.asdict(cfg.model), decoder)
  draw = functools.partial(draw_mask, cfg, shape=video_shape(cfg))
  objective = losses.reconstruction(
    model,
    config.augment(cfg.data),
    kind=pretrain.mask,
    ratio=pretrain.mask_ratio,
    normalise=pretrain.normalise_targets,
  )

  def init(key: jax.Array) -> PyTree:
    mask, hidden = draw(jax.random.key(0))
    video = jnp.zeros(video_shape(cfg), jnp.float32)
    return model.init(key, video, mask, num_masked=hidden)

  return Program(model, init, objective, _attention(cfg, model, mesh))


def draw_mask(
  cfg: config.Config, key: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, int]:
  """The mask of pre-training for videos of a shape, see `mae.draw_mask`."""
  assert cfg.pretrain is not None
  return mae.draw_mask(
    key,
    shape,
    cfg.model.tubelet,
    cfg.model.patch,
    kind=cfg.pretrain.mask,
    ratio=cfg.pretrain.mask_ratio,
  )


# ----- attention --------------------------------------------------------------


class AttentionCall(NamedTuple):
  """What a part of a model asks of attention, in all clips of a batch."""

  part: str  # 'encoder' or 'decoder'
  shape: tuple[int, int, int, int]  # [B, L, H, D] of queries
  dtype: Any
  mode: dispatch.Mode


def attention_calls(cfg: config.Config, model: Model) -> list[AttentionCall]:
  """One call of the encoder, and one of the decoder if there is one.

  Args:
    cfg: the configuration.
    model: that it makes.
  """
  rows = cfg.data.batch_size * cfg.data.repeats // cfg.optim.accumulate
  temporal = cfg.model.frames // cfg.model.tubelet
  spatial = whole = (cfg.model.image_size // cfg.model.patch) ** 2
  if cfg.pretrain:
    mask, hidden = draw_mask(cfg, jax.random.key(0), shape=video_shape(cfg))
    spatial = (mask.shape[1] - hidden) // temporal
  batch, length, heads = rows, temporal * spatial, model.heads
  mode = 'plain' if model.mira is None else model.mira.mode
  soa = model.orientation
  if mode == 'plain' and soa is not None and soa.target == 'keys':
    mode = 'flashlite'  # a gain on keys
  if model.variant.startswith('factorised'):  # within frames, without MiRA
    batch, length, mode = rows * temporal, spatial, 'plain'
  if model.variant == 'factorised_dot_product':
    heads //= 2
  length += getattr(model, 'pool', 'mean') == 'cls'
  shape = batch, length, heads, model.dim // model.heads
  calls = [AttentionCall('encoder', shape, model.dtype, mode)]
  if isinstance(model, mae.MaskedAutoencoder):
    heads = model.decoder_heads
    shape = rows, temporal * whole, heads, model.decoder_dim // heads
    calls.append(AttentionCall('decoder', shape, model.dtype, 'plain'))
  return calls


def _attention(cfg: config.Config, model: Model, mesh: Mesh) -> str:
  """The attention implementation that runs, and why, in one line.

  Raises:
    MiraInputError: the configured or forced one does not run here.
  """
  lines = {}
  with sharding.ambient(mesh):
    for part, shape, dtype, mode in attention_calls(cfg, model):
      q: Any = jax.ShapeDtypeStruct(shape, dtype)
      whole = part == 'encoder' and cfg.model.needs_map
      asked = dispatch.request(q, q, q, mode, True, whole)
      choice = dispatch.resolve(model.attention, asked)
      lines.setdefault(f'{choice.name} ({choice.why})', part)
  first, *others = lines
  parts = [f'{lines[line]}: {line}' for line in others]
  return '; '.join([f'attention: {first}', *parts])


# ----- the step ---------------------------------------------------------------


class Training(NamedTuple):
  """The functions of a training."""

  init: Callable[[jax.Array], steps.TrainState]  # random key -> a fresh state
  step: Callable  # see `step.make_train_step`
  target: steps.TrainState  # shapes and shardings of the state


def training(
  cfg: config.Config,
  program: Program,
  mesh: Mesh,
  steps_per_epoch: float,
  *,
  donate: bool = True,
) -> Training:
  """The jitted step of a program with its optimiser; `donate` its state.

  Of fewer steps per epoch than there are, also of a fraction, the schedule is
  shorter, and its warm-up in proportion.
  """
  schedule = optim.warmup_cosine(
    peak=config.peak_lr(cfg),
    final=config.final_lr(cfg),
    warmup_steps=round(cfg.optim.warmup_epochs * steps_per_epoch),
    total_steps=round(cfg.train.epochs * steps_per_epoch),
  )
  oriented = cfg.model.orientation is not None
  optimizer = make_optimizer(cfg.optim, schedule, oriented)
  step = steps.make_train_step(
    program.objective,
    optimizer,
    schedule,
    mesh,
    repeats=cfg.data.repeats,
    accumulate=cfg.optim.accumulate,
    ema_decay=cfg.optim.ema_decay,
    spike_sigmas=cfg.optim.spike_sigmas,
    total_steps=round(cfg.train.epochs * steps_per_epoch),
    donate=donate,
  )
  init = functools.partial(
    steps.init_state,
    program.init,
    optimizer,
    averaged=cfg.optim.ema_decay > 0,
  )
  target = sharding.abstract(jax.eval_shape(init, abstract_key(mesh)), mesh)
  return Training(init, step, target)


def make_optimizer(
  cfg: config.OptimConfig, schedule: optax.Schedule, oriented: bool = False
) -> optax.GradientTransformation:
  """The optimiser of a configuration; `oriented` of a model with SOA."""
  direction_factor = cfg.direction_factor if oriented else 1.0
  optimizer = optim.OPTIMIZERS[cfg.name](
    schedule,
    weight_decay=cfg.weight_decay,
    b1=cfg.b1,
    b2=cfg.b2,
    clip_norm=cfg.clip_norm,
    layer_decay=1.0 if cfg.freeze_backbone else cfg.layer_decay,
    direction_factor=direction_factor,
  )
  return optim.head_only(optimizer) if cfg.freeze_backbone else optimizer


def abstract_batch(
  cfg: config.Config, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and shardings of a training batch, see `data.pipeline`."""
  split = NamedSharding(mesh, sharding.BATCH)
  clips = cfg.data.batch_size
  fields = {
    'video': (video_shape(cfg, clips), jnp.uint8),
    'label': ((clips,), jnp.int32),
    'clip': ((clips,), jnp.int32),
    'mask': ((clips,), jnp.bool_),
  }
  if cfg.data.labels == results.UNITS and not cfg.pretrain:
    tokens = cfg.model.frames // cfg.model.tubelet
    middle = (tokens,) if cfg.data.unit_labels == 'token' else ()
    fields['units'] = (clips, *middle, cfg.model.num_classes), jnp.int32
  if annotated := options.oracle_numbers(cfg.model):
    fields['oracle'] = (clips, len(annotated)), jnp.float32
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
    for name, (shape, dtype) in fields.items()
  }


def abstract_key(mesh: Mesh) -> jax.ShapeDtypeStruct:
  """The random key of a run as an argument of the step."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  where = sharding.replicated(mesh)
  return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=where)
