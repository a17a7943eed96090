"""RandAugment: Pillow is the oracle, of each operation and of the whole."""

from __future__ import annotations

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import runs
from mira_jax.augment import randaugment, transforms
from mira_jax.devices import sharding

KEY = jax.random.key(0)
GREY = {'resample': Image.Resampling.BICUBIC, 'fillcolor': (128, 128, 128)}
AFFINE = Image.Transform.AFFINE
ENHANCE = ('color', 'contrast', 'brightness', 'sharpness')


def noise(low=0, high=256, frames=2, height=21, width=26):
  shape = (frames, height, width, 3)
  return np.random.default_rng(0).integers(low, high, shape, np.uint8)


def flat(level):
  return np.full((1, 9, 11, 3), level, np.uint8)


def few_levels():
  """Most pixels black or of one bright level, some in between."""
  x = noise(0, 3)
  x[x == 1] = 200
  x[:, :2] = noise(90, 130)[:, :2]
  return x


CLIPS = {
  'all levels': noise(),
  'low contrast': noise(37, 190),  # 153 levels: PIL's rounding shows
  'few levels': few_levels(),
  'black': flat(0),
  'tiny': noise(height=2, width=2),
}


def pil(clip, change):
  return np.stack([np.asarray(change(Image.fromarray(x))) for x in clip])


def compare(ours, theirs, *, share=0.0):
  """Within one level, and different in at most this share of all numbers."""
  assert ours.dtype == np.uint8
  gap = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
  assert gap.max() <= (1 if share else 0)
  assert (gap > 0).mean() <= share


@pytest.mark.parametrize('clip', CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    (randaugment.auto_contrast, ImageOps.autocontrast),
    (randaugment.equalize, ImageOps.equalize),
    (randaugment.invert, ImageOps.invert),
  ],
)
def test_operations_without_an_amount_are_pils(clip, ours, theirs):
  compare(jax.jit(ours)(clip), pil(clip, theirs))


def test_auto_contrast_is_pils_for_every_pair_of_extremes():
  # In frame `high`, levels from `low` to there; a colour each for three `low`.
  lows = (0, 19, 91)
  high, level = np.meshgrid(range(100, 256), range(256), indexing='ij')
  clip = np.stack([np.clip(level, low, high) for low in lows], axis=-1)
  clip = clip.reshape(-1, 16, 16, 3).astype(np.uint8)
  out = jax.jit(randaugment.auto_contrast)(clip)
  compare(out, pil(clip, ImageOps.autocontrast))
  assert (np.asarray(out).max((1, 2)) == 254).any()  # the odd thing PIL does


@pytest.mark.parametrize(
  ('name', 'amount'),
  [
    ('posterize', 1),
    ('posterize', 4),
    ('solarize', 0),
    ('solarize', 77),
    ('solarize', 256),
  ],
)
def test_operations_with_a_whole_amount_are_pils(name, amount):
  ours, theirs = getattr(randaugment, name), getattr(ImageOps, name)
  clip = noise()
  compare(jax.jit(ours)(clip, amount), pil(clip, lambda x: theirs(x, amount)))


def add_below_128(image, amount):
  table = [min(255, i + amount) if i < 128 else i for i in range(256)]
  return image.point(table * 3)


def test_solarize_add_by_hand_and_as_a_table():
  out = randaugment.solarize_add(jnp.array([0, 127, 128, 255], jnp.uint8), 110)
  assert out.tolist() == [110, 237, 128, 255]
  clip = noise()
  out = randaugment.solarize_add(clip, 77)
  compare(out, pil(clip, lambda x: add_below_128(x, 77)))


@pytest.mark.parametrize('factor', [0.1, 1.63])
@pytest.mark.parametrize('name', ENHANCE)
def test_enhancing_is_pils(name, factor):
  enhance = jax.jit(getattr(randaugment, name))
  theirs = getattr(ImageEnhance, name.capitalize())
  for clip in (CLIPS['all levels'], CLIPS['low contrast'], CLIPS['tiny']):
    out = pil(clip, lambda x: theirs(x).enhance(factor))
    compare(enhance(clip, factor), out, share=1e-3)


# ----- warps ------------------------------------------------------------------

WARP = jax.jit(randaugment.warp)


def pil_warp(image, operation, share):
  """The five of them in PIL, `share` in -1 to 1 of the largest amount."""
  width, height = image.size
  matrix = {
    'shear_x': (1, 0.3 * share, 0, 0, 1, 0),
    'shear_y': (1, 0, 0, 0.3 * share, 1, 0),
    'translate_x': (1, 0, 0.45 * share * width, 0, 1, 0),
    'translate_y': (1, 0, 0, 0, 1, 0.45 * share * height),
  }
  if operation == 'rotate':
    return image.rotate(30 * share, **GREY)
  return image.transform(image.size, AFFINE, matrix[operation], **GREY)


