"Features: the same as clip by clip, whatever the file, the stride, the interruption or the company."

import contextlib
import csv
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vidrepro.clips.contract import Clip, view
from vidrepro.clips.transforms import KINETICS_MEAN, KINETICS_STD
from vidrepro.core.files import InputError, located, locked
from vidrepro.data.clock import slack
from vidrepro.data.datasets import from_folder
from vidrepro.data.shards import pack
from vidrepro.data.video import probe, read_clips
from vidrepro.features import samples as module
from vidrepro.features.extract import Strip, extract
from vidrepro.features.formats import verify
from vidrepro.features.samples import on_screen
from vidrepro.features.settings import (
    Features,
    Settings,
    TimeAxis,
    feature_names,
    inputs,
    load,
    released_clip,
)

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


class Small(nn.Module):
    "Notices place, colour and the order of frames."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 8, 3, stride=2)

    def forward(self, x):
        return self.conv(F.avg_pool3d(x, (1, 8, 8))).relu().mean((3, 4)).flatten(1)


def write(path, ticks, tick=Fraction(1, 30), size=(48, 64), codec='libx264'):
    "A video whose frame i appears at `ticks[i]`; every frame is another picture."
    y, x = np.mgrid[: size[0], : size[1]]
    with av.open(
        str(path), 'w', options={'movflags': 'faststart'} if path.suffix == '.mp4' else {}
    ) as file:
        stream = file.add_stream(codec, rate=30, options={'threads': '1', 'preset': 'ultrafast'})
        stream.height, stream.width, stream.pix_fmt = *size, 'yuv420p'
        stream.time_base = stream.codec_context.time_base = tick
        for i, at in enumerate(ticks):
            grey = 128 + 100 * np.sin((x + 3 * i) / 9) * np.cos((y - 2 * i) / 7)
            frame = av.VideoFrame.from_ndarray(
                np.repeat(grey.astype(np.uint8)[..., None], 3, 2), format='rgb24'
            )
            frame.pts, frame.time_base = at, tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def slow_numbers(path, rate=15):
    "Numbers of the sampled frames, from a plain decoding of the whole file and the definition."
    with av.open(str(path)) as file:
        stream = [s for s in file.streams.video if s.codec_context][0]
        frames = [(f.pts, f.duration) for f in file.decode(stream)]
        tick, fps = float(stream.time_base), float(stream.guessed_rate or 25)
    stamps = [p for p, _ in frames]
    if None in stamps or len(set(stamps)) < len(stamps):
        tick, stamps, last = 1 / fps, list(range(len(frames))), 1
    else:
        stamps, last = sorted(stamps), frames[-1][1]
    seconds = [(p - stamps[0]) * tick for p in stamps]
    usual = seconds[-1] / (len(seconds) - 1) if len(seconds) > 1 else 0
    late, end, numbers, k = slack(tick), seconds[-1] + (last * tick or usual), [], 0
    while k == 0 or k / rate < end - late:
        numbers.append(max((i for i, t in enumerate(seconds) if t <= k / rate + late), default=0))
        k += 1
    gaps = np.diff(seconds)
    if len(gaps) and gaps.max() <= 1.25 * gaps.min():  # constant: as the authors of TSP count
        step = (len(gaps) / seconds[-1]) / rate
        whole = abs(step - round(step)) < 1e-4 * step
        count = -(-len(seconds) // round(step)) if whole else int(len(seconds) / step + 1e-6)
        numbers = numbers[: max(count, 1)]
    return numbers


def slow_features(network, path, frames=16, rate=15):
    "Stride 1: each clip is decoded by itself, interpolated by PyTorch and encoded alone. Strides are rows of it."
    numbers, rows = slow_numbers(path, rate), []
    mean, std = (torch.tensor(v)[:, None, None] for v in (KINETICS_MEAN, KINETICS_STD))
    for start in range(len(numbers) - frames + 1):
        clip = read_clips(path, [numbers[start : start + frames]])[0].transpose(0, 1).float() / 255
        x = (F.interpolate(clip, (128, 171), mode='bilinear', align_corners=False) - mean) / std
        with torch.inference_mode():
            rows.append(network(x[:, :, 8:120, 30:142].transpose(0, 1)[None])[0])
    return torch.stack(rows).numpy() if rows else np.zeros((0, 1), np.float32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Five videos of different rates and lengths, in two folders."
    home = tmp_path_factory.mktemp('videos')
    (home / 'sub').mkdir()
    write(home / 'a.mp4', range(90))
    write(home / 'b.mp4', range(0, 2000, 20), Fraction(1, 500))  # 25 fps
    write(home / 'sub' / 'c.mkv', [round(i * 1000 / 30) for i in range(70)], Fraction(1, 1000))
    write(home / 'sub' / 'd.mp4', range(0, 1001 * 60, 1001), Fraction(1, 30000))  # 29.97 fps
    write(
        home / 'e.mp4',
        np.cumsum(np.random.default_rng(0).integers(1, 9, 60)).tolist(),
        Fraction(1, 60),
    )  # variable
    return home


# ---- sampling and clips --------------------------------------------------------------------------


@QUICK
@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 4), st.integers(1, 40))
def test_number_of_clips(samples, frames, stride, hop):
    "The formula, and the clips that a strip hands out, are those of trying every start."
    clips = [range(s, s + frames * stride, stride) for s in range(0, samples, hop)]
    full = [list(clip) for clip in clips if clip[-1] < samples]
    chosen = Settings(Clip(frames, stride), hop)
    strip = Strip(chosen)
    clips = list(strip.add(torch.arange(samples)))
    assert chosen.clips(samples) == len(full) == strip.clips
    assert [list(map(int, c)) for c in clips] == full and len(strip.ring) <= chosen.reach


