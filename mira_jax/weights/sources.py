"""Finds and reads weights: the one reader for every command.

docs/weights.md lists the formats. The tensors of another program get the names
of the reference implementation (`torch_names`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mira_jax import files
from mira_jax.errors import MiraInputError, checkpoint_error, not_readable
from mira_jax.weights import hub, huggingface, settings, torch_file
from mira_jax.weights.metadata import Metadata, check_metadata, parse_metadata
from mira_jax.weights.saved_models import Leaf, choose, shown
from mira_jax.weights.weights_file import (
  LAST,
  METADATA,
  TORCH_METADATA,
  WEIGHTS,
  check_finite,
  read_arrays,
)

State = dict[str, np.ndarray]

_INDEX = '.index.json'  # Hugging Face's: which part has which tensor
_DEEPSPEED = 'mp_rank_00_model_states.pt'
# Files of a folder; the first one found counts.
_FILES = (
  WEIGHTS,
  _DEEPSPEED,
  'model.safetensors',
  f'model.safetensors{_INDEX}',
  'pytorch_model.bin',
  f'pytorch_model.bin{_INDEX}',
)
# Files that name another folder: DeepSpeed's, the cache of the hub's.
_POINTERS = (('latest', '.'), ('refs/main', 'snapshots'))
_SUFFIXES = ('.safetensors', '.pth', '.pt', '.pyth', '.ckpt', '.bin', '.tar')
# Of that kind, but kept by trainers beside a model.
_BESIDE = re.compile(
  r'optimizer|scheduler|scaler|rng_state|random_states|training_args|zero_pp_'
)
_JSON_BYTES = 16 * 2**20


@dataclasses.dataclass(kw_only=True)
class Source:
  """Weights, and the facts that their files hold.

  Tensors have the names of the reference implementation, or ours if `native`.
  `fields` are facts of files beside the tensors and of saved settings: fields
  of ViViT, PretrainConfig and MiraConfig, 'mira' (a mode), 'class_names',
  'rate' and 'fit'.
  """

  path: pathlib.Path  # the file with the tensors
  kind: str  # its format, in a few words
  state: State  # float32
  native: bool = False
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  metadata: Metadata = dataclasses.field(default_factory=dict)  # of our files
  notes: list[str] = dataclasses.field(default_factory=list)
  hub: dict[str, Any] = dataclasses.field(default_factory=dict)  # see Download

  @property
  def pretraining(self) -> bool:
    """Whether it has a decoder."""
    return 'mask_token' in self.state

  @property
  def class_names(self) -> list[str]:
    """The classes in order; [] where they are not named."""
    return list((self.metadata or self.fields).get('class_names') or ())

  def origin(self) -> dict[str, Any]:
    """Its file and repository, for the metadata of what is made of it.

    A repository is that of the weights which these were made of, too.
    """
    before = self.metadata.get('source')
    found = self.hub or (before.get('hub') if isinstance(before, dict) else {})
    return {
      'name': self.path.name,
      'kind': self.kind,
      'sha256': files.sha256(self.path),
      **({'hub': found} if found else {}),
    }


def read(path: str | os.PathLike[str], key: str | None = None) -> Source:
  """Weights of ours or of another program.

  Args:
    path: a file, a folder of a run, of DeepSpeed or of Hugging Face, or
      hf://OWNER/NAME[@REVISION].
    key: which model of a file that has several; None is the best, no average.

  Raises:
    MiraInputError: absent, damaged, of another format, unsafe, or with NaN; or
      see `hub.fetch`.
  """
  source = _read(path, key)
  if hub.is_address(path):
    download = hub.fetch(str(path), _candidates)
    source.hub = download.about
    source.notes = [*download.notes, *source.notes]
  return source


def _read(path: str | os.PathLike[str], key: str | None) -> Source:
  file = weights_path(path)
  if not file.is_file():
    hint = 'there is no such file or folder'
    if os.path.isdir(path):
      hint = 'no weights lie in this folder; name their file or folder'
    raise checkpoint_error('not_found', path, hint)
  with contextlib.ExitStack() as stack:
    kind, tree, header = _open(file, stack)
    if METADATA in header:
      metadata = check_metadata(parse_metadata(header[METADATA], file), file)
      for name, array in tree.items():
        check_finite(name, array, file)
      kind = 'weights of ours'
      return Source(
        path=file, kind=kind, state=tree, native=True, metadata=metadata
      )
    found, notes = choose(tree, key, file)
    if 2 * sum(0 in x.shape for x in found.state.values()) > len(found.state):
      raise _zero_error(file)
    state = {n: _read_tensor(n, x, file) for n, x in found.state.items()}
  if found.outside:
    notes.append(f'left out, as no model here has them: {shown(found.outside)}')
  label = shown([found.label])
  kind = f"{kind}, key '{label}'" if label else f'{kind}, no key'
  source = Source(path=file, kind=kind, state=state, notes=notes)
  if TORCH_METADATA in header:
    source.kind = 'safetensors of this package with PyTorch names'
    metadata = parse_metadata(header[TORCH_METADATA], file)
    source.metadata = check_metadata(metadata, file)
  _add_facts(source, tree)
  return source


def _read_tensor(name: str, leaf: Leaf, file: pathlib.Path) -> np.ndarray:
  """A finite float32 array."""
  if not name.isprintable():
    hint = f'a tensor is called {name[:99]!a}'
    raise checkpoint_error('bad_weights', file, hint)
  array = leaf.read() if isinstance(leaf, torch_file.Tensor) else leaf
  with np.errstate(over='ignore'):
    array = np.asarray(array, np.float32)
  check_finite(name, array, file)
  return array


def _add_facts(source: Source, tree: Any) -> None:
  """Adds saved settings and Hugging Face's files, and renames its tensors."""
  args = tree.get('args') if isinstance(tree, Mapping) else None
  folder = source.path.parent
  try:
    if isinstance(args, dict) and args:
      source.fields, more = settings.of_reference(args)
      source.notes += more
    if huggingface.is_here(source.state):
      names = [n for n in huggingface.FILES if (folder / n).is_file()]
      files = {n: _json(folder / n) for n in names}
      vivit = any(n.endswith('cls_token') for n in source.state)
      source.kind = f"Hugging Face's {'ViViT' if vivit else 'VideoMAE'}"
      source.state, facts, more = huggingface.understand(source.state, files)
      source.fields |= facts
      source.notes += more
  except ValueError as cause:
    if isinstance(cause, MiraInputError):
      raise
    raise checkpoint_error('unsupported', source.path, str(cause)) from cause


