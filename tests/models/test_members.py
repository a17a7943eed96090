"""An ensemble in one model: each member is a model of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mira_jax import config
from mira_jax.errors import MiraInputError
from mira_jax.mira import MiraConfig
from mira_jax.models.vivit import ViViT
from mira_jax.train import losses, optim
from mira_jax.weights import convert, int8, warm_start, weights_file
from small_models import save_model

TINY = {
  'dim': 32, 'depth': 2, 'heads': 2, 'num_classes': 3, 'frames': 8,
  'image_size': 32, 'head_scale': 1.0, 'mira': MiraConfig(),
}  # fmt: skip
ENSEMBLE, SINGLE = ViViT(**TINY, members=3), ViViT(**TINY)
VIDEO = jax.random.normal(jax.random.key(1), (6, 8, 32, 32, 3))
VARIABLES = jax.jit(ENSEMBLE.init)(jax.random.key(0), VIDEO)


def member(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


def close(found, wanted, atol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol),
    found,
    wanted,
  )


def test_logits_and_records_are_means_over_members():
  logits, records = ENSEMBLE.apply(VARIABLES, VIDEO, record=True)
  each = [
    SINGLE.apply(member(VARIABLES, i), VIDEO, record=True) for i in range(3)
  ]
  wanted = jax.tree.map(lambda *x: sum(x) / 3, *each)
  close((logits, records), wanted, atol=1e-3)  # a rank is a step
  assert np.abs(each[0][0] - each[1][0]).max() > 0.01


def test_features_of_members_are_side_by_side():
  body = {n: x for n, x in VARIABLES['params'].items() if n != 'head'}
  variables = VARIABLES | {'params': body}
  models = (model.clone(num_classes=0) for model in (ENSEMBLE, SINGLE))
  ensemble, single = models
  found = ensemble.apply(variables, VIDEO)
  each = [single.apply(member(variables, i), VIDEO) for i in range(3)]
  close(found, np.concatenate(each, axis=1))


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_a_step_is_that_of_members_on_their_part_of_the_batch(name):
  targets = jax.nn.one_hot(jnp.arange(6) % 3, 3)
  make = optim.OPTIMIZERS[name]
  optimizer = make(lambda step: 0.1, weight_decay=0.5, layer_decay=0.8)

  @jax.jit
  def update(gradients, params):
    return optimizer.update(gradients, optimizer.init(params), params)[0]

  def gradients(model, variables, rows):
    def loss(params):
      rest = variables['mira'], VIDEO[rows], targets[rows]
      key, mask = jax.random.key(2), jnp.ones(len(rows), bool)
      return losses.classify(model, params, *rest, mask, key)

    return jax.grad(loss, has_aux=True)(variables['params'])

  whole, (_, averages) = gradients(ENSEMBLE, VARIABLES, np.arange(6))
  updates = update(whole, VARIABLES['params'])
  for i in range(3):
    own = member(VARIABLES, i)
    wanted, (_, average) = gradients(SINGLE, own, np.arange(i, 6, 3))
    close(jax.tree.map(lambda x: 3 * x, member(whole, i)), wanted)
    close(member(averages, i), average)
    third = jax.tree.map(lambda x: x / 3, wanted)
    close(member(updates, i), update(third, own['params']), atol=2e-3)


def test_eight_bits_of_an_ensemble_are_those_of_its_members():
  found = int8.restore(int8.quantise(VARIABLES))
  for i in range(3):
    wanted = int8.restore(int8.quantise(member(VARIABLES, i)))
    close(member(found, i), wanted, atol=0)
  error = optax.tree.sub(found['params'], VARIABLES['params'])
  assert 0 < float(optax.tree.norm(error)) < 0.1


def test_every_member_starts_from_a_single_model(tmp_path):
  path = save_model(tmp_path / 'run', MiraConfig())
  own, _ = weights_file.load_weights(path / weights_file.WEIGHTS)
  have = jax.tree.map(lambda x: np.zeros((3, *x.shape), x.dtype), own)
  found, report = warm_start.transfer(have, path)
  for i in range(3):
    close(member(found, i), own, atol=0)
  assert 'all members start alike' in str(report)


def test_no_other_program_has_such_a_model(tmp_path):
  path = save_model(tmp_path / 'run', members=2, mirror=True)
  converted = convert.read(path)
  with pytest.raises(MiraInputError, match='members 2, mirror True'):
    convert.write_torch(tmp_path / 'x.safetensors', converted)


@pytest.mark.parametrize(
  ('field', 'flags'),
  [
    ('config.model.members', ['--config.data.batch_size=32']),
    ('config.model.scan', ['--config.model.scan=true']),
  ],
)
def test_what_does_not_go_with_members_is_refused(field, flags):
  flags = ['--config.model.members=3', '--config.data.batch_size=33', *flags]
  with pytest.raises(MiraInputError) as caught:
    config.validate(config.load('quickstart', flags))
  assert caught.value.path == field
