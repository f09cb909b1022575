"""How fast are eight random 16-frame clips of one video? Medians and ratios of one run.

python benchmarks/decode.py [FOLDER or FILE ...]     without any: a synthetic video of 300 frames
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from torchvision.transforms.v2.functional import resize

from vidrepro.data.door import find
from vidrepro.data.video import VideoError, probe, read_clips

CLIPS, FRAMES, ROUNDS, FILES = 8, 16, 7, 6


def write_synthetic(path):
    "300 frames of 320 × 240, H.264 as x264 writes it by default."
    y, x = np.mgrid[:240, :320]
    noise = np.random.default_rng(0).integers(0, 60, (240, 320))
    with av.open(str(path), 'w') as file:
        stream = file.add_stream('libx264', rate=30, options={'threads': '1'})
        stream.width, stream.height, stream.pix_fmt = 320, 240, 'yuv420p'
        for number in range(300):
            grey = (
                90
                + 80 * np.sin((x + 2 * number) / 25) * np.cos((y - number) / 31)
                + np.roll(noise, 3 * number, 1)
            )
            picture = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        file.mux(stream.encode())
    return path


def ours(path, frames, size):
    return read_clips(path, frames, size)


def rgb(frame, size):
    height, width = size or (None, None)
    return frame.to_ndarray(format='rgb24', width=width, height=height)


def each_from_the_start(path, frames, size):
    "Open the file once for each clip and decode from the start to its last frame."
    clips = []
    for row in frames.tolist():
        with av.open(str(path)) as file:
            file.streams.video[0].codec_context.thread_count = 1
            wanted, found = set(row), {}
            for number, frame in enumerate(file.decode(video=0)):
                if number in wanted:
                    found[number] = rgb(frame, size)
                if number == max(row):
                    break
        clips.append(np.stack([found[number] for number in row]))
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)


def each_by_seeking(path, frames, size):
    "Open the file for each clip and seek to the keyframe before; right only at a constant rate."
    clips = []
    for row in frames.tolist():
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            stream.codec_context.thread_count = 1
            rate, first = stream.average_rate, stream.start_time or 0
            ticks = [first + round(number / rate / stream.time_base) for number in row]
            file.seek(min(ticks), stream=stream)
            found = []
            for frame in file.decode(stream):
                if frame.pts is not None and frame.pts + 1 >= ticks[len(found)]:
                    found.append(rgb(frame, size))
                if len(found) == len(row):
                    break
        clips.append(np.stack(found))
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)


def by_torchcodec(path, frames, size):
    "One pass, resized afterwards."
    from torchcodec.decoders import VideoDecoder

    pictures = (
        VideoDecoder(str(path), num_ffmpeg_threads=1).get_frames_at(frames.flatten().tolist()).data
    )
    pictures = resize(pictures, list(size), antialias=True) if size else pictures
    return pictures.unflatten(0, frames.shape).transpose(1, 2)


def measure(path, size):
    "CPU milliseconds of every reader, or why it cannot read the file; readers take turns."
    rng, length = np.random.default_rng(0), probe(path).frames
    span = np.arange(min(FRAMES, length))
    draws = [
        torch.from_numpy(rng.integers(0, max(1, length - FRAMES), (CLIPS, 1)) + span)
        for _ in range(ROUNDS)
    ]
    readers = {
        'one pass': ours,
        'from start': each_from_the_start,
        'seeking': each_by_seeking,
        'torchcodec': by_torchcodec,
    }
    notes, seconds, expected = {}, {name: [] for name in readers}, ours(path, draws[0], size)
    for name, read in list(readers.items()):
        try:
            got = read(path, draws[0], size)
            if not size and not (got.shape == expected.shape and torch.equal(got, expected)):
                notes[name] = 'other frames than plain decoding'
        except (ImportError, LookupError, OSError, RuntimeError, ValueError, EOFError) as error:
            reason = (str(error).strip().splitlines() or [''])[0]
            notes[name] = f'not available ({type(error).__name__}: {reason[:80]})'
            readers[name] = None
    for frames in draws:
        for name, read in readers.items():
            if read:
                begin = time.process_time()
                read(path, frames, size)
                seconds[name].append(time.process_time() - begin)
    return length, {
        name: (1000 * statistics.median(s) if s else None, notes.get(name, ''))
        for name, s in seconds.items()
    }


def videos(arguments):
    "The files named, and a few of each folder named, evenly spread over its list."
    for argument in map(Path, arguments):
        opened = find(argument)
        found = [opened.root / path for path in opened.paths]
        if not found:
            sys.exit(f'{argument}: no videos; name a folder that has some')
        yield from found[:: max(1, len(found) // FILES)][:FILES]


def table(paths, size):
    "One line a video, then the median ratios."
    scale = f'resized to {size[0]} x {size[1]}' if size else 'full size'
    print(f'\n{CLIPS} clips of {FRAMES} frames, {scale}: CPU ms on one thread (ratio to one pass)')
    ratios, totals, notes = {}, {}, set()
    for path in paths:
        try:
            length, results = measure(path, size)
        except VideoError as error:
            print(f'{path.name:28} {error}')
            continue
        base, cells = results['one pass'][0], []
        for name, (value, note) in results.items():
            cells.append(
                f'{name} {value:6.1f} ({value / base:4.1f}x)' + ('*' if note else ' ')
                if value
                else f'{name}      -        '
            )
            if value:
                ratios.setdefault(name, []).append(value / base)
                totals.setdefault(name, []).append((value, base))
            if note:
                notes.add(f'{name}: {note}')
        print(f'{path.name[:28]:28} {length:5} frames  ' + '  '.join(cells))
    for name, values in list(ratios.items())[1:]:
        middle, low, high = statistics.median(values), min(values), max(values)
        whole = sum(value for value, _ in totals[name]) / sum(base for _, base in totals[name])
        print(
            f'{name} / one pass: median {middle:.2f}, from {low:.2f} to {high:.2f}; all files together {whole:.2f}'
        )
    for note in sorted(notes):
        print(f'* {note}')


def main(arguments):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = list(videos(arguments)) or [write_synthetic(Path(folder) / 'synthetic.mp4')]
        for size in (None, (112, 112)):
            table(paths, size)


if __name__ == '__main__':
    main(sys.argv[1:])
