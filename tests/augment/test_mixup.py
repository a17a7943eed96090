"""Mixup and cutmix: by hand, by distribution, and in a training step."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from mira_jax.aot import hlo
from mira_jax.augment import mixup, transforms
from mira_jax.devices import sharding
from mira_jax.train import losses

KEY = jax.random.key(0)


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
  video, targets = mixed(3, 1000, mixup_alpha=0)
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
  video, targets = mixed(4, 1, mixup_alpha=0, cutmix_alpha=0)
  for i in range(4):
    assert (video[:, i] == i).all()
  assert (targets == np.eye(4)).all()


def test_it_is_mixup_or_cutmix_equally_often():
  video, targets = mixed(2, 1000)
  cuts = np.ptp(video[:, 0], axis=(1, 2, 3, 4)) > 0
  same = ~cuts & (targets[:, 0, 0] == 1)  # some boxes have no pixels
  assert cuts.mean() == pytest.approx(0.5, abs=0.05)
  assert same.mean() == pytest.approx(0.01, abs=0.01)


# ----- in training -----------------------------------------------------------


def test_mixing_moves_no_clip_to_another_device():
  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  rows = jnp.arange(8.0)
  video = jnp.broadcast_to(rows[:, None, None, None, None], (8, 1, 2, 2, 3))
  split = NamedSharding(mesh, sharding.BATCH)
  mix = jax.jit(functools.partial(mixup.mix, cutmix_alpha=0))
  alone, _ = mix(KEY, video, rows[:, None])
  with jax.set_mesh(mesh):
    arguments = KEY, *jax.device_put((video, rows[:, None]), split)
    program = mix.lower(*arguments).compile()
    found, _ = program(*arguments)
  assert hlo.collectives(program.as_text()) == []
  np.testing.assert_allclose(found, alone, rtol=1e-6)


def test_copies_of_a_clip_are_no_partners():
  clip = jnp.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
  mix = jax.jit(functools.partial(mixup.mix, cutmix_alpha=0, copies=2))
  _, targets = mix(KEY, jnp.zeros((10, 1, 2, 2, 3)), jax.nn.one_hot(clip, 5))
  mixed = [set(np.flatnonzero(row).tolist()) for row in targets]
  assert mixed == [{0, 1}] * 4 + [{2, 3}] * 4 + [{4}] * 2


def test_the_objective_mixes_clips_and_targets():
  def apply(variables, video, train, rngs, mutable):
    assert train
    noise = jax.random.normal(rngs['dropout'], (len(video), 3))
    return video.mean((1, 2, 3)) + noise + variables['params']['bias'], {}

  def brighten(key, video):
    return transforms.prepare(video) * jax.random.uniform(key)

  rng = np.random.default_rng(0)
  batch = {
    'video': rng.integers(0, 256, (8, 2, 4, 4, 3), np.uint8),
    'label': np.arange(8, dtype=np.int32) % 3,
    'mask': np.ones(8, bool),
  }
  model = types.SimpleNamespace(num_classes=3, apply=apply)
  alphas = {'mixup_alpha': 0.8, 'cutmix_alpha': 1.0}
  objective = losses.classification(model, brighten, smoothing=0.3, **alphas)
  params = {'bias': jnp.zeros(3)}

  @jax.jit
  def by_hand(key):
    augment_key, dropout_key, mix_key = jax.random.split(key, 3)
    video = brighten(augment_key, batch['video'])
    targets = jnp.eye(3)[batch['label']] * 0.7 + 0.1
    video, targets = mixup.mix(mix_key, video, targets, **alphas)
    dropout = {'dropout': dropout_key}
    logits, _ = apply({'params': params}, video, True, dropout, ['mira'])
    hits = logits.argmax(-1) == targets.argmax(-1)
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), hits.mean()

  loss, (metrics, _) = jax.jit(objective)(params, {}, batch, KEY)
  want, accuracy = by_hand(KEY)
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  assert metrics['accuracy'] == accuracy
