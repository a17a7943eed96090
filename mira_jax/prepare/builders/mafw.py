"""MAFW: clips from films, series and short videos, in five folds.

Liu et al., MAFW: A Large-scale, Multi-modal, Compound Affective Database for
Dynamic Facial Expression Recognition in the Wild, ACM MM 2022. Layout and
counts are the owners'; the names of the folders above single/ and compound/
vary from copy to copy, and `faces`, which users make, is inferred from their
code.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Collection, Iterator, Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare import cells
from mira_jax.prepare.builders import folds
from mira_jax.prepare.builders.builder import Builder, Clips, bad_label, by_fold
from mira_jax.prepare.builders.tree import Tree

CLASS_NAMES = (
  'anger', 'disgust', 'fear', 'happiness', 'neutral', 'sadness', 'surprise',
  'contempt', 'anxiety', 'helplessness', 'disappointment',
)  # fmt: skip
LAYOUT = """MAFW/
  data/clips/00001.mp4             (--frames=clips)
  data/frames/00001/0000.png       (--frames=frames)
  Train & Test Set/single/no_caption/set_1/train.txt, test.txt ... set_5
  Train & Test Set/compound/no_caption/set_1/train.txt, test.txt ... set_5"""


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The single (11 classes) or the compound set (43 classes)."""
  frames = options['frames']
  clips = tree.need(f'data/{frames}', frames)
  kind = options['set']
  captions = ('no_caption', 'with_caption')
  names = [f'{kind}/{caption}' for caption in captions]
  lists_of = tree.need(*names, kind, *(['set_1'] if kind == 'single' else []))
  tree.check()
  if lists_of.name.lower() == 'set_1':
    lists_of = lists_of.parent
  lists = folds.find_lists(lists_of, ('.txt',))
  if not lists:
    tree.missing.append(f'{names[0]}/set_1/train.txt')
    tree.check()
  known = CLASS_NAMES if kind == 'single' else ()
  members = folds.read(lists, functools.partial(_entries, known=known))
  suffix = '.mp4' if frames == 'clips' else ''
  rows = [
    by_fold(
      Row(
        path=str(clips / f'{clip}{suffix}'),
        clip_id=clip,
        label=label,
        fold=fold,
      )
    )
    for clip, (label, fold) in sorted(members.items())
  ]
  return Clips(
    rows=rows,
    class_names=_class_names(row.label for row in rows),
    tables=[file for pair in lists.values() for file in pair.values()],
    crop='none' if frames == 'faces' else 'haar',
  )


def _entries(
  file: pathlib.Path, known: Collection[str]
) -> Iterator[folds.Entry]:
  """Lines 'CLIP.mp4 CLASS', or with tabs and captions in GB18030 behind."""
  lines = cells.read_text(file, fallback='gb18030').splitlines()
  for number, line in enumerate(lines, start=1):
    if not (words := line.split(None, 2)):
      continue
    label = words[1].lower() if len(words) > 1 else ''
    parts = label.split('_')
    if (known and label not in known) or not set(parts) <= set(CLASS_NAMES):
      raise bad_label(file, number, label, ', '.join(CLASS_NAMES))
    stem = pathlib.PurePath(words[0]).stem
    yield (f'{int(stem):05d}' if stem.isdecimal() else stem), label


def _class_names(labels: Iterator[str]) -> list[str]:
  """Single classes as the owners order them, then compounds by name."""
  compounds = {label for label in labels if '_' in label}
  return [*CLASS_NAMES, *sorted(compounds)]


BUILDER = Builder(
  name='mafw',
  title='MAFW (2022)',
  class_names=CLASS_NAMES,
  protocol='5 folds',
  counts={
    'all': 9172,
    **dict(
      zip(
        [f'fold {k}' for k in range(1, 6)],
        (1839, 1837, 1833, 1832, 1831),
        strict=True,
      )
    ),
  },
  licence='research only, on request',
  ask='https://mafw-database.github.io/MAFW',
  layout=LAYOUT,
  list_clips=list_clips,
  options={
    'frames': ('clips', 'frames', 'faces'),
    'set': ('single', 'compound'),
  },
)
