"""Downloads in small: the providers' names, nesting, tables and codes.

Each function lays out a tree as `mira_jax.prepare.builders` describes it, with
synthetic faces inside, and returns the number of clips that can be used.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence

import av
import cv2
import numpy as np
import openpyxl

from mira_jax.prepare.builders import BUILDERS
from mira_jax.synthetic import faces
from mira_jax.video.images import encode_jpeg

FRAMES = 10
_FACES = 8  # drawn ones; others repeat them


def face(number: int, size: int = 96) -> np.ndarray:
  """A synthetic clip, uint8 [FRAMES, size, size, 3]."""
  return _face(number % _FACES, size)


@functools.cache
def _face(number: int, size: int) -> np.ndarray:
  options = {'split': 'train', 'difficulty': 'macro', 'num_frames': FRAMES}
  return faces.draw_clip(number, seed=0, size=size, **options).frames


def scene(number: int) -> np.ndarray:
  """A face off the centre of a larger picture, [FRAMES, 180, 320, 3]."""
  frames = np.full((FRAMES, 180, 320, 3), 90, np.uint8)
  frames[:, 40:168, 150:278] = face(number, 128)
  return frames


def images(
  folder: pathlib.Path,
  frames: np.ndarray,
  name: Callable[[int], str] = '{}.jpg'.format,
  first: int = 1,
) -> None:
  """Writes frames as images, numbered from `first`."""
  folder.mkdir(parents=True, exist_ok=True)
  for i, frame in enumerate(frames, start=first):
    path = folder / name(i)
    if path.suffix == '.jpg':
      path.write_bytes(encode_jpeg(frame, 92))
    else:
      cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


def video(path: pathlib.Path, frames: np.ndarray, fps: int = 25) -> None:
  """Writes frames as a video; the suffix says of which kind."""
  codec = {'.flv': 'flv1', '.avi': 'mpeg4'}.get(path.suffix, 'libx264')
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=fps)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = 'yuv420p'
    stream.bit_rate = 2_000_000
    for frame in frames:
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      container.mux(stream.encode(picture))
    container.mux(stream.encode())


def sheet(path: pathlib.Path, rows: Iterable[Sequence]) -> None:
  """Writes an Excel file."""
  book = openpyxl.Workbook()
  for row in rows:
    book.active.append(list(row))
  path.parent.mkdir(parents=True, exist_ok=True)
  book.save(path)


def text(path: pathlib.Path, content: str, encoding: str = 'utf-8') -> None:
  """Writes a text file as it is, line ends included."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content.encode(encoding))


def make_dfew(root: pathlib.Path) -> int:
  """15 clips in five folds, below a folder that the cloud added."""
  base = root / 'DFEW-part2'
  clips = {number: number % 7 + 1 for number in range(1595, 1610)}
  for number in clips:
    images(base / f'Clip/clip_224x224/{number:05d}', face(number))
    name = f'{number:05d}_{{:05d}}.jpg'.format
    images(base / f'Clip/clip_224x224_16f/{number:05d}', face(number), name)
    part = (number - 1) // 1600 + 1
    video(base / f'Clip/original/part_{part}/{number}.mp4', face(number))
  for fold in range(1, 6):
    tested = [n for n in clips if n % 5 == fold - 1]
    trained = [n for n in clips if n not in tested]
    for part, numbers in (('train', trained), ('test', tested)):
      lines = [f'{n},{clips[n]}' for n in numbers]
      place = f'EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv'
      text(base / place, '\r\n'.join(['video_name,label', *lines]))
  return len(clips)


def make_mafw(root: pathlib.Path) -> int:
  """22 clips: two of each class; a compound set of twelve beside it."""
  names = [BUILDERS['mafw'].class_names[n % 11] for n in range(22)]
  for number in range(1, 23):
    video(root / f'data/clips/{number:05d}.mp4', face(number))
    frames = root / f'data/frames/{number:05d}'
    images(frames, face(number)[:1], '{:04d}.png'.format, first=0)
  for kind, count in (('single', 22), ('compound', 12)):
    labels = names[:count]
    if kind == 'compound':
      pairs = zip(names[:12:2], names[4:16:2], strict=True)
      labels[::2] = ['_'.join(pair) for pair in pairs]
    for fold in range(5):
      for part in ('train', 'test'):
        chosen = [
          (f'{n:05d}.mp4', label)
          for n, label in enumerate(labels, start=1)
          if (n % 5 == fold) == (part == 'test')
        ]
        plain = [f'{clip} {label}' for clip, label in chosen]
        captioned = [f'{clip}\t{label}\t他很惊讶\tHe' for clip, label in chosen]
        place = root / 'Train & Test Set' / kind
        end = f'set_{fold + 1}/{part}.txt'
        text(place / 'no_caption' / end, '\r\n'.join(plain))
        captions = place / 'with_caption' / end
        text(captions, '\n'.join(captioned), encoding='gb18030')
  return 22


