"""The pieces around the loop of train.py: flags, signals, dataset, folder."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import pathlib
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags, logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mira_jax import config, optim, sharding
from mira_jax.data import dataset as prepared
from mira_jax.data import pipeline, synthetic
from mira_jax.engine import Engine
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.kernels import dispatch
from mira_jax.metrics import Scores, confusion_matrix, score
from mira_jax.models.vivit import ViViT

# ----- the command line -----------------------------------------------------


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a command; a MiraInputError becomes one line and its exit code."""

  def quiet(argv: Sequence[str]) -> None:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # orbax and TFDS tell all they do
    main(argv)

  app.define_help_flags()
  try:
    app.run(quiet, flags_parser=parse_flags)
  except MiraInputError as error:
    print(f'{pathlib.Path(sys.argv[0]).name}: {error}', file=sys.stderr)
    sys.exit(int(error.exit_code))
  except KeyboardInterrupt:  # outside the loop, where there is nothing to save
    sys.exit(130)


def parse_flags(
  argv: Sequence[str], values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses a command line into `values`.

  Raises:
    MiraInputError: an unknown flag, a value of another type, a configuration
      file that is missing or returns something else than a `Config`.
  """
  for arg in argv:
    name = re.match(r'--?(?:no)?config\.([\w.]+)', arg)
    if name:
      _check_field(name[1])
  try:
    rest = values(argv)
  except (flags.Error, ValueError) as error:
    # An error in a configuration file arrives as a whole traceback.
    line = str(error).strip().splitlines()[-1]
    raise MiraInputError('bad_flag', 'command line', line) from error
  if len(rest) > 1:
    raise MiraInputError('bad_flag', rest[1], 'flags start with --')
  if 'config' in values and not isinstance(values.config, config.Config):
    name = values['config'].config_filename
    hint = 'no such file, or its get_config returns no Config'
    raise MiraInputError('not_found', name, hint)
  return rest


def _check_field(name: str) -> None:
  names = config.field_names()
  if name not in names:
    near = difflib.get_close_matches(name, names, 2, 0.3)
    hint = 'no such field; ' + (
      f'did you mean {" or ".join(near)}?' if near else f'use one of {names}'
    )
    raise config.bad_config(f'--config.{name}', hint)


class StopSignal:
  """Whether SIGTERM or SIGINT came; the second one ends the process at once.

  A job of several processes is told by `Checkpoints.stop_requested` instead,
  because all of them must stop after the same step.
  """

  def __init__(self):
    self.received = False
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, self._receive)
      signal.signal(signal.SIGINT, self._receive)

  def _receive(self, number: int, frame: Any) -> None:
    if self.received:
      sys.stdout.write('\x1b[?25h' if sys.stdout.isatty() else '')  # cursor
      sys.stdout.flush()
      os._exit(int(ExitCode.PREEMPTED))
    self.received = True


# ----- what a run reads and keeps -------------------------------------------


def open_dataset(data: config.DataConfig) -> prepared.PreparedDataset:
  """Opens the prepared dataset; makes `synthetic_faces/...` when missing.

  Raises:
    MiraInputError: there is no such dataset, or the synthetic one there was
      made with other settings.
  """
  path = pathlib.Path(data.dataset)
  drawn = path.parent.name == 'synthetic_faces'
  if drawn and jax.process_index() == 0:
    _make_missing(path, data)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('open_dataset')
  dataset = prepared.open(path)
  asked = {'train': data.train_clips, 'test': data.test_clips}
  seed = dataset.metadata.get('seed')
  if drawn and (dataset.splits, seed) != (asked, data.synthetic_seed):
    hint = (
      f'it was drawn with {dataset.splits} and seed {seed}, not {asked} and '
      f'{data.synthetic_seed}; remove it, or name another folder'
    )
    raise config.bad_config(f'config.data.dataset={path}', hint)
  return dataset


def _make_missing(path: pathlib.Path, data: config.DataConfig):
  try:
    prepared.open(path)
  except MiraInputError as error:
    if error.code != 'not_a_dataset':
      raise
    print(f'drawing {data.train_clips + data.test_clips} clips into {path}')
    synthetic.build(
      path,
      difficulty=path.name,
      train_clips=data.train_clips,
      test_clips=data.test_clips,
      seed=data.synthetic_seed,
    )


def fit_dataset(cfg: config.Config, dataset: prepared.PreparedDataset) -> None:
  """Fills in the number of classes, or checks it; checks the splits.

  Raises:
    MiraInputError: another number of classes, or no such split.
  """
  found = len(dataset.class_names)
  cfg.model.num_classes = cfg.model.num_classes or found
  if cfg.model.num_classes != found:
    hint = f'{dataset.directory} has {found} classes; use that, or 0'
    name = f'config.model.num_classes={cfg.model.num_classes}'
    raise config.bad_config(name, hint)
  for split in ('train', cfg.eval.split):
    dataset.source(split)


def fingerprint(dataset: prepared.PreparedDataset) -> str:
  """Tells datasets apart without reading them: names, counts, file sizes."""
  files = sorted(dataset.directory.glob('*.array_record*'))
  facts = (
    dataset.name,
    dataset.class_names,
    sorted(dataset.splits.items()),
    [(file.name, file.stat().st_size) for file in files],
  )
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def open_workdir(path: str) -> pathlib.Path:
  """Makes the folder of a run. Raises MiraInputError when it cannot write."""
  if '://' in path:
    hint = 'give a local or mounted folder; remote paths are not supported'
    raise MiraInputError('not_writable', path, hint)
  workdir = pathlib.Path(path)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    hint = f'a run must be able to write there ({error.strerror})'
    raise MiraInputError('not_writable', path, hint) from error
  return workdir


def read_config(workdir: pathlib.Path) -> config.Config:
  """The configuration of a run. Raises MiraInputError when there is none."""
  path = workdir / 'config.json'
  if not path.is_file():
    hint = 'name the folder that train.py was given as --workdir'
    raise MiraInputError('not_a_run', workdir, hint)
  return config.from_json(path.read_text())


def identity(
  cfg: config.Config, dataset: prepared.PreparedDataset
) -> dict[str, Any]:
  """What must not change when a run is resumed."""
  return {
    'seed': cfg.seed,
    'batch_size': cfg.data.batch_size,
    'dataset': fingerprint(dataset),
    'rate': cfg.data.rate,
    'fit': cfg.data.fit,
    'augment': dataclasses.asdict(config.augment(cfg.data)),
    'mixing': [cfg.data.mixup_alpha, cfg.data.cutmix_alpha],
    'epochs': cfg.train.epochs,
    'model': dataclasses.asdict(cfg.model),
    'optim': dataclasses.asdict(cfg.optim),
  }


def attention_choice(model: ViViT, batch_size: int, mesh: Mesh) -> str:
  """Which implementation of attention will run, and why, in one line.

  Raises:
    MiraInputError: the one that is named cannot serve here.
  """
  shape, mode = _largest_attention(model, batch_size)
  q = jax.ShapeDtypeStruct(shape, model.dtype)
  with sharding.ambient(mesh):
    asked = dispatch.request(q, q, q, mode)
    if model.attention is None:
      return 'attention: {} ({})'.format(*dispatch.choose(asked))
    try:
      name = dispatch.resolve(model.attention, asked)
    except dispatch.RefusalError as error:
      raise config.bad_config('model.attention', str(error)) from error
  return f'attention: {name} (as configured)'


def _largest_attention(
  model: ViViT, batch_size: int
) -> tuple[tuple[int, ...], dispatch.Mode]:
  """Shape [B, L, H, D] and mode of what `model.attention` is the name for."""
  mode = 'plain' if model.mira is None else model.mira.mode
  slots, heads, width = model.grid[0], model.heads, model.dim // model.heads
  length = math.prod(model.grid)
  if model.variant.startswith('factorised'):  # within frames, without MiRA
    batch_size, length, mode = batch_size * slots, length // slots, 'plain'
  if model.variant == 'factorised_dot_product':
    heads //= 2
  return (batch_size, length + (model.pool == 'cls'), heads, width), mode


def make_optimizer(
  cfg: config.OptimConfig, steps_per_epoch: int, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimiser and its learning rates."""
  schedule = optim.warmup_cosine(
    peak=cfg.lr,
    final=cfg.final_lr,
    warmup_steps=round(cfg.warmup_epochs * steps_per_epoch),
    total_steps=total_steps,
  )
  optimizer = optim.OPTIMIZERS[cfg.name](
    schedule,
    weight_decay=cfg.weight_decay,
    b1=cfg.b1,
    b2=cfg.b2,
    clip_norm=cfg.clip_norm,
    layer_decay=cfg.layer_decay,
  )
  return optimizer, schedule


def card(
  cfg: config.Config, dataset: prepared.PreparedDataset, step: int
) -> dict[str, Any]:
  """What a weights file says about itself."""
  return {
    # Which kernels ran says nothing about the weights, nor about this machine.
    'model': dataclasses.asdict(cfg.model) | {'attention': None},
    'class_names': list(dataset.class_names),
    'preprocessing': {
      'rate': cfg.data.rate,
      'fit': cfg.data.fit,
    },
    'dataset': {'name': dataset.name, 'fingerprint': fingerprint(dataset)},
    'step': step,
  }


def score_split(
  engine: Engine,
  dataset: prepared.PreparedDataset,
  *,
  split: str,
  rate: int,
  fit: str,
  views: int,
  threads: int,
) -> tuple[np.ndarray, Scores]:
  """Confusion matrix [K, K] (rows = true class) and scores of a split.

  Damaged clips are left out of both, with a warning.
  """
  source = dataset.source(split)
  batches = pipeline.eval_batches(
    source,
    frames=engine.model.frames,
    rate=rate,
    fit=fit,
    size=engine.model.image_size,
    batch_size=engine.batch_size,
    views=views,
    host=jax.process_index(),
    hosts=jax.process_count(),
    threads=threads,
  )
  mean, labels, damaged = engine.score_split(batches, len(source), views)
  if len(damaged):
    logging.warning(
      '%d of %d clips of %s are damaged and were left out: %s',
      *(len(damaged), len(source), split, damaged[:8].tolist()),
    )
  matrix = confusion_matrix(labels, mean.argmax(-1), mean.shape[-1])
  return matrix, score(matrix)
