"""Who is trained on and who is tested: nothing leaks, nothing is lost."""

from __future__ import annotations

import os

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mira_jax.data import dataset, holdout, label_map, pool, protocol
from mira_jax.errors import MiraInputError
from mira_jax.video import images

FRAME = images.encode_jpeg(np.zeros((16, 16, 3), np.uint8))


def prepare(folder, name, class_names, clips):
  """A dataset of one-frame clips: split -> rows (label, subject, fold)."""

  def stream(split):
    for i, (label, subject, fold) in enumerate(clips[split]):
      yield dataset.Clip(
        clip_id=f'{name}-{split}-{i}',
        frames=[FRAME],
        label=label,
        subject=subject,
        fold=fold,
      )

  dataset.write(
    folder / name,
    name=name,
    class_names=class_names,
    splits={s: lambda s=s: stream(s) for s in clips},
    description='',
  )
  return dataset.open(folder / name)


@pytest.fixture(scope='module')
def film(tmp_path_factory):
  """20 training clips of 10 people, 6 test clips of 3 others, 3 folds."""
  return prepare(
    tmp_path_factory.mktemp('film'),
    'film',
    ('Happy', 'Sad'),
    {
      'train': [(i % 2, f'p{i // 2}', i % 3) for i in range(20)],
      'test': [(i % 2, f'q{i // 2}', i % 3) for i in range(6)],
    },
  )


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
  """Another vocabulary, another order, and a class that film lacks."""
  return prepare(
    tmp_path_factory.mktemp('lab'),
    'lab',
    ('fear', 'sadness', 'happiness'),
    {'train': [(i % 3, f'p{i % 4}', -1) for i in range(12)]},
  )


def ids(source):
  return [source[i].clip_id for i in range(len(source))]


def people(source):
  return set(source.subject.tolist())


def parts_of(datasets, fold=0, **options):
  return protocol.parts(datasets, protocol.Rules(**options), fold)


def everything(parts):
  return [x for p in (parts.train, parts.val, parts.test) if p for x in ids(p)]


def test_a_split_carves_people_from_train_alone(film):
  parts = parts_of([film], val_fraction=0.2)
  assert ids(parts.test) == [f'film-test-{i}' for i in range(6)]
  assert len(parts.val) == 4
  assert not people(parts.val) & people(parts.train)
  assert sorted(everything(parts)) == sorted(
    [f'film-train-{i}' for i in range(20)] + ids(parts.test)
  )
  assert 'by subject' in parts.rule
  assert parts_of([film], val_fraction=0).val is None


def test_a_split_named_val_is_taken_instead(tmp_path):
  rows = [(i % 2, '', -1) for i in range(6)]
  splits = {'train': rows, 'val': rows[:2]}
  made = prepare(tmp_path, 'own', ('a', 'b'), splits | {'test': rows})
  parts = parts_of([made])
  assert (len(parts.train), len(parts.val), len(parts.test)) == (6, 2, 6)
  assert parts.rule == 'the split val'
  alone = prepare(tmp_path, 'afew', ('a', 'b'), splits)
  with pytest.raises(MiraInputError, match=r'--config\.eval\.split=val'):
    parts_of([alone])
  assert len(parts_of([alone], test_split='val').test) == 2


def _pool(subjects: list[str], seed: int) -> pool.Pool:
  """Clips in memory, of two classes, three stored folds and no frames."""
  rng, count = np.random.default_rng(seed), len(subjects)
  return pool.Pool(
    class_names=('a', 'b'),
    label=rng.integers(2, size=count),
    clip_id=np.arange(count).astype(str),
    subject=np.array(subjects),
    recording=np.array([f'r{i}' for i in range(count)]),
    fold=rng.permutation(np.arange(count) % 3),
    num_frames=np.ones(count, int),
    positive=np.zeros((count, 0), int),
    known=np.zeros((count, 0), int),
    dataset=np.full(count, 'd'),
    sources=(),
    where=np.stack([np.zeros(count, int), np.arange(count)], axis=1),
  )


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.given(
  st.lists(st.integers(1, 4), min_size=5, max_size=12),
  st.sampled_from([('loso', 0), ('folds', 4), ('folds', 0)]),
  st.floats(0, 0.4),
  st.integers(0, 99),
)
def test_folds_are_a_partition_without_a_subject_on_two_sides(
  sizes, rule, fraction, seed
):
  name, num_folds = rule
  subjects = [f's{i}' for i, size in enumerate(sizes) for _ in range(size)]
  clips = _pool(subjects, seed)
  options = {'protocol': name, 'num_folds': num_folds}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(protocol, 'pooled', lambda *_: [clips])
    folds = range(len(protocol.fold_names([], protocol.Rules(**options))))
    options |= {'val_fraction': fraction, 'fold_seed': seed}
    cuts = [parts_of([], fold=i, **options) for i in folds]
  tested = np.concatenate([cut.test.where[:, 1] for cut in cuts])
  assert sorted(tested.tolist()) == [*range(len(subjects))]
  for cut in cuts:
    sides = [part for part in (cut.train, cut.val, cut.test) if part]
    rows = np.concatenate([part.where[:, 1] for part in sides])
    assert sorted(rows.tolist()) == [*range(len(subjects))]
    if rule != ('folds', 0):  # stored folds are as their dataset made them
      assert sum(len(people(part)) for part in sides) == len(sizes)


