"The time axis of a localizer: numbers by hand, loops as oracle, and a perfect network on real annotations."

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from vidrepro.core.files import InputError
from vidrepro.features.exports import windows
from vidrepro.localize.grid import (
    CONVENTIONS,
    RULES,
    STRETCHES,
    TimeGrid,
    above,
    align_matrix,
    anchors,
    balanced_logistic,
    candidates,
    folded,
    interpolate,
    label,
    matching_matrix,
    overlap_loss,
    pairs,
    rate,
    resized,
    sample,
    sample_conv,
    sampling_matrix,
    soft_nms,
    stretches,
    to_map,
    valid,
    vote,
    with_classes,
)
from vidrepro.localize.metrics import (
    ACTIVITYNET,
    COLUMNS,
    average_recall,
    match,
    segment_iou,
    summary,
)

# The axis and its labels


@given(st.integers(2, 200), st.floats(0.1, 1e4), st.floats(-0.5, 1.5))
def test_there_and_back(length, duration, share):
    grid = TimeGrid(length, duration)
    seconds = np.array([share * duration])
    assert np.allclose(
        grid.seconds(grid.lines(seconds)), seconds.clip(0, duration), atol=1e-9 * duration
    )


def test_one_axis():
    "A grid without a video has no seconds, and another video is another grid."
    grid = TimeGrid(100)
    for method in (grid.seconds, grid.lines):
        with pytest.raises(InputError, match='grid.of'):
            method(np.zeros(1))
    with pytest.raises(InputError, match='grid.of'):
        label(grid, np.zeros((1, 2)))
    assert grid.of_clips(30).duration == pytest.approx(32) and grid.duration is None
    with pytest.raises(AttributeError):
        grid.duration = 3.0
    for bad in (
        dict(length=1),
        dict(longest=0),
        dict(longest=101),
        dict(convention='jj'),
        dict(duration=0.0),
        dict(duration=float('nan')),
    ):
        with pytest.raises(InputError):
            TimeGrid(**dict(length=100) | bad)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(list(CONVENTIONS)), st.integers(2, 12), st.integers(0, 4)
)
def test_labels(seed, convention, length, count):
    rng = np.random.default_rng(seed)
    grid = TimeGrid(length, 10.0, convention, longest=int(rng.integers(1, length + 1)))
    actions = np.sort(rng.uniform(-1, 11, (count, 2)), axis=1)
    got, low_high = label(grid, actions), anchors(grid)
    inside = grid.lines(actions).clip(0, length)
    for which, scores in ((0, got.start), (1, got.end)):
        for (a, b), score in zip(low_high, scores):
            shares = [max(0, min(b, x + 1.5) - max(a, x - 1.5)) / (b - a) for x in inside[:, which]]
            assert score == pytest.approx(max(shares, default=0))
    for d in range(grid.depth):
        for s in range(length):
            best = (
                max((segment_iou(np.array([s, s + d + 1.0]), x).item() for x in inside), default=0)
                if s + d + 1 <= length
                else 0
            )
            assert got.iou[d, s] == pytest.approx(best)


def test_boundary_on_a_line():
    "Ten cells, action [.3, .7]: outer anchors are exact ties and never positive."
    for convention, starts, ends in (
        ('cell', [2, 3], [6, 7]),
        ('line', [2, 3, 4], [6, 7, 8]),
        ('wide', [2, 3], [6, 7]),
    ):
        for duration in (1.0, 7.3, 33.1):
            got = label(TimeGrid(10, duration, convention), duration * np.array([[0.3, 0.7]]))
            assert (
                np.flatnonzero(above(got.start)).tolist() == starts
                and np.flatnonzero(above(got.end)).tolist() == ends
            )


def test_maps():
    for length, depth in ((7, 7), (9, 4), (5, 1)):
        grid = TimeGrid(length, longest=depth)
        inside = torch.from_numpy(valid(grid))
        values = torch.arange(1.0, len(candidates(grid)) + 1).repeat(2, 1).requires_grad_()
        table = to_map(values, inside)
        for k, (s, e) in enumerate(candidates(grid)):
            assert table[0, e - s - 1, s] == k + 1
        (table**2).sum().backward()
        torch.testing.assert_close(values.grad, 2 * values.detach())


# Reading between the cells


