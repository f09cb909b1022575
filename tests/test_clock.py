"One clock for a file: mended near the truth or refused, of the best stream, and sampled by seconds."

import math
from dataclasses import replace
from fractions import Fraction
from itertools import count

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from vidrepro.clips.contract import Clip
from vidrepro.core.files import InputError
from vidrepro.core.walk import bad_policy
from vidrepro.data.clock import mended, too_many
from vidrepro.data.datasets import VideoDataset, VideoFiles, video_table
from vidrepro.data.opening import opened
from vidrepro.data.scan import look
from vidrepro.data.shards import pack
from vidrepro.data.video import VideoError, frame_times, packet_index, probe, read_clips, read_times
from vidrepro.features.extract import UNEVEN, extract
from vidrepro.features.settings import Settings

EXAMPLES = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FAULTS = ('repeated', 'backward', 'ahead', 'missing')


# ---- made files ----------------------------------------------------------------------------------


def write(path, ticks, tick=Fraction(1, 1000), bf='0', stamps=None):
    "Frame i shows its number in bars, is due at `ticks[i]` and, if given, stamped `stamps[i]`."
    made = path.with_suffix('.made.mkv') if stamps else path
    with av.open(str(made), 'w') as file:
        stream = file.add_stream('libx264', rate=30, options={'bf': bf, 'g': '12', 'crf': '10'})
        stream.height, stream.width, stream.pix_fmt = 64, 96, 'yuv420p'
        stream.time_base = stream.codec_context.time_base = tick
        for i, t in enumerate(ticks):
            bits = np.repeat(np.where(i >> np.arange(12) & 1, 215, 40), 8).astype(np.uint8)
            picture = np.broadcast_to(bits[None, :, None], (64, 96, 3)).copy()
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame.pts, frame.time_base = int(t), tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    if not stamps:
        return path
    with av.open(str(made)) as source, av.open(str(path), 'w') as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        packets = [p for p in source.demux(video=0) if p.size]
        places = np.argsort(np.argsort([p.pts for p in packets]))
        for k, (packet, i) in enumerate(zip(packets, places)):
            packet.dts, packet.pts = k - 10_000, int(stamps[i])  # Matroska does not store the dts
            packet.stream = stream
            file.mux(packet)
    made.unlink()
    return path


def number(clip):
    "Frame numbers that a clip `c t h w` shows."
    bars = clip.float()[:, :, 20:40].mean((0, 2)).unflatten(1, (12, 8))[..., 1:7].mean(-1) > 128
    return (bars * 2 ** torch.arange(12)).sum(-1).tolist()


# ---- stamps alone --------------------------------------------------------------------------------


@st.composite
def clocks(draw):
    "True stamps at a constant, a switching or a varying rate, milliseconds or coarser ticks."
    n = draw(st.integers(80, 240))
    kind = draw(st.sampled_from(['constant', 'thousandths', 'switching', 'varying']))
    if kind == 'constant':
        steps = [draw(st.sampled_from([1, 512, 3003]))] * n
    elif kind == 'thousandths':
        return [
            round(1000 * i / draw_rate)
            for draw_rate in [draw(st.sampled_from([24, 30, 60]))]
            for i in range(n)
        ]
    elif kind == 'switching':
        k = draw(st.integers(20, n - 20))
        steps = [200] * k + [33] * (n - k)
    else:
        steps = draw(st.lists(st.sampled_from([33, 34, 50, 67]), min_size=n, max_size=n))
    return np.cumsum([0, *steps[1:]]).tolist()


