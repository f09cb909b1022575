"Scores of detections and proposals: the official sample file, loops as oracle, hand-made cases, speed."

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrepro.core.files import InputError
from vidrepro.data.annotations import read_activitynet, write_activitynet
from vidrepro.localize.metrics import (
    ACTIVITYNET,
    COLUMNS,
    KINDS,
    RELEASED,
    THUMOS14,
    Rules,
    average_precision,
    average_recall,
    check,
    found_by_length,
    kinds,
    match,
    picture,
    read_detections,
    segment_iou,
    summary,
    write_detections,
)

spec = importlib.util.spec_from_file_location(
    'benchmark_detection', Path(__file__).parents[1] / 'benchmarks' / 'detection.py'
)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


@pytest.fixture(scope='module')
def official(data_dir):
    "Truth of the validation set, and the sample file of the official evaluator."
    folder = data_dir / 'annotations'
    truth = read_activitynet(folder / 'activity_net.v1-3.reconstructed_from_tsp.json')
    truth = truth[truth['subset'] == 'validation']
    file = folder / 'activitynet_official_eval' / 'data' / 'sample_detection_prediction.json'
    return truth, read_detections(file, set(truth['video']), set(truth['label']))


@pytest.fixture(scope='module')
def shorter(data_dir, official):
    "The truth on the 4,728 videos that BMN and G-TAD list."
    listed = pd.read_csv(data_dir / 'annotations' / 'activitynet13_bmn' / 'video_info_new.csv')
    return official[0][
        official[0]['video'].isin(
            listed[listed['subset'] == 'validation']['video'].str.removeprefix('v_')
        )
    ]


@pytest.mark.parametrize('rules', [Rules(), RELEASED], ids=['ours', 'released'])
def test_truth_as_detections(official, rules):
    truth, sample = official
    assert (truth['video'].nunique(), len(truth), sample['video'].nunique(), len(sample)) == (
        4926,
        7654,
        4926,
        7654,
    )
    area = average_precision(match(truth, sample, rules=rules))
    assert area.shape == (200, 10) and (area == 1).all()


def test_fewer_videos(official, shorter):
    "198 videos dropped from the truth alone; all scores are equal, so the order of ties decides the rest."
    assert (shorter['video'].nunique(), len(shorter)) == (4728, 7293)
    sample = official[1]
    assert summary(match(shorter, sample, rules=RELEASED))['mAP'] == pytest.approx(0.972, abs=5e-4)
    assert summary(match(shorter, sample))['mAP'] == pytest.approx(0.977, abs=1e-3)
    gone = tuple(set(sample['video']) - set(shorter['video']))
    assert len(gone) == 198
    for rules in (Rules(strays='drop'), Rules(blocked=gone)):
        assert summary(match(official[0], sample, rules=rules))['mAP'] == 1
    assert summary(match(shorter, sample, rules=Rules(strays='drop')))['mAP'] == 1


def test_random_proposals(official):
    "Centre and length uniform over the video, uniform score, 100 each."
    truth = official[0]
    random.seed(42)
    rows = []
    for video, duration in truth.drop_duplicates('video')[['video', 'duration']].itertuples(
        index=False
    ):
        for _ in range(100):
            centre, length = random.random() * duration, random.random() * duration
            rows.append((video, centre - length / 2, centre + length / 2, '', random.random()))
    recall = average_recall(truth, pd.DataFrame(rows, columns=list(COLUMNS)))
    assert recall.auc == pytest.approx(0.444, abs=0.003)
    for number, expected in ((1, 0.056), (5, 0.195), (10, 0.287), (100, 0.556)):
        assert recall.at(number) == pytest.approx(expected, abs=0.005)


def test_thumos(data_dir):
    "The list of G-TAD's evaluator, whose segments are text, as its own detections."
    truth = read_activitynet(data_dir / 'annotations' / 'thumos14_gtad_eval' / 'thumos_gt.json')
    truth = truth[(truth['subset'] == 'test') & (truth['label'] != '')]
    assert (truth['video'].nunique(), len(truth), truth['label'].nunique()) == (210, 3311, 20)
    rng = np.random.default_rng(0)
    itself = truth.assign(score=rng.random(len(truth)))
    assert summary(match(truth, itself, THUMOS14))['mAP'] == pytest.approx(1)
    noisy = np.sort(truth[['start', 'end']].to_numpy() + rng.normal(0, 1, (len(truth), 2)), axis=1)
    many = pd.concat([itself.assign(start=noisy[:, 0], end=noisy[:, 1])] * 3)[list(COLUMNS)]
    many = many.assign(score=rng.random(len(many)))
    assert (
        np.abs(
            average_precision(match(truth, many, THUMOS14))
            - benchmark.ap_loops(truth, many, THUMOS14)
        ).max()
        < 1e-12
    )


