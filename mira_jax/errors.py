"""The one error that a user's mistake becomes, and its exit codes."""

from __future__ import annotations

import enum
import os


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
  """

  def __init__(
    self,
    code: str,
    path: str | os.PathLike[str],
    hint: str,
    *,
    exit_code: ExitCode = ExitCode.USAGE,
  ):
    self.code = code
    self.path = os.fspath(path)
    self.hint = hint
    self.exit_code = exit_code
    super().__init__(f'{code}: {self.path}: {hint}')
