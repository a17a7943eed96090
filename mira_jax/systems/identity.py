"""Identity adversarial training: features that do not tell who a person is.

A head learns to name the subject of a clip from its features; on the way back
its gradient is reversed, so that the features lose what the head needs, while
the head itself learns at its full rate.

Shapes: B clips, D features, S subjects of the training clips.

Source: Ning et al., 'Representation Learning and Identity Adversarial Training
for Facial Behavior Understanding', arXiv 2407.11243: the formulas, a single
linear layer, and that the loss of the public code is binary per subject ('bce')
and no softmax ('ce'). It is used with strengths of 0.5 to 2. Written from the
formulas; the code's licence (CC BY-NC) does not allow more. The ramp is ours.
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
class IdentityConfig(Settings):
  """Options of identity adversarial training, which changes the loss alone.

  Raises:
    ValueError: for a value outside its range.
  """

  subjects: int = number(0, 0, 10**6)  # S; 0: those of the training clips
  strength: float = number(
    1.0, 0, 1e6
  )  # lambda: factor on the reversed gradient
  loss: Literal['bce', 'ce'] = 'bce'  # see `identity_loss`
  ramp: Literal['none', 'linear'] = 'none'  # of the strength, over training


def reversal_strength(
  config: IdentityConfig, progress: Array | float
) -> Array | float:
  """The strength after a share of the training, `progress` in [0, 1]."""
  ramp = progress if config.ramp == 'linear' else 1.0
  return config.strength * ramp


def grad_reverse(x: Array, strength: Array | float) -> Array:
  """x; the gradient that comes back to it is multiplied by -strength."""
  return _reversed(x, jnp.asarray(strength, jnp.float32))


@jax.custom_vjp
def _reversed(x: Array, strength: Array) -> Array:
  del strength
  return x


def _reversed_bwd(strength: Array, g: Array) -> tuple[Array, Array]:
  return (-strength * g).astype(g.dtype), jnp.zeros_like(strength)


_reversed.defvjp(lambda x, strength: (x, strength), _reversed_bwd)


class IdentityHead(nn.Module):
  """Names subjects from features behind the reversal.

  Parameters: `kernel` [D, S], drawn, and `bias` [S].
  """

  config: IdentityConfig
  subjects: int
  dtype: Any = jnp.float32
  kernel_init: Callable[..., Array] = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x: Array, strength: Array | float | None = None) -> Array:
    """Features [B, D] -> logits [B, S] in float32.

    `strength` is that of this step; None is the configuration's.
    """
    if self.subjects < 1:
      raise ValueError(
        f'identity training has {self.subjects} subjects; use a dataset whose '
        'clips name theirs'
      )
    if strength is None:
      strength = self.config.strength
    shape = (x.shape[-1], self.subjects)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', nn.initializers.zeros, shape[1:])
    x = grad_reverse(x.astype(self.dtype), strength)
    logits = x @ kernel.astype(x.dtype)
    return logits.astype(jnp.promote_types(x.dtype, jnp.float32)) + bias


def identity_loss(
  logits: Array, subject: Array, kind: Literal['bce', 'ce'] = 'bce'
) -> Array:
  """The loss of each clip: [B, S] and int [B] -> [B], nats.

  'bce' is the mean over subjects of whether the clip is theirs; 'ce' is minus
  the log probability of its own. A clip whose subject is not known (-1, or any
  number outside 0 to S - 1) has the loss 0.
  """
  known = (subject >= 0) & (subject < logits.shape[-1])
  own = jax.nn.one_hot(subject, logits.shape[-1], dtype=logits.dtype)
  if kind == 'ce':
    loss = -(own * jax.nn.log_softmax(logits)).sum(-1)
  else:
    loss = (jax.nn.softplus(logits) - own * logits).mean(-1)
  return jnp.where(known, loss, 0)
