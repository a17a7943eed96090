"""Figures: what they show, their size, and the arrays beside them."""

from __future__ import annotations

import itertools
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from mira_jax import figures
from mira_jax.errors import MiraInputError
from mira_jax.figures import style

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ('neutral', 'happiness', 'surprise')
MATRIX = np.array([[9, 1, 0], [5, 15, 0], [0, 0, 0]])


def _frames(count: int) -> np.ndarray:
  """Uint8 [count, 48, 48, 3], every frame another grey."""
  grey = np.linspace(40, 200, count).astype(np.uint8)
  return np.broadcast_to(grey[:, None, None, None], (count, 48, 48, 3))


def _clip(slots: int = 8, tubelet: int = 2, **changes) -> dict:
  rng = np.random.default_rng(0)
  before = rng.gamma(4, size=(slots, 6, 6))
  before /= before.sum()
  gain = rng.uniform(0.7, 1.4, (3, slots))
  after = before * gain.mean(0)[:, None, None]
  fields = {
    'frames': _frames(slots * tubelet),
    'indices': np.arange(slots * tubelet) * 4,
    'gain': gain,
    'before': before,
    'after': after / after.sum(),
    'probabilities': np.array([0.1, 0.7, 0.2]),
    'class_names': NAMES,
    'title': 'smile.mp4',
  }
  return fields | changes


def _texts(figure: Figure) -> str:
  """All text on a figure, axis and tick labels included."""
  parts = [figure, *figure.subfigs]
  found = [t.get_text() for part in parts for t in part.texts]
  for axes in figure.axes:
    found += [t.get_text() for t in axes.texts]
    found += [axes.get_title(), axes.get_title('left')]
    found += [axes.get_xlabel(), axes.get_ylabel()]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    found += [t.get_text() for t in labels]
    if axes.get_legend():
      found += [t.get_text() for t in axes.get_legend().get_texts()]
  return '\n'.join(found)


def test_a_clip_is_saved_with_its_arrays(tmp_path):
  clip = _clip()
  picture = figures.clip_figure(**clip)
  path = picture.save(tmp_path / 'new' / 'clip.png')
  height, width, _ = cv2.imread(str(path)).shape
  assert width == 1600
  assert 1000 < height < 1700
  data = np.load(path.with_suffix('.npz'))
  for name in ('indices', 'gain', 'before', 'after', 'probabilities'):
    np.testing.assert_array_equal(data[name], clip[name])
  np.testing.assert_array_equal(data['frames'], clip['frames'][::2])
  assert tuple(data['class_names']) == NAMES
  # Every bar stands under its frame, and over its map.
  for slot in range(8):
    x = [
      axes.transData.transform((slot, 0))[0]
      for axes in picture.figure.subfigs[0].axes[:5]
    ]
    assert np.ptp(x) < 1


def test_the_texts_of_a_clip():
  texts = _texts(figures.clip_figure(**_clip()).figure)
  for words in (
    'smile.mp4  →  happiness 70%',
    'one temporal token of 2 consecutive sampled frames',
    'token 7\nframes 56, 60',
    'attention\nbefore MiRA',
    '× uniform',
  ):
    assert words in texts
  many = _texts(figures.clip_figure(**_clip(slots=24, tubelet=1)).figure)
  assert 'Each column is one frame. 16 of 24 tokens shown' in many
  assert 'token 23\nframe 92' in many


def test_the_maps_and_bars_of_a_clip():
  clip = _clip()
  figure = figures.clip_figure(**clip).figure
  images = [image for axes in figure.axes for image in axes.images]
  assert sum(i.get_array().shape == (48, 48, 3) for i in images) == 8
  _, gain, before, after, change = figure.subfigs[0].axes[:5]
  heat = [axes.images[8:] for axes in (before, after, change)]  # over frames
  for i in range(8):
    uniform = clip['after'][i] * 8 * 36
    np.testing.assert_allclose(heat[1][i].get_array(), uniform)
  # Before and after share one scale; the change is symmetric around zero.
  assert len({i.get_clim() for i in heat[0] + heat[1]}) == 1
  low, high = heat[2][0].get_clim()
  assert low == -high
  tops = [bar.get_y() + bar.get_height() for bar in gain.patches]
  np.testing.assert_allclose(tops, clip['gain'].mean(0))
  assert gain.collections[0].get_offsets().shape == (24, 2)  # blocks * tokens


def test_a_plain_vit_has_no_gain():
  picture = figures.clip_figure(**_clip(gain=None, after=None))
  texts = _texts(picture.figure)
  assert 'gain' not in texts + ' '.join(picture.arrays)
  assert 'MiRA' not in texts
  assert 'plain ViT' in texts


