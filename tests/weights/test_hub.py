"""Weights by address: the client of the hub, with a server and a cache of ours.

No test needs a network: the real huggingface_hub asks `local_hub`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import foreign_models
import local_hub
import runs
from foreign_models import save_hugging_face
from mira_jax.cli import main as cli
from mira_jax.errors import MiraInputError
from mira_jax.inference import load
from mira_jax.train import loop
from mira_jax.weights import convert, hub, sources
from mira_jax.weights.weights_file import load_weights
from small_models import save_model
from small_runs import tiny, write

ADDRESS = 'hf://someone/model'


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache, and no network."""
  folder = tmp_path / 'cache'
  local_hub.use(monkeypatch, folder)
  return folder


@pytest.fixture
def server(cache, monkeypatch):
  with local_hub.serving() as found:
    local_hub.use(monkeypatch, cache, found.url)
    yield found


def refused(words, path=ADDRESS, exit_code=4):
  with pytest.raises(MiraInputError, match=words) as caught:
    sources.read(path)
  assert caught.value.exit_code == exit_code
  assert '\n' not in str(caught.value)


def sha256(file):
  return hashlib.sha256(file.read_bytes()).hexdigest()


# ----- the cache -----


@pytest.mark.parametrize('kind', ['classification', 'pretraining', 'vivit'])
def test_a_model_of_the_cache_is_that_of_its_folder(
  kind, cache, tmp_path, monkeypatch
):
  folder = save_hugging_face(tmp_path / 'hf', kind)
  local_hub.cached(cache, 'someone/model', folder)
  local_hub.use(monkeypatch, cache, offline=True)
  expected, got = convert.read(folder), convert.read(ADDRESS)
  foreign_models.same(got.variables, expected.variables)
  assert got.metadata['source']['hub'] == {
    'repository': 'someone/model',
    'revision': 'c' * 40,
    'files': {
      n: sha256(folder / n) for n in ('config.json', 'model.safetensors')
    },
  }
  assert got.metadata['model'] == expected.metadata['model']
  assert got.notes[0].startswith('HF_HUB_OFFLINE is set')


def test_offline_a_model_must_be_in_the_cache(cache, tmp_path, monkeypatch):
  folder = save_hugging_face(tmp_path / 'hf', 'vivit')
  local_hub.cached(cache, 'someone/model', folder, ref='v1')
  local_hub.use(monkeypatch, cache, offline=True)
  assert sources.read(f'{ADDRESS}@v1').hub == sources.read(
    f'{ADDRESS}@{"c" * 40}'
  ).hub  # fmt: skip
  refused(f'no_network: {ADDRESS}: HF_HUB_OFFLINE is set .cache: ')
  refused('no_network', f'{ADDRESS}@v2')


def test_without_a_network_the_cache_counts(cache, tmp_path):
  refused('no_network: .* does not answer as a hub does')
  folder = save_hugging_face(tmp_path / 'hf', 'vivit')
  local_hub.cached(cache, 'someone/model', folder)
  (note, *_) = sources.read(ADDRESS).notes
  assert f'revision {"c" * 40} of the cache is used' in note


def test_a_changed_file_of_the_cache_is_refused(cache, tmp_path):
  folder = save_hugging_face(tmp_path / 'hf', 'vivit')
  snapshot = local_hub.cached(cache, 'someone/model', folder)
  blob = (snapshot / 'model.safetensors').resolve()
  blob.write_bytes(blob.read_bytes()[:-1] + b'x')
  refused(f'damaged: {blob}: its content does not match its SHA-256')


# ----- the server -----


