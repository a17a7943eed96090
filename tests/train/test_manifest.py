"""The manifest of a checkpoint notices every damage of its files."""

from __future__ import annotations

import shutil

import pytest

from mira_jax.train import manifest


@pytest.fixture
def folder(tmp_path):
  """A sealed step that looks like one of orbax, beside the step before."""
  for step in (1, 2):
    for name in (
      'weights/d/a',
      'state/d/b',
      'state/_METADATA',
      'meta/metadata',
    ):
      path = tmp_path / str(step) / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(f'{{"step": {step}, "of": "{name}"}}' + 'x' * 100)
    (tmp_path / str(step) / 'meta/metadata').write_text(f'{{"step": {step}}}')
    manifest.seal(tmp_path / str(step), step / 10)
  return tmp_path / '2'


def biggest(folder):
  return max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)


def flip_a_bit(folder):
  path = biggest(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def truncate(folder):
  path = biggest(folder)
  path.write_bytes(path.read_bytes()[:10])


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def manifest_of(text):
  return lambda folder: (folder / manifest.MANIFEST).write_text(text)


def manifest_of_the_step_before(folder):
  other = folder.with_name(str(int(folder.name) - 1))
  shutil.copy(other / manifest.MANIFEST, folder)


def better_accuracy(folder):
  path = folder / manifest.MANIFEST
  path.write_text(path.read_text().replace('0.2', '0.9'))


DAMAGE = {
  'one flipped bit': flip_a_bit,
  'truncated': truncate,
  'no data file': lambda folder: biggest(folder).unlink(),
  'empty': empty,
  'a file too many': lambda folder: (folder / 'state/d/more').touch(),
  'no manifest': lambda folder: (folder / manifest.MANIFEST).unlink(),
  'a manifest of nothing': manifest_of('null'),
  'a manifest of other things': manifest_of('{"seal": 1, "files": []}'),
  'half a manifest': manifest_of('{"step": 2, "fil'),
  'the manifest of the step before': manifest_of_the_step_before,
  'a manifest with another accuracy': better_accuracy,
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_noticed(folder, damage):
  assert manifest.verify(folder) == ''
  damage(folder)
  assert manifest.verify(folder)


def test_a_part_is_verified_alone(folder):
  shutil.rmtree(folder / 'state')
  assert manifest.verify(folder, 'weights') == ''
  assert manifest.verify(folder) == 'state/_METADATA is missing'


def test_a_renamed_step_is_noticed(folder):
  renamed = folder.rename(folder.with_name('3'))
  assert manifest.verify(renamed) == 'it was written as step 2 and renamed'
