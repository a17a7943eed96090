"""One clip as a record, and the files of records that TFDS defines.

A record is a serialised tf.train.Example. It is parsed with protobuf alone,
because TFDS would decode every frame of a clip of which a model sees a few.

TensorFlow is never imported, neither to write nor to read. Two choices of TFDS
would import it, so neither is used: `GeneratorBasedBuilder` spills every split
above 1000 MiB through `tf.io.gfile`, and `features.Video` needs `tf` to be
constructed. `SequentialWriter` streams clips to disk in order instead. Only
this module uses parts of TFDS that its documentation does not promise, so that
requirements.txt names the versions that it was tried with.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2 as protos

from mira_jax.data.listing import check_class_names
from mira_jax.errors import data_error
from mira_jax.video import decode, images

VERSION = '1.3.0'  # of the features of a record; a newer major is refused
# Keys of the metadata:
NAMES = 'class_names'  # here, too: TFDS keeps one name per line
UNITS = 'action_units'  # names of the columns of `Clip.intensities`
POSITIVE_FROM = 'positive_from'  # the least intensity of a unit that is shown
_CLIPS_PER_SHARD = 1024


def unit_numbers(text: str) -> list[int]:
  """The numbers of action units as tables write them: '6+12', 'L12A, R4'."""
  return sorted({int(x) for x in re.findall(r'\d+', text)})


def with_units_named(
  clip: Clip, names: Sequence[str], positive_from: int
) -> Clip:
  """The clip with `action_units`, if it has none, from its intensities."""
  if clip.action_units or not names or clip.intensities.shape[1] != len(names):
    return clip
  shown = np.max(clip.intensities >= positive_from, axis=0, initial=False)
  found = [name for name, there in zip(names, shown, strict=True) if there]
  text = '+'.join(map(str, unit_numbers(' '.join(found))))
  return dataclasses.replace(clip, action_units=text)


def no_intensities() -> np.ndarray:
  """`Clip.intensities` of a dataset without action units."""
  return np.zeros((0, 0), np.int8)


@dataclasses.dataclass(kw_only=True)
class Clip:
  """One prepared clip.

  What is unknown is '', a frame rate 0, another number -1.
  """

  clip_id: str  # unique within the dataset
  frames: Sequence[bytes] = ()  # JPEG or PNG, in time order
  label: int  # index into the dataset's class names
  subject: str = ''
  source_id: str = ''  # the recording or scene it was cut from
  fps: float = 0.0
  onset: int = -1  # frame where the expression starts
  apex: int = -1  # its strongest frame
  offset: int = -1  # its last frame
  # Of FACS, as the table wrote them, such as '6+12'; where it gave intensities,
  # those that a frame shows.
  action_units: str = ''
  fold: int = -1  # that tests this clip
  video: bytes = b''  # a video file, in place of `frames`
  video_frames: int = 0  # that can be decoded from it
  # Of the A action units of its dataset in each frame, 0 to 5, or -1 where it
  # is unknown: int8 [F, A]; or [1, A], of all frames. [0, 0] without units.
  intensities: np.ndarray = dataclasses.field(
    default_factory=no_intensities, compare=False
  )

  def __len__(self) -> int:
    """Number of frames."""
    return len(self.frames) or self.video_frames

  def units_at(self, frames: Sequence[int] | np.ndarray) -> np.ndarray:
    """The intensities in n frames, int32 [n, A].

    Raises MiraInputError('damaged') for rows that are not those of the frames.
    """
    rows = len(self.intensities)
    if rows not in (1, len(self)):
      hint = f'{rows} rows of action units for {len(self)} frames; prepare it '
      raise data_error('damaged', self.clip_id, f'{hint}again')
    chosen = np.zeros_like(frames) if rows == 1 else frames
    return self.intensities[chosen].astype(np.int32)


def _features(
  class_names: Sequence[str], num_units: int
) -> tfds.features.FeaturesDict:
  """The TFDS features of a Clip; a bad class name is a 'bad_label'.

  Without action units they are those of version 1.2.0, which reads them.
  """
  check_class_names(class_names)
  # Frames are handed over as bytes: encoding an array would import TensorFlow.
  image = tfds.features.Image()
  text, integer = tfds.features.Text(), tfds.features.Scalar(np.int32)
  units: dict[str, Any] = {}
  if num_units:
    shape = (None, num_units)
    units['intensities'] = tfds.features.Tensor(shape=shape, dtype=np.int8)
    units['num_units'] = integer
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
      **units,
    }
  )


def _fields(clip: Clip) -> dict[str, Any]:
  """The values of `_features`."""
  fields, num_units = dict(vars(clip)), clip.intensities.shape[1]
  if not num_units:
    del fields['intensities']
    return fields
  return fields | {'num_units': num_units}


def new_info(
  folder: pathlib.Path,
  name: str,
  class_names: Sequence[str],
  description: str,
  metadata: dict[str, Any] | None,
) -> tfds.core.DatasetInfo:
  """The metadata of a new dataset; 'bad_label' for an unusable class name.

  Those of `metadata` are kept; `UNITS` and `POSITIVE_FROM` are among them.
  """
  identity = tfds.core.DatasetIdentity(
    name=name,
    version=tfds.core.Version(VERSION),
    data_dir=str(folder),
    module_name=__name__,
  )
  about = (metadata or {}) | {NAMES: list(class_names)}
  num_units = len(about.get(UNITS, ()))
  return tfds.core.DatasetInfo(
    builder=identity,
    description=description,
    features=_features(class_names, num_units),
    metadata=tfds.core.MetadataDict(about),
    disable_shuffling=True,
  )


def class_names(info: Any) -> tuple[str, ...]:
  """The class names in the metadata of a dataset."""
  return tuple(info.features['label'].names)


class Writer:
  """Streams clips to record files, keeping their order in each split."""

  def __init__(self, info: tfds.core.DatasetInfo):
    self._writer = tfds.core.SequentialWriter(
      info, _CLIPS_PER_SHARD, file_format='array_record'
    )

  def add(self, split: str, clips: Iterable[Clip]) -> None:
    """Writes some clips; TFDS rewrites its metadata at every call."""
    self._writer.initialize_splits([split], fail_if_exists=False)
    self._writer.add_examples({split: list(map(_fields, clips))})

  def close(self) -> None:
    """Completes the files and the metadata."""
    self._writer.close_all()


def _file_template(
  info: tfds.core.DatasetInfo, split: str
) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    data_dir=tfds.core.as_path(info.data_dir),
    dataset_name=info.name,
    split=split,
    filetype_suffix='array_record',
  )


def record_files(
  info: tfds.core.DatasetInfo, split: str, count: int
) -> list[pathlib.Path]:
  """Paths of the record files of a split of so many."""
  paths = _file_template(info, split).sharded_filepaths(count)
  return [pathlib.Path(path) for path in paths]


def write_info(
  info: tfds.core.DatasetInfo,
  sizes: Mapping[str, Sequence[tuple[int, int]]],
) -> None:
  """Writes the metadata of splits whose `record_files` are complete.

  Args:
    info: of the dataset.
    sizes: for each split, clips and their bytes in each of its files.
  """
  info.set_file_format('array_record')
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[clips for clips, _ in files],
      num_bytes=sum(num_bytes for _, num_bytes in files),
      filename_template=_file_template(info, split),
    )
    for split, files in sizes.items()
  ]
  info.set_splits(tfds.core.SplitDict(splits))
  info.write_to_directory(info.data_dir)


def serializer(
  class_names: Sequence[str], num_units: int = 0
) -> Callable[[Clip], bytes]:
  """Gives `serialize(clip)`: the record that `parse` reads."""
  fields = _features(class_names, num_units)
  specs: Any = fields.get_serialized_info()
  writer = example_serializer.ExampleSerializer(specs)
  return lambda clip: writer.serialize_example(
    fields.encode_example(_fields(clip))
  )


def parse(record: bytes) -> Clip:
  """The Clip of a record."""
  parsed = protos.Example.FromString(record).features.feature  # pyright: ignore
  fields: dict[str, Any] = {}
  for key, feature in parsed.items():
    values = getattr(feature, feature.WhichOneof('kind') or 'bytes_list').value
    if key in ('frames', 'intensities'):
      fields[key] = list(values)
    elif isinstance(values[0], bytes) and key != 'video':
      fields[key] = values[0].decode()
    else:
      fields[key] = values[0]
  if num_units := fields.pop('num_units', 0):
    rows = np.array(fields['intensities'], np.int8)
    fields['intensities'] = rows.reshape(-1, num_units)
  return Clip(**fields)


def read_frames(clip: Clip, indices: Iterable[int]) -> dict[int, np.ndarray]:
  """Some frames of a clip, by their indices: uint8 [H, W, 3], RGB.

  Raises MiraInputError('damaged').
  """
  wanted = sorted(set(indices))
  if clip.frames:
    return {i: images.decode_jpeg(clip.frames[i]) for i in wanted}
  frames = decode.pick(io.BytesIO(clip.video), wanted, name=clip.clip_id)
  return {i: frame for i, frame in zip(wanted, frames, strict=True)}
