"""How much memory `vidrepro evaluate` takes for an hour of video: peak resident size and seconds of the command.

    python benchmarks/evaluate_memory.py [--minutes 60] [--size 112] [--folder FOLDER]

Writes MINUTES * 6 test pictures of ten seconds (FFmpeg's `testsrc2`, encoded by PyAV), makes a run of zero steps at the
size asked for, and scores it in a process of its own, floors included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np


def write(file, number, seconds=10, rate=25, size=(160, 120)):
    "A moving grating whose color and speed are the class, over a scene of its own."
    width, height = size
    draw = np.random.default_rng(number)
    scene = draw.integers(0, 256, (6, 8, 3)).astype(np.float32).repeat(20, 0).repeat(20, 1)
    y, x = np.mgrid[:height, :width]
    kind = number % 4
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), 'w') as container:
        stream = container.add_stream('libx264', rate, options=dict(preset='ultrafast', crf='30'))
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        for frame in range(seconds * rate):
            wave = np.sin((x if kind % 2 else y) / 6 + frame * (0.2 if kind < 2 else 0.6))
            picture = (scene + 40 * wave[..., None]).clip(0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, 'rgb24')):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def peak(*command):
    "Exit code, peak resident size in GB and seconds of a command."
    start = time.perf_counter()
    child = subprocess.Popen(command)
    _, code, usage = os.wait4(child.pid, 0)
    unit = 1 if sys.platform == 'darwin' else 1024
    return code, usage.ru_maxrss * unit / 1e9, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--size', type=int, default=112)
    parser.add_argument('--folder', type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as holder:
        home = asked.folder or Path(holder)
        count = round(asked.minutes * 6)
        for number in range(count):
            file = home / 'videos' / f'class{number % 4}' / f'{number:04}.mp4'
            if not file.exists():
                write(file, number)
        main = (sys.executable, '-m', 'vidrepro')
        settings = ('steps=0', f'size={asked.size}', 'frames=16', 'batch=8')
        changes = [word for s in settings for word in ('--set', s)]
        videos = ('--data', str(home / 'videos'))
        if not (home / 'run').exists():
            peak(*main, 'train', 'tec', *videos, '--folder', str(home / 'run'), *changes)
        code, memory, seconds = peak(*main, 'evaluate', str(home / 'run'))
        print(f'{count} videos, {count / 6:g} minutes at {asked.size} pixels: exit code {code}, ')
        print(f'peak {memory:.2f} GB, {seconds:.0f} s')


if __name__ == '__main__':
    main()
