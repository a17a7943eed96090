"""The one error that a user's mistake becomes, and its exit codes."""

from __future__ import annotations

import difflib
import enum
import os
import unicodedata
from collections.abc import Iterable, Sequence


class ExitCode(enum.IntEnum):
  """Exit codes of every command."""

  OK = 0
  FAILED = 1  # a check that was asked for did not pass
  USAGE = 2  # a wrong flag, file or value
  DATA = 3  # a dataset that cannot be read or made
  CHECKPOINT = 4  # a checkpoint or weights file that cannot be used
  NUMERIC = 5  # a loss that is no longer finite
  PREEMPTED = 143  # stopped by a signal, after saving


class MiraInputError(ValueError):
  """A clip, table, flag or checkpoint that cannot be used as given.

  Attributes:
    code: a short stable word, such as 'not_found' or 'not_video'.
    path: the offending file or value.
    hint: what to do about it, one sentence.
    exit_code: what a command exits with.

  As text it is one line that is safe to print, see `plain`, and what the
  caller wants `below` it.
  """

  def __init__(
    self,
    code: str,
    path: str | os.PathLike[str],
    hint: str,
    *,
    exit_code: ExitCode = ExitCode.USAGE,
    below: str = '',
  ):
    self.code = code
    self.path = os.fspath(path)
    self.hint = hint
    self.exit_code = exit_code
    super().__init__(plain(f'{code}: {self.path}: {hint}') + below)


def some(names: Sequence[str], most: int, separator: str = ', ') -> str:
  """The first names of many, and how many more there are."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return separator.join(names[:most]) + more


def plain(text: str) -> str:
  r"""Text that people gave, safe to print on one line.

  What a terminal obeys instead of showing it (escapes, line breaks, turns of
  the writing direction), and the bytes of file names that are no UTF-8, are
  escaped as in Python: \x1b, \n, \u202e, \udcb6. All else stays.
  """
  if text.isprintable():
    return text
  return ''.join(c if _harmless(c) else ascii(c)[1:-1] for c in text)


def _harmless(c: str) -> bool:
  # Joiners are a part of words and emoji; spaces come in kinds; and letters
  # that are newer than this Python have no category.
  return (
    c.isprintable()
    or c in '\u200c\u200d'
    or unicodedata.category(c) in ('Zs', 'Co', 'Cn')
  )


def data_error(
  code: str, path: str | os.PathLike[str], hint: str
) -> MiraInputError:
  """The error of a dataset or table that cannot be used as it is."""
  return MiraInputError(code, path, hint, exit_code=ExitCode.DATA)


def checkpoint_error(
  code: str, path: str | os.PathLike[str], hint: str
) -> MiraInputError:
  """The error of a checkpoint or of weights that cannot be used as they are."""
  return MiraInputError(code, path, hint, exit_code=ExitCode.CHECKPOINT)


def not_readable(
  path: str | os.PathLike[str], cause: OSError
) -> MiraInputError:
  """The error of weights that the system does not let us read."""
  hint = f'it cannot be read ({cause.strerror or cause})'
  if isinstance(cause, PermissionError):
    hint = 'this user may not read it; its owner can: chmod +r'
  return checkpoint_error('not_readable', path, hint)


def nearest(word: str, known: Iterable[str], least: float = 0.6) -> str:
  """'; did you mean A or B?' for the end of a hint; '' when nothing is near.

  Args:
    word: as it was written.
    known: what could have been meant, in any case of letters.
    least: how alike, from 0 to 1, in the measure of `difflib`.
  """
  by_lower = {name.lower(): name for name in known}
  near = difflib.get_close_matches(word.lower(), by_lower, 2, least)
  names = ' or '.join(by_lower[name] for name in near)
  return f'; did you mean {names}?' if names else ''