def test_a_download_is_pinned_cached_and_recorded(
  server, cache, tmp_path, monkeypatch
):
  folder = save_hugging_face(tmp_path / 'hf', 'classification')
  (folder / 'tf_model.h5').write_bytes(b'not needed')
  commit = server.add('someone/model', folder, license='cc-by-nc-4.0')
  first = sources.read(ADDRESS)
  assert first.path.parent.parent.parent.parent == cache
  assert first.hub['revision'] == first.path.parent.name == commit
  assert first.hub['license'] == 'cc-by-nc-4.0'
  assert set(first.hub['files']) == {'config.json', 'model.safetensors'}
  assert not [x for x in server.requests if 'tf_model' in x]
  # The same in one process, whatever is committed meanwhile.
  newer = server.repos['someone/model'].commit('main', {'config.json': b'{}'})
  assert sources.read(ADDRESS).hub == first.hub
  hub.fetch.cache_clear()
  assert sources.read(f'{ADDRESS}@{commit}').hub == first.hub
  assert sources.weights_path(ADDRESS).parent.name == newer
  # A download serves offline, by the same address.
  local_hub.use(monkeypatch, cache, offline=True)
  hub.fetch.cache_clear()
  assert sources.weights_path(ADDRESS).parent.name == newer


def test_safetensors_and_their_parts_come_before_pickles(server, tmp_path):
  folder = save_hugging_face(tmp_path / 'hf', 'classification')
  expected = convert.read(folder).variables
  whole = folder / 'model.safetensors'
  tensors = sources.read_arrays(whole)[1]
  names, parts = sorted(tensors), ('-00001-of-00002', '-00002-of-00002')
  places = {}
  for part, some in zip(parts, (names[:9], names[9:]), strict=True):
    file = f'model{part}.safetensors'
    sources_of = {n: tensors[n] for n in some}
    foreign_models.safetensors.numpy.save_file(sources_of, folder / file)
    places |= dict.fromkeys(some, file)
  index = {'weight_map': places}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  (folder / 'pytorch_model.bin').write_bytes(b'a pickle')
  whole.unlink()
  server.add('someone/model', folder)
  found = convert.read(ADDRESS)
  foreign_models.same(found.variables, expected)
  assert len(found.metadata['source']['hub']['files']) == 4
  assert not [x for x in server.requests if 'pytorch_model' in x]
  # Another usual name, in a folder of its own.
  server.repos['someone/model'].commit('more', {
    'a/weights.pth': b'?', 'a/weights.safetensors': b'?', 'b/x.pt': b'?',
    'b/y.pt': b'?',
  })  # fmt: skip
  found = hub.fetch(f'{ADDRESS}@more/a', sources._candidates).path
  assert found.name == 'weights.safetensors'
  refused('several_weights: .*: /b/x.pt, /b/y.pt', f'{ADDRESS}@more/b')
  refused('not_weights: .* its files are .*', f'{ADDRESS}@more/c')
  assert hub.fetch(f'{ADDRESS}@more/b/y.pt', sources._candidates).path.is_file()


def test_errors_name_the_fix(server, tmp_path):
  folder = save_hugging_face(tmp_path / 'hf', 'vivit')
  server.add('someone/model', folder)
  server.add('someone/gated', folder, gated=True)
  server.add('someone/private', folder, private=True)
  refused('not_found: .*no such revision; name a branch', f'{ADDRESS}@v9')
  refused('not_found: .*no such model; .*log in', 'hf://someone/els')
  refused('not_found: .*no such model; .*log in', 'hf://someone/private')
  refused('no_access: .*ask for access on its page at', 'hf://someone/gated')
  for wrong in ('hf://one', 'hf://a/b/', 'hf://a/b@', 'hf://a/b c', 'hf:/'):
    refused('bad_name: .*hf://OWNER/NAME', wrong, exit_code=2)
  refused('bad_name', 'hf://a/b--c..d', exit_code=2)
  shutil.rmtree(folder)
  folder.mkdir()
  (folder / 'tf_model.h5').write_bytes(b'?')
  server.add('someone/other', folder)
  refused('not_weights: .*its files are tf_model.h5', 'hf://someone/other')
  server.broken = 200
  refused('no_network: .*does not answer as a hub', f'{ADDRESS}@x')
  server.broken = 503
  refused('no_network: .*status 503', f'{ADDRESS}@y')


def test_who_is_logged_in_may_read(server, tmp_path, monkeypatch):
  folder = save_hugging_face(tmp_path / 'hf', 'vivit')
  server.add('someone/model', folder, private=True, gated=True)
  monkeypatch.setenv('HF_TOKEN', local_hub.TOKEN)
  assert sources.read(ADDRESS).hub['repository'] == 'someone/model'


