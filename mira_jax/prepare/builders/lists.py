"""Datasets whose clips are listed in text files: DFEW, MAFW, FERV39k."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mira_jax.data.listing import Row, natural
from mira_jax.errors import MiraInputError
from mira_jax.prepare import cells, tables
from mira_jax.prepare.builders.builder import (
  Builder,
  Clips,
  bad_label,
  by_fold,
  leak,
  per_class,
  per_fold,
)
from mira_jax.prepare.builders.tree import Tree, visible

Entry = tuple[str, str]  # clip and class


# ----- folds: pairs of lists, one to train and one to test ------------------


def _fold_lists(
  tree: Tree, folder: pathlib.Path, suffix: str, first: str
) -> dict[int, dict[str, pathlib.Path]]:
  """Lists of every fold, {fold: {'train' or 'test': file}}.

  The fold is the last number of a file's path below `folder`, and the part is
  the last of 'train' and 'test' in it, as in 'test(single-labeled)/set_3.csv'
  and 'set_3/test.txt'. Without any, `first` is reported as missing.
  """
  lists: dict[int, dict[str, pathlib.Path]] = {}
  for file in sorted(folder.rglob('*'), key=lambda f: natural(str(f))):
    inside = file.relative_to(folder)
    name = inside.with_suffix('').as_posix().lower()
    parts, numbers = re.findall('train|test', name), re.findall(r'\d+', name)
    hidden = len(visible(inside.parts)) < len(inside.parts)
    if parts and numbers and file.suffix.lower() == suffix and not hidden:
      lists.setdefault(int(numbers[-1]), {}).setdefault(parts[-1], file)
  complete = {fold: pair for fold, pair in lists.items() if len(pair) == 2}
  if not complete:
    tree.missing.append(first)
    tree.check()
  return dict(sorted(complete.items()))


def _in_folds(
  lists: Mapping[int, Mapping[str, pathlib.Path]],
  entries: Callable[[pathlib.Path], Iterable[Entry]],
  path: Callable[[str], pathlib.Path],
) -> list[Row]:
  """The clips of all folds; -1 is the fold of one that none of them tests.

  Raises:
    MiraInputError: a clip is listed twice, is trained on and tested in one
      fold, is tested in two folds, or has two classes ('leak').
  """
  labels: dict[str, str] = {}
  tested: dict[str, int] = {}
  for fold, pair in lists.items():
    members: dict[str, str] = {}
    for part in ('train', 'test'):
      file = pair[part]
      for clip, label in entries(file):
        if members.get(clip) == part:
          raise leak(file, clip, f'is listed twice to {part} in fold {fold}')
        if clip in members:
          raise leak(file, clip, f'is in train and test of fold {fold}')
        members[clip] = part
        if labels.setdefault(clip, label) != label:
          raise leak(file, clip, f'is {labels[clip]} and {label}')
        if part == 'test' and tested.setdefault(clip, fold) != fold:
          raise leak(file, clip, f'is tested in folds {tested[clip]}, {fold}')
  return [
    by_fold(
      Row(
        path=str(path(clip)),
        clip_id=clip,
        label=label,
        fold=tested.get(clip, -1),
      )
    )
    for clip, label in sorted(labels.items())
  ]


def _five_digits(stem: str) -> str:
  return f'{int(stem):05d}' if stem.isdecimal() else stem


# ----- DFEW -----------------------------------------------------------------
# Jiang et al., DFEW: A Large-Scale Database for Recognizing Dynamic Facial
# Expressions in the Wild, ACM MM 2020. Layout, label codes and counts are those
# of the provider's README of 2020-10-17; other names of the lists (set_K.csv,
# train_set_K.csv, single_trainset_K.csv) are inferred from users' code.

_DFEW = ('Happy', 'Sad', 'Neutral', 'Angry', 'Surprise', 'Disgust', 'Fear')
_DFEW_FRAMES = {
  'clip_224x224': ('Clip/clip_224x224', 'clip_224x224'),
  '16f': ('Clip/clip_224x224_16f', 'clip_224x224_16f'),
  'original': ('Clip/original', 'original'),
}


def _list_dfew(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The single-labelled clips with a face, 11 697 of 16 372."""
  original = options['frames'] == 'original'
  clips = tree.need(*_DFEW_FRAMES[options['frames']])
  splits = tree.need('EmoLabel_DataSplit', 'label')
  tree.check()
  first = 'EmoLabel_DataSplit/train(single-labeled)/set_1.csv'
  lists = _fold_lists(tree, splits, '.csv', first)
  files = [file for pair in lists.values() for file in pair.values()]
  known = {str(code): name for code, name in enumerate(_DFEW, 1)}
  known |= {name.lower(): name for name in _DFEW}

  def entries(file: pathlib.Path) -> Iterator[Entry]:
    for row in tables.read_table(file).rows:
      stem = pathlib.PurePath(row.path).stem
      if not stem.isdecimal():
        hint = f'line {row.line} has the clip {row.path!r}, which is no number'
        raise MiraInputError('bad_table', file, hint)
      if row.label.lower() not in known:
        raise bad_label(file, row.line, row.label, ['1 to 7', *_DFEW])
      yield _five_digits(stem), known[row.label.lower()]

  def path(clip: str) -> pathlib.Path:
    if not original:
      return clips / clip
    number = int(clip)  # 1600 clips to a part, named without leading zeros
    return clips / f'part_{(number - 1) // 1600 + 1}' / f'{number}.mp4'

  crop = 'haar' if original else 'none'
  return Clips(rows=_in_folds(lists, entries, path), tables=files, crop=crop)


