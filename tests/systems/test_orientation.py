"""SOA against its definition, and the direction that it learns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from mira_jax.systems import orientation
from mira_jax.systems.orientation import (
  OrientationConfig,
  OrientationGate,
  angle_of,
  direction_of,
  released_rows,
  soa_assign,
  soa_gate,
)


def tokens(seed=0, shape=(2, 3, 20, 6)):
  return jax.random.normal(jax.random.key(seed), shape)


def weights(dim=6, hidden=4):
  a, b = jax.random.split(jax.random.key(1))
  return jax.random.normal(a, (dim, hidden)), jax.random.normal(
    b, (hidden, dim)
  )


@pytest.mark.parametrize('angle', [0, 1, 37, 45, 72, 89, 90, 135, 179])
def test_every_token_is_on_lines_once(angle):
  assign = soa_assign(direction_of(angle), 4, 5, 6)
  np.testing.assert_allclose(assign.sum(0), 1, atol=1e-6)
  assert assign.shape == (6, 20)
  assert (assign >= 0).all()


def test_ninety_degrees_average_rows_and_zero_columns():
  rows = np.repeat(np.eye(4), 5, axis=1)
  np.testing.assert_allclose(
    soa_assign(direction_of(90), 4, 5), rows, atol=1e-3
  )
  columns = np.tile(np.eye(5), (1, 4))
  found = soa_assign(direction_of(0), 4, 5, 5)
  np.testing.assert_allclose(found, columns, atol=1e-3)


@pytest.mark.parametrize('reference', ['none', 'onset', 'previous'])
def test_vertical_gate_is_that_of_rows_by_hand(reference):
  """CVA: row means, a hidden layer, 2 sigmoid, the gate of each row."""
  x, (reduce, expand) = tokens(), weights()
  config = OrientationConfig(angle=90, reference=reference)
  gate, lines = soa_gate(x, direction_of(90), reduce, expand, (4, 5), config)
  means = np.asarray(x, np.float64).reshape(2, 3, 4, 5, 6).mean(3)
  before = {'none': np.zeros(3, int), 'onset': [0, 0, 0], 'previous': [0, 0, 1]}
  means = means - means[:, before[reference]] * (reference != 'none')
  hidden = np.maximum(means @ np.asarray(reduce, np.float64), 0)
  want = 2 / (1 + np.exp(-hidden @ np.asarray(expand, np.float64)))
  np.testing.assert_allclose(lines, want, rtol=4e-3)
  by_row = gate.reshape(2, 3, 4, 5, 6)
  np.testing.assert_allclose(
    by_row, want[:, :, :, None].repeat(5, 3), rtol=4e-3, atol=1e-3
  )


def test_a_quarter_turn_of_the_grid_turns_the_direction():
  """Rows become columns: theta grows by 90 degrees, and so do gates."""
  x, (reduce, expand) = tokens(shape=(1, 1, 25, 6)), weights()
  config = OrientationConfig()
  turned = jnp.rot90(x.reshape(1, 1, 5, 5, 6), axes=(2, 3)).reshape(x.shape)
  gate, _ = soa_gate(x, direction_of(30), reduce, expand, (5, 5), config)
  other, _ = soa_gate(
    turned, direction_of(30 - 90), reduce, expand, (5, 5), config
  )
  want = jnp.rot90(gate.reshape(1, 1, 5, 5, 6), axes=(2, 3)).reshape(x.shape)
  np.testing.assert_allclose(other, want, rtol=1e-4)


@pytest.mark.parametrize('carry', ['none', 'mean', 'product'])
@pytest.mark.parametrize('reference', ['none', 'onset', 'previous'])
def test_is_the_identity_at_the_start(carry, reference):
  config = OrientationConfig(carry=carry, reference=reference)
  module, x = OrientationGate(config, (4, 5)), tokens()
  variables = module.init(jax.random.key(0), x)
  gate, lines, angle = module.apply(variables, x)
  gate, _, _ = module.apply(variables, x, lines)
  np.testing.assert_allclose(gate, 1, atol=1e-6)
  assert abs(float(angle) - 72) < 1e-3
  shapes = jax.tree.map(jnp.shape, variables['params'])
  assert shapes == {
    'direction': (2,), 'reduce_kernel': (6, 8), 'expand_kernel': (8, 6),
  }  # fmt: skip


def test_published_gate_halves_and_products_vanish():
  x, (reduce, _) = tokens(), weights()
  none = jnp.zeros((4, 6))
  config = OrientationConfig(gate='published', carry='product')
  gate, lines = None, None
  for _ in range(12):
    gate, lines = soa_gate(
      x, direction_of(72), reduce, none, (4, 5), config, lines
    )
  np.testing.assert_allclose(gate, 2.0**-12, rtol=1e-4)


@pytest.mark.parametrize('carry', ['mean', 'product'])
def test_no_carry_is_a_carry_of_one(carry):
  x, (reduce, expand) = tokens(), weights()
  config = OrientationConfig(carry=carry, gate='published')
  args = x, direction_of(20), reduce, expand, (4, 5), config
  alone, lines = soa_gate(*args)
  same, _ = soa_gate(*args, jnp.ones_like(lines))
  np.testing.assert_array_equal(same, alone)


def test_a_carried_gate_by_hand():
  x, (reduce, expand) = tokens(), weights()
  carry = jax.random.uniform(jax.random.key(5), (2, 3, 4, 6)) + 0.5
  found = {}
  for name in ('none', 'mean', 'product'):
    config = OrientationConfig(carry=name)
    _, found[name] = soa_gate(
      x, direction_of(20), reduce, expand, (4, 5), config, carry
    )
  own = found['none']
  np.testing.assert_allclose(found['product'], own * carry, rtol=1e-5)
  np.testing.assert_allclose(found['mean'], np.sqrt(own * carry), rtol=1e-5)


def test_a_fixed_direction_has_no_gradient():
  config = OrientationConfig(orientation='fixed', angle=90)
  module, x = OrientationGate(config, (4, 5)), tokens()
  params = module.init(jax.random.key(0), x)['params']
  params['expand_kernel'] += 0.5

  def total(params):
    gate, _, _ = module.apply({'params': params}, x)
    return (gate * jnp.arange(20.0)[:, None]).sum()

  gradient = jax.grad(total)(params)
  np.testing.assert_array_equal(gradient['direction'], 0)
  assert np.abs(gradient['expand_kernel']).max() > 0


def test_motion_by_hand():
  x = jnp.arange(3.0).reshape(1, 3, 1, 1) ** 2
  found = {r: orientation.motion(x, r).ravel() for r in ('onset', 'previous')}
  np.testing.assert_array_equal(found['onset'], [0, 1, 4])
  np.testing.assert_array_equal(found['previous'], [0, 1, 3])


def test_released_operator_averages_rows_at_zero_degrees():
  means, rows = released_rows(direction_of(0), 4, 5)
  np.testing.assert_allclose(means, rows / 5, atol=1e-6)


def test_released_operator_averages_columns_but_gates_rows_at_ninety():
  means, rows = released_rows(direction_of(90), 5, 5)
  columns = np.tile(np.eye(5), (1, 5)) / 5
  np.testing.assert_allclose(means, columns, atol=1e-5)
  np.testing.assert_array_equal(rows, np.repeat(np.eye(5), 5, axis=1))


def test_released_padding_darkens_edges_as_in_the_public_code():
  """A constant map of 14 rows: 0.49 at 45 degrees, 0.56 at 72, 0.92 at 88."""
  edges = [
    float(released_rows(direction_of(angle), 14, 14)[0].sum(1)[0])
    for angle in (45, 72, 88)
  ]
  np.testing.assert_allclose(edges, [0.49, 0.56, 0.92], atol=0.01)


@pytest.mark.parametrize('mode', ['projection', 'released'])
@pytest.mark.parametrize('angle', [45, 72, 88])
def test_a_constant_map_has_edges_in_the_released_operator_alone(angle, mode):
  x, (reduce, expand) = jnp.ones((1, 1, 196, 6)), weights()
  config = OrientationConfig(mode=mode)
  gate, _ = soa_gate(x, direction_of(angle), reduce, expand, (14, 14), config)
  spread = np.ptp(gate, axis=2).max()
  assert spread < 1e-5 if mode == 'projection' else spread > 0.01


@pytest.mark.parametrize('angle', [0, 1, 37, 72, 89, 90])
@pytest.mark.parametrize('mode', ['projection', 'released'])
def test_gradient_of_the_angle_is_finite(angle, mode):
  x, (reduce, expand) = tokens(), weights()
  config = OrientationConfig(mode=mode)

  def total(radians):
    direction = jnp.stack([jnp.cos(radians), jnp.sin(radians)])
    gate, _ = soa_gate(x, direction, reduce, expand, (4, 5), config)
    return (gate * jnp.arange(20.0)[:, None]).sum()

  with jax.enable_x64():
    x, reduce, expand = (
      jnp.asarray(a, jnp.float64) for a in (x, reduce, expand)
    )
    at = jnp.radians(jnp.float64(angle)) + 0.01  # off the kinks of lines
    slope = np.asarray(jax.grad(total)(at))
    near = np.asarray((total(at + 1e-6) - total(at - 1e-6)) / 2e-6)
  assert np.isfinite(slope)
  assert slope != 0
  np.testing.assert_allclose(slope, near, rtol=1e-3)


@pytest.mark.parametrize('direction', [(1.0, 0.0), (0.0, 1.0)])
def test_a_direction_along_the_grid_can_be_left(direction):
  """Lines are of whole tokens there, where |x| would have no gradient."""
  x, (reduce, expand) = tokens(), weights()
  with jax.enable_x64():
    x, reduce, expand, along = (
      jnp.asarray(a, jnp.float64) for a in (x, reduce, expand, direction)
    )

    def total(direction):
      gate, _ = soa_gate(
        x, direction, reduce, expand, (4, 5), OrientationConfig()
      )
      return (gate * jnp.arange(20.0)[:, None]).sum()

    gradient = np.asarray(jax.grad(total)(along))
  across = gradient[int(direction[0])]
  assert np.isfinite(gradient).all()
  assert abs(across) > 1e-3


def test_key_gain_is_the_mean_over_channels():
  gate = jnp.ones((2, 3, 4, 6)).at[0, 1, 2].set(jnp.arange(6.0))
  gain = orientation.key_gain_of(gate)
  assert gain.shape == (2, 12)
  np.testing.assert_allclose(gain[0], [1] * 6 + [2.5] + [1] * 5)


def test_bad_values_name_the_field():
  with pytest.raises(ValueError, match=r'carry is .sum.; use one of'):
    OrientationConfig(carry='sum')
  with pytest.raises(ValueError, match='angle is 181; use 0 to 180'):
    OrientationConfig(angle=181)


# ----- what it learns ---------------------------------------------------------

SIDE = 10


def waves(key, angle, count, frequencies):
  """Tokens [B, 3, N, 1] of waves that move along an axis, or of noise.

  The phase moves by a quarter turn from frame to frame; noise is drawn for
  each frame, as strong, and a still texture lies below both.
  """
  phase, pitch, noise, label, below = jax.random.split(key, 5)
  y, x = orientation._centres(SIDE, SIDE)
  cos, sin = direction_of(angle)
  place = (cos * x + sin * y)[None, None]
  phase = jax.random.uniform(phase, (count, 1, 1)) * 2 * jnp.pi
  phase = phase + jnp.arange(3)[:, None] * jnp.pi / 2
  low, high = frequencies
  pitch = jax.random.uniform(pitch, (count, 1, 1), minval=low, maxval=high)
  wave = jnp.sqrt(2.0) * jnp.sin(pitch * place + phase)
  label = jax.random.bernoulli(label, shape=(count,))
  other = jax.random.normal(noise, wave.shape)
  texture = 3 * jax.random.normal(below, (count, 1, SIDE**2))
  shown = jnp.where(label[:, None, None], wave, other) + texture
  return shown[..., None], label


def errors(axis, starts, frequencies, reference):
  """How far off the axis gates of several starts are, once trained."""
  draw = nn.initializers.normal(0.5)
  module = OrientationGate(
    OrientationConfig(width=8, reference=reference),
    (SIDE, SIDE),
    kernel_init=draw,
  )
  params = module.init(jax.random.key(2), jnp.zeros((1, 1, SIDE**2, 1)))
  params = params['params'] | {'expand_kernel': draw(jax.random.key(3), (8, 1))}
  optimizer = optax.adam(0.02)

  def loss(params, key):
    x, label = waves(key, axis, 64, frequencies)
    gate, _, _ = module.apply({'params': params['gate']}, x)
    logit = params['scale'] * (gate - 1).mean((1, 2, 3)) + params['bias']
    return optax.sigmoid_binary_cross_entropy(logit, label).mean()

  def step(carry, key):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params, key), state)
    return (optax.apply_updates(params, updates), state), None

  def train(start):
    gate = params | {'direction': direction_of(start)}
    fresh = {'gate': gate, 'scale': jnp.ones(()), 'bias': jnp.zeros(())}
    keys = jax.random.split(jax.random.key(4), 500)
    (trained, _), _ = jax.lax.scan(step, (fresh, optimizer.init(fresh)), keys)
    return angle_of(trained['gate']['direction'])

  found = jax.jit(jax.vmap(train))(axis + jnp.asarray(starts, jnp.float32))
  return (np.asarray(found) - axis + 90) % 180 - 90


@pytest.mark.parametrize('reference', ['onset', 'previous'])
@pytest.mark.parametrize('axis', [30, 90, 140])
def test_motion_along_an_axis_is_found_from_several_starts(axis, reference):
  off = errors(axis, (-40, -20, 20, 30, 42), (1, 5), reference)
  print(f'axis {axis}: off by {off.round(1)}, spread {off.std():.1f} degrees')
  assert np.abs(off).max() < (8 if axis == 90 else 3)


def test_short_waves_are_found_from_near_starts_only():
  """Averaged along lines at a large angle, they vanish, and so do gradients.

  The axes of the grid are local optima, too: their lines are of whole tokens.
  """
  off = np.abs(errors(30, (-50, -25, 25, 50), (4, 4), 'previous'))
  assert off[1:3].max() < 3
  assert off[[0, 3]].min() > 20
