"Whole folders for five programs, read back by code written from what each program documents of its interface."

import json
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from typer.testing import CliRunner

from vidrepro.cli.features import app
from vidrepro.core.files import InputError
from vidrepro.core.settings import to_json
from vidrepro.data.annotations import write_activitynet
from vidrepro.features.exports import (
    PROGRAMS,
    axis_options,
    check_export,
    export_for,
    room_for,
    rows_of,
    windows,
)
from vidrepro.features.settings import Features, Settings, load, released_clip
from vidrepro.localize.thumos14 import lengths

ROWS = dict(v_a=40, b=250, v_c=3000, v_idle=9)
FRAME = 1 / 30  # of the stored videos, seconds
ACTS = [
    ('a', 'training', 43.1, 3.2, 9.6, 'run'),
    ('a', 'training', 43.1, 20.0, 31.0, 'sit'),
    ('b', 'validation', 267.4, 100.0, 131.0, 'run'),
    ('c', 'training', 3201.0, 1700.5, 1712.0, 'jump'),
    ('gone', 'validation', 9.0, 1.0, 3.0, 'run'),
    ('idle', 'training', 9.9, np.nan, np.nan, ''),
]


def made(folder, hop=16, frames=16, rate=15.0, fps=30.0):
    "Features as `extract` leaves them."
    settings = Settings(released_clip(frames, rate=rate), hop)
    about = {k: v for k, v in to_json(settings).items() if k != 'on_short'}
    rng = np.random.default_rng(0)
    for name, n in ROWS.items():
        clock = rate or fps
        seconds = ((n - 1) * hop + frames) / clock + 0.3
        video = dict(path=f'{name}.mp4', frames=round(seconds * fps), seconds=seconds, fps=fps)
        features = rng.normal(size=(n, 8)).astype(np.float32)
        axis = settings.axis(fps)
        Features(features, axis, video, about | dict(encoder='e', weights='w')).save(
            folder / f'{name}.npy'
        )
    return folder


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('exports')
    made(home / 'ends')  # clips that lie end to end
    made(home / 'overlap', hop=4)
    made(home / 'odd', hop=5, frames=15)
    made(home / 'stored', rate=0.0, fps=25.0)
    table = pd.DataFrame(ACTS, columns='video subset duration start end label'.split())
    write_activitynet(table, home / 'truth.json')
    return home


def truth_of(folder, name):
    "Features and middles of rows, from the folder that was exported."
    file = folder / f'v_{name}.npy'
    found = load(file if file.exists() else folder / f'{name}.npy')
    return found.array, found.times[:, 2]


def seen(kind):
    "Videos with an action within their features: those of close rows end before that of c."
    return {'a', 'b'} | ({'c'} if kind in ('ends', 'stored') else set())


# ---- ActionFormer: libs/datasets/anet.py and a YAML configuration ---------------------------------


