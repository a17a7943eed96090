"""PyTorch models with our weights: the other side of `mira compare torch`.

They were written without ours: Hugging Face's VideoMAE or ViViT for a plain
model, `torch_mira` for one with MiRA, or any `torch.nn.Module` of a user.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import pathlib
import re
import runpy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.mira import MiraConfig
from mira_jax.models.layers import mlp_width
from mira_jax.models.options import beyond_others
from mira_jax.weights import huggingface, torch_names
from mira_jax.weights.weights_file import flatten, restack, unflatten

PyTree = Any
State = dict[str, np.ndarray]
LOGITS = 'logits'


@dataclasses.dataclass
class Peer:
  """A PyTorch model that has our weights.

  Attributes:
    name: in titles.
    module: called with clips [B, 3, F, H, W].
    hugging_face: whether it is of Hugging Face: its parameters have their names
      and its clips are [B, F, 3, H, W].
  """

  name: str
  module: Any
  hugging_face: bool = False

  def run(
    self,
    video: np.ndarray,
    labels: np.ndarray | None,
    depth: int,
    dtype: str = 'float32',
  ) -> tuple[State, State]:
    """As `ours`; bfloat16 by autocast, which keeps float32 where we do."""
    torch = load()
    pixels = self.pixels(video)
    outputs: list[Any] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
      outputs.append(output[0] if isinstance(output, tuple) else output)

    lists = (
      part
      for part in self.module.modules()
      if isinstance(part, torch.nn.ModuleList) and len(part) == depth
    )
    hooks = [x.register_forward_hook(keep) for x in next(lists, ())]
    self.module.eval().requires_grad_(labels is not None)
    self.module.zero_grad()
    with self.held(dtype):
      try:
        logits = self.logits(pixels, dtype)
      finally:
        for hook in hooks:
          hook.remove()
      layers = {
        f'block {i + 1}': x.detach().to(logits.dtype).numpy()
        for i, x in enumerate(outputs)
      }
      layers[LOGITS] = logits.detach().numpy()
      if labels is None:
        return layers, {}
      self.loss(logits, labels).backward()
      return layers, self._gradients()

  def pixels(self, video: np.ndarray) -> Any:
    """The tensor of clips [B, F, H, W, 3] that the module takes."""
    order = (0, 1, 4, 2, 3) if self.hugging_face else (0, 4, 1, 2, 3)
    return load().from_numpy(np.ascontiguousarray(video.transpose(order)))

  def logits(self, pixels: Any, dtype: str) -> Any:
    """[B, K], in float32 at least.

    Raises:
      MiraInputError: the module fails, or gives something else.
    """
    torch = load()
    clips = f'clips {list(pixels.shape)} in {dtype}'
    try:
      with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
        logits = self.module(pixels)
    except Exception as error:  # of any kind: it is a user's code
      hint = f'with {clips}: {type(error).__name__}: {error}'
      hint = hint.replace('\n', ' ')[:400]
      raise MiraInputError('bad_module', self.name, hint) from error
    logits = getattr(logits, 'logits', logits)
    shape = list(getattr(logits, 'shape', ()))
    if len(shape) != 2 or shape[0] != len(pixels):
      hint = (
        f'of {clips} it gives {shape or logits}, not logits [clips, classes]'
      )
      raise MiraInputError('bad_module', self.name, hint)
    return logits.to(getattr(torch, stored(dtype)))

  def loss(self, logits: Any, labels: np.ndarray) -> Any:
    """Their mean cross-entropy; raises MiraInputError if it has no gradient."""
    torch = load()
    if not logits.requires_grad:
      hint = 'its logits have no gradient: no_grad, inference_mode or detach'
      raise MiraInputError('bad_module', self.name, hint)
    targets = torch.from_numpy(np.asarray(labels, np.int64))
    return torch.nn.functional.cross_entropy(logits, targets)

  def named(self, state: State, names: Iterable[str]) -> State:
    """Tensors by the authors' names, by those of the module."""
    return huggingface.restore(state, names) if self.hugging_face else state

  @contextlib.contextmanager
  def held(self, dtype: str) -> Iterator[None]:
    """The module in a number format; its tensors come back afterwards."""
    torch = load()
    start = {n: x.clone() for n, x in self.module.state_dict().items()}
    self.module.to(getattr(torch, stored(dtype)))
    try:
      yield
    finally:
      self.module.float().zero_grad()
      self.module.load_state_dict(start)

  def _gradients(self) -> State:
    """Of all parameters, by the authors' names."""
    pairs = self.module.named_parameters()
    found = {n: x.grad.numpy() for n, x in pairs if x.grad is not None}
    if not self.hugging_face:
      return found
    renamed = huggingface.understand(found, {})[0]
    if 'cls_token' in renamed:  # its first layer is rewritten for our pixels
      embeddings = ('patch_embed.', 'pos_embed', 'cls_token')
      return {n: x for n, x in renamed.items() if not n.startswith(embeddings)}
    return renamed


def stored(dtype: str) -> str:
  """The number format of parameters and losses of a computation in `dtype`."""
  return 'float64' if dtype == 'float64' else 'float32'


def layer_of(name: str, depth: int) -> int:
  """The layer of a parameter by its name in PyTorch.

  0 is the embedding, 1 to `depth` are the blocks, `depth` + 1 what follows.
  """
  if block := re.search(r'(?:blocks|layers?)\.(\d+)\.', name):
    return int(block[1]) + 1
  after = re.match(r'(head|fc_norm|classifier|(\w+\.)?layernorm)\.', name)
  return depth + 1 if after else 0


