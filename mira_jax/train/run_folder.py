"""The folder of a run: its lock, configuration, identity and metadata."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mira_jax import config, files
from mira_jax.data.dataset import PreparedDataset, fingerprint
from mira_jax.errors import (
  MiraInputError,
  checkpoint_error,
  not_written,
  some,
)
from mira_jax.evaluation.predictions import NAME as PREDICTIONS
from mira_jax.evaluation.units import NAME as UNIT_PREDICTIONS
from mira_jax.weights.metadata import check_metadata, parse_metadata
from mira_jax.weights.weights_file import LAST, WEIGHTS

CONFIG, METADATA, LOCK = 'config.json', 'metadata.json', '.lock'
# Written over whenever a run starts or ends.
_FILES = (
  *(CONFIG, METADATA, WEIGHTS, LAST, PREDICTIONS),
  *(UNIT_PREDICTIONS, 'curves.png', 'curves.npz'),
)


def open_workdir(path: str) -> pathlib.Path:
  """Makes the folder of a run. Raises MiraInputError when it cannot write."""
  if '://' in path:
    hint = 'give a local or mounted folder; remote paths are not supported'
    raise not_written(path, hint)
  return files.open_folder(path)


@contextlib.contextmanager
def sole_process(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a run's folder, and clears the places of its files.

  Of several hosts the first one holds it. Reading a run needs no lock.

  Raises:
    MiraInputError: another process trains into the folder ('locked').
  """
  refused = None
  with contextlib.ExitStack() as held:
    if jax.process_index() == 0:
      files.clear_for_file(workdir / LOCK)
      try:
        held.enter_context(files.lock(workdir / LOCK, checkpoint_error))
      except MiraInputError as error:
        refused = error
    if jax.process_count() > 1:
      ours = multihost_utils.broadcast_one_to_all(np.array(refused is None))
      if not ours and refused is None:
        refused = checkpoint_error('locked', workdir, 'host 0 reports by whom')
    if refused is not None:
      raise refused
    if jax.process_index() == 0:
      for name in _FILES:
        files.clear_for_file(workdir / name)
    yield


def fold(workdir: pathlib.Path, number: int) -> pathlib.Path:
  """The folder of a fold's run in that of all folds."""
  return workdir / f'fold-{number}'


def folds(workdir: pathlib.Path) -> dict[int, pathlib.Path]:
  """The runs of folds in a folder by number, in their order."""
  found = {
    int(name): path.parent
    for path in workdir.glob(f'fold-*/{CONFIG}')
    if (name := path.parent.name.removeprefix('fold-')).isdecimal()
  }
  return dict(sorted(found.items()))


def read_config(workdir: pathlib.Path) -> config.Config:
  """The configuration of a run.

  Raises:
    MiraInputError: there is none ('not_a_run'), or it cannot be used.
  """
  path = workdir / CONFIG
  if not path.is_file():
    hint = 'name the folder that train.py was given as --workdir'
    raise MiraInputError('not_a_run', workdir, hint)
  try:
    cfg = config.from_json(path.read_bytes())
    config.validate(cfg, devices=None)
  except (OSError, MiraInputError) as error:
    hint = f'{error}; the command that trains the run writes the file anew'
    raise config.bad_config(f'{path}', hint) from error
  return cfg


# Where data and tables lie, how fast they are read, and how devices share the
# work may change within a run; not what tables say, see `Task.facts`.
_MAY_CHANGE = {
  'mesh': ('data', 'fsdp', 'model'),
  'model': ('attention', 'remat'),
  'data': ('dataset', 'threads', 'max_damaged', 'classes', 'pseudo_labels'),
  'optim': ('max_bad_steps',),
  'train': ('log_every', 'save_every', 'eval_every', 'patience'),
  'eval': ('views', 'look_views', 'select_by', 'min_val_clips', 'watch_test'),
}


