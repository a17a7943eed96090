"""Exports: the numbers of the engine, without the engine; and damage."""

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
import safetensors.numpy

import torch_files
from mira_jax import config
from mira_jax.augment import transforms
from mira_jax.cli import main as cli
from mira_jax.data import sampling
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import engine, export
from mira_jax.mira import MiraConfig
from mira_jax.synthetic import faces
from mira_jax.video import geometry
from mira_jax.weights import convert, huggingface, torch_names, weights_file
from runs import file_limit

pytestmark = pytest.mark.usefixtures('compile_cache')

NAMES = list(faces.CLASS_NAMES)
RULES = {'rate': 2, 'fit': 'crop'}
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


def save(folder, mira, names=NAMES, pretrain=None, **changes):
  """A run in small, as train.py leaves it; its classes are told apart."""
  fields = dataclasses.asdict(
    config.ModelConfig(
      dim=48, depth=2, heads=2, num_classes=len(names), frames=8,
      image_size=32, patch=8, mira=mira, head_scale=10.0,
    )
  ) | changes  # fmt: skip
  model = engine.build_model(fields)
  video = jnp.zeros((1, 8, 32, 32, 3))
  variables = jax.jit(model.init)(jax.random.key(0), video)
  card = {
    'model': fields,
    'pretrain': pretrain,
    'class_names': names,
    'preprocessing': RULES,
  }
  weights_file.save_weights(
    folder / weights_file.WEIGHTS,
    variables['params'],
    variables.get('mira', {}),
    card,
  )
  return folder


@pytest.fixture(scope='module')
def runs(tmp_path_factory, compile_cache):
  del compile_cache  # only that it is there before
  folder = tmp_path_factory.mktemp('runs')
  return {mode: save(folder / mode, mira) for mode, mira in MODES.items()}


@pytest.fixture(scope='module')
def exports(runs, tmp_path_factory):
  folder = tmp_path_factory.mktemp('exports')
  for mode, run in runs.items():
    assert export.write(run, folder / mode) <= 1e-5
  return folder


@pytest.fixture
def copy(exports, tmp_path):
  return shutil.copytree(exports / 'exact', tmp_path / 'copy')


def clips(count):
  shape = (count, 8, 32, 32, 3)
  return np.random.default_rng(count).integers(0, 256, shape, np.uint8)


def change_card(folder, **changes):
  """Writes a card anew that is whole, but says something else."""
  card = json.loads((folder / export.CARD).read_text()) | changes
  card[export.SEAL] = export._seal(card)
  (folder / export.CARD).write_text(json.dumps(card))


def fails(capsys, *args):
  """The one line of a command that fails, and its exit code."""
  code = cli.main(list(map(str, args)))
  err = capsys.readouterr().err
  assert code != ExitCode.OK
  assert err.count('\n') == 1
  assert 'Traceback' not in err
  return code, err


# ----- numbers ----------------------------------------------------------------


@pytest.mark.parametrize('mode', MODES)
def test_any_number_of_clips_scores_as_in_the_engine(runs, exports, mode):
  exported = export.load(exports / mode)
  scorer, _ = engine.load_run(runs[mode])
  for count in (1, 2, 3, 5):
    video = clips(count)
    found = exported.probabilities(video)
    assert found.dtype == np.float32
    expected = scorer.probabilities(video)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  assert np.ptp(expected, axis=0).max() > 1e-3  # clips do differ
  assert exported.probabilities(clips(0)).shape == (0, 7)


def test_modes_differ_by_more_than_is_allowed(exports):
  video = clips(2)
  found = [export.load(exports / m).probabilities(video) for m in MODES]
  for i, j in ((0, 1), (0, 2), (1, 2)):
    assert np.abs(found[i] - found[j]).max() > 1e-4


def test_few_sizes_compile(exports):
  exported = export.load(exports / 'plain', batch_size=4)
  video = clips(7)
  alone = [exported.probabilities(video[i : i + 1])[0] for i in range(7)]
  for count in (3, 4, 7):  # by fours; what is left by twos and fours
    found = exported.probabilities(video[:count])
    np.testing.assert_allclose(found, alone[:count], atol=1e-6)
  assert exported._call._cache_size() == 2  # one clip, and four


def test_the_golden_pair_is_drawn_and_of_the_engine(runs, exports):
  with np.load(exports / 'exact' / export.GOLDEN) as golden:
    found, expected = golden['clips'], golden['probabilities']
  assert (found.dtype, found.shape) == (np.uint8, (2, 8, 32, 32, 3))
  drawn = faces.draw_clip(
    1, seed=0, split='test', difficulty='macro', num_frames=16
  )
  for t in range(8):
    frame = geometry.resize(drawn.frames[2 * t], 32, 'crop')
    np.testing.assert_array_equal(found[1, t], frame)
  scorer, _ = engine.load_run(runs['exact'])
  np.testing.assert_allclose(scorer.probabilities(found), expected, atol=1e-6)


