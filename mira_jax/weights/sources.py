"""Weights, found and read: the one door for all that reads any.

What is recognised is in docs/weights.md. The tensors of another program get
the names of the reference implementation (`torch_names`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.errors import MiraInputError, checkpoint_error, not_readable
from mira_jax.weights import huggingface, saved_models, torch_file
from mira_jax.weights.metadata import check_card, parse_card
from mira_jax.weights.weights_file import LAST, WEIGHTS, card_of, read_arrays

State = dict[str, np.ndarray]

_INDEX = '.index.json'  # Hugging Face's: which part has which tensor
_DEEPSPEED = 'mp_rank_00_model_states.pt'
# What may lie in a folder, the first one found counts.
_FILES = (
  WEIGHTS,
  _DEEPSPEED,
  'model.safetensors',
  f'model.safetensors{_INDEX}',
  'pytorch_model.bin',
  f'pytorch_model.bin{_INDEX}',
)
# Files that name the folder to look in: DeepSpeed's, the cache of the hub's.
_POINTERS = (('latest', '.'), ('refs/main', 'snapshots'))
_SUFFIXES = ('.safetensors', '.pth', '.pt', '.pyth', '.ckpt', '.bin', '.tar')
# Of that kind, but what trainers keep beside a model.
_BESIDE = re.compile(
  r'optimizer|scheduler|scaler|rng_state|random_states|training_args|zero_pp_'
)
_JSON_BYTES = 16 * 2**20
# In the header of our files with PyTorch names: the card of the weights.
CARD = 'mira_card'


@dataclasses.dataclass(kw_only=True)
class Source:
  """Weights, and all that the files say of them.

  Attributes:
    path: the file with the tensors.
    kind: what it is, in a few words.
    state: arrays by name, float32; of the reference implementation, or of ours
      if `native`.
    native: whether it is a weights file of ours.
    fields: of the model, as far as files beside the tensors have them.
    class_names: the classes in order; () where they are not named.
    args: settings of the run that wrote it, if they are in the file.
    card: of our own files; {} of others.
    notes: what a person must know, one line each.
  """

  path: pathlib.Path
  kind: str
  state: State
  native: bool = False
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  class_names: tuple[str, ...] = ()
  args: dict[str, Any] = dataclasses.field(default_factory=dict)
  card: dict[str, Any] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)

  @property
  def pretraining(self) -> bool:
    """Whether it has a decoder."""
    return 'mask_token' in self.state


def read(path: str | os.PathLike[str], key: str | None = None) -> Source:
  """Weights of ours or of another program.

  Args:
    path: a file, or a folder of a run, of DeepSpeed or of Hugging Face.
    key: which model of a file that has several; None is the best, no average.

  Raises:
    MiraInputError: not there, damaged, of another kind, unsafe, or with NaN.
  """
  file = weights_path(path)
  if not file.is_file():
    hint = 'there is no such file or folder'
    if os.path.isdir(path):
      hint = 'no weights lie in this folder; name their file or folder'
    raise checkpoint_error('not_found', path, hint)
  with contextlib.ExitStack() as stack:
    kind, tree, metadata = _open(file, stack)
    if 'card' in metadata:
      return _native(file, key, metadata, tree)
    found, notes = saved_models.choose(tree, key, file)
    _check_whole(found.state, file)
    notes += _deepspeed_notes(found.state, file)
    state = {
      n: x.read() if isinstance(x, torch_file.Tensor) else x
      for n, x in found.state.items()
    }
    args = _args(tree)
  label = saved_models.shown([found.label])
  place = f"key '{label}'" if label else 'no key'
  source = Source(path=file, kind=f'{kind}, {place}', state=state, args=args)
  source.notes = notes + _left_out(found.outside)
  if CARD in metadata:
    source.kind = 'safetensors of this package with PyTorch names'
    source.card = check_card(parse_card(metadata[CARD], file), file)
  _check_state(source)
  if huggingface.is_here(source.state):
    _from_hugging_face(source)
  return source


def _native(
  file: pathlib.Path, key: str | None, header: dict[str, str], state: State
) -> Source:
  if key is not None:
    hint = f'--key {key}: it has one model; leave the flag out'
    raise MiraInputError('bad_flag', file, hint)
  card = check_card(card_of(header, state, file), file)
  return Source(
    path=file,
    kind='weights of ours',
    state=state,
    native=True,
    card=card,
    class_names=tuple(card['class_names']),
  )


# ----- which file -------------------------------------------------------------


def weights_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """The file with the weights of a folder; a file is itself.

  Where a folder has none it is the file that a finished run would have.

  Raises:
    MiraInputError: the weights are split in a way that has to be joined first,
      or there are several to choose from.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return path
  if found := _known(path):
    return found
  for pointer, below in _POINTERS:
    if target := _pointed(path, pointer, below):
      return weights_path(target)
  names = sorted(entry.name for entry in path.iterdir())
  if any(n.endswith('.distcp') for n in names):
    hint = 'it is of torch.distributed.checkpoint; join it: python -m torch.'
    hint += f'distributed.checkpoint.format_utils dcp_to_torch {path} OUT.pth'
    raise checkpoint_error('split_weights', path, hint)
  if any(n.endswith('_model_states.pt') for n in names):
    raise _zero_error(path)
  files = [
    path / n
    for n in names
    if n.endswith(_SUFFIXES) and n != LAST and not _BESIDE.search(n)
  ]
  found = files or [path / n for n in names if _known(path / n)]
  if len(found) > 1:
    hint = f'name one of them: {saved_models.shown(x.name for x in found)}'
    raise checkpoint_error('several_weights', path, hint)
  return weights_path(found[0]) if found else path / WEIGHTS