# ----- which file -------------------------------------------------------------


def weights_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """The file with the weights of a folder; a file is itself.

  Where a folder has none it is the file that a finished run would have. A model
  of the hub is downloaded into the cache, if it is not there.

  Raises:
    MiraInputError: the weights are split in a way that has to be joined first,
      or there are several to choose from; or see `hub.fetch`.
  """
  if hub.is_address(path):
    return hub.fetch(str(path), _candidates).path
  path = pathlib.Path(path)
  if not path.is_dir():
    return path
  if found := _known(path):
    return found
  for pointer, below in _POINTERS:
    if target := _pointed(path / pointer, path / below):
      return weights_path(target)
  names = sorted(entry.name for entry in path.iterdir())
  if any(n.endswith('.distcp') for n in names):
    hint = 'it is of torch.distributed.checkpoint; join it: python -m torch.'
    hint += f'distributed.checkpoint.format_utils dcp_to_torch {path} OUT.pth'
    raise checkpoint_error('split_weights', path, hint)
  if any(n.endswith('_model_states.pt') for n in names):
    raise _zero_error(path)
  found = [path / n for n in _candidates(names)]
  found = found or [path / n for n in names if _known(path / n)]
  if len(found) > 1:
    hint = f'name one of them: {shown(x.name for x in found)}'
    raise checkpoint_error('several_weights', path, hint)
  return weights_path(found[0]) if found else path / WEIGHTS


