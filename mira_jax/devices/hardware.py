"""The processors of this machine, without starting JAX on them."""

from __future__ import annotations

import os
import pathlib
import re

_PROC, _PCI = pathlib.Path('/proc'), pathlib.Path('/sys/bus/pci/devices')
_GOOGLE = '0x1ae0'  # the maker's number on the PCI bus


def processor() -> str:
  """The CPU's name, and how many of its cores this process may use."""
  found = re.search(r'model name\s*: (.*)', _read(_PROC / 'cpuinfo'))
  name = found[1] if found else os.uname().machine
  return f'{name}, {cores()} cores'


def cores() -> int:
  """How many of the CPU's cores this process may use."""
  allowed = getattr(os, 'sched_getaffinity', None)  # not on macOS
  return len(allowed(0)) if allowed else os.cpu_count() or 1


def has_bfloat16() -> bool:
  """Whether the CPU multiplies bfloat16 (AVX512-BF16, AMX or Arm's)."""
  flags = set(_read(_PROC / 'cpuinfo').split())
  return bool(flags & {'avx512_bf16', 'amx_bf16', 'bf16'})


def accelerators() -> list[str]:
  """A line for each NVIDIA GPU and TPU chip, and one for their driver."""
  gpus = sorted((_PROC / 'driver/nvidia/gpus').glob('*/information'))
  found = [x[1] for x in map(_model, gpus) if x]
  if found:
    driver = _read(_PROC / 'driver/nvidia/version').partition('\n')[0]
    found.append(driver)
  for device in sorted(_PCI.glob('*')):
    if _read(device / 'vendor').strip() == _GOOGLE:
      found.append(f'Google {_read(device / "device").strip()}')
  return found


def _model(path: pathlib.Path) -> re.Match | None:
  return re.search(r'Model:\s*(.*)', _read(path))


def _read(path: pathlib.Path) -> str:
  """The text of a file of the system; '' where there is none."""
  try:
    return path.read_text(errors='replace')
  except OSError:
    return ''
