"What the notebook of Moving Digits cannot say: many sizes and settings, files on disk, faults."

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrepro.core.files import InputError
from vidrepro.data.datasets import from_folder
from vidrepro.data.video import read_clips
from vidrepro.digits import moving_digits as md
from vidrepro.digits.moving_digits import MIRRORED, MOTIONS, REVERSED, MovingDigits, write_videos


def asked(b, n, t, length=128, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(length, (b, n, t), generator=g)


@settings(max_examples=12, deadline=None)
@given(
    size=st.sampled_from([8, 17, 32, 50, 64, 112]),
    split=st.sampled_from(['train', 'test']),
    seed=st.integers(-5, 10**6),
    distractors=st.integers(0, 4),
    motions=st.sets(st.sampled_from(MOTIONS), min_size=1),
    data=st.data(),
)
def test_same_bytes_alone_and_in_a_batch(size, split, seed, distractors, motions, data):
    source = MovingDigits(
        50, size, seed=seed, split=split, distractors=distractors, motions=tuple(sorted(motions))
    )
    index, frames = (
        torch.tensor(data.draw(st.lists(st.integers(0, 49), min_size=1, max_size=9))),
        asked(9, 2, 3),
    )
    batch = source.clips(index, frames[: len(index)])
    assert batch.dtype == torch.uint8 and batch.shape == (len(index), 2, 3, 3, size, size)
    k = data.draw(st.integers(0, len(index) - 1))
    alone = source.clips(index[[k]], frames[k : k + 1, 1:, 2:])
    assert torch.equal(alone[0, 0, :, 0], batch[k, 1, :, 2])
    again = MovingDigits(
        50, size, seed=seed, split=split, distractors=distractors, motions=tuple(sorted(motions))
    )
    assert torch.equal(again.clips(index, frames[: len(index)]), batch)


def test_two_threads_give_the_same_bytes():
    source, index, frames = MovingDigits(64), torch.arange(64), asked(64, 1, 8)
    one = source.clips(index, frames)
    torch.set_num_threads(2)
    try:
        assert torch.equal(source.clips(index, frames), one)
    finally:
        torch.set_num_threads(1)


def test_seeds_and_splits_differ():
    index, frames = torch.arange(12), asked(12, 1, 1)
    seen = {
        MovingDigits(12, seed=s, split=p).clips(index, frames).numpy().tobytes()
        for s in (0, 1, 2)
        for p in ('train', 'test')
    }
    assert len(seen) == 6


def test_splits_share_no_pixels():
    from sklearn.datasets import load_sample_images

    whole = torch.stack([torch.tensor(p) for p in load_sample_images().images]).permute(0, 3, 1, 2)
    for split, columns in (('train', slice(0, 384)), ('test', slice(384, 640))):
        photo = md._photos(96, split) - 0.5
        torch.testing.assert_close(photo, 0.6 * torch.cat([*whole[:, :, :, columns]], 1)[None])


def test_labels_do_not_depend_on_the_order_of_subset():
    source = MovingDigits(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    part = source.subset(order).subset(torch.arange(10))
    for name in ('labels', 'sprites', 'speeds', 'groups', 'lengths'):
        assert torch.equal(getattr(part, name), getattr(source, name)[order[:10]]), name
    assert len(part) == 10 and part.bad == [] and len(part.classes) == 12


def test_sprite_label_is_independent_of_the_motion():
    source = MovingDigits(6000)
    table = torch.zeros(12, 10).index_put_(
        (source.labels, source.sprites), torch.ones(6000), accumulate=True
    )
    expected = table.sum(1, keepdim=True) * table.sum(0) / 6000
    assert ((table - expected) ** 2 / expected).sum() < 99 + 4 * (
        2 * 99
    ) ** 0.5  # chi-square, 99 degrees of freedom


@pytest.mark.parametrize('motion', MOTIONS)
def test_reverse_and_mirror_of_the_pictures(motion):
    "Without friction, playing backwards or mirroring turns a trajectory into one of the named class."

    def trait(name, flip=False):
        p = MovingDigits(40, motions=(name,), friction=0.0).pose(
            torch.arange(40), torch.arange(3).expand(40, 1, 3)
        )
        x = torch.stack([p.centre.real, p.centre.imag, p.angle, p.side.log()])[:, :, 0]
        if flip:
            x[[0, 2]] *= -1
        step, turn = x.diff(dim=-1), None
        turn = (
            step[0, :, 0] * step[1, :, 1] - step[1, :, 0] * step[0, :, 1]
        )  # which way a path bends
        smooth = torch.cat([step[..., 0], turn[None]]).median(1).values
        return torch.where(smooth.abs() > 1e-6, smooth, 0).sign()

    if motion.startswith('bounce'):
        assert REVERSED[motion] == MIRRORED[motion] == motion
        return
    keep = [4] if motion.startswith('orbit') else [0, 1, 2, 3]
    assert (trait(motion)[keep] == -trait(REVERSED[motion])[keep]).all() and trait(motion)[
        keep
    ].any()
    mirrored = trait(motion, flip=True) * torch.tensor([1, 1, 1, 1, 1])
    assert (mirrored[keep] == trait(MIRRORED[motion])[keep]).all()


@pytest.mark.parametrize('step', [1, 4, -2])
def test_flow_follows_points(step):
    "A point glued to the glyph, followed by hand through both poses."
    source, index, frames = MovingDigits(48, size=40), torch.arange(48), torch.full((48, 1, 1), 60)
    truth = source.truth(index, frames, step)
    now, then = source.pose(index, frames), source.pose(index, frames + step)
    for i in range(48):
        y, x = (truth.opacity[i, 0, 0] == truth.opacity[i, 0, 0].max()).nonzero()[0].tolist()
        offset = complex(x + 0.5, y + 0.5) / 40 - now.centre[i].item()
        offset -= complex(round(offset.real), round(offset.imag))  # nearest copy on the torus
        turned = (
            offset
            * (then.side / now.side)[i].item()
            * torch.exp(1j * (then.angle - now.angle)[i]).item()
        )
        moved = 40 * (then.centre[i].item() + turned - now.centre[i].item() - offset)
        flow = truth.flow[i, 0, :, 0, y, x]
        assert abs(moved - complex(*flow.tolist())) < 1e-3
    rest = truth.flow[:, 0, :, 0] + truth.camera[:, 0, :, 0, None, None]
    assert rest.abs().amax(1)[~truth.mask[:, 0, 0]].max() < 1e-4
    assert truth.camera.abs().max() <= 40 * 0.015 * abs(step) + 1e-4


def test_subset_on_disk_is_read_back(tmp_path):
    source = MovingDigits(24, size=33, length=20, motions=('left', 'grow', 'cw')).subset([5, 0, 1])
    paths = write_videos(source, tmp_path)
    folder = from_folder(tmp_path, classes=['left', 'grow', 'cw'])
    assert (
        sorted(folder.labels.tolist()) == sorted(source.labels.tolist())
        and folder.lengths.tolist() == [20] * 3
    )
    for i, path in enumerate(paths):
        frames = torch.tensor([[3, 19, 0]])
        read, painted = (
            read_clips(path, frames)[0],
            source.clips(torch.tensor([i]), frames[None])[0, 0],
        )
        assert (read.float() - painted.float()).abs().mean() < 1.5


def test_source_is_small_in_a_run_card():
    import json

    card = json.dumps(MovingDigits(100_000).subset(range(0, 100_000, 2)).describe())
    assert len(card) < 1000 and json.loads(card)['videos'] == 50_000


@pytest.mark.parametrize(
    'wrong',
    [
        dict(n=0),
        dict(size=4),
        dict(length=0),
        dict(split='val'),
        dict(friction=-0.1),
        dict(pan=-1.0),
        dict(period=0.0),
        dict(motions=()),
        dict(motions=('left', 'fly')),
        dict(still=1.5),
        dict(distractors=-1),
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        MovingDigits(**wrong)


@pytest.mark.parametrize(
    'index, frame, name',
    [(10, 0, 'index'), (-1, 0, 'index'), (0, 128, 'frames'), (0, -1, 'frames')],
)
def test_what_is_not_there_is_refused(index, frame, name):
    for ask in (MovingDigits(10).clips, MovingDigits(10).truth, MovingDigits(10).pose):
        with pytest.raises(InputError, match=name):
            ask(torch.tensor([index]), torch.tensor([[[frame]]]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('size', [32, 112])
def test_gpu_paints_the_same(size):
    source, index, frames = MovingDigits(48, size=size), torch.arange(48), asked(48, 1, 4)
    here, there = source.clips(index, frames), source.clips(index, frames, 'cuda').cpu()
    assert (here.int() - there.int()).abs().max() <= 1
    assert source.truth(index, frames, device='cuda').flow.is_cuda


WITHOUT = """
import sys, importlib, pkgutil
sys.modules |= dict.fromkeys(('av', 'cv2', 'h5py'))
import vidrepro
def load(rooms):
    for room in rooms.split():
        for m in pkgutil.iter_modules(importlib.import_module(f'vidrepro.{room}').__path__):
            importlib.import_module(f'vidrepro.{room}.{m.name}')
slow = {'matplotlib', 'seaborn', 'sklearn.manifold'}
load('digits clips motion')
early = {'torchvision', 'torch._dynamo'} & {*sys.modules}
load('models learning evaluation explain papers')
import torch
from vidrepro.digits.moving_digits import MovingDigits
x = MovingDigits(24).clips(torch.arange(24), torch.arange(4).expand(24, 1, 4))
print(tuple(x.shape), sorted(early | slow & {*sys.modules}))
"""


def test_painting_and_scoring_need_no_decoder():
    "Nor does importing them load what only pictures, files and other people's networks need."
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '(24, 1, 3, 4, 32, 32) []'
