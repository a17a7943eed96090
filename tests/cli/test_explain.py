"""`mira explain`: pages, pictures, videos and measures."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import av
import numpy as np
import pytest

from mira_jax.cli import main as cli
from mira_jax.data import dataset
from mira_jax.errors import ExitCode
from mira_jax.mira import MiraConfig
from mira_jax.models.options import VARIANTS
from mira_jax.synthetic import dataset as synthetic
from mira_jax.synthetic import faces
from mira_jax.systems.channels import ChannelsConfig
from mira_jax.systems.cross_windows import CrossWindowsConfig
from mira_jax.systems.gates import GateConfig
from mira_jax.systems.orientation import OrientationConfig
from mira_jax.systems.reliability import ReliabilityConfig
from mira_jax.video import encode
from predictions import face
from small_models import save_model

pytestmark = pytest.mark.usefixtures('compile_cache')
EXACT, FLASHLITE = MiraConfig(), MiraConfig(mode='flashlite')
MODELS = {
  'plain': {},
  'flashlite': {'mira': FLASHLITE},
  'batch': {'mira': MiraConfig(statistics='batch')},
  'class token': {'mira': EXACT, 'pool': 'cls', 'positions': 'learned'},
  'one block': {'mira': EXACT, 'mira_last_blocks': 1},
  'backbone': {'mira': EXACT, 'names': []},
  'ensemble': {'mira': EXACT, 'members': 2, 'mirror': True},
  **{name: {'mira': EXACT, 'variant': name} for name in VARIANTS},
}


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  path = tmp_path_factory.mktemp('clip') / 'a <b>.mp4'
  return encode.write_video(path, face(1, count=40), 25)


def test_other_systems_have_maps_and_a_table(tmp_path, clip):
  systems = {
    'orientation': OrientationConfig(),
    'gate': GateConfig(form='published'),
    'cross_windows': CrossWindowsConfig(scales=2, layer_scale=0.1),
    'channels': ChannelsConfig(),
    'reliability': ReliabilityConfig(),
  }
  fields = {name: dataclasses.asdict(x) for name, x in systems.items()}
  more = {'members': 2, 'pool': 'cls', 'positions': 'learned'}
  model = save_model(tmp_path / 'w.safetensors', frames=8, **fields, **more)
  explain(clip, f'--weights={model}', f'--out={tmp_path}')
  with np.load(tmp_path / 'a <b>-systems.npz') as arrays:
    maps = {name: arrays[name] for name in arrays.files}
  assert maps['SOA,_block_1,_72°'].shape == (4, 4, 4)
  np.testing.assert_allclose(maps['SOA,_block_0,_72°'], 1)  # the identity
  assert np.ptp(maps['gated_attention,_block_0']) > 0
  assert maps['guided_windows'].min() > 0
  for name in faces.CLASS_NAMES:
    np.testing.assert_allclose(maps[f'region_{name}'].sum((1, 2)), 1, rtol=1e-4)
  text, _ = values(tmp_path / 'a <b>.html')
  assert 'Predictions of the balanced head' in text
  assert all(f'>{x}</th>' in text for x in ('primary', 'corrected'))


def test_a_model_that_reads_annotations_is_for_datasets(tmp_path, clip, capsys):
  model = save_model(tmp_path / 'w.safetensors', oracle_units='1,12')
  explain(clip, f'--weights={model}', code=ExitCode.CHECKPOINT)
  assert 'reads annotated action units (1,12)' in capsys.readouterr().err


def explain(*args, code=ExitCode.OK):
  assert cli.main(['explain', *map(str, args)]) == code


def values(page: pathlib.Path):
  """What the script of a page shows."""
  text = page.read_text()
  found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
  assert found
  return text, json.loads(found[1])


@pytest.mark.parametrize('name', MODELS)
def test_every_model_has_a_page(tmp_path, clip, name):
  options = {'depth': 2, 'frames': 8} | MODELS[name]
  model = save_model(tmp_path / 'w.safetensors', **options)
  explain(clip, f'--weights={model}', f'--out={tmp_path}')
  text, shown = values(tmp_path / 'a <b>.html')
  assert 'a &lt;b&gt;.mp4' in text
  assert not re.search(r'(src|href)="(https?:)?//', text)
  (one,) = shown['models']
  window = one['windows'][0]
  assert len(window['stills']) == len(window['tokens']) == one['grid'][0] == 4
  mira = options.get('mira')
  assert bool(one['mira']) == (window['after'] is not None) == bool(mira)
  arrays = np.load(tmp_path / 'a <b>.npz')
  near = {'atol': 0.02 if name == 'class token' else 1e-4}  # which has a share
  np.testing.assert_allclose(arrays['before'].sum(), 1, **near)
  blocks = np.load(tmp_path / 'a <b>-blocks.npz')
  if mira is None:
    assert blocks.files == ['attention']
    return
  np.testing.assert_allclose(arrays['after'].sum(), 1, **near)
  assert blocks['gain'].shape == (len(one['mira']), 4)
  np.testing.assert_allclose(window['gain'], blocks['gain'], rtol=1e-6)
  np.testing.assert_allclose(blocks['attention_before'].mean(1), 1, **near)
  if name == 'one block':
    assert one['mira'] == [1]


def test_two_models_and_the_whole_clip(tmp_path, clip, capsys):
  first = save_model(tmp_path / 'a.safetensors', EXACT, frames=8)
  second = save_model(tmp_path / 'b.safetensors', frames=16)
  overlay = tmp_path / 'o.mp4'
  flags = (f'--weights={first}', f'--against={second}', f'--out={tmp_path}')
  explain(clip, *flags, '--timeline', f'--overlay={overlay}')
  _, shown = values(tmp_path / 'a <b>.html')
  a, b = shown['models']
  # Windows of 16 frames, and of 32, side by side in 40 frames.
  assert [len(x['windows']) for x in (a, b)] == [3, 2]
  assert a['windows'][0]['label'] == '0.0 to 0.6 s'
  for name in ('1', '1-blocks', '1-timeline', '2', '2-timeline'):
    assert (tmp_path / f'a <b>-{name}.png').is_file()
  with av.open(str(overlay)) as file:
    frames = [x.to_ndarray(format='rgb24') for x in file.decode(video=0)]
  assert len(frames) == 40
  assert frames[0].shape[1] == 448
  assert 'overlay:' in capsys.readouterr().out


def test_what_cannot_be_explained(tmp_path, clip, capsys, request):
  export = request.config.rootpath / 'tests' / 'compatibility/0.1.0/export'
  explain(clip, f'--weights={export}', f'--out={tmp_path}', code=2)
  assert 'an export has no attention' in capsys.readouterr().err
  model = save_model(tmp_path / 'w.safetensors', EXACT)
  weights = f'--weights={model}'
  explain(tmp_path / 'no.mp4', weights, f'--out={tmp_path}', code=2)
  assert 'not_found' in capsys.readouterr().err
  explain(clip, clip, weights, '--overlay=o.mp4', code=2)
  assert 'bad_flag' in capsys.readouterr().err


# ----- datasets ---------------------------------------------------------------


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('faces')
  sizes = {'train_clips': 7, 'test_clips': 7, 'size': 32, 'num_frames': 16}
  synthetic.build(folder, **sizes, workers=0)
  return folder


def test_measures_of_a_dataset(tmp_path, data, capsys):
  model = save_model(tmp_path / 'w.safetensors', EXACT, frames=8)
  flags = (f'--weights={model}', f'--out={tmp_path}')
  explain(data, *flags, '--json')
  printed = json.loads(capsys.readouterr().out)
  written = json.loads((tmp_path / 'measures.json').read_text())
  assert written['measures'] == printed
  assert written['clips'] == 7
  inside = printed['attention from onset to offset, × uniform']
  assert inside.keys() == {'before', 'after', 'gain', 'chance'}
  assert inside['after']['clips'] == 6  # the neutral one has no moment
  for row in printed.values():
    for x in row.values():
      assert x['low'] <= x['mean'] <= x['high']
  place = printed['attention on the expression, × uniform']
  assert place['before']['mean'] == pytest.approx(1, abs=0.3)  # untrained
  curves = np.load(tmp_path / 'measures.npz')
  assert curves['frames_after'].shape == (2, 5)
  assert curves['patches_chance'].shape == (2, 9)
  explain(data, *flags, '--clips=3')
  assert 'test, 3 clips' in capsys.readouterr().out
  explain(data, *flags, '--timeline', code=2)
  assert 'bad_flag' in capsys.readouterr().err


def test_a_model_that_looks_at_the_change_has_the_measures_for_it(data):
  """Of the truth itself every measure is far above chance."""
  from mira_jax.evaluation import explanations

  prepared = dataset.open(data)
  truth = synthetic.Truth(prepared)
  clips = [x for x in prepared.source('test') if x.onset >= 0]
  frames = np.arange(16).reshape(8, 2)
  for clip in clips:
    intensity, change = truth(clip.clip_id)
    assert (intensity > 0).sum() >= clip.offset - clip.onset
    assert intensity.argmax() == clip.apex
    outside = np.delete(change, np.s_[clip.onset : clip.offset + 1], axis=0)
    assert outside.max(initial=0) == 0
    attention = explanations.to_grid(change, frames, (8, 4, 4))
    share = attention.sum((1, 2))
    marks = clip.onset, clip.offset
    assert explanations.inside(share, frames, *marks) >= 1
    assert explanations.place(attention, attention) > 2
    assert explanations.correlation(share, frames, intensity) > 0.8


def test_a_neutral_drawing_differs_where_the_face_moves():
  drawing = {'seed': 0, 'split': 'test', 'difficulty': 'macro'}
  clip, still = (
    faces.draw_clip(3, **drawing, neutral=x) for x in (False, True)
  )
  assert clip.label == still.label
  differs = (clip.frames != still.frames).any((1, 2, 3))
  assert np.flatnonzero(differs).min() >= clip.onset
