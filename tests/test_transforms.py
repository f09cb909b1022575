"Promises of the transforms for any shape, seed and strength; torchvision is asked in the notebook."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrepro.clips.transforms import (
    adjust_color,
    center_crop,
    color_jitter,
    crop_boxes,
    gaussian_blur,
    horizontal_flip,
    normalize,
    random_grayscale,
    resize,
    resized_crop,
)
from vidrepro.core.files import InputError

repeat = settings(max_examples=25, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)
RANDOM = {
    'crop': lambda x, g: resized_crop(x, crop_boxes(x, g, scale=(0.1, 1.0)), (7, 9)),
    'flip': lambda x, g: horizontal_flip(x, g),
    'jitter': lambda x, g: color_jitter(x, g, hue=0.5),
    'grey': lambda x, g: random_grayscale(x, g, p=0.5),
    'blur': lambda x, g: gaussian_blur(x, g, kernel_size=5),
}
each = pytest.mark.parametrize('name', RANDOM)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def clips(draw, frames=None):
    "Clips with values of exactly 0 and 1 among them."
    b, h, w = draw(st.integers(1, 4)), draw(st.integers(4, 15)), draw(st.integers(4, 15))
    x = torch.rand(b, 3, frames or draw(st.integers(1, 4)), h, w, generator=seeded(draw(SEEDS)))
    return (x * 1.4 - 0.2).clamp(0, 1)


