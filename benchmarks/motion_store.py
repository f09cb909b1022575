"""What a motion store of real footage costs. One card, `results/bench/motion-store-cpu.json`, which page 59 draws.

    python benchmarks/motion_store.py [--minutes 60]

What `vidrepro data motion weizmann --root FOLDER` does (and `tennis7`), with the settings of `train mcl --preset real`, on one
core. A row that is there is not measured again: delete the card to begin anew.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from vidrepro.core.files import data_root
from vidrepro.experiments.gpu import machine_name
from vidrepro.motion.motion_store import Making, MotionStore, files_of, make_store
from vidrepro.runs.budget import Budget, rows_stage, spend
from vidrepro.runs.methods import pick_preset
from vidrepro.runs.videos import opened

CPU = torch.device('cpu')


def asked(name):
    "One row: every video of a folder measured, then the store read back."
    cfg = pick_preset('mcl', 'real', data=name, root=str(data_root() / name), flow='tvl1')
    source, making = opened(cfg), Making(cfg.clip, cfg.flow, cfg.reading, cfg.border)
    with tempfile.TemporaryDirectory() as out:
        begun = time.process_time()
        made = make_store(source, Path(out), making)
        minutes = (time.process_time() - begun) / 60
        size = sum(file.stat().st_size for file in Path(out).iterdir()) / 1e6
        store = MotionStore(Path(out))
        store.require(source, making)
        height, width = store.flow(next(iter(files_of(source))), torch.tensor([0])).shape[-2:]
    about = dict(videos=made.videos, pairs=made.pairs, height=height, width=width)
    return dict(about, minutes=minutes, megabytes=size)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=60.0)
    minutes = parser.parse_args().minutes
    torch.set_num_threads(1)
    config = dict(machine=machine_name(CPU), threads=1, method='tvl1', preset='real')
    names = [n for n in ('weizmann', 'tennis7') if data_root() and (data_root() / n).is_dir()]
    stage = rows_stage('bench/motion-store', {n: partial(asked, n) for n in names}, config, CPU)
    print(*spend([stage], Budget(minutes)), sep='\n')


if __name__ == '__main__':
    main()
