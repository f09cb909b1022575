"The command line as people use it: a run from a folder of videos to scores, and bad input in one line."

import contextlib
import io
import json
import shutil
import subprocess
import sys
from unittest import mock

import av
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from vidrepro.cli.main import main as cli
from vidrepro.digits.moving_digits import MovingDigits, write_videos

SMALL = [
    '--set',
    'steps=3',
    '--set',
    'batch=4',
    '--set',
    'frames=4',
    '--set',
    'size=24',
    '--set',
    'speeds=1,2',
    '--device',
    'cpu',
]


def in_another(*words, module='vidrepro'):
    "The command line in a process of its own: what it says."
    line = [sys.executable, '-m', module, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def vidrepro(*words):
    "The command line without the start of a process: exit code, output and errors."
    said, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, 'argv', ['vidrepro', *map(str, words)]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(errors),
    ):
        try:
            cli()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return code, said.getvalue(), errors.getvalue()


def done(*words):
    "What a command says that goes well."
    code, said, errors = vidrepro(*words)
    assert code == 0, errors[-2000:]
    return said


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Two classes, eight videos each, as mp4."
    home = tmp_path_factory.mktemp('videos') / 'set'
    write_videos(MovingDigits(n=16, length=16, motions=('left', 'right')), home, 15)
    return home


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    home = tmp_path_factory.mktemp('runs') / 'mine'
    in_another('train', 'tec', '--data', folder, '--folder', home, *SMALL)
    return home


def test_from_videos_to_scores(trained):
    said = done('evaluate', trained, '--device', 'cpu')
    known = json.loads((trained / 'scores.json').read_text())
    scores = {s['name']: s for s in known['set']}
    assert {'R@1', 'SVM'} <= set(scores) and 'chance' in said
    assert 2 <= scores['R@1']['n'] < 16 and 0 < scores['R@1']['chance'] < 1
    assert {p.name for p in trained.iterdir() if p.name != '.lock'} == {
        'checkpoint.safetensors',
        'log.csv',
        'run.json',
        'scores.json',
        'tensorboard',
    }


def test_train_again_needs_resume(folder, trained):
    code, _, errors = vidrepro('train', 'tec', '--data', folder, '--folder', trained, *SMALL)
    assert code == 2 and '--resume' in errors
    before = load_file(trained / 'checkpoint.safetensors')
    done('train', 'tec', '--data', folder, '--folder', trained, *SMALL, '--resume')
    after = load_file(trained / 'checkpoint.safetensors')
    assert all((before[k] == after[k]).all() for k in before)


@pytest.mark.parametrize('by', [r'_\d*(\d)\.', 'table'])
def test_recordings_stay_on_one_side(folder, tmp_path, by):
    "By a pattern in their names, or by a table; the run remembers the rule."
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.mp4'))
    group = {name: name[-5] for name in names}
    if by == 'table':
        by = tmp_path / 'groups.csv'
        by.write_text('path,group\n' + ''.join(f'{n},{g}\n' for n, g in group.items()))
    line = ['train', 'tec', '--data', folder, '--folder', tmp_path / 'run', '--group-by', by]
    done(*line, *SMALL, '--set', 'steps=0')
    held = json.loads((tmp_path / 'run' / 'run.json').read_text())['held_out']
    assert held and {group[n] for n in held}.isdisjoint(group[n] for n in {*names} - {*held})
    assert 'groups out' in done('evaluate', tmp_path / 'run', '--device', 'cpu', '--all')


def test_dry_run(tmp_path):
    said = done('train', 'tec', '--folder', tmp_path / 'run', '--dry-run', *SMALL)
    assert all(word in said for word in ('steps', 'M weights', 'GiB', 'a step', 'h on cpu'))
    assert not list(tmp_path.iterdir())


def test_doctor_claims_and_list(tmp_path):
    assert 'PyAV' in in_another('doctor', module='vidrepro.cli')
    assert 'tec-ablation' in done('run')
    done('claims', '--picture', tmp_path / 'claims.png')
    assert (tmp_path / 'claims.png').read_bytes()[:4] == b'\x89PNG'


def test_pictures_of_a_video(folder, trained, tmp_path):
    video = next(folder.rglob('*.mp4'))
    done('gradcam', trained, video, '--out', tmp_path, '--device', 'cpu')
    done('flow', video, '--out', tmp_path / 'map.mp4', '--show', 'map', '--short', 0)
    done('flow', video, '--out', tmp_path / 'flow.npz', '--method', 'difference', '--short', 16)
    assert {p.name for p in tmp_path.iterdir()} == {
        f'{video.stem}.gradcam.png',
        f'{video.stem}.gradcam.mp4',
        'map.mp4',
        'flow.npz',
    }
    with av.open(str(tmp_path / 'map.mp4')) as f:
        assert sum(1 for _ in f.decode(video=0)) == 15  # one less than frames


