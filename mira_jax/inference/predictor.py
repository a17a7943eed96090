"""A trained model that classifies clips, behind `mira_jax.load`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.inference import backends, exported, find_clips, records
from mira_jax.inference import load as loading
from mira_jax.inference.engine import Engine
from mira_jax.inference.records import Records
from mira_jax.inference.scorer import Scorer
from mira_jax.tuning import verdicts
from mira_jax.video import decode, footage, geometry
from mira_jax.weights import infer_model
from mira_jax.weights.metadata import unit_thresholds

Path = str | os.PathLike[str]
_STILLS, _STILL = 12, 96  # of a timeline, and their pixels
Clip = Path | np.ndarray | footage.Video


@dataclasses.dataclass(kw_only=True, frozen=True)
class Prediction:
  """The classes of one clip.

  Attributes:
    label: the most probable class; of action units those that are shown, such
      as 'AU1 + AU4', or 'none'.
    probabilities: by class name, in the model's order; the means over windows,
      or over the seconds of a timeline, of those with a face.
    windows: float32 [V, K], one row per window; None with a timeline.
    timeline: float32 [S, K], one row per second, NaN where a face was sought
      and not found; None without.
    frames: number of frames in the clip.
    fps: frames per second; 0 if unknown.
    seconds: duration of the clip; 0 if unknown.
    span: frames from the first to the last of a window.
    flags: what is odd about the clip, such as 'static' (docs/errors.md).
    records: of the middle window, if asked for.
    stills: uint8 [n, s, s, 3], frames from the middles of n equal parts of the
      clip; with a timeline, if records were asked for.
    shown: action units whose probability is at or above their threshold; None
      of a model of classes.
  """

  label: str
  probabilities: Mapping[str, float]
  windows: np.ndarray | None
  timeline: np.ndarray | None
  frames: int
  fps: float
  seconds: float
  span: int
  flags: tuple[str, ...]
  records: Records | None = None
  stills: np.ndarray | None = None
  shown: tuple[str, ...] | None = None

  @property
  def scored(self) -> int:
    """Windows that probabilities are means over; 1 with a timeline."""
    return 1 if self.windows is None else len(self.windows)

  @property
  def mean(self) -> np.ndarray:
    """The probabilities as an array, float32 [K]."""
    return np.array(list(self.probabilities.values()), np.float32)


class Predictor:
  """Classifies clips; made by `load`.

  The windows of a clip are a batch of their own, so that its result depends on
  no other clip, whatever `MiraConfig.statistics` is.

  Attributes:
    class_names: in the order of the model's outputs; () of a backbone, which
      has features alone.
    metadata: the model's fields, its class names and how clips are read.
    notes: what was assumed about weights of another program, a line each.
    thresholds: from which probability on each action unit is shown; None of a
      model of classes.
  """

  def __init__(
    self,
    scorer: Scorer,
    metadata: Mapping[str, Any],
    *,
    views: int = 5,
    notes: tuple[str, ...] = (),
    engine: Engine | None = None,
    dtype: str | None = None,
    backend: str | None = None,
  ):
    self.scorer, self.metadata, self.notes = scorer, metadata, notes
    self._jax, self._served = engine, (backend or 'jax', dtype)
    self.class_names = tuple(metadata['class_names'])
    self.thresholds = unit_thresholds(metadata)
    self._views = views
    rules = metadata['preprocessing']
    self._cut = {'rate': rules['rate'], 'fit': rules['fit']}

  @property
  def has_records(self) -> bool:
    """Whether the model gives `features` and `records`; an export does not."""
    return self._jax is not None

  @property
  def window(self) -> int:
    """Frames of a clip from the first to the last that a window covers."""
    return self.scorer.frames * self._cut['rate']

  def read(self, clip: Clip, fps: float | None = None) -> footage.Video:
    """A clip as frames, shrunk to what the model needs.

    It is a video file, a folder of frames, or uint8 [T, H, W, 3], RGB; `fps`
    is used instead of its own frames per second.

    Raises:
      MiraInputError: an array of another kind ('bad_shape'), or see
        `find_clips.read`.
    """
    size = self.scorer.image_size
    if isinstance(clip, np.ndarray):
      if clip.dtype != np.uint8 or clip.shape[3:] != (3,) or not len(clip):
        shape = f'{clip.dtype} {list(clip.shape)}'
        hint = 'a clip is uint8 [frames, height, width, 3], RGB'
        raise MiraInputError('bad_shape', shape, hint)
      frames = [geometry.cut(frame, '<array>', size) for frame in clip]
      clip = decode.of_frames('<array>', frames, fps or 0.0)
    elif not isinstance(clip, footage.Video):
      return find_clips.read(clip, short_side=size, fps=fps)
    return clip.at(fps) if fps else clip

  def predict(
    self,
    clip: Clip,
    *,
    timeline: bool = False,
    stride: float = 0.5,
    fps: float | None = None,
    records: bool = False,
  ) -> Prediction:
    """Classifies a clip.

    Args:
      clip: see `read`.
      timeline: slide windows over the clip and classify every second of it.
      stride: seconds between the starts of such windows.
      fps: frames per second, instead of the clip's own.
      records: whether to add the records of the middle window, or of a timeline
        its stills.

    Raises:
      MiraInputError: see `read`, `Scorer.timeline` and `records`; or the model
        is a backbone ('no_classifier').
    """
    if not self.class_names:
      raise loading.no_classifier('the model', self.metadata)
    video = self.read(clip, fps)
    cut = functools.cache(lambda: self._windows(video))
    flags, frames = video.flags, self.scorer.frames
    if timeline:
      rows = self.scorer.timeline(video, stride=stride, **self._cut)
    else:
      rows = self.scorer.probabilities(cut()[0])
      rows = rows.mean(axis=1) if rows.ndim == 3 else rows  # of tokens
    if 1 < video.count < frames:  # one frame is 'static' already
      flags = (*flags, f'repeated:{video.count}/{frames}')
    mean = rows.mean(axis=0)
    if timeline and video.faces is not None:
      mean = rows[video.faces].mean(axis=0)
      rows[~video.faces] = np.nan
    shown, label = None, self.class_names[int(mean.argmax())]
    if self.thresholds is not None:
      pairs = zip(self.class_names, mean >= self.thresholds, strict=True)
      shown = tuple(name for name, there in pairs if there)
      label = ' + '.join(shown) or 'none'
    return Prediction(
      label=label,
      shown=shown,
      probabilities=dict(zip(self.class_names, mean.tolist(), strict=True)),
      windows=None if timeline else rows,
      timeline=rows if timeline else None,
      frames=video.count,
      fps=video.fps,
      seconds=len(video) / video.fps if video.fps else 0.0,
      span=min(self.window, len(video)),
      flags=flags,
      records=self._records(*cut()) if records and not timeline else None,
      stills=_stills(video) if records and timeline else None,
    )

  def features(self, clip: Clip) -> np.ndarray:
    """Features of a clip, pooled after the last norm, float32 [C].

    They are the mean over its windows, and the input of the model's head.

    Raises:
      MiraInputError: see `read`; or an export ('unsupported').
    """
    windows, _ = self._windows(self.read(clip))
    return self._backbone.logits(windows).mean(axis=0)

  def records(self, clip: Clip) -> Records:
    """Gains and attention marginals of a clip's middle window.

    Raises:
      MiraInputError: see `read`; or an export ('unsupported').
    """
    return self._records(*self._windows(self.read(clip)))

  def all_records(self, clip: Clip, most: int = 64) -> list[Records]:
    """As `records`, of windows side by side that cover the clip.

    Of more than `most` such windows some are left out, evenly.
    """
    video = self.read(clip)
    windows, indices = self.scorer.cut_tiles(video, **self._cut, most=most)
    numbers = list(range(len(windows)))
    return records.of_windows(self._engine(), windows, indices, numbers)

  def _records(self, windows: np.ndarray, indices: np.ndarray) -> Records:
    middle = len(windows) // 2
    return records.of_windows(self._engine(), windows, indices, [middle])[0]

  @functools.cached_property
  def _backbone(self) -> Scorer:
    engine = self._engine()
    if not engine.model.num_classes:
      return self.scorer
    engine = engine.without_head()
    card = dict(self.metadata)
    return backends.serve(engine, card, *self._served)

  def _engine(self) -> Engine:
    if self._jax is None:
      hint = 'an export gives probabilities alone; load the weights instead'
      raise checkpoint_error('unsupported', 'features, records', hint)
    return self._jax

  def _windows(self, video: footage.Video) -> tuple[np.ndarray, np.ndarray]:
    return self.scorer.cut_views(video, views=self._views, **self._cut)


def _stills(video: footage.Video) -> np.ndarray:
  """Frames from the middles of equal parts of a clip."""
  count = min(_STILLS, len(video))
  ticks = ((np.arange(count) + 0.5) * len(video) / count).astype(int)
  frames = video.take(ticks)
  return np.stack([geometry.resize(x, _STILL, 'crop') for x in frames])


def load(
  path: Path,
  *,
  views: int = 5,
  batch_size: int | None = None,
  dtype: str | None = None,
  int8: bool = False,
  backend: str | None = None,
  time_limit: float | None = None,
  **overrides: Any,
) -> Predictor:
  """Loads a trained model; a backbone without a head has features alone.

  Args:
    path: a run folder, a weights file, a checkpoint of PyTorch or Hugging Face
      (docs/weights.md), or the folder of an export.
    views: windows per clip, whose probabilities are averaged.
    batch_size: windows per call; by default `views`.
    dtype: of the computation, 'float32' or 'bfloat16'; by default the model's.
    int8: whether to hold the weights in eight bits.
    backend: what computes, of `runtimes.BACKENDS`; records are always JAX's.
    time_limit: seconds that a call of an export may take before the process
      ends; for programs of other people.
    **overrides: what the files of another program don't say, fields of
      `weights.infer_model.Overrides`: `heads`, `mode`, `class_names`, ...

  Raises:
    MiraInputError: a run that is not finished, files that cannot be used,
      overrides that contradict them, or an argument out of its range.
  """
  known = infer_model.Overrides(**overrides)
  size = views if batch_size is None else batch_size
  for name, value in (('views', views), ('batch_size', size)):
    if not isinstance(value, int) or value < 1:
      raise MiraInputError('bad_value', f'{name}={value!r}', 'use 1 or more')
  if dtype not in (None, 'float32', 'bfloat16'):
    hint = 'use float32 or bfloat16'
    raise MiraInputError('bad_value', f'dtype={dtype!r}', hint)
  if exported.is_export(path):
    if dtype or int8 or known.key:
      hint = 'an export is used as it was exported; drop the flag'
      raise MiraInputError('bad_flag', '--dtype, --int8, --key', hint)
    program = exported.load(path, size, time_limit, backend)
    infer_model.check_overrides(program.card, known, path)
    return Predictor(program, program.card, views=views)
  backends.check(backend, int8)
  verdicts.ensure()
  found = loading.read(path, known)
  loading.check_alone(found.metadata, path)
  if loading.is_classifier(found.metadata):
    options = {'dtype': dtype, 'eight_bits': int8}
    engine, metadata = loading.make_engine(found, path, size, **options)
  else:
    engine, metadata, _ = loading.load_backbone(path, size, known, dtype)
  return Predictor(
    backends.serve(engine, metadata, backend, dtype),
    metadata,
    views=views,
    notes=tuple(found.notes),
    engine=engine,
    dtype=dtype,
    backend=backend,
  )
