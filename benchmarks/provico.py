"""Time and memory of the average over K x K pairs of samples: the exact short form against the sum itself.

    python benchmarks/provico.py [--videos 256] [--samples 10] [--dim 256] [--repeats 3] [--direct sum|loop]

Each form runs in a process of its own, on one thread. Memory is the highest resident size of that process less what it had
just before; time is the median over repeats. `sum` makes all differences at once, in blocks of videos that fit into 1 GiB;
`loop` takes one pair of samples (k, k') after the other.
"""

import argparse
import resource
import statistics
import time

import torch
import torch.multiprocessing as mp

from vidrepro.papers.provico_gaussians import sampled_bhattacharyya


def inputs(b, k, d):
    "Unit means, variances about 1/d, samples of both sides."
    g = torch.Generator().manual_seed(0)
    mean = torch.nn.functional.normalize(torch.randn(b, d, generator=g), dim=1)
    var = (0.5 + torch.rand(b, d, generator=g)) / d
    z = mean[:, None] + var.sqrt()[:, None] * torch.randn(b, 2 * k, d, generator=g)
    return z[:, :k].contiguous(), var, z[:, k:].contiguous(), var


def logs(var_i, var_j):
    ratio = var_i[:, None] / var_j
    return 0.25 * (0.25 * (ratio + 1 / ratio + 2)).log().sum(2)


def direct(z_i, var_i, z_j, var_j, block=2**28):
    "Eq. (17) and (18) as written: a tensor of videos x K x videos x K x D, cut along the first axis."
    found, size = [], max(1, block // (z_i.shape[1] * z_j.numel()))
    for z, v in zip(z_i.split(size), var_i.split(size)):
        gap = (z[:, :, None, None] - z_j).square_().div_((v[:, None] + var_j)[:, None, :, None])
        found.append(0.25 * gap.sum(4).mean((1, 3)) + logs(v, var_j))
    return torch.cat(found)


def loop(z_i, var_i, z_j, var_j):
    "The same, one pair (k, k') after the other."
    total, s = 0, var_i[:, None] + var_j
    for x in z_i.unbind(1):
        for y in z_j.unbind(1):
            total = total + 0.25 * ((x[:, None] - y) ** 2 / s).sum(2)
    return total / (z_i.shape[1] * z_j.shape[1]) + logs(var_i, var_j)


FORMS = {'fast': sampled_bhattacharyya, 'sum': direct, 'loop': loop}


def measure(name, shape, repeats, answers):
    "Runs in a child: median seconds, extra mebibytes at most, and the result."
    torch.set_num_threads(1)
    given, seconds = inputs(*shape), []
    FORMS[name](*(x[:2] for x in given))  # first call: libraries load
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(repeats):
        start = time.perf_counter()
        result = FORMS[name](*given)
        seconds.append(time.perf_counter() - start)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    answers.put((statistics.median(seconds), extra, result.numpy()))


def run(name, shape, repeats):
    context = mp.get_context('spawn')
    answers = context.SimpleQueue()
    child = context.Process(target=measure, args=(name, shape, repeats, answers))
    child.start()
    found = answers.get()
    child.join()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--videos', type=int, default=256)
    parser.add_argument('--samples', type=int, default=10)
    parser.add_argument('--dim', type=int, default=256)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--direct', choices=('sum', 'loop'), default='sum')
    args = parser.parse_args()
    shape = args.videos, args.samples, args.dim
    quick, plain = run('fast', shape, args.repeats), run(args.direct, shape, 1)
    gap = (abs(quick[2] - plain[2]) / abs(plain[2]).clip(1e-6)).max()
    print(f'{args.videos} videos, K = {args.samples}, D = {args.dim}, one thread')
    for name, (seconds, extra, _) in (('fast', quick), (args.direct, plain)):
        print(f'{name:>6} {seconds:>9.3f} s {extra:>9.1f} MiB')
    print(
        f'  {plain[0] / quick[0]:.0f} times faster, {plain[1] / max(quick[1], 0.1):.0f} times less memory, largest relative difference {gap:.1e}'
    )


if __name__ == '__main__':
    main()
