"""Imports point downward only; see the table of floors."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# The longest prefix decides. What is not named here is on the floor that runs
# things (2), which may import neither configuration nor entry points.
FLOORS = {
  'mira_jax': 2,
  'mira_jax.mira': 0,
  'mira_jax.kernels': 0,
  'mira_jax.plugins': 0,
  'mira_jax.augment': 0,
  'mira_jax.randaugment': 0,
  'mira_jax.mixing': 0,
  'mira_jax.metrics': 0,
  'mira_jax.guard': 0,
  'mira_jax.errors': 0,
  'mira_jax.ranges': 0,
  'mira_jax.chips': 0,
  'mira_jax.models': 1,
  'mira_jax.cli': 3,
  'mira_jax.training': 3,
  'mira_jax.hosts': 3,
  'mira_jax.program': 3,
  'mira_jax.inputs': 3,
  'mira_jax.snapshot': 3,
  'mira_jax.tasks': 3,
  'mira_jax.loop': 3,
  'mira_jax.commands': 3,
  'mira_jax.aot.measure': 3,
  'mira_jax.config': 3,
  'configs': 3,
  'train': 3,
  'eval': 3,
}
# Packages that only some modules may import.
ONLY = {
  'flax': ('mira_jax.models',),
  'orbax': ('mira_jax.checkpoint',),
}
IDEAS_MAY_USE = {'jax', 'numpy', 'mira_jax'} | sys.stdlib_module_names


def covers(prefix, module):
  return module == prefix or module.startswith(prefix + '.')


def floor(module):
  return FLOORS[max((p for p in FLOORS if covers(p, module)), key=len)]


def sources():
  """Module name -> parsed source, for everything that is shipped."""
  paths = [ROOT / 'train.py', ROOT / 'eval.py']
  for folder in ('mira_jax', 'configs'):
    paths += sorted((ROOT / folder).rglob('*.py'))
  modules = {}
  for path in paths:
    parts = path.relative_to(ROOT).with_suffix('').parts
    name = '.'.join(parts).removesuffix('.__init__')
    modules[name] = ast.parse(path.read_text(), str(path))
  return modules


SOURCES = sources()


def imports(module):
  """Every module that one imports, anywhere in its source."""
  for node in ast.walk(SOURCES[module]):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{module}:{node.lineno} is a relative import'
      for alias in node.names:
        inner = f'{node.module}.{alias.name}'
        yield inner if inner in SOURCES else node.module


def test_every_floor_is_there():
  assert {floor(module) for module in SOURCES} == {0, 1, 2, 3}
  assert {'mira_jax.mira', 'mira_jax.interop.golden', 'train'} <= set(SOURCES)


@pytest.mark.parametrize('module', SOURCES)
def test_imports_point_downward(module):
  for imported in imports(module):
    if imported.partition('.')[0] in ('mira_jax', 'configs', 'train', 'eval'):
      assert floor(imported) <= floor(module), f'{module} imports {imported}'


def test_configuration_imports_ideas_only():
  for imported in imports('mira_jax.config'):
    if covers('mira_jax', imported):
      assert floor(imported) == 0, imported


@pytest.mark.parametrize('package', ONLY)
def test_packages_are_imported_where_they_belong(package):
  users = {
    module
    for module in SOURCES
    if any(covers(package, imported) for imported in imports(module))
  }
  assert users
  for user in users:
    assert any(covers(owner, user) for owner in ONLY[package]), user


def test_ideas_need_only_jax_and_numpy():
  for module in SOURCES:
    if floor(module) == 0:
      roots = {name.partition('.')[0] for name in imports(module)}
      assert roots <= IDEAS_MAY_USE, module


def test_ideas_and_models_import_without_the_data_packages():
  program = """
import sys
for name in ('grain', 'tensorflow_datasets', 'ml_collections', 'tensorflow',
             'torch', 'optax'):
  sys.modules[name] = None
import mira_jax.mira, mira_jax.kernels.attention
import mira_jax.models.vivit, mira_jax.models.mae
"""
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
