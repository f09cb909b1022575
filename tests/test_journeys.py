"Every command that README and the pages of the command line print is typed, outside the checkout, and leaves what it promises."

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import pytest

from vidrepro.core.files import data_root

ROOT, VIDREPRO = Path(__file__).parents[1], Path(sys.executable).with_name('vidrepro')
SMALL = '--set steps=2 --set batch=4 --set frames=4 --set size=24 --set warmup=1 --device cpu'
MORE = {  # what makes a command quick; settings come last, and the last one holds
    'train tsp': f"{SMALL} --set classes=2 --set background='' --set gvf=none",
    'data motion': '--preset real',
    'train mcl --data few_videos': SMALL.replace('frames=4', 'frames=8').replace('=24', '=64'),
    'train mcl': SMALL.replace('frames=4', 'frames=8'),
    'train': SMALL,
    'localize train': '--preset small --set epochs=1',
    'localize captions train': '--set epochs=1 --set width=8',
    'features extract': '--hop 4 --on-short pad',
}
HOURS = {  # stopped with Ctrl-C as soon as such a file is there
    'run tec-ablation': 'runs/tec/tiny/*/run.json',
    'run gpu': 'runs/gpu/*/smoke/*/run.json',
}


def printed():
    "Place -> command lines printed there, in order."
    text, found = (ROOT / 'README.md').read_text(encoding='utf-8'), {}
    found['README'] = re.findall(r'^(vidrepro .+?)(?:  +#.*)?$', text, re.M)
    for page in sorted((ROOT / 'nbs/cli').glob('*.ipynb')):
        cells = json.loads(page.read_text(encoding='utf-8'))['cells']
        prose = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
        found[page.stem] = re.findall(r'^    (vidrepro .+)$', prose, re.M)
    return {place: lines for place, lines in found.items() if lines}


