"""The models within what a training program saved, by their tensors' names.

Programs put a state dict under keys of their own and prefixes before its names.
No list of those is complete; what a model's tensors are called is known.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mira_jax.errors import MiraInputError, checkpoint_error, some
from mira_jax.weights import huggingface, torch_file, torch_names

Leaf = np.ndarray | torch_file.Tensor

# Modules around modules; they may stand anywhere in a name.
_WRAPPERS = re.compile(
  r'(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)'
  r'\.'
)
# What averages of a model, or an optimiser's copies, are called, which are not
# taken unless asked for.
_AVERAGE = re.compile(
  r'(?i)(^|[._])(ema|avg|averaged?|swa|teacher|momentum|target|shadow'
  r'|polyak|grads?|gradients?|optim|optimi[sz]ers?)([._]|$)'
)
# Where programs keep the model of a run, whatever else they keep.
_PLAIN = ('', 'model', 'module', 'state_dict', 'model_state_dict')
_DEEPEST = 8  # parts of a prefix
_SHOWN = 12  # names in an error
# Of a file that is searched; the largest that are known have some 10,000.
_MOST_TENSORS = 2**16
_MOST_MODELS = 16  # of one dict


def _names(table: tuple) -> re.Pattern[str]:
  names = (re.escape(name).replace(r'\\1', r'\d+') for _, name, _ in table)
  return re.compile('|'.join(names))


_CLASSIFIER = _names(torch_names.CLASSIFIER)
_AUTOENCODER = _names(torch_names.AUTOENCODER)


@dataclasses.dataclass(kw_only=True)
class Candidate:
  """A model within a file.

  Attributes:
    label: its keys and its prefix, 'state.model'; '' for a bare state dict.
    state: its tensors by the model's names; those under its prefix that no
      model has keep theirs.
    outside: names beside it that belong to no model.
    fits: how many names a model has.
  """

  label: str
  state: dict[str, Leaf]
  outside: list[str]
  fits: int

  @property
  def average(self) -> bool:
    """Whether it is called an average or a copy of another."""
    return bool(_AVERAGE.search(self.label))


def choose(
  tree: Any, key: str | None, path: Any
) -> tuple[Candidate, list[str]]:
  """The model that is asked for, or the best; a note where there are more.

  Args:
    tree: what is in a file.
    key: of the model, the start of a label; None is the best one.
    path: of the file, for errors.

  Raises:
    MiraInputError: it has no model, none at that key, or several of which none
      has the name of a file's only one.
  """
  places = list(_mappings(tree, ()))
  count = sum(len(tensors) for _, tensors in places)
  if count > _MOST_TENSORS:
    hint = f'it has {count} tensors by name, which no program saves'
    raise checkpoint_error('unsafe_pickle', path, hint)
  found = [c for keys, tensors in places for c in _split(keys, tensors)]
  # The most tensors of a model; no average if half as many are of none.
  most = max((c.fits for c in found), default=0)
  found.sort(key=lambda c: (c.average or 2 * c.fits < most, -c.fits))
  wanted = [
    c for c in found if key is None or f'{c.label}.'.startswith(f'{key}.')
  ]
  if not wanted:
    raise _error(tree, places, found, key, path)
  if key is not None or len(found) == 1:
    return wanted[0], []
  labels = shown(c.label or 'no key' for c in found)
  alike = [
    c for c in found if (c.fits, c.average) == (found[0].fits, found[0].average)
  ]
  plain = [c for c in alike if c.label in _PLAIN] or alike
  if len(plain) > 1:
    hint = f'it has models at {labels}; choose one with --key of mira convert'
    raise checkpoint_error('several_weights', path, hint)
  taken = shown([plain[0].label or 'no key'])
  note = f'it has models at {labels}; {taken} is taken, --key another'
  return plain[0], [note]


def shown(names: Iterable[Any]) -> str:
  """Names of a file for a message: a dozen at most, short and printable."""
  return some([ascii(str(n)[:60])[1:-1] for n in names], _SHOWN)


def _error(
  tree: Any,
  places: list[tuple[tuple[str, ...], dict[str, Leaf]]],
  found: list[Candidate],
  key: str | None,
  path: Any,
) -> MiraInputError:
  if found:
    labels = shown(c.label or 'no key' for c in found)
    hint = f'--key {key}: it has no model there, but at {labels}'
    return checkpoint_error('bad_key', path, hint)
  keys = f'its keys are {shown(tree)}' if isinstance(tree, Mapping) else ''
  whole = [tree, *tree.values()] if isinstance(tree, Mapping) else [tree]
  objects = [x.name for x in whole if isinstance(x, torch_file.Inert)]
  if places:
    hint = 'none of its tensors is of a model that is read here: '
    hint += shown(places[0][1])
    return checkpoint_error(
      'other_model', path, f'{hint}; {keys}' if places[0][0] else hint
    )
  hint = f'it has no tensors by name; {keys or "nor keys"}'
  if objects:
    hint += f'; of {shown(objects)} it has whole objects, which are not made; '
    hint += 'save their state_dict() with the program that wrote them'
  return checkpoint_error('not_weights', path, hint)


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
  while rest:
    fits = collections.Counter(root for r in rest.values() for root in r)
    root, count = max(fits.items(), key=lambda item: (item[1], -len(item[0])))
    if models and 2 * count < len(next(iter(models.values()))):
      break
    if len(models) == _MOST_MODELS:
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
  roots: dict[str, set[str]] = {}
  # The names of a pre-training are those of a model only beside its decoder.
  whole = {
    n.removesuffix('mask_token') for n in state if n.endswith('mask_token')
  }
  for name in state:
    dots = [0, *(m.end() for m in re.finditer(r'\.', name))][:_DEEPEST]
    roots[name] = {name[:i] for i in dots if _is_known(name, i, whole)}
  return roots


def _is_known(name: str, start: int, whole: set[str]) -> bool:
  rest = name[start:]
  if _CLASSIFIER.fullmatch(rest) or huggingface.knows(rest):
    return True
  return name[:start] in whole and bool(_AUTOENCODER.fullmatch(rest))
