"""Micro-expressions that a FACS coder's sheet lists: CASME II, SAMM, MMEW.

What they share: a sheet with the columns Subject, Filename, Onset, Apex,
Offset, Action Units and Estimated Emotion, and a folder of frames per clip,
whose file names end with the numbers that the sheet counts by.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

from mira_jax.data.listing import Row
from mira_jax.prepare import tables
from mira_jax.prepare.builders.builder import Clips, bad_label

# 'Emotion' is what CASME II calls it; its sheet has unnamed columns beside.
_LABEL = ('estimatedemotion', 'emotion', 'expression')


def list_sheet(
  sheet: pathlib.Path,
  *,
  class_names: Sequence[str],
  place: Callable[[Row], Sequence[str]],
  fps: float,
  subject: Callable[[str], str] = str,
  spellings: Mapping[str, str] | None = None,
) -> Clips:
  """The clips of a coder's sheet.

  Marks that cannot be (an offset before the onset, an apex outside of both) are
  known mistakes of these sheets; they become unknown, with a warning.

  Args:
    sheet: the Excel or CSV file.
    class_names: of the dataset.
    place: from a row to where its frames may lie, the first that exists counts.
    fps: frames per second of the camera.
    subject: from the sheet's subject to the one of the folders.
    spellings: other spellings of classes, in lower case.
  """
  listing = tables.read_table(sheet, label=_LABEL)
  known = {name.lower(): name for name in class_names} | (spellings or {})
  rows, warnings = [], []
  for row in listing.rows:
    label = known.get(row.label.lower())
    if label is None:
      raise bad_label(sheet, row.line, row.label, ', '.join(class_names))
    row = dataclasses.replace(
      row, label=label, subject=subject(row.subject), fps=fps, clip_id=row.path
    )
    row, wrong = _possible(row)
    warnings += [f'line {row.line} of the sheet: {wrong}'] if wrong else []
    places = list(place(row))
    path = next((p for p in places if pathlib.Path(p).is_dir()), places[0])
    rows.append(dataclasses.replace(row, path=str(path)))
  return Clips(
    rows=rows,
    tables=[sheet],
    dropped=listing.dropped,
    warnings=warnings,
  )


def _possible(row: Row) -> tuple[Row, str]:
  """The row without marks that contradict each other, and which these were."""
  if 0 <= row.offset < row.onset:
    wrong = f'offset {row.offset} lies before onset {row.onset}'
    return dataclasses.replace(row, offset=-1), wrong
  early = 0 <= row.apex < row.onset
  late = 0 <= row.offset < row.apex
  if early or late:
    wrong = f'apex {row.apex} lies outside {row.onset} to {row.offset}'
    return dataclasses.replace(row, apex=-1), wrong
  return row, ''
