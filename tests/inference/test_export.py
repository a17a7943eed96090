"""Exports: the engine numbers without the engine; damage; other programs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from exports import change_card, fails, refused, reseal
from mira_jax.augment import transforms
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import export, exported, load, runtimes
from mira_jax.mira import MiraConfig
from mira_jax.weights import weights_file
from runs import file_limit
from small_models import NAMES, save_model

pytestmark = pytest.mark.usefixtures('compile_cache')

MODES = {
  'exact': MiraConfig(),
  'flashlite': MiraConfig(mode='flashlite'),
  'plain': None,
}


def save(folder, mira=None, **changes):
  fields = {'dim': 32, 'frames': 8, 'head_scale': 10.0, 'depth': 1}
  return save_model(folder, mira, **(fields | changes))


@pytest.fixture(scope='module')
def runs(tmp_path_factory, compile_cache):
  del compile_cache  # only that it is there before
  folder = tmp_path_factory.mktemp('runs')
  return {mode: save(folder / mode, mira) for mode, mira in MODES.items()}


@pytest.fixture(scope='module')
def exports(runs, tmp_path_factory):
  folder = tmp_path_factory.mktemp('exports')
  for mode, run in runs.items():
    platforms = export.PLATFORMS if mode == 'exact' else ('cpu',)
    card = export.write(run, folder / mode, platforms=platforms)
    assert card['golden']['difference'] <= 1e-5
  return folder


@pytest.fixture
def copy(exports, tmp_path):
  return shutil.copytree(exports / 'exact', tmp_path / 'copy')


def program(folder):
  """The program that `jax.export` stored."""
  card = json.loads((folder / exported.CARD).read_text())
  return runtimes.read_stablehlo(folder, card)


def clips(count):
  shape = (count, 8, 32, 32, 3)
  return np.random.default_rng(count).integers(0, 256, shape, np.uint8)


# ----- numbers ----------------------------------------------------------------


@pytest.mark.parametrize('mode', MODES)
def test_any_number_of_clips_scores_as_in_the_engine(runs, exports, mode):
  made = exported.load(exports / mode, batch_size=4)
  scorer, _ = load.load_engine(runs[mode])
  for count in (1, 7):
    video = clips(count)
    found = made.probabilities(video)
    assert found.dtype == np.float32
    expected = scorer.probabilities(video)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  assert np.ptp(expected, axis=0).max() > 1e-3  # clips do differ
  assert made.probabilities(clips(0)).shape == (0, 7)
  assert made.run.func._cache_size() == 2  # one clip, and four


@pytest.mark.parametrize(
  ('dtype', 'changes'),
  [
    ('bfloat16', {'variant': 'st_block'}),
    ('float32', {'variant': 'factorised_encoder', 'scan': True, 'depth': 2}),
  ],
)
def test_other_models_and_numbers_export(tmp_path, dtype, changes):
  run, out = save(tmp_path / 'run', MiraConfig(), **changes), tmp_path / 'out'
  card = export.write(run, out, dtype=dtype, platforms=['cpu'])
  assert card['golden']['difference'] <= exported.TOLERANCES[dtype]
  assert ('bf16' in program(out).mlir_module()) == (dtype == 'bfloat16')
  assert exported.load(out).card['model']['dtype'] == dtype


# ----- what is in the folder --------------------------------------------------


def test_the_program_is_for_every_platform_and_full_precision(exports):
  stored = program(exports / 'exact')
  assert stored.platforms == ('cpu', 'cuda', 'tpu')
  text = stored.mlir_module()
  assert set(re.findall(r'custom_call @(\w+)', text)) <= {'shape_assertion'}
  products = re.findall(r'stablehlo.dot_general.*', text)
  assert products
  assert all(product.count('HIGHEST') == 2 for product in products)
  assert 'x64x64xf32' not in text  # no maps of clips and heads
  assert str(stored.in_avals[-1]) == 'uint8[b,8,32,32,3]'
  content = (exports / 'exact' / runtimes.STABLEHLO).read_bytes()
  assert b'mira_jax/' not in content  # no folder of this machine


def test_the_card_and_the_weights_need_nothing_else(runs, exports):
  folder = exports / 'flashlite'
  names = {exported.GOLDEN, runtimes.STABLEHLO, weights_file.WEIGHTS}
  assert {path.name for path in folder.iterdir()} == names | {exported.CARD}
  card = json.loads((folder / exported.CARD).read_text())
  assert card['class_names'] == NAMES
  assert card['preprocessing'].items() >= {'rate': 2, 'fit': 'crop'}.items()
  assert card['input']['clips']['shape'] == ['b', 8, 32, 32, 3]
  assert card['input']['clips']['mean'] == list(transforms.MEAN)
  assert card['model']['mira']['mode'] == 'flashlite'
  assert card['jax_version'] == jax.__version__
  assert set(card['files']) == names
  # Its weights are those of a run.
  assert load.read(folder).metadata == load.read(runs['flashlite']).metadata


def test_the_example_of_the_documentation_needs_only_jax(exports, request):
  text = (request.config.rootpath / 'docs' / 'export.md').read_text()
  code = re.findall(r'```python\n(.*?)```', text, re.DOTALL)[0]
  hidden = ('mira_jax', 'flax', 'einops', 'optax', 'orbax', 'cv2', 'chex')
  hide = f'import sys\nfor name in {hidden}: sys.modules[name] = None\n'
  done = subprocess.run(
    [sys.executable, '-c', hide + code],
    cwd=exports / 'exact',
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  with np.load(exports / 'exact' / exported.GOLDEN) as golden:
    best = [NAMES[i] for i in golden['probabilities'].argmax(-1)]
  assert done.stdout.split() == best


# ----- mira export, mira verify -----------------------------------------------


def test_the_commands(capsys, runs, tmp_path):
  run, out = runs['plain'], tmp_path / 'new' / 'out'
  only = '--platforms=cpu, tpu'
  assert cli.main(['export', str(run), str(out), only]) == ExitCode.OK
  assert 'export for cpu, tpu' in capsys.readouterr().out
  assert program(out).platforms == ('cpu', 'tpu')
  assert cli.main(['verify', str(out)]) == ExitCode.OK
  text = capsys.readouterr().out
  assert text.count('\n') == 1
  assert 'golden pair agrees' in text
  code, err = fails(capsys, 'export', run, out)
  assert code == ExitCode.USAGE
  assert 'exists' in err
  # --force replaces an export; a file of weights is as good as a run.
  file = runs['exact'] / weights_file.WEIGHTS
  args = ['export', str(file), str(out), '--force', '--platforms=cpu']
  assert cli.main(args) == ExitCode.OK
  assert exported.load(out).card['model']['mira']['mode'] == 'exact'
  assert [path.name for path in out.parent.iterdir()] == ['out']


@pytest.mark.parametrize(
  'name',
  [exported.CARD, exported.GOLDEN, runtimes.STABLEHLO, weights_file.WEIGHTS],
)
def test_a_file_that_is_missing_or_changed_is_named(capsys, copy, name):
  path = copy / name
  whole = bytearray(path.read_bytes())
  path.unlink()
  refused(capsys, copy, f'missing: {path}')
  path.write_bytes(whole[: len(whole) // 2])
  refused(capsys, copy, f'changed: {path}')
  place = whole.index(b'Happy') if name == exported.CARD else len(whole) // 2
  whole[place] ^= 1
  path.write_bytes(whole)
  refused(capsys, copy, f'changed: {path}')


@pytest.mark.parametrize('error', [3e-5, np.nan])
def test_numbers_that_differ_are_reported(capsys, copy, error):
  with np.load(copy / exported.GOLDEN) as golden:
    arrays = dict(golden)
  arrays['probabilities'][1, 3] += error  # of the second clip only
  np.savez(copy / exported.GOLDEN, **arrays)
  reseal(copy, exported.GOLDEN, (copy / exported.GOLDEN).read_bytes())
  refused(capsys, copy, f'differs: {copy}')


def test_an_export_of_other_versions_and_devices(capsys, copy):
  change_card(copy, platforms=['tpu'])
  refused(capsys, copy, 'other_platform')
  change_card(copy, platforms=['cpu'], format='mira export 3')
  refused(capsys, copy, 'too_new')
  # A program whose fields lie elsewhere, as another jax would have them.
  change_card(copy, format='mira export 1')
  reseal(copy, runtimes.STABLEHLO, bytes(100))
  refused(capsys, copy, 'other_jax')


# ----- what cannot be exported ------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'word'),
  [
    ({'mira': MiraConfig(statistics='batch_ema')}, 'batch_statistics'),
    ({'names': []}, 'no_classifier'),
  ],
)
def test_models_that_cannot_be_exported(capsys, tmp_path, changes, word):
  run, out = save(tmp_path / 'run', **changes), tmp_path / 'out'
  code, err = fails(capsys, 'export', run, out)
  assert code == ExitCode.CHECKPOINT
  assert word in err
  assert [path.name for path in tmp_path.iterdir()] == ['run']


def test_flags_that_cannot_be(capsys, runs, tmp_path):
  with pytest.raises(MiraInputError, match='not_an_export'):
    exported.load(tmp_path)
  out = tmp_path / 'out'
  for platforms in ('cpu,gpu', '', 'tpu'):
    args = ['export', runs['exact'], out, f'--platforms={platforms}']
    code, err = fails(capsys, *args)
    assert code == ExitCode.USAGE
    assert 'bad_platform' in err
  assert 'not_found' in fails(capsys, 'export', tmp_path, out)[1]
  assert not list(tmp_path.iterdir())
  # Nothing but an export is replaced.
  out.mkdir()
  (out / 'thesis.tex').touch()
  assert 'exists' in fails(capsys, 'export', runs['exact'], out, '--force')[1]
  assert (out / 'thesis.tex').exists()


def test_a_full_disk_leaves_nothing(capsys, runs, tmp_path):
  args = ['export', runs['plain'], tmp_path / 'out', '--platforms=cpu']
  with file_limit(20_000):  # bytes; of any file
    code, err = fails(capsys, *args)
  assert code == ExitCode.NOT_WRITTEN
  assert 'not_written' in err
  assert not list(tmp_path.iterdir())


def test_an_export_with_other_numbers_leaves_nothing(
  capsys, runs, tmp_path, monkeypatch
):
  traced = export._trace

  def trace_wrong(*args):
    with monkeypatch.context() as patch:
      patch.setattr(transforms, 'MEAN', (0.9, 0.456, 0.406))
      return traced(*args)

  monkeypatch.setattr(export, '_trace', trace_wrong)
  out = tmp_path / 'out'
  args = ['export', runs['exact'], out, '--platforms=cpu']
  code, err = fails(capsys, *args)
  assert code == ExitCode.CHECKPOINT
  assert 'differs' in err
  assert not list(tmp_path.iterdir())