def actionformer(out, split):
    "Features, actions on the grid, labels and the way back to seconds, of each video of a split."
    cfg = yaml.safe_load((out / 'actionformer.yaml').read_text())
    d = cfg['dataset']
    database = json.load(open(d['json_file']))['database']
    labels = {a['label']: a['label_id'] for v in database.values() for a in v['annotations']}
    assert len(labels) == d['num_classes'] and sorted(labels.values()) == [*range(len(labels))]
    most, size = d['max_seq_len'], cfg['model']['n_mha_win_size']
    for level, w in enumerate(size):  # lengths that its pyramid takes
        assert most % (2**level * (w // 2 * 2 if w > 1 else 1)) == 0
    found = {}
    for key, value in database.items():
        if value['subset'].lower() not in cfg[f'{split}_split']:
            continue
        fps = d['default_fps'] if d['default_fps'] is not None else value['fps']
        feats = np.load(f'{d["feat_folder"]}/{d["file_prefix"]}{key}{d["file_ext"]}')
        assert feats.shape[1] == d['input_dim']
        assert len(feats) <= most * cfg['model']['max_buffer_len_factor']  # of its points
        stride, frames = d['feat_stride'], d['num_frames']
        if stride <= 0:
            assert len(feats) <= most
            length = most if d['force_upsampling'] else len(feats)
            stride = value['duration'] * fps / length
            frames = stride * d['num_frames']
            feats = F.interpolate(torch.from_numpy(feats.T)[None], length, mode='linear')[0].T
        spans = np.array([a['segment'] for a in value['annotations']])
        grid = (spans * fps - 0.5 * frames) / stride
        if split == 'train':
            assert (grid[:, 0] < len(feats)).any()  # else its loader stacks nothing
        back = lambda g, s=stride, n=frames, f=fps: (np.asarray(g) * s + 0.5 * n) / f
        found[key] = np.asarray(feats), grid, [a['label'] for a in value['annotations']], back
    return found


@pytest.mark.parametrize('kind', ['ends', 'overlap', 'odd', 'stored'])
def test_actionformer(home, tmp_path, kind):
    out = tmp_path / 'x'
    export_for(home / kind, home / 'truth.json', out, 'actionformer')
    train, val = (actionformer(out, s) for s in ('train', 'val'))
    assert set(train) == seen(kind) - {'b'} and set(val) == {'b'}  # features and an action each
    for name, (feats, grid, labels, back) in (train | val).items():
        array, middle = truth_of(home / kind, name)
        np.testing.assert_array_equal(feats, array)
        assert np.abs(back(np.arange(len(feats))) - middle).max() < FRAME / 2
        spans = [a[3:5] for a in ACTS if a[0] == name]
        np.testing.assert_allclose(back(grid), spans, atol=1e-9)
        assert labels == [a[5] for a in ACTS if a[0] == name]


def test_actionformer_of_one_length(home, tmp_path):
    "force_upsampling: 192 rows, a share of the time that the rows cover."
    out = tmp_path / 'x'
    export_for(home / 'ends', home / 'truth.json', out, 'actionformer', length=192)
    for name, (feats, grid, _, back) in actionformer(out, 'train').items():
        file = home / 'ends' / f'v_{name}.npy'
        expected = load(file).resample(192)
        np.testing.assert_allclose(feats, expected.array, atol=1e-6)
        assert np.abs(back(np.arange(192)) - expected.times[:, 2]).max() < 1e-6
        np.testing.assert_allclose(back(grid), [a[3:5] for a in ACTS if a[0] == name], atol=1e-4)
    with pytest.raises(InputError, match='--hop 16'):
        export_for(home / 'overlap', home / 'truth.json', tmp_path / 'y', 'actionformer', 192)


# ---- OpenTAD: AnetPaddingDataset, AnetSlidingDataset and LoadFeats --------------------------------


def opentad(out):
    "The names of a Python configuration, with the data sets that they describe."
    names = {}
    exec((out / 'opentad.py').read_text(), names)  # as mmengine does
    common, load_ = names['common'], names['load']
    classes = [line.rstrip('\n') for line in open(common['class_map'], encoding='utf8')]
    blocked = [line.rstrip('\n') for line in open(common['block_list'])]
    stride = int(common['feature_stride'] * common['sample_stride'])
    offset = int(common['offset_frames'])
    assert (stride, offset) == (common['feature_stride'], common['offset_frames'])
    found = {}
    for name, info in json.load(open(common['ann_file']))['database'].items():
        if name in blocked:
            continue
        fps = common['fps'] if common['fps'] > 0 else info['frame'] / float(info['duration'])
        spans = np.array([a['segment'] for a in info['annotations']]).reshape(-1, 2)
        numbers = [classes.index(a['label']) for a in info['annotations']]
        feats = np.load(f'{common["data_path"]}/{load_["prefix"]}{name}.npy')
        back = lambda g, f=fps: (np.asarray(g) * stride + offset) / f
        found[name] = feats, (spans * fps - offset) / stride, numbers, back
    return names, found


@pytest.mark.parametrize('kind', ['ends', 'overlap', 'odd', 'stored'])
def test_opentad(home, tmp_path, kind):
    out = tmp_path / 'x'
    export_for(home / kind, home / 'truth.json', out, 'opentad')
    names, found = opentad(out)
    assert set(found) == seen(kind)
    assert (names['common']['type'], names['window_size']) == ('AnetSlidingDataset', 2304)
    for name, (feats, grid, numbers, back) in found.items():
        array, middle = truth_of(home / kind, name)
        np.testing.assert_array_equal(feats, array)
        assert np.abs(back(np.arange(len(feats))) - middle).max() < FRAME / 2
        np.testing.assert_allclose(back(grid), [a[3:5] for a in ACTS if a[0] == name], atol=1e-9)
        classes = (out / 'category_idx.txt').read_text().splitlines()
        assert [classes[k] for k in numbers] == [a[5] for a in ACTS if a[0] == name]


def test_windows_are_those_of_opentad(home, tmp_path):
    "Every three quarters of a window, the last one moved back to the end; seconds of their rows."
    export_for(home / 'ends', home / 'truth.json', tmp_path / 'x', 'opentad')
    table = pd.read_csv(tmp_path / 'x' / 'windows.csv')
    long = table[table.video == 'c']
    assert long['first'].tolist() == [0, 3000 - 2304] and (long.rows == 2304).all()
    np.testing.assert_allclose(long.end - long.start, 2304 * 16 / 15, rtol=1e-9)
    assert table[table.video == 'b'].rows.tolist() == [250]


# ---- BMN and G-TAD: tables and JSON of a share of each video --------------------------------------


def grid_program(out, to, subset):
    "Features on the grid, actions as shares, and both ways back to seconds, of a subset."
    options = dict(
        line[2:].split(' ', 1) for line in (out / 'options.txt').read_text().splitlines()
    )
    info = pd.read_csv(options['video_info'])
    anno = json.load(open(options['video_anno']))
    scale, found = int(options['temporal_scale']), {}
    for row in info.itertuples():
        if subset not in row.subset:
            continue
        about = anno[row.video]
        if to == 'bmn':
            frame = pd.read_csv(f'{options["feature_path"]}csv_mean_{scale}/{row.video}.csv')
            feats = frame.values[:, :]
        else:
            with h5py.File(options['feature_path']) as file:
                feats = torch.Tensor(file[row.video][:]).T[None]
            feats = F.interpolate(feats, size=scale, mode='linear', align_corners=False)[
                0
            ].T.numpy()
        assert feats.shape == (scale, int(options['feat_dim']))
        frames, seconds = about['duration_frame'], about['duration_second']
        corrected = about['feature_frame'] / frames * seconds
        shares = np.array([a['segment'] for a in about['annotations']]) / corrected
        assert len(shares)  # an empty list stops the training of both
        answered = dict(bmn=float(frames // 16 * 16) / frames * seconds, gtad=seconds)[to]
        found[row.video[2:]] = feats, shares, answered
    return found


@pytest.mark.parametrize('to', ['bmn', 'gtad'])
def test_bmn_and_gtad(home, tmp_path, to):
    out = tmp_path / 'x'
    export_for(home / 'ends', home / 'truth.json', out, to, prefix='')
    train, val = (grid_program(out, to, s) for s in ('train', 'validation'))
    assert set(train) == {'a', 'c'} and set(val) == {'b'}
    for name, (feats, shares, answered) in (train | val).items():
        file = home / 'ends' / f'v_{name}.npy'
        expected = load(file if file.exists() else home / 'ends' / f'{name}.npy').resample(100)
        np.testing.assert_allclose(feats, expected.array, atol=1e-5)
        middle = (np.arange(100) + 0.5) / 100 * answered
        assert np.abs(middle - expected.times[:, 2]).max() < FRAME / 2
        np.testing.assert_allclose(shares * answered, [a[3:5] for a in ACTS if a[0] == name])
    with pytest.raises(InputError, match='--hop 16'):
        export_for(home / 'overlap', home / 'truth.json', tmp_path / 'y', to)
    assert not (tmp_path / 'y').exists()


# ---- video_features: STEM_KEY.npy -----------------------------------------------------------------


def test_video_features(home, tmp_path):
    export_for(home / 'odd', home / 'truth.json', tmp_path / 'x', 'video_features')
    for name in seen('odd'):
        read = {
            key: np.load(tmp_path / 'x' / 'features' / f'v_{name}_{key}.npy')
            for key in ('tsp', 'fps', 'timestamps_ms')
        }
        array, middle = truth_of(home / 'odd', name)
        np.testing.assert_array_equal(read['tsp'], array)
        np.testing.assert_allclose(read['timestamps_ms'] / 1000, middle, atol=1e-5)
        assert float(read['fps']) == 15.0


# ---- what is refused ------------------------------------------------------------------------------


def test_broken_exports_are_refused(home, tmp_path):
    def broken(change, words, to='actionformer'):
        out = tmp_path / f'{to}{len(list(tmp_path.iterdir()))}'
        export_for(home / 'ends', home / 'truth.json', out, to)
        assert check_export(out) == 3
        change(out)
        with pytest.raises(InputError, match=words):
            check_export(out)

    def edit(name, change):
        def do(out):
            content = json.loads((out / name).read_text())
            change(content)
            (out / name).write_text(json.dumps(content))

        return do

    file = lambda out: out / 'features' / 'v_b.npy'
    broken(lambda out: file(out).unlink(), 'v_b')
    broken(lambda out: np.save(file(out), np.load(file(out))[1:]), '249 x 8')
    broken(lambda out: np.save(file(out), np.load(file(out)) * np.nan), 'video b')
    broken(lambda out: file(out).write_bytes(file(out).read_bytes()[:99]), 'v_b')
    broken(lambda out: (out / 'category_idx.txt').write_text('run\njump\nsit\n'), "'run' is number")
    for name, value in (('feat_stride', 15), ('num_frames', 0), ('default_fps', 25.0)):
        broken(edit('interface.json', lambda c: c['options'].update({name: value})), 'beside')
    broken(
        edit('interface.json', lambda c: c['options'].update(offset_frames=0)), 'beside', 'opentad'
    )
    longer = lambda c: c['database']['b'].update(duration=300.0)
    broken(edit('annotations.json', longer), 'beside', 'bmn')


def test_nothing_half_written(home, tmp_path):
    other = pd.DataFrame(ACTS[:1], columns='video subset duration start end label'.split())
    write_activitynet(other.assign(video='stranger'), tmp_path / 'other.json')
    with pytest.raises(InputError, match='none of them usable: no features'):
        export_for(home / 'ends', tmp_path / 'other.json', tmp_path / 'x', 'actionformer')
    with pytest.raises(InputError, match='use one of'):
        export_for(home / 'ends', home / 'truth.json', tmp_path / 'x', 'h5')
    assert [p.name for p in tmp_path.iterdir()] == ['other.json']


@pytest.mark.parametrize('to', PROGRAMS)
def test_command(home, tmp_path, to):
    words = 'export', home / 'ends', tmp_path / to, '--to', to, '--annotations', home / 'truth.json'
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == 0 and '4 videos, 2 annotated ones left out' in result.stdout
    assert (tmp_path / to / 'missing_files.txt').read_text().split() == ['gone', 'idle']
    assert 'vidrepro localize evaluate' in (tmp_path / to / 'README.md').read_text()
    assert CliRunner().invoke(app, [str(w) for w in words]).exit_code == 2


def test_room():
    for rows in (1, 191, 192, 193, 2304, 2305, 9999):
        length, factor = room_for(rows)
        assert length % 96 == 0 and rows <= length * factor and length <= 2304
    assert room_for(40) == (192, 1.0) and windows(250, 250, 187).tolist() == [0]
    odd = replace(Settings(), clip=replace(Settings().clip, frames=15))
    told = axis_options('opentad', odd, 15.0, None)
    assert told['fps'] == 30.0 and told['offset_frames'] == 15 and told['feature_stride'] == 32


def test_names_that_look_like_something_else(tmp_path):
    "Videos called NA, null or 001 keep their names in the tables of an export and of durations."
    names = ['001', 'NA', 'nan', 'null']
    table = pd.DataFrame(dict(video=names, rate=[1.0, None, 2.0, 3.0]))
    table.to_csv(tmp_path / 'videos.csv', index=False)
    found = rows_of(tmp_path / 'videos.csv')
    assert [*found['video']] == names and found['rate'].isna().tolist() == [
        False,
        True,
        False,
        False,
    ]
    about = {'filename': [f'{n}.mp4' for n in names], 'video-duration': [1.5, 2, 3, 4]}
    pd.DataFrame(about).to_csv(tmp_path / 'meta.csv', index=False)
    assert lengths(tmp_path / 'meta.csv') == dict(zip(names, (1.5, 2.0, 3.0, 4.0)))
    bare = {'video': names, 'video-duration': [1, 2, 3, 4]}
    pd.DataFrame(bare).to_csv(tmp_path / 'meta.csv', index=False)
    assert [*lengths(tmp_path / 'meta.csv')] == names
    for odd in ('', 'long', '-1', '0', 'inf', 'nan'):
        pd.DataFrame({'video': ['a'], 'video-duration': [odd]}).to_csv(tmp_path / 'odd.csv')
        with pytest.raises(InputError, match='seconds above 0'):
            lengths(tmp_path / 'odd.csv')
