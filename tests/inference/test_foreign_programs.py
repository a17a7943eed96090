"""ONNX and OpenVINO files of other people, in the place of an export's."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from exports import needs_cpu, refused, reseal
from mira_jax.errors import MiraInputError
from mira_jax.inference import export, exported, predictor, runtimes
from small_models import NAMES, save_model

pytestmark = [
  pytest.mark.usefixtures('compile_cache'),
  needs_cpu,
]
CLIPS = ['b', 8, 32, 32, 3]
WIDTH = len(NAMES)


@pytest.fixture(scope='module')
def made(tmp_path_factory, compile_cache):
  del compile_cache  # only that it is there before
  folder = tmp_path_factory.mktemp('made')
  run = save_model(folder / 'run', dim=32, frames=8, head_scale=10.0)
  for kind in ('onnx', 'openvino'):
    export.write(run, folder / kind, kind=kind, dtype='float32')
  return folder


@pytest.fixture
def copy(made, tmp_path):
  return shutil.copytree(made / 'onnx', tmp_path / 'copy')


def external(name, location, length):
  import onnx

  tensor = onnx.TensorProto(
    name=name,
    data_type=onnx.TensorProto.FLOAT,
    dims=[WIDTH],
    data_location=onnx.TensorProto.EXTERNAL,
  )
  for key, value in (('location', location), ('length', str(length))):
    tensor.external_data.add(key=key, value=value)
  return tensor


def brightness(*nodes, inputs=(), outputs=(), sparse=()):
  """A program whose logits 'logits' are the brightness 'base', and `nodes`."""
  from onnx import TensorProto, helper, numpy_helper

  arrays = {'axes': np.arange(1, 5), 'one': np.ones(1, np.int64)}
  arrays |= {} if sparse else {'ones': np.ones((1, WIDTH), np.float32)}
  names = ('logits', 'probabilities')
  graph = helper.make_graph(
    [
      helper.make_node('Cast', ['clips'], ['float'], to=TensorProto.FLOAT),
      helper.make_node('ReduceMean', ['float', 'axes'], ['mean'], keepdims=0),
      helper.make_node('Unsqueeze', ['mean', 'one'], ['means']),
      helper.make_node('Mul', ['means', 'ones'], ['base']),
      *(nodes or [helper.make_node('Identity', ['base'], ['logits'])]),
      helper.make_node('Softmax', ['base'], ['probabilities']),
    ],
    'foreign',
    [
      helper.make_tensor_value_info('clips', TensorProto.UINT8, CLIPS),
      *(
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in inputs
      ),
    ],
    [
      helper.make_tensor_value_info(n, TensorProto.FLOAT, ['b', WIDTH])
      for n in outputs or names
    ],
    [numpy_helper.from_array(x, name) for name, x in arrays.items()],
    sparse_initializer=sparse,
  )
  imports = [helper.make_opsetid('', 18)]
  return helper.make_model(graph, opset_imports=imports, ir_version=9)


def put(folder, model):
  reseal(folder, runtimes.ONNX, model.SerializeToString())


@pytest.mark.parametrize('backend', ['onnx', 'openvino'])
def test_a_foreign_program_that_only_computes_runs(copy, backend):
  put(copy, brightness())
  found = exported.load(copy, backend=backend).probabilities(
    np.zeros((3, *CLIPS[1:]), np.uint8)
  )
  np.testing.assert_allclose(found, 1 / WIDTH, atol=1e-6)
  with pytest.raises(MiraInputError, match='differs'):
    exported.verify(copy, backend=backend)


def test_every_tensor_and_node_of_a_file_is_checked(capsys, copy):
  import onnx

  node = onnx.helper.make_node
  values = external('ones', '../secret', 4 * WIDTH)
  indices = onnx.numpy_helper.from_array(np.arange(WIDTH), 'indices')
  sparse = onnx.SparseTensorProto(
    values=values, indices=indices, dims=[1, WIDTH]
  )
  put(copy, brightness(sparse=[sparse]))
  refused(capsys, copy, 'it uses ../secret')
  constant = node('Constant', [], ['x'], sparse_value=sparse)
  add = node('Add', ['base', 'x'], ['logits'])
  put(copy, brightness(constant, add))
  refused(capsys, copy, 'it uses ../secret')
  # onnxruntime knows this domain, imported or not.
  foreign = node('Gelu', ['base'], ['logits'], domain='com.microsoft')
  put(copy, brightness(foreign))
  refused(capsys, copy, 'it uses com.microsoft')


@pytest.mark.parametrize('backend', ['onnx', 'openvino'])
def test_other_inputs_and_outputs_are_named(copy, backend):
  from onnx import TensorProto, helper

  add = helper.make_node('Add', ['base', 'more'], ['logits'])
  put(copy, brightness(add, inputs=['more']))
  with pytest.raises(MiraInputError, match=r"bad_program: .*it takes .*'more'"):
    exported.load(copy, backend=backend)
  model = brightness()
  model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
  put(copy, model)
  with pytest.raises(MiraInputError, match=r'bad_program: .*it takes .*float'):
    exported.load(copy, backend=backend)
  put(copy, brightness(outputs=['probabilities']))
  with pytest.raises(MiraInputError, match='it has no output logits'):
    exported.verify(copy, backend=backend)


def test_outputs_without_names_are_refused(capsys, made, tmp_path):
  import openvino

  copy = shutil.copytree(made / 'openvino', tmp_path / 'copy')
  model = openvino.Core().read_model(made / 'openvino' / runtimes.XML)
  for output in model.outputs:
    output.set_names(set())
  openvino.save_model(model, tmp_path / runtimes.XML, compress_to_fp16=False)
  for name in (runtimes.XML, runtimes.BIN):
    reseal(copy, name, (tmp_path / name).read_bytes())
  refused(capsys, copy, 'it has no output')


def test_an_error_of_onnxruntime_is_one_line(capfd, copy):
  from onnx import helper

  bad = helper.make_node('Reshape', ['base', 'axes'], ['logits'])
  put(copy, brightness(bad))
  with pytest.raises(MiraInputError, match='bad_program'):
    exported.verify(copy)
  assert not capfd.readouterr().err


def test_a_program_beside_other_weights_is_no_export(made, tmp_path):
  run = shutil.copytree(made / 'run', tmp_path / 'run')
  for name in (runtimes.ONNX, runtimes.XML):
    (run / name).write_bytes(b'mine')
  assert predictor.load(run).class_names == tuple(NAMES)


def test_force_replaces_nothing_but_an_export(made, tmp_path):
  run, out = made / 'run', tmp_path / 'out'
  shutil.copytree(made / 'onnx', out)
  (out / 'notes.txt').touch()
  with pytest.raises(MiraInputError, match='exists'):
    export.write(run, out, kind='onnx', force=True)
  assert (out / 'notes.txt').exists()
  (out / 'notes.txt').unlink()
  export.write(run, out, kind='onnx', force=True)


def test_a_folder_of_the_users_in_the_way_stays(made, tmp_path):
  own = tmp_path / 'new.part' / 'notes.txt'
  own.parent.mkdir()
  own.write_text('mine')
  with pytest.raises(MiraInputError, match='exists'):
    export.write(made / 'run', tmp_path / 'new', kind='onnx')
  assert own.read_text() == 'mine'


def test_what_a_killed_export_left_is_replaced(made, tmp_path):
  part = shutil.copytree(made / 'openvino', tmp_path / 'new.part')
  for name in ('old', 'onnx-k3x'):
    (part / name).mkdir()
    (part / name / runtimes.ONNX).touch()
  for name in (f'int8-{runtimes.XML}', 'weights.safetensors.part'):
    (part / name).touch()
  export.write(made / 'run', tmp_path / 'new', kind='onnx')
  assert {x.name for x in tmp_path.iterdir()} == {'new'}
  assert {x.name for x in (tmp_path / 'new').iterdir()} == {
    *runtimes.KINDS['onnx'].files, exported.CARD, exported.GOLDEN
  }  # fmt: skip
