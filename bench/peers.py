"""Attention of other projects, which benches time beside ours."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FRAMES = 8
Calls = dict[str, Callable]


def gains(shape: tuple[int, ...]) -> np.ndarray:
  """Gains of keys [B, L] for peers that do not estimate any."""
  drawn = np.random.default_rng(0).uniform(0.7, 1.4, (shape[0], FRAMES))
  return np.repeat(drawn, -(-shape[1] // FRAMES), 1)[:, : shape[1]]


def jax_peers(shape: tuple[int, ...], dtype) -> Calls:
  """'mode, peer' -> attention(q, k, v): jax.nn and tokamax."""
  bias = jnp.log(gains(shape)).astype(dtype)[:, None, None]
  attend = jax.nn.dot_product_attention
  calls: Calls = {
    'plain, jax.nn': attend,
    'flashlite, jax.nn': functools.partial(attend, bias=bias),
  }
  if jax.default_backend() == 'gpu' and dtype != jnp.float32:
    cudnn = functools.partial(attend, implementation='cudnn')

    def whole(q, k, v):
      # It takes a bias of one number per key only as a whole map.
      shape = q.shape[0], 1, q.shape[1], k.shape[1]
      return cudnn(q, k, v, bias=jnp.broadcast_to(bias, shape))

    calls['plain, jax.nn cudnn'] = cudnn
    calls['flashlite, jax.nn cudnn bias'] = whole
  if importlib.util.find_spec('tokamax'):
    import tokamax

    calls['plain, tokamax'] = tokamax.dot_product_attention
    calls['flashlite, tokamax'] = functools.partial(
      tokamax.dot_product_attention, bias=bias
    )
  return calls


# ----- PyTorch ----------------------------------------------------------------


def torch_forms(shape: tuple[int, ...], dtype) -> tuple[Calls, list[Any]]:
  """The authors' forms of each mode, and q, k, v, dL/dy for them."""
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  kind = getattr(torch, jnp.dtype(dtype).name)
  sdpa = torch.nn.functional.scaled_dot_product_attention
  batch, length, heads, width = shape
  arrays = torch.randn(4, batch, heads, length, width, device=device)
  gain = torch.tensor(gains(shape))[:, None, :, None].to(device, kind)
  scale = width**-0.5

  def flashlite(q, k, v):
    ones = torch.full_like(gain, 1 / scale).expand(-1, heads, -1, -1)
    bias = gain.log().expand(-1, heads, -1, -1)
    return sdpa(
      torch.cat([q, ones], -1),
      torch.cat([k, bias], -1),
      torch.cat([v, torch.zeros_like(bias)], -1),
      scale=scale,
    )[..., :-1]

  def exact(q, k, v):
    a = (q * scale @ k.transpose(-1, -2)).softmax(-1)
    a.mean(1).sum(1)  # the marginal; the statistics of frames are small
    moved = 0.999 * (a * gain[:, :, None, :, 0]) + 0.001 / a.shape[-1]
    moved = moved / moved.sum(-1, keepdim=True)
    return (a + 0.5 * (moved - a)) @ v

  forms: Calls = {'plain': sdpa, 'flashlite': flashlite, 'exact': exact}
  return forms, list(arrays.to(kind))


def torch_call(form: Callable, arrays: list[Any], backward: bool) -> Callable:
  """A call of a form, which may not have ended when it returns."""
  import torch

  *qkv, gradient = arrays

  def run():
    with torch.set_grad_enabled(backward):
      x = [t.detach().requires_grad_(backward) for t in qkv]
      y = form(*x)
      if backward:
        torch.autograd.grad(y, x, gradient)

  return run
