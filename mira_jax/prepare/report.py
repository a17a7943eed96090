"""The result of preparing a dataset: a summary in lines, and JSON."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

import numpy as np

from mira_jax import files
from mira_jax.data import people
from mira_jax.data.dataset import describe_units
from mira_jax.data.listing import GUESSED, Failure, Row, escaped, natural
from mira_jax.errors import some

REPORT_NAME = 'PREPARE_REPORT.json'
FORM = 'frames'  # of a flag that names the form of a clip's frames
_NONE = 'none named'
_NO_SUBJECTS = (
  'none found: a person may be in training and test. Name them in folders or '
  'files (CLASS/S01_1.mp4, CLASS/S01_1/0001.png) or in a column `subject` of a '
  '--table'
)


def kind(flag: str) -> str:
  """What a flag is counted as: 'short' of 'short:50%', and forms whole."""
  name = flag.partition(':')[0]
  return flag if name == FORM else name


@dataclasses.dataclass(kw_only=True)
class Report:
  """What was prepared; also written beside the dataset as JSON."""

  dataset: str = ''  # the prepared version folder
  class_names: list[str] = field(default_factory=list)  # in label order
  # Clips of each class in each split.
  counts: dict[str, dict[str, int]] = field(default_factory=dict)
  split_rule: str = ''  # how clips were assigned to splits
  # Number of classes, splits, subjects and folds, and their source.
  found: dict[str, str] = field(default_factory=dict)
  dropped: dict[str, int] = field(default_factory=dict)  # unwanted, by reason
  failures: list[Failure] = field(default_factory=list)  # wanted, not usable
  flags: dict[str, int] = field(default_factory=dict)  # see `footage.Video`
  frames: dict[str, int] = field(default_factory=dict)  # clips of each form
  lengths: str = ''  # numbers of frames of the clips, in words
  # Frames that show each action unit, and those where that is known.
  action_units: dict[str, tuple[int, int]] = field(default_factory=dict)
  no_face: list[str] = field(default_factory=list)  # clips with that flag
  remarks: list[str] = field(default_factory=list)  # how the table was read
  warnings: list[str] = field(default_factory=list)  # possible mistakes
  # By the keys of `tally`: [found on disk, the provider's count].
  published: dict[str, tuple[int, int]] = field(default_factory=dict)
  tables: dict[str, str] = field(default_factory=dict)  # SHA-256 of the lists
  crop: str = 'none'  # one of `face_crop.RULES`
  resumed: int = 0  # clips that an interrupted run had finished

  def __str__(self) -> str:
    lines = [f'prepared {self.dataset}']
    lines += [f'table: {remark}' for remark in self.remarks]
    lines.append(f'split: {self.split_rule}')
    lines += [
      f'{what}: {text}'
      for what, text in self.found.items()
      if what == 'subjects' or text != _NONE
    ]
    for split, counts in self.counts.items():
      classes = ', '.join(f'{name} {n}' for name, n in counts.items())
      lines.append(f'{split}: {sum(counts.values())} clips ({classes})')
    if self.lengths:
      forms = [f'{form} ({n} clips)' for form, n in self.frames.items()]
      lines.append('; '.join([f'frames: {self.lengths}', *forms]))
    if self.action_units:
      shown = describe_units(self.action_units)
      lines.append(f'action units: {shown} of the frames')
    if self.published:
      same = sum(found == count for found, count in self.published.values())
      lines.append(f'published counts: {same} of {len(self.published)} agree')
    if self.resumed:
      lines.append(f'{self.resumed} clips were finished before')
    lines += [f'passed over: {n} {why}' for why, n in self.dropped.items()]
    codes = collections.Counter(failure.code for failure in self.failures)
    lines += [f'left out: {n} {code}' for code, n in codes.items()]
    lines += [f'odd: {n} {flag}' for flag, n in self.flags.items()]
    return '\n'.join(lines + [f'warning: {text}' for text in self.warnings])

  def describe(
    self,
    rows: Sequence[Row],
    splits: Sequence[str],
    sources: Mapping[str, str],
  ) -> None:
    """Adds `found`, see `Listing.sources`, and subjects on two sides."""
    subjects = [row.subject for row in rows]
    folds = [row.fold for row in rows]
    values = {
      'classes': {row.label for row in rows},
      'splits': {row.split for row in rows} - {''},
      'subjects': {*subjects} - {''},
      'folds': {*folds} - {-1},
    }
    for what, have in values.items():
      source = sources.get(what, 'the table')
      source = source if source == GUESSED else f'from {source}'
      self.found[what] = f'{len(have)}, {source}' if have else _NONE
    if sources.get('subjects') == GUESSED:
      names = sorted(values['subjects'], key=natural)
      found = f'{self.found["subjects"]}: {some(names, 5)}'
      self.found['subjects'] = found if names else _NO_SUBJECTS
    unknown = subjects.count('')
    if 0 < unknown < len(subjects):
      self.warnings.append(
        f'without a subject: {unknown} of {len(rows)} clips; each counts as a '
        'subject of its own, who may be in another split as well'
      )
    if 0 < (without := folds.count(-1)) < len(folds):
      self.warnings.append(
        f'without a fold: {without} of {len(rows)} clips; folds are used where '
        'every clip has one'
      )
    named = [fold if fold >= 0 else None for fold in folds]
    for sides, what in ((splits, 'split'), (named, 'fold')):
      if both := people.on_several_sides(subjects, sides):
        names = some(both, 5)
        self.warnings.append(f'subjects in more than one {what}: {names}')

  def describe_lengths(self, num_frames: np.ndarray) -> None:
    """Adds `lengths` of clips with so many frames, int [C]."""
    least, most = int(num_frames.min()), int(num_frames.max())
    self.lengths = f'{least} a clip'
    if least < most:
      self.lengths = f'{least} to {most} a clip, median '
      self.lengths += f'{np.median(num_frames):g}'

  def count(self, flag: str, clips: int = 1) -> None:
    """Counts clips of a flag of `store.Stored`, as `kind` names it."""
    name, _, form = flag.partition(':')
    counts, key = (self.frames, form) if name == FORM else (self.flags, name)
    counts[key] = counts.get(key, 0) + clips

  def compare(
    self, found: Mapping[str, int], published: Mapping[str, int]
  ) -> None:
    """Compares counts on disk with the published ones."""
    self.published = {k: (found.get(k, 0), n) for k, n in published.items()}
    wrong = [
      f'{k} {a} of {b}' for k, (a, b) in self.published.items() if a != b
    ]
    if wrong:
      self.warnings.append(f'not the published counts: {some(wrong, 3)}')

  def add_tables(self, paths: Iterable[pathlib.Path]) -> None:
    """Adds the SHA-256 of files."""
    for path in paths:
      self.tables[escaped('/'.join(path.parts[-3:]))] = files.sha256(path)

  def write(self, folder: str | os.PathLike[str]) -> None:
    """Adds the warnings of the result, and writes `REPORT_NAME`."""
    if len(self.class_names) == 1 and not self.action_units:
      name = self.class_names[0]
      self.warnings.append(
        f'{name} is the only class: is --root the folder above the right one?'
      )
    for split, counts in self.counts.items():
      if empty := [name for name, n in counts.items() if n == 0]:
        self.warnings.append(f'{split} has no clip of {", ".join(empty)}')
    if 'test' not in self.counts:
      self.warnings.append('there is no test split')
    if count := self.flags.get('no_face', 0):
      names = f': {some(self.no_face, 5)}' if self.no_face else ''
      self.warnings.append(
        f'{count} clips show no face that is found{names}; look at them, or '
        'leave them out with --crop=haar'
      )
    left_out = len(self.failures)
    listed = left_out + sum(sum(c.values()) for c in self.counts.values())
    if left_out > 0.1 * listed:
      self.warnings.append(f'{left_out} of {listed} clips were left out')
    text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
    path = pathlib.Path(folder, REPORT_NAME)
    # JSON's own escape, for a folder whose name is no UTF-8.
    path.write_text(text + '\n', encoding='utf-8', errors='backslashreplace')
