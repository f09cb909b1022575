"Every method goes through every door: train, be killed, resume, be scored, give features, be explained."

import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch

from vidrepro.cli.features import extract_command
from vidrepro.cli.pictures import gradcam
from vidrepro.cli.train import evaluate, train
from vidrepro.data.datasets import from_folder
from vidrepro.data.shards import pack
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.digits.untrimmed import Script, UntrimmedDigits, compose
from vidrepro.learning.train import Log
from vidrepro.papers import tsp
from vidrepro.runs import videos as runs_videos
from vidrepro.runs.run import open_run

ROOT = Path(__file__).parents[1]
MOTIONS = ('left', 'right', 'up')


@dataclass
class Door:
    "Videos as a user would name them."

    words: dict  # options of `train`
    video: Path  # one file of them
    folder: Path  # of files that features are wanted of


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    home = tmp_path_factory.mktemp('data') / 'clips'
    write_videos(MovingDigits(n=60, length=40, motions=MOTIONS), home, 15)
    return home


@pytest.fixture(scope='module')
def doors(clips, tmp_path_factory):
    "One set of videos behind five doors, and composed ones for a method that needs them."
    home = tmp_path_factory.mktemp('doors')
    files = sorted(clips.rglob('*.mp4'))
    names = [f.relative_to(clips) for f in files]
    rows = [f'{n} {n.parts[0]}' for n in names]
    (home / 'list.txt').write_text('\n'.join(rows), encoding='utf-8')
    people = [
        f'{n},{n.parts[0]},{"abcd"[i % 4]},{"test" if i % 4 == 3 else "train"}'
        for i, n in enumerate(names)
    ]  # as Weizmann's own list, whose card says how it is read
    sheet = '\n'.join(['file,label,subject,split', *people])
    (home / 'card').mkdir()
    (home / 'card' / 'split_subjects.csv').write_text(sheet, encoding='utf-8')
    (home / 'groups.csv').write_text(sheet.replace('subject', 'group'), encoding='utf-8')
    for folder in clips.iterdir():
        (home / 'card' / folder.name).symlink_to(folder)
    pack(from_folder(clips, splits=True), home / 'shards')
    parts = {
        p: MovingDigits(40, seed=s, motions=MOTIONS[:2]) for s, p in enumerate(('train', 'valid'))
    }
    compose(parts, home / 'long', 4, Script(actions=(1, 2), action=(2.0, 3.0)))
    one = files[0]
    return {
        'digits': Door(dict(data=''), one, clips),
        'folder': Door(dict(data=str(clips)), one, clips),
        'list': Door(dict(data=str(home / 'list.txt'), root=str(clips)), one, clips),
        'card': Door(dict(data='weizmann', root=str(home / 'card')), one, clips),
        'groups': Door(dict(data=str(home / 'groups.csv'), root=str(clips)), one, clips),
        'shards': Door(dict(data=str(home / 'shards')), one, clips),
        'composed': Door(dict(data=str(home / 'long')), sorted((home / 'long' / 'train').glob('*.mp4'))[0], home / 'long' / 'valid'),
    }  # fmt: skip


@pytest.fixture(scope='module')
def plugin(tmp_path_factory):
    "The method of the page on methods of one's own, as a file."
    book = nbformat.read(ROOT / 'nbs' / 'runs' / '48_own_method.ipynb', 4)
    text = next(c.source for c in book.cells if 'class SimSiam' in c.source)
    file = tmp_path_factory.mktemp('method') / 'simsiam.py'
    file.write_text(re.search(r"SIMSIAM = '''\n(.*?)'''", text, re.S)[1], encoding='utf-8')
    return str(file)


@pytest.fixture(autouse=True)
def few_videos(monkeypatch):
    small = {'pretrain': (24, 0, 'train'), 'train': (60, 1, 'train'), 'test': (60, 2, 'test')}
    monkeypatch.setattr(runs_videos, 'PAINTED', small)
    few = lambda digits, script, n: UntrimmedDigits(digits, script, min(n, 10))
    monkeypatch.setattr(tsp, 'UntrimmedDigits', few)


