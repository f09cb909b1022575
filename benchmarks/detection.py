"""How much faster is the vectorised evaluator than the official loops? CPU seconds and ratios of one run, same data, same answer.

python benchmarks/detection.py [VIDEOS]     default: 1000 videos of ActivityNet's statistics
"""

import sys
import time

import numpy as np
import pandas as pd

from vidrepro.localize.metrics import (
    ACTIVITYNET,
    THUMOS14,
    average_precision,
    average_recall,
    match,
)


def overlap(one, many):
    "Intersection over union of one segment with several, as an evaluator computes it for each row."
    shared = (np.minimum(one[1], many[:, 1]) - np.maximum(one[0], many[:, 0])).clip(0)
    return shared / ((many[:, 1] - many[:, 0]) + (one[1] - one[0]) - shared)


def by_video(table):
    "Rows of each video, by name."
    columns = table[['start', 'end']].to_numpy(float)
    return {video: columns[rows] for video, rows in table.groupby('video').indices.items()}


def ap_loops(truth, detections, thresholds):
    "Classes, thresholds and detections in loops: the order of work of the official detection code."
    areas = np.zeros((truth['label'].nunique(), len(thresholds)))
    for k, label in enumerate(sorted(truth['label'].unique())):
        actions = by_video(truth[truth['label'] == label])
        ranked = detections[detections['label'] == label]
        ranked = ranked.iloc[np.argsort(-ranked['score'].to_numpy(float), kind='stable')]
        rows = list(zip(ranked['video'], ranked[['start', 'end']].to_numpy(float)))
        hit = np.zeros((len(thresholds), len(rows)))
        taken = {v: np.zeros((len(thresholds), len(a)), bool) for v, a in actions.items()}
        for i, (video, segment) in enumerate(rows):
            if video not in actions:
                continue
            iou = overlap(segment, actions[video])
            best_first = np.argsort(-iou, kind='stable')
            for q, threshold in enumerate(thresholds):
                for j in best_first:
                    if iou[j] < threshold:
                        break
                    if not taken[video][q, j]:
                        taken[video][q, j] = True
                        hit[q, i] = 1
                        break
        count = sum(map(len, actions.values()))
        for q in range(len(thresholds)):
            precision = np.r_[0, hit[q].cumsum() / np.arange(1, len(rows) + 1), 0]
            recall = np.r_[0, hit[q].cumsum() / count, 1]
            for i in range(len(precision) - 1, 0, -1):
                precision[i - 1] = max(precision[i - 1], precision[i])
            step = np.flatnonzero(recall[1:] != recall[:-1]) + 1
            areas[k, q] = ((recall[step] - recall[step - 1]) * precision[step]).sum()
    return areas


def recall_loops(truth, proposals, thresholds, most=100):
    "Videos, thresholds, operating points in loops: the order of work of the official proposal code."
    actions, names = by_video(truth), list(dict.fromkeys(truth['video']))
    order = proposals.iloc[np.argsort(-proposals['score'].to_numpy(float), kind='stable')]
    offered, ratio = by_video(order), most * float(len(names)) / max(len(proposals), 1)
    overlaps, total = [], 0
    for name in names:
        rows = offered.get(name, np.zeros((0, 2)))
        rows = rows[: min(int(len(rows) * ratio), len(rows))]
        total += len(rows)
        overlaps.append(np.array([overlap(a, rows) for a in actions[name]]))
    share = np.arange(1, 101) / 100.0 * (most * float(len(names)) / max(total, 1))
    recall = np.zeros((len(thresholds), 100))
    for q, threshold in enumerate(thresholds):
        for iou in overlaps:
            good = iou >= threshold
            for j, used in enumerate(np.minimum((iou.shape[1] * share).astype(int), iou.shape[1])):
                recall[q, j] += np.count_nonzero(good[:, :used].sum(axis=1))
    return recall / len(truth)


def made_up(videos, seed=0, classes=200, each=100, actions=1.55):
    "Actions and detections with ActivityNet's numbers: one class a video, about 1.5 actions, 100 detections."
    rng = np.random.default_rng(seed)
    names, label = [f'v{i:05d}' for i in range(videos)], rng.integers(0, classes, videos)
    duration = rng.uniform(20, 230, videos)

    def table(count, spread):
        of = np.repeat(np.arange(videos), count)
        centre, length = rng.random((2, len(of)))
        ends = np.stack([centre - length * spread / 2, centre + length * spread / 2], 1).clip(0, 1)
        ends *= duration[of, None]
        return pd.DataFrame(
            dict(
                video=np.array(names)[of],
                start=ends[:, 0],
                end=ends[:, 1],
                label=[f'c{k:03d}' for k in label[of]],
            )
        )

    truth = table(1 + rng.poisson(actions - 1, videos), 1.0)
    detections = table(np.full(videos, each), 1.0)
    return truth, detections.assign(score=rng.random(len(detections)).round(4))


def timed(function, *arguments, rounds=1):
    "Result, and the smallest CPU time of the rounds."
    best = np.inf
    for _ in range(rounds):
        begin = time.process_time()
        result = function(*arguments)
        best = min(best, time.process_time() - begin)
    return result, best


def compare(truth, detections, rounds=3):
    "Seconds of loops and of vidrepro, for both scores; the answers must agree."
    ours = lambda t, d, q: average_precision(match(t, d, q))
    recall = lambda t, d, q: average_recall(t, d, q).recall
    tests = [
        ('mAP, ActivityNet', ap_loops, ours, ACTIVITYNET),
        ('mAP, THUMOS14', ap_loops, ours, THUMOS14),
        ('AR@AN', recall_loops, recall, ACTIVITYNET),
    ]
    for name, slow, fast, thresholds in tests:
        expected, loops = timed(slow, truth, detections, thresholds)
        got, vectorised = timed(fast, truth, detections, thresholds, rounds=rounds)
        assert np.abs(got - expected).max() < 1e-12, name
        yield name, loops, vectorised


def main(videos=1000):
    truth, detections = made_up(videos)
    print(f'{videos} videos, {len(truth)} actions, {len(detections)} detections; CPU seconds')
    for name, loops, vectorised in compare(truth, detections):
        print(
            f'{name:18} loops {loops:7.2f}  ours {vectorised:6.3f}  ratio {loops / vectorised:6.1f}'
        )


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