def _known(folder: pathlib.Path) -> pathlib.Path | None:
  found = (folder / n for n in _FILES if (folder / n).is_file())
  return next(found, None)


def _candidates(names: Sequence[str]) -> list[str]:
  """Of the names in a folder those of weights: the usual one, or any."""
  usual = [n for n in _FILES if n in names]
  return usual[:1] or [
    n
    for n in names
    if n.endswith(_SUFFIXES) and n != LAST and not _BESIDE.search(n)
  ]


def _pointed(file: pathlib.Path, below: pathlib.Path) -> pathlib.Path | None:
  """The folder just below another one that a file names."""
  try:
    with file.open('rb') as stream:
      name = stream.read(999).decode().strip()
  except (OSError, ValueError):
    return None
  plain = re.fullmatch(r'[^/\\\0]{1,99}', name) and name not in ('.', '..')
  return below / name if plain and (below / name).is_dir() else None


# ----- its content ------------------------------------------------------------


def _open(
  file: pathlib.Path, stack: contextlib.ExitStack, whole: bool = True
) -> tuple[str, Any, dict[str, str]]:
  """The format of a file, its tree of tensors, and its header.

  Args:
    file: with the tensors, or an index of parts.
    stack: keeps the file open.
    whole: whether the file may not be one part of several.
  """
  if whole and file.name.endswith(_INDEX):
    return 'parts', _read_parts(file, stack), {}
  part = re.search(r'-\d{5}-of-(\d{5})\.(safetensors|bin)$', file.name)
  if whole and part and int(part[1]) > 1:
    hint = f'it is one of {int(part[1])} parts; name the folder'
    raise checkpoint_error('split_weights', file, hint)
  try:
    with file.open('rb') as stream:
      start = stream.read(64)
  except OSError as cause:
    raise not_readable(file, cause) from cause
  if start.startswith(b'version https://git-lfs'):
    hint = 'fetch the file with `git lfs pull`'
    raise checkpoint_error('git_lfs_pointer', file, hint)
  zipped = start[:2] == b'PK' or start[:1] == b'\x80'
  # A header of JSON after eight bytes; where in doubt the name decides.
  if start[8:9] == b'{' or (file.suffix == '.safetensors' and not zipped):
    header, tensors = read_arrays(file)
    return 'safetensors', tensors, header
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
) -> dict[str, Leaf]:
  """The tensors of all parts that an index names."""
  places = _json(index).get('weight_map')
  if not isinstance(places, dict) or not all(
    isinstance(part, str) and re.fullmatch(r'[^/\\\0]+', part)
    for part in places.values()
  ):
    hint = 'its weight_map does not give a file of this folder for each tensor'
    raise checkpoint_error('damaged', index, hint)
  parts: dict[str, Any] = {}
  for part in sorted(set(places.values())):
    file = index.parent / part
    if part in ('.', '..') or not file.is_file():
      hint = f'its part {shown([part])} is missing; fetch it'
      raise checkpoint_error('damaged', index, hint)
    _, tree, _ = _open(file, stack, whole=False)
    parts[part] = tree if isinstance(tree, Mapping) else {}
  if lost := [n for n, part in places.items() if n not in parts[part]]:
    hint = f'its parts lack {shown(lost)}; fetch them again'
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


def _zero_error(path: pathlib.Path) -> MiraInputError:
  """The error of tensors without elements, which ZeRO leaves of a model."""
  hint = "it is split by DeepSpeed's ZeRO; join it with the script that lies "
  hint += 'beside it: python zero_to_fp32.py FOLDER OUT'
  return checkpoint_error('split_weights', path, hint)
