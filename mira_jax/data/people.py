"""Subjects: one name for a person, however a table spells it.

A person must not be trained on and tested. Tables write the same person as
01, 1, 1.0, S01 and 's01 ', and mark an unknown one as NA, '-' or '?', so names
are compared by what they have in common, and such marks are no person.
"""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Iterable, Sequence

# As `_key` leaves them.
_UNKNOWN = {
  *('', '-', '--', '_', '.', '/', '\\', '?', '??', '*', '-1'),
  *('na', 'n/a', '#n/a', 'n.a.', 'nan', 'none', 'null', 'nil', '<na>'),
  *('unknown', 'unk', 'undefined', 'unspecified', 'missing', 'not available'),
}
_SAME = {word: 's' for word in ('sub', 'subj', 'subject', 'subjectid')}
# Words that only mark a number as a subject.
_GENERIC = {'s', 'p', 'id', 'pid', 'actor', 'participant', 'person', 'speaker'}
_SURE = 'sub|subj|subject|actor|participant|person'
_SURE_IN_PATH = re.compile(rf'(?:{_SURE})[-_]?\d+(?=$|[-_.])', re.I)
_IN_PATH = re.compile(rf'(?:s|p|id|pid|{_SURE})[-_]?\d+(?=$|[-_.])', re.I)
_SHARE_OF_PATHS = 0.9

_Key = tuple[str, str]  # what stands before a number, and the number


def one_spelling(subjects: Sequence[str]) -> list[str]:
  """The name of each subject in one spelling, '' where it is unknown.

  Names are the same subject if they differ in case, in spaces around, in zeros
  before a number, in a '.0' behind it, or in a word such as S or subject
  before it. A number without a word is the same as with one only if no other
  word is in use: 1 is S01 unless there is a P01, too. Of the spellings the
  most frequent one is kept, and of these the longest.
  """
  keys = [_key(subject) for subject in subjects]
  words = {word for word, number in keys if number and word}
  if len(words) == 1 and words <= _GENERIC:
    keys = [('' if number else word, number) for word, number in keys]
  spellings = collections.defaultdict(collections.Counter)
  for key, subject in zip(keys, subjects, strict=True):
    spellings[key][_clean(subject)] += 1
  name = {
    key: max(counts, key=lambda s: (counts[s], len(s), s))
    for key, counts in spellings.items()
  }
  return ['' if key == ('', '') else name[key] for key in keys]


def of_paths(paths: Sequence[str]) -> list[str]:
  """Subjects that paths show, such as S01 of 'S01-02-003/'; else ''.

  A chance match must not decide the splits, so nine paths of ten must show one.
  """
  found = [_of_path(path) for path in paths]
  few = sum(map(bool, found)) < _SHARE_OF_PATHS * len(found)
  return [''] * len(found) if few else found


def on_several_sides(
  subjects: Iterable[str], sides: Iterable[object]
) -> list[str]:
  """Known subjects whose clips are on more than one side, in order.

  A side of None is unknown.
  """
  seen = collections.defaultdict(set)
  for subject, side in zip(subjects, sides, strict=True):
    if side is not None:
      seen[subject].add(side)
  return sorted(name for name, on in seen.items() if name and len(on) > 1)


def _clean(subject: str) -> str:
  """Without spaces around and without control characters."""
  shown = (c for c in subject if unicodedata.category(c) not in ('Cc', 'Cf'))
  return unicodedata.normalize('NFC', ''.join(shown)).strip()


def _key(subject: str) -> _Key:
  text = unicodedata.normalize('NFKC', _clean(subject)).casefold().strip()
  if text in _UNKNOWN:
    return '', ''
  text = re.sub(r'^(\d+)\.0+$', r'\1', text)
  if parts := re.fullmatch(r'([^\W\d_]*)[\s_.-]*(\d+)', text):
    word, number = parts.groups()
    return _SAME.get(word, word), number.lstrip('0') or '0'
  text = re.sub(r'\s+', ' ', text)
  if len(re.findall(r'\d+', text)) <= 2:  # more are rather a checksum
    text = re.sub(r'(?<!\d)0+(?=\d)', '', text)
  return text, ''


def _of_path(path: str) -> str:
  parts = re.split(r'[/\\]', path)[::-1]
  # In sub-01/s2.mp4 the S is of a session or a scene.
  matches = (p.match(part) for p in (_SURE_IN_PATH, _IN_PATH) for part in parts)
  return next((match[0] for match in matches if match), '')