# ----- MAFW -----------------------------------------------------------------
# Liu et al., MAFW: A Large-scale, Multi-modal, Compound Affective Database for
# Dynamic Facial Expression Recognition in the Wild, ACM MM 2022. Layout and
# counts are the provider's; the folders above single/ and compound/ vary from
# copy to copy, and `faces`, which users make, is inferred from their code.

_MAFW = (
  'anger', 'disgust', 'fear', 'happiness', 'neutral', 'sadness', 'surprise',
  'contempt', 'anxiety', 'helplessness', 'disappointment',
)  # fmt: skip


def _list_mafw(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The single (11 classes) or the compound set (43 classes)."""
  frames, kind = options['frames'], options['set']
  clips = tree.need(f'data/{frames}', frames)
  names = [f'{kind}/no_caption', f'{kind}/with_caption', kind]
  sets = tree.need(*names, *(['set_1'] if kind == 'single' else []))
  tree.check()
  if sets.name.lower() == 'set_1':
    sets = sets.parent
  lists = _fold_lists(tree, sets, '.txt', f'{names[0]}/set_1/train.txt')

  def entries(file: pathlib.Path) -> Iterator[Entry]:
    """Lines 'CLIP.mp4 CLASS', in captioned lists with GB18030 text behind."""
    lines = cells.read_text(file, fallback='gb18030').splitlines()
    for number, line in enumerate(lines, start=1):
      if words := line.split(None, 2):
        label = words[1].lower() if len(words) > 1 else ''
        parts = label.split('_') if kind == 'compound' else [label]
        if not set(parts) <= set(_MAFW):
          raise bad_label(file, number, label, _MAFW)
        yield _five_digits(pathlib.PurePath(words[0]).stem), label

  def path(clip: str) -> pathlib.Path:
    return clips / (f'{clip}.mp4' if frames == 'clips' else clip)

  rows = _in_folds(lists, entries, path)
  compounds = {row.label for row in rows if '_' in row.label}
  return Clips(
    rows=rows,
    class_names=[*_MAFW, *sorted(compounds)],
    tables=[file for pair in lists.values() for file in pair.values()],
    crop='none' if frames == 'faces' else 'haar',
  )


# ----- FERV39k --------------------------------------------------------------
# Wang et al., FERV39k: A Large-Scale Multi-Scene Dataset for Facial Expression
# Recognition in Videos, CVPR 2022. Layout, lists and counts are the provider's;
# how frames of a clip are named is inferred.

_FERV39K = (
  'Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad', 'Surprise',
)  # fmt: skip
_FERV39K_FRAMES = {
  'faces': ('2_ClipsforFaceCrop', 'ClipsforFaceCrop'),
  'scenes': ('3_ClipsforScenImages', '3_ClipsforSceneImages'),
}


def _list_ferv39k(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The clips of all scenes; `source_id` is the scene."""
  clips = tree.need(*_FERV39K_FRAMES[options['frames']])
  files = {
    split: tree.need_file(rf'{split}_All\.csv', f'All_scenes/{split}_All.csv')
    for split in ('train', 'test')
  }
  tree.check()
  rows: dict[str, Row] = {}
  for split, file in files.items():
    for row in _ferv39k_rows(file, split, clips):
      if row.clip_id in rows:
        first = rows[row.clip_id].split
        raise leak(file, row.clip_id, f'is in {first} and again in {split}')
      rows[row.clip_id] = row
  crop = 'haar' if options['frames'] == 'scenes' else 'none'
  return Clips(rows=[*rows.values()], tables=[*files.values()], crop=crop)


def _ferv39k_rows(
  file: pathlib.Path, split: str, clips: pathlib.Path
) -> Iterator[Row]:
  """Lines 'SCENE/CLASS/CLIP CLASS' without a header."""
  known = {name.lower(): name for name in _FERV39K}
  for number, line in enumerate(cells.read_text(file).splitlines(), start=1):
    if not line.strip():
      continue
    clip, _, label = line.replace(',', ' ').strip().rpartition(' ')
    if label.lower() not in known:
      raise bad_label(file, number, label, _FERV39K)
    clip = clip.strip().strip('/')
    yield Row(
      path=str(clips / clip),
      clip_id=clip,
      label=known[label.lower()],
      split=split,
      source_id=clip.split('/')[0],
      line=number,
    )


BUILDERS: Sequence[Builder] = (
  Builder(
    name='dfew',
    title='DFEW (2020)',
    class_names=_DFEW,
    protocol='5 folds',
    counts={
      'all': 11697,
      **per_class(_DFEW, (2445, 1894, 2669, 2173, 1469, 145, 902)),
      **per_fold((2341, 2341, 2340, 2339, 2336)),
      **per_fold((9356, 9356, 9357, 9358, 9361), ' train'),
    },
    ask='https://dfew-dataset.github.io',
    layout="""DFEW/
  Clip/clip_224x224/00001/*.jpg        (--frames=clip_224x224)
  Clip/clip_224x224_16f/00001/*.jpg    (--frames=16f)
  Clip/original/part_1/1.mp4           (--frames=original)
  EmoLabel_DataSplit/train(single-labeled)/set_1.csv ... set_5.csv
  EmoLabel_DataSplit/test(single-labeled)/set_1.csv ... set_5.csv""",
    list_clips=_list_dfew,
    options={'frames': tuple(_DFEW_FRAMES)},
  ),
  Builder(
    name='mafw',
    title='MAFW (2022)',
    class_names=_MAFW,
    protocol='5 folds',
    counts={'all': 9172, **per_fold((1839, 1837, 1833, 1832, 1831))},
    ask='https://mafw-database.github.io/MAFW',
    layout="""MAFW/
  data/clips/00001.mp4             (--frames=clips)
  data/frames/00001/0000.png       (--frames=frames)
  Train & Test Set/single/no_caption/set_1/train.txt, test.txt ... set_5
  Train & Test Set/compound/no_caption/set_1/train.txt, test.txt ... set_5""",
    list_clips=_list_mafw,
    options={
      'frames': ('clips', 'frames', 'faces'),
      'set': ('single', 'compound'),
    },
  ),
  Builder(
    name='ferv39k',
    title='FERV39k (2022)',
    class_names=_FERV39K,
    protocol='train and test',
    counts={
      'train': 31088,
      'test': 7847,
      **per_class(
        _FERV39K, (5906, 1833, 1680, 5854, 7790, 5523, 2502), 'train/'
      ),
      **per_class(_FERV39K, (1487, 467, 431, 1473, 1958, 1393, 638), 'test/'),
    },
    ask='https://wangyanckxx.github.io/Proj_CVPR2022_FERV39k.html',
    layout="""FERV39k/
  2_ClipsforFaceCrop/Crime/Angry/0063/*.jpg      (--frames=faces)
  3_ClipsforScenImages/Crime/Angry/0063/*.jpg    (--frames=scenes)
  4_setups/All_scenes/train_All.csv, test_All.csv""",
    list_clips=_list_ferv39k,
    options={'frames': tuple(_FERV39K_FRAMES)},
  ),
)
