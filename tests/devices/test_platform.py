"""What is set before JAX starts."""

from __future__ import annotations

import subprocess
import sys
from platform import libc_ver

import pytest

from mira_jax.devices import platform

# Calls a program that holds 64 MiB; prints the fewest page faults of a call.
PROGRAM = """
import resource
from mira_jax.devices import platform
assert platform.keep_memory('cpu')
import jax, jax.numpy as jnp
jax.config.update('jax_platforms', 'cpu')
run = jax.jit(lambda x: x @ jnp.outer(x, x))
x = jnp.ones(4096)
counts = []
for _ in range(60):  # the heap has to grow first
  run(x).block_until_ready()
  counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(min(b - a for a, b in zip(counts, counts[1:])))
"""


@pytest.mark.skipif(
  libc_ver()[0] != 'glibc', reason='other C libraries are left as they are'
)
def test_memory_is_kept_from_call_to_call():
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    capture_output=True,
    text=True,
    check=True,
  )
  pages = 2**26 / 4096
  assert float(done.stdout) < pages / 8


def test_memory_is_left_alone_for_accelerators():
  assert not platform.keep_memory('gpu')
  assert not platform.keep_memory('tpu')
