"""Configurations: typed overrides, checks with a fix, a strict round trip."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from mira_jax import config
from mira_jax.cli import main
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.mira import MiraConfig
from mira_jax.models.mae import MaskedAutoencoder
from mira_jax.models.vivit import ViViT
from mira_jax.train import build


def parse(*overrides: str, mode: str = 'exact') -> config.Config:
  """What train.py gets from its command line."""
  return config.load(f'quickstart:{mode}', overrides)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch, request):
  monkeypatch.chdir(request.config.rootpath)


def test_a_model_option_is_defined_once():
  for configured, model in (
    (config.ModelConfig, ViViT),
    (config.PretrainConfig, MaskedAutoencoder),
  ):
    ours, theirs = (
      {f.name: f.default for f in dataclasses.fields(cls)}
      for cls in (configured, model)
    )
    shared = ours.keys() & theirs.keys()
    assert {n: ours[n] for n in shared} == {n: theirs[n] for n in shared}
    # `dtype` is a name in configurations, and may be a type in models.
    assert configured.__annotations__.keys() & shared <= {'dtype'}
    assert not model.__annotations__.keys() & shared
  assert {f.name for f in dataclasses.fields(config.ModelConfig)} == {
    f.name for f in dataclasses.fields(ViViT)
  } - {'parent', 'name'}


def test_overrides_have_the_type_of_their_field():
  cfg = parse(
    '--config.optim.lr=3e-4',
    '--config.data.batch_size=8',
    '--config.model.mira.mode=flashlite',
    '--config.model.mira_last_blocks=2',
    '--noconfig.data.flip',
    '--config.optim.weight-decay=0.25',
    '--config.data.dataset=a-b/c-d',
  )
  assert cfg.optim.weight_decay == 0.25
  assert cfg.data.dataset == 'a-b/c-d'  # values keep their dashes
  assert parse('--config.model.mira=none').model.mira is None
  gate = parse('--config.model.gate=default').model.gate
  assert gate is not None
  assert gate.kind == 'head'
  soa = parse('--config.model.orientation.reference=onset').model.orientation
  assert soa is not None
  assert (soa.reference, soa.angle) == ('onset', 72)
  assert cfg.optim.lr == 3e-4
  assert cfg.data.batch_size == 8
  assert cfg.model.mira == MiraConfig(mode='flashlite')
  assert cfg.model.mira_last_blocks == 2
  assert cfg.data.flip is False


@pytest.mark.parametrize(
  ('override', 'says'),
  [
    ('--config.model.mira.mod=exact', 'did you mean model.mira.mode'),
    ('--config.datset.batch_size=8', 'data.batch_size'),
    ('--config.optim.weight-deca=1', 'did you mean optim.weight_decay'),
    ('--config.data.batch_size=1.5', 'it takes int'),
    ('--config.optim.lr=high', 'it takes float'),
    ('--config.data.flip=7', 'it takes bool'),
    ('--config.model=3', 'it takes ModelConfig'),
    ('--config.model.mira.mode=fast', 'fast'),
  ],
)
def test_bad_overrides_are_rejected(override, says):
  with pytest.raises(MiraInputError, match=says.replace('.', r'\.')) as caught:
    parse(override)
  assert caught.value.code == 'bad_config'
  assert '\n' not in str(caught.value)


def test_the_argument_of_a_file(capsys):
  argv = ['train', '--config=dfew:B,flashlit', '--workdir=runs/x']
  assert main.main(argv) == ExitCode.USAGE
  err = capsys.readouterr().err
  assert err.startswith('mira: bad_config: --config=dfew:B,flashlit: ')
  assert err.endswith('did you mean flashlite?\n')
  assert err.count('\n') == 1
  with pytest.raises(MiraInputError, match='did you mean exact'):
    config.load('quickstart:exat')


def test_bad_files_are_rejected(tmp_path):
  file = tmp_path / 'mine.py'
  for text, says in (
    ('get_config = dict', 'returns no Config'),
    ('import nothing_of_that_name', 'raises ModuleNotFoundError'),
  ):
    file.write_text(text)
    with pytest.raises(MiraInputError, match=says):
      config.load(str(file))


def test_shipped_configurations_are_found_by_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  by_name = config.load('dfew:B', ['--config.optim.lr=1e-4'])
  assert by_name.optim.lr == 1e-4
  by_path = config.load('configs/dfew.py:B')
  assert by_path == config.load('dfew:B') != by_name
  # A file of that name comes first.
  own = 'from mira_jax.config import Config\ndef get_config(text=None):\n'
  (tmp_path / 'dfew.py').write_text(own + '  return Config(seed=5)\n')
  assert config.load('dfew.py').seed == 5
  with pytest.raises(MiraInputError, match='did you mean dfew'):
    config.load('dfw')


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('model.heads', 5),  # does not divide dim 128
    ('model.depth', 0),
    ('model.dtype', 'float16'),
    ('model.mira.mode', 'fast'),
    ('data.batch_size', 30),  # not over 4 devices
    ('data.multi_scale', 'small'),
    ('optim.lr', float('nan')),
    ('optim.final_lr', 1.0),  # above lr
  ],
)
def test_validate_names_the_value(name, value):
  cfg = parse()
  config.validate(cfg, devices=4)
  *path, last = name.split('.')
  node = cfg
  for part in path:
    node = getattr(node, part)
  setattr(node, last, value)
  with pytest.raises(MiraInputError, match='bad_config: config') as caught:
    config.validate(cfg, devices=4)
  assert str(value) in str(caught.value)


@pytest.mark.parametrize(
  'change',
  [
    lambda tree: tree['data'].update(batch_size=True),
    lambda tree: tree['model'].update(mira={'mode': 'fast'}),
    lambda tree: tree.update(model=None),
  ],
)
def test_from_json_is_strict(change):
  tree = json.loads(config.to_json(config.Config()))
  change(tree)
  with pytest.raises(MiraInputError, match='bad_config'):
    config.from_json(json.dumps(tree))


def test_from_json_of_another_version():
  tree = json.loads(config.to_json(config.Config(seed=3)))
  del tree['eval'], tree['optim']['ema_decay'], tree['model']['depth']
  tree['optim']['lr_batch'] = 0
  tree['optim']['clip_norm'] = 0  # a whole number is a float
  assert config.from_json(json.dumps(tree)) == config.Config(seed=3)
  tree['optim']['wieght_decay'] = 0.1
  with pytest.raises(
    MiraInputError, match='did you mean weight_decay'
  ) as caught:
    config.from_json(json.dumps(tree))
  assert caught.value.path == 'config.optim.wieght_decay'
  with pytest.raises(MiraInputError, match='not JSON'):
    config.from_json('{')


def test_the_attention_that_will_run_is_named_with_its_reason():
  cfg = parse()
  cfg.model.num_classes = 7

  def choice():
    return build.make(cfg, sharding.make_mesh()).attention

  reason = 'maps of 128 tokens are small; assumed'
  assert choice() == f'attention: reference ({reason})'
  cfg.model.attention = 'pallas_tpu'
  with pytest.raises(MiraInputError, match='v6e, not on cpu'):
    choice()


def test_imports_change_nothing_for_others():
  program = """
import dataclasses, logging, sys
import train, eval
from mira_jax.cli import eval, main, train
from mira_jax.mira import MiraConfig
assert sys.unraisablehook is sys.__unraisablehook__
assert not logging.getLogger('absl').filters
assert all(isinstance(f.type, str) for f in dataclasses.fields(MiraConfig))
"""
  subprocess.run([sys.executable, '-c', program], check=True)


def test_a_flag_makes_the_group_of_its_field():
  cfg = parse('--config.model.mira.mode=flashlite', mode='plain')
  assert cfg.model.mira == MiraConfig(mode='flashlite')
  cfg = parse('--config.pretrain.mask=random', '--config.data.flip')
  assert (cfg.pretrain.mask, cfg.data.flip) == ('random', True)
  assert parse('--config.optim.lr', '3e-4').optim.lr == 3e-4