@st.composite
def spoiled(draw):
    "True stamps, and the same with at most four wrong ones and one new start, apart from each other."
    truth = draw(clocks())
    n, stamps = len(truth), list(truth)
    again = draw(st.none() | st.integers(30, n - 30))
    if again:
        back = truth[again] - truth[again - draw(st.integers(15, again))]
        stamps[again:] = [s - back for s in stamps[again:]]
    taken = [again] if again else []
    for kind in draw(st.lists(st.sampled_from(FAULTS), max_size=3)):
        i = draw(st.integers(2, n - 2))
        low, high = (again, n) if again and i >= again else (0, again or n)
        if any(abs(i - k) < 6 for k in taken):
            continue
        taken.append(i)
        far = draw(st.integers(1, 40))
        stamps[i] = {
            'repeated': stamps[i - 1],
            'backward': stamps[max(low, i - far)],
            'ahead': stamps[min(high - 1, i + far)],
            'missing': None,
        }[kind]
    return truth, stamps, again, sorted(taken)


@EXAMPLES
@given(spoiled())
def test_mended_is_near_the_truth(case):
    "Strictly increasing, and off by less than a frame lasts nearby; a new start adds one such error."
    truth, stamps, again, _ = case
    ticks, wrong = mended(stamps, Fraction(1, 1000))
    assert (np.diff(ticks) > 0).all() and len(ticks) == len(truth)
    assert not too_many(len(wrong), len(truth))
    lasts = np.diff(truth, append=2 * truth[-1] - truth[-2])
    room = np.array([lasts[max(0, i - 3) : i + 4].max() for i in range(len(lasts))], float)
    if again:
        room[again:] += room[again]
    off = np.abs((ticks - ticks[0]) - (np.array(truth) - truth[0]))
    assert (off <= room).all(), int((off - room).argmax())


@EXAMPLES
@given(clocks())
def test_good_stamps_are_left_alone(truth):
    ticks, wrong = mended(truth, Fraction(1, 1000))
    assert ticks.dtype == np.int64 and ticks.tolist() == truth and wrong == []


@EXAMPLES
@given(st.lists(st.none() | st.integers(-50, 50), min_size=1, max_size=60))
def test_anything_is_strictly_increasing(stamps):
    ticks, wrong = mended(stamps, Fraction(1, 30))
    assert len(ticks) == len(stamps) and (np.diff(ticks) > 0).all() and np.isfinite(ticks).all()
    known = [s for s in stamps if s is not None]
    rises = len(known) == len(stamps) and (np.diff(known) > 0).all()
    assert bool(wrong) is not rises


def test_many_wrong_ones_are_too_many():
    assert not too_many(1, 8) and too_many(2, 8)
    assert not too_many(5, 100) and too_many(6, 100)


# ---- files ---------------------------------------------------------------------------------------

TRUTH = [200 * i for i in range(50)] + [10000 + round(i * 1000 / 30) for i in range(150)]


def planted(kind):
    "The film at 5 and 30 frames a second, with a fault."
    stamps = list(TRUTH)
    if kind == 'repeated':
        stamps[100] = stamps[99]
    elif kind == 'backward':
        stamps[100] = stamps[80]
    elif kind == 'ahead':
        stamps[100] = stamps[130]
    elif kind == 'again':
        stamps[100:] = [s - 8000 for s in stamps[100:]]
    return stamps


@pytest.mark.parametrize('bf', ['0', '3'])
@pytest.mark.parametrize('kind', ['repeated', 'backward', 'ahead', 'again'])
def test_one_fault_in_a_file(kind, bf, tmp_path):
    "Clock, pictures, notes and features of a file with one fault; with B-frames too."
    path = write(tmp_path / 'a.mkv', TRUTH, bf=bf, stamps=planted(kind))
    assert packet_index(path) is None
    _, seconds, end = frame_times(path)
    assert np.abs(seconds - np.array(TRUTH) / 1000).max() <= 0.034 and (np.diff(seconds) > 0).all()
    assert number(read_clips(path, [[0, 99, 100, 101, 199]])[0]) == [0, 99, 100, 101, 199]
    assert number(read_times(path, [[9.0, 14.5]])[0])[0] == 45
    info, row = probe(path), look(tmp_path, 'a.mkv')
    assert info.vfr and info.notes == row['notes'] and row['status'] == 'ok'
    assert info.notes.startswith('1 of 200 time stamps repaired, the first of frame 100 at 11.')
    files = VideoFiles(tmp_path)
    files.scan(['a.mkv'])
    assert files.scans['a.mkv'].notes == info.notes


