"""Work on many clips at once, in order, with a progress bar."""

from __future__ import annotations

import atexit
import collections
import concurrent.futures as futures
import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

import cv2
import rich.markup
import rich.progress

from mira_jax import terminal
from mira_jax.errors import data_error, plain

Job = TypeVar('Job')
Result = TypeVar('Result')
# Starting a process takes about as long as preparing this many clips.
_JOBS_PER_WORKER = 32
_WINDOW = 4  # jobs of each worker that are started before their results


def run(
  work: Callable[[Job], Result],
  jobs: Sequence[Job],
  processes: int | None = None,
  title: str = 'preparing clips',
) -> Iterator[Result]:
  """Yields `work(job)` for each job, in order; all three are picklable.

  `processes` are by default one per core, fewer for little work; 0 is this
  process alone. `title` is that of the bar, shown on a terminal only.
  """
  if processes is None:
    processes = min(os.cpu_count() or 1, len(jobs) // _JOBS_PER_WORKER)
  with contextlib.ExitStack() as stack:
    advance = stack.enter_context(progress_bar(title, len(jobs)))
    results = map(work, jobs)
    if processes:
      executor = stack.enter_context(pool(processes))
      results = _ordered(executor, work, jobs, _WINDOW * processes)
    for result in results:
      advance(1)
      yield result


@contextlib.contextmanager
def progress_bar(
  title: str, total: int | None
) -> Iterator[Callable[[int], None]]:
  """Gives `advance(amount)`; shown on a terminal only."""
  console = terminal.console(stderr=True)
  with rich.progress.Progress(
    *rich.progress.Progress.get_default_columns(),
    rich.progress.MofNCompleteColumn(),
    console=console,
    disable=not console.is_terminal,
  ) as progress:
    task = progress.add_task(rich.markup.escape(plain(title)), total=total)
    yield functools.partial(progress.advance, task)


@contextlib.contextmanager
def pool(workers: int) -> Iterator[futures.ProcessPoolExecutor]:
  """Processes of one thread each, which end with this one, or on leaving."""
  # Not fork: JAX may be running threads in this process.
  context = multiprocessing.get_context('spawn')
  executor = futures.ProcessPoolExecutor(
    workers, mp_context=context, initializer=_start
  )
  try:
    yield executor
  finally:
    executor.shutdown(cancel_futures=True)


def _start() -> None:
  """In a new process: one thread; the parent handles Ctrl-C."""
  atexit.register(gc.freeze)  # no search for garbage at the end
  cv2.setNumThreads(1)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends this process with its parent: one that is killed stops no worker."""
  if parent := multiprocessing.parent_process():
    connection.wait([parent.sentinel])
    os._exit(1)


def _ordered(
  executor: futures.ProcessPoolExecutor,
  work: Callable[[Job], Result],
  jobs: Iterable[Job],
  window: int,
) -> Iterator[Result]:
  """Results in order; `Executor.map` would hold all of them in memory."""
  pending: collections.deque[futures.Future[Result]] = collections.deque()
  try:
    for job in jobs:
      pending.append(executor.submit(work, job))
      if len(pending) >= window:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  except BrokenProcessPool as error:
    hint = 'a process was killed, often for memory: use fewer workers'
    raise data_error('worker_died', 'preparation', hint) from error