@pytest.mark.parametrize('share', [-1.0, 0.31])
@pytest.mark.parametrize('index', range(5))
def test_warps_are_pils(index, share):
  operation = randaugment.OPERATIONS[randaugment.WARPS + index]
  for clip in (noise(), noise(height=7, width=40)):
    matrix = randaugment.matrices(jnp.float32(share), clip.shape[1:3])[index]
    expected = pil(clip, lambda x: pil_warp(x, operation, share))
    # PIL cuts off after the point; float32 falls on the other side at times.
    compare(WARP(clip, matrix), expected, share=6e-3)
    if abs(share) > 0.5:
      assert (expected == 128).all(-1).any()  # something came in


# ----- the whole of it --------------------------------------------------------


def timm(image, operation, share, sign):
  """One operation as timm's increasing transforms define it, by PIL."""
  if operation in ENHANCE:
    factor = max(0.1, 1 + sign * 0.9 * share)
    return getattr(ImageEnhance, operation.capitalize())(image).enhance(factor)
  table = {
    'auto_contrast': ImageOps.autocontrast,
    'equalize': ImageOps.equalize,
    'invert': ImageOps.invert,
    'posterize': lambda x: ImageOps.posterize(x, max(1, 4 - int(4 * share))),
    'solarize': lambda x: ImageOps.solarize(x, 256 - int(256 * share)),
    'solarize_add': lambda x: add_below_128(x, int(110 * share)),
  }
  if operation in table:
    return table[operation](image)
  return pil_warp(image, operation, sign * share)


def test_a_clip_goes_through_what_was_drawn():
  clip = noise(height=16, width=16)
  lengths = set()
  rand, draw = jax.jit(randaugment.rand_augment), jax.jit(randaugment.draw)
  for key in jax.random.split(jax.random.key(1), 40):
    draws = jax.device_get(draw(key))
    rows = [
      (randaugment.OPERATIONS[operation], share, sign)
      for operation, happens, share, sign in zip(*draws, strict=True)
      if happens
    ]
    expected = clip
    for operation, share, sign in rows:
      step = (operation, float(share), float(sign))
      expected = pil(expected, lambda x: timm(x, *step))  # noqa: B023
    out = np.asarray(rand(key, clip))
    # A level that is one off may become two in a later step, or many where
    # the histogram or a threshold decides.
    close = np.abs(out.astype(int) - expected) <= 3
    assert close.mean() > 0.98, rows
    lengths.add(len(rows))
  assert lengths == {0, 1, 2, 3, 4}


def test_draws_are_those_of_m7_n4_mstd05():
  draw = jax.jit(jax.vmap(randaugment.draw))
  draws = jax.device_get(draw(jax.random.split(KEY, 3000)))
  assert draws.operation.shape == (3000, 4)
  counts = collections.Counter(np.ravel(draws.operation).tolist())
  assert set(counts) == set(range(15))
  # 800 each are expected, with a standard deviation of 27.
  assert 680 < min(counts.values()) <= max(counts.values()) < 920
  repeated = [len(set(row)) < 4 for row in np.asarray(draws.operation)]
  # With replacement: 1 - 14/15 * 13/15 * 12/15 = 0.353 of the clips.
  assert np.mean(repeated) == pytest.approx(0.353, abs=0.03)
  assert draws.happens.mean() == pytest.approx(0.5, abs=0.02)
  assert draws.sign.mean() == pytest.approx(0, abs=0.04)
  assert set(np.unique(draws.sign)) == {-1, 1}
  assert draws.share.mean() == pytest.approx(0.7, abs=0.002)
  assert draws.share.std() == pytest.approx(0.05, abs=0.001)


def test_posterize_keeps_one_to_four_bits():
  def bits(share):
    row = randaugment.Draws(jnp.int32(3), True, jnp.float32(share), 1.0)
    return int(randaugment.changes(row, (8, 8))[3].keywords['bits'])

  assert [bits(x) for x in (0.0, 0.3, 0.5, 0.7, 0.8, 1.0)] == [4, 3, 2, 2, 1, 1]


# ----- in Augment -------------------------------------------------------------


def test_augment_changes_each_clip_its_own_way_on_any_mesh():
  frame = noise(frames=1, height=16, width=16)
  video = np.repeat(np.repeat(frame, 2, axis=0)[None], 4, axis=0)
  change = transforms.Augment(flip=False, rand_augment=True)
  jit = functools.partial(jax.jit, compiler_options=runs.USUAL_FUSIONS)
  alone = jit(change)
  out = alone(KEY, video)
  pixels = np.asarray(out) * transforms.STD + transforms.MEAN
  # RandAugment comes first: results are whole levels.
  np.testing.assert_allclose(pixels * 255, np.round(pixels * 255), atol=1e-3)
  assert (pixels[:, 0] == pixels[:, 1]).all()  # equal frames stay equal
  assert len({row.tobytes() for row in np.asarray(out)}) > 2
  assert (out != alone(jax.random.key(1), video)).any()

  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  assert mesh.size == 2

  def over_mesh(key, video):
    with sharding.ambient(mesh):
      return change(key, video)

  split = sharding.put_batch({'video': video}, mesh)['video']
  program = jit(over_mesh).lower(KEY, split).compile()
  found = program(KEY, split)
  assert found.sharding.is_equivalent_to(split.sharding, out.ndim)
  np.testing.assert_allclose(found, out, atol=1e-5)
  # Every device works on its own clips: nothing is gathered.
  assert 'all-gather' not in program.as_text()
