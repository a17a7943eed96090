"""Single-orientation attention (SOA): a gate along one learned direction.

Tokens of a frame are averaged along lines across a direction of the plane,
which leaves a profile over the coordinate along it; a small network turns the
profile into a gate, which multiplies the tokens on each line.

Shapes: B clips, T frames, N = H * W tokens of each, D channels, M lines.

Source: FaceSleuth, arXiv 2506.02695, and the behaviour of its public code
('released'). The method section of its third version, FaceSleuth-R, could not
be read: 'projection' is our reading of what it claims. There an angle of 90
degrees keeps the vertical coordinate and averages rows, which is continuously
vertical attention (CVA), as the abstract says; in the released operator, which
rotates the map instead, 0 degrees does. That operator pads with zeros and
applies its gate to rows whatever the angle is: it is here for comparison.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mira_jax.systems.settings import Settings, number

Array = jax.Array


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class OrientationConfig(Settings):
  """Options of SOA; the defaults start as the identity.

  Raises:
    ValueError: for a value outside its range.
  """

  mode: Literal['projection', 'released'] = 'projection'
  orientation: Literal['learned', 'fixed'] = 'learned'
  angle: float = number(
    72.0, 0, 180
  )  # degrees, at the start; 90 and 'fixed' are CVA
  # 'identity' is 2 sigmoid(x), 1 at the start; 'published' is sigmoid(x).
  gate: Literal['identity', 'published'] = 'identity'
  # What the gate of a block takes from that of the one before: nothing, their
  # geometric mean, or their product, which vanishes in deep models.
  carry: Literal['none', 'mean', 'product'] = 'none'
  # What the profile is of: tokens, or their change since the first frame or
  # the frame before (the motion stream).
  reference: Literal['none', 'onset', 'previous'] = 'none'
  width: int = number(0, 0, 2**15)  # hidden; 0: max(8, D / 16), as published
  # What the gate multiplies: tokens, or the attention to them (a bias on the
  # logits of keys, which kernels take, too).
  target: Literal['tokens', 'keys'] = 'tokens'


def angle_of(direction: Array) -> Array:
  """Degrees in [0, 180) of directions [..., 2]."""
  return jnp.degrees(jnp.arctan2(direction[..., 1], direction[..., 0])) % 180


def mean_axis(angles: Array) -> Array:
  """The mean axis [...] of angles [n, ...] in degrees, of which 180 is 0."""
  twice = 2 * jnp.radians(angles)
  mean = jnp.arctan2(jnp.sin(twice).mean(0), jnp.cos(twice).mean(0)) / 2
  return jnp.degrees(mean) % 180


def direction_of(angle: float) -> Array:
  """The unit vector [2] of an angle in degrees."""
  radians = jnp.radians(jnp.float32(angle))
  return jnp.stack([jnp.cos(radians), jnp.sin(radians)])


def soa_assign(
  direction: Array, height: int, width: int, lines: int | None = None
) -> Array:
  """The share of each token in each line across a direction: [M, N].

  Columns sum to 1: a token lies between two lines. The coordinate of tokens
  along the direction is scaled to the M lines; corners lie on the outer ones.

  Args:
    direction: [2], of any length but 0.
    height: H.
    width: W.
    lines: M; None is H.
  """
  lines = lines or height
  cos, sin = _unit(direction)
  y, x = _centres(height, width)
  # Smooth where a coordinate of the direction is 0, unlike |x|.
  extent = _smooth_abs(cos) * (1 - 1 / width) + _smooth_abs(sin) * (
    1 - 1 / height
  )
  place = ((cos * x + sin * y) / extent + 1) / 2 * (lines - 1)
  place = jnp.clip(place, 0, lines - 1)
  return jax.nn.relu(1 - jnp.abs(place - jnp.arange(lines)[:, None]))


def released_rows(
  direction: Array, height: int, width: int
) -> tuple[Array, Array]:
  """What the released code averages and gates: ([H, N] weights, [H, N] rows).

  It samples the map, rotated about its centre, bilinearly with zeros beyond its
  edges, and averages rows of what it sampled; rows of the unrotated map get the
  gate.
  """
  cos, sin = _unit(direction)
  y, x = _centres(height, width)
  column = ((cos * x + sin * y + 1) * width - 1) / 2
  row = ((-sin * x + cos * y + 1) * height - 1) / 2
  in_row, in_column = (
    jax.nn.relu(1 - jnp.abs(place[:, None] - jnp.arange(size)))
    for place, size in ((row, height), (column, width))
  )
  sampled = in_row[:, :, None] * in_column[:, None, :]
  means = sampled.reshape(height, width, -1).mean(1)
  return means, jnp.repeat(jnp.eye(height), width, axis=1)


def profile(x: Array, weights: Array) -> Array:
  """Averages of tokens [B, T, N, D] by weights [M, N]: [B, T, M, D]."""
  return jnp.einsum('mn,btnd->btmd', weights.astype(x.dtype), x)


def motion(x: Array, reference: str) -> Array:
  """Tokens [B, T, N, D], or their change since a reference frame."""
  if reference == 'onset':
    return x - x[:, :1]
  if reference == 'previous':
    return x - jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
  return x


def soa_gate(
  x: Array,
  direction: Array,
  reduce: Array,
  expand: Array,
  size: tuple[int, int],
  config: OrientationConfig,
  carry: Array | None = None,
) -> tuple[Array, Array]:
  """The gate of every token and of every line.

  Args:
    x: tokens [B, T, N, D].
    direction: [2].
    reduce: [D, r].
    expand: [r, D].
    size: H and W.
    config: see there.
    carry: the gate of lines of the block before; None is 1.

  Returns:
    [B, T, N, D], and that of lines [B, T, M, D]. Costs 2 T M N D + 2 T M D r
    multiplications: 0.3 % of a block of ViT-B.
  """
  if config.mode == 'released':
    means, rows = released_rows(direction, *size)
  else:
    rows = soa_assign(direction, *size)
    means = rows / jnp.maximum(rows.sum(1, keepdims=True), 1e-6)
  z = profile(motion(x, config.reference), means)
  hidden = jax.nn.relu(z @ reduce.astype(x.dtype))
  gate = jax.nn.sigmoid(hidden @ expand.astype(x.dtype))
  if config.gate == 'identity':
    gate = 2 * gate
  carry = jnp.ones_like(gate) if carry is None else carry.astype(gate.dtype)
  if config.carry == 'product':
    gate = gate * carry
  elif config.carry == 'mean':
    gate = jnp.sqrt(jnp.maximum(gate * carry, 1e-12))
  # The shares of a token sum to 1, but not once a device has rounded them: a
  # gate of 1 stays 1 where only the difference to it is multiplied.
  change = jnp.einsum('mn,btmd->btnd', rows.astype(x.dtype), gate - 1)
  return 1 + change, gate


def key_gain_of(gate: Array) -> Array:
  """The gain on the attention to every token: [B, T, N, D] -> [B, T * N].

  The mean over channels, for `softmax(logits + log gain)`.
  """
  gain = gate.astype(jnp.float32).mean(-1)
  return jnp.clip(gain, 1e-4, 1e4).reshape(gate.shape[0], -1)


class OrientationGate(nn.Module):
  """SOA with its parameters: 2 + 2 D r of them.

  Attributes:
    config: see there.
    size: H and W.
    dtype: of the computation.
    kernel_init: of the first layer, and of both if `published`.
  """

  config: OrientationConfig
  size: tuple[int, int]
  dtype: Any = jnp.float32
  kernel_init: Callable[..., Array] = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(
    self, x: Array, carry: Array | None = None
  ) -> tuple[Array, Array, Array]:
    """[B, T, N, D] -> gates as of `soa_gate`, and the angle in degrees, []."""
    config, dim = self.config, x.shape[-1]
    hidden = config.width or max(8, dim // 16)
    direction = self.param('direction', lambda _: direction_of(config.angle))
    if config.orientation == 'fixed':
      direction = jax.lax.stop_gradient(direction)
    zeros = nn.initializers.zeros
    last = zeros if config.gate == 'identity' else self.kernel_init
    reduce = self.param('reduce_kernel', self.kernel_init, (dim, hidden))
    expand = self.param('expand_kernel', last, (hidden, dim))
    gate, lines = soa_gate(
      x.astype(self.dtype), direction, reduce, expand, self.size, config, carry
    )
    return gate, lines, angle_of(direction)


def _unit(direction: Array) -> Array:
  return direction / jnp.sqrt(jnp.square(direction).sum() + 1e-12)


def _smooth_abs(x: Array) -> Array:
  return jnp.sqrt(jnp.square(x) + 1e-8)


def _centres(height: int, width: int) -> tuple[Array, Array]:
  """y and x of the centres of tokens in [-1, 1], [N] each."""
  y = (2 * jnp.arange(height) + 1) / height - 1
  x = (2 * jnp.arange(width) + 1) / width - 1
  return jnp.repeat(y, width), jnp.tile(x, height)
