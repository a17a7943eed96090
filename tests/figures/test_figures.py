"""Figures: what they show, their size, and the arrays beside them."""

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
MATRIX = np.array([[9, 1, 0], [5, 15, 0], [0, 0, 0]])


def _frames(count: int) -> np.ndarray:
  """Uint8 [count, 48, 48, 3], every frame another grey."""
  grey = np.linspace(40, 200, count).astype(np.uint8)
  return np.broadcast_to(grey[:, None, None, None], (count, 48, 48, 3))


def _clip(slots: int = 8, tubelet: int = 2, **changes) -> figures.ClipPicture:
  rng = np.random.default_rng(0)
  before = rng.gamma(4, size=(slots, 6, 6))
  before /= before.sum()
  gain = rng.uniform(0.7, 1.4, (3, slots))
  after = before * gain.mean(0)[:, None, None]
  fields = {
    'frames': _frames(slots * tubelet),
    'gain': gain,
    'before': before,
    'after': after / after.sum(),
    'probabilities': np.array([0.1, 0.7, 0.2]),
    'class_names': NAMES,
    'title': 'smile.mp4',
  }
  return figures.ClipPicture(**fields | changes)


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


def test_a_clip_is_saved_with_its_arrays(tmp_path):
  clip = _clip()
  path = figures.clip_figure(clip).save(tmp_path / 'new' / 'clip.png')
  height, width, _ = cv2.imread(str(path)).shape
  assert width == 1600
  assert 1000 < height < 1700
  data = np.load(path.with_suffix('.npz'))
  for name in ('gain', 'before', 'after', 'probabilities'):
    np.testing.assert_array_equal(data[name], getattr(clip, name))
  np.testing.assert_array_equal(data['frames'], clip.frames[::2])
  assert tuple(data['class_names']) == NAMES


def test_the_texts_of_a_clip():
  figure = figures.clip_figure(_clip(indices=np.arange(16) * 4)).figure
  for words in (
    'smile.mp4',
    'happiness 70%',
    'one temporal token of 2 consecutive sampled frames',
    'token 0\nframes 0, 4',
    'token 7\nframes 56, 60',
    'gain of MiRA',
    'attention\nbefore MiRA',
    'attention\nafter MiRA',
    'change\nafter − before',
    '× uniform',
    'Class probabilities',
  ):
    assert words in _texts(figure)
  single = figures.clip_figure(_clip(slots=4, tubelet=1)).figure
  assert 'Each column is one frame.' in _texts(single)
  assert 'token 3\nframe 3' in _texts(single)
  many = figures.clip_figure(_clip(slots=24, tubelet=1)).figure
  assert '16 of 24 tokens shown' in _texts(many)


def test_the_maps_and_bars_of_a_clip():
  clip = _clip()
  figure = figures.clip_figure(clip).figure
  # 8 frames, then heat over grey for before, after and change.
  images = [image for axes in figure.axes for image in axes.images]
  assert sum(i.get_array().shape == (48, 48, 3) for i in images) == 8
  heat = [i for i in images if i.get_array().shape == (6, 6)]
  assert len(heat) == 24
  np.testing.assert_allclose(heat[8].get_array(), clip.after[0] * 8 * 36)
  # Before and after share one scale; the change is symmetric around zero.
  assert len({i.get_clim() for i in heat[:16]}) == 1
  low, high = heat[16].get_clim()
  assert low == -high
  bars = next(a for a in figure.axes if len(a.patches) == 8)
  tops = [bar.get_y() + bar.get_height() for bar in bars.patches]
  np.testing.assert_allclose(tops, clip.gain.mean(0))
  assert bars.collections[0].get_offsets().shape == (24, 2)  # blocks * tokens
  stills = [a for a in figure.axes if a.images]
  stills = [a for a in stills if a.images[0].get_array().ndim == 3]
  for slot, axes in enumerate(stills):  # each bar stands under its frame
    box = axes.get_position()
    at = bars.transData.transform((slot, 1))[0] / figure.bbox.width
    assert at == pytest.approx((box.x0 + box.x1) / 2, abs=1e-4)


def test_a_plain_vit_has_no_gain():
  picture = figures.clip_figure(_clip(gain=None, after=None))
  texts = _texts(picture.figure)
  assert 'gain' not in texts + ' '.join(picture.arrays)
  assert 'MiRA' not in texts
  assert 'plain ViT' in texts
  with pytest.raises(ValueError, match='15 frames'):
    _clip(frames=_frames(15))


def test_a_confusion_matrix(tmp_path):
  picture = figures.confusion_figure(MATRIX, NAMES, 'A test part', 'UAR 82 %')
  texts = _texts(picture.figure)
  for words in (
    'A test part',
    'UAR 82 %',
    '90.0%',
    '75.0%',
    'predicted',
    'true',
  ):
    assert words in texts
  cells = picture.figure.axes[0].texts
  colors = {t.get_text(): t.get_color() for t in cells if '%' in t.get_text()}
  assert colors['90.0%'] == 'white'
  assert colors['10.0%'] == style.INK
  path = picture.save(tmp_path / 'c.png')
  assert cv2.imread(str(path)).shape[1] >= 600
  np.testing.assert_array_equal(np.load(tmp_path / 'c.npz')['matrix'], MATRIX)


