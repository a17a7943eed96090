"""Our numbers beside those of live PyTorch: `make test-torch` installs it.

Weights are random: sizes Ti, S and B, one block of L and of H at full width.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import local_hub
from mira_jax.augment import transforms
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.mira import MiraConfig
from mira_jax.models import build
from mira_jax.models.vivit import SIZES
from mira_jax.parity import torch_compare, torch_peers
from mira_jax.synthetic import faces
from mira_jax.video import encode
from mira_jax.weights import (
  convert,
  huggingface_settings,
  infer_model,
)
from small_peers import SMALL, clips, save, spread

torch = pytest.importorskip('torch')
torch_mira = pytest.importorskip('mira_jax.parity.torch_mira')

EXACT, FLASHLITE = {'mode': 'exact'}, {'mode': 'flashlite'}


def worst(agreement, gradients=False):
  rows = [r for r in agreement.rows if r.name.startswith('d ') == gradients]
  assert rows
  return max(row.relative for row in rows)


@pytest.mark.parametrize(
  ('kind', 'gelu'), [('VideoMAE', 'exact'), ('Vivit', 'tanh')]
)
def test_plain_models_are_those_of_hugging_face(kind, gelu):
  pytest.importorskip('transformers')
  fields = SMALL | {'gelu': gelu}
  if kind == 'Vivit':
    fields |= {'pool': 'cls', 'positions': 'learned'}
  variables = spread(fields)
  peer = torch_peers.peer(fields, variables)
  assert f'{kind}ForVideoClassification' in peer.name
  found = torch_compare.compare(
    fields, variables, peer, clips(fields), gradients=True
  )
  assert worst(found) < 5e-6
  assert worst(found, gradients=True) < 2e-5
  assert found.top1 == 1
  names = [row.name for row in found.rows]
  blocks = [f'block {i}' for i in (1, 2, 3)]
  assert names[:4] == [*blocks, 'logits']
  embed = ['d embed'] if kind == 'VideoMAE' else []
  assert names[4:] == [*embed, *(f'd {x}' for x in blocks), 'd head']


ODD = {'layer_norm_eps': 1e-3, 'intermediate_size': 61, 'hidden_size': 28,
       'num_attention_heads': 2, 'num_hidden_layers': 2, 'num_frames': 4,
       'image_size': [16, 16], 'num_labels': 3}  # fmt: skip
KINDS = {
  'VideoMAE': {'patch_size': 8, 'tubelet_size': 2, 'hidden_act': 'gelu_new'},
  'Vivit': {'tubelet_size': [2, 8, 8], 'qkv_bias': False},
}


@pytest.mark.parametrize(
  ('kind', 'saved'), [('VideoMAE', 'wrapped'), ('Vivit', 'folder')]
)
def test_models_with_odd_settings_compute_the_same(
  tmp_path, monkeypatch, kind, saved
):
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  cfg = getattr(transformers, f'{kind}Config')(**ODD, **KINDS[kind])
  module = getattr(transformers, f'{kind}ForVideoClassification')(cfg).eval()
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  folder = tmp_path / 'files'
  if saved == 'folder':
    module.save_pretrained(folder)
  else:
    state = {f'model.{n}': x for n, x in module.state_dict().items()}
    cfg.save_pretrained(folder)
    torch.save({'state_dict': state}, folder / 'pytorch_model.bin')
  rules = {'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.3, 0.4, 0.9],
           'rescale_factor': 1 / 200, 'offset': False}  # fmt: skip
  (folder / 'preprocessor_config.json').write_text(json.dumps(rules))
  video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3))
  pixels = (video / 200 - rules['image_mean']) / rules['image_std']
  with torch.no_grad():
    theirs = module(torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).float())
  local_hub.use(monkeypatch, tmp_path / 'cache', offline=True)
  local_hub.cached(tmp_path / 'cache', 'someone/model', folder)
  got = convert.read('hf://someone/model', infer_model.Overrides())
  model = build.build_model(got.metadata['model'])
  clip = transforms.prepare(jnp.asarray(video, jnp.uint8))
  logits = jax.jit(model.apply)(got.variables, clip)
  np.testing.assert_allclose(logits, theirs.logits, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_the_table_has_every_field_of_the_configurations(kind):
  transformers = pytest.importorskip('transformers')
  found = getattr(transformers, f'{kind}Config')().to_dict().keys()
  table = huggingface_settings.CONFIG
  known = {*table.used, *table.only, *table.without_effect}
  assert not found - known


@pytest.mark.parametrize('statistics', ['instance', 'batch'])
@pytest.mark.parametrize('mode', ['exact', 'flashlite'])
def test_mira_is_that_of_the_module(mode, statistics):
  mira = {
    'mode': mode,
    'statistics': statistics,
    'residual_mix': 0.3,
    'floor': 0.01,
    'gain_min': 0.5,
    'gain_max': 2.0,
    'power': 0.8,
    'temperature': 0.6,
    'confidence_weight': 0.9,
    'uniform_mix': 0.4,
  }
  fields = SMALL | {'mira': mira, 'mira_last_blocks': 2}
  variables = spread(fields)
  peer = torch_peers.peer(fields, variables)
  video = clips(fields, 3)
  found = torch_compare.compare(
    fields, variables, peer, video, gradients=True, attention='streaming'
  )
  assert worst(found) < 1e-5
  assert worst(found, gradients=True) < 1e-4
  rounded = torch_compare.compare(
    fields, variables, peer, video, dtype='bfloat16'
  )
  assert 1e-4 < worst(rounded) < 0.05
  assert rounded.row('logits').cosine > 0.999
  # And it is MiRA that is compared: without it logits are others.
  plain = torch_peers.with_mira(fields | {'mira': None}, variables)
  apart = torch_compare.compare(fields, variables, plain, video)
  assert worst(apart) > 1e-4


def test_a_training_step_moves_the_same_average():
  fields = SMALL | {'mira': {'mode': 'exact', 'statistics': 'batch_ema'}}
  variables = spread(fields)
  video = np.asarray(clips(fields, 4), np.float32) / 255
  model = build.build_model(fields)
  _, moved = model.apply(variables, video, train=True, mutable=['mira'])
  peer = torch_peers.peer(fields, variables)
  peer.module.train()
  peer.module(torch.from_numpy(video.transpose(0, 4, 1, 2, 3).copy()))
  for i, block in enumerate(peer.module.blocks):
    ours = moved['mira']['encoder'][f'block_{i}']['attn']['confidence']
    np.testing.assert_allclose(block.attn.c_buf[0], ours, rtol=1e-5)
    assert not np.allclose(ours, 1 / 4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('size', 'depth', 'mira'),
  [
    ('Ti', 12, None),
    ('S', 12, FLASHLITE),
    ('B', 12, EXACT),
    ('L', 1, EXACT),
    ('H', 1, FLASHLITE),
  ],
  ids=str,
)
def test_every_size_agrees(size, depth, mira):
  fields = {
    **SIZES[size],
    'depth': depth,
    'num_classes': 7,
    'frames': 16,
    'image_size': 224,
    'patch': 16,
    'tubelet': 2,
    'dtype': 'float32',
    'mira': mira,
  }
  variables = spread(fields)
  peer = torch_peers.peer(fields, variables)
  found = torch_compare.compare(fields, variables, peer, clips(fields, 1))
  assert found.row('logits').relative <= 2e-5, found.row('logits')
  assert worst(found) <= 1e-4


# ----- the command ------------------------------------------------------------


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A weights file with MiRA."""
  return save(SMALL | {'mira': EXACT}, tmp_path_factory.mktemp('w'))


