"Scan, standardize, check and preview: every file once, nothing half, against the files' own manifests."

import csv
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from vidrepro.cli.data import app
from vidrepro.core.files import InputError
from vidrepro.core.walk import ENDINGS, walk_folder
from vidrepro.data import scan as module
from vidrepro.data.datasets import from_folder
from vidrepro.data.scan import Ledger, contact_sheet, in_processes, look, once_each, scan
from vidrepro.data.standardize import copy_times, standardize
from vidrepro.data.video import probe, read_clips
from vidrepro.digits.moving_digits import MovingDigits, write_videos


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def videos(tmp_path):
    write_videos(MovingDigits(4, size=32, length=12, motions=('left', 'cw')), tmp_path / 'videos')
    return tmp_path / 'videos'


def videos_in(folder, endings=ENDINGS):
    "Videos below a folder."
    return walk_folder(folder, endings)[0]


def write_gray(path, ticks, tick=Fraction(1, 1000)):
    "Frame i is one even gray of level 8 i, shown from tick `ticks[i]` on."
    with av.open(str(path), 'w') as file:
        stream = file.add_stream(
            'libx264', rate=30, options={'crf': '0', 'bf': '2', 'threads': '1'}
        )
        stream.width, stream.height, stream.pix_fmt = 48, 64, 'yuv420p'
        stream.codec_context.time_base = stream.time_base = tick
        for number, pts in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(
                np.full((64, 48, 3), 8 * number, np.uint8), format='rgb24'
            )
            frame.pts, frame.time_base = pts, tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.fixture
def calls(monkeypatch):
    "Paths that were decoded, in order."
    seen = []
    monkeypatch.setattr(module, 'look', lambda root, path: seen.append(path) or look(root, path))
    return seen


# ---- real files ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def everything(data_dir, tmp_path_factory):
    "Every video beside the checkout, scanned once."
    folder = tmp_path_factory.mktemp('scan')
    endings = ENDINGS | {'.m4a'}
    table, decoded = scan(data_dir, folder / 'facts.csv', folder / 'bad.csv', endings=endings)
    assert len(decoded) == len(table) == len(videos_in(data_dir, endings))
    return folder, endings, table.set_index('path')


def expected(row):
    "Status and good frames that a manifest asks for."
    if row['file'] == 'torchcodec/nasa_13013.mp4':  # the manifest describes the smaller stream
        row |= dict(decoded_frames='390', w='480', h='270')
    frames = int(row['decoded_frames'])
    if row['bytes'] == '0':
        return {'empty'}, 0
    if row['pyav_error'] == 'no video stream':
        return {'no video stream'}, 0
    if row['file'] == 'truncated60.mkv':
        return {'truncated'}, 0  # its first page says how long it should be
    if row['file'] == 'bitflips_in_mdat.mp4':
        return {'damaged'}, 0  # a decoder that ignores errors shows 109 frames
    if row['pyav_error']:
        return {'truncated', 'damaged'} if frames else {'damaged', 'unreadable'}, frames
    return {'ok'}, frames


@pytest.mark.parametrize('group, count', [('derived', 38), ('real', 48)])
def test_odd_files(everything, data_dir, group, count):
    with open(data_dir / 'odd' / f'{group}_manifest.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    late = {
        'size_change_midstream.ts',
        'mmaction2_tests/test.avi',
    }  # time stamps out of order, which is no varying rate
    for row in rows:
        found = everything[2].loc[f'odd/{group}/{row["file"]}']
        status, frames = expected(row)
        assert found.status in status and int(found.frames) == frames, row['file']
        if status != {'ok'}:
            assert found.reason, row['file']
            continue
        turned = row['rotation'] in ('90', '-90')
        assert (float(found.width), float(found.height)) == tuple(
            float(row[k]) for k in ('hw' if turned else 'wh')
        ) or row['sizes'], row['file']
        assert (found.audio == 'True') == bool(row['audio']), row['file']
        assert (found.vfr == 'True') == (row['vfr'] == '1') or row['file'] in late, row['file']
        assert found.codec == row['codec'], row['file']
        assert bool(found.reason) == bool(row['sizes']), row['file']