@QUICK
@given(st.lists(st.integers(1, 400), min_size=1, max_size=80), st.sampled_from([5, 15, 30]))
def test_samples_are_what_a_viewer_sees(gaps, rate):
    moments = np.cumsum([0, *gaps])[:-1] / 1000
    end = sum(gaps) / 1000
    got = list(
        on_screen([*((t - 1e-6, i) for i, t in enumerate(moments)), (end - 1e-6, None)], rate)
    )
    n = len(got)
    assert (n - 1) / rate < end <= n / rate + 2e-6 or n == 1
    assert got == [max(i for i, t in enumerate(moments) if t <= k / rate + 1e-6) for k in range(n)]


@pytest.mark.parametrize('frames, samples', [(27, 16), (26, 15), (28, 16), (29, 17)])
def test_a_last_sample_that_is_not_whole_is_left_out(tmp_path, frames, samples):
    "25 frames a second at 15: the authors take int(15 n / 25); the clip that needs one more is not written."
    write(tmp_path / 'a.mp4', range(frames), Fraction(1, 25))
    report = extract(Small(), tmp_path / 'a.mp4', tmp_path / 'o', Settings(hop=1, on_short='skip'))
    assert samples == int(15 * frames / 25)
    assert report.clips == max(samples - 15, 0)
    if report.clips:
        found = load(tmp_path / 'o' / 'a.npy')
        assert (found.video['samples'], len(found.array)) == (samples, samples - 15)
        assert set(verify(tmp_path / 'o', tmp_path / 'a.mp4').status) == {'ok'}


@pytest.mark.parametrize('fps, step', [(30, 2), (15, 1), (60, 4), (45, 3)])
def test_whole_ratios_take_every_frame_of_a_kind(tmp_path, fps, step):
    "TSP's rule where the ratio is whole: every second frame of a 30 fps file."
    path = write(tmp_path / 'x.mp4', range(50), Fraction(1, fps))
    assert slow_numbers(path) == list(range(0, 50, step))


