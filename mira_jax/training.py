"""The pieces around the loop: flags, signals, folder, identity, optimiser."""

from __future__ import annotations

import contextlib
import dataclasses
import logging as std_logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mira_jax import (
  config,
  files,
  lock,
  memory,
  output,
  program,
  sharding,
  steps,
  terminal,
  transfer,
)
from mira_jax.data.dataset import PreparedDataset, fingerprint
from mira_jax.errors import (
  ExitCode,
  MiraInputError,
  checkpoint_error,
  nearest,
)
from mira_jax.interop import recognise, sources
from mira_jax.models.layers import token_grid
from mira_jax.weights import LAST, WEIGHTS

# ----- the command line -----------------------------------------------------


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a command; a MiraInputError becomes one line and its exit code."""

  def quiet(argv: Sequence[str]) -> None:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # orbax and TFDS tell all they do
      _only_the_first_error_of_orbax()
    with memory.explained():
      main(argv)

  def command() -> None:
    app.define_help_flags()
    app.run(quiet, flags_parser=parse_flags)

  name = pathlib.Path(sys.argv[0]).name
  sys.argv[1:] = terminal.expand_home(sys.argv[1:])
  sys.exit(terminal.run(name, command))


def _only_the_first_error_of_orbax() -> None:
  """Keeps tracebacks away of what was raised, and told, already.

  When one of its files cannot be written, asyncio logs the errors of others,
  and tensorstore shows that those on their way found its loop closed.
  """
  std_logging.getLogger('asyncio').setLevel(std_logging.CRITICAL)

  def show(what: Any) -> None:
    if str(what.exc_value) != 'Event loop is closed':
      before(what)

  before, sys.unraisablehook = sys.unraisablehook, show


def parse_flags(
  argv: list[str], values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses a command line into `values`.

  A dash in the name of a flag means an underscore. `argv` is changed in place,
  because the flags of configurations look at `sys.argv` themselves.

  Raises:
    MiraInputError: an unknown flag, a value of another type, a configuration
      file that is missing or returns something else than a `Config`.
  """
  argv[1:] = map(_underscored, argv[1:])
  for arg in argv:
    name = re.match(r'--?(?:no)?config\.([\w.]+)', arg)
    if name:
      _check_field(name[1])
  try:
    rest = values(argv)
  except (flags.Error, ValueError) as error:
    raise _bad_flag(str(error)) from error
  if len(rest) > 1:
    raise MiraInputError('bad_flag', rest[1], 'flags start with --')
  given = 'config' in values and values['config'].present
  if given and not isinstance(values.config, config.Config):
    name = values['config'].config_filename
    hint = 'no such file, or its get_config returns no Config'
    raise MiraInputError('not_found', name, hint)
  return rest


def _underscored(arg: str) -> str:
  name, equals, value = arg.partition('=')
  if not name.startswith('--'):
    return arg
  return '--' + name[2:].replace('-', '_') + equals + value


def _check_field(name: str) -> None:
  names = list(config.field_types())
  if name not in names:
    near = nearest(name, names, 0.3) or f'; use one of {names}'
    raise config.bad_config(f'--config.{name}', f'no such field{near}')


def _bad_flag(text: str) -> MiraInputError:
  """The error for what absl says of a command line."""
  # An error in a configuration file arrives as a whole traceback.
  line = text.strip().splitlines()[-1]
  found = re.match(r'flag (--config(?:\.([\w.]+))?=.*?): ', text)
  needed = re.search(r'Flag (--\w+) must have a value other than None', line)
  if needed:
    example = {'--config': 'configs/quickstart.py', '--workdir': 'runs/mine'}
    value = example.get(needed[1], 'VALUE')
    hint = f'it is missing; give it, such as {needed[1]}={value}'
    return MiraInputError('bad_flag', needed[1], hint)
  if found is None:
    return MiraInputError('bad_flag', 'command line', line)
  if found[2] is None:
    return config.bad_config(found[1], line.removeprefix('ValueError: '))
  takes = config.takes(config.field_types()[found[2]])
  return config.bad_config(found[1], f'it takes {takes}')


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

CONFIG, LOCK = 'config.json', '.lock'
# Written over whenever a run starts or ends.
_FILES = (CONFIG, WEIGHTS, LAST, 'curves.png', 'curves.npz')


