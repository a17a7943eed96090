"""Inference: a model with its weights, compiled once per size of a batch.

Batches come in a few sizes only, the buckets: a smaller one is filled up. What
a clip gives depends on nothing but the clip and the sizes.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mira_jax import output
from mira_jax.augment import transforms
from mira_jax.devices import memory, sharding
from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error
from mira_jax.evaluation.metrics import average_views
from mira_jax.inference import step
from mira_jax.inference.scorer import Scorer as Scorer
from mira_jax.models.build import build_model
from mira_jax.models.vivit import ViViT
from mira_jax.weights import convert, infer_model, int8, sources
from mira_jax.weights.warm_start import Transfer, transfer
from mira_jax.weights.weights_file import WEIGHTS, compact, flatten

PyTree = Any
Record = dict[str, np.ndarray]
_LESS_MEMORY = (
  'take fewer: --batch-size of eval and features, --views of predict, '
  '--config.data.batch_size of train'
)


def use_compile_cache() -> None:
  """Keeps compiled programs in the user's cache, unless JAX was told where."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', str(output.cache()))


def doubled(least: int, most: int) -> tuple[int, ...]:
  """`least` times 1, 2, 4, ... below `most`, and `most`."""
  sizes = (least << i for i in range(most.bit_length()))
  return (*(size for size in sizes if size < most), most)


