"""Frames by number and time: plain decoding's, bit for bit, or an error with cause and remedy."""

import contextlib
import csv
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidrepro.data import video
from vidrepro.data.video import VideoError, iter_frames, probe, read_clips, read_times

EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


# ---- oracle and files ----------------------------------------------------------------------------


def plain(path, keep=None, film=0):
    "The slowest correct reader: all frames in order, upright, up to the first error."
    pictures = []
    with contextlib.suppress(av.error.FFmpegError), av.open(str(path)) as file:
        for number, frame in enumerate(file.decode(video=film)):
            wanted = keep is None or number in keep
            turns = round(frame.rotation / 90)
            pictures.append(np.rot90(frame.to_ndarray(format='rgb24'), turns) if wanted else None)
    return pictures


def write(
    path, ticks, tick=Fraction(1, 30), codec='libx264', sound=False, size=(48, 64), **options
):
    "A drifting pattern, every frame different; optionally with a second of silence."
    y, x = np.mgrid[: size[0], : size[1]]
    options = {'bf': '3', 'g': '24', 'sc_threshold': '0', 'threads': '1'} | options
    with av.open(str(path), 'w') as file:
        if codec:
            stream = file.add_stream(codec, rate=30, options=options)
            stream.width, stream.height, stream.pix_fmt = (
                size[1],
                size[0],
                'yuvj420p' if codec == 'mjpeg' else 'yuv420p',
            )
            stream.time_base = stream.codec_context.time_base = tick
        if sound:
            track = file.add_stream('aac', rate=44100)
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), 'fltp', 'stereo')
            silence.rate, silence.pts = 44100, 0
            file.mux(track.encode(silence))
            file.mux(track.encode())
        if codec:
            for number, pts in enumerate(ticks):
                wave = 127 + 120 * np.sin(
                    x / 5 + number / 3 + np.array([0, 1, 2])[:, None, None]
                ) * np.cos(y / 7 - number / 5)
                frame = av.VideoFrame.from_ndarray(
                    wave.transpose(1, 2, 0).astype(np.uint8).copy(), format='rgb24'
                )
                frame.pts, frame.time_base = int(pts), tick
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    return path


def turned(path, a, b, c, d):
    "Write a display matrix into the track header of an mp4."
    data = bytearray(path.read_bytes())
    at = data.index(b'tkhd') + 4 + 40
    for entry, value in zip((0, 1, 3, 4), (a, b, c, d)):
        data[at + 4 * entry : at + 4 * entry + 4] = int(value * 65536).to_bytes(
            4, 'big', signed=True
        )
    path.write_bytes(data)
    return path


def same(path, numbers, pictures, size=None):
    clips = read_clips(path, numbers, size)
    assert clips.dtype == torch.uint8 and (clips.shape[0], clips.shape[2]) == np.shape(numbers)
    for clip, row in zip(clips, np.asarray(numbers)):
        for picture, number in zip(clip.unbind(1), row):
            assert np.array_equal(picture.permute(1, 2, 0), pictures[number]), (
                f'{path}: frame {number} differs'
            )


def handles():
    return len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0


# ---- synthetic files -----------------------------------------------------------------------------

UNEVEN = np.cumsum(np.array([33, 100, 33, 67, 400, 33, 34] * 8))
KINDS = {
    'b-frames.mp4': {},
    'b-frames.mkv': {},
    'long-gop.mp4': {'g': '250'},
    'open-gop.mkv': {'x264-params': 'open-gop=1'},
    'gradual.mp4': {'x264-params': 'intra-refresh=1'},
    'all-intra.mp4': {'g': '1', 'bf': '0'},
    'pyramid.mp4': {'g': '32', 'x264-params': 'b-pyramid=normal:ref=4:weightp=2'},
    'slices.mp4': {'x264-params': 'slices=3'},
    'stream.ts': {},
    'hevc.mp4': {'codec': 'libx265', 'x265-params': 'log-level=none:keyint=24:pools=1', 'bf': '3'},
    'mpeg4.avi': {'codec': 'mpeg4', 'bf': '2'},
    'mpeg4.mp4': {'codec': 'mpeg4', 'bf': '2'},
    'mjpeg.avi': {'codec': 'mjpeg', 'bf': '0'},
    'lossless.mkv': {'codec': 'ffv1'},
    'vp9.webm': {
        'codec': 'libvpx-vp9',
        'deadline': 'realtime',
        'cpu-used': '8',
        'lag-in-frames': '8',
        'auto-alt-ref': '1',
    },
    'vp8.webm': {
        'codec': 'libvpx',
        'deadline': 'realtime',
        'cpu-used': '8',
        'lag-in-frames': '8',
        'auto-alt-ref': '1',
    },
    'uneven.mkv': {'ticks': UNEVEN, 'tick': Fraction(1, 1000)},
    'uneven.mp4': {'ticks': UNEVEN, 'tick': Fraction(1, 1000)},
    'late.mkv': {'ticks': range(300, 380)},
    'with-sound.mp4': {'sound': True},
    'odd-size.mp4': {'size': (46, 62)},
    'one.mp4': {'ticks': [0]},
}


