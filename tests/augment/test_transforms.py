"""Augmentation: all frames of a clip alike, and nothing but what was asked."""

from __future__ import annotations

import functools
import inspect
import zlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from mira_jax import config
from mira_jax.augment import transforms

KEY = jax.random.key(0)


def clip(frames: int = 3, side: int = 6) -> jax.Array:
  """A different picture in every pixel, the same in every frame."""
  frame = jnp.linspace(0.1, 0.9, side * side * 3).reshape(side, side, 3)
  return jnp.broadcast_to(frame, (frames, side, side, 3))


def test_prepare_is_imagenet_normalisation():
  # (255/255 - 0.485) / 0.229 and so on, worked out by hand.
  white = transforms.prepare(np.full((1, 1, 1, 1, 3), 255, np.uint8))
  np.testing.assert_allclose(
    white.ravel(), [2.2489083, 2.4285714, 2.64], rtol=1e-6
  )
  assert white.dtype == jnp.float32
  np.testing.assert_allclose(transforms.denormalise(white), 1, rtol=1e-6)


def test_flip_mirrors_about_half_of_the_clips():
  x = clip()
  keys = jax.random.split(KEY, 400)
  out = jax.vmap(lambda key: transforms.flip(key, x))(keys)
  mirrored = jnp.all(out == x[:, :, ::-1], axis=(1, 2, 3, 4))
  same = jnp.all(out == x, axis=(1, 2, 3, 4))
  assert bool(jnp.all(mirrored ^ same))
  assert 0.4 < mirrored.mean() < 0.6


def test_turning_is_rotation_and_zoom_about_the_middle():
  y, x = np.mgrid[:24, :32]
  smooth = np.exp(-((x - 14) ** 2 + (y - 13) ** 2) / 50)[..., None] + [0, 1, 2]
  frames = jnp.asarray(np.stack([smooth, 2 * smooth]), jnp.float32)
  angles = []
  for key in jax.random.split(KEY, 5):
    turned, scaled = jax.random.uniform(key, (2,), minval=-1.0)
    angle, scale = np.deg2rad(20 * float(turned)), 1.2 ** float(scaled)
    angles.append(float(turned))
    matrix = np.array(
      [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    matrix /= scale  # rows first
    middle = np.array([11.5, 15.5])
    wanted = ndimage.affine_transform(
      smooth[..., 0],
      matrix,
      middle - matrix @ middle,
      order=3,
      mode='nearest',
    )
    found = transforms.turn(key, frames, 20, 0.2)
    inside = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(
      found[0, ..., 0][inside], wanted[inside], atol=0.02
    )
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-4)
  assert min(angles) < 0 < max(angles)
  still = transforms.turn(KEY, frames, 0, 0)
  np.testing.assert_allclose(still, frames, atol=1e-5)


def test_shift_is_a_window_of_the_padded_clip():
  x = clip()
  frame = np.pad(x[0], ((2, 2), (2, 2), (0, 0)), mode='edge')
  windows = {
    frame[i : i + 6, j : j + 6].tobytes(): (i, j)
    for i in range(5)
    for j in range(5)
  }
  seen = set()
  for key in jax.random.split(KEY, 100):
    out = np.asarray(transforms.shift(key, x, 2))
    assert (out == out[0]).all()  # all frames alike
    seen.add(windows[out[0].tobytes()])
  assert {i for i, _ in seen} == {j for _, j in seen} == {0, 1, 2, 3, 4}


def test_jitter_moves_brightness_and_contrast_only():
  x = clip() * 0.5 + 0.2
  out = transforms.jitter(KEY, x, 0.2, 0.3)
  # An affine map of the values, the same for every pixel and frame.
  slope, offset = np.polyfit(np.ravel(x), np.ravel(out), 1)
  np.testing.assert_allclose(out, slope * x + offset, atol=1e-5)
  assert 0.8 * 0.7 <= slope <= 1.2 * 1.3
  assert abs(slope - 1) > 1e-3
  assert 0.8 <= out.mean() / x.mean() <= 1.2


# ----- keys -----------------------------------------------------------------

# Fields of Augment, and the transform by hand, in their order.
OPERATIONS = {
  'multi_scale_crop': (
    {'multi_scale': 'base'},
    functools.partial(
      transforms.multi_scale_crop, scales=transforms.CROP_SCALES['base']
    ),
  ),
  'random_resized_crop': (
    {'resized_crop': True},
    transforms.random_resized_crop,
  ),
  'flip': ({'flip': True}, transforms.flip),
  'shift': ({'shift': 2}, functools.partial(transforms.shift, pixels=2)),
  'jitter': (
    {'brightness': 0.2, 'contrast': 0.3},
    functools.partial(transforms.jitter, brightness=0.2, contrast=0.3),
  ),
  'random_erase': (
    {'erase': 1.0},
    lambda key, x: transforms.random_erase(
      key, transforms.normalise(x), probability=1.0
    ),
  ),
}


def test_leaving_a_transform_out_changes_no_other_draw():
  video = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), np.uint8)
  used = {n: x for n, x in OPERATIONS.items() if n != 'flip'}
  fields = {'flip': False}
  for more, _ in used.values():
    fields |= more
  change = jax.jit(transforms.Augment(**fields))
  got = change(KEY, video)

  def by_hand(key, x):
    for name, (_, change) in used.items():
      x = change(jax.random.fold_in(key, zlib.crc32(name.encode())), x)
    return x

  keys = jax.random.split(KEY, 2)
  want = jax.jit(jax.vmap(by_hand))(keys, transforms.to_unit(video))
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_array_equal(got, change(KEY, video))
  assert (got != change(jax.random.key(1), video)).any()


