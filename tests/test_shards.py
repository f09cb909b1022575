"Shards: what goes in comes out, once, in an order that seed and epoch decide."

import json
import pickle
import re
import tarfile
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vidrepro.clips.contract import Clip
from vidrepro.core.files import InputError, content_hash, located
from vidrepro.core.random import generator
from vidrepro.data.datasets import from_folder, video_table
from vidrepro.data.shards import (
    SHARDS,
    Sample,
    ShardClips,
    Shards,
    as_file,
    decode,
    mixed,
    open_shards,
    pack,
    plan_shards,
    read_shard,
    share,
    unpack,
)
from vidrepro.data.video import VideoError, probe, read_clips
from vidrepro.digits.moving_digits import MovingDigits, write_videos


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp('videos')
    write_videos(MovingDigits(23, size=32, length=8, motions=('left', 'cw', 'grow')), root)
    (root / 'cw' / 'with.dots.in it.mp4').write_bytes(
        (root / 'cw' / 'cw_00001.mp4').read_bytes()
        if (root / 'cw/cw_00001.mp4').exists()
        else next(root.glob('cw/*.mp4')).read_bytes()
    )
    return from_folder(root)


@pytest.fixture(scope='module')
def folder(source, tmp_path_factory):
    out = tmp_path_factory.mktemp('shards')
    pack(source, out, 'digits', max_count=7)
    return out


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 9), max_size=8), st.integers(1, 12))
def test_share(counts, consumers):
    parts = [
        [(s, i) for s, a, b in share(counts, c, consumers) for i in range(a, b)]
        for c in range(consumers)
    ]
    assert sum(parts, []) == [(s, i) for s, n in enumerate(counts) for i in range(n)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 60), st.integers(1, 70), st.integers())
def test_mixed(count, buffer, seed):
    order = list(mixed(range(count), buffer, generator(seed)))
    assert sorted(order) == list(range(count)) and all(
        n - place < buffer for place, n in enumerate(order)
    )
    assert buffer > 1 or order == list(range(count))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 20))
def test_plan(sizes, count, most):
    sizes = {str(k): size for k, size in enumerate(sizes)}
    plan = plan_shards(sizes, count, most)
    assert sum(plan, []) == list(sizes) and all(plan)
    assert all(len(s) <= count and (len(s) == 1 or sum(sizes[p] for p in s) <= most) for s in plan)


def members_as_webdataset_reads_them(folder):
    "Names cut at the first dot of their last part; neighbours of one key are one sample."
    samples, last = defaultdict(dict), None
    for file in sorted(folder.glob('*.tar')):
        with tarfile.open(file) as tar:
            for header in tar:
                key, ending = re.fullmatch(r'((?:.*/|)[^.]+)[.]([^/]*)', header.name).groups()
                assert key not in samples or key == last, 'members of a sample are neighbours'
                assert ending not in samples[key]
                samples[key][ending], last = tar.extractfile(header).read(), key
                assert (header.mtime, header.uid, header.gid, header.mode) == (0, 0, 0, 0o644)
    return samples


def test_layout(source, folder):
    samples = members_as_webdataset_reads_them(folder)
    assert len(samples) == 24 == len(source.table) and [
        p.name for p in sorted(folder.iterdir())
    ] == [f'digits-{k:06d}.tar' for k in range(4)] + ['index.json']
    for members in samples.values():
        facts = json.loads(members['json'])
        assert (
            set(members) == {'mp4', 'cls', 'json'}
            and members['mp4'] == (source.files.root / facts['path']).read_bytes()
        )
        assert (
            source.classes[int(members['cls'])]
            == facts['path'].split('/')[0]
            == facts['items'][0]['class']
        )


def test_same_bytes_again(source, folder, tmp_path):
    pack(source.subset(torch.arange(23, -1, -1)), tmp_path / 'a', 'digits', max_count=7)
    assert all(p.read_bytes() == (tmp_path / 'a' / p.name).read_bytes() for p in folder.iterdir())
    pack(source, tmp_path / 'b', 'digits', max_count=7, seed=1)
    assert (tmp_path / 'b/digits-000000.tar').read_bytes() != (
        folder / 'digits-000000.tar'
    ).read_bytes()