SMALL = {
    'tec': ['speeds=1,2', 'hidden=16', 'dim=8'],
    'provico': ['dim=16', 'samples=2', 'mine_after=1'],
    'mcl': ['hidden=16'],
    'tsp': ['videos=6'],
    'supervised': [],
    'plugin': ['hidden=16', 'dim=8'],
}
FEW = ['steps=4', 'batch=8', 'frames=4', 'stride=1', 'warmup=1', 'length=64']
CASES = [
    (m, d)
    for m in SMALL
    for d in ('digits', 'folder', 'card', 'list', 'shards', 'composed')
    if (d in ('digits', 'composed') if m == 'tsp' else d != 'composed')
]


def killed_at(step, monkeypatch):
    "SIGTERM arrives while a step is taken."
    whole = Log.after_step

    def after(self, learn):
        whole(self, learn)
        if learn.step == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Log, 'after_step', after)


@pytest.mark.parametrize('method, door', CASES)
def test_every_door(method, door, doors, plugin, tmp_path, monkeypatch):
    name, there = plugin if method == 'plugin' else method, doors[door]
    words = dict(there.words, device='cpu', threads=1, set_=[*FEW, *SMALL[method]])
    home = tmp_path / 'run'
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(2, patch)
        train(name, folder=home, **words)
    assert open_run(home).record['step'] == 2
    train(name, folder=home, resume=True, **words)
    saved = open_run(home)
    assert saved.record['step'] == 4
    if door in ('digits', 'composed'):
        train(name, folder=tmp_path / 'whole', **words)
        whole = open_run(tmp_path / 'whole').network().state_dict()
        for key, value in saved.network().state_dict().items():
            assert torch.equal(value, whole[key]), key
    classes = len(saved.record['data']['classes'])
    assert getattr(saved.run.config, 'classes', classes) == classes
    assert bool(saved.seen()) == (door != 'digits')
    evaluate(home, device='cpu', threads=1)
    apart = 'one group out' in (home / 'scores.json').read_text()
    grouped = ('card', 'folder', 'list')  # told, or recordings that look alike
    assert apart == (door in grouped and method != 'supervised')  # who saw no labels but a part's
    out = tmp_path / 'features'
    extract_command(str(there.folder), out, run=home)
    assert len(list(out.rglob('*.npy'))) == len(list(there.folder.rglob('*.mp4')))
    gradcam([home, there.video], tmp_path / 'looks', device='cpu', threads=1)
    assert len(list((tmp_path / 'looks').iterdir())) == 2


def test_opening_never_trains(doors, tmp_path, monkeypatch):
    "Not even TSP, which opens in the time of any other run, and whose training videos may be gone."
    shutil.copytree(doors['composed'].words['data'], tmp_path / 'long')
    alone = dict(device='cpu', threads=1)
    words = dict(alone, set_=[*FEW, 'gvf=max'])
    train('tsp', data=str(tmp_path / 'long'), folder=tmp_path / 'run', **words)
    train('tec', data='', folder=tmp_path / 'other', set_=[*FEW, *SMALL['tec']], **alone)
    shutil.rmtree(tmp_path / 'long')
    monkeypatch.setattr('vidrepro.learning.train.fit', None)
    seconds = {name: [] for name in ('run', 'other')}
    for name in 4 * list(seconds):
        start = time.process_time()
        assert open_run(tmp_path / name).encoder().dim > 0
        seconds[name].append(time.process_time() - start)
    assert min(seconds['run']) < 3 * min(seconds['other'])


def test_one_line_of_a_table_names_its_group(doors, tmp_path):
    "Groups of a CSV are kept apart, and scores leave one of them out."
    home = tmp_path / 'run'
    train(
        'tec',
        folder=home,
        **doors['groups'].words,
        device='cpu',
        threads=1,
        set_=[*FEW, *SMALL['tec']],
    )
    evaluate(home, every=True, device='cpu', threads=1)
    assert 'one group out' in (home / 'scores.json').read_text()
    assert pd.read_json(home / 'scores.json').size