@pytest.mark.parametrize('off', [60, 100, -60])
def test_a_stamp_that_b_frames_hide(off, tmp_path):
    "No packet is far from its place, but decoding shows the order: noted, and no picture is lost."
    truth = [40 * i for i in range(120)]
    hidden = 0
    for k in range(40, 46):
        stamps = [t - off * (i == k) for i, t in enumerate(truth)]
        path = write(tmp_path / f'{k}.mkv', truth, bf='3', stamps=stamps)
        hidden += packet_index(path) is not None
        assert number(read_clips(path, [range(120)])[0]) == [*range(120)]
        for decode in (False, True):
            assert np.abs(frame_times(path, decode)[1] - np.array(truth) / 1000).max() < 0.041
        assert look(tmp_path, f'{k}.mkv')['notes'].startswith('1 of 120 time stamps repaired')
    assert hidden


def test_a_good_file_has_no_note(tmp_path):
    path = write(tmp_path / 'a.mkv', TRUTH, bf='3')
    assert (
        packet_index(path) is not None
        and probe(path).notes == look(tmp_path, 'a.mkv')['notes'] == ''
    )
    files = VideoFiles(tmp_path)
    files.scan(['a.mkv'])
    assert not any(scan.notes for scan in files.scans.values())


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3, 4))


def test_features_note_and_refuse(tmp_path):
    (tmp_path / 'videos').mkdir()
    write(tmp_path / 'videos' / 'mended.mkv', TRUTH, stamps=planted('again'))
    lost = [t - 4000 * (i % 3 == 1) for i, t in enumerate(TRUTH)]
    path = write(tmp_path / 'videos' / 'lost.mkv', TRUTH, stamps=lost)
    report = extract(Mean(), tmp_path / 'videos', tmp_path / 'out')
    assert (
        report.done == ['mended.mkv']
        and '1 of 200 time stamps repaired' in report.notes['mended.mkv']
    )
    assert 'time stamps wrong' in report.failed['lost.mkv']
    assert look(tmp_path / 'videos', 'lost.mkv')['status'] == 'broken clock'
    for ask in (probe, frame_times, lambda p: read_times(p, [[0.0]])):
        with pytest.raises(VideoError, match=r'of 200 time stamps wrong.*; write it again'):
            ask(path)
    assert number(read_clips(path, [[5, 6, 7]])[0]) == [5, 6, 7]  # numbers need no clock


def test_a_rate_that_drifts_is_not_constant(tmp_path):
    "No step is a quarter longer than another, but their sum is a second off: no stored frames."
    (tmp_path / 'videos').mkdir()
    ticks = np.cumsum([0, *[40] * 300, *[33] * 300])
    path = write(tmp_path / 'videos' / 'drift.mkv', ticks)
    assert probe(path).vfr
    stored = Settings(Clip(4, 2, 32), hop=8)
    report = extract(Mean(), tmp_path / 'videos', tmp_path / 'out', stored)
    assert report.failed == {'drift.mkv': UNEVEN}
    report = extract(Mean(), tmp_path / 'videos', tmp_path / 'by_rate', Settings(hop=8))
    assert report.done == ['drift.mkv']


