"""The jitted evaluation step: from clips to logits and probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from mira_jax.augment import transforms
from mira_jax.devices import sharding
from mira_jax.weights import int8

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]


def make_eval_step(
  model: Any, mesh: Mesh
) -> Callable[[PyTree, Batch], dict[str, Array]]:
  """The jitted evaluation step (variables, batch) -> logits, probabilities.

  Returns:
    A function that keeps every field of the batch but the video and adds
    `logits` (of a model without classes: features) and `probabilities`, [B, K],
    all of them whole on every device.
  """

  def step(variables: PyTree, batch: Batch) -> dict[str, Array]:
    with sharding.ambient(mesh):
      logits = model.apply(
        int8.restore(variables), transforms.prepare(batch['video'])
      )
    rest = {name: x for name, x in batch.items() if name != 'video'}
    scored = {'logits': logits, 'probabilities': jax.nn.softmax(logits)}
    return scored | rest

  return jax.jit(step, out_shardings=sharding.replicated(mesh))
