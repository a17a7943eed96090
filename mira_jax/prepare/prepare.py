"""From clips on disk to a prepared dataset.

Clips are listed (`tables`, `trees`, `builders`), found on disk (`resolve`), put
into splits (`holdout`), and stored (`plan`, `store`). A clip that cannot be
used is reported and left out; it never stops the others.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mira_jax import files
from mira_jax.data import holdout, trees
from mira_jax.data.listing import FACTS, Failure, Listing
from mira_jax.errors import MiraInputError, data_error, some
from mira_jax.files import Path
from mira_jax.prepare import boxes as face_boxes
from mira_jax.prepare import resolve, tables
from mira_jax.prepare.builders import BUILDERS, Tree, tally
from mira_jax.prepare.plan import Plan, no_clips
from mira_jax.prepare.report import REPORT_NAME, Report
from mira_jax.prepare.resolve import Found
from mira_jax.prepare.store import FORMATS, Storage
from mira_jax.video import face_crop, yunet

__all__ = ['REPORT_NAME', 'Options', 'prepare_dataset', 'prepare_folder']


@dataclasses.dataclass(kw_only=True, frozen=True)
class Options:
  """How clips are stored, see `Storage`, and split."""

  size: int = 224
  max_frames: int = 96
  quality: int = 95
  format: str = 'auto'
  crop: str = ''  # for the default of the source
  boxes: Path | None = None  # for the rule 'boxes', see `boxes.read_boxes`
  face_model: Path = ''  # of YuNet, for the rule 'yunet', see `video.yunet`
  check_faces: bool = False  # flag clips without a face where none is cropped
  workers: int | None = None  # one per core; 0 for this process alone
  test_fraction: float = 0.2  # of the clips, where the source names no split
  seed: int = 0  # of that choice

  def storage(self, default_crop: str, encoding: str = '') -> Storage:
    """What a worker needs of it; `encoding` is that of the table of boxes."""
    if not 1 <= self.quality <= 100:
      value = f'quality={self.quality}'
      raise MiraInputError('bad_value', value, 'use 1 to 100')
    if self.format not in FORMATS:
      hint = f'use one of {", ".join(FORMATS)}'
      raise MiraInputError('bad_value', f'format={self.format}', hint)
    rule = self._crop(default_crop)
    model = os.fspath(self.face_model)
    if model:
      yunet.check(model)
    elif self.check_faces:
      face_crop.check()
    return Storage(
      size=self.size,
      max_frames=self.max_frames,
      quality=self.quality,
      format=self.format,
      crop=rule,
      boxes=face_boxes.read_boxes(self.boxes, encoding) if self.boxes else {},
      face_model=model,
      face_model_sha256=files.sha256(model) if model else '',
      check_faces=self.check_faces and rule in ('none', 'center'),
    )

  def _crop(self, default: str) -> str:
    """One of `face_crop.RULES`. Raises MiraInputError('bad_crop')."""
    given = 'boxes' if self.boxes else 'yunet' if self.face_model else ''
    rule = self.crop or given or default
    if rule not in face_crop.RULES:
      hint = f'use one of {", ".join(face_crop.RULES)}'
    elif (rule == 'boxes') != bool(self.boxes):
      hint = 'a table of --boxes is for --crop=boxes, which needs one'
    elif rule == 'yunet' and not self.face_model:
      hint = 'it needs its model: --face-model FILE.onnx'
    elif rule == 'haar' and self.face_model:
      hint = 'a --face-model is for --crop=yunet'
    else:
      return rule
    raise MiraInputError('bad_crop', rule, hint)


def prepare_folder(
  root: Path,
  out: Path,
  *,
  table: Path | None = None,
  encoding: str = '',
  missing: Collection[str] | None = None,
  name: str | None = None,
  positive_from: int = 1,
  **options: Any,
) -> Report:
  """Prepares the labelled clips below `root`.

  Args:
    root: folder of the clips.
    out: folder of the prepared dataset and its PREPARE_REPORT.json.
    table: annotation table; without one the folders name the classes.
    encoding: of the tables, see `tables.read_table`.
    missing: labels that count as missing, see `tables.read_table`.
    name: of the dataset; by default the name of `root`.
    positive_from: intensity from which an action unit counts as shown, 1 to 5.
    **options: fields of `Options`.

  Raises:
    MiraInputError: no clip can be used, a clip is both in train and test, the
      table or the output folder cannot be used, or OpenCV lacks the face
      detector that is needed.
  """
  root, chosen = pathlib.Path(root), Options(**options)
  reading = {'encoding': encoding, 'missing': missing}
  if positive_from not in range(1, 6):
    value = f'positive_from={positive_from}'
    raise MiraInputError('bad_value', value, 'use 1 to 5')
  clips, report, listing = _wanted_clips(root, table, reading)
  plan = Plan(
    root=root,
    out=pathlib.Path(out),
    name=name or _slug(root.resolve().name),
    groups=_split(clips, chosen, report, listing.sources),
    report=report,
    storage=chosen.storage('none', encoding),
    action_units=listing.action_units,
    positive_from=positive_from,
  )
  plan.run(chosen.workers)
  return report


def prepare_dataset(
  builder: str,
  root: Path,
  out: Path,
  *,
  choices: Mapping[str, str] | None = None,
  max_missing: float = 0.1,
  beam_runner: str = '',
  beam_options: Sequence[str] = (),
  **options: Any,
) -> Report:
  """Prepares a dataset of `builders.BUILDERS` from its provider's download.

  Args:
    builder: name of the dataset.
    root: folder of the download.
    out: folder of the prepared dataset.
    choices: of the dataset, see `Builder.options`; the first value by default.
    max_missing: share of the listed clips that may be absent.
    beam_runner: an Apache Beam runner, see `beam`; '' for this machine.
    beam_options: of that runner.
    **options: fields of `Options`.

  Raises:
    MiraInputError: as `prepare_folder`; a part of the download is not there
      ('wrong_root'), its lists contradict each other ('leak'), name an unknown
      class ('bad_label'), or too many clips are absent ('too_many_missing').
  """
  spec, root, chosen = BUILDERS[builder], pathlib.Path(root), Options(**options)
  values = {key: first for key, (first, *_) in spec.options.items()}
  values |= choices or {}
  listing = spec.list_clips(Tree(root, spec.layout), values)
  found, failures = resolve.locate(listing.rows, [root])
  _check_missing(root, len(listing.rows), failures, max_missing)
  report = Report(
    class_names=list(listing.class_names or spec.class_names),
    dropped=dict(listing.dropped),
    failures=failures,
    warnings=list(listing.warnings),
  )
  report.add_tables(listing.tables)
  if spec.is_default(values):
    report.compare(tally(clip.row for clip in found), spec.counts)
  sources = {fact: 'the names and lists of the download' for fact in FACTS}
  groups = _split(found, chosen, report, sources)
  if any(clip.row.fold >= 0 for clip in found):
    report.split_rule = 'fold 1 is the test split; every fold is stored'
  storage = chosen.storage(listing.crop)
  plan = Plan(
    root=root,
    out=pathlib.Path(out),
    name=spec.dataset_name(values),
    groups=groups,
    report=report,
    storage=dataclasses.replace(storage, as_video=spec.stores_video),
    action_units=listing.action_units,
    positive_from=spec.positive_from,
  )
  if beam_runner:
    plan.run_on_beam(beam_runner, beam_options)
  else:
    plan.run(chosen.workers)
  return report


def _check_missing(
  root: pathlib.Path, listed: int, missing: Sequence[Failure], most: float
) -> None:
  if not listed:
    raise data_error('no_clips', root, 'the folders are there, but empty')
  if len(missing) > most * listed:
    hint = f'{len(missing)} of {listed} listed clips are not there, first '
    hint += some([failure.path for failure in missing], 3)
    hint += '; complete the download, or raise --max-missing'
    raise data_error('too_many_missing', root, hint)


def _wanted_clips(
  root: pathlib.Path, table: Path | None, reading: Mapping[str, Any]
) -> tuple[list[Found], Report, Listing]:
  bases = [root]
  trees.check_root(root)
  if table:
    listing = tables.read_table(table, **reading)
    bases.append(pathlib.Path(table).parent)
  else:
    listing = trees.scan_folder(root)
  dropped = dict(listing.dropped)
  found, failures = resolve.locate(listing.rows, bases)
  clips = resolve.unique(found)
  report = Report(
    class_names=listing.class_names,
    dropped=dropped,
    failures=listing.failures + failures,
    remarks=listing.remarks,
  )
  if not clips and table and not report.failures:
    raise data_error('no_clips', table, f'no row is wanted: {dropped}')
  if not clips:
    raise no_clips(root, report)
  if repeats := len(found) - len(clips):
    dropped['listed twice'] = repeats
  report.add_tables([pathlib.Path(table).absolute()] if table else [])
  return clips, report, listing


def _split(
  clips: Sequence[Found],
  options: Options,
  report: Report,
  sources: Mapping[str, str],
) -> dict[str, list[Found]]:
  rows = [clip.row for clip in clips]
  recordings = [clip.row.source_id or os.fspath(clip.path) for clip in clips]
  names, report.split_rule = holdout.assign(
    rows, options.test_fraction, options.seed, recordings
  )
  report.describe(rows, names, sources)
  groups: dict[str, list[Found]] = {'train': [], 'val': [], 'test': []}
  for split, clip in zip(names, clips, strict=True):
    groups[split].append(clip)
  return {split: group for split, group in groups.items() if group}


def _slug(name: str) -> str:
  """A dataset name from a folder's name."""
  slug = re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')
  return slug if slug[:1].isalpha() else f'clips_{slug}'.rstrip('_')
