"The door: random folders and lists against a walk and a reader that know what was written; splits that nobody moves."

import hashlib
import os
import random
import unicodedata
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidrepro.core.files import InputError, decode
from vidrepro.core.walk import walk_folder
from vidrepro.data.datasets import from_folder, from_list
from vidrepro.data.door import (
    MANIFEST,
    assign_splits,
    contents,
    find,
    fingerprint,
    parse_list,
    read_manifest,
    recordings,
    score,
    trained_on,
    write_manifest,
)

SEEDS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
STEMS = ['a', 'b c', 'd.e', 'ünï', '걷기', 'x,y;z', "it's", '#1', 'train', 'g01']
VIDEO, OTHER = ['.mp4', '.MKV', '.avi', '.webm'], ['.txt', '.jpg', '', '.mp4.part', '.csv']


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --- random trees


def plant(draw, root):
    "Random folders and files below `root`; real paths of its visible videos."
    videos, folders = set(), [root]
    root.mkdir(parents=True)
    for _ in range(draw.randrange(6)):
        folder = draw.choice(folders) / draw.choice([*STEMS, '.git', '__MACOSX'])
        folder.mkdir(exist_ok=True)
        folders.append(folder)
    for k in range(draw.randrange(12)):
        folder, stem = draw.choice(folders), draw.choice(STEMS)
        ending = draw.choice(VIDEO + OTHER)
        name = draw.choice(['', '', '', '.']) + stem + ending
        if (folder / name).exists():
            continue
        write(folder / name, f'{folder.name} {k}'.encode())
        hidden = {'.git', '__MACOSX'} & set(folder.relative_to(root).parts) or name[0] == '.'
        if not hidden and ending in VIDEO:
            videos.add(os.path.realpath(folder / name))
            if draw.random() < 0.4:
                write(folder / f'{stem}{draw.choice([".srt", ".en.srt", ".wav", ".png"])}', b'x')
    return videos, folders


def naive(place, circle=()):
    "Real paths of the visible videos below a place: recursion, a set, and no thought of order."
    found, real = set(), os.path.realpath(place)
    if real in circle:
        return found
    for name in os.listdir(real):
        path = os.path.join(real, name)
        try:
            name.encode()
        except UnicodeEncodeError:
            continue
        if name[0] == '.' or name == '__MACOSX' or not os.path.exists(path):
            continue
        if os.path.isdir(path):
            above = os.path.realpath(path)
            if not (os.path.islink(path) and (real + '/').startswith(above + '/')):
                found |= naive(path, {*circle, real})
        elif name.lower().endswith(tuple(v.lower() for v in VIDEO)):
            found.add(os.path.realpath(path))
    return found


@SEEDS
@given(seed=st.integers(0, 10**9))
def test_walk_finds_what_a_naive_walk_finds(tmp_path_factory, seed):
    draw, home = random.Random(seed), tmp_path_factory.mktemp('walk')
    inside, folders = plant(draw, home / 'set')
    outside, elsewhere = plant(draw, home / 'elsewhere')
    everything = [*folders, *elsewhere, *map(Path, [*inside, *outside])]
    for k in range(draw.randrange(6)):
        link = draw.choice(folders) / f'link {k}{draw.choice(["", ".mp4"])}'
        link.symlink_to(draw.choice([*everything, home / 'nothing.mp4']))
    write(Path(os.fsdecode(os.fsencode(home / 'set') + b'/caf\xe9.mp4')), b'latin')
    root = home / 'set'
    paths, passed = walk_folder(root)
    real = [os.path.realpath(root / path) for path in paths]
    assert set(real) == naive(root) and len(real) == len(set(real))
    assert paths == sorted(paths) and inside <= set(real)
    straight = {p.resolve().as_posix(): p.relative_to(root).as_posix() for p in map(Path, inside)}
    assert all(path == straight.get(r, path) for path, r in zip(paths, real))  # the real place
    assert dict(passed)['caf\\xe9.mp4'].startswith('a name that is not UTF-8')
    assert all(reason for _, reason in passed) and passed == walk_folder(f'{root}/../set/')[1]
    assert '\n'.join(path for path, _ in passed).encode()  # can be printed


