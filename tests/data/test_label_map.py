"""Tables of classes for training on fewer."""

from __future__ import annotations

import collections
import pathlib

import pytest

from mira_jax.data import label_map
from mira_jax.prepare.builders import BUILDERS

ROOT = pathlib.Path(__file__).parents[2]


def test_three_classes_are_those_of_megc_2019():
  """Repression and what hurts is negative, happiness positive; no others."""
  names = ('casme2', 'samm', 'smic')
  own = {name: BUILDERS[name].class_names for name in names}
  path = ROOT / 'configs/classes/megc3.csv'
  _, rename = label_map.harmonise(own, label_map.read_table(path))
  bad = ('anger', 'contempt', 'disgust', 'fear', 'sadness', 'repression')
  want = {name: 'negative' for name in (*bad, 'negative')}
  want |= {'happiness': 'positive', 'positive': 'positive'}
  want |= {'surprise': 'surprise'}
  for name in names:
    assert rename[name] == {c: want.get(c.lower(), '') for c in own[name]}


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
