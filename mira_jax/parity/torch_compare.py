"""The same weights and clips in JAX and in PyTorch, layer by layer.

The other side is a model that was written without ours: Hugging Face's
VideoMAE or ViViT for a plain model, `torch_mira` for one with MiRA, or any
`torch.nn.Module` of a person. Both get the same normalised clips.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mira_jax.augment import transforms
from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.models import build
from mira_jax.models.layers import mlp_width
from mira_jax.train import losses
from mira_jax.weights import huggingface, sources, torch_names
from mira_jax.weights.weights_file import flatten, restack, unflatten

PyTree = Any
State = dict[str, np.ndarray]
DTYPES = ('float32', 'bfloat16')
LOGITS = 'logits'


@dataclasses.dataclass(frozen=True)
class Row:
  """How far apart two arrays are.

  Attributes:
    name: of the layer, 'block 3' or 'logits'; 'd block 3' of gradients.
    max_abs: largest difference.
    mean_abs: mean difference.
    relative: largest difference over the largest number of PyTorch's.
    cosine: between the two as vectors.
  """

  name: str
  max_abs: float
  mean_abs: float
  relative: float
  cosine: float


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Two models in one number format.

  Attributes:
    dtype: of the computation.
    rows: by layer; those of gradients last.
    top1: share of clips whose best class is the same.
  """

  dtype: str
  rows: Sequence[Row]
  top1: float

  def row(self, name: str) -> Row:
    return next(row for row in self.rows if row.name == name)


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
  """How far apart two arrays of one shape are, in float64."""
  a, b = (np.asarray(x, np.float64).ravel() for x in (ours, theirs))
  apart = np.abs(a - b)
  largest, norms = np.abs(b).max(), np.linalg.norm(a) * np.linalg.norm(b)
  return Row(
    name=name,
    max_abs=float(apart.max()),
    mean_abs=float(apart.mean()),
    relative=float(apart.max() / largest) if largest else float(apart.max()),
    cosine=float(a @ b / norms) if norms else float((a == b).all()),
  )


# ----- ours -------------------------------------------------------------------


@dataclasses.dataclass
class Outputs:
  """What a model makes of clips.

  Attributes:
    layers: name -> array, of the blocks in their order, then logits.
    gradients: the authors' names -> array, of the mean cross-entropy; or {}.
  """

  layers: State
  gradients: State


def ours(
  fields: Mapping[str, Any],
  variables: PyTree,
  video: np.ndarray,
  labels: np.ndarray | None,
  dtype: str = 'float32',
  attention: str | None = None,
) -> Outputs:
  """Our model's layers and gradients.

  Args:
    fields: of ViViT as JSON.
    variables: {'params': ..., 'mira': ...}, blocks stacked or not.
    video: float32 [B, F, H, W, 3], normalised.
    labels: int [B] to differentiate by; None: no gradients.
    dtype: of the computation.
    attention: its implementation; None is what the model chooses.
  """
  variables = unflatten(restack(flatten(variables), stacked=False))
  plain = {'scan': False, 'remat': None, 'attention': attention}
  model = build.build_model({**fields, **plain, 'dtype': dtype})
  rest = {n: x for n, x in variables.items() if n != 'params'}

  def run(params: PyTree) -> tuple[jax.Array, State]:
    logits, records = model.apply(
      {'params': params, **rest}, jnp.asarray(video), record=True
    )
    layers = {
      f'block {i + 1}': record['output'].astype(jnp.float32)
      for i, record in enumerate(records)
    }
    if labels is None:
      return jnp.zeros(()), layers | {LOGITS: logits}
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    known = jnp.ones(len(labels), bool)
    loss = losses.cross_entropy(logits, targets, known)
    return loss, layers | {LOGITS: logits}

  params = variables['params']
  if labels is None:
    return Outputs(jax.device_get(jax.jit(run)(params)[1]), {})
  (_, layers), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(
    params
  )
  named = torch_names.to_torch(
    {'params': jax.device_get(gradients)}, torch_names.CLASSIFIER
  )
  return Outputs(jax.device_get(layers), named)


