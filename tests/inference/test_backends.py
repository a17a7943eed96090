"""Models by OpenVINO and onnxruntime: the numbers of JAX, files, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

import numpy as np
import pytest

from exports import change_card, fails, needs_cpu, refused, reseal
from mira_jax.cli import main as cli
from mira_jax.devices import hardware
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import (
  backends,
  export,
  exported,
  load,
  predictor,
  runtimes,
)
from mira_jax.mira import MiraConfig
from mira_jax.models.options import VARIANTS
from runs import CLASSES, levels
from small_models import NAMES, save_model

CPU = ('openvino', 'onnx')
pytestmark = [
  pytest.mark.usefixtures('compile_cache', 'programs'),
  needs_cpu,
]

EXACT, FLASHLITE = MiraConfig(), MiraConfig(mode='flashlite')
FEW = {'mira': EXACT, 'stem': 'hog'}
MODELS = {
  'plain': {'mira': None},
  'exact': {'mira': EXACT},
  'flashlite': {'mira': FLASHLITE, 'pool': 'cls', 'positions': 'learned'},
  'batch': {'mira': MiraConfig(statistics='batch')},
  'batch_ema': {'mira': MiraConfig(mode='flashlite', statistics='batch_ema')},
  'stacked': {'mira': FLASHLITE, 'scan': True, 'gelu': 'tanh'},
  'half': {'mira': EXACT, 'dtype': 'bfloat16', 'layer_scale': 0.1},
  'ensemble': {'depth': 1, 'mira': None, 'members': 2, 'mirror': True},
  'probe': FEW | {'depth': 1, 'pool': 'attention'},
  **{name: {'mira': EXACT, 'variant': name} for name in VARIANTS[1:]},
}


@pytest.fixture
def programs(tmp_path, monkeypatch):
  """An empty cache of converted programs."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'mira_jax' / 'programs'


def save(folder, **changes):
  fields = {'dim': 32, 'frames': 8, 'head_scale': 10.0}
  return save_model(folder, **(fields | changes))


def clips(count):
  shape = (count, 8, 32, 32, 3)
  return np.random.default_rng(count).integers(0, 256, shape, np.uint8)


# ----- numbers ----------------------------------------------------------------


@pytest.mark.parametrize('name', MODELS)
def test_every_model_has_the_numbers_of_jax(tmp_path, name):
  run = save(tmp_path / 'run', **MODELS[name])
  engine, card = load.load_engine(run, 4, dtype='float32')
  for backend in CPU:
    served = backends.serve(engine, card, backend, 'float32')
    assert isinstance(served, exported.Exported)
    for count in (1, 4, 5):  # the last is padded with repeats
      video = clips(count)
      for output in ('logits', 'probabilities'):
        found, expected = (getattr(x, output)(video) for x in (served, engine))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3  # clips do differ


def test_long_clips_are_converted_without_their_maps(tmp_path, monkeypatch):
  monkeypatch.setattr(export, '_LARGEST_MAP', 100)  # bytes
  engine, card = load.load_engine(save(tmp_path / 'run', mira=EXACT), 2)
  for backend in CPU:
    served = backends.serve(engine, card, backend, 'float32')
    found = served.probabilities(clips(2))
    np.testing.assert_allclose(found, engine.probabilities(clips(2)), atol=1e-5)


def test_a_model_is_converted_once(tmp_path, programs, capsys):
  run = save(tmp_path / 'run', mira=EXACT)
  engine, card = load.load_engine(run)
  says = 'converting the model for onnx'
  backends.serve(engine, card, 'onnx')
  assert says in capsys.readouterr().err
  backends.serve(engine, card, 'onnx')
  assert says not in capsys.readouterr().err
  (folder,) = programs.iterdir()
  exported.verify(folder)
  other, card = load.load_engine(save(tmp_path / 'other', mira=None))
  backends.serve(other, card, 'onnx')
  assert len(list(programs.iterdir())) == 2


def test_only_the_programs_used_last_are_kept(tmp_path, programs, monkeypatch):
  monkeypatch.setattr(backends, '_KEPT', 2)
  run = save(tmp_path / 'run')
  for views in (1, 2, 3):
    engine, card = load.load_engine(run)
    card['preprocessing']['rate'] = views
    backends.serve(engine, card, 'onnx')
  kept = [
    json.loads((x / exported.CARD).read_text()) for x in programs.iterdir()
  ]
  assert {x['preprocessing']['rate'] for x in kept} == {2, 3}