def identity(cfg: config.Config, fingerprints: Sequence[str]) -> dict[str, Any]:
  """What must not change when a run is resumed, in groups as of flags."""
  facts: dict[str, Any] = {'dataset': list(fingerprints)}
  facts |= dataclasses.asdict(cfg)
  for group, ignored in _MAY_CHANGE.items():
    for name in ignored:
      del facts[group][name]
  return facts


def older_defaults(cfg: config.Config) -> dict[str, Any]:
  """What a field counts as that the checkpoint of an older version lacks."""
  folds = {'data.fold_rule': config.OLDER_FOLDS, 'data.fold_seed': cfg.seed}
  return config.defaults() | folds


def changes(
  saved: Mapping[str, Any],
  current: Mapping[str, Any],
  defaults: Mapping[str, Any],
  group: str = '',
) -> Iterator[tuple[str, Any, Any]]:
  """Names whose values differ, with both; what `saved` lacks is a default."""
  for key, now in current.items():
    name = group + key
    before = saved.get(key, defaults.get(name))
    if isinstance(before, dict) and isinstance(now, dict):
      yield from changes(before, now, defaults, f'{name}.')
    elif before != now:
      yield name, before, now


def other_settings(workdir: pathlib.Path, cfg: config.Config) -> list[str]:
  """A line where the configuration of a trained fold is another one.

  Folds may differ, as where some are trained anew with another configuration.
  """
  saved = read_config(workdir)
  mine = filled_in(cfg, saved)
  mine.data.fold = saved.data.fold
  found = [
    f'{name} {before!r}, not {now!r}'
    for name, before, now in changes(
      identity(saved, ()), identity(mine, ()), {}
    )
  ]
  text = f'{workdir} was trained with {some(found, 3)}: '
  return [f'{text}remove it to train it anew'] * bool(found)


def filled_in(cfg: config.Config, saved: config.Config) -> config.Config:
  """A copy with what a run of it filled in where the configuration has 0."""
  mine = copy.deepcopy(cfg)
  model, theirs = mine.model, saved.model
  model.num_classes = model.num_classes or theirs.num_classes
  if model.channels is not None and theirs.channels is not None:
    model.channels.regions = model.channels.regions or theirs.channels.regions
  if model.identity is not None and theirs.identity is not None:
    model.identity.subjects = (
      model.identity.subjects or theirs.identity.subjects
    )
  return mine


def check_rules(workdir: pathlib.Path, cfg: config.Config) -> None:
  """Raises MiraInputError for a fold whose configuration has other folds."""
  theirs, ours = read_config(workdir).data, cfg.data
  for name in ('protocol', 'num_folds', 'fold_rule', 'fold_seed'):
    before, now = getattr(theirs, name), getattr(ours, name)
    if before != now:
      hint = f'the fold was trained with data.{name} {before!r}, not {now!r}; '
      hint += 'restore that, or choose a new --workdir'
      raise checkpoint_error('run_changed', workdir, hint)


def keep_folds(cfg: config.Config, workdir: pathlib.Path) -> None:
  """Takes over the folds of a run that an older version started here.

  A configuration that asks for other folds than the default is left as it is;
  `identity` then refuses to resume.
  """
  data, default = cfg.data, config.DataConfig()
  asked = (data.fold_rule, data.fold_seed)
  if asked != (default.fold_rule, default.fold_seed):
    return
  try:
    before = config.from_json((workdir / CONFIG).read_bytes()).data
  except (OSError, MiraInputError):
    return
  if before.fold_rule == config.OLDER_FOLDS:
    data.fold_rule, data.fold_seed = before.fold_rule, before.fold_seed


