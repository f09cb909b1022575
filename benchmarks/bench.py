"""Every comparison of this folder in one run and one card, `results/bench/ratios-cpu.json`, which page 101 draws.

    python benchmarks/bench.py [--minutes 20]

Two ways of the same work take turns in one process; a row holds the medians of their CPU seconds (of the clock, where a
disk is read) and their ratio (above 1: ours is faster). What is not installed is a row with the reason. Rows on how cost
grows hold sizes, seconds and the exponent, the slope of the logarithms. A row that is there is not measured again: delete
the card to begin anew. The scripts beside this one measure each thing at length.
"""

import argparse
import statistics
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import bmn
import decode
import detection
import features
import flow as flow_
import moving_digits
import numpy as np
import provico
import shards
import step
import torch

from vidrepro.clips.sampling import random_clips
from vidrepro.core.files import data_root
from vidrepro.core.random import generator
from vidrepro.data.datasets import from_folder
from vidrepro.data.shards import ShardClips, Shards, pack
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.experiments.gpu import detector, detector_loss, machine_name
from vidrepro.features.extract import extract
from vidrepro.features.settings import Settings
from vidrepro.learning.losses import contrast
from vidrepro.localize.metrics import ACTIVITYNET, average_precision, match
from vidrepro.motion.flow import dis, tvl1
from vidrepro.papers.provico_gaussians import sampled_bhattacharyya
from vidrepro.runs.budget import Budget, rows_stage, spend

CPU = torch.device('cpu')


def seconds(work, clock=time.process_time):
    "CPU time of a call."
    begun = clock()
    work()
    return clock() - begun


def paired(ours, theirs, rounds=5):
    "In turns, after one call of each to warm up; the fastest and the slowest ratio beside the median."
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    ratios = [b / a for a, b in times]
    a, b = (statistics.median(t) for t in zip(*times))
    return dict(
        ours=a, theirs=b, ratio=statistics.median(ratios), low=min(ratios), high=max(ratios)
    )


def grows(sizes, work):
    "Seconds at several sizes, and the exponent of the size."
    work(sizes[0])
    took = [seconds(lambda: work(n)) for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(np.maximum(took, 1e-6)), 1)[0]
    return dict(sizes=list(sizes), times=took, exponent=float(slope))


def clips_of(paths, size):
    "Eight random clips a video, against torchcodec; medians over the videos that can be read."
    found = []
    for path in paths:
        try:
            found.append(decode.measure(path, size)[1])
        except decode.VideoError:
            continue
    here, other = ([f[k][0] for f in found] for k in ('one pass', 'torchcodec'))
    if None in other:
        return dict(skipped=next(f['torchcodec'][1] for f in found if f['torchcodec'][1]))
    ratios = [b / a for a, b in zip(here, other)]
    a, b = (statistics.median(x) / 1000 for x in (here, other))
    return dict(
        ours=a, theirs=b, ratio=statistics.median(ratios), low=min(ratios), high=max(ratios)
    )


