"Motion maps: invariances under cameras and mirrors, long films, files."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrepro.core.files import InputError
from vidrepro.data.video import iter_frames, probe
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.motion.flow import BOUND, FAST, dequantize, flow
from vidrepro.motion.maps import (
    draw_flow,
    draw_map,
    iter_flow,
    motion_boundary,
    motion_map,
    write_flow,
)

READINGS = 'paper', 'official'
ROW, COLUMN = torch.meshgrid(torch.arange(20.0), torch.arange(26.0), indexing='ij')


def linear(matrix, shift):
    return torch.stack([m[0] * COLUMN + m[1] * ROW + s for m, s in zip(matrix, shift)])[
        None, :, None
    ]


@pytest.mark.parametrize('reading', READINGS)
@given(numbers=st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6))
@settings(max_examples=40, deadline=None)
def test_linear_flow(reading, numbers):
    "A linear flow has the same boundary everywhere, and the shift has no say."
    a, b, c, d, *shift = numbers
    found = motion_boundary(linear([(a, b), (c, d)], shift), reading)[0, 0, 1:-1, 1:-1]
    lengths = np.hypot(a, b), np.hypot(c, d)
    expected = np.hypot(*lengths) if reading == 'paper' else 6 * sum(lengths)  # Prewitt's gain is 6
    assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize('reading', READINGS)
def test_mirror_and_reverse(reading):
    "A mirrored film has the mirrored map, a negative flow the same map, twice the flow twice the map."
    field = torch.randn(2, 2, 6, 16, 18)
    mirrored = field.flip(-1) * torch.tensor([-1.0, 1.0])[:, None, None, None]
    found = motion_map(field, (3, 4, 6), reading)
    assert torch.allclose(motion_map(mirrored, (3, 4, 6), reading), found.flip(-1), atol=1e-5)
    assert torch.allclose(motion_map(-field, (3, 4, 6), reading), found)
    assert torch.allclose(motion_map(2 * field, (3, 4, 6), reading), 2 * found, rtol=1e-4)


@pytest.mark.parametrize('reading', READINGS)
def test_full_size_is_the_boundary(reading):
    field = torch.randn(2, 2, 4, 9, 8)
    assert torch.allclose(motion_map(field, (4, 9, 8), reading), motion_boundary(field, reading))


def test_official_is_at_most_the_sum_of_its_parts():
    "A mean before the magnitude is never above the mean after it."
    field = torch.randn(3, 2, 8, 12, 12)
    late = motion_map(field, (1, 3, 3), 'official')
    early = motion_boundary(field, 'official').mean(1, keepdim=True)
    assert (late <= torch.nn.functional.adaptive_avg_pool2d(early, 3) + 1e-5).all()
    steady = field[:, :, :1].expand(-1, -1, 8, -1, -1)
    assert torch.allclose(
        motion_map(steady, (2, 3, 3), 'official'),
        motion_map(steady[:, :, :2], (2, 3, 3), 'official'),
        atol=1e-5,
    )


@pytest.mark.parametrize('size', [(0, 3, 3), (5, 3, 3), (2, 99, 3)])
def test_size(size):
    with pytest.raises(InputError, match='cells'):
        motion_map(torch.zeros(1, 2, 4, 8, 8), size)


def test_reading():
    with pytest.raises(InputError, match='reading'):
        motion_map(torch.zeros(1, 2, 4, 8, 8), (2, 2, 2), 'papers')


def test_colours():
    assert draw_flow(torch.zeros(2, 2, 5, 6), 1.0).eq(255).all()
    assert draw_flow(torch.zeros(0, 2, 5, 6), 1.0).shape == (0, 3, 5, 6)
    field = torch.randn(3, 2, 5, 6)
    assert torch.equal(draw_flow(field, 5.0), draw_flow(8 * field, 40.0))
    assert torch.equal(draw_flow(field, 5.0)[1:2], draw_flow(field[1:2], 5.0))
    assert draw_map(torch.ones(1, 4, 4), 2.0).unique().tolist() == [128]


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    return write_videos(
        MovingDigits(12, size=32, length=11).subset([2]), tmp_path_factory.mktemp('film')
    )[0]


@pytest.mark.parametrize('chunk', [1, 3, 10, 11, 50])
def test_cuts(video, chunk):
    whole = torch.cat([frames for _, frames in iter_frames(video, 11)])
    expected = flow(whole.transpose(0, 1)[None], **FAST)[0].transpose(0, 1)
    found = torch.cat([*iter_flow(iter_frames(video, chunk), **FAST)])
    assert found.shape == (10, 2, 32, 32)
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize('name, show', [('a.npz', 'flow'), ('a.mp4', 'flow'), ('b.mp4', 'map')])
def test_write(video, tmp_path, name, show):
    assert write_flow(iter_frames(video, 4), tmp_path / name, show=show, **FAST) == 10
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if name.endswith('mp4'):
        info = probe(tmp_path / name)
        assert (info.frames, info.width, info.height) == (10, 32, 32)
    else:
        with np.load(tmp_path / name) as file:
            found = dequantize(torch.from_numpy(file['flow']))
            assert file['bound'].item() == BOUND
            assert str(file['method']) == 'tvl1'
        expected = torch.cat([*iter_flow(iter_frames(video, 11), **FAST)])
        assert (found - expected).abs().max() < 0.08


def test_odd_size(tmp_path):
    frames = torch.randint(0, 255, (3, 3, 33, 35), dtype=torch.uint8)
    assert write_flow([(0, frames)], tmp_path / 'a.mp4', 'difference') == 2
    assert (probe(tmp_path / 'a.mp4').width, probe(tmp_path / 'a.mp4').height) == (35, 33)


def test_nothing_left_behind(video, tmp_path):
    "A film that breaks in the middle leaves no file, and an old result stays."
    (tmp_path / 'a.npz').write_bytes(b'old')

    def breaks():
        yield 0, torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
        raise InputError('video', 'damaged', 'copy it again')

    for name in ('a.npz', 'b.mp4'):
        with pytest.raises(InputError, match='damaged'):
            write_flow(breaks(), tmp_path / name, 'difference')
    assert [p.name for p in tmp_path.iterdir()] == ['a.npz'] and (
        tmp_path / 'a.npz'
    ).read_bytes() == b'old'


@pytest.mark.parametrize(
    'change, words',
    [
        ({'path': 'a.gif'}, 'name of the result'),
        ({'method': 'raft'}, 'method'),
        ({'show': 'x'}, 'show'),
    ],
)
def test_faults(tmp_path, change, words):
    arguments = {'path': 'a.mp4'} | change
    path = tmp_path / arguments.pop('path')
    with pytest.raises(InputError, match=words):
        write_flow([], path, **arguments)
    assert not list(tmp_path.iterdir())


def test_still_film_has_no_map():
    clips = MovingDigits(3, size=32, still=1.0, pan=0.0).clips(
        torch.arange(3), torch.arange(4).expand(3, 1, 4)
    )[:, 0]
    assert motion_map(flow(clips), (3, 4, 4)).max() < 0.01
