"""No setting of Hugging Face's files is ignored, and numbers are theirs."""

from __future__ import annotations

import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import foreign_models
import torch_files
from foreign_models import VIDEO, hugging_face, save_hugging_face
from mira_jax.augment import transforms
from mira_jax.augment.transforms import MEAN, STD
from mira_jax.errors import MiraInputError
from mira_jax.models.build import build_autoencoder, build_model
from mira_jax.weights import convert, huggingface, infer_model
from mira_jax.weights.huggingface_settings import (
  CONFIG,
  PROCESSOR,
  PROCESSORS,
  pixels,
)

# For each field that is used another value than the tiny model has.
# tests/parity/test_torch.py compares the table with the classes.
USED = {
  'model_type': 'bert', 'hidden_size': 24, 'num_hidden_layers': 3,
  'num_attention_heads': 2, 'intermediate_size': 36, 'hidden_act': 'relu',
  'layer_norm_eps': 1e-3, 'qv_bias': False, 'qkv_bias': False,
  'use_mean_pooling': False, 'image_size': 24, 'num_frames': 8,
  'patch_size': 16, 'tubelet_size': 4, 'decoder_hidden_size': 12,
  'decoder_num_hidden_layers': 2, 'decoder_num_attention_heads': 3,
  'decoder_intermediate_size': 36, 'norm_pix_loss': False,
  'id2label': {0: 'x', 1: 'y', 2: 'z'}, 'num_labels': 4,
}  # fmt: skip
# Fields of parts that a kind of model does not have.
DECODER = ('decoder_hidden', 'decoder_num_hidden', 'decoder_inter')
ELSEWHERE = {
  'classification': DECODER,
  'pretraining': ('id2label', 'num_labels', 'use_mean_pooling'),
  'vivit': (*DECODER, 'use_mean_pooling'),
}


def understood(kind, **changes):
  """Tensors, fields and notes of a tiny model with another config.json."""
  state, config = hugging_face(kind)
  return huggingface.understand(state, {'config.json': config | changes})


def same(a, b):
  return a[1] == b[1] and all(
    np.array_equal(x, b[0].get(n)) for n, x in a[0].items()
  )


@pytest.mark.parametrize('kind', ELSEWHERE)
def test_every_field_is_used_or_refused(kind):
  before = understood(kind)
  assert USED.keys() == CONFIG.used
  for field, value in USED.items():
    try:
      unused, refusal = same(before, understood(kind, **{field: value})), ''
    except ValueError as error:
      unused, refusal = False, str(error)
    assert unused == field.startswith(ELSEWHERE[kind]), field
    assert not refusal or re.search(rf'{field}( is .* supported|=)', refusal)
  for field in CONFIG.only:
    with pytest.raises(ValueError, match=f'{field} is .* supported'):
      understood(kind, **{field: 'odd'})
  for table in (CONFIG, PROCESSOR):
    names = [*table.used, *table.only, *table.without_effect]
    assert len(names) == len(set(names))


def test_a_field_that_is_not_known_is_reported():
  found = understood('classification', rotary='yes', dropout=3, use_cache=True)
  assert same(found, understood('classification'))
  assert any('left out: rotary, dropout' in n for n in found[2])
  # The file of a run of ours, or of any other program, lies there too.
  state, _ = hugging_face('classification')
  other = {'config.json': {'model': {'dim': 3}, 'seed': 1}}
  _, facts, notes = huggingface.understand(state, other)
  assert any("is not Hugging Face's" in n for n in notes)
  assert 'heads' not in facts


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('num_attention_heads', '3'),
    ('num_frames', 0),
    ('num_frames', 10**400),
    ('image_size', [16, 24]),
    ('layer_norm_eps', float('nan')),
    ('qv_bias', 'no'),
    ('hidden_act', ['gelu']),
    ('id2label', {'0': 'a', '2': 'b'}),
    ('id2label', ['a', 'b']),
  ],
)
def test_values_that_cannot_be_are_named(field, value):
  with pytest.raises(ValueError, match=rf'config.json: {field} is '):
    understood('classification', **{field: value})


# ----- what is done to pixels -----


def processed(values):
  return pixels({PROCESSORS[-1]: values}, vivit=False)


AFFINE = [
  ({'rescale_factor': 1 / 200, 'image_mean': 0.1,
    'image_std': [0.3, 0.4, 0.9]}, (1 / 200, 0), 0.1, [0.3, 0.4, 0.9]),
  ({'do_rescale': False, 'image_mean': [9, 8, 7], 'image_std': [3, 4, 5]},
   (1, 0), [9, 8, 7], [3, 4, 5]),
  ({'do_normalize': False, 'offset': True}, (1 / 255, -1), 0, 1),
  ({'image_processor_type': 'VivitImageProcessor', 'do_normalize': False},
   (1 / 127.5, -1), 0, 1),
]  # fmt: skip


