"""No setting of another program's file is ignored."""

from __future__ import annotations

import argparse
import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import torch_files
from foreign_models import VIDEO, hugging_face, save_hugging_face
from mira_jax.augment import transforms
from mira_jax.augment.transforms import MEAN, STD
from mira_jax.errors import MiraInputError
from mira_jax.models.build import build_autoencoder, build_model
from mira_jax.models.layers import mlp_width
from mira_jax.weights import (
  convert,
  huggingface,
  infer_model,
  settings,
  sources,
)
from mira_jax.weights.huggingface_config import CONFIG
from mira_jax.weights.huggingface_pixels import PROCESSOR, PROCESSORS, pixels

# The fields of the classes, and for each that is used another value than the
# tiny model has. tests/test_torch.py compares the names with the classes.
VIDEOMAE = {
  'image_size': 24,
  'patch_size': 16,
  'num_channels': 1,
  'num_frames': 8,
  'tubelet_size': 4,
  'hidden_size': 24,
  'num_hidden_layers': 3,
  'num_attention_heads': 2,
  'intermediate_size': 36,
  'hidden_act': 'relu',
  'hidden_dropout_prob': 0.5,
  'attention_probs_dropout_prob': 0.5,
  'initializer_range': 0.5,
  'layer_norm_eps': 1e-3,
  'qv_bias': False,
  'qkv_bias': False,
  'use_mean_pooling': False,
  'decoder_num_attention_heads': 3,
  'decoder_hidden_size': 12,
  'decoder_num_hidden_layers': 2,
  'decoder_intermediate_size': 36,
  'norm_pix_loss': False,
}
VIVIT = {
  name: value
  for name, value in VIDEOMAE.items()
  if not name.startswith(('decoder_', 'patch', 'qv_', 'norm_', 'use_'))
} | {'tubelet_size': [2, 8, 4], 'pooler_output_size': 5, 'pooler_act': 'relu'}
EVERY = {
  'transformers_version': '3',
  'architectures': ['X'],
  'output_hidden_states': True,
  'return_dict': False,
  'dtype': 'float16',
  'torch_dtype': 'float16',
  'chunk_size_feed_forward': 2,
  'is_encoder_decoder': True,
  'id2label': {0: 'x', 1: 'y', 2: 'z'},
  'label2id': {'x': 2},
  'num_labels': 4,
  'problem_type': 'multi_label_classification',
  'model_type': 'bert',
  'head_dim': 5,
  'pruned_heads': {'0': [1]},
  'quantization_config': {'bits': 4},
  'auto_map': {'AutoModel': 'x.py'},
}


def understood(kind, **changes):
  """Tensors, fields and notes of a tiny model with another config.json."""
  state, config = hugging_face(kind)
  return huggingface.understand(state, {'config.json': config | changes})


def same(a, b):
  return a[1] == b[1] and all(
    np.array_equal(x, b[0].get(n)) for n, x in a[0].items()
  )


FIELDS = {
  'classification': VIDEOMAE | EVERY,
  'pretraining': VIDEOMAE | EVERY,
  'vivit': VIVIT | EVERY,
}
# Fields of parts that a kind of model does not have.
ELSEWHERE = {
  'classification': ('decoder_',),
  'pretraining': ('id2label', 'num_labels', 'use_mean_pooling'),
  'vivit': ('decoder_', 'norm_pix_loss'),
}


@pytest.mark.parametrize('kind', FIELDS)
def test_every_field_is_used_or_refused_or_has_no_effect(kind):
  before = understood(kind)
  for field, value in FIELDS[kind].items():
    ways = [field in CONFIG.used, field in CONFIG.only]
    assert sum([*ways, field in CONFIG.without_effect]) == 1
    try:
      after, refusal = understood(kind, **{field: value}), ''
    except ValueError as error:
      after, refusal = None, str(error)
    if after is None:
      assert any(ways)
      assert re.search(rf'{field}( is .* supported|=)', refusal)
      continue
    absent = field.startswith(ELSEWHERE[kind])
    unused = not ways[0] or (absent and field != 'decoder_num_attention_heads')
    assert not ways[1]
    assert same(before, after) == unused, field


def test_a_field_that_is_not_known_is_reported():
  found = understood('classification', rotary='yes', dropout=3)
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
    ('num_attention_heads', True),
    ('num_frames', 0),
    ('num_frames', 10**400),
    ('image_size', [16, 24]),
    ('image_size', [16]),
    ('image_size', 2.5),
    ('layer_norm_eps', 'small'),
    ('layer_norm_eps', float('nan')),
    ('layer_norm_eps', -1),
    ('qv_bias', 'no'),
    ('tubelet_size', [2]),
    ('hidden_act', ['gelu']),
    ('id2label', {'0': 'a', '2': 'b'}),
    ('id2label', ['a', 'b']),
    ('id2label', {'x': 'a'}),
  ],
)
def test_values_that_cannot_be_are_named(field, value):
  with pytest.raises(ValueError, match=rf'config.json: {field} is '):
    understood('classification', **{field: value})


