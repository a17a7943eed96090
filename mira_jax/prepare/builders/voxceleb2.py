"""VoxCeleb2: 1.09 million clips of speaking faces, for pre-training.

Chung et al., VoxCeleb2: Deep Speaker Recognition, Interspeech 2018. Layout and
counts are the owners'; that 283 files of dev have no video stream is counted by
MAE-DFER. Clips stay the mp4 files that they are: as JPEG frames they would take
several times the space. They have no expression; the class means nothing.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare.builders.builder import Builder, Clips
from mira_jax.prepare.builders.tree import Tree, subfolders

CLASS_NAMES = ('face',)
LAYOUT = """VoxCeleb2/      (unpacked: join the pieces, see docs/datasets.md)
  dev/mp4/id00012/21Uxsk56VDQ/00001.mp4
  test/mp4/id00017/01dfn2spqyE/00001.mp4    (if there)"""


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """Every mp4 file; `source_id` is the recording it was cut from."""
  del options
  folders = {'train': tree.need('dev/mp4'), 'test': tree.find('test/mp4')}
  tree.check()
  rows = [
    row
    for split, folder in folders.items()
    if folder
    for row in _rows(folder, split)
  ]
  return Clips(rows=rows)


def _rows(folder: pathlib.Path, split: str) -> Iterator[Row]:
  for speaker in subfolders(folder):
    for recording in subfolders(speaker):
      source = f'{speaker.name}/{recording.name}'
      for file in sorted(recording.glob('[!.]*.mp4')):
        yield Row(
          path=str(file),
          clip_id=f'{source}/{file.stem}',
          label=CLASS_NAMES[0],
          split=split,
          subject=speaker.name,
          source_id=source,
        )


BUILDER = Builder(
  name='voxceleb2',
  title='VoxCeleb2 (2018)',
  class_names=CLASS_NAMES,
  protocol='pre-training',
  counts={'train': 1_092_009, 'test': 36_237},
  licence='research only, on request',
  ask='https://www.robots.ox.ac.uk/~vgg/data/voxceleb',
  layout=LAYOUT,
  list_clips=list_clips,
  stores_video=True,
)
