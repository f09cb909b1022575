"Runs, their cards, and the processes they run in."

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from vidrepro.cli.train import train as train_command
from vidrepro.core.files import InputError, locked
from vidrepro.core.results import list_runs, load_run
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.experiments import tables as suites
from vidrepro.experiments.tables import grid
from vidrepro.papers import supervised, tec
from vidrepro.runs import execute as runs_execute
from vidrepro.runs import pool as runs_pool
from vidrepro.runs import videos as runs_videos
from vidrepro.runs.execute import execute, train
from vidrepro.runs.methods import pick_preset
from vidrepro.runs.pool import missing, run_suite
from vidrepro.runs.run import Run, fill, open_run
from vidrepro.runs.scores import features, score
from vidrepro.runs.videos import videos

TINY = pick_preset('tec', 'tiny', steps=2, videos=24, length=64, batch=8, hidden=16, dim=8)
ABSOLUTE = re.compile(r'"(?:/|[A-Za-z]:\\)')


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "A user's folder of videos: 8 a class, of which 2 are held out."
    folder = tmp_path_factory.mktemp('data') / 'clips'
    write_videos(MovingDigits(n=16, size=32, length=16, motions=('right', 'left')), folder)
    return folder


def on_files(clips, **changes):
    return pick_preset(
        'tec', 'tiny', **dict(data=clips, frames=4, batch=8, hidden=16, dim=8, steps=1) | changes
    )


class TestTables:
    def test_names_are_unique(self):
        tables = suites.suites('videos')
        assert tables.pop('tsp-grid')  # a selection of the ablation
        names = [r.name for runs in tables.values() for r in runs]
        assert len(set(names)) == len(names) and tables
        assert all(re.fullmatch(r'[a-z0-9/.-]+-s\d', n) for n in names)

    def test_rows_of_a_table_differ(self):
        "In more than the seed; and a seed is the one in the name."
        for runs in suites.suites().values():
            rows = {}
            for r in runs:
                assert r.config.seed == int(r.name.rpartition('-s')[2])
                rows.setdefault(json.dumps({**r.settings(), 'seed': 0}, sort_keys=True), set()).add(
                    r.name.rpartition('-s')[0]
                )
            assert all(len(names) == 1 for names in rows.values()), [
                n for n in rows.values() if len(n) > 1
            ]

    def test_every_row_has_a_run_before_any_has_three(self):
        seeds = [
            r.config.seed for r in grid('tec', 'tiny', {k: {} for k in 'abc'}, seeds=(2, 0, 1))
        ]
        assert seeds == [2, 2, 2, 0, 0, 0, 1, 1, 1]

    def test_controls_of_the_ablation(self):
        rows = {
            r.name.split('/')[-1][:-3]: r.config
            for r in suites.suites()['tec-ablation']
            if r.config.seed == 0
        }
        crossed = {
            k: (rows[k].temporal, rows[k].spatial) for k in ('instance', 'space', 'both', 'full')
        }
        assert len(set(crossed.values())) == 4 and crossed['full'] == ('equivariant', 'invariant')
        assert (
            len({(c.steps, c.batch, c.lr, c.backbone) for c in rows.values()}) == 1
        )  # equal budgets

    def test_settings_do_not_tell_of_the_machine(self):
        r = Run('a', 'tec', TINY)
        for change in (dict(root='videos'), dict(workers=3), dict(bad='skip')):
            assert (
                dataclasses.replace(r, config=dataclasses.replace(TINY, **change)).settings()
                == r.settings()
            )

    @pytest.mark.parametrize(
        'field',
        [
            f.name
            for f in dataclasses.fields(tec.Config)
            if f.name
            not in ('root', 'workers', 'bad', 'picture', 'resize')  # these two go together
        ],
    )
    def test_any_other_setting_makes_another_run(self, field):
        other = dict(
            precision='bf16',
            schedule='constant',
            temporal='invariant',
            spatial='equivariant',
            positives='same',
            speeds=(1, 2),
            stop_gradient=False,
        )
        other |= {k: getattr(TINY, k) / 2 or 0.5 for k in ('crop', 'hue', 'grey')}  # shares
        old = getattr(TINY, field)
        new = (
            other[field]
            if field in other
            else old + 1
            if isinstance(old, (int, float))
            else old + 'x'
        )
        assert (
            Run('a', 'tec', dataclasses.replace(TINY, **{field: new})).settings()
            != Run('a', 'tec', TINY).settings()
        )

    def test_method_is_part_of_the_settings(self):
        assert (
            Run('a', 'supervised', supervised.PRESETS['tiny']).settings()['method'] == 'supervised'
        )


