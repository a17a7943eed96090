"""One run on any mesh: where arrays lie, and that no loss knows it."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mira_jax import config
from mira_jax.devices import sharding
from mira_jax.mira import MiraConfig
from mira_jax.train import build

AXES = {'data': 2, 'fsdp': 4, 'model': 2}
FLASHLITE = MiraConfig(mode='flashlite', statistics='batch_ema')
PRETRAIN = {
  'decoder_dim': 32,
  'decoder_depth': 1,
  'decoder_heads': 2,
  'mask_ratio': 0.5,
}


@pytest.mark.parametrize(
  ('name', 'shape', 'expected'),
  [
    # Of an optimiser's moments as of parameters.
    ('opt_state/0/mu/encoder/block_0/attn/qkv/kernel', (768, 3, 12, 64),
     P('fsdp', None, 'model')),
    ('params/encoder/blocks/attn/qkv/kernel', (12, 768, 3, 12, 64),
     P(None, 'fsdp', None, 'model')),
    ('params/encoder/block_0/attn/proj/kernel', (12, 64, 768),
     P('model', None, 'fsdp')),
    ('params/encoder/block_0/attn/q_bias', (12, 64), P('model')),
    ('average/encoder/block_0/mlp/fc1/kernel', (768, 3072),
     P('fsdp', 'model')),
    # Too small, of no rule, or not divisible.
    ('params/encoder/block_0/norm1/scale', (768,), P()),
    ('params/embed/kernel', (2, 16, 16, 3, 768),
     P(None, None, None, None, 'fsdp')),
    ('params/encoder/block_0/attn/qkv/kernel', (30, 3, 3, 10),
     P()),
    ('step', (), P()),
  ],
)  # fmt: skip
def test_every_array_has_its_place(name, shape, expected):
  assert sharding.partition(name, shape, AXES) == expected


def test_a_mesh_uses_every_device():
  mesh = sharding.make_mesh(fsdp=2, model=2)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'model': 2}
  assert sharding.clip_parts(mesh) == 4
  assert sharding.own_rows(mesh, 8).tolist() == list(range(8))
  assert sharding.describe(mesh) == 'devices: 8 cpu, data 2 x fsdp 2 x model 2'
  with pytest.raises(ValueError, match=r'data 3 x fsdp 2 x model 1 .* 8'):
    sharding.make_mesh(data=3, fsdp=2)
  with pytest.raises(ValueError, match='fsdp 16'):
    sharding.make_mesh(fsdp=16)


# ----- the same run in every split --------------------------------------------


def tiny():
  """A model that every axis of a mesh divides, up to 8 devices."""
  return config.Config(
    model=config.ModelConfig(
      dim=64, depth=2, heads=8, num_classes=3, frames=4, image_size=16, patch=8,
      head_scale=1.0, drop_path=0.2, scan=True,
      mira=MiraConfig(mode='exact', statistics='batch_ema'),
    ),
    data=config.DataConfig(
      batch_size=8, shift=0, flip=False, brightness=0.0, contrast=0.0
    ),
    optim=config.OptimConfig(warmup_epochs=0, ema_decay=0.9),
    train=config.TrainConfig(epochs=1),
  )  # fmt: skip


def losses(cfg, split, steps=3):
  """Losses of some steps on a mesh, and the state after them."""
  rng = np.random.default_rng(0)
  batch = {
    'video': rng.integers(0, 256, build.video_shape(cfg, 8), np.uint8),
    'label': np.arange(8, dtype=np.int32) % 3,
    'clip': np.arange(8, dtype=np.int32),
    'mask': np.ones(8, bool),
  }
  data, fsdp, model = split
  devices = jax.devices()[: data * fsdp * model]
  mesh = sharding.make_mesh(data=data, fsdp=fsdp, model=model, devices=devices)
  run = build.training(cfg, build.make(cfg, mesh), mesh, 10)
  where = jax.tree.map(lambda x: x.sharding, run.target)
  key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
  state = jax.device_put(drawn(config.to_json(cfg)), where)
  found = []
  with jax.set_mesh(mesh):
    lowered = run.step.lower(state, sharding.put_batch(batch, mesh), key)
    step = lowered.compile()  # raises if the state does not lie as before
    for _ in range(steps):
      state, metrics = step(state, sharding.put_batch(batch, mesh), key)
      found.append(float(metrics['loss']))
  return np.array(found), state


@functools.cache
def drawn(text):
  """A fresh state of a configuration, on the host."""
  cfg = config.from_json(text)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  run = build.training(cfg, build.make(cfg, mesh), mesh, 10)
  return jax.device_get(jax.jit(run.init)(jax.random.key(0)))


# Fields of groups of the configuration, and a split to try.
WAYS = {
  'exact': ({}, (8, 1, 1)),
  'flashlite': ({'model': {'mira': FLASHLITE}}, (2, 2, 2)),
  'streaming, unrolled, muon': (
    {
      'model': {'attention': 'streaming', 'remat': 'linear', 'scan': False},
      'optim': {'name': 'muon'},
    },
    (1, 2, 2),
  ),
  'factorised, mixed, accumulated': (
    {
      'model': {'variant': 'factorised_self_attention'},
      'data': {'mixup_alpha': 0.8, 'cutmix_alpha': 1.0},
      'optim': {'accumulate': 2, 'clip_norm': 0.5, 'layer_decay': 0.75},
    },
    (2, 2, 2),
  ),
  # 4 do not divide the decoder's heads.
  'pre-trained': ({'pretrain': PRETRAIN}, (1, 1, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', WAYS)
def test_every_split_has_the_same_losses(name):
  groups, split = WAYS[name]
  cfg = tiny()
  for group, fields in groups.items():
    if group == 'pretrain':
      cfg.pretrain = config.PretrainConfig(**fields)
      continue
    for field, value in fields.items():
      setattr(getattr(cfg, group), field, value)
  expected, _ = losses(cfg, (1, 1, 1))
  found, state = losses(cfg, split)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  if name == 'flashlite':
    check_shards(state, split)


def check_shards(state, split):
  """Parameters, their average and moments lie split as `split` says."""
  _, fsdp, model = split
  kernel, average = (
    tree['encoder']['blocks']['mlp']['fc1']['kernel']
    for tree in (state.params, state.average)
  )
  for x in (kernel, average):
    assert x.addressable_shards[0].data.size * fsdp * model == x.size
  moments = [
    x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape
  ]
  assert len(moments) == 2
  for x in moments:
    assert x.sharding.is_equivalent_to(kernel.sharding, x.ndim)
