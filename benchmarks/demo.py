"""How long the demonstration takes and what it finds: three runs, each of its own seed, timed by the clock.

    python benchmarks/demo.py [--runs 3]

On an idle machine. Writes `results/bench/demo-cpu.json`, which README quotes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vidrepro.core.results import save_run
from vidrepro.experiments.gpu import machine_name

SCORE = 'motion probe'


def one(folder, seed):
    "Seconds from the command to its last line, and the scores of both encoders."
    begun = time.perf_counter()
    command = ['demo', '--folder', folder, '--device', 'cpu', '--set', f'seed={seed}']
    subprocess.run(
        [sys.executable, '-m', 'vidrepro', *command], check=True, capture_output=True, cwd=folder
    )
    seconds = time.perf_counter() - begun
    cards = {p.stem: json.loads(p.read_text()) for p in Path(folder).glob('results/**/*.json')}
    value = lambda name: cards[f'demo-{name}-s0']['metrics'][SCORE][0]
    return dict(name=f'seed {seed}', seconds=seconds, full=value('full'), twin=value('instance'))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=3)
    rows = []
    for seed in range(parser.parse_args().runs):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one(folder, seed))
        print(rows[-1], flush=True)
    middle = lambda of: dict(
        zip(('value', 'low', 'high'), (statistics.median(of), min(of), max(of)))
    )
    found = {'seconds': middle([r['seconds'] for r in rows])}
    found[f'{SCORE}, ahead'] = middle([r['full'] - r['twin'] for r in rows])
    cpu = torch.device('cpu')
    config = dict(machine=machine_name(cpu), cores=os.cpu_count())
    total = sum(r['seconds'] for r in rows)
    save_run(
        'bench/demo-cpu',
        config,
        found,
        rows,
        seconds=total,
        seed=0,
        protocol={},
        data={},
        device=cpu,
    )


if __name__ == '__main__':
    main()
