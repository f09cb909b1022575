"Detectors end to end: what perfect, useless and memorised features must give; restarts; broken input, from memory and on the command line."

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from vidrepro.cli.features import app as features_app
from vidrepro.cli.localize import app, certainty
from vidrepro.core.files import InputError
from vidrepro.data.annotations import write_activitynet
from vidrepro.digits.moving_digits import MovingDigits, write_video
from vidrepro.features.settings import Features, TimeAxis
from vidrepro.localize import detect as module
from vidrepro.localize.detect import (
    PRESETS,
    SMALL,
    Config,
    batch_features,
    batch_targets,
    learning_rate,
    load_detector,
    network,
    train_detector,
)
from vidrepro.localize.examples import (
    Example,
    fit_classes,
    pooled,
    read_examples,
    read_features,
    truth_of,
    unlabelled,
)
from vidrepro.localize.metrics import match, read_detections
from vidrepro.localize.predict import detect, evaluate, propose, score
from vidrepro.localize.timeline import timeline
from vidrepro.papers import tsp
from vidrepro.runs.execute import learner
from vidrepro.runs.run import Run


def told(count, seed, classes=('spin', 'wave'), cells=32, noise=0.3, ends=False):
    "Videos with one to three disjoint actions of three cells or more, and features that tell; `ends`: the last one lasts to the end."
    rng, out = np.random.default_rng(seed), []
    for n in range(count):
        x, m = rng.normal(0, noise, (cells, 16)).astype(np.float32), rng.integers(1, 4)
        while True:
            spans = np.sort(rng.choice(cells + 1, 2 * m, replace=False)).reshape(m, 2)
            if ends:
                spans[-1, 1] = cells
            if (spans[:, 1] - spans[:, 0] >= 3).all():
                break
        kinds = rng.integers(0, len(classes), m)
        for (a, b), kind in zip(spans, kinds):
            x[a:b, 0] += 2
            x[a, 1] += 3
            x[b - 1, 2] += 3
            x[a:b, 3 + kind] += 2
        out.append(
            Example(
                x, spans * 2.0, tuple(classes[k] for k in kinds), cells * 2.0, f'video{seed}-{n}'
            )
        )
    return out


QUICK = dict(
    bmn=replace(SMALL['bmn'], lr=4e-3, epochs=7, drop=5),
    gtad=replace(SMALL['gtad'], epochs=4, drop=3),
    actionformer=replace(SMALL['actionformer'], width=32, heads=2, epochs=12, lr=6e-3, ema=0.95),
)
TINY = replace(
    SMALL['gtad'], length=16, base=16, joint=16, last=8, bins=4, epochs=3, drop=2, batch=4
)


@pytest.fixture(scope='module')
def train():
    return told(128, 0)


@pytest.fixture(scope='module')
def test():
    return told(48, 1)


@pytest.fixture(scope='module')
def trained(train):
    return {kind: train_detector(kind, train, config) for kind, config in QUICK.items()}


@pytest.fixture(scope='module')
def tiny():
    return train_detector('gtad', told(8, 0), TINY)


# what must come out


@pytest.mark.parametrize('kind', PRESETS)
def test_perfect_features(trained, test, kind):
    result = evaluate(trained[kind], test)
    assert result['mAP'] > 0.95 and result['AR@100'] > 0.97, result


def test_actions_that_last_to_the_end(trained):
    "With a score for each cell, a segment may end with the video."
    assert evaluate(trained['gtad'], told(24, 3, ends=True))['AR@100'] > 0.97


def test_useless_features(trained, train, test):
    "Features of another video: no better than the list of another video."
    swap = lambda videos: [
        replace(e, features=videos[i - 1].features) for i, e in enumerate(videos)
    ]
    useless = train_detector('gtad', swap(train[:64]), QUICK['gtad'])
    found = detect(trained['gtad'], test)
    chance = score(
        found.assign(video=found.video.map({e.name: test[i - 1].name for i, e in enumerate(test)})),
        truth_of(test),
    )['mAP']
    assert evaluate(useless, swap(test))['mAP'] < max(3 * chance, 0.08) < 0.25


