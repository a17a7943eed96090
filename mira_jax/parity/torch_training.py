"""The same training in JAX and in PyTorch, step by step.

Both start from the same weights and see the same clips in the same order,
without augmentation. Ours is the product's: model, loss, optimiser, schedule
and step. The other is `torch.optim.AdamW` around a model of `torch_peers`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.config import OptimConfig
from mira_jax.parity import golden, torch_compare, torch_peers, training
from mira_jax.parity.torch_compare import Row
from mira_jax.parity.torch_peers import Peer, PyTree, State
from mira_jax.weights import torch_names

Batches = Sequence[tuple[np.ndarray, np.ndarray]]  # clips and labels

BATCH = 4  # windows of a step, or fewer where there are fewer
# Relative differences allowed. Rounding to float32 grows from step to step: its
# bound is for as many steps as the golden trajectories have, at most.
BOUNDS = {
  'float64': golden.FLOAT64_TRAINING_BOUND,
  'float32': golden.FLOAT32_TRAINING_BOUND,
}
FLOAT32_STEPS = 8
METRICS = ('loss', 'grad_norm', 'learning_rate')


@dataclasses.dataclass(frozen=True)
class Trained:
  """A training: numbers of every step, and tensors after the last one.

  Attributes:
    metrics: name -> [N], see METRICS; gradients are not yet clipped.
    tensors: parameters and MiRA's averages by PyTorch's names.
    average: the moving average of the parameters.
  """

  metrics: Mapping[str, Sequence[float]]
  tensors: State
  average: State


@dataclasses.dataclass(frozen=True)
class Step:
  """The numbers of a step in PyTorch, and how far ours are from them."""

  step: int  # from 1
  loss: float
  grad_norm: float
  learning_rate: float
  # By METRICS: the difference over PyTorch's largest number of all steps.
  relative: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Two trainings in one number format."""

  dtype: str  # of the computation
  settings: OptimConfig
  steps: Sequence[Step]
  rows: Sequence[Row]  # after the last step, by layer
  bound: float | None  # of relative differences
  judged: int  # steps that it holds for

  def failures(self) -> list[str]:
    """What is further apart than the bound, the first step first."""
    found = [
      (f'{name.replace("_", " ")} of step {step.step}', step.relative[name])
      for step in self.steps[: self.judged]
      for name in METRICS
    ]
    # Adam divides gradients by their size: of one near 0, rounding to float32
    # decides how far its parameter moves. Few do, so that the norm stays small.
    kind = 'distance' if self.dtype == 'float32' else 'relative'
    if self.judged == len(self.steps):
      found += [(f'{x.name} afterwards', getattr(x, kind)) for x in self.rows]
    bound = math.inf if self.bound is None else self.bound
    # NaN is far, too.
    return [f'{name}: {x:.1e}' for name, x in found if not x <= bound]


def settings_of(steps: int) -> OptimConfig:
  """The optimiser of a comparison, with everything that it can do."""
  return OptimConfig(
    warmup_epochs=steps // 3,  # steps
    layer_decay=0.75,
    clip_norm=1.0,
    ema_decay=0.9,
    spike_sigmas=0.0,  # PyTorch skips no update
  )


def compare(
  fields: Mapping[str, Any],
  variables: PyTree,
  other: Peer,
  video: np.ndarray,
  steps: int,
  *,
  dtype: str = 'float32',
  attention: str | None = None,
) -> Agreement:
  """Trains our model and another for some steps on windows.

  Args:
    fields: of ViViT as JSON.
    variables: {'params': ..., 'mira': ...}, blocks stacked or not.
    other: keeps its weights.
    video: uint8 [W, F, H, W, 3], see `batches_of`.
    steps: N, at least 1.
    dtype: of the computation.
    attention: its implementation here; None is the model's choice.
  """
  settings, depth = settings_of(steps), fields['depth']
  normalised = torch_compare.normalise(video, dtype)
  batches = batches_of(normalised, fields['num_classes'], steps)
  others = theirs(other, batches, settings, depth, dtype)  # errors come soon
  mine = ours(fields, variables, batches, settings, dtype, attention)
  return agreement(other, mine, others, settings, depth, dtype)


def batches_of(video: np.ndarray, classes: int, steps: int) -> Batches:
  """The windows [B, F, H, W, 3] of every step, and their labels int [B].

  Each step takes the next BATCH windows, after the last the first again. The
  label of a window is its number, modulo the classes.
  """
  size = min(BATCH, len(video))
  rows = [(i * size + np.arange(size)) % len(video) for i in range(steps)]
  return [(video[row], row % classes) for row in rows]


def ours(
  fields: Mapping[str, Any],
  variables: PyTree,
  batches: Batches,
  settings: OptimConfig,
  dtype: str,
  attention: str | None = None,
) -> Trained:
  """Our training; tensors have the authors' names. Arguments as in `compare`"""
  with jax.enable_x64(dtype == 'float64'):
    model, variables = torch_compare.plain_model(
      fields, variables, dtype, attention
    )
    given = (
      {
        'video': jnp.asarray(video),
        'target': jax.nn.one_hot(labels, fields['num_classes']),
      }
      for video, labels in batches
    )
    objective = training.classification(model)
    metrics: dict[str, list[float]] = {name: [] for name in METRICS}
    trees: list[PyTree] = []
    for state, found in training.run(
      model, objective, settings, variables, given, len(batches)
    ):
      for name, numbers in metrics.items():
        numbers.append(float(found[name]))
      params = {'params': state.params, 'mira': state.mira}
      trees = [params, {'params': state.average}]
    table = torch_names.CLASSIFIER
    return Trained(metrics, *(torch_names.to_torch(x, table) for x in trees))