def _known(folder: pathlib.Path) -> pathlib.Path | None:
  found = (folder / n for n in _FILES if (folder / n).is_file())
  return next(found, None)


def _pointed(
  folder: pathlib.Path, pointer: str, below: str
) -> pathlib.Path | None:
  """The folder that a file names, within this one."""
  try:
    with (folder / pointer).open('rb') as file:
      name = file.read(999).decode().strip()
  except (OSError, ValueError):
    return None
  target = folder / below / name
  plain = re.fullmatch(r'[^/\\\0]{1,99}', name) and name not in ('.', '..')
  return target if plain and target.is_dir() else None


def _zero_error(path: pathlib.Path) -> MiraInputError:
  hint = "it is split by DeepSpeed's ZeRO; join it with the script that "
  hint += 'DeepSpeed put beside it: python zero_to_fp32.py FOLDER OUT'
  return checkpoint_error('split_weights', path, hint)


# ----- what is in it ----------------------------------------------------------


def _open(
  file: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[str, Any, dict[str, str]]:
  """What a file is, its tree of tensors, and its header."""
  if file.name.endswith(_INDEX):
    return 'parts', _read_parts(file, stack), {}
  part = re.search(r'-\d{5}-of-(\d{5})\.(safetensors|bin)$', file.name)
  if part and int(part[1]) > 1:
    hint = f'it is one of {int(part[1])} parts; name the folder'
    raise checkpoint_error('split_weights', file, hint)
  start = _start(file)
  if start.startswith(b'version https://git-lfs'):
    hint = 'fetch the file with `git lfs pull`'
    raise checkpoint_error('git_lfs_pointer', file, hint)
  return _open_tensors(file, start, stack)


def _start(file: pathlib.Path) -> bytes:
  try:
    with file.open('rb') as stream:
      return stream.read(64)
  except OSError as cause:
    raise not_readable(file, cause) from cause


def _open_tensors(
  file: pathlib.Path, start: bytes, stack: contextlib.ExitStack
) -> tuple[str, Any, dict[str, str]]:
  zipped = start[:2] == b'PK' or start[:1] == b'\x80'
  # A header of JSON after eight bytes; where in doubt the name decides.
  header = start[8:9] == b'{'
  if header or (file.suffix == '.safetensors' and not zipped):
    metadata, tensors = read_arrays(file)
    return 'safetensors', tensors, metadata
  if 'zero_pp_rank_' in file.name:
    raise _zero_error(file)
  deepspeed = file.name == _DEEPSPEED
  if deepspeed and file.with_name('mp_rank_01_model_states.pt').exists():
    hint = 'its tensors are split over several files; join them with DeepSpeed'
    raise checkpoint_error('split_weights', file, hint)
  kind = 'DeepSpeed file' if deepspeed else 'PyTorch file'
  return kind, stack.enter_context(torch_file.open_pth(file)), {}


def _read_parts(
  index: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, saved_models.Leaf]:
  """The tensors of all parts that an index names."""
  places = _json(index).get('weight_map')
  if not isinstance(places, dict) or not all(
    isinstance(part, str) and re.fullmatch(r'[^/\\\0]+', part)
    for part in places.values()
  ):
    hint = 'its weight_map does not give a file of this folder for each tensor'
    raise checkpoint_error('damaged', index, hint)
  parts: dict[str, Mapping[str, Any]] = {}
  for part in sorted(set(places.values())):
    file = index.parent / part
    if part in ('.', '..') or not file.is_file():
      hint = f'its part {saved_models.shown([part])} is missing; fetch it'
      raise checkpoint_error('damaged', index, hint)
    parts[part] = _open_tensors(file, _start(file), stack)[1]
  lost = [
    name
    for name, part in places.items()
    if not isinstance(parts[part], Mapping) or name not in parts[part]
  ]
  if lost:
    hint = f'its parts lack {saved_models.shown(lost)}; fetch them again'
    raise checkpoint_error('damaged', index, hint)
  return {name: parts[part][name] for name, part in places.items()}


def _json(file: pathlib.Path) -> dict[str, Any]:
  """A JSON object that another program wrote."""
  try:
    if file.stat().st_size > _JSON_BYTES:
      raise ValueError(f'it has more than {_JSON_BYTES} bytes')
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
      raise ValueError('it is no object')
  except (ValueError, RecursionError, OSError) as cause:
    hint = f'it is damaged ({str(cause)[:99]}); fetch it again'
    raise checkpoint_error('damaged', file, hint) from cause
  return content


def _args(tree: Any) -> dict[str, Any]:
  """The settings of the run that a file has beside its tensors."""
  args = tree.get('args') if isinstance(tree, Mapping) else None
  if isinstance(args, torch_file.Namespace):
    args = args.values
  return dict(args) if isinstance(args, dict) else {}


# ----- what is wrong with it, and what must be said ---------------------------


def _check_whole(
  state: Mapping[str, saved_models.Leaf], file: pathlib.Path
) -> None:
  """Refuses what ZeRO leaves of a model: tensors without numbers."""
  if 2 * sum(0 in x.shape for x in state.values()) > len(state):
    raise _zero_error(file)


def _deepspeed_notes(
  state: Mapping[str, saved_models.Leaf], file: pathlib.Path
) -> list[str]:
  halves = {str(x.dtype) for x in state.values()} & {'float16', 'bfloat16'}
  if not halves or not list(file.parent.glob('*zero_pp_rank_*')):
    return []
  return [f'its tensors are {halves.pop()}; zero_to_fp32.py joins float32 ones']


def _left_out(names: list[str]) -> list[str]:
  if not names:
    return []
  return [f'left out, as no model here has them: {saved_models.shown(names)}']


def _check_state(source: Source) -> None:
  """Makes all numbers float32, and refuses those that are none."""
  for name, array in source.state.items():
    if not name.isprintable():
      raise checkpoint_error(
        'not_weights', source.path, f'a tensor is called {name[:99]!a}'
      )
    with np.errstate(over='ignore'):
      array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
      raise checkpoint_error(
        'not_finite', source.path, f'{name} holds NaN or infinity'
      )
    source.state[name] = array


def _from_hugging_face(source: Source) -> None:
  """Renames the tensors, and adds what the files beside them say."""
  folder = source.path.parent
  names = [n for n in huggingface.FILES if (folder / n).is_file()]
  files = {n: _json(folder / n) for n in names}
  try:
    found = huggingface.understand(source.state, files)
  except ValueError as cause:
    raise checkpoint_error('unsupported', source.path, str(cause)) from cause
  source.kind, source.state = found.kind, found.state
  source.fields, source.class_names = found.fields, found.class_names
  source.notes += found.notes
