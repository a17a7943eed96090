"""Compares an implementation of attention with the reference, on a device.

What `verdicts` and `tune` call in a child.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.kernels import dispatch
from mira_jax.kernels.attention import mira_attention
from mira_jax.mira import MiraConfig

# For `child.Child.call`.
CHECK, DEVICE = f'{__name__}:check', f'{__name__}:device'
CONFIGS = {
  'plain': None,
  'flashlite': MiraConfig(mode='flashlite'),
  'exact': MiraConfig(mode='exact'),
}
# B, L, H, D, frames, modes: more tiles than a GPU takes at once, both widths,
# and lengths that fill no tile.
CASES = (
  ((16, 201, 12, 64), 3, ('exact', 'flashlite')),
  ((1, 136, 3, 80), 8, ('exact', 'plain')),
  ((1, 1000, 2, 64), 8, ('flashlite',)),
)
# Largest error, as a norm relative to that of the result.
LIMITS = {'bfloat16': 1e-2, 'float32': 1e-4}


def device() -> tuple[str, str, int]:
  """Platform and kind of the default device, and how many there are."""
  found = dispatch.target()
  return found.platform, found.kind, jax.device_count()


def check(
  name: str,
  tunings: dict[str, dict] | None = None,
  dtypes: Sequence[str] | None = None,
) -> list[str]:
  """Compares values and gradients in every case that is served.

  Args:
    name: of the implementation.
    tunings: of it, by fields; None for the assumed ones.
    dtypes: keys of LIMITS; None for all.

  Returns:
    The cases, such as 'exact 1x136x3x80 bfloat16'.

  Raises:
    ValueError: one differs; the text names it.
  """
  choice = dispatch.Choice(name, '', dispatch.make_tunings(name, tunings or {}))
  passed = []
  for dtype in LIMITS if dtypes is None else dtypes:
    limit = LIMITS[dtype]
    for shape, frames, modes in CASES:
      for mode in modes:
        asked = dispatch.Request(shape, dtype, mode, dispatch.target(), True)  # pyright: ignore
        if dispatch.refusal(name, asked):
          continue
        case = f'{mode} {"x".join(map(str, shape))} {dtype}'
        error = _error(choice, shape, frames, dtype, mode)
        if not error <= limit:  # nan, too
          raise ValueError(
            f'{case} differs from the reference by {error:.1e}, not {limit:.0e}'
          )
        passed.append(case)
  return passed


def _error(choice, shape, frames, dtype, mode) -> float:
  """The largest of the errors of output and gradients."""
  x = draw(shape, dtype)
  wide = [y.astype(jnp.float32) for y in x]
  run = functools.partial(both, frames=frames, mode=mode)
  found = jax.jit(functools.partial(run, choice))(*x)
  with jax.default_matmul_precision('highest'):
    truth = jax.jit(functools.partial(run, 'reference'))(*wide)
  errors = []
  for one, other in zip(found, truth, strict=True):
    one, other = (np.asarray(y, np.float64) for y in (one, other))
    errors.append(np.linalg.norm(one - other) / np.linalg.norm(other))
  return float(np.max(errors))


def draw(shape: tuple[int, ...], dtype: Any) -> list[jax.Array]:
  """q, k, v and a gradient of the output: normal, the same in every call."""
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]


def forward(choice, q, k, v, *, frames: int, mode: str) -> jax.Array:
  """Attention as models call it."""
  return mira_attention(
    q, k, v, num_frames=frames, config=CONFIGS[mode], implementation=choice
  ).output


def both(choice, q, k, v, g, *, frames: int, mode: str):
  """The output, and the gradients of q, k and v."""
  run = functools.partial(forward, choice, frames=frames, mode=mode)
  y, pull = jax.vjp(run, q, k, v)
  return y, *pull(g.astype(y.dtype))
