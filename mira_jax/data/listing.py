"""What is known of labelled clips before they are read, from any source."""

from __future__ import annotations

import dataclasses
import os
import re

from mira_jax.errors import MiraInputError

SPLITS = {'train': 'train', 'test': 'test', 'val': 'val', 'dev': 'val'}
_SUBJECT = re.compile(r'(?:s|sub|subject|actor|id)[-_]?\d+(?=$|[-_.])', re.I)


@dataclasses.dataclass(kw_only=True, frozen=True)
class Row:
  """One labelled clip, as a table or a folder names it.

  Attributes:
    path: as written in the table, or relative to the folder.
    label: class name.
    clip_id: what the clip is called in the dataset; '' for its path.
    split: 'train', 'test', 'val' or '' when nothing is said.
    subject: '' when unknown.
    source_id: the recording or scene it was cut from; '' when unknown.
    fold: the fold that tests it; -1 when unknown.
    fps: 0 when unknown.
    onset: frame number in the source, with `apex` and `offset`; -1 unknown.
    action_units: as written.
    line: of the table; 0 for a folder.
  """

  path: str
  label: str
  clip_id: str = ''
  split: str = ''
  subject: str = ''
  source_id: str = ''
  fold: int = -1
  fps: float = 0.0
  onset: int = -1
  apex: int = -1
  offset: int = -1
  action_units: str = ''
  line: int = 0


@dataclasses.dataclass(kw_only=True)
class Listing:
  """The clips found, and how many were passed over for which reason.

  Attributes:
    rows: one per clip.
    dropped: clips that are not wanted, by reason.
    remarks: how the source was read, for people.
  """

  rows: list[Row]
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)
  remarks: list[str] = dataclasses.field(default_factory=list)

  @property
  def class_names(self) -> list[str]:
    """In natural order, so that every fold of a dataset has the same labels."""
    return sorted({row.label for row in self.rows}, key=natural)


def check_spelling(rows: list[Row], path: str | os.PathLike[str]) -> None:
  seen: dict[str, str] = {}
  for row in rows:
    known = seen.setdefault(row.label.lower(), row.label)
    if known != row.label:
      hint = f'line {row.line}: {row.label} is spelt {known} above'
      raise MiraInputError('bad_label', path, hint)


def with_subjects(rows: list[Row]) -> list[Row]:
  """Fills in subjects from the paths, such as S01 of 'S01-02-003/'.

  A chance match must not decide who may be in which split, so this is done
  only where no subject is given and every path shows one.
  """
  if any(row.subject for row in rows):
    return rows
  found = [_subject(row.path) for row in rows]
  if not all(found):
    return rows
  return [
    dataclasses.replace(row, subject=subject)
    for row, subject in zip(rows, found, strict=True)
  ]


def _subject(path: str) -> str:
  matches = map(_SUBJECT.match, reversed(re.split(r'[/\\]', path)))
  return next((match[0] for match in matches if match), '')


def split_word(name: str) -> str:
  name = name.lower()
  return next((s for word, s in SPLITS.items() if name.startswith(word)), '')


def natural(name: str) -> list[tuple[int, str]]:
  """A sort key that puts clip2 before clip10."""
  parts = re.split(r'(\d+)', name)
  return [(int(p), '') if p.isdecimal() else (-1, p) for p in parts]
