"""The one error that a user's mistake becomes, and its exit codes."""

from __future__ import annotations

import difflib
import enum
import os
import reprlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


class ExitCode(enum.IntEnum):
  """Exit codes of every command."""

  OK = 0
  FAILED = 1  # a check that was asked for did not pass
  USAGE = 2  # a wrong flag, file or value
  DATA = 3  # a dataset that cannot be read or made
  CHECKPOINT = 4  # a checkpoint or weights file that cannot be used
  NUMERIC = 5  # a loss that is no longer finite
  NOT_WRITTEN = 6  # a full disk, or a folder that cannot be written to
  PREEMPTED = 143  # stopped by a signal, after saving


# Every code, by its exit code; docs/errors.md explains them.
_USAGE = """
  bad_box bad_case bad_config bad_crop bad_dtype bad_face_model bad_flag
  bad_folds bad_fraction bad_k bad_module bad_name bad_platform bad_settings
  bad_shape bad_size bad_suffix bad_table bad_topology bad_value empty
  format_not_allowed
  no_backend no_beam no_camera no_cascade no_cluster no_compiler no_demo
  no_device no_face no_fps no_host no_hub no_torch no_video_stream not_a_run
  not_features not_regular_file not_synthetic not_video os_error out_of_memory
  too_large too_long too_many_files too_small unclear_label unexpected
  unknown_case wrong_root
"""
_DATA = """
  bad_archive beam_failed class_count clip_in_both leak
  no_clips no_common_classes no_fold no_folds no_split no_subjects
  not_a_dataset one_dataset one_fold other_classes other_labels other_weights
  same_name
  several_datasets too_many_damaged too_many_missing unclear_tree
  unsafe_archive worker_died
"""
_CHECKPOINT = """
  bad_classes bad_key bad_metadata bad_program bad_weights
  batch_statistics changed differs legacy_pth missing no_access no_classifier
  no_network no_step
  not_an_export not_finished not_weights other_jax other_model other_platform
  other_size run_changed several_weights split_weights unknown_size
  unsafe_pickle unsafe_program weights_mismatch
"""
# The exit code depends on the kind of file, but for the last two.
_SEVERAL = {
  (ExitCode.USAGE, ExitCode.DATA): 'bad_encoding bad_label exists',
  (ExitCode.USAGE, ExitCode.CHECKPOINT): (
    'git_lfs_pointer not_readable too_slow unsupported'
  ),
  (ExitCode.DATA, ExitCode.CHECKPOINT): 'locked too_new',
  (ExitCode.USAGE, ExitCode.DATA, ExitCode.CHECKPOINT): 'damaged not_found',
  (ExitCode.CHECKPOINT, ExitCode.NUMERIC): 'not_finite',
  (ExitCode.FAILED,): 'not_compiled',
  (ExitCode.NOT_WRITTEN,): 'not_written',
}
CODES: dict[str, tuple[ExitCode, ...]] = {
  **dict.fromkeys(_USAGE.split(), (ExitCode.USAGE,)),
  **dict.fromkeys(_DATA.split(), (ExitCode.DATA,)),
  **dict.fromkeys(_CHECKPOINT.split(), (ExitCode.CHECKPOINT,)),
  **{code: exits for exits, x in _SEVERAL.items() for code in x.split()},
}


NO_FACE = 'no face'  # in place of a class, where a face was sought in vain


class MiraInputError(ValueError):
  """A clip, table, flag or checkpoint that cannot be used as given.

  As text it is one line that is safe to print, see `plain`, and what the
  caller wants `below` it.

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


def short(value: Any, most: int = 60) -> str:
  """A value of a file or flag as an error quotes it, however large it is."""
  shortener = reprlib.Repr()
  shortener.maxstring = shortener.maxother = most
  try:
    return shortener.repr(value)
  except ValueError:  # Python does not print thousands of digits
    return 'a number of many digits'


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


def not_written(path: str | os.PathLike[str], hint: str) -> MiraInputError:
  """The error of results that have no room, or whose folder is read-only."""
  code = ExitCode.NOT_WRITTEN
  return MiraInputError('not_written', path, hint, exit_code=code)


def not_readable(
  path: str | os.PathLike[str], cause: OSError
) -> MiraInputError:
  """The error of weights that the system does not let us read."""
  hint = f'it cannot be read ({cause.strerror or cause})'
  if isinstance(cause, PermissionError):
    hint = 'this user may not read it'
  return checkpoint_error('not_readable', path, hint)


def nearest(word: str, known: Iterable[str], least: float = 0.6) -> str:
  """'; did you mean A or B?' for the end of a hint; '' when nothing is near.

  `least` is how alike they must be, in the measure of `difflib`.
  """
  by_lower = {name.lower(): name for name in known}
  near = difflib.get_close_matches(word.lower(), by_lower, 2, least)
  names = ' or '.join(by_lower[name] for name in near)
  return f'; did you mean {names}?' if names else ''