def decoding(folder):
    "A synthetic video, and real ones where they are."
    made = decode.write_synthetic(folder / 'synthetic.mp4')
    sets = {'a synthetic video, 320 x 240': [made]}
    if root := data_root():
        files = sorted(p for p in Path(root).rglob('*') if p.suffix in ('.avi', '.mp4', '.webm'))
        if files:
            sets['real videos'] = files[:: max(1, len(files) // 6)][:6]
    for name, paths in sets.items():
        for size in (None, (112, 112), (224, 224)):
            shown = f'{size[0]} x {size[1]}' if size else 'full size'
            yield f'decoding {name}, {shown}: torchcodec', partial(clips_of, paths, size)


def flows(size, other):
    "TV-L1 against OpenCV."
    a, b = flow_.pairs(size, 8)
    x, y = (v.byte().numpy() for v in (a, b))
    if other == 'TV-L1':
        if not hasattr(flow_.cv2, 'optflow'):
            return dict(skipped='this OpenCV has no optflow: its contrib build does')
        return paired(lambda: tvl1(a, b), lambda: flow_.by_opencv(x, y), 3)
    return paired(lambda: tvl1(a, b, **flow_.FAST), lambda: dis(a, b), 3)


def pair_distances(videos, k=10, d=256):
    "The exact short form against the sum over all pairs of samples."
    given = provico.inputs(videos, k, d)
    return paired(lambda: sampled_bhattacharyya(*given), lambda: provico.direct(*given), 3)


def metrics(name, videos=300):
    "Average precision and recall against the official loops."
    for which, loops, here in detection.compare(*detection.made_up(videos)):
        if which == name:
            return dict(
                ours=here, theirs=loops, ratio=loops / here, low=loops / here, high=loops / here
            )


def one_pass(folder, hop):
    "Feature extraction: one pass over a video, against seeking for each clip."
    path = folder / 'pass.mp4'
    path.exists() or features.write_synthetic(path, 8)
    numbers, network, turn = features.numbers_of(path), features.Small(), iter(range(100))
    ours = lambda: extract(network, path, folder / f'{hop}-{next(turn)}', Settings(hop=hop))
    starts = range(0, len(numbers) - 15, hop)
    return paired(ours, lambda: features.seeking_features(network, path, starts, numbers), 3)


def bmn_step(other, cells=100):
    "A training step of BMN on one video."
    net, batch = detector('bmn', cells, 1)
    twin, _ = detector('bmn', cells, 1, dense=other == 'dense product')
    if other == 'mask':
        twin.match = bmn.Mask(twin.match, twin.grid)
    step = lambda n: detector_loss(n, batch).backward()
    return paired(lambda: step(net), lambda: step(twin), 3)


def packed(folder, what):
    "A folder of files against shards of the same videos."
    if not (folder / 'shards').exists():
        write_videos(MovingDigits(n=24, size=64, length=48), folder / 'digits')
        shards.copies(folder / 'digits', folder / 'files', 120)
        pack(from_folder(folder / 'files', size=(64, 64)), folder / 'shards', max_count=60)
    source, packs = from_folder(folder / 'files', size=(64, 64)), Shards(folder / 'shards')
    paths = sorted(p for p in (folder / 'files').rglob('*') if p.is_file())
    frames = random_clips(source.lengths, 8, 1, 1, generator('bench'))
    here, files = lambda: [s.data for s in packs.at(0)], lambda: [p.read_bytes() for p in paths]
    if what == 'bytes in memory':
        return paired(here, files)
    if what == 'bytes on disk':  # by the clock: the processor only waits
        cold = lambda name, work: shards.forget(folder / name) or seconds(work, time.perf_counter)
        times = [(cold('shards', here), cold('files', files)) for _ in range(5)]
        ratios = sorted(b / a for a, b in times)
        a, b = (statistics.median(t) for t in zip(*times))
        return dict(ours=a, theirs=b, ratio=ratios[2], low=ratios[0], high=ratios[-1])
    one = lambda i: source.clips(torch.tensor([i]), frames[i : i + 1])
    here = lambda: list(ShardClips(packs.at(0), 8, size=(64, 64)))
    return paired(here, lambda: [one(i) for i in range(len(source))], 3)


def painting(size, t, batch):
    "Moving Digits in batches against frame by frame, clip for clip."
    videos, few = MovingDigits(4000, size=size), max(2, batch // 16)
    index, frames = torch.arange(batch), torch.arange(t).expand(batch, 1, t)
    naive = lambda: moving_digits.naive_clips(videos, index[:few], frames[:few], CPU)
    found = paired(lambda: videos.clips(index, frames, CPU), naive)
    share = {k: found[k] * batch / few for k in ('theirs', 'ratio', 'low', 'high')}
    return found | share


whole_step = cache(step.step)  # the rows of one run


def growth(folder):
    "How cost grows with the work."
    score = lambda n: average_precision(match(*tables[n], ACTIVITYNET))
    tables = {n: detection.made_up(n) for n in (10, 100, 1000, 10_000)}
    yield 'growth: detection metrics, videos', partial(grows, list(tables), score)
    films = {n: folder / f'{n}.mp4' for n in (1, 4, 15, 60)}

    def read(minutes):
        films[minutes].exists() or features.write_synthetic(films[minutes], 60 * minutes, (64, 80))
        took = time.process_time()
        extract(features.Small(), films[minutes], folder / f'film{minutes}-{took}', Settings())

    def prepared():
        for minutes in films:
            features.write_synthetic(films[minutes], 60 * minutes, (64, 80))
        return grows(list(films), read)

    yield 'growth: feature extraction, minutes of video', prepared
    rows = {n: torch.randn(n, 128, generator=generator('rows', n)) for n in (16, 64, 256, 1024)}
    loss = lambda n: [
        contrast(rows[n], torch.arange(n) // 2, torch.arange(n), 0.1, True) for _ in range(5)
    ]
    yield 'growth: contrastive loss, batch', partial(grows, list(rows), loss)
    given = {n: provico.inputs(n, 4, 64) for n in (16, 64, 256)}
    yield (
        'growth: pair distances, videos',
        partial(grows, list(given), lambda n: sampled_bhattacharyya(*given[n])),
    )
    grey = {n: flow_.pairs(64, n) for n in (2, 8, 32)}
    yield 'growth: TV-L1, pairs', partial(grows, list(grey), lambda n: tvl1(*grey[n]))


def questions(folder):
    "Everything that is compared, quick ones first."
    ask = {
        f'painting {t} x {s}²: frame by frame': partial(painting, s, t, b)
        for s, t, b in ((32, 8, 64), (112, 16, 16))
    }
    ask |= {
        f'a step of tiny, {part}: as before': lambda part=part: whole_step()[part]
        for part in ('painting', 'views', 'network', 'all')
    }
    ask |= {
        f'detection, {n}: official loops': partial(metrics, n)
        for n in ('mAP, ActivityNet', 'mAP, THUMOS14', 'AR@AN')
    }
    ask |= {
        f'shards, {w}: files': partial(packed, folder, w)
        for w in ('bytes in memory', 'bytes on disk', 'clips')
    }
    ask |= {
        f'pair distances, {n} videos: all pairs of samples': partial(pair_distances, n)
        for n in (32, 64)
    }
    ask |= {f'feature extraction, hop {h}: seeking': partial(one_pass, folder, h) for h in (16, 8)}
    ask |= {f'BMN step: {other}': partial(bmn_step, other) for other in ('dense product', 'mask')}
    ask |= {f'TV-L1 {s}²: OpenCV contrib': partial(flows, s, 'TV-L1') for s in (64, 112)}
    ask |= {f'TV-L1, fast, {s}²: OpenCV DIS': partial(flows, s, 'DIS') for s in (64, 112)}
    return ask | dict(decoding(folder)) | dict(growth(folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=20.0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = dict(machine=machine_name(CPU), threads=1)
        stage = rows_stage('bench/ratios', questions(Path(folder)), config, CPU)
        print(*spend([stage], Budget(parser.parse_args().minutes)), sep='\n')


if __name__ == '__main__':
    main()