def test_every_entry_is_found_or_passed_over(tmp_path):
    draw = random.Random(5)
    for k in range(20):
        root = tmp_path / str(k)
        plant(draw, root)
        paths, passed = walk_folder(root)
        shown = [*paths, *(path for path, _ in passed)]
        hidden = {path for path, reason in passed if reason == 'hidden'}
        for file in (p for p in root.rglob('*') if p.is_file()):
            path = file.relative_to(root)
            names = {path.as_posix(), *(p.as_posix() for p in path.parents)}
            assert path.as_posix() in shown or names & hidden
        assert max(Counter(shown).values(), default=0) <= 1


@pytest.mark.parametrize(
    'ending', ['srt', 'en.srt', 'wav', 'png', 'json', 'info.json', 'txt', 'gif']
)
def test_companions_are_no_videos(tmp_path, ending):
    write(tmp_path / 'c' / 'v.mp4', b'1')
    write(tmp_path / 'c' / f'v.{ending}', b'2')
    found = find(tmp_path)
    assert found.paths == ['c/v.mp4']
    assert found.passed == [(f'c/v.{ending}', 'companion of a video: v.mp4')]
    assert from_folder(tmp_path).classes == ('c',)


def test_what_cannot_be_entered(tmp_path):
    write(tmp_path / 'a' / 'v.mp4', b'1')
    (tmp_path / 'self').symlink_to('self')
    os.mkfifo(tmp_path / 'a' / 'pipe.mp4')
    deep = tmp_path / 'a'
    for _ in range(600):
        deep = deep / 'd'
    os.makedirs(deep)
    write(deep / 'w.mp4', b'2')
    found = find(tmp_path)
    assert len(found.paths) == 2
    assert dict(found.passed) == {
        'self': 'a link to nothing',
        'a/pipe.mp4': 'neither file nor folder',
    }


# --- splits of folders


@pytest.mark.parametrize(
    'names', [('train', 'val'), ('Train', 'VALID', 'test'), ('training', 'TEST')]
)
@pytest.mark.parametrize('order', ['split first', 'class first'])
def test_split_folders(tmp_path, names, order):
    for split in names:
        for label in ('run', 'walk'):
            at = (split, label) if order == 'split first' else (label, split)
            write(tmp_path.joinpath(*at, 'v.mp4'), f'{split} {label}'.encode())
    write(tmp_path / 'annotations' / 'list.txt', b'no video')
    data = from_folder(tmp_path)
    known = dict(train='train', training='train', val='val', valid='val', test='test')
    assert data.classes == ('run', 'walk') and data.labels.bincount().tolist() == [len(names)] * 2
    assert set(data.table.split) == {known[name.lower()] for name in names}
    assert data.table.split.tolist() == from_folder(tmp_path, splits=True).table.split.tolist()


def test_splits_are_never_classes(tmp_path):
    for name in ('train', 'test', 'extra'):
        write(tmp_path / name / 'a' / 'v.mp4', name.encode())
    with pytest.raises(InputError, match='test, train beside extra'):
        from_folder(tmp_path)
    assert len(find(tmp_path).paths) == 3  # who needs no labels may have them


@pytest.mark.parametrize(
    'train, test', [('train_256', 'val_256'), ('Train_Set', 'dev'), ('1-training', '2 eval')]
)
@pytest.mark.parametrize('around', ['', 'UCF/'])
def test_other_spellings_of_splits(tmp_path, train, test, around):
    "Also below the one folder that an archive was packed with, and with labels of two machines."
    for split, form in ((train, 'NFC'), (test, 'NFD')):
        for label in ('걷기', 'run'):
            label = unicodedata.normalize(form, label)
            write(tmp_path / around / split / label / 'v.mp4', f'{split} {label}'.encode())
    data = from_folder(tmp_path)
    assert data.classes == ('run', '걷기') and len(set(data.table.split)) == 2


def test_names_that_hardly_differ_are_said(tmp_path):
    for label in ('Long Jump', 'long_jump', 'run'):
        write(tmp_path / label / 'v.mp4', label.encode())
    assert 'only in case, blanks or dashes, Long Jump, long_jump' in '\n'.join(find(tmp_path).notes)


# --- lists


