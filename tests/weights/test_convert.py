"""Weights of other programs become ours, and ours theirs."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import torch_files
from foreign_models import (
  SIZE,
  autoencoder,
  classifier,
  fields,
  hugging_face,
  same,
  save_hugging_face,
  state_of,
)
from mira_jax import config
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.mira import MiraConfig
from mira_jax.weights import (
  convert,
  infer_model,
  sources,
  weights_file,
)

NAMES = ['angry', 'happy', 'sad']


def read(path, *, class_names=NAMES, allow_missing=(), **overrides):
  overrides = {'image_size': 8, 'class_names': class_names} | overrides
  return convert.read(
    path, infer_model.Overrides(allow_missing=allow_missing, **overrides)
  )


# ----- the authors' files -----


def test_a_classifier_of_the_authors(tmp_path):
  source = classifier(mira=dataclasses.asdict(MiraConfig()))
  path = torch_files.save(
    tmp_path / 'checkpoint-best.pth', {'model': state_of(source), 'epoch': 3}
  )
  got = read(path)
  same(got.variables, source)
  model = got.metadata['model']
  assert {n: model[n] for n in SIZE} == SIZE
  assert (model['frames'], model['tubelet']) == (4, 2)  # 2 slots of c_buf
  assert (model['num_classes'], model['mlp_ratio']) == (3, 1.0)
  assert (model['mira']['mode'], model['mira']['statistics']) == (
    'exact', 'instance'
  )  # fmt: skip
  assert any('--mode=flashlite' in note for note in got.notes)
  assert got.metadata['source'] == {
    'name': path.name,
    'kind': got.kind,
    'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
  }


def test_the_settings_of_the_run_have_the_mode(tmp_path):
  source = autoencoder(mira=dataclasses.asdict(MiraConfig()))
  settings = {'use_fmp_flashlite': True, 'fmp_use_residual': False}
  path = torch_files.save(
    tmp_path / 'checkpoint-199.pth',
    torch_files.checkpoint(state_of(source), **settings),
  )
  got = read(path, class_names=())
  same(got.variables, source)
  mira, decoder = got.metadata['model']['mira'], got.metadata['pretrain']
  assert mira['mode'] == 'flashlite'
  assert (mira['statistics'], mira['residual_mix']) == ('batch_ema', 1.0)
  assert (decoder['decoder_dim'], decoder['decoder_depth']) == (192, 2)
  assert (decoder['decoder_heads'], decoder['mask_ratio']) == (3, 0.9)
  assert not any('assumed' in r and 'mode' in r for r in got.notes)
  # As a file, it is what train.py can start from.
  out = convert.write(tmp_path / 'out.safetensors', got)
  assert weights_file.load_weights(out)[1]['pretrain']['mask'] == 'tube'


def test_shapes_show_the_model(tmp_path):
  path = tmp_path / 'a.pth'
  mira = dataclasses.asdict(MiraConfig())
  for changes in (
    {'mira': mira, 'mira_last_blocks': 1, 'depth': 2},
    {'variant': 'st_block', 'mira': None},
    {'pool': 'cls', 'positions': 'learned', 'mira': None},
    {'layer_scale': 0.1, 'mira': mira},
  ):
    source = classifier(**changes)
    torch_files.save(path, state_of(source))
    told = changes['mira'] or changes.get('positions')
    got = read(path, **({} if told else {'frames': 4}))
    same(got.variables, source)
    for name, value in changes.items():
      assert got.metadata['model'][name] == value


def test_every_size_of_the_authors_is_known_by_its_width():
  for name, size in infer_model.SIZES.items():
    kernel = np.broadcast_to(np.float32(0), (size['dim'], 3, 2, 16, 16))
    state = {
      'patch_embed.proj.weight': kernel,
      f'blocks.{size["depth"] - 1}.norm1.bias': kernel,
      'blocks.0.mlp.fc1.bias': np.broadcast_to(0, (4 * size['dim'],)),
    }
    source = sources.Source(path=pathlib.Path('x'), kind='', state=state)
    got = infer_model.metadata_of(source, infer_model.Overrides())[0]['model']
    assert {n: got[n] for n in size} == size, name
    assert (got['frames'], got['image_size'], got['mira']) == (16, 224, None)


def test_heads_that_nothing_shows_are_asked_for(tmp_path):
  path = tmp_path / 'a.pth'
  torch_files.save(path, state_of(classifier(dim=24, mira=None)))
  with pytest.raises(MiraInputError, match='--heads'):
    read(path)
  with pytest.raises(MiraInputError, match='5 heads do not divide'):
    read(path, heads=5)
  assert read(path, heads=2, frames=4).metadata['model']['heads'] == 2


def test_modes_may_be_chosen(tmp_path):
  path = tmp_path / 'a.pth'
  source = classifier(mira=dataclasses.asdict(MiraConfig()))
  torch_files.save(path, state_of(source))
  plain = read(path, mode='plain')
  assert plain.metadata['model']['mira'] is None
  assert plain.ignored == ['blocks.0.attn.c_buf']
  same(plain.variables['params'], source['params'])
  torch_files.save(path, state_of({'params': source['params']}))
  flashlite = read(path, mode='flashlite', frames=4)
  assert flashlite.metadata['model']['mira']['mode'] == 'flashlite'
  average = flashlite.variables['mira']['encoder']['block_0']['attn']
  np.testing.assert_array_equal(average['confidence'], [0.5, 0.5])
  assert len(flashlite.missing) == 1


# ----- there and back -----


@pytest.mark.parametrize(
  ('make', 'scan'), [(classifier, True), (autoencoder, False)]
)
def test_ours_to_torch_to_ours_is_bitwise(tmp_path, make, scan):
  mira = dataclasses.asdict(MiraConfig(mode='flashlite', temperature=0.3))
  source = make(mira=mira, depth=2, scan=scan)
  pretrain = None
  if make is autoencoder:
    decoder = {'decoder_dim': 192, 'decoder_depth': 2, 'decoder_heads': 3}
    pretrain = dataclasses.asdict(config.PretrainConfig(**decoder))
  card = {
    'model': fields(mira=mira, depth=2, scan=scan),
    'pretrain': pretrain,
    'class_names': NAMES,
    'preprocessing': {'rate': 2, 'fit': 'squash'},
  }
  ours = weights_file.save_weights(
    tmp_path / 'a.safetensors', source['params'], source['mira'], card
  )
  there = convert.write_torch(tmp_path / 'b.safetensors', read(ours))
  with safetensors.safe_open(there, framework='numpy') as file:
    assert file.metadata()['format'] == 'pt'
    names = set(file.keys())
  encoder = 'encoder.' * (make is autoencoder)
  assert f'{encoder}blocks.1.attn.qkv.weight' in names
  back = read(there, class_names=())
  same(back.variables, source)
  assert back.metadata | {'source': None} == card | {'source': None}


def test_a_model_that_the_authors_do_not_have(tmp_path):
  source = classifier(variant='factorised_encoder', mira=None)
  card = {'model': fields(mira=None), 'class_names': NAMES}
  got = convert.Converted(variables=source, metadata=card, kind='')
  with pytest.raises(MiraInputError, match='unsupported'):
    convert.write_torch(tmp_path / 'a.safetensors', got)
  assert not list(tmp_path.iterdir())


# ----- Hugging Face -----


def test_a_tensor_of_hugging_face_in_two_names_is_refused(tmp_path):
  state, _ = hugging_face('classification')
  first = 'videomae.encoder.layer.0.layernorm_before.weight'
  tensors = state | {first.removeprefix('videomae.'): state[first]}
  safetensors.numpy.save_file(tensors, tmp_path / 'model.safetensors')
  with pytest.raises(MiraInputError, match=r'unsupported.*the same tensor'):
    convert.read(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'image_size': 10**9}, 'its config.json: model.image_size: 1000000000'),
    ({'id2label': {str(i): 'ä\n' * 999 for i in range(3)}}, r'ä\nä\n'),
  ],
)
def test_an_error_says_which_file_is_wrong(tmp_path, changes, said):
  folder = save_hugging_face(tmp_path / 'hf', 'classification', **changes)
  with pytest.raises(MiraInputError) as caught:
    convert.read(folder, infer_model.Overrides())
  assert said in str(caught.value)
  assert '\n' not in caught.value.hint
  assert len(caught.value.hint) < 1000


# ----- the command -----


def run(capsys, *args):
  code = cli.main(['convert', *map(str, args)])
  out, err = capsys.readouterr()
  assert 'Traceback' not in err
  return code, out, err


def test_the_command_says_what_it_recognised(tmp_path, capsys):
  state = state_of(classifier(mira=dataclasses.asdict(MiraConfig())))
  path = torch_files.save(tmp_path / 'best.pth', {'model': state})
  out = tmp_path / 'ours.safetensors'
  code, text, _ = run(
    capsys, path, out, '--mode=flashlite', '--classes=angry,happy,sad',
    '--image-size=8', '--rate=2', '--fit=squash',
  )  # fmt: skip
  assert code == ExitCode.OK
  for part in ("key 'model'", 'width 192, 1 blocks, 3 heads', '2 x 2 x 2',
               'flashlite, instance', '3: angry, happy, sad',
               '20 tensors'):  # fmt: skip
    assert part in text, part
  card = weights_file.load_weights(out)[1]
  assert card['preprocessing'] == {'rate': 2, 'fit': 'squash'}
  back = tmp_path / 'theirs.safetensors'
  assert run(capsys, out, back, '--to=torch')[0] == ExitCode.OK
  assert safetensors.numpy.load_file(back).keys() == state.keys()
  for name, array in safetensors.numpy.load_file(back).items():
    assert array.tobytes() == state[name].tobytes()


def test_files_are_not_written_over_by_mistake(tmp_path, capsys):
  state = state_of(classifier(mira=None))
  path = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file(state, path)
  out = tmp_path / 'b.safetensors'
  assert run(capsys, path, path)[0] == ExitCode.USAGE
  assert run(capsys, path, tmp_path / 'b.pth')[0] == ExitCode.USAGE
  out.write_text('precious')
  code, _, err = run(capsys, path, out)
  assert (code, 'exists' in err) == (ExitCode.USAGE, True)
  assert out.read_text() == 'precious'
  code, _, err = run(capsys, path, tmp_path / 'c.safetensors', '--classes=a,b')
  assert (code, 'has 3 classes; 2 are named' in err) == (4, True)
  assert not (tmp_path / 'c.safetensors').exists()
