"Features of an encoder, through a detector, to a card: what must hold whatever the encoder knows."

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vidrepro.core.files import InputError
from vidrepro.core.results import load_run, save_run
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.digits.untrimmed import Script, compose
from vidrepro.experiments import localization
from vidrepro.experiments.claims import judge_all
from vidrepro.experiments.detectors import (
    LONG,
    STEPS,
    TABLES,
    Row,
    head,
    judge_long,
    localize_run,
    rows,
)
from vidrepro.experiments.localization import (
    LENGTHS,
    READERS,
    STATEMENTS,
    Filmed,
    Long,
    Others,
    Task,
    clip_of,
    examples_of,
    features_of,
    footage,
    judge_features,
    painted,
    precision_of_length,
    standardised,
    trained_encoder,
)
from vidrepro.localize.metrics import COLUMNS, match, summary
from vidrepro.papers import tec, tsp
from vidrepro.runs.execute import learner
from vidrepro.runs.pool import missing, run_suite
from vidrepro.runs.run import Run

SMALL = Task(train=3, test=2)
FORMER = replace(READERS['actionformer'], width=16, levels=2, epochs=2, warmup=1)
TOY = replace(READERS['bmn'], length=16, epochs=1, base=16, proposal=8, joint=16, last=8, bins=4)
CONFIG = tsp.Config(videos=4, batch=4, steps=2, warmup=1, region=0.0)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with one finished run."
    folder = tmp_path_factory.mktemp('runs')
    run = Run('tsp/tiny/brief-s0', 'tsp', CONFIG)
    learner(run, folder / run.name, tsp.videos(CONFIG, 'pretrain'), 'cpu', quiet=True)[0].fit(2)
    return folder, run


def table(rows, columns=COLUMNS):
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype(dict(start=float, end=float))