def test_a_film_in_avi_has_the_rate_that_it_states(tmp_path):
    path = tmp_path / 'a.avi'
    with av.open(str(path), 'w') as file:
        stream = file.add_stream('mpeg4', rate=Fraction(30000, 1001), options={'bf': '2'})
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for i in range(40):
            picture = np.full((48, 64, 3), 5 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        file.mux(stream.encode())
    info = probe(path)
    assert info.fps == pytest.approx(30000 / 1001) and not info.vfr


# ---- the best stream -----------------------------------------------------------------------------


def add(file, codec, size, marks=None):
    stream = file.add_stream(codec, rate=25)
    stream.height, stream.width = size
    stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
    if marks is not None:
        stream.disposition = marks
    return stream


@pytest.mark.parametrize('end', ['mkv', 'mp4'])
@pytest.mark.parametrize('marks', [None, Disposition.default, Disposition.attached_pic])
def test_a_cover_before_the_film(end, marks, tmp_path):
    "The cover is stream 0 and larger; frames, facts, items are the film's."
    path = tmp_path / f'a.{end}'
    with av.open(str(path), 'w') as file:
        cover = add(file, 'mjpeg', (480, 640), marks)
        film = add(file, 'libx264', (48, 64), Disposition.default)
        white = np.full((480, 640, 3), 255, np.uint8)
        file.mux(
            cover.encode(
                av.VideoFrame.from_ndarray(white, format='rgb24').reformat(format='yuvj420p')
            )
        )
        file.mux(cover.encode())
        for i in range(20):
            gray = np.full((48, 64, 3), 6 * i, np.uint8)
            file.mux(film.encode(av.VideoFrame.from_ndarray(gray, format='rgb24')))
        file.mux(film.encode())
    with av.open(str(path)) as file:
        (at,) = (s.index for s in file.streams.video if s.codec_context.name == 'h264')
        expected = np.stack([f.to_ndarray(format='rgb24') for f in file.decode(file.streams[at])])
    info = probe(path)
    assert (info.frames, info.height, info.width, info.codec) == (20, 48, 64, 'h264')
    assert info.notes == (f'stream {at} is read, not 0' if at else '')
    clip = read_clips(path, [range(20)])[0].permute(1, 2, 3, 0).numpy()
    np.testing.assert_array_equal(clip, expected)
    table = video_table([path.name], [0])
    assert VideoDataset(table, ('x',), VideoFiles(tmp_path)).lengths.tolist() == [20]


def test_only_a_cover_is_no_film(tmp_path):
    with av.open(str(tmp_path / 'a.mp4'), 'w') as file:
        track, cover = (
            file.add_stream('aac', rate=44100),
            add(file, 'mjpeg', (48, 64), Disposition.attached_pic),
        )
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), 'fltp', 'stereo')
        silence.rate = 44100
        white = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255, np.uint8), format='rgb24')
        file.mux([*track.encode(silence), *track.encode()])
        file.mux([*cover.encode(white.reformat(format='yuvj420p')), *cover.encode()])
    with pytest.raises(VideoError, match='no decodable video stream'), opened(tmp_path / 'a.mp4'):
        pass


# ---- samples by seconds --------------------------------------------------------------------------

RATES = {'25': Fraction(25), '29.97': Fraction(30000, 1001), '30': Fraction(30), '60': Fraction(60)}
VARYING = np.cumsum([0, *[33, 100, 34, 67, 400, 33] * 12]).tolist()


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "File -> seconds of its frames as whole fractions, and of its end."
    folder, truth = tmp_path_factory.mktemp('films'), {}
    for name, fps in RATES.items():
        write(folder / f'{name}.mp4', range(100), 1 / fps, bf='2')
        truth[f'{name}.mp4'] = [i / fps for i in range(101)]
    write(folder / 'varying.mkv', VARYING)
    end = Fraction(frame_times(folder / 'varying.mkv')[2]).limit_denominator(10**6)
    truth['varying.mkv'] = [Fraction(t, 1000) for t in VARYING] + [end]
    return folder, truth


def naive(times, begin, end, rate, late=Fraction(0)):
    "Frame numbers by the definition: what is on the screen at begin + k / rate, as many as fit."
    begin, end = max(begin, Fraction(0)), min(end, times[-1])
    found = []
    for k in count():
        if begin + Fraction(k + 1) / rate > end:
            return found
        moment = begin + Fraction(k) / rate + late
        found.append(max(i for i, t in enumerate(times[:-1]) if t <= moment))


