"""Are packed shards faster to read than a folder of files? Medians and ratios of one run.

    python benchmarks/shards.py [FOLDER] [--videos 600] [--rounds 5]

FOLDER holds videos, one folder a class; without it, Moving Digits are written to a temporary folder. Each is copied
until there are enough of them. Bytes: every video in random order, once with the files' pages dropped from memory
(cold) and once with them there (warm). Clips: one clip of 8 frames of every video, decoded. Readers take turns.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from vidrepro.clips.sampling import random_clips
from vidrepro.core.walk import walk_folder
from vidrepro.data.datasets import from_folder
from vidrepro.data.shards import ShardClips, Shards, pack
from vidrepro.digits.moving_digits import MovingDigits, write_videos


def copies(source, out, count):
    "A tree of `count` videos, so many copies of each as it takes."
    files = [Path(source) / path for path in walk_folder(source)[0]]
    if not files:
        raise SystemExit(f'{source}: no videos; name a folder that has some')
    for k in range(count):
        path = files[k % len(files)]
        (out / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, out / path.parent.name / f'{k:06d}{path.suffix}')


def forget(folder):
    "Drop a folder's pages from memory, where the system can do that."
    os.sync()
    for path in Path(folder).rglob('*'):
        if path.is_file() and hasattr(os, 'posix_fadvise'):
            with open(path, 'rb') as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(task):
    begin = time.perf_counter()
    amount = task()
    return time.perf_counter() - begin, amount


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', nargs='?', help='videos, one folder a class')
    parser.add_argument('--videos', type=int, default=600, help='how many to read')
    parser.add_argument('--rounds', type=int, default=5, help='repeats; medians are printed')
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as box:
        box = Path(box)
        if not options.folder:
            write_videos(MovingDigits(n=60, size=64, length=48), box / 'digits')
        copies(options.folder or box / 'digits', box / 'files', options.videos)
        source = from_folder(box / 'files', size=(64, 64))
        index = pack(source, box / 'shards', max_count=100)
        paths, shards, seconds = (
            sorted(p for p in (box / 'files').rglob('*') if p.is_file()),
            Shards(box / 'shards'),
            {},
        )
        size = sum(shard['bytes'] for shard in index['shards']) / 1e6
        print(
            f'{len(paths)} videos, {size:.0f} MB in {len(index["shards"])} shards; milliseconds a video'
        )
        for k in range(options.rounds):
            order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(k)).tolist()
            read = {
                'files': lambda: sum(len(paths[i].read_bytes()) for i in order),
                'shards': lambda: sum(len(sample.data) for sample in shards.at(k)),
            }
            for state in ('cold', 'warm'):
                for name, task in read.items():
                    if state == 'cold':
                        forget(box / name)
                    seconds.setdefault((f'bytes, {state}', name), []).append(timed(task)[0])
            frames = random_clips(source.lengths, 8, 1, 1, torch.Generator().manual_seed(k))
            decode = {
                'files': lambda: sum(
                    len(source.clips(torch.tensor([i]), frames[i : i + 1])) for i in order
                ),
                'shards': lambda: sum(1 for _ in ShardClips(shards.at(k), 8, size=(64, 64))),
            }
            for name, task in decode.items():
                seconds.setdefault(('clips, warm', name), []).append(timed(task)[0])
        for what in ('bytes, cold', 'bytes, warm', 'clips, warm'):
            a, b = (
                1000 * statistics.median(seconds[what, name]) / len(paths)
                for name in ('files', 'shards')
            )
            print(f'{what:12} files {a:7.3f}  shards {b:7.3f}  files / shards {a / b:5.2f}x')


if __name__ == '__main__':
    main()