def coarse(rows, scored, rng, videos):
    "A table with equal scores, equal overlaps, doubles and videos that only one side has."
    ends = np.sort(rng.integers(0, 8, (rows, 2)), axis=1) + [0, 1]
    table = pd.DataFrame(
        dict(
            video=[f'v{i}' for i in rng.integers(0, videos, rows)],
            start=ends[:, 0].astype(float),
            end=ends[:, 1].astype(float),
            label=[('run', 'jump', 'sit')[i] for i in rng.integers(0, 3, rows)],
        )
    )
    return table.assign(score=rng.integers(0, 5, rows) / 5) if scored else table


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 30),
    st.integers(1, 80),
    st.sampled_from([THUMOS14, ACTIVITYNET]),
)
def test_loops(seed, actions, rows, thresholds):
    rng = np.random.default_rng(seed)
    truth, found = coarse(actions, False, rng, 5), coarse(rows, True, rng, 7)
    known = found[found['label'].isin(truth['label'])]
    ours = average_precision(match(truth, found, thresholds, Rules(unknown='drop')))
    assert np.abs(ours - benchmark.ap_loops(truth, known, thresholds)).max() < 1e-12
    for most in (2, 10, 100):
        assert (
            np.abs(
                average_recall(truth, found, thresholds, most).recall
                - benchmark.recall_loops(truth, found, thresholds, most)
            ).max()
            < 1e-12
        )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_each_action_is_found_once(seed):
    rng = np.random.default_rng(seed)
    truth, found = coarse(20, False, rng, 4), coarse(60, True, rng, 4)
    m = match(truth, found, ACTIVITYNET, Rules(unknown='drop'))
    for q, threshold in enumerate(m.thresholds):
        rows = np.flatnonzero(m.found[:, q] >= 0)
        hit = m.found[rows, q]
        assert len(set(hit)) == len(hit)
        a, d = m.truth.iloc[hit], m.detections.iloc[rows]
        assert (a['video'].to_numpy() == d['video'].to_numpy()).all() and (
            a['label'].to_numpy() == d['label'].to_numpy()
        ).all()
        assert (
            segment_iou(a[['start', 'end']].to_numpy(), d[['start', 'end']].to_numpy()) >= threshold
        ).all()


def table(*rows):
    return pd.DataFrame(rows, columns=['video', 'start', 'end', 'label', 'score'])


ONE = table(('v', 0.0, 10.0, 'run', 1.0))[['video', 'start', 'end', 'label']]
TWO = pd.concat([ONE, ONE.assign(start=20.0, end=30.0)])
HIT, MISS = ('v', 0.0, 10.0, 'run', 0.5), ('v', 50.0, 60.0, 'run', 0.5)
SECOND = ('v', 20.0, 30.0, 'run', 0.4)


def value(truth, *rows, **rules):
    return average_precision(match(truth, table(*rows), (0.5,), Rules(**rules))).mean()


@pytest.mark.parametrize('rules', ['file', 'released'])
def test_ties(rules):
    "File order: first come. NumPy's reversed sort: for two rows, last come."
    assert {value(ONE, HIT, MISS, ties=rules), value(ONE, MISS, HIT, ties=rules)} == {0.5, 1.0}
    assert value(ONE, HIT, MISS, ties=rules) == (1.0 if rules == 'file' else 0.5)


def test_double_matches():
    assert value(TWO, HIT, SECOND) == 1
    assert value(TWO, HIT, HIT, SECOND) == pytest.approx((1 + 2 / 3) / 2)
    assert value(pd.concat([ONE, ONE]), HIT, HIT) == 1  # two equal actions take one detection each
    better = table(('v', 0.0, 8.0, 'run', 0.9), ('v', 0.0, 10.0, 'run', 0.8))
    m = match(ONE, better, (0.5, 0.9))
    assert m.found.tolist() == [[0, -1], [-1, 0]]  # each threshold on its own
    next_best = pd.concat(
        [ONE, ONE.assign(start=1.0)]
    )  # the second detection falls back on the action that is free
    assert match(next_best, table(HIT, HIT), (0.5,)).found[:, 0].tolist() == [0, 1]