def test_lengths_come_as_numbers_and_as_pairs():
  pairs = {'image_size': (16, 16), 'patch_size': [8, 8]}
  plain = understood('classification')
  assert same(plain, understood('classification', **pairs))


# ----- what is done to pixels -----


def processed(values):
  return pixels({PROCESSORS[-1]: values}, vivit=False)


AFFINE = [
  ({'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}, (1 / 255, 0), 0.5, 0.5),
  ({'image_mean': 0.1, 'image_std': 2}, (1 / 255, 0), 0.1, 2),
  ({'rescale_factor': 1 / 200, 'image_mean': [0.1, 0.2, 0.3],
    'image_std': [0.3, 0.4, 0.9]}, (1 / 200, 0), [0.1, 0.2, 0.3],
   [0.3, 0.4, 0.9]),
  ({'do_rescale': False, 'image_mean': [9, 8, 7], 'image_std': [3, 4, 5]},
   (1, 0), [9, 8, 7], [3, 4, 5]),
  ({'do_normalize': False, 'image_mean': [9, 8, 7]}, (1 / 255, 0), 0, 1),
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


def test_how_frames_become_square():
  square = {'height': 224, 'width': 224}
  for size, fit in (
    ({'shortest_edge': 224}, 'crop'),
    (224, 'crop'),  # as in files of older versions
    (square, 'squash'),
  ):
    values = {'size': size, 'resample': 3, 'size_divisor': 2}
    _, found, notes = processed(values)
    assert found == fit
    assert 'unknown settings are left out: size_divisor' in notes[0]
    assert f'{size}, resample 3; here with --fit={fit}' in notes[1]


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('image_mean', [0.5, 0.5]),
    ('image_mean', 'half'),
    ('image_std', [0.5, 0, 0.5]),
    ('image_std', [1, float('nan'), 1]),
    ('rescale_factor', 0),
    ('do_rescale', 'yes'),
    ('size', {'longest_edge': 3}),
    ('size', 'large'),
    ('size', {'height': 224, 'width': 448}),
    ('crop_size', [224]),
    ('resample', 9),
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
    ({second: tenth, third: half}, 0.1),
    ({first: {'video_processor': half}, second: tenth}, 0.5),
    ({first: {'processor_class': 'X'}, second: tenth}, 0.1),
  ):
    found, *_ = pixels(files, vivit=False)
    np.testing.assert_allclose(found.scale, 1 / std)
  names = [*PROCESSOR.used, *PROCESSOR.only, *PROCESSOR.without_effect]
  assert len(names) == len(set(names))


# ----- what the authors' runs save -----

ARGS = {
  'add_fmp_attention': False,
  'fmp_num_last_layers': 2,
  'use_fmp_flashlite': False,
  'stats_mode': 'batch',
  'fmp_no_use_ema': True,
  'fmp_use_residual': False,
  'flash_tau': 0.3,
  'add_intra_attention': True,
  'num_frames': 8,
  'input_size': 112,
  'window_size': (8, 7, 7),
  'patch_size': (32, 32),
  'tubelet_size': 4,
  'mask_type': 'random',
  'mask_ratio': 0.5,
  'normlize_target': False,
  'no_normlize_target': True,
  'sampling_rate': 2,
  'data_set': 'DFEW_crop',
}
USUAL = {'add_fmp_attention': True, 'use_fmp_flashlite': True,
         'stats_mode': 'batch_ema', 'patch_size': (16, 16),
         'window_size': (8, 14, 14)}  # fmt: skip


def test_every_setting_of_a_run_is_used_or_refused_or_has_no_meaning():
  table = settings.REFERENCE
  names = [*table.used, *table.only, *table.without_effect]
  assert len(names) == len(set(names))
  assert ARGS.keys() == table.used
  before, remarks = settings.of_reference(USUAL)
  assert not remarks
  for name, value in ARGS.items():
    found, remarks = settings.of_reference(USUAL | {name: value})
    assert not remarks
    # How long a tubelet is, its tensor says.
    assert (found == before) == (name == 'tubelet_size'), name
  for name, allowed in table.only.items():
    with pytest.raises(ValueError, match=f'{name} is'):
      settings.of_reference({name: not allowed[0]})
  for name in table.without_effect:
    assert settings.of_reference(USUAL | {name: object()}) == (before, [])
  _, remarks = settings.of_reference({'new_trick': 3})
  assert 'left out: new_trick' in remarks[0]


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('stats_mode', 'median'),
    ('flash_tau', 'hot'),
    ('fmp_use_residual', 1),
    ('num_frames', 2.5),
    ('input_size', (224, 112)),
    ('window_size', (8, 14, 7)),
    ('mask_ratio', 1.5),
    ('mask_type', 'frames'),
    ('flash_tau', object()),
  ],
)
def test_a_setting_of_a_run_that_cannot_be_is_named(name, value):
  with pytest.raises(ValueError, match=f'{name} is .* supported'):
    settings.of_reference(USUAL | {name: value})


