"""One clip as a record: its fields, and their TFDS features.

A record is a serialised tf.train.Example. It is parsed here with protobuf
alone, because TFDS would decode every frame of a clip of which a model sees a
few.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2


@dataclasses.dataclass(kw_only=True)
class Clip:
  """One prepared clip.

  Attributes:
    clip_id: unique within the dataset.
    frames: JPEG bytes, one entry per frame, in time order.
    label: index into the dataset's class names.
    subject: who is seen; '' when unknown.
    fps: frames per second of `frames`; 0 when unknown.
    onset: index into `frames` where the expression starts; -1 when unknown.
    apex: index of its strongest frame; -1 when unknown.
    offset: index of its last frame; -1 when unknown.
    action_units: FACS units as the table wrote them, such as '6+12'.
    fold: the fold that tests this clip; -1 when there are no folds.
  """

  clip_id: str
  frames: Sequence[bytes]
  label: int
  subject: str = ''
  fps: float = 0.0
  onset: int = -1
  apex: int = -1
  offset: int = -1
  action_units: str = ''
  fold: int = -1


def features(class_names: Sequence[str]) -> tfds.features.FeaturesDict:
  """The TFDS features of a Clip."""
  # Frames are handed over as bytes: encoding an array would import TensorFlow.
  image = tfds.features.Image(encoding_format='jpeg')
  text, integer = tfds.features.Text(), tfds.features.Scalar(np.int32)
  return tfds.features.FeaturesDict(
    {
      'clip_id': text,
      'frames': tfds.features.Sequence(image),
      'label': tfds.features.ClassLabel(names=list(class_names)),
      'subject': text,
      'fps': tfds.features.Scalar(np.float32),
      'onset': integer,
      'apex': integer,
      'offset': integer,
      'action_units': text,
      'fold': integer,
    }
  )


def example(clip: Clip) -> dict[str, Any]:
  """A Clip as TFDS takes it."""
  fields = dataclasses.fields(clip)
  return {field.name: getattr(clip, field.name) for field in fields}


def parse(record: bytes) -> Clip:
  """The Clip of a record."""
  parsed = tf_example_pb2.Example.FromString(record).features.feature
  values = {
    key: getattr(feature, feature.WhichOneof('kind')).value
    for key, feature in parsed.items()
  }
  frames = list(values.pop('frames'))
  scalars = {
    key: value[0].decode() if isinstance(value[0], bytes) else value[0]
    for key, value in values.items()
  }
  return Clip(frames=frames, **scalars)