def test_noise_is_no_leak(test, trained):
    rng = np.random.default_rng(0)
    noise = [
        replace(e, features=rng.normal(size=e.features.shape).astype(np.float32)) for e in test
    ]
    assert evaluate(trained['gtad'], noise)['mAP'] < 0.1


def test_eight_videos_by_heart():
    rng = np.random.default_rng(3)
    eight = [replace(e, features=rng.normal(size=(32, 64)).astype(np.float32)) for e in told(8, 2)]
    model = train_detector('gtad', eight, replace(SMALL['gtad'], batch=8, epochs=40, drop=30))
    assert (
        evaluate(model, eight)['mAP'] > 0.95
        and model.rows[-1]['loss'] < 0.1 * model.rows[0]['loss']
    )


def test_first_loss_is_that_of_indifference():
    "log 2 for each of three logistic terms; the overlap is worth what half a mean square is."
    rows = train_detector('bmn', told(8, 0), replace(SMALL['bmn'], epochs=1, batch=8)).rows
    assert (
        all(abs(rows[0][name] - np.log(2)) < 0.05 for name in ('start', 'end', 'confidence'))
        and 2.2 < rows[0]['loss'] < 2.8
    )


# training


def test_schedule():
    assert [learning_rate(e, 1, PRESETS['bmn']) for e in range(10)] == 7 * [1e-3] + 3 * [1e-4]
    assert [learning_rate(e, 1, PRESETS['gtad']) for e in range(10)] == 5 * [4e-3] + 5 * [4e-4]


@pytest.mark.parametrize('killed', [0, 1, 2])
def test_restart_changes_no_bit(tmp_path, monkeypatch, tiny, killed):
    real, file, steps = module.batch_loss, tmp_path / 'model.safetensors', []

    def stops(net, batch, config):
        steps.append(1)
        if len(steps) > 2 * killed + 1:  # two steps an epoch: in the middle of an epoch
            raise KeyboardInterrupt
        return real(net, batch, config)

    monkeypatch.setattr(module, 'batch_loss', stops)
    with pytest.raises(KeyboardInterrupt):
        train_detector('gtad', told(8, 0), TINY, file=file)
    monkeypatch.setattr(module, 'batch_loss', real)
    again = train_detector('gtad', told(8, 0), TINY, file=file)
    assert again.rows == tiny.rows
    for a, b in zip(again.network.parameters(), tiny.network.parameters()):
        assert torch.equal(a, b)
    assert detect(load_detector(file), told(4, 1)).equals(detect(tiny, told(4, 1)))


@pytest.mark.parametrize(
    'change',
    [dict(seed=1), dict(config=replace(TINY, lr=1e-3)), dict(train=told(9, 0)), dict(kind='bmn')],
)
def test_restart_of_another_run_is_refused(tmp_path, change):
    file = tmp_path / 'model.safetensors'
    run = dict(kind='gtad', train=told(8, 0), config=replace(TINY, epochs=1), file=file)
    train_detector(**run)
    before = file.read_bytes()
    with pytest.raises(InputError, match='checkpoint'):
        train_detector(**run | change)
    assert file.read_bytes() == before


def test_random_numbers_of_others_are_left_alone(tiny):
    state = torch.get_rng_state()
    network('bmn', 8, SMALL['bmn'])
    train_detector('gtad', told(8, 0), replace(TINY, epochs=1))
    assert torch.equal(state, torch.get_rng_state())


def test_a_loss_that_explodes_is_named():
    with pytest.raises(InputError, match='lr: got 1e.30'):
        train_detector('gtad', told(8, 0), replace(TINY, lr=1e30, epochs=9))


# the axis


