"""Times of other implementations of attention."""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from bench import peers as others
from bench.card_parts import checks, times
from bench.card_parts.setting import Setting, Task, alone, inputs
from mira_jax.kernels.attention import redistributed_attention
from mira_jax.tuning.checks import CONFIGS


def peers(setting: Setting) -> Iterator[Task]:
  """One child has those of JAX, the other PyTorch's."""
  for name in setting.shapes:
    found = others.jax_peers(setting.shapes[name], jnp.bfloat16)
    gain = jnp.asarray(others.gains(setting.shapes[name]), jnp.float32)
    found['flashlite, spare channels'] = functools.partial(
      redistributed_attention,
      gain=gain,
      gain_gradient=False,
      implementation='cudnn',
    )
    for peer, forward in found.items():
      # XLA's hold whole maps, and it takes a bias only as one.
      slow = ('cudnn' not in peer and 'spare' not in peer) or 'bias' in peer
      if name == 'decoder' or not slow:
        run = functools.partial(_peer, setting, forward, name, slow)
        yield Task(f'{peer}, {name}', (), run, 0)
  for mode in setting.some(CONFIGS, 1):
    forward = checks.mira('reference', mode)
    run = functools.partial(_peer, setting, forward, 'decoder', True)
    yield Task(f'{mode}, reference, decoder', (), run, 0)
  for backend in ('FLASH_ATTENTION', 'CUDNN_ATTENTION'):
    for name in setting.shapes:
      for mode in ('plain', 'flashlite'):
        run = functools.partial(_torch, setting, backend, mode, name)
        yield Task(f'{mode}, torch {backend}, {name}', (), run, 1)


def _missing(found: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """A peer that cannot is no fault of ours."""
  try:
    yield from found
  except Exception as error:
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    yield {'status': 'missing', 'error': text[:200]}


def _peer(setting, forward, name, four):
  x = inputs(setting, name)
  if four:  # clips
    x = jax.tree.map(lambda x: x[:4], x)
  for row in _missing(times.directions(setting, forward, x)):
    yield row | {'clips': len(x.q)}


def _torch(setting, backend, mode, name):
  if not importlib.util.find_spec('torch'):
    yield {'status': 'missing', 'error': 'no torch'}
    return
  yield from _missing(_torch_times(setting, backend, mode, name))


def _torch_times(setting, backend, mode, name):
  import torch
  from torch.nn import attention

  if not torch.cuda.is_available():
    raise RuntimeError('PyTorch has no GPU')
  shape = setting.shapes[name]
  forms, arrays = others.torch_forms(shape, jnp.bfloat16)
  found = []
  for backward in (False, True):
    run = others.torch_call(forms[mode], arrays, backward)
    with attention.sdpa_kernel(getattr(attention.SDPBackend, backend)), alone():
      found.append(_cuda_seconds(torch, run))
    yield times.direction(shape, found) | {'clips': shape[0]}


def _cuda_seconds(torch: Any, run: Callable) -> float:
  """Median seconds of a call, of 5 rounds of at least 30 ms."""

  def elapsed(count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
      run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3

  elapsed(3)
  count = math.ceil(0.03 / elapsed(3) * 3)
  return statistics.median(elapsed(count) / count for _ in range(5))
