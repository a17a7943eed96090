"""Every parameter of every model has one role, and what follows from it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from mira_jax import param_names
from mira_jax.mira import MiraConfig
from mira_jax.models.blocks import BLOCKS
from mira_jax.models.mae import MaskedAutoencoder
from mira_jax.models.options import CLS_VARIANTS, VARIANTS
from mira_jax.models.vivit import ViViT
from mira_jax.systems.channels import ChannelsConfig
from mira_jax.systems.cross_windows import CrossWindowsConfig
from mira_jax.systems.experts import ExpertsConfig
from mira_jax.systems.gates import GateConfig
from mira_jax.systems.heads import HeadsConfig
from mira_jax.systems.identity import IdentityConfig
from mira_jax.systems.orientation import OrientationConfig
from mira_jax.systems.reliability import ReliabilityConfig
from mira_jax.weights.weights_file import flatten

SIZE = {'dim': 8, 'depth': 2, 'heads': 2, 'patch': 4, 'layer_scale': 0.1}
VIDEO = jax.ShapeDtypeStruct((1, 6, 8, 8, 3), jnp.float32)


SYSTEMS = {
  'orientation': OrientationConfig(),
  'gate': GateConfig(),
  'head_mix': HeadsConfig(),
  'experts': ExpertsConfig(),
  'cross_windows': CrossWindowsConfig(scales=2, query='dense'),
  'channels': ChannelsConfig(activation='sigmoid'),
  'reliability': ReliabilityConfig(),
  'identity': IdentityConfig(subjects=2),
  'position_stream': True,
  'oracle_units': '1,2',
}
MORE = (
  {'channels': ChannelsConfig(regions=2, form='reweight')},
  {'channels': ChannelsConfig(regions=2)},
  {'gate': GateConfig(kind='element')},
  {'cross_windows': CrossWindowsConfig(scales=1)},
)


def classifier(variant, scan, **systems):
  """Leaves of a classifier with every option that has parameters."""
  model = ViViT(
    **SIZE,
    num_classes=3,
    frames=6,
    image_size=8,
    variant=variant,
    mira=MiraConfig(),
    positions='learned',
    stem='conv',
    pool='cls' if variant in CLS_VARIANTS else 'attention',
    scan=scan,
    **systems,
  )
  return flatten(jax.eval_shape(model.init, jax.random.key(0), VIDEO))


def autoencoder(variant, scan):
  model = MaskedAutoencoder(
    **SIZE,
    decoder_dim=4,
    decoder_depth=1,
    decoder_heads=2,
    variant=variant,
    mira=MiraConfig(),
    scan=scan,
  )
  init = functools.partial(model.init, num_masked=6)
  mask = jax.ShapeDtypeStruct((1, 12), jnp.bool_)
  return flatten(jax.eval_shape(init, jax.random.key(0), VIDEO, mask))


@functools.cache
def everything():
  """All leaves of all models, by name."""
  leaves = {}
  for scan in (False, True):
    for variant in VARIANTS:
      leaves |= classifier(variant, scan)
    for systems in (SYSTEMS, *MORE):
      leaves |= classifier('joint', scan, **systems)
    for variant in BLOCKS:
      leaves |= autoencoder(variant, scan)
  return leaves


def test_every_leaf_has_exactly_one_role():
  used = set()
  for name in everything():
    short = name.partition('/')[2]
    found = {
      role.name
      for role in param_names.ROLES
      for place in ('', 'params/', 'opt_state/0/mu/')
      if param_names.matches(role, place + short)
    }
    assert len(found) == 1, (name, found)
    used |= found
  assert used == {role.name for role in param_names.ROLES}


SMALL = {  # of other systems: Adam's, and not decayed
  *('direction', 'orientation', 'gate', 'head mixing', 'experts'),
  *('channels', 'reliability', 'extra head'),
}


def test_kernels_have_all_their_axes():
  for name, leaf in everything().items():
    axes = param_names.kernel_axes(name, leaf.ndim)
    if param_names.role_of(name).name in SMALL:
      assert axes is None, name
      continue
    assert (axes is None) == (not name.endswith('kernel')), name
    if axes is not None:
      first = int(param_names.is_stacked(name))
      assert sum(axes, ()) == tuple(range(first, leaf.ndim)), name


@pytest.mark.parametrize(
  'name', ['encoder/block_0/attn/kv/kernel', 'kernel', 'step', 'my_head/bias']
)
def test_a_name_without_a_role_is_an_error(name):
  assert param_names.find_role(name) is None
  with pytest.raises(KeyError, match=f'{name} has no role'):
    param_names.role_of(name)


def test_other_systems_learn_on_a_frozen_backbone_and_may_be_missing():
  plain = classifier('joint', False)
  added = classifier('joint', False, **SYSTEMS).keys() - plain.keys()
  assert len(added) > 50
  for name in added:
    assert param_names.is_task(name), name
    assert param_names.is_probe(name.removeprefix('params/')), name
  kept = {n for n in plain if not param_names.is_task(n)}
  probed = {n for n in kept if param_names.is_probe(n.removeprefix('params/'))}
  assert not probed


def test_names_of_stacked_and_single_blocks():
  single = 'params/encoder/block_12/attn/qkv/kernel'
  stacked = 'params/encoder/blocks/attn/qkv/kernel'
  assert param_names.stacked_name(single) == stacked
  assert param_names.single_name(stacked, 12) == single
  assert param_names.block_index(single) == 12
  assert param_names.block_index(stacked) is None
  assert param_names.is_stacked(stacked)
  assert not param_names.is_stacked(single)