def fit_classes(cfg: config.Config, class_names: Sequence[str]) -> None:
  """Fills in the number of outputs, also as that of regions, or checks it.

  Raises:
    MiraInputError: another number of them, or a single class.
  """
  found = len(class_names)
  if found < 2 and cfg.data.labels == 'classes':
    hint = f'its clips have one class, {class_names[0]!r}; to learn action '
    hint += "units, set config.data.labels='action_units'"
    raise config.bad_config(f'config.data.dataset={cfg.data.dataset}', hint)
  cfg.model.num_classes = cfg.model.num_classes or found
  if (channels := cfg.model.channels) is not None:
    channels.regions = channels.regions or cfg.model.num_classes
  if cfg.model.num_classes != found:
    hint = f'the data has {found} classes; use that, or 0'
    name = f'config.model.num_classes={cfg.model.num_classes}'
    raise config.bad_config(name, hint)


def fit_subjects(cfg: config.Config, subjects: Sequence[str]) -> list[int]:
  """Numbers of the subjects of training clips; -1 where they are unknown.

  Fills in how many they are where the model learns to forget them.

  Raises:
    MiraInputError: none is known, or another number is configured.
  """
  names = sorted({*subjects} - {''})
  place = {name: i for i, name in enumerate(names)}
  if cfg.model.identity is not None:
    given = cfg.model.identity.subjects
    if not names or given not in (0, len(names)):
      hint = f'the training clips name {len(names)} subjects; '
      hint += 'use 0 for their number' if names else 'leave identity out (None)'
      name = f'config.model.identity.subjects={given}'
      raise config.bad_config(name, hint)
    cfg.model.identity.subjects = len(names)
  return [place.get(name, -1) for name in subjects]


def write_metadata(workdir: pathlib.Path, metadata: Mapping[str, Any]) -> None:
  """Writes metadata.json beside config.json, for scoring checkpoints.

  It also names the versions and devices that the run began with.
  """
  content = dict(metadata) | {'environment': _environment()}
  files.write_text(workdir / METADATA, json.dumps(content, indent=2) + '\n')


def _environment() -> dict[str, str]:
  """Versions and devices, in words."""
  names = ('mira-jax', 'jax', 'flax', 'optax', 'numpy')
  found = {'python': platform.python_version()}
  found |= {name: importlib.metadata.version(name) for name in names}
  kinds = collections.Counter(x.device_kind for x in jax.devices())
  devices = ', '.join(f'{count} {kind}' for kind, count in kinds.items())
  return found | {'devices': devices}


def read_origin(workdir: pathlib.Path) -> dict[str, Any]:
  """The weights that a run started from, see `Source.origin`; {}: unknown."""
  try:
    found = json.loads((workdir / METADATA).read_bytes()).get('source')
  except (OSError, ValueError, AttributeError):
    return {}
  return found if isinstance(found, dict) else {}


def read_metadata(workdir: pathlib.Path, cfg: config.Config) -> dict[str, Any]:
  """The metadata of a run of this configuration.

  Raises:
    MiraInputError: it is missing, damaged or another run's ('bad_metadata').
  """
  path = workdir / METADATA
  try:
    content = parse_metadata(path.read_text('utf-8'), path)
    check_metadata(content, path)
    content.pop('environment', None)  # of the weights it says nothing
    if len(content['class_names']) == cfg.model.num_classes:
      return content
  except (OSError, ValueError):
    pass
  hint = 'it is missing or damaged; the command that trains the run writes it'
  raise checkpoint_error('bad_metadata', path, f'{hint} anew')


def metadata(
  cfg: config.Config,
  datasets: Sequence[PreparedDataset],
  class_names: Sequence[str],
  step: int,
) -> dict[str, Any]:
  """The metadata of a weights file."""
  return {
    # How attention was computed does not matter to the weights.
    'model': dataclasses.asdict(cfg.model) | {'attention': None, 'remat': None},
    'pretrain': cfg.pretrain and dataclasses.asdict(cfg.pretrain),
    'class_names': list(class_names),
    'preprocessing': {'rate': cfg.data.rate, 'fit': cfg.data.fit},
    'datasets': [
      {'name': d.name, 'fingerprint': fingerprint(d)} for d in datasets
    ],
    'protocol': {'name': cfg.data.protocol, 'fold': cfg.data.fold},
    'step': step,
  }
