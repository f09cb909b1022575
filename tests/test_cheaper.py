"What was made cheaper gives what it gave before: cards stand on these numbers."

import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest
import torch

from vidrepro.clips import transforms
from vidrepro.clips.contract import Clip
from vidrepro.core.files import InputError
from vidrepro.data.shards import read_shard, write_shard
from vidrepro.digits.dials import DialedDigits
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.learning.views import augment
from vidrepro.models.backbones import BACKBONES, backbone
from vidrepro.runs.execute import train
from vidrepro.runs.methods import pick_preset
from vidrepro.runs.run import Run
from vidrepro.runs.scores import clips_at_once, features

SMALL = dict(steps=2, videos=24, length=64, batch=8, hidden=16, dim=8)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def jitter_chosen(x, generator, brightness, contrast, saturation, hue, p=0.8):
    strengths = dict(brightness=brightness, contrast=contrast, saturation=saturation)
    chosen = torch.rand(len(x), 1, 1, 1, 1, generator=generator) < p
    spread = lambda low, high: low + (high - low) * torch.rand(len(x), generator=generator)
    draws = {k: spread(1 - s, 1 + s) for k, s in strengths.items()}
    draws['hue'] = spread(-hue, hue)
    used = {k: draws[k] for k, s in (strengths | {'hue': hue}).items() if s > 0}
    return torch.where(chosen, transforms.adjust_color(x, **used), x)


def grey_chosen(x, generator, p):
    chosen = torch.rand(len(x), 1, 1, 1, 1, generator=generator) < p
    return torch.where(chosen, transforms.luma(x), x)


def in_one_product(x, rows, columns):
    return torch.einsum('bih,bcthw,bjw->bctij', rows.to(x.dtype), x, columns.to(x.dtype))


