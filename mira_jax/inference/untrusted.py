"""Checks and limits for programs of other people."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator

from jax import export
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error, plain

SECONDS = 600.0  # that a command lets one call of a program take
# Operations of these dialects compute, but for those of _TALKS, which wait for
# other devices or the host. Custom calls run native code by its name; this one
# is removed before a program is compiled.
_DIALECTS = ('builtin', 'func', 'stablehlo')
_TALKS = (
  *('infeed', 'outfeed', 'send', 'recv', 'all_gather', 'all_reduce'),
  *('all_to_all', 'reduce_scatter', 'collective_broadcast'),
  *('collective_permute', 'cross-replica-sum', 'partition_id', 'replica_id'),
)
_CUSTOM_CALLS = ('shape_assertion',)


def check(program: export.Exported, path: pathlib.Path) -> None:
  """Checks every operation of a program before it is compiled.

  Raises:
    MiraInputError: one of them does more than compute ('unsafe_program'), or
      the program is not StableHLO ('bad_program').
  """
  effects = (*program.ordered_effects, *program.unordered_effects)
  try:
    foreign = _foreign(program) | {str(effect) for effect in effects}
  except ValueError as error:
    raise bad_program(path, error) from error
  if program.nr_devices != 1:
    foreign.add(f'a program of {program.nr_devices} devices')
  if foreign:
    names = ', '.join(sorted(foreign))[:200]
    hint = f'it would run {names}, which no export of mira_jax does'
    raise checkpoint_error('unsafe_program', path, hint)


def _foreign(program: export.Exported) -> set[str]:
  """Operations that do more than compute.

  Raises:
    ValueError: the program is not StableHLO, or has no function main.
  """
  found, functions = set(), set()

  def visit(op: ir.Operation) -> ir.WalkResult:
    dialect, _, name = op.name.partition('.')
    if name == 'custom_call':
      target = ir.StringAttr(op.attributes['call_target_name']).value
      if target not in _CUSTOM_CALLS:
        found.add(f'the custom call {target!r}')
    elif dialect not in _DIALECTS or name in _TALKS:
      found.add(op.name)
    elif op.name == 'func.func':
      functions.add(ir.StringAttr(op.attributes['sym_name']).value)
    return ir.WalkResult.ADVANCE

  with mlir.make_ir_context() as context:
    context.attach_diagnostic_handler(lambda _: True)  # nothing on stderr
    module = stablehlo.deserialize_portable_artifact(
      context, program.mlir_module_serialized
    )
    module.operation.walk(visit)
  if 'main' not in functions:
    raise ValueError('it has no function main')
  return found


def bad_program(path: pathlib.Path, error: object) -> MiraInputError:
  """The error of a program that cannot be run."""
  # OpenVINO's first lines are places in its own code.
  lines = [x.strip() for x in str(error).splitlines()]
  own = [x for x in lines if x and not x.startswith('Exception from')]
  first = ' '.join(own[:1])[:200]
  hint = f'it cannot be run here ({first}); export the model again'
  return checkpoint_error('bad_program', path, hint)


@contextlib.contextmanager
def time_limit(seconds: float | None, path: pathlib.Path) -> Iterator[None]:
  """Ends the process with one line if the body takes longer; None: no limit.

  Nothing interrupts a program that a device runs, and a process of its own
  could not share the memory of an accelerator.
  """

  def end() -> None:
    hint = f'it did not end within {seconds:g} s, and was stopped'
    line = plain(f'mira: {checkpoint_error("too_slow", path, hint)}')
    os.write(2, f'{line}\n'.encode(errors='backslashreplace'))
    os._exit(int(ExitCode.CHECKPOINT))

  if seconds is None:
    yield
    return
  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