def shapes(pretraining=False, **args):
  """A source with empty tensors, as far as they are used."""
  encoder = 'encoder.' * pretraining
  found = {
    f'{encoder}patch_embed.proj.weight': (192, 3, 2, 16, 16),
    f'{encoder}blocks.1.mlp.fc1.bias': (768,),
    f'{encoder}blocks.0.mlp.fc1.bias': (768,),
  }
  if pretraining:
    found |= {'mask_token': (1, 1, 192), 'decoder.blocks.0.mlp.fc1.bias': (50,)}
  state = {n: np.broadcast_to(np.float32(0), x) for n, x in found.items()}
  facts = settings.of_reference(args)[0]
  path = pathlib.Path('x')
  return sources.Source(path=path, kind='', state=state, fields=facts)


def inferred(source, **overrides):
  return infer_model.metadata_of(source, infer_model.Overrides(**overrides))[0]


def test_what_a_run_saved_is_in_its_model():
  args = USUAL | {'fmp_num_last_layers': 1, 'flash_tau': 0.3,
                  'fmp_no_use_ema': True, 'fmp_use_residual': False,
                  'input_size': 64}  # fmt: skip
  fields = inferred(shapes(**args))['model']
  mira = fields['mira']
  assert fields['mira_last_blocks'] == 1
  assert fields['image_size'] == 64
  assert (mira['mode'], mira['statistics']) == ('flashlite', 'batch')
  assert (mira['temperature'], mira['residual_mix']) == (0.3, 1.0)
  source = shapes(pretraining=True, mask_type='random', mask_ratio=0.5,
                  normlize_target=False)  # fmt: skip
  assert inferred(source)['pretrain'] == {
    'decoder_dim': 192, 'decoder_depth': 1, 'decoder_heads': 3,
    'decoder_mlp_ratio': 50 / 192, 'mask': 'random', 'mask_ratio': 0.5,
    'normalise_targets': False,
  }  # fmt: skip
  source = shapes(sampling_rate=2, data_set='FERV39k')
  rules = inferred(source)['preprocessing']
  assert rules == {'rate': 2, 'fit': 'squash'}
  rules = inferred(source, rate=3, fit='crop')['preprocessing']
  assert rules == {'rate': 3, 'fit': 'crop'}


def test_a_run_with_a_setting_that_ours_lacks_is_refused(tmp_path):
  state, _ = hugging_face('classification')
  args = argparse.Namespace(use_mean_pooling=False)
  path = torch_files.save(tmp_path / 'a.pth', {'model': state, 'args': args})
  with pytest.raises(MiraInputError, match=r'unsupported.*use_mean_pooling'):
    sources.read(path)


def test_what_a_model_computes_otherwise_than_its_source_is_said():
  model = {'heads': 3, 'gelu': 'exact', 'norm_eps': 1e-6}
  source = shapes()
  assert not infer_model.differences(source, model)  # unknown
  source.fields = {'heads': 3, 'gelu': 'tanh', 'norm_eps': 1e-12}
  assert infer_model.differences(source, model) == [
    'gelu is tanh there and exact here; --config.model.gelu=tanh',
    'norm_eps is 1e-12 there and 1e-06 here; --config.model.norm_eps=1e-12',
  ]
  source.metadata = {'model': model | {'heads': 4}}
  assert len(infer_model.differences(source, model)) == 1


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


def newest_names(state):
  """The modules' own names of newer versions, which torch.save writes."""
  pairs = [
    ('encoder.layer.', 'layers.'),
    *(
      (f'attention.attention.{n}', f'attention.{n[0]}_proj')
      for n in ('query', 'key', 'value')
    ),
    ('attention.output.dense', 'attention.o_proj'),
    ('intermediate.dense', 'mlp.fc1'),
    ('output.dense', 'mlp.fc2'),
    ('attention.attention.q_bias', 'attention.q_proj.bias'),
    ('attention.attention.v_bias', 'attention.v_proj.bias'),
  ]
  for old, new in pairs:
    state = {n.replace(old, new): x for n, x in state.items()}
  return state


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
    state = newest_names(state)
  torch_files.save(tmp_path / 'pytorch_model.bin', state)
  got = convert.read(tmp_path, infer_model.Overrides())
  model = got.metadata['model']
  assert (model['norm_eps'], model['image_size']) == (0.3, 16)
  assert model['last_norm_eps'] == (1e-5 if kind == 'classification' else None)
  video = transforms.prepare(jnp.asarray(VIDEO, jnp.uint8))
  logits = build_model(model).apply(got.variables, video)
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
  found = model.apply(got.variables, video, mask, num_masked=4)[1, 2, :4]
  expected = [0.13467822267657953, -0.5042373181720076,
              -0.43186158199380364, 1.3067575397072129]  # fmt: skip
  np.testing.assert_allclose(found, expected, atol=5e-6)


def test_a_width_is_whole_whatever_its_quotient_rounds_to():
  assert int(28 * (61 / 28)) == 60
  widths = [(d, n) for d in (28, 44, 768, 1280) for n in range(d, 4 * d)]
  for dim, width in widths:
    assert mlp_width(dim, width / dim) == width
  assert mlp_width(768, 2.6667) == 2048
  assert mlp_width(128, 2.999) == 383