def test_labels_and_predictions_share_the_axis(tiny):
    few = told(3, 1)
    base = detect(tiny, few)[['start', 'end']].to_numpy()
    later = [replace(e, begin=0.5, segments=e.segments + 0.5) for e in few]
    longer = [replace(e, duration=3 * e.duration, segments=3 * e.segments) for e in few]
    np.testing.assert_allclose(detect(tiny, later)[['start', 'end']].to_numpy(), base + 0.5)
    np.testing.assert_allclose(detect(tiny, longer)[['start', 'end']].to_numpy(), 3 * base)
    for other in (later, longer):
        torch.testing.assert_close(batch_targets(other, TINY).iou, batch_targets(few, TINY).iou)


@pytest.mark.parametrize('rows', [1, 5, 16, 77])
def test_any_number_of_rows(tiny, rows):
    video = unlabelled(
        np.random.default_rng(0).normal(size=(rows, 16)).astype(np.float32), rows * 1.5
    )
    found = detect(tiny, [video])
    assert (
        len(found)
        and (found.end <= rows * 1.5 + 1e-9).all()
        and (found.start >= 0).all()
        and (found.end > found.start).all()
    )
    assert batch_features([video], TINY).shape == (1, 16, 16)


def test_lists_are_ordered_and_bounded(tiny):
    few = told(3, 1)
    for table, most in ((propose(tiny, few), 100), (detect(tiny, few), 200)):
        for _, rows in table.groupby('video'):
            assert rows.score.is_monotonic_decreasing and len(rows) <= most
    assert set(propose(tiny, few).label) == {''} and set(detect(tiny, few).label) <= {
        'spin',
        'wave',
    }
    assert len(detect(tiny, few, top=1)) * 2 == len(detect(tiny, few, top=2))
    one = detect(tiny, few[:1]).reset_index(drop=True)
    both = detect(tiny, few)
    pd.testing.assert_frame_equal(both[both.video == few[0].name].reset_index(drop=True), one)


def test_class_scores_of_videos(tiny):
    few = told(2, 1)
    found = detect(
        tiny,
        few,
        top=1,
        video_scores={few[0].name: np.array([0.9, 0.1]), few[1].name: np.array([0.2, 0.8])},
    )
    assert found.groupby('video').label.agg(set).to_dict() == {
        few[0].name: {'spin'},
        few[1].name: {'wave'},
    }


# classes


def test_pooled_constant_and_bounds():
    rows = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    whole = pooled(rows, np.array([[0.0, 9.0], [-5.0, 50.0]]), 9.0)
    np.testing.assert_allclose(whole, np.tile(rows.mean(0, dtype=float), (2, 1)), atol=1e-6)
    np.testing.assert_allclose(
        pooled(rows, np.array([[9.0, 9.0], [20.0, 30.0]]), 9.0),
        np.tile(rows[-1], (2, 1)),
        atol=1e-6,
    )
    assert pooled(rows, np.zeros((0, 2)), 9.0).shape == (0, 3)


def test_classes_are_learned():
    rng = np.random.default_rng(0)
    x, words = rng.normal(size=(40, 3)), ['a', 'b'] * 20
    x[::2, 1] += 5
    weight, bias = fit_classes(x, words, ['a', 'b'])
    assert ((torch.from_numpy(x) @ weight.T + bias).argmax(1) == torch.tensor([0, 1] * 20)).all()
    assert fit_classes(x, ['a'] * 40, ['a'])[0].shape == (1, 3)


# broken input


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(features=np.full((4, 16), np.nan, np.float32)), 'nan or infinite'),
        (dict(features=np.zeros((0, 16), np.float32)), 'no rows'),
        (dict(labels=('a',)), 'labels'),
        (dict(duration=0.0), 'seconds covered'),
        (dict(duration=float('nan')), 'seconds covered'),
    ],
)
def test_examples(change, words):
    video = Example(np.zeros((4, 16), np.float32), np.zeros((2, 2)), ('a', 'b'), 4.0, 'clip')
    with pytest.raises(InputError, match=words) as error:
        replace(video, **change)
    assert 'clip' in str(error.value) and '\n' not in str(error.value)