def one_frame(path):
    with av.open(str(path), 'w') as f:
        s = f.add_stream('mpeg4', 15)
        s.width = s.height = 32
        f.mux(s.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        f.mux(s.encode())


def sound(path):
    with av.open(str(path), 'w') as f:
        s = f.add_stream('aac', 44100)
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
            frame.sample_rate = 44100
            f.mux(s.encode(frame))
        f.mux(s.encode())


def broken(kind, path, good):
    if kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'truncated':
        path.write_bytes(good.read_bytes()[:600])
    elif kind == 'one frame':
        one_frame(path)
    else:
        sound(path)


@pytest.mark.parametrize('kind', ['empty', 'truncated', 'one frame', 'audio only'])
def test_bad_video(kind, folder, tmp_path):
    home = tmp_path / 'set'
    shutil.copytree(folder, home)
    broken(kind, home / 'left' / 'a_broken.mp4', next((home / 'left').iterdir()))
    words = ['train', 'tec', '--data', str(home), '--folder', str(tmp_path / 'run'), *SMALL]
    code, _, errors = vidrepro(*words)
    assert code == 2 and len(errors.strip().splitlines()) == 1 and 'a_broken.mp4' in errors
    assert not (tmp_path / 'run').exists()
    code, said, _ = vidrepro(*words, '--set', 'bad=skip')
    assert code == 0 and '1 bad videos' in said and 'a_broken.mp4' in said
    assert (tmp_path / 'run/checkpoint.safetensors').exists()


CASES = {
    'folder without videos': (['train', 'tec', '--data', '{empty}'], 'video'),
    'missing video': (['train', 'tec', '--data', '{listing}', '--root', '{folder}'], 'none.mp4'),
    'no such folder': (['train', 'tec', '--data', '{empty}/none'], 'none'),
    'unknown method': (['train', 'tecc'], 'tec'),
    'unknown preset': (['train', 'tec', '--preset', 'huge'], 'tiny'),
    'unknown setting': (['train', 'tec', '--set', 'framez=4'], 'frames'),
    'wrong value': (['train', 'tec', '--set', 'lr=fast'], 'float'),
    'impossible clip': (['train', 'tec', '--data', '{folder}', '--set', 'frames=400'], '400'),
    'no frames': (['train', 'tec', '--set', 'frames=0'], 'at least 1'),
    'wrong row': (['train', 'tec', '--set', 'temporal=sometimes'], 'equivariant'),
    'more than all': (['train', 'tec', '--set', 'flip=2'], 'flip: got 2.0; give 0 to 1'),
    'less than none': (['train', 'tec', '--set', 'warmup=-5'], 'give 0 or more'),
    'no number': (['train', 'tec', '--set', 'lr=nan'], 'setting lr'),
    'groups of nothing': (['train', 'tec', '--group-by', 'folder'], '--data'),
    'no group in a pattern': (
        ['train', 'tec', '--data', '{folder}', '--group-by', 'left'],
        '(bracket)',
    ),
    'odd batch': (['train', 'tec', '--set', 'batch=7'], 'multiple'),
    'big batch': (
        ['train', 'tec', '--data', '{folder}', '--set', 'frames=4', '--set', 'batch=64'],
        'smaller batch',
    ),
    'unknown backbone': (['train', 'tec', '--set', 'backbone=resnet'], 'r3d_18'),
    'unknown suite': (['run', 'everything'], 'tec-ablation'),
    'no checkpoint': (['evaluate', '{empty}'], 'no checkpoint'),
    'other method': (['evaluate', '{other}'], 'give a run of vidrepro train'),
    'unknown device': (['train', 'tec', '--device', 'cuda:99'], 'use cpu'),
    'nothing to resume': (['train', 'tec', '--resume'], 'holds no run'),
    'half a checkpoint': (['evaluate', '{half}'], 'safetensors'),
    'unknown flow': (['flow', '{video}', '--method', 'magic'], 'tvl1'),
    'no video for flow': (['flow', '{empty}/none.mp4'], 'none.mp4'),
    'unknown target': (['gradcam', '{trained}', '{video}', '--target', 'class'], 'supervised'),
    'pictures of one name': (['gradcam', '{trained}', '{video}', '{video}'], 'twice'),
    'no annotations': (['tsp', 'prepare', '{empty}/none.json', '{empty}'], 'none.json'),
    'claims of nobody': (['claims', 'moco'], 'tec'),
    'real data without a folder': (['train', 'tec', '--preset', 'real'], 'root'),
}


@pytest.mark.parametrize('case', CASES)
def test_bad_input(case, folder, trained, tmp_path, monkeypatch):
    words, hint = CASES[case]
    for name in ('empty', 'other', 'half'):
        (tmp_path / name).mkdir()
    whole = trained / 'checkpoint.safetensors'
    save_file(
        load_file(whole),
        tmp_path / 'other/checkpoint.safetensors',
        {'about': json.dumps(dict(method='other'))},
    )
    (tmp_path / 'half/checkpoint.safetensors').write_bytes(whole.read_bytes()[:5000])
    good = sorted(p.relative_to(folder) for p in folder.rglob('*.mp4'))
    (tmp_path / 'list.txt').write_text(
        ''.join(f'{p} {p.parent}\n' for p in [*good, good[0].parent / 'none.mp4'])
    )
    paths = dict(
        folder=folder,
        trained=trained,
        video=next(folder.rglob('*.mp4')),
        listing=tmp_path / 'list.txt',
        **{n: tmp_path / n for n in ('empty', 'other', 'half')},
    )
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*'))
    monkeypatch.chdir(tmp_path)
    code, _, errors = vidrepro(*(word.format(**paths) for word in words))
    assert code == 2 and len(errors.strip().splitlines()) == 1 and hint in errors, errors
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*')) == before