def test_a_damaged_program_is_converted_anew(tmp_path, programs, capsys):
  engine, card = load.load_engine(save(tmp_path / 'run'))
  expected = backends.serve(engine, card, 'onnx').probabilities(clips(1))
  (folder,) = programs.iterdir()
  for name in (*runtimes.KINDS['onnx'].files, exported.CARD):
    (folder / name).write_bytes(b'cut')
    found = backends.serve(engine, card, 'onnx').probabilities(clips(1))
    np.testing.assert_array_equal(found, expected)
    assert capsys.readouterr().err.count('converting') >= 1
  shutil.rmtree(folder)
  folder.symlink_to('/nowhere')
  backends.serve(engine, card, 'onnx')
  assert list(programs.iterdir()) == [folder]


def test_what_other_processes_convert_is_kept(tmp_path, programs):
  engine, card = load.load_engine(save(tmp_path / 'run'))
  backends.serve(engine, card, 'onnx')
  (folder,) = programs.iterdir()
  parts = [programs / f'key.{i}' for i in range(2 * backends._KEPT)]
  for part in parts:
    part.mkdir()
  os.utime(parts[0], (0, 0))  # of a process that was killed
  backends.serve(engine, card, 'onnx')
  assert {*programs.iterdir()} == {folder, *parts[1:]}


def test_a_cache_that_cannot_be_written_is_named(tmp_path, programs, capsys):
  run = save(tmp_path / 'run')
  programs.parent.mkdir(parents=True)
  programs.touch()  # not a folder
  with pytest.raises(MiraInputError, match=r'not_written.*XDG_CACHE_HOME'):
    predictor.load(run, backend='onnx')


def test_bfloat16_serves_where_the_processor_has_it(tmp_path, capsys):
  run = save(tmp_path / 'run', mira=EXACT)
  engine, card = load.load_engine(run)
  served = backends.serve(engine, card, 'openvino')
  half = hardware.has_bfloat16()
  dtype = 'bfloat16' if half else 'float32'
  assert served.card['model']['dtype'] == dtype
  assert f'backend: openvino, {dtype}; golden pair' in capsys.readouterr().err
  found, expected = (x.probabilities(clips(3)) for x in (served, engine))
  error = np.abs(found - expected).max()
  assert error < exported.TOLERANCES[dtype]
  assert (error > 1e-5) == half  # it is computed so


def test_where_bfloat16_disagrees_float32_serves(tmp_path, monkeypatch):
  monkeypatch.setattr(hardware, 'has_bfloat16', lambda: True)
  monkeypatch.setitem(exported.TOLERANCES, 'bfloat16', 0.0)
  run, out = save(tmp_path / 'run', mira=EXACT), tmp_path / 'out'
  card = export.write(run, out, kind='openvino')
  assert card['model']['dtype'] == 'float32'
  assert exported.load(out).card['golden']['tolerance'] == 1e-5
  with pytest.raises(MiraInputError, match='differs'):
    export.write(run, tmp_path / 'b', kind='openvino', dtype='bfloat16')
  with pytest.raises(MiraInputError, match=r'differs.*--dtype=float32'):
    predictor.load(run, backend='openvino', dtype='bfloat16')


def test_the_advice_says_what_to_install(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(hardware, 'has_bfloat16', lambda: True)
  monkeypatch.setattr(backends, '_LARGE', 0)
  engine, card = load.load_engine(save(tmp_path / 'run'))
  assert backends.serve(engine, card, None) is engine
  assert 'pip' not in capsys.readouterr().err
  # The extra alone cannot convert a model.
  monkeypatch.setattr(runtimes, '_installed', lambda name: name != 'jax2onnx')
  backends.serve(engine, card, None)
  advice = capsys.readouterr().err
  assert '--backend=openvino' in advice
  with pytest.raises(MiraInputError) as refusal:
    backends.serve(engine, card, 'openvino')
  commands = refusal.value.hint.partition(': ')[2]
  assert 'jax2onnx' in commands
  assert commands in advice
  backends.serve(engine, card, 'jax')
  assert not capsys.readouterr().err


# ----- predictions and features -----------------------------------------------


@pytest.mark.parametrize('backend', CPU)
def test_a_predictor_has_all_that_jax_gives(tmp_path, backend):
  run = save(tmp_path / 'run', mira=EXACT)
  ours = predictor.load(run, views=2)
  theirs = predictor.load(run, views=2, backend=backend, dtype='float32')
  video = clips(2).reshape(16, 32, 32, 3)
  found, expected = (x.predict(video, records=True) for x in (theirs, ours))
  np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)
  np.testing.assert_array_equal(found.records.gain, expected.records.gain)
  features, wanted = (x.features(video) for x in (theirs, ours))
  np.testing.assert_allclose(features, wanted, atol=1e-5)


