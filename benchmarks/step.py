"""What a training step of `tiny` is made of, beside the way in which it was done before: the same bytes for more time.

python benchmarks/step.py
"""

import statistics
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
from vidrepro.runs.videos import painted

CFG = tec.PRESETS['tiny']
SHARE = 4  # a run is replayed with so many times fewer videos and steps: each video is met as often


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


def batches(source):
    "Of a run on these videos."
    return Batches(source, partial(tec.sample, cfg=CFG), CFG.batch, CFG.seed)


def timed(work):
    "CPU milliseconds of a call, and its result."
    begun = time.process_time()
    found = work()
    return 1000 * (time.process_time() - begun), found


def replay(every=25):
    "Painting of all batches of a run; every so many of them also anew, in turns: means, milliseconds."
    source = painted(CFG, 'pretrain').subset(torch.arange(CFG.videos // SHARE))
    kept, fresh, ours, theirs = batches(source.cached()), batches(source), [], []
    for k in range(CFG.steps // SHARE):
        took, batch = timed(lambda: kept[k])
        ours.append(took)
        if k % every == 0:
            took, same = timed(lambda: fresh[k])
            theirs.append(took)
            assert torch.equal(batch['clips'], same['clips'])
    return statistics.mean(ours), statistics.mean(theirs)


def parts(steps=12):
    "Milliseconds of views now and before, in turns, and of the network and the optimizer."
    some, model = batches(painted(CFG, 'pretrain')), tec.build(CFG)
    model = model.to(memory_format=torch.channels_last_3d).train()
    optimizer = adamw(model, CFG.lr, CFG.weight_decay)
    took = dict(now=[], before=[], network=[], optimizer=[])

    def learn(views):
        tec.loss(model, views, CFG)[0].backward()

    def update():
        optimizer.step()
        optimizer.zero_grad()

    for k in range(steps):
        batch, draws = some[k], lambda: generator(CFG.seed, 'views', k)
        now, views = timed(lambda: tec.views(batch, draws(), CFG))
        before, same = timed(lambda: views_before(batch['clips'], draws()))
        assert torch.equal(views.clips, same)
        network, _ = timed(lambda: learn(views))
        optimizer_, _ = timed(update)
        for name, value in zip(took, (now, before, network, optimizer_)):
            took[name].append(value)
    return {name: statistics.median(values[2:]) for name, values in took.items()}


def step():
    "A whole step, now and before; which share of it is painting and views."
    kept, fresh = replay()
    found = parts()
    rest = found['network'] + found['optimizer']
    ours, theirs = kept + found['now'], fresh + found['before']
    shares = dict(share=ours / (ours + rest), share_before=theirs / (theirs + rest))
    row = lambda a, b: dict(ours=a / 1000, theirs=b / 1000, ratio=b / a, low=b / a, high=b / a)
    return dict(
        painting=row(kept, fresh),
        views=row(found['now'], found['before']),
        all=row(ours + rest, theirs + rest) | shares,
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    for name, row in step().items():
        print(name, {k: round(v, 4) for k, v in row.items()})