# ----- boxes ----------------------------------------------------------------


def reference_box(rng, whole, area, ratio):
  """The loop that `draw_box` replaces."""
  for _ in range(10):
    pixels = rng.uniform(*area) * whole[0] * whole[1]
    shape = np.exp(rng.uniform(*np.log(ratio)))
    width = round(np.sqrt(pixels * shape))
    height = round(np.sqrt(pixels / shape))
    if 0 < width <= whole[1] and 0 < height <= whole[0]:
      top = rng.integers(0, whole[0] - height, endpoint=True)
      left = rng.integers(0, whole[1] - width, endpoint=True)
      return top, left, height, width
  raise AssertionError('all tries failed, which is all but impossible here')


@pytest.mark.parametrize(
  ('area', 'ratio'),
  [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.02, 1 / 3), (0.3, 1 / 0.3))],
)
def test_boxes_are_distributed_as_in_the_reference(area, ratio):
  whole, count = (1000, 900), 4000
  keys = jax.random.split(KEY, count)
  draw = jax.jit(
    jax.vmap(lambda key: transforms.draw_box(key, whole, area, ratio, (0, 0)))
  )
  rng = np.random.default_rng(0)
  loop = [reference_box(rng, whole, area, ratio) for _ in range(count)]
  facts = []
  for boxes in (draw(keys), np.transpose(loop)):
    top, left, height, width = np.asarray(boxes, float)
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + height).max() <= 1000
    assert (left + width).max() <= 900
    share, shape = height * width / 900_000, width / height
    facts.append((share, shape, top / (1001 - height), left / (901 - width)))
  for ours, theirs in zip(*facts, strict=True):
    # 0.036 is passed by one in a hundred pairs of samples of this size.
    assert stats.ks_2samp(ours, theirs).statistic < 0.036
  share, shape = facts[0][:2]
  assert area[0] - 0.002 < share.min() < area[0] + 0.003
  assert 0.9 * area[1] < share.max() < area[1] + 0.002
  np.testing.assert_allclose([shape.min(), shape.max()], ratio, rtol=0.02)


# ----- crops ----------------------------------------------------------------


def ramp(frames, height, width):
  """Every pixel says where it is: row, column and a constant."""
  row, column = np.meshgrid(range(height), range(width), indexing='ij')
  frame = np.stack([row, column, np.full_like(row, 5)], axis=-1)
  return jnp.asarray(np.stack([frame] * frames), jnp.float32)


def box_of(cropped):
  """The box [top, left, height, width] that was cut out of a ramp."""
  low, high = cropped[0, 0, 0, :2], cropped[0, -1, -1, :2]
  return [*np.round(low), *np.round(high - low + 1)]