def test_all_others_are_whole(everything):
    table = everything[2]
    others = table[~table.index.str.startswith('odd/')]
    assert set(others.status) == {'ok'} and len(others) >= 90 + 16 + 20
    assert (others[others.index.str.startswith('weizmann/')].frames.astype(int) >= 28).all()


def test_second_scan_decodes_nothing(everything, data_dir, calls):
    folder, endings, table = everything
    before = (folder / 'facts.csv').read_bytes(), (folder / 'bad.csv').read_bytes()
    again, decoded = scan(data_dir, folder / 'facts.csv', folder / 'bad.csv', endings=endings)
    assert not decoded and not calls and len(again) == len(table)
    assert before == ((folder / 'facts.csv').read_bytes(), (folder / 'bad.csv').read_bytes())
    bad = pd.read_csv(folder / 'bad.csv')
    assert set(bad.path) == set(table.index[table.status != 'ok'])


def test_check_names_exactly_what_is_missing(data_dir):
    lists = data_dir / 'annotations' / 'ucfTrainTestlist'
    result = run('check', 'ucf101', data_dir / 'ucf101_mini', '--annotations', lists)
    official = {
        line.split()[0]
        for name in ('trainlist01', 'testlist01')
        for line in (lists / f'{name}.txt').read_text().splitlines()
    }
    there = {
        p.relative_to(data_dir / 'ucf101_mini').as_posix()
        for p in (data_dir / 'ucf101_mini').rglob('*.avi')
    }
    missing = [
        line.removeprefix('missing ')
        for line in result.stdout.splitlines()
        if line.startswith('missing ')
    ]
    assert (
        len(missing) == len(set(missing)) == 13_304
        and set(missing) == official - there
        and len(there) == 16
    )
    assert (
        result.exit_code == 1
        and '16 of 13320 files found, 13304 missing, 0 unexpected' in result.stdout
    )
    result = run(
        'check',
        'weizmann',
        data_dir / 'weizmann',
        '--annotations',
        data_dir / 'weizmann',
        '--classes',
    )
    assert (
        result.exit_code == 0
        and '90 of 90 files found' in result.stdout
        and result.stdout.count('\nclass ') + 1 >= 20
    )


# ---- made files ----------------------------------------------------------------------------------


def test_only_what_changed(videos, tmp_path, calls):
    table, bad = tmp_path / 't.csv', tmp_path / 'q.csv'
    bad.write_text('path,reason\nelsewhere/x.mp4,found by a run\n')
    first, second, *_ = videos_in(videos)
    scan(videos, table, bad)
    assert calls == videos_in(videos)
    calls.clear()
    (videos / first).write_bytes(b'')
    (videos / 'new.mp4').write_bytes(b'no video')
    (videos / second).unlink()
    facts, decoded = scan(videos, table, bad)
    assert calls == decoded == sorted([first, 'new.mp4']) and second not in set(facts.path)
    assert pd.read_csv(bad).path.tolist() == sorted([first, 'elsewhere/x.mp4', 'new.mp4'])
    assert len(from_folder(videos, bad=f'quarantine:{bad}').lengths) == 2


def test_interrupted_scan_goes_on(videos, tmp_path, monkeypatch):
    done = []

    def stop(root, path):
        if len(done) == 2:
            raise KeyboardInterrupt
        return done.append(path) or look(root, path)

    monkeypatch.setattr(module, 'look', stop)
    with pytest.raises(KeyboardInterrupt):
        scan(videos, tmp_path / 't.csv')
    with open(tmp_path / 't.csv', 'a') as file:
        file.write('left/half a li')
    monkeypatch.setattr(module, 'look', look)
    facts, decoded = scan(videos, tmp_path / 't.csv')
    assert len(decoded) == 2 and not set(decoded) & set(done) and set(facts.status) == {'ok'}
    scan(videos, tmp_path / 'fresh.csv')
    assert (tmp_path / 'fresh.csv').read_bytes() == (tmp_path / 't.csv').read_bytes()


