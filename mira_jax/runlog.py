"""The log of a run: rows of numbers, to files and to the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

import jax
import numpy as np
import rich.progress
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mira_jax import guard, terminal
from mira_jax.errors import ExitCode, MiraInputError, plain

_SHORT = {
  'loss': 'loss',
  'accuracy': 'accuracy',
  'learning_rate': 'lr',
  'clips_per_second': 'clips/s',
}


class Log:
  """Rows of a run: metrics.jsonl, TensorBoard events, terminal.

  On a terminal a progress bar shows the last row; elsewhere rows are printed.
  Only the first host writes. Use as a context manager.

  Args:
    workdir: of the run.
    start: steps done before; later rows of an earlier attempt are dropped.
    total: steps of the run.
    batch_size: clips per step, for the speed.
    max_bad_steps: updates in a row that may be not finite.

  Attributes:
    saved: step of the newest checkpoint, to name it; 0 when there is none.
    in_a_row: updates that were not finite since the last one that was made.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    start: int,
    total: int,
    batch_size: int,
    *,
    max_bad_steps: int = 10,
  ):
    self.saved, self.in_a_row = start, 0
    self._start = start
    self._max_bad_steps = max_bad_steps
    self._active = jax.process_index() == 0
    self._batch_size = batch_size
    self.total = total
    self._pending: dict[int, dict[str, jax.Array]] = {}
    self._since: float | None = None
    self._console = terminal.console()
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn('step {task.completed}/{task.total}'),
      rich.progress.BarColumn(),
      rich.progress.TextColumn('{task.description}'),
      rich.progress.TimeRemainingColumn(),
      console=self._console,
      disable=not (self._active and self._console.is_terminal),
    )
    self._task = self._bar.add_task('compiling', total=total, completed=start)
    if self._active:
      self._file = _reopen(workdir / 'metrics.jsonl', start)
      self._events = _Events(workdir / 'tensorboard', start)

  def __enter__(self) -> Log:
    self._bar.start()
    return self

  def __exit__(self, *error: Any) -> None:
    self._bar.stop()
    if self._active:
      # Nothing is left to write, unless it could not be written before.
      with contextlib.suppress(OSError):
        self._events.close()
        self._file.close()

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Keeps the metrics of a step, on the device, until `flush`."""
    self._pending[step] = metrics

  def flush(self) -> None:
    """Waits for the steps that were added, writes the mean of their metrics.

    The mean is that of the steps that were finite, so that one that was
    skipped does not hide the others.

    Raises:
      MiraInputError: too many updates in a row were not finite; it names the
        step, the last good one and the newest checkpoint.
    """
    if not self._pending:
      return
    rows = jax.device_get(self._pending)
    self._pending = {}
    for step, row in rows.items():
      self._judge(step, row)
    last = rows[step]
    finite = [r for r in rows.values() if r['verdict'] != guard.NOT_FINITE]
    averaged = last.keys() - guard.REPORTED if finite else ()
    mean = {
      n: float(np.mean([r[n] for r in finite])) for n in last if n in averaged
    }
    mean['learning_rate'] = float(last['learning_rate'])
    mean |= {n: int(last[n]) for n in ('skipped', 'spikes')}
    now = time.perf_counter()
    if self._since is not None:  # the first rows would measure compilation
      speed = len(rows) * self._batch_size / (now - self._since)
      mean['clips_per_second'] = round(speed, 1)
    self._since = now
    self.write(step, mean)

  def _judge(self, step: int, row: dict[str, np.ndarray]) -> None:
    """Tells of an update that was skipped; raises after too many."""
    self.in_a_row = int(row['in_a_row'])
    if row['verdict'] == guard.SPIKE:
      self.say(f'step {step}: a spike, loss {row["loss"]:.4g}, skipped')
    if row['verdict'] != guard.NOT_FINITE:
      return
    if self.in_a_row > self._max_bad_steps:
      raise self._not_finite(step, row)
    self.say(f'step {step}: not finite, skipped ({self.in_a_row} in a row)')

  def _not_finite(
    self, step: int, row: dict[str, np.ndarray]
  ) -> MiraInputError:
    newest = f'the newest checkpoint is of step {self.saved}'
    if not self.saved:
      newest = 'there is no checkpoint yet'
    elif row['last_good'] <= self._start:
      newest += '; remove that one, which may be the cause'
    hint = (
      f'the last good step is {row["last_good"]}, and {newest}; lower '
      'config.optim.lr or set config.optim.clip_norm'
      f'{" and add --force" if self.saved else ""}, or look for the cause with '
      '--debug_nans'
    )
    path, code = what_is_not_finite(step, row), ExitCode.NUMERIC
    return MiraInputError('not_finite', path, hint, exit_code=code)

  def say(self, text: str) -> None:
    """Tells the person something, once."""
    if self._active:
      self._console.print(plain(text))

  def pause(self) -> None:
    """Keeps what is done before the next step out of the speed."""
    self._since = time.perf_counter()

  def write(self, step: int, row: dict[str, float]) -> None:
    """Writes one row to the file, to TensorBoard and to the terminal."""
    if not self._active:
      return
    with _naming(self._file.name):
      self._file.write(json.dumps({'step': step, **row}) + '\n')
      self._file.flush()
    self._events.add(step, row)
    names = {n: short for n, short in _SHORT.items() if n in row}
    names = names or {n: n for n in row}  # an evaluation
    text = '  '.join(f'{names[n]} {row[n]:.4g}' for n in names)
    if not self._console.is_terminal:
      print(f'step {step}/{self.total}  {text}', flush=True)
    elif 'loss' in row:
      self._bar.update(self._task, completed=step, description=text)
    else:
      self._console.print(f'step {step}  {text}')


class _Events:
  """Rows for TensorBoard, in the file before the next line is run.

  `tensorboardX.SummaryWriter` has a thread that ends on a full disk, and waits
  for it ever after.

  Args:
    folder: of the files, one for each attempt.
    start: steps done before; TensorBoard hides later ones of other attempts.
  """

  def __init__(self, folder: pathlib.Path, start: int):
    folder.mkdir(exist_ok=True)
    self._folder = folder
    self._writer = EventsWriter(str(folder / 'events'))
    self._write(start + 1, session_log=SessionLog(status=SessionLog.START))

  def add(self, step: int, row: Mapping[str, float]) -> None:
    with _naming(self._folder):
      for name, value in row.items():
        self._write(step, summary=summary.scalar(name, value))
      self._writer.flush()

  def _write(self, step: int, **what: Any) -> None:
    event = Event(step=step, wall_time=time.time(), **what)
    self._writer.write_event(event)

  def close(self) -> None:
    self._writer.close()


def what_is_not_finite(step: int, row: Mapping[str, np.ndarray]) -> str:
  """What of a step whose update is not finite, in words."""
  for name in ('loss', 'grad_norm'):
    if not np.isfinite(row[name]):
      return f'the {name} of step {step} is {row[name]}'
  return f'the update of step {step} is not finite'


def read(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The rows of a run's metrics.jsonl."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


class Looks:
  """What a run scored while it trained: confusion matrices, in looks.jsonl.

  Args:
    workdir: of the run.
  """

  def __init__(self, workdir: pathlib.Path):
    self._path = workdir / 'looks.jsonl'

  def add(self, step: int, matrices: dict[str, np.ndarray]) -> None:
    """Adds a look: the matrix [K, K] of each split that was scored.

    Later looks, of an earlier attempt, are dropped.
    """
    if jax.process_index() == 0:
      row = {name: matrix.tolist() for name, matrix in matrices.items()}
      with _reopen(self._path, step - 1) as file:
        file.write(json.dumps({'step': step, **row}) + '\n')

  def read(self) -> dict[int, dict[str, np.ndarray]]:
    """Step -> split -> matrix, of all looks so far."""
    if not self._path.exists():
      return {}
    rows = map(json.loads, self._path.read_text().splitlines())
    return {
      row.pop('step'): {name: np.array(x) for name, x in row.items()}
      for row in rows
    }


def _reopen(path: pathlib.Path, start: int) -> IO[str]:
  """Opens a file of rows to append to, without the rows after `start`."""
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  # A killed run may have left half a line.
  whole = [line for line in lines if line.endswith('}\n')]
  kept = [line for line in whole if json.loads(line)['step'] <= start]
  replace(path, ''.join(kept))
  return path.open('a')


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Says what could not be written, which a full disk does not."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or os.fspath(path)
    raise


def replace(path: pathlib.Path, text: str) -> None:
  """Writes a file whole: a run that is killed leaves what was there."""
  part = path.with_name(path.name + '.part')
  part.write_text(text)
  os.replace(part, path)
