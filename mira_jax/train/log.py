"""The log of a run: rows of numbers, to files and to standard output."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from mira_jax import files, terminal
from mira_jax.devices import memory
from mira_jax.evaluation import results
from mira_jax.train import guard

_EVENTS: Any = event_pb2  # whose names are made when it is imported
METRICS, EVAL_HISTORY = 'metrics.jsonl', 'eval_history.jsonl'  # of a run
# Fields of a row that differ where a run is repeated: its speed, and seconds
# since it began, without those between or lost by its interruptions. Also the
# memory that it took at most, in gigabytes: of a device, or of a CPU's process.
CLOCK = frozenset({'clips_per_second', 'seconds', 'peak_gb'})
_PRINTED = ('loss', 'accuracy', 'learning_rate')


class Log:
  """Rows of a run: metrics.jsonl, TensorBoard events, standard output.

  Only the first host writes. Use as a context manager.

  Args:
    workdir: of the run.
    start: steps done before; later rows of an earlier attempt are dropped.
    total: steps of the run.
    batch_size: clips per step, for the speed.
    validation_due: whether the validation of step `start` runs now; its rows of
      a killed attempt are dropped.
    pending: `pending` when the state of step `start` was saved.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    start: int,
    total: int,
    batch_size: int,
    *,
    validation_due: bool = False,
    pending: Mapping[str, dict[str, Any]] | None = None,
  ):
    self._active = jax.process_index() == 0
    self._batch_size = batch_size
    self._total = total
    self._added: dict[int, dict[str, jax.Array]] = {}  # on the device
    self._pending = {int(step): row for step, row in (pending or {}).items()}
    self._zero = time.perf_counter()  # when the run had taken no time
    self._since: float | None = None  # of the speed
    self._first: tuple[int, float] | None = None  # row of this attempt
    if self._active:

      def keep(row: Mapping[str, Any]) -> bool:
        before = row['step'] == start and 'learning_rate' in row
        return row['step'] < start + (not validation_due) or before

      self._file = _reopen(workdir / METRICS, _is_row, keep)
      clock = (row.get('seconds', 0) for row in read(workdir))
      self._zero -= max(clock, default=0)
      self._events = _Events(workdir / 'tensorboard')

  def __enter__(self) -> Log:
    return self

  def __exit__(self, *error: Any) -> None:
    if self._active:
      # Nothing is left to write, unless it could not be written before.
      with contextlib.suppress(OSError):
        self._events.close()
        self._file.close()

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Keeps the metrics of a step, on the device, until `judge`."""
    self._added[step] = metrics

  def judge(self, policy: guard.Policy) -> None:
    """Waits for the steps that were added; prints those that were skipped.

    Raises:
      MiraInputError: the policy ends the run.
    """
    rows, self._added = jax.device_get(self._added), {}
    for step, row in rows.items():
      self._pending[step] = {n: x.item() for n, x in row.items()}
      self.say(policy.check(step, self._pending[step]))

  @property
  def pending(self) -> dict[str, dict[str, Any]]:
    """Metrics of judged steps that no row holds yet, JSON-able."""
    return {str(step): row for step, row in self._pending.items()}

  def flush(self) -> None:
    """Writes the mean of the metrics of the steps judged since the last row.

    Steps that were not finite are left out of the mean.
    """
    rows, self._pending = self._pending, {}
    if not rows:
      return
    step = max(rows)
    last = rows[step]
    finite = [r for r in rows.values() if r['verdict'] != guard.NOT_FINITE]
    averaged = last.keys() - guard.REPORTED if finite else ()
    mean = {
      n: float(np.mean([r[n] for r in finite])) for n in last if n in averaged
    }
    mean['learning_rate'] = float(last['learning_rate'])
    mean |= {n: int(last[n]) for n in ('skipped', 'spikes')}
    now = time.perf_counter()
    speed = ''
    if self._since is not None:  # the first rows would measure compilation
      each = (now - self._since) / len(rows)
      mean['clips_per_second'] = round(self._batch_size / each, 1)
      speed = f'{each:.3g} s/step'
    mean['peak_gb'] = round(memory.peak() / 1e9, 3)
    self._since = now
    self.write(step, mean, speed, self._left(step, now))

  def _left(self, step: int, now: float) -> str:
    """Time left, as the steps and validations since the first row took."""
    if self._first is None:
      self._first = step, now
    first, began = self._first
    if not first < step < self._total:
      return ''
    left = (now - began) / (step - first) * (self._total - step)
    return f'{terminal.duration(left)} left'

  def say(self, text: str) -> None:
    """Prints a line; '' prints nothing."""
    if self._active and text:
      terminal.say(text)

  def pause(self) -> None:
    """Restarts the clock of the speed, after a validation or a save."""
    self._since = time.perf_counter()

  def write(self, step: int, row: dict[str, float], *words: str) -> None:
    """Writes one row to the file, to TensorBoard and to the terminal.

    Words end the terminal's line.
    """
    if not self._active:
      return
    clock = {'seconds': round(time.perf_counter() - self._zero, 3)}
    with files.naming(self._file.name):
      self._file.write(json.dumps({'step': step, **row, **clock}) + '\n')
      self._file.flush()
    self._events.add(step, row)
    names = [n for n in _PRINTED if n in row] or row  # those of a validation
    numbers = [f'{n} {row[n]:.4g}' for n in names]
    words = (f'step {step}/{self._total}', *numbers, *filter(None, words))
    terminal.say('  '.join(words))


class _Events:
  """TensorBoard events in a folder, one file for each attempt, written at once.

  `tensorboardX.SummaryWriter` writes in a thread that ends on a full disk, and
  then waits for it forever.
  """

  def __init__(self, folder: pathlib.Path):
    files.clear_for_folder(folder)
    folder.mkdir(exist_ok=True)
    self._folder = folder
    self._writer = EventsWriter(str(folder / 'events'))

  def add(self, step: int, row: Mapping[str, float]) -> None:
    with files.naming(self._folder):
      for name, value in row.items():
        scalar = summary.scalar(name, value)
        self._writer.write_event(
          _EVENTS.Event(step=step, wall_time=time.time(), summary=scalar)
        )
      self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def read(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The rows of a run's metrics.jsonl; [] when there are none."""
  return list(_rows(workdir / METRICS, _is_row)[0].values())


