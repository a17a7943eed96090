"""The house holds: imports point downward, and packages form no circle."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Folders of mira_jax/ and modules beside them, from the top floor down; a name
# imports those below it only. A folder counts as one: no circle is possible.
FLOORS = (
  ('cli',),
  ('aot', 'parity'),
  ('train',),
  ('inference',),
  ('weights',),
  ('config',),
  ('models', 'prepare', 'tuning'),
  ('baseline', 'kernels', 'synthetic'),
  ('augment', 'data'),
  ('devices', 'video'),
  ('evaluation',),
  ('figures', 'pages'),
  ('files', 'systems'),
  ('mira', 'terminal', 'param_names'),
  ('errors',),
)
ROOMS = {name: -i for i, floor in enumerate(FLOORS) for name in floor}
# Packages that only some folders may import.
ONLY = {
  'flax': ('models', 'systems'),
  'orbax': ('train',),
  'matplotlib': ('figures',),
  'jinja2': ('pages',),
  'openpyxl': ('prepare',),
}
# What the method, the kernels and the models need.
SMALL = {'jax', 'jaxlib', 'flax', 'numpy', 'einops', 'optax', 'mira_jax'}


def sources():
  """Module name -> parsed source, for everything that is shipped."""
  paths = sorted((ROOT / 'mira_jax').rglob('*.py'))
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


def room(module):
  """The folder of mira_jax/ that a module is in, or its own name."""
  return module.removeprefix('mira_jax').removeprefix('.').split('.')[0]


def test_every_folder_has_a_floor():
  found = {room(module) for module in SOURCES} - {''}
  assert found == set(ROOMS)


@pytest.mark.parametrize('name', ROOMS)
def test_imports_point_downward(name):
  for module in SOURCES:
    if room(module) != name:
      continue
    for imported in imports(module):
      assert imported.partition('.')[0] not in ('configs', 'train', 'eval')
      other = room(imported)
      if imported.startswith('mira_jax.') and other != name:
        same = ROOMS[other] == ROOMS[name]
        assert not same, f'{module} imports {imported} of the same floor'
        assert ROOMS[other] < ROOMS[name], f'{module} imports {imported}'


@pytest.mark.parametrize('package', ONLY)
def test_packages_are_imported_where_they_belong(package):
  users = {
    room(module)
    for module in SOURCES
    if any(name.split('.')[0] == package for name in imports(module))
  }
  assert users == set(ONLY[package])


def test_only_commands_read_tables():
  users = {
    room(module)
    for module in SOURCES
    if any(name.startswith('mira_jax.prepare') for name in imports(module))
  }
  assert users == {'cli', 'prepare'}


@pytest.mark.parametrize('name', ['mira', 'kernels', 'models'])
def test_the_method_needs_few_packages(name):
  """Also of what it imports of this library, however far down."""
  todo = {module for module in SOURCES if room(module) == name}
  seen = set()
  while todo:
    module = todo.pop()
    seen.add(module)
    roots = {imported.split('.')[0] for imported in imports(module)}
    assert roots <= SMALL | sys.stdlib_module_names, module
    todo |= {x for x in imports(module) if x in SOURCES} - seen


def test_one_module_uses_undocumented_parts_of_tfds():
  users = {
    module
    for module in SOURCES
    if any(name.startswith('tensorflow_datasets.') for name in imports(module))
  }
  assert users == {'mira_jax.data.records'}


def test_models_import_without_the_data_packages():
  program = """
import sys
for name in ('grain', 'tensorflow_datasets', 'ml_collections', 'tensorflow',
             'torch', 'av', 'cv2', 'matplotlib'):
  sys.modules[name] = None
import mira_jax.mira, mira_jax.kernels.attention
import mira_jax.models.vivit, mira_jax.models.mae
"""
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