@pytest.mark.parametrize('shape', [(6, 2, 3, 8, 32, 32), (3, 1, 3, 4, 45, 60)])
@pytest.mark.parametrize('hue, flip', [(0.0, 0.0), (0.1, 0.5)])
def test_views_as_before(shape, hue, flip, monkeypatch):
    "A product for both axes, a change of all clips: the same views, within rounding on any machine."
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(0))
    recipe = SimpleNamespace(size=32, crop=0.6, flip=flip, jitter=0.4, hue=hue, grey=0.2)
    now = augment(clips, seeded(1), recipe, group=shape[0] // 3)
    monkeypatch.setattr(transforms, 'color_jitter', jitter_chosen)
    monkeypatch.setattr(transforms, 'random_grayscale', grey_chosen)
    color = augment(clips, seeded(1), recipe, group=shape[0] // 3)
    assert torch.equal(now, color)
    monkeypatch.setattr(transforms, '_resample', in_one_product)
    before = augment(clips, seeded(1), recipe, group=shape[0] // 3)
    torch.testing.assert_close(now, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize('transform', [transforms.color_jitter, transforms.random_grayscale])
def test_nobody_chosen(transform):
    "The input is neither changed nor handed out itself."
    x = torch.rand(3, 3, 2, 8, 8, generator=seeded(0))
    out = transform(x, seeded(0), p=0.0)
    assert torch.equal(out, x) and out.data_ptr() != x.data_ptr()


def test_kept_frames():
    "Any order, repeats within a batch, refusals; only what was asked for is painted."
    videos = MovingDigits(20, size=16, length=40, distractors=3, seed=7)
    kept = videos.cached()
    assert videos.gigabytes == pytest.approx(20 * 40 * 3 * 16 * 16 / 1e9)
    asked = set()
    for k in range(6):
        index = torch.randint(20, (9,), generator=seeded(k))
        frames = torch.randint(40, (9, 2, 5), generator=seeded(k))
        assert torch.equal(kept.clips(index, frames), videos.clips(index, frames))
        asked |= {(i, f) for i, row in zip(index.tolist(), frames.flatten(1).tolist()) for f in row}
    assert int(kept.memory[1].sum()) == len(asked)
    assert kept == kept and kept.describe() == videos.describe()
    with pytest.raises(InputError, match='0 to 39'):
        kept.clips(torch.tensor([0]), torch.tensor([[[40]]]))


@pytest.mark.parametrize(
    'dials', [dict(scene=1.0, group=4), dict(blur=0.5, idle=0.5), dict(passers=2)]
)
def test_kept_worlds(dials):
    "A world with dials stays that world, and so do its parts."
    world = DialedDigits(48, size=16, **dials)
    index, frames = torch.arange(12), torch.arange(0, 64, 8).expand(12, 1, 8)
    kept, few = world.cached(), world.cached().subset(index[4:8])
    for _ in range(2):
        assert torch.equal(kept.clips(index, frames), world.clips(index, frames))
    assert kept.describe() == world.describe() and int(kept.memory[1].sum()) == 96
    assert torch.equal(few.clips(torch.arange(4), frames[:4]), world.clips(index[4:8], frames[:4]))
    assert not torch.equal(
        kept.clips(index, frames), MovingDigits(48, size=16).clips(index, frames)
    )


def test_clips_handed_out_are_not_the_store():
    kept, ask = MovingDigits(4, size=16).cached(), (torch.tensor([1]), torch.zeros(1, 1, 2).long())
    first = kept.clips(*ask)
    want = first.clone()
    first.zero_()
    assert torch.equal(kept.clips(*ask), want)


PAINTER = """
import sys
from unittest.mock import patch
from vidrepro.digits import moving_digits as page
brush, strokes = page._paint, []
def paint(*some):
    strokes.append(1)
    if len(strokes) == int(sys.argv[2]):
        print('half', flush=True)
        sys.stdin.read()
    return brush(*some)
with patch.object(page, '_paint', paint):
    kept = page.MovingDigits(64, size=16, length=32).shared(sys.argv[1])
print(len(strokes), kept.memory[0].long().sum().item())
"""


def test_frames_that_processes_share(tmp_path):
    "One of two paints while the other waits; what a killed one began is begun anew."
    paint = lambda stop: subprocess.Popen(
        [sys.executable, '-c', PAINTER, str(tmp_path), str(stop)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    killed = paint(3)
    assert killed.stdout.readline() == 'half\n'
    pair = [paint(0), paint(0)]  # they wait for their turn
    assert not list(tmp_path.glob('[!.]*.frames'))
    killed.kill()
    found = sorted(p.communicate(timeout=120)[0].split() for p in pair)
    killed.communicate()
    source = MovingDigits(64, size=16, length=32)
    every = torch.arange(32).expand(64, 1, 32)
    whole = source.clips(torch.arange(64), every)
    assert found == [[n, str(whole.long().sum().item())] for n in ('0', '4')]
    assert torch.equal(source.shared(tmp_path).clips(torch.arange(64), every), whole)


def test_a_run_on_shared_frames(tmp_path):
    "Bit for bit the run that painted for itself."
    run = Run('x', 'tec', pick_preset('tec', 'tiny', **SMALL))
    own, shared = (
        train(run, tmp_path / str(frames is None), 'cpu', quiet=True, frames=frames)
        for frames in (None, tmp_path)
    )
    torch.testing.assert_close(dict(own.tensors), dict(shared.tensors), rtol=0, atol=0)
    assert len(list(tmp_path.glob('*.frames'))) == 1


def test_shards_as_tarfile_reads_them(tmp_path):
    made = [
        (f'a.b/k{i}', {'json': b'{}', 'cls': b'3', 'mp4': bytes([i]) * (511 + i)}) for i in range(4)
    ]
    file = tmp_path / 'v.tar'
    write_shard(file, made)
    assert list(read_shard(file)) == made
    assert list(read_shard(file, 1, 3)) == made[1:3] and list(read_shard(file, 3)) == made[3:]
    with tarfile.open(file) as tar:
        theirs = [tar.extractfile(m).read() for m in tar]
    assert [v for _, members in read_shard(file) for v in members.values()] == theirs
    for spoilt in (file.read_bytes()[:1300], b'', b'no tar file' * 100):
        file.write_bytes(spoilt)
        with pytest.raises(InputError, match='again'):
            list(read_shard(file))


def test_features_in_any_number():
    "How many clips go through a network at once is nobody's business."
    videos, network = MovingDigits(30, size=16), backbone('tiny_fast').eval()
    clip = Clip(8, 1, 16)
    assert 'tiny_fast' in BACKBONES and clips_at_once(network, clip) == 64
    whole = features(network, clip, videos, n_clips=4)
    torch.testing.assert_close(whole[5:6], features(network, clip, videos.subset([5]), n_clips=4))
