"""An ONNX file with the inputs and outputs of YuNet, for OpenCV to run.

It is no face detector: it finds squares of 32 pixels that are white. The file
is written as protobuf by hand (onnx.proto3), since onnx is not installed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

STRIDES = (8, 16, 32)
CHANNELS = {'cls': 1, 'obj': 1, 'bbox': 4, 'kps': 10}


def write(path: pathlib.Path, drop: str = '', channels: int = 4) -> str:
  """Writes the file, without the output `drop`, or with other boxes."""
  nodes, weights, outputs = [], [], []
  for stride in STRIDES:
    for kind, count in (CHANNELS | {'bbox': channels}).items():
      name = f'{kind}_{stride}'
      kernel, bias = _layer(kind, stride, count)
      weights += [_tensor(f'{name}_w', kernel), _tensor(f'{name}_b', bias)]
      inputs = ['input', f'{name}_w', f'{name}_b']
      sides = (
        _ints('strides', [stride] * 2),
        _ints('kernel_shape', [stride] * 2),
      )
      nodes += [
        _node('Conv', inputs, f'{name}_c', *sides),
        _node(
          'Transpose', [f'{name}_c'], f'{name}_t', _ints('perm', [0, 2, 3, 1])
        ),
        _node('Reshape', [f'{name}_t', f'{name}_s'], name),
      ]
      weights.append(_tensor(f'{name}_s', np.array([1, -1, count], np.int64)))
      if name != drop:
        outputs.append(_value(name, [1, 'n', count]))
  if drop:
    nodes = [node for node in nodes if drop.encode() not in node]
  graph = b''.join(
    [
      *(_field(1, node) for node in nodes),
      _field(2, b'toy'),
      *(_field(5, tensor) for tensor in weights),
      _field(11, _value('input', [1, 3, 'h', 'w'])),
      *(_field(12, value) for value in outputs),
    ]
  )
  opset = _field(8, _number(2, 11))
  path.write_bytes(_number(1, 6) + _field(7, graph) + opset)
  return str(path)


def _layer(kind: str, stride: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  """A convolution whose score is the brightness of the largest cells."""
  kernel = np.zeros((count, 3, stride, stride), np.float32)
  bias = np.zeros(count, np.float32)
  if kind == 'cls' and stride == STRIDES[-1]:
    kernel[:] = 1 / (255 * kernel[0].size)
  elif kind == 'obj':
    bias[:] = 1
  elif kind == 'bbox':  # twice the cell, around its centre
    bias[:2], bias[2:4] = 0.5, np.log(2)
  return kernel, bias


# ----- protobuf ---------------------------------------------------------------


def _varint(value: int) -> bytes:
  data = b''
  while value > 127:
    data, value = data + bytes([value & 127 | 128]), value >> 7
  return data + bytes([value])


def _number(field: int, value: int) -> bytes:
  return _varint(field << 3) + _varint(value % 2**64)


def _field(field: int, data: bytes) -> bytes:
  return _varint(field << 3 | 2) + _varint(len(data)) + data


def _node(kind: str, inputs: Sequence[str], output: str, *rest: bytes) -> bytes:
  names = [_field(1, name.encode()) for name in inputs]
  names += [_field(2, output.encode()), _field(3, output.encode())]
  return b''.join([*names, _field(4, kind.encode()), *rest])


def _ints(name: str, values: Sequence[int]) -> bytes:
  numbers = b''.join(_number(8, value) for value in values)
  return _field(5, _field(1, name.encode()) + numbers + _number(20, 7))


def _tensor(name: str, array: np.ndarray) -> bytes:
  kind = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}[array.dtype]
  dims = b''.join(_number(1, size) for size in array.shape)
  raw = _field(8, name.encode()) + _field(9, array.tobytes())
  return dims + _number(2, kind) + raw


def _value(name: str, dims: Sequence[int | str]) -> bytes:
  sizes = [
    _number(1, d) if isinstance(d, int) else _field(2, d.encode()) for d in dims
  ]
  shape = b''.join(_field(1, size) for size in sizes)
  tensor = _number(1, 1) + _field(2, shape)
  return _field(1, name.encode()) + _field(2, _field(1, tensor))
