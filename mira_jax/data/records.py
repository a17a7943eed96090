"""One clip as a record: its fields, and their TFDS features.

A record is a serialised tf.train.Example. It is parsed here with protobuf
alone, because TFDS would decode every frame of a clip of which a model sees a
few.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from mira_jax.data.listing import check_class_names
from mira_jax.video import decode, images


@dataclasses.dataclass(kw_only=True)
class Clip:
  """One prepared clip.

  Attributes:
    clip_id: unique within the dataset.
    frames: JPEG bytes, one entry per frame, in time order; none where `video`
      holds the clip.
    label: index into the dataset's class names.
    subject: who is seen; '' when unknown.
    source_id: the recording or scene it was cut from; '' when unknown.
    fps: frames per second; 0 when unknown.
    onset: index of the frame where the expression starts; -1 when unknown.
    apex: index of its strongest frame; -1 when unknown.
    offset: index of its last frame; -1 when unknown.
    action_units: FACS units as the table wrote them, such as '6+12'.
    fold: the fold that tests this clip; -1 when there are no folds.
    video: bytes of a video file, in place of `frames`.
    video_frames: how many frames can be decoded from it.
  """

  clip_id: str
  frames: Sequence[bytes] = ()
  label: int
  subject: str = ''
  source_id: str = ''
  fps: float = 0.0
  onset: int = -1
  apex: int = -1
  offset: int = -1
  action_units: str = ''
  fold: int = -1
  video: bytes = b''
  video_frames: int = 0

  def __len__(self) -> int:
    """Number of frames."""
    return len(self.frames) or self.video_frames


def features(class_names: Sequence[str]) -> tfds.features.FeaturesDict:
  """The TFDS features of a Clip.

  Raises:
    MiraInputError: a class name cannot be stored ('bad_label').
  """
  check_class_names(class_names)
  # Frames are handed over as bytes: encoding an array would import TensorFlow.
  image = tfds.features.Image(encoding_format='jpeg')
  text, integer = tfds.features.Text(), tfds.features.Scalar(np.int32)
  return tfds.features.FeaturesDict(
    {
      'clip_id': text,
      'frames': tfds.features.Sequence(image),
      'label': tfds.features.ClassLabel(names=list(class_names)),
      'subject': text,
      'source_id': text,
      'fps': tfds.features.Scalar(np.float32),
      'onset': integer,
      'apex': integer,
      'offset': integer,
      'action_units': text,
      'fold': integer,
      'video': text,  # features.Video would import TensorFlow
      'video_frames': integer,
    }
  )


def example(clip: Clip) -> dict[str, Any]:
  """A Clip as TFDS takes it."""
  fields = dataclasses.fields(clip)
  return {field.name: getattr(clip, field.name) for field in fields}


def serializer(class_names: Sequence[str]) -> Callable[[Clip], bytes]:
  """Gives `serialize(clip)`: the record that `parse` reads."""
  fields = features(class_names)
  writer = example_serializer.ExampleSerializer(fields.get_serialized_info())
  return lambda clip: writer.serialize_example(
    fields.encode_example(example(clip))
  )


def parse(record: bytes) -> Clip:
  """The Clip of a record."""
  parsed = tf_example_pb2.Example.FromString(record).features.feature
  frames = list(parsed['frames'].bytes_list.value)
  scalars = {
    key: _scalar(key, getattr(feature, feature.WhichOneof('kind')).value[0])
    for key, feature in parsed.items()
    if key != 'frames'
  }
  return Clip(frames=frames, **scalars)


def _scalar(key: str, value: bytes | float) -> bytes | str | float:
  is_text = isinstance(value, bytes) and key != 'video'
  return value.decode() if is_text else value


def read_frames(clip: Clip, indices: Iterable[int]) -> dict[int, np.ndarray]:
  """Some frames of a prepared clip, by their indices: uint8 [H, W, 3], RGB.

  Raises:
    MiraInputError: a frame cannot be decoded ('damaged').
  """
  wanted = sorted(set(indices))
  if clip.frames:
    return {i: images.decode_jpeg(clip.frames[i]) for i in wanted}
  return decode.read_some(io.BytesIO(clip.video), clip.clip_id, wanted)
