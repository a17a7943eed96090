"""Pictures: what is on them, their size, and the arrays beside them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from mira_jax import figures
from mira_jax.figures import style

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ('neutral', 'happiness', 'surprise')
PROBABILITIES = np.array([0.1, 0.7, 0.2])


def _faces(count: int, size: int = 48) -> np.ndarray:
  """A disc with two eyes and a mouth that opens, uint8 [F, size, size, 3]."""
  frames = np.full((count, size, size, 3), (60, 70, 90), np.uint8)
  unit = size // 12
  for i, frame in enumerate(frames):
    cv2.circle(frame, (6 * unit, 6 * unit), 5 * unit, (220, 180, 150), -1)
    for x in (4, 8):
      cv2.circle(frame, (x * unit, 5 * unit), unit // 2, (30, 30, 30), -1)
    opening = (2 * unit, 1 + unit * i // count)
    cv2.ellipse(
      frame, (6 * unit, 8 * unit), opening, 0, 0, 360, (150, 40, 40), -1
    )
  return frames


def _clip(slots: int = 8, tubelet: int = 2, plain: bool = False) -> dict:
  rng = np.random.default_rng(0)
  before = rng.gamma(4, size=(slots, 6, 6))
  before /= before.sum()
  gain = rng.uniform(0.7, 1.4, (3, slots))
  after = before * gain.mean(0)[:, None, None]
  return {
    'frames': _faces(slots * tubelet),
    'gain': None if plain else gain,
    'before': before,
    'after': None if plain else after / after.sum(),
    'probabilities': PROBABILITIES,
    'class_names': NAMES,
    'title': 'smile.mp4',
  }


def _build(**changes) -> Figure:
  return figures.build_clip_figure(figures.ClipPicture(**_clip() | changes))


def _texts(figure: Figure) -> str:
  """All text on a figure, axis and tick labels included."""
  found = [t.get_text() for t in figure.texts]
  for axes in figure.axes:
    found += [t.get_text() for t in axes.texts]
    found += [axes.get_title(), axes.get_title('left')]
    found += [axes.get_xlabel(), axes.get_ylabel()]
    found += [t.get_text() for t in axes.get_yticklabels()]
    if axes.get_legend():
      found += [t.get_text() for t in axes.get_legend().get_texts()]
  return '\n'.join(found)


def _images(figure: Figure) -> list:
  return [image for axes in figure.axes for image in axes.images]


def test_clip_figure_saves_picture_and_arrays(tmp_path):
  fields = _clip()
  path = figures.clip_figure(tmp_path / 'new' / 'clip.png', **fields)
  height, width, _ = cv2.imread(str(path)).shape
  assert width == 1600
  assert 1000 < height < 1700
  data = np.load(path.with_suffix('.npz'))
  for name in ('gain', 'before', 'after', 'probabilities'):
    np.testing.assert_array_equal(data[name], fields[name])
  np.testing.assert_array_equal(data['frames'], fields['frames'][::2])
  assert tuple(data['class_names']) == NAMES


def test_clip_figure_says_what_it_shows():
  texts = _texts(_build(indices=np.arange(16) * 4))
  for words in (
    'smile.mp4',
    'happiness 70%',
    'A slot covers 2 consecutive sampled frames',
    'slot 0\nframes 0, 4',
    'slot 7\nframes 56, 60',
    'gain of MiRA',
    'attention\nbefore MiRA',
    'attention\nafter MiRA',
    'change\nafter − before',
    '× uniform',
    'Class probabilities',
  ):
    assert words in texts


def test_clip_figure_columns_and_bars():
  fields = _clip()
  figure = figures.build_clip_figure(figures.ClipPicture(**fields))
  # 8 frames, then heat over grey for before, after and change.
  images = _images(figure)
  assert sum(i.get_array().shape == (48, 48, 3) for i in images) == 8
  heat = [i for i in images if i.get_array().shape == (6, 6)]
  assert len(heat) == 24
  # Before and after share one scale; the change is symmetric around zero.
  assert len({i.get_clim() for i in heat[:16]}) == 1
  low, high = heat[16].get_clim()
  assert low == -high
  bars = next(a for a in figure.axes if len(a.patches) == 8)
  tops = [bar.get_y() + bar.get_height() for bar in bars.patches]
  np.testing.assert_allclose(tops, fields['gain'].mean(0))
  assert bars.collections[0].get_offsets().shape == (24, 2)  # blocks * slots


def test_gain_bars_stand_under_their_frames():
  figure = _build()
  bars = next(a for a in figure.axes if len(a.patches) == 8)
  stills = [
    a for a in figure.axes if a.images and a.images[0].get_array().ndim == 3
  ]
  for slot, axes in enumerate(stills):
    box = axes.get_position()
    at = bars.transData.transform((slot, 1))[0] / figure.bbox.width
    assert at == pytest.approx((box.x0 + box.x1) / 2, abs=1e-4)


def test_plain_vit_has_no_gain():
  figure = _build(gain=None, after=None)
  texts = _texts(figure)
  assert 'gain' not in texts
  assert 'MiRA' not in texts
  assert 'plain ViT' in texts
  assert sum(i.get_array().shape == (6, 6) for i in _images(figure)) == 8


def test_single_frame_slots_and_many_slots():
  picture = figures.ClipPicture(**_clip(slots=4, tubelet=1))
  texts = _texts(figures.build_clip_figure(picture))
  assert 'Each column is one frame.' in texts
  assert 'slot 3\nframe 3' in texts
  many = figures.ClipPicture(**_clip(slots=24, tubelet=1))
  assert '16 of 24 slots shown' in _texts(figures.build_clip_figure(many))


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'frames': _faces(15)}, '15 frames'),
    ({'gain': np.ones((3, 7))}, r'gain \(3, 7\)'),
    ({'after': None}, 'come together'),
    ({'after': np.ones((8, 5, 6))}, r'after \(8, 5, 6\)'),
    ({'class_names': ('a',)}, '3 probabilities for 1'),
  ],
)
def test_clip_shapes_are_checked(changes, named):
  with pytest.raises(ValueError, match=named):
    _build(**changes)


def test_confusion_figure(tmp_path):
  matrix = np.array([[9, 1, 0], [5, 15, 0], [0, 0, 0]])
  figure = figures.build_confusion_figure(
    matrix, NAMES, 'A test part', 'UAR 82%'
  )
  texts = _texts(figure)
  # Recalls 90 % and 75 %, accuracy 24 of 30; the third class is absent.
  for words in (
    'A test part',
    'UAR 82%',
    '90.0%',
    '75.0%',
    'predicted',
    'true',
  ):
    assert words in texts
  colors = {
    t.get_text(): t.get_color()
    for t in figure.axes[0].texts
    if '%' in t.get_text()
  }
  assert colors['90.0%'] == 'white'
  assert colors['10.0%'] == style.INK
  path = figures.confusion_figure(tmp_path / 'c.png', matrix, NAMES, 'x', 'y')
  assert cv2.imread(str(path)).shape[1] >= 600
  np.testing.assert_array_equal(np.load(tmp_path / 'c.npz')['matrix'], matrix)


def test_curves_figure(tmp_path):
  rows = [
    {'step': 0, 'loss': 2.0, 'lr': 0.0, 'seconds': 1.0},
    {'step': 10, 'loss': 1.5, 'lr': 0.1, 'eval_war': None},
    {'step': 10, 'eval_war': 0.4, 'test/uar': 0.3},
  ]
  figure = figures.build_curves_figure(rows)
  titles = [axes.get_title('left') for axes in figure.axes]
  assert titles == ['loss', 'accuracy', 'learning rate']
  assert 'seconds' not in _texts(figure)
  path = figures.curves_figure(tmp_path / 'curves.png', rows)
  data = np.load(path.with_suffix('.npz'))
  np.testing.assert_array_equal(data['loss'], [[0, 2.0], [10, 1.5]])
  np.testing.assert_array_equal(data['test/uar'], [[10, 0.3]])
  with pytest.raises(ValueError, match='no curve in 1 rows'):
    figures.build_curves_figure([{'step': 0, 'seconds': 1.0}])


def test_contact_sheet(tmp_path):
  clips, titles = [_faces(20), _faces(3), _faces(8)], ['a', 'b', 'c']
  figure = figures.build_contact_sheet(clips, titles)
  assert [axes.get_title('left') for axes in figure.axes] == titles
  path = figures.contact_sheet(tmp_path / 'sheet.png', clips, titles)
  assert cv2.imread(str(path)).shape[1] == 1600
  strip = np.load(path.with_suffix('.npz'))['clip_000']
  np.testing.assert_array_equal(strip[:, :48], clips[0][0])
  np.testing.assert_array_equal(strip[:, -48:], clips[0][-1])
  with pytest.raises(ValueError, match='3 clips for 1 titles'):
    figures.build_contact_sheet(clips, ['a'])


# ----- names ------------------------------------------------------------------

ODD = ('Ha$p$y', '$\\frac{', 'سعيد', '\x1b[31mx\n', 'gbk\udcb6', 'a' * 300)


def _draw_all(folder: pathlib.Path, names: tuple[str, ...]) -> list[str]:
  """One picture of each kind with these names; what is said on them."""
  count = len(names)
  shares = np.linspace(1, 2, count)
  shares /= shares.sum()
  fields = {'probabilities': shares, 'class_names': names, 'title': names[0]}
  figures.clip_figure(folder / 'clip.png', **_clip() | fields)
  matrix = np.eye(count, dtype=int)
  figures.confusion_figure(folder / 'c.png', matrix, names, names[1], 'y')
  seconds = np.tile(shares, (3, 1))
  figures.timeline_figure(folder / 't.png', seconds, names, names[1])
  figures.contact_sheet(folder / 's.png', [_faces(8)] * count, names)
  rows = {'float32': {name: 1e-5 for name in names}}
  figures.agreement_figure(folder / 'a.png', rows, names[1])
  video, shown = np.zeros((1, 2, 8, 8, 3), np.uint8), np.zeros((1, 2, 8, 8, 3))
  figures.reconstruction_figure(folder / 'r.png', video, shown, shown, names[1])
  curves = [{'step': i, 'loss': 1.0, f'{names[1]}/war': 0.5} for i in (0, 1)]
  figures.curves_figure(folder / 'l.png', curves)
  figure = figures.build_confusion_figure(matrix, names, names[1], 'y')
  return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_names_are_text(tmp_path, recwarn):
  labels = _draw_all(tmp_path, ODD)
  assert tuple(labels[:3]) == ODD[:3]
  assert labels[3:5] == [r'\x1b[31mx\n', r'gbk\udcb6']
  assert labels[5] == f'{"a" * 20}…{"a" * 19}'
  assert len(list(tmp_path.glob('*.png'))) == 7
  assert not [w for w in recwarn if 'Glyph' in str(w.message)]
  stored = np.load(tmp_path / 'c.npz')['class_names']
  assert tuple(stored) == ODD  # as they are


def _font(path: pathlib.Path, family: str, letters: str) -> None:
  """A font of squares, for these letters only."""
  pen = TTGlyphPen(None)
  pen.moveTo((50, 0))
  for point in ((50, 800), (850, 800), (850, 0)):
    pen.lineTo(point)
  pen.closePath()
  names = ['.notdef', *(f'u{ord(c):04x}' for c in letters)]
  builder = FontBuilder(1000, isTTF=True)
  builder.setupGlyphOrder(names)
  builder.setupCharacterMap({ord(c): f'u{ord(c):04x}' for c in letters})
  builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
  builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 50)))
  builder.setupHorizontalHeader(ascent=800, descent=-200)
  builder.setupNameTable({'familyName': family, 'styleName': 'Regular'})
  builder.setupOS2(sTypoAscender=800, usWeightClass=400)
  builder.setupPost()
  builder.save(path)


def test_letters_come_from_another_font_or_are_escaped(
  tmp_path, monkeypatch, recwarn
):
  rare = '\ue0f1\ue0f2'  # of private use: no font of a machine should have them
  monkeypatch.setattr(style, '_fonts', {})
  names = (rare, f'{rare}!')

  def labels() -> list[str]:
    figure = figures.build_confusion_figure(
      np.eye(2, dtype=int), names, rare, 'y'
    )
    style.save(tmp_path / 'x.png', figure)
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]

  assert labels()[0] == r'\ue0f1\ue0f2'
  _font(tmp_path / 'rare.ttf', 'Rare Squares', rare)
  manager = font_manager.fontManager
  monkeypatch.setattr(manager, 'ttflist', list(manager.ttflist))
  manager.addfont(tmp_path / 'rare.ttf')
  assert labels() == list(names)
  assert list(style._fonts) == ['DejaVu Sans', 'Rare Squares']
  assert not [w for w in recwarn if 'Glyph' in str(w.message)]


# What `mira` finds as it is started from a notebook, by a person of taste.
_PROGRAM = """
import sys
from mira_jax import figures
assert 'matplotlib' not in sys.modules
import numpy as np
figures.timeline_figure('x.png', np.full((4, 2), 0.5), ['a', 'b'], 'x')
"""


def test_settings_of_a_person_change_no_picture(tmp_path):
  tasteful = 'text.usetex: True\nfont.size: 40\nno.such.key: 1\nbackend: x\n'
  pictures = []
  for settings in ('', tasteful):
    folder = tmp_path / f'{bool(settings)}'
    folder.mkdir()
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    if settings:
      (folder / 'matplotlibrc').write_text(settings)
      environment['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'
    done = subprocess.run(
      [sys.executable, '-c', _PROGRAM],
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    pictures.append((folder / 'x.png').read_bytes())
  assert pictures[0] == pictures[1]