def test_folds_of_subjects_are_of_like_size():
  subjects = [f's{i}' for i in range(10) for _ in range(i + 1)]
  # By clips the smallest people come last and even it out.
  for rule, apart in (('even', 3), ('stratified', 10)):
    folds = holdout.subject_folds(subjects, [0] * 55, 3, 0, rule)
    sizes = np.bincount(folds)
    assert sizes.sum() == 55
    assert np.ptp(sizes) <= apart


def _rare(clips: int = 11) -> tuple[list[str], list[str]]:
  """90 clips of 60 people; so many people show a class that is rare."""
  subjects = [f's{i % 60}' for i in range(90)]
  often = [('happy', 'sad', 'happy')[i // 7 % 3] for i in range(90)]
  return subjects, ['fear'] * clips + often[clips:]


def _pairs(labels, folds):
  return {*zip(labels, folds.tolist(), strict=True)}


def test_every_class_is_in_every_fold_where_that_can_be():
  subjects, labels = _rare()
  seen = set()
  for seed in range(20):
    folds = holdout.subject_folds(subjects, labels, 10, seed)
    assert len(_pairs(labels, folds)) == 30
    seen.add(tuple(folds))
    assert np.ptp(np.bincount(folds)) <= 4
  assert len(seen) == 20
  # The rule of earlier versions leaves holes.
  assert any(
    len(_pairs(labels, holdout.subject_folds(subjects, labels, 10, i, 'even')))
    < 30
    for i in range(20)
  )


def test_a_class_of_fewer_people_than_folds_is_spread_as_far_as_it_goes():
  subjects, labels = _rare(clips=4)
  folds = holdout.subject_folds(subjects, labels, 10, seed=0)
  fear = [fold for name, fold in _pairs(labels, folds) if name == 'fear']
  assert len(fear) == 4
  # Of every class fewer clips than folds.
  folds = holdout.subject_folds('abcdef', 'xyzxyz', 5, seed=0)
  assert set(folds) == {*range(5)}


def test_the_rule_of_earlier_versions_gives_their_folds():
  subjects = [f's{i // 2 % 9}' for i in range(30)] + ['']
  folds = holdout.subject_folds(subjects, [0] * 31, 4, 3, 'even')
  # As version 0.1.0 made them.
  pairs = (0, 2, 1, 1, 3, 0, 3, 2, 2, 0, 2, 1, 1, 3, 0)
  assert folds.tolist() == [*np.repeat(pairs, 2), -1]


def test_leaving_a_dataset_out_tests_all_of_it_under_common_names(film, lab):
  parts = parts_of([film, lab], protocol='lodo', fold=1)
  assert parts.fold_name == 'lab'
  assert parts.test.class_names == ('happiness', 'sadness')
  # Fear is in one dataset only: a third of the lab's clips are left out.
  assert len(parts.test) == 8
  assert set(parts.test.dataset) == {'lab'}
  for i in range(8):
    clip = parts.test[i]
    number = int(clip.clip_id.split('-')[-1])
    assert clip.label == {1: 1, 2: 0}[number % 3]  # in the lab: 1 sad, 2 happy
  assert set(parts.train.dataset) == {'film'}
  assert len(parts.train) + len(parts.val) == 26
  # Person p1 of one is not person p1 of the other.
  assert not people(parts.train) & people(parts.test)


def test_a_table_says_otherwise(film, lab, tmp_path):
  table = tmp_path / 'classes.csv'
  table.write_text(
    'dataset, Class,common\nlab,fear,upset\nfilm,Sad,upset\n'
    'lab,sadness,\nlab,happiness,happy\nfilm,Happy,happy\n'
  )
  made = parts_of([film, lab], protocol='lodo', fold=1, classes=str(table))
  assert made.test.class_names == ('happy', 'upset')
  assert made.test.counts == [4, 4]
  numbers = [int(x.split('-')[-1]) for x in ids(made.test)]
  assert {n % 3 for n in numbers} == {0, 2}  # fear and happiness


@pytest.mark.parametrize(
  ('options', 'says'),
  [
    ({'protocol': 'folds', 'fold': 3}, '0 to 2'),
    ({'protocol': 'lodo'}, 'two datasets'),
    ({'test_split': 'dev'}, 'the splits are train, test'),
    ({'protocol': 'folds', 'num_folds': 14}, '13 subjects'),
  ],
)
def test_what_cannot_be_done_is_named(film, options, says):
  with pytest.raises(MiraInputError, match=says):
    parts_of([film], **options)


def test_datasets_without_folds_or_people_say_so(lab, tmp_path):
  with pytest.raises(MiraInputError, match=r'config\.data\.num_folds'):
    parts_of([lab], protocol='folds')
  rows = [(i % 2, f'p{i}', i % 2 - (i == 2)) for i in range(4)]
  some = prepare(tmp_path, 'some', ('a', 'b'), {'train': rows})
  without = 'without a stored fold: 1 of 4 clips'
  with pytest.raises(MiraInputError, match=without):
    parts_of([some], protocol='folds')
  rows = [(i % 2, '', -1) for i in range(4)]
  unknown = prepare(tmp_path, 'unknown', ('a', 'b'), {'train': rows})
  with pytest.raises(MiraInputError, match='no_subjects'):
    parts_of([unknown], protocol='loso')
  with pytest.raises(MiraInputError, match='no_common_classes'):
    parts_of([lab, unknown], protocol='lodo')
  with pytest.raises(MiraInputError, match='same_name'):
    parts_of([lab, lab], protocol='lodo')


def test_clips_to_pretrain_on_are_never_tested(film):
  for fold in range(3):
    rules = protocol.Rules(protocol='folds', num_folds=3, train_fraction=0.2)
    whole = protocol.unlabelled([film], rules, fold)
    tested = protocol.parts([film], rules, fold).test
    assert not {*ids(whole)} & {*ids(tested)}
    assert len(whole) + len(tested) == 26
  split = protocol.unlabelled([film], protocol.Rules())
  assert ids(split) == [f'film-train-{i}' for i in range(20)]


def test_few_labels_keep_every_class(film):
  parts = parts_of([film], val_fraction=0, train_fraction=0.2)
  assert parts.train.counts == [2, 2]
  parts = parts_of([film], val_fraction=0, train_fraction=0.001)
  assert parts.train.counts == [1, 1]


def test_a_table_of_other_columns_is_refused(tmp_path):
  path = tmp_path / 'table.csv'
  for text, says in (
    ('dataset,class\na,b\n', 'no column for common'),
    ('dataset,class,common\na,b\n', 'line 2 has other cells'),
    ('dataset,class,common\na,b,' + 'c' * 200_000, 'read as CSV'),
  ):
    path.write_text(text)
    with pytest.raises(MiraInputError, match=says):
      label_map.read_table(path)
  with pytest.raises(MiraInputError, match='not_found'):
    label_map.read_table(tmp_path / 'absent.csv')
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(MiraInputError, match='not_regular_file'):
    label_map.read_table(tmp_path / 'pipe')


def test_a_pool_reads_the_clip_that_it_names(film, lab):
  names = {'fear': '', 'sadness': 'Sad', 'happiness': 'Happy'}
  pools = (
    pool.of_dataset(film, ['test']),
    pool.of_dataset(lab, ['train'], film.class_names, names),
  )
  picked = pool.join(pools).take(np.array([7, 0]))
  assert ids(picked) == ['lab-train-2', 'film-test-0']
  assert picked.subject.tolist() == ['lab/p2', 'film/q0']
  assert [picked[i].label for i in range(2)] == picked.label.tolist() == [0, 0]


def test_clips_of_unknown_people_are_in_no_fold(tmp_path, caplog):
  names = ['1', '01', 'S1', 'NA', '2', '02', '?', '3', '3.0', '']
  rows = [(i % 2, name, -1) for i, name in enumerate(names)]
  made = prepare(tmp_path, 'mixed', ('a', 'b'), {'train': rows})
  assert len(protocol.fold_names([made], protocol.Rules(protocol='loso'))) == 3
  for fold in range(3):
    parts = parts_of([made], protocol='loso', fold=fold, val_fraction=0)
    assert not people(parts.train) & people(parts.test)
    assert people(parts.train) | people(parts.test) == {'S1', '02', '3.0'}
    assert len(everything(parts)) == 7
  assert '3 of 10 clips are in no fold' in caplog.text
  folds = holdout.subject_folds(names, [0] * len(names), 3, seed=0)
  assert [i for i, fold in enumerate(folds) if fold < 0] == [3, 6, 9]


def test_validation_clips_are_of_other_people_even_where_some_are_unknown():
  names = [f's{i // 4}' if i % 9 else '' for i in range(60)]
  held, rule = holdout.hold_out(names, [0] * 60, 0.3, seed=0)
  sides = [{names[i] for i in s} - {''} for s in (held, {*range(60)} - held)]
  assert not sides[0] & sides[1]
  assert 'by subject' in rule
  assert 12 <= len(held) <= 24