def test_the_package_is_optional(monkeypatch, capsys, tmp_path):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  hub.fetch.cache_clear()
  refused(r'no_hub: .*pip install .mira-jax\[hub\]', exit_code=2)
  out = str(tmp_path / 'x.safetensors')
  assert cli.main(['convert', ADDRESS, out]) == 2
  assert capsys.readouterr().err.startswith('mira: no_hub: hf://someone/model')
  assert cli.main(['push', 'runs/x', 'us/faces', '--to=y']) == 2
  assert capsys.readouterr().err.startswith('mira: no_hub: hf://us/faces')


# ----- commands -----


def test_mira_convert_as_a_user_starts_it(server, tmp_path):
  """In a process of its own, where environment variables are read."""
  folder = save_hugging_face(tmp_path / 'hf', 'classification')
  commit = server.add('someone/model', folder)
  code = 'import sys; from mira_jax.cli.main import main; sys.exit(main())'
  command = runs.command(tmp_path / 'programs', '-c', code)
  command['env'] |= {'HF_HOME': str(tmp_path / 'home'), 'NO_PROXY': '*'}
  for offline in ('0', '1'):
    out = tmp_path / f'{offline}.safetensors'
    own = {'HF_ENDPOINT': server.url, 'HF_HUB_OFFLINE': offline}
    started = command | {
      'args': [*command['args'], 'convert', ADDRESS, str(out)],
      'env': command['env'] | own,
    }
    done = subprocess.run(**started, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_weights(out)[1]['source']['hub']['revision'] == commit
    server.broken = 500  # the second one asks nothing
  del own['HF_HUB_OFFLINE']
  started['env'] = command['env'] | own | {'HF_HOME': str(tmp_path / 'none')}
  done = subprocess.run(**started, capture_output=True, check=False)
  assert done.returncode == 2, done.stderr  # it exists
  assert done.stderr.count('\n') == 1


def test_a_run_records_what_it_started_from(
  server, tmp_path, capsys, compile_cache
):
  data = write(tmp_path, 'levels', ('a', 'b', 'c'), {'train': 12, 'test': 3})
  cfg = tiny(data, train={'epochs': 1, 'init_from': ADDRESS})
  names = {'names': ['a', 'b', 'c'], 'num_classes': 3, 'depth': 1}
  size = {'image_size': 16, 'frames': 8}
  save_model(tmp_path / 'other', cfg.model.mira, **names, **size)
  commit = server.add('someone/model', tmp_path / 'other')
  loop.train(cfg, tmp_path / 'run')
  shown = capsys.readouterr().out
  assert 'frames is 8 there and 4 here; --config.model.frames=8' in shown
  assert 'rate is 2 there and 1 here; --config.data.rate=2' in shown
  for file in ('weights.safetensors', 'weights-last.safetensors'):
    source = load_weights(tmp_path / 'run' / file)[1]['source']
    assert source['hub']['revision'] == commit
    weights = tmp_path / 'other' / 'weights.safetensors'
    assert source['sha256'] == sha256(weights)
  # A run that goes on asks no hub, and keeps the record.
  server.broken = 500
  hub.fetch.cache_clear()
  (tmp_path / 'run' / 'weights.safetensors').unlink()
  loop.train(cfg, tmp_path / 'run')
  path = tmp_path / 'run' / 'weights.safetensors'
  assert load_weights(path)[1]['source'] == source
  # What is made of it names the repository, too.
  assert sources.read(path).origin()['hub'] == source['hub']


def test_features_by_address_are_those_of_the_folder(server, tmp_path):
  folder = save_hugging_face(tmp_path / 'hf', 'pretraining')
  server.add('someone/model', folder)
  video = np.zeros((1, 4, 16, 16, 3), np.uint8)
  found = [
    load.load_backbone(path, 1)[0].logits(video)
    for path in (ADDRESS, str(folder))
  ]
  np.testing.assert_array_equal(*map(jax.device_get, found))
