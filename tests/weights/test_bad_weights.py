"""Bad weights, and weights of another model, as users meet them.

One line, with a code, the path and what to do, and nothing of a file is run.
Numbers are those of the list that docs/errors.md shows.
"""

from __future__ import annotations

import pathlib
import re

import jax
import numpy as np
import optax
import pytest

import torch_files
from mira_jax import config
from mira_jax.cli import main as cli
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.models.layers import resize_positions
from mira_jax.train import init_from, step
from mira_jax.weights import torch_names, warm_start, weights_file
from small_weights import CONFIG, NAMES, save, variables


def state(**changes):
  """A whole state dict of PyTorch, with numbers of no meaning."""
  return torch_names.to_torch(variables(**changes), torch_names.CLASSIFIER)


def convert(capsys, path, *flags):
  """Runs the command. Gives its exit code and what it says of an error."""
  out = path.parent / 'out.safetensors'
  code = cli.main(
    ['convert', str(path), str(out), '--image-size=16', '--heads=2', *flags]
  )
  shown, err = capsys.readouterr()
  assert 'Traceback' not in err
  assert err.count('\n') == (code != 0)
  assert out.exists() == (code == 0)
  return code, err or shown


# ----- 43 to 46: files -----


def test_43_an_exploit_runs_nothing(tmp_path, capsys):
  attack = torch_files.Call(
    torch_files.Global('posix.system'), f'touch {tmp_path}/touched'
  )
  path = torch_files.save(
    tmp_path / 'a.pth', {'model': state(), 'args': attack}
  )
  assert convert(capsys, path)[0] == 0
  assert not (tmp_path / 'touched').exists()


def test_45_every_tensor_that_does_not_fit_is_named(tmp_path, capsys):
  tensors = state()
  del tensors['blocks.1.norm2.bias'], tensors['blocks.0.norm1.weight']
  tensors['blocks.0.odd.weight'] = np.zeros(2, np.float32)
  tensors['fc_norm.bias'] = np.zeros(3, np.float32)
  path = torch_files.save(tmp_path / 'a.pth', tensors)
  code, output = convert(capsys, path)
  assert code == ExitCode.CHECKPOINT
  for part in ('blocks.1.norm2.bias', 'blocks.0.norm1.weight',
               'odd.weight', 'fc_norm.bias is (3,), not (16,)'):  # fmt: skip
    assert part in output
  # Allowing one part allows no other, and nothing else than missing.
  assert convert(capsys, path, '--allow-missing=encoder')[0] != 0


def test_45_a_part_may_be_missing_if_asked(tmp_path, capsys):
  tensors = state()
  del tensors['fc_norm.bias'], tensors['fc_norm.weight']
  path = torch_files.save(tmp_path / 'a.pth', tensors)
  code, output = convert(capsys, path)
  assert code == ExitCode.CHECKPOINT
  assert 'missing: fc_norm' in output
  code, output = convert(capsys, path, '--allow-missing=neck')
  assert (code, 'embed, encoder, head, norm' in output) == (
    ExitCode.USAGE,
    True,
  )
  code, output = convert(capsys, path, '--allow-missing=norm')
  assert code == 0
  assert '2 tensors: params/norm/bias, params/norm/scale' in output
  got, _ = weights_file.load_weights(tmp_path / 'out.safetensors')
  np.testing.assert_array_equal(got['params']['norm']['scale'], np.ones(16))


def test_45_training_starts_from_a_whole_backbone(tmp_path):
  path = save(tmp_path, variables(seed=1), frames=4)
  own = variables(variant='st_block')
  with pytest.raises(MiraInputError, match='bad_weights') as caught:
    warm_start.transfer(own, path)
  assert 'encoder/block_*/framewise_attn/qkv/kernel (2)' in str(caught.value)
  assert 'allow_missing=encoder' in caught.value.hint
  _, output = warm_start.transfer(own, path, allow_missing=['encoder'])
  assert all('framewise' in name for name in output.missing)


