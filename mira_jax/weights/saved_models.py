"""The models in a file of a training program, found by their tensors' names.

Programs put a state dict under keys of their own and prefixes before its names.
No list of those is complete; the names of a model's own tensors are known.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mira_jax.errors import MiraInputError, checkpoint_error, plain, some
from mira_jax.weights import huggingface, torch_names
from mira_jax.weights.pickles import Inert
from mira_jax.weights.torch_file import Tensor

Leaf = np.ndarray | Tensor

# Modules around modules; they may stand anywhere in a name.
_WRAPPERS = re.compile(
  r'(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)'
  r'\.'
)
# Names of averages of a model and of an optimiser's copies, which are taken
# only on request.
_AVERAGE = re.compile(
  r'(?i)(^|[._])(ema|avg|averaged?|swa|teacher|momentum|target|shadow'
  r'|polyak|grads?|gradients?|optim|optimi[sz]ers?)([._]|$)'
)
# Usual keys of a run's model, whatever else is kept.
_PLAIN = ('', 'model', 'module', 'state_dict', 'model_state_dict')
_DEEPEST = 8  # parts of a prefix
# Of a file that is searched; the largest that are known have some 10,000.
_MOST_TENSORS = 2**16
_MOST_MODELS = 16  # of one dict


def _names(table: torch_names.Table) -> re.Pattern[str]:
  names = (re.escape(name).replace(r'\\1', r'\d+') for _, name, _ in table)
  return re.compile('|'.join(names))


_CLASSIFIER = _names(torch_names.CLASSIFIER)
_AUTOENCODER = _names(torch_names.AUTOENCODER)


@dataclasses.dataclass(kw_only=True)
class Candidate:
  """A model within a file."""

  label: str  # its keys and prefix, 'state.model'; '' for a bare state dict
  state: dict[str, Leaf]  # by the model's names, where they are its
  outside: list[str]  # names beside it that belong to no model
  fits: int  # number of tensors with a name of the model

  @property
  def average(self) -> bool:
    return bool(_AVERAGE.search(self.label))


def choose(
  tree: Any, key: str | None, path: Any
) -> tuple[Candidate, list[str]]:
  """The model at a key, or the best one; a note where there are several.

  Raises:
    MiraInputError: the tree of the file at `path` has no model, none at that
      key, or several equal ones of which none has a usual key.
  """
  places = list(_mappings(tree, ()))
  count = sum(len(tensors) for _, tensors in places)
  if count > _MOST_TENSORS:
    hint = f'it has {count} tensors by name, which no program saves'
    raise checkpoint_error('unsafe_pickle', path, hint)
  found = [c for keys, tensors in places for c in _split(keys, tensors)]
  if not found:
    raise _no_model(tree, places, path)
  # The most tensors of a model; no average if half as many are of none.
  most = max(c.fits for c in found)
  found.sort(key=lambda c: (c.average or 2 * c.fits < most, -c.fits))
  labels = shown(c.label or 'no key' for c in found)
  if key is not None:
    wanted = [c for c in found if f'{c.label}.'.startswith(f'{key}.')]
    if not wanted:
      hint = f'--key {key}: it has no model there, but at {labels}'
      raise checkpoint_error('bad_key', path, hint)
    return wanted[0], []
  rank = found[0].fits, found[0].average
  alike = [c for c in found if (c.fits, c.average) == rank]
  best, *others = [c for c in alike if c.label in _PLAIN] or alike
  if others:
    hint = f'it has models at {labels}; choose one with --key of mira convert'
    raise checkpoint_error('several_weights', path, hint)
  taken = shown([best.label or 'no key'])
  note = f'it has models at {labels}; {taken} is taken, --key takes another'
  return best, [note] if found[1:] else []


def shown(names: Iterable[Any]) -> str:
  """A dozen names of a file at most, short and printable, for a message."""
  return some([plain(str(n)[:60]) for n in names], 12)


def _no_model(tree: Any, places: list, path: Any) -> MiraInputError:
  """The error of a file without a model: its keys and first tensors."""
  hint = 'it has no model that is read here'
  if places:
    hint += f'; its first tensors are {shown(places[0][1])}'
  if isinstance(tree, Mapping) and not (places and places[0][0] == ()):
    hint += f'; its keys are {shown(tree)}'
  whole = [tree, *tree.values()] if isinstance(tree, Mapping) else [tree]
  if objects := [x.name for x in whole if isinstance(x, Inert)]:
    hint += f'; it has whole objects of {shown(objects)}, which are not made: '
    hint += 'save their state_dict() with the program that wrote them'
  return checkpoint_error('other_model', path, hint)


def _mappings(
  tree: Any, keys: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Leaf]]]:
  """Every dict with named tensors, and the keys that lead to it.

  Trees are bounded: `pickles` refuses those without an end.
  """
  if isinstance(tree, Mapping):
    items = [(n, x) for n, x in tree.items() if isinstance(n, str | int)]
  elif isinstance(tree, list | tuple):
    items = list(enumerate(tree))
  else:
    return
  tensors = {
    n: x for n, x in items if isinstance(n, str) and isinstance(x, Leaf)
  }
  if tensors:
    yield keys, tensors
  for name, value in items:
    yield from _mappings(value, (*keys, str(name)))


def _split(
  keys: tuple[str, ...], tensors: Mapping[str, Leaf]
) -> Iterator[Candidate]:
  """The models of one dict: those whose names have one prefix each."""
  state = {_WRAPPERS.sub('', name): x for name, x in tensors.items()}
  if len(state) < len(tensors):  # it has one model within a wrapper, one not
    state = dict(tensors)
  roots = _roots(state)
  rest = {n: r for n, r in roots.items() if r}
  models: dict[str, list[str]] = {}
  while rest and len(models) < _MOST_MODELS:
    fits = collections.Counter(root for r in rest.values() for root in r)
    root, count = max(fits.items(), key=lambda item: (item[1], -len(item[0])))
    if models and 2 * count < len(next(iter(models.values()))):
      break
    models[root] = [n for n, r in rest.items() if root in r]
    rest = {n: r for n, r in rest.items() if root not in r}
  claimed = {n for names in models.values() for n in names}
  left = [n for n in state if n not in claimed]
  for root, names in models.items():
    own = [*names, *(n for n in left if n.startswith(root))]
    found = {n.removeprefix(root): state[n] for n in own}
    # A head beside the backbone, 'head.weight' and 'backbone.blocks...'.
    outside = []
    for name in (n for n in left if not n.startswith(root)):
      near = max((r for r in roots[name] if root.startswith(r)), default=None)
      if near is None or name.removeprefix(near) in found:
        outside.append(name)
      else:
        found[name.removeprefix(near)] = state[name]
    label = '.'.join((*keys, *filter(None, root.split('.'))))
    yield Candidate(label=label, state=found, outside=outside, fits=len(names))


def _roots(state: Mapping[str, Leaf]) -> dict[str, set[str]]:
  """For each name the prefixes without which a model has it."""
  # The names of a pre-training are those of a model only beside its decoder.
  whole = {
    n.removesuffix('mask_token') for n in state if n.endswith('mask_token')
  }
  roots: dict[str, set[str]] = {}
  for name in state:
    dots = [0, *(m.end() for m in re.finditer(r'\.', name))][:_DEEPEST]
    roots[name] = {
      name[:i]
      for i in dots
      if _CLASSIFIER.fullmatch(name, i)
      or huggingface.knows(name[i:])
      or (name[:i] in whole and _AUTOENCODER.fullmatch(name, i))
    }
  return roots
