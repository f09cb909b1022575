"""One video of an hour through the commands, from pixels to a picture of its actions, beside one of five minutes.

    python benchmarks/long_video.py [--run RUN]

Painted videos: an ActionFormer learns from four of ten minutes, by features of RUN (none: a TSP encoder is trained first, four
minutes of one core), and finds the actions of others, of 5, 20 and 60 minutes. Each command is a process of its own; its peak
of memory is what the system says when it ends. Writes `results/bench/long-video-cpu.json`, which page 109 draws.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import torch

from vidrepro.digits.untrimmed import compose
from vidrepro.experiments.gpu import machine_name
from vidrepro.experiments.localization import Long, painted
from vidrepro.runs.budget import Budget, rows_stage, spend

CPU, MINUTES = torch.device('cpu'), (5, 20, 60)


def command(folder, *words):
    "Run it in a folder: seconds by the clock, and the peak of its memory in megabytes."
    begun = time.perf_counter()
    words = [sys.executable, '-m', 'vidrepro', *map(str, words)]
    with open(folder / 'said.txt', 'w') as said:
        process = subprocess.Popen(words, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f'{words[3:]}: {(folder / "said.txt").read_text()}')
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


def films(folder, part, minutes, count):
    "Painted videos with their annotations."
    source = painted(Long(train=count, test=count, minutes=minutes), part)
    compose({part: source.digits}, folder, count, source.script)
    return folder / part, folder / 'activity_net.json'


def encode(folder, videos, out, run):
    "Their features, as dense as the tables of detectors have them."
    where = ('--run', run, '--hop', 4, '--device', 'cpu')
    return command(folder, 'features', 'extract', videos, out, *where)


def detector(folder, run):
    "An ActionFormer that has seen four videos of ten minutes."
    if not run:
        run = folder / 'run'
        command(folder, 'train', 'tsp', '--folder', run, '--device', 'cpu')
    videos, truth = films(folder / 'learn', 'train', 10, 4)
    encode(folder, videos, folder / 'learnt', run)
    made = folder / 'detector.safetensors'
    how = ('--model', 'actionformer', '--preset', 'small')
    for setting in ('epochs=120', 'warmup=12', 'batch=4', 'longest=450'):
        how += ('--set', setting)
    command(folder, 'localize', 'train', folder / 'learnt', truth, made, *how, '--device', 'cpu')
    return made, Path(run)


def row(folder, made, minutes):
    "One video from pixels to picture."
    path, run = made()
    home = folder / str(minutes)
    videos, truth = films(home, 'test', minutes, 1)
    took, extract = encode(folder, videos, home / 'features', run)
    found, where = home / 'found.json', ('--annotations', truth, '--subset', 'testing')
    on = ('--device', 'cpu')
    _, predict = command(folder, 'localize', 'predict', path, home / 'features', found, *where, *on)
    scores = ('--subset', 'testing', '--out', home / 'scores.json')
    _, evaluate = command(folder, 'localize', 'evaluate', found, truth, *scores)
    video, picture = next(videos.glob('*.mp4')), home / 'picture.png'
    more = ('--features', home / 'features', '--annotations', truth)
    _, show = command(folder, 'localize', 'show', path, video, picture, *more, *on)
    (segments,) = json.loads(found.read_text())['results'].values()
    peaks = dict(extract=extract, predict=predict, evaluate=evaluate, show=show)
    size = next((home / 'features').rglob('*.npy')).stat().st_size / 1e6
    mean = json.loads((home / 'scores.json').read_text())['mAP']
    about = dict(minutes=minutes, segments=len(segments), mAP=mean, feature_megabytes=size)
    return about | {f'{k} MB': v for k, v in peaks.items()} | {'extract seconds': took}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--run', type=Path)
    run = parser.parse_args().run
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = cache(partial(detector, folder, run and run.resolve()))
        config = dict(machine=machine_name(CPU), threads=1)
        asked = {f'{m} minutes': partial(row, folder, made, m) for m in MINUTES}
        print(*spend([rows_stage('bench/long-video', asked, config, CPU)], Budget(60)), sep='\n')


if __name__ == '__main__':
    main()
