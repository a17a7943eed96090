"""From a user's clips to a prepared dataset.

`prepare_folder` lists the clips (`tables`), finds them on disk (`locate`),
splits them (`splits`), decodes them in a pool of processes (`parallel`) and
streams them to `dataset.write`. A clip that cannot be used is reported and
left out; it never stops the others.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mira_jax.data import dataset, decode, locate, parallel, splits, tables
from mira_jax.data.locate import Failure, Found
from mira_jax.errors import ExitCode, MiraInputError

REPORT_NAME = 'PREPARE_REPORT.json'


@dataclasses.dataclass(kw_only=True)
class Report:
  """What was prepared; also written beside the dataset as JSON.

  Attributes:
    dataset: the prepared version folder.
    class_names: in label order.
    counts: clips of each class in each split.
    split_rule: who decided which clip is in which split.
    dropped: listed clips that were not wanted, by reason.
    failures: wanted clips that could not be used.
    flags: usable clips with an oddity, by kind, see `decode.Video`.
    warnings: what may be a mistake.
    table_sha256: of the annotation table; '' without one.
  """

  dataset: str = ''
  class_names: list[str] = dataclasses.field(default_factory=list)
  counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
  split_rule: str = ''
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)
  failures: list[Failure] = dataclasses.field(default_factory=list)
  flags: dict[str, int] = dataclasses.field(default_factory=dict)
  warnings: list[str] = dataclasses.field(default_factory=list)
  table_sha256: str = ''

  def __str__(self) -> str:
    lines = [f'prepared {self.dataset}', f'split: {self.split_rule}']
    for split, counts in self.counts.items():
      classes = ', '.join(f'{name} {n}' for name, n in counts.items())
      lines.append(f'{split}: {sum(counts.values())} clips ({classes})')
    lines += [f'passed over: {n} {why}' for why, n in self.dropped.items()]
    codes = collections.Counter(failure.code for failure in self.failures)
    lines += [f'left out: {n} {code}' for code, n in codes.items()]
    lines += [f'odd: {n} {flag}' for flag, n in self.flags.items()]
    return '\n'.join(lines + [f'warning: {text}' for text in self.warnings])


def prepare_folder(
  root: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  table: str | os.PathLike[str] | None = None,
  size: int = 224,
  cap: int = 96,
  quality: int = 95,
  workers: int | None = None,
  test_fraction: float = 0.2,
  seed: int = 0,
  name: str | None = None,
) -> Report:
  """Prepares the labelled clips below `root`.

  Whole frames are kept, shrunk to a shorter side of `size` pixels. A clip of
  more than `cap` frames keeps `cap` of them, evenly spaced from its first to
  its last, and its frame rate is lowered to match.

  Args:
    root: folder of the clips.
    out: folder of the prepared dataset.
    table: annotation table; without one the folders name the classes.
    size: pixels.
    cap: most frames of a clip.
    quality: of the JPEG frames, 1 to 100.
    workers: processes; by default one per core, 0 for this process alone.
    test_fraction: share of the clips that become the test split where
      neither table nor folders name one.
    seed: of that choice.
    name: of the dataset; by default the name of `root`.

  Returns:
    The report, which is also written to `out/PREPARE_REPORT.json`.

  Raises:
    MiraInputError: no clip can be used, a clip is both in train and test, or
      the table or the output folder cannot be used.
  """
  root = pathlib.Path(root)
  clips, report = _wanted_clips(root, table)
  groups = _split(clips, test_fraction, seed, report)
  work = functools.partial(
    _prepare_clip,
    labels={label: i for i, label in enumerate(report.class_names)},
    size=size,
    cap=cap,
    quality=quality,
  )
  with parallel.runner(work, len(clips), workers) as run:
    streams = {
      split: functools.partial(_usable, run, group, split, report)
      for split, group in groups.items()
    }
    report.dataset = _write(out, root, name, streams, report, size, cap)
  report.warnings = _warnings(report)
  text = json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False)
  pathlib.Path(out, REPORT_NAME).write_text(text + '\n', encoding='utf-8')
  return report


def spaced(count: int, cap: int) -> np.ndarray:
  """Indices of at most `cap` of `count` frames, evenly spaced, ends kept."""
  kept = min(count, cap)
  return np.round(np.linspace(0, count - 1, kept)).astype(np.int64)


def _wanted_clips(
  root: pathlib.Path, table: str | os.PathLike[str] | None
) -> tuple[list[Found], Report]:
  bases, digest = [root], ''
  if table:
    listing = tables.read_table(table)
    bases.append(pathlib.Path(table).parent)
    digest = hashlib.sha256(pathlib.Path(table).read_bytes()).hexdigest()
  else:
    listing = tables.scan_folder(root)
  found, failures = locate.locate(listing.rows, bases)
  clips = locate.unique(found)
  if not clips and table and not failures:
    hint = f'no row is wanted: {listing.dropped}'
    raise _error('no_clips', table, hint)
  if not clips:
    raise _no_clips(root, failures)
  dropped = dict(listing.dropped)
  if repeats := len(found) - len(clips):
    dropped['listed twice'] = repeats
  return clips, Report(
    class_names=listing.class_names,
    dropped=dropped,
    failures=failures,
    table_sha256=digest,
  )


def _split(
  clips: Sequence[Found], test_fraction: float, seed: int, report: Report
) -> dict[str, list[Found]]:
  rows = [clip.row for clip in clips]
  names, report.split_rule = splits.assign(rows, test_fraction, seed)
  groups: dict[str, list[Found]] = {'train': [], 'val': [], 'test': []}
  for split, clip in zip(names, clips, strict=True):
    groups[split].append(clip)
  return {split: group for split, group in groups.items() if group}


def _write(
  out: str | os.PathLike[str],
  root: pathlib.Path,
  name: str | None,
  streams: dict[str, Callable[[], Iterator[dataset.Clip]]],
  report: Report,
  size: int,
  cap: int,
) -> str:
  try:
    folder = dataset.write(
      out,
      name=name or _slug(root.resolve().name),
      class_names=report.class_names,
      splits=streams,
      description=f'Prepared from {root.name}.',
      metadata={'size': size, 'cap': cap, 'split_rule': report.split_rule},
    )
  except MiraInputError as error:
    if error.code == 'no_clips':  # say which clips, and why
      raise _no_clips(root, report.failures) from error
    raise
  return str(folder)


def _usable(
  run: Callable, clips: Iterable[Found], split: str, report: Report
) -> Iterator[dataset.Clip]:
  """The clips of a split, counted; failures go to the report."""
  counts = report.counts[split] = dict.fromkeys(report.class_names, 0)
  for result in run(clips):
    if isinstance(result, Failure):
      report.failures.append(result)
      continue
    clip, flags = result
    counts[report.class_names[clip.label]] += 1
    for kind in (flag.partition(':')[0] for flag in flags):
      report.flags[kind] = report.flags.get(kind, 0) + 1
    yield clip


def _prepare_clip(
  clip: Found, *, labels: dict[str, int], size: int, cap: int, quality: int
) -> tuple[dataset.Clip, tuple[str, ...]] | Failure:
  """Runs in a worker: the clip and its flags, or why it cannot be used."""
  try:
    video = decode.read_clip(clip.path, short_side=size)
  except MiraInputError as error:
    return Failure(path=clip.clip_id, code=error.code, hint=error.hint)
  except Exception as error:  # a decoder's own, on bytes nobody thought of
    hint = f'{type(error).__name__}: {error}'[:200]
    return Failure(path=clip.clip_id, code='unreadable', hint=hint)
  count, row = len(video.frames), clip.row
  kept = spaced(count, cap)
  numbers = _frame_numbers(clip.path, count)[kept]
  prepared = dataset.Clip(
    clip_id=clip.clip_id,
    frames=[decode.encode_jpeg(video.frames[i], quality) for i in kept],
    label=labels[row.label],
    subject=row.subject,
    fps=(video.fps or row.fps) * max(len(kept) - 1, 1) / max(count - 1, 1),
    onset=_nearest(numbers, row.onset),
    apex=_nearest(numbers, row.apex),
    offset=_nearest(numbers, row.offset),
    action_units=row.action_units,
    fold=row.fold,
  )
  return prepared, video.flags


def _frame_numbers(path: pathlib.Path, count: int) -> np.ndarray:
  """How a table would number the frames: by file name, else from 0."""
  if path.is_dir():
    numbers = [decode.last_number(f.name) for f in decode.frame_files(path)]
    if len(numbers) == count and min(numbers) >= 0:
      return np.array(numbers)
  return np.arange(count)


def _nearest(numbers: np.ndarray, wanted: int) -> int:
  """Index of the frame closest to a number; -1 when it is not in the clip."""
  if not numbers[0] <= wanted <= numbers[-1]:
    return -1
  return int(np.abs(numbers - wanted).argmin())


def _warnings(report: Report) -> list[str]:
  texts = []
  if len(report.class_names) == 1:
    texts.append(f'{report.class_names[0]} is the only class: is ROOT right?')
  for split, counts in report.counts.items():
    if empty := [name for name, n in counts.items() if n == 0]:
      texts.append(f'{split} has no clip of {", ".join(empty)}')
  if 'test' not in report.counts:
    texts.append('there is no test split')
  left_out = len(report.failures)
  listed = left_out + sum(sum(c.values()) for c in report.counts.values())
  if left_out > listed / 10:
    texts.append(f'{left_out} of {listed} clips were left out')
  return texts


def _no_clips(root: pathlib.Path, failures: list[Failure]) -> MiraInputError:
  if failures:
    first = ', '.join(f'{f.path} ({f.code})' for f in failures[:3])
    hint = f'none of {len(failures)} clips can be used, first {first}'
  else:
    inside = sorted(p.name + '/' * p.is_dir() for p in root.iterdir())
    hint = (
      'expected ROOT/CLASS/CLIP.mp4 or ROOT/CLASS/CLIP/1.jpg, 2.jpg, ... or '
      f'that below ROOT/train and ROOT/test; found {inside[:5] or "nothing"}'
    )
  return _error('no_clips', root, hint)


def _slug(name: str) -> str:
  """A dataset name from a folder's name."""
  slug = re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')
  return slug if slug[:1].isalpha() else f'clips_{slug}'.rstrip('_')


def _error(
  code: str, path: str | os.PathLike[str], hint: str
) -> MiraInputError:
  return MiraInputError(code, path, hint, exit_code=ExitCode.DATA)
