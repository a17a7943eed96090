"""Exports: the engine numbers without the engine; damage; other programs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax import files
from mira_jax.augment import transforms
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import export, exported, load
from mira_jax.mira import MiraConfig
from mira_jax.synthetic import faces
from mira_jax.video import geometry
from mira_jax.weights import weights_file
from runs import file_limit
from small_models import NAMES, save_model

pytestmark = pytest.mark.usefixtures('compile_cache')

MODES = {
  'exact': MiraConfig(),
  'flashlite': MiraConfig(mode='flashlite'),
  'plain': None,
}
PRETRAIN = {
  'decoder_dim': 8,
  'decoder_depth': 1,
  'decoder_heads': 2,
  'mask_ratio': 0.9,
}


def save(folder, mira, **changes):
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
    assert export.write(run, folder / mode, platforms=platforms) <= 1e-5
  return folder


@pytest.fixture
def copy(exports, tmp_path):
  return shutil.copytree(exports / 'exact', tmp_path / 'copy')


def clips(count):
  shape = (count, 8, 32, 32, 3)
  return np.random.default_rng(count).integers(0, 256, shape, np.uint8)


def change_card(folder, **changes):
  """Writes a card anew, with a seal that fits."""
  card = json.loads((folder / exported.CARD).read_text()) | changes
  card[exported.SEAL] = exported.seal(card)
  (folder / exported.CARD).write_text(json.dumps(card))


def fails(capsys, *args):
  """The one line of a command that fails, and its exit code."""
  code = cli.main(list(map(str, args)))
  err = capsys.readouterr().err
  assert code != ExitCode.OK
  assert err.count('\n') == 1
  assert 'Traceback' not in err
  return code, err


def refused(capsys, folder, word):
  """Verifies an export, which fails with exit code CHECKPOINT."""
  code, err = fails(capsys, 'verify', folder)
  assert code == ExitCode.CHECKPOINT
  assert word in err


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
  assert made._call._cache_size() == 2  # one clip, and four


def test_the_golden_pair_is_synthetic_and_of_the_engine(runs, exports):
  with np.load(exports / 'exact' / exported.GOLDEN) as golden:
    found, expected = golden['clips'], golden['probabilities']
  face = faces.draw_clip(
    1, seed=0, split='test', difficulty='macro', num_frames=8
  )
  frame = geometry.resize(face.frames[3], 32)
  np.testing.assert_array_equal(found[1, 3], frame)
  scorer, _ = load.load_engine(runs['exact'])
  np.testing.assert_allclose(scorer.probabilities(found), expected, atol=1e-6)


@pytest.mark.parametrize(
  ('dtype', 'changes'),
  [
    ('bfloat16', {'variant': 'st_block'}),
    ('float32', {'variant': 'factorised_encoder', 'scan': True, 'depth': 2}),
  ],
)
def test_other_models_and_numbers_export(tmp_path, dtype, changes):
  run, out = save(tmp_path / 'run', MiraConfig(), **changes), tmp_path / 'out'
  difference = export.write(run, out, dtype=dtype, platforms=['cpu'])
  assert difference <= exported.TOLERANCES[dtype]
  made = exported.load(out)
  assert ('bf16' in made.program.mlir_module()) == (dtype == 'bfloat16')
  assert made.card['model']['dtype'] == dtype


# ----- what is in the folder --------------------------------------------------


def test_the_program_is_for_every_platform_and_full_precision(exports):
  program = exported.load(exports / 'exact').program
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  text = program.mlir_module()
  assert set(re.findall(r'custom_call @(\w+)', text)) <= {'shape_assertion'}
  products = re.findall(r'stablehlo.dot_general.*', text)
  assert products
  assert all(product.count('HIGHEST') == 2 for product in products)
  assert 'x64x64xf32' not in text  # no maps of clips and heads
  assert str(program.in_avals[-1]) == 'uint8[b,8,32,32,3]'
  stored = (exports / 'exact' / exported.PROGRAM).read_bytes()
  assert b'mira_jax/' not in stored  # no folder of this machine


def test_the_card_and_the_weights_need_nothing_else(runs, exports):
  folder = exports / 'flashlite'
  names = {exported.GOLDEN, exported.PROGRAM, weights_file.WEIGHTS}
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
  (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
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
  assert exported.load(out).program.platforms == ('cpu', 'tpu')
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
  [exported.CARD, exported.GOLDEN, exported.PROGRAM, weights_file.WEIGHTS],
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
  change_card(copy, platforms=['cpu'], format='mira export 2')
  refused(capsys, copy, 'too_new')
  # A program whose fields lie elsewhere, as another jax would have them.
  change_card(copy, format='mira export 1')
  reseal(copy, exported.PROGRAM, bytes(100))
  refused(capsys, copy, 'other_jax')


# ----- programs of other people -----------------------------------------------


def reseal(folder, name, content):
  """Puts a file into an export, whose card then fits."""
  (folder / name).write_bytes(content)
  card = json.loads((folder / exported.CARD).read_text())
  digest = files.sha256(folder / name)
  change_card(folder, files=card['files'] | {name: digest})


def put_program(folder, score, disabled=()):
  """Replaces the program of an export; its weights and clips stay."""
  program = exported.load(folder).program
  (arrays, _), _ = jax.tree.unflatten(
    program.in_tree,
    [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.in_avals],
  )
  (batch,) = jax.export.symbolic_shape('b')
  video = jax.ShapeDtypeStruct((batch, 8, 32, 32, 3), jnp.uint8)
  checks = [jax.export.DisabledSafetyCheck.custom_call(x) for x in disabled]
  made = jax.export.export(
    jax.jit(score), platforms=('cpu',), disabled_checks=checks
  )(arrays, video)
  reseal(folder, exported.PROGRAM, made.serialize())


def scores_of(logits):
  return {'logits': logits, 'probabilities': jax.nn.softmax(logits)}


def brightness(arrays, video):
  return scores_of(jnp.mean(video / 255, (1, 2, 3))[:, :1] * jnp.ones(7))


def with_call(target):
  """A program with a custom call of native code, deep inside a loop."""

  def score(arrays, video):
    def body(_, x):
      call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((7,), jnp.float32))
      return x + call(x)

    noise = jax.lax.fori_loop(0, 2, body, jnp.ones(7))
    return scores_of(brightness(arrays, video)['logits'] + noise)

  return score


def test_native_calls_are_refused_before_anything_runs(capsys, copy):
  target = 'xla_ffi_python_cpu_callback'
  put_program(copy, with_call(target), [target])
  refused(capsys, copy, f'unsafe_program: {copy / exported.PROGRAM}: ')
  code, err = fails(capsys, 'predict', f'--weights={copy}', 'a.mp4')
  assert code == ExitCode.CHECKPOINT
  assert f'the custom call {target!r}' in err


def test_programs_with_collectives_are_refused(copy):
  def sum_over_devices(arrays, video):
    mesh = jax.make_mesh((1,), ('x',))
    spec = jax.sharding.PartitionSpec()
    logits = jax.shard_map(
      lambda x: jax.lax.psum(x, 'x'), mesh=mesh, in_specs=spec, out_specs=spec
    )(brightness(arrays, video)['logits'])
    return scores_of(logits)

  put_program(copy, sum_over_devices)
  with pytest.raises(MiraInputError, match='unsafe_program'):
    exported.load(copy)


def test_a_foreign_program_that_only_computes_runs(copy):
  put_program(copy, brightness)
  made = exported.load(copy)
  np.testing.assert_allclose(made.probabilities(clips(3)), 1 / 7, atol=1e-6)
  with pytest.raises(MiraInputError, match='differs'):
    exported.verify(copy)


def test_a_program_that_never_ends_is_stopped(copy):
  def forever(arrays, video):
    logits = brightness(arrays, video)['logits']
    x = jax.lax.while_loop(
      lambda x: x[0, 0] < 2, lambda x: jnp.minimum(x + 1, 1), logits
    )
    return scores_of(x)

  put_program(copy, forever)
  code = (
    'import sys; from mira_jax.cli import main; '
    'from mira_jax.inference import untrusted; untrusted.SECONDS = 3; '
    'sys.exit(main.main(sys.argv[1:]))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, 'verify', str(copy)],
    capture_output=True, text=True, timeout=100,
  )  # fmt: skip
  assert done.returncode == ExitCode.CHECKPOINT
  assert done.stderr.startswith(f'mira: too_slow: {copy / exported.PROGRAM}: ')
  assert 'did not end within 3 s' in done.stderr
  assert done.stderr.count('\n') == 1


def test_numbers_that_are_not_finite_are_an_error(capsys, copy):
  def spoilt(arrays, video):
    logits = brightness(arrays, video)['logits']
    return {'logits': logits, 'probabilities': logits + np.inf}

  put_program(copy, spoilt)
  refused(capsys, copy, f'not_finite: {copy / exported.PROGRAM}: ')


@pytest.mark.parametrize(
  'score',
  [
    lambda arrays, video: scores_of(jnp.ones((video.shape[0], 3))),
    lambda arrays, video: scores_of(
      jnp.ones((video.shape[0], 7), jnp.bfloat16)
    ),
  ],
)
def test_a_program_with_other_outputs(copy, score):
  put_program(copy, score)
  with pytest.raises(MiraInputError, match='bad_program'):
    exported.load(copy).probabilities(clips(1))


def test_a_module_that_is_not_stablehlo(copy):
  program = exported.load(copy).program
  whole = program.mlir_module_serialized
  for module in (b'', whole[:-500]):
    damaged = dataclasses.replace(program, mlir_module_serialized=module)
    reseal(copy, exported.PROGRAM, damaged.serialize())
    with pytest.raises(MiraInputError, match='bad_program'):
      exported.load(copy)


def test_files_of_a_card_that_fits_are_checked_too(capsys, copy):
  path = copy / exported.GOLDEN
  with np.load(path) as golden:
    arrays = dict(golden)
  for change in (
    {'probabilities': np.array([None, {}], object)},
    {'clips': np.zeros((60, 8, 32, 32, 3), np.uint8)},  # takes little packed
  ):
    np.savez_compressed(path, **(arrays | change))
    reseal(copy, exported.GOLDEN, path.read_bytes())
    refused(capsys, copy, 'damaged: ')
  reseal(copy, exported.GOLDEN, b'PK')
  refused(capsys, copy, 'damaged: ')
  reseal(copy, weights_file.WEIGHTS, b'{}' * 100)
  refused(capsys, copy, weights_file.WEIGHTS)


@pytest.mark.parametrize(
  'changes',
  [
    {'model': 5},
    {'class_names': ['a'] * 7 + ['b']},
    {'files': []},
    {'platforms': []},
    {'golden': {'tolerance': 1e9}},
  ],
  ids=str,
)
def test_a_sealed_card_with_wrong_values(capsys, copy, changes):
  change_card(copy, **changes)
  refused(capsys, copy, 'bad_metadata: ')


def test_no_export_and_clips_of_another_shape(exports, tmp_path):
  with pytest.raises(MiraInputError, match='not_an_export'):
    exported.load(tmp_path)
  assert not exported.is_export(tmp_path)
  made = exported.load(exports / 'plain')
  for video in (clips(1)[:, :4], clips(1).astype(np.float32)):
    with pytest.raises(MiraInputError, match='bad_shape'):
      made.probabilities(video)


# ----- what cannot be exported ------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'word'),
  [
    ({'mira': MiraConfig(statistics='batch_ema')}, 'batch_statistics'),
    ({'mira': None, 'pretrain': PRETRAIN}, 'no_classifier'),
  ],
)
def test_models_that_cannot_be_exported(capsys, tmp_path, changes, word):
  run, out = save(tmp_path / 'run', **changes), tmp_path / 'out'
  code, err = fails(capsys, 'export', run, out)
  assert code == ExitCode.CHECKPOINT
  assert word in err
  assert [path.name for path in tmp_path.iterdir()] == ['run']


def test_flags_that_cannot_be(capsys, runs, tmp_path):
  out = tmp_path / 'out'
  for platforms in ('cpu,gpu', '', 'tpu'):
    code, err = fails(
      capsys, 'export', runs['exact'], out, f'--platforms={platforms}'
    )
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
  monkeypatch.setattr(transforms, 'MEAN', (0.9, 0.456, 0.406))
  traced = export._trace

  def trace_right(*args):
    with monkeypatch.context() as patch:
      patch.setattr(transforms, 'MEAN', (0.485, 0.456, 0.406))
      return traced(*args)

  monkeypatch.setattr(export, '_trace', trace_right)
  out = tmp_path / 'out'
  args = ['export', runs['exact'], out, '--platforms=cpu']
  code, err = fails(capsys, *args)
  assert code == ExitCode.CHECKPOINT
  assert 'differs' in err
  assert not list(tmp_path.iterdir())