def test_another_process(videos, tmp_path):
    "It writes the table of this one."
    for path in videos_in(videos)[1:]:
        (videos / path).unlink()
    scan(videos, tmp_path / 'one.csv')
    scan(videos, tmp_path / 'two.csv', workers=2)
    assert (tmp_path / 'one.csv').read_bytes() == (tmp_path / 'two.csv').read_bytes()


def test_a_process_that_dies(monkeypatch):
    "It costs its own item only; the processes need no PyTorch for that, and a full machine no memory."
    monkeypatch.setattr(module, 'torch', SimpleNamespace(set_num_threads=abs))
    fatal = "__import__('os')._exit(1)"
    assert list(in_processes(eval, [fatal], 2)) == [(fatal, None)]


def test_one_culprit_among_many(monkeypatch):
    "The rest of the work is done exactly once when a pool breaks, wherever the culprits are."

    class Pool:  # tasks run one by one; a fatal one breaks it, and all that are waiting with it
        def __init__(self, *_):
            self.broken = False

        def submit(self, work, item):
            task = Future()
            self.broken = self.broken or item in (7, 8, 30)
            task.set_exception(BrokenProcessPool()) if self.broken else task.set_result(work(item))
            return task

        def shutdown(self, **_):
            pass

    done = []
    monkeypatch.setattr(module, 'ProcessPoolExecutor', Pool)
    found = list(in_processes(lambda item: done.append(item) or -item, list(range(40)), 2))
    assert sorted(found) == [(k, None if k in (7, 8, 30) else -k) for k in range(40)]
    assert set(done) == set(range(40)) - {7, 8, 30}


def test_lost_process_is_a_row(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, 'in_processes', lambda work, items, workers: ((item, None) for item in items)
    )
    facts, _ = once_each(
        str, videos, videos_in(videos)[:1], Ledger(tmp_path / 't.csv', ('status', 'reason')), ''
    )
    assert facts.status.tolist() == ['unreadable'] and 'process' in facts.reason[0]


@pytest.mark.parametrize('fps', [5, 12.5, 29.97, 60])
def test_copies_show_what_was_on_screen(tmp_path, fps):
    "Eq. (1) against a search, for a rate that varies: stretches of 20 to 170 ms, half a tick late."
    ticks = np.cumsum([0, 33, 33, 170, 20, 20, 34, 33, 90, 33, 41, 60, 33, 100, 33]).tolist()
    (tmp_path / 'in').mkdir()
    write_gray(tmp_path / 'in/a.mkv', ticks)
    assert probe(tmp_path / 'in/a.mkv').vfr
    rows, _ = standardize(tmp_path / 'in', tmp_path / 'out', fps, 64, 0)
    info, rate = probe(tmp_path / 'out/a.mp4', 'decode'), Fraction(fps).limit_denominator(1001)
    assert (
        rows.status.tolist() == ['ok']
        and not info.vfr
        and info.fps == pytest.approx(float(rate), rel=1e-6)
    )
    assert (info.width, info.height) == (64, 86) and int(rows.frames[0]) == info.frames
    levels = (
        read_clips(tmp_path / 'out/a.mp4', [range(info.frames)])[0].double().mean((0, 2, 3)) / 8
    )
    shown = [
        max(i for i, tick in enumerate(ticks) if Fraction(2 * tick - 1, 2000) <= k / rate)
        for k in range(info.frames)
    ]
    assert levels.round().int().tolist() == shown
    assert info.frames / rate >= Fraction(ticks[-1], 1000)


def test_copy_times():
    assert copy_times(0.0, Fraction(15)) == [0.0] and len(copy_times(2.0, Fraction(15))) == 30
    assert (
        len(copy_times(109 / 30, Fraction(30))) == 109 and len(copy_times(2.01, Fraction(15))) == 31
    )


