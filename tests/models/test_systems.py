"""Other systems within the model: they start as nothing, and go with MiRA."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.errors import MiraInputError
from mira_jax.inference import engine
from mira_jax.kernels import dispatch
from mira_jax.mira import MiraConfig
from mira_jax.models import options
from mira_jax.models.build import build_model
from mira_jax.models.head import Inputs
from mira_jax.models.layers import sinusoid
from mira_jax.models.vivit import ViViT
from mira_jax.param_names import path_name
from mira_jax.systems import experts
from mira_jax.systems.channels import ChannelsConfig
from mira_jax.systems.cross_windows import CrossWindowsConfig
from mira_jax.systems.experts import ExpertsConfig
from mira_jax.systems.gates import GateConfig
from mira_jax.systems.heads import HeadsConfig
from mira_jax.systems.identity import IdentityConfig
from mira_jax.systems.orientation import OrientationConfig
from mira_jax.systems.reliability import ReliabilityConfig

SMALL = {
  'dim': 16, 'depth': 2, 'heads': 2, 'frames': 4, 'image_size': 32, 'patch': 8,
  'num_classes': 3, 'head_scale': 10.0,
}  # fmt: skip
VIDEO = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 3))
VIDEO = VIDEO.astype(np.float32)
SYSTEMS = {
  'orientation': {'orientation': OrientationConfig()},
  'carried': {'orientation': OrientationConfig(carry='mean')},
  'motion of keys': {
    'orientation': OrientationConfig(target='keys', reference='previous')
  },
  'gate': {'gate': GateConfig()},
  'gate of elements': {'gate': GateConfig(kind='element')},
  'head_mix': {'head_mix': HeadsConfig(diversity_weight=0.1)},
  'experts': {'experts': ExpertsConfig()},
  'cross_windows': {'cross_windows': CrossWindowsConfig(scales=2)},
  'channels': {'channels': ChannelsConfig()},
  'weights': {'channels': ChannelsConfig(form='reweight')},
  'reliability': {'reliability': ReliabilityConfig(output='primary')},
  'identity': {'identity': IdentityConfig(subjects=5)},
  'position_stream': {'position_stream': True},
}
MODES = {
  'plain': None,
  'exact': MiraConfig(),
  'flashlite': MiraConfig(mode='flashlite'),
}


def flat(tree):
  return {
    path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def over(fresh, known):
  """Fresh parameters, with those that a plain model knows in their place."""
  return {
    name: (over(x, known[name]) if isinstance(x, dict) else known[name])
    if name in known
    else x
    for name, x in fresh.items()
  }


def both(mode, system, **more):
  """A plain model and one with a system, and variables of both."""
  plain = ViViT(**SMALL, mira=MODES[mode], **more)
  model = plain.clone(**SYSTEMS[system])
  known = jax.jit(plain.init)(jax.random.key(1), VIDEO)
  fresh = jax.jit(model.init)(jax.random.key(2), VIDEO)
  params = over(fresh['params'], known['params'])
  return plain, known, model, {**known, 'params': params}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('system', SYSTEMS)
def test_every_system_starts_as_the_identity(system, mode):
  plain, known, model, variables = both(mode, system)
  want = jax.jit(plain.apply)(known, VIDEO)
  found = jax.jit(model.apply)(variables, VIDEO)
  np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize('more', [{'scan': True}, {'members': 2}], ids=str)
@pytest.mark.parametrize('system', SYSTEMS)
def test_stacks_and_ensembles_train_and_record(system, more):
  *_, model, variables = both('exact', system, **more)
  inputs = Inputs(progress=jnp.float32(0.5))

  @jax.jit
  def step(params):
    (logits, terms), _ = model.apply(
      {**variables, 'params': params},
      VIDEO,
      train=True,
      inputs=inputs,
      rngs={'dropout': jax.random.key(0)},
      mutable=['mira'],
    )
    total = sum(x.sum() for x in jax.tree.leaves(terms))
    return jnp.square(logits - 1).sum() + total

  gradient = jax.grad(step)(variables['params'])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
  logits, records = jax.jit(lambda x: model.apply(x, VIDEO, record=True))(
    variables
  )
  assert logits.shape == (2, 3)
  assert len(records) == 2
  if 'orientation' in SYSTEMS[system]:
    assert records[0]['orientation'].shape == (2, 32)
    np.testing.assert_allclose(records[1]['angle'], 72, rtol=1e-5)


FIRST = {  # what moves first: the others are behind its zeros
  'orientation': 'expand_kernel',
  'carried': 'expand_kernel',
  'motion of keys': 'expand_kernel',
  'gate': 'gate_kernel',
  'gate of elements': 'gate_kernel',
  'head_mix': 'mix_kernel',
  'cross_windows': '_scale',
  'channels': 'channel_head',
  'weights': 'token_scale',
  'position_stream': 'position_stream',
}


@pytest.mark.parametrize('system', FIRST)
def test_logits_depend_on_every_block_of_a_system(system):
  """Its first parameters have a gradient, and all of them off their start."""
  _, known, model, variables = both('exact', system)

  @jax.jit
  def slope(params):
    def loss(params):
      logits = model.apply({**variables, 'params': params}, VIDEO)
      return (logits * jnp.array([1.0, -2.0, 0.5])).sum()

    return jax.grad(loss)(params)

  start = variables['params']
  found = flat(slope(start))
  first = {name: x for name, x in found.items() if FIRST[system] in name}
  assert first
  for name, x in first.items():
    assert np.abs(x).max() > 0, name
  own = flat(start).keys() - flat(known['params']).keys()
  drawn = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      jax.random.normal(jax.random.key(len(str(path))), x.shape) * 0.3
      if path_name(path) in own
      else x
    ),
    start,
  )
  still = {name for name, x in flat(slope(drawn)).items() if not np.any(x)}
  assert own
  assert not own & still


@pytest.mark.parametrize('carry', ['none', 'mean', 'product'])
def test_a_gate_is_carried_to_the_next_block(carry):
  model = ViViT(**SMALL, orientation=OrientationConfig(carry=carry))
  variables = jax.jit(model.init)(jax.random.key(0), VIDEO)
  blocks = variables['params']['encoder']
  own = blocks['block_0']['orientation']
  own['expand_kernel'] = own['expand_kernel'] + 1.0
  _, records = model.apply(variables, VIDEO, record=True)
  first, second = (record['orientation'] for record in records)
  assert np.abs(first - 1).max() > 0.01
  assert (np.abs(second - 1).max() > 1e-3) == (carry != 'none')


@pytest.mark.parametrize('pool', ['cls', 'grid', 'attention'])
def test_systems_go_with_every_pooling(pool):
  fields = {k: x for y in SYSTEMS.values() for k, x in y.items()}
  model = ViViT(**SMALL, **fields, mira=MiraConfig(), pool=pool)
  variables = jax.jit(model.init)(jax.random.key(0), VIDEO)
  assert jax.jit(model.apply)(variables, VIDEO).shape == (2, 3)


def test_logits_of_frames_and_their_features():
  model = ViViT(**SMALL, pool='frame')
  variables = jax.jit(model.init)(jax.random.key(0), VIDEO)
  assert model.apply(variables, VIDEO).shape == (2, 2, 3)
  assert model.clone(num_classes=0).apply(variables, VIDEO).shape == (2, 16)


# ----- attention -------------------------------------------------------------


@pytest.mark.parametrize('mode', ['plain', 'flashlite'])
def test_gates_of_keys_run_on_streaming_kernels(mode):
  """With the same numbers and gradients as on the whole map."""
  *_, model, variables = both(mode, 'motion of keys')
  gate = variables['params']['encoder']['block_0']['orientation']
  gate['expand_kernel'] = gate['expand_kernel'] + 0.7
  grads = {}
  for name in ('reference', 'streaming'):
    one = model.clone(attention=name)

    def loss(params, one=one):
      return jnp.square(one.apply({**variables, 'params': params}, VIDEO)).sum()

    grads[name] = jax.jit(jax.value_and_grad(loss))(variables['params'])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
    grads['reference'],
    grads['streaming'],
  )
  own = grads['streaming'][1]['encoder']['block_0']['orientation']
  assert np.abs(own['direction']).max() > 0


@pytest.mark.parametrize(
  ('fields', 'named'),
  [
    ({'head_mix': HeadsConfig()}, 'head_mix'),
    ({**SYSTEMS['motion of keys'], 'mira': MiraConfig()}, 'orientation.target'),
  ],
)
def test_what_needs_a_map_is_refused_on_a_streaming_kernel(fields, named):
  model = ViViT(**SMALL, **fields, attention='streaming')
  with pytest.raises(ValueError, match=f'whole attention map, which {named}'):
    jax.eval_shape(model.init, jax.random.key(0), VIDEO)
  forced = model.clone(attention=None)
  before = dispatch.known()
  dispatch.learn(forced='streaming')
  try:
    with pytest.raises(MiraInputError, match='never has the whole attention'):
      jax.eval_shape(forced.init, jax.random.key(0), VIDEO)
  finally:
    dispatch.learn(forced=before.forced)


def test_a_map_is_chosen_for_what_needs_it():
  q = jax.ShapeDtypeStruct((64, 1568, 12, 64), jnp.bfloat16)
  asked = dispatch.request(q, q, q, 'plain', True, True)
  assert dispatch.choose(asked).name == 'reference'
  assert dispatch.choose(asked._replace(whole_map=False)).name != 'reference'


@pytest.mark.parametrize(
  ('fields', 'named'),
  [
    ({'variant': 'intra', **SYSTEMS['head_mix']}, 'head_mix'),
    ({'variant': 'intra', **SYSTEMS['motion of keys']}, 'orientation.target'),
    (
      {'variant': 'factorised_encoder', **SYSTEMS['orientation']},
      'orientation',
    ),
    ({'pool': 'frame', **SYSTEMS['reliability']}, 'reliability'),
    (
      {'pool': 'grid', 'reliability': ReliabilityConfig(pool='frames')},
      'pool',
    ),
    ({'oracle_units': '1,smile'}, 'oracle_units'),
    ({'oracle_units': '1,AU01'}, 'oracle_units'),
    ({'cross_windows': CrossWindowsConfig(scales=4)}, 'cross_windows.scales'),
    (
      {'cross_windows': CrossWindowsConfig(guide='landmarks'), 'mirror': True},
      'mirror',
    ),
  ],
)
def test_contradictions_name_the_field(fields, named):
  fault = options.contradiction(options.ModelOptions(**{**SMALL, **fields}))
  assert fault is not None
  assert fault[0] == named


# ----- heads and inputs ------------------------------------------------------


def test_a_corrected_prediction_is_that_of_its_head():
  model = ViViT(**SMALL, reliability=ReliabilityConfig())
  variables = jax.jit(model.init)(jax.random.key(0), VIDEO)
  logits, records = model.apply(variables, VIDEO, record=True)
  corrected = records[-1]['corrected']
  np.testing.assert_allclose(jax.nn.softmax(logits), corrected, rtol=1e-5)
  np.testing.assert_allclose(corrected.sum(-1), 1, rtol=1e-5)
  own = dataclasses.replace(model.reliability, output='primary')
  primary = model.clone(reliability=own).apply(variables, VIDEO)
  np.testing.assert_allclose(
    jax.nn.softmax(primary), records[-1]['primary'], rtol=1e-5
  )
  assert np.abs(primary - logits).max() > 1e-3


@pytest.mark.parametrize('form', ['head', 'reweight'])
def test_features_need_no_head(form):
  model = ViViT(**SMALL, channels=ChannelsConfig(form=form))
  variables = jax.jit(model.init)(jax.random.key(0), VIDEO)
  made = engine.Engine(model, variables, 2)
  clips = np.random.default_rng(0).integers(0, 255, VIDEO.shape, np.uint8)
  assert made.without_head().logits(clips).shape == (2, 16)


def test_frames_are_pooled_by_confidence_with_other_systems():
  model = ViViT(
    **SMALL,
    reliability=ReliabilityConfig(pool='frames'),
    channels=ChannelsConfig(),
    identity=IdentityConfig(subjects=2),
    oracle_units='1',
  )
  video = np.concatenate([VIDEO, VIDEO[:1]])  # 3 clips, 2 temporal tokens
  inputs = Inputs(units=jnp.ones((3, 1)))
  variables = model.init(jax.random.key(0), video, inputs=inputs)
  logits = model.apply(variables, video, inputs=inputs)
  assert logits.shape == (3, 3)
  np.testing.assert_allclose(logits[0], logits[2], rtol=1e-5)


def test_annotated_units_are_read_from_their_start_at_zero():
  model = ViViT(**SMALL, oracle_units='1,AU12')
  variables = jax.jit(model.init)(jax.random.key(0), VIDEO)
  units = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  start = model.apply(variables, VIDEO, inputs=Inputs(units=units))
  none = model.apply(variables, VIDEO, inputs=Inputs(units=0 * units))
  np.testing.assert_array_equal(start, none)
  variables['params']['oracle']['kernel'] = jnp.eye(2, 3)
  told = model.apply(variables, VIDEO, inputs=Inputs(units=units))
  np.testing.assert_allclose(told - start, jnp.eye(2, 3), atol=1e-6)
  with pytest.raises(ValueError, match='reads annotated'):
    model.apply(variables, VIDEO)


def test_landmarks_guide_windows():
  windows = CrossWindowsConfig(scales=1, guide='landmarks', layer_scale=1.0)
  model = ViViT(**SMALL, cross_windows=windows)
  points = jnp.full((2, 2, 5, 2), 0.3)
  inputs = Inputs(landmarks=points)
  variables = model.init(jax.random.key(0), VIDEO, inputs=inputs)
  here = model.apply(variables, VIDEO, inputs=inputs)
  there = model.apply(variables, VIDEO, inputs=Inputs(landmarks=points + 0.4))
  assert np.abs(here - there).max() > 0
  with pytest.raises(ValueError, match='landmarks are None'):
    model.apply(variables, VIDEO)


def test_the_position_stream_adds_the_first_and_the_peak_frame():
  """By hand, with blocks that add nothing and clips whose peak is known."""
  video = np.repeat(VIDEO[:, :2], 3, axis=1)  # three tokens in time
  video[0, 2:4] += 3
  video[1, 2:4] += 1
  video[1, 4:6] += 3
  small = {**SMALL, 'frames': 6, 'num_classes': 0}
  model = ViViT(**small, position_stream=True)
  params = jax.jit(model.init)(jax.random.key(0), video)['params']
  params['encoder'] = jax.tree.map(jnp.zeros_like, params['encoder'])
  params['position_stream']['kernel'] = jnp.eye(16)
  found, records = model.apply({'params': params}, video, record=True)
  tokens = records[-1]['output']
  own = (tokens - sinusoid(48, 16)).reshape(2, 3, 16, 16)
  peaks = own[jnp.arange(2), jnp.array([1, 2])]
  pooled = tokens.mean(1) + (own[:, 0] + peaks).mean(1)
  centred = pooled - pooled.mean(-1, keepdims=True)
  want = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True))
  np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('more', [{}, {'scan': True}, {'members': 2}], ids=str)
def test_merged_experts_are_the_plain_model(more):
  *_, model, variables = both('exact', 'experts', **more)

  def drawn(path, x):
    name = jax.tree_util.keystr(path)
    return jax.random.normal(jax.random.key(len(name)), x.shape) * 0.1

  params = jax.tree_util.tree_map_with_path(
    lambda path, x: drawn(path, x) if '_experts' in str(path) else x,
    variables['params'],
  )
  want = jax.jit(model.apply)({**variables, 'params': params}, VIDEO)
  plain = model.clone(experts=None)
  found = jax.jit(plain.apply)(
    {**variables, 'params': experts.merged(params)}, VIDEO
  )
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
  start = jax.jit(plain.apply)(variables, VIDEO)
  assert np.abs(start - want).max() > 1e-3


def test_models_with_systems_come_back_from_json():
  fields = {k: x for y in SYSTEMS.values() for k, x in y.items()}
  model = ViViT(**SMALL, **fields, mira=MiraConfig())
  names = [field.name for field in dataclasses.fields(options.ModelOptions)]
  as_json = {name: getattr(model, name) for name in names}
  for name, value in as_json.items():
    if dataclasses.is_dataclass(value):
      as_json[name] = dataclasses.asdict(value)
  again = build_model(as_json)
  for name in options.SYSTEMS:
    assert getattr(again, name) == getattr(model, name)
  odd = options.beyond_others(as_json)
  assert {x.split()[0] for x in odd} >= {*options.SYSTEMS, 'position_stream'}


def test_all_systems_go_together():
  """With both modes of MiRA, in float32 and bfloat16."""
  fields = {k: x for y in SYSTEMS.values() for k, x in y.items()}
  for mode, dtype in (('exact', 'float32'), ('flashlite', 'bfloat16')):
    model = ViViT(**SMALL, **fields, mira=MODES[mode], dtype=jnp.dtype(dtype))
    variables = jax.jit(model.init)(jax.random.key(0), VIDEO)
    logits = jax.jit(model.apply)(variables, VIDEO)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
