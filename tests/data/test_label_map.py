"""Tables of classes for training on fewer."""

from __future__ import annotations

import collections
import pathlib

import pytest

from mira_jax.data import label_map
from mira_jax.prepare.builders import BUILDERS

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('table', 'names', 'counts'),
  [
    # The MiRA authors' table of SAMM has 118, 26 and 15 clips of these.
    ('samm3', ['samm'], {'negative': 118, 'positive': 26, 'surprise': 15}),
    ('megc3', ['samm', 'casme2', 'smic'], {}),
    ('casme2_5', ['casme2'], {}),
  ],
)
def test_tables_of_classes(table, names, counts):
  path = ROOT / f'configs/classes/{table}.csv'
  own = {name: BUILDERS[name].class_names for name in names}
  common, rename = label_map.harmonise(own, label_map.read_table(path))
  assert len(common) == (5 if table == 'casme2_5' else 3)
  for name in names:
    assert {c for c in rename[name].values() if c} == set(common)
  found = collections.Counter()
  for name, common_name in rename['samm'].items() if counts else ():
    found[common_name] += BUILDERS['samm'].counts[name]
  assert found == counts
