"""Writes a trained model as a program that runs without this package.

The program is StableHLO as `jax.export` stores it, ONNX or OpenVINO's: any
number of clips, pixels in, probabilities out. docs/export.md shows how to run
it; `exported` runs it here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax import export as jax_export

from mira_jax import files
from mira_jax.augment import transforms
from mira_jax.devices import hardware
from mira_jax.errors import MiraInputError, checkpoint_error, not_written
from mira_jax.inference import conversion, engine, exported, runtimes
from mira_jax.inference import load as loading
from mira_jax.inference.exported import (
  CARD,
  FORMAT,
  GOLDEN,
  GOLDEN_CLIPS,
  SEAL,
  TOLERANCES,
  Card,
  Path,
  is_export,
  seal,
  verify,
)
from mira_jax.inference.scorer import Scorer
from mira_jax.models.vivit import ViViT, in_passes
from mira_jax.synthetic import faces
from mira_jax.video import footage
from mira_jax.weights import infer_model, weights_file

PLATFORMS = ('cpu', 'cuda', 'tpu')
# Beside its files, what an export that was killed may leave.
_LEFT = ('old', 'onnx-*', 'int8-*', '*.part')
_LARGEST_MAP = 2**30  # bytes of attention maps that a converted program makes


class Int8(NamedTuple):
  """How a program is rounded to eight bits, and what that costs.

  Attributes:
    clips: uint8 [N, T, S, S, 3], which give the ranges of activations.
    score: a scorer -> what it reaches on clips that nothing was fitted to.
  """

  clips: np.ndarray
  score: Callable[[Scorer], dict[str, float]]


Share = conversion.Share
Calibrate = Callable[[Card], Int8]  # of the card of a model


def write(
  source: Path,
  out: Path,
  *,
  kind: str = 'jax',
  platforms: Sequence[str] = PLATFORMS,
  dtype: str | None = None,
  int8: Calibrate | None = None,
  force: bool = False,
  overrides: infer_model.Overrides = infer_model.Overrides(),
) -> Card:
  """Exports a classifier; `out` appears only after it was verified.

  Args:
    source: a run folder, or weights, see `load.read`.
    out: the new folder.
    kind: of the program, a key of `runtimes.KINDS`.
    platforms: of PLATFORMS, this machine's among them; for kind 'jax'.
    dtype: of the computation, a key of TOLERANCES; by default the model's own,
      and of OpenVINO's program bfloat16 where this processor has it and the
      golden pair agrees.
    int8: rounds OpenVINO's program to eight bits.
    force: whether to replace an export at `out`.
    overrides: what weights of other programs don't say.

  Returns:
    The card; 'difference' under 'golden' is the largest one between the
    export's and the engine's probabilities.

  Raises:
    MiraInputError: `out` exists, an unknown platform or dtype, a pre-training,
      batch statistics, weights that cannot be used, a full disk, a missing
      package, or an export that does not compute what the engine does.
  """
  out = pathlib.Path(os.path.abspath(out))
  if out.exists() and not (
    force and is_export(out) and _holds_only_export(out)
  ):
    hint = 'name another folder; --force replaces an export and nothing else'
    raise MiraInputError('exists', out, hint)
  if kind == 'jax':
    _check_platforms(platforms)
  runtimes.need(kind, convert=True)
  made, card = loading.make_engine(loading.read(source, overrides), source)
  mira = made.model.mira
  if mira is not None and mira.statistics != 'instance':
    hint = (
      f'mira.statistics is {mira.statistics!r}, which reads the other '
      "clips of a batch; export a model with 'instance'"
    )
    raise checkpoint_error('batch_statistics', source, hint)
  part = out.with_name(out.name + '.part')
  if part.exists() and not _holds_only_export(part, *_LEFT):
    hint = 'an export is written there first; move what is in it'
    raise MiraInputError('exists', part, hint)
  with finished(part, out):
    eight = int8(card) if int8 else None
    return convert(made, card, part, kind, dtype, platforms, eight)


def _holds_only_export(folder: pathlib.Path, *others: str) -> bool:
  """Whether a folder has nothing but files of an export, and `others`."""
  known = {CARD, GOLDEN, *others}.union(
    *(x.files for x in runtimes.KINDS.values())
  )
  return folder.is_dir() and all(
    any(map(x.match, known)) for x in folder.iterdir()
  )


@contextlib.contextmanager
def finished(part: pathlib.Path, out: pathlib.Path) -> Iterator[None]:
  """Renames the folder that the body fills; nothing is left if it fails.

  Raises:
    MiraInputError: a full disk ('not_written').
  """
  shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
  try:
    files.open_folder(part)
    yield
    if os.path.lexists(out):  # as may happen while the body runs
      out.rename(part / 'old')
    part.rename(out)
    shutil.rmtree(out / 'old', ignore_errors=True)
  except (OSError, safetensors.SafetensorError) as error:
    raise not_written(out, f'results must have room there ({error})') from error
  finally:
    shutil.rmtree(part, ignore_errors=True)


def convert(
  source: engine.Engine,
  card: Card,
  folder: pathlib.Path,
  kind: str,
  dtype: str | None = None,
  platforms: Sequence[str] = ('cpu',),
  int8: Int8 | None = None,
) -> Card:
  """Writes and verifies the files of an export, see `write`."""
  loading.check_alone(card, 'export')
  if source.model.pool == 'frame':
    hint = "exports have no outputs of temporal tokens (pool='frame'); use the "
    raise checkpoint_error('unsupported', 'export', f'{hint}weights themselves')
  dtypes = _dtypes(source.model, kind, dtype)
  model = _convertible(source.model, kind, dtypes[0])
  share = jax.nn.sigmoid if source.units else jax.nn.softmax
  _write_program(folder, model, source.variables, card, kind, platforms, share)
  _write_golden(folder, source)
  card = _describe(model, card, kind, platforms)
  if int8:
    card['int8'] = {'float32': int8.score(source)}
    conversion.to_int8(folder, int8.clips)
  for name in dtypes:
    card['model']['dtype'] = name
    card['golden']['tolerance'] = exported.tolerance(card)
    _write_card(folder, card)
    try:
      card['golden']['difference'] = verify(folder)
      break
    except MiraInputError as error:
      if error.code != 'differs' or name == dtypes[-1]:
        raise
  if int8:
    found = exported.load(folder, source.batch_size)
    card['int8'] |= {'int8': int8.score(found), 'clips': len(int8.clips)}
  _write_card(folder, card)
  return card


def _check_platforms(platforms: Sequence[str]) -> None:
  here = jax_export.default_export_platform()
  if here not in platforms or not {*platforms} <= {*PLATFORMS}:
    hint = f'use some of {", ".join(PLATFORMS)}, and {here}, to verify it here'
    raise MiraInputError('bad_platform', ','.join(platforms), hint)


def _dtypes(model: ViViT, kind: str, dtype: str | None) -> list[str]:
  """Types of the computation, the first that agrees with the engine serves."""
  if dtype and dtype not in TOLERANCES:
    hint = f'use --dtype, one of {", ".join(TOLERANCES)}'
    raise MiraInputError('bad_dtype', dtype, hint)
  if kind == 'onnx':
    if dtype == 'bfloat16':
      hint = 'onnxruntime computes in float32 on CPUs; take openvino'
      raise MiraInputError('bad_dtype', dtype, hint)
    return ['float32']
  if kind == 'openvino':
    both = ['bfloat16', 'float32'] if hardware.has_bfloat16() else ['float32']
    return [dtype] if dtype else both
  return [dtype or jnp.dtype(model.dtype).name]


def _convertible(model: ViViT, kind: str, dtype: str) -> ViViT:
  """The model as it is exported, in attention that every platform computes."""
  if kind == 'jax':
    # In plain XLA, without maps: no kernel is the same on every platform.
    return model.clone(attention='streaming', dtype=jnp.dtype(dtype))
  # These runtimes fuse what lies open, and loops hide it from them.
  tokens = math.prod(model.grid)
  small = 4 * model.heads * tokens**2 <= _LARGEST_MAP
  name = 'fusible' if small else 'streaming'
  return model.clone(attention=name, dtype=jnp.float32, scan=False)


def _write_program(
  folder: pathlib.Path,
  model: ViViT,
  variables: dict[str, Any],
  card: Card,
  kind: str,
  platforms: Sequence[str],
  share: Share,
) -> None:
  """The files of `runtimes.KINDS`."""
  if kind == 'jax':
    program = _trace(model, weights_file.flatten(variables), platforms, share)
    (folder / runtimes.STABLEHLO).write_bytes(program.serialize())
    path, mira = folder / weights_file.WEIGHTS, variables.get('mira', {})
    weights_file.save_weights(path, variables['params'], mira, card)
    return
  single = weights_file.restack(weights_file.flatten(variables), stacked=False)
  score = functools.partial(
    _score, model, share, weights_file.unflatten(single)
  )
  (batch,) = jax_export.symbolic_shape('b')
  with _on_the_host(model):
    shape = (batch, *_clip_shape(model))
    if kind == 'onnx':
      conversion.to_onnx(score, shape, folder)
      return
    with tempfile.TemporaryDirectory(prefix='onnx-', dir=folder) as between:
      conversion.to_onnx(score, shape, pathlib.Path(between))
      onnx = pathlib.Path(between) / runtimes.ONNX
      conversion.to_openvino(onnx, folder)


def _write_card(folder: pathlib.Path, card: Card) -> None:
  names = (*runtimes.KINDS[card.get('kind', 'jax')].files, GOLDEN)
  digests = {name: files.sha256(folder / name) for name in names}
  card = card | {'files': digests}
  text = json.dumps(card | {SEAL: seal(card)}, indent=2, ensure_ascii=False)
  (folder / CARD).write_text(text + '\n', encoding='utf-8')


def _clip_shape(model: ViViT) -> tuple[int, ...]:
  return model.frames, model.image_size, model.image_size, 3


def _score(
  model: ViViT, share: Share, variables: dict[str, Any], video: jax.Array
) -> dict[str, jax.Array]:
  """uint8 [b, T, S, S, 3] -> the outputs of a program for CPUs."""
  logits = in_passes(model, variables, transforms.prepare(video))
  return conversion.outputs(model, share, logits)


def _trace(
  model: ViViT,
  arrays: Mapping[str, np.ndarray],
  platforms: Sequence[str],
  share: Share,
) -> jax_export.Exported:
  """The program (arrays by name, uint8 [b, T, S, S, 3]) -> scores [b, K]."""

  def score(arrays, video):
    variables = weights_file.unflatten(arrays)
    logits: Any = model.apply(variables, transforms.prepare(video))
    return conversion.outputs(model, share, logits)

  (batch,) = jax_export.symbolic_shape('b')
  video = jax.ShapeDtypeStruct((batch, *_clip_shape(model)), jnp.uint8)
  shapes = {
    n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in arrays.items()
  }
  with _on_the_host(model):
    traced = jax_export.export(jax.jit(score), platforms=tuple(platforms))
    return traced(shapes, video)


@contextlib.contextmanager
def _on_the_host(model: ViViT) -> Iterator[None]:
  """Traces on the CPU, where no attention of a variant chooses a kernel."""
  try:
    host = jax.devices('cpu')[0]
  except RuntimeError as error:
    hint = 'a program for every platform is traced on the CPU; add cpu'
    raise MiraInputError('no_device', 'JAX_PLATFORMS', hint) from error
  with jax.default_device(host), _precision(model), _without_paths():
    yield


def _precision(model: ViViT) -> contextlib.AbstractContextManager:
  """Full float32, which GPUs and TPUs round by default."""
  full = model.dtype == jnp.float32
  return jax.default_matmul_precision('highest' if full else 'default')


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
  """Keeps the folders of this machine's source files out of programs."""
  option = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, option)
  jax.config.update(option, 0)
  try:
    yield
  finally:
    jax.config.update(option, before)