def test_a_confusion_matrix(tmp_path):
  picture = figures.confusion_figure(MATRIX, NAMES, 'A test part', 'UAR 82 %')
  texts = _texts(picture.figure)
  for words in ('A test part', 'UAR 82 %', '75.0%', 'predicted', 'true', '–'):
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


def test_angles_have_a_panel():
  rows = [{'step': i, 'block_0/angle': 70.0 + i} for i in range(3)]
  (axes,) = figures.curves_figure(rows).figure.axes
  assert 'degrees' in axes.get_title('left')
  np.testing.assert_array_equal(axes.lines[0].get_ydata(), [70, 71, 72])


def test_a_contact_sheet(tmp_path):
  clips, titles = [_frames(20), _frames(8), _frames(8)], ['a', 'b', 'c']
  picture = figures.contact_sheet(clips, titles)
  shown = [
    axes.get_title('left') for axes in picture.figure.axes if axes.images
  ]
  assert shown == titles
  assert cv2.imread(str(picture.save(tmp_path / 's.png'))).shape[1] == 1600
  strip = np.load(tmp_path / 's.npz')['clip_000']
  np.testing.assert_array_equal(strip[:, :48], clips[0][0])
  np.testing.assert_array_equal(strip[:, -48:], clips[0][-1])
  with pytest.raises(MiraInputError, match='bad_suffix'):
    picture.save(tmp_path / 's.txt')


ODD = (
  'Ha$p$y', '$\\frac{', 'سعيد', '\x1b[31mx\n', 'gbk\udcb6', '\ue0f1', 'a' * 300,
)  # fmt: skip


def test_names_are_text(tmp_path, recwarn):
  count, title = len(ODD), ODD[1]
  shares = np.linspace(1, 2, count) / np.linspace(1, 2, count).sum()
  clip = _clip(probabilities=shares, class_names=ODD, title=ODD[0])
  video, shown = np.zeros((1, 2, 8, 8, 3), np.uint8), np.zeros((1, 2, 8, 8, 3))
  curves = [{'step': i, 'loss': 1.0, f'{title}/war': 0.5} for i in (0, 1)]
  confusion = figures.confusion_figure(np.eye(count, dtype=int), ODD, title, '')
  for i, picture in enumerate([
    confusion,
    figures.clip_figure(**clip),
    figures.timeline_figure(np.tile(shares, (3, 1)), ODD, title),
    figures.contact_sheet([_frames(8)], ODD[2:3]),
    figures.reconstruction_figure(video, shown, shown, title),
    figures.curves_figure(curves),
  ]):  # fmt: skip
    picture.save(tmp_path / f'{i}.png')
  labels = [t.get_text() for t in confusion.figure.axes[0].get_yticklabels()]
  # Letters that no font has are escaped, as are control characters.
  escaped = (r'\x1b[31mx\n', r'gbk\udcb6', r'\ue0f1', 'a' * 39 + '…')
  assert tuple(labels) == ODD[:3] + escaped
  assert not [w for w in recwarn if 'Glyph' in str(w.message)]
  assert tuple(np.load(tmp_path / '0.npz')['class_names']) == ODD  # as they are


# As a notebook starts `mira`, with the settings of its user.
INLINE = 'module://matplotlib_inline.backend_inline'
_PROGRAM = """
import sys
from mira_jax import figures
assert 'matplotlib' not in sys.modules
import numpy as np
figures.timeline_figure(np.full((4, 2), 0.5), ['a', 'b'], 'x').save('x.png')
assert 'mira_jax.evaluation.metrics' not in sys.modules
"""


def test_settings_of_the_user_change_no_figure(tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  own = 'text.usetex: True\nfont.size: 40\nno.such.key: 1\nbackend: x\n'
  (tmp_path / 'matplotlibrc').write_text(own)
  monkeypatch.setenv('MPLBACKEND', INLINE)
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM],
    cwd=tmp_path, env=os.environ, capture_output=True, text=True,
  )  # fmt: skip
  assert (done.returncode, done.stderr) == (0, '')
  ours = figures.timeline_figure(np.full((4, 2), 0.5), ['a', 'b'], 'x')
  ours.save(tmp_path / 'ours.png')
  found, expected = (tmp_path / f'{x}.png' for x in ('x', 'ours'))
  assert found.read_bytes() == expected.read_bytes()


# ----- over time --------------------------------------------------------------