def make_ferv39k(root: pathlib.Path) -> int:
  """14 clips of two scenes, as a cloud drive unpacks them."""
  inner = '2_ClipsforFaceCrop-002/2_ClipsforFaceCrop'
  number = 0
  lines: dict[str, list[str]] = {'train': [], 'test': []}
  for scene_name in ('Crime', 'DailyLife'):
    for label in BUILDERS['ferv39k'].class_names:
      number += 1
      clip = f'{scene_name}/{label}/{number:04d}'
      images(root / inner / clip, face(number), '{:08d}.jpg'.format)
      split = 'test' if scene_name == 'DailyLife' else 'train'
      lines[split].append(f'{clip} {label}')
  for split, rows in lines.items():
    path = root / f'4_setups/All_scenes/{split}_All.csv'
    text(path, '\n'.join(rows) + '\n')
  return number


def make_crema_d(root: pathlib.Path) -> int:
  """Five actors, one of each fold, with six emotions each; one wrong file."""
  actors = (1001, 1019, 1037, 1055, 1076)
  number = 0
  for actor in actors:
    for code in ('ANG', 'DIS', 'FEA', 'HAP', 'NEU', 'SAD'):
      name = f'{actor}_MTI_{code}_XX'
      video(root / f'VideoFlash/{name}.flv', face(number), fps=30)
      number += 1
  return number - 1  # 1076_MTI_SAD_XX is known to be wrong


def make_ravdess(root: pathlib.Path) -> int:
  """Actors 1 and 5, eight emotions each; with and without sound."""
  for actor in (1, 5):
    archive = f'Video_Speech_Actor_{actor:02d}/Actor_{actor:02d}'
    for emotion in range(1, 9):
      end = f'01-{emotion:02d}-01-01-01-{actor:02d}.mp4'
      frames = face(8 * actor + emotion)
      video(root / archive / f'01-{end}', frames, fps=30)
      video(root / archive / f'02-{end}', frames, fps=30)
  return 16


def make_afew(root: pathlib.Path) -> int:
  """Two clips of each class; the same names in both splits."""
  return _scenes(root, 'afew', ('Train_AFEW', 'Val_AFEW'))


def make_caer(root: pathlib.Path) -> int:
  """Three clips of each class."""
  return _scenes(root / 'CAER', 'caer', ('train', 'validation', 'test'))


def _scenes(root: pathlib.Path, name: str, splits: Sequence[str]) -> int:
  class_names = BUILDERS[name].class_names
  for i, split in enumerate(splits):
    for k, label in enumerate(class_names):
      video(root / split / label / f'{k + 1:04d}.avi', face(7 * i + k))
  return len(splits) * len(class_names)


_CODING = ('Subject', 'Filename', 'OnsetFrame', 'ApexFrame', 'OffsetFrame',
           'Action Units', 'Estimated Emotion')  # fmt: skip


def make_casme2(root: pathlib.Path) -> int:
  """Two subjects with six clips each; one apex is unknown."""
  emotions = BUILDERS['casme2'].class_names[:6]
  rows = [(*_CODING[:4], '', *_CODING[4:])]
  for person in (1, 2):
    for k, emotion in enumerate(emotions):
      name, first = f'EP{k + 2:02d}_01f', 40 + k
      apex = '/' if k == 0 else first + 4
      rows.append((person, name, first, apex, '', first + 8, '4+L12', emotion))
      number = 6 * person + k
      for folder, pattern, frames in (
        ('CASME2_RAW_selected', 'img{}.jpg', face(number)),
        ('Cropped', 'reg_img{}.jpg', face(number)),
      ):
        place = root / folder / f'sub{person:02d}' / name
        images(place, frames, pattern.format, first)
  sheet(root / 'CASME2-coding-20140508.xlsx', rows)
  (root / 'CASME2_RAW_selected/sub01/EP02_01f/img.lnk').write_bytes(b'L')
  return len(rows) - 1


def make_samm(root: pathlib.Path) -> int:
  """Three subjects with four clips each; text above the header of the sheet."""
  rows = [[f'SAMM notes {i}'] for i in range(12)] + [
    ['Subject', 'Filename', 'Inducement Code', 'Onset Frame', 'Apex Frame',
     'Offset Frame', 'Duration', 'Micro', 'Action Units', 'Estimated Emotion',
     'Objective Classes', 'Notes']
  ]  # fmt: skip
  emotions = ('Anger', 'Happiness', 'Surprise', 'Other')
  for person in (6, 7, 11):
    for k, emotion in enumerate(emotions):
      name, first = f'{person:03d}_{k + 1}_2', 5562 + 10 * k
      offset = first - 5 if k == 3 else first + 8  # the last is a mistake
      rows.append([person, name, 1, first, first + 5, offset, 9, 'Micro - 1/2',
                   '4 or 7', emotion, 3, ''])  # fmt: skip
      place = root / 'SAMM' / f'{person:03d}' / name
      pattern = f'{person:03d}_{{:05d}}.jpg'.format
      images(place, scene(4 * person + k), pattern, first)
  sheet(root / 'SAMM_Micro_FACS_Codes_v2.xlsx', rows)
  return 12


