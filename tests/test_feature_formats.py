"Exported features as their consumers read them; folders held against videos; the commands."

import io
import json
import os
import pickle
import shutil
import tarfile

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_features import Small, contents, write
from typer.testing import CliRunner

from vidrepro.cli.features import app
from vidrepro.clips.contract import Clip, view
from vidrepro.core.files import InputError
from vidrepro.data.video import probe, read_clips
from vidrepro.features import formats
from vidrepro.features.extract import extract
from vidrepro.features.settings import (
    Features,
    Settings,
    TimeAxis,
    load,
    read_settings,
    released_clip,
)
from vidrepro.models.backbones import backbone
from vidrepro.runs.execute import learner
from vidrepro.runs.methods import pick_preset
from vidrepro.runs.run import Run
from vidrepro.runs.videos import videos

LENGTHS = dict(v_one=400, v_two=95, three=64)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Three videos and their features at hops 16 and 1."
    home = tmp_path_factory.mktemp('formats')
    (home / 'videos').mkdir()
    for name, frames in LENGTHS.items():
        write(home / 'videos' / f'{name}.mp4', range(frames))
    for hop in (16, 1):
        out = home / f'features{hop}'
        extract(Small(), home / 'videos', out, Settings(hop=hop), 'small', batch=4)
    return home