@pytest.mark.parametrize('kind', ['overflow', 'ours'])
def test_46_numbers_that_are_none(tmp_path, kind):
  if kind == 'ours':
    tree, name = variables(), 'params/norm/scale'
    tree['params']['norm']['scale'][0] = np.nan
    path = save(tmp_path, tree)
  else:
    tensors, name = state(), 'blocks.1.mlp.fc1.bias'
    tensors[name] = tensors[name].astype(np.float64) * 1e300
    path = torch_files.save(tmp_path / 'a.pth', tensors)
  with pytest.raises(MiraInputError, match=f'not_finite.*{name}'):
    warm_start.transfer(variables(), path)


def test_45_tensors_of_absurd_shapes(tmp_path, capsys):
  tensors = state(positions='learned', pool='cls')
  for name in (
    'patch_embed.proj.weight', 'head.weight', 'blocks.0.attn.c_buf',
    'pos_embed', 'cls_token',
  ):  # fmt: skip
    broken = tensors | {name: np.zeros((), np.float32)}
    path = torch_files.save(tmp_path / 'a.pth', broken)
    code, output = convert(capsys, path)
    assert code == ExitCode.CHECKPOINT
    assert name in output or 'trained with' in output, (name, output)
    own = variables(positions='learned', pool='cls')
    if name in ('head.weight', 'blocks.0.attn.c_buf'):  # these start anew
      new, output = warm_start.transfer(own, path)
      assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, own)
      assert len(output.fresh + output.missing) == 1
    else:
      with pytest.raises(MiraInputError):
        warm_start.transfer(own, path)


# ----- 47: classes -----


@pytest.mark.parametrize(
  ('theirs', 'said'),
  [
    (NAMES, None),
    (('happy', 'angry', 'sad'), 'order of its classes was happy, angry, sad'),
    (('anger', 'happy', 'sad'), 'its classes were anger, happy, sad'),
  ],
)
def test_47_a_head_is_taken_for_the_same_classes_alone(tmp_path, theirs, said):
  source, own = variables(seed=1), variables()
  path = save(tmp_path, source, names=theirs)
  new, output = warm_start.transfer(own, path, class_names=NAMES)
  taken = source if said is None else own
  np.testing.assert_array_equal(
    new['params']['head']['kernel'], taken['params']['head']['kernel']
  )
  np.testing.assert_array_equal(
    new['params']['norm']['scale'], source['params']['norm']['scale']
  )
  if said:
    assert said in str(output)
    assert output.fresh == ['params/head/bias', 'params/head/kernel']
    assert 'params/head/kernel [16, 3]' in output.ignored
  else:
    assert (output.fresh, output.notes) == ([], [])


# ----- 48: sizes -----


@pytest.mark.parametrize(
  ('mira', 'frames', 'said'),
  [(None, 15, '--frames 15 must be a multiple of 2'),
   ({'mode': 'exact'}, 8, 'it was trained with 4')],
)  # fmt: skip
def test_48_frames_that_do_not_fit(tmp_path, capsys, mira, frames, said):
  path = torch_files.save(tmp_path / 'a.pth', state(mira=mira))
  code, output = convert(capsys, path, f'--frames={frames}')
  assert code == ExitCode.CHECKPOINT
  assert said in output


def test_48_averages_of_other_slots_start_anew(tmp_path):
  source = variables(seed=1)
  path = save(tmp_path, source)
  own = variables(frames=8)
  new, output = warm_start.transfer(own, path, grid=(4, 2, 2))
  np.testing.assert_array_equal(
    new['mira']['encoder']['block_0']['attn']['confidence'],
    own['mira']['encoder']['block_0']['attn']['confidence'],
  )
  assert len(output.missing) == 2
  assert "MiRA's averages start anew" in str(output)
  assert 'computed for 4 x 2 x 2 tokens, not 2 x 2 x 2' in str(output)