@pytest.mark.parametrize(
  'changes',
  [
    {'variant': 'factorised_self_attention'},
    {'variant': 'st_block', 'dtype': 'bfloat16'},
    {'variant': 'factorised_encoder', 'pool': 'cls', 'scan': True},
  ],
)
def test_other_models_export(tmp_path, changes):
  save(tmp_path / 'run', MiraConfig(), **changes)
  export.write(tmp_path / 'run', tmp_path / 'out', dtype='float32')
  assert export.load(tmp_path / 'out').card['model']['dtype'] == 'float32'


def test_bfloat16(runs, tmp_path):
  difference = export.write(runs['exact'], tmp_path / 'out', dtype='bfloat16')
  assert 1e-5 < difference <= export.TOLERANCES['bfloat16']
  exported = export.load(tmp_path / 'out')
  assert 'bf16' in exported.program.mlir_module()
  assert exported.card['model']['dtype'] == 'bfloat16'


# ----- what is in the folder --------------------------------------------------


def test_the_program_is_for_every_platform_and_full_precision(exports):
  program = export.load(exports / 'exact').program
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  text = program.mlir_module()
  assert set(re.findall(r'custom_call @(\w+)', text)) <= {'shape_assertion'}
  products = re.findall(r'stablehlo.dot_general.*', text)
  assert products
  assert all(product.count('HIGHEST') == 2 for product in products)
  assert 'x64x64xf32' not in text  # no maps of clips and heads
  assert str(program.in_avals[-1]) == 'uint8[b,8,32,32,3]'


def test_the_card_and_the_weights_need_nothing_else(runs, exports):
  folder = exports / 'flashlite'
  assert {path.name for path in folder.iterdir()} == {
    *(export.CARD, export.GOLDEN, export.PROGRAM, weights_file.WEIGHTS)
  }
  card = json.loads((folder / export.CARD).read_text())
  assert card['class_names'] == NAMES
  assert card['preprocessing'].items() >= RULES.items()
  assert card['input']['clips']['shape'] == ['b', 8, 32, 32, 3]
  assert card['input']['clips']['mean'] == list(transforms.MEAN)
  assert card['model']['mira']['mode'] == 'flashlite'
  assert card['jax_version'] == jax.__version__
  assert set(card['files']) == {
    export.GOLDEN,
    export.PROGRAM,
    weights_file.WEIGHTS,
  }
  # Its weights are those of a run.
  scorer, own = engine.load_run(folder)
  assert own == engine.load_run(runs['flashlite'])[1]
  assert scorer.model.attention is None


@pytest.mark.parametrize('rate', [1, 3])
def test_the_card_says_how_frames_are_taken(rate):
  # The formulas of the card, as a reader would write them down.
  model = engine.build_model(
    dataclasses.asdict(config.ModelConfig(frames=8, dim=48, num_classes=7))
  )
  told = export._rules(model, {'rate': rate, 'fit': 'squash'})['sampling']
  shift = float(re.search(r'round\(F / 2 - ([\d.]+)\)', told)[1])
  room = int(re.search(r'nor above F - (\d+)', told)[1])
  for count in range(1, 60):
    for windows in (1, 5):
      for i in range(windows):
        if count < 8:
          want = [min(t, count - 1) for t in range(8)]
        elif count < room:
          want = [round(t * (count - 1) / 7) for t in range(8)]
        else:
          start = round((i + 0.5) * count / windows - shift)
          start = min(max(start, 0), count - room)
          want = [start + rate * t for t in range(8)]
        found = sampling.test_indices(count, 8, rate, i, windows)
        assert found.tolist() == want


