"""Pieces of a training step: each against what it stands for."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import runs
from mira_jax.augment import transforms
from mira_jax.augment.transforms import Augment
from mira_jax.config import ModelConfig
from mira_jax.devices import sharding
from mira_jax.mira import MiraConfig
from mira_jax.models import build, mae
from mira_jax.train import losses as objectives
from mira_jax.train import optim
from mira_jax.train import step as steps

KEY = jax.random.key(0)
MODEL = ModelConfig(
  dim=16, depth=1, heads=2, num_classes=3, frames=4, image_size=16, patch=8,
  head_scale=1.0, mira=MiraConfig(),
)  # fmt: skip


FLAX = build.build_model(dataclasses.asdict(MODEL))


def prepared(key, video):
  del key
  return transforms.prepare(video)


def start(flax, objective, optimizer, averaged=False, mira=None, **options):
  """A fresh state and a function (state, batch) -> (state, metrics).

  Of a model, or of one parameter [2] and these averages of MiRA.
  """
  mesh = sharding.make_mesh(devices=jax.devices()[:4])

  def variables(key):
    if flax:
      return flax.init(key, jnp.zeros((1, 4, 16, 16, 3)))
    return {'params': {'head': {'bias': jnp.zeros(2)}}, 'mira': mira or {}}

  def init(key):
    return steps.init_state(variables, optimizer, key, averaged=averaged)

  shapes = sharding.abstract(jax.eval_shape(init, KEY), mesh)
  where = jax.tree.map(lambda x: x.sharding, shapes)
  state = jax.jit(init, out_shardings=where)(KEY)
  jitted = steps.make_train_step(
    objective, optimizer, lambda step: jnp.zeros(()), mesh, **options
  )
  key = jax.device_put(KEY, sharding.replicated(mesh))

  def step(state, batch):
    copy = jax.tree.map(jnp.copy, state)  # which is donated
    with jax.set_mesh(mesh):
      return jitted(copy, sharding.put_batch(batch, mesh), key)

  return state, step


@functools.cache
def plain(**options):
  """`start` of plain descent, which several tests share."""
  objective = objectives.classification(FLAX, prepared)
  return start(FLAX, objective, optax.sgd(1.0), **options)


def assert_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# ----- one step -------------------------------------------------------------


def test_it_learns_and_is_traced_once():
  traces = []

  def augmentation(key, video):
    traces.append(video.shape)
    return Augment(shift=1, brightness=0.1, contrast=0.1)(key, video)

  ema = dataclasses.replace(
    MODEL, mira=MiraConfig(statistics='batch_ema'), drop_path=0.1
  )
  flax = build.build_model(dataclasses.asdict(ema))
  objective = objectives.classification(flax, augmentation)
  state, step = start(flax, objective, optim.adamw(lambda step: 1e-2))
  before = jax.tree.leaves(state.mira)[0].copy()
  losses = []
  for i in range(40):
    state, metrics = step(state, runs.batch(12, seed=i))
    losses.append(float(metrics['loss']))
  assert len(traces) == 1
  assert losses[0] == pytest.approx(np.log(3), abs=0.5)
  assert np.mean(losses[-5:]) < 0.3 * losses[0]
  assert state.step == 40
  assert (jax.tree.leaves(state.mira)[0] != before).any()


def noisy(params, mira, batch, key):
  """A loss that is drawn, and is added to half of MiRA's average."""
  del batch
  draw = jax.random.uniform(key)
  mira = {'confidence': 0.5 * mira['confidence'] + draw}
  loss = params['head']['bias'].sum() + draw
  return loss, ({'square': jnp.square(draw)}, mira)


ZERO = {'confidence': jnp.zeros(())}


def test_every_block_costs_the_same():
  video = jax.ShapeDtypeStruct((16, 4, 32, 32, 3), jnp.float32)

  def moved(depth):
    options = dataclasses.asdict(MODEL)
    sizes = {'dim': 128, 'depth': depth, 'image_size': 32, 'mira': None}
    flax = build.build_model(options | sizes)
    params = jax.eval_shape(flax.init, KEY, video)

    def loss(params, video):
      return flax.apply(params, video, train=True)[0].sum()

    jitted = jax.jit(
      jax.grad(loss),
      compiler_options=steps.compiler_options(sharding.make_mesh()),
    )
    cost = jitted.lower(params, video).compile().cost_analysis()
    return cost['bytes accessed']

  four, eight, twelve = map(moved, (4, 8, 12))
  assert twelve - eight == pytest.approx(eight - four, rel=0.01)