def test_training_input(tiny):
    few = told(4, 0)
    for videos, words in (
        (few[:1] + few, 'twice'),
        ([], 'none'),
        ([unlabelled(few[0].features, 9.0)], 'no action'),
        (few + [unlabelled(np.zeros((5, 3), np.float32), 5.0, 'odd')], 'odd: got 3 numbers'),
    ):
        with pytest.raises(InputError, match=words):
            train_detector('gtad', videos, TINY)
    with pytest.raises(InputError, match='must be 16'):
        detect(tiny, [unlabelled(np.zeros((5, 3), np.float32), 5.0)])
    with pytest.raises(InputError, match='kind'):
        train_detector('bsn', few)
    backwards = [replace(few[0], segments=few[0].segments[:, ::-1].copy())]
    with pytest.raises(InputError, match='start first'):
        train_detector('gtad', backwards, TINY)
    for wrong in (dict(batch=0), dict(lr=-1.0), dict(drop=-1)):
        with pytest.raises(InputError):
            Config(**wrong)


def test_timeline(tiny):
    video = told(1, 1)[0]
    figure = timeline(
        detect(tiny, [video]),
        video.duration,
        truth_of([video]),
        frames=np.zeros((3, 8, 8, 3), np.uint8),
        most=3,
    )
    assert len(figure.axes) == 2 and figure.axes[1].get_xlim() == (0, 64)
    bars = [p for p in figure.axes[1].patches]
    assert len(bars) == 3 + len(video.segments)
    assert len(timeline(detect(tiny, [video])[:0], 9.0).axes) == 1


# files and commands


@pytest.fixture
def home(tmp_path):
    "A folder with features of twelve videos, annotations of two subsets."
    videos = told(12, 5)
    (tmp_path / 'features').mkdir()
    for e in videos:
        np.save(tmp_path / 'features' / f'v_{e.name}.npy', e.features)
    rows = truth_of(videos)
    rows = rows.assign(
        subset=['training' if int(v.split('-')[1]) < 8 else 'validation' for v in rows.video],
        duration=64.0,
    )
    write_activitynet(
        rows[['video', 'subset', 'duration', 'start', 'end', 'label']], tmp_path / 'truth.json'
    )
    return tmp_path


