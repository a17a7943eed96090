"""Exports of other people: programs, cards and files are checked first."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exports import change_card, fails, refused, reseal
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import export, exported, runtimes
from mira_jax.weights import weights_file
from small_models import save_model

pytestmark = pytest.mark.usefixtures('compile_cache')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp('made')
  run = save_model(folder / 'run', depth=1, frames=8)
  export.write(run, folder / 'out', platforms=['cpu'])
  return folder / 'out'


@pytest.fixture
def copy(made, tmp_path):
  return shutil.copytree(made, tmp_path / 'copy')


def put_program(folder, score, disabled=()):
  """Replaces the program of an export; its weights and clips stay."""
  variables, _ = weights_file.load_weights(folder / weights_file.WEIGHTS)
  (batch,) = jax.export.symbolic_shape('b')
  video = jax.ShapeDtypeStruct((batch, 8, 32, 32, 3), jnp.uint8)
  checks = [jax.export.DisabledSafetyCheck.custom_call(x) for x in disabled]
  program = jax.export.export(
    jax.jit(score), platforms=('cpu',), disabled_checks=checks
  )(weights_file.flatten(variables), video)
  reseal(folder, runtimes.STABLEHLO, program.serialize())


def scores_of(logits):
  return {'logits': logits, 'probabilities': jax.nn.softmax(logits)}


def brightness(arrays, video):
  return scores_of(jnp.mean(video / 255, (1, 2, 3))[:, :1] * jnp.ones(7))


def test_a_foreign_program_that_only_computes_runs(copy):
  put_program(copy, brightness)
  video = np.zeros((3, 8, 32, 32, 3), np.uint8)
  found = exported.load(copy).probabilities(video)
  np.testing.assert_allclose(found, 1 / 7, atol=1e-6)
  with pytest.raises(MiraInputError, match='differs'):
    exported.verify(copy)


def test_native_calls_are_refused_before_anything_runs(capsys, copy):
  target = 'xla_ffi_python_cpu_callback'

  def score(arrays, video):
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((7,), jnp.float32))
    noise = jax.lax.fori_loop(0, 2, lambda _, x: x + call(x), jnp.ones(7))
    return scores_of(brightness(arrays, video)['logits'] + noise)

  put_program(copy, score, [target])
  refused(capsys, copy, f'unsafe_program: {copy / runtimes.STABLEHLO}: ')
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


def test_a_program_that_never_ends_is_stopped(copy):
  def forever(arrays, video):
    logits = brightness(arrays, video)['logits']
    x = jax.lax.while_loop(
      lambda x: x[0, 0] < 2, lambda x: jnp.minimum(x + 1, 1), logits
    )
    return scores_of(x)

  put_program(copy, forever)
  code = (
    'import sys; from mira_jax.inference import exported; '
    'exported.verify(sys.argv[1], seconds=2)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(copy)],
    capture_output=True, text=True, timeout=100,
  )  # fmt: skip
  assert done.returncode == ExitCode.CHECKPOINT
  assert done.stderr.startswith(
    f'mira: too_slow: {copy / runtimes.STABLEHLO}: '
  )
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('change', 'code'),
  [
    (lambda x: x[:, :3], 'bad_program'),
    (lambda x: x.astype(jnp.bfloat16), 'bad_program'),
    (lambda x: x + np.inf, 'not_finite'),
  ],
)
def test_a_program_with_other_outputs(copy, change, code):
  def score(arrays, video):
    found = brightness(arrays, video)
    return found | {'probabilities': change(found['probabilities'])}

  put_program(copy, score)
  with pytest.raises(MiraInputError, match=code):
    exported.verify(copy)


def test_a_module_that_is_not_stablehlo(copy):
  program = runtimes.read_stablehlo(copy, exported.load(copy).card)
  whole = program.mlir_module_serialized
  for module in (b'', whole[:-500]):
    damaged = dataclasses.replace(program, mlir_module_serialized=module)
    reseal(copy, runtimes.STABLEHLO, damaged.serialize())
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
