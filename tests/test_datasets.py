"Sources over files: official formats, in small trees and from the real files; policies, segments, leaks, memory."

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from vidrepro.core.files import InputError
from vidrepro.core.walk import BadVideos, bad_policy
from vidrepro.data.annotations import (
    read_activitynet,
    read_tsp_csv,
    write_activitynet,
    write_tsp_csv,
)
from vidrepro.data.cards import load_card
from vidrepro.data.clock import segment_span
from vidrepro.data.datasets import VideoDataset, VideoFiles, from_folder, from_list, video_table
from vidrepro.data.formats import READERS, counts, labelled, load_dataset, missing, present
from vidrepro.data.scan import leaks
from vidrepro.data.video import VideoError, read_clips

av = pytest.importorskip('av')


def write_video(path, level, frames=6, fps=10, size=(16, 24)):
    "Lossless; frame f is uniform with grey level `level` + f."
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('libx264rgb', rate=fps, options={'qp': '0'})
        (stream.height, stream.width), stream.pix_fmt = size, 'rgb24'
        for f in range(frames):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(
                        np.full((*size, 3), level + f, np.uint8), format='rgb24'
                    )
                )
            )
        out.mux(stream.encode(None))


def write(folder, **files):
    "Text files; double underscores in a name stand for a dot."
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace('__', '.')).write_text(text)
    return folder


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp('videos') / 'tree'
    for k, name in enumerate(['b/x_g1', 'b/y_g1', 'b/z_g2', 'a/deep/w_g1']):
        write_video(root / f'{name}.mkv', 40 * k, frames=6 + k)
    (root / 'b' / 'readme.txt').write_text('no')
    (root / 'b' / '.hidden.mkv').write_bytes(b'no')
    (root / 'loose.mkv').write_bytes(b'no class')
    return root


# --- folders and lists


def test_folder(tree):
    data = from_folder(tree, group_by=r'^([^/]+/.*_g\d)')
    assert data.classes == ('a', 'b') and data.labels.tolist() == [0, 1, 1, 1]
    assert data.table.path.tolist() == ['a/deep/w_g1.mkv', 'b/x_g1.mkv', 'b/y_g1.mkv', 'b/z_g2.mkv']
    assert data.lengths.tolist() == [9, 6, 7, 8] and data.lengths.dtype == torch.int64
    assert [data.group_names[g] for g in data.groups] == [
        'a/deep/w_g1',
        'b/x_g1',
        'b/y_g1',
        'b/z_g2',
    ]
    assert from_folder(tree).groups is None and len(data) == 4 and 'tree' in repr(data)
    assert from_folder(tree, classes=['b', 'c', 'a']).labels.tolist() == [2, 0, 0, 0]


def test_folder_errors(tree, tmp_path):
    for call, word in [
        (lambda: from_folder(tmp_path), 'no videos'),
        (lambda: from_folder(tmp_path / 'no'), 'exists'),
        (lambda: from_folder(tree, classes=['b']), 'got a'),
        (lambda: from_folder(tree, bad='ignore'), 'quarantine:FILE'),
    ]:
        with pytest.raises(InputError, match=word):
            call()


@pytest.mark.parametrize('sep', [' ', ',', '\t', ';'])
def test_list(tree, tmp_path, sep):
    paths, labels = ['b/x_g1.mkv', 'a/deep/w_g1.mkv', f'a b{sep}c.mkv'], '101'
    file = tmp_path / 'list.txt'

    def listed(names, **options):
        lines = [f'{path}{sep}{names[int(k)]}' for path, k in zip(paths, labels)]
        file.write_text('\n\n'.join(lines))
        return from_list(file, tree, **options)

    data = listed('01')
    assert data.table.path.tolist() == paths and data.classes == ('0', '1')
    assert data.labels.tolist() == [1, 0, 1] and missing(data) == paths[2:]
    assert present(data).lengths.tolist() == [6, 9]
    data = listed(['run', 'walk'])
    assert data.classes == ('run', 'walk') and data.labels.tolist() == [1, 0, 1]
    assert listed(['run', 'walk'], classes=['walk', 'run']).labels.tolist() == [0, 1, 0]
    assert listed('01', classes=['walk', 'run']).labels.tolist() == [1, 0, 1]
    assert listed(['-1', '001']).classes == ('001',) and data.found.paths == paths


def test_list_errors(tmp_path):
    file = tmp_path / 'list.txt'
    for text, word in [
        ('', 'no items'),
        ('a.mp4 1\n,2\n', 'line 2'),
        ('a.mp4 -2\n', '-2'),
        ('a.mp4,1,x,y,z', 'line 1'),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=word):
            from_list(file)
    file.write_text('a.mp4 3\n')
    with pytest.raises(InputError, match='got 3; choose from x, y'):
        from_list(file, classes=['x', 'y'])
    with pytest.raises(InputError, match='gone.txt'):
        from_list(tmp_path / 'gone.txt')


