"""ARBEx's reliability balancing: a head that corrects its own predictions.

The usual head predicts a distribution over classes, p. Two others, of the
distances to learned anchors of every class, t_g, and of attention, t_a, replace
what p lacks in confidence, which is one minus its normalised entropy.

Shapes: B clips, T frames, C classes, K anchors per class, E features of a clip,
D features that meet the anchors, A = C * K.

Source: Wasi, Serbetar, Islam, Rafi, Chae, 'ARBEx: Attentive Feature Extraction
with Reliability Balancing for Robust Facial Expression Learning', 2023, arXiv
2305.01486. Options 'released', 'batch' and the linear ramp are the behaviour of
the authors' public code; the rule 'paper', ten anchors and D = 128 are what the
paper's figure and followers of it show. The hinge, attention within a clip, the
confidences without gradients and the pooling of frames are ours.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mira_jax.systems.settings import Settings, number

Array = jax.Array

_EPS = 1e-6  # added to confidences that are divided by their sum


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class ReliabilityConfig(Settings):
  """Options of the head.

  As the authors' code has them: anchors=1, attention='batch', rule='released',
  anchor_loss='released', output='primary'. It has no reduction to `dim`, and
  starts its anchors at zero, from where its anchor loss does not move them.

  A loss of tau = 0, with which the linear ramp starts, is exactly that of the
  plain head. In evaluation only output='primary' is the plain head.

  Raises:
    ValueError: for a value outside its range.
  """

  anchors: int = number(10, 1, 2**10)  # K
  dim: int = number(128, 1, 2**15)  # D
  delta: float = number(1.0, 1e-6, 1e6)  # temperature of distances to anchors
  # Over what the attentive branch looks from a clip: its own frames, or the
  # anchors where features are not of frames; or the other clips of the batch
  # (of padding, too), in training only: see `ReliabilityBalancing`.
  attention: Literal['clip', 'batch'] = 'clip'
  # 'paper' weighs p and t by their confidences, 'released' gives t all that
  # the confidence of p leaves.
  rule: Literal['paper', 'released'] = 'paper'
  # 'released' falls without bound as anchors move apart: training can diverge.
  anchor_loss: Literal['hinge', 'released'] = 'hinge'
  # Of the hinge; anchors start sqrt(2) apart.
  margin: float = number(2.0, 1e-6, 1e6)
  anchor_weight: float = number(1.0, 0, 1e6)
  center_weight: float = number(1.0, 0, 1e6)
  ramp: Literal['linear', 'none'] = 'linear'  # of tau, 0 to 1, or always 1
  output: Literal['corrected', 'primary'] = 'corrected'  # in evaluation
  # 'frames' is the mean of predictions of frames, weighed by confidence.
  pool: Literal['clip', 'frames'] = 'clip'


class AttentiveWeights(NamedTuple):
  """Kernels of the attentive branch; a key bias would cancel."""

  query: Array  # [D, A]
  key: Array  # [D, A]
  value: Array  # [D, A]
  out: Array  # [A, A]
  bias: Array  # [A]


class Balance(NamedTuple):
  """What the head predicts for each clip, and what its losses need."""

  logits: Array  # [B, C] of the plain head, or of its frames together
  p: Array  # [B, C] their softmax, the primary prediction
  t_g: Array  # [B, C] of the distances to anchors
  t_a: Array  # [B, C] of attention
  q: Array  # [B, C] the corrected prediction
  distance: Array  # [B, C, K] to the anchors
  confidence: Array  # [B] of the primary prediction, 0 to 1
  anchor_loss: Array  # [B] the same for all clips
  frame_weights: Array | None  # [B, T] of pool='frames', sum to 1


def confidence(p: Array) -> Array:
  """One minus the entropy over that of a uniform p: [..., C] -> [...].

  1 for a distribution of one class, 0 for a uniform one; its gradient is finite
  where p is 0.
  """
  p = _wide(p)
  safe = jnp.where(p > 1e-30, p, 1)
  entropy = -(safe * jnp.log(safe)).sum(-1)
  return jnp.clip(1 - entropy / jnp.log(p.shape[-1]), 0, 1)


def confidence_pool(logits: Array) -> tuple[Array, Array]:
  """Mean over frames of the softmax, weighed by the confidence of each.

  Args:
    logits: [B, T, C].

  Returns:
    Log probabilities [B, C], and the weights of frames [B, T], which sum to 1.
  """
  log_p = jax.nn.log_softmax(_wide(logits))
  weights = confidence(jnp.exp(log_p)) + _EPS
  weights = weights / weights.sum(-1, keepdims=True)
  weighed = log_p + jnp.log(weights)[..., None]
  return jax.nn.logsumexp(weighed, axis=1), weights


def anchor_distribution(
  features: Array, anchors: Array, delta: float
) -> tuple[Array, Array]:
  """Classes by their anchors' similarity, a softmax over all of -distance.

  Args:
    features: [B, D].
    anchors: [C, K, D].
    delta: temperature.

  Returns:
    t_g [B, C] and the distances [B, C, K], whose gradients are finite at 0.
  """
  difference = _wide(features)[:, None, None] - anchors
  distance = jnp.sqrt(jnp.square(difference).sum(-1) + 1e-12)
  similarity = jax.nn.softmax(-distance / delta, axis=(1, 2))
  return similarity.sum(-1), distance


def attentive_distribution(
  features: Array, context: Array, weights: AttentiveWeights, num_classes: int
) -> Array:
  """Classes by attention of one head from each clip to a context.

  A context [1, B, D] of the clips themselves is the authors' attention over the
  batch; the result then depends on the other clips.

  Args:
    features: [B, D], the queries.
    context: [B, S, D], or [1, S, D] for all clips: keys and values.
    weights: of the projections. The authors project twice in a row.
    num_classes: C.

  Returns:
    t_a [B, C].
  """
  features, context = _wide(features), _wide(context)
  query = features @ weights.query
  keys, values = context @ weights.key, context @ weights.value
  scores = (keys @ query[:, :, None])[..., 0] * query.shape[-1] ** -0.5
  attended = (jax.nn.softmax(scores)[:, None] @ values)[:, 0]
  t = jax.nn.softmax(attended @ weights.out + weights.bias)
  return t.reshape(len(t), num_classes, -1).sum(-1)


def reliability_balance(p: Array, t_g: Array, t_a: Array, rule: str) -> Array:
  """The corrected prediction q of three predictions, [B, C] each.

  t is the mean of t_g and t_a, weighed by their confidences c. 'released' gives
  t what c(p) leaves, c(p) p + (1 - c(p)) t; 'paper' asks c(t), too, which
  leaves little to a flat t: (c(p) p + c(t) t) / (c(p) + c(t)). There no
  gradient flows into confidences: t_a would learn to be wrong, to make t flat
  and leave q to p.
  """

  def weight(x: Array) -> Array:
    c = confidence(x)[..., None]
    return c if rule == 'released' else jax.lax.stop_gradient(c)

  def mean(a: Array, b: Array) -> Array:
    weight_a, weight_b = weight(a) + _EPS, weight(b) + _EPS
    return (weight_a * a + weight_b * b) / (weight_a + weight_b)

  t = mean(t_g, t_a)
  if rule == 'paper':
    return mean(p, t)
  return weight(p) * p + (1 - weight(p)) * t


def balanced_logits(logits: Array, q: Array, tau: Array | float) -> Array:
  """Logits whose softmax is (1 - tau) p + tau q: [B, C] -> [B, C].

  Exactly the logits for tau 0. Probabilities q below 1e-12 count as that.
  """
  logits = _wide(logits)
  tau = jnp.asarray(tau, logits.dtype)
  log_q = jnp.log(jnp.maximum(q, 1e-12))
  log_q = log_q + jax.nn.logsumexp(logits, -1, keepdims=True)
  return jnp.logaddexp(jnp.log1p(-tau) + logits, jnp.log(tau) + log_q)


def anchor_loss(anchors: Array, kind: str, margin: float) -> Array:
  """Keeps the anchors of classes apart: [C, K, D] -> [].

  'hinge' is the mean of relu(margin - distance)^2 over pairs of anchors of
  different classes: 0 to margin^2. 'released' is minus the sum over pairs of
  classes of squared distances between their anchors in a row, over K^2 sqrt(D).
  """
  anchors = _wide(anchors)
  _, k, dim = anchors.shape
  if kind == 'released':
    square = jnp.square(anchors[:, None] - anchors).sum()
    return -square / (k**2 * dim**0.5)
  flat = anchors.reshape(-1, dim)
  square = jnp.square(flat[:, None] - flat).sum(-1)
  lack = jnp.maximum(margin - jnp.sqrt(square + 1e-12), 0)
  of_class = jnp.arange(len(flat)) // k
  lack = jnp.where(of_class[:, None] == of_class, 0, lack)
  return jnp.square(lack).sum() / (len(flat) * (len(flat) - k))


def center_loss(
  distance: Array, targets: Array, confidence: Array, dim: int
) -> Array:
  """Distance to the nearest anchor of the class, times the confidence.

  No gradient flows into the confidence: less of it would be less loss.

  Distances [B, C, K], shares of classes [B, C] as targets, the confidence [B]
  of the primary prediction and D -> [B].
  """
  nearest = (targets * distance.min(-1)).sum(-1)
  return jax.lax.stop_gradient(confidence) * nearest * dim**-0.5


def ramp(progress: Array | float, kind: str) -> Array:
  """tau, the weight of the correction, at a share of the training: []."""
  return jnp.clip(_wide(1.0 if kind == 'none' else progress), 0, 1)


def reliability_loss(
  balance: Balance,
  targets: Array,
  progress: Array | float,
  config: ReliabilityConfig,
) -> tuple[Array, dict[str, Array]]:
  """The loss of each clip in training, and its metrics.

  The cross-entropy of (1 - tau) p + tau q, and tau times the weighed losses of
  anchors and centres. Targets [B, C] are shares of classes; progress [] is the
  share of the training that is done. The loss and its metrics are [B] each.
  """
  tau = ramp(progress, config.ramp)
  center = center_loss(
    balance.distance, targets, balance.confidence, config.dim
  )
  extra = config.anchor_weight * balance.anchor_loss
  extra = extra + config.center_weight * center
  loss = _cross_entropy(balance, targets, tau) + tau * extra
  return loss, {
    'primary_loss': _cross_entropy(balance, targets, 0.0),
    'corrected_loss': _cross_entropy(balance, targets, 1.0),
    'anchor_loss': balance.anchor_loss,
    'center_loss': center,
    'confidence': balance.confidence,
  }


def prediction(balance: Balance, config: ReliabilityConfig) -> Array:
  """Logits [B, C] of evaluation: of p, or of q as at the end of the ramp."""
  tau = 1.0 if config.output == 'corrected' else 0.0
  return balanced_logits(balance.logits, balance.q, tau)


class ReliabilityBalancing(nn.Module):
  """Balances the prediction of a head beside it.

  With C = 7, K = 10, E = 768 and D = 128 it has about 140,000 parameters and
  multiplies as often for a clip, if its features are not of frames.

  Attributes:
    config: its options.
    num_classes: C, 2 or more.
    dtype: of the reduction to D; all else is at least float32.
  """

  config: ReliabilityConfig
  num_classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, features: Array, logits: Array, *, train: bool = False
  ) -> Balance:
    """Balances predictions.

    With attention='batch' a clip looks at the whole batch in training. In
    evaluation it is a batch of its own, so that no result depends on others.

    Args:
      features: [B, E], or [B, T, E] of frames, which pool='frames' needs.
      logits: [B, C] of the plain head; [B, T, C] with pool='frames'.
      train: whether a training step is running.

    Returns:
      The predictions.

    Raises:
      ValueError: other shapes, or fewer than two classes.
    """
    self._check(features, logits)
    config, num_features = self.config, features.shape[-1]
    # Normalised features get a length of about 1, that of the anchors.
    init = nn.initializers.normal((num_features * config.dim) ** -0.5)
    reduce = nn.Dense(
      config.dim, dtype=self.dtype, kernel_init=init, name='reduce'
    )
    reduced, logits, weights = _wide(reduce(features)), _wide(logits), None
    frames = reduced if reduced.ndim == 3 else None
    if config.pool == 'frames':
      logits, weights = confidence_pool(logits)
      reduced = (weights[..., None] * reduced).sum(1)
    elif frames is not None:
      reduced = frames.mean(1)
    init = nn.initializers.normal(config.dim**-0.5)
    shape = (self.num_classes, config.anchors, config.dim)
    anchors = self.param('anchors', init, shape)
    if config.attention == 'batch':
      context = reduced[None] if train else reduced[:, None]
    else:
      context = anchors.reshape(1, -1, config.dim) if frames is None else frames
    p = jax.nn.softmax(logits)
    t_g, distance = anchor_distribution(reduced, anchors, config.delta)
    t_a = attentive_distribution(
      reduced, context, self._attentive_weights(), self.num_classes
    )
    q = reliability_balance(p, t_g, t_a, config.rule)
    apart = anchor_loss(anchors, config.anchor_loss, config.margin)
    apart = jnp.broadcast_to(apart, len(p))
    return Balance(
      logits, p, t_g, t_a, q, distance, confidence(p), apart, weights
    )

  def _attentive_weights(self) -> AttentiveWeights:
    width = self.num_classes * self.config.anchors
    init = nn.initializers.lecun_normal()
    query, key, value = (
      self.param(f'{name}_kernel', init, (self.config.dim, width))
      for name in ('query', 'key', 'value')
    )
    out = self.param('out_kernel', init, (width, width))
    bias = self.param('out_bias', nn.initializers.zeros, (width,))
    return AttentiveWeights(query, key, value, out, bias)

  def _check(self, features: Array, logits: Array) -> None:
    if self.num_classes < 2:
      raise ValueError(f'num_classes is {self.num_classes}; use 2 or more')
    frames = self.config.pool == 'frames'
    if frames and features.ndim != 3:
      raise ValueError(
        f"features are {features.shape}; pool='frames' needs [B, T, E]"
      )
    leading = features.shape[: 2 if frames else 1]
    if logits.shape != (*leading, self.num_classes):
      raise ValueError(
        f'logits are {logits.shape} for features {features.shape}; use '
        f'{(*leading, self.num_classes)} with pool={self.config.pool!r}'
      )


def _cross_entropy(
  balance: Balance, targets: Array, tau: Array | float
) -> Array:
  logits = balanced_logits(balance.logits, balance.q, tau)
  return -(targets * jax.nn.log_softmax(logits)).sum(-1)


def _wide(x: Array | float) -> Array:
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
