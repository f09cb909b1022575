"Videos that a run was trained on are no test, through whichever door they come back."

import shutil

import pytest
import torch

from vidrepro.core.files import InputError
from vidrepro.data.datasets import from_folder
from vidrepro.data.shards import open_shards, pack
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.runs import execute
from vidrepro.runs.methods import pick_preset
from vidrepro.runs.run import Run, hashes, open_run
from vidrepro.runs.videos import videos_of

SMALL = dict(steps=4, batch=8, frames=4, hidden=16, dim=8, warmup=1)


@pytest.fixture(scope='module')
def homes(tmp_path_factory):
    "Videos in a folder, packed, and others; a run on the shards."
    home = tmp_path_factory.mktemp('seen')
    for name, seed in dict(clips=0, others=1).items():
        digits = MovingDigits(n=40, size=32, length=24, seed=seed, motions=('left', 'right'))
        write_videos(digits, home / name)
    pack(from_folder(home / 'clips', splits=True), home / 'shards', max_count=15)
    cfg = pick_preset('tec', 'tiny', data=home / 'shards', **SMALL)
    execute.train(Run('mine', 'tec', cfg), home / 'mine', 'cpu', quiet=True)
    return home


def scored(run, data):
    return execute.evaluate(open_run(run, data=str(data)), 'cpu')


def test_shards_are_known_by_their_contents(homes):
    packed = open_shards(homes / 'shards').in_split('train')
    loose = from_folder(homes / 'clips', splits=True).in_split('train')
    assert torch.equal(hashes(packed), hashes(loose)) and len(hashes(packed)) == len(loose)
    assert open_run(homes / 'mine').seen() == set(loose.manifest.hash)
    assert packed.describe()['fingerprint'] == loose.describe()['fingerprint'] != ''


def test_trained_on_shards_tested_on_their_files(homes, tmp_path, recwarn):
    "Under other names and in the test split: refused; other files, or those held out: scored."
    for split in ('train', 'test'):
        files = from_folder(homes / 'clips', splits=True).in_split('train').items
        for k, path in enumerate(files.path):
            there = tmp_path / 'same' / split / path.split('/')[0] / f'{k}.mp4'
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(homes / 'clips' / path, there)
    with pytest.raises(InputError, match='were trained on'):
        scored(homes / 'mine', tmp_path / 'same')
    assert scored(homes / 'mine', homes / 'others')
    assert scored(homes / 'mine', homes / 'clips') and scored(homes / 'mine', homes / 'shards')
    assert not [w for w in recwarn if 'list of contents' in str(w.message)]


def test_what_its_start_had_seen(homes, tmp_path):
    "A run that began with the weights of another has seen the videos of both."
    cfg = pick_preset('tec', 'tiny', data=homes / 'others', weights=homes / 'mine', **SMALL)
    run = Run('more', 'tec', cfg)
    execute.train(run, tmp_path / 'more', 'cpu', quiet=True)
    both = open_run(homes / 'mine').seen() | set(videos_of(run, 'train').manifest.hash)
    assert open_run(tmp_path / 'more').seen() == both


def test_unknown_is_said(homes):
    "A run that kept no contents is scored with a warning; painted videos need none."
    saved = open_run(homes / 'mine', data=str(homes / 'others'))
    del saved.tensors['data.hashes']
    with pytest.warns(UserWarning, match='the run has no list of contents'):
        assert execute.evaluate(saved, 'cpu')