@pytest.mark.parametrize('name', KINDS)
def test_frames_equal_plain_decoding(name, tmp_path):
    path = write(tmp_path / name, **({'ticks': range(64)} | KINDS[name]))
    pictures, rng = plain(path), np.random.default_rng(0)
    info = probe(path)
    assert info.frames == len(pictures) == probe(path, count='decode').frames
    assert (info.width, info.height) == pictures[0].shape[1::-1]
    assert info.audio is ('sound' in KINDS[name]) and info.vfr is ('uneven' in name)
    if len(pictures) > 1 and 'uneven' not in name:
        assert info.fps == pytest.approx(30, rel=2e-3)
    same(path, rng.integers(0, len(pictures), (3, 5)), pictures)  # any order, repeats
    for number in {0, len(pictures) // 2, len(pictures) - 1}:
        same(path, [[number]], pictures)
    firsts, chunks = zip(*iter_frames(path, 10))
    assert firsts == tuple(range(0, len(pictures), 10))
    np.testing.assert_array_equal(torch.cat(chunks).permute(0, 2, 3, 1).numpy(), np.stack(pictures))


SHORT = ['b-frames.mp4', 'b-frames.mkv', 'open-gop.mkv', 'all-intra.mp4', 'pyramid.mp4', 'hevc.mp4']


@pytest.mark.parametrize(
    'name', SHORT + ['gradual.mp4', 'slices.mp4', 'uneven.mkv', 'odd-size.mp4']
)
def test_shortcut_needs_no_help(name, tmp_path, monkeypatch):
    "Where packets tell, jumps and left-out B-frames deliver all frames without plain decoding."
    path = write(tmp_path / name, **({'ticks': range(96)} | KINDS[name]))
    pictures = plain(path)
    monkeypatch.setattr(video, 'decode_frames', lambda *_: iter(()))
    for numbers in np.random.default_rng(0).integers(0, len(pictures), (6, 1, 5)):
        same(path, numbers, pictures)


@pytest.mark.parametrize('name', ['uneven.mkv', 'uneven.mp4', 'late.mkv', 'stream.ts', 'mpeg4.avi'])
def test_frame_on_screen(name, tmp_path):
    kind = {'ticks': range(64)} | KINDS[name]
    path = write(tmp_path / name, **kind)
    begins = (np.array(kind['ticks']) - kind['ticks'][0]) * float(kind.get('tick', Fraction(1, 30)))
    times = np.random.default_rng(0).uniform(0, begins[-1], (2, 20))
    times = times[
        :, np.abs(times[..., None] - begins).min((0, 2)) > 2e-3
    ]  # containers round to milliseconds
    numbers = [
        [max(i for i, begin in enumerate(begins) if begin <= time) for time in row] for row in times
    ]
    assert torch.equal(read_times(path, times), read_clips(path, numbers))
    exact = np.round(begins[None, ::7], 9)
    late = exact + (1e-3 if name.endswith('mkv') else 0)
    assert torch.equal(read_times(path, late), read_clips(path, np.arange(len(begins))[None, ::7]))
    for wrong in ([[-0.1]], [[probe(path).duration + 1]], [[float('nan')]]):
        with pytest.raises(VideoError, match='ask for times'):
            read_times(path, wrong)


@pytest.mark.parametrize('turn', [
    ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),  # what a phone held upright writes
    ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    ((-1, 0, 0, 1), lambda p: p[:, ::-1]),  # mirrored: a selfie camera
    ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
])  # fmt: skip
def test_rotation(turn, tmp_path):
    path = write(tmp_path / 'upright.mp4', range(8))
    with av.open(str(path)) as file:
        expected = [turn[1](frame.to_ndarray(format='rgb24')) for frame in file.decode(video=0)]
    turned(path, *turn[0])
    clip = read_clips(path, [range(8)])[0].permute(1, 2, 3, 0).numpy()
    np.testing.assert_array_equal(clip, np.stack(expected))
    info = probe(path)
    assert (info.height, info.width) == expected[0].shape[:2]
    assert read_clips(path, [[0]], size=(20, 30)).shape == (1, 3, 1, 20, 30)