def test_round_trip(source, folder, tmp_path):
    assert unpack(folder, tmp_path) == sorted(source.table.path)
    assert all(
        (tmp_path / p).read_bytes() == (source.files.root / p).read_bytes()
        for p in source.table.path
    )


def test_real_round_trip(data_dir, tmp_path):
    "Real AVI files: bytes come back, and frames decoded in memory are those of the file."
    source = from_folder(data_dir / 'ucf101_mini')
    pack(source, tmp_path / 'shards', max_mb=1.5)
    assert unpack(tmp_path / 'shards', tmp_path / 'back') == sorted(source.table.path)
    for k, sample in enumerate(Shards(tmp_path / 'shards', buffer=3)):
        assert (
            sample.data
            == (data_dir / 'ucf101_mini' / sample.facts['path']).read_bytes()
            == (tmp_path / 'back' / sample.facts['path']).read_bytes()
        )
        if k < 2:
            with as_file(sample.data) as path:
                clips = read_clips(path, [[0, 30, 7]])
            assert clips.equal(
                read_clips(data_dir / 'ucf101_mini' / sample.facts['path'], [[0, 30, 7]])
            )


def name(batch):
    return [sample.key for sample in batch]


@pytest.mark.parametrize('max_count', [1, 7, 100])
def test_two_ranks_with_two_workers(source, tmp_path, max_count):
    "Every sample once an epoch, in equal shares, also with fewer shards than consumers."
    pack(source, tmp_path, max_count=max_count)
    for epoch in range(2):
        seen = []
        for rank in range(2):
            shards = Shards(tmp_path, 5, epoch, buffer=4, rank=rank, ranks=2)
            mine = [
                key
                for batch in DataLoader(shards, 5, num_workers=2, collate_fn=name)
                for key in batch
            ]
            assert len(mine) == 12
            if max_count == 7:
                assert mine == [
                    key
                    for batch in DataLoader(shards, 5, num_workers=2, collate_fn=name)
                    for key in batch
                ]
            seen += mine
        assert sorted(seen) == sorted(
            p.rpartition('.')[0].replace('with.dots.in it', 'with_dots_in it')
            for p in source.table.path
        )


def test_order(folder):
    keys = lambda **options: [s.key for s in Shards(folder, **options)]
    assert keys() == keys() == keys(rank=0, ranks=1)
    assert (
        len(
            {
                tuple(keys(seed=s, epoch=e, buffer=b))
                for s, e, b in [(0, 0, 9), (1, 0, 9), (0, 1, 9), (0, 0, 8)]
            }
        )
        == 4
    )
    plain = keys(shuffle=False)
    assert (
        plain
        == keys(shuffle=False, epoch=3)
        == [k for file in sorted(folder.glob('*.tar')) for k, _ in read_shard(file)]
    )


def test_clips(source, folder):
    "In a loader, with labels; the clips of a video do not depend on who reads it."
    alone = {clip.numpy().tobytes() for clip, _ in ShardClips(Shards(folder, 1), 4, 1, 2, (16, 16))}
    loader = DataLoader(
        ShardClips(Shards(folder, 1, buffer=2), 4, 1, 2, (16, 16)), 6, num_workers=2
    )
    batches = list(loader)
    assert {c.numpy().tobytes() for clips, _ in batches for c in clips} == alone and batches[0][
        0
    ].shape == (6, 2, 3, 4, 16, 16)
    assert (
        torch.cat([labels for _, labels in batches]).bincount().tolist()
        == source.labels.bincount().tolist()
    )