def test_positions():
    read = lambda p, edge, n=100: {
        int(i): round(float(x), 9)
        for i, x in zip(*np.stack(interpolate(np.array([p]), n, edge))[1:])
    }
    table = {
        -1.0: {},
        0.0: {0: 1},
        0.25: {0: 0.75, 1: 0.25},
        98.5: {98: 0.5, 99: 0.5},
        99.25: {99: 0.75},
        100.0: {},
    }
    for p, expected in table.items():
        assert read(p, 'fade') == expected
    number, index, weight = interpolate(np.array([-0.75]), 100)
    assert set(index) == {0} and weight.sum() == 1
    for p, expected in {
        -1.001: {},
        -1.0: {0: 1},
        99.25: {99: 1},
        100.0: {99: 1},
        100.001: {},
    }.items():
        assert read(p, 'hold') == expected


@pytest.mark.parametrize(
    'span, bins, expected',
    [
        ((-0.5, 9.5), 10, range(1, 11)),
        ((0.1, 0.9), 10, [1.15 + 0.1 * i for i in range(10)]),
        ((5, 5), 10, [6.05 + 0.1 * i for i in range(10)]),
        ((-3, 3), 3, [0, 1.25, 3]),
        ((7, 13), 3, [9, 5, 0]),
        ((-1, 1), 2, [1, 1.5]),
        ((0, 0), 4, [1.125, 1.375, 1.625, 1.875]),
        ((8.5, 9.5), 2, [9.75, 10]),
        ((9.5, 10.5), 2, [10, 0]),
    ],
)
def test_align_by_hand(span, bins, expected):
    matrix = align_matrix(np.array([span], float), bins, 10).to_dense()[0]
    assert (matrix @ torch.arange(1, 11.0, dtype=torch.float64)).tolist() == pytest.approx(
        list(expected)
    )


def align_loops(spans, bins, length):
    "Sums over bins and positions; all candidates at once, which the vectorised code never does this way."
    out = np.zeros((len(spans), bins, length))
    for k, (a, e) in enumerate(spans):
        width = max(e - a, 1.0) / bins
        count = int(np.ceil(width))
        t = a + np.arange(bins)[:, None] * width + (np.arange(count) + 0.5) * width / count
        r, t = np.repeat(np.arange(bins), count), t.ravel()
        good = (t >= -1) & (t <= length)
        r, t = r[good], t[good].clip(0, length - 1)
        low = np.minimum(t.astype(int), length - 2)
        np.add.at(out[k], (r, low), (1 - (t - low)) / count)
        np.add.at(out[k], (r, low + 1), (t - low) / count)
    return out