def theirs(
  other: Peer, batches: Batches, settings: OptimConfig, depth: int, dtype: str
) -> Trained:
  """The training in PyTorch; tensors have the names of the module."""
  torch: Any = torch_peers.load()
  optim = torch.optim
  metrics: dict[str, list[float]] = {name: [] for name in METRICS}
  with other.held(dtype), _trainable(other) as params:
    optimizer = optim.AdamW(
      _groups(params, settings, depth), betas=(settings.b1, settings.b2)
    )
    schedule = optim.lr_scheduler.LambdaLR(
      optimizer, lambda step: _factor(step, settings, len(batches))
    )
    average = {n: x.detach().clone() for n, x in params.items()}
    move = optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)
    for video, labels in batches:
      optimizer.zero_grad()
      loss = other.loss(other.logits(other.pixels(video), dtype), labels)
      loss.backward()
      gradients = [x.grad for x in params.values() if x.grad is not None]
      norm = torch.nn.utils.get_total_norm(gradients)
      rate = max(schedule.get_last_lr())  # layers before the last have less
      found = (loss.item(), norm.item(), rate)
      for name, number in zip(METRICS, found, strict=True):
        metrics[name].append(number)
      if norm > settings.clip_norm > 0:  # `clip_grad_norm_` adds 1e-6 to it
        for gradient in gradients:
          gradient.mul_(settings.clip_norm / norm)
      optimizer.step()
      schedule.step()
      move(list(average.values()), list(params.values()), None)
    tensors, average = (
      {n: x.detach().numpy().copy() for n, x in tree.items()}
      for tree in (other.module.state_dict(), average)
    )
  return Trained(metrics, tensors, average)


@contextlib.contextmanager
def _trainable(other: Peer) -> Iterator[dict[str, Any]]:
  """Name -> parameter of a module that trains as ours does, without dropout."""
  dropout = torch_peers.load().nn.modules.dropout._DropoutNd
  module = other.module.train().requires_grad_(True)
  for part in module.modules():
    if isinstance(part, dropout):
      part.eval()
  hooks = []
  for name, x in module.named_parameters():
    # Of Hugging Face, and not ours: both would only follow rounding errors, or
    # double those of the class token.
    if re.search(r'(key|k_proj)\.bias$', name):
      x.requires_grad_(False)
    elif name.endswith('position_embeddings'):
      hooks.append(x.register_hook(_without_first))
  try:
    yield dict(module.named_parameters())
  finally:
    for hook in hooks:
      hook.remove()
    module.eval()


def _without_first(gradient: Any) -> Any:
  """Of positions [1, 1 + L, C]: the class token's is no parameter of ours."""
  gradient = gradient.clone()
  gradient[:, 0] = 0
  return gradient


def _groups(
  params: Mapping[str, Any], settings: OptimConfig, depth: int
) -> list[dict[str, Any]]:
  """The groups of a PyTorch optimiser: by layer, and with or without decay."""
  tables = ('pos_embed', 'position_embeddings', 'cls_token')
  groups: dict[tuple[int, bool], list[Any]] = {}
  for name, x in params.items():
    matrix = x.ndim > 1 and not name.endswith(tables)
    key = torch_peers.layer_of(name, depth), matrix
    groups.setdefault(key, []).append(x)
  return [
    {
      'params': found,
      'lr': settings.lr * settings.layer_decay ** (depth + 1 - layer),
      'weight_decay': settings.weight_decay if matrix else 0.0,
    }
    for (layer, matrix), found in groups.items()
  ]


def _factor(step: int, settings: OptimConfig, steps: int) -> float:
  """The learning rate over its peak: linear warm-up, then a cosine."""
  warm = settings.warmup_epochs
  if step < warm:
    return step / max(warm - 1, 1)
  end = settings.final_lr / settings.lr
  part = (step - warm) / max(steps - warm, 1)
  return end + (1 - end) * (1 + math.cos(math.pi * part)) / 2


def agreement(
  other: Peer,
  ours: Trained,
  theirs: Trained,
  settings: OptimConfig,
  depth: int,
  dtype: str,
) -> Agreement:
  """Compares two trainings; `other` names the tensors of the second."""
  apart = {}
  for name in METRICS:
    a, b = (np.asarray(x.metrics[name]) for x in (ours, theirs))
    apart[name] = np.abs(a - b) / (np.abs(b).max() or 1)
  steps = [
    Step(
      i + 1,
      **{n: theirs.metrics[n][i] for n in METRICS},
      relative={n: float(apart[n][i]) for n in METRICS},
    )
    for i in range(len(theirs.metrics['loss']))
  ]
  averages = [n for n in theirs.tensors if n.endswith('c_buf')]
  params = {n: x for n, x in theirs.tensors.items() if n not in averages}
  rows = torch_compare.by_layer(
    other.named(ours.tensors, params), params, depth
  )
  if averages:
    a, b = (np.stack([x.tensors[n] for n in averages]) for x in (ours, theirs))
    rows.append(torch_compare.difference("MiRA's averages", a, b))
  rows += torch_compare.by_layer(
    other.named(ours.average, theirs.average),
    theirs.average,
    depth,
    'average of ',
  )
  judged = min(len(steps), FLOAT32_STEPS) if dtype == 'float32' else len(steps)
  return Agreement(dtype, settings, steps, rows, BOUNDS.get(dtype), judged)