def test_curves():
  rows = [
    {'step': 0, 'loss': 2.0, 'lr': 0.0, 'seconds': 1.0},
    {'step': 10, 'loss': 1.5, 'lr': 0.1, 'eval_war': None},
    {'step': 10, 'eval_war': 0.4, 'test/uar': 0.3},
  ]
  picture = figures.curves_figure(rows)
  titles = [axes.get_title('left') for axes in picture.figure.axes]
  assert titles == ['loss', 'accuracy', 'learning rate']
  assert 'seconds' not in _texts(picture.figure)
  np.testing.assert_array_equal(picture.arrays['loss'], [[0, 2.0], [10, 1.5]])
  np.testing.assert_array_equal(picture.arrays['test/uar'], [[10, 0.3]])
  with pytest.raises(ValueError, match='no curve in 1 rows'):
    figures.curves_figure([{'step': 0, 'seconds': 1.0}])


def test_a_contact_sheet(tmp_path):
  clips, titles = [_frames(20), _frames(3), _frames(8)], ['a', 'b', 'c']
  picture = figures.contact_sheet(clips, titles)
  assert [axes.get_title('left') for axes in picture.figure.axes] == titles
  assert cv2.imread(str(picture.save(tmp_path / 's.png'))).shape[1] == 1600
  strip = np.load(tmp_path / 's.npz')['clip_000']
  np.testing.assert_array_equal(strip[:, :48], clips[0][0])
  np.testing.assert_array_equal(strip[:, -48:], clips[0][-1])
  with pytest.raises(ValueError, match='3 clips for 1 titles'):
    figures.contact_sheet(clips, ['a'])


# ----- names ------------------------------------------------------------------

ODD = ('Ha$p$y', '$\\frac{', 'سعيد', '\x1b[31mx\n', 'gbk\udcb6', 'a' * 300)


def test_names_are_text(tmp_path, recwarn):
  count, title = len(ODD), ODD[1]
  shares = np.linspace(1, 2, count) / np.linspace(1, 2, count).sum()
  clip = _clip(probabilities=shares, class_names=ODD, title=ODD[0])
  matrix, seconds = np.eye(count, dtype=int), np.tile(shares, (3, 1))
  video, shown = np.zeros((1, 2, 8, 8, 3), np.uint8), np.zeros((1, 2, 8, 8, 3))
  curves = [{'step': i, 'loss': 1.0, f'{title}/war': 0.5} for i in (0, 1)]
  layers = {'float32': {name: 1e-5 for name in ODD}}
  confusion = figures.confusion_figure(matrix, ODD, title, 'UAR')
  for i, picture in enumerate([
    confusion,
    figures.clip_figure(clip),
    figures.timeline_figure(seconds, ODD, title),
    figures.contact_sheet([_frames(8)] * count, ODD),
    figures.agreement_figure(layers, title),
    figures.reconstruction_figure(video, shown, shown, title),
    figures.curves_figure(curves),
  ]):  # fmt: skip
    picture.save(tmp_path / f'{i}.png')
  labels = [t.get_text() for t in confusion.figure.axes[0].get_yticklabels()]
  assert tuple(labels[:3]) == ODD[:3]
  assert labels[3:5] == [r'\x1b[31mx\n', r'gbk\udcb6']
  assert labels[5] == f'{"a" * 20}…{"a" * 19}'
  assert not [w for w in recwarn if 'Glyph' in str(w.message)]
  assert tuple(np.load(tmp_path / '0.npz')['class_names']) == ODD  # as they are


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
  rare = '\ue0f1\ue0f2'  # of private use: no installed font should have them
  monkeypatch.setattr(style, '_fonts', {})

  def titles() -> list[str]:
    picture = figures.contact_sheet([_frames(8)] * 2, [rare, f'{rare}!'])
    picture.save(tmp_path / 'x.png')
    return [axes.get_title('left') for axes in picture.figure.axes]

  assert titles()[0] == r'\ue0f1\ue0f2'
  _font(tmp_path / 'rare.ttf', 'Rare Squares', rare)
  manager = font_manager.fontManager
  monkeypatch.setattr(manager, 'ttflist', list(manager.ttflist))
  manager.addfont(tmp_path / 'rare.ttf')
  assert titles() == [rare, f'{rare}!']
  assert list(style._fonts) == ['DejaVu Sans', 'Rare Squares']
  assert not [w for w in recwarn if 'Glyph' in str(w.message)]


# As a notebook starts `mira`, with the settings of its user.
_PROGRAM = """
import sys
from mira_jax import figures
assert 'matplotlib' not in sys.modules
import numpy as np
figures.timeline_figure(np.full((4, 2), 0.5), ['a', 'b'], 'x').save('x.png')
assert 'mira_jax.evaluation.metrics' not in sys.modules
"""


def test_settings_of_the_user_change_no_figure(tmp_path):
  own = 'text.usetex: True\nfont.size: 40\nno.such.key: 1\nbackend: x\n'
  pictures = []
  for settings in ('', own):
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
