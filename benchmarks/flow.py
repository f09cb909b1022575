"""Optical flow: milliseconds a pair, against OpenCV's own TV-L1 where the contrib build is installed.

    python benchmarks/flow.py [--device cuda] [--threads 2] [--batch 16] [--repeats 3]

Pairs are Moving Digits. Ours and OpenCV's run in turn in the same process; times are medians. CPU time is printed too,
for machines that are busy with other work. `fast` is the documented cheap setting.
"""

import argparse
import statistics
import time

import cv2
import numpy as np
import torch

from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.motion.flow import FAST, gray_levels, tvl1


def pairs(size, batch):
    "Grey levels of frames 40 and 41 of some videos."
    source, index = MovingDigits(batch, size=size), torch.arange(batch)
    grey = gray_levels(source.clips(index, torch.tensor([40, 41]).expand(batch, 1, 2))[:, 0])
    return grey[:, 0].contiguous(), grey[:, 1].contiguous()


def by_opencv(a, b):
    solver = cv2.optflow.DualTVL1OpticalFlow_create()
    return torch.from_numpy(np.stack([solver.calc(x, y, None) for x, y in zip(a, b)])).permute(
        0, 3, 1, 2
    )


def clock(work, device):
    "Wall and CPU seconds of a call, and its result."
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    oracle = hasattr(cv2, 'optflow')
    print(
        f'{device}, {args.threads} threads, medians of {args.repeats}'
        + ('' if oracle else '; no OpenCV contrib here: no ratio')
    )
    print(
        f'{"pairs":>14} {"setting":>8} {"ms a pair":>10} {"CPU ms":>8} {"pairs/s":>8} {"OpenCV ms":>10} {"its CPU":>8} {"ratio":>6} {"difference":>11}'
    )
    for size, batch, setting in (
        (32, 14 * args.batch, 'fast'),
        (32, 4 * args.batch, 'full'),
        (112, args.batch, 'full'),
        (256, max(1, args.batch // 8), 'full'),
    ):
        a, b = pairs(size, batch)
        here, parameters = (a.to(device), b.to(device)), FAST if setting == 'fast' else {}
        bytes_ = [x.byte().numpy() for x in (a, b)]
        compare = oracle and setting == 'full'
        few = slice(0, max(1, min(batch, args.batch)))
        tvl1(*(x[:2] for x in here), **parameters)
        ours, theirs = [], []
        for _ in range(args.repeats):
            ours.append(clock(lambda: tvl1(*here, **parameters), device))
            if compare:
                theirs.append(clock(lambda: by_opencv(*(x[few] for x in bytes_)), device))
        wall, cpu = (1e3 / batch * statistics.median(t[i] for t in ours) for i in (0, 1))
        line = (
            f'{batch:>5} of {size:>3}^2   {setting:>8} {wall:>10.2f} {cpu:>8.2f} {1e3 / wall:>8.0f}'
        )
        if compare:
            found = theirs[0][2]
            wall2, cpu2 = (
                1e3 / len(found) * statistics.median(t[i] for t in theirs) for i in (0, 1)
            )
            gap = (ours[0][2][few].cpu() - found).norm(dim=1)[:, 4:-4, 4:-4].mean()
            line += f' {wall2:>10.2f} {cpu2:>8.2f} {wall2 / wall:>5.1f}x {gap:>8.3f} px'
        print(line, flush=True)


if __name__ == '__main__':
    main()
