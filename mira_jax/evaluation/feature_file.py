"""Files of features: arrays of the clips of a dataset, one row per clip.

A file holds features [C, D], label, clip_id, subject, fold, split [C],
class_names [K] and `about`, JSON of their origin; and of clips with action
units their names action_units [A], and `positive` and `known` [C, A], the
frames that show a unit and those where that is annotated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax import files
from mira_jax.errors import ExitCode, MiraInputError, data_error

Features = dict[str, np.ndarray]  # by the names above
UNIT_ROWS = ('positive', 'known')
ROWS = ('features', 'label', 'clip_id', 'subject', 'fold', 'split')


def write(
  out: str | os.PathLike[str],
  rows: Features,
  class_names: tuple[str, ...],
  about: Mapping[str, Any],
  action_units: tuple[str, ...] = (),
) -> None:
  """Writes a file; an existing one stays until it is complete.

  `rows` are the arrays of ROWS, with action units also of UNIT_ROWS, and
  `about` has JSON values: dataset (its name), weights_sha256, and what else
  helps.
  """
  arrays: dict[str, Any] = {name: rows[name] for name in ROWS}
  arrays['class_names'] = np.array(class_names)
  if action_units:
    arrays |= {name: rows[name] for name in UNIT_ROWS}
    arrays['action_units'] = np.array(action_units)
  arrays['about'] = np.array(json.dumps(dict(about)))
  with files.atomic(out) as part, part.open('wb') as file:
    np.savez(file, **arrays)


def read(path: str | os.PathLike[str]) -> Features:
  """The arrays of a file.

  Raises:
    MiraInputError: it is not one, or its arrays do not fit together
      ('not_features'); a feature is not finite ('not_finite').
  """
  data: Features = {}
  try:
    with np.load(path, allow_pickle=False) as file:
      data = dict(file)
    wrong = _wrong(data)
  except OSError as error:
    wrong = error.strerror or str(error)
  except files.BAD_ZIP:
    # numpy's own words offer to unpickle the file, which could run code.
    wrong = 'it is no .npz of arrays'
  if wrong:
    hint = f'{wrong}; write one with `mira features`'
    raise MiraInputError('not_features', path, hint)
  if not np.isfinite(data['features']).all():
    hint = 'a feature is NaN or infinite: check the weights'
    raise MiraInputError('not_finite', path, hint, exit_code=ExitCode.NUMERIC)
  return data


def _wrong(data: Features) -> str:
  """Why arrays are no features; '' if they are."""
  missing = [n for n in (*ROWS, 'class_names', 'about') if n not in data]
  if missing:
    return f'it has no {missing[0]}'
  label, clips = data['label'], len(data['label'])
  if data['features'].ndim != 2 or not clips:
    return f'features are {list(data["features"].shape)}, not clips by numbers'
  for name in ROWS:
    if data[name].shape[:1] != (clips,):
      return f'{name} is not of {clips} clips'
  most = len(data['class_names']) - 1
  if (
    label.dtype.kind not in 'iu' or not 0 <= label.min() <= label.max() <= most
  ):
    return f'labels must be whole numbers from 0 to {most}'
  if 'action_units' in data:
    shape = clips, len(data['action_units'])
    for name in UNIT_ROWS:
      array = data.get(name, np.zeros(()))
      if array.shape != shape or array.dtype.kind not in 'iu':
        return f'{name} are no whole numbers of {shape[0]} clips'
  try:
    about(data)
  except ValueError:
    return 'about is not JSON'
  return ''


def about(data: Features) -> dict[str, Any]:
  """The origin of features."""
  return dict(json.loads(str(data['about'])))


def train_and_test(train: Features, test: Features) -> Features:
  """One file's clips as the split 'train', another's as the split 'test'.

  Subjects get the name of their dataset in front, as number 3 of one is not
  number 3 of another.

  Raises:
    MiraInputError: their classes or the weights that made them differ, or a
      clip is in both.
  """
  ours, theirs = about(train), about(test)
  named = [x['class_names'].tolist() for x in (train, test)]
  if named[0] != named[1]:
    hint = f'the training clips have {named[0]}, in this order'
    raise data_error('other_classes', f'classes {named[1]}', hint)
  same = ours.get('weights_sha256') == theirs.get('weights_sha256')
  if not same or train['features'].shape[1:] != test['features'].shape[1:]:
    hint = 'other weights made the training features; use the same for both'
    raise data_error('other_weights', str(theirs.get('weights')), hint)
  if ours.get('dataset') == theirs.get('dataset'):
    both = np.intersect1d(train['clip_id'], test['clip_id'])
    if len(both):
      hint = f'{len(both)} clips are in both files; write one with --splits'
      raise data_error('clip_in_both', str(both[0]), hint)
  names, both = (
    ROWS,
    [x.get('action_units', np.array([])) for x in (train, test)],
  )
  units = {}
  if len(both[0]) and np.array_equal(both[0], both[1]):
    names, units = (*ROWS, *UNIT_ROWS), {'action_units': both[0]}
  joined = {n: np.concatenate([train[n], test[n]]) for n in names}
  joined['split'] = np.repeat(
    ['train', 'test'], [len(train['label']), len(test['label'])]
  )
  joined['subject'] = np.concatenate(
    [_named(x['subject'], y) for x, y in ((train, ours), (test, theirs))]
  )
  return (
    joined
    | units
    | {
      'class_names': train['class_names'],
      'about': np.array(json.dumps({'train': ours, 'test': theirs})),
    }
  )


def _named(subjects: np.ndarray, origin: Mapping[str, Any]) -> np.ndarray:
  return np.array([s and f'{origin.get("dataset")}/{s}' for s in subjects])


def partition(
  data: Features, protocol: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Fold -> masks [C] of its training and of its tested clips.

  'split' trains on the split train and tests the split test, 'folds' are the
  stored ones, 'loso' leaves one subject out.

  Raises:
    MiraInputError: the clips lack what the protocol needs.
  """
  if protocol == 'split':
    train, test = (data['split'] == name for name in ('train', 'test'))
    if not (train.any() and test.any()):
      found = ', '.join(np.unique(data['split']))
      hint = 'it needs the splits train and test; use --protocol=loso or '
      hint += 'folds, or --test=OTHER.npz'
      raise data_error('no_split', f'splits {found}', hint)
    return {'test': (train, test)}
  need = 'subject' if protocol == 'loso' else 'fold'
  keys = data[need]
  unknown = keys == '' if protocol == 'loso' else keys < 0
  if unknown.any():
    hint = f'without a {need}: {unknown.sum()} clips; prepare them with a '
    hint += f'table that has a column {need}'
    raise data_error(f'no_{need}s', protocol, hint)
  groups = np.unique(keys)
  if len(groups) < 2:
    raise data_error(
      'one_fold', protocol, f'all clips are of {need} {groups[0]}'
    )
  name = '{}' if protocol == 'loso' else 'fold {}'
  return {name.format(g): (keys != g, keys == g) for g in groups}