def samples(frames):
    return -(-frames // 2)


def rows(frames, hop):
    return (samples(frames) - 16) // hop + 1


# ---- readers, each written from the documented interface of the program ---------------------------


def actionformer(folder, options, video):
    "`file_prefix + id + file_ext`, T x C; feature i stands for the time (i * feat_stride + num_frames / 2) / fps, or a share of the video."
    feats = np.load(folder / (options['file_prefix'] + video + options['file_ext'])).astype(
        np.float32
    )
    stride, frames, fps = options['feat_stride'], options['num_frames'], options['default_fps']
    if stride <= 0:  # fixed length: the duration is divided evenly
        assert len(feats) <= options['max_seq_len']
        return (
            feats,
            lambda duration: (np.arange(len(feats)) + 0.5 * frames) * duration / len(feats),
        )
    return feats, lambda duration: (np.arange(len(feats)) * stride + 0.5 * frames) / fps


def opentad(folder, options, video):
    "`prefix + id + .npy`; seconds = (i * feature_stride + offset_frames) / fps."
    feats = np.load(folder / f'{options["prefix"]}{video}.npy')
    return (
        feats,
        lambda duration: (
            (np.arange(len(feats)) * options['feature_stride'] + options['offset_frames'])
            / options['fps']
        ),
    )


def bmn(folder, options, video):
    "csv_mean_SCALE/VIDEO.csv, header and SCALE rows, transposed to C x SCALE; corrected second = feature_frame / frames * seconds."
    frame = pd.read_csv(folder / f'csv_mean_{options["temporal_scale"]}' / f'{video}.csv')
    data = torch.transpose(torch.Tensor(frame.values[:, :]), 0, 1)
    assert list(frame.columns) == [f'f{i}' for i in range(options['feat_dim'])]
    info = pd.read_csv(folder / 'videos.csv').set_index('video').loc[video]
    corrected = info.feature_frame / info.frames * info.seconds
    assert data.shape == (options['feat_dim'], options['temporal_scale'])
    return (
        data.T.numpy(),
        lambda duration: (np.arange(data.shape[1]) + 0.5) / data.shape[1] * corrected,
    )


def gtad(folder, options, video):
    "One HDF5 file, VIDEO -> T x C, interpolated to temporal_scale."
    with h5py.File(folder / 'features.h5') as file:
        feats = torch.Tensor(file[video][:]).transpose(0, 1)[None]
    assert feats.shape[1] == options['feat_dim']
    data = F.interpolate(feats, size=options['temporal_scale'], mode='linear', align_corners=False)[
        0
    ]
    info = pd.read_csv(folder / 'videos.csv').set_index('video').loc[video]
    corrected = info.feature_frame / info.frames * info.seconds
    return (
        data.T.numpy(),
        lambda duration: (np.arange(data.shape[1]) + 0.5) / data.shape[1] * corrected,
    )


def bmt(folder, options, video):
    "VIDEO_rgb.npy and VIDEO_flow.npy of equal shape, summed; at most so many rows."
    rgb, flow = (
        torch.from_numpy(np.load(folder / f'{video}_{kind}.npy')).float()
        for kind in ('rgb', 'flow')
    )
    assert (
        rgb.shape == flow.shape
        and len(rgb) <= options['pad_video_feats_up_to']
        and rgb.shape[1] == options['d_vid']
    )
    return (
        (rgb + flow).numpy(),
        lambda duration: (
            (np.arange(len(rgb)) * options['feature_timespan_in_fps'] + 8)
            / options['fps_at_extraction']
        ),
    )


def times_of(folder, video):
    table = pd.read_csv(folder / 'times.csv')
    return table[table.video == video].sort_values('row')[['start', 'end', 'centre']].to_numpy()


@pytest.mark.parametrize(
    'to, read',
    [
        ('actionformer', actionformer),
        ('opentad', opentad),
        ('bmn', bmn),
        ('gtad', gtad),
        ('bmt', bmt),
    ],
)
def test_consumers_read_what_is_written(home, tmp_path, to, read):
    out = tmp_path / to
    formats.export(home / 'features16', out, to, prefix='v_')
    about = json.loads((out / 'interface.json').read_text())
    for name, frames in LENGTHS.items():
        key = name if name.startswith('v_') else f'v_{name}'
        found, axis = read(
            out,
            about['options'],
            key.removeprefix('v_') if to in ('actionformer', 'opentad') else key,
        )
        original = load(home / 'features16' / f'{name}.npy')
        fixed = to in ('bmn', 'gtad')
        expected = original.resample(100) if fixed else original
        np.testing.assert_allclose(found, expected.array, atol=1e-6)
        assert found.shape == (100 if fixed else rows(frames, 16), original.array.shape[1])
        np.testing.assert_allclose(
            axis(frames / 30), expected.times[:, 2], atol=0.6 / 30 if fixed else 1e-6
        )
        if to != 'gtad':
            np.testing.assert_allclose(times_of(out, key), expected.times, atol=1e-6)
    table = pd.read_csv(out / 'videos.csv')
    assert (table.covered < table.seconds + 1 / 15).all() and (
        table.rows == pd.read_csv(out / 'times.csv').groupby('video').size()[table.video].values
    ).all()


@pytest.mark.parametrize('length', [100, 128, 192])
@pytest.mark.parametrize('how', ['linear', 'mean'])
@pytest.mark.parametrize('hop', [16, 1])
def test_fixed_lengths(home, tmp_path, length, how, hop):
    "Shape, and the average of a curve is kept; a row's time is the middle of what it covers."
    formats.export(home / f'features{hop}', tmp_path / 'x', 'npy', length, how)
    for name in LENGTHS:
        assert len(np.load(tmp_path / 'x' / f'{name}.npy')) == length
        times = times_of(tmp_path / 'x', name)
        np.testing.assert_allclose(times[:, :2].mean(1), times[:, 2], atol=1e-6)
        np.testing.assert_allclose(times[1:, 0], times[:-1, 1], atol=2e-6)  # cells without gaps


@pytest.mark.parametrize('to, length', [('bmn', None), ('gtad', 100), ('actionformer', 192)])
def test_even_axes_need_clips_that_touch(home, tmp_path, to, length):
    "A program that divides the duration would read overlapping clips up to half a clip early."
    with pytest.raises(InputError, match='16 samples every 1; .* divides a duration evenly'):
        formats.export(home / 'features1', tmp_path / 'x', to, length)
    assert not any(tmp_path.iterdir())
    formats.export(home / 'features16', tmp_path / 'x', to, length)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 300), st.integers(1, 200))
