"""Stops a run after the current step on SIGTERM or SIGINT."""

from __future__ import annotations

import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

from mira_jax.errors import ExitCode


class StopSignal:
  """Receives SIGTERM and SIGINT; the second one ends the process at once.

  Use as a context manager, which restores the handlers. Several processes must
  stop after the same step; there jax receives SIGTERM and agrees on it.
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

  def requested(self, step: int) -> bool:
    """Whether the run must stop after `step`, the same on every host."""
    if jax.process_count() == 1:
      return self.received
    return bool(multihost_utils.reached_preemption_sync_point(step))

  def _receive(self, number: int, frame: Any) -> None:
    if self.received:
      os._exit(int(ExitCode.PREEMPTED))
    self.received = True