@pytest.mark.parametrize(
    'change, word',
    [
        (dict(label=2), '0 to 1'),
        (dict(label=-2), '-2'),
        (dict(start=1.0), 'one end'),
        (dict(end=1.0), 'one end'),
    ],
)
def test_table_errors(change, word):
    with pytest.raises(InputError, match=word):
        VideoDataset(video_table(['a'], [0]).assign(**change), ('x', 'y'), VideoFiles(Path('.')))


# --- pixels


def test_clips(tree):
    data, levels = from_folder(tree), torch.tensor([120, 0, 40, 80])
    index, frames = (
        torch.tensor([3, 0, 3]),
        torch.randint(0, 6, (3, 2, 4), generator=torch.Generator().manual_seed(0)),
    )
    clips = data.clips(index, frames)
    assert clips.shape == (3, 2, 3, 4, 16, 24) and clips.dtype == torch.uint8
    assert_close(
        clips[..., 0, 0],
        (levels[index][:, None, None] + frames)[:, :, None].expand(-1, -1, 3, -1).to(torch.uint8),
    )
    assert (clips == clips[..., :1, :1]).all()
    memory = data.cached()
    assert_close(memory.clips(index, frames), clips)
    assert_close(memory.subset(index).clips(torch.arange(3), frames), clips)
    assert_close(data.subset(index).clips(torch.arange(3), frames), clips)
    assert memory.describe() == data.describe() and memory.lengths.tolist() == data.lengths.tolist()
    for source in (data, memory):
        for wrong in (-1, 6):
            with pytest.raises(InputError, match='0 to 5'):
                source.clips(torch.tensor([1]), torch.tensor([[[wrong]]]))


def test_sizes(tree, tmp_path):
    write_video(tmp_path / 'v' / 'a' / '1.mkv', 0)
    write_video(tmp_path / 'v' / 'a' / '2.mkv', 0, size=(32, 32))
    pair, frames = torch.tensor([0, 1]), torch.zeros(2, 1, 1, dtype=torch.int64)
    with pytest.raises(InputError, match='give size='):
        from_folder(tmp_path / 'v').clips(pair, frames)
    assert from_folder(tmp_path / 'v', size=(8, 10)).clips(pair, frames).shape == (
        2,
        1,
        3,
        1,
        8,
        10,
    )
    data = from_folder(tree, size=(8, 8))
    need = data.lengths.sum().item() * 3 * 64 / 1e9
    assert len(data.cached(need).memory) == 4
    with pytest.raises(InputError, match='GB'):
        data.cached(need * 0.999)


def test_segments(tree):
    "Neighbouring segments share no frame and lose none; frames count from the segment's start."
    edges = [0.0, 0.25, 0.3, 0.6, 5.0]
    table = video_table(['b/z_g2.mkv'] * 4, [0] * 4, edges[:-1], edges[1:])
    data = VideoDataset(table, ('x',), VideoFiles(tree))
    with pytest.raises(VideoError, match='0.25-0.3 s holds no frame'):
        data.lengths
    data = VideoDataset(table, ('x',), VideoFiles(tree, bad_policy('skip')))
    assert data.lengths.tolist() == [3, 3, 2] and len(data.bad) == 1
    assert data.clips(torch.tensor([1]), torch.tensor([[[0, 2]]]))[0, 0, 0, :, 0, 0].tolist() == [
        83,
        85,
    ]
    assert data.cached().clips(torch.tensor([2]), torch.tensor([[[1]]])).unique().tolist() == [87]
    with pytest.raises(InputError, match='0 to 2'):
        data.clips(torch.tensor([1]), torch.tensor([[[3]]]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-2, 12), min_size=2, max_size=8),
    st.sampled_from([10.0, 23.976, 25.0, 30.0]),
    st.integers(1, 200),
)
def test_segments_tile(edges, fps, frames):
    edges = sorted(edges)
    spans = [segment_span(a, b, fps, frames) for a, b in zip(edges, edges[1:])]
    covered = [k for first, count in spans for k in range(first, first + count)]
    first, count = segment_span(edges[0], edges[-1], fps, frames)
    assert covered == list(range(first, first + count)) and 0 <= first <= first + count <= frames
    assert all(edges[0] - 1e-5 <= k / fps < edges[-1] + 1e-5 for k in covered)


# --- broken videos


@pytest.fixture
def damaged(tree, tmp_path):
    root = tmp_path / 'damaged'
    for name in ('a/1', 'a/2', 'b/3'):
        write_video(root / f'{name}.mkv', 0)
    (root / 'a' / 'empty.mkv').write_bytes(b'')
    (root / 'b' / 'text.mp4').write_text('hello')
    return root


