"TV-L1: oracles from other libraries, real frames, faults, properties that a page does not show."

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config

from vidrepro.core.files import InputError
from vidrepro.data.video import probe, read_clips
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.motion.flow import (
    BOUND,
    FAST,
    FLOWS,
    TVL1,
    _median,
    _median_planes,
    _resize,
    _warp,
    dequantize,
    difference,
    flow,
    gray_levels,
    quantize,
    tvl1,
)


@pytest.fixture
def untyped():
    "As users call it: shapes in types are checked in the tests only."
    config.update('jaxtyping_disable', True)
    yield
    config.update('jaxtyping_disable', False)


@pytest.fixture(scope='module')
def pairs():
    "Two frames of eight Moving Digits, grey, and the true flow."
    source, index, frames = (
        MovingDigits(8, size=64),
        torch.arange(8),
        torch.tensor([40, 41]).expand(8, 1, 2),
    )
    grey = gray_levels(source.clips(index, frames)[:, 0])
    return grey[:, 0], grey[:, 1], source.truth(index, frames).flow[:, 0, :, 0]


def inside(error, margin):
    return error[..., margin:-margin, margin:-margin].mean().item()


def end_point(x, y):
    return (x - y).norm(dim=1)


def opencv(a, b):
    "OpenCV's own TV-L1 with its defaults, where the contrib build is installed."
    if not hasattr(cv2, 'optflow'):
        pytest.skip('this OpenCV has no TV-L1: only its contrib build does')
    solver = cv2.optflow.DualTVL1OpticalFlow_create()
    images = [x.byte().numpy() for x in (a, b)]
    return torch.from_numpy(np.stack([solver.calc(x, y, None) for x, y in zip(*images)])).permute(
        0, 3, 1, 2
    )


def test_opencv(pairs):
    a, b, truth = pairs
    theirs, ours = opencv(a, b), tvl1(a, b)
    assert inside(end_point(ours, theirs), 6) < 0.15
    assert inside(end_point(ours, truth), 6) < 1.05 * inside(end_point(theirs, truth), 6)


