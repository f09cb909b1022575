"""How fast are features, and what limits them? Medians and ratios of one run.

python benchmarks/features.py                  decoding, memory, encoders (about five minutes on one core)
python benchmarks/features.py decoding         one pass against seeking for each clip, at hops 1, 8, 16
python benchmarks/features.py memory           peak memory for 1, 10 and 60 minutes of video
python benchmarks/features.py encoders [NAME]  clips a second by data type, and the share of time spent waiting for frames
python benchmarks/features.py equal FOLDER     every video below FOLDER against clip-by-clip extraction, hops 1, 8, 16
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vidrepro.clips.transforms import KINETICS_MEAN, KINETICS_STD
from vidrepro.core.walk import walk_folder
from vidrepro.data.clock import slack
from vidrepro.data.video import VideoError, frame_times, probe, read_clips
from vidrepro.features.extract import extract
from vidrepro.features.settings import Settings, load
from vidrepro.models.backbones import BACKBONES, backbone

ROUNDS = 3


class Small(nn.Module):
    "An encoder that costs next to nothing, so that decoding is what is measured."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 8, 3, stride=2)

    def forward(self, x):
        x = x[:, :, :, ::8, ::8]
        return self.conv(x).relu().mean((3, 4)).flatten(1)


def write_synthetic(path, seconds, size=(120, 160), fps=30):
    "Moving noise, H.264 as x264 writes it by default; 20 seconds, whose packets are written as often as needed."
    y, x = np.mgrid[: size[0], : size[1]]
    noise, packets = np.random.default_rng(0).integers(0, 60, size), []
    with av.open(str(path), 'w') as file:
        stream = file.add_stream(
            'libx264', rate=fps, options={'threads': '1', 'bf': '0', 'preset': 'veryfast'}
        )
        stream.height, stream.width, stream.pix_fmt = *size, 'yuv420p'
        for number in range(min(20, round(seconds)) * fps):
            wave = 90 + 80 * np.sin((x + 2 * number) / 25) * np.cos((y - number) / 31)
            grey = (wave + np.roll(noise, 3 * number, 1)).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2), format='rgb24')
            packets += stream.encode(frame)
        packets += stream.encode()
        facts = [(bytes(p), p.pts, p.dts, p.duration, p.time_base, p.is_keyframe) for p in packets]
        for repeat in range(max(1, round(seconds / 20))):
            for data, pts, dts, duration, tick, key in facts:
                packet, late = av.Packet(data), round(repeat * 20 / tick)
                packet.pts, packet.dts, packet.duration = pts + late, dts + late, duration
                packet.time_base, packet.is_keyframe, packet.stream = tick, key, stream
                file.mux(packet)
    return path


def numbers_of(path, rate=15):
    "Frame of each sample, by the definition."
    index, seconds, end = frame_times(path)
    late = slack(float(index.tick))
    n = max(1, int(np.ceil((end - late) * rate)))
    return np.searchsorted(seconds, np.arange(n) / rate + late, side='right') - 1


def prepared(clip):
    "TSP's evaluation transform by PyTorch's own interpolation."
    mean, std = (torch.tensor(v)[:, None, None] for v in (KINETICS_MEAN, KINETICS_STD))
    x = clip.transpose(0, 1).float() / 255
    x = F.interpolate(x, (128, 171), mode='bilinear', align_corners=False)
    return ((x - mean) / std)[:, :, 8:120, 30:142].transpose(0, 1)


def seeking_features(network, path, starts, numbers):
    "Open the file for each clip and seek to the key frame before it, as torchvision's read_video did."
    rows, decoded = [], 0
    for start in starts:
        wanted = numbers[start : start + 16].tolist()
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            stream.codec_context.thread_count = 1
            step = 1 / stream.average_rate / stream.time_base
            file.seek(round(wanted[0] * step), stream=stream)
            found = {}
            for frame in file.decode(stream):
                decoded += 1
                number = round(frame.pts / step)
                if number in wanted:
                    found[number] = torch.from_numpy(frame.to_ndarray(format='rgb24'))
                if number >= wanted[-1]:
                    break
        clip = torch.stack([found[number] for number in wanted]).permute(3, 0, 1, 2)
        with torch.inference_mode():
            rows.append(network(prepared(clip)[None])[0])
    return torch.stack(rows).numpy(), decoded


def decoding():
    "Both ways over the same video, in turns, and whether they agree."
    print('One pass against seeking for each clip; an encoder that costs next to nothing')
    network = Small()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for size in ((120, 160), (240, 320)):
            path = write_synthetic(folder / f'{size[0]}.mp4', 20, size)
            numbers, frames = numbers_of(path), probe(path).frames
            for hop in (1, 8, 16):
                starts, times = range(0, len(numbers) - 15, hop), {'ours': [], 'seeking': []}
                for round_ in range(ROUNDS):
                    out = folder / f'{size[0]}-{hop}-{round_}'
                    begin = time.process_time()
                    report = extract(network, path, out, Settings(hop=hop))
                    times['ours'].append(time.process_time() - begin)
                    if round_ and hop == 1:  # one round of the slow way is enough
                        continue
                    begin = time.process_time()
                    slow, decoded = seeking_features(network, path, starts, numbers)
                    times['seeking'].append(time.process_time() - begin)
                ours, seeking = (statistics.median(times[k]) for k in ('ours', 'seeking'))
                worst = np.abs(load(out / f'{path.stem}.npy').array - slow).max()
                print(
                    f'{size[1]}x{size[0]} hop {hop:2}: {len(starts):3} clips; '
                    f'frames decoded {report.frames} of {frames}, by seeking {decoded}; '
                    f'CPU {ours:.2f} s and {seeking:.2f} s, {seeking / ours:.1f}x; largest difference {worst:.1e}'
                )


def memory():
    "Peak memory of a process that extracts features of one video, for videos of three lengths."
    print('Peak memory, hop 16, tiny encoder (a process each)')
    with tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for minutes in (1, 10, 60):
            path = write_synthetic(Path(folder) / f'{minutes}.mp4', 60 * minutes, (64, 80))
            words = [sys.executable, __file__, '_peak', str(path), f'{folder}/out{minutes}']
            output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            clips, peak = map(float, output.split())
            peaks[minutes] = peak
            print(
                f'{minutes:3} minutes, {path.stat().st_size / 1e6:6.1f} MB: {clips:6.0f} clips, peak {peak:.0f} MiB'
            )
        print(f'60 minutes / 1 minute: {peaks[60] / peaks[1]:.3f}')


def peak(path, out):
    "Run by `memory` in a process of its own."
    report = extract(Small(), path, out, Settings())
    print(report.clips, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def encoders(names):
    "Clips a second through the network alone, and of a whole extraction."
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    batch, clips = (32, 64) if device == 'cuda' else (2, 4)
    print(
        f'{device}: {torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()}, '
        f'{torch.get_num_threads()} threads, batch {batch}; clips of 16 x 112 x 112'
    )
    with tempfile.TemporaryDirectory() as folder:
        for i in range(8):
            seconds = max(
                2, round(16 * clips / 15 / 8 * (16 if device == 'cuda' else 1))
            )  # whole seconds, a clip at least
            write_synthetic(Path(folder) / f'v{i}.mp4', seconds, (240, 320))
        for name in names:
            network = backbone(name).eval().to(device, memory_format=torch.channels_last_3d)
            for precision in ('fp32', 'bf16'):
                x = torch.randn(batch, 16, 112, 112, 3, device=device).permute(0, 4, 1, 2, 3)
                alone = []
                for _ in range(ROUNDS if device == 'cpu' else 20):
                    begin = time.perf_counter()
                    with (
                        torch.inference_mode(),
                        torch.autocast(device, torch.bfloat16, enabled=precision == 'bf16'),
                    ):
                        network(x).float().cpu()
                    alone.append(time.perf_counter() - begin)
                workers = 8 if device == 'cuda' else 1
                out = Path(folder) / f'{name}-{precision}'
                report = extract(
                    network,
                    folder,
                    out,
                    Settings(precision=precision),
                    batch=batch,
                    workers=workers,
                )
                print(
                    f'{name:12} {precision}: network alone {batch / statistics.median(alone):7.2f} clips/s, '
                    f'extraction {report.clips / report.seconds:7.2f} clips/s, {report.waiting / report.seconds:.0%} waiting for frames'
                )


def equal(folder):
    "Every video at hops 1, 8 and 16 against clips that are decoded, prepared and encoded one by one."
    network, counts, worst = Small(), dict(equal=0, short=0, failed=0, sizes=0), 0.0
    with tempfile.TemporaryDirectory() as out:
        for place, name in enumerate(walk_folder(folder)[0]):
            path, slow, how = Path(folder) / name, None, 'equal'
            for hop in (1, 8, 16):
                report = extract(network, path, f'{out}/{place}/{hop}', Settings(hop=hop))
                if report.failed:
                    how = 'short' if 'samples' in report.failed[path.name] else 'failed'
                    assert how == 'failed' or len(numbers_of(path)) < 16, name
                    break
                try:
                    if slow is None:
                        numbers = numbers_of(path)
                        clips = (
                            read_clips(path, numbers[None, i : i + 16])[0]
                            for i in range(len(numbers) - 15)
                        )
                        with torch.inference_mode():
                            slow = np.stack(
                                [network(prepared(clip)[None])[0].numpy() for clip in clips]
                            )
                except VideoError:
                    how = 'sizes'  # the frame size changes: the slow way cannot stack its frames
                    break
                found = load(next(Path(f'{out}/{place}/{hop}').glob('*.npy'))).array
                assert found.shape == slow[::hop].shape, (name, hop, found.shape, slow.shape)
                worst = max(worst, float(np.abs(found - slow[::hop]).max()))
                assert report.frames == probe(path).frames, name
            counts[how] += 1
            if how != 'equal':
                print(f'{how:7} {name}: {next(iter(report.failed.values()), "")}')
    print(f'{counts}; largest difference {worst:.1e}')


def main(words):
    torch.set_num_threads(1)
    what, *rest = words or ['']
    if what == '_peak':
        return peak(*rest)
    if what == 'equal':
        return equal(*rest)
    if what in ('', 'decoding'):
        decoding()
    if what in ('', 'memory'):
        memory()
    if what in ('', 'encoders'):
        encoders(
            rest
            or [
                name
                for name in ('tiny', 'r3d_18', 'r2plus1d_18', 'r2plus1d_34')
                if name in BACKBONES
            ]
        )


if __name__ == '__main__':
    main(sys.argv[1:])