def film(path, size, fps, shift, frames=90):
    "A bright square that moves over noise."
    path.parent.mkdir(parents=True, exist_ok=True)
    (h, w), draw = size, np.random.default_rng(list(path.name.encode()))
    ground = draw.integers(0, 120, (h, w, 3), np.uint8)
    with av.open(str(path), 'w') as file:
        stream = file.add_stream('libx264', rate=fps, options=dict(preset='ultrafast'))
        stream.height, stream.width, stream.pix_fmt = h, w, 'yuv420p'
        for t in range(frames):
            picture = ground.copy()
            at = (draw.integers(0, 3) + 2 * shift * t) % (w - 20)
            picture[h // 3 : h // 3 + 20, at : at + 20] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        file.mux(stream.encode())
    return path


def typed(line):
    "Type a command in a shell's way; its exit code and everything it said."
    words = shlex.split(line)[1:]
    more = next((m for start, m in MORE.items() if ' '.join(words).startswith(start)), '')
    signs = next((s for start, s in HOURS.items() if ' '.join(words).startswith(start)), None)
    with tempfile.TemporaryFile('w+', encoding='utf-8') as said:
        to = dict(stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        with subprocess.Popen([VIDREPRO, *words, *shlex.split(more)], **to) as command:
            late = time.monotonic() + 300
            while signs and command.poll() is None and not list(Path.cwd().glob(signs)):
                if time.monotonic() > late:
                    command.kill()
                    raise AssertionError(f'no {signs} after {words}')
                time.sleep(0.5)
            if signs:
                command.send_signal(signal.SIGINT)
            code = command.wait()
        said.seek(0)
        return code, said.read()


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "Two classes of clips, wide and high, fast and slow; and their names in the annotations."
    home = tmp_path_factory.mktemp('films')
    for k in range(8):
        size, fps = ((90, 160), (160, 90), (120, 122))[k % 3], (25, 30, 24)[k % 3]
        for label, shift in dict(jump=1, run=-1).items():
            film(home / label / f'{k + 1:02} {label}.mp4', size, fps, shift)
    return home


def told(names):
    "Annotations and captions of videos by name."
    acts = [dict(segment=[0.3, 1.4], label='jump'), dict(segment=[1.8, 2.6], label='run')]
    base, said = {}, {}
    for k, name in enumerate(sorted(names)):
        number = 0 if name == 'one' else int(name[:2]) - 1
        about = dict(duration=90 / (25, 30, 24)[number % 3])
        base[name] = about | dict(subset=('training', 'validation')[k % 2], annotations=acts)
        said[name] = about | dict(timestamps=[[0.3, 1.4]], sentences=['It jumps up'])
    return dict(database=base), said


@pytest.fixture
def home(films, tmp_path, monkeypatch):
    "A folder with all that the lines name."
    monkeypatch.chdir(tmp_path)
    for name in ('my_videos', 'my/videos', 'videos'):
        shutil.copytree(films, tmp_path / name)
    shutil.copytree(films, tmp_path / 'other/videos')
    for path in (tmp_path / 'other/videos').rglob('*.mp4'):
        film(path, (64, 96), 15, 2, frames=40)
    for k in range(4):  # for what takes long
        for label in ('jump', 'run'):
            film(tmp_path / 'few_videos' / label / f'{k + 1:02} {label}.mp4', (64, 96), 15, 2, 40)
    one = films / 'jump' / '01 jump.mp4'
    for name in ('my_video.mp4', 'jump.mp4', 'my/videos/jump/01.mp4', 'videos/one.mp4'):
        shutil.copy(one, tmp_path / name)
    names = {p.stem for p in (tmp_path / 'videos').rglob('*.mp4')}
    truth, said = told(names)
    for file in ('truth.json', 'segments.json'):
        here = truth if file == 'truth.json' else told(names - {'one'})[0]
        (tmp_path / file).write_text(json.dumps(here))
    for file in ('captions_train.json', 'captions_val_1.json', 'captions_val_2.json'):
        (tmp_path / file).write_text(json.dumps(said))
    (tmp_path / 'told.json').write_text(json.dumps(told(names - {'one'})[1]))
    names = 'PRESETS, build, loss, sample, views'
    (tmp_path / 'my_method.py').write_text(f'from vidrepro.papers.tec import {names}\n')
    untrimmed = dict(database={})
    for k, path in enumerate(sorted(films.rglob('*.mp4'))):
        part = ('train', 'valid')[k % 2]
        (tmp_path / 'my/untrimmed' / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / 'my/untrimmed' / part)
        untrimmed['database'] |= told([path.stem])[0]['database']
        untrimmed['database'][path.stem]['subset'] = ('training', 'validation')[k % 2]
    (tmp_path / 'annotations.json').write_text(json.dumps(untrimmed))
    return tmp_path


@pytest.mark.parametrize('place', printed())
def test_lines(place, home):
    if place not in ('README', '94_train', '114_many'):
        assert typed('vidrepro train tec --data my/videos --folder runs/mine')[0] == 0
    for line in printed()[place]:
        line = line.replace('my_videos', 'few_videos') if 'motion' in line else line
        words = line.split()
        if '--data weizmann' in line:
            if not data_root():
                continue
            shutil.rmtree(home / 'videos')
            (home / 'videos').mkdir()
            (home / 'videos/weizmann').symlink_to(data_root() / 'weizmann')
        if words[1] == 'compare' or 'runs/other' in line:
            names = ('other',) if words[1] == 'gradcam' else ('one', 'two', 'three', 'other')
            for k, name in enumerate(names):
                new = f'vidrepro train tec --data my_videos --folder runs/{name} --seed {k}'
                assert (home / 'runs' / name).exists() or typed(new)[0] == 0
        code, said = typed(line)
        stopped = any(' '.join(words[1:]).startswith(start) for start in HOURS)
        assert code == (130 if stopped else 0), (line, said[-800:])
        assert said.strip().endswith('stopped') or not stopped, (line, said[-800:])
        promised(home, line, words)


def promised(home, line, words):
    "What a line leaves behind."
    for file in re.findall(r'\S+\.(?:safetensors|npz|html|png)\b', line):
        assert (home / file).is_file(), line
    if words[1] == 'train' and '--dry-run' not in line:
        folder = re.search(r'--folder (\S+)', line)
        preset = re.search(r'--preset (\S+)', line)
        name = f'{Path(words[2]).stem}-{preset[1] if preset else "tiny"}-0'
        there = home / (folder[1] if folder else f'runs/{name}')
        assert (there / 'checkpoint.safetensors').is_file() and (there / 'run.json').is_file()
    if words[1:3] == ['features', 'extract']:
        assert list((home / 'features').rglob('*.npy'))
    if words[1] == 'gradcam':
        assert {p.suffix for p in home.glob('*.gradcam.*')} == {'.png', '.mp4'}
    if words[1] == 'flow':
        out = re.search(r'--out (\S+)', line)
        assert (home / (out[1] if out else 'my_video.map.mp4')).is_file()
    if words[1:3] == ['tsp', 'prepare']:
        assert len(list((home / 'my/untrimmed').glob('*.csv'))) == 4
