"""Shared by every command: streams, Ctrl-C, and errors in one line."""

from __future__ import annotations

import atexit
import codecs
import contextlib
import errno
import gc
import io
import json
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mira_jax.errors import ExitCode, MiraInputError, not_written, plain

if TYPE_CHECKING:
  import rich.console

INTERRUPTED = 130  # the exit code after Ctrl-C
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_came = threading.Event()  # Ctrl-C, since the command began
_as_document = threading.Event()  # set: see `use_json`
_own = threading.Event()  # set: this process is the command's own


# ----- what is printed -------------------------------------------------------


def say(*lines: str, error: bool = False) -> None:
  """Prints lines at once, escaped by `errors.plain`."""
  aside = error or _as_document.is_set()
  for line in lines:
    print(plain(line), file=sys.stderr if aside else sys.stdout, flush=True)


def show(table: rich.console.RenderableType) -> None:
  """Prints a table of rich."""
  console(stderr=_as_document.is_set()).print(table)


def use_json(chosen: bool) -> None:
  """Whether `result` prints JSON, and all else goes to standard error."""
  (_as_document.set if chosen else _as_document.clear)()


def result(value: Any) -> None:
  """Prints the result of a command for programs, if they asked by --json."""
  if _as_document.is_set():
    print(as_json(value, encoding=sys.stdout.encoding, indent=2), flush=True)


def console(**options: Any) -> rich.console.Console:
  """A console of rich without markup, emoji or highlighting."""
  import rich.console  # slow, and many commands print no table

  class Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
      raise  # to `run`, instead of an exit code of rich's own

  return Console(markup=False, emoji=False, highlight=False, **options)


def as_json(value: Any, *, encoding: str = 'utf-8', **options: Any) -> str:
  """JSON for a stream of some encoding, safe to print.

  In UTF-8 letters are kept. What a terminal obeys, or cannot show, has the
  escapes of JSON, so that a reader gets back the exact text.
  """
  if codecs.lookup(encoding).name != 'utf-8':
    return json.dumps(value, **options)
  return re.sub(
    r'[^\x20-\x7e\n]',
    lambda c: c[0] if plain(c[0]) == c[0] else json.dumps(c[0])[1:-1],
    json.dumps(value, ensure_ascii=False, **options),
  )


def shortened(path: str) -> str:
  """A path that fits into a line of the terminal, cut in the middle."""
  from rich.cells import cell_len

  width, text = console().width, plain(path)
  if cell_len(text) <= width:
    return text
  half = (width - 1) // 2
  return f'{text[:half]}…{text[-half:]}'


def duration(seconds: float) -> str:
  """A time to wait in words, such as '45 s', '12 min' or '3 h 20 min'."""
  if seconds < 99.5:
    return f'{seconds:.0f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min'


def expand_home(arguments: list[str]) -> list[str]:
  """A command line with `~` after `=` expanded, which shells leave alone."""
  expanded = []
  for arg in arguments:
    flag, equals, value = arg.partition('=')
    if flag.startswith('-') and value.startswith('~'):
      value = ','.join(map(os.path.expanduser, value.split(',')))
    expanded.append(flag + equals + value)
  return expanded


# ----- a command --------------------------------------------------------------


def run(name: str, command: Callable[[], int | None]) -> int:
  """Runs a command and returns its exit code; `INTERRUPTED` after Ctrl-C.

  A user's mistake becomes one line on standard error, after `name` and a colon.
  A command that returns None ends with OK.
  """
  _open_streams()
  try:
    with _interruptible():
      try:
        return int(command() or ExitCode.OK)
      finally:
        sys.stdout.flush()
  except MiraInputError as error:
    return _fail(f'{name}: {error}', error.exit_code)
  except KeyboardInterrupt:
    _fail(f'{name}: interrupted', INTERRUPTED)
    if _own.is_set():  # without waiting for threads that read or compile
      os._exit(INTERRUPTED)
    return INTERRUPTED
  except OSError as error:
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
      # `mira ... | head`: Python flushes once more at its end.
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
      return int(ExitCode.OK)
    if error.errno not in _FULL:
      return _fail(plain(f'{name}: {error}'), ExitCode.USAGE)
    path = error.filename or 'a file of the results'
    hint = f'make room, then the same command resumes ({error.strerror})'
    full = not_written(path, hint)
    return _fail(f'{name}: {full}', full.exit_code)


def leave_on_interrupt(name: str) -> None:
  """Makes Ctrl-C end the process at once: for imports, and for its end.

  Only for a process of a command's own, which has nothing to save.
  """

  def leave(*_: Any) -> None:
    os.write(2, f'{name}: interrupted\n'.encode())
    os._exit(INTERRUPTED)

  signal.signal(signal.SIGINT, leave)
  _own.set()


@contextlib.contextmanager
def importing() -> Iterator[None]:
  """Keeps Python from searching what is imported for garbage: 0.3 s of jax.

  Now, later, or when the process ends; only for a process of a command's own.
  """
  if not _own.is_set():
    yield
    return
  gc.disable()
  try:
    yield
  finally:
    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)


def check() -> None:
  """Raises KeyboardInterrupt if Ctrl-C came, and something swallowed it."""
  if _came.is_set():
    raise KeyboardInterrupt


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
  """Raises KeyboardInterrupt at Ctrl-C, also where Python ignores errors."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  _came.clear()
  main, hook = threading.get_ident(), sys.unraisablehook

  def receive(*_: Any) -> None:
    _came.set()
    raise KeyboardInterrupt

  # An error raised while an object is collected, or in a callback of C, cannot
  # propagate: the signal is sent again.
  def send_again(what: Any) -> None:
    if not issubclass(what.exc_type, KeyboardInterrupt):
      hook(what)
      return
    again = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
    again.daemon = True
    again.start()

  before = signal.signal(signal.SIGINT, receive)
  sys.unraisablehook = send_again
  try:
    yield
  except Exception:
    check()  # some turn it into an error of their own, such as failed imports
    raise
  finally:
    signal.signal(signal.SIGINT, before)
    if sys.unraisablehook is send_again:  # else the command set its own
      sys.unraisablehook = hook


def _open_streams() -> None:
  """Makes standard streams exist and accept any text."""
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream is None:  # `mira ... >&-`
      setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
    elif isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


def _fail(line: str, code: int) -> int:
  with contextlib.suppress(OSError):
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
  return int(code)


def _reader_is_gone() -> bool:
  """Whether the other end of standard output is closed."""
  poll = select.poll()
  poll.register(1, 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))
