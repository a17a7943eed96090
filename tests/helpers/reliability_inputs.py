"""Numbers for the head of reliability balancing, and what it does by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.systems.reliability import (
  AttentiveWeights,
  ReliabilityBalancing,
  ReliabilityConfig,
)

B, T, C, K, D, E = 3, 4, 5, 2, 8, 6
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, C)) * 2
FEATURES = RNG.normal(size=(B, D))
ANCHORS = RNG.normal(size=(C, K, D)) * D**-0.5
TARGETS = RNG.dirichlet(np.ones(C), B)
WEIGHTS = AttentiveWeights(
  *RNG.normal(size=(3, D, C * K)) * D**-0.5,
  RNG.normal(size=(C * K, C * K)) * 0.3,
  RNG.normal(size=C * K),
)
PREDICTIONS = RNG.dirichlet(np.ones(C), (3, B))
UNIFORM = np.full((B, C), 1 / C)
ONE_HOT = np.eye(C)[:B]
SMALL = ReliabilityConfig(anchors=K, dim=D)


def softmax(x):
  x = np.exp(x - x.max())
  return x / x.sum()


def by_hand(logits, features, context, config, tau, targets):
  """The head and its loss for one clip and its context [S, D], in float64."""

  def sure(x):
    return 1 + sum(v * np.log(v) for v in x if v) / np.log(C)

  def mean(a, b):
    return (sure(a) * a + sure(b) * b) / (sure(a) + sure(b))

  p = softmax(logits)
  distance = np.array(
    [
      [np.sqrt(((features - anchor) ** 2).sum()) for anchor in of_class]
      for of_class in ANCHORS
    ]
  )
  t_g = softmax(-distance / config.delta).sum(1)
  query = features @ WEIGHTS.query
  scores = [query @ (x @ WEIGHTS.key) / np.sqrt(C * K) for x in context]
  values = [x @ WEIGHTS.value for x in context]
  attended = sum(
    w * v for w, v in zip(softmax(np.array(scores)), values, strict=True)
  )
  t_a = softmax(attended @ WEIGHTS.out + WEIGHTS.bias).reshape(C, K).sum(1)
  t = mean(t_g, t_a)
  q = sure(p) * p + (1 - sure(p)) * t
  if config.rule == 'paper':
    q = mean(p, t)
  loss = -(targets * np.log((1 - tau) * p + tau * q)).sum()
  total = 0.0
  for i, j in np.ndindex(C, C):
    if config.anchor_loss == 'released':
      square = ((ANCHORS[i] - ANCHORS[j]) ** 2).sum()
      total -= square / (K**2 * np.sqrt(D))
    elif i != j:
      for a in ANCHORS[i]:
        for b in ANCHORS[j]:
          lack = max(0, config.margin - np.linalg.norm(a - b))
          total += lack**2 / (C * (C - 1) * K**2)
  nearest = (targets * distance.min(1)).sum()
  loss += tau * config.anchor_weight * total
  loss += tau * config.center_weight * sure(p) * nearest / np.sqrt(D)
  return t_g, t_a, q, loss


def variables(dtype=float):
  """Parameters of the head with the numbers above, and no reduction."""
  names = ('query_kernel', 'key_kernel', 'value_kernel', 'out_kernel')
  params = {
    'reduce': {'kernel': np.eye(D), 'bias': np.zeros(D)},
    'anchors': ANCHORS,
    **dict(zip(names, WEIGHTS[:4], strict=True)),
    'out_bias': WEIGHTS.bias,
  }
  return {'params': jax.tree.map(lambda x: jnp.asarray(x, dtype), params)}


@functools.partial(jax.jit, static_argnames=('config', 'train'))
def balance(config, features=FEATURES, logits=LOGITS, train=False):
  model = ReliabilityBalancing(config, C, dtype=None)
  return model.apply(variables(features.dtype), features, logits, train=train)


def normal(*shape):
  """Normal numbers, the same for the same shape."""
  return np.random.default_rng(7).normal(size=shape)
