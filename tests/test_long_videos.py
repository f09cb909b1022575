"Windows of long videos and what becomes of their lists; THUMOS14 from its official lists to numbers."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vidrepro.cli.localize import app
from vidrepro.core.files import InputError
from vidrepro.data.annotations import AMBIGUOUS
from vidrepro.localize import predict
from vidrepro.localize.bmn import DETECTIONS, PROPOSALS, read_maps
from vidrepro.localize.detect import SMALL, Config, Detector, in_windows, network
from vidrepro.localize.examples import Example, coarse, part_of, told, unlabelled, windowed
from vidrepro.localize.grid import label, soft_nms
from vidrepro.localize.metrics import THUMOS14, match, read_detections, segment_iou, summary
from vidrepro.localize.predict import propose, read_windows
from vidrepro.localize.thumos14 import lengths, remarks, thumos14, without


def detector(window, length=32, kind='bmn', channels=2):
    "A network that was never trained: these tests put labels in the place of its answers."
    config = replace(SMALL[kind], length=length)
    net = network(kind, 4, replace(config, length=8))
    weight = torch.zeros(1, channels, dtype=torch.float64)
    return Detector(
        kind, config, ('action',), net, weight, torch.zeros(1).double(), [], None, window
    )


@pytest.fixture
def oracle(monkeypatch):
    "A network that says its labels, of every window."

    def run(model, parts):
        said = []
        for e in parts:
            y = label(model.config.grid.of(e.duration), e.segments - e.begin, clip=False)
            confident = np.where(y.iou > 0.9, 0.995, 0.005)
            said.append((y.start + 1e-3, y.end + 1e-3, np.stack([y.iou, confident])))
        return said

    monkeypatch.setattr(predict, 'run', run)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 300), st.integers(2, 80), st.floats(0.1, 3.0), st.floats(-1.0, 2.0))
def test_windows_hold_the_video(n, size, step, begin):
    "Every row is in a window at its own second; short actions are whole in one of them."
    x = np.arange(n, dtype=np.float32)[:, None]
    rng = np.random.default_rng(n)
    half = size // 2 * step
    first = begin + rng.uniform(0, max(n * step - half, 0), 9)
    spans = np.stack([first, first + np.minimum(half, n * step)], 1)
    video = Example(x, spans, ('a',) * 9, n * step, 'v', begin)
    parts, seen, whole = windowed(video, size), set(), set()
    for p in parts:
        row = round((p.begin - begin) / step)
        assert len(p.features) == size and p.duration == pytest.approx(size * step)
        real = min(size, n - row)
        assert p.features[:real, 0].tolist() == [*range(row, row + real)]
        assert not p.features[real:].any()
        seen |= {*range(row, row + real)}
        whole |= {k for k, s in enumerate(spans) for q in p.segments if np.allclose(s, q)}
    assert seen == {*range(n)} and whole == {*range(9)}
    assert len({p.name for p in parts}) == len(parts)


def test_actions_at_the_edge():
    video = Example(np.zeros((20, 1), np.float32), np.array([[8.0, 12.0]]), ('a',), 20.0, 'v')
    kept = {a: part_of(video, a, 5).segments.tolist() for a in range(4, 14)}
    assert kept[4] == [] and kept[6] == [[8.0, 11.0]] and kept[8] == [[8.0, 12.0]]
    assert kept[9] == [[9.0, 12.0]] and kept[10] == []
    point = replace(video, segments=np.array([[8.0, 8.0]]))
    assert [len(part_of(point, a, 5).labels) for a in (2, 4, 8, 9)] == [0, 1, 0, 0]


def test_one_window_is_the_whole(oracle):
    "A video as long as its window: the list of windows is the list of the axis."
    video = replace(told(1, 3)[0], begin=2.0, segments=told(1, 3)[0].segments + 2.0)
    model = detector(32)
    for reading in (PROPOSALS, DETECTIONS):
        (said,) = predict.run(model, [video])
        whole = read_maps(model.config.grid.of(video.duration), *said, reading)
        parts = read_windows(model, video, reading)
        np.testing.assert_allclose(parts[0], whole[0], atol=1e-9)
        np.testing.assert_allclose(parts[1], whole[1], atol=1e-12)


def test_windows_find_what_an_axis_cannot(oracle):
    "Ten minutes, an action every fifteen seconds: whole on 32 cells, or in windows of 32 rows."
    rng = np.random.default_rng(0)
    first = np.arange(5, 590, 15) + rng.uniform(0, 4, 39)
    spans = np.stack([first, first + rng.uniform(2, 9, 39)], 1)
    video = Example(np.zeros((600, 2), np.float32), spans, ('action',) * 39, 600.0, 'v')
    found = {}
    for window in (0, 32):
        table = propose(detector(window), [video])
        iou = segment_iou(spans[:, None], table[['start', 'end']].to_numpy(float))
        found[window] = (iou.max(1) > 0.7).mean()
        assert table['score'].is_monotonic_decreasing and len(table) <= 100 * (19 if window else 1)
    assert found[32] == 1.0 and found[0] < 0.5