def test_resizing_is_that_of_swscale(tmp_path):
    path = write(tmp_path / 'movie.mp4', range(8))
    with av.open(str(path)) as file:
        expected = [
            f.to_ndarray(format='rgb24', width=20, height=12, interpolation='BILINEAR')
            for f in file.decode(video=0)
        ]
    same(path, [range(8)], expected, size=(12, 20))
    for wrong in ((0, 5), (5,), (2.5, 3)):
        with pytest.raises(Exception, match='size|Type-check'):
            read_clips(path, [[0]], wrong)


def test_refusals_name_file_cause_and_remedy(tmp_path):
    movie = write(tmp_path / 'movie.mp4', range(64), sound=True)
    (tmp_path / 'empty.mp4').touch()
    (tmp_path / 'text.avi').write_text('not a video')
    (tmp_path / 'noise.mp4').write_bytes(np.random.default_rng(0).bytes(4096))
    (tmp_path / 'playlist.mp4').write_text('#EXTM3U\n#EXTINF:1,\nhttp://localhost/x.ts\n')
    (tmp_path / 'half.mp4').write_bytes(movie.read_bytes()[: movie.stat().st_size // 2])
    write(tmp_path / 'sound.mp4', [], codec=None, sound=True)
    os.mkfifo(tmp_path / 'pipe.mp4')
    cases = {
        'none.mp4': 'no such file',
        '.': 'a folder',
        'empty.mp4': 'an empty file',
        'text.avi': 'Invalid data',
        'noise.mp4': 'Invalid data',
        'playlist.mp4': '',
        'half.mp4': 'Invalid data',
        'pipe.mp4': 'device or pipe',
        'sound.mp4': 'no decodable video stream, only audio',
        'movie.mp4/x.mp4': 'no such file',
    }
    before = handles()
    for name, cause in cases.items():
        path = tmp_path / name
        for ask in (
            probe,
            lambda p: read_clips(p, [[0]]),
            lambda p: read_times(p, [[0.0]]),
            lambda p: next(iter_frames(p, 4)),
        ):
            with pytest.raises(VideoError) as caught:
                ask(path)
            message = str(caught.value)
            assert (
                str(path) in message and cause in message and '\n' not in message and ';' in message
            )
    with pytest.raises(
        VideoError, match='frame 64 of a video of 64 frames; ask for frames 0 to 63'
    ):
        read_clips(movie, [[3, 64]])
    for wrong in ([[-1]], [[0.5]], [0, 1], np.zeros((0, 3), int), [[True]]):
        with pytest.raises(ValueError, match='frames: '):
            read_clips(movie, wrong)
    with pytest.raises(ValueError, match='count: '):
        probe(movie, count='guess')
    with pytest.raises(ValueError, match='chunk: '):
        next(iter_frames(movie, 0))
    assert handles() == before


def test_silent_and_multithreaded_alike(tmp_path):
    "Nothing reaches the terminal from a damaged file, and threads change no pixel."
    path = write(tmp_path / 'large.mp4', range(12), size=(720, 960))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / 'damaged.mp4').write_bytes(data)
    code = """
import sys, torch
from vidrepro.data import video
from vidrepro.data.video import VideoError, read_clips
pictures = []
for threads in (1, 4):
    torch.set_num_threads(threads)
    pictures.append(read_clips(sys.argv[1], [[0, 5, 11]]))
assert torch.equal(*pictures)
try:
    read_clips(sys.argv[2], [list(range(12))])
except VideoError:
    sys.exit(7)
"""
    command = [sys.executable, '-c', code, path, tmp_path / 'damaged.mp4']
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, '', '')


