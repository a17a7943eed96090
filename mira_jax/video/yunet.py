"""YuNet, a face detector of OpenCV's model zoo, from the user's model file.

Wu et al., YuNet: A Tiny Millisecond-level Face Detector, Machine Intelligence
Research 2023. The file, face_detection_yunet_2023mar.onnx, is not part of this
package.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator

import cv2
import numpy as np

from mira_jax.errors import MiraInputError

FILE = 'face_detection_yunet_2023mar.onnx'
_WHERE = f'github.com/opencv/opencv_zoo has it as {FILE}'
_SCORE = 0.9  # OpenCV's default, as is the overlap of `FaceDetectorYN.create`
_STRIDES = (8, 16, 32)
_CHANNELS = {'cls': 1, 'obj': 1, 'bbox': 4, 'kps': 10}
_PROBE = (64, 96)  # height and width of the frame that a file is tried with


def check(model: str) -> None:
  """Tries a model file.

  OpenCV takes any network and reads its outputs beyond their ends, so that
  their names and shapes are compared here.

  Raises:
    MiraInputError: it is missing ('not_found'), no file ('not_regular_file'), a
      pointer of Git LFS ('git_lfs_pointer'), or no YuNet ('bad_face_model').
  """
  if not os.path.exists(model):
    raise MiraInputError('not_found', model, f'no such file; {_WHERE}')
  if not os.path.isfile(model):
    raise MiraInputError('not_regular_file', model, f'name the file; {_WHERE}')
  with open(model, 'rb') as file:
    if file.read(30).startswith(b'version https://git-lfs'):
      hint = 'it is a pointer; fetch the file: git lfs pull'
      raise MiraInputError('git_lfs_pointer', model, hint)
  height, width = _PROBE
  names = [f'{name}_{stride}' for name in _CHANNELS for stride in _STRIDES]
  sizes = [
    height * width // stride**2 * channels
    for channels in _CHANNELS.values()
    for stride in _STRIDES
  ]
  try:
    with quiet():
      net = cv2.dnn.readNetFromONNX(model)
      net.setInputShape('input', (1, 3, height, width))
      net.setInput(np.zeros((1, 3, height, width), np.float32))
      found = [(out.dtype, out.size) for out in net.forward(names)]
  except (cv2.error, SystemError) as error:
    reason = ' '.join(str(getattr(error, 'err', error)).split())[:160]
    hint = f'OpenCV cannot use it as YuNet ({reason}); {_WHERE}'
    raise MiraInputError('bad_face_model', model, hint) from error
  if found != [(np.dtype(np.float32), size) for size in sizes]:
    hint = f'its outputs are not those of YuNet; {_WHERE}'
    raise MiraInputError('bad_face_model', model, hint)


def faces(frame: np.ndarray, model: str) -> np.ndarray:
  """Boxes of an RGB frame [H, W, 3]; float [n, 4] left, top, width, height."""
  net = _detector(model, threading.get_ident())
  net.setInputSize(frame.shape[1::-1])
  found = net.detect(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1]
  return np.zeros((0, 4)) if found is None else found[:, :4].astype(float)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences OpenCV's own lines about what it tries."""
  logging = cv2.utils.logging
  before = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
  try:
    yield
  finally:
    logging.setLogLevel(before)


@functools.cache
def _detector(model: str, thread: int) -> cv2.FaceDetectorYN:
  """The detector of a thread, which is not thread-safe."""
  del thread
  check(model)
  return cv2.FaceDetectorYN.create(model, '', _PROBE[::-1], _SCORE)