def test_killed_conversion(tmp_path):
    "SIGKILL in the middle: every file that is there is whole, and the next run makes the others only."
    write_videos(MovingDigits(16, size=48, length=40, motions=('left', 'cw')), tmp_path / 'in')
    code = f"from vidrepro.data.standardize import standardize; standardize({str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}, 30, 160, 20)"
    ledger = tmp_path / 'out/standardize.csv'
    with subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE) as child:
        for _ in range(3000):
            if (
                ledger.exists()
                and len(ledger.read_text().splitlines()) > 3
                or child.poll() is not None
            ):
                break
            time.sleep(0.01)
        assert child.poll() is None, child.stderr.read().decode()
        child.send_signal(signal.SIGKILL)
    made = {
        path: (tmp_path / 'out' / path).stat().st_mtime_ns for path in videos_in(tmp_path / 'out')
    }
    assert 3 <= len(made) < 16
    assert {probe(tmp_path / 'out' / path, 'decode').frames for path in made} == {40}
    rows, now = standardize(tmp_path / 'in', tmp_path / 'out', 30, 160, 20)
    assert set(rows.status) == {'ok'} and len(videos_in(tmp_path / 'out')) == len(rows) == 16
    assert (
        16 - len(made) <= len(now) <= 16 - len(made) + 1
    )  # a file may be whole and its row not yet written
    assert all(
        (tmp_path / 'out' / p).stat().st_mtime_ns == t for p, t in made.items() if p not in now
    )
    assert standardize(tmp_path / 'in', tmp_path / 'out', 30, 160, 20)[1] == []


def test_new_settings_and_changed_sources(videos, tmp_path):
    paths = videos_in(videos)
    assert standardize(videos, tmp_path / 'out', 10, 16)[1] == paths
    assert standardize(videos, tmp_path / 'out', 12, 16)[1] == paths
    os.utime(videos / paths[0], ns=(1, 1))
    assert standardize(videos, tmp_path / 'out', 12, 16)[1] == paths[:1]
    (videos / 'cut.avi').write_bytes(b'no video')
    rows, now = standardize(videos, tmp_path / 'out', 12, 16)
    assert (
        now == ['cut.avi']
        and rows.set_index('path').status['cut.avi'] == 'unreadable'
        and not (tmp_path / 'out/cut.mp4').exists()
    )


