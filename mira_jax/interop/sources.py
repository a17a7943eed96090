"""Weights that other programs left, found and read: names to arrays.

What is recognised is told in docs/weights.md. Whatever it is, the result has
the names of the authors' code (`torch_names`), float32, and no NaN.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from mira_jax.errors import checkpoint_error
from mira_jax.interop import huggingface, pth
from mira_jax.weights import WEIGHTS

State = dict[str, np.ndarray]

# What may lie in a folder, the first one found counts.
_FILES = (
  WEIGHTS,
  'mp_rank_00_model_states.pt',  # DeepSpeed's
  'model.safetensors',  # Hugging Face's
  'pytorch_model.bin',
)
# In the header of our files with PyTorch names: the card of the weights.
CARD = 'mira_card'


@dataclasses.dataclass(kw_only=True)
class Source:
  """Weights with the names of the authors' code.

  Attributes:
    path: the file with the tensors.
    kind: what it is, in a few words.
    state: arrays by name, float32.
    fields: of the model, as far as files beside the tensors tell them.
    class_names: the classes in order; () where they are not told.
    args: settings of the run that wrote it, if they are in the file.
    card: of our own file with PyTorch names; {} of others.
    notes: what a person must know, one line each.
  """

  path: pathlib.Path
  kind: str
  state: State
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  class_names: tuple[str, ...] = ()
  args: dict[str, Any] = dataclasses.field(default_factory=dict)
  card: dict[str, Any] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)

  @property
  def pretraining(self) -> bool:
    """Whether it has a decoder."""
    return 'mask_token' in self.state


def weights_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """The file with the weights of a folder; a file is itself.

  Where a folder has none it is the file that a finished run would have.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return path
  found = [path / name for name in _FILES if (path / name).is_file()]
  return found[0] if found else path / WEIGHTS


def read(path: str | os.PathLike[str]) -> Source | None:
  """Weights of another program, or None for a weights file of ours.

  Args:
    path: a file, or a folder of a run, of DeepSpeed or of Hugging Face.

  Raises:
    MiraInputError: not there, damaged, of another kind, unsafe, or with NaN.
  """
  file = weights_path(path)
  if not file.is_file():
    raise checkpoint_error(
      'not_found', file, 'name a file or folder of weights'
    )
  if _is_safetensors(file):
    metadata, tensors = _read_safetensors(file)
    if 'card' in metadata:
      return None
    source = Source(path=file, kind='safetensors', state=tensors)
    if CARD in metadata:
      source.kind = 'safetensors of this package with PyTorch names'
      source.card = _card(metadata[CARD], file)
  else:
    source = _read_pth(file)
  source.state = _strip(source.state)
  _check_state(source)
  if huggingface.is_here(source.state):
    _from_hugging_face(source)
  return source


def _card(text: str, file: pathlib.Path) -> dict[str, Any]:
  """The card in the header of a file that `mira convert` wrote."""
  needed = ('frames', 'image_size', 'patch', 'tubelet', 'dim', 'depth', 'heads')
  try:
    card = json.loads(text)
    whole = all(type(card['model'][n]) is int for n in needed)
    whole = whole and isinstance(card['class_names'], list)
  except (ValueError, KeyError, TypeError) as cause:
    raise checkpoint_error(
      'bad_card', file, f'its card is damaged ({cause})'
    ) from cause
  if not whole:
    raise checkpoint_error(
      'bad_card', file, 'its card does not describe a model'
    )
  return card


def _is_safetensors(file: pathlib.Path) -> bool:
  """Its header is JSON after eight bytes; ends in doubt decide by the name."""
  with file.open('rb') as stream:
    start = stream.read(9)
  zipped = start[:2] == b'PK' or start[:1] == b'\x80'
  return start[8:] == b'{' or (file.suffix == '.safetensors' and not zipped)


def _read_safetensors(file: pathlib.Path) -> tuple[dict[str, str], State]:
  try:
    with safetensors.safe_open(file, framework='numpy') as opened:
      metadata = opened.metadata() or {}
      if 'card' in metadata:
        return metadata, {}
      return metadata, {n: opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
  except (safetensors.SafetensorError, OSError, ValueError, TypeError) as cause:
    hint = f'the file is damaged or of another format ({cause})'
    raise checkpoint_error('not_weights', file, hint) from cause


def _read_pth(file: pathlib.Path) -> Source:
  with pth.open_pth(file) as tree:
    key, tensors = _state_of(tree, file)
    state = {name: tensor.read() for name, tensor in tensors.items()}
  args = tree.get('args') if isinstance(tree, Mapping) else None
  deepspeed = file.name.startswith('mp_rank_')
  if deepspeed and (file.parent / 'mp_rank_01_model_states.pt').exists():
    hint = 'its tensors are split over several files; join them with DeepSpeed'
    raise checkpoint_error('not_weights', file, hint)
  return Source(
    path=file,
    kind=f'{"DeepSpeed" if deepspeed else "PyTorch"} file, {key}',
    state=state,
    args=args.values if isinstance(args, pth.Namespace) else {},
  )


def _state_of(
  tree: Any, file: pathlib.Path
) -> tuple[str, dict[str, pth.Tensor]]:
  """The state dict in what a file holds, and where it was."""
  places = {'no key': tree}
  if isinstance(tree, Mapping):
    places = {f'key {k!r}': tree.get(k) for k in ('model', 'module')} | places
  for key, place in places.items():
    if isinstance(place, Mapping):
      tensors = {
        str(n): x for n, x in place.items() if isinstance(x, pth.Tensor)
      }
      if tensors:
        return key, tensors
  hint = "it has no tensors at the keys 'model' or 'module', nor without a key"
  raise checkpoint_error('not_weights', file, hint)


def _strip(state: State) -> State:
  """Names without what wrappers put before them.

  The encoder of a pre-training keeps its prefix: its decoder is there too.
  """
  state = {re.sub(r'^(module\.)+', '', n): x for n, x in state.items()}
  if 'mask_token' in state or huggingface.is_here(state):
    return state
  return {re.sub(r'^(backbone|encoder)\.', '', n): x for n, x in state.items()}


def _check_state(source: Source) -> None:
  """Makes all numbers float32, and refuses those that are none."""
  for name, array in source.state.items():
    if not name.isprintable():
      raise checkpoint_error(
        'not_weights', source.path, f'a tensor is called {name!a}'
      )
    with np.errstate(over='ignore'):
      array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
      raise checkpoint_error(
        'not_finite', source.path, f'{name} holds NaN or infinity'
      )
    source.state[name] = array


def _from_hugging_face(source: Source) -> None:
  """Renames the tensors, and adds what config.json beside them says."""
  beside = source.path.parent / 'config.json'
  try:
    config = json.loads(beside.read_text()) if beside.is_file() else {}
    vivit = any(n.endswith('cls_token') for n in source.state)
    source.fields = huggingface.fields(config, vivit)
    source.state, notes = huggingface.rename(source.state, config)
  except (ValueError, AttributeError, TypeError) as cause:
    raise checkpoint_error('unsupported', source.path, str(cause)) from cause
  if 'head.weight' in source.state:
    source.class_names = huggingface.class_names(config)
  name = 'ViViT' if vivit else 'VideoMAE'
  with_config = '' if config else ', no config.json beside it'
  source.kind = f"Hugging Face's {name}{with_config}"
  source.notes += notes
