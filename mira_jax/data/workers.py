"""Work on many clips at once, in order, with a progress bar."""

from __future__ import annotations

import collections
import concurrent.futures as futures
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

import cv2
import rich.markup
import rich.progress

from mira_jax import terminal
from mira_jax.errors import ExitCode, MiraInputError, plain

Job = TypeVar('Job')
Result = TypeVar('Result')
# Starting a process takes about as long as preparing this many clips.
_JOBS_PER_WORKER = 32


@contextlib.contextmanager
def runner(
  work: Callable[[Job], Result],
  total: int,
  workers: int | None = None,
  title: str = 'preparing clips',
  on_done: Callable[..., None] | None = None,
) -> Iterator[Callable[[Iterable[Job]], Iterator[Result]]]:
  """Gives `run(jobs)`, which yields `work(job)` for each job, in order.

  Args:
    work: picklable, as are jobs and results.
    total: number of jobs of all calls of `run` together.
    workers: processes; by default one per core, fewer for little work; 0 for
      this process alone.
    title: of the bar, which is shown on a terminal only.
    on_done: is given the parts of a result, which is a tuple then, as soon as
      it is there, in any order and from any thread.
  """
  if workers is None:
    workers = min(os.cpu_count() or 1, total // _JOBS_PER_WORKER)
  with progress_bar(title, total) as advance, _pool(workers) as pool:

    def run(jobs: Iterable[Job]) -> Iterator[Result]:
      results = _one_by_one(work, jobs, on_done)
      if pool:
        results = _ordered(pool, work, jobs, 4 * workers, on_done)
      for result in results:
        advance(1)
        yield result

    yield run


@contextlib.contextmanager
def progress_bar(
  title: str,
  total: int | None,
  column: rich.progress.ProgressColumn | None = None,
) -> Iterator[Callable[[int], None]]:
  """Gives `advance(amount)`; shown on a terminal only."""
  console = terminal.console(stderr=True)
  with rich.progress.Progress(
    *rich.progress.Progress.get_default_columns(),
    column or rich.progress.MofNCompleteColumn(),
    console=console,
    disable=not console.is_terminal,
  ) as progress:
    task = progress.add_task(rich.markup.escape(plain(title)), total=total)
    yield functools.partial(progress.advance, task)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[futures.ProcessPoolExecutor | None]:
  if not workers:
    yield None
    return
  # Not fork: JAX may be running threads in this process.
  context = multiprocessing.get_context('spawn')
  pool = futures.ProcessPoolExecutor(
    workers, mp_context=context, initializer=_start
  )
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def _start() -> None:
  """In a new process: one thread, and Ctrl-C is the parent's business."""
  cv2.setNumThreads(1)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """A parent that is killed cannot tell its workers, which would wait on."""
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)


def _one_by_one(
  work: Callable[[Job], Result],
  jobs: Iterable[Job],
  on_done: Callable[..., None] | None,
) -> Iterator[Result]:
  for job in jobs:
    result = work(job)
    if on_done:
      on_done(*result)
    yield result


def _ordered(
  pool: futures.ProcessPoolExecutor,
  work: Callable[[Job], Result],
  jobs: Iterable[Job],
  window: int,
  on_done: Callable[..., None] | None,
) -> Iterator[Result]:
  """Results in order; `Executor.map` would hold all of them in memory."""
  pending: collections.deque[futures.Future] = collections.deque()
  failed: list[Exception] = []

  def note(future: futures.Future) -> None:
    if future.cancelled() or future.exception():
      return
    try:
      on_done(*future.result())
    except Exception as error:  # an executor would only log it
      failed.append(error)

  def first() -> Result:
    result = pending.popleft().result()
    if failed:
      raise failed[0]
    return result

  try:
    for job in jobs:
      pending.append(pool.submit(work, job))
      if on_done:
        pending[-1].add_done_callback(note)
      if len(pending) >= window:
        yield first()
    while pending:
      yield first()
  except BrokenProcessPool as error:
    hint = 'a process was killed, often for memory: use fewer workers'
    raise MiraInputError(
      'worker_died', 'preparation', hint, exit_code=ExitCode.DATA
    ) from error