# ----- theirs -----------------------------------------------------------------


@dataclasses.dataclass
class Peer:
  """A PyTorch model that has our weights.

  Attributes:
    name: for a person.
    module: called with [B, 3, F, H, W] (`channels_first`) or [B, F, 3, H, W].
    channels_first: which.
    gradients: module after `backward` -> the authors' names -> gradient.
  """

  name: str
  module: Any
  channels_first: bool
  gradients: Callable[[Any], State]

  def run(
    self,
    video: np.ndarray,
    labels: np.ndarray | None,
    depth: int,
    dtype: str = 'float32',
  ) -> Outputs:
    """As `ours`; bfloat16 by autocast, which keeps float32 where we do."""
    torch = load_torch()
    order = (0, 4, 1, 2, 3) if self.channels_first else (0, 1, 4, 2, 3)
    pixels = torch.from_numpy(np.ascontiguousarray(video.transpose(order)))
    layers: State = {}
    hooks = []

    def keep(name: str) -> Callable:
      def hook(module: Any, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        layers[name] = first.detach().float().numpy()

      return hook

    for i, block in enumerate(_blocks(self.module, depth)):
      hooks.append(block.register_forward_hook(keep(f'block {i + 1}')))
    self.module.eval().requires_grad_(labels is not None)
    self.module.zero_grad()
    try:
      with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
        logits = self.module(pixels)
        logits = getattr(logits, 'logits', logits).float()
    finally:
      for hook in hooks:
        hook.remove()
    layers[LOGITS] = logits.detach().numpy()
    if labels is None:
      return Outputs(layers, {})
    targets = torch.from_numpy(np.asarray(labels, np.int64))
    torch.nn.functional.cross_entropy(logits, targets).backward()
    return Outputs(layers, self.gradients(self.module))


def load_torch() -> Any:
  """The torch package. Raises MiraInputError when it is not installed."""
  try:
    import torch
  except ImportError as error:
    hint = "install it beside this package: pip install 'mira-jax[torch]'"
    raise MiraInputError('no_torch', 'torch', hint) from error
  return torch


def peer(fields: Mapping[str, Any], variables: PyTree) -> Peer:
  """The independent model of a card: Hugging Face's, or `torch_mira`.

  Raises:
    MiraInputError: none of them computes such a model.
  """
  vivit = fields.get('pool') == 'cls'
  learned = fields.get('positions') == 'learned'
  plain = fields.get('mira') is None
  odd = [
    f'{name} {fields[name]!r}'
    for name, usual in (('variant', 'joint'), ('layer_scale', None))
    if fields.get(name, usual) != usual
  ]
  if vivit != learned or (vivit and not plain):
    odd.append('a class token' if vivit else 'learned positions')
  if odd:
    hint = 'no independent model here has this; give yours: --module PATH:CLASS'
    raise MiraInputError('unsupported', ', '.join(odd), hint)
  state = named_state(variables)
  if plain:
    return _hugging_face(fields, state, vivit)
  return _with_mira(fields, state)


def named_state(variables: PyTree) -> State:
  """Variables of a classifier by the authors' names, in float32."""
  flat = restack(flatten(variables), stacked=False)
  state = torch_names.to_torch(unflatten(flat), torch_names.CLASSIFIER)
  return {n: np.asarray(x, np.float32) for n, x in state.items()}


def with_mira(fields: Mapping[str, Any], variables: PyTree) -> Peer:
  """`torch_mira`'s model, with MiRA or plain."""
  return _with_mira(fields, named_state(variables))


def _with_mira(fields: Mapping[str, Any], state: State) -> Peer:
  load_torch()
  from mira_jax.mira import MiraConfig
  from mira_jax.parity import torch_mira

  names = ('dim', 'depth', 'heads', 'num_classes', 'frames', 'image_size')
  names += ('patch', 'tubelet', 'mlp_ratio', 'gelu', 'mira_last_blocks')
  names += ('norm_eps', 'last_norm_eps')
  own = {name: fields[name] for name in names if name in fields}
  mira = fields.get('mira')
  if mira is not None and not isinstance(mira, MiraConfig):
    mira = MiraConfig(**mira)
  module = torch_mira.VideoTransformer(**own, mira=mira)
  _load(module, state)
  name = f'torch_mira ({mira.mode if mira else "plain"})'
  return Peer(name, module, True, _named_gradients)


def _load(module: Any, state: State) -> None:
  """Raises MiraInputError when the tensors are not those of the module."""
  torch = load_torch()
  tensors = {n: torch.from_numpy(np.array(x)) for n, x in state.items()}
  try:
    missing, left = module.load_state_dict(tensors, strict=False)
  except RuntimeError as error:
    hint = str(error).replace('\n', ' ')[:400]
    raise checkpoint_error('weights_mismatch', 'module', hint) from error
  # MiRA's averages, which a plain model has no use for, and not all have.
  wrong = [n for n in (*missing, *left) if not n.endswith('c_buf')]
  if wrong:
    hint = f'it must have the names of the authors: {", ".join(wrong[:6])}'
    raise checkpoint_error('weights_mismatch', 'module', hint)


def _named_gradients(module: Any) -> State:
  return {
    name: parameter.grad.numpy()
    for name, parameter in module.named_parameters()
    if parameter.grad is not None
  }


def from_path(text: str, variables: PyTree) -> Peer:
  """A person's own model: PATH:NAME.

  NAME, in the Python file PATH, is a class or function that gives a
  `torch.nn.Module` when it is called without arguments. The module takes the
  authors' names in `load_state_dict`, and clips [B, 3, F, H, W], and returns
  logits. The file is run, as Python runs it.

  Raises:
    MiraInputError: there is no such file or name, or it has other tensors.
  """
  load_torch()
  path, _, name = text.rpartition(':')
  if not pathlib.Path(path).is_file() or not name:
    hint = 'give a Python file and a name in it, such as model.py:MyModel'
    raise MiraInputError('not_found', text, hint)
  spec = importlib.util.spec_from_file_location('mira_jax_peer', path)
  loaded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loaded)
  if not hasattr(loaded, name):
    raise MiraInputError('not_found', text, f'{path} has no {name}')
  module = getattr(loaded, name)()
  _load(module, named_state(variables))
  return Peer(name, module, True, _named_gradients)