def test_a_changed_file_is_read_anew(tmp_path):
    path = write(tmp_path / 'movie.mp4', range(30))
    assert probe(path).frames == 30
    os.utime(write(path, range(20)), ns=(1, 1))
    assert probe(path).frames == 20


def test_damage_before_the_group_does_not_matter_but_inside_does(tmp_path):
    path = write(tmp_path / 'movie.mp4', range(96))
    with av.open(str(path)) as file:
        places = {p.pts * p.time_base * 30: (p.pos, p.size) for p in file.demux(video=0) if p.size}
    at, size = places[24]  # the IDR picture of the second group
    pictures, data = plain(path), bytearray(path.read_bytes())
    data[at + 4 : at + size] = bytes(255 for _ in range(size - 4))
    path.write_bytes(data)
    same(path, [[72, 90], [95, 73]], pictures)
    same(path, [[0, 10]], pictures)
    with pytest.raises(VideoError, match='after [0-9]+ good frames; download'):
        read_clips(path, [[30]])


# ---- property tests ------------------------------------------------------------------------------


class Victims(list):
    "A list that hypothesis does not print."

    __repr__ = object.__repr__


@pytest.fixture(scope='module')
def victims(tmp_path_factory):
    "Small whole files: bytes, suffix and plain frames."
    folder = tmp_path_factory.mktemp('victims')
    kinds = {'mp4': {}, 'mkv': {}, 'avi': {'codec': 'mpeg4', 'bf': '2'}, 'ts': {}}
    files = [
        write(folder / f'whole.{kind}', range(40), size=(32, 48), **how)
        for kind, how in kinds.items()
    ]
    return Victims((path.read_bytes(), path.suffix, plain(path)) for path in files)


def read_all(path):
    "All frames that come, and the error that ended them, if any."
    pictures = []
    try:
        for _, chunk in iter_frames(path, 7):
            pictures += list(chunk.permute(0, 2, 3, 1).numpy())
    except VideoError as error:
        assert str(path) in str(error) and '\n' not in str(error)
        return pictures, error
    return pictures, None


@EXAMPLES
@given(st.integers(0, 3), st.floats(0, 0.999))
def test_truncation(victims, tmp_path, which, part):
    "A file cut short gives a true beginning, and says so where the container lets one know."
    data, suffix, whole = victims[which]
    path = tmp_path / f'cut{suffix}'
    path.write_bytes(data[: int(len(data) * part)])
    before = handles()
    pictures, error = read_all(path)
    assert handles() == before
    assert len(pictures) <= len(whole)
    for picture, expected in zip(pictures[:-3], whole):  # of the last, B-frames may be missing
        assert np.array_equal(picture, expected)
    assert all(any(np.array_equal(picture, other) for other in whole) for picture in pictures)
    if suffix != '.ts':  # a stream without a promised length
        assert error or len(pictures) == len(whole)
    if len(pictures) < len(whole):
        with pytest.raises(VideoError):
            read_clips(path, [[0, len(whole) - 1]])


@EXAMPLES
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), min_size=1, max_size=20),
)
def test_bit_flips(victims, tmp_path, which, flips):
    "An error, or as many frames as probed; never a crash, a hang or a handle left open."
    data, suffix, _ = victims[which]
    data = bytearray(data)
    for place, mask in flips:
        data[int(place * len(data))] ^= mask
    path = tmp_path / f'flipped{suffix}'
    path.write_bytes(data)
    before = handles()
    pictures, error = read_all(path)
    with contextlib.suppress(VideoError):
        promised = probe(path).frames
        assert error or promised == len(pictures)
        clips = read_clips(path, [[0, promised - 1]])
        assert clips.shape[:3] == (1, 3, 2)
    assert handles() == before


# ---- real files ----------------------------------------------------------------------------------