@pytest.mark.parametrize('name', ['a.mp4', 'b.mp4', 'sub/c.mkv', 'sub/d.mp4', 'e.mp4'])
@pytest.mark.parametrize('hop', [1, 8, 16])
def test_equal_to_clip_by_clip(folder, tmp_path, name, hop):
    network = Small()
    report = extract(network, folder / name, tmp_path, Settings(hop=hop), batch=3)
    found, slow = (load(next(tmp_path.glob('*.npy'))), slow_features(network, folder / name)[::hop])
    assert not report.failed and found.array.shape == slow.shape
    np.testing.assert_allclose(found.array, slow, atol=1e-5, rtol=0)
    assert report.frames == probe(folder / name).frames  # one pass
    assert len(found.array) == (len(slow_numbers(folder / name)) - 16) // hop + 1
    np.testing.assert_allclose(found.times[:, 2], np.arange(len(slow)) * hop / 15 + 8 / 15)
    np.testing.assert_allclose(found.times[:, 1] - found.times[:, 0], 16 / 15)


REAL = [
    'ucf101_mini/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi',
    'ucf101_mini/BaseballPitch/v_BaseballPitch_g01_c01.avi',
    'odd/derived/vfr*.mp4',
    'odd/derived/rot90.mp4',
    'odd/derived/oddsize_127x95_yuv444.mp4',
    'odd/derived/fps1.mp4',
    'odd/derived/size_change_midstream.ts',
    'odd/derived/raw_stream.h264',
    'odd/real/decord/unordered.mov',
]


@pytest.mark.parametrize('pattern', REAL)
def test_real_files(data_dir, tmp_path, pattern):
    "Hops 1, 8 and 16 of files with stamps out of order, variable rate, rotation, odd sizes; pass `benchmarks/features.py` a folder for all."
    files = sorted(data_dir.glob(pattern))[:1]
    if not files:
        pytest.skip(f'no {pattern}')
    network, path = Small(), files[0]
    slow = None
    for hop in (1, 8, 16):
        report = extract(network, path, tmp_path / str(hop), Settings(hop=hop), batch=4)
        numbers = slow_numbers(path)
        if len(numbers) < 16:
            assert list(report.failed.values()) == [f'{len(numbers)} samples, a clip spans 16']
            continue
        if 'size_change' in path.name:  # no reader for whole clips of two sizes: only the count
            assert report.clips == Settings(hop=hop).clips(len(numbers))
            continue
        slow = slow_features(network, path) if slow is None else slow
        np.testing.assert_allclose(
            load(tmp_path / str(hop) / f'{path.stem}.npy').array, slow[::hop], atol=1e-5, rtol=0
        )


def test_frame_that_is_seen_twice_is_prepared_once(tmp_path, monkeypatch):
    "At 5 frames a second each is three samples, but one picture is made of it."
    path, made = write(tmp_path / 'x.mp4', range(12), Fraction(1, 5)), []
    show = lambda frame: made.append(1) or torch.zeros(1, 1, 3)
    monkeypatch.setattr(module, 'viewer', lambda clip: show)
    *chunks, facts = module.samples_of(path, released_clip())
    assert (sum(map(len, chunks)), len(made), facts.frames) == (
        len(slow_numbers(path)),
        12,
        12,
    ) and sum(map(len, chunks)) > 30


# ---- pictures ------------------------------------------------------------------------------------