def test_mean_looks_at_every_row(n, m):
    "Averaging sees each of many rows; linear interpolation may jump over an impulse."
    axis = TimeAxis(1.0, 1.0)
    impulse = np.zeros((n, 1), np.float32)
    impulse[n // 2] = 1
    found = Features(impulse, axis, {}, {}).resample(m, 'mean').array
    assert len(found) == m and (found.sum() > 0 or n < m)
    flat = Features(np.full((n, 2), 3.0, np.float32), axis, {}, {})
    for how in ('linear', 'mean'):
        np.testing.assert_allclose(flat.resample(m, how).array, 3.0, rtol=1e-6)
    same = Features(np.random.default_rng(n).normal(size=(n, 2)).astype(np.float32), axis, {}, {})
    for how in ('linear', 'mean'):
        np.testing.assert_allclose(same.resample(n, how).array, same.array, atol=1e-6)


# ---- plain formats -------------------------------------------------------------------------------


def test_plain_formats(home, tmp_path):
    original = load(home / 'features16' / 'v_one.npy').array
    for to in ('npy', 'pkl', 'pt', 'h5', 'webdataset'):
        formats.export(home / 'features16', tmp_path / to, to)
    np.testing.assert_array_equal(
        np.load(tmp_path / 'npy' / 'v_one.npy', allow_pickle=False), original
    )
    np.testing.assert_array_equal(
        torch.load(tmp_path / 'pt' / 'v_one.pt', weights_only=True).numpy(), original
    )
    back = pickle.loads((tmp_path / 'pkl' / 'v_one.pkl').read_bytes())  # as TSP's merge script does
    assert back.dtype == np.float32 and np.array_equal(back, original)
    with h5py.File(tmp_path / 'h5' / 'features.h5') as file:
        assert (
            set(file) == set(LENGTHS)
            and file['v_one'].compression == 'gzip'
            and file['v_one'].chunks
        )
        np.testing.assert_array_equal(file['v_one'][:], original)
    with tarfile.open(tmp_path / 'webdataset' / 'features-000000.tar') as tar:
        names = tar.getnames()
        assert names == [f'{key}.{ending}' for key in sorted(LENGTHS) for ending in ('npy', 'json')]
        np.testing.assert_array_equal(
            np.load(io.BytesIO(tar.extractfile('v_one.npy').read())), original
        )
    formats.export(home / 'features16', tmp_path / 'again', 'webdataset')
    assert contents(tmp_path / 'webdataset') == contents(tmp_path / 'again')


def test_pickles_are_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harm'),)

    for name in ('x.pkl', 'x.npy', 'x.pt', 'x.h5'):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(), protocol=2))
    np.save(tmp_path / 'y.npy', np.array([Bomb()], dtype=object), allow_pickle=True)
    torch.save(Bomb(), tmp_path / 'y.pt')
    for name in ('x.pkl', 'x.npy', 'x.pt', 'x.h5', 'y.npy', 'y.pt'):
        with pytest.raises(InputError):
            formats.read_array(tmp_path / name, 'x')
    assert not (tmp_path / 'harm').exists()


def test_nothing_is_half_exported(home, tmp_path):
    "A damaged feature file stops the export, and no folder appears."
    broken = tmp_path / 'broken'
    extract(Small(), home / 'videos', broken, batch=4)
    (broken / 'v_two.npy').write_bytes((broken / 'v_two.npy').read_bytes()[:-1])
    for to in formats.EXPORTS:
        with pytest.raises(InputError, match='v_two'):
            formats.export(broken, tmp_path / 'out', to)
    assert [p.name for p in tmp_path.iterdir()] == ['broken']


def test_gvf(home, tmp_path):
    "Keys are file names, vectors have one axis, and both parts of a set go into one file."
    extract(Small(), home / 'videos' / 'v_one.mp4', tmp_path / 'train', batch=4)
    extract(Small(), home / 'videos' / 'v_two.mp4', tmp_path / 'valid', batch=4)
    formats.write_gvf(tmp_path / 'gvf.h5', formats.gvf([tmp_path / 'train', tmp_path / 'valid']))
    with h5py.File(tmp_path / 'gvf.h5') as file:
        assert set(file) == {'v_one', 'v_two'}
        vector = file['v_one'][:]
    array = load(home / 'features16' / 'v_one.npy').array
    assert vector.dtype == np.float32 and vector.shape == array.shape[1:]
    np.testing.assert_allclose(
        vector, [max(row[c] for row in array) for c in range(array.shape[1])], atol=1e-6
    )
    with pytest.raises(InputError, match='encoder'):
        formats.gvf([tmp_path / 'train', home / 'features1'])