def of_noise(task):
    "Training and test examples whose features know nothing."
    rng = np.random.default_rng(0)
    for part in ('train', 'test'):
        pieces = painted(task, part)
        noise = [rng.normal(size=(int(n) // 4 - 3, 8)).astype(np.float32) for n in pieces.lengths]
        yield examples_of(pieces.segments(), noise, 4, 16)


class TestLength:
    @pytest.fixture
    def matches(self):
        "Random actions and detections of two classes in five videos."
        rng, rows = np.random.default_rng(0), []
        for v in range(5):
            for k in range(4):
                rows.append(
                    (f'v{v}', s := 10 * k + rng.uniform(0, 3), s + rng.uniform(0.8, 5), 'ab'[k % 2])
                )
        truth = table(rows, COLUMNS[:-1])
        near = truth.assign(
            start=truth.start + rng.normal(0, 0.4, len(truth)),
            end=truth.end + rng.normal(0, 0.4, len(truth)),
        )
        far = near.assign(start=near.start + 6, end=near.end + 7)
        found = pd.concat([near[near.end > near.start], far], ignore_index=True)
        return match(truth, found.assign(score=rng.uniform(size=len(found))))

    def test_whole_range_changes_nothing(self, matches):
        assert precision_of_length(matches, 0.0, np.inf) == pytest.approx(
            summary(matches)['mAP'], abs=1e-12
        )

    def test_other_lengths_do_not_matter(self, matches):
        "Remove long actions, what found them, and what is long and found nothing: the value for short ones stays."
        length = lambda t: t['end'] - t['start']
        for q, threshold in enumerate(matches.thresholds):
            one = match(matches.truth, matches.detections, (threshold,))
            truth, found = one.truth, one.detections
            long_found = (one.found[:, 0] >= 0) & (length(truth).to_numpy()[one.found[:, 0]] >= 2.5)
            stray = (one.found[:, 0] < 0) & (length(found) >= 2.5).to_numpy()
            alone = match(
                truth[length(truth) < 2.5].reset_index(drop=True),
                found[~long_found & ~stray],
                (threshold,),
            )
            assert precision_of_length(one, 0.0, 2.5) == pytest.approx(
                summary(alone)['mAP'], abs=1e-12
            )

    def test_no_action_of_that_length(self, matches):
        assert np.isnan(precision_of_length(matches, 90.0, 99.0))

    def test_lengths_cover_everything(self):
        edges = sorted(x for span in LENGTHS.values() for x in span)
        assert edges[0] == 0 and edges[-1] == np.inf and edges[1:-1:2] == edges[2:-1:2]


class TestAxis:
    @pytest.mark.parametrize('every, span', [(4, 16), (8, 16), (4, 32), (16, 16)])
    def test_a_row_sits_in_the_middle_of_its_clip(self, every, span):
        source = painted(SMALL, 'test')
        n = [len(range(0, int(m) - span + 1, every)) for m in source.lengths]
        seconds = [
            np.stack([(np.arange(k) * every + span / 2) / 15.0] * 2, 1).astype(np.float32)
            for k in n
        ]
        for e in examples_of(source.segments(), seconds, every, span):
            middle = e.begin + (np.arange(len(e.features)) + 0.5) * e.duration / len(e.features)
            np.testing.assert_allclose(e.features[:, 0], middle, rtol=1e-5)

    def test_truth_is_that_of_the_script(self):
        source = painted(SMALL, 'train')
        e = examples_of(source.segments(), [np.ones((9, 2), np.float32)] * 3, 4, 16)[1]
        actions = [
            (s.frames, source.digits.labels[s.item].item()) for s in source.scripts[1] if s.action
        ]
        assert [round((b - a) * 15) for a, b in e.segments] == [f for f, _ in actions]
        assert list(e.labels) == [source.digits.classes[y] for _, y in actions]

    def test_standardised(self):
        source, rng = painted(SMALL, 'train'), np.random.default_rng(0)
        made = examples_of(
            source.segments(),
            [rng.normal(5, 3, (9, 2)).astype(np.float32) for _ in range(3)],
            4,
            16,
        )
        a, b = standardised(made[:2], made[2:])
        every = np.concatenate([e.features for e in a])
        np.testing.assert_allclose((every.mean(0), every.std(0)), ((0, 0), (1, 1)), atol=1e-5)
        other, _ = standardised(
            [replace(e, features=100 * e.features - 7) for e in made[:2]], made[2:]
        )
        np.testing.assert_allclose(
            other[0].features, a[0].features, atol=1e-4
        )  # scale and offset of an encoder do not matter


class TestFeatures:
    def test_finished_run_is_loaded(self, home):
        "A run that was trained is not trained again, nor taken for one with other settings."
        folder, run = home
        file = next((Path(folder) / run.name).glob('checkpoint*'))
        before = file.stat().st_mtime_ns
        first, again = (trained_encoder(run, folder).state_dict() for _ in range(2))
        assert file.stat().st_mtime_ns == before
        assert all(first[k].equal(again[k]) for k in first)
        with pytest.raises(InputError, match='steps'):
            trained_encoder(replace(run, config=replace(run.config, steps=3)), folder)

    def test_missing_run_is_trained(self, home):
        folder, run = home
        new = replace(run, name='tsp/tiny/again-s0')
        assert not (Path(folder) / new.name).exists()
        net, known = trained_encoder(new, folder, 'cpu'), trained_encoder(run, folder)
        assert (Path(folder) / new.name / 'checkpoint.safetensors').is_file() and not net.training
        assert all(v.equal(known.state_dict()[k]) for k, v in net.state_dict().items())

    def test_kept_and_renewed(self, home, monkeypatch):
        folder, run = home
        first = features_of(run, SMALL, folder)
        monkeypatch.setattr(
            localization, 'trained_encoder', lambda *_: pytest.fail('asked for the encoder')
        )
        again = features_of(run, SMALL, folder)
        assert all((a == b).all() for p in first for a, b in zip(first[p], again[p]))
        with pytest.raises(pytest.fail.Exception):
            features_of(run, replace(SMALL, every=8), folder)

    def test_clip(self):
        other = Run('tec/tiny/full-s0', 'tec', tec.PRESETS['tiny'])
        assert clip_of(other).frames == 8 and clip_of(other).clip.span == 16
        assert clip_of(Run('tsp/tiny/step-16-s0', 'tsp', replace(CONFIG, frames=16))).frames == 16


class TestCards:
    def test_from_encoder_to_card(self, home, tmp_path):
        folder, run = home
        row = Row(run, 'bmn', 0, SMALL, TOY)
        card = localize_run(row, folder, tmp_path)
        assert (
            load_run(row.name, row.settings(), tmp_path) == card
            and card['config']['encoder']['steps'] == 2
        )
        assert set(card['metrics']) == set(card['protocol']) and {
            'mAP',
            'unnamed mAP',
            'AUC',
            'segments named',
        } <= set(card['metrics'])
        assert (
            all(0 <= p['chance'] <= 1 for p in card['protocol'].values())
            and card['example']['truth']
        )
        assert missing([row], tmp_path) == []

    def test_rows_in_processes(self, home, tmp_path):
        "Two readers of one encoder and a row that cannot be, two processes at a time."
        folder, run = home
        own = tmp_path / 'runs'
        shutil.copytree(folder / run.name, own / run.name)
        two = [Row(run, reader, 0, SMALL, replace(TOY)) for reader in ('bmn', 'gtad')]
        lost = Run('tsp/tiny/lost-s0', 'tsp', replace(CONFIG, data='nowhere'))
        spoilt = Row(lost, 'bmn', 0, SMALL, TOY)
        failed = run_suite([spoilt, *two], own, 'cpu', 2, tmp_path / 'cards')
        assert failed == [spoilt.name] and missing(two, tmp_path / 'cards') == []
        assert "got 'nowhere'" in (own / spoilt.name / 'output.txt').read_text()
        assert len(list((own / 'features').rglob('*.safetensors'))) == 1

    def test_names(self):
        name = lambda run, method: Row(Run(run, method, CONFIG), 'gtad', 2).name
        assert name('tsp/tiny/seconds-4-s2', 'tsp') == 'localization/tiny/seconds-4-gtad-s2'
        assert name('tec/tiny/full-s2', 'tec') == 'localization/tiny/tec-gtad-s2'
        assert name('tec/real/instance-s2', 'tec') == 'localization/real/tec-instance-gtad-s2'

    def test_settings_tell_rows_apart(self, home):
        _, run = home
        row = Row(run, 'bmn')
        others = [
            replace(row, seed=1),
            replace(row, reader='gtad'),
            replace(row, task=SMALL),
            replace(row, config=TOY),
            replace(row, encoder=replace(run, config=replace(CONFIG, lr=0.1))),
        ]
        assert all(o.settings() != row.settings() for o in others)
        assert row.settings() == replace(row, config=READERS['bmn']).settings()

    def test_table_and_statements(self):
        table = [r for suite in TABLES for r in rows(suite=suite)]
        named = {r.name.rpartition('-s')[0].removeprefix('localization/') for r in table}
        assert len({r.name for r in table}) == len(table) == 3 * len(named)
        whole = lambda row: row if '/' in row else f'tiny/{row}'
        sides = [x for s in STATEMENTS for side in s[1:3] for x in side.split(' - ')]
        assert {whole(x) for x in sides} <= named
        assert len({s[0] for s in STATEMENTS}) == len(STATEMENTS)
        assert all(r.encoder.config.seed == r.seed for r in rows())

    def test_cards_of_before_know_nothing_of_other_tasks(self):
        "A new kind of task adds settings to its own rows and to no others."
        plain, other, filmed = (rows((0,), suite=s)[0].settings()['task'] for s in list(TABLES)[:3])
        assert set(plain) == {'train', 'test', 'every', 'fps', 'action', 'gap'}
        assert set(other) - set(plain) == {'motions', 'background'}
        assert set(filmed) - set(plain) == {'data'}
        assert 'window' not in rows((0,))[0].settings()
        long = rows((0,), suite='localization-heads')[0].settings()
        assert set(long['task']) - set(plain) == {'minutes'} and long['window'] == 48

    def test_unseen_motions(self, home):
        "Videos of transfer hold other motions than those of `part-` encoders; features are kept apart."
        folder, run = home
        task = Others(train=3, test=2)
        source = painted(task, 'test')
        assert set(source.digits.classes) == set(tsp.OTHERS)
        assert set(source.segments().classes) == set(tsp.OTHERS) - set(task.background)
        there = features_of(run, task, folder)
        usual = features_of(run, SMALL, folder)
        again = features_of(run, task, folder)
        assert all(np.array_equal(a, b) for a, b in zip(there['test'], again['test']))
        assert len(there['test']) == len(usual['test']) == 2
        assert not np.array_equal(there['test'][0][:2], usual['test'][0][:2])

    def test_filmed(self, tmp_path):
        "A detector on composed files: rows of the tables, seconds of the files, one count of videos."
        parts = {
            p: MovingDigits(20, size=32, split=s) for p, s in (('train',) * 2, ('valid', 'test'))
        }
        script = Script(2, background=('orbit-cw', 'orbit-ccw'), actions=(1, 2))
        tables = compose(parts, tmp_path, 3, script)
        task = Filmed(train=3, test=3)
        cfg = replace(tsp.PRESETS['real'], size=32, batch=4, classes=0, steps=0)
        run = Run('tsp/real/toy-s0', 'tsp', replace(cfg, root=str(tmp_path)))
        row = Row(run, 'bmn', 0, task, TOY, str(tmp_path))
        source = footage(task, 'test', cfg, str(tmp_path))
        found = features_of(run, task, tmp_path / 'runs', root=str(tmp_path))
        videos = examples_of(source, found['test'], task.every, 16)
        truth = tables['valid'].query('`temporal-region-label` == "Action"')
        spans = np.concatenate([e.segments for e in videos])
        np.testing.assert_allclose(
            np.sort(spans[:, 0]), np.sort(truth['t-start'].to_numpy(float)), atol=1e-6
        )
        card = localize_run(row, tmp_path / 'runs', tmp_path / 'cards')
        assert 0 < card['metrics']['AUC'] <= 1 and row.name == 'localization/real/toy-bmn-s0'
        with pytest.raises(InputError, match='needs 60'):
            footage(Filmed(), 'test', cfg, str(tmp_path))

    def test_useless_features_are_at_chance(self):
        "Noise for features: the detector cannot beat the list of a neighbour by much, and names at random."
        train, test = of_noise(Task(train=24, test=16))
        for kind, config in (('bmn', replace(TOY, epochs=2)), ('actionformer', FORMER)):
            values, chance, *_ = judge_features(kind, train, test, config=config)
            assert values['mAP'] < 0.1 and values['segments named'] < 0.4 and chance['mAP'] < 0.1

    def test_wrong_names(self, home):
        with pytest.raises(InputError, match='reader'):
            Row(home[1], 'p-gcn')
        with pytest.raises(InputError, match='part'):
            painted(SMALL, 'valid')
        with pytest.raises(InputError, match='detector'):
            judge_features('probe', [], [])


class TestHeads:
    def test_one_budget(self):
        "Rows of one task differ in encoder and head alone; each head takes as many steps."
        table = rows(range(2), suite='localization-heads')
        assert len({r.name for r in table}) == len(table) == 2 * 27
        for minutes, task in LONG.items():
            mine = [r for r in table if r.task.minutes == minutes]
            assert {r.task for r in mine} == {task} and len(mine) == 18
            assert all(r.name.startswith(f'localization/{minutes}min/') for r in mine)
            cfg = head('actionformer', task)
            assert abs(cfg.epochs * -(-task.train // cfg.batch) - STEPS) <= STEPS / 10
        with pytest.raises(InputError, match='reader'):
            Row(table[0].encoder, 'probe', task=LONG[2])

    def test_videos_of_minutes(self):
        for minutes in (2, 10):
            source = painted(Long(train=2, test=2, minutes=minutes), 'test')
            assert np.allclose(source.lengths / 15 / 60, minutes, rtol=0.25)
            assert len(source.scripts[0]) == 2 * Long(minutes=minutes).count + 1

    def test_from_encoder_to_card(self, home, tmp_path):
        folder, run = home
        task, cfg = Long(train=2, test=2, minutes=1), dict(batch=1, epochs=1)
        small = replace(head('actionformer', task), width=16, heads=2, **cfg)
        toy = replace(TOY, length=48, **cfg)
        for reader, config in (('actionformer', small), ('bmn', toy)):
            row = Row(run, reader, 0, task, config)
            card = localize_run(row, folder, tmp_path)
            assert row.name == f'localization/1min/brief-{reader}-s0'
            assert card['metrics']['MB a step'] > 0 and card['metrics']['seconds a step'] > 0
            assert card['config']['window'] == (0 if reader == 'actionformer' else 48)
            assert missing([row], tmp_path) == []

    def test_noise_is_at_chance(self):
        task = Long(train=2, test=2)
        train, test = of_noise(task)
        config = replace(head('actionformer', task), width=16, heads=2, epochs=3)
        values, chance, *_ = judge_long('actionformer', task, train, test, config=config)
        assert values['mAP'] < 0.1 and chance['mAP'] < 0.1

    @pytest.mark.parametrize('gap, word', [(0.05, 'reproduced'), (-0.05, 'contradicted')])
    def test_a_gain_of_gains(self, tmp_path, gap, word):
        "TSP less TAC, in the hands of two heads, seed by seed: what seeds share cancels."
        from vidrepro.experiments.statements import CLAIMS

        rng = np.random.default_rng(0)
        for seed in range(5):
            own, noise = rng.normal(0, 0.2, 2), rng.normal(0, 0.003, 4)
            values = [0.6 + own[0] + gap + 0.1, 0.6 + own[1], 0.7 + own[0] + 0.1, 0.7 + own[1]]
            names = 'tsp-bmn', 'tac-bmn', 'tsp-actionformer', 'tac-actionformer'
            for name, value, e in zip(names, values, noise):
                where, metrics = f'localization/10min/{name}-s{seed}', {'unnamed mAP': value + e}
                protocol = {'unnamed mAP': dict(chance=0.01)}
                about = dict(data={}, device='cpu', seconds=0.0, root=tmp_path)
                save_run(where, {}, metrics, [], seed=seed, protocol=protocol, **about)
        claims = [c for c in CLAIMS['localization'] if c.name.endswith('stronger-head-10min')]
        (verdict,) = judge_all(claims, tmp_path)
        assert verdict.word == word and verdict.mean == pytest.approx(gap, abs=0.01)
        assert verdict.high - verdict.low < 0.03


def test_videos_repeat_and_differ():
    a, b = painted(SMALL, 'train'), painted(SMALL, 'test')
    look = lambda s: s.clips(torch.arange(2), torch.tensor([[[0, 9, 30]]]).expand(2, -1, -1))
    assert torch.equal(look(a), look(painted(SMALL, 'train'))) and not torch.equal(look(a), look(b))
