"""What training programs put around a model, and how files of it are split."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import torch_files
from foreign_models import (
  autoencoder,
  classifier,
  same,
  state_of,
)
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import load
from mira_jax.mira import MiraConfig
from mira_jax.models import build
from mira_jax.video import images
from mira_jax.weights import convert, infer_model, sources

OVERRIDES = infer_model.Overrides(image_size=8)
MIRA = dataclasses.asdict(MiraConfig())
SAMPLES = pathlib.Path(os.environ.get('MIRA_SAMPLES', 'samples'), 'checkpoints')
needs_samples = pytest.mark.skipif(
  not SAMPLES.is_dir(), reason='MIRA_SAMPLES names no checkpoints'
)


def under(prefix, state):
  return {f'{prefix}{name}': x for name, x in state.items()}


def read(path, **overrides):
  return convert.read(path, dataclasses.replace(OVERRIDES, **overrides))


def refused(path, code, *words, **overrides):
  with pytest.raises(MiraInputError) as caught:
    read(path, **overrides)
  assert caught.value.code == code, caught.value
  for word in words:
    assert word in str(caught.value), (word, str(caught.value))
  assert '\n' not in str(caught.value)


@pytest.fixture(scope='module')
def source():
  return classifier(mira=MIRA)


@pytest.fixture(scope='module')
def state(source):
  return state_of(source)


# ----- keys and prefixes -----


def test_a_model_is_found_under_any_key(tmp_path, source, state):
  # An optimiser has tensors, too, and more of them.
  moments = {i: {'exp_avg': np.zeros(3)} for i in range(99)}
  tree = {'optimizer': {'state': moments}, 'best': 0.5}
  tree['checkpoint'] = {'trainer': [{'params': state}]}
  got = read(torch_files.save(tmp_path / 'a.ckpt', tree))
  same(got.variables, source)
  assert 'checkpoint.trainer.0.params' in got.kind


def test_prefixes_are_stripped_until_names_fit(tmp_path, source, state):
  safetensors.numpy.save_file(
    under('module._orig_mod.', state), tmp_path / 'a.safetensors'
  )
  tree = {'state_dict': under('net.encoder.', state)}
  torch_files.save(tmp_path / 'a.pth', tree)
  for name in ('a.safetensors', 'a.pth'):
    got = read(tmp_path / name)
    same(got.variables, source)
    assert got.ignored == []


def test_the_encoder_of_a_pretraining_stays_beside_its_decoder(tmp_path):
  source = autoencoder(mira=MIRA)
  tree = {'model': under('model.module.', state_of(source))}
  same(read(torch_files.save(tmp_path / 'a.pth', tree)).variables, source)


def test_wrappers_within_names_are_none_of_them(tmp_path, source, state):
  inner = {
    n.replace('blocks.0.', 'blocks.0._checkpoint_wrapped_module.'): x
    for n, x in under('_fsdp_wrapped_module.', state).items()
  }
  # A head beside its backbone is its head.
  beside = under('backbone.', state)
  for name in ('head.weight', 'head.bias'):
    beside[name] = beside.pop(f'backbone.{name}')
  for tensors in (inner, beside):
    path = torch_files.save(tmp_path / 'a.pth', {'model': tensors})
    same(read(path).variables, source)


# ----- several models, and what is beside one -----


def plus_one(state):
  return {n: x + 1 for n, x in state.items()}


def test_the_model_is_taken_and_its_average_when_asked_for(
  tmp_path, source, state
):
  average = under('module.', plus_one(state))
  # It comes first and is larger.
  average['module.blocks.0.gamma_1'] = np.ones(8, np.float32)
  path = torch_files.save(
    tmp_path / 'a.pth', {'model_ema': average, 'model': state}
  )
  got = read(path)
  same(got.variables, source)
  assert "key 'model'" in got.kind
  note = next(r for r in got.notes if '--key' in r)
  assert 'model, model_ema' in note
  del average['module.blocks.0.gamma_1']
  torch_files.save(path, {'model_ema': average, 'model': state})
  got = read(path, key='model_ema')
  np.testing.assert_array_equal(
    got.variables['params']['head']['bias'],
    source['params']['head']['bias'] + 1,
  )
  assert not any('--key' in r for r in got.notes)
  refused(path, 'bad_key', 'model, model_ema', key='ema')


def test_models_that_no_name_tells_apart_must_be_chosen(
  tmp_path, source, state
):
  other = plus_one(state)
  path = torch_files.save(tmp_path / 'a.pth', {'rgb': other, 'flow': state})
  refused(path, 'several_weights', 'rgb, flow; choose one with --key')
  same(read(path, key='flow').variables, source)
  torch_files.save(path, {'best_model': other, 'model': state})
  same(read(path).variables, source)


def test_two_models_of_one_state_dict(tmp_path, source, state):
  both = under('teacher.', plus_one(state)) | under('student.', state)
  path = torch_files.save(tmp_path / 'a.pth', {'state_dict': both})
  same(read(path).variables, source)
  got = read(path, key='state_dict.teacher')
  np.testing.assert_array_equal(
    got.variables['params']['norm']['bias'],
    source['params']['norm']['bias'] + 1,
  )


def test_what_is_no_part_of_the_model_is_left_out(tmp_path, source, state):
  extra = np.ones(7, np.float32)
  path = torch_files.save(
    tmp_path / 'a.pth',
    {'model': state | {'criterion.weight': extra, 'aux_head.0.bias': extra}},
  )
  got = read(path)
  same(got.variables, source)
  assert any('criterion.weight' in r and 'aux_head' in r for r in got.notes)
  for name in ('blocks.0.attn.bias_table', 'reg_token'):
    torch_files.save(path, {'model': state | {name: extra}})
    refused(path, 'weights_mismatch', f'extra: {name}')


def test_a_backbone_without_a_classifier(tmp_path, source, state):
  lost = ('head.', 'fc_norm.')
  tensors = under(
    'backbone.', {n: x for n, x in state.items() if not n.startswith(lost)}
  )
  tensors['cls_head.fc_cls.weight'] = np.ones((3, 192), np.float32)
  path = torch_files.save(tmp_path / 'a.pth', {'state_dict': tensors})
  got = read(path)
  assert got.metadata['class_names'] == []
  same(got.variables['params']['encoder'], source['params']['encoder'])
  assert any('cls_head' in r for r in got.notes)
  assert any('params/norm' in r for r in got.notes)
  with pytest.raises(MiraInputError, match=r'no_classifier.*without a head'):
    load.make_engine(got, path)
  scorer, card, told = load.load_backbone(path, overrides=OVERRIDES)
  assert scorer.model.num_classes == 0
  assert len(told.fresh) == 2
  assert card['preprocessing'] == {'rate': 4, 'fit': 'crop'}


def test_files_without_a_model_say_what_they_have(tmp_path):
  path = tmp_path / 'a.pth'
  torch_files.save(path, {'model': {'conv1.weight': np.zeros(3)}, 'epoch': 3})
  refused(path, 'other_model', 'conv1.weight', 'keys are model, epoch')
  torch_files.save(path, {'model_name': 'x', 'epoch\x1b[2J': 3})
  refused(path, 'other_model', r'keys are model_name, epoch\x1b[2J')
  whole = torch_files.Call(torch_files.Global('models.Net'))
  torch_files.save(path, {'net': whole})
  refused(path, 'other_model', 'models.Net', 'state_dict()')
  for reader in (load.load_engine, load.load_backbone, sources.read):
    with pytest.raises(MiraInputError, match='other_model'):
      reader(path)


def test_a_flag_that_contradicts_a_card_is_no_silent_wish(tmp_path, source):
  path = torch_files.save(tmp_path / 'a.pth', state_of(source))
  ours = convert.write(tmp_path / 'a.safetensors', read(path))
  assert read(ours, heads=3).kind == 'weights of ours'
  for overrides in ({'heads': 4}, {'mode': 'plain'}, {'class_names': ('a',)}):
    refused(ours, 'bad_flag', 'its metadata has', **overrides)
  refused(ours, 'bad_flag', key='model')


# ----- folders of DeepSpeed -----


def deepspeed(folder, state, **more):
  folder.mkdir(parents=True)
  tree = {'module': state, 'ds_version': '0.16.6', 'optimizer': None, **more}
  return torch_files.save(folder / 'mp_rank_00_model_states.pt', tree)


def test_folders_of_deepspeed_are_followed(tmp_path, source, state):
  deepspeed(tmp_path / 'run' / 'global_step10', state)
  same(read(tmp_path / 'run').variables, source)  # the only one
  deepspeed(tmp_path / 'run' / 'global_step20', under('module.', state))
  refused(tmp_path / 'run', 'several_weights', 'global_step10, global_step20')
  (tmp_path / 'run' / 'latest').write_text('global_step20\n')
  got = read(tmp_path / 'run')
  same(got.variables, source)
  assert got.kind == "DeepSpeed file, key 'module'"
  for text in ('../run/global_step10', '..', '', 'x' * 9999):
    (tmp_path / 'run' / 'latest').write_text(text)
    refused(tmp_path / 'run', 'several_weights')


def test_what_zero_has_split_says_how_to_join_it(tmp_path, state):
  empty = {n: np.zeros((0,), np.float16) for n in state}
  path = deepspeed(tmp_path / 'one', empty)
  refused(path, 'split_weights', 'zero_to_fp32.py')
  shards = tmp_path / 'three'
  shards.mkdir()
  for kind in ('model', 'optim'):
    shard = shards / f'zero_pp_rank_0_mp_rank_00_{kind}_states.pt'
    torch_files.save(shard, {'module': empty})
    refused(shard, 'split_weights', 'zero_to_fp32.py')
  refused(shards, 'split_weights', 'zero_to_fp32.py')
  path = deepspeed(tmp_path / 'two', state)
  (path.parent / 'mp_rank_01_model_states.pt').touch()
  refused(path.parent, 'split_weights', 'several files')


def test_other_folders(tmp_path, source, state):
  refused(tmp_path / 'absent.pth', 'not_found', 'no such file or folder')
  refused(tmp_path, 'not_found', 'no weights lie in this folder')
  torch_files.save(tmp_path / 'checkpoint-7.pth', {'model': state})
  (tmp_path / 'optimizer.pt').touch()
  (tmp_path / 'log.txt').touch()
  same(read(tmp_path).variables, source)
  torch_files.save(tmp_path / 'checkpoint-9.pth', {'model': state})
  refused(tmp_path, 'several_weights', 'checkpoint-7.pth, checkpoint-9.pth')
  dcp = tmp_path / 'dcp'
  dcp.mkdir()
  (dcp / '__0_0.distcp').touch()
  refused(dcp, 'split_weights', 'dcp_to_torch')


# ----- the commands, and starting from them -----


@pytest.fixture
def clip(tmp_path):
  folder = tmp_path / 'clip'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(8):
    frame = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    (folder / f'{i}.jpg').write_bytes(images.encode_jpeg(frame))
  return folder


def test_predict_reads_what_convert_reads(tmp_path, capsys, clip, state):
  path = torch_files.save(
    tmp_path / 'a.ckpt', {'state_dict': under('model.', state)}
  )
  predict = ['predict', str(clip), '--no-picture', '--json', '--views=1']
  flags = ['--image-size=8', '--mode=exact', '--rate=1']
  assert cli.main([*predict, '--weights', str(path), *flags]) == ExitCode.OK
  shown, notes = capsys.readouterr()
  (direct,) = json.loads(shown)
  assert sorted(direct['classes']) == ['0', '1', '2']
  assert notes.count('only numbered') == 1
  ours = tmp_path / 'ours.safetensors'
  assert cli.main(['convert', str(path), str(ours), *flags]) == ExitCode.OK
  capsys.readouterr()
  assert cli.main([*predict, '--weights', str(ours)]) == ExitCode.OK
  assert json.loads(capsys.readouterr()[0]) == [direct]
  assert cli.main([*predict, '--weights', str(tmp_path / 'x')]) == 4
  assert 'not_found' in capsys.readouterr().err


def test_a_patch_above_the_usual_size_is_no_crash(state):
  kernel = np.broadcast_to(np.float32(0), (192, 3, 2, 256, 256))
  tensors = {n: x for n, x in state.items() if 'c_buf' not in n}
  tensors |= {'patch_embed.proj.weight': kernel}
  tensors |= {'pos_embed': np.zeros((1, 8, 192), np.float32)}
  whole = sources.Source(path=pathlib.Path('x'), kind='', state=tensors)
  with pytest.raises(MiraInputError, match='must be a multiple of 256'):
    infer_model.metadata_of(whole, infer_model.Overrides())
  assert infer_model.grid_of(whole) is None


# ----- checkpoints as the reference implementation writes them -----


@needs_samples
@pytest.mark.parametrize('kind', ['finetune', 'pretrain'])
def test_checkpoints_of_the_reference_implementation(kind):
  overrides = infer_model.Overrides(heads=3, decoder_heads=3, image_size=32)
  got = convert.read(SAMPLES / kind, overrides)
  expected = np.load(SAMPLES / f'{kind}_expected.npz')
  video = jnp.asarray(expected['video_bcthw'].transpose(0, 2, 3, 4, 1))
  if kind == 'finetune':
    model = build.build_model(got.metadata['model'])
    result = jax.jit(model.apply)(got.variables, video)
    wanted = expected['logits']
  else:
    own = {n: x for n, x in got.metadata['pretrain'].items() if 'decoder' in n}
    model = build.build_autoencoder(got.metadata['model'], own)
    mask = expected['mask'].astype(bool)
    hidden = int(mask[0].sum())
    run = jax.jit(functools.partial(model.apply, num_masked=hidden))
    result, wanted = run(got.variables, video, mask), expected['pred']
  np.testing.assert_allclose(result, wanted, atol=1e-5)


@needs_samples
def test_a_checkpoint_of_deepspeed():
  got = convert.read(
    SAMPLES / 'deepspeed', infer_model.Overrides(heads=3, image_size=32)
  )
  assert got.kind == "DeepSpeed file, key 'module'"
  assert got.metadata['class_names'] == ['0', '1', '2']