@each
@repeat
@given(x=clips(), seed=SEEDS)
def test_range_dtype_and_seed(name, x, seed):
    first, second = (RANDOM[name](x, seeded(seed)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == x.dtype and first.shape[:3] == x.shape[:3]
    assert first.min() >= 0 and first.max() <= 1


@each
@repeat
@given(x=clips(frames=1), seed=SEEDS)
def test_a_frozen_clip_stays_frozen(name, x, seed):
    out = RANDOM[name](x.expand(-1, -1, 3, -1, -1), seeded(seed))
    torch.testing.assert_close(out, out[:, :, :1].expand_as(out), atol=1e-6, rtol=0)


@each
@repeat
@given(x=clips(frames=2), seed=SEEDS)
def test_frames_do_not_leak_into_each_other(name, x, seed):
    "Apart from the clip's mean luma in contrast, a frame depends on itself only."

    def no_contrast(x, g):
        return color_jitter(x, g, contrast=0.0)

    transform = no_contrast if name == 'jitter' else RANDOM[name]
    other = x.clone()
    other[:, :, 1] = 0.5
    a, b = (transform(v, seeded(seed)) for v in (x, other))
    torch.testing.assert_close(a[:, :, 0], b[:, :, 0], atol=1e-6, rtol=0)


@each
@repeat
@given(x=clips(), seed=SEEDS)
def test_parameters_do_not_depend_on_pixels_or_other_clips(name, x, seed):
    "Equal clips at equal places of two batches come out equal, whatever else the batches hold."
    other = torch.cat([x[:1], torch.zeros_like(x[1:])])
    a, b = (RANDOM[name](v, seeded(seed))[0] for v in (x, other))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@each
def test_clips_of_a_batch_differ(name):
    x = torch.rand(1, 3, 2, 16, 16, generator=seeded(0)).expand(32, -1, -1, -1, -1)
    out = RANDOM[name](x, seeded(0))
    assert (out - out[:1]).abs().amax((1, 2, 3, 4)).count_nonzero() >= 8


@each
def test_bf16_keeps_its_type_and_value(name):
    x = torch.rand(8, 3, 2, 16, 16, generator=seeded(0))
    low, full = RANDOM[name](x.bfloat16(), seeded(1)), RANDOM[name](x.bfloat16().float(), seeded(1))
    assert low.dtype == torch.bfloat16
    assert (low.float() - full).abs().mean() < 0.01


@each
def test_gradient_reaches_every_clip(name):
    x = torch.rand(6, 3, 2, 12, 12, generator=seeded(0)).requires_grad_()
    (RANDOM[name](x, seeded(1)) ** 2).sum().backward()
    assert x.grad.isfinite().all() and (x.grad.abs().amax((1, 2, 3, 4)) > 0).all()


@each
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('generator', ['cpu', 'cuda'])
def test_on_the_gpu(name, generator):
    x = torch.rand(8, 3, 2, 16, 16, generator=seeded(0))
    out = RANDOM[name](x.cuda(), torch.Generator(generator).manual_seed(1))
    assert out.is_cuda
    if generator == 'cpu':  # then the draw, and so the result, is that of the CPU
        torch.testing.assert_close(out.cpu(), RANDOM[name](x, seeded(1)), atol=1e-5, rtol=0)


@repeat
@given(x=clips(), seed=SEEDS)
def test_probability_zero_is_identity(x, seed):
    for out in (
        horizontal_flip(x, seeded(seed), p=0.0),
        color_jitter(x, seeded(seed), hue=0.5, p=0.0),
        random_grayscale(x, seeded(seed), p=0.0),
        gaussian_blur(x, seeded(seed), p=0.0, kernel_size=3),
    ):
        assert torch.equal(out, x)


@repeat
@given(x=clips(), seed=SEEDS)
def test_boxes_lie_inside_the_frame(x, seed):
    boxes = crop_boxes(x, seeded(seed), scale=(0.01, 0.1), ratio=(0.1, 10.0))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(x.shape[3:])).all()


def test_box_of_last_resort_keeps_the_ratio():
    wide = torch.empty(5, 1, 1, 4, 400)  # no box of this share and ratio fits
    boxes = crop_boxes(wide, seeded(0), scale=(1.0, 1.0), ratio=(0.5, 2.0))
    assert boxes[:, 2:].tolist() == [[4, 8]] * 5


@repeat
@given(x=clips(), seed=SEEDS)
def test_crop_at_its_own_size_is_slicing(x, seed):
    box = crop_boxes(x[:1], seeded(seed))
    top, left, height, width = box[0].tolist()
    out = resized_crop(x, box.expand(len(x), 4), (height, width))
    torch.testing.assert_close(
        out, x[..., top : top + height, left : left + width], atol=1e-6, rtol=0
    )


@repeat
@given(x=clips(), seed=SEEDS)
def test_pixels_outside_the_box_have_no_say(x, seed):
    boxes = crop_boxes(x, seeded(seed), scale=(0.1, 0.6))
    masked = torch.zeros_like(x)
    for clip, hidden, (top, left, height, width) in zip(x, masked, boxes.tolist(), strict=True):
        inside = (..., slice(top, top + height), slice(left, left + width))
        hidden[inside] = clip[inside]
    a, b = (resized_crop(v, boxes, (5, 6)) for v in (x, masked))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@repeat
@given(x=clips(), height=st.integers(1, 20), width=st.integers(1, 20))
def test_resize_keeps_constants_and_means(x, height, width):
    flat = torch.full_like(x, 0.37)
    torch.testing.assert_close(
        resize(flat, (height, width)), torch.full((*x.shape[:3], height, width), 0.37)
    )
    mirrored = resize(x.flip(4), (height, width)).flip(4)
    torch.testing.assert_close(mirrored, resize(x, (height, width)), atol=1e-5, rtol=0)


@repeat
@given(x=clips(), seed=SEEDS)
def test_flip_twice_is_nothing(x, seed):
    assert torch.equal(horizontal_flip(horizontal_flip(x, seeded(seed)), seeded(seed)), x)
    assert torch.equal(horizontal_flip(x, seeded(seed), p=1.0)[..., 0], x[..., -1])


@repeat
@given(x=clips(), turn=st.floats(-0.5, 0.5))
def test_hue_keeps_brightest_and_darkest_and_turns_back(x, turn):
    turn = torch.full((len(x),), turn)
    out = adjust_color(x, hue=turn)
    torch.testing.assert_close(out.amax(1), x.amax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.amin(1), x.amin(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(adjust_color(out, hue=-turn), x, atol=1e-4, rtol=0)


@repeat
@given(x=clips())
def test_normalize_is_undone(x):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    back = (
        normalize(x, mean, std) * torch.tensor(std)[:, None, None, None]
        + torch.tensor(mean)[:, None, None, None]
    )
    torch.testing.assert_close(back, x, atol=1e-6, rtol=0)


X = torch.rand(2, 3, 2, 8, 8)


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda: center_crop(X, (9, 8)), ['size', '(9, 8)', 'resize first']),
        (lambda: resize(X, (0, 8)), ['size', '(0, 8)', 'at least 1']),
        (lambda: horizontal_flip(X, seeded(0), p=1.5), ['p: got 1.5']),
        (lambda: gaussian_blur(X, seeded(0), kernel_size=4), ['kernel_size: got 4', 'odd']),
        (lambda: gaussian_blur(X, seeded(0), kernel_size=17), ['kernel_size: got 17', '8 x 8']),
        (lambda: gaussian_blur(X, seeded(0), sigma=(0.0, 1.0)), ['sigma', 'above 0']),
        (lambda: gaussian_blur(X, seeded(0), sigma=(2.0, 1.0)), ['sigma', 'smallest first']),
        (lambda: color_jitter(X, seeded(0), hue=0.6), ['hue: got 0.6']),
        (lambda: color_jitter(X, seeded(0), contrast=-0.1), ['contrast: got -0.1', '0 or more']),
        (lambda: crop_boxes(X, seeded(0), scale=(0.0, 1.0)), ['scale', 'above 0']),
        (lambda: crop_boxes(X, seeded(0), scale=(0.5, 1.1)), ['scale', 'to 1']),
        (lambda: crop_boxes(X, seeded(0), ratio=(2.0, 1.0)), ['ratio', 'smallest first']),
        (lambda: normalize(X, (0.5,), (0.5,)), ['mean and std', '3 channels']),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError) as error:
        call()
    assert all(w in str(error.value) for w in words), str(error.value)
