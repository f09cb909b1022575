"Promises of the samplers for any lengths, speeds and generators; the notebook checks chosen cases."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrepro.clips.sampling import random_clips, shift_range, tec_labels, tec_tuples, uniform_clips
from vidrepro.core.files import InputError

repeat = settings(max_examples=60, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def tec_settings(draw):
    "Arguments of `tec_tuples` that it must accept."
    speeds = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True)))
    n_frames, group = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    shortest = n_frames * min(speeds)
    some = st.lists(st.integers(shortest, shortest + 150), min_size=group, max_size=4 * group)
    lengths = draw(some.filter(lambda v: len(v) % group == 0))
    step = draw(st.none() | st.integers(1, 9))
    keywords = {'speeds': speeds, 'group': group, 'shift_step': step}
    return torch.tensor(lengths), n_frames, keywords


@repeat
@given(tec_settings(), SEEDS)
def test_tuples_are_consistent(arguments, seed):
    lengths, n_frames, keywords = arguments
    tuples = tec_tuples(lengths, n_frames, seeded(seed), **keywords)
    rate = torch.tensor(keywords['speeds'])[tuples.speed]
    assert tuples.frames.shape == (len(lengths), 2, n_frames)
    assert (tuples.frames >= 0).all() and (tuples.frames < lengths[:, None, None]).all()
    assert (tuples.start + n_frames * rate <= lengths[:, None]).all()  # the whole span fits
    assert torch.equal(tuples.frames.amin(2), tuples.start)
    assert torch.equal(tuples.start[:, 1] - tuples.start[:, 0], tuples.shift)
    assert (tuples.shift % (keywords['shift_step'] or max(1, n_frames // 2)) == 0).all()
    p, q = ((tuples.start[:, i], rate[:, i]) for i in (0, 1))
    assert torch.equal(tec_labels(*p, *q, n_frames), tuples.order)
    signed = rate * (1 - 2 * tuples.direction)
    assert (tuples.frames.diff(dim=2) == signed[..., None]).all()


@repeat
@given(tec_settings(), SEEDS)
def test_group_shares_the_relative_transformation(arguments, seed):
    lengths, n_frames, keywords = arguments
    tuples = tec_tuples(lengths, n_frames, seeded(seed), **keywords)
    theta, group = tuples.relative(), keywords['group']
    assert tuples.group.tolist() == [i // group for i in range(len(lengths))]
    assert torch.equal(theta, theta[::group].repeat_interleave(group, 0))
    assert torch.equal(tuples.order, tuples.order[::group].repeat_interleave(group))
    assert torch.equal(theta[:, 0, [1, 0, 3, 2]], theta[:, 1, :4])
    assert torch.equal(theta[:, 0, 4], -theta[:, 1, 4])


@repeat
@given(tec_settings(), SEEDS)
def test_equal_generators_give_equal_tuples(arguments, seed):
    lengths, n_frames, keywords = arguments
    first, second = (tec_tuples(lengths, n_frames, seeded(seed), **keywords) for _ in range(2))
    assert all(torch.equal(v, getattr(second, k)) for k, v in vars(first).items())


@repeat
@given(
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(0, 150),
)
def test_some_class_is_always_feasible(n_frames, speed_p, speed_q, step, extra):
    span_p, span_q = n_frames * speed_p, n_frames * speed_q
    length = max(span_p, span_q) + extra
    low, high = shift_range(*map(torch.tensor, (span_p, span_q, length)), step)
    assert low[2] <= 0 <= high[2]
    if step == 1:
        assert (low <= high)[:2].tolist() == [span_p + span_q <= length] * 2


@repeat
@given(*[st.integers(0, 30), st.integers(1, 8)] * 2, st.integers(1, 9))
def test_labels_are_antisymmetric(start_p, speed_p, start_q, speed_q, n_frames):
    p, q = (tuple(map(torch.tensor, v)) for v in ((start_p, speed_p), (start_q, speed_q)))
    there, back = int(tec_labels(*p, *q, n_frames)), int(tec_labels(*q, *p, n_frames))
    assert back == {0: 1, 1: 0, 2: 2}[there]


@pytest.mark.parametrize(
    'length, n_frames, speeds', [(128, 8, (1, 2, 4, 8)), (256, 16, (1, 2, 4, 8)), (64, 8, (4,))]
)
def test_orders_and_speeds_are_uniform_where_all_fit(length, n_frames, speeds):
    n = 9000
    tuples = tec_tuples(torch.full((n,), length), n_frames, seeded(0), speeds=speeds, group=1)
    pairs = tuples.speed[:, 0] * len(speeds) + tuples.speed[:, 1]
    for values, k in ((tuples.order, 3), (pairs, len(speeds) ** 2), (tuples.direction[:, 0], 2)):
        counts = torch.bincount(values, minlength=k)
        assert len(counts) == k
        assert (counts - n / k).abs().max() < 5 * (n / k * (1 - 1 / k)) ** 0.5 + 1e-9


def test_shift_is_uniform_within_its_class():
    tuples = tec_tuples(torch.full((9000,), 24), 4, seeded(0), speeds=(2,), group=1, shift_step=1)
    for order, shifts in ((0, range(8, 17)), (1, range(-16, -7)), (2, range(-7, 8))):
        counts = [int((tuples.shift[tuples.order == order] == s).sum()) for s in shifts]
        n, k = int((tuples.order == order).sum()), len(shifts)
        assert sum(counts) == n
        assert max(abs(c - n / k) for c in counts) < 5 * (n / k) ** 0.5


@repeat
@given(
    st.lists(st.integers(1, 80), min_size=1, max_size=5),
    st.integers(1, 16),
    st.integers(1, 6),
    st.integers(1, 5),
    SEEDS,
)
def test_clips_stay_inside_their_video(lengths, n_frames, stride, n_clips, seed):
    lengths = torch.tensor(lengths)
    drawn = random_clips(lengths, n_frames, stride, n_clips, seeded(seed))
    spread = uniform_clips(lengths, n_frames, stride, n_clips)
    assert torch.equal(drawn, random_clips(lengths, n_frames, stride, n_clips, seeded(seed)))
    for frames in (drawn, spread):
        assert frames.shape == (len(lengths), n_clips, n_frames)
        assert (frames >= 0).all() and (frames < lengths[:, None, None]).all()
        held = frames[..., :-1] == lengths[:, None, None] - 1
        assert (
            (frames.diff(dim=2) == stride) | held | (frames[..., 1:] == lengths[:, None, None] - 1)
        ).all()
    extent = (n_frames - 1) * stride + 1
    whole = spread[lengths >= extent]
    assert (whole.diff(dim=2) == stride).all() and (
        drawn[lengths >= extent].diff(dim=2) == stride
    ).all()
    if n_clips > 1:  # first and last clip reach the ends
        assert (spread[:, 0, 0] == 0).all()
        assert (whole[:, -1, -1] == lengths[lengths >= extent] - 1).all()


@pytest.mark.parametrize(
    'lengths, keywords, words',
    [
        ([40, 15], {}, ['lengths[1]', '15 frames', 'at least 16']),
        ([40, 31], {'speeds': (4, 2)}, ['lengths[1]', '31 frames', 'at least 32']),
        ([40, 40, 40], {}, ['lengths', '3 videos', 'group=2']),
        ([40, 40], {'group': 0}, ['group=0']),
        ([40, 40], {'speeds': ()}, ['speeds', 'positive']),
        ([40, 40], {'speeds': (0, 1)}, ['speeds', 'positive']),
        ([40, 40], {'shift_step': 0}, ['shift_step', 'positive']),
    ],
)
def test_bad_input_is_named(lengths, keywords, words):
    with pytest.raises(InputError) as error:
        tec_tuples(torch.tensor(lengths), 16, seeded(0), **keywords)
    assert all(w in str(error.value) for w in words), str(error.value)


@pytest.mark.parametrize(
    'call',
    [
        lambda lengths: uniform_clips(lengths, 8, 1, 2),
        lambda lengths: random_clips(lengths, 8, 1, 2, seeded(0)),
    ],
)
def test_empty_video_is_named(call):
    with pytest.raises(InputError, match=r'lengths\[2\]: got 0 frames'):
        call(torch.tensor([5, 6, 0]))


@pytest.mark.parametrize('n_frames, stride, n_clips', [(0, 1, 1), (8, 0, 1), (8, 1, 0)])
def test_numbers_below_one_are_refused(n_frames, stride, n_clips):
    with pytest.raises(InputError, match='positive'):
        uniform_clips(torch.tensor([20]), n_frames, stride, n_clips)
    with pytest.raises(InputError, match='positive'):
        random_clips(torch.tensor([20]), n_frames, stride, n_clips, seeded(0))