def test_the_example_of_the_documentation_needs_only_jax(exports, request):
  text = (request.config.rootpath / 'docs' / 'export.md').read_text()
  (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  lines = [line for line in code.splitlines() if line]
  assert len(lines) == 10
  hidden = ('mira_jax', 'flax', 'einops', 'optax', 'orbax', 'cv2', 'chex')
  hide = f'import sys\nfor name in {hidden}: sys.modules[name] = None\n'
  done = subprocess.run(
    [sys.executable, '-c', hide + code],
    cwd=exports / 'exact',
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  with np.load(exports / 'exact' / export.GOLDEN) as golden:
    best = [NAMES[i] for i in golden['probabilities'].argmax(-1)]
  assert done.stdout.split() == best


# ----- mira export, mira verify -----------------------------------------------


def test_the_commands(capsys, runs, tmp_path):
  run, out = runs['plain'], tmp_path / 'new' / 'out'
  only = '--platforms=cpu, tpu'
  assert cli.main(['export', str(run), str(out), only]) == ExitCode.OK
  assert 'export for cpu, tpu' in capsys.readouterr().out
  assert export.load(out).program.platforms == ('cpu', 'tpu')
  assert cli.main(['verify', str(out)]) == ExitCode.OK
  told = capsys.readouterr().out
  assert told.count('\n') == 1
  assert 'golden pair agrees' in told
  code, err = fails(capsys, 'export', run, out)
  assert code == ExitCode.USAGE
  assert 'exists' in err
  # --force replaces an export; a file of weights is as good as a run.
  file = runs['exact'] / weights_file.WEIGHTS
  assert cli.main(['export', str(file), str(out), '--force']) == ExitCode.OK
  assert export.load(out).card['model']['mira']['mode'] == 'exact'
  assert [path.name for path in out.parent.iterdir()] == ['out']


@pytest.mark.parametrize('wrapped', ['reference', 'hub'])
def test_weights_of_other_programs(capsys, runs, tmp_path, wrapped):
  run, out = runs['plain'], tmp_path / 'out'
  found = convert.read(run)
  state = torch_names.to_torch(found.variables, torch_names.CLASSIFIER)
  other = tmp_path / 'other'
  other.mkdir()
  if wrapped == 'hub':
    hub = huggingface.restore(state, vivit=False)
    hub = {name: np.ascontiguousarray(x) for name, x in hub.items()}
    safetensors.numpy.save_file(hub, other / 'model.safetensors')
    config = {'image_size': 32, 'num_frames': 8, 'num_attention_heads': 2}
    config |= {'layer_norm_eps': 1e-6, 'id2label': dict(enumerate(NAMES))}
    (other / 'config.json').write_text(json.dumps(config))
    flags = []
  else:
    torch_files.save(other / 'a.pth', {'model': state})
    flags = ['--heads=2', '--frames=8', '--image-size=32']
    flags += [f'--classes={",".join(NAMES)}']
  args = ['export', str(other), str(out), '--platforms=cpu', *flags]
  assert cli.main(args) == ExitCode.OK
  assert 'golden pair' in capsys.readouterr().out
  exported = export.load(out)
  assert exported.card['class_names'] == NAMES
  expected = engine.load_run(run)[0].probabilities(clips(2))
  np.testing.assert_allclose(
    exported.probabilities(clips(2)), expected, atol=1e-5
  )


@pytest.mark.parametrize(
  'name', [export.CARD, export.GOLDEN, export.PROGRAM, weights_file.WEIGHTS]
)
def test_a_file_that_is_missing_or_changed_is_named(capsys, copy, name):
  path = copy / name
  whole = bytearray(path.read_bytes())
  path.unlink()
  code, err = fails(capsys, 'verify', copy)
  assert code == ExitCode.CHECKPOINT
  assert f'missing: {path}' in err
  path.write_bytes(whole[: len(whole) // 2])
  assert f'changed: {path}' in fails(capsys, 'verify', copy)[1]
  place = whole.index(b'Happy') if name == export.CARD else len(whole) // 2
  whole[place] ^= 1
  path.write_bytes(whole)
  code, err = fails(capsys, 'verify', copy)
  assert code == ExitCode.CHECKPOINT
  assert f'changed: {path}' in err
  with pytest.raises(MiraInputError, match='changed'):
    export.load(copy)


@pytest.mark.parametrize('error', [3e-5, np.nan])
def test_numbers_that_differ_are_told(capsys, copy, error):
  with np.load(copy / export.GOLDEN) as golden:
    arrays = dict(golden)
  arrays['probabilities'][1, 3] += error  # of the second clip only
  np.savez(copy / export.GOLDEN, **arrays)
  card = json.loads((copy / export.CARD).read_text())
  digest = export._digest(copy / export.GOLDEN)
  change_card(copy, files=card['files'] | {export.GOLDEN: digest})
  code, err = fails(capsys, 'verify', copy)
  assert code == ExitCode.CHECKPOINT
  assert 'differs' in err
  assert str(copy) in err


def test_an_export_of_other_versions_and_devices(capsys, copy):
  change_card(copy, platforms=['tpu'])
  assert 'other_platform' in fails(capsys, 'verify', copy)[1]
  change_card(copy, platforms=['cpu'], calling_convention_version=99)
  code, err = fails(capsys, 'verify', copy)
  assert code == ExitCode.CHECKPOINT
  assert 'too_new' in err
  assert 'calling convention 99' in err
  change_card(copy, calling_convention_version=8)
  assert 'too_old' in fails(capsys, 'verify', copy)[1]
  change_card(copy, calling_convention_version=9, format='mira export 2')
  assert 'too_new' in fails(capsys, 'verify', copy)[1]
  # A program whose fields lie elsewhere, as another jax would have them.
  change_card(copy, calling_convention_version=9, format='mira export 1')
  reseal(copy, export.PROGRAM, bytes(100))
  assert 'other_jax' in fails(capsys, 'verify', copy)[1]


# ----- programs of somebody else ----------------------------------------------


def reseal(folder, name, content):
  """Puts a file into an export, whose card then fits."""
  (folder / name).write_bytes(content)
  card = json.loads((folder / export.CARD).read_text())
  digest = export._digest(folder / name)
  change_card(folder, files=card['files'] | {name: digest})


def put_program(folder, score, disabled=()):
  """Replaces the program of an export; its weights and clips stay."""
  program = export.load(folder).program
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
  reseal(folder, export.PROGRAM, made.serialize())


def scores_of(logits):
  return {'logits': logits, 'probabilities': jax.nn.softmax(logits)}


def brightness(arrays, video):
  return scores_of(jnp.mean(video / 255, (1, 2, 3))[:, :1] * jnp.ones(7))


def with_call(target, **options):
  """A program with a custom call of native code, deep inside a loop."""

  def score(arrays, video):
    def body(_, x):
      call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((7,), jnp.float32))
      return x + call(x, **options)

    noise = jax.lax.fori_loop(0, 2, body, jnp.ones(7))
    logits = brightness(arrays, video)['logits'] + noise
    return scores_of(logits)

  return score


@pytest.mark.parametrize(
  'target', ['xla_ffi_python_cpu_callback', 'lapack_sgeqrf_ffi', 'system']
)
def test_native_calls_are_refused_before_anything_runs(capsys, copy, target):
  put_program(copy, with_call(target), [target])
  code, err = fails(capsys, 'verify', copy)
  assert code == ExitCode.CHECKPOINT
  assert f'unsafe_program: {copy / export.PROGRAM}: ' in err
  assert f'the custom call {target!r}' in err
  code, err = fails(capsys, 'predict', f'--weights={copy}', 'a.mp4')
  assert code == ExitCode.CHECKPOINT
  assert 'unsafe_program' in err


def test_programs_that_talk_are_refused(copy):
  def sum_over_devices(arrays, video):
    mesh = jax.make_mesh((1,), ('x',))
    spec = jax.sharding.PartitionSpec()
    logits = jax.shard_map(
      lambda x: jax.lax.psum(x, 'x'), mesh=mesh, in_specs=spec, out_specs=spec
    )(brightness(arrays, video)['logits'])
    return scores_of(logits)

  put_program(copy, sum_over_devices)
  with pytest.raises(MiraInputError, match='unsafe_program'):
    export.load(copy)


def test_a_program_of_somebody_else_that_only_computes_runs(copy):
  put_program(copy, brightness)
  exported = export.load(copy)
  np.testing.assert_allclose(exported.probabilities(clips(3)), 1 / 7, atol=1e-6)
  with pytest.raises(MiraInputError, match='differs'):
    export.verify(copy)


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
  assert done.stderr.startswith(f'mira: too_slow: {copy / export.PROGRAM}: ')
  assert 'did not end within 3 s' in done.stderr
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_an_error(capsys, copy, value):
  def spoilt(arrays, video):
    logits = brightness(arrays, video)['logits']
    return {'logits': logits, 'probabilities': logits + value}

  put_program(copy, spoilt)
  code, err = fails(capsys, 'verify', copy)
  assert code == ExitCode.CHECKPOINT
  assert f'not_finite: {copy / export.PROGRAM}: ' in err
  with pytest.raises(MiraInputError, match='not_finite'):
    export.load(copy).probabilities(clips(1))


@pytest.mark.parametrize(
  'score',
  [
    lambda arrays, video: jnp.ones(3),
    lambda arrays, video: scores_of(jnp.ones((video.shape[0], 3))),
    lambda arrays, video: scores_of(
      jnp.ones((video.shape[0], 7), jnp.bfloat16)
    ),
  ],
)
def test_a_program_that_scores_otherwise(copy, score):
  put_program(copy, score)
  with pytest.raises(MiraInputError, match='bad_program'):
    export.load(copy)


def test_a_module_that_is_no_stablehlo(copy):
  program = export.load(copy).program
  whole = program.mlir_module_serialized
  for module in (b'', b'ML\xefR', whole[:-500], whole[::-1], bytes(2000)):
    damaged = dataclasses.replace(program, mlir_module_serialized=module)
    reseal(copy, export.PROGRAM, damaged.serialize())
    with pytest.raises(MiraInputError, match='bad_program'):
      export.load(copy)


def test_files_of_a_card_that_fits_are_checked_too(capsys, copy):
  whole = (copy / export.GOLDEN).read_bytes()
  with np.load(copy / export.GOLDEN) as golden:
    arrays = dict(golden)
  for change in (
    {'clips': arrays['clips'][:1]},
    {'clips': arrays['clips'].astype(float)},
    {'probabilities': np.array([None, {}], object)},
    {'clips': np.zeros((60, 8, 32, 32, 3), np.uint8)},  # takes little packed
  ):
    np.savez_compressed(copy / export.GOLDEN, **(arrays | change))
    reseal(copy, export.GOLDEN, (copy / export.GOLDEN).read_bytes())
    code, err = fails(capsys, 'verify', copy)
    assert (code, 'damaged: ' in err) == (ExitCode.CHECKPOINT, True)
  reseal(copy, export.GOLDEN, b'PK')
  assert 'damaged: ' in fails(capsys, 'verify', copy)[1]
  reseal(copy, export.GOLDEN, whole)
  for content in (b'', b'{}' * 100):
    reseal(copy, weights_file.WEIGHTS, content)
    assert fails(capsys, 'verify', copy)[0] == ExitCode.CHECKPOINT


@pytest.mark.parametrize(
  'changes',
  [
    {'model': 5},
    {'model': {'frames': 10**9}},
    {'class_names': 'abc'},
    {'class_names': ['a'] * 7 + ['b']},
    {'preprocessing': {'rate': 0, 'fit': 'crop'}},
    {'preprocessing': []},
    {'files': {}},
    {'files': []},
    {'files': {export.PROGRAM: 7}},
    {'platforms': 3},
    {'platforms': []},
    {'platforms': [1]},
    {'golden': {'tolerance': 1e9}},
    {'golden': None},
    {'jax_version': None},
    {'calling_convention_version': '9'},
    {'format': 7},
    {'format': 'mira export one'},
  ],
  ids=str,
)
def test_a_card_that_fits_itself_but_says_wrong_things(capsys, copy, changes):
  change_card(copy, **changes)
  code, err = fails(capsys, 'verify', copy)
  assert code == ExitCode.CHECKPOINT
  assert 'bad_card: ' in err or 'changed: ' in err


def test_what_is_no_export(tmp_path):
  with pytest.raises(MiraInputError, match='not_an_export'):
    export.load(tmp_path)
  assert not export.is_export(tmp_path)


def test_clips_of_another_shape(exports):
  exported = export.load(exports / 'plain')
  for video in (clips(1)[:, :4], clips(1).astype(np.float32)):
    with pytest.raises(MiraInputError, match='bad_shape'):
      exported.probabilities(video)


# ----- what cannot be exported ------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'word'),
  [
    ({'mira': MiraConfig(statistics='batch')}, 'batch_statistics'),
    ({'mira': MiraConfig(statistics='batch_ema')}, 'batch_statistics'),
    ({'mira': None, 'pretrain': PRETRAIN}, 'no_classifier'),
    ({'mira': None, 'names': [], 'num_classes': 0}, 'no_classifier'),
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
  assert 'not_a_run' in fails(capsys, 'export', tmp_path, out)[1]
  assert not list(tmp_path.iterdir())
  # Nothing but an export is replaced.
  out.mkdir()
  (out / 'thesis.tex').touch()
  assert 'exists' in fails(capsys, 'export', runs['exact'], out, '--force')[1]
  assert (out / 'thesis.tex').exists()


def test_a_full_disk_leaves_nothing(capsys, runs, tmp_path):
  for size in (1000, 100_000):  # bytes; of any file
    with file_limit(size):
      code, err = fails(capsys, 'export', runs['plain'], tmp_path / 'out')
    assert code == ExitCode.NOT_WRITTEN
    assert 'not_written' in err
    assert not list(tmp_path.iterdir())


def test_an_export_that_computes_otherwise_leaves_nothing(
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
  code, err = fails(capsys, 'export', runs['exact'], out)
  assert code == ExitCode.CHECKPOINT
  assert 'differs' in err
  assert not list(tmp_path.iterdir())