@pytest.mark.parametrize('length, depth, bins', [(100, 100, 32), (100, 100, 4), (256, 64, 16)])
def test_align(length, depth, bins):
    "Every candidate, and the [0, 0] that the released code gives to cells outside the triangle."
    spans = np.concatenate([stretches(TimeGrid(length, longest=depth)), np.zeros((3, 2))])
    some = np.unique(
        np.concatenate([np.arange(0, len(spans), 7), np.arange(len(spans) - 9, len(spans))])
    )
    matrix = align_matrix(spans, bins, length)
    dense = align_matrix(spans[some], bins, length).to_dense()
    assert np.abs(dense.numpy() - align_loops(spans[some], bins, length)).max() < 1e-12
    rows = torch.sparse.sum(matrix, 2).to_dense()
    assert (
        torch.equal(rows[some], torch.sparse.sum(dense.to_sparse(), 2).to_dense())
        or (rows[some] - dense.sum(2)).abs().max() < 1e-12
    )
    x = torch.randn(2, 3, length, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(2, 3, len(some), bins, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((sample(x, dense.to_sparse()) * pull).sum(), x)
    expected = np.einsum('bckr,krt->bct', pull.numpy(), align_loops(spans[some], bins, length))
    assert np.abs(gradient.numpy() - expected).max() < 1e-11


def weights(matrix, grid, s, d, bin):
    row = matrix.to_dense()[candidates(grid).tolist().index([s, s + d + 1]), bin]
    return {i: round(row[i].item(), 5) for i in row.nonzero()[:, 0].tolist()}


@pytest.mark.parametrize(
    'stretch, place, expected',
    [
        ('features', (2, 3, 0), {0: 0.92632, 1: 0.07368}),
        ('features', (2, 3, 31), {6: 0.07368, 7: 0.92632}),
        ('features', (0, 0, 31), {0: 0.51053, 1: 0.48947}),
        ('features', (9, 0, 31), {9: 0.51053}),
        ('features', (0, 9, 15), {4: 0.8, 5: 0.2}),
        ('features', (0, 9, 0), {}),
        ('jj', (2, 3, 0), {0: 1.0}),
        ('jj', (2, 3, 31), {8: 0.59474, 9: 0.40526}),
    ],
)
def test_matching_by_hand(stretch, place, expected):
    grid = TimeGrid(10)
    assert weights(matching_matrix(grid, stretch=stretch), grid, *place) == expected


def test_matching_of_a_hundred():
    "Loops over all candidates; 55 more entries appear when the step is rounded first, as in released code, and none of them matters."
    grid = TimeGrid(100)
    matrix = matching_matrix(grid)
    assert matrix._nnz() == 476_788
    low, high = stretches(grid).T[..., None]
    k, p = np.indices((len(low), 96)).reshape(2, -1)
    positions = low + (high - low) * (np.arange(96) / 95)
    rounded = sampling_matrix(
        positions.ravel(), np.stack([k, p // 3]), np.full(len(p), 1 / 3), (len(low), 32, 100)
    )
    assert rounded._nnz() == 476_843
    assert (matrix.to_dense() - rounded.to_dense()).abs().max() < 1e-12
    for k in range(0, len(low), 211):
        loop = np.zeros((32, 100))
        for p in range(96):
            at = low[k, 0] + (high[k, 0] - low[k, 0]) * p / 95
            down, up = int(at), int(np.ceil(at))
            if 0 <= down < 100:
                loop[p // 3, down] += (1 - (at - down)) / 3
            if 0 <= up < 100:
                loop[p // 3, up] += (at - down) / 3
        assert (
            np.abs(matrix.index_select(0, torch.tensor([k])).to_dense()[0].numpy() - loop).max()
            < 1e-12
        )


@pytest.mark.parametrize('stretch', STRETCHES)
@pytest.mark.parametrize('dtype, limit', [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_order_of_sums(stretch, dtype, limit):
    grid = TimeGrid(20, longest=13)
    x, w = torch.rand(2, 4, 20, dtype=dtype), torch.rand(6, 4, 8, dtype=dtype) / 30
    for matrix in (
        matching_matrix(grid, 8, stretch=stretch),
        align_matrix(stretches(grid, stretch), 8, 20),
    ):
        slow = torch.einsum('ocr,bckr->bok', w, sample(x, matrix.to(dtype)))
        assert (sample_conv(x, w, folded(matrix).to(dtype)) - slow).abs().max() < limit


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(2, 40))
def test_resized(clips, length):
    x = torch.randn(1, 2, clips, dtype=torch.float64)
    torch.testing.assert_close(
        resized(x, length), F.interpolate(x, length, mode='linear', align_corners=False)
    )
    if clips <= length:
        torch.testing.assert_close(resized(x, length, average=True), resized(x, length))
    ones = resized(torch.ones_like(x), length, average=True)
    torch.testing.assert_close(ones, torch.ones_like(ones))


# Losses


def test_losses_of_indifference():
    p, m = torch.full((4, 100), 0.5, dtype=torch.float64), torch.zeros(4, 100, dtype=torch.bool)
    m[:, 3:9] = True
    assert 2 * balanced_logistic(p, m).item() == pytest.approx(1.38629, abs=1e-5)
    assert balanced_logistic(p, m).item() == pytest.approx(0.69315, abs=1e-5)
    for side in (torch.zeros_like(m), torch.ones_like(m)):
        p.requires_grad_(True)
        loss = balanced_logistic(p, side)
        (gradient,) = torch.autograd.grad(loss, p)
        assert loss.item() == pytest.approx(0.69315, abs=1e-5) and gradient.isfinite().all()
    assert balanced_logistic(p.detach(), m, torch.zeros(100, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize('touching', [False, True])
def test_overlap_loss(touching):
    grid = TimeGrid(20, 10.0)
    inside = torch.from_numpy(valid(grid))
    rng = np.random.default_rng(0)
    iou = torch.from_numpy(
        np.stack([label(grid, np.sort(rng.uniform(0, 10, (2, 2)))).iou for _ in range(8)])
    )
    g = torch.Generator().manual_seed(0)
    p = torch.rand(iou.shape, generator=g, dtype=torch.float64)
    sets = [
        (iou > 0.7) & inside,
        (iou > 0.3) & (iou <= 0.7) & inside,
        (iou <= 0.3) & inside & ((iou > 0) if touching else True),
    ]
    size, means = [s.sum().item() for s in sets], []
    for _ in range(300):
        draw = torch.rand(iou.shape, generator=g, dtype=torch.float64)
        kept = sets[0] | sets[1] & (draw < size[0] / size[1]) | sets[2] & (draw < size[0] / size[2])
        got = overlap_loss(p, iou, inside, draw, touching)
        assert got.item() == pytest.approx(0.5 * ((p - iou)[kept] ** 2).mean().item())
        means.append([(kept & s).sum().item() for s in sets])
    assert np.allclose(np.mean(means, 0), size[0], rtol=0.05)  # one to one to one
    outside = torch.where(inside, p, torch.tensor(1e9, dtype=torch.float64))
    assert (
        overlap_loss(outside, iou, inside, torch.zeros_like(p), touching).item() < 1
    )  # more high than others: nothing outside
    assert torch.isfinite(
        overlap_loss(p, torch.zeros_like(iou), inside, torch.rand_like(p), touching)
    )


# From maps to segments

BOXES, SCORES = (
    np.array([[0.10, 0.50], [0.12, 0.52], [0.10, 0.30], [0.60, 0.90]]),
    np.array([0.9, 0.8, 0.7, 0.6]),
)


@pytest.mark.parametrize(
    'options, order, scores',
    [
        (dict(), [1, 3, 4, 2], [0.9, 0.7, 0.6, 0.103351]),
        (dict(released=True), [1, 3, 4], [0.9, 0.7, 0.6]),
        (dict(alpha=0.8, low=0.0, high=0.0), [1, 4, 3, 2], [0.9, 0.6, 0.512131, 0.228555]),
        (dict(alpha=0.5, low=0.0, high=0.0), [1, 4, 3, 2], [0.9, 0.6, 0.424574, 0.107780]),
        (dict(alpha=0.5, low=0.0, high=0.0, least=0.3), [1, 4, 3], [0.9, 0.6, 0.424574]),
        (dict(alpha=0.46, low=0.0, high=0.0, released=True), [1, 4, 3], [0.9, 0.6, 0.406507]),
        (dict(keep=2), [1, 3], [0.9, 0.7]),
    ],
)
def test_soft_nms(options, order, scores):
    assert segment_iou(BOXES[0], BOXES[1]) == pytest.approx(0.904762, abs=1e-6) and segment_iou(
        BOXES[1], BOXES[2]
    ) == pytest.approx(0.428571, abs=1e-6)
    got, kept = soft_nms(BOXES, SCORES, **options)
    assert (got + 1).tolist() == order and kept == pytest.approx(scores, abs=5e-6)


def test_units_of_soft_nms():
    "On lines from 0 to 100 the widths are shares of the axis; without its length nothing would decay, so it is refused."
    assert soft_nms(100 * BOXES, SCORES, axis=100.0)[1] == pytest.approx(soft_nms(BOXES, SCORES)[1])
    assert soft_nms(100 * BOXES, SCORES, axis=1e9)[1] == pytest.approx(
        [0.9, 0.7, 0.6, 0.8 * np.exp(-(0.904762**2) / 0.4)], abs=1e-5
    )
    with pytest.raises(InputError, match='give its length'):
        soft_nms(100 * BOXES, SCORES)
    assert soft_nms(100 * BOXES, SCORES, low=0.9, high=1.0, axis=100.0)[1].tolist() == [
        0.9,
        0.8,
        0.7,
        0.6,
    ]
    with pytest.raises(InputError, match='alpha'):
        soft_nms(BOXES, SCORES, alpha=0.0)
    assert [len(x) for x in soft_nms(BOXES[:0], SCORES[:0])] == [0, 0] and [
        len(x) for x in soft_nms(BOXES[:1], SCORES[:1])
    ] == [1, 1]


def test_selection_and_the_last_line():
    "Only cells may end a segment at the end of the video; every rule keeps the first start and the last end."
    start, end = np.random.default_rng(0).random((2, 12))
    for convention, (_, _, more) in CONVENTIONS.items():
        grid = TimeGrid(12, convention=convention, longest=8)
        counts = []
        for rule in RULES:
            lines = pairs(grid, start, end, rule)
            counts.append(len(lines))
            assert (
                (lines[:, 0] < lines[:, 1]).all()
                and (np.diff(lines, axis=1) <= 8).all()
                and lines[:, 1].max() == 11 + more
            )
            maps = np.random.default_rng(1).random((1, 8, 12))
            for (s, e), score in zip(lines, rate(grid, lines, maps, start, end)):
                assert score == maps[0, e - s - 1, s] * start[s] * end[e - more]
        assert (
            counts[RULES.index('all')]
            == max(counts)
            == sum(1 for s in range(12) for j in range(12) if 0 < j + more - s <= 8)
        )
        assert counts[RULES.index('inner')] <= counts[RULES.index('strict')]
    with pytest.raises(InputError, match='plateau'):
        pairs(grid, start, end, 'peaks')


def test_votes_and_classes():
    assert vote(BOXES[:1], BOXES, SCORES, 0.9)[0] == pytest.approx(
        (0.9 * BOXES[0] + 0.8 * BOXES[1]) / 1.7
    )
    assert vote(BOXES, BOXES, SCORES, 1.0) == pytest.approx(BOXES)
    spans, scores, labels = with_classes(BOXES, SCORES, np.array([0.1, 0.5, 0.4]), root=True)
    assert (
        len(spans) == 8
        and labels.tolist() == [1] * 4 + [2] * 4
        and scores[4] == pytest.approx((0.9 * 0.4) ** 0.5)
    )


@pytest.mark.parametrize('released, total, lost, cut', [(True, 1915, 34, 8), (False, 1999, 26, 0)])
def test_windows_of_thumos(data_dir, released, total, lost, cut):
    "212 labelled test videos, every fifth frame. 26 actions begin after the last frame of their video: no window can hold them."
    folder = data_dir / 'annotations' / 'thumos14_gtad'
    frames = (
        pd.read_csv(folder / 'thumos14_test_groundtruth.csv')
        .drop_duplicates('video-name')
        .set_index('video-name')['video-frames']
    )
    actions = pd.read_csv(folder / 'test_Annotation.csv')
    actions = actions[actions['type'] != 'Ambiguous']
    assert (actions['video'].nunique(), len(actions)) == (212, 3358)
    count, gone, halved, bare, outside = 0, 0, 0, 0, 0
    for video, rows in actions.groupby('video'):
        length = -(-(int(frames[video]) - 1) // 5)
        first = windows(length, released=released)
        count, stop = count + len(first), 5 * (first[-1] + 256)
        bare += first[-1] + 256 < length
        gone += (rows['startFrame'] >= stop).sum()
        halved += ((rows['startFrame'] < stop) & (rows['endFrame'] > stop)).sum()
        outside += ((rows['startFrame'] >= stop) & (rows['startFrame'] >= 5 * length)).sum()
    assert (count, gone, halved) == (total, lost, cut)
    assert bare == (84 if released else 0) and outside == 26


# Perfect and trivial networks on real annotations


@pytest.fixture(scope='module')
def lists(data_dir):
    "Actions of the videos that BMN and G-TAD list, by subset."
    folder = data_dir / 'annotations' / 'activitynet13_bmn'
    subset = (
        pd.read_csv(folder / 'video_info_new.csv')
        .drop_duplicates('video')
        .set_index('video')['subset']
    )
    entries, rows = json.loads((folder / 'anet_anno_action.json').read_text()), []
    for video, entry in entries.items():
        seconds, frames = entry['duration_second'], entry['duration_frame']
        rows += [
            (
                video,
                subset.get(video, ''),
                *map(float, a['segment']),
                a['label'],
                seconds,
                seconds * entry['feature_frame'] / frames,
            )
            for a in entry['annotations']
        ]
    table = pd.DataFrame(rows, columns='video subset start end label duration corrected'.split())
    table[['start', 'end']] = np.sort(table[['start', 'end']], axis=1)
    table = table.iloc[np.argsort(subset.index.get_indexer(table['video']), kind='stable')]
    return {name: rows.reset_index(drop=True) for name, rows in table.groupby('subset')}


def listed(found):
    "Table of detections from (video, seconds, scores, label)."
    count = [len(f[1]) for f in found]
    ends = np.concatenate([f[1] for f in found])
    columns = [
        np.repeat([f[0] for f in found], count),
        ends[:, 0],
        ends[:, 1],
        np.repeat([f[3] for f in found], count),
        np.concatenate([f[2] for f in found]),
    ]
    return pd.DataFrame(dict(zip(COLUMNS, columns)))


def perfect(actions, convention, two_axes=False):
    "AUC, AR and mAP of a network that says its labels, on one axis or with labels on another."
    proposals, detections = [], []
    for video, rows in actions.groupby('video', sort=False):
        read = TimeGrid(100, float(rows['duration'].iloc[0]), convention)
        write = read.of(rows['corrected'].iloc[0]) if two_axes else read
        labels = label(write, rows[['start', 'end']].to_numpy())
        start, end = above(labels.start) + 1e-3, above(labels.end) + 1e-3
        lines = pairs(write, start, end)
        maps, ends = (
            np.stack([labels.iou, 0.99 * above(labels.iou, 0.9) + 0.005]),
            lines.astype(float),
        )
        order, score = soft_nms(ends, rate(write, lines, maps, start, end), axis=100.0)
        proposals.append((video, read.seconds(ends[order]), score, ''))
        order, score = soft_nms(ends, rate(write, lines, maps), alpha=0.8, low=0.0, high=0.0)
        detections.append((video, read.seconds(ends[order]), score, rows['label'].iloc[0]))
    return {
        k: 100 * v
        for k, v in (
            average_recall(actions, listed(proposals)).summary()
            | summary(match(actions, listed(detections)))
        ).items()
    }


def test_perfect_network(lists):
    "4,728 videos, 7,293 actions; the fast convention in full."
    actions = lists['validation']
    assert (actions['video'].nunique(), len(actions)) == (4728, 7293)
    got = perfect(actions, 'cell')
    expected = {
        'AUC': 90.90,
        'AR@5': 85.22,
        'AR@10': 91.02,
        'AR@100': 92.74,
        'mAP': 88.13,
        'mAP@0.50': 90.41,
        'mAP@0.75': 89.54,
        'mAP@0.95': 76.49,
    }
    assert {k: got[k] for k in expected} == pytest.approx(expected, abs=0.05)


def test_conventions_and_axes(lists):
    "On every twelfth video: a second axis costs boundary precision in every convention."
    actions = lists['validation']
    some = actions[actions['video'].isin(actions['video'].unique()[::12])]
    for convention in CONVENTIONS:
        one, two = (perfect(some, convention, axes) for axes in (False, True))
        assert one['mAP@0.95'] > two['mAP@0.95'] + 0.5 and one['AR@100'] > two['AR@100']


def test_ceiling(lists):
    "Best candidate of each action."
    actions = lists['validation']
    ends = 100 * (actions[['start', 'end']].to_numpy() / actions[['duration']].to_numpy()).clip(
        0, 1
    )
    for last, expected in ((100, 0.9274), (99, 0.9264)):
        low, high = (np.stack([np.floor(ends), np.floor(ends) + 1])[:, :, i] for i in (0, 1))
        s, e = np.stack([low[a] for a in (0, 0, 1, 1)]), np.stack([high[b] for b in (0, 1, 0, 1)])
        best = segment_iou(np.stack([s.clip(0, 99), e.clip(1, last)], -1), ends) * (
            s.clip(0, 99) < e.clip(1, last)
        )
        recall = [(best.max(0) >= t).mean() for t in ACTIVITYNET]
        assert np.mean(recall) == pytest.approx(expected, abs=2e-4)
        if last == 100:
            assert [recall[i] for i in (0, 5, 9)] == pytest.approx(
                [0.9885, 0.9546, 0.7311], abs=2e-4
            )


def test_whole_video(lists):
    actions = lists['validation']
    whole = actions.drop_duplicates('video').assign(
        start=0.0, end=lambda x: x['duration'], score=1.0
    )
    got = {
        k: 100 * v for k, v in summary(match(actions, whole)).items()
    }  # all scores are equal: the order of the list decides
    expected = {'mAP': 20.56, 'mAP@0.50': 35.39, 'mAP@0.75': 19.64, 'mAP@0.95': 4.64}
    print(got)
    assert {k: got[k] for k in expected} == pytest.approx(expected, abs=0.05)


def test_prior(lists):
    "The same 100 segments for every video."
    spans = (
        lists['training'][['start', 'end']].to_numpy() / lists['training'][['duration']].to_numpy()
    ).clip(0, 1)
    fit = KMeans(100, random_state=0, n_init=1).fit(spans)
    centres = fit.cluster_centers_[np.argsort(-np.bincount(fit.labels_), kind='stable')]
    videos = lists['validation'].drop_duplicates('video')
    found = [
        (v, centres * d, np.linspace(1, 0.01, 100), '')
        for v, d in zip(videos['video'], videos['duration'])
    ]
    got = average_recall(lists['validation'], listed(found)).summary()
    print(got)
    assert 100 * got['AUC'] == pytest.approx(51.3, abs=0.7)
    assert 100 * got['AR@100'] == pytest.approx(67.96, abs=1)