@st.composite
def lists(draw):
    "Rows, and a text that says them in one of many ways."
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from(STEMS),
                st.sampled_from(VIDEO),
                st.sampled_from(['0', '001', '1', '12', 'run', '-1', '걷기']),
                st.sampled_from(['train', 'Test', 'validation']),
                st.sampled_from(['g1', '사람']),
            ),
            min_size=1,
            max_size=8,
            unique_by=lambda row: row[:2],
        )
    )
    sep = draw(st.sampled_from([' ', ',', ';', '\t', ', ']))
    columns = draw(st.integers(2, 4))
    header = draw(st.booleans()) and sep != ', '
    order = draw(st.permutations(range(columns))) if header else range(columns)
    names = [('path', 'filename', 'Video'), ('label', 'CLASS'), ('split', 'subset'), ('group',)]
    lines = [sep.join(draw(st.sampled_from(names[k])) for k in order)] if header else []
    for stem, ending, label, split, group in rows:
        path = f'dir/{stem}{ending}'
        quote = draw(st.booleans()) or (header and any(x in path for x in ' ,;\''))
        cells = [f'"{path}"' if quote else path, label, split, group][:columns]
        lines.append(sep.join(cells[k] for k in order))
    return rows, columns, draw(st.sampled_from(['\n', '\r\n', '\r'])).join([*lines, ''])