def test_curves_that_coincide_are_told_apart():
  rows = [{'step': i, 'val_war': 0.5, 'test_war': 0.5} for i in range(3)]
  rows[2] |= {'val_war': 0.625}
  (axes,) = figures.curves_figure(rows).figure.axes
  looks = {(x.get_marker(), x.get_linestyle()) for x in axes.lines}
  assert len(looks) == 2
  labels = [x.get_text() for x in axes.get_legend().get_texts()]
  assert labels == ['val_war 0.625', 'test_war 0.5']
  quiet = [{'step': i, 'loss': 1.0, 'skipped': 0} for i in range(3)]
  loud = [row | {'skipped': row['step']} for row in quiet]
  counts = [len(figures.curves_figure(x).figure.axes) for x in (quiet, loud)]
  assert counts == [1, 2]


def test_a_class_has_its_colour_in_every_timeline():
  names = [f'class {i}' for i in range(5)]
  first = np.tile([0.1, 0.1, 0.1, 0.6, 0.1], (4, 1))
  second = first[:, ::-1]
  colors = []
  for timeline in (first, second):
    picture = figures.timeline_figure(timeline, names, 'x')
    handles, labels = picture.figure.axes[0].get_legend_handles_labels()
    found = (tuple(h.get_facecolor()[0]) for h in handles)
    colors.append(dict(zip(labels, found, strict=True)))
  assert colors[0] == colors[1]
  assert len({*colors[0].values()}) == 5
  many = [style.class_color(i) for i in range(14)]
  assert len({*many}) == 14


def test_a_timeline_ends_with_the_clip():
  timeline = np.full((4, 2), 0.5)
  timeline[1] = np.nan
  stills = np.zeros((3, 8, 8, 3), np.uint8)
  options = {'seconds': 3.4, 'stills': stills}
  picture = figures.timeline_figure(timeline, ['a', 'b'], 'x', **options)
  axes, below = picture.figure.axes
  assert axes.get_xlim() == (0, 3.4)
  hatched = [patch for patch in axes.patches if patch.get_hatch()]
  assert len(hatched) == 1
  left, right = (
    hatched[0].get_extents().transformed(axes.transData.inverted()).intervalx
  )
  assert (left, right) == pytest.approx((1, 2))
  assert len(below.images) == 3
  assert below.images[-1].get_extent()[1] == pytest.approx(3.4)


def test_blocks_over_time():
  rng = np.random.default_rng(0)
  before, after = rng.random((2, 6, 8))
  gain = rng.uniform(0.7, 1.4, (2, 8))
  picture = figures.blocks_figure(
    before=before, after=after, gain=gain, confidence=gain, title='x'
  )
  maps = {x.get_title('left'): x for x in picture.figure.axes if x.images}
  assert [*maps] == [
    'attention before MiRA', 'attention after MiRA',
    'difference, after − before', 'gain', 'confidence',
  ]  # fmt: skip
  first, second, change, factor, _ = maps.values()
  limits = [x.images[0].get_clim() for x in (first, second)]
  assert (
    limits[0]
    == limits[1]
    == (0, pytest.approx(8 * max(before.max(), after.max())))
  )
  assert sum(change.images[0].get_clim()) == pytest.approx(0)
  assert sum(factor.images[0].get_clim()) == pytest.approx(2)
  assert factor.get_ylim() == (5.5, 3.5)  # MiRA is in blocks 4 and 5
  np.testing.assert_allclose(picture.arrays['difference'], 8 * (after - before))


def test_a_backbone_has_no_classes():
  clip = _clip() | {'probabilities': np.zeros(0), 'class_names': []}
  texts = _texts(figures.clip_figure(**clip).figure)
  assert 'Class probabilities' not in texts
  clip = _clip() | {'scored': 5}
  assert 'mean of 5 windows' in _texts(figures.clip_figure(**clip).figure)


def test_an_overlay_has_a_frame_for_each_of_the_clip():
  frames = [np.full((32, 32, 3), 10 * i, np.uint8) for i in range(5)]
  maps = np.zeros((2, 4, 4))
  maps[1, 0, 0] = 4.0
  number = np.array([0, 0, 1, 1, 1])
  drawn = [*figures.overlay_frames(frames, maps, number, 'attention')]
  assert {x.shape for x in drawn} == {(576, 448, 3)}
  corner = [x[:60, :60].astype(int).sum() for x in drawn]
  rest = [x[300:440, 300:440].astype(int).sum() for x in drawn]
  assert corner[2] - rest[2] * 3600 / 19600 > corner[1] - rest[1] * 3600 / 19600
  below = [x[448:] for x in drawn]
  moved = [
    np.flatnonzero((a != b).any((0, 2))).size
    for a, b in itertools.pairwise(below)
  ]
  assert all(0 < x <= 4 for x in moved)  # the line of the present frame