def test_suppression_looks_at_neighbours_only():
    "The same as looking at every box, to the last bit."

    def slow(segments, scores, alpha, low, high, axis, keep):
        left, order, kept = scores.copy(), [], []
        while len(order) < min(keep, len(scores)):
            best = int(left.argmax())
            order.append(best)
            kept.append(left[best])
            left[best] = -np.inf
            iou = segment_iou(segments[best], segments)
            width = segments[best, 1] - segments[best, 0]
            beyond = (iou > low + (high - low) * width / axis) & (iou > 0)
            left[beyond] *= np.exp(-(iou[beyond] ** 2) / alpha)
        return order, kept

    rng = np.random.default_rng(0)
    for n in (1, 7, 300):
        start = rng.uniform(0, 60, n)
        boxes, scores = np.stack([start, start + rng.uniform(0, 9, n)], 1), rng.uniform(size=n)
        for how in ((0.4, 0.5, 0.9), (0.8, 0.0, 0.0)):
            order, kept = soft_nms(boxes, scores, *how, axis=70.0, keep=200)
            expected = slow(boxes, scores, *how, 70.0, 200)
            assert order.tolist() == expected[0]
            np.testing.assert_allclose(kept, expected[1], rtol=1e-12)


def test_training_refuses_useless_windows():
    videos = told(3, 0)
    for window, points, words in ((1, False, '2 rows'), (16, True, 'any length')):
        with pytest.raises(InputError, match=words):
            in_windows(videos, window, points)
    assert in_windows(videos, 0, True) is videos


def test_coarse():
    hour = unlabelled(np.zeros((3375, 2), np.float32), 3600.0, 'hour')
    minute = unlabelled(np.zeros((56, 2), np.float32), 60.0, 'minute')
    line = coarse([minute, hour], 100)
    assert '36 s' in line and 'hour' in line and '93 rows' in line
    assert coarse([minute], 100) == '' == coarse([hour], 100, 93)
    assert coarse([hour], 100, 94)


# ---- THUMOS14 -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def lists(data_dir):
    return data_dir / 'annotations'


def seconds_of(lists):
    return lengths(*(lists / 'tsp_HumamAlwassel' / 'thumos14').glob('*_metadata.csv'))


def test_official_lists(lists):
    table = thumos14(lists / 'thumos14_gtad', seconds_of(lists))
    assert table.groupby('subset').video.nunique().to_dict() == dict(test=213, validation=200)
    acts = table[table.label != AMBIGUOUS]
    assert acts.groupby('subset').size().to_dict() == dict(test=3358, validation=3007)
    assert (table.label == AMBIGUOUS).sum() == 99 + 89 and table.duration.notna().all()
    lines = '\n'.join(remarks(table))
    assert 'both CliffDiving and Diving' in lines and 'video_test_0000270' in lines
    kept = without(table)
    assert set(table.video) - set(kept.video) == {'video_test_0000270', 'video_test_0001292'}


def test_from_lists_to_numbers(lists, tmp_path):
    "The truth handed in is worth 1 at every overlap, whatever lies on ambiguous segments."
    call = lambda *words: CliRunner().invoke(app, [str(w) for w in words])
    result = call('thumos14', lists / 'thumos14_gtad', tmp_path / 'truth.json', '--without-bad')
    assert result.exit_code == 0 and '411 videos' in result.stdout
    table = thumos14(tmp_path / 'truth.json')
    test = table[table.subset == 'test']
    results = {}
    for row in test.itertuples():
        vague = row.label == AMBIGUOUS
        entry = dict(segment=[row.start, row.end], score=0.99 if vague else 0.5)
        results.setdefault(row.video, []).append(
            entry | dict(label='Diving' if vague else row.label)
        )
    (tmp_path / 'found.json').write_text(json.dumps(dict(results=results)))
    words = 'evaluate', tmp_path / 'found.json', tmp_path / 'truth.json', '--subset', 'test'
    result = call(*words, '--thresholds', 'thumos14', '--out', tmp_path / 'numbers.json')
    assert result.exit_code == 0, result.stderr
    numbers = json.loads((tmp_path / 'numbers.json').read_text())
    names = ['mAP', *(f'mAP@{t:.2f}' for t in THUMOS14)]
    assert list(numbers)[: len(names)] == names and numbers['videos'] == test['video'].nunique()
    assert {numbers[name] for name in names} == {1.0}
    acts, found = test[test.label != AMBIGUOUS], read_detections(tmp_path / 'found.json')
    assert summary(match(acts, found, THUMOS14))['mAP'] < 1.0  # who forgets the ambiguous


def test_windows_over_real_annotations(lists, oracle):
    "Labels in the place of a network: what windows of 100 rows of .27 s can tell of ten real videos, and an axis cannot."
    table = thumos14(lists / 'thumos14_gtad', seconds_of(lists))
    acts = without(table[(table.label != AMBIGUOUS) & (table.subset == 'test')])
    videos = []
    for name, rows in list(acts.groupby('video'))[:10]:
        n, spans = int(rows.duration.iloc[0] * 30 / 8), rows[['start', 'end']].to_numpy(float)
        words = ('action',) * len(rows)
        videos.append(Example(np.zeros((n, 2), np.float32), spans, words, n * 8 / 30, name))
    reached = {}
    for window in (0, 100):
        found = propose(replace(detector(window), config=Config(length=100)), videos)
        best = []
        for e in videos:
            ours = found[found.video == e.name][['start', 'end']].to_numpy(float)
            best += segment_iou(e.segments[:, None], ours).max(1).tolist()
        reached[window] = np.array([np.mean(np.array(best) >= t) for t in THUMOS14])
    assert (reached[100] > (0.97, 0.97, 0.97, 0.95, 0.9)).all(), reached
    assert reached[0][2] < reached[100][2] - 0.2, reached
