"""Stops a run after the current step on SIGTERM or SIGINT."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import jax

from mira_jax.errors import ExitCode


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