def test_two_videos_of_one_size(source):
    "Path and size of two videos in memory are equal; their frames must not be."
    a, b = ((source.files.root / p).read_bytes() for p in source.table.path[[0, 20]])
    size = max(len(a), len(b))
    padded = [
        data + (size - len(data)).to_bytes(4, 'big') + b'free' + bytes(size - len(data))
        for data in (a, b)
    ]
    padded = [data.ljust(2 * size + 16, b'\0') for data in padded]
    found, paths = [], set()
    for data in padded:
        with as_file(data) as path:
            paths.add(path)
            assert probe(path).frames == 8
            found.append(read_clips(path, [[0]]))
    assert len(paths) == 1 and len(set(map(len, padded))) == 1 and not found[0].equal(found[1])


def test_segments_and_labels(source, tmp_path):
    "A video with two items of two labels has no `.cls`, and both items in its json."
    path = source.table.path[0]
    source = from_folder(source.files.root)
    source.table = video_table([path, path], [0, 1], [0.0, 1.0], [1.0, 2.0], 'train')
    pack(source, tmp_path)
    (sample,) = Shards(tmp_path)
    assert sample.label == -1 and [
        (i['start'], i['end'], i['label']) for i in sample.facts['items']
    ] == [(0.0, 1.0, 0), (1.0, 2.0, 1)]


def test_broken_shards(source, folder, tmp_path):
    file = tmp_path / 'digits-000000.tar'
    file.write_bytes((folder / file.name).read_bytes()[:-30_000])
    (tmp_path / 'index.json').write_bytes((folder / 'index.json').read_bytes())
    with pytest.raises(InputError, match='again'):
        list(Shards(tmp_path))
    with pytest.raises(InputError, match='index.json'):
        list(Shards(tmp_path / 'none'))
    (tmp_path / 'index.json').write_text('{}')
    with pytest.raises(InputError, match='pack again'):
        list(Shards(tmp_path))
    with pytest.raises(InputError, match='rank'):
        Shards(folder, rank=2, ranks=2)
    with pytest.raises(InputError, match='buffer'):
        Shards(folder, buffer=0)
    with pytest.raises(VideoError, match='a/b.mp4'):
        decode(Sample('a/b', 0, b'no video', {'path': 'a/b.mp4'}), 4, 1, 1, generator(0))


def test_refusals(source, folder, tmp_path):
    with pytest.raises(InputError, match='finished shards'):
        pack(source, folder)
    root = source.files.root
    (root / 'left/x.y.mp4').write_bytes(b'1'), (root / 'left/x_y.mp4').write_bytes(b'2')
    try:
        with pytest.raises(InputError, match='one key'):
            pack(from_folder(root), tmp_path / 'a')
    finally:
        (root / 'left/x.y.mp4').unlink(), (root / 'left/x_y.mp4').unlink()
    assert not (tmp_path / 'a/index.json').exists()
    evil = {'json': json.dumps(dict(path='../out.mp4', items=[])).encode(), 'mp4': b'x'}
    from vidrepro.data.shards import FORMAT, write_shard

    write_shard(tmp_path / 'e/v.tar', [('k', evil)])
    (tmp_path / 'e/index.json').write_text(
        json.dumps(dict(format=FORMAT, classes=[], shards=[dict(file='v.tar', samples=1)]))
    )
    with pytest.raises(InputError, match='do not trust'):
        unpack(tmp_path / 'e', tmp_path / 'e2')
    assert not (tmp_path / 'out.mp4').exists()


def test_missing_video_leaves_nothing(source, tmp_path):
    broken = from_folder(source.files.root)
    broken.table = video_table([*broken.table.path[:2], 'cw/gone.mp4'], [0, 0, 0])
    with pytest.raises(InputError, match='no such file'):
        pack(broken, tmp_path / 'a')
    assert not (tmp_path / 'a').exists()


# ---- a source with random access -----------------------------------------------------------------


def whole(source, index, count=6):
    "The first frames of some items."
    return source.clips(index, torch.arange(count).expand(len(index), 1, count))