def open_workdir(path: str) -> pathlib.Path:
  """Makes the folder of a run. Raises MiraInputError when it cannot write."""
  if '://' in path:
    hint = 'give a local or mounted folder; remote paths are not supported'
    raise MiraInputError('not_writable', path, hint)
  return output.open_folder(path)


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
        held.enter_context(lock.hold(workdir / LOCK, checkpoint_error))
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
  except OSError as error:
    hint = f'it cannot be read ({error.strerror})'
    raise config.bad_config(f'{path}', hint) from error
  except MiraInputError as error:
    hint = f'{error.path}: {error.hint}; the command that trains the run '
    hint += 'writes the file anew'
    raise config.bad_config(f'{path}', hint) from error
  return cfg


# Where data lies, how fast it is read, and how devices share the work may
# change within a run.
_MAY_CHANGE = {
  'mesh': ('data', 'fsdp', 'model'),
  'model': ('attention', 'remat'),
  'data': ('dataset', 'threads', 'max_damaged', 'classes'),
  'optim': ('max_bad_steps',),
  'train': ('log_every', 'save_every', 'eval_every'),
  'eval': ('views', 'look_views', 'select_by', 'watch_test'),
}


def identity(cfg: config.Config, fingerprints: Sequence[str]) -> dict[str, Any]:
  """What must not change when a run is resumed, in groups as of flags."""
  facts: dict[str, Any] = {'dataset': list(fingerprints)}
  facts |= dataclasses.asdict(cfg)
  for group, ignored in _MAY_CHANGE.items():
    for name in ignored:
      del facts[group][name]
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


def fitting(cfg: config.Config, devices: int, share: float) -> str:
  """What fits when a step may have a share of its temporary memory.

  Args:
    cfg: of the run.
    devices: that share a batch.
    share: of the memory for what is computed, from 0 to 1.

  Returns:
    Flags: the largest batch, the fewest parts of this one, rematerialisation.
    Programs of another size may need somewhat more than their share.
  """
  parts, rows = cfg.optim.accumulate, cfg.data.batch_size * cfg.data.repeats
  batches = [
    size
    for size in range(1, int(share * cfg.data.batch_size) + 1)
    if not size % devices and not size * cfg.data.repeats % (parts * devices)
  ]
  more = [
    k
    for k in range(parts + 1, rows // devices + 1)
    if not rows % (k * devices) and parts <= k * share
  ]
  ways = [f'--config.data.batch_size={max(batches)} or less'] if batches else []
  ways += [f'--config.optim.accumulate={more[0]} or more'] if more else []
  ways += [] if cfg.model.remat else ['--config.model.remat=attention']
  return f'try {"; ".join(ways or ["a smaller model"])}'


def start_from(
  cfg: config.Config,
  class_names: Sequence[str],
  state: steps.TrainState,
  mesh: Mesh,
) -> tuple[steps.TrainState, transfer.Transfer]:
  """A fresh state with the weights of `train.init_from`; see `transfer`.

  Raises:
    MiraInputError: there is no such run or file, or see there.
  """
  path, model = cfg.train.init_from, cfg.model
  if not sources.weights_path(path).is_file():
    hint = 'there are no weights; finish that run, name another one, or start '
    hint += 'from random weights with an empty --config.train.init_from='
    code = ExitCode.CHECKPOINT
    raise MiraInputError('not_found', path, hint, exit_code=code)
  own = {'params': state.params, 'mira': state.mira}
  source = sources.read(path)
  shape = program.video_shape(cfg)
  variables, told = transfer.transfer(
    sharding.gather(own, mesh),
    source,
    class_names=class_names,
    grid=token_grid(shape, model.tubelet, model.patch),
    allow_missing=[x for x in cfg.train.allow_missing.split(',') if x],
    interpolate=cfg.train.interpolate_positions,
  )
  notes = recognise.differences(source, dataclasses.asdict(model))
  told = dataclasses.replace(told, notes=[*told.notes, *notes])
  variables = {'params': variables['params'], 'mira': variables.get('mira', {})}
  variables = jax.device_put(variables, sharding.shardings(variables, mesh))
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
