"""The `mira` command as a person uses it, on real files."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np
import pytest

import mira_jax
from mira_jax.cli import main as cli
from mira_jax.data import dataset
from mira_jax.errors import ExitCode
from mira_jax.mira import MiraConfig
from mira_jax.synthetic import faces
from small_models import NAMES, save_model

SAMPLES = pathlib.Path(os.environ.get('MIRA_SAMPLES', 'samples'))


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp('model') / 'weights.safetensors'
  return str(save_model(path, MiraConfig(), depth=1))


@pytest.fixture(scope='module')
def clip(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp('clips') / 'a face.mp4'
  assert cli.main(['draw', str(path), '--size=64', '--expression=Happy']) == 0
  return str(path)


def predict(capsys, *args: str) -> tuple[int, str, str]:
  code = cli.main(['predict', *args])
  out, err = capsys.readouterr()
  return code, out, err


def test_predict_writes_probabilities_and_a_picture(
  capsys, tmp_path, model, clip
):
  out = str(tmp_path / 'pictures')
  code, text, _ = predict(capsys, clip, '--weights', model, '--out', out)
  assert code == ExitCode.OK
  assert any(name in text for name in NAMES)
  picture = tmp_path / 'pictures' / 'a face.png'
  assert str(picture.name) in text.replace('\n', '')
  assert picture.read_bytes().startswith(b'\x89PNG')
  arrays = np.load(picture.with_suffix('.npz'))
  # Both marginals are shares of all attention.
  np.testing.assert_allclose(arrays['before'].sum(), 1, rtol=1e-5)
  np.testing.assert_allclose(arrays['after'].sum(), 1, rtol=1e-5)
  assert arrays['gain'].shape == (1, 8)
  assert ((arrays['gain'] >= 0.7) & (arrays['gain'] <= 1.4)).all()


@pytest.mark.parametrize(
  ('flag', 'value'),
  [('--frames', '64'), ('--key', 'ema')],
)
def test_a_flag_that_contradicts_a_run_is_no_silent_wish(
  capsys, tmp_path, clip, flag, value
):
  save_model(tmp_path / 'weights.safetensors', MiraConfig())
  run = ['--workdir', str(tmp_path), '--no-picture']
  code, _, err = predict(capsys, clip, *run, flag, value)
  assert code == ExitCode.USAGE
  assert 'bad_flag' in err
  assert f'{flag} {value}' in err


def test_no_clip_has_so_many_windows(capsys, clip):
  with pytest.raises(SystemExit):
    predict(capsys, clip, '--views', '999999999')
  assert '999999999 is more than 1000' in capsys.readouterr().err


@pytest.mark.skipif(
  not SAMPLES.is_dir(), reason='MIRA_SAMPLES names no folder of samples'
)
def test_a_real_clip(capsys, tmp_path, model):
  clip = SAMPLES / 'clips' / 'talking_face_224px_25fps.mp4'
  code, text, _ = predict(
    capsys, str(clip), '--weights', model, '--json', '--out', str(tmp_path)
  )
  (row,) = json.loads(text)
  assert code == ExitCode.OK
  assert row['frames'] == 107
  assert row['fps'] == pytest.approx(25)
  assert pathlib.Path(row['picture']).stat().st_size > 50_000


def test_prepare_draws_faces(capsys, tmp_path):
  flags = '--train-clips=7 --test-clips=7 --workers=0 --num-frames=8'
  out = f'--out={tmp_path / "out"}'
  code = cli.main(['prepare', 'synthetic_faces', out, *flags.split()])
  assert code == ExitCode.OK
  prepared = dataset.open(tmp_path / 'out')
  assert prepared.splits == {'train': 7, 'test': 7}
  assert prepared.class_names == faces.CLASS_NAMES


@pytest.mark.parametrize('command', ['', *cli.COMMANDS])
def test_help_names_every_command(capsys, command):
  with pytest.raises(SystemExit) as stop:
    cli.main([*([command] if command else []), '--help'])
  assert stop.value.code == 0
  text = capsys.readouterr().out
  if not command:
    assert all(name in text for name in cli.COMMANDS)


def test_the_version_is_printed(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(['--version'])
  assert stop.value.code == 0
  assert f'mira-jax {mira_jax.__version__}, jax 0' in capsys.readouterr().out


@pytest.mark.parametrize('flag', ['--size=100000', '--num-frames=100000'])
def test_no_video_is_so_large(capsys, tmp_path, flag):
  assert cli.main(['draw', str(tmp_path / 'a.mp4'), flag]) == ExitCode.USAGE
  assert 'bad_size: 100000' in capsys.readouterr().err


def test_an_unknown_command_exits_with_usage():
  with pytest.raises(SystemExit) as stop:
    cli.main(['fly'])
  assert stop.value.code == ExitCode.USAGE