@pytest.mark.parametrize(
    'words, says',
    [
        (['scan', 'nowhere'], 'exists'),
        (['preview', 'nowhere'], 'exists'),
        (['card', 'ucf102'], 'ucf101'),
        (['check', 'ucf101', 'videos'], 'classInd.txt'),
        (['check', 'moving_digits', 'videos'], 'needs no files'),
        (['check', 'ucf101', 'videos', '--fold', 4], 'fold'),
        (['standardize', 'videos', 'out', '--fps', 0], 'fps'),
        (['standardize', 'videos', 'out', '--short-side', 33], 'even'),
        (['standardize', 'videos', 'out', '--crf', 52], 'crf'),
        (['standardize', 'videos', 'videos'], 'outside'),
        (['standardize', 'videos', 'videos/copies'], 'outside'),
        (['scan', 'videos', '--endings', 'xyz'], 'no videos'),
        (['pack', 'videos', 'out', '--max-count', 0], 'bounds'),
        (['pack', 'videos', 'out', '--bad', 'x'], 'policy'),
        (['pack', 'videos', 'out', '--split', 'a'], '--dataset'),
        (['unpack', 'videos', 'out'], 'index.json'),
        (['compose', 'out', '--train', 'nowhere'], 'exists'),
    ],
    ids=lambda x: ' '.join(map(str, x)) if isinstance(x, list) else '',
)
def test_bad_input(videos, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert (
        result.exit_code == 2
        and result.stderr.startswith('error: ')
        and result.stderr.count('\n') == 1
        and says in result.stderr
    )
    assert not (tmp_path / 'out/index.json').exists()


def test_mounted(videos):
    "As a group of another program, errors and exit codes are the same."
    program = typer.Typer()
    program.add_typer(app)
    result = CliRunner().invoke(program, ['data', 'card', 'ucf102'])
    assert (
        result.exit_code == 2
        and result.stderr.startswith('error: data set')
        and 'ucf101' in result.stderr
    )
    assert CliRunner().invoke(program, ['data', 'list']).stdout.count('\n') >= 8


def test_refusals(videos, tmp_path):
    (videos / 'a.avi').write_bytes(b'1'), (videos / 'a.mkv').write_bytes(b'2')
    with pytest.raises(InputError, match='rename'):
        standardize(videos, tmp_path / 'out')
    (tmp_path / 'mine.csv').write_text('my,own,table\n1,2,3\n')
    with pytest.raises(InputError, match='no table of this work'):
        scan(videos, tmp_path / 'mine.csv')
    assert (tmp_path / 'mine.csv').read_text() == 'my,own,table\n1,2,3\n'


def test_preview(videos, tmp_path):
    (videos / 'none.mp4').touch()
    assert contact_sheet(videos, tmp_path / 'a.png', 5, 3, 32) == videos_in(videos)
    contact_sheet(videos, tmp_path / 'b.png', 5, 3, 32)
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


def test_one_file_for_every_command(videos, tmp_path, monkeypatch):
    "The way that the help describes, from a folder to shards, and default names of the tables."
    monkeypatch.chdir(tmp_path)
    result = run('scan', 'videos', '--workers', 1)
    assert (
        result.exit_code == 0
        and 'decoded 4 files, 0 unchanged' in result.output
        and Path('videos.scan.csv').exists()
    )
    assert 'decoded 0 files, 4 unchanged' in run('scan', 'videos', '--workers', 1).output
    assert run('standardize', 'videos', 'copies', '--workers', 1, '--short-side', 32).exit_code == 0
    assert (
        run('pack', 'copies', 'shards', '--bad', 'quarantine:videos.quarantine.csv')
        .output.splitlines()[-1]
        .startswith('4 samples in 1 shards')
    )
    assert run('unpack', 'shards', 'back').exit_code == 0
    assert all(
        (Path('back') / p).read_bytes() == (Path('copies') / p).read_bytes()
        for p in videos_in(Path('copies'))
    )


def test_both_sides(videos, tmp_path):
    "Copies of one height and width, whatever the source; the middle is kept."
    table, _ = standardize(videos, tmp_path / 'out', fps=5, short=(32, 48))
    good = table[table.status == 'ok']
    assert len(good) and set(zip(good.height, good.width)) == {(32, 48)}
    for path in good.path:
        info = probe((tmp_path / 'out' / path).with_suffix('.mp4'))
        assert (info.height, info.width) == (32, 48)
    with pytest.raises(InputError, match='even'):
        standardize(videos, tmp_path / 'odd', short=(32, 47))


def test_videos_are_not_to_blame_for_processes(videos, tmp_path, monkeypatch):
    "Where none can start, that is said, and no video is called broken."

    def broken(*_, **__):
        raise BrokenProcessPool('no process')

    monkeypatch.setattr(module.ProcessPoolExecutor, 'submit', broken)
    with pytest.raises(InputError, match='processes cannot start here'):
        scan(videos, tmp_path / 'scan.csv', workers=2)


def test_pack_looks_at_what_it_packs(videos, tmp_path):
    "A broken file is refused or left out before a shard is written."
    broken = videos / videos_in(videos)[0]
    broken.write_bytes(b'')
    refused = run('pack', videos, tmp_path / 'shards')
    assert refused.exit_code == 2 and broken.name in refused.output
    assert not (tmp_path / 'shards').exists()
    done = run('pack', videos, tmp_path / 'shards', '--bad', 'skip')
    assert done.exit_code == 0 and '3 samples' in done.output