def test_a_backbone_has_features(tmp_path):
  run = save(tmp_path / 'run', names=[], mira=EXACT)
  video = clips(1)[0]
  ours, theirs = (
    predictor.load(run, backend=x, dtype='float32') for x in (None, 'openvino')
  )
  features, wanted = (x.features(video) for x in (theirs, ours))
  np.testing.assert_allclose(features, wanted, atol=1e-5)


# ----- exports ----------------------------------------------------------------


@pytest.fixture(scope='module')
def exports(tmp_path_factory, compile_cache):
  del compile_cache  # only that it is there before
  folder = tmp_path_factory.mktemp('exports')
  run = save(folder / 'run', mira=EXACT)
  for kind in CPU:
    export.write(run, folder / kind, kind=kind)
  return folder


@pytest.mark.parametrize('kind', CPU)
def test_the_commands(capsys, exports, tmp_path, kind):
  out = tmp_path / 'out'
  args = ['export', str(exports / 'run'), str(out), f'--to={kind}']
  assert cli.main([*args, '--dtype=float32']) == ExitCode.OK
  assert f'export for cpu ({kind}, float32)' in capsys.readouterr().out
  assert cli.main(['verify', str(out)]) == ExitCode.OK
  names = {*runtimes.KINDS[kind].files, exported.CARD, exported.GOLDEN}
  assert {path.name for path in out.iterdir()} == names
  for backend in runtimes.KINDS[kind].backends:
    found = exported.load(out, backend=backend)
    assert found.probabilities(clips(3)).shape == (3, len(NAMES))
  loaded = predictor.load(out)
  assert loaded.predict(clips(1)[0]).label in NAMES
  with pytest.raises(MiraInputError, match='bad_flag: --backend=jax'):
    predictor.load(out, backend='jax')


