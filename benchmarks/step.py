"""What a training step of `tiny` is made of, beside the way in which it was done before: the same bytes for more time.

python benchmarks/step.py
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from unittest.mock import patch

import torch
from einops import rearrange

from vidrepro.clips import transforms
from vidrepro.core.random import generator
from vidrepro.learning.recipe import adamw
from vidrepro.learning.train import Batches
from vidrepro.learning.views import recolored
from vidrepro.papers import tec
from vidrepro.runs.pool import HUGE_PAGES
from vidrepro.runs.videos import painted

CFG = tec.PRESETS['tiny']
ROWS = 10  # of a table, which share what is painted


def einsum_resample(x, rows, columns):
    "Both axes in one product."
    return torch.einsum('bih,bcthw,bjw->bctij', rows.to(x.dtype), x, columns.to(x.dtype))


def plain_luma(x):
    "A new tensor for each sum."
    red, green, blue = x.split(1, 1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def contrast_by_number(x, brightness, contrast, saturation):
    "Brightness, contrast with a mean that is one number a clip, saturation."
    wide = lambda f: f[:, None, None, None, None]
    x = (wide(brightness) * x).clamp_(0, 1)
    x = torch.lerp(plain_luma(x).mean((2, 3, 4), keepdim=True), x, wide(contrast)).clamp_(0, 1)
    return torch.lerp(plain_luma(x), x, wide(saturation)).clamp_(0, 1)


def jitter_chosen(x, draws, brightness, contrast, saturation, hue, p=0.8):
    "All clips recolored, then chosen from; no hue."
    chosen = transforms._chosen(draws, x, p)
    strengths = brightness, contrast, saturation, 0.0
    factors = [transforms._uniform(draws, (len(x),), x, 1 - s, 1 + s) for s in strengths]
    return torch.where(chosen, contrast_by_number(x, *factors[:3]), x)


def grey_chosen(x, draws, p):
    "All clips made grey, then chosen from."
    return torch.where(transforms._chosen(draws, x, p), plain_luma(x), x)


BEFORE = dict(_resample=einsum_resample, color_jitter=jitter_chosen, random_grayscale=grey_chosen)


def views_before(clips, draws):
    "Crop, jitter, grey, normalize."
    x = rearrange(clips, 'b n c t h w -> (b n) c t h w') / 255
    boxes = transforms.crop_boxes(x, draws, (CFG.crop, 1.0), (1.0, 1.0))
    torch.rand(len(x), generator=draws)  # which clips to mirror: none
    with patch.multiple(transforms, **BEFORE):
        x = transforms.resized_crop(x, boxes, (CFG.size, CFG.size))
        x = transforms.normalize(recolored(x, draws, CFG))
    return rearrange(x, '(b n) c t h w -> b n c t h w', n=clips.shape[1])


def timed(work):
    "CPU milliseconds of a call, and its result."
    begun = time.process_time()
    found = work()
    return 1000 * (time.process_time() - begun), found


def parts(folder, steps=14):
    "Milliseconds of painting, views, network and optimizer; with a folder as now, without as before."
    source = painted(CFG, 'pretrain')
    once, shared = timed(lambda: source.shared(folder)) if folder else (0, source)
    some, fresh = (
        Batches(videos, partial(tec.sample, cfg=CFG), CFG.batch, CFG.seed)
        for videos in (shared, source)
    )
    assert torch.equal(some[0]['clips'], fresh[0]['clips'])
    model = tec.build(CFG).to(memory_format=torch.channels_last_3d).train()
    optimizer, took = adamw(model, CFG.lr, CFG.weight_decay), []

    def update():
        optimizer.step()
        optimizer.zero_grad()

    paint = statistics.median(timed(lambda: some[k])[0] for k in range(4 * steps))
    for k in range(steps):
        batch = some[k]
        draws = lambda: generator(CFG.seed, 'views', k)
        now, views = timed(lambda: tec.views(batch, draws(), CFG))
        before, same = timed(lambda: views_before(batch['clips'], draws()))
        assert torch.equal(views.clips, same)
        network, _ = timed(lambda: tec.loss(model, views, CFG)[0].backward())
        last, _ = timed(update)
        took.append((paint, now if folder else before, network, last))
    names = 'painting', 'views', 'network', 'optimizer'
    found = dict(zip(names, map(statistics.median, zip(*took[2:]))))
    found['painting'] += once / (ROWS * CFG.steps)
    return found


def elsewhere(folder):
    "`parts` in a process of its own: an allocator is asked before the program begins."
    env = {k: v for k, v in os.environ.items() if k not in HUGE_PAGES}
    env |= HUGE_PAGES if folder else {}
    command = [sys.executable, __file__, folder]
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)


def step(rounds=3):
    "A step and its parts, now and before, in turns; which share of it is painting and views."
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(elsewhere(folder), elsewhere('')) for _ in range(rounds)]
    for found in (f for pair in pairs for f in pair):
        found['all'] = sum(found.values())
        found['share'] = (found['painting'] + found['views']) / found['all']
    rows, middle = {}, lambda of, key: statistics.median(pair[of][key] for pair in pairs)
    for name in ('painting', 'views', 'network', 'optimizer', 'all'):
        ratios = sorted(before[name] / now[name] for now, before in pairs)
        ours, theirs = middle(0, name) / 1000, middle(1, name) / 1000
        ratio = dict(ratio=statistics.median(ratios), low=ratios[0], high=ratios[-1])
        rows[name] = dict(ours=ours, theirs=theirs) | ratio
    rows['all'] |= dict(share=middle(0, 'share'), share_before=middle(1, 'share'))
    return rows


if __name__ == '__main__':
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(json.dumps(parts(sys.argv[1])))
    else:
        for name, row in step().items():
            print(name, {k: round(v, 4) for k, v in row.items()})
