"""Augmentation: the same change in every frame, and nothing but a change."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from PIL import Image

from mira_jax import config
from mira_jax.aot import hlo
from mira_jax.augment import mixup, transforms
from mira_jax.devices import sharding
from mira_jax.errors import MiraInputError
from mira_jax.train import losses
from mira_jax.train import step as steps

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


def test_flip_mirrors_about_half_of_the_clips():
  x = clip()
  keys = jax.random.split(KEY, 400)
  out = jax.vmap(lambda key: transforms.flip(key, x))(keys)
  mirrored = jnp.all(out == x[:, :, ::-1], axis=(1, 2, 3, 4))
  same = jnp.all(out == x, axis=(1, 2, 3, 4))
  assert bool(jnp.all(mirrored ^ same))
  assert 0.4 < mirrored.mean() < 0.6


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


def test_jitter_stays_in_range():
  out = transforms.jitter(KEY, clip() * 1.1, 1.0, 1.0)
  assert out.min() >= 0
  assert out.max() <= 1


def test_augment_of_nothing_only_normalises():
  video = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3), np.uint8)
  none = transforms.Augment(flip=False)
  np.testing.assert_array_equal(none(KEY, video), transforms.prepare(video))


def test_augment_draws_per_clip_and_repeats_with_its_key():
  video = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8, 3), np.uint8)
  video = np.repeat(video, 4, axis=0)
  change = transforms.Augment(shift=2, brightness=0.2, contrast=0.2)
  out = change(KEY, video)
  assert len({np.asarray(row).tobytes() for row in out}) == 4
  np.testing.assert_array_equal(out, change(KEY, video))
  assert (out != change(jax.random.key(1), video)).any()


def test_the_new_draws_leave_the_old_ones_alone():
  # A run of before there were crops and erasing is repeated bit for bit.
  video = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8, 3), np.uint8)

  def clip_of_before(key, clip):
    flip_key, shift_key, jitter_key = jax.random.split(key, 3)
    clip = transforms.flip(flip_key, clip)
    clip = transforms.shift(shift_key, clip, 2)
    return transforms.jitter(jitter_key, clip, 0.2, 0.3)

  clips = jax.vmap(clip_of_before)(
    jax.random.split(KEY, 4), transforms.to_unit(video)
  )
  change = transforms.Augment(shift=2, brightness=0.2, contrast=0.3)
  np.testing.assert_array_equal(change(KEY, video), transforms.normalise(clips))


# ----- boxes ----------------------------------------------------------------


def distance(a, b):
  """Largest difference of two samples' cumulative shares (Kolmogorov)."""
  points = np.concatenate([a, b])
  shares = [
    np.searchsorted(np.sort(x), points, 'right') / len(x) for x in (a, b)
  ]
  return np.abs(shares[0] - shares[1]).max()


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
    assert distance(ours, theirs) < 0.036
  share, shape = facts[0][:2]
  assert area[0] - 0.002 < share.min() < area[0] + 0.003
  assert 0.9 * area[1] < share.max() < area[1] + 0.002
  np.testing.assert_allclose([shape.min(), shape.max()], ratio, rtol=0.02)


def test_a_box_of_known_area_and_ratio():
  # 0.125 of 16 x 16 are 32 pixels, half as wide as they are high.
  def draw(key):
    return transforms.draw_box(key, (16, 16), (0.125,) * 2, (0.5,) * 2, (0, 0))

  boxes = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 300))
  assert set(boxes.height.tolist()) == {8}
  assert set(boxes.width.tolist()) == {4}
  assert set(boxes.top.tolist()) == set(range(9))
  assert set(boxes.left.tolist()) == set(range(13))