def test_empty_classes_and_nothing():
    both = pd.concat([ONE, ONE.assign(label='jump')])
    assert value(both, HIT) == 0.5
    assert average_precision(match(ONE, table(), (0.5,))).tolist() == [[0.0]]
    assert average_recall(ONE, table()).auc == 0
    for truth in (ONE[:0], ONE.assign(label='')):
        with pytest.raises(InputError, match='no action'):
            match(truth, table(HIT))
        with pytest.raises(InputError, match='no action'):
            average_recall(truth, table(HIT))


def test_strangers():
    stranger = ('w', 0.0, 10.0, 'run', 0.9)
    assert [
        value(ONE, stranger, HIT),
        value(ONE, stranger, HIT, strays='drop'),
        value(ONE, stranger, HIT, blocked=('w',)),
    ] == [0.5, 1, 1]
    unknown = ('v', 0.0, 10.0, 'fly', 0.9)
    with pytest.raises(InputError, match="label 'fly'"):
        value(ONE, HIT, unknown)
    m = match(ONE, table(unknown, HIT, MISS), (0.5,), Rules(unknown='drop'))
    assert m.detections['label'].tolist() == ['run', 'run'] and m.found[:, 0].tolist() == [0, -1]


@pytest.mark.parametrize('points, expected', [('equal', 0.5), ('never', 0.0), ('released', 1.0)])
def test_points(points, expected):
    at = ONE.assign(start=3.0, end=3.0)
    assert (
        value(at, ('v', 2.0, 2.0, 'run', 0.9), ('v', 3.0, 3.0, 'run', 0.8), points=points)
        == expected
    )
    recall = average_recall(at, table(('v', 3.0, 3.0, '', 1.0)), rules=Rules(points=points))
    assert (
        recall.recall[:, -1].tolist() == [1.0 * (points == 'equal')] * 10
    )  # the released proposal code never matches points


def test_twins():
    twice = pd.concat([ONE, ONE.assign(end=10.0005), ONE.assign(end=10.0, label='jump')])
    assert [
        len(match(twice, table(HIT), rules=Rules(twins=t)).truth) for t in (None, 1e-4, 1e-3)
    ] == [3, 3, 2]
    assert match(twice, table(HIT), rules=Rules(twins=1e-3)).truth['end'].tolist() == [10.0, 10.0]


def test_shared_budget():
    "With one proposal in one video and two in the other, the first operating point uses none of the one."
    two = pd.concat([ONE, ONE.assign(video='w')])
    offers = table(HIT, ('w', 50.0, 60.0, '', 0.9), ('w', 0.0, 10.0, '', 0.8))
    shared, each = (average_recall(two, offers, budget=b) for b in ('shared', 'each'))
    assert [shared.recall[0, 0], each.recall[0, 0], shared.recall[0, -1], each.recall[0, -1]] == [
        0.0,
        0.5,
        1.0,
        1.0,
    ]


FAULTS = [
    ('start', np.nan, 'finite seconds'),
    ('end', -1.0, 'start before the end'),
    ('score', np.nan, 'finite scores'),
    ('score', 1.5, 'from 0 to 1'),
    ('video', 'w', 'known video names'),
    ('label', 'fly', 'known label names'),
]


@pytest.mark.parametrize('column, bad, message', FAULTS)
def test_writer_refuses(tmp_path, column, bad, message):
    rows = table(HIT, MISS, SECOND)
    write_detections(rows, tmp_path / 'good.json', ['v'], ['run'])
    pd.testing.assert_frame_equal(read_detections(tmp_path / 'good.json', ['v'], ['run']), rows)
    rows.loc[1, column] = bad
    with pytest.raises(InputError, match=message) as error:
        write_detections(rows, tmp_path / 'bad.json', ['v'], ['run'])
    assert '\n' not in str(error.value) and str(rows.loc[1, 'video']) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['good.json']
    text = (tmp_path / 'good.json').read_text()
    with pytest.raises(InputError):
        write_detections(rows, tmp_path / 'good.json', ['v'], ['run'])
    assert (tmp_path / 'good.json').read_text() == text


