"""Datasets and batches of a run, from its configuration."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from mira_jax import baseline, config, terminal
from mira_jax.data import dataset as prepared
from mira_jax.data import (
  phased,
  pipeline,
  pool,
  protocol,
  pseudo_labels,
  sampling,
)
from mira_jax.data.dataset import PreparedDataset
from mira_jax.devices import sharding
from mira_jax.errors import MiraInputError
from mira_jax.evaluation import predictions, results, units
from mira_jax.inference.scorer import Scorer
from mira_jax.models.options import oracle_numbers
from mira_jax.synthetic import dataset as synthetic

_ANNOTATED = 256  # clips that are searched for action units
# Action units that one side of the face shows: 'L12', 'AU12R', '12 left'.
_LATERAL = re.compile(r'(au)?[lr]\d+|(au)?\d+\s*(l|r|left|right)', re.I)


def open_datasets(data: config.DataConfig) -> list[PreparedDataset]:
  """Opens prepared datasets; makes `synthetic_faces/...` when missing.

  Raises:
    MiraInputError: there is no such dataset, or the synthetic one there was
      made with other settings.
  """
  paths = [pathlib.Path(name) for name in config.datasets(data)]
  drawn = [path for path in paths if path.parent.name == 'synthetic_faces']
  if jax.process_index() == 0:
    for path in drawn:
      _make_missing(path, data)
  sharding.meet('open_datasets')
  datasets = [prepared.open(path) for path in paths]
  for path, dataset in zip(paths, datasets, strict=True):
    if path in drawn:
      _check_drawn(path, dataset, data)
  return datasets


def report(datasets: Sequence[PreparedDataset]) -> None:
  """Prints name, fingerprint and folder of each dataset."""
  for dataset in datasets:
    mark = prepared.fingerprint(dataset)
    terminal.say(f'dataset {dataset.name} {mark}: {dataset.directory}')


def _make_missing(path: pathlib.Path, data: config.DataConfig) -> None:
  try:
    prepared.open(path)
  except MiraInputError as error:
    if error.code != 'not_a_dataset':
      raise
    count = data.train_clips + data.test_clips
    difficulty, style = synthetic.of_name(path.name)
    terminal.say(f'drawing {count} clips into {path}')
    synthetic.build(
      path,
      difficulty=difficulty,
      style=style,
      train_clips=data.train_clips,
      test_clips=data.test_clips,
      seed=data.synthetic_seed,
    )


def _check_drawn(
  path: pathlib.Path, dataset: PreparedDataset, data: config.DataConfig
) -> None:
  """Raises where this version would draw other clips."""
  asked = {'train': data.train_clips, 'test': data.test_clips}
  metadata, hint = dataset.metadata, ''
  if (dataset.splits, metadata.get('seed')) != (asked, data.synthetic_seed):
    hint = f'it does not have {asked} of seed {data.synthetic_seed}; remove it'
  elif not synthetic.is_current(metadata):
    hint = 'another version of mira_jax made it; remove it to make it again'
  if hint:
    raise config.bad_config(f'config.data.dataset={path}', hint)


def rules(cfg: config.Config) -> protocol.Rules:
  """How a configuration chooses its clips."""
  data = cfg.data
  return protocol.Rules(
    protocol=data.protocol,
    num_folds=data.num_folds,
    fold_rule=data.fold_rule,
    fold_seed=data.fold_seed,
    classes=data.classes,
    test_split=cfg.eval.split,
    val_fraction=data.val_fraction,
    train_fraction=data.train_fraction,
    units=config.units(data) if data.labels == 'action_units' else None,
  )


def _annotations(dataset: PreparedDataset) -> Iterator[str]:
  """The action units of every clip that can be read."""
  for split in dataset.splits:
    source = dataset.source(split)
    for i in range(len(source)):
      with contextlib.suppress(MiraInputError):
        yield source[i].action_units


def _check_annotated(oracle: str, datasets: Sequence[PreparedDataset]) -> None:
  """Raises MiraInputError for a dataset without annotated action units."""
  for dataset in datasets:
    if not any(itertools.islice(_annotations(dataset), _ANNOTATED)):
      hint = f'no clip of {dataset.name} has annotated action units: leave it '
      hint += 'out of config.data.dataset, or train without oracle_units'
      raise config.bad_config(f'config.model.oracle_units={oracle}', hint)


def open_parts(
  cfg: config.Config, datasets: Sequence[PreparedDataset]
) -> protocol.Parts:
  """The training, validation and test clips.

  Raises:
    MiraInputError: see `protocol.parts`; a flip would swap labels; or units
      that the model should read are nowhere annotated.
  """
  if cfg.model.oracle_units:
    _check_annotated(cfg.model.oracle_units, datasets)
  parts = protocol.parts(datasets, rules(cfg), cfg.data.fold)
  learned = parts.train.class_names
  if cfg.data.labels == 'action_units':
    learned = parts.train.action_units
  one_sided = lateral(learned)
  for name, on in (
    ('data.flip', cfg.data.flip),
    ('model.mirror', cfg.model.mirror),
  ):
    if one_sided and on:
      hint = f'a mirrored {one_sided} is of the other side; use '
      raise config.bad_config(f'config.{name}', f'{hint}--noconfig.{name}')
  return parts


def with_pseudo_labels(
  cfg: config.Config,
  datasets: Sequence[PreparedDataset],
  parts: protocol.Parts,
) -> protocol.Parts:
  """Adds the training clips of `data.pseudo_labels`, see `pseudo_labels`."""
  path = cfg.data.pseudo_labels
  if not path:
    return parts
  return pseudo_labels.add(parts, datasets[cfg.data.fold], path)


def lateral(class_names: Sequence[str]) -> str:
  """The first class that one side of a face shows; '' if there is none."""
  return next((name for name in class_names if _LATERAL.fullmatch(name)), '')


def open_unlabelled(
  cfg: config.Config, datasets: Sequence[PreparedDataset]
) -> tuple[pool.Pool, pool.Pool]:
  """Clips to pre-train on, and held-out ones, see `protocol.unlabelled`.

  Where `val_fraction` holds out no subject, both are the same.
  """
  whole, held = protocol.unlabelled(datasets, rules(cfg), cfg.data.fold), None
  if cfg.data.val_fraction:
    held, _ = protocol.carve(whole, cfg.data.val_fraction, cfg.data.fold_seed)
  if held is None or not held.any():
    return whole, whole
  return whole.take(~held), whole.take(held)


def describe(parts: protocol.Parts, phases: str = 'none') -> str:
  """The datasets and the numbers of clips of each part, in one line."""
  names = '+'.join(dict.fromkeys(parts.train.dataset.tolist()))
  tested = '+'.join(dict.fromkeys(parts.test.dataset.tolist()))
  val = f', val {len(parts.val)} ({parts.rule})' if parts.val else ''
  fold = f'{parts.fold_name}: ' if parts.fold_name else ''
  at = '' if tested == names else f' of {tested}'
  train = f'{len(parts.train)}'
  if parts.pseudo:
    train += f' ({parts.pseudo} of them test clips with pseudo-labels)'
  if phases != 'none':
    train += f' and {phased.samples(phases) - 1} phases of each'
  return f'{fold}{names}: train {train}{val}, test {len(parts.test)}{at}'


def reading(cfg: config.Config) -> dict[str, Any]:
  """Arguments of the functions of `pipeline` that say how clips are read."""
  learns_units = cfg.data.labels == 'action_units' and not cfg.pretrain
  return {
    'frames': cfg.model.frames,
    'size': cfg.model.image_size,
    'batch_size': cfg.data.batch_size,
    'rate': cfg.data.rate,
    'fit': cfg.data.fit,
    'threads': cfg.data.threads,
    'max_damaged': cfg.data.max_damaged,
    'units': cfg.data.unit_labels if learns_units else 'none',
    'tubelet': cfg.model.tubelet,
    'oracle': oracle_numbers(cfg.model),
  }


def below_baseline(
  cfg: config.Config,
  datasets: Sequence[PreparedDataset],
  workdir: pathlib.Path,
  folds: Sequence[results.Fold],
) -> str:
  """`baseline.below` of a run and the stored baseline; '' without one."""
  known = baseline.find(datasets, rules(cfg), workdir)
  return baseline.below(known, folds) if known else ''


def score_source(
  scorer: Scorer,
  source: pool.Pool,
  cfg: config.Config,
  views: int,
  fold: str = '',
) -> predictions.Predictions:
  """The predictions of the clips of a fold, without damaged ones."""
  read = reading(cfg) | {'batch_size': scorer.batch_size, 'rows': scorer.rows}
  batches = pipeline.eval_batches(source, views=views, **read)
  mean, _, damaged = scorer.score_split(batches, len(source), views)
  _warn_of_damaged(source, damaged)
  kept = source.take(np.setdiff1d(np.arange(len(source)), damaged))
  return kept.predicted(mean, fold)


def score_units(
  scorer: Scorer,
  source: pool.Pool,
  cfg: config.Config,
  views: int,
  fold: str = '',
  names: Sequence[str] = (),
) -> units.UnitPredictions:
  """Samples of the views of the clips of a fold, without damaged clips.

  `names` are the model's outputs, by default the units of the clips, which are
  some of them. A frame that several views hold as their sample counts once.
  """
  read = reading(cfg) | {'batch_size': scorer.batch_size, 'rows': scorer.rows}
  batches = pipeline.eval_batches(source, views=views, **read)
  rows = scorer.score_rows(batches)
  clip, probability, intensity = (
    rows[name] for name in ('clip', 'probabilities', 'units')
  )
  _warn_of_damaged(source, np.setdiff1d(np.arange(len(source)), clip))
  columns = [
    (names or source.action_units).index(x) for x in source.action_units
  ]
  frame, tokens = rows['frame'], 1
  if probability.ndim == 3:
    tokens = probability.shape[1]
    frame = _token_frames(source.num_frames[clip], rows['view'], views, cfg)
  clip = np.repeat(clip, tokens)
  count = len(source.action_units)
  return units.UnitPredictions(
    unit_names=source.action_units,
    positive_from=source.positive_from,
    clip=source.clip_id[clip],
    frame=frame.ravel(),
    subject=source.subject[clip],
    fold=np.full(len(clip), fold),
    intensity=intensity.reshape(-1, count),
    probability=probability[..., columns].reshape(-1, count),
  ).once()


def _token_frames(
  num_frames: np.ndarray, view: np.ndarray, views: int, cfg: config.Config
) -> np.ndarray:
  """The first frame of every temporal token of windows, int [W, T]."""
  size, rate, each = cfg.model.frames, cfg.data.rate, cfg.model.tubelet
  return np.stack(
    [
      sampling.test_indices(count, size, rate, own, views)[::each]
      for count, own in zip(num_frames.tolist(), view.tolist(), strict=True)
    ]
  )


def _warn_of_damaged(source: pool.Pool, damaged: np.ndarray) -> None:
  if len(damaged):
    text = '%d of %d clips are damaged and were left out: %s'
    logging.warning(text, len(damaged), len(source), damaged[:8].tolist())