def test_pictures_of_a_run_are_those_of_its_tests(tmp_path):
    "Of wide, tall and turned videos, the encoder sees what a source with its contract hands to a probe."
    (tmp_path / 'a').mkdir()
    sizes = dict(wide=(48, 96), tall=(96, 48), even=(64, 64), small=(24, 40))
    for name, size in sizes.items():
        write(tmp_path / 'a' / f'{name}.mp4', range(20), size=size)
    index, frames = torch.arange(4), torch.arange(0, 16, 2).expand(4, 1, 8)
    for clip in (Clip(8, 2, 32), Clip(8, 2, 32, picture='frame', resize=(32, 43))):
        source = replace(from_folder(tmp_path), clip=clip)
        tested = view(source.clips(index, frames)[:, 0], clip)
        for path, wanted in zip(source.table.path, tested):
            *chunks, _ = module.samples_of(tmp_path / path, clip)
            seen = torch.cat(chunks)[frames[0, 0]].permute(3, 0, 1, 2)
            torch.testing.assert_close(seen, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize('name, fps', [('a.mp4', 30), ('b.mp4', 25), ('sub/d.mp4', 30000 / 1001)])
def test_encoder_of_stored_frames(folder, tmp_path, name, fps):
    "Every second frame, as the file counts them; a row's seconds are those of its frames."
    network, clip = Small(), Clip(8, 2, 48)
    extract(network, folder / name, tmp_path, Settings(clip, hop=6), batch=2)
    found, count = load(next(tmp_path.glob('*.npy'))), probe(folder / name).frames
    starts = np.arange(0, count - 14, 6)
    clips = read_clips(folder / name, starts[:, None] + 2 * np.arange(8))
    with torch.inference_mode():
        slow = network(view(clips[..., 8:56], clip))
    np.testing.assert_allclose(found.array, slow, atol=1e-5)
    np.testing.assert_allclose(found.times[:, 0], starts / fps)
    np.testing.assert_allclose(found.times[:, 1], (starts + 15) / fps)
    assert found.video['fps'] == pytest.approx(fps)


def test_stored_frames_at_irregular_times_are_refused(folder, tmp_path):
    report = extract(Small(), folder / 'e.mp4', tmp_path, Settings(Clip(8, 1, 48)), batch=2)
    assert 'variable frame rate' in report.failed['e.mp4'] and not list(tmp_path.glob('*.npy'))
    report = extract(Small(), folder / 'e.mp4', tmp_path, Settings(Clip(8, 1, 48, 5.0)), batch=2)
    assert report.done == ['e.mp4']


def test_bf16_is_close(folder, tmp_path):
    one, two = (
        extract(Small(), folder / 'a.mp4', tmp_path / p, Settings(precision=p), batch=2)
        and load(tmp_path / p / 'a.npy')
        for p in ('fp32', 'bf16')
    )
    difference = np.abs(one.array - two.array).max()
    assert (
        one.array.dtype == two.array.dtype == np.float32
        and 0 < difference < 0.02 * np.abs(one.array).max()
    )


# ---- runs ----------------------------------------------------------------------------------------


def contents(out):
    return {
        p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file()
    }


def test_workers_batches_and_shards_change_nothing(folder, tmp_path):
    "The same bytes with four readers; the same numbers with other batches; shards are disjoint and complete."
    network, chosen = Small(), Settings(hop=4)
    extract(network, folder, tmp_path / 'one', chosen, batch=7)
    extract(network, folder, tmp_path / 'four', chosen, batch=7, workers=4)
    assert contents(tmp_path / 'one') == contents(tmp_path / 'four')
    reports = [
        extract(network, folder, tmp_path / 'parts', chosen, batch=5, shard=(i, 3))
        for i in range(3)
    ]
    assert sorted(p for r in reports for p in r.done) == sorted(inputs(folder)[1])
    for name in ('a', 'b', 'sub/c', 'sub/d', 'e'):
        np.testing.assert_allclose(
            load(tmp_path / 'one' / f'{name}.npy').array,
            load(tmp_path / 'parts' / f'{name}.npy').array,
            atol=1e-6,
        )


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_kill_and_restart(folder, tmp_path):
    "Killed at a random moment, again and again: whole files only, and in the end the bytes of an undisturbed run."

    class Slow(Small):
        def forward(self, x):
            time.sleep(0.02)
            return super().forward(x)

    chosen, out, kills, seen = Settings(hop=2), tmp_path / 'killed', 0, []
    extract(Small(), folder, tmp_path / 'whole', chosen, batch=4)
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), 'big'))
    for _ in range(8):
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                extract(Slow(), folder, out, chosen, batch=4, workers=2)
            os._exit(0)
        time.sleep(rng.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        files = list(out.rglob('[!.]*.npy'))
        for file in files:
            assert load(file).array.ndim == 2  # visible means whole
        seen.append(len(files))
    assert kills >= 2 and seen == sorted(seen)  # nothing that was done is lost
    report = extract(Small(), folder, out, chosen, batch=4)
    assert len(report.kept) == seen[-1]
    assert contents(out) == contents(tmp_path / 'whole')


def test_leftovers_of_others_stay(folder, tmp_path):
    "Half-written files of this shard's videos go, those of another shard that may be at work do not."
    for name in inputs(folder)[1][:2]:
        code = f"""
import os, signal
from vidrepro.core.files import atomic
with atomic({str(tmp_path / Path(name).with_suffix('.npy'))!r}) as temp:
    temp.write_bytes(b'half')
    os.kill(os.getpid(), signal.SIGKILL)
"""
        assert subprocess.run([sys.executable, '-c', code]).returncode == -signal.SIGKILL
    before = {p.name for p in tmp_path.rglob('.*.part*')}
    extract(Small(), folder, tmp_path, shard=(0, 5), batch=2)
    after = {p.name for p in tmp_path.rglob('.*.part*')}
    assert len(before) == 2 and len(after) == 1 and after < before


def test_two_runs_in_one_folder(folder, tmp_path):
    "The same part, or the whole beside a part, is refused while one is at work; two parts get along."
    run = lambda **how: extract(Small(), folder / 'a.mp4', tmp_path, batch=2, **how)
    with locked(tmp_path, '0-of-2'):
        for how in (dict(shard=(0, 2)), {}):
            with pytest.raises(InputError, match='another process is writing there'):
                run(**how)
        assert not run(shard=(1, 2)).failed
    with locked(tmp_path), pytest.raises(InputError, match='another process'):
        run(shard=(1, 2))
    assert run().done == ['a.mp4']


def test_changed_video_is_done_again(folder, tmp_path):
    "Another length, or other pixels in a file of the same length; features that are cut off or lost."
    video, out = tmp_path / 'v' / 'x.avi', tmp_path / 'out'
    video.parent.mkdir()
    run = lambda: extract(Small(), tmp_path / 'v', out, batch=2)
    write(video, range(90), codec='rawvideo')
    assert run().done == ['x.avi'] and run().kept == ['x.avi']
    write(tmp_path / 'other.avi', range(1, 91), codec='rawvideo')
    data = bytearray(video.read_bytes())
    data[30_000:40_000] = bytes(10_000)  # a darker first picture
    assert len(data) == video.stat().st_size
    video.write_bytes(data)
    assert run().done == ['x.avi'] and run().kept == ['x.avi']
    write(video, range(60), codec='rawvideo')
    assert run().done == ['x.avi']
    for spoil in (
        lambda f: f.write_bytes(f.read_bytes()[:-1]),
        lambda f: f.unlink(),
        lambda f: f.with_suffix('.json').write_text('{'),
        lambda f: f.with_suffix('.json').unlink(),
    ):
        spoil(out / 'x.npy')
        assert run().done == ['x.avi']


def test_long_names(folder, tmp_path):
    "Names of up to 250 bytes; one more is that video's failure and stops no other."
    (tmp_path / 'v').mkdir()
    names = ['a.mp4', '가' * 82 + '.mp4', 'k' * 246 + '.mp4', 'k' * 251 + '.mp4', 'z.mp4']
    for name in names:
        (tmp_path / 'v' / name).write_bytes((folder / 'a.mp4').read_bytes())
    (tmp_path / 'list.txt').write_text('\n'.join([*names, 'm' * 300 + '.mp4']))
    report = extract(Small(), tmp_path / 'list.txt', tmp_path / 'o', root=tmp_path / 'v', batch=2)
    assert sorted(report.done) == sorted(n for n in names if len(n) < 255)
    assert 'File name too long' in report.failed[names[3]] and len(report.failed) == 2
    again = extract(Small(), tmp_path / 'list.txt', tmp_path / 'o', root=tmp_path / 'v', batch=2)
    assert sorted(again.kept) == sorted(report.done) and again.failed == report.failed


def test_packed_videos(folder, tmp_path):
    "A video inside a shard has the features, and the content, of the file that was packed."
    (tmp_path / 'v' / 'c').mkdir(parents=True)
    (tmp_path / 'v' / 'c' / 'a.mp4').write_bytes((folder / 'a.mp4').read_bytes())
    pack(from_folder(tmp_path / 'v'), tmp_path / 's')
    shard = tmp_path / 's' / 'videos-000000.tar'
    (tmp_path / 'list.txt').write_text(f'{shard.name}/c/a.mp4\n')
    extract(Small(), tmp_path / 'v' / 'c', tmp_path / 'one', batch=2)
    extract(Small(), tmp_path / 'list.txt', tmp_path / 'two', root=shard.parent, batch=2)
    one, two = (load(next((tmp_path / k).rglob('a.npy'))) for k in ('one', 'two'))
    np.testing.assert_array_equal(one.array, two.array)
    assert one.video['content'] == two.video['content']
    assert two.video['bytes'] == located(shard / 'c' / 'a.mp4')[2]


@pytest.mark.parametrize('policy', ['error', 'pad', 'skip'])
def test_bad_videos_do_not_stop_the_others(folder, tmp_path, policy):
    "Cut off, sound only, half a second, variable rate, empty, no video at all, and absent."
    bad = tmp_path / 'bad'
    bad.mkdir()
    for name in ('a.mp4', 'e.mp4'):
        (bad / name).write_bytes((folder / name).read_bytes())
    write(bad / 'half.mp4', range(15))
    write(bad / 'cut.mp4', range(200))
    (bad / 'cut.mp4').write_bytes((bad / 'cut.mp4').read_bytes()[:-9000])
    with av.open(str(bad / 'sound.mp4'), 'w') as file:
        track = file.add_stream('aac', rate=44100)
        silence = av.AudioFrame(format='fltp', layout='mono', samples=1024)
        silence.sample_rate, silence.pts = 44100, 0
        for plane in silence.planes:
            plane.update(bytes(plane.buffer_size))
        file.mux(track.encode(silence))
        file.mux(track.encode())
    (bad / 'empty.mp4').write_bytes(b'')
    (bad / 'text.avi').write_text('not a video')
    (tmp_path / 'list.txt').write_text(
        '\n'.join([*sorted(p.name for p in bad.iterdir()), 'absent.mp4'])
    )
    report = extract(
        Small(),
        tmp_path / 'list.txt',
        tmp_path / 'out',
        Settings(on_short=policy),
        root=bad,
        batch=4,
    )
    broken = {'cut.mp4', 'sound.mp4', 'empty.mp4', 'text.avi', 'absent.mp4'}
    assert set(report.failed) == broken | ({'half.mp4'} if policy == 'error' else set())
    assert set(report.done) == {'a.mp4', 'e.mp4'} | ({'half.mp4'} if policy == 'pad' else set())
    assert set(report.skipped) == ({'half.mp4'} if policy == 'skip' else set())
    assert (
        'variable' in report.notes['e.mp4']
        and 'no such file' in report.failed['absent.mp4']
        and 'audio' in report.failed['sound.mp4']
    )
    with open(tmp_path / 'out' / 'failures.csv') as file:
        assert dict(list(csv.reader(file))[1:]) == report.failed
    assert {p.stem for p in (tmp_path / 'out').glob('*.npy')} == {Path(p).stem for p in report.done}


def test_odd_files(data_dir, tmp_path):
    "Every file of a folder of oddities ends in exactly one way, and none of them ends the run."
    root = data_dir / 'odd' / 'derived'
    with pytest.raises(InputError, match='vfr_dropped.mkv and vfr_dropped.mp4'):
        extract(Small(), root, tmp_path / 'out')
    paths = [p for p in inputs(root)[1] if p != 'vfr_dropped.mkv']
    (tmp_path / 'list.txt').write_text('\n'.join(paths))
    report = extract(
        Small(),
        tmp_path / 'list.txt',
        tmp_path / 'out',
        Settings(released_clip(size=32), on_short='skip'),
        root=root,
        batch=4,
        workers=2,
    )
    ends = [*report.done, *report.skipped, *report.failed]
    assert sorted(ends) == sorted(paths) and len(set(ends)) == len(ends)
    assert {'audio_only.mp4', 'random_bytes.mp4', 'empty.mp4'} <= set(
        report.failed
    ) and 'one_frame.mp4' in report.skipped
    for path in report.done:
        assert (
            load(tmp_path / 'out' / feature_names([path])[path]).video['frames']
            == probe(root / path, 'decode').frames
        )


# ---- what goes wrong elsewhere -------------------------------------------------------------------


def test_no_thread_is_left_behind(folder, tmp_path):
    class Broken(Small):
        def forward(self, x):
            raise RuntimeError('out of memory')

    before = threading.active_count()
    with pytest.raises(RuntimeError, match='out of memory'):
        extract(Broken(), folder, tmp_path, batch=1, workers=3)
    assert threading.active_count() == before and not list(tmp_path.rglob('*.npy'))


def test_networks_that_do_not_fit(folder, tmp_path):
    class Nan(Small):
        def forward(self, x):
            return super().forward(x) * float('nan')

    class Map(nn.Module):
        def forward(self, x):
            return x

    report = extract(Nan(), folder / 'a.mp4', tmp_path / 'nan', batch=2)
    assert report.failed == {'a.mp4': 'the network returned NaN or infinity'} and not list(
        (tmp_path / 'nan').glob('*.npy')
    )
    with pytest.raises(InputError, match='return one vector a clip'):
        extract(Map(), folder / 'a.mp4', tmp_path / 'map', batch=2)


def test_training_mode_is_given_back(folder, tmp_path):
    network = Small().train()
    extract(network, folder / 'a.mp4', tmp_path, batch=2)
    assert network.training


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda t: Settings(precision='int8'), 'use fp32 or bf16'),
        (lambda t: Settings(hop=0), 'hop: got 0'),
        (lambda t: inputs(t / 'none'), 'that exists'),
        (lambda t: extract(Small(), t / 'one.mp4', t / 'o', shard=(2, 2)), 'give 0 to 1'),
        (lambda t: extract(Small(), t / 'one.mp4', t / 'o', batch=0), 'at least 1'),
        (lambda t: inputs(t / 'bad.csv'), 'a column path, file, filename'),
        (lambda t: inputs(t / 'blank.txt'), 'no items'),
        (lambda t: load(t / 'alone.npy'), 'no .json'),
    ],
)
def test_input_errors(tmp_path, make, words):
    "One line that names the value and the remedy."
    (tmp_path / 'one.mp4').write_bytes(b'x')
    (tmp_path / 'bad.csv').write_text('name,frames\na,7\n')
    (tmp_path / 'blank.txt').write_text('\n')
    np.save(tmp_path / 'alone.npy', np.zeros((1, 1), np.float32))
    with pytest.raises(InputError, match=words) as caught:
        make(tmp_path)
    assert '\n' not in str(caught.value)