def load(name: str = 'torch') -> Any:
  """The package torch or transformers.

  Raises:
    MiraInputError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    hint = "install it beside this package: pip install 'mira-jax[torch]'"
    raise MiraInputError('no_torch', name, hint) from error


def peer(fields: Mapping[str, Any], variables: PyTree) -> Peer:
  """The independent model of these fields: Hugging Face's, or `torch_mira`.

  Raises:
    MiraInputError: neither computes such a model.
  """
  vivit = fields.get('pool') == 'cls'
  learned = fields.get('positions') == 'learned'
  plain = fields.get('mira') is None
  odd = [
    f'{name} {fields[name]!r}'
    for name, usual in (('variant', 'joint'), ('layer_scale', None))
    if fields.get(name, usual) != usual
  ] + beyond_others(fields)
  if vivit != learned or (vivit and not plain):
    odd.append('a class token' if vivit else 'learned positions')
  if odd:
    hint = 'no independent model here has this; give yours: --module PATH:CLASS'
    raise MiraInputError('unsupported', ', '.join(odd), hint)
  if plain:
    return _hugging_face(fields, variables, vivit)
  return with_mira(fields, variables)


def _named(variables: PyTree) -> State:
  """Variables of a classifier by the authors' names, in float32."""
  flat = restack(flatten(variables), stacked=False)
  state = torch_names.to_torch(unflatten(flat), torch_names.CLASSIFIER)
  return {n: np.array(x, np.float32) for n, x in state.items()}


def with_mira(fields: Mapping[str, Any], variables: PyTree) -> Peer:
  """`torch_mira`'s model, with MiRA or plain."""
  load()
  from mira_jax.parity import torch_mira

  model = torch_mira.VideoTransformer
  names = inspect.signature(model).parameters
  own: Any = {name: fields[name] for name in names if name in fields}
  mira = own['mira'] = own.get('mira') and MiraConfig(**own['mira'])
  module = model(**own)
  name = f'torch_mira ({mira.mode if mira else "plain"})'
  return _loaded(name, module, variables)


def from_path(text: str, variables: PyTree) -> Peer:
  """A model of the user: PATH:NAME.

  NAME, in the Python file PATH, is a class or function without arguments that
  returns a `torch.nn.Module`. The module takes the authors' names in
  `load_state_dict`, and clips [B, 3, F, H, W], and returns logits.

  Raises:
    MiraInputError: there is no such file or name, or it has other tensors.
  """
  path, _, name = text.rpartition(':')
  if not pathlib.Path(path).is_file() or not name:
    hint = 'give a Python file and a name in it, such as model.py:MyModel'
    raise MiraInputError('not_found', text, hint)
  found = runpy.run_path(path)
  if name not in found:
    raise MiraInputError('not_found', text, f'{path} has no {name}')
  return _loaded(name, found[name](), variables)


def _loaded(name: str, module: Any, variables: PyTree) -> Peer:
  """Raises MiraInputError when the tensors are not those of the module."""
  torch = load()
  tensors = {n: torch.from_numpy(x) for n, x in _named(variables).items()}
  try:
    missing, left = module.load_state_dict(tensors, strict=False)
  except RuntimeError as error:
    hint = str(error).replace('\n', ' ')[:400]
    raise checkpoint_error('weights_mismatch', 'module', hint) from error
  # MiRA's averages are optional: a plain model has no use for them.
  wrong = [n for n in (*missing, *left) if not n.endswith('c_buf')]
  if wrong:
    hint = f'it must have the names of the authors: {", ".join(wrong[:6])}'
    raise checkpoint_error('weights_mismatch', 'module', hint)
  return Peer(name, module)


def _hugging_face(
  fields: Mapping[str, Any], variables: PyTree, vivit: bool
) -> Peer:
  torch, transformers = load(), load('transformers')
  kind = 'Vivit' if vivit else 'VideoMAE'
  dim, patch, tubelet = fields['dim'], fields['patch'], fields['tubelet']
  config = getattr(transformers, f'{kind}Config')(
    hidden_size=dim,
    num_hidden_layers=fields['depth'],
    num_attention_heads=fields['heads'],
    intermediate_size=mlp_width(dim, fields.get('mlp_ratio', 4.0)),
    num_frames=fields['frames'],
    image_size=fields['image_size'],
    num_labels=fields['num_classes'],
    layer_norm_eps=fields.get('norm_eps', 1e-6),
    hidden_act='gelu_new' if fields.get('gelu') == 'tanh' else 'gelu',
    patch_size=patch,
    tubelet_size=[tubelet, patch, patch] if vivit else tubelet,
    use_mean_pooling=True,
  )
  named = f'{kind}ForVideoClassification'
  module = getattr(transformers, named)(config).eval()
  try:
    restored = huggingface.restore(_named(variables), module.state_dict())
  except KeyError as error:
    hint = f'transformers {transformers.__version__} has other names: {error}'
    raise checkpoint_error('weights_mismatch', named, hint) from error
  module.load_state_dict(
    {n: torch.from_numpy(np.array(x)) for n, x in restored.items()}
  )
  # The configuration has no field for it.
  last = module.vivit.layernorm if vivit else module.fc_norm
  last.eps = fields.get('last_norm_eps') or config.layer_norm_eps
  return Peer(f"Hugging Face's {named}", module, hugging_face=True)
