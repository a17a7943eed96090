"""Masked pre-training: printed numbers, masks, targets, order of tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.augment.transforms import MEAN, STD
from mira_jax.mira import MiraConfig
from mira_jax.models.mae import (
  MaskedAutoencoder,
  hog_targets,
  reconstruction_loss,
  split_tokens,
  tube_mask,
  tubelet_targets,
)
from mira_jax.models.vivit import SIZES
from mira_jax.weights import torch_names
from oracle import formula_video
from tiny_models import by_formula, count, draw

TINY = {
  'dim': 32,
  'depth': 2,
  'heads': 2,
  'decoder_dim': 16,
  'decoder_depth': 1,
  'decoder_heads': 2,
}
# Two of the four places of a slot are hidden, in all eight slots.
MASK = np.tile(np.array([False, True, True, False]), (2, 8))
HIDDEN = 16


def shapes_of(model, size=32, num_masked=HIDDEN):
  tokens = 8 * (size // model.patch) ** 2
  return jax.eval_shape(
    functools.partial(model.init, num_masked=num_masked),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 16, size, size, 3), jnp.float32),
    jax.ShapeDtypeStruct((1, tokens), jnp.bool_),
  )


def test_parameter_counts():
  model = MaskedAutoencoder(
    **SIZES['B'], mira=MiraConfig(statistics='batch_ema')
  )
  variables = shapes_of(model, 224, 1408)
  params = variables['params']
  assert count(params) == 94_210_944  # as the reference has them
  parts = ('embed', 'encoder', 'norm')
  assert sum(count(params[name]) for name in parts) == 86_227_200
  parts = ('decoder', 'decoder_norm', 'decoder_head')
  assert sum(count(params[name]) for name in parts) == 7_688_448
  # MiRA sits in the encoder alone.
  assert variables['mira'].keys() == {'encoder'}
  assert len(variables['mira']['encoder']) == SIZES['B']['depth']


def targets_of(video):
  """Targets of a video that is already normalised."""
  return tubelet_targets(
    video * np.array(STD) + np.array(MEAN), tubelet=2, patch=16
  )


PRINTED = [
  (None, 1.037515124, [0.342846240, 0.345458247, 0.302650074], None),
  (
    'exact',
    1.037517405,
    [0.342809214, 0.345402848, 0.302583530],
    [0.12364704, 0.12645487, 0.12687055, 0.12515164, 0.12672853,
     0.12336205, 0.12260252, 0.12518280],
  ),
  (
    'flashlite',
    1.037517042,
    [0.342733102, 0.345303916, 0.302474684],
    [0.11841805, 0.11583536, 0.11701588, 0.12514999, 0.12744216,
     0.12629669, 0.13695992, 0.13288195],
  ),
]  # fmt: skip


@pytest.mark.parametrize(('mode', 'loss', 'first', 'average'), PRINTED)
def test_pretraining_gives_the_printed_numbers(x64, mode, loss, first, average):
  mira = mode and MiraConfig(mode=mode, statistics='batch_ema')
  model = MaskedAutoencoder(**TINY, mira=mira, dtype=jnp.float64)
  video = formula_video(2, 16, 32)
  run = jax.jit(
    functools.partial(
      model.apply, num_masked=HIDDEN, train=True, mutable=['mira']
    )
  )
  prediction, updates = run(
    by_formula(shapes_of(model), torch_names.AUTOENCODER), video, MASK
  )
  assert prediction.shape == (2, 16, 1536)
  np.testing.assert_allclose(prediction[0, 0, :3], first, rtol=0, atol=1e-9)
  value = reconstruction_loss(prediction, targets_of(video), MASK)
  np.testing.assert_allclose(value, loss, rtol=0, atol=1e-9)
  if average is None:
    assert not updates
  else:
    got = updates['mira']['encoder']['block_0']['attn']['confidence']
    np.testing.assert_allclose(got, average, rtol=0, atol=1e-8)


def test_targets_without_normalisation_are_the_pixels():
  video = np.random.default_rng(0).uniform(size=(1, 4, 8, 8, 3))
  targets = tubelet_targets(video, tubelet=2, patch=4, normalise=False)
  # Token (1, 0, 1): frames 2 and 3, rows 0 to 3, columns 4 to 7.
  np.testing.assert_array_equal(
    targets[0, 5].reshape(2, 4, 4, 3), video[0, 2:, :4, 4:]
  )


# Masks.


def test_tube_mask_hides_the_same_places_in_every_slot():
  mask = tube_mask(jax.random.key(0), 5, 8, 196, 0.9)
  assert mask.shape == (5, 1568)
  assert mask.dtype == jnp.bool_
  slots = np.asarray(mask).reshape(5, 8, 196)
  np.testing.assert_array_equal(slots.sum(2), 176)
  np.testing.assert_array_equal(slots, slots[:, :1].repeat(8, axis=1))
  assert len({slot.tobytes() for slot in slots[:, 0]}) == 5


# Order of tokens.


def test_tokens_keep_their_order_on_both_sides():
  mask = jnp.array([[False, True, False, True], [True, True, False, False]])
  visible, masked = split_tokens(mask, 2)
  np.testing.assert_array_equal(visible, [[0, 2], [2, 3]])
  np.testing.assert_array_equal(masked, [[1, 3], [0, 1]])


def test_loss_by_hand():
  mask = jnp.array([[True, False, True]])
  targets = jnp.array([[[1.0], [100.0], [3.0]]])
  prediction = jnp.array([[[0.0], [5.0]]])
  # Tokens 0 and 2: errors 1 and 2.
  assert reconstruction_loss(prediction, targets, mask) == 2.5


def model_and_inputs(**options):
  model = MaskedAutoencoder(**TINY, **options)
  video = jnp.asarray(formula_video(2, 16, 32), jnp.float32)
  init = jax.jit(functools.partial(model.init, num_masked=HIDDEN))
  return model, init(jax.random.key(0), video, MASK), video


@pytest.mark.parametrize('stem', ['linear', 'conv', 'hog'])
def test_hidden_pixels_cannot_be_seen(stem):
  model, variables, video = model_and_inputs(
    mira=MiraConfig(statistics='batch_ema'), stem=stem
  )
  run = jax.jit(functools.partial(model.apply, num_masked=HIDDEN))
  # Place 1 of the 2 x 2 places is hidden, place 0 is not.
  hidden = video.at[:, :, :16, 16:].set(7.0)
  shown = video.at[:, :, :16, :16].set(7.0)
  before = run(variables, video, MASK)
  np.testing.assert_array_equal(run(variables, hidden, MASK), before)
  assert np.abs(run(variables, shown, MASK) - before).max() > 1e-4


def test_histograms_are_those_of_a_loop_over_pixels():
  video = np.random.default_rng(0).random((1, 1, 8, 8, 3))
  found = hog_targets(jnp.asarray(video, jnp.float32), tubelet=1, patch=8)
  grey = np.pad(video[0, 0] @ [0.299, 0.587, 0.114], 1, mode='edge')
  votes = np.zeros((2, 2, 9))
  for row, column in np.ndindex(8, 8):
    down = grey[row + 2, column + 1] - grey[row, column + 1]
    right = grey[row + 1, column + 2] - grey[row + 1, column]
    place = np.degrees(np.arctan2(down, right)) % 180 / 20
    cell, share = votes[row // 4, column // 4], place % 1
    cell[int(place) % 9] += (1 - share) * np.hypot(down, right)
    cell[(int(place) + 1) % 9] += share * np.hypot(down, right)
  votes /= np.sqrt((votes**2).sum(-1, keepdims=True) + 1e-4)
  np.testing.assert_allclose(found[0, 0], votes.ravel(), atol=1e-5)


def test_frames_of_mira_are_the_slots_of_visible_tokens():
  model, variables, video = model_and_inputs(mira=MiraConfig())
  run = jax.jit(functools.partial(model.apply, num_masked=HIDDEN, record=True))
  prediction, records = run(variables, video, MASK)
  assert prediction.shape == (2, 16, 1536)
  assert len(records) == 2
  assert records[0]['gain'].shape == (2, 8)
  # Two visible tokens in each of the eight slots.
  assert records[0]['before'].shape == (2, 16)
  share = records[0]['before'].reshape(2, 8, 2).sum(2)
  np.testing.assert_allclose(records[0]['confidence'], share, rtol=1e-5)


# Of those with attention over time, and of those without.
@pytest.mark.parametrize('variant', ['st_block', 'factorised_dot_product'])
def test_variants_are_pretrained_too(variant):
  mira = MiraConfig(statistics='batch_ema')
  model = MaskedAutoencoder(**TINY | {'depth': 1}, variant=variant, mira=mira)
  variables = jax.tree.map(jnp.float32, draw(shapes_of(model)))
  video = formula_video(2, 16, 32).astype(np.float32)

  def loss(params):
    prediction, updates = model.apply(
      variables | {'params': params},
      video,
      MASK,
      num_masked=HIDDEN,
      train=True,
      mutable=['mira'],
    )
    return reconstruction_loss(prediction, targets_of(video), MASK), updates

  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, updates), grads = step(variables['params'])
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads['encoder']))
  (moved,) = jax.tree.leaves(updates)
  assert (moved != 1 / 8).any()


def test_two_encoders_are_not_pretrained():
  model = MaskedAutoencoder(**TINY, variant='factorised_encoder')
  with pytest.raises(ValueError, match='factorised_encoder'):
    shapes_of(model)