def test_the_command_shows_layers(saved, capsys):
  arguments = ['compare', 'torch', '--weights', str(saved)]
  code = cli.main([*arguments, '--gradients'])
  out = capsys.readouterr().out
  assert code == ExitCode.OK, out
  for text in ('torch_mira (exact)', 'block 3', 'd head', 'bfloat16: top-1'):
    assert text in out
  assert cli.main([*arguments, '--json', '--dtype=float32']) == ExitCode.OK
  (found,) = json.loads(capsys.readouterr().out)
  assert found['dtype'] == 'float32'
  assert [row['name'] for row in found['rows']][-1] == 'logits'


def test_the_command_takes_a_module_of_ones_own(saved, tmp_path, capsys):
  (tmp_path / 'model.py').write_text(
    'from functools import partial\n'
    'from mira_jax.mira import MiraConfig\n'
    'from mira_jax.parity.torch_mira import VideoTransformer\n'
    'right = partial(VideoTransformer, dim=48, depth=3, heads=3, frames=8,\n'
    '  num_classes=5, image_size=32, patch=8, mira=MiraConfig(mode="exact"))\n'
    'wrong = partial(right, mira=MiraConfig(mode="flashlite"))\n'
    'small = partial(right, dim=24)\n'
  )
  arguments = ['compare', 'torch', f'--weights={saved}', '--dtype=float32']
  module = f'--module={tmp_path}/model.py'
  assert cli.main([*arguments, f'{module}:right']) == ExitCode.OK
  assert cli.main([*arguments, f'{module}:wrong']) == ExitCode.FAILED
  assert 'FAIL' in capsys.readouterr().out
  assert cli.main([*arguments, '--attention=pallas_tpu']) == ExitCode.USAGE
  assert 'bad_flag: --attention' in capsys.readouterr().err
  for name, code in (('small', 4), ('absent', 2)):
    assert cli.main([*arguments, f'{module}:{name}']) == code
    assert capsys.readouterr().err.count('\n') == 1


def test_the_command_compares_several_clips_in_float64(saved, tmp_path, capsys):
  for i in range(2):
    video = faces.draw_clip(
      i, split='test', seed=0, size=32, num_frames=9, difficulty='macro'
    )
    encode.write_video(tmp_path / f'{i}.mp4', video.frames, 25)
  arguments = ['compare', 'torch', f'--weights={saved}', '--dtype=float64']
  paths = [str(tmp_path / f'{i}.mp4') for i in range(2)]
  assert cli.main([*arguments, '--clip', *paths]) == ExitCode.OK
  assert 'float64 logits within 1e-12: pass' in capsys.readouterr().out


def test_models_that_no_peer_computes_are_refused():
  fields = SMALL | {'variant': 'factorised_encoder'}
  with pytest.raises(MiraInputError, match=r'unsupported: variant .*--module'):
    torch_peers.peer(fields, spread(fields))


def test_the_attention_stands_in_another_model():
  # In a PyTorch model of the user, MiRA in place of its attention.
  torch.manual_seed(0)
  layer = torch_mira.Attention(24, 3, 4, MiraConfig(mode='flashlite'))
  x = torch.randn(2, 20, 24, requires_grad=True)
  layer(x).square().sum().backward()
  assert layer.frames.gain.shape == (2, 4)
  assert torch.isfinite(x.grad).all()
  with torch.no_grad():
    plain = torch_mira.Attention(24, 3, 4)
    plain.load_state_dict(layer.state_dict(), strict=False)
    assert not torch.allclose(plain(x), layer(x), atol=1e-6)