def test_a_mask_is_cut_off_at_the_edges():
  box = transforms.Box(*jnp.array([-1, 2, 3, 9]))
  expected = [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
  np.testing.assert_array_equal(box.mask((3, 4))[..., 0], expected)


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


def bilinear(frame, top, left, height, width):
  """PyTorch's interpolate of one cropped frame, pixel by pixel."""
  crop = np.asarray(frame, np.float64)[top : top + height, left : left + width]
  out = np.zeros(frame.shape)
  for i, j in np.ndindex(frame.shape[:2]):
    y = max((i + 0.5) * height / frame.shape[0] - 0.5, 0)
    x = max((j + 0.5) * width / frame.shape[1] - 0.5, 0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    above = crop[y0, x0] * (x0 + 1 - x) + crop[y0, x1] * (x - x0)
    below = crop[y1, x0] * (x0 + 1 - x) + crop[y1, x1] * (x - x0)
    out[i, j] = above * (y0 + 1 - y) + below * (y - y0)
  return out


def test_stretch_by_hand():
  # Pixels 1 and 3 of a row, to twice their size: sampled at -1/4, 1/4, 3/4 and
  # 5/4; neither 7 nor 9 is seen.
  row = jnp.array([7.0, 1.0, 3.0, 9.0])[None, None, :, None]
  out = transforms.stretch(row, transforms.Box(*jnp.array([0, 1, 1, 2])))
  np.testing.assert_allclose(out.ravel(), [1, 1.5, 2.5, 3], rtol=1e-6)


@pytest.mark.parametrize(
  'box', [(0, 0, 9, 13), (2, 3, 5, 7), (8, 0, 1, 1), (4, 12, 5, 1)]
)
def test_stretch_is_bilinear_interpolation_of_the_crop(box):
  x = jax.random.uniform(KEY, (2, 9, 13, 3))
  out = jax.jit(transforms.stretch)(x, transforms.Box(*jnp.array(box)))
  for frame, stretched in zip(x, out, strict=True):
    np.testing.assert_allclose(stretched, bilinear(frame, *box), atol=2e-6)


def test_a_crop_is_alike_in_all_frames_and_repeats_with_its_key():
  x = ramp(3, 16, 24)
  crop = functools.partial(transforms.random_resized_crop, clip=x)
  keys = jax.random.split(KEY, 20)
  out = np.asarray(jax.jit(jax.vmap(crop))(keys))
  assert (out == out[:, :1]).all()
  boxes = [box_of(each) for each in out]
  assert len({tuple(box) for box in boxes}) > 15
  stretch = jax.jit(transforms.stretch)
  for cropped, box in zip(out, boxes, strict=True):
    expected = stretch(x, transforms.Box(*jnp.array(box, int)))
    np.testing.assert_allclose(cropped, expected, atol=1e-5)
  np.testing.assert_allclose(out[0], crop(keys[0]), atol=1e-5)


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
SMALL_SIDES_224 = [
  *((147, 134), (134, 147), (134, 134), (134, 134), (134, 134), (134, 134)),
  *((134, 123), (123, 134), (123, 123), (123, 123), (123, 123), (123, 123)),
]


def test_the_sizes_of_crops_for_pre_training():
  sizes = transforms.crop_sizes(224, transforms.CROP_SCALES_BASE)
  assert sorted(sizes) == sorted(SIDES_224)
  sizes = transforms.crop_sizes(224, transforms.CROP_SCALES_LARGE)
  assert sorted(sizes) == sorted(SIDES_224 + SMALL_SIDES_224)
  assert len(sizes) == 22


@pytest.mark.parametrize(
  ('side', 'scale', 'cropped'),
  [(16, 0.875, 16), (24, 0.875, 21), (224, 0.992, 224), (224, 0.99, 221)],
)
def test_a_crop_that_is_almost_whole_is_whole(side, scale, cropped):
  assert transforms.crop_sizes(side, (scale,)) == [(cropped, cropped)]


def scaled_boxes(side, scales, count):
  crop = functools.partial(
    transforms.multi_scale_crop, clip=ramp(1, side, side), scales=scales
  )
  out = jax.jit(jax.vmap(crop))(jax.random.split(KEY, count))
  return {tuple(map(int, box_of(each))) for each in np.asarray(out)}


def test_a_crop_for_pre_training_lies_in_one_of_13_places():
  # 24 of 32 pixels: quarters of the room are 2 pixels.
  corners = {(0, 0), (0, 8), (8, 0), (8, 8), (4, 4), (0, 4), (8, 4), (4, 0)}
  corners |= {(4, 8), (2, 2), (2, 6), (6, 2), (6, 6)}
  boxes = scaled_boxes(32, (0.75,), 300)
  assert boxes == {(*corner, 24, 24) for corner in corners}


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
  boxes = scaled_boxes(40, transforms.CROP_SCALES_BASE, 1500)
  assert boxes <= expected
  assert {box[2:] for box in boxes} == {box[2:] for box in expected}
  assert len(boxes) > 0.9 * len(expected)


def test_a_crop_for_pre_training_is_pils():
  video = jax.random.randint(KEY, (2, 48, 48, 3), 0, 256).astype(jnp.uint8)
  places = transforms.multi_scale_crop(KEY, ramp(1, 48, 48), scales=(0.6,))
  top, left, height, width = map(int, box_of(np.asarray(places)))
  out = transforms.multi_scale_crop(KEY, video.astype(float), scales=(0.6,))
  for frame, ours in zip(np.asarray(video), out, strict=True):
    image = Image.fromarray(frame)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((48, 48), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(ours, np.asarray(image, float), atol=1)
  assert (height, width) == (28, 28)


# ----- erasing --------------------------------------------------------------


def test_erasing_fills_one_box_with_new_noise_everywhere():
  x = jnp.full((64, 16, 16, 3), 9.0)  # no draw from N(0, 1) is that large
  erase = jax.jit(
    lambda key: transforms.random_erase(
      key, x, probability=1.0, area=(0.125, 0.125), ratio=(0.5, 0.5)
    )
  )
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
  np.testing.assert_array_equal(out, erase(KEY))
  assert (out != erase(jax.random.key(1))).any()


def test_a_quarter_of_the_clips_is_erased():
  x = jnp.full((1, 8, 8, 3), 9.0)
  erase = jax.vmap(lambda key: transforms.random_erase(key, x))
  out = jax.jit(erase)(jax.random.split(KEY, 2000))
  assert 0.22 < jnp.any(out != x, axis=(1, 2, 3, 4)).mean() < 0.28


def test_the_references_numbers_are_the_defaults():
  x = ramp(1, 64, 64)
  for change, numbers in (
    (
      transforms.random_resized_crop,
      {'area': (0.08, 1), 'ratio': (3 / 4, 4 / 3)},
    ),
    (transforms.random_erase, {'area': (0.02, 1 / 3), 'ratio': (0.3, 1 / 0.3)}),
  ):
    default, same, other = (
      str(jax.make_jaxpr(functools.partial(change, clip=x, **options))(KEY))
      for options in ({}, numbers, {**numbers, 'area': (0.1, 1)})
    )
    assert default == same != other


# ----- the whole of it ------------------------------------------------------


def test_augment_crops_the_clip():
  video = np.asarray(ramp(2, 24, 24)[None] * 10, np.uint8)
  out = jax.jit(transforms.Augment(flip=False, resized_crop=True))(KEY, video)
  pixels = np.asarray(
    out * jnp.array(transforms.STD) + jnp.array(transforms.MEAN)
  )
  cropped = pixels[0] * 25.5
  box = jnp.array(box_of(cropped), int)
  assert box[2] * box[3] < 24 * 24
  expected = transforms.stretch(ramp(2, 24, 24), transforms.Box(*box))
  np.testing.assert_allclose(cropped[..., :2], expected[..., :2], atol=1e-3)


def test_augment_crops_for_pre_training():
  video = np.asarray(ramp(2, 40, 40)[None] * 6, np.uint8)
  video = np.repeat(video, 16, axis=0)
  for name, smallest in (('base', 26), ('large', 22)):
    change = transforms.Augment(flip=False, multi_scale=name)
    out = np.asarray(jax.jit(change)(KEY, video))
    pixels = out * np.array(transforms.STD) + np.array(transforms.MEAN)
    boxes = np.array([box_of(each) for each in pixels * 42.5])
    assert boxes[:, 2:].max() == 40
    assert boxes[:, 2:].min() == smallest
    assert len({tuple(box) for box in boxes}) > 8


def test_augment_erases_after_it_normalised():
  video = np.zeros((8, 16, 16, 16, 3), np.uint8)
  change = jax.jit(transforms.Augment(flip=False, erase=1.0))
  out = np.asarray(change(KEY, video))
  erased = out != np.asarray(transforms.prepare(video))
  counts = erased.sum((1, 2, 3, 4))
  assert len(set(counts)) > 4  # every clip has its own box
  assert 0 < counts.min() <= counts.max() < 0.4 * erased[0].size
  assert abs(out[erased].mean()) < 0.05
  assert abs(out[erased].std() - 1) < 0.03


def test_a_configuration_asks_for_augmentation():
  assert config.augment(config.DataConfig()) == transforms.Augment(
    shift=4, brightness=0.2, contrast=0.2
  )
  data = config.DataConfig(resized_crop=True, erase=0.25)
  assert config.augment(data).resized_crop
  assert config.augment(data).erase == 0.25
  data = config.DataConfig(rand_augment=True, multi_scale='large')
  assert config.augment(data).rand_augment
  assert config.augment(data).multi_scale == 'large'
  config.validate(config.Config(data=data))
  for wrong in (
    {'erase': 1.5},
    {'multi_scale': 'small'},
    {'mixup_alpha': -1.0},
    {'cutmix_alpha': -1.0},
  ):
    cfg = config.Config(data=config.DataConfig(**wrong))
    with pytest.raises(MiraInputError, match=f'data.{next(iter(wrong))}'):
      config.validate(cfg)


# ----- mixing ---------------------------------------------------------------


def mixed(batch, count, side=16, **options):
  """Clips [count, B, 2, side, side, 3] and targets of that many draws.

  Clip b of the batch is b everywhere, its target class b.
  """
  level = jnp.arange(batch, dtype=jnp.float32)[:, None, None, None, None]
  video = jnp.broadcast_to(level, (batch, 2, side, side, 3))
  mix = functools.partial(mixup.mix, **options)
  mix = jax.jit(jax.vmap(mix, in_axes=(0, None, None)))
  out = mix(jax.random.split(KEY, count), video, jnp.eye(batch))
  return [np.asarray(x) for x in out]


def test_soft_targets_by_hand():
  # Smoothing 0.2 over 4 classes: 0.05 for each, 0.8 more for the label.
  np.testing.assert_allclose(
    losses.soft_targets(jnp.array([2, 0]), 4, 0.2),
    [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]],
    rtol=1e-6,
  )
  np.testing.assert_array_equal(
    losses.soft_targets(jnp.arange(4), 4, 0.0), np.eye(4)
  )


def test_mixup_fades_every_clip_into_its_partner_by_one_share():
  video, targets = mixed(5, 4000, side=2, cutmix_alpha=0)
  share = targets[:, 0, 0]
  np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
  for i, partner in enumerate([1, 0, 3, 2, 4]):
    kept, gained = np.eye(5)[i], np.eye(5)[partner]
    row = np.outer(share, kept) + np.outer(1 - share, gained)
    np.testing.assert_allclose(targets[:, i], row, atol=1e-6)
    level = (share * i + (1 - share) * partner)[:, None, None, None, None]
    np.testing.assert_allclose(
      video[:, i], np.broadcast_to(level, video[:, i].shape), atol=2e-6
    )
  # Beta(a, a): variance 1 / (8 a + 4), 0.0962 for 0.8 and 0.0833 for 1.
  assert share.mean() == pytest.approx(0.5, abs=0.015)
  assert share.var() == pytest.approx(1 / (8 * 0.8 + 4), abs=0.004)


def test_cutmix_pastes_one_box_and_counts_its_pixels():
  video, targets = mixed(3, 4000, mixup_alpha=0)
  pasted = video[:, 0, 0, :, :, 0] == 1
  rows, columns = pasted.any(2), pasted.any(1)
  box = rows[:, :, None] & columns[:, None, :]
  np.testing.assert_array_equal(pasted, box)
  for lines in (rows, columns):  # in one piece
    edges = np.diff(lines, axis=1, prepend=False, append=False)
    assert edges.sum(1).max() == 2
  for i, partner in enumerate([1, 0, 2]):
    level = np.where(pasted, partner, i)[:, None, :, :, None]
    np.testing.assert_array_equal(
      video[:, i], np.broadcast_to(level, video[:, i].shape)
    )
  share = 1 - pasted.mean((1, 2))  # exact: 256 pixels
  assert len(set(share)) > 50
  np.testing.assert_array_equal(targets[:, 0, 0], share)
  np.testing.assert_array_equal(targets[:, 0, 1], 1 - share)
  np.testing.assert_array_equal(targets.sum(-1), 1)


def test_cutmix_boxes_are_distributed_as_in_the_reference():
  keys = jax.random.split(KEY, 4000)
  share = np.linspace(0, 1, 4000, dtype=np.float32)
  draw = jax.vmap(lambda key, x: mixup.cutmix_box(key, x, (64, 48)))
  top, left, height, width = np.asarray(jax.jit(draw)(keys, share))
  root = np.sqrt(1 - share)
  for start, size, whole in ((top, height, 64), (left, width, 48)):
    half = (whole * root).astype(int) // 2
    np.testing.assert_array_equal(size, 2 * half)
    centre = start + half
    assert (centre.min(), centre.max()) == (0, whole - 1)
    assert centre.mean() == pytest.approx((whole - 1) / 2, rel=0.04)
  # Rows and columns are drawn apart: 0.05 is three standard deviations.
  assert abs(np.corrcoef(top + height // 2, left + width // 2)[0, 1]) < 0.05


def test_nothing_mixed_is_the_identity():
  for options in ({'probability': 0.0}, {'mixup_alpha': 0, 'cutmix_alpha': 0}):
    video, targets = mixed(4, 8, **options)
    for i in range(4):
      assert (video[:, i] == i).all()
    assert (targets == np.eye(4)).all()


@pytest.mark.parametrize(
  ('options', 'cut', 'untouched'),
  [
    ({}, 0.5, 0.01),  # some boxes have no pixels
    ({'switch': 0.2, 'probability': 0.3}, 0.06, 0.7),
  ],
)
def test_how_often_it_is_mixup_or_cutmix(options, cut, untouched):
  video, targets = mixed(2, 2000, **options)
  cuts = np.ptp(video[:, 0], axis=(1, 2, 3, 4)) > 0
  same = ~cuts & (targets[:, 0, 0] == 1)
  assert cuts.mean() == pytest.approx(cut, abs=0.03)
  assert same.mean() == pytest.approx(untouched, abs=0.03)


# ----- in a training step ---------------------------------------------------

TRACES = []


def apply(variables, video, train, rngs, mutable):
  """Logits are the mean colours, with noise where a model has dropout."""
  TRACES.append(video.shape)
  noise = jax.random.normal(rngs['dropout'], (len(video), 3))
  logits = video.mean((1, 2, 3)) + noise + variables['params']['bias']
  return logits, {}


MODEL = types.SimpleNamespace(num_classes=3, apply=apply)


def brighten(key, video):
  return transforms.prepare(video) * jax.random.uniform(key)


def four_devices():
  return sharding.make_mesh(devices=jax.devices()[:4])


def train_steps(count, **options):
  """Metrics of steps from a batch of 8 on four devices, and the batch."""
  mesh = four_devices()
  rng = np.random.default_rng(0)
  batch = {
    'video': rng.integers(0, 256, (8, 2, 4, 4, 3), np.uint8),
    'label': np.arange(8, dtype=np.int32) % 3,
    'mask': np.ones(8, bool),
  }
  optimizer = optax.sgd(0.0)
  objective = losses.classification(MODEL, brighten, **options)
  step = steps.make_train_step(objective, optimizer, lambda step: 0.0, mesh)
  state = steps.TrainState(
    step=jnp.zeros((), jnp.int32),
    params={'bias': jnp.zeros(3)},
    mira={},
    opt_state=optimizer.init({'bias': jnp.zeros(3)}),
    average={},
  )
  state = jax.device_put(state, sharding.replicated(mesh))
  metrics = []
  for _ in range(count):
    with jax.set_mesh(mesh):
      state, row = step(state, sharding.put_batch(batch, mesh), KEY)
    metrics.append(row)
  return batch, metrics


def expected(key, video, targets):
  logits, _ = apply(
    {'params': {'bias': 0.0}}, video, True, {'dropout': key}, ['mira']
  )
  logs = jax.nn.log_softmax(logits)
  hits = logits.argmax(-1) == targets.argmax(-1)
  return -(targets * logs).sum(-1).mean(), hits.mean()


def pair_up(rows):
  return rows.reshape(-1, 2)[:, ::-1].reshape(-1)


def test_mixing_moves_no_clip_to_another_device():
  mesh = sharding.make_mesh()
  rows = jnp.arange(2.0 * mesh.size)
  video = jnp.broadcast_to(
    rows[:, None, None, None, None], (len(rows), 1, 2, 2, 3)
  )
  split = NamedSharding(mesh, sharding.BATCH)
  mix = jax.jit(functools.partial(mixup.mix, cutmix_alpha=0))
  alone, _ = mix(KEY, video, rows[:, None])
  with jax.set_mesh(mesh):
    arguments = KEY, *jax.device_put((video, rows[:, None]), split)
    program = mix.lower(*arguments).compile()
    mixed, targets = program(*arguments)
  assert hlo.collectives(program.as_text()) == []
  np.testing.assert_allclose(mixed, alone, rtol=1e-6)
  # One share for all, so that a clip and its partner sum to the pair.
  mixed, rows = np.asarray(mixed[:, 0, 0, 0, 0]), np.asarray(rows)
  np.testing.assert_allclose(
    mixed + pair_up(mixed), rows + pair_up(rows), rtol=1e-6
  )
  assert (mixed != rows).any()
  np.testing.assert_allclose(targets[:, 0], mixed, rtol=1e-6)


def test_copies_of_a_clip_are_no_partners():
  clip = jnp.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
  video = jnp.zeros((10, 1, 2, 2, 3))
  _, targets = mixup.mix(
    KEY, video, jax.nn.one_hot(clip, 5), cutmix_alpha=0, copies=2
  )
  mixed = [set(np.flatnonzero(row).tolist()) for row in targets]
  assert mixed == [{0, 1}] * 4 + [{2, 3}] * 4 + [{4}] * 2


def test_a_step_without_mixing_draws_what_it_always_drew():
  batch, metrics = train_steps(2, smoothing=0.3)
  targets = jnp.eye(3)[batch['label']] * 0.7 + 0.1
  for i, row in enumerate(metrics):
    keys = jax.random.split(jax.random.fold_in(KEY, i))
    video = brighten(keys[0], batch['video'])
    loss, accuracy = expected(keys[1], video, targets)
    np.testing.assert_allclose(row['loss'], loss, rtol=1e-5)
    assert row['accuracy'] == accuracy


def test_a_step_mixes_clips_and_targets_and_is_traced_once():
  TRACES.clear()
  batch, metrics = train_steps(
    6, smoothing=0.1, mixup_alpha=0.8, cutmix_alpha=1.0
  )
  assert len(TRACES) == 1
  labels_hit = 0
  mix = jax.jit(mixup.mix)  # with the reference's numbers, as above
  for i, row in enumerate(metrics):
    keys = jax.random.split(jax.random.fold_in(KEY, i), 3)
    video, targets = mix(
      keys[2],
      brighten(keys[0], batch['video']),
      losses.soft_targets(batch['label'], 3, 0.1),
    )
    loss, accuracy = expected(keys[1], video, targets)
    np.testing.assert_allclose(row['loss'], loss, rtol=1e-5)
    assert row['accuracy'] == accuracy
    labels_hit += (targets.argmax(-1) == batch['label']).mean()
  assert labels_hit < 6  # in some step the partners' classes weigh more