@pytest.mark.parametrize(('values', 'rescaled', 'mean', 'std'), AFFINE)
def test_the_first_layer_sees_the_pixels_that_it_was_trained_with(
  values, rescaled, mean, std
):
  kind = 'pretraining' if 'offset' in values else 'classification'
  state, config = hugging_face(kind)
  values = {'image_processor_type': 'VideoMAEImageProcessor', **values}
  files = {'config.json': config, 'preprocessor_config.json': values}
  renamed, _, notes = huggingface.understand(state, files)
  theirs = (VIDEO * rescaled[0] + rescaled[1] - mean) / std
  ours = (VIDEO / 255 - MEAN) / STD
  first = state[next(n for n in state if n.endswith('projection.weight'))]
  bias = state[next(n for n in state if n.endswith('projection.bias'))]
  own = 'encoder.' * (kind == 'pretraining') + 'patch_embed.proj.'
  # The tokens in the first corner of the clips.
  expected, got = (
    np.einsum('btyxc,dctyx->bd', video[:, :2, :8, :8], kernel) + shift
    for video, kernel, shift in (
      (theirs, first, bias),
      (ours, renamed[f'{own}weight'], renamed[f'{own}bias']),
    )
  )
  np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
  assert any('first layer is rewritten' in n for n in notes)


def test_pixels_that_are_ours_leave_the_tensors_as_they_are():
  values = {'image_mean': list(MEAN), 'image_std': list(STD)}
  state, config = hugging_face('classification')
  for files in ({}, {'preprocessor_config.json': values}):
    files = files | {'config.json': config}
    renamed = huggingface.understand(state, files)[0]
    weight = state['videomae.embeddings.patch_embeddings.projection.weight']
    assert renamed['patch_embed.proj.weight'] is weight


def test_targets_of_other_pixels_are_refused():
  state, config = hugging_face('pretraining')
  files = {
    'config.json': config | {'norm_pix_loss': False},
    'preprocessor_config.json': {'image_mean': 0.5, 'image_std': 0.5},
  }
  with pytest.raises(ValueError, match='norm_pix_loss'):
    huggingface.understand(state, files)


@pytest.mark.parametrize(
  ('size', 'fit'), [(224, 'crop'), ({'height': 224, 'width': 224}, 'squash')]
)
def test_how_frames_become_square(size, fit):
  values = {'size': size, 'resample': 3, 'size_divisor': 2}
  _, found, notes = processed(values)
  assert found == fit
  assert 'unknown settings are left out: size_divisor' in notes[0]
  assert f'{size}, resample 3; here with --fit={fit}' in notes[1]


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('image_mean', [0.5, 0.5]),
    ('image_std', [0.5, 0, 0.5]),
    ('rescale_factor', 0),
    ('do_rescale', 'yes'),
    ('size', {'longest_edge': 3}),
    ('size', {'height': 224, 'width': 448}),
    ('do_flip_channel_order', True),
    ('image_processor_type', 'CLIPImageProcessor'),
  ],
)
def test_a_processor_that_ours_cannot_follow_is_named(name, value):
  with pytest.raises(ValueError, match=f'preprocessor_config.json: {name} is'):
    processed({name: value})


def test_which_of_the_processors_counts():
  half, tenth = ({'image_mean': x, 'image_std': x} for x in (0.5, 0.1))
  first, second, third = PROCESSORS
  for files, std in (
    ({third: half}, 0.5),
    ({first: {'video_processor': half}, second: tenth}, 0.5),
    ({first: {'processor_class': 'X'}, second: tenth}, 0.1),
  ):
    (scale, _), *_ = pixels(files, vivit=False)
    np.testing.assert_allclose(scale, 1 / std)


# ----- what is computed -----
# The numbers are what transformers 5.24 computed, in float64.

LOGITS = {
  'classification': [
    [-0.38945617874757715, -0.26253359128946563, 0.21840355592237196],
    [-0.35095509323948537, -0.1944291655010909, 0.2823458959716747],
  ],
  'vivit': [
    [0.04120389350983206, -0.844484587371606, 0.29049793791591294],
    [-0.01201612128161017, -0.8138882958845461, 0.3272093077683304],
  ],
}


# The modules' own names of newer versions, which torch.save writes.
NEWEST = {
  'encoder.layer.': 'layers.',
  'attention.attention.query': 'attention.q_proj',
  'attention.attention.key': 'attention.k_proj',
  'attention.attention.value': 'attention.v_proj',
  'attention.output.dense': 'attention.o_proj',
  'intermediate.dense': 'mlp.fc1',
  'output.dense': 'mlp.fc2',
  'attention.attention.q_bias': 'attention.q_proj.bias',
  'attention.attention.v_bias': 'attention.v_proj.bias',
}


def wider(state):
  """With a hidden channel more, whose output nothing reads."""
  for name in list(state):
    if 'intermediate' in name:
      state[name] = np.concatenate([state[name], state[name][:1]])
    elif name.endswith('output.dense.weight') and state[name].shape[1] == 24:
      state[name] = np.pad(state[name], [(0, 0), (0, 1)])
  return state


