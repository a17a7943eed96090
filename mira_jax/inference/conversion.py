"""Converts a model's program for the runtimes of CPUs.

jax2onnx traces the program and writes ONNX; OpenVINO reads that. Eight bits are
NNCF's: products of activations and weights, both rounded, with ranges that
calibration clips show.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from mira_jax.inference import runtimes
from mira_jax.models.vivit import ViViT

_OPSET = 23  # onnxruntime 1.24 reads it, as does OpenVINO 2026
_SMALL = 2**10  # bytes of a tensor that stays in the ONNX file

Share = Callable[[jax.Array], jax.Array]  # logits -> probabilities


def outputs(
  model: ViViT, share: Share, logits: jax.Array
) -> dict[str, jax.Array]:
  """Logits, and of a classifier their probabilities, by name."""
  if not model.num_classes:
    return {'logits': logits}
  return {'logits': logits, 'probabilities': share(logits)}


def to_onnx(
  score: Callable[[jax.Array], dict[str, jax.Array]],
  shape: tuple[Any, ...],
  folder: pathlib.Path,
) -> None:
  """Writes a function of uint8 clips of a shape as ONNX, weights beside it.

  Raises:
    MiraInputError: a converter is not installed ('no_backend').
  """
  runtimes.need('onnx', convert=True)
  with warnings.catch_warnings(), _silent('jax2onnx', 'onnx_ir'):
    warnings.simplefilter('ignore')
    jax2onnx, onnx_ir = map(runtimes.load_package, ('jax2onnx', 'onnx_ir'))
    names = list(jax.eval_shape(score, jax.ShapeDtypeStruct(shape, np.uint8)))
    model = jax2onnx.to_onnx(
      lambda clips: tuple(score(clips)[name] for name in names),
      [jax.ShapeDtypeStruct(shape, np.uint8)],
      model_name='mira_jax',
      opset=_OPSET,
      return_mode='ir',
      input_names=[runtimes.INPUT],
      output_names=names,
    )
    onnx_ir.save(
      model,
      folder / runtimes.ONNX,
      external_data=runtimes.ONNX_DATA,
      size_threshold_bytes=_SMALL,
    )


def to_openvino(onnx: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes an ONNX file as OpenVINO's, weights in float32.

  Raises:
    MiraInputError: OpenVINO is not installed ('no_backend').
  """
  runtimes.need('openvino')
  openvino = runtimes.load_package('openvino')
  model = openvino.Core().read_model(onnx)
  openvino.save_model(model, folder / runtimes.XML, compress_to_fp16=False)


def to_int8(folder: pathlib.Path, clips: np.ndarray) -> None:
  """Rounds the products of an OpenVINO program to eight bits.

  Args:
    folder: of the program, which is replaced.
    clips: uint8 [N, T, S, S, 3], whose activations give the ranges.

  Raises:
    MiraInputError: NNCF is not installed ('no_backend').
  """
  runtimes.need('nncf')
  nncf, openvino = map(runtimes.load_package, ('nncf', 'openvino'))
  model = openvino.Core().read_model(folder / runtimes.XML)
  with _silent('nncf'):
    rounded = nncf.quantize(
      model,
      nncf.Dataset([clip[None] for clip in clips]),
      model_type=nncf.ModelType.TRANSFORMER,
      subset_size=len(clips),
    )
  part = folder / f'int8-{runtimes.XML}'
  openvino.save_model(rounded, part, compress_to_fp16=False)
  del model  # which maps the file of weights
  part.with_suffix('.bin').replace(folder / runtimes.BIN)
  part.replace(folder / runtimes.XML)


@contextlib.contextmanager
def _silent(*names: str) -> Iterator[None]:
  """Quietens loggers of libraries."""
  loggers = [logging.getLogger(name) for name in names]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)
