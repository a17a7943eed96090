"""`mira push`: what the real huggingface_hub sends, to a server of ours."""

from __future__ import annotations

import json

import numpy as np
import pytest

import foreign_models
import local_hub
from mira_jax import config
from mira_jax.cli import main as cli
from mira_jax.evaluation import results
from mira_jax.weights import convert, sources
from small_models import save_model
from small_runs import tiny

NAMES = ['happy', 'sad', 'fear']


@pytest.fixture
def server(tmp_path, monkeypatch):
  with local_hub.serving() as found:
    local_hub.use(monkeypatch, tmp_path / 'cache', found.url)
    monkeypatch.setenv('HF_TOKEN', local_hub.TOKEN)
    yield found


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """What a finished run leaves, of a model that started from another one."""
  folder = tmp_path_factory.mktemp('secret-name') / 'run'
  cfg = tiny(
    '/home/secret-name/data', train={'init_from': '/home/x/pretrained'}
  )
  cfg.model.num_classes = 3
  save_model(folder, cfg.model.mira, names=NAMES, num_classes=3)
  about = {'repository': 'them/base', 'revision': 'c0ffee', 'license': 'mit'}
  found = convert.read(folder)
  found.metadata |= {
    'step': 7,
    'datasets': [{'name': 'CK+ | own', 'fingerprint': 'x'}],
    'source': {'name': 'x', 'hub': about},
  }
  convert.write(folder / 'weights.safetensors', found)
  (folder / 'config.json').write_text(config.to_json(cfg))
  (folder / 'metrics.jsonl').write_text('{"step": 1}\n')
  matrix = np.array([[3, 1, 0], [0, 4, 0], [1, 0, 3]])
  rows = [
    results.Result(name=results.CHOSEN, step=7, matrix=matrix),
    results.Result(
      name=results.BEST_ON_TEST, step=9, matrix=np.eye(3, dtype=int)
    ),
  ]
  results.write(folder, rows, NAMES, fold='S010')
  return folder


def test_what_is_pushed_can_be_read_back(server, run, capsys):
  assert cli.main(['push', str(run), 'us/faces', '--private']) == 0
  repo = server.repos['us/faces']
  assert repo.private
  files = repo.commits[repo.branches['main']]
  assert sorted(files) == ['README.md', 'config.json', 'model.safetensors']
  weights = (run / 'weights.safetensors').read_bytes()
  assert files['model.safetensors'] == weights
  shown = capsys.readouterr().out.splitlines()[-1]
  address = shown.removeprefix('pushed: ')
  assert address == f'hf://us/faces@{repo.branches["main"]}'
  expected, got = convert.read(run), convert.read(address)
  foreign_models.same(got.variables, expected.variables)
  assert got.metadata['class_names'] == NAMES
  assert got.metadata['source']['hub']['repository'] == 'us/faces'
  # No path of this machine, and no name of a person of the test.
  for name in ('README.md', 'config.json'):
    text = files[name].decode()
    assert not [x for x in ('secret', '/home', 'S010') if x in text], name
  cfg = config.from_json(files['config.json'])
  assert (cfg.data.dataset, cfg.train.init_from) == ('CK+ | own', 'pretrained')


def test_the_model_card_has_what_the_hub_reads(server, run):
  from huggingface_hub import ModelCard

  cli.main(['push', str(run), 'us/faces'])
  text = server.cards[-1]  # which the hub is asked to check
  data = ModelCard(text).data
  assert (data.license, data.base_model) == ('mit', 'them/base')
  assert (data.library_name, data.model_name) == ('mira_jax', 'faces')
  assert data.pipeline_tag == 'video-classification'
  found = {x.metric_name: x.metric_value for x in data.eval_results}
  assert found == {'WAR': 0.8333, 'UAR': 0.8333, 'macro F1': 0.832}
  assert data.eval_results[0].dataset_name == 'CK+ | own'
  assert r'| trained on | CK+ \| own |' in text
  assert '| started from | hf://them/base@c0ffee |' in text
  assert 'mira predict CLIP --weights hf://us/faces' in text
  cli.main(['push', str(run), 'us/other', '--license=cc-by-nc-4.0'])
  assert ModelCard(server.cards[-1]).data.license == 'cc-by-nc-4.0'


def test_a_card_that_is_there_is_kept(server, run, capsys):
  server.repos['us/faces'] = local_hub.Repository({'README.md': b'by hand'})
  repo = server.repos['us/faces']
  command = ['push', str(run), 'us/faces', '--revision=v1']
  assert cli.main(command) == 0
  assert repo.branches['main'] != repo.branches['v1']
  assert repo.commits[repo.branches['v1']]['README.md'] == b'by hand'
  assert '--force replaces it' in capsys.readouterr().out
  assert cli.main([*command, '--force']) == 0
  assert b'library_name' in repo.commits[repo.branches['v1']]['README.md']
  assert sources.read('hf://us/faces@v1').class_names == NAMES


def refused(words, *arguments, capsys, code):
  assert cli.main(['push', *map(str, arguments)]) == code
  err = capsys.readouterr().err
  assert err.startswith(f'mira: {words}'), err
  assert err.count('\n') == 1


def test_what_cannot_be_pushed(server, run, tmp_path, capsys, monkeypatch):
  def no(words, *arguments, code=4):
    refused(words, *arguments, capsys=capsys, code=code)

  server.repos['us/open'] = local_hub.Repository({})
  no('exists: hf://us/open: ', run, 'us/open', '--private', code=2)
  no('bad_name: hf://us: ', run, 'us', code=2)
  no('bad_name: us/a@v1: ', run, 'us/a@v1', code=2)
  (tmp_path / 'empty').mkdir()
  no('not_found: ', tmp_path / 'empty', 'us/faces')
  foreign = foreign_models.save_hugging_face(tmp_path / 'hf', 'vivit')
  no('not_weights: ', foreign, 'us/faces')
  monkeypatch.delenv('HF_TOKEN')
  no('no_access: hf://us/faces: ', run, 'us/faces')
  local_hub.use(monkeypatch, tmp_path, server.url, offline=True)
  no('no_network: hf://us/faces: HF_HUB_OFFLINE', run, 'us/faces')
  assert 'us/faces' not in server.repos


def test_to_a_folder(run, tmp_path, capsys, monkeypatch):
  local_hub.use(monkeypatch, tmp_path / 'cache')  # no server
  out = tmp_path / 'out'
  command = ['push', str(run), 'us/faces', f'--to={out}']
  assert cli.main(command) == 0
  names = sorted(x.name for x in out.iterdir())
  assert names == ['README.md', 'config.json', 'model.safetensors']
  assert sources.read(out).class_names == NAMES
  refused('exists: ', *command[1:], capsys=capsys, code=2)
  # A weights file alone has no configuration of a run, and no results.
  file = tmp_path / 'w' / 'x.safetensors'
  convert.write(file, convert.read(run))
  assert (
    cli.main(['push', str(file), 'us/faces', f'--to={out}', '--force']) == 0
  )
  about = json.loads((out / 'config.json').read_text())
  assert about['model']['num_classes'] == 3
  assert 'WAR' not in (out / 'README.md').read_text()


def test_a_report_writes_the_same_card(run, tmp_path):
  card = tmp_path / 'card.md'
  flags = [f'--card={card}', f'--out={tmp_path / "page.html"}']
  assert cli.main(['report', str(run), *flags]) == 0
  assert cli.main(['push', str(run), 'a/run', f'--to={tmp_path / "x"}']) == 0
  pushed = (tmp_path / 'x' / 'README.md').read_text()
  assert card.read_text() == pushed.replace('a/run', 'run')