@pytest.mark.parametrize('rate', [15, 8, 30, 60, Fraction(25, 2), Fraction(30000, 1001)])
@pytest.mark.parametrize('name', [*(f'{fps}.mp4' for fps in RATES), 'varying.mkv'])
def test_samples_are_what_is_on_the_screen(films, name, rate):
    folder, truth = films
    spans = [(math.nan, math.nan), (0.4, 1.5), (-1.0, 0.9), (1.0, 99.0), (0.31, 1.31)]
    table = video_table(
        [name] * len(spans), [0] * len(spans), *map(list, zip(*spans)), split='train'
    )
    source = VideoDataset(table, ('x',), VideoFiles(folder), rate=float(rate))
    late = Fraction(1, 2000) if name.endswith('mkv') else Fraction(1, 10**6)
    for i, (begin, end) in enumerate(spans):
        whole = math.isnan(begin)
        span = (Fraction(0), Fraction(99)) if whole else (Fraction(str(begin)), Fraction(str(end)))
        expected = naive(truth[name], *span, Fraction(rate), late)
        assert source.lengths[i] == len(expected), (name, i)
        every = torch.arange(len(expected))[None, None]
        assert number(source.clips(torch.tensor([i]), every)[0, 0]) == expected


def test_subsets_caches_splits_and_cards_keep_the_rate(films, tmp_path):
    folder, truth = films
    table = video_table(
        [*truth], [0] * len(truth), split=['train', 'test', 'train', 'test', 'train']
    )
    files = VideoFiles(folder)
    source = VideoDataset(table, ('x',), files, rate=15.0)
    every = lambda s, i: number(
        s.clips(torch.tensor([i]), torch.arange(int(s.lengths[i]))[None, None])[0, 0]
    )
    expected = [every(source, i) for i in range(5)]
    for kept in (source.subset(torch.tensor([4, 1])), source.subset(torch.tensor([4, 1])).cached()):
        assert kept.rate == 15.0 and [every(kept, 0), every(kept, 1)] == [expected[4], expected[1]]
    test = source.in_split('test')
    assert [every(test, 0), every(test, 1)] == [expected[1], expected[3]]
    stored = replace(source, rate=0.0)
    assert stored.lengths.tolist() == [100] * 4 + [len(VARYING)] and every(stored, 0) == [
        *range(100)
    ]
    assert source.describe()['rate'] == 15.0 and 'rate' not in stored.describe()
    assert {k: v for k, v in source.describe().items() if k != 'rate'} == stored.describe()
    with pytest.raises(InputError, match='rate.*at rate 0'):
        pack(source, tmp_path / 'shards')
    assert pack(stored, tmp_path / 'shards')['samples'] == 5
    with pytest.raises(InputError, match='before cached'):
        replace(source.cached(), rate=8.0).clips(
            torch.tensor([0]), torch.zeros(1, 1, 1, dtype=torch.long)
        )
    with pytest.raises(InputError, match='needs 0 to'):
        source.clips(torch.tensor([0]), source.lengths[:1, None, None])


def test_a_file_shorter_than_a_sample_is_judged(films):
    folder, _ = films
    table = video_table(['25.mp4'] * 2, [0, 0], start=[0.0, 1.0], end=[0.05, 2.0])
    source = VideoDataset(table, ('x',), VideoFiles(folder, bad_policy('skip')), rate=15.0)
    assert len(source) == 1 and source.bad == [
        ('25.mp4', 'segment 0-0.05 s holds no sample at 15 a second')
    ]


def test_an_old_table_of_scans_is_not_believed(films, tmp_path):
    "Tables written before scans knew durations are scanned again."
    folder, _ = films
    size = (folder / '25.mp4').stat().st_size
    sheet = tmp_path / 'scan.csv'
    sheet.write_text(
        f'path,bytes,frames,fps,vfr,height,width,decoded,reason\n25.mp4,{size},7,25,False,1,1,False,\n'
    )
    table = video_table(['25.mp4'], [0])
    source = VideoDataset(table, ('x',), VideoFiles(folder, scan_file=sheet), rate=15.0)
    assert source.lengths.tolist() == [60] and 'duration' in sheet.read_text()
