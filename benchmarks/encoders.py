"""Which small encoder learns motion as well as `tiny` for less? One card, `results/bench/encoders-cpu.json`, which page 115 draws.

    python benchmarks/encoders.py [--minutes 30]

Every candidate is trained in the same way on the same batches of Moving Digits, told the motion, and asked for it on digits and
photographs that it has not seen. Its CPU time for a training clip is measured in turns with that of `tiny`, in the same process.
A row that is there is not measured again: delete the card to begin anew.
"""

import argparse
import dataclasses
import statistics
import time
from functools import partial

import torch
from torch import nn
from torch.nn.modules.utils import _triple

from vidrepro.clips.contract import view
from vidrepro.clips.sampling import uniform_clips
from vidrepro.core.random import generator
from vidrepro.experiments.gpu import machine_name
from vidrepro.learning.recipe import adamw
from vidrepro.learning.train import Batches, Learner, Schedule
from vidrepro.models.backbones import Block, TinyR3D
from vidrepro.papers import supervised
from vidrepro.runs.budget import Budget, rows_stage, spend
from vidrepro.runs.videos import painted

CPU = torch.device('cpu')
STEPS, CLIPS, ROUNDS = 300, 64, 7
EASY = dict(
    stride=2, jitter=0.0, grey=0.0, crop=1.0, warmup=20
)  # so that few steps tell encoders apart
HALF, SPACE = (2, 2, 2), (1, 2, 2)  # strides of time and both sides


class Chain(nn.Module):
    "Layers one after the other, then the mean over what is left."

    dim = 128

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).mean((2, 3, 4))


def unit(c_in, c_out, kernel=3, stride=HALF):
    "Convolution, batch norm, ReLU."
    pad = tuple((k - 1) // 2 for k in _triple(kernel))
    conv = nn.Conv3d(c_in, c_out, kernel, stride, pad, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(c_out), nn.ReLU())


def split(c_in, c_out, kernel=3, stride=HALF):
    "Space first, then time."
    time_, *side = stride
    first = unit(c_in, c_out, (1, kernel, kernel), (1, *side))
    return nn.Sequential(first, unit(c_out, c_out, (3, 1, 1), (time_, 1, 1)))


STEM = partial(unit, 3, kernel=(3, 5, 5), stride=SPACE)  # as tiny's
COARSE = (1, 4, 4)  # a quarter of each side at once
ENCODERS = {  # name -> maker
    'tiny': TinyR3D,
    'split kernels': lambda: Chain(
        split(3, 16, 5, SPACE), split(16, 32), split(32, 64), split(64, 128)
    ),
    'no residuals': lambda: Chain(STEM(16), unit(16, 32), unit(32, 64), unit(64, 128)),
    'no residuals, 12 first': lambda: Chain(STEM(12), unit(12, 32), unit(32, 64), unit(64, 128)),
    'stem of space only, stride 4': lambda: Chain(
        unit(3, 16, (1, 7, 7), COARSE), unit(16, 32, 3, 1), unit(32, 64), unit(64, 128)
    ),
    'stem 3x7x7, stride 4': lambda: Chain(
        unit(3, 32, (3, 7, 7), COARSE), unit(32, 64), Block(64, 128, HALF)
    ),
    'stem 3x5x5, stride 4': lambda: Chain(
        unit(3, 32, (3, 5, 5), COARSE), Block(32, 64, HALF), unit(64, 128)
    ),
    'stem 4x7x7, stride 2 and 4': lambda: Chain(
        unit(3, 32, (4, 7, 7), (2, 4, 4)), Block(32, 64, HALF), unit(64, 128)
    ),
    'stem 4x7x7, stride 2 and 4, two blocks': lambda: Chain(
        unit(3, 32, (4, 7, 7), (2, 4, 4)), Block(32, 64, HALF), Block(64, 128, HALF)
    ),
}
AGAIN = (
    'no residuals, 12 first',
    'tiny',
)  # with more seeds: what came near the yardstick, and that


def milliseconds(net):
    "CPU time for a training clip beside that of `tiny`, in turns: medians, and of the ratios."
    nets = [n.to(memory_format=torch.channels_last_3d).train() for n in (net, TinyR3D())]
    x = torch.randn(CLIPS, 3, 8, 32, 32, generator=generator('clips'))
    x = x.contiguous(memory_format=torch.channels_last_3d)
    took = [[], []]
    for _ in range(ROUNDS + 1):
        for n, times in zip(nets, took):
            begun = time.process_time()
            n(x).square().mean().backward()
            times.append(1000 * (time.process_time() - begun) / CLIPS)
    ours, tiny = (times[1:] for times in took)
    share = statistics.median(a / b for a, b in zip(ours, tiny))
    return dict(ms=statistics.median(ours), ms_tiny=statistics.median(tiny), share=share)


def shown(cfg, part):
    "Moving Digits in an empty scene."
    return dataclasses.replace(painted(cfg, part), distractors=0)


def trained(make, seed):
    "A classifier after `STEPS` steps, and the CPU seconds of all."
    cfg = dataclasses.replace(supervised.PRESETS['tiny'], steps=STEPS, seed=seed, **EASY)
    model = supervised.build(cfg)
    torch.manual_seed(seed)
    model.backbone = make()
    batches = Batches(shown(cfg, 'pretrain'), partial(supervised.sample, cfg=cfg), cfg.batch, seed)
    loss, views = (partial(f, cfg=cfg) for f in (supervised.loss, supervised.views))
    optimizer = adamw(model, cfg.lr, cfg.weight_decay)
    after = [Schedule(cfg.lr, cfg.warmup, cfg.schedule)]
    Learner(model, loss, views, batches, optimizer, after, device='cpu', seed=seed).fit(STEPS)
    return model.eval(), cfg


@torch.no_grad()
def accuracy(model, cfg):
    "Share of test videos whose motion is told from the mean over four clips."
    videos, right = shown(cfg, 'test'), 0
    for block in torch.arange(len(videos)).split(64):
        frames = uniform_clips(videos.lengths[block], cfg.frames, cfg.stride, 4)
        clips = videos.clips(block, frames).flatten(0, 1)
        told = model(view(clips, cfg.clip)).unflatten(0, (len(block), 4)).mean(1)
        right += int((told.argmax(1) == videos.labels[block]).sum())
    return dict(accuracy=right / len(videos), videos=len(videos))


def asked(make, seed):
    "One row."
    weights = sum(p.numel() for p in make().parameters())
    found = dict(seed=seed, weights=weights, **milliseconds(make()))
    begun = time.process_time()
    model, cfg = trained(make, seed)
    found['training_seconds'] = time.process_time() - begun
    return found | accuracy(model, cfg)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30.0)
    minutes = parser.parse_args().minutes
    torch.set_num_threads(1)
    rows = [(name, 0) for name in ENCODERS] + [(name, s) for s in (1, 2) for name in AGAIN]
    ask = {f'{name}, seed {seed}': partial(asked, ENCODERS[name], seed) for name, seed in rows}
    config = dict(machine=machine_name(CPU), threads=1, steps=STEPS, clips=CLIPS, **EASY)
    stage = rows_stage('bench/encoders', ask, config, CPU)
    print(*spend([stage], Budget(minutes)), sep='\n')


if __name__ == '__main__':
    main()