def real_pairs(data_dir, count, size):
    files = sorted(
        p
        for p in data_dir.rglob('*')
        if p.suffix in ('.avi', '.mp4', '.webm') and 'odd' not in p.parts
    )
    clips = []
    for file in files[:: max(1, len(files) // count)][:count]:
        middle = probe(file).frames // 2
        clips.append(read_clips(file, np.array([[middle, middle + 1]]), size)[0])
    return torch.stack(clips)


def test_opencv_on_real_frames(data_dir):
    grey = gray_levels(real_pairs(data_dir, 8, (112, 112)))
    gap = end_point(tvl1(grey[:, 0], grey[:, 1]), opencv(grey[:, 0], grey[:, 1]))
    print(f'end-point difference to OpenCV: {inside(gap, 8):.4f} pixels')
    assert inside(gap, 8) < 0.15


def test_real_frames_are_explained(data_dir):
    "Fetched along the flow, the second frame is the first, far better than unmoved."
    grey = gray_levels(real_pairs(data_dir, 6, (112, 112)))
    a, b = grey[:, 0], grey[:, 1]
    u = tvl1(a, b)
    warped = _warp(b[:, None].contiguous(), u.transpose(0, 1).contiguous())[:, 0]
    assert inside((warped - a).abs(), 8) < 0.6 * inside((b - a).abs(), 8)


def test_skimage(pairs):
    "Another implementation of the same energy; its pyramid and stopping rule differ, so only the bulk agrees."
    registration = pytest.importorskip(
        'skimage.registration', reason='scikit-image is not installed'
    )
    a, b, _ = pairs
    ours, theirs = tvl1(a, b), []
    for x, y in zip(a.numpy() / 255, b.numpy() / 255):
        v, u = registration.optical_flow_tvl1(x, y, attachment=0.15 * 255, tightness=0.3)
        theirs.append(torch.from_numpy(np.stack([u, v])))
    gap = end_point(ours, torch.stack(theirs))[:, 6:-6, 6:-6]
    assert gap.median() < 0.3


def test_pairs_do_not_mix(pairs):
    "The flow of a pair does not depend on the batch it is solved in, nor on its place there."
    a, b, _ = pairs
    order = torch.tensor([5, 2, 7])
    assert end_point(tvl1(a, b, **FAST)[order], tvl1(a[order], b[order], **FAST)).max() < 1e-3
    together, alone = tvl1(a[:3], b[:3], scales=2), tvl1(a[1:2], b[1:2], scales=2)
    assert end_point(together[1:2], alone).mean() < 1e-3


def test_double_agrees_with_single(pairs):
    a, b, _ = pairs
    single, double = tvl1(a[:2], b[:2], **FAST), tvl1(a[:2].double(), b[:2].double(), **FAST)
    assert double.dtype == torch.float64
    assert (single - double).abs().mean() < 1e-3


def test_energy_falls():
    "More iterations, less energy: Eq. (1) of the linear problem, in double precision, without median filter."
    smooth = lambda n: F.avg_pool2d(
        255 * torch.rand(1, 1, n, n, generator=torch.Generator().manual_seed(0)).double(), 7, 1
    )[0]
    image = smooth(46)
    a, b = image[:, :, :-1].contiguous(), image[:, :, 1:].contiguous()

    def energy(iterations):
        u = tvl1(a, b, scales=1, warps=1, inner=iterations, outer=1, median=1, epsilon=0.0)[0]
        stack = F.pad(b[:, None], (1, 1, 1, 1), mode='replicate')[0, 0]
        gx, gy = (stack[1:-1, 2:] - stack[1:-1, :-2]) / 2, (stack[2:, 1:-1] - stack[:-2, 1:-1]) / 2
        dx, dy = (F.pad(u.diff(dim=2), (0, 1)), F.pad(u.diff(dim=1), (0, 0, 0, 1)))
        return (
            (dx.square() + dy.square()).sqrt().sum()
            + 0.15 * (b[0] - a[0] + gx * u[0] + gy * u[1]).abs().sum()
        ).item()

    energies = [energy(n) for n in (1, 5, 20, 60, 150, 400)]
    assert all(later < before for before, later in zip(energies, energies[1:])), energies


@given(
    side=st.sampled_from([3, 5]),
    m=st.integers(1, 3),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_median(side, m, h, w, seed):
    planes = torch.randn(m, h, w, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(_median(planes, side), _median_planes(planes, side))


@given(n=st.integers(1, 40), m=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_resize_keeps_range(n, m):
    image = torch.rand(1, n, 3, generator=torch.Generator().manual_seed(n))
    out = _resize(image, (m, 3))
    assert (
        out.shape == (1, m, 3)
        and image.min() - 1e-5 <= out.min()
        and out.max() <= image.max() + 1e-5
    )


def test_resize_is_opencvs():
    image = 255 * torch.rand(1, 57, 91)
    theirs = cv2.resize(image[0].numpy(), None, fx=0.8, fy=0.8, interpolation=cv2.INTER_LINEAR)
    ours = _resize(image, theirs.shape, 1.25)[0].numpy()
    assert np.abs(ours - theirs).max() < 0.01


@pytest.mark.parametrize('shape', [(1, 2, 2), (2, 1, 9), (1, 5, 40), (3, 16, 16)])
def test_small_images(shape):
    a = 255 * torch.rand(shape)
    assert tvl1(a, a.flip(-1), warps=2, outer=1).isfinite().all()


@pytest.mark.parametrize(
    'name, value',
    [
        ('tau', 0),
        ('lambda_', -1.0),
        ('theta', 0),
        ('scales', 0),
        ('step', 1.0),
        ('warps', 0),
        ('epsilon', -0.1),
        ('inner', 0),
        ('outer', 0),
        ('median', 4),
    ],
)
def test_settings(name, value):
    with pytest.raises(InputError, match=name):
        TVL1(**{name: value})


def test_faults():
    clips = torch.zeros(1, 3, 3, 16, 16, dtype=torch.uint8)
    for change, words in (
        ({'method': 'raft'}, 'choose from tvl1'),
        ({'method': 'dis', 'tau': 0.1}, 'has none'),
        ({'lamda': 0.1}, 'fields of TVL1'),
    ):
        with pytest.raises(InputError, match=words):
            flow(clips, **change)
    with pytest.raises(InputError, match='2 channels'):
        flow(clips[:, :2])
    with pytest.raises(InputError, match='1 frames'):
        flow(clips[:, :, :1])
    with pytest.raises(InputError, match='floats in'):
        flow(clips.float() + math.nan)
    with pytest.raises(InputError, match='12 pixels'):
        flow(clips[..., :8], 'dis')


@pytest.mark.parametrize('method', FLOWS)
@pytest.mark.parametrize(
    'shape, dtype, words',
    [
        ((0, 16, 16), torch.float32, 'an empty batch'),
        ((2, 0, 16), torch.float32, 'an empty batch'),
        ((16, 16), torch.float32, '2 axes .16, 16.; give a batch'),
        ((1, 1, 16, 16), torch.float32, '4 axes'),
        ((2, 16, 16), torch.uint8, 'torch.uint8; give floats'),
        ((2, 16, 16), torch.int64, 'torch.int64; give floats'),
    ],
)
def test_no_pairs(untyped, method, shape, dtype, words):
    "Every method says what is wrong with its images, in one line."
    with pytest.raises(InputError, match=words) as e:
        FLOWS[method](torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
    assert '\n' not in str(e.value)
    good = torch.zeros(2, 16, 16)
    with pytest.raises(InputError, match='give one shape'):
        FLOWS[method](good, good[:1])


@pytest.mark.parametrize(
    'shape, dtype, words',
    [
        ((0, 3, 4, 16, 16), torch.uint8, 'an empty batch'),
        ((1, 3, 4, 0, 16), torch.float32, 'an empty batch'),
        ((16, 16), torch.uint8, '2 axes'),
        ((3, 4, 16, 16), torch.float32, '4 axes .3, 4, 16, 16.; give a batch with axes b c t h w'),
        ((1, 3, 4, 16, 16), torch.int64, 'torch.int64; give bytes'),
        ((1, 4, 3, 16, 16), torch.uint8, '4 channels'),
    ],
)
def test_no_clips(untyped, shape, dtype, words):
    for way in (flow, gray_levels):
        with pytest.raises(InputError, match=words):
            way(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize('method', FLOWS)
def test_substitutes(method, pairs):
    "One shape, one sign: a picture that moves right has a positive first component (the difference has no direction)."
    a, b, _ = pairs
    found = FLOWS[method](a[:2], b[:2])
    assert found.shape == (2, 2, 64, 64) and found.dtype == torch.float32
    image = F.avg_pool2d(
        255 * torch.rand(1, 1, 76, 76, generator=torch.Generator().manual_seed(1)), 9, 1
    )[0]
    image = (image - image.mean()) * 4 + 128
    moved = FLOWS[method](image[:, :, 2:66].contiguous(), image[:, :, :64].contiguous())
    if method == 'difference':
        assert torch.allclose(moved[:, 0], (image[:, :, :64] - image[:, :, 2:66]) * 20 / 255)
    else:
        assert (moved[0, 0, 10:-10, 10:-10].mean() - 2).abs() < 0.2


def test_difference_is_signed(pairs):
    a, b, _ = pairs
    assert torch.equal(difference(a, b), -difference(b, a))


@given(size=st.floats(0.1, 100), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_quantize(size, seed):
    found = size * torch.randn(50, generator=torch.Generator().manual_seed(seed))
    back = dequantize(quantize(found))
    assert (back - found.clamp(-BOUND, BOUND)).abs().max() <= BOUND / 255 + 1e-5


def test_cache(tmp_path):
    clips = MovingDigits(2, size=24).clips(torch.arange(2), torch.arange(3).expand(2, 1, 3))[:, 0]
    first = flow(clips, cache=tmp_path / 'new', **FAST)
    files = sorted((tmp_path / 'new').iterdir())
    stamps = [f.stat().st_mtime_ns for f in files]
    assert torch.equal(flow(clips, cache=tmp_path / 'new', **FAST), first)
    assert [f.stat().st_mtime_ns for f in sorted((tmp_path / 'new').iterdir())] == stamps
    flow(clips, cache=tmp_path / 'new', **FAST | {'tau': 0.2})
    changed = clips.clone()
    changed[0, 0, 0, 0, 0] += 1
    flow(changed, cache=tmp_path / 'new', **FAST)
    assert len(list((tmp_path / 'new').iterdir())) == 5  # two settings, one new clip
    files[0].write_bytes(files[0].read_bytes()[:50])
    with pytest.raises(InputError, match='delete it'):
        flow(clips, cache=tmp_path / 'new', **FAST)