# ---- against the videos --------------------------------------------------------------------------


@pytest.mark.parametrize('hop', [16, 1])
def test_whole_folder_passes(home, hop):
    table = formats.verify(home / f'features{hop}', home / 'videos')
    assert (table.status == 'ok').all() and len(table) == 3
    for name, frames in LENGTHS.items():
        assert len(load(home / f'features{hop}' / f'{name}.npy').array) == rows(frames, hop)
        assert formats.expected_samples(home / 'videos' / f'{name}.mp4', 15) == samples(frames)


def test_real_folder(data_dir, tmp_path):
    "Features of real clips stand up to `verify`, time stamps out of order included."
    for folder in ('ucf101_mini',):
        report = extract(
            Small(),
            data_dir / folder,
            tmp_path / folder,
            Settings(released_clip(size=32), on_short='pad'),
            batch=8,
        )
        assert not report.failed
        assert (formats.verify(tmp_path / folder, data_dir / folder).status == 'ok').all()


# ---- commands ------------------------------------------------------------------------------------


@pytest.fixture
def command():
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_exit_codes(home, tmp_path, command):
    save_file(backbone('tiny').state_dict(), tmp_path / 'tiny.safetensors')
    words = (
        '--backbone',
        'tiny',
        '--weights',
        tmp_path / 'tiny.safetensors',
        '--size',
        32,
        '--batch',
        2,
    )
    assert (
        command('extract', home / 'videos', tmp_path / 'f', *words, '--shard', '0/2').exit_code == 0
    )
    assert command('verify', tmp_path / 'f', home / 'videos').exit_code == 1
    assert (
        command('extract', home / 'videos', tmp_path / 'f', *words, '--shard', '1/2').exit_code == 0
    )
    assert command('verify', tmp_path / 'f', home / 'videos').exit_code == 0
    (tmp_path / 'list.txt').write_text('v_one.mp4\nnone.mp4\n')
    result = command(
        'extract', tmp_path / 'list.txt', tmp_path / 'g', *words, '--root', home / 'videos'
    )
    assert (
        result.exit_code == 1
        and 'none.mp4: no such file' in result.stderr
        and '1 done' in result.output
    )
    for wrong in (
        ('extract', home / 'none', tmp_path / 'h', *words),
        ('extract', home / 'videos', tmp_path / 'h'),
        ('extract', home / 'videos', tmp_path / 'f', *words, '--stride', 4),
        ('extract', home / 'videos', tmp_path / 'h', *words, '--shard', 'x'),
        ('extract', home / 'videos', tmp_path / 'h', '--backbone', 'vgg', '--weights', 'x'),
        ('export', home / 'videos', tmp_path / 'h'),
        ('export', tmp_path / 'f', tmp_path / 'h', '--to', 'mat'),
        ('extract', home / 'videos', tmp_path / 'h', *words, '--precision', 'int8'),
        ('extract', home / 'videos', tmp_path / 'h', *words, '--device', 'abacus'),
        ('gvf', tmp_path / 'f', '--kind', 'min'),
    ):
        result = command(*wrong)
        assert (
            result.exit_code == 2
            and len(result.stderr.strip().splitlines()) == 1
            and '; ' in result.stderr
        ), (wrong, result.stderr)
    assert not (tmp_path / 'h').exists()


