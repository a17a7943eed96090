"""A trained model that classifies clips, behind `mira_jax.load`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.inference import backends, exported, find_clips
from mira_jax.inference import load as loading
from mira_jax.inference.engine import Engine, Record
from mira_jax.inference.scorer import Scorer, is_independent
from mira_jax.tuning import verdicts
from mira_jax.video import decode, footage, geometry
from mira_jax.weights import infer_model

Path = str | os.PathLike[str]
Clip = Path | np.ndarray | footage.Video


@dataclasses.dataclass(kw_only=True, frozen=True)
class Records:
  """What MiRA did to one window of a clip.

  `before` and `after` are attention marginals: the share of all attention that
  each token receives, averaged over queries, heads and MiRA's blocks. A plain
  ViT has neither `gain` nor `after`.

  Attributes:
    window: uint8 [F, S, S, 3], the frames that the model saw.
    indices: int [F], their numbers in the clip.
    number: of the window, from 0.
    windows: number of windows of the clip.
    gain: float32 [blocks, T], of every temporal token; or None.
    before: float32 [T, h, w], without MiRA.
    after: float32 [T, h, w], with MiRA; or None.
  """

  window: np.ndarray
  indices: np.ndarray
  number: int
  windows: int
  gain: np.ndarray | None
  before: np.ndarray
  after: np.ndarray | None


@dataclasses.dataclass(kw_only=True, frozen=True)
class Prediction:
  """The classes of one clip.

  Attributes:
    label: the most probable class.
    probabilities: by class name, in the model's order; the means over windows,
      or over the seconds of a timeline, of those with a face.
    windows: float32 [V, K], one row per window; None with a timeline.
    timeline: float32 [S, K], one row per second, NaN where a face was sought
      and not found; None without.
    frames: number of frames in the clip.
    fps: frames per second; 0 if unknown.
    seconds: duration of the clip; 0 if unknown.
    flags: what is odd about the clip, such as 'static' (docs/errors.md).
    records: of the middle window, if asked for.
  """

  label: str
  probabilities: Mapping[str, float]
  windows: np.ndarray | None
  timeline: np.ndarray | None
  frames: int
  fps: float
  seconds: float
  flags: tuple[str, ...]
  records: Records | None = None

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
    self._views = views
    rules = metadata['preprocessing']
    self._cut = {'rate': rules['rate'], 'fit': rules['fit']}

  @property
  def has_records(self) -> bool:
    """Whether the model gives `features` and `records`; an export does not."""
    return self._jax is not None

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
      records: whether to add the records of the middle window.

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
    if 1 < video.count < frames:  # one frame is 'static' already
      flags = (*flags, f'repeated:{video.count}/{frames}')
    mean = rows.mean(axis=0)
    if timeline and video.faces is not None:
      mean = rows[video.faces].mean(axis=0)
      rows[~video.faces] = np.nan
    return Prediction(
      label=self.class_names[int(mean.argmax())],
      probabilities=dict(zip(self.class_names, mean.tolist(), strict=True)),
      windows=None if timeline else rows,
      timeline=rows if timeline else None,
      frames=video.count,
      fps=video.fps,
      seconds=len(video) / video.fps if video.fps else 0.0,
      flags=flags,
      records=self._records(*cut()) if records else None,
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

  def _records(self, windows: np.ndarray, indices: np.ndarray) -> Records:
    engine = self._engine()
    number = middle = len(windows) // 2
    batch = windows
    if is_independent(engine.model):
      batch, middle = windows[number : number + 1], 0
    # Else all together: batch statistics are then those of the prediction.
    blocks = engine.records(batch)
    mira = [block for block in blocks if 'gain' in block]
    shown, grid = mira or blocks, engine.model.grid

    def row(block: Record, name: str) -> np.ndarray:
      array = block[name]  # the batch may share one row
      return array[min(middle, len(array) - 1)]

    def marginal(name: str) -> np.ndarray:
      return np.mean([_on_grid(row(x, name), grid) for x in shown], axis=0)

    return Records(
      window=windows[number],
      indices=indices[number],
      number=number,
      windows=len(windows),
      gain=np.stack([row(block, 'gain') for block in mira]) if mira else None,
      before=marginal('before'),
      after=marginal('after') if mira else None,
    )

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


def _on_grid(marginal: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
  """A marginal over tokens [L], after any class token, as [T, h, w].

  A token of a temporal encoder is a whole frame: its positions share it.
  """
  frames, height, width = grid
  positions = height * width
  if len(marginal) < frames * positions:
    marginal = np.repeat(marginal[-frames:] / positions, positions)
  return marginal[-frames * positions :].reshape(grid)


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