@pytest.fixture
def small(monkeypatch):
    "Few videos to score on; those to train on are as few as the settings say."
    few = {'pretrain': (0, 0, 'train'), 'train': (60, 1, 'train'), 'test': (60, 2, 'test')}
    monkeypatch.setattr(runs_videos, 'PAINTED', few)


class TestExecute:
    def test_card(self, tmp_path, small):
        run = Run('tec/tiny/x-s0', 'tec', TINY)
        card = execute(run, tmp_path / 'runs', 'cpu', quiet=True, root=tmp_path / 'cards')
        assert card == load_run(run.name, run.settings(), tmp_path / 'cards')
        assert (
            card['protocol'].keys()
            == card['metrics'].keys()
            >= {'motion probe', 'sprite probe', 'R@1', 'R@1 centred', 'order decoded'}
        )
        for name, about in card['protocol'].items():
            assert 0 < about['chance'] < 1 and about['n'] == 60 and about['split'], name
            assert about['frames'] == TINY.frames and len(about) > 4, name
        assert card['protocol']['motion probe']['chance'] == pytest.approx(1 / 12)
        assert card['curve'][-1]['step'] == 2 and card['seed'] == 0 and card['device'] == 'cpu'
        assert not ABSOLUTE.search(json.dumps(card)) and str(tmp_path) not in json.dumps(card)
        assert missing([run], tmp_path / 'cards') == []
        before = {k: v for k, v in card.items() if k != 'seconds'}
        again = execute(
            run, tmp_path / 'runs', 'cpu', quiet=True, root=tmp_path / 'cards'
        )  # resumes at the last step
        assert {k: v for k, v in again.items() if k != 'seconds'} == before

    def test_random_network(self, tmp_path, small):
        "No step: no checkpoint, and the scores of the weights that the seed makes."
        run = Run('tec/tiny/random-s0', 'tec', dataclasses.replace(TINY, steps=0))
        card = execute(run, tmp_path / 'runs', 'cpu', quiet=True, root=tmp_path / 'cards')
        assert card['curve'] == [] and open_run(tmp_path / 'runs' / run.name).record['step'] == 0
        scores = score(fill(run), run)
        assert {s.name: s.value for s in scores} == {
            k: pytest.approx(v['value']) for k, v in card['metrics'].items()
        }
        other = Run('b', 'tec', dataclasses.replace(TINY, steps=0, seed=1))
        assert any((a != b).any() for a, b in zip(fill(run).parameters(), fill(other).parameters()))

    def test_files(self, tmp_path, clips):
        "A folder of videos: train and test share nothing, and the card keeps the folder's name only."
        cfg = on_files(clips)
        parts = {p: set(videos(cfg, p).items.path) for p in ('pretrain', 'train', 'test')}
        assert parts['pretrain'] == parts['train'] and not parts['train'] & parts['test']
        card = execute(Run('own', 'tec', cfg), tmp_path, 'cpu', quiet=True, root=tmp_path / 'cards')
        assert card['config']['data'] == 'clips' and not ABSOLUTE.search(json.dumps(card))
        assert card['metrics'].keys() == card['protocol'].keys() >= {'R@1', 'SVM'}
        saved = open_run(tmp_path / 'own')
        assert saved.run.config.data == str(clips)  # to be found again on this machine
        assert str(clips) not in json.dumps(saved.record)  # but not in the checkpoint
        assert len(saved.seen()) == len(parts['train'])
        assert card['protocol']['SVM']['n'] == len(parts['test'])

    def test_nothing_is_written_before_the_end(self, tmp_path, small, monkeypatch):
        def broken(*_):
            raise RuntimeError('no score')

        monkeypatch.setattr(runs_execute, 'score', broken)
        with pytest.raises(RuntimeError, match='no score'):
            execute(Run('x', 'tec', TINY), tmp_path, 'cpu', quiet=True, root=tmp_path / 'cards')
        assert (
            list_runs(root=tmp_path / 'cards') == []
            and (tmp_path / 'x' / 'checkpoint.safetensors').exists()
        )

    def test_no_such_data(self, tmp_path):
        for change, word in (
            (dict(data='no/such'), 'no such folder'),
            (dict(data='weizmann'), 'name the folder'),
        ):
            with pytest.raises(InputError, match=word):
                execute(
                    Run('x', 'tec', dataclasses.replace(TINY, **change)), tmp_path, root=tmp_path
                )


