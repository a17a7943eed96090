"""Masked low-rank experts (MLAE): few parameters that fine-tune frozen layers.

A linear map W x becomes `W x + sum_i m_i s_i b_i (a_i . x)`: each of r experts
is a matrix of rank 1 with a learned coefficient s_i, and training drops experts
at random by the mask m. Afterwards all of them are folded into W, exactly.

Source: 'MLAE: Masked LoRA Experts', arXiv 2405.18897, after the behaviour of
its public code: one mask for the whole batch, a drawn after Kaiming, b 0 at the
start. Layers with several input or output axes, and stacked ones, are our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mira_jax.errors import checkpoint_error
from mira_jax.systems.settings import Settings, number

Array = jax.Array
SUFFIX = '_experts'  # of a layer's name: the branch that lies beside it


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class ExpertsConfig(Settings):
  """Options of masked experts; the branch is 0 at the start.

  Raises:
    ValueError: for a value outside its range.
  """

  rank: int = number(8, 1, 2**12)  # r, the number of experts of a layer
  dropout: float = number(
    0.1, 0, 0.99
  )  # share of experts that a training step leaves out
  alpha: float = number(1.0, 1e-6, 1e6)  # the coefficients at the start


def mlae_branch(
  x: Array,
  a: Array,
  b: Array,
  scale: Array,
  mask: Array | None = None,
  axis: int | tuple[int, ...] = -1,
) -> Array:
  """What the experts add to a linear map: [..., *outputs].

  Args:
    x: [..., *inputs].
    a: [*inputs, r], what each expert looks for.
    b: [r, *outputs], what it adds.
    scale: [r], its coefficient.
    mask: [r], 0 where an expert is left out and else 1 / (1 - rate).
    axis: those of the inputs in x.
  """
  axes = (axis,) if isinstance(axis, int) else axis
  found = jnp.tensordot(x, a.astype(x.dtype), (axes, tuple(range(len(axes)))))
  if mask is not None:
    scale = scale * mask
  return jnp.tensordot(found * scale.astype(x.dtype), b.astype(x.dtype), 1)


def mlae_dense(
  x: Array,
  kernel: Array,
  a: Array,
  b: Array,
  scale: Array,
  mask: Array | None = None,
) -> Array:
  """A linear map with its experts: x [..., I], kernel [I, *outputs]."""
  plain = jnp.tensordot(x, kernel.astype(x.dtype), 1)
  return plain + mlae_branch(x, a, b, scale, mask)


class Experts(nn.Module):
  """The branch of a layer `name`, itself named `name` + SUFFIX.

  Its sum with the layer's output is that of the layer with experts. Parameters:
  `a` [*inputs, r], `b` [r, *outputs] and `scale` [r]. Training draws the mask
  from the rng 'dropout'.

  Attributes:
    config: options.
    features: sizes of the output axes, as of `nn.DenseGeneral`.
    axis: input axes of x, in the order of the kernel's.
    dtype: of the computation.
    train: whether experts are left out.
  """

  config: ExpertsConfig
  features: int | tuple[int, ...]
  axis: int | tuple[int, ...] = -1
  dtype: Any = jnp.float32
  train: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., *inputs] -> [..., *outputs], zeros at the start."""
    config, rank = self.config, self.config.rank
    axes = (self.axis,) if isinstance(self.axis, int) else self.axis
    inputs = tuple(x.shape[i] for i in axes)
    outputs = self.features
    if isinstance(outputs, int):
      outputs = (outputs,)
    kaiming = nn.initializers.he_uniform()
    a = self.param('a', kaiming, (*inputs, rank))
    b = self.param('b', nn.initializers.zeros, (rank, *outputs))
    start = nn.initializers.constant(config.alpha)
    scale = self.param('scale', start, (rank,))
    mask = None
    if self.train and config.dropout:
      keep = 1 - config.dropout
      kept = jax.random.bernoulli(self.make_rng('dropout'), keep, (rank,))
      mask = kept / keep
    return mlae_branch(x.astype(self.dtype), a, b, scale, mask, axes)


def merged(params: Mapping[str, Any]) -> dict[str, Any]:
  """The parameters with every branch folded into its layer, and removed.

  The plain model computes with them what that with experts does when it does
  not train. Leading axes, of stacked blocks or the members of an ensemble, are
  kept.

  Args:
    params: any tree of parameters, left as it is.

  Raises:
    MiraInputError: 'bad_key' for a branch without its layer, 'weights_mismatch'
      for one of another shape.
  """
  return _merged(params, '')


def _merged(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
  result = {
    name: _merged(x, f'{path}{name}/') if isinstance(x, Mapping) else x
    for name, x in tree.items()
  }
  for name, branch in tree.items():
    if not name.endswith(SUFFIX):
      continue
    layer = name.removesuffix(SUFFIX)
    if 'kernel' not in tree.get(layer, {}):
      hint = f'there is no {path}{layer}/kernel to fold it into'
      raise checkpoint_error('bad_key', path + name, hint)
    kernel = result[layer]['kernel']
    result[layer]['kernel'] = _folded(kernel, branch, path + name)
    del result[name]
  return result


def _folded(kernel: Array, branch: Mapping[str, Array], name: str) -> Array:
  """The kernel [..., *inputs, *outputs] and what its branch adds to it."""
  a, b, scale = (jnp.asarray(branch[key]) for key in ('a', 'b', 'scale'))
  stacked, rank = scale.shape[:-1], scale.shape[-1]
  count = len(stacked)
  if kernel.shape != (*a.shape[:-1], *b.shape[count + 1 :]):
    hint = f'a {a.shape} and b {b.shape} do not fit a kernel {kernel.shape}'
    raise checkpoint_error('weights_mismatch', name, hint)
  added = jnp.einsum(
    '...ir,...r,...ro->...io',
    a.reshape(*stacked, -1, rank),
    scale,
    b.reshape(*stacked, rank, -1),
    precision='highest',
  )
  return (kernel + added.reshape(kernel.shape)).astype(kernel.dtype)