def test_every_step_draws_anew_and_the_same_again():
  # With a rate of 0 only the draws differ between steps.
  state, step = start(None, noisy, optax.sgd(0.0), mira=ZERO)

  def losses(state):
    out = []
    for _ in range(3):
      state, metrics = step(state, runs.batch(4))
      out.append(float(metrics['loss']))
    return out

  first = losses(state)
  assert len(set(first)) == 3
  assert first == losses(state)


def test_masked_rows_change_nothing():
  # Statistics per clip: those of a batch would see the masked rows.
  state, step = plain()
  batch, junk = runs.batch(12), runs.batch(12, seed=9)
  batch['mask'] = junk['mask'] = np.arange(12) < 4
  junk['video'][:4] = batch['video'][:4]
  junk['label'][4:] = 1 - batch['label'][4:] % 2
  _, a = step(state, batch)
  _, b = step(state, junk)
  assert a.keys() == b.keys() >= {'loss', 'accuracy', 'grad_norm'}
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
  label, mask = jnp.array([0, 1]), jnp.array([True, True])
  hard, soft = (objectives.soft_targets(label, 3, s) for s in (0.0, 0.3))
  loss = functools.partial(objectives.cross_entropy, logits, hard)
  np.testing.assert_allclose(
    loss(mask), -(np.log(0.5) + np.log(0.8)) / 2, rtol=1e-6
  )
  np.testing.assert_allclose(
    loss(jnp.array([True, False])), -np.log(0.5), rtol=1e-6
  )
  assert loss(jnp.array([False, False])) == 0
  # Smoothing 0.3 over 3 classes: targets 0.8, 0.1, 0.1.
  smooth = -(0.8 * np.log(0.5) + 0.2 * np.log(0.25))
  loss = objectives.cross_entropy(logits, soft, jnp.array([True, False]))
  np.testing.assert_allclose(loss, smooth, rtol=1e-6)


# ----- accumulation, repetition, averages -----------------------------------


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
  # Plain SGD, statistics per clip, no draws: the mean of means is the mean.
  (state, step), (_, part_step) = plain(), plain(accumulate=3)
  (whole, a), (apart, b) = (
    step(state, runs.batch(12)),
    part_step(state, runs.batch(12)),
  )
  assert_close(whole.params, apart.params, rtol=1e-4, atol=2e-6)
  assert a.keys() == b.keys()
  assert_close(dict(a), dict(b), rtol=1e-4)


def test_every_part_draws_for_itself_and_mira_goes_from_part_to_part():
  state, step = start(None, noisy, optax.sgd(0.0), mira=ZERO, accumulate=4)
  state, row = step(state, runs.batch(16))
  keys = jax.random.split(jax.random.fold_in(KEY, 0), 4)
  draws = np.array([jax.random.uniform(key) for key in keys])
  assert len(set(draws.tolist())) == 4
  np.testing.assert_allclose(row['loss'], draws.mean(), rtol=1e-6)
  np.testing.assert_allclose(row['square'], (draws**2).mean(), rtol=1e-6)
  expected = draws @ [1 / 8, 1 / 4, 1 / 2, 1]
  np.testing.assert_allclose(state.mira['confidence'], expected, rtol=1e-6)


def test_repeated_clips_are_augmented_anew_each_time():
  def spy(params, mira, batch, key):
    # How the objectives augment: a key for every row.
    keys = jax.random.split(key, len(batch['label']))
    weighted = (jax.vmap(jax.random.uniform)(keys) * batch['label']).sum()
    return params['head']['bias'].sum(), ({'weighted': weighted}, mira)

  batch = runs.batch(4)
  state, step = start(None, spy, optax.sgd(0.0), repeats=3)
  keys = jax.random.split(jax.random.fold_in(KEY, 0), 12)
  draws = jax.vmap(jax.random.uniform)(keys)
  expected = (draws * np.repeat(batch['label'], 3)).sum()
  found = step(state, batch)[1]['weighted']
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_average_is_exponential_and_is_what_is_scored():
  def slope(params, mira, batch, key):  # every step takes 1 from the parameter
    return params['head']['bias'].sum(), ({}, mira)

  state, step = start(
    None, slope, optax.sgd(1.0), averaged=True, ema_decay=0.75
  )
  for _ in range(3):
    state, _ = step(state, runs.batch(4))
  # 3/4 of -(3/4 of -(1/4 of 1) and 1/4 of 2), and 1/4 of 3.
  average = -(0.75 * (0.75 * 0.25 * 1 + 0.25 * 2) + 0.25 * 3)
  np.testing.assert_allclose(state.average['head']['bias'], average)
  np.testing.assert_array_equal(state.params['head']['bias'], -3)
  assert state.variables['params'] is state.average
  assert plain()[0].average == {}
  assert plain()[0].variables['params'] is plain()[0].params


