"""The table of `bench/card.py`, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BAD = ('wrong', 'failed', 'crashed', 'hung')
Row = Mapping[str, Any]


def bad(rows: Iterable[Row]) -> list[Row]:
  """Rows that say that something is not as it should be."""
  return [row for row in rows if row.get('status') in BAD]


def table(result: Mapping[str, Any]) -> str:
  """What was found: parts, what is bad, and a table for each part."""
  rows = result['rows']
  device = next((x['device'] for x in rows if 'device' in x), 'no device')
  lines = [f'# {device}, {result["date"]}, {result["seconds"]:.0f} s', '']
  if result['interpret']:
    lines += ['A dry run on a CPU: no number here says anything.', '']
  own = {x['part']: [y for y in rows if y['part'] == x['part']]
         for x in result['parts']}  # fmt: skip
  lines += _markdown(
    {**part, 'rows': len(own[part['part']]), 'bad': len(bad(own[part['part']]))}
    for part in result['parts']
  )
  if wrong := bad(rows):
    keys = 'part', 'name', 'status', 'error', 'bound'
    lines += ['', '## Bad', '']
    lines += _markdown({key: row.get(key) for key in keys} for row in wrong)
  for name, found in own.items():
    if found:
      found = _worst(found) if name == 'correct' else found
      lines += ['', f'## {name}', '', *_markdown(map(_short, found))]
  return '\n'.join(lines) + '\n'


def _short(row: Row) -> Row:
  """A row without what its table says anyway."""
  hidden = {'part', 'shape', 'device'}
  if row.get('status') == 'ok':
    hidden |= {'status'}
  return {key: x for key, x in row.items() if key not in hidden}


def _worst(rows: Sequence[Row]) -> list[Row]:
  """Of the checks of each case, how many there are and the worst one."""
  cases: dict[str, list[Row]] = {}
  for row in rows:
    cases.setdefault(row.get('case', row['name']), []).append(row)

  def badness(row: Row) -> float:
    if row.get('status') in BAD:
      return float('inf')
    return row.get('error_16', 0) / 4e-3 + row.get('error_32', 0) / 1e-4

  return [
    {'case': case, 'checks': len(found), 'worst': worst['name']}
    | {
      key: worst[key]
      for key in ('status', 'error_16', 'error_32', 'error')
      if key in worst
    }
    for case, found in cases.items()
    for worst in [max(found, key=badness)]
  ]


def _markdown(rows: Iterable[Row]) -> list[str]:
  """Lines of a table; a column for each key of any row."""
  rows = list(rows)
  keys = list(dict.fromkeys(key for row in rows for key in row))
  cells = [keys] + [[_cell(row.get(key)) for key in keys] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '| ' + ' | '.join(map(str.ljust, line, widths)) + ' |' for line in cells
  ]
  return [lines[0], '|' + '|'.join('-' * (n + 2) for n in widths) + '|',
          *lines[1:]]  # fmt: skip


def _cell(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, float):
    return f'{value:.4g}'
  return ' '.join(str(value).replace('|', '/').split())[:100]
