"""The pieces around the loop: flags, signals, folder, identity, optimiser."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import os
import pathlib
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.sharding import Mesh

from mira_jax import config, sharding, steps, transfer
from mira_jax.data.dataset import PreparedDataset, fingerprint
from mira_jax.errors import ExitCode, MiraInputError

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
    print(f'{_command()}: {error}', file=sys.stderr)
    sys.exit(int(error.exit_code))
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
      raise
    path = error.filename or 'a file of the run'
    print(f'{_command()}: not_written: {path}: {error}', file=sys.stderr)
    sys.exit(int(ExitCode.CHECKPOINT))
  except KeyboardInterrupt:  # outside the loop, where there is nothing to save
    sys.exit(130)


def _command() -> str:
  return pathlib.Path(sys.argv[0]).name


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
  given = 'config' in values and values['config'].present
  if given and not isinstance(values.config, config.Config):
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

  Use as a context manager: signals mean what they did before afterwards.

  A job of several processes is told by `Checkpoints.stop_requested` instead,
  because all of them must stop after the same step.
  """

  def __init__(self):
    self.received = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> StopSignal:
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *error: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number: int, frame: Any) -> None:
    if self.received:
      sys.stdout.write('\x1b[?25h' if sys.stdout.isatty() else '')  # cursor
      sys.stdout.flush()
      os._exit(int(ExitCode.PREEMPTED))
    self.received = True


# ----- what a run keeps ------------------------------------------------------


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


# Where data lies, how fast it is read, and how devices share the work may
# change within a run.
_MAY_CHANGE = {
  'mesh': ('data', 'fsdp', 'model'),
  'model': ('attention', 'remat'),
  'data': ('dataset', 'threads', 'classes'),
  'train': ('log_every', 'save_every', 'eval_every'),
  'eval': ('views', 'look_views', 'select_by', 'watch_test'),
}


def identity(cfg: config.Config, fingerprints: Sequence[str]) -> dict[str, Any]:
  """What must not change when a run is resumed, by the names of flags."""
  facts: dict[str, Any] = {'dataset': list(fingerprints)}
  for group, value in dataclasses.asdict(cfg).items():
    if isinstance(value, dict):
      ignored = _MAY_CHANGE.get(group, ())
      facts |= {f'{group}.{n}': x for n, x in value.items() if n not in ignored}
    else:
      facts[group] = value
  return facts


def fit_classes(cfg: config.Config, class_names: Sequence[str]) -> None:
  """Fills in the number of classes, or checks it.

  Raises:
    MiraInputError: another number of classes.
  """
  found = len(class_names)
  cfg.model.num_classes = cfg.model.num_classes or found
  if cfg.model.num_classes != found:
    hint = f'the data has {found} classes; use that, or 0'
    name = f'config.model.num_classes={cfg.model.num_classes}'
    raise config.bad_config(name, hint)


def start_from(
  path: str, state: steps.TrainState, mesh: Mesh
) -> tuple[steps.TrainState, transfer.Transfer]:
  """A fresh state with weights of another run; see `transfer.transfer`.

  Raises:
    MiraInputError: there is no such run or file, or see there.
  """
  if not transfer.weights_path(path).is_file():
    hint = 'there are no weights; finish that run, name another one, or start '
    hint += 'from random weights with an empty --config.train.init_from='
    code = ExitCode.CHECKPOINT
    raise MiraInputError('not_found', path, hint, exit_code=code)
  own = {'params': state.params, 'mira': state.mira}
  variables, told = transfer.transfer(sharding.gather(own, mesh), path)
  variables = {'params': variables['params'], 'mira': variables.get('mira', {})}
  where = sharding.shardings(variables, mesh)
  variables = jax.device_put(variables, where)
  params = variables['params']
  state = dataclasses.replace(
    state,
    params=params,
    mira=variables['mira'],
    average=jax.tree.map(jnp.copy, params) if state.average else {},
  )
  return state, told


def card(
  cfg: config.Config,
  datasets: Sequence[PreparedDataset],
  class_names: Sequence[str],
  step: int,
) -> dict[str, Any]:
  """What a weights file says about itself."""
  return {
    # How it was computed says nothing about the weights.
    'model': dataclasses.asdict(cfg.model) | {'attention': None, 'remat': None},
    'pretrain': cfg.pretrain and dataclasses.asdict(cfg.pretrain),
    'class_names': list(class_names),
    'preprocessing': {
      'rate': cfg.data.rate,
      'fit': cfg.data.fit,
    },
    'datasets': [
      {'name': d.name, 'fingerprint': fingerprint(d)} for d in datasets
    ],
    'protocol': {'name': cfg.data.protocol, 'fold': cfg.data.fold},
    'step': step,
  }