def test_48_learned_positions_are_interpolated_on_request(tmp_path):
  source = variables(seed=1, positions='learned', mira=None)
  # Eight positions show no grid; the buffer shows two temporal tokens.
  tensors = torch_names.to_torch(source, torch_names.CLASSIFIER)
  for i in range(2):
    tensors[f'blocks.{i}.attn.c_buf'] = np.full((1, 2), 0.5, np.float32)
  path = torch_files.save(tmp_path / 'a.pth', tensors)
  own = variables(frames=8, positions='learned', mira=None)
  with pytest.raises(MiraInputError, match='interpolate_positions') as caught:
    warm_start.transfer(own, path, grid=(4, 2, 2))
  assert '2 x 2 x 2 tokens' in caught.value.hint
  new, output = warm_start.transfer(own, path, grid=(4, 2, 2), interpolate=True)
  np.testing.assert_array_equal(
    new['params']['positions'],
    resize_positions(source['params']['positions'], (2, 2, 2), (4, 2, 2)),
  )
  assert 'interpolated from 2 x 2 x 2 to 4 x 2 x 2' in str(output)


def test_48_as_many_positions_of_another_grid_are_no_match(tmp_path):
  """2 slots of 4 x 4 tokens are as many as 8 slots of 2 x 2."""
  changes = {'positions': 'learned', 'mira': None}
  source = variables(image_size=32, **changes)
  path = save(tmp_path, source, image_size=32, **changes)
  own = variables(frames=16, **changes)
  assert own['params']['positions'].shape == (32, 16)
  with pytest.raises(MiraInputError, match='2 x 4 x 4'):
    warm_start.transfer(own, path, grid=(8, 2, 2))


@pytest.mark.parametrize('changes', [{'patch': 4}, {'dim': 32}])
def test_48_another_patch_or_width(tmp_path, changes):
  path = save(tmp_path, variables())
  words = 'other_size.*misshapen are params/embed/'
  with pytest.raises(MiraInputError, match=words):
    warm_start.transfer(variables(**changes), path)


# ----- training -----


def test_training_starts_from_what_convert_reads(tmp_path):
  source = variables(seed=1)
  tensors = torch_names.to_torch(source, torch_names.CLASSIFIER)
  path = torch_files.save(
    tmp_path / 'mp_rank_00_model_states.pt', {'module': tensors}
  ).parent
  cfg = config.Config(model=CONFIG)
  cfg.train.init_from = str(path)
  mesh = sharding.make_mesh()
  own = variables()
  fresh = step.init_state(lambda _: own, optax.sgd(0.1), None)
  got, output = init_from.start_from(cfg, NAMES, fresh, mesh)
  np.testing.assert_array_equal(
    got.params['encoder']['block_1']['attn']['qkv']['kernel'],
    source['params']['encoder']['block_1']['attn']['qkv']['kernel'],
  )
  assert 'the head starts anew' in str(output)
  cfg.train.init_from = str(tmp_path / 'absent')
  with pytest.raises(MiraInputError, match='random weights'):
    init_from.start_from(cfg, NAMES, fresh, mesh)


# ----- what no module may do -----

MODULES = sorted((pathlib.Path(__file__).parents[2] / 'mira_jax').rglob('*.py'))
UNSAFE = r"""(?x)
  ^\s*(import|from)\s(pickle|dill|joblib|marshal|shelve)\b |
  (?<![\w.])(eval|exec)\( | os\.(system|popen)\( | yaml\.(unsafe_)?load\( |
  torch\.load\((?!.*weights_only=True) | (shell|allow_pickle)=(?!False)
"""


def test_no_module_runs_what_a_file_says():
  assert len(MODULES) > 90
  found = {
    path.name: match[0].strip()
    for path in MODULES
    for match in re.finditer(UNSAFE, path.read_text(), re.MULTILINE)
  }
  # Jobs of a worker, which the same run wrote; docs/beam.md says so.
  assert found == {'beam.py': 'import pickle'}