class EvalHistory:
  """Confusion matrices of every validation of a run, in eval_history.jsonl."""

  def __init__(self, workdir: pathlib.Path, classes: int):
    self._path, self._classes = workdir / EVAL_HISTORY, classes

  def add(self, step: int, matrices: dict[str, np.ndarray]) -> None:
    """Adds the matrix [K, K] of each split that was scored after a step.

    Later ones, of an earlier attempt, are dropped.
    """
    if jax.process_index() == 0:
      row = {name: matrix.tolist() for name, matrix in matrices.items()}
      with (
        files.naming(self._path),
        _reopen(self._path, self._valid, lambda r: r['step'] < step) as file,
      ):
        file.write(json.dumps({'step': step, **row}) + '\n')

  def read(self) -> dict[int, dict[str, np.ndarray]]:
    """Step -> split -> matrix."""
    rows = _rows(self._path, self._valid)[0].values()
    return {
      row['step']: {n: np.array(x) for n, x in row.items() if n != 'step'}
      for row in rows
    }

  def _valid(self, row: Mapping[str, Any]) -> bool:
    return all(
      results.is_matrix(x, self._classes) for n, x in row.items() if n != 'step'
    )


def _is_row(row: Mapping[str, Any]) -> bool:
  return all(
    type(x) is float or (type(x) is int and abs(x) < 2**63)
    for x in row.values()
  )


def _rows(
  path: pathlib.Path, valid: Callable[[Mapping[str, Any]], bool]
) -> tuple[dict[str, dict[str, Any]], str]:
  """The valid rows of a file by their lines, and why the first other isn't."""
  try:
    whole, _, _ = path.read_bytes().rpartition(b'\n')  # a kill leaves half
  except FileNotFoundError:
    return {}, ''
  except OSError as error:
    return {}, f'{error.strerror}'
  rows, wrong = {}, ''
  for number, line in enumerate(whole.split(b'\n') if whole else (), 1):
    try:
      row = json.loads(line)
      if type(row['step']) is not int or not valid(row):
        raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
      wrong = wrong or f'line {number} is not a row'
    else:
      rows[line.decode()] = row
  return rows, wrong


def _reopen(
  path: pathlib.Path,
  valid: Callable[[Mapping[str, Any]], bool],
  keep: Callable[[Mapping[str, Any]], bool],
) -> IO[str]:
  """Opens a file of rows to append to, reduced to those that `keep` selects.

  A damaged file is set aside whole; its valid rows are kept.
  """
  files.clear_for_file(path)
  rows, wrong = _rows(path, valid)
  if wrong:
    files.set_aside(path, wrong)
  kept = [line for line, row in rows.items() if keep(row)]
  files.write_text(path, ''.join(f'{line}\n' for line in kept))
  return path.open('a', encoding='utf-8')