@pytest.mark.parametrize('box', [(2, 3, 5, 7), (8, 0, 1, 1)])
def test_stretch_is_bilinear_interpolation_of_the_crop(box):
  x = jax.random.uniform(KEY, (2, 9, 13, 3))
  out = jax.jit(transforms.stretch)(x, transforms.Box(*jnp.array(box)))
  top, left, height, width = box
  for frame, stretched in zip(np.asarray(x), out, strict=True):
    crop = frame[top : top + height, left : left + width]
    want = cv2.resize(crop, (13, 9), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(stretched, want, atol=1e-5)


@pytest.mark.parametrize('box', [(1, 2, 2, 3), (-1, 4, 3, 9)])
def test_the_mask_of_a_box_is_what_it_covers(box):
  top, left, height, width = box
  expected = np.zeros((4, 6, 1), bool)
  expected[max(top, 0) : top + height, left : left + width] = True
  mask = transforms.Box(*jnp.array(box)).mask((4, 6))
  np.testing.assert_array_equal(mask, expected)


def test_a_crop_is_a_stretched_box_and_alike_in_all_frames():
  x = ramp(3, 16, 24)
  crop = functools.partial(transforms.random_resized_crop, clip=x)
  out = jax.jit(jax.vmap(crop))(jax.random.split(KEY, 20))
  boxes = np.array([box_of(each) for each in np.asarray(out)], int)
  assert len({tuple(box) for box in boxes}) > 15
  stretch = jax.jit(jax.vmap(lambda box: transforms.stretch(x, box)))
  np.testing.assert_allclose(out, stretch(transforms.Box(*boxes.T)), atol=1e-5)


@pytest.mark.parametrize(
  ('whole', 'ratio', 'box'),
  [
    ((6, 12), (0.5, 0.75), [0, 4, 6, 4]),  # 6 rows allow 4.5 columns
    ((12, 6), (4 / 3, 2), [4, 0, 4, 6]),  # 6 columns allow 4.5 rows
    ((6, 12), (2.0, 2.0), [0, 0, 6, 12]),  # fits, and is the whole
  ],
)
def test_when_no_box_fits_the_middle_is_taken(whole, ratio, box):
  crop = functools.partial(
    transforms.random_resized_crop, area=(1, 1), ratio=ratio
  )
  out = jax.jit(crop)(KEY, ramp(1, *whole))
  assert box_of(np.asarray(out)) == box


SIDES_224 = [
  *((224, 224), (224, 196), (196, 224), (196, 196), (196, 168), (168, 196)),
  *((168, 168), (168, 147), (147, 168), (147, 147)),
]


def test_the_sizes_of_crops_for_pre_training():
  sizes = transforms.crop_sizes(224, transforms.CROP_SCALES['base'])
  assert sorted(sizes) == sorted(SIDES_224)
  sizes = transforms.crop_sizes(224, transforms.CROP_SCALES['large'])
  larger = [*SIDES_224, (147, 134), (134, 147)]
  assert sorted(x for x in sizes if max(x) > 134) == sorted(larger)
  assert len(sizes) == 22
  assert transforms.crop_sizes(16, (0.875,)) == [(16, 16)]  # almost whole
  assert transforms.crop_sizes(24, (0.875,)) == [(21, 21)]


def test_crops_for_pre_training_are_always_enumerated_ones():
  sides, quarters = (40, 35, 30, 26), {40: 0, 35: 1, 30: 2, 26: 3}
  expected = {
    (row * quarters[sides[i]], column * quarters[sides[j]], sides[i], sides[j])
    for i in range(4)
    for j in range(4)
    if abs(i - j) <= 1
    for row, column in np.ndindex(5, 5)
    if (row + column) % 2 == 0
  }
  crop = functools.partial(
    transforms.multi_scale_crop,
    clip=ramp(1, 40, 40),
    scales=transforms.CROP_SCALES['base'],
  )
  out = np.asarray(jax.jit(jax.vmap(crop))(jax.random.split(KEY, 1500)))
  boxes = {tuple(map(int, box_of(each))) for each in out}
  assert boxes <= expected
  assert {box[2:] for box in boxes} == {box[2:] for box in expected}
  assert len(boxes) > 0.9 * len(expected)


# ----- erasing --------------------------------------------------------------


def test_erasing_fills_one_box_with_new_noise_everywhere():
  x = jnp.full((64, 16, 16, 3), 9.0)  # no draw from N(0, 1) is that large
  erase = jax.jit(
    lambda key: transforms.random_erase(
      key, x, probability=1.0, area=(0.125, 0.125), ratio=(0.5, 0.5)
    )
  )
  assert (transforms.random_erase(KEY, x, probability=0.0) == x).all()
  out = np.asarray(erase(KEY))
  erased = out != 9
  assert (erased == erased[0, :, :, :1]).all()  # every frame and colour
  rows, columns = np.nonzero(erased[0, :, :, 0])
  assert np.ptp(rows) + 1 == 8
  assert np.ptp(columns) + 1 == 4
  assert len(rows) == 32
  noise = out[erased]
  assert len(np.unique(noise)) > 0.99 * noise.size == 0.99 * 64 * 32 * 3
  assert abs(noise.mean()) < 0.05
  assert abs(noise.std() - 1) < 0.03


def test_the_references_numbers_are_the_defaults():
  for change, area, ratio in (
    (transforms.random_resized_crop, (0.08, 1), (3 / 4, 4 / 3)),
    (transforms.random_erase, (0.02, 1 / 3), (0.3, 1 / 0.3)),
  ):
    options = inspect.signature(change).parameters
    assert (options['area'].default, options['ratio'].default) == (area, ratio)


# ----- the whole of it ------------------------------------------------------


def test_a_configuration_asks_for_augmentation():
  assert config.augment(config.DataConfig()) == transforms.Augment(
    shift=4, brightness=0.2, contrast=0.2
  )
  data = config.DataConfig(rand_augment=True, multi_scale='large', erase=0.25)
  asked = config.augment(data)
  assert (asked.rand_augment, asked.multi_scale) == (True, 'large')
  assert asked.erase == 0.25