def _write_golden(folder: pathlib.Path, source: engine.Engine) -> None:
  """Synthetic clips [2, T, S, S, 3] and what the engine makes of them."""
  model = source.model.clone(attention=None, dtype=jnp.float32)
  reference = engine.Engine(
    model, source.variables, GOLDEN_CLIPS, units=source.units
  )
  size, count = model.image_size, model.frames
  large: Any = {'size': max(64, size), 'num_frames': max(8, count)}
  drawn = [
    faces.draw_clip(i, seed=0, split='test', difficulty='macro', **large).frames
    for i in range(GOLDEN_CLIPS)
  ]
  first = np.arange(count)[None]
  clips = np.stack(
    [footage.resize_windows(x, first, size, 'squash')[0] for x in drawn]
  )
  name = 'probabilities' if model.num_classes else 'logits'
  with _precision(model):
    expected = getattr(reference, name)(clips)
  np.savez_compressed(folder / GOLDEN, clips=clips, **{name: expected})


def _describe(
  model: ViViT, card: Card, kind: str, platforms: Sequence[str]
) -> Card:
  """All of card.json but the digests; docs/export.md explains the fields."""
  size = model.image_size
  names = card['class_names'] if model.num_classes else []
  video = {'dtype': 'uint8', 'shape': ['b', model.frames, size, size, 3]}
  scores = {'dtype': 'float32', 'shape': ['b', len(names) or model.dim]}
  outputs = ('logits', 'probabilities') if names else ('logits',)
  calls = jax.config.values['jax_export_calling_convention_version']
  if kind == 'jax':
    own = {'format': 'mira export 1', 'calling_convention_version': calls}
  else:
    own = {'format': f'mira export {FORMAT}', 'kind': kind}
  return {
    **own,
    'model': card['model']
    | {'attention': model.attention, 'num_classes': len(names)},
    'class_names': names,
    **{n: card[n] for n in ('labels', 'unit_thresholds') if n in card},
    'preprocessing': card['preprocessing']
    | {'frames': model.frames, 'image_size': size},
    'input': {
      'clips': video | {'mean': transforms.MEAN, 'std': transforms.STD},
    },
    'output': dict.fromkeys(outputs, scores),
    'golden': {
      'clips': GOLDEN_CLIPS,
      'computed_on': jax.devices()[0].device_kind,
    },
    'platforms': list(platforms) if kind == 'jax' else ['cpu'],
    'jax_version': jax.__version__,
  }
