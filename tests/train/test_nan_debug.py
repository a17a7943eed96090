"""NaN debugging names the operation that made a step not finite."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import pytest

import runs
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.kernels.attention import redistributed_attention
from mira_jax.train import loop, losses, nan_debug

pytestmark = pytest.mark.usefixtures('compile_cache')


def test_debug_nans_names_the_operation_and_the_line(
  data, tmp_path, monkeypatch
):
  one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
  monkeypatch.setattr(sharding, 'make_mesh', one)
  cfg = runs.tiny(data, model={'mira': None}, optim={'lr': 1e30})
  with pytest.raises(MiraInputError, match='step 3 is nan') as caught:
    loop.train(cfg, tmp_path, debug_nans=True)
  hint = caught.value.hint
  assert re.fullmatch(
    r'the first nan is of dot_general, at mira_jax/(models|kernels)/\w+.py:\d+',
    hint,
  )
  assert caught.value.exit_code == ExitCode.NUMERIC


def test_the_operation_is_found_forward_and_backward():
  zeros = jnp.zeros(3)
  infinite = nan_debug.find(lambda x: jnp.log(x).sum(), zeros)
  assert 'a number is infinite' in infinite
  assert nan_debug.find(lambda x: (x / x).sum(), zeros) == (
    'the first nan is of div'
  )

  def hidden(x):  # the root's slope times 0
    return jnp.where(x > 0, jnp.sqrt(x), 0).sum()

  found = nan_debug.find(jax.jit(jax.grad(hidden)), zeros)
  assert found == 'the first nan is of mul'

  def entropy(logits):
    return losses.cross_entropy(logits, jnp.eye(3), jnp.ones(3, bool))

  found = nan_debug.find(jax.grad(entropy), jnp.full((3, 3), -jnp.inf))
  assert re.fullmatch(
    r'.* nan is of \w+, at mira_jax/train/losses.py:\d+', found
  )


def test_infinity_on_purpose_is_no_cause():
  """Rows of streaming attention begin with a maximum of minus infinity."""

  def loss(q):
    streaming = functools.partial(
      redistributed_attention, implementation='streaming'
    )
    return streaming(q, q, q, jnp.ones((1, 8))).sum()

  found = nan_debug.find(jax.grad(loss), jnp.ones((1, 8, 2, 4)))
  assert found.startswith('operation by operation nothing is nan')