@pytest.mark.parametrize('kind', LOGITS)
def test_classifiers_compute_the_same_with_every_setting(tmp_path, kind):
  state, config = hugging_face(kind)
  config = config | {'layer_norm_eps': 0.3, 'image_size': [16, 16],
             'intermediate_size': 25}  # fmt: skip
  (tmp_path / 'config.json').write_text(json.dumps(config))
  state = wider(state)
  if kind == 'classification':  # the others have names as they are saved
    for old, new in NEWEST.items():
      state = {n.replace(old, new): x for n, x in state.items()}
  torch_files.save(tmp_path / 'pytorch_model.bin', state)
  got = convert.read(tmp_path, infer_model.Overrides())
  model = got.metadata['model']
  assert (model['norm_eps'], model['image_size']) == (0.3, 16)
  assert model['last_norm_eps'] == (1e-5 if kind == 'classification' else None)
  video = transforms.prepare(jnp.asarray(VIDEO, jnp.uint8))
  logits = jax.jit(build_model(model).apply)(got.variables, video)
  np.testing.assert_allclose(logits, LOGITS[kind], atol=3e-6)


def test_a_pretraining_computes_the_same_with_every_setting(tmp_path):
  save_hugging_face(
    tmp_path / 'hf', 'pretraining', layer_norm_eps=0.3, norm_pix_loss=False
  )
  got = convert.read(tmp_path / 'hf', infer_model.Overrides())
  pretrain = got.metadata['pretrain']
  assert pretrain['normalise_targets'] is False
  decoder = {n: x for n, x in pretrain.items() if n.startswith('decoder_')}
  model = build_autoencoder(got.metadata['model'], decoder)
  mask = np.array([[0, 1, 1, 0] * 2] * 2, bool)
  video = transforms.prepare(jnp.asarray(VIDEO, jnp.uint8))
  run = jax.jit(functools.partial(model.apply, num_masked=4))
  found = run(got.variables, video, mask)[1, 2, :4]
  expected = [0.13467822267657953, -0.5042373181720076,
              -0.43186158199380364, 1.3067575397072129]  # fmt: skip
  np.testing.assert_allclose(found, expected, atol=5e-6)


# ----- folders of Hugging Face -----


def refused(path, words):
  with pytest.raises(MiraInputError, match=words):
    convert.read(path)


def parts(folder, kind='safetensors', **changes):
  """A model in two parts, and the names of its index and of its parts."""
  stem = 'model' if kind == 'safetensors' else 'pytorch_model'
  state, _ = hugging_face('classification')
  names = sorted(state)
  files = [f'{stem}-0000{i}-of-00002.{kind}' for i in (1, 2)]
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(foreign_models.VIDEOMAE))
  places = {}
  for file, some in zip(files, (names[:9], names[9:]), strict=True):
    tensors = {n: state[n] for n in some}
    places |= dict.fromkeys(some, file)
    if kind == 'safetensors':
      safetensors.numpy.save_file(tensors, folder / file)
    else:
      torch_files.save(folder / file, tensors)
  index = folder / f'{stem}.{kind}.index.json'
  index.write_text(json.dumps({'weight_map': places | changes}))
  return index, files


@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
def test_parts_are_one_model(tmp_path, kind):
  expected = convert.read(
    save_hugging_face(tmp_path / 'whole', 'classification')
  )
  index, files = parts(tmp_path / 'hf', kind)
  for path in (tmp_path / 'hf', index):
    got = convert.read(path)
    foreign_models.same(got.variables, expected.variables)
    assert got.metadata['model'] == expected.metadata['model']
  refused(tmp_path / 'hf' / files[0], 'split_weights.*name the folder')
  (tmp_path / 'hf' / files[1]).unlink()
  refused(tmp_path / 'hf', f'damaged.*{files[1]}')
  shutil.copy(tmp_path / 'hf' / files[0], tmp_path / 'hf' / files[1])
  refused(tmp_path / 'hf', 'damaged.*lack')


@pytest.mark.parametrize('place', ['../secret', '..', '\0', None])
def test_parts_are_within_their_folder(tmp_path, place):
  parts(tmp_path / 'hf', **{'fc_norm.bias': place})
  torch_files.save(tmp_path / 'secret', {'fc_norm.bias': np.zeros(12)})
  refused(tmp_path / 'hf', 'damaged')


def test_side_files_that_are_damaged(tmp_path):
  index, _ = parts(tmp_path / 'hf')
  for file in (index, index.with_name('config.json')):
    whole = file.read_text()
    for text in ('[]', '{', '{"a":' * 200_000):
      file.write_text(text)
      refused(tmp_path / 'hf', f'damaged.*{file.name}')
    file.write_text(whole)


def test_the_cache_of_the_hub_is_full_of_links(tmp_path):
  parts(tmp_path / 'files')
  root = tmp_path / 'models--a--b'
  snapshot = root / 'snapshots' / 'c0ffee'
  snapshot.mkdir(parents=True)
  (root / 'refs').mkdir()
  (root / 'refs' / 'main').write_text('c0ffee')
  for file in (tmp_path / 'files').iterdir():
    (snapshot / file.name).symlink_to(file)
  expected, got = convert.read(tmp_path / 'files'), convert.read(root)
  foreign_models.same(got.variables, expected.variables)
  assert got.metadata['model'] == expected.metadata['model']