def call(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


FEW = [
    w
    for f in ('length', 'base', 'joint', 'last', 'bins', 'epochs', 'drop', 'batch')
    for w in ('--set', f'{f}={getattr(TINY, f)}')
]


def trains(home, *more):
    return call(
        'train',
        home / 'features',
        home / 'truth.json',
        home / 'model.safetensors',
        '--model',
        'gtad',
        '--preset',
        'small',
        '--step',
        2,
        *FEW,
        *more,
    )


def test_commands(home):
    result = trains(home)
    assert result.exit_code == 0 and '8 videos' in result.stdout, result.output
    there = read_examples(home / 'features', home / 'truth.json', 'training', 2.0)
    same = train_detector('gtad', there, load_detector(home / 'model.safetensors').config)
    test = ('--annotations', home / 'truth.json', '--step', 2)
    assert (
        call(
            'predict', home / 'model.safetensors', home / 'features', home / 'out.json', *test
        ).exit_code
        == 0
    )
    found = read_detections(home / 'out.json')
    ours = detect(same, read_examples(home / 'features', home / 'truth.json', 'validation', 2.0))
    pd.testing.assert_frame_equal(
        found, ours.reset_index(drop=True), check_dtype=False
    )  # files, commands and memory: the same numbers
    result = call('evaluate', home / 'out.json', home / 'truth.json', '--out', home / 'score.json')
    known = json.loads((home / 'score.json').read_text())
    assert known.items() >= score(ours, truth_of([e for e in told(12, 5)[8:]])).items()
    assert known['mAP, low of 95 %'] <= known['mAP'] <= known['mAP, high of 95 %']
    assert known['videos'] == 4 and 'mAP by chance' in known and 'actions ' in result.stderr
    truth = truth_of(told(12, 5)[8:])
    one = truth[truth['video'] == truth['video'][0]]  # no interval, no chance of a single video
    alone = match(one, found[found['video'] == one['video'][0]])
    assert certainty(alone).keys() == {'videos', 'actions', 'detections'}
    content = json.loads((home / 'out.json').read_text())
    assert set(content) == {'version', 'results', 'external_data'} and set(
        next(iter(content['results'].values()))[0]
    ) == {'score', 'segment', 'label'}
    assert (
        call(
            'predict',
            home / 'model.safetensors',
            home / 'features',
            home / 'out.json',
            *test,
            '--proposals',
        ).exit_code
        == 0
    )
    assert 'AUC' in call('evaluate', home / 'out.json', home / 'truth.json').stdout
    digits = MovingDigits(1, size=32, length=45)
    write_video(
        home / 'v_video5-0.mp4',
        [digits.clips(torch.tensor([0]), torch.arange(45)[None, None])[0, 0]],
        15,
    )
    result = call(
        'show',
        home / 'model.safetensors',
        home / 'v_video5-0.mp4',
        home / 'line.png',
        '--features',
        home / 'features',
        '--step',
        2,
    )
    assert result.exit_code == 0 and (home / 'line.png').read_bytes()[:4] == b'\x89PNG', (
        result.output
    )


def breaks(home, what):
    "Spoil one thing, and the command that must notice."
    one = home / 'features' / 'v_video5-9.npy'
    predict = (
        'predict',
        home / 'model.safetensors',
        home / 'features',
        home / 'new.json',
        '--annotations',
        home / 'truth.json',
        '--step',
        2,
    )
    if what == 'dimension':
        np.save(one, np.zeros((32, 7), np.float32))
    if what == 'nan':
        np.save(one, np.full((32, 16), np.nan, np.float32))
    if what == 'missing':
        one.unlink()
    if what == 'cut':
        one.write_bytes(one.read_bytes()[:200])
    if what == 'integers':
        np.save(one, np.zeros((32, 16), int))
    if what == 'cube':
        np.save(one, np.zeros((2, 32, 16), np.float32))
    if what == 'step':
        predict = predict[:-2]
    if what == 'model':
        (home / 'model.safetensors').write_bytes(b'nothing')
    if what in ('labels', 'no class'):
        (home / 'scores.json').write_text(json.dumps({'class': ['spin', 'jump'], 'results': {}}))
        predict += ('--video-scores', home / 'scores.json')
    if what == 'no class':
        predict += ('--proposals',)
    if what == 'subset':
        predict += ('--subset', 'testing')
    if what == 'device':
        predict += ('--device', 'abacus')
    if what == 'foreign label':
        (home / 'bad.json').write_text(
            json.dumps(dict(results={'video5-9': [dict(label='jump', score=0.5, segment=[0, 1])]}))
        )
        predict = ('evaluate', home / 'bad.json', home / 'truth.json', '--out', home / 'new.json')
    if what == 'other encoder':
        predict = ('show', home / 'model.safetensors', home / 'none.mp4', home / 'new.png')
    return predict


WRONG = dict(
    dimension='video5-9: got another width',
    nan='32 of 32 rows of',
    missing='no features of 1 of 4 videos: video5-9',
    cut='v_video5-9.npy: got ValueError',
    integers='int64 of shape',
    cube='shape (2, 32, 16)',
    step='step None',
    model='not a whole safetensors',
    labels="without 'wave'",
    subset='use one of training, validation',
    device='use cpu',
)
WRONG |= {
    'no class': 'proposals have no class',
    'foreign label': 'jump',
    'other encoder': 'none.mp4',
}


def test_what_is_wrong_is_said_in_a_line(home, tiny):
    tiny.save(home / 'model.safetensors')
    good = {p: p.read_bytes() for p in home.rglob('*') if p.is_file()}
    for what, words in WRONG.items():
        command = breaks(home, what)
        before = sorted(p.name for p in home.iterdir())
        result = call(*command)
        lines = result.stderr.strip().splitlines()
        assert (result.exit_code, len(lines), result.stdout) == (2, 1, ''), (
            what,
            result.output,
            result.exception,
        )
        assert lines[0].startswith('error: ') and words in lines[0], (what, lines)
        assert sorted(p.name for p in home.iterdir()) == before, what
        for path, content in good.items():
            path.write_bytes(content)


@pytest.mark.parametrize(
    'more, words',
    [
        (('--model', 'bsn'), 'use one of bmn'),
        (('--set', 'speed=3'), 'none of that name; did you mean'),
        (('--set', 'lr=fast'), 'type float'),
        (('--subset', 'none'), 'use one of'),
        (('--preset', 'huge'), 'paper'),
        (('--set', 'base=3'), 'multiple of groups'),
    ],
)
def test_training_commands_that_make_no_sense(home, more, words):
    result = trains(home, *more)
    assert (
        result.exit_code == 2
        and words in result.stderr
        and len(re.findall('^error', result.stderr, re.M)) == 1
    ), result.output
    assert not (home / 'model.safetensors').exists()


def test_missing_may_be_skipped(home):
    (home / 'features' / 'v_video5-0.npy').unlink()
    assert trains(home).exit_code == 2
    assert '7 videos' in trains(home, '--missing', 'skip').stdout


def test_step_and_begin_come_from_the_file(tmp_path):
    np.save(tmp_path / 'a.npy', np.zeros((10, 4), np.float32))
    (tmp_path / 'a.json').write_text(json.dumps(dict(axis=dict(step=0.2, length=1.0, first=0.0))))
    video = read_features(tmp_path / 'a.npy')
    assert (video.duration, video.begin) == (
        pytest.approx(2.0),
        pytest.approx(0.4),
    )  # rows of one second, five a second
    (tmp_path / 'a.json').write_text('{}')
    with pytest.raises(InputError, match='axis'):
        read_features(tmp_path / 'a.npy')


@pytest.mark.parametrize('command', ['check', 'train', 'predict', 'evaluate', 'show'])
def test_help(command):
    text = call(command, '--help').stdout
    assert 'default' in text and call(command).exit_code == 2


def rewrite(home, **settings):
    "Features of the set again, as `features extract` writes them."
    clip = dict(frames=32, stride=1, size=112, rate=15.0, picture='square', resize=[])
    clip |= {k: settings.pop(k) for k in list(settings) if k in clip}
    about = dict(weights='1f0c', encoder='r2plus1d_18', precision='fp32', hop=30, clip=clip)
    for file in (home / 'features').glob('*.npy'):
        Features(np.load(file), TimeAxis(2.0, 2.0), {}, about | settings).save(file)


@pytest.mark.parametrize(
    'changed',
    [dict(weights='77'), dict(hop=15), dict(rate=30.0), dict(stride=2), dict(picture='frame')],
)
def test_features_of_another_encoder_are_refused(home, changed):
    rewrite(home)
    assert trains(home, '--set', 'epochs=1').exit_code == 0
    assert 'weights 1f0c' in str(load_detector(home / 'model.safetensors').source)
    predict = ('predict', home / 'model.safetensors', home / 'features', home / 'out.json')
    assert call(*predict).exit_code == 0
    rewrite(home, precision='bf16', encoder='the same in other words')
    assert call(*predict).exit_code == 0
    rewrite(home, **changed)
    (home / 'out.json').unlink()
    result = call(*predict)
    (name, value), *_ = changed.items()
    assert result.exit_code == 2 and result.stderr.count('\n') == 1, result.output
    assert f'{name} {value}' in result.stderr and 'weights 1f0c' in result.stderr
    assert not (home / 'out.json').exists()


def test_features_from_before_the_clip_had_a_name(home):
    "A file of older words and one of today's are the same features."
    rewrite(home, picture='released', resize=[128, 171])
    new = read_features(home / 'features' / 'v_video5-3.npy').made
    file = home / 'features' / 'v_video5-3.json'
    about = json.loads(file.read_text())
    old = dict(frames=32, size=112, rate=15, stride=30, transform='tsp', precision='fp32')
    file.write_text(json.dumps(about | dict(settings=old | dict(weights='1f0c'))))
    assert read_features(file.with_suffix('.npy')).made == new.replace('15.0', '15')


@pytest.fixture(scope='module')
def two_runs(tmp_path_factory):
    "Two runs that differ in their seed, and four short videos with annotations."
    folder = tmp_path_factory.mktemp('two')
    for seed in (0, 1):
        cfg = tsp.Config(videos=4, batch=4, steps=1, warmup=1, region=0.0, stride=1, seed=seed)
        run = Run(f'run{seed}', 'tsp', cfg)
        source = tsp.videos(cfg, 'pretrain')
        learner(run, folder / run.name, source, 'cpu', quiet=True)[0].fit(1)
    digits, rows = MovingDigits(4, size=32, length=45), []
    for k in range(4):
        frames = digits.clips(torch.tensor([k]), torch.arange(45)[None, None])[0, 0]
        write_video(folder / 'videos' / f'v_{k}.mp4', [frames], 15)
        rows.append((f'v_{k}', 'training', 3.0, 1.0, 2.0, 'spin'))
    columns = ['video', 'subset', 'duration', 'start', 'end', 'label']
    write_activitynet(pd.DataFrame(rows, columns=columns), folder / 'truth.json')
    return folder


def test_from_a_run_to_a_detector(two_runs):
    "Clip and hop are the run's; a detector takes its features and no others, in a process of its own, too."
    there, runner = two_runs, CliRunner()

    def extracted(name, seed, *more):
        words = ('extract', there / 'videos', there / name, '--run', there / f'run{seed}', *more)
        result = runner.invoke(features_app, [str(w) for w in words])
        assert result.exit_code == 0, result.output
        return there / name

    own = extracted('own', 0)
    about = json.loads((own / 'v_0.json').read_text())
    assert (
        about['settings']['hop'] == 8 and about['shape'][0] == (45 - 8) // 8 + 1
    )  # no frame skipped
    assert about['settings']['clip'] == dict(
        frames=8, stride=1, size=32, rate=0.0, picture='square', resize=[]
    )
    model = there / 'model.safetensors'
    result = call('train', own, there / 'truth.json', model, '--preset', 'small', *FEW)
    assert result.exit_code == 0, result.output
    assert call('predict', model, own, there / 'out.json').exit_code == 0
    for folder, words in (
        (extracted('denser', 0, '--hop', 4), 'hop 4'),
        (extracted('other', 1), 'weights'),
    ):
        result = call('predict', model, folder, there / 'new.json')
        assert result.exit_code == 2 and result.stderr.count('\n') == 1 and words in result.stderr
    own_folder = there / 'elsewhere'
    own_folder.mkdir()
    for seed, code in ((0, 0), (1, 2)):
        words = ('show', model, there / 'videos' / 'v_0.mp4', f'{seed}.png', '--run')
        command = [sys.executable, '-m', 'vidrepro', 'localize', *map(str, words)]
        done = subprocess.run(
            [*command, str(there / f'run{seed}')], cwd=own_folder, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
    assert done.stderr.count('\n') == 1 and 'the model learnt from' in done.stderr
    assert [p.name for p in own_folder.iterdir()] == ['0.png']


def test_two_encoders_in_one_folder_are_refused(home):
    rewrite(home)
    file = home / 'features' / 'v_video5-3.json'
    file.write_text(file.read_text().replace('1f0c', '77'))
    result = trains(home)
    assert result.exit_code == 2 and 'video5-3: got weights 77' in result.stderr


def test_plain_arrays_are_known_by_length_and_step(home, tiny):
    replace(tiny, source=replace(tiny.source, step=1.0)).save(home / 'model.safetensors')
    result = call(
        'predict', home / 'model.safetensors', home / 'features', home / 'out.json', '--step', 2
    )
    assert result.exit_code == 2 and '16 numbers every 1 s' in result.stderr
    replace(tiny, source=None).save(home / 'model.safetensors')  # files of before
    assert (
        call(
            'predict', home / 'model.safetensors', home / 'features', home / 'out.json', '--step', 2
        ).exit_code
        == 0
    )


def test_training_shows_the_time_left(home):
    assert 'step/s' in trains(home).stderr or 's/step' in trains(home).stderr