def test_tsp_metadata(data_dir, tmp_path):
    "The released table names 213 videos of THUMOS14; all of them are reported, none is here."
    table = next((data_dir / 'annotations').rglob('*thumos14*test*metadata*.csv'), None) or next(
        (
            p
            for p in (data_dir / 'annotations').rglob('*.csv')
            if p.read_text(errors='ignore').startswith('filename,video-duration')
            and 'video_test' in p.read_text()
        ),
        None,
    )
    if table is None:
        pytest.skip('no metadata table')
    report = extract(Small(), table, tmp_path, root=tmp_path)
    assert len(report.failed) == 213 and set(report.failed.values()) == {'no such file'}


def test_time_axis_of_resized_rows():
    "Rows keep the seconds they cover, whatever their number."
    for hop in (1, 8, 16):
        axis = Settings(hop=hop).axis()
        found = Features(np.zeros((40, 2), np.float32), axis, {}, {})
        for m in (1, 7, 40, 100):
            times = found.resample(m).times
            begin, end = axis.times(40)[0, 2] - axis.step / 2, axis.times(40)[-1, 2] + axis.step / 2
            np.testing.assert_allclose([times[0, 0], times[-1, 1]], [begin, end])
            np.testing.assert_allclose(np.diff(times[:, 2]), 40 * axis.step / m)
    assert TimeAxis(1.0, 2.0).times(2).tolist() == [[0, 2, 1], [1, 3, 2]]