@pytest.mark.parametrize('column, bad, message', FAULTS)
def test_reader_refuses(tmp_path, column, bad, message):
    entry = dict(segment=[0.0, 10.0], score=0.5, label='run')
    video = bad if column == 'video' else 'v'
    if column in ('start', 'end'):
        entry['segment'][column == 'end'] = bad
    elif column != 'video':
        entry[column] = bad
    (tmp_path / 'x.json').write_text(
        json.dumps(dict(version='1', results={video: [entry]}, external_data={}))
    )
    with pytest.raises(InputError, match=message):
        read_detections(tmp_path / 'x.json', ['v'], ['run'])


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{}',
        '{"results": []}',
        '{"results": {"v": [1]}}',
        '{"results": {"v": [{"score": 1}]}}',
        '{"results": {"v": [{"segment": [1], "score": 1}]}}',
    ],
)
def test_other_files(tmp_path, text):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(InputError, match='results'):
        read_detections(tmp_path / 'x.json')


def test_check_counts():
    check(table(HIT))
    with pytest.raises(InputError, match='and 1 more rows'):
        check(table(HIT, MISS).assign(score=2.0))
    with pytest.raises(InputError, match=r"\['score'\]"):
        match(ONE, table(HIT).drop(columns='score'))
    with pytest.raises(InputError, match='finite'):
        match(ONE, table(HIT).assign(score=np.nan))
    check(ONE, 'truth', limits=None)
    assert value(ONE, HIT[:4] + (7.5,)) == 1  # logits may be ranked, not written


def test_kinds_and_lengths(tmp_path):
    rng = np.random.default_rng(0)
    truth, found = coarse(60, False, rng, 8), coarse(200, True, rng, 9)
    m = match(truth, found, THUMOS14)
    kind = kinds(m, 0.5)
    assert set(kind) == set(range(len(KINDS)))
    assert ((kind == 0) == (m.found[:, 2] >= 0)).all()
    for i, d in enumerate(m.detections.itertuples()):  # each by hand
        rows = m.truth[m.truth['video'] == d.video]
        iou = segment_iou(rows[['start', 'end']].to_numpy(float), np.array([d.start, d.end]))
        own, other = (
            iou[mask].max(initial=0)
            for mask in (
                (rows['label'] == d.label).to_numpy(),
                (rows['label'] != d.label).to_numpy(),
            )
        )
        want = (
            0
            if m.found[i, 2] >= 0
            else 1
            if own >= 0.5
            else 2
            if other >= 0.5
            else 3
            if own >= 0.1
            else 4
            if other >= 0.1
            else 5
        )
        assert kind[i] == want
    count, share = found_by_length(m, np.array([0.0, 3.0, 100.0]))
    assert count.sum() == len(truth)
    assert np.allclose((count[:, None] * share).sum(0), (m.found >= 0).sum(0))
    figure = picture(m, 0.5, np.array([0.0, 3.0, 6.0, 10.0]), ['run'])
    figure.savefig(tmp_path / 'x.png')
    assert len(figure.axes) == 3 and (tmp_path / 'x.png').stat().st_size > 5000


def test_chunks(monkeypatch):
    "Pairs listed in small pieces give the same answer."
    from vidrepro.localize import metrics as detection

    rng = np.random.default_rng(1)
    truth, found = coarse(40, False, rng, 6), coarse(100, True, rng, 6)
    whole, rows = match(truth, found, THUMOS14), detection._rows
    recall = average_recall(truth, found).recall
    for size in (1, 7, 64):
        monkeypatch.setattr(detection, '_rows', lambda owner, groups: rows(owner, groups, size))
        assert (match(truth, found, THUMOS14).found == whole.found).all() and (
            average_recall(truth, found).recall == recall
        ).all()


def test_our_annotations(tmp_path):
    "Truth written by the package is read by it, and scores 1 against itself."
    truth = TWO.assign(subset='validation', duration=60.0)
    write_activitynet(truth, tmp_path / 'truth.json')
    again = read_activitynet(tmp_path / 'truth.json')
    write_detections(
        again.assign(score=1.0), tmp_path / 'found.json', set(again['video']), set(again['label'])
    )
    assert summary(match(again, read_detections(tmp_path / 'found.json')))['mAP'] == 1
    with pytest.raises(InputError, match='keep one'):
        match(pd.concat([again, again.assign(subset='training')]), table(HIT))


def test_speed():
    "Twenty times faster than the loops, on the same data with the same answer, in CPU time."
    truth, found = benchmark.made_up(500)
    ratios = {name: loops / ours for name, loops, ours in benchmark.compare(truth, found, rounds=3)}
    print(ratios)
    assert min(ratios.values()) >= 20, ratios