def some(frames, rng):
    return np.append(rng.integers(0, frames, 5), [0, frames - 1])[None]


@pytest.mark.parametrize('folder', ['weizmann', 'ucf101_mini', 'asl_gestures20'])
def test_real_clips(folder, data_dir):
    rng = np.random.default_rng(0)
    paths = sorted(
        p for p in (data_dir / folder).rglob('*') if p.suffix in ('.mp4', '.avi', '.mkv')
    )
    assert paths
    for path in paths[:: 9 if folder == 'weizmann' else 1]:
        frames = probe(path).frames
        numbers = some(frames, rng)
        pictures = plain(path, numbers)
        assert frames == len(pictures)
        same(path, numbers, pictures)


def rows(data_dir, group):
    with open(data_dir / 'odd' / f'{group}_manifest.csv') as file:
        return list(csv.DictReader(file))


BEST = {'torchcodec/nasa_13013.mp4': (1, 390)}  # the manifest describes the first, smaller stream


@pytest.mark.parametrize('group', ['derived', 'real'])
def test_odd_files(group, data_dir):
    "Every odd file is what its manifest says, and its frames are plain decoding's."
    rng = np.random.default_rng(0)
    for row in rows(data_dir, group):
        path = data_dir / 'odd' / group / row['file']
        film, frames = BEST.get(row['file'], (0, int(row['decoded_frames'])))
        if not frames or 'bitflips' in row['file']:
            with pytest.raises(VideoError) as caught:
                read_clips(path, [[0]])
            assert str(path) in str(caught.value)
            assert row['pyav_error'] != 'no video stream' or 'no decodable video stream' in str(
                caught.value
            )
            continue
        if row['file'] == 'truncated60.mkv':  # its first page tells
            with pytest.raises(VideoError, match='cut off'):
                read_clips(path, [[0]])
            continue
        numbers = some(frames, rng)
        pictures = plain(path, numbers, film)
        assert len(pictures) == frames, row['file']
        if row['sizes']:  # the size changes in mid-stream
            with pytest.raises(VideoError, match='give `size`'):
                read_clips(path, [[0, frames - 1]])
            assert read_clips(path, [range(frames)], (60, 80)).shape == (1, 3, frames, 60, 80)
            continue
        if row['pyav_error']:
            with pytest.raises(
                VideoError, match=f'after {frames} good frames|of a video of {frames} frames'
            ):
                read_clips(path, [[frames]])
            with pytest.raises(VideoError, match=f'after {frames} good frames'):
                probe(path, count='decode')
        else:
            info = probe(path)
            assert (info.frames, str(info.rotation), info.audio) == (
                frames,
                row['rotation'] or '0',
                bool(row['audio']),
            ), row['file']
            assert (info.height, info.width) == pictures[0].shape[:2]
            if row['dt_min'] and float(row['dt_min']) > 0:
                assert info.vfr is (row['vfr'] == '1'), row['file']
            if row['first_pts']:
                assert info.start == pytest.approx(float(row['first_pts']), abs=1e-3), row['file']
        same(path, numbers, pictures)


def test_phones(data_dir):
    "Recordings of a phone held four ways: quarter turns swap height and width."
    folder = data_dir / 'odd' / 'real' / 'decord'
    shapes = {
        k: read_clips(folder / f'video_{k}.mov', [[0]])[0, :, 0].shape[-2:]
        for k in (0, 90, 180, 270)
    }
    assert shapes == {0: (320, 568), 180: (320, 568), 90: (568, 320), 270: (568, 320)}


@settings(EXAMPLES, max_examples=15)
@given(
    st.sampled_from(['asl_gestures20/no.mkv', 'odd/derived/fragmented.mp4']),
    st.floats(0, 0.999),
    st.integers(1, 255),
)
def test_one_flipped_byte_of_a_real_file(data_dir, tmp_path, name, place, mask):
    data = bytearray((data_dir / name).read_bytes())
    data[int(place * len(data))] ^= mask
    path = tmp_path / Path(name).name
    path.write_bytes(data)
    before = handles()
    pictures, error = read_all(path)
    with contextlib.suppress(VideoError):
        assert probe(path).frames == len(pictures) or error
    assert handles() == before