class Engine(Scorer):
  """Probabilities and records of clips.

  Args:
    model: flax module.
    variables: {'params': ..., 'mira': ...}, arrays of any kind.
    batch_size: clips per call at most, rounded up to a multiple of the devices.
    mesh: the devices; all of them, each with whole parameters, by default.

  Attributes:
    buckets: the devices times 1, 2, 4, ..., and `batch_size`.
    rows: of every batch, those that this host reads.
  """

  def __init__(
    self,
    model: ViViT,
    variables: PyTree,
    batch_size: int = 8,
    mesh: Mesh | None = None,
  ):
    self.model = model
    self.frames, self.image_size = model.frames, model.image_size
    self._mesh = mesh or sharding.make_mesh()
    parts = sharding.clip_parts(self._mesh)
    self.batch_size = -(-batch_size // parts) * parts
    self.buckets = doubled(parts, self.batch_size)
    self.rows = sharding.own_rows(self._mesh, self.batch_size)
    self._score = step.make_eval_step(model, self._mesh)
    self._record = jax.jit(self._apply_record)
    self.update(variables)

  def update(self, variables: PyTree) -> None:
    """Other weights for the same model; nothing compiles again."""
    where = sharding.shardings(variables, self._mesh)
    self._variables = jax.device_put(variables, where)

  def _apply_record(self, variables: PyTree, video: jax.Array):
    model = self.model.clone(attention=None)  # one that has maps
    with sharding.ambient(self._mesh):
      logits, records = model.apply(
        int8.restore(variables), transforms.prepare(video), record=True
      )
    # What is left out here is not computed either.
    small = [
      {name: x for name, x in record.items() if x.ndim == 2}
      for record in records
    ]
    return jax.nn.softmax(logits), small

  def _score_bucket(self, video: np.ndarray) -> np.ndarray:
    batch = sharding.put_batch({'video': video}, self._mesh)
    return self._run(self._score, batch)['probabilities']

  def _run(self, program: Any, batch: Any) -> Any:
    """The result of a jitted program for a batch, on the host."""
    with memory.explained(f'{self.batch_size} clips at once', _LESS_MEMORY):
      return jax.device_get(program(self._variables, batch))

  def records(self, video: np.ndarray) -> tuple[np.ndarray, list[Record]]:
    """What MiRA did to each clip, block by block.

    Args:
      video: uint8 [B, T, H, W, 3].

    Returns:
      Probabilities [B, K], and per block the small arrays (of frames and
      tokens, not the maps) of `encoder.block_record`.
    """
    self._check(video)
    return self._run(self._record, video)

  def score_split(
    self, batches: Iterable[Mapping[str, np.ndarray]], clips: int, views: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores every clip of a split that can be read.

    Args:
      batches: of `data.pipeline.eval_batches`, this host's part.
      clips: in the split.
      views: of every clip.

    Returns:
      Probabilities float64 [C, K], averaged over views, and labels int [C] of
      the C clips that were seen in every view, and the indices of the damaged
      clips that were not; the same on every host.

    Raises:
      MiraInputError: a clip was seen more than `views` times, or none was seen.
    """
    return self._averaged('probabilities', batches, clips, views)

  def features(
    self, batches: Iterable[Mapping[str, np.ndarray]], clips: int, views: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Features of every clip of a split that can be read.

    Args:
      batches: of `data.pipeline.eval_batches`, this host's part.
      clips: in the split.
      views: of every clip.

    Returns:
      Float32 [C, dim], averaged over views, and the indices [C] of the clips
      that they are of; the same on every host. With a model that has classes
      they are its logits.

    Raises:
      MiraInputError: as `score_split`.
    """
    mean, _, damaged = self._averaged('logits', batches, clips, views)
    kept = np.setdiff1d(np.arange(clips), damaged)
    return mean.astype(np.float32), kept

  def _averaged(
    self,
    field: str,
    batches: Iterable[Mapping[str, np.ndarray]],
    clips: int,
    views: int,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A field of the evaluation step, see `score_split`."""
    pieces = []
    for batch in batches:
      keep = self._run(self._score, sharding.put_batch(batch, self._mesh))
      pieces.append({n: x[keep['mask']] for n, x in keep.items()})
    rows = {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]}
    seen = np.bincount(rows['clip'], minlength=clips)
    whole = seen >= views
    if not whole.any():
      code = ExitCode.DATA
      hint = 'not one clip can be read; prepare the dataset again'
      raise MiraInputError('damaged', 'dataset', hint, exit_code=code)
    rows = {name: x[whole[rows['clip']]] for name, x in rows.items()}
    place = np.cumsum(whole) - 1
    clip = place[rows['clip']]
    labels = np.zeros(whole.sum(), np.int64)
    labels[clip] = rows['label']
    mean = average_views(rows[field], clip, len(labels), views)
    return mean, labels, np.flatnonzero(~whole)


def load_file(
  path: str | os.PathLike[str], batch_size: int = 8, **options: Any
) -> tuple[Engine, dict[str, Any]]:
  """The engine and the card of any weights.

  Args:
    path: see `interop.sources.read`.
    batch_size: clips per call at most.
    **options: of `load`.

  Raises:
    MiraInputError: see `interop.convert.read` and `load`.
  """
  return load(convert.read(path), path, batch_size, **options)


def load(
  found: convert.Converted,
  path: str | os.PathLike[str],
  batch_size: int = 8,
  *,
  dtype: str | None = None,
  eight_bits: bool = False,
) -> tuple[Engine, dict[str, Any]]:
  """The engine and the card of weights that were read.

  Args:
    found: the weights.
    path: of them, for errors.
    batch_size: clips per call at most.
    dtype: of the computation, 'float32' or 'bfloat16'; None is the card's.
    eight_bits: whether kernels are held as `int8`.

  Raises:
    MiraInputError: they are no classifier's, or do not fit the card's model.
  """
  card = found.card
  if card.get('pretrain') or not card['class_names']:
    raise no_classifier(path, pretraining=bool(card.get('pretrain')))
  model = build_model(card['model'] | ({'dtype': dtype} if dtype else {}))
  _check_variables(model, found.variables, path)
  variables = found.variables
  if eight_bits:
    variables = int8.quantise(variables)
  return Engine(model, variables, batch_size), card


def no_classifier(
  path: str | os.PathLike[str], pretraining: bool = True
) -> MiraInputError:
  """The error of weights without a head where a classifier is needed."""
  what = 'a pre-training' if pretraining else 'a backbone without a head'
  hint = f'it is {what}; fine-tune it with --config.train.init_from'
  return checkpoint_error('no_classifier', path, hint)


def load_run(
  workdir: str | os.PathLike[str], batch_size: int = 8, **options: Any
) -> tuple[Engine, dict[str, Any]]:
  """The engine and the card of a finished run; options as of `load`.

  Raises:
    MiraInputError: it is no folder of a run ('not_a_run'), the run has no
      weights yet ('not_finished'), or see `load_file`.
  """
  path = pathlib.Path(workdir) / WEIGHTS
  if not path.exists():
    raise not_finished(workdir)
  return load_file(path, batch_size, **options)


def not_finished(workdir: str | os.PathLike[str]) -> MiraInputError:
  """The error of what has no weights: no run, or one that goes on."""
  path = pathlib.Path(workdir)
  if (path / 'config.json').is_file():
    hint = (
      f'there is no {WEIGHTS}; finish the run with train.py first, or score '
      'a checkpoint of it with eval.py --step=newest'
    )
    return checkpoint_error('not_finished', workdir, hint)
  hint = 'name the folder that train.py was given as --workdir'
  inside = [x.parent.name for x in sorted(path.glob('*/config.json'))]
  if inside:
    hint += f', such as {", ".join(inside[:5])} in it'
  if path.is_file():
    hint += '; --weights takes weights alone'
  return checkpoint_error('not_a_run', workdir, hint)


def load_backbone(
  path: str | os.PathLike[str],
  batch_size: int = 8,
  wishes: infer_model.Wishes = infer_model.Wishes(),
) -> tuple[Engine, dict[str, Any], Transfer]:
  """An engine that gives features, from a classifier or a pre-training.

  Args:
    path: see `interop.sources.read`.
    batch_size: clips per call.
    wishes: what the files do not say.

  Returns:
    The engine, the card, and what became of the tensors.

  Raises:
    MiraInputError: see `interop.convert.card_of`, `build_model`, `transfer`; or
      the backbone is not whole.
  """
  source = sources.read(path, wishes.key)
  card, remarks = convert.card_of(source, wishes)
  model = build_model({**card['model'], 'num_classes': 0})
  fresh = jax.jit(model.init)(jax.random.key(0), jnp.zeros(_video_shape(model)))
  variables, told = transfer(jax.device_get(fresh), source, grid=model.grid)
  told = dataclasses.replace(told, notes=[*told.notes, *remarks])
  return Engine(model, variables, batch_size), card, told


def _video_shape(model: ViViT) -> tuple[int, ...]:
  return 1, model.frames, model.image_size, model.image_size, 3


def _check_variables(
  model: ViViT, variables: PyTree, path: str | os.PathLike[str]
) -> None:
  """Names the tensors that are missing, left over or misshapen."""
  video = jax.ShapeDtypeStruct(_video_shape(model), jnp.float32)
  try:
    expected = jax.eval_shape(model.init, jax.random.key(0), video)
  except (ValueError, TypeError, ZeroDivisionError) as cause:
    hint = f'it does not describe a model of this version ({cause})'
    raise checkpoint_error('bad_card', path, hint) from cause
  want, have = (
    {name: leaf.shape for name, leaf in flatten(tree).items()}
    for tree in (expected, variables)
  )
  wrong = [n for n in sorted(want | have) if want.get(n) != have.get(n)]
  if wrong:
    name = wrong[0]
    hint = (
      f'{len(wrong)} tensors do not fit its model: {compact(wrong)}; '
      f'the first is {have.get(name)} where {want.get(name)} is needed'
    )
    raise checkpoint_error('bad_weights', path, hint)
