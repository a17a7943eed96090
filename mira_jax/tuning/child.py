"""Runs functions in another process, which may hang or crash.

A kernel that waits for ever, or a compiler that crashes, takes the child with
it, not the caller; and the caller needs no device. Calls and results are JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from typing import Any, Self

ROOT = pathlib.Path(__file__).parents[2]
# One device is enough, and little of its memory: a GPU's is otherwise taken
# whole, and a TPU chip of a pod would wait for the other hosts.
ONE_DEVICE = {
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  'TPU_VISIBLE_CHIPS': '0',
  'TPU_PROCESS_BOUNDS': '1,1,1',
  'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1',
}


class ChildError(Exception):
  """A call hangs, ends its process, or raises: the reason in one line."""


class Child:
  """A process that calls functions, one after the other.

  It starts with the first call, and anew after one that hung or crashed.
  """

  def __init__(self, **environment: str):
    paths = [str(ROOT), os.environ.get('PYTHONPATH')]
    path = os.pathsep.join(filter(None, paths))  # '' would be this folder
    self._environment = {**os.environ, 'PYTHONPATH': path, **environment}
    self._process: subprocess.Popen[bytes] | None = None
    self._errors = tempfile.TemporaryFile()  # noqa: SIM115

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: Any) -> None:
    self.stop()
    self._errors.close()

  def call(self, function: str, limit: float, **arguments: Any) -> Any:
    """The result of MODULE:FUNCTION.

    Raises:
      ChildError: it took more than `limit` seconds, raised, or crashed.
    """
    process = self._process = self._process or self._start()
    assert process.stdin
    assert process.stdout
    line = json.dumps({'function': function, 'arguments': arguments})
    try:
      with contextlib.suppress(BrokenPipeError):  # read as an early end
        process.stdin.write(line.encode() + b'\n')
        process.stdin.flush()
      answer = _read_line(process.stdout.fileno(), limit)
    except BaseException:  # Ctrl-C, too
      self.stop()
      raise
    if answer is None:
      self.stop()
      raise ChildError(f'no answer within {limit:.0f} s')
    if not answer.endswith(b'\n'):
      self.stop()
      reason = self._last_error() or f'exit code {process.returncode}'
      raise ChildError(f'its process ended: {reason}')
    result = json.loads(answer)
    if 'error' in result:
      raise ChildError(result['error'])
    return result['value']

  def stop(self) -> None:
    """Ends the process, and whatever it started."""
    process, self._process = self._process, None
    if process is None:
      return
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    # A driver may keep the process of a kernel that hangs.
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.communicate(timeout=10)

  def _start(self) -> subprocess.Popen[bytes]:
    self._errors.seek(0)
    self._errors.truncate()
    return subprocess.Popen(
      # Without this folder, whose modules may have the names of others.
      [sys.executable, '-P', '-m', __name__, str(os.getpid())],
      env=self._environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      start_new_session=True,
    )

  def _last_error(self) -> str:
    self._errors.seek(0)
    lines = self._errors.read().decode(errors='replace').split('\n')
    return next((x.strip() for x in reversed(lines) if x.strip()), '')


def on_device(platform: str | None) -> Child:
  """A child on one device of a platform; of the default one without."""
  if not platform:
    return Child(**ONE_DEVICE)
  name = 'cuda' if platform == 'gpu' else platform
  return Child(**ONE_DEVICE, JAX_PLATFORMS=name)


def _read_line(source: int, limit: float) -> bytes | None:
  """A line, or what came before the end; None after `limit` seconds."""
  until, data = time.monotonic() + limit, b''
  while not data.endswith(b'\n'):
    left = until - time.monotonic()
    if left <= 0 or not select.select([source], [], [], left)[0]:
      return None
    part = os.read(source, 1 << 16)
    if not part:
      return data
    data += part
  return data


def _end_with(caller: int) -> None:
  """Ends this process when its caller is gone, whatever it is busy with."""
  while os.getppid() == caller:
    time.sleep(1)
  os.killpg(0, signal.SIGKILL)


def _serve(caller: int) -> None:
  """Calls what lines of the standard input name."""
  threading.Thread(target=_end_with, args=[caller], daemon=True).start()
  results = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is no result
  for line in sys.stdin:
    asked = json.loads(line)
    module, _, name = asked['function'].partition(':')
    try:
      function = getattr(importlib.import_module(module), name)
      result = {'value': function(**asked['arguments'])}
    except Exception as error:
      traceback.print_exc()
      text = str(error).strip().partition('\n')[0]
      result = {'error': f'{type(error).__name__}: {text}'}
    print(json.dumps(result), file=results, flush=True)


if __name__ == '__main__':
  _serve(int(sys.argv[1]))