def test_raise(damaged):
    data = from_folder(damaged)
    assert (
        len(data) == 5 and data.labels.tolist() == [0, 0, 0, 1, 1] and data.bad == []
    )  # says so without opening a file
    with pytest.raises(VideoError, match=r'empty\.mkv.*2 of 5'):
        data.lengths
    with pytest.raises(VideoError):
        data.clips(torch.tensor([0]), torch.zeros(1, 1, 1, dtype=torch.int64))
    assert [path for path, _ in data.bad] == ['a/empty.mkv', 'b/text.mp4']


def test_skip(damaged):
    data = from_folder(damaged, bad='skip')
    assert (
        len(data) == 3 and data.labels.tolist() == [0, 0, 1] and data.lengths.tolist() == [6, 6, 6]
    )
    card = data.describe()
    assert (
        card['bad_count'] == 2
        and [path for path, _ in card['bad']] == ['a/empty.mkv', 'b/text.mp4']
        and all(reason for _, reason in card['bad'])
    )
    assert (
        str(damaged) not in json.dumps(card)
        and data.subset(torch.tensor([2])).describe()['bad'] == card['bad']
    )


def test_nothing_left(damaged):
    for path in damaged.rglob('*.mkv'):
        path.write_bytes(b'')
    with pytest.raises(VideoError, match='5 of 5'):
        len(from_folder(damaged, bad='skip'))


def test_quarantine(damaged, tmp_path, monkeypatch):
    words, file = f'quarantine:{tmp_path}/q/list.csv', tmp_path / 'q' / 'list.csv'
    first = from_folder(damaged, bad=words)
    assert len(first) == 3 and pd.read_csv(file).path.tolist() == ['a/empty.mkv', 'b/text.mp4']
    before, opened = file.read_bytes(), []
    import vidrepro.data.datasets as module

    monkeypatch.setattr(
        module,
        'scan_video',
        lambda root, path, decode=False, real=module.scan_video: (
            opened.append(path),
            real(root, path, decode),
        )[1],
    )
    second = from_folder(damaged, bad=words)
    assert second.describe()['items_hash'] == first.describe()['items_hash'] and sorted(opened) == [
        'a/1.mkv',
        'a/2.mkv',
        'b/3.mkv',
    ]
    assert file.read_bytes() == before and second.describe()['bad'] == first.describe()['bad']
    file.write_text('file\nx\n')
    with pytest.raises(InputError, match='path,reason'):
        len(from_folder(damaged, bad=words))


def test_breaks_later(damaged, tmp_path):
    "A file that fails after the scan is never replaced: it raises under every policy, is noted, and is gone next time."
    words = f'quarantine:{tmp_path}/later.csv'
    data = from_folder(damaged, bad=words)
    zero = torch.zeros(3, 1, 1, dtype=torch.int64)
    assert data.clips(torch.arange(3), zero).shape[0] == 3
    (damaged / 'a' / '2.mkv').write_bytes(b'')
    with pytest.raises(VideoError, match=r'2\.mkv.*check_decode'):
        data.clips(torch.arange(3), zero)
    assert data.bad[-1][0] == 'a/2.mkv' and len(data) == 3
    assert from_folder(damaged, bad=words).items.path.tolist() == ['a/1.mkv', 'b/3.mkv']