class TestMissing:
    def test_found_by_name_and_settings(self, tmp_path, small):
        run = Run('tec/x-s0', 'tec', dataclasses.replace(TINY, steps=0))
        assert missing([run], tmp_path) == [run]
        execute(run, tmp_path / 'runs', 'cpu', quiet=True, root=tmp_path / 'cards')
        renamed = dataclasses.replace(run, name='tec/y-s0')
        changed = [
            dataclasses.replace(run, config=dataclasses.replace(run.config, **c))
            for c in (dict(tau=0.2), dict(seed=1), dict(speeds=(1, 2)))
        ]
        assert missing([run, renamed, *changed], tmp_path / 'cards') == [renamed, *changed]


class TestProcesses:
    def test_two_at_a_time(self, tmp_path, clips):
        "A good run and a bad one side by side: a card, a name, a reason; what failed is still missing."
        good, bad = (
            Run('tec/good', 'tec', on_files(clips, seed=1)),
            Run('tec/bad', 'tec', on_files(clips, batch=64)),
        )
        assert run_suite([bad, good], tmp_path / 'runs', 'cpu', 2, tmp_path / 'cards') == [
            'tec/bad'
        ]
        assert list_runs(root=tmp_path / 'cards') == ['tec/good']
        card = load_run('tec/good', good.settings(), tmp_path / 'cards')
        assert (
            card['curve'][-1]['step'] == 1
            and card['seed'] == 1
            and not ABSOLUTE.search(json.dumps(card))
        )
        words = (tmp_path / 'runs' / 'tec' / 'bad' / 'output.txt').read_text()
        assert 'use a smaller batch' in words.strip().splitlines()[-1]
        assert missing([good, bad], tmp_path / 'cards') == [bad]

    @pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
    def test_stopping_waits_until_all_have_saved(self, number, tmp_path, monkeypatch):
        "A signal to the parent ends the children, which get the time to save."
        script = (
            'import signal, sys, time\ndef stop(*_): time.sleep(0.3); open(sys.argv[1], "w").close(); sys.exit(1)\n'
            'signal.signal(signal.SIGTERM, stop)\nopen(sys.argv[1] + ".ready", "w").close()\ntime.sleep(60)'
        )

        def begin(run, *_):
            return subprocess.Popen([sys.executable, '-c', script, str(tmp_path / run.name)])

        def stopped(*_):
            end = time.monotonic() + 30
            while len(list(tmp_path.glob('*.ready'))) < 2 and time.monotonic() < end:
                time.sleep(0.01)
            os.kill(os.getpid(), number)
            return []

        monkeypatch.setattr(runs_pool, 'start', begin)
        monkeypatch.setattr(runs_pool, 'look_after', stopped)
        with pytest.raises(KeyboardInterrupt):
            run_suite(
                [Run(n, 'tec', TINY) for n in ('a', 'b', 'c')],
                tmp_path,
                'cpu',
                2,
                tmp_path / 'cards',
            )
        assert sorted(p.name for p in tmp_path.glob('?')) == ['a', 'b']


def test_a_folder_belongs_to_one_run(tmp_path, small):
    run = Run('x', 'tec', TINY)
    train(run, tmp_path / 'x', 'cpu', quiet=True)
    other = Run('x', 'supervised', supervised.PRESETS['tiny'])
    with pytest.raises(InputError, match='method'):
        train(other, tmp_path / 'x', 'cpu', quiet=True)
    with locked(tmp_path / 'x'), pytest.raises(InputError, match='another process'):
        train(run, tmp_path / 'x', 'cpu', quiet=True)


def test_command_and_table_give_the_same_weights(tmp_path, small):
    "Bit for bit: `vidrepro train` and `vidrepro run` call one function."
    few = [
        f'{k}={getattr(TINY, k)}' for k in ('steps', 'videos', 'length', 'batch', 'hidden', 'dim')
    ]
    train_command('tec', folder=tmp_path / 'command', device='cpu', threads=1, set_=few)
    execute(Run('table', 'tec', TINY), tmp_path, 'cpu', quiet=True, root=tmp_path / 'cards')
    one, two = (open_run(tmp_path / n).network().state_dict() for n in ('command', 'table'))
    assert all(torch.equal(v, two[k]) for k, v in one.items())


def test_features_do_not_depend_on_the_batch():
    cfg = dataclasses.replace(TINY, frames=4)
    source = MovingDigits(n=6, size=32, length=32)
    network = fill(Run('x', 'tec', cfg)).backbone
    together = features(network, cfg.clip, source, n_clips=2)
    alone = torch.cat(
        [features(network, cfg.clip, source.subset([i]), n_clips=2) for i in range(6)]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