# ----- class weights --------------------------------------------------------


def test_class_weights_are_the_references():
  # n ** -0.5 for 1, 4 and 16 clips: 1, 1/2, 1/4, scaled to a sum of 3.
  weights = objectives.inverse_sqrt_weights([1, 4, 16])
  np.testing.assert_allclose(weights, np.array([4, 2, 1]) * 3 / 7)
  weights = objectives.inverse_sqrt_weights([1, 0, 4])
  np.testing.assert_allclose(weights, [4 / 3, 0, 2 / 3])


def test_a_weighted_mean_divides_by_the_weights():
  logits = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]))
  targets = jnp.eye(2)[jnp.array([0, 1, 1])]
  mask = jnp.array([True, True, False])
  weights = jnp.array([3.0, 1.0, 100.0])
  loss = objectives.cross_entropy(logits, targets, mask, weights)
  np.testing.assert_allclose(
    loss, -(3 * np.log(0.5) + np.log(0.8)) / 4, rtol=1e-6
  )


def test_classes_are_weighed():
  batch, params = runs.batch(12), plain()[0].params
  picked = batch | {'mask': batch['label'] == 1}
  losses = [
    jax.jit(objectives.classification(FLAX, prepared, class_weights=weights))
    for weights in ([0.0, 1.0, 0.0], None)
  ]
  a, b = (
    loss(params, {}, x, KEY)[0]
    for loss, x in zip(losses, (batch, picked), strict=True)
  )
  np.testing.assert_allclose(a, b, rtol=1e-5)


# ----- a frozen backbone ----------------------------------------------------


@pytest.mark.parametrize('pool', ['mean', 'attention'])
def test_a_frozen_backbone_does_not_move_and_costs_no_gradient(pool):
  model = FLAX.clone(pool=pool)
  batch = runs.batch(8)
  params = dict(model.init(KEY, transforms.prepare(batch['video']))['params'])
  learns = {'head'} | ({'query'} if pool == 'attention' else set())
  params['head'] = jax.tree.map(jnp.ones_like, params['head'])
  objective = objectives.freeze_backbone(
    objectives.classification(model, prepared)
  )
  gradient = jax.jit(jax.grad(objective, has_aux=True))
  grads, _ = gradient(params, {}, batch, KEY)
  moves = {n for n, x in grads.items() if float(optax.tree.norm(x)) > 0}
  assert moves == learns
  optimizer = optim.head_only(optim.adamw(lambda step: 0.1, weight_decay=0.5))

  @jax.jit
  def update(grads, params):
    return optimizer.update(grads, optimizer.init(params), params)[0]

  moved = jax.tree.map(lambda x: bool((x != 0).any()), update(grads, params))
  assert all(jax.tree.leaves([moved.pop(name) for name in learns]))
  assert not any(jax.tree.leaves(moved))


# ----- masked pre-training --------------------------------------------------


def test_the_targets_of_a_step_are_those_of_the_unchanged_pixels():
  # A model that predicts the true targets has no loss.
  rng = np.random.default_rng(1)
  video = rng.integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
  targets = mae.tubelet_targets(jnp.asarray(video) / 255, tubelet=2, patch=8)

  @dataclasses.dataclass
  class Oracle:
    tubelet = 2
    patch = 8
    targets = staticmethod(mae.MaskedAutoencoder(patch=8).targets)

    def apply(self, variables, video, mask, *, num_masked, **_):
      _, masked = mae.split_tokens(mask, num_masked)
      return mae.take_tokens(targets, masked), {}

  objective = objectives.reconstruction(Oracle(), prepared, ratio=0.5)
  loss, (metrics, mira) = objective({}, {}, {'video': jnp.asarray(video)}, KEY)
  assert float(loss) < 1e-8
  assert (metrics, mira) == ({}, {})


def test_a_perfect_prediction_is_the_video_again():
  rng = np.random.default_rng(2)
  video = jnp.asarray(rng.uniform(size=(2, 4, 16, 16, 3)), jnp.float32)
  mask, hidden = mae.draw_mask(KEY, video.shape, 2, 8, kind='random', ratio=0.5)
  targets = mae.tubelet_targets(video, tubelet=2, patch=8)
  _, masked = mae.split_tokens(mask, hidden)
  shown, filled = mae.reconstruct(
    mae.take_tokens(targets, masked), video, mask, tubelet=2, patch=8
  )
  np.testing.assert_allclose(filled, video, atol=1e-5)
  grey = np.asarray(shown == 0.5).all(-1)
  assert grey.mean() == pytest.approx(0.5)  # and the rest is untouched
  np.testing.assert_array_equal(
    np.asarray(shown)[~grey], np.asarray(video)[~grey]
  )