def test_check_decode(damaged):
    "Damage inside a file is found by decoding only; the container looks fine."
    path = damaged / 'a' / '1.mkv'
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = bytes([p for p in container.demux(video=0) if p.size][-1])
    data[data.find(packet) + len(packet) // 2] ^= 255
    path.write_bytes(data)
    assert (
        len(from_folder(damaged, bad='skip')) == 3
        and len(from_folder(damaged, bad='skip', check_decode=True)) == 2
    )


def test_workers_do_not_matter(damaged, monkeypatch):
    cards = []
    for workers in (1, 2, 7):
        monkeypatch.setattr(os, 'cpu_count', lambda: workers)
        data = from_folder(damaged, bad='skip', check_decode=True)
        cards.append((data.lengths.tolist(), data.describe()))
    assert cards[0] == cards[1] == cards[2]


def test_scan_file(damaged, tmp_path, monkeypatch):
    def opened():
        seen = []
        monkeypatch.setattr(
            module,
            'probe',
            lambda path, **options: (seen.append(path.name), probe(path, **options))[1],
        )
        data = from_folder(damaged, bad='skip')
        data.files.scan_file = tmp_path / 'scan.csv'
        lengths = data.lengths.tolist()
        monkeypatch.setattr(module, 'probe', probe)
        return sorted(seen), lengths

    import vidrepro.data.video as module

    probe = module.probe
    first, lengths = opened()
    assert len(first) == 5 and opened() == ([], lengths)
    write_video(damaged / 'a' / '1.mkv', 0, frames=11)
    assert opened() == (['1.mkv'], [11, 6, 6])


@pytest.mark.parametrize('text', ['', 'Skip', 'raise:x', 'quarantine:', 'skip '])
def test_policy_words(text):
    with pytest.raises(InputError, match="'raise', 'skip' or 'quarantine:FILE'"):
        bad_policy(text)
    assert bad_policy('raise') == BadVideos()


# --- splits and groups


def test_leaks():
    table = video_table(
        ['1', '2', '3', '4', '4'],
        [0] * 5,
        split=['train', 'test', 'test', 'train', 'test'],
        group=['g', 'g', 'h', '', ''],
    )
    data = VideoDataset(table, ('x',), VideoFiles(Path('.')))
    assert leaks(data) == {'g': ['test', 'train'], '4': ['test', 'train']}
    train, test = data.in_split('train'), data.in_split('test')
    assert (
        set(leaks(train, test)) == {'g', '4'}
        and leaks(train) == {}
        and data.groups.tolist() == [0, 0, 1, -1, -1]
    )
    assert test.groups.tolist() == [0, 1, -1]  # a subset keeps the numbering
    with pytest.raises(InputError, match="'test', 'train'"):
        data.in_split('val')


# --- official formats, in small trees


def test_ucf101(tmp_path):
    lists = write(
        tmp_path / 'lists',
        classInd__txt='1 Archery\r\n2 HandstandPushups\r\n',
        trainlist02__txt='Archery/v_Archery_g01_c01.avi 1\r\nHandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n',
        testlist02__txt='HandstandPushups/v_HandStandPushups_g01_c02.avi\r\nArchery/v_Archery_g02_c07.avi\r\n',
    )
    data = load_dataset('ucf101', tmp_path, annotations=lists, fold=2)
    assert (
        data.name == 'ucf101, fold 2'
        and data.labels.tolist() == [0, 1, 1, 0]
        and data.card == load_card('ucf101').hash
    )
    assert (
        data.table.group.tolist()
        == ['Archery/g01', 'HandstandPushups/g08', 'HandstandPushups/g01', 'Archery/g02']
        and leaks(data) == {}
    )
    for folder in (
        'HandstandPushups/v_HandStandPushups',
        'UCF-101/HandstandPushups/v_HandStandPushups',
        'HandstandPushups/v_HandstandPushups',
    ):
        root = tmp_path / folder.replace('/', '_')
        write_video(root / f'{folder}_g08_c01.avi.mkv', 0)
        (root / f'{folder}_g08_c01.avi.mkv').rename(root / f'{folder}_g08_c01.avi')
        data = load_dataset('ucf101', root, 'train', annotations=lists, fold=2)
        assert data.table.path.tolist() == [
            'Archery/v_Archery_g01_c01.avi',
            f'{folder}_g08_c01.avi',
        ]
        assert missing(data) == ['Archery/v_Archery_g01_c01.avi'] and present(
            data
        ).lengths.tolist() == [6]
    for file, text, word in [
        ('trainlist02.txt', 'Archery/v_Archery_g01_c01.avi 2', 'agree'),
        ('trainlist02.txt', 'Archery v_Archery_g01_c01.avi 1', 'line 1'),
        ('testlist02.txt', 'Bowling/v_Bowling_g01_c01.avi', 'Bowling'),
        ('classInd.txt', '0 Archery\n1 Bowling', 'classInd'),
    ]:
        kept = (lists / file).read_text()
        (lists / file).write_text(text)
        with pytest.raises(InputError, match=word):
            load_dataset('ucf101', tmp_path, annotations=lists, fold=2)
        (lists / file).write_text(kept)
    for fold in (0, 4):
        with pytest.raises(InputError, match='1 to 3'):
            load_dataset('ucf101', tmp_path, annotations=lists, fold=fold)
    with pytest.raises(InputError, match='trainlist01.txt'):
        load_dataset('ucf101', tmp_path, annotations=lists)


def test_hmdb51(tmp_path):
    for fold, codes in ((1, '120'), (3, '012')):
        write(
            tmp_path / 'annotations',
            **{
                f'climb_test_split{fold}__txt': ''.join(
                    f'({k})!_climb_f_cm_np1_ba_med_{k}.avi {c} \n' for k, c in enumerate(codes)
                ),
                f'climb_stairs_test_split{fold}__txt': f'A & B_climb_stairs_u_nm_np2_le_bad_4.avi {codes[0]} \n',
            },
        )
    first, third = load_dataset('hmdb51', tmp_path), load_dataset('hmdb51', tmp_path, fold=3)
    assert (
        first.classes == ('climb', 'climb_stairs')
        and first.table.split.tolist() == ['train', 'test', 'train']
        and third.labels.tolist() == [0, 0]
    )
    assert (
        third.table.split.tolist() == ['train', 'test']
        and first.table.path[2] == 'climb_stairs/A & B_climb_stairs_u_nm_np2_le_bad_4.avi'
    )
    assert first.table.group.tolist() == ['climb/(0)!', 'climb/(1)!', 'climb_stairs/A & B']
    write(tmp_path / 'annotations', climb_test_split1__txt='a_climb_f_cm_np1_ba_med_0.avi 3\n')
    with pytest.raises(InputError, match='line 1'):
        load_dataset('hmdb51', tmp_path)
    with pytest.raises(InputError, match='_test_split2.txt'):
        load_dataset('hmdb51', tmp_path, fold=2)


def test_kinetics(tmp_path):
    header = 'youtube_id,time_start,time_end,split'
    folder = write(
        tmp_path / 'k',
        **{
            'kinetics-400_train__csv': f'label,{header},is_cc\nriding a bike,-a_b,3.0,13.0,train,0\nabseiling,0123,11.5,21.5,train,1\n',
            'kinetics-400_test__csv': f'{header}\nNA,1,11,test\n',
            'kinetics-600_train__csv': f'label,{header}\nzumba,q,0,10,train\n',
        },
    )
    data = load_dataset('kinetics400', tmp_path / 'v', annotations=folder)
    assert (
        data.classes == ('abseiling', 'riding a bike')
        and data.labels.tolist() == [1, 0, -1]
        and len(labelled(data)) == 2
    )
    assert data.table.path.tolist() == [
        'riding_a_bike/-a_b_000003_000013.mp4',
        'abseiling/0123_000012_000022.mp4',
        'NA_000001_000011.mp4',
    ]
    assert data.table.group.tolist() == ['-a_b', '0123', 'NA']
    for place in (
        'riding a bike/',
        'riding_a_bike/',
        'train/riding_a_bike/',
        'train/riding a bike/',
        '',
    ):
        root = tmp_path / f'root{len(place)}{place.count("_")}'
        path = root / f'{place}-a_b_000003_000013.mp4'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert (
            load_dataset('kinetics400', root, 'train', annotations=folder).table.path[0]
            == f'{place}-a_b_000003_000013.mp4'
        )
    assert load_dataset(
        'kinetics400', tmp_path, annotations=folder / 'kinetics-600_train.csv'
    ).classes == ('zumba',)
    with pytest.raises(InputError, match="'val'"):
        load_dataset('kinetics400', tmp_path, 'val', annotations=folder)
    write(folder, **{'kinetics-400_test__csv': 'youtube_id,split\nx,test\n'})
    with pytest.raises(InputError, match='time_end'):
        load_dataset('kinetics400', tmp_path, annotations=folder)


def test_kinetics_test_path(tmp_path):
    "A video without label has no class folder."
    folder = write(
        tmp_path,
        test__csv='youtube_id,time_start,time_end,split\nx,1,11,test\n',
        val__csv='label,youtube_id,time_start,time_end,split\nb c,y,1,11,val\n',
    )
    paths = load_dataset('kinetics400', tmp_path, annotations=folder).table.path.tolist()
    assert paths == ['b_c/y_000001_000011.mp4', 'x_000001_000011.mp4']


def test_diving48(tmp_path):
    folder = write(
        tmp_path / 'a',
        Diving48_vocab__json='[["Back", "15som", "05Twis", "FREE"], ["Back", "2som", "NoTwis", "PIKE"]]',
        Diving48_V2_train__json='[{"vid_name": "-m_q0PT-u8k_00155", "label": 1, "start_frame": 0, "end_frame": 48}]',
        Diving48_V2_test__json='[{"vid_name": "3qq031609lA_00002", "label": 0, "start_frame": 0, "end_frame": 9}]',
    )
    data = load_dataset('diving48', tmp_path, annotations=folder)
    assert data.classes == (
        'Back 15som 05Twis FREE',
        'Back 2som NoTwis PIKE',
    ) and data.labels.tolist() == [1, 0]
    assert (
        data.table.group.tolist() == ['-m_q0PT-u8k', '3qq031609lA']
        and data.table.path[0] == '-m_q0PT-u8k_00155.mp4'
    )
    for text, word in [
        ('[{"vid_name": "a_1"}]', 'label'),
        ('[', 'JSON'),
        ('[{"vid_name": "a_1", "label": 7}]', '0 to 1'),
    ]:
        write(folder, Diving48_V2_test__json=text)
        with pytest.raises(InputError, match=word):
            load_dataset('diving48', tmp_path, annotations=folder)


def test_activitynet(tmp_path):
    file = tmp_path / 'activity_net.v1-3.min.json'
    database = {
        '-abc': dict(
            subset='training',
            duration=9.5,
            url='u',
            annotations=[
                dict(segment=[0.5, 3], label='Run'),
                dict(segment=[2, 9.7], label='Dance'),
            ],
        ),
        'xyz': dict(subset='testing', duration=4, annotations=[]),
    }
    file.write_text(json.dumps(dict(version='VERSION 1.3', database=database, taxonomy=[])))
    data = load_dataset('activitynet', tmp_path, annotations=tmp_path)
    assert (
        data.classes == ('Dance', 'Run')
        and data.labels.tolist() == [1, 0, -1]
        and len(labelled(data)) == 2
    )
    assert (
        data.table.path.tolist() == ['v_-abc.mp4'] * 2 + ['v_xyz.mp4']
        and data.table.start.tolist()[:2] == [0.5, 2]
        and math.isnan(data.table.start[2])
    )
    for place in ('v_-abc.mkv', 'train/v_-abc.mp4'):
        root = tmp_path / place.replace('/', '_')
        (root / place).parent.mkdir(parents=True)
        (root / place).touch()
        assert (
            load_dataset('activitynet', root, 'training', annotations=file).table.path[0] == place
        )
    again = tmp_path / 'again.json'
    write_activitynet(read_activitynet(file), again)
    pd.testing.assert_frame_equal(read_activitynet(again), read_activitynet(file))
    assert {
        k: {key: v[key] for key in v if key != 'url'} for k, v in database.items()
    } == json.loads(again.read_text())['database']
    for text, word in [
        ('{}', 'database'),
        ('nonsense', 'ActivityNet'),
        ('{"database": {"a": {"subset": "t", "annotations": [{"segment": [1]}]}}}', 'ActivityNet'),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=word):
            read_activitynet(file)
    with pytest.raises(InputError, match='gone'):
        read_activitynet(tmp_path / 'gone.json')


def test_thumos14(tmp_path):
    folder = write(
        tmp_path / 'a',
        Diving_val__txt='video_validation_0000001  0.2   1.1\n',
        CliffDiving_val__txt='video_validation_0000001 0.2 1.1\n',
        Diving_test__txt='video_test_0000004 3 4.5\n',
        Ambiguous_test__txt='video_test_0001292 1.0 2.0\n',
    )
    data = load_dataset('thumos14', tmp_path, annotations=folder)
    assert data.classes == ('CliffDiving', 'Diving') and sorted(data.labels.tolist()) == [
        -1,
        0,
        1,
        1,
    ]
    assert counts(data, load_card('thumos14')).annotated.to_dict() == dict(validation=1, test=2)
    assert (
        set(labelled(data).in_split('test').table.path) == {'video_test_0000004.mp4'}
        and leaks(data) == {}
    )
    with pytest.raises(InputError, match='CLASS_val.txt'):
        load_dataset('thumos14', tmp_path, annotations=tmp_path)


def test_weizmann(tmp_path):
    folder = write(
        tmp_path,
        split_subjects__csv='file,label,subject,split\r\nrun/ira_run.mp4,run,ira,test\r\nbend/eli_bend.mp4,bend,eli,train\r\n',
    )
    for place in (folder, folder / 'split_subjects.csv'):
        data = load_dataset('weizmann', tmp_path, annotations=place)
        assert (
            data.classes == ('bend', 'run')
            and data.labels.tolist() == [1, 0]
            and data.group_names == ('eli', 'ira')
        )


def test_load_errors(tmp_path):
    with pytest.raises(InputError, match='choose from .*ucf101'):
        load_dataset('ucf', tmp_path)
    with pytest.raises(InputError, match='needs no files'):
        load_dataset('moving_digits', tmp_path)
    for name in READERS:
        with pytest.raises(InputError, match='annotation'):
            load_dataset(name, tmp_path)


GROUND_TRUTH = 'video-name,t-start,t-end,action-label,video-duration,filename,fps,video-frames,temporal-region-label\n'


def test_tsp_csv(tmp_path):
    rows = 'JDg--pjY5gg,61.420442338881465,64.56014561469672,Beer pong,126.13333333333334,v_JDg--pjY5gg.mp4,30.0,3784,Action\n--0ed,0.0,5.5,,92.0,v_--0ed.mp4,30.0,2761,No action\n'
    for text in (
        GROUND_TRUTH + rows,
        'filename,video-duration,fps,video-frames\nv_a.mp4,136.866666666667,30,4106\nv_b.mp4,67,30,2010\n',
    ):
        file = tmp_path / 'x.csv'
        file.write_text(text)
        table = read_tsp_csv(file)
        write_tsp_csv(table, tmp_path / 'y.csv')
        assert (tmp_path / 'y.csv').read_text() == text
    for text, word in [
        ('a,b\n1,2\n', 'no column filename'),
        (GROUND_TRUTH.replace('fps,', '') + 'x', 'fps'),
        (GROUND_TRUTH + rows.replace('61.420442338881465', 'soon'), 'line 2, t-start'),
        (
            GROUND_TRUTH + 'a,0,1,x,1,v.mp4,30,30,Action\na,1,3,,2,v.mp4,30,60,No action\n',
            'video, not of the segment|not of the segment',
        ),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=word):
            read_tsp_csv(file)
    with pytest.raises(InputError, match='gone'):
        read_tsp_csv(tmp_path / 'gone.csv')


# --- the real files


@pytest.mark.parametrize(
    'name, place, fold, stated, classes, items',
    [
        *[
            ('ucf101', 'ucfTrainTestlist', k + 1, dict(train=a, test=b), 101, 13320)
            for k, (a, b) in enumerate([(9537, 3783), (9586, 3734), (9624, 3696)])
        ],
        *[
            (
                'hmdb51',
                'hmdb51_testTrainMulti_7030_splits',
                k,
                dict(train=3570, test=1530),
                51,
                5100,
            )
            for k in (1, 2, 3)
        ],
        ('kinetics400', 'kinetics_csv', 1, dict(val=19906, test=38685), 400, 58591),
        ('diving48', 'diving48', 1, dict(train=15027, test=1970), 48, 16997),
        (
            'activitynet',
            'activity_net.v1-3.reconstructed_from_tsp.json',
            1,
            dict(training=10024, validation=4926, testing=5044),
            200,
            15410 + 7654 + 5044,
        ),
        ('thumos14', 'thumos14_gtad', 1, dict(validation=200, test=213), 20, 3096 + 3457),
        ('weizmann', '../weizmann', 1, dict(train=60, test=30), 10, 90),
        ('tennis7', '../tennis7', 1, dict(train=252, test=119), 7, 371),
    ],
)
def test_official(data_dir, tmp_path, name, place, fold, stated, classes, items):
    data = load_dataset(name, tmp_path, annotations=data_dir / 'annotations' / place, fold=fold)
    found = counts(data, load_card(name), fold)
    assert (
        found.annotated.to_dict() == stated
        and (found.on_disk == 0).all()
        and len(missing(data)) == data.table.path.nunique()
    )
    assert {k: found.stated[k] for k in stated} == stated
    assert (
        len(data.classes) == load_card(name).classes == classes
        and len(data) == items
        and leaks(data) == {}
    )
    assert data.labels.max() == classes - 1 and sorted(set(data.labels.tolist()) - {-1}) == [
        k for k in range(classes) if not (name == 'diving48' and k == 30)
    ]


def test_official_handstand(data_dir, tmp_path):
    data = load_dataset(
        'ucf101', tmp_path, annotations=data_dir / 'annotations' / 'ucfTrainTestlist'
    )
    rows = data.table[data.table.path.str.contains('HandStandPushups')]
    assert (
        len(rows) == 128
        and set(rows.label) == {data.classes.index('HandstandPushups')} == {36}
        and data.classes[0] == 'ApplyEyeMakeup'
    )


def test_official_thumos_text(data_dir, tmp_path):
    "The text form, written from the CSV form, gives the same items; and what the data card says of them is so."
    sheets = data_dir / 'annotations' / 'thumos14_gtad'
    for short in ('val', 'test'):
        for name, rows in pd.read_csv(sheets / f'{short}_Annotation.csv').groupby('type'):
            (tmp_path / f'{name}_{short}.txt').write_text(
                ''.join(f'{v} {s} {e}\n' for v, s, e in zip(rows.video, rows.start, rows.end))
            )
    order = ['path', 'label', 'start', 'end']
    text, csv = (
        load_dataset('thumos14', '.', annotations=place).table.sort_values(order, ignore_index=True)
        for place in (tmp_path, sheets)
    )
    pd.testing.assert_frame_equal(text, csv)
    data = labelled(load_dataset('thumos14', '.', annotations=sheets))
    assert [len(data.in_split(split)) for split in ('validation', 'test')] == [3007, 3358]
    cliff, diving = (
        set(
            map(
                tuple,
                data.table[data.table.label == data.classes.index(c)][
                    ['path', 'start', 'end']
                ].values,
            )
        )
        for c in ('CliffDiving', 'Diving')
    )
    assert cliff <= diving and len(cliff) == 143 + 217
    everything = load_dataset('thumos14', '.', annotations=sheets)
    paths = set(everything.in_split('test').table.path)
    assert len({p for p in paths if p[:-4] not in load_card('thumos14').known_bad}) == 211
    only = set(csv.path) - set(data.table.path)
    assert only == {'video_test_0001292.mp4'} and {path[:-4] for path in only} <= set(
        load_card('thumos14').known_bad
    )


def test_official_tsp(data_dir, tmp_path):
    "Every released CSV is read and written again, byte for byte."
    files = sorted((data_dir / 'annotations' / 'tsp_HumamAlwassel').rglob('*.csv'))
    assert len(files) == 9
    rows = {}
    for file in files:
        table = read_tsp_csv(file)
        write_tsp_csv(table, tmp_path / file.name)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
        rows[file.stem] = len(table)
    assert [rows[f'activitynet_v1-3_{s}_metadata'] for s in ('train', 'valid', 'test')] == [
        10024,
        4926,
        5044,
    ]
    assert [rows[f'thumos14_{s}_metadata'] for s in ('valid', 'test')] == [200, 213]
    assert (
        rows['activitynet_v1-3_train_tsp_groundtruth'] == 15410 + 15956
        and rows['thumos14_test_tsp_groundtruth'] == 3358 + 2573
    )


def test_official_activitynet_json(data_dir, tmp_path):
    file = data_dir / 'annotations' / 'activity_net.v1-3.reconstructed_from_tsp.json'
    table = read_activitynet(file)
    write_activitynet(table, tmp_path / 'a.json')
    pd.testing.assert_frame_equal(read_activitynet(tmp_path / 'a.json'), table)
    names = json.loads(
        (
            data_dir
            / 'annotations'
            / 'tsp_HumamAlwassel'
            / 'activitynet'
            / 'activitynet_v1-3_action_label_mapping.json'
        ).read_text()
    )
    assert (
        list(load_dataset('activitynet', '.', annotations=file).classes) == names
    )  # our class numbers are TSP's
    thumos = read_activitynet(
        data_dir / 'annotations' / 'thumos14_gtad_eval' / 'thumos_gt.json'
    )  # numbers as text, no durations
    assert (
        thumos.start.dtype.kind == 'f'
        and thumos.duration.isna().all()
        and thumos[thumos.subset == 'test'].video.nunique() == 210
    )


def test_real_videos(data_dir):
    weizmann = load_dataset(
        'weizmann', data_dir / 'weizmann', annotations=data_dir / 'weizmann', size=(32, 40)
    )
    assert missing(weizmann) == [] and weizmann.manifest.hash.nunique() == 90
    assert (weizmann.lengths.min(), weizmann.lengths.max()) == (36, 146) and weizmann.describe()[
        'groups'
    ] == 9
    few = weizmann.subset(torch.tensor([5, 80]))
    frames = torch.tensor([[[0, 7, 35]], [[35, 2, 2]]])
    clips = few.clips(torch.tensor([1, 0]), frames)
    assert_close(
        clips[0], read_clips(data_dir / 'weizmann' / few.table.path[1], frames[0], (32, 40))
    )
    assert_close(few.cached().clips(torch.tensor([1, 0]), frames), clips)


def test_real_ucf101_files(data_dir):
    root, lists = data_dir / 'ucf101_mini', data_dir / 'annotations' / 'ucfTrainTestlist'
    there = present(load_dataset('ucf101', root, 'test', annotations=lists, size=(24, 32)))
    folder = from_folder(root, size=(24, 32), group_by=r'(.*_g\d\d)_')
    assert len(there) == len(folder) == 16 and sorted(there.table.path) == sorted(folder.table.path)
    assert {there.classes[k] for k in there.labels.tolist()} == set(folder.classes)
    same = dict(zip(there.table.path, there.table.group))
    pairs = {(same[path], group) for path, group in zip(folder.table.path, folder.table.group)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert dict(zip(there.table.path, there.lengths.tolist())) == dict(
        zip(folder.table.path, folder.lengths.tolist())
    )


def test_real_broken_files(data_dir):
    "A folder of odd files: what cannot be read is named with its reason, the rest can be read."
    data = from_folder(data_dir / 'odd' / 'real', bad='skip', check_decode=True, size=(16, 16))
    readable, bad = set(data.items.path), dict(data.bad)
    assert 'decord/corrupted.mp4' in bad
    assert (
        readable
        and bad
        and not readable & set(bad)
        and readable | set(bad) == set(data.table.path)
        and all(bad.values())
    )
    for i in range(0, len(data), 4):
        clip = data.clips(torch.tensor([i]), torch.tensor([[[0, int(data.lengths[i]) - 1]]]))
        assert clip.shape == (1, 1, 3, 2, 16, 16)