@pytest.mark.parametrize('kind', CPU)
def test_files_that_are_missing_changed_or_no_program(
  capsys, exports, tmp_path, kind
):
  copy = shutil.copytree(exports / kind, tmp_path / 'copy')
  for name in runtimes.KINDS[kind].files:
    path, whole = copy / name, (copy / name).read_bytes()
    path.unlink()
    refused(capsys, copy, f'missing: {path}')
    path.write_bytes(whole[:-1])
    refused(capsys, copy, f'changed: {path}')
    for wrong in (b'', whole[: len(whole) // 2], b'{}' * 50):
      reseal(copy, name, wrong)
      refused(capsys, copy, 'bad_program')
    reseal(copy, name, whole)
  exported.verify(copy)


def test_an_onnx_file_that_reads_others_is_refused(capsys, exports, tmp_path):
  import onnx

  copy = shutil.copytree(exports / 'onnx', tmp_path / 'copy')
  path = copy / runtimes.ONNX
  model = onnx.load(path, load_external_data=False)
  for tensor in model.graph.initializer:
    for entry in tensor.external_data:
      if entry.key == 'location':
        entry.value = '../secret'
  reseal(copy, runtimes.ONNX, model.SerializeToString())
  refused(capsys, copy, 'unsafe_program')
  model = onnx.load(exports / 'onnx' / runtimes.ONNX, load_external_data=False)
  model.opset_import.add(domain='com.example', version=1)
  reseal(copy, runtimes.ONNX, model.SerializeToString())
  refused(capsys, copy, 'com.example')


@pytest.mark.parametrize('kind', CPU)
def test_other_numbers_and_shapes_are_reported(capsys, exports, tmp_path, kind):
  copy = shutil.copytree(exports / kind, tmp_path / 'copy')
  with np.load(copy / exported.GOLDEN) as golden:
    arrays = dict(golden)
  arrays['probabilities'][1, 3] += 0.1
  np.savez(copy / exported.GOLDEN, **arrays)
  reseal(copy, exported.GOLDEN, (copy / exported.GOLDEN).read_bytes())
  refused(capsys, copy, 'differs')
  card = json.loads((copy / exported.CARD).read_text())
  change_card(copy, class_names=card['class_names'][:-1],
              model=card['model'] | {'num_classes': 6})  # fmt: skip
  refused(capsys, copy, 'damaged')  # the golden pair has seven


def test_the_example_of_the_documentation(exports, request, monkeypatch):
  text = (request.config.rootpath / 'docs' / 'export.md').read_text()
  code = re.findall(r'```python\n(.*?)```', text, re.DOTALL)[1]
  monkeypatch.chdir(exports / 'onnx')
  found: dict[str, np.ndarray] = {}
  exec(code, found)
  with np.load(exported.GOLDEN) as golden:
    np.testing.assert_allclose(
      found['probabilities'], golden['probabilities'], atol=1e-5
    )


def test_int8_states_what_it_costs(capsys, tmp_path):
  fields = {'mira': EXACT, 'image_size': 16, 'names': list(CLASSES)}
  run = save(tmp_path / 'run', **fields)
  args = ['export', run, tmp_path / 'out', '--to=openvino', '--int8']
  code, err = fails(capsys, *args)
  assert code == ExitCode.USAGE
  assert '--calibrate' in err
  args.append(f'--calibrate={levels(tmp_path / "data")}')
  assert cli.main(list(map(str, args))) == ExitCode.OK
  text = capsys.readouterr().out
  assert 'float32: WAR' in text
  assert 'int8: WAR' in text
  card = exported.load(tmp_path / 'out').card
  assert card['int8']['int8'].keys() == {'WAR', 'UAR'}
  weights = (tmp_path / 'out' / runtimes.BIN).stat().st_size
  export.write(run, tmp_path / 'whole', kind='openvino')
  assert weights < (tmp_path / 'whole' / runtimes.BIN).stat().st_size * 0.6


def test_calibration_without_a_clip(capsys, tmp_path):
  fields = {'image_size': 16, 'names': [CLASSES[1], 'third']}
  run, data = save(tmp_path / 'run', **fields), tmp_path / 'data'
  levels(data, train=1)  # of the other class
  flags = ['--to=openvino', '--int8', f'--calibrate={data}']
  code, err = fails(capsys, 'export', run, tmp_path / 'out', *flags)
  assert code == ExitCode.DATA
  assert 'no_clips' in err
  assert {x.name for x in tmp_path.iterdir()} == {'run', 'data'}


# ----- what cannot be ---------------------------------------------------------


def test_flags_that_cannot_be(capsys, exports, tmp_path):
  run, out = exports / 'run', tmp_path / 'out'
  for flags in (
    ['--to=onnx', '--platforms=cpu'],
    ['--to=onnx', '--int8'],
    ['--int8'],
    ['--to=openvino', '--calibrate=x'],
  ):
    code, err = fails(capsys, 'export', run, out, *flags)
    assert code == ExitCode.USAGE
    assert 'bad_flag' in err
  code, err = fails(capsys, 'export', run, out, '--to=onnx', '--dtype=bfloat16')
  assert 'bad_dtype' in err
  with pytest.raises(MiraInputError, match='bad_flag'):
    predictor.load(run, backend='openvino', int8=True)
  assert not list(tmp_path.iterdir())
  with pytest.raises(MiraInputError, match='take openvino'):  # no --to there
    predictor.load(run, backend='onnx', dtype='bfloat16')


def test_a_package_that_lacks_another(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'onnx_ir', None)  # as if not installed
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'none'))
  with pytest.raises(MiraInputError, match=r'no_backend.*onnx_ir'):
    predictor.load(save(tmp_path / 'run'), backend='openvino')


@pytest.mark.parametrize('backend', CPU)
def test_nothing_is_reported_to_the_makers(tmp_path, backend):
  engine, card = load.load_engine(save(tmp_path / 'run'))
  backends.serve(engine, card, backend)
  assert not sys.modules.get('openvino_telemetry')
