"""A model with its weights, compiled once per batch size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mira_jax import files
from mira_jax.augment import transforms
from mira_jax.devices import memory, sharding
from mira_jax.inference.scorer import Batch, Scorer, bucket_sizes, most_at_once
from mira_jax.kernels import dispatch
from mira_jax.models.blocks import LARGE
from mira_jax.models.head import Inputs
from mira_jax.models.vivit import ViViT
from mira_jax.param_names import HEAD
from mira_jax.weights import int8

PyTree = Any
Record = dict[str, np.ndarray]
_REMEDY = (
  'use a smaller --batch-size (eval.py, mira features), --views (mira predict) '
  'or --config.data.batch_size (train.py)'
)


_LARGEST = 2**31  # bytes of compiled programs that are kept
_SHORTEST = 0.1  # seconds of a compilation that is worth a file


def use_compile_cache() -> None:
  """Caches compiled programs on disk, unless JAX is configured otherwise."""
  if jax.config.values['jax_compilation_cache_dir'] is not None:
    return
  folder = files.cache()
  # JAX's own limit needs one more package, and locks.
  files.keep_newest(folder, '*-cache', _LARGEST)
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _SHORTEST)


class Engine(Scorer):
  """Probabilities, features and attention records of clips.

  Whether a clip's result depends on the other clips of its batch is up to
  `MiraConfig.statistics`; `Predictor` scores every clip in a batch of its own.

  Args:
    model: the flax module.
    variables: {'params': ..., 'mira': ...}.
    batch_size: clips per call, rounded up to a multiple of the devices.
    mesh: the devices; by default all of them, with replicated parameters.
    units: whether logits are of action units, each with a probability of its
      own (the sigmoid), and not of classes (the softmax).
  """

  def __init__(
    self,
    model: ViViT,
    variables: PyTree,
    batch_size: int = 8,
    mesh: Mesh | None = None,
    units: bool = False,
  ):
    self.model, self.units = model, units
    self.frames, self.image_size = model.frames, model.image_size
    self._mesh = mesh or sharding.make_mesh()
    parts = sharding.clip_parts(self._mesh)
    self.batch_size = -(-batch_size // parts) * parts
    most = self.batch_size
    if self._mesh.devices.flat[0].platform == 'cpu':
      most = max(parts, most_at_once(model, most) // parts * parts)
    self.buckets = bucket_sizes(parts, most)
    self.rows = sharding.own_rows(self._mesh, self.batch_size)
    facts = repr(dispatch.known())  # of which tracing chooses attention
    key: Any = model  # hashable, which pyright does not see
    self._score, self._record = _programs(key, self._mesh, facts, units)
    self.update(variables)

  def update(self, variables: PyTree) -> None:
    """Replaces the weights; nothing is compiled again."""
    where = sharding.shardings(variables, self._mesh)
    self._variables = jax.device_put(variables, where)

  @property
  def variables(self) -> PyTree:
    """{'params': ..., 'mira': ...}, on the devices."""
    return self._variables

  def without_head(self) -> Engine:
    """An engine on the same arrays whose `logits` are features [B, C]."""
    variables = dict(self._variables)
    params = variables['params']
    variables['params'] = {n: x for n, x in params.items() if n != HEAD}
    channels = self.model.channels
    if channels is not None and not channels.regions:  # those of the head
      regions = self.model.num_classes
      channels = dataclasses.replace(channels, regions=regions)
    model = self.model.clone(num_classes=0, channels=channels)
    return Engine(model, variables, self.batch_size, self._mesh)

  def primary(self) -> Engine:
    """An engine on the same arrays without the correction of its predictions.

    Of a model with reliability balancing, see `systems.reliability`.
    """
    assert self.model.reliability is not None
    own = dataclasses.replace(self.model.reliability, output='primary')
    model = self.model.clone(reliability=own)
    return Engine(model, self._variables, self.batch_size, self._mesh)

  def _scores(self, windows: np.ndarray) -> dict[str, np.ndarray]:
    return self._score_batch({'video': windows})

  def _score_batch(self, batch: Batch) -> dict[str, np.ndarray]:
    return self._run(self._score, sharding.put_batch(batch, self._mesh))

  def _run(self, program: Any, batch: Any) -> Any:
    """The outputs of a jitted program on the host."""
    with memory.explained(f'{self.batch_size} clips at once', _REMEDY):
      return jax.device_get(program(self._variables, batch))

  def records(self, windows: np.ndarray) -> list[Record]:
    """What MiRA did to each window uint8 [B, T, S, S, 3], block by block.

    They are the arrays of `blocks.block_record` but those of `blocks.LARGE`.
    """
    self._check(windows)
    return self._run(self._record, windows)


@functools.lru_cache(8)
def _programs(model: ViViT, mesh: Mesh, _: str, units: bool) -> tuple[Any, Any]:
  """The jitted programs of a model, shared by all engines of this process."""

  def score(variables: PyTree, batch: Mapping[str, jax.Array]):
    """The fields of a batch but the video, logits and probabilities."""
    rest = {n: x for n, x in batch.items() if n not in ('video', 'oracle')}
    inputs = Inputs(units=batch.get('oracle'))
    logits = apply(model, variables, batch['video'], inputs=inputs)
    share = jax.nn.sigmoid if units else jax.nn.softmax
    scores = {'logits': logits, 'probabilities': share(logits)}
    return scores | rest

  def record(variables: PyTree, video: jax.Array):
    with_maps = model.clone(attention=None)
    _, records = apply(with_maps, variables, video, record=True)
    # XLA does not compute what is left out here.
    return [
      {name: x for name, x in record.items() if name not in LARGE}
      for record in records
    ]

  def apply(
    model: ViViT, variables: PyTree, video: jax.Array, **options: Any
  ) -> Any:
    with sharding.ambient(mesh):
      return model.apply(
        int8.restore(variables), transforms.prepare(video), **options
      )

  whole = sharding.replicated(mesh)
  return jax.jit(score, out_shardings=whole), jax.jit(record)