def test_ranks_share_the_videos(home, tmp_path, command, monkeypatch):
    "What `accelerate launch` puts into the environment is enough."
    save_file(backbone('tiny').state_dict(), tmp_path / 'tiny.safetensors')
    for rank in ('0', '1'):
        monkeypatch.setenv('RANK', rank)
        monkeypatch.setenv('WORLD_SIZE', '2')
        result = command(
            'extract',
            home / 'videos',
            tmp_path / 'f',
            '--backbone',
            'tiny',
            '--weights',
            tmp_path / 'tiny.safetensors',
            '--size',
            32,
        )
        assert result.exit_code == 0
    assert (formats.verify(tmp_path / 'f', home / 'videos').status == 'ok').all()
    assert sorted(p.name for p in (tmp_path / 'f').glob('*.csv')) == [
        'failures-0-of-2.csv',
        'failures-1-of-2.csv',
    ]


def test_own_run(home, tmp_path, command):
    "A run of `train` brings its clip along, stride included, and lets no option contradict it."
    changes = dict(steps=1, videos=8, length=64, batch=4, hidden=16, dim=8, stride=2)
    cfg = pick_preset('tec', 'tiny', **changes)
    run = Run('mine', 'tec', cfg)
    learn, _ = learner(run, tmp_path / 'mine', videos(cfg, 'pretrain'), 'cpu', quiet=True)
    learn.fit(1)
    words = ('extract', home / 'videos', tmp_path / 'f', '--run', tmp_path / 'mine')
    for option, value in (
        ('--frames', 16),
        ('--size', 64),
        ('--rate', 15),
        ('--picture', 'released'),
    ):
        result = command(*words, option, value)
        assert result.exit_code == 2 and 'leave the option out' in result.stderr
    result = command(*words, '--frames', cfg.frames)
    assert result.exit_code == 0, result.stderr
    found, clip = load(tmp_path / 'f' / 'v_one.npy'), Clip(cfg.frames, 2, cfg.size)
    assert read_settings(found.settings).clip == clip
    numbers = range(16, 16 + 2 * cfg.frames, 2)
    clips = read_clips(home / 'videos' / 'v_one.mp4', [numbers], (32, 43))
    with torch.inference_mode():
        slow = learn.model.backbone.eval()(view(clips, clip))
    np.testing.assert_allclose(found.array[1], slow[0].numpy(), atol=1e-5)


def test_older_features(home, tmp_path):
    "Features that named hop and picture otherwise are exported; their videos have no content yet."
    old = tmp_path / 'old'
    shutil.copytree(home / 'features16', old)
    for file in old.glob('*.json'):
        about = json.loads(file.read_text())
        settings = about['settings']
        clip = settings.pop('clip')
        settings |= dict(frames=clip['frames'], rate=clip['rate'], size=clip['size'])
        settings |= dict(stride=settings.pop('hop'), transform='tsp')
        del about['video']['content'], about['video']['fps']
        file.write_text(json.dumps(about))
    for folder in ('old', 'features16'):
        where = old if folder == 'old' else home / folder
        formats.export(where, tmp_path / f'to-{folder}', 'actionformer')
    assert contents(tmp_path / 'to-old') == contents(tmp_path / 'to-features16')
    assert set(formats.verify(old, home / 'videos').status) == {'changed'}
    report = extract(Small(), home / 'videos', old, Settings(), 'small', batch=4)
    assert len(report.done) == 3 and set(formats.verify(old, home / 'videos').status) == {'ok'}


def test_another_video_of_as_many_bytes(home, tmp_path):
    "The size of a file does not tell which video it is."
    (tmp_path / 'v').mkdir()
    film = write(tmp_path / 'v' / 'a.avi', range(64), codec='rawvideo')
    extract(Small(), tmp_path / 'v', tmp_path / 'f', batch=4)
    data = bytearray(film.read_bytes())
    data[20_000:30_000] = bytes(10_000)
    film.write_bytes(data)
    assert formats.verify(tmp_path / 'f', tmp_path / 'v').status.tolist() == ['changed']


def test_durations_agree_with_probe(home):
    for name in LENGTHS:
        about = load(home / 'features16' / f'{name}.npy').video
        info = probe(home / 'videos' / f'{name}.mp4')
        assert (about['frames'], about['vfr'], about['samples']) == (
            info.frames,
            False,
            samples(info.frames),
        )
        assert about['seconds'] == pytest.approx(info.duration)