@pytest.mark.parametrize('how', [{}, dict(size=(16, 20)), dict(clip=Clip(6, 1, 24))])
def test_source_equals_the_files(source, folder, how):
    packed, files = open_shards(folder, **how), replace(source, **how)
    assert (folder / SHARDS).is_file() and packed.table.equals(files.table)
    assert packed.classes == files.classes and len(packed) == len(files) == 24
    assert packed.labels.equal(files.labels) and packed.lengths.equal(files.lengths)
    index = torch.tensor([23, 0, 7, 0])
    assert whole(packed, index).equal(whole(files, index))
    assert whole(packed.subset(index), torch.arange(4)).equal(whole(files, index))
    assert whole(packed.cached(), index).equal(whole(files, index))
    own = dict(name='')
    assert packed.describe() | own == files.describe() | own and packed.describe()['fingerprint']
    assert packed.manifest.equals(files.manifest)
    assert packed.gigabytes == files.gigabytes and packed.bad == []
    assert whole(pickle.loads(pickle.dumps(packed)), index).equal(whole(files, index))
    for path in packed.table.path:
        assert content_hash(packed.files.at(path)) == content_hash(files.files.at(path))


def test_real_source(data_dir, tmp_path):
    "Real AVI files, whose frames are numbered by decoding, read in the middle of a shard."
    files = from_folder(data_dir / 'ucf101_mini', size=(60, 80))
    files = files.subset(torch.arange(0, len(files), len(files) // 3))
    pack(files, tmp_path, max_count=2)
    packed = open_shards(tmp_path, size=(60, 80))
    order = torch.tensor([files.table.path.tolist().index(p) for p in packed.table.path])
    frames = torch.tensor([[0, 30, 7]]).expand(len(order), 1, 3)
    assert packed.lengths.equal(files.lengths[order])
    assert packed.clips(torch.arange(len(order)), frames).equal(files.clips(order, frames))


def test_splits_groups_and_segments_are_kept(source, tmp_path):
    table = source.table.iloc[:4].reset_index(drop=True)
    rows = table.assign(split=['train', 'test', 'train', ''], group=['p', 'q', 'q', ''])
    rows = rows.loc[[0, 0, 1, 2, 3]].reset_index(drop=True)
    rows.loc[[0, 1], ['start', 'end']] = [[0.0, 0.1], [0.1, 0.25]]
    files = replace(source, table=rows)
    pack(files, tmp_path)
    packed = open_shards(tmp_path)
    assert packed.table.equals(rows) and packed.group_names == ('p', 'q')
    assert packed.lengths.equal(files.lengths) and packed.groups.equal(files.groups)
    assert len(packed.in_split('train')) == 3 and packed.describe()['segments'] == 2
    one = torch.tensor([1])
    assert whole(packed, one, 2).equal(whole(files, one, 2))


def test_bad_members_and_shards(source, tmp_path):
    "A spoilt video is a bad video under every policy; a shard of which something is missing is refused."
    pack(source, tmp_path, 'digits', max_count=7)
    packed = open_shards(tmp_path)
    path = packed.table.path[3]
    file, first, size = located(packed.files.at(path))
    with open(file, 'r+b') as data:
        data.seek(first)
        data.write(bytes(size))
    with pytest.raises(VideoError, match='1 of 24 items are broken'):
        open_shards(tmp_path).lengths.sum()
    skipped = open_shards(tmp_path, bad='skip')
    assert len(skipped) == 23 and [p for p, _ in skipped.bad] == [path]
    listed = open_shards(tmp_path, bad=f'quarantine:{tmp_path / "bad.csv"}')
    assert len(listed) == 23 and path in (tmp_path / 'bad.csv').read_text()
    shard = tmp_path / 'digits-000001.tar'
    data = shard.read_bytes()
    for spoilt in (data[:-20_000], b'', b'no tar' * 999):
        shard.write_bytes(spoilt)
        with pytest.raises(InputError, match='again'):
            open_shards(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match='again'):
        open_shards(tmp_path, bad='skip')
    shard.write_bytes(data)
    assert len(open_shards(tmp_path, bad='skip')) == 23