def _hugging_face(fields: Mapping[str, Any], state: State, vivit: bool) -> Peer:
  load_torch()
  try:
    import transformers
  except ImportError as error:
    hint = "install it beside this package: pip install 'mira-jax[torch]'"
    raise MiraInputError('no_torch', 'transformers', hint) from error
  transformers.utils.logging.disable_progress_bar()
  kind = 'Vivit' if vivit else 'VideoMAE'
  dim, eps = fields['dim'], fields.get('norm_eps', 1e-6)
  last_eps = fields.get('last_norm_eps') or eps
  shape = {
    'hidden_size': dim,
    'num_hidden_layers': fields['depth'],
    'num_attention_heads': fields['heads'],
    'intermediate_size': mlp_width(dim, fields.get('mlp_ratio', 4.0)),
    'num_frames': fields.get('frames', 16),
    'image_size': fields.get('image_size', 224),
    'num_labels': fields['num_classes'],
    'layer_norm_eps': eps,
    'hidden_act': 'gelu_new' if fields.get('gelu') == 'tanh' else 'gelu',
  }
  patch, tubelet = fields.get('patch', 16), fields.get('tubelet', 2)
  if vivit:
    shape['tubelet_size'] = [tubelet, patch, patch]
  else:
    shape |= {'tubelet_size': tubelet, 'patch_size': patch}
    shape['use_mean_pooling'] = True
  named = f'{kind}ForVideoClassification'
  model = getattr(transformers, named)
  with tempfile.TemporaryDirectory() as folder:
    config = getattr(transformers, f'{kind}Config')(**shape)
    config.architectures = [named]
    config.save_pretrained(folder)
    safetensors.numpy.save_file(
      huggingface.restore(state, vivit),
      f'{folder}/model.safetensors',
      metadata={'format': 'pt'},
    )
    module, told = model.from_pretrained(folder, output_loading_info=True)
  wrong = [
    n for kind in ('missing_keys', 'unexpected_keys') for n in told[kind]
  ]
  if wrong:
    hint = f'transformers {transformers.__version__} has other names: {wrong}'
    raise checkpoint_error('weights_mismatch', named, hint)
  # There it cannot be configured.
  (module.vivit.layernorm if vivit else module.fc_norm).eps = last_eps

  def gradients(module: Any) -> State:
    return _saved_gradients(module, vivit)

  return Peer(f"Hugging Face's {named}", module, False, gradients)


