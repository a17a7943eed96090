"""Labelled clips before they are read, from any source."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from mira_jax.data import people
from mira_jax.errors import MiraInputError, data_error

# Names of splits, whatever is appended to them.
_SPLITS = {
  **dict.fromkeys(('train', 'training', 'trainval', 'trn', 'tr'), 'train'),
  **dict.fromkeys(('test', 'testing', 'tst', 'te'), 'test'),
  **dict.fromkeys(('val', 'valid', 'validate', 'validation'), 'val'),
  **dict.fromkeys(('dev', 'devel', 'development'), 'val'),
  **dict.fromkeys(('eval', 'evaluation'), 'val'),
}
_APPENDED = re.compile(r'(set|data|split|part|videos|clips|frames|images)$')
# In UTF-8: characters that move a cursor or break a line.
_CONTROLS = re.compile(rb'[\0-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]')
_MAX_LABEL = 200  # characters
GUESSED = 'guessed from the names of folders and files'
FACTS = ('classes', 'splits', 'subjects', 'folds')


@dataclasses.dataclass(kw_only=True, frozen=True)
class Row:
  """One labelled clip of a table or a folder; unknown fields as in `Clip`."""

  path: str  # as written in the table, or relative to the folder
  label: str  # class name
  clip_id: str = ''  # in the dataset; '' for its path
  split: str = ''  # 'train', 'test' or 'val'
  subject: str = ''
  source_id: str = ''  # the recording or scene it was cut from
  fold: int = -1  # that tests it
  fps: float = 0.0
  onset: int = -1  # frame number in the source, with `apex` and `offset`
  apex: int = -1
  offset: int = -1
  action_units: str = ''
  # Of the units of the listing: those of all frames, in one row; or with a
  # `segment` a row for each frame number of it. See `Clip.intensities`.
  intensities: tuple[tuple[int, ...], ...] = ()
  segment: tuple[int, int] | None = None  # the first and last frame of the file
  line: int = 0  # of the table; 0 for a folder


@dataclasses.dataclass(kw_only=True, frozen=True)
class Failure:
  """A clip that was left out, with the code and hint of its error."""

  path: str
  code: str
  hint: str


@dataclasses.dataclass(kw_only=True)
class Listing:
  """The clips of a source."""

  rows: list[Row]
  # Clips, files and folders that were passed over, by reason.
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)
  # How the source was read.
  remarks: list[str] = dataclasses.field(default_factory=list)
  failures: list[Failure] = dataclasses.field(default_factory=list)
  # Where classes, splits, subjects and folds were read, by FACTS.
  sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
  action_units: tuple[str, ...] = ()  # of `Row.intensities`

  @property
  def class_names(self) -> list[str]:
    """In natural order, so that every fold of a dataset has the same labels."""
    return sorted({row.label for row in self.rows}, key=natural)


def listed(
  rows: Sequence[Row],
  path: str | os.PathLike[str],
  *,
  dropped: Mapping[str, int],
  failures: Sequence[Failure] = (),
  remarks: Sequence[str] = (),
  sources: Mapping[str, str] | None = None,
) -> Listing:
  """A Listing of `path` with one spelling per class and subject.

  Where no row names a subject, they may come from the paths.

  Raises:
    MiraInputError: a class has two spellings or cannot be stored
      ('bad_label').
  """
  labels, facts = _labels(rows, path), dict(sources or {})
  subjects = people.one_spelling([row.subject for row in rows])
  if not any(subjects):
    shown = people.of_paths([row.path for row in rows])
    if shown != labels:  # these are classes
      subjects = people.one_spelling(shown)
    facts['subjects'] = GUESSED
  return Listing(
    rows=[
      dataclasses.replace(row, label=label, subject=subject)
      for row, label, subject in zip(rows, labels, subjects, strict=True)
    ],
    dropped=dict(dropped),
    failures=list(failures),
    remarks=list(remarks),
    sources=facts,
  )


def _labels(rows: Sequence[Row], path: str | os.PathLike[str]) -> list[str]:
  labels: list[str] = []
  seen: dict[str, tuple[str, Row]] = {}
  for row in rows:
    label = unicodedata.normalize('NFC', row.label).strip()
    known, first = seen.setdefault(label.casefold(), (label, row))
    if not (problem := label_problem(label)) and known != label:
      problem = f'{label} is spelt {known} in {_place(first)}'
    if problem:
      raise MiraInputError('bad_label', path, f'{_place(row)}: {problem}')
    labels.append(label)
  return labels


def _place(row: Row) -> str:
  return f'line {row.line}' if row.line else escaped(row.path)


def label_problem(name: str) -> str:
  """Why a class name cannot be stored, on a line of its own; '' if it can."""
  if len(name) > _MAX_LABEL:
    return f'a class name of {len(name)} characters, {name[:20]!r}...'
  if not name.strip() or name != name.strip():
    return f'the class name {name!r} is empty or has spaces around it'
  # Zl, Zp: further line breaks; Cs: not valid in UTF-8
  if any(unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp') for c in name):
    return f'the class name {name!r} has a control character'
  return ''


def check_class_names(names: Iterable[str]) -> None:
  """Raises MiraInputError('bad_label') for a name that cannot be stored."""
  for name in names:
    if problem := label_problem(name):
      raise data_error('bad_label', ascii(name), problem)


@functools.cache
def split_word(name: str, *, of_folder: bool = False) -> str:
  """'train', 'val' or 'test' for a split's name in any usual form, else ''.

  Case, numbers and what is appended do not matter: Training, train_set,
  'test(single-labeled)', 01-valid; nor `of_folder` what is before: CAER_train.
  """
  # PublicTest is two words; one word loses an ending such as in trainset.
  words = re.findall(r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])', name)
  words = [_APPENDED.sub('', word.lower()) or word for word in words]
  found = [_SPLITS.get(word.lower(), '') for word in words]
  if len(words) > 1:  # a short word means a split only on its own
    found = [s * (len(w) > 2) for w, s in zip(words, found, strict=True)]
  if not found or len({*found} - {''}) > 1:
    return ''
  return found[0] or (found[-1] if of_folder else '')


def escaped(name: str, controls: bool = True) -> str:
  r"""A file's name that can be written as UTF-8, on one line.

  Bytes that are no UTF-8, and control characters, become \xHH, and a backslash
  before such a text becomes \x5c, so that no two names become one. Without
  `controls`, control characters stay.
  """
  raw = re.sub(rb'\\(?=x[0-9a-f]{2})', rb'\\x5c', os.fsencode(name))
  if controls:
    raw = _CONTROLS.sub(lambda m: b''.join(rb'\x%02x' % b for b in m[0]), raw)
  return raw.decode('utf-8', 'backslashreplace')


def natural(name: str) -> list[tuple[int, str]]:
  """A sort key that puts clip2 before clip10."""
  parts = re.split(r'(\d+)', name)
  numbers = (p.lstrip('0') if p.isdecimal() else None for p in parts)
  return [
    (-1, part) if number is None else (len(number), number)
    for part, number in zip(parts, numbers, strict=True)
  ]
