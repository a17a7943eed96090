"""Breaks the core line of public functions, and expects a test to fail.

  python tests/mutants.py                  # all of TARGETS, some 25 minutes
  python tests/mutants.py augment metrics  # targets whose path has a word

Each mutant is one changed operator, comparison, constant or result in the
statement of a function that computes most, in a copy of the checkout. Exits
with 1 when less than `LEAST` of the mutants are killed.
"""

from __future__ import annotations

import ast
import concurrent.futures
import copy
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
LEAST = 0.9
WORKERS = 2
TIMEOUT = 600  # seconds; a mutant that never ends is killed
TARGETS = {
  'mira_jax/mira.py': ['tests/test_mira.py', 'tests/test_mira_gradients.py'],
  'mira_jax/kernels/attention.py': ['tests/kernels'],
  'mira_jax/kernels/dispatch.py': ['tests/kernels'],
  'mira_jax/kernels/operations.py': ['tests/kernels'],
  'mira_jax/kernels/reference.py': ['tests/kernels', 'tests/test_mira.py'],
  'mira_jax/kernels/streaming.py': ['tests/kernels'],
  'mira_jax/kernels/vjp.py': ['tests/kernels'],
  'mira_jax/evaluation/metrics.py': ['tests/evaluation/test_metrics.py'],
  'mira_jax/augment/transforms.py': ['tests/augment/test_transforms.py'],
  'mira_jax/augment/mixup.py': ['tests/augment'],
  'mira_jax/augment/randaugment.py': ['tests/augment/test_randaugment.py'],
  'mira_jax/data/pipeline.py': ['tests/data'],
  'mira_jax/train/optim.py': [
    'tests/train/test_optim.py',
    'tests/train/test_steps.py::'
    'test_a_frozen_backbone_does_not_move_and_costs_no_gradient',
  ],
}
SWAPS = {
  ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
  ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
  ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
  ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
  ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
  """Public functions of a module, and public methods of its public classes."""
  for node in tree.body:
    inside = node.body if isinstance(node, ast.ClassDef) else [node]
    prefix = f'{node.name}.' if isinstance(node, ast.ClassDef) else ''
    for function in inside:
      if isinstance(function, ast.FunctionDef):
        name = prefix + function.name
        if not any(part.startswith('_') for part in name.split('.')):
          yield name, function


def changed(node: ast.AST) -> ast.AST | None:
  """A node with another meaning; None where this kind has none."""
  node = copy.deepcopy(node)
  match node:
    case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
      node.op = SWAPS[type(op)]()
    case ast.Compare(ops=[op, *rest]) if type(op) in SWAPS:
      node.ops = [SWAPS[type(op)](), *rest]
    case ast.IfExp():
      node.body, node.orelse = node.orelse, node.body
    case ast.UnaryOp(operand=operand):
      return operand
    case ast.Constant(value=bool(value)):
      node.value = not value
    case ast.Constant(value=int(value) | float(value)):
      node.value = value + 1
    case _:
      return None
  return node


def mutant(source: str, name: str) -> tuple[str, str]:
  """The core statement of a function, and the source with it changed."""
  tree = ast.parse(source)
  (function,) = (node for found, node in functions(tree) if found == name)
  simple = (ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr)

  def weight(statement: ast.stmt) -> tuple[int, int]:
    nodes = ast.walk(statement)
    count = sum(isinstance(x, ast.operator | ast.cmpop) for x in nodes)
    return count, statement.lineno

  core = max(
    (x for x in ast.walk(function) if isinstance(x, simple)), key=weight
  )
  text, inside = ast.unparse(core), {id(x) for x in ast.walk(core)}

  class Change(ast.NodeTransformer):
    done = False

    def visit(self, node: ast.AST) -> ast.AST:
      new = None
      if id(node) in inside and not self.done:
        new = changed(node)
      self.done |= new is not None
      return super().generic_visit(node) if new is None else new

  change = Change()
  tree = change.visit(tree)
  if not change.done:  # a call, or a name: without its result
    core.value = ast.Constant(None)
  return text, ast.unparse(ast.fix_missing_locations(tree))


def killed(copies: queue.Queue, path: str, source: str, tests: list) -> bool:
  """Whether a test of a copy of the checkout fails with this source."""
  root = copies.get()
  target, before = root / path, (root / path).read_text()
  try:
    target.write_text(source)
    command = [sys.executable, '-m', 'pytest', '-x', '-q', *tests]
    done = subprocess.run(
      [*command, '-p', 'no:cacheprovider'],
      cwd=root, timeout=TIMEOUT, capture_output=True,
    )  # fmt: skip
    return done.returncode != 0
  except subprocess.TimeoutExpired:
    return True
  finally:
    target.write_text(before)
    copies.put(root)


def main(words: list[str]) -> int:
  """Runs the mutants of the targets whose path has one of the words."""
  chosen = [p for p in TARGETS if not words or any(w in p for w in words)]
  copies: queue.Queue = queue.Queue()
  with (
    tempfile.TemporaryDirectory() as folder,
    concurrent.futures.ThreadPoolExecutor(WORKERS) as pool,
  ):
    for i in range(WORKERS):
      root = pathlib.Path(folder, str(i))
      for name in ('mira_jax', 'configs', 'tests'):
        shutil.copytree(ROOT / name, root / name)
      shutil.copy(ROOT / 'pyproject.toml', root)
      copies.put(root)
    jobs = []
    for path in chosen:
      source = (ROOT / path).read_text()
      if killed(copies, path, source, TARGETS[path]):
        raise SystemExit(f'{path}: its tests fail without a mutant')
      for name, function in functions(ast.parse(source)):
        text, new = mutant(source, name)
        job = pool.submit(killed, copies, path, new, TARGETS[path])
        place = f'{path}:{function.lineno} {name}'
        jobs.append((f'{place}: {" ".join(text.split())}', job))
    for name, job in jobs:
      print('killed  ' if job.result() else 'SURVIVED', name[:150], flush=True)
  count = sum(job.result() for _, job in jobs)
  print(f'{count} of {len(jobs)} mutants killed ({count / len(jobs):.0%})')
  return int(count < LEAST * len(jobs))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
