"Two processes of one machine, for tests that hold what they compute together against what one does."

import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vidrepro.learning.distributed import apply


def half(x, rank, ranks):
    "A process's rows of a batch."
    return apply(x, lambda v: v[len(v) // ranks * rank : len(v) // ranks * (rank + 1)])


def average(x):
    "The mean over processes, as DistributedDataParallel takes it of gradients."
    x = x.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def process(rank, work, folder):
    "They meet over a file, so the port is only a name that Accelerate wants to see."
    os.environ |= dict(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
        MASTER_ADDR='localhost',
        MASTER_PORT='1',
        ACCELERATE_USE_CPU='true',
    )
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo',
        init_method=f'file://{folder}/meet',
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=15),
    )
    torch.save(work(rank, folder), f'{folder}/{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def in_two(work, folder):
    "What `work(rank, folder)` returns in each of two processes; a function that a module names."
    mp.spawn(process, (work, str(folder)), nprocs=2)
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]
