"""FERV39k: clips of 22 scenes, by one of seven expressions.

Wang et al., FERV39k: A Large-Scale Multi-Scene Dataset for Facial Expression
Recognition in Videos, CVPR 2022. Layout, lists and counts are the owners'; how
frames of a clip are named is inferred, so they are taken by their last number.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare import cells
from mira_jax.prepare.builders.builder import Builder, Clips, bad_label, leak
from mira_jax.prepare.builders.tree import Tree

CLASS_NAMES = (
  'Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad', 'Surprise',
)  # fmt: skip
LAYOUT = """FERV39k/
  2_ClipsforFaceCrop/Crime/Angry/0063/*.jpg      (--frames=faces)
  3_ClipsforScenImages/Crime/Angry/0063/*.jpg    (--frames=scenes)
  4_setups/All_scenes/train_All.csv, test_All.csv"""
FRAMES = {
  'faces': ('2_ClipsforFaceCrop', 'ClipsforFaceCrop'),
  'scenes': ('3_ClipsforScenImages', '3_ClipsforSceneImages'),
}


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The clips of all scenes; `source_id` is the scene."""
  clips = tree.need(*FRAMES[options['frames']])
  setups = tree.find('4_setups/All_scenes', 'All_scenes', '4_setups')
  lists = {split: _list(tree, setups, split) for split in ('train', 'test')}
  tree.check()
  rows: dict[str, Row] = {}
  for split, file in lists.items():
    for row in _rows(file, split, clips):
      if row.clip_id in rows:
        first = rows[row.clip_id].split
        raise leak(file, row.clip_id, f'is in {first} and again in {split}')
      rows[row.clip_id] = row
  return Clips(
    rows=list(rows.values()),
    tables=list(lists.values()),
    crop='haar' if options['frames'] == 'scenes' else 'none',
  )


def _list(tree: Tree, setups: pathlib.Path | None, split: str) -> pathlib.Path:
  name = f'{split}_All.csv'
  if setups and (setups / name).is_file():
    return setups / name
  return tree.need_file(name.replace('.', r'\.'), f'All_scenes/{name}')


def _rows(file: pathlib.Path, split: str, clips: pathlib.Path) -> Iterator[Row]:
  """Lines 'SCENE/CLASS/CLIP CLASS' without a header."""
  known = {name.lower(): name for name in CLASS_NAMES}
  lines = cells.read_text(file).splitlines()
  for number, line in enumerate(lines, start=1):
    clip, _, label = line.replace(',', ' ').strip().rpartition(' ')
    if not line.strip():
      continue
    if label.lower() not in known:
      raise bad_label(file, number, label, ', '.join(CLASS_NAMES))
    clip = clip.strip().strip('/')
    yield Row(
      path=str(clips / clip),
      clip_id=clip,
      label=known[label.lower()],
      split=split,
      source_id=clip.split('/')[0],
      line=number,
    )


def _counts() -> dict[str, int]:
  train = (5906, 1833, 1680, 5854, 7790, 5523, 2502)
  test = (1487, 467, 431, 1473, 1958, 1393, 638)
  return {
    'train': 31088,
    'test': 7847,
    **{f'train/{c}': n for c, n in zip(CLASS_NAMES, train, strict=True)},
    **{f'test/{c}': n for c, n in zip(CLASS_NAMES, test, strict=True)},
  }


BUILDER = Builder(
  name='ferv39k',
  title='FERV39k (2022)',
  class_names=CLASS_NAMES,
  protocol='train and test',
  counts=_counts(),
  licence='research only, on request',
  ask='https://wangyanckxx.github.io/Proj_CVPR2022_FERV39k.html',
  layout=LAYOUT,
  list_clips=list_clips,
  options={'frames': tuple(FRAMES)},
)