def _saved_gradients(module: Any, vivit: bool) -> State:
  """Gradients by the authors' names: saved as if they were weights, and read.

  So every version of transformers names them as `sources` knows. Where
  ViViT's first layer is rewritten for our pixels they say nothing.
  """
  torch = load_torch()
  values = [p.detach().clone() for p in module.parameters()]
  with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    for parameter in module.parameters():
      if parameter.grad is not None:
        parameter.copy_(parameter.grad)
      else:
        parameter.zero_()
    module.save_pretrained(folder)
    for parameter, value in zip(module.parameters(), values, strict=True):
      parameter.copy_(value)
    state = dict(sources.read(folder).state)
  embeddings = ('patch_embed.', 'pos_embed', 'cls_token')
  if vivit:
    state = {n: x for n, x in state.items() if not n.startswith(embeddings)}
  return state


def _blocks(module: Any, depth: int) -> Sequence[Any]:
  """The list of blocks of a module; () where it has none of that length."""
  torch = load_torch()
  for part in module.modules():
    if isinstance(part, torch.nn.ModuleList) and len(part) == depth:
      return part
  return ()


# ----- both -------------------------------------------------------------------


def compare(
  fields: Mapping[str, Any],
  variables: PyTree,
  other: Peer,
  video: np.ndarray,
  *,
  dtype: str = 'float32',
  gradients: bool = False,
  attention: str | None = None,
) -> Agreement:
  """Compares our model with another on the same clips.

  Args:
    fields: of ViViT as JSON.
    variables: of it.
    other: see `peer`, `with_mira` and `from_path`.
    video: uint8 [B, F, H, W, 3].
    dtype: of the computation in both.
    gradients: whether to compare those of the cross-entropy, too; the labels
      are the numbers of the clips, modulo the classes.
    attention: our implementation of it.
  """
  normalised = np.asarray(transforms.prepare(jnp.asarray(video)))
  labels = np.arange(len(video)) % fields['num_classes'] if gradients else None
  mine = ours(fields, variables, normalised, labels, dtype, attention)
  theirs = other.run(normalised, labels, fields['depth'], dtype)
  rows = [
    difference(name, mine.layers[name], array)
    for name, array in theirs.layers.items()
  ]
  groups: dict[str, list[str]] = {}
  for name in sorted(
    mine.gradients.keys() & theirs.gradients.keys(), key=_place
  ):
    groups.setdefault(_group(name), []).append(name)
  for group, names in groups.items():
    a, b = (
      np.concatenate([np.ravel(x.gradients[n]) for n in names])
      for x in (mine, theirs)
    )
    rows.append(difference(f'd {group}', a, b))
  a, b = (x.layers[LOGITS].argmax(-1) for x in (mine, theirs))
  return Agreement(dtype, rows, float((a == b).mean()))


def _group(name: str) -> str:
  first, _, rest = name.partition('.')
  if first == 'blocks':
    return f'block {int(rest.partition(".")[0]) + 1}'
  return {'head': 'head', 'fc_norm': 'head'}.get(first, 'embed')


def _place(name: str) -> tuple[int, str]:
  """Sorts names as the data flows."""
  group = _group(name)
  if group.startswith('block'):
    return int(group.partition(' ')[2]), name
  return (0 if group == 'embed' else 10**6), name