@settings(max_examples=150, deadline=None)
@given(lists(), st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-be', 'cp949']))
def test_lists(made, encoding):
    rows, columns, text = made
    if encoding == 'cp949':
        text = text.replace('ü', 'u').replace('ï', 'i')
    mark = b'\xfe\xff' if encoding == 'utf-16-be' else b''
    read, used = decode(mark + text.encode(encoding))
    plain = text.isascii() or encoding != 'cp949'
    assert read == text and (used == 'cp949') == (not plain)
    table = parse_list(read, 'list')
    splits = dict(train='train', Test='test', validation='val')
    for (stem, ending, label, split, group), found in zip(rows, table.itertuples(), strict=True):
        stem = stem.replace('ü', 'u').replace('ï', 'i') if encoding == 'cp949' else stem
        assert found.path == f'dir/{stem}{ending}'
        assert found.label == ('' if label == '-1' else label)
        assert found.split == (splits[split] if columns > 2 else '')
        assert found.group == (group if columns > 3 else '')


@pytest.mark.parametrize(
    'line, row',
    [
        ('my clips/a b.mp4 run train', ('my clips/a b.mp4', 'run', 'train')),
        ('c d.mp4 long jump test', ('c d.mp4', 'long jump', 'test')),
        ('frames/a run val', ('frames/a', 'run', 'val')),
        ('frames/a b run', ('frames/a b', 'run', '')),
        ('a.mp4', ('a.mp4', '', '')),
        ('plain', ('plain', '', '')),
    ],
)
def test_blanks_between_path_label_and_split(line, row):
    (found,) = parse_list(line, 'list').itertuples()
    assert (found.path, found.label, found.split) == row


COLUMNS = {  # what people call columns, and what is meant
    'path': ['Video Path', 'file_name', 'filepath', 'CLIP'],
    'label': ['category', 'Class Name', 'action', 'label-name'],
    'split': ['Partition', 'set', 'subset'],
    'group': ['subject', 'recording', 'Group ID'],
}


@settings(max_examples=40, deadline=None)
@given(st.permutations([*COLUMNS, 'index', 'fps']), st.data(), st.sampled_from(',;\t'))
def test_columns_by_many_names(order, data, sep):
    "Written by pandas, in any order, among columns that nobody reads."
    row = dict(path='a, b.mp4', label='x;y', split='training', group='g', index='0', fps='25')
    names = [data.draw(st.sampled_from(COLUMNS.get(name, [name]))) for name in order]
    table = pd.DataFrame([[row[name] for name in order]] * 2, columns=names)
    for found in parse_list(table.to_csv(index=False, sep=sep), 'list').itertuples():
        assert (found.path, found.label, found.split, found.group) == (
            'a, b.mp4',
            'x;y',
            'train',
            'g',
        )


@pytest.mark.parametrize(
    'text, words',
    [
        ('path,label,split\na.mp4,x,train\nb.mp4,jump, high,train\n', 'line 3: got 4 fields'),
        ('path,label\na.mp4,"x\nb.mp4,y\nc.mp4,z\n', 'an open quotation mark'),
        ('name,activity\na.mp4,x\nb.mp4,y\n', 'call a column path'),
    ],
)
def test_columns_that_slipped(text, words):
    "Nothing is guessed, and nothing moves into another column."
    with pytest.raises(InputError, match=words):
        parse_list(text, 'list')


def test_comments_are_no_videos():
    text = '# my list\n#\n#1.mp4 x\n# b.mp4 y\nb.mp4 y\n'
    assert parse_list(text, 'list').path.tolist() == ['#1.mp4', 'b.mp4']


def test_a_split_of_no_known_name_is_said(tmp_path):
    (tmp_path / 'l.csv').write_text('path,label,split\na.mp4,x,train\nb.mp4,x,fold2\n')
    assert any('fold2: neither train' in note for note in find(tmp_path / 'l.csv').notes)


def test_classes_of_lists_are_text(tmp_path):
    (tmp_path / 'l.txt').write_text('a.mp4 10\nb.mp4 9\nc.mp4 001\nd.mp4 1\ne.mp4\nf.mp4 -1\n')
    data = from_list(tmp_path / 'l.txt')
    assert data.classes == ('001', '1', '9', '10') and data.labels.tolist() == [3, 2, 0, 1, -1, -1]
    assert 'e.g. a.mp4, b.mp4' in '\n'.join(data.found.report())  # nothing is there


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_spellings_of_paths(tmp_path, form):
    write(tmp_path / 'set' / unicodedata.normalize(form, '걷기é') / 'v.mp4', b'1')
    lines = '걷기é/v.mp4 a\n', '.\\걷기é\\v.mp4 a\n', f'{tmp_path}/set/걷기é/v.mp4 a\n'
    for line in lines:
        (tmp_path / 'l.txt').write_text(line)
        found = find(tmp_path / 'l.txt', tmp_path / 'set')
        assert found.paths == find(tmp_path / 'set').paths


@pytest.mark.parametrize('content', [b'', b'\n \n', bytes(range(256)), b'just words\nno list\n'])
def test_no_list(tmp_path, content):
    (tmp_path / 'l.txt').write_bytes(content)
    with pytest.raises(InputError, match='list') as error:
        find(tmp_path / 'l.txt')
    assert '\n' not in str(error.value)


# --- manifests and splits


def some_videos(draw, folder, number):
    "Videos of random classes with contents of their own."
    for _ in range(number):
        name = f'{draw.choice("abc")}/{draw.randrange(10**9)}.mp4'
        write(folder / name, draw.randbytes(draw.randrange(1, 300)))


@SEEDS
@given(seed=st.integers(0, 10**9))
def test_manifest_and_splits(tmp_path_factory, seed):
    draw, home = random.Random(seed), tmp_path_factory.mktemp('splits')
    some_videos(draw, home / 'set', draw.randrange(1, 30))
    before = assign_splits(find(home / 'set').manifest)
    rows = []  # independent: every file by hand
    for file in sorted((home / 'set').rglob('*.mp4'), key=str):
        data = file.read_bytes()
        digest = hashlib.sha256(str(len(data)).encode() + data[:65536] + data[-65536:])
        path = file.relative_to(home / 'set').as_posix()
        rows.append((path, len(data), digest.hexdigest()[:16], file.parent.name, ''))
    assert before.drop(columns='split').to_numpy().tolist() == [list(row) for row in rows]

    spelling = assign_splits(find(f'{home}/./set/../set/').manifest)
    (home / 'other').symlink_to(home / 'set')
    linked = assign_splits(find(home / 'other').manifest)
    assert fingerprint(before) == fingerprint(spelling) == fingerprint(linked)
    write_manifest(before, home / 'm.csv')
    assert fingerprint(read_manifest(home / 'm.csv')) == fingerprint(before)

    some_videos(draw, home / 'set', draw.randrange(1, 30))
    copy = draw.choice(rows)[0]
    write(home / 'set' / 'a' / '0 copy.mp4', (home / 'set' / copy).read_bytes())
    after = assign_splits(find(home / 'set').manifest)
    assert fingerprint(after) != fingerprint(before)
    now = after.set_index('path').split
    assert now['a/0 copy.mp4'] == now[copy]
    for label, part in before.groupby('label'):
        several = part.hash.nunique() > 1
        assert set(part.split) == {'train', 'test'} or not several
        for path, content, split in zip(part.path, part.hash, part.split):
            own = 'test' if score(f'content {content}') < 0.25 else 'train'
            # a copy in another class may have to be repaired there
            if several and path != copy:
                assert now[path] == split or now[path] == own != split


def test_natural_splits_never_move(tmp_path):
    "Classes that need no repair: 30 times more files are added, and nothing moves."
    draw = random.Random(3)
    some_videos(draw, tmp_path, 120)
    before = assign_splits(find(tmp_path).manifest).set_index('path').split
    assert 0.15 < (before == 'test').mean() < 0.35
    for _ in range(30):
        some_videos(draw, tmp_path, 5)
        write(
            tmp_path / 'a' / f'copy {draw.random()}.mp4', (tmp_path / before.index[0]).read_bytes()
        )
        after = assign_splits(find(tmp_path).manifest).set_index('path').split
        assert (after[before.index] == before).all()
        before = after


def test_groups_and_given_splits(tmp_path):
    draw = random.Random(4)
    for k in range(60):
        write(tmp_path / 'set' / draw.choice('ab') / f'{k}_p{k % 12}.mp4', draw.randbytes(9))
    manifest = assign_splits(find(tmp_path / 'set', group_by=r'_(p\d+)\.').manifest)
    assert (manifest.groupby('group').split.nunique() == 1).all() and len(set(manifest.split)) == 2
    assert len(set(recordings(manifest))) == 12
    table = 'file,group,split\n' + '\n'.join(f'{p},x,val' for p in manifest.path[:30])
    (tmp_path / 'groups.csv').write_text(table)
    said = assign_splits(find(tmp_path / 'set', group_by=tmp_path / 'groups.csv').manifest)
    assert (said.split[:30] == 'val').all() and set(said.split[30:]) == {'train', 'test'}
    assert set(find(tmp_path / 'set', group_by='folder').items.group) == {'a', 'b'}
    for wrong in ('(', '(a)(b)', 'a'):
        with pytest.raises(InputError, match='groups'):
            find(tmp_path / 'set', group_by=wrong)


def test_components():
    "Recordings are connected components, against a fixed point of merging sets."
    draw = random.Random(6)
    for _ in range(200):
        rows = [
            (f'{k}', 1, draw.choice(['', *'wxyz']), 'a', draw.choice(['', '', 'g', 'h']), '')
            for k in range(8)
        ]
        manifest = pd.DataFrame(rows, columns=MANIFEST)
        sets = [{i} for i in range(8)]
        share = lambda i, j: any(rows[i][c] and rows[i][c] == rows[j][c] for c in (2, 4))
        for _ in range(8):
            for i in range(8):
                for j in range(8):
                    if share(i, j):
                        sets[i] |= sets[j]
                        sets[j] |= sets[i]
        names = recordings(manifest)
        for i in range(8):
            assert {j for j in range(8) if names[j] == names[i]} == sets[i]


def test_trained_on_under_another_name(tmp_path):
    draw = random.Random(7)
    some_videos(draw, tmp_path / 'old', 20)
    old = from_folder(tmp_path / 'old', splits=True)
    trained = old.in_split('train')
    for k, path in enumerate(old.table.path):
        write(tmp_path / 'new' / 'b' / f'{k}.avi', (tmp_path / 'old' / path).read_bytes())
    new, seen = find(tmp_path / 'new').manifest, set(trained.manifest.hash)
    assert set(trained_on(new, seen).hash) == seen
    assert len(trained_on(new, seen)) == len(trained) == 20 - len(old.in_split('test'))
    assert trained.describe()['fingerprint'] == fingerprint(trained.manifest) != ''
    assert old.describe()['fingerprint'] != trained.describe()['fingerprint']


def test_hash_is_remembered_and_renewed(tmp_path, monkeypatch):
    write(tmp_path / 'v.mp4', b'1')
    first, opened = contents(tmp_path / 'v.mp4'), []
    monkeypatch.setattr('builtins.open', lambda *a, real=open: (opened.append(a), real(*a))[1])
    assert contents(tmp_path / 'v.mp4') == first and not opened
    write(tmp_path / 'v.mp4', b'22')
    assert contents(tmp_path / 'v.mp4') != first
    assert contents(tmp_path) == (0, '') == contents(tmp_path / 'gone')


def test_report_is_short_and_says_all(tmp_path):
    "Ten lines at most, whatever is wrong."
    for label in 'abcdef':
        for k in range(3):
            write(tmp_path / 'set' / label / f'{k}.mp4', b'the same' if k else label.encode())
    write(tmp_path / 'set' / 'alone' / 'v.mp4', b'')
    for name in ('.x', 'y.txt', 'a/0.srt', 'z.mp4'):
        write(tmp_path / 'set' / name, b'')
    (tmp_path / 'set' / 'up').symlink_to(tmp_path)
    (tmp_path / 'set' / 'gone').symlink_to(tmp_path / 'gone')
    lines = find(tmp_path / 'set').report()
    text = '\n'.join(lines)
    assert len(lines) <= 10 and lines[0].startswith('set: 20 videos')
    for word in (
        'under several names',
        'several labels',
        'one video or recording',
        'without a label',
    ):
        assert word in text, text
    assert 'and 2 more' in text  # kinds of things passed over
