"""Time and memory of a training step of BMN: sparse boundary matching against the dense mask.

    python benchmarks/bmn.py [--device cuda] [--threads 1] [--batch 16] [--length 100] [--repeats 3]

`sparse` convolves first and multiplies by the sparse weights of valid candidates; `dense` does the same with a dense
matrix; `mask` is the released formulation: features times a mask of `t x 32 d t`, then a 3-D convolution. All three
share their weights, so their losses must agree. They run in turn; times are medians. Memory is the largest size that a
process of its own reached (CPU, less what it held before) or that the allocator handed out (GPU). The mask needs
about 0.4 GB a video on top of 1 GB at length 100: `--mask-batch` gives it fewer videos, and its time is scaled.
"""

import argparse
import multiprocessing
import resource
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vidrepro.localize.bmn import BMN, Targets, loss
from vidrepro.localize.grid import TimeGrid, label, matching_matrix, to_map


class Mask(nn.Module):
    "The released formulation: a dense mask over all cells of the map, then a 3-D convolution."

    def __init__(self, fast, grid):
        super().__init__()
        self.weight, self.bias, self.shape = fast.weight, fast.bias, (32, grid.depth, grid.length)
        bins = matching_matrix(grid).to_dense().float().permute(1, 2, 0)  # r t k
        mask = to_map(bins, fast.inside.cpu()).permute(1, 0, 2, 3)  # t r d t
        self.register_buffer('mask', mask.reshape(grid.length, -1).contiguous(), persistent=False)

    def forward(self, x):
        read = (x @ self.mask).unflatten(2, self.shape)
        return F.conv3d(read, self.weight[..., None, None], self.bias)[:, :, 0]


def build(name, length, device):
    torch.manual_seed(0)
    grid = TimeGrid(length)
    net = BMN(512, grid, dense=name == 'dense')
    inside = net.match.inside
    if name == 'mask':
        net.match = Mask(net.match, grid)
    return net.to(device), inside.to(device)


def batch_of(videos, length, device):
    rng = np.random.default_rng(0)
    spans = [np.sort(rng.uniform(0, 100, (2, 2)), 1) for _ in range(videos)]
    targets = Targets.of([label(TimeGrid(length).of(100.0), s) for s in spans])
    x = torch.from_numpy(rng.normal(size=(videos, 512, length)).astype(np.float32))
    draw = torch.from_numpy(rng.random((videos, length, length)).astype(np.float32))
    return x.to(device), Targets(*(v.to(device) for v in vars(targets).values())), draw.to(device)


def step(net, inside, batch, optimiser):
    x, targets, draw = batch
    total, _ = loss(net(x), targets, inside, draw)
    optimiser.zero_grad()
    total.backward()
    optimiser.step()
    return total.item()  # waits for the GPU


def measure(name, videos, args, answers):
    "In a process of its own: losses of two steps, seconds of each step after the first, megabytes."
    torch.set_num_threads(args.threads)
    device, gpu = args.device, args.device.startswith('cuda')
    net, inside = build(name, args.length, device)
    optimiser, batch = (
        torch.optim.Adam(net.parameters(), 1e-3),
        batch_of(videos, args.length, device),
    )
    peak = lambda: (
        torch.cuda.max_memory_allocated() / 1e6
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    )
    before = 0.0 if gpu else peak()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    losses, seconds = [], []
    for _ in range(1 + args.repeats):
        start = time.perf_counter(), time.process_time()
        losses.append(step(net, inside, batch, optimiser))
        seconds.append(time.perf_counter() - start[0] if gpu else time.process_time() - start[1])
    answers.put((name, losses[:2], seconds[1:], peak() - before))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument(
        '--mask-batch', type=int, default=0, help='videos for the mask; default: as the others'
    )
    parser.add_argument('--length', type=int, default=100)
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    print(
        f'{args.device}, {args.threads} threads, T = D = {args.length}, 512 channels in; '
        f'medians of {args.repeats} steps, {"seconds" if args.device != "cpu" else "processor seconds"} scaled to {args.batch} videos'
    )
    print(
        f'{"":>7} {"videos":>7} {"step":>9} {"ratio":>7} {"memory":>10} {"a video":>9}   loss of steps 1, 2'
    )
    context, base = multiprocessing.get_context('spawn'), None
    for name in ('sparse', 'dense', 'mask'):
        videos = args.mask_batch or args.batch if name == 'mask' else args.batch
        answers = context.Queue()
        process = context.Process(target=measure, args=(name, videos, args, answers))
        process.start()
        process.join()
        if process.exitcode:
            print(f'{name:>7} {videos:>7}   ended with code {process.exitcode}: out of memory?')
            continue
        name, losses, seconds, memory = answers.get()
        took = statistics.median(seconds) * args.batch / videos
        base = base or took
        print(
            f'{name:>7} {videos:>7} {took:>8.2f}s {took / base:>6.1f}x {memory:>7.0f} MB {memory / videos:>6.0f} MB   '
            f'{losses[0]:.5f} {losses[1]:.5f}',
            flush=True,
        )


if __name__ == '__main__':
    main()
