"""How many clips of Moving Digits are painted in a second, against painting frame by frame.

    python benchmarks/moving_digits.py [--device cuda] [--threads 1] [--repeats 7]

The baseline paints the same pictures the obvious way: for each clip and each frame one `affine_grid` and
`grid_sample` a layer. Both run in turn in the same process; times are medians.
"""

import argparse
import math
import statistics
import time

import torch
import torch.nn.functional as F

from vidrepro.digits.moving_digits import MovingDigits, _digits, _draw, _layers, _photos, _world


def naive_frame(source, draws, pose, device):
    "One frame, layer by layer; distractors at their nearest copy, the sprite at nine copies."
    size, split, photos = source.size, source.split, _photos(source.size, source.split).to(device)
    height, width = photos.shape[-2] // 2, photos.shape[-1]
    photo = photos[:, :, :height] if draws[0, 11] < 0.5 else photos[:, :, height:]
    world, corner = _world(size, split), pose.camera.item()
    pixel = (torch.arange(size, device=device) + 0.5) / size
    fold = torch.tensor([width, height], device=device) - 1
    scale = (
        2 * fold / torch.tensor([world.real, world.imag], device=device)
    )  # photograph pixels a window side
    place = (
        torch.stack(torch.meshgrid(corner.real + pixel, corner.imag + pixel, indexing='xy'), -1)
        * scale
        - 0.5
    )
    place = fold - (place % (2 * fold) - fold).abs()  # there and back between the outermost pixels
    canvas = F.grid_sample(photo, ((2 * place + 1) / (fold + 1) - 1)[None], align_corners=False)
    for layer in _layers(draws, pose):
        if not len(layer.glyph):
            continue
        glyph = _digits(size, split)[0][(layer.glyph * len(_digits(size, split)[0])).long()].to(
            device
        )
        side, angle, centre = layer.side.item(), layer.angle.item(), layer.centre.item()
        sprite = layer.period == 1.0
        near = lambda c, p: (c - 0.5 + p / 2) % p - p / 2 + 0.5
        centre = complex(near(centre.real, layer.period), near(centre.imag, layer.period))
        opacity = torch.zeros(1, 1, size, size, device=device)
        for copy in [a + 1j * b for a in (-1, 0, 1) for b in (-1, 0, 1)] if sprite else [0]:
            cos, sin, at = (
                math.cos(angle) / side,
                math.sin(angle) / side,
                2 * (centre + copy) - (1 + 1j),
            )
            theta = torch.tensor(
                [
                    [
                        [cos, sin, -cos * at.real - sin * at.imag],
                        [-sin, cos, sin * at.real - cos * at.imag],
                    ]
                ],
                device=device,
            )
            opacity = opacity + F.grid_sample(
                glyph,
                F.affine_grid(theta, [1, 1, size, size], align_corners=False),
                align_corners=False,
            )
        colour = (255 * layer.color + 0.5).float().to(device)[:, :, None, None]
        canvas = canvas * (1 - opacity) + opacity * colour
    return canvas[0].to(torch.uint8)


def naive_clips(source, index, frames, device):
    "Clip by clip, frame by frame."
    out = []
    for i, clip in zip(index, frames[:, 0]):
        draws = _draw(source, source.numbers[i][None])
        images = [
            naive_frame(
                source,
                draws,
                source.pose(i[None], f[None, None, None]).map(lambda x: x[:, 0]),
                device,
            )
            for f in clip
        ]
        out.append(torch.stack(images, 1))
    return torch.stack(out)[:, None]


def seconds(work, device):
    start = time.perf_counter()
    work()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=7)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    print(f'{device}, {args.threads} threads, medians of {args.repeats}')
    print(f'{"clip":>12} {"batched":>10} {"naive":>10} {"ratio":>7}   largest difference')
    for size, t, b in ((32, 8, 128), (112, 16, 16)):
        source, few = MovingDigits(4000, size=size), max(2, b // 16)
        index, frames = torch.arange(b), (torch.arange(b)[:, None, None] % 100 + torch.arange(t))
        fast = lambda: source.clips(index, frames, device)
        slow = lambda: naive_clips(source, index[:few], frames[:few], device)
        gap = (fast()[:few].int() - slow().int()).abs().max().item()
        pairs = [(seconds(fast, device), seconds(slow, device)) for _ in range(args.repeats)]
        quick, plain = (
            b / statistics.median(p[0] for p in pairs),
            few / statistics.median(p[1] for p in pairs),
        )
        print(
            f'{t}x{size}x{size:<6} {quick:>8.0f}/s {plain:>8.1f}/s {quick / plain:>6.1f}x   {gap} grey levels'
        )


if __name__ == '__main__':
    main()