def make_mmew(root: pathlib.Path) -> int:
  """Three subjects with four clips each."""
  rows = [_CODING]
  base = root / 'MMEW_Final'
  for person in (1, 2, 30):
    for k, emotion in enumerate(('happiness', 'surprise', 'disgust', 'others')):
      name = f'S{person:02d}-{k + 1:02d}-001'
      rows.append((person, name, 1, 5, 9, '6+12', emotion))
      images(base / 'Micro_Expression' / emotion / name, face(4 * person + k))
  sheet(base / 'MMEW_Micro_Exp.xlsx', rows)
  return len(rows) - 1


def make_smic(root: pathlib.Path) -> int:
  """Three subjects with three clips each, of the fast camera."""
  for person in (1, 3, 20):
    for k, (code, label) in enumerate(
      (('ne', 'negative'), ('po', 'positive'), ('sur', 'surprise'))
    ):
      place = f'HS/s{person}/micro/{label}/s{person}_{code}_01'
      number = 3 * person + k
      for folder, name in (('raw', 'image{:06d}.jpg'),
                           ('cropped', 'reg_image{:06d}.bmp')):  # fmt: skip
        where = root / f'SMIC_all_{folder}' / place
        images(where, face(number), name.format, first=12345)
  return 9


def make_ck_plus(root: pathlib.Path) -> int:
  """Four subjects; each has a sequence without a label."""
  number = 0
  for person in (5, 10, 11, 999):
    for clip in (1, 2, 3):
      place, number = f'S{person:03d}/{clip:03d}', number + 1
      stem = f'S{person:03d}_{clip:03d}_{{:08d}}'
      name = f'{stem}.png'.format
      images(root / 'cohn-kanade-images' / place, face(number), name)
      last = stem.format(FRAMES)
      facs = '  1.0000000e+00   0.0000000e+00\n  1.2000000e+01   3.0\n'
      text(root / 'FACS' / place / f'{last}_facs.txt', facs)
      if clip < 3:
        code = f'   {number % 7 + 1}.0000000e+00\n'
        text(root / 'Emotion' / place / f'{last}_emotion.txt', code)
      else:
        (root / 'Emotion' / place).mkdir(parents=True)
  return 8


def make_voxceleb2(root: pathlib.Path) -> int:
  """Ten clips of two speakers, and one that has sound only."""
  number = 0
  for part, speaker in (('dev', 'id00012'), ('dev', 'id00015'),
                        ('test', 'id00017')):  # fmt: skip
    for recording in ('21Uxsk56VDQ', '_raOc3-IRsw'):
      for clip in (1, 2):
        number += 1
        place = f'{part}/mp4/{speaker}/{recording}/{clip:05d}.mp4'
        video(root / place, face(number))
  return number


def make_disfa(root: pathlib.Path) -> int:
  """Three subjects before the left camera, one of them before the right, too.

  Intensities in frame f of a unit are (f + unit) % 6; SN010 has a frame less
  than labels.
  """
  for person in (1, 2, 10):
    subject, labels = f'SN{person:03d}', FRAMES + (person == 10)
    file = f'Videos_LeftCamera/LeftVideo{subject}_comp.avi'
    video(root / file, face(person), 20)
    for unit in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26):
      lines = [f'{f},{(f + unit) % 6}\r\n' for f in range(1, labels + 1)]
      place = f'ActionUnit_Labels/{subject}/{subject}_au{unit}.txt'
      text(root / place, ''.join(lines))
  video(root / 'Video_RightCamera/RightVideoSN001_comp.avi', face(1), 20)
  return 3


_BP4D = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22,
         23, 24, 27, 28)  # fmt: skip


def make_bp4d(root: pathlib.Path) -> int:
  """Three subjects with two tasks each; two images more than coded frames.

  Unit k occurs in frame f where (f + k) % 3 is 0; AU6 of F001 is not coded.
  """
  for subject in ('F001', 'F002', 'M001'):
    for task in (1, 8):
      frames = np.concatenate([face(task), face(task)[:2]])
      place = f'BP4D-training/{subject}/T{task}'
      images(root / place, frames, '{}.jpg'.format, first=998)
      lines = [','.join(map(str, (0, *_BP4D)))]
      for f in range(999, 999 + FRAMES):
        codes = [
          9 if (subject, k) == ('F001', 6) else int((f + k) % 3 == 0)
          for k in _BP4D
        ]
        lines.append(','.join(map(str, (f, *codes))))
      table = f'AUCoding/AU_OCC/{subject}_T{task}.csv'
      text(root / table, '\n'.join(lines) + '\n')
  return 6


DATASETS = {
  name.removeprefix('make_'): make
  for name, make in list(globals().items())
  if name.startswith('make_')
}
