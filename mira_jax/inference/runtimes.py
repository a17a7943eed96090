"""What computes the program of an export: JAX, OpenVINO or onnxruntime.

A `Run` maps uint8 clips [b, T, S, S, 3] to the program's outputs by name. The
last two serve CPUs and come with the extra 'cpu'.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export

from mira_jax.devices import hardware
from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.inference import untrusted
from mira_jax.weights import weights_file

Card = dict[str, Any]
Run = Callable[[np.ndarray], dict[str, Any]]

# The files of programs, in the folder of an export.
STABLEHLO = 'program.jax_export'
ONNX, ONNX_DATA = 'model.onnx', 'model.onnx.data'
XML, BIN = 'model.xml', 'model.bin'
INPUT = 'clips'  # the name of a program's input


class Kind(NamedTuple):
  """A kind of program: its files, and what can run it, the usual one first."""

  files: tuple[str, str]
  backends: tuple[str, ...]


KINDS = {
  'jax': Kind((STABLEHLO, weights_file.WEIGHTS), ('jax',)),
  'onnx': Kind((ONNX, ONNX_DATA), ('onnx', 'openvino')),
  'openvino': Kind((XML, BIN), ('openvino',)),
}
BACKENDS = ('jax', 'openvino', 'onnx')
# Packages of a backend, and those that convert models for it.
PACKAGES = {
  'openvino': ('openvino',),
  'onnx': ('onnxruntime', 'onnx'),
  'nncf': ('nncf', 'openvino'),
}
_CONVERTER = ('onnx', 'jax2onnx')
_INSTALL = (
  "pip install 'mira_jax[cpu]' && "
  "pip install --no-deps 'jax2onnx>=0.17.1,<0.18'"
)


def need(backend: str, *, convert: bool = False) -> None:
  """Checks that the packages of a backend are installed.

  Raises:
    MiraInputError: one is missing ('no_backend').
  """
  if missing := _missing(backend, convert):
    hint = f'{", ".join(missing)} is not installed: {_INSTALL}'
    raise MiraInputError('no_backend', backend, hint)


def install(backend: str) -> str:
  """The commands that install what a backend lacks to serve any model."""
  return _INSTALL if _missing(backend, convert=True) else ''


def _missing(backend: str, convert: bool) -> list[str]:
  names = PACKAGES.get(backend, ())
  if convert and backend != 'jax':
    names += _CONVERTER
  return [x for x in dict.fromkeys(names) if not _installed(x)]


def _installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def load_package(name: str) -> Any:
  """Imports one of the extra 'cpu'; none then reports to its maker.

  Raises:
    MiraInputError: it cannot be imported ('no_backend').
  """
  modules: dict[str, Any] = sys.modules
  modules.setdefault('openvino_telemetry', None)  # as if not installed
  try:
    return importlib.import_module(name)
  except ImportError as error:  # a package of its own is missing
    hint = f'it cannot be imported ({error}): {_INSTALL}'
    raise MiraInputError('no_backend', name, hint) from error


def open_program(
  folder: pathlib.Path, card: Card, backend: str | None = None
) -> Run:
  """Makes the program of an export ready to run, after checking it.

  Raises:
    MiraInputError: a backend that does not run this kind of program
      ('bad_flag') or is not installed ('no_backend'), a program that does more
      than compute ('unsafe_program') or that the backend cannot read.
  """
  kind = KINDS[card.get('kind', 'jax')]
  backend = backend or kind.backends[0]
  if backend not in kind.backends:
    able = ' or '.join(kind.backends)
    hint = f'this export holds a program for {able}; drop the flag'
    raise MiraInputError('bad_flag', f'--backend={backend}', hint)
  need(backend)
  opened = {'jax': _jax, 'onnx': _onnx, 'openvino': _openvino}[backend]
  return opened(folder, card)


def read_stablehlo(folder: pathlib.Path, card: Card) -> jax_export.Exported:
  """The program of an export of kind 'jax', checked.

  Raises:
    MiraInputError: it is for other devices ('other_platform'), this jax cannot
      read it ('other_jax'), or see `untrusted.check`.
  """
  path = folder / STABLEHLO
  here = jax_export.default_export_platform()
  if here not in card['platforms']:
    hint = f'it is for {", ".join(card["platforms"])}, and jax runs on {here}'
    raise checkpoint_error('other_platform', folder, hint)
  try:
    program = jax_export.deserialize(bytearray(path.read_bytes()))
  except Exception as error:  # of any kind: fields are read at other places
    versions = f'jax {card["jax_version"]} wrote it, this is {jax.__version__}'
    hint = f'{versions}, which cannot read it ({error})'
    raise checkpoint_error('other_jax', path, hint) from error
  untrusted.check(program, path)
  return program


def _jax(folder: pathlib.Path, card: Card) -> Run:
  program = read_stablehlo(folder, card)
  variables, _ = weights_file.load_weights(folder / weights_file.WEIGHTS)
  arrays = jax.device_put(weights_file.flatten(variables))
  return functools.partial(jax.jit(program.call), arrays)


def _onnx(folder: pathlib.Path, card: Card) -> Run:
  onnxruntime = load_package('onnxruntime')
  path = _checked_onnx(folder)
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4  # errors are raised
  options.intra_op_num_threads = hardware.cores()
  providers = ['CPUExecutionProvider']
  try:
    session = onnxruntime.InferenceSession(path, options, providers)
  except Exception as error:
    raise untrusted.bad_program(path, error) from error
  inputs = [(x.name, x.type) for x in session.get_inputs()]
  if inputs != [(INPUT, 'tensor(uint8)')]:
    raise untrusted.bad_program(path, f'it takes {inputs}')
  names = [output.name for output in session.get_outputs()]

  def run(clips: np.ndarray) -> dict[str, Any]:
    return dict(zip(names, session.run(names, {INPUT: clips}), strict=True))

  return run


def _openvino(folder: pathlib.Path, card: Card) -> Run:
  openvino = load_package('openvino')
  onnx = card['kind'] == 'onnx'
  path = _checked_onnx(folder) if onnx else folder / XML
  core, u8 = openvino.Core(), openvino.Type.u8
  half = card['model']['dtype'] == 'bfloat16' and hardware.has_bfloat16()
  # The precision of the processor's choice would depend on the processor.
  settings = {
    'PERFORMANCE_HINT': 'LATENCY',
    'INFERENCE_PRECISION_HINT': 'bf16' if half else 'f32',
  }
  try:
    model = core.read_model(path)
  except Exception as error:
    raise untrusted.bad_program(path, error) from error
  inputs = [(sorted(x.names), x.element_type) for x in model.inputs]
  if len(inputs) != 1 or INPUT not in inputs[0][0] or u8 != inputs[0][1]:
    raise untrusted.bad_program(path, f'it takes {inputs}')
  outputs = [output.names for output in model.outputs]  # one may have several

  @functools.cache
  def compiled(shape: tuple[int, ...]) -> Any:
    # A shape that is known is twice as fast as one that is not.
    own = model.clone()
    own.reshape({INPUT: list(shape)})
    return core.compile_model(own, 'CPU', settings).create_infer_request()

  def run(clips: np.ndarray) -> dict[str, Any]:
    found = compiled(clips.shape).infer({INPUT: clips})
    return {
      n: found[i].copy() for i, names in enumerate(outputs) for n in names
    }

  return run


def _checked_onnx(folder: pathlib.Path) -> pathlib.Path:
  """The ONNX file of an export whose nodes are of the standard alone.

  Raises:
    MiraInputError: others ('unsafe_program'), weights in another file
      ('unsafe_program'), or a file that is no ONNX model ('bad_program').
  """
  onnx = load_package('onnx')
  path = folder / ONNX
  try:
    model = onnx.load(path, load_external_data=False)
    parts = list(_messages(model))
  except Exception as error:
    raise untrusted.bad_program(path, error) from error
  # A runtime may know domains that the model does not import.
  imports = (onnx.OperatorSetIdProto, onnx.NodeProto)
  foreign = {x.domain for x in parts if isinstance(x, imports)}
  foreign -= {'', 'ai.onnx'}
  foreign |= {'functions' for _ in model.functions}
  foreign |= {
    entry.value
    for x in parts
    if isinstance(x, onnx.TensorProto)
    for entry in x.external_data
    if entry.key == 'location' and entry.value != ONNX_DATA
  }
  if foreign:
    hint = f'it uses {", ".join(sorted(foreign))[:200]}, which no export does'
    raise checkpoint_error('unsafe_program', path, hint)
  return path


def _messages(message: Any) -> Iterator[Any]:
  """A message of protobuf, and all that it holds, however deep."""
  yield message
  for field, value in message.ListFields():
    if field.message_type:
      for x in [value] if hasattr(value, 'ListFields') else value:
        yield from _messages(x)
