"""What other systems add to the loss, and to metrics."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from mira_jax.augment import transforms
from mira_jax.config import ModelConfig
from mira_jax.models import build
from mira_jax.systems.channels import ChannelsConfig
from mira_jax.systems.heads import HeadsConfig
from mira_jax.systems.identity import IdentityConfig
from mira_jax.systems.orientation import OrientationConfig
from mira_jax.train import losses, system_losses

KEY = jax.random.key(0)
SUBJECTS = (0, 1, 1, -1, 2, 0)  # of the clips of a batch


def made(**systems):
  fields = ModelConfig(
    dim=16, depth=2, heads=2, num_classes=3, frames=4, image_size=16, patch=8,
    **systems,
  )  # fmt: skip
  return build.build_model(dataclasses.asdict(fields))


def prepared(key, video):
  del key
  return transforms.prepare(video)


def evaluated(kind, **systems):
  """The loss and the metrics of a batch, for weights that are drawn once."""
  model, batch = made(**systems), runs.batch(6)
  batch['units'] = np.array([[1, 0, -1]] * 3 + [[0, 1, 1]] * 3, np.int32)
  batch['progress'] = np.full(6, 0.5, np.float32)
  shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 4, 16, 16, 3)))
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: 0.3 * jax.random.normal(draw(path), x.shape),
    shapes['params'],
  )
  objective = getattr(losses, kind)(model, prepared, subjects=SUBJECTS)
  loss, (metrics, _) = jax.jit(objective)(params, {}, batch, KEY)
  return float(loss), {n: float(x) for n, x in metrics.items()}


def draw(path):
  return jax.random.key(sum(jax.tree_util.keystr(path).encode()))


@pytest.mark.parametrize('kind', ['classification', 'action_units'])
@pytest.mark.parametrize(
  ('field', 'of_weight', 'metric'),
  [
    (
      'channels',
      lambda w: ChannelsConfig(diversity_weight=w, focus_weight=0.0),
      'diversity',
    ),
    (
      'channels',
      lambda w: ChannelsConfig(diversity_weight=0.0, focus_weight=w),
      'focus',
    ),
    ('head_mix', lambda w: HeadsConfig(diversity_weight=w), 'head_diversity'),
  ],
)
def test_a_weighed_loss_is_added(kind, field, of_weight, metric):
  without, _ = evaluated(kind, **{field: of_weight(0.0)})
  loss, metrics = evaluated(kind, **{field: of_weight(0.7)})
  assert metrics[metric] > 1e-3
  assert loss - without == pytest.approx(0.7 * metrics[metric], rel=1e-3)


@pytest.mark.parametrize('kind', ['classification', 'action_units'])
def test_the_adversarys_loss_is_added_for_known_subjects(kind):
  without, _ = evaluated(kind)
  loss, metrics = evaluated(kind, identity=IdentityConfig(subjects=3))
  assert metrics['identity_loss'] > 0.1
  added = loss - without
  assert added == pytest.approx(metrics['identity_loss'], rel=1e-3)
  assert 0 <= 5 * metrics['identity_accuracy'] <= 5  # of five known ones
  assert (5 * metrics['identity_accuracy']) % 1 == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('more', [{}, {'scan': True}, {'members': 3}], ids=str)
def test_angles_are_those_of_each_block(more):
  """Of members, the mean axis: that of 10 and 170 degrees is 0, not 90."""
  model = made(orientation=OrientationConfig(angle=20.0), **more)
  video = jnp.zeros((3, 4, 16, 16, 3))
  params = model.init(KEY, video)['params']
  found = system_losses.angles(params)
  assert {*found} == {'block_0/angle', 'block_1/angle'}
  np.testing.assert_allclose([*found.values()], 20, rtol=1e-5)
  if 'members' not in more:
    return
  degrees = jnp.radians(jnp.array([10.0, 170.0, 180.0]))
  turned = jnp.stack([jnp.cos(degrees), jnp.sin(degrees)], -1)
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: turned if 'direction' in str(path) else x, params
  )
  axis = system_losses.angles(params)['block_0/angle']
  _, records = model.apply({'params': params}, video, record=True)
  for angle in (axis, records[0]['angle'][0]):
    assert min(angle, 180 - angle) == pytest.approx(0, abs=1e-3)
