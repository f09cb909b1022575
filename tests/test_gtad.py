"Graph blocks and sub-graph alignment against loops and against torchvision's operator; parameters and gradients."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.ops import roi_align

from vidrepro.core.files import InputError
from vidrepro.localize.bmn import BinConv
from vidrepro.localize.grid import TimeGrid, align_matrix, candidates, stretches
from vidrepro.localize.gtad import GTAD, THUMOS14, GCNeXt, Sizes, context, gathered, neighbours

SMALL = Sizes(base=16, joint=16, last=8, bins=6, context_bins=2, paths=4)


@given(
    seed=st.integers(0, 999),
    nodes=st.integers(1, 12),
    count=st.integers(1, 12),
    equal=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_neighbours(seed, nodes, count, equal):
    torch.manual_seed(seed)
    x = torch.randn(2, 3, nodes, dtype=torch.float64)
    if equal:
        x = x.relu().round()  # many ties
    count = min(count, nodes)
    near = neighbours(x, count)
    assert (near[..., 0] == torch.arange(nodes)).all()
    far = torch.cdist(x.mT, x.mT) ** 2
    for b in range(2):
        for i in range(nodes):
            assert len(set(near[b, i].tolist())) == count
            others = sorted(v for m, v in enumerate(far[b, i].tolist()) if m != i)[: count - 1]
            assert_close(
                far[b, i, near[b, i, 1:]].sort().values,
                torch.tensor(others, dtype=torch.float64),
                atol=1e-9,
                rtol=0,
            )


def test_context_is_the_mean_of_columns():
    x = torch.randn(2, 4, 9)
    near = neighbours(x)
    for b in range(2):
        for i in range(9):
            assert torch.equal(gathered(x, near)[b, :, i], x[b][:, near[b, i]])
    assert_close(context(x)[1, :, 4], x[1][:, near[1, 4]].mean(1))


def test_edges_carry_no_gradient_but_features_do():
    x = torch.randn(1, 3, 6, requires_grad=True)
    context(x).sum().backward()
    counts = torch.bincount(neighbours(x).flatten(), minlength=6) / 3
    assert_close(x.grad[0], counts.expand(3, 6))


def test_too_many_neighbours():
    with pytest.raises(InputError, match='1 to 5'):
        neighbours(torch.zeros(1, 2, 5), 6)


@pytest.mark.parametrize('count', [1, 3])
def test_block_slow_and_fast(count):
    torch.manual_seed(0)
    block = GCNeXt(6, groups=3, width=2, count=count).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    fast, slow = block(x), block(x, reference=True)
    assert_close(fast, slow, atol=1e-12, rtol=0)
    pull = torch.randn_like(fast)
    for a, b in zip(
        *(torch.autograd.grad((y * pull).sum(), (x, *block.parameters())) for y in (fast, slow))
    ):
        assert_close(a, b, atol=1e-11, rtol=0)


def test_block_gradients():
    torch.manual_seed(1)
    block = GCNeXt(4, groups=2, width=2).double()
    assert torch.autograd.gradcheck(
        block, (torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True),)
    )


@pytest.mark.parametrize('bins', [4, 32])
@pytest.mark.parametrize('stretch', ['features', 'lines'])
def test_alignment_equals_the_operator(bins, stretch):
    "torchvision's C++ operator has the rule of the released kernel; every candidate of 100 cells."
    torch.manual_seed(0)
    grid = TimeGrid(100)
    spans, x = stretches(grid, stretch), torch.randn(1, 2, 100, dtype=torch.float64)
    box = torch.from_numpy(spans)
    box = torch.stack(
        [torch.zeros(len(box)), torch.zeros(len(box)), box[:, 0], torch.ones(len(box)), box[:, 1]],
        1,
    )
    there = roi_align(x[..., None], box.double(), (bins, 1), 1.0, -1, aligned=False)[..., 0]
    ours = torch.einsum('bct,krt->kcr', x, align_matrix(spans, bins, 100).to_dense())
    assert_close(ours, there, atol=1e-10, rtol=0)


def test_two_kinds_of_bins():
    torch.manual_seed(0)
    grid = TimeGrid(9, longest=7)
    matrices = [align_matrix(stretches(grid), r, 9) for r in (5, 3)]
    layer = BinConv(4, 6, grid, matrices).double()
    x, y = torch.randn(2, 2, 4, 9, dtype=torch.float64)
    fast, slow = layer(x, y), layer.reference(x, y)
    assert_close(fast, slow, atol=1e-12, rtol=0)
    bins = torch.cat(
        [
            torch.einsum('bct,krt->bkcr', v, m.to_dense())
            for v, m in ((x, matrices[0]), (y, matrices[1]))
        ],
        3,
    )
    for k, (s, stop) in enumerate(candidates(grid).tolist()):
        expected = torch.einsum('ocr,bcr->bo', layer.weight, bins[:, k]) + layer.bias
        assert_close(fast[:, :, stop - s - 1, s], expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError):
        layer(x)


@pytest.mark.parametrize(
    'channels, sizes, count',
    [
        (400, Sizes(), 5_563_268),
        (512, Sizes(), 5_584_772),
        (400, Sizes(kernel=3), 5_825_412),
        (2048, THUMOS14, 5_617_540),
        (512, THUMOS14, 5_322_628),
    ],
)
def test_parameters(channels, sizes, count):
    assert sum(p.numel() for p in GTAD(channels, TimeGrid(4), sizes).parameters()) == count


@pytest.mark.parametrize('kernel', [1, 3])
def test_network_slow_and_fast(kernel):
    torch.manual_seed(0)
    sizes = Sizes(**vars(SMALL) | dict(kernel=kernel))
    net, x = GTAD(12, TimeGrid(16, longest=10, convention='wide'), sizes), torch.randn(2, 12, 16)
    fast, slow = net(x), net(x, reference=True)
    for a, b in zip(vars(fast).values(), vars(slow).values()):
        assert_close(a, b, atol=1e-5, rtol=0)
    assert fast.maps.shape == (2, 2, 10, 16)
    for i in range(2):
        assert_close(
            net(x[i : i + 1]).maps[0], fast.maps[i], atol=1e-6, rtol=0
        )  # videos do not meet
    fast.maps.sum().backward()
    assert all(
        p.grad is not None
        for name, p in net.named_parameters()
        if not name.startswith(('start', 'end'))
    )


def test_groups():
    with pytest.raises(InputError, match='channels'):
        GTAD(30, TimeGrid(4))
    with pytest.raises(InputError, match='base'):
        Sizes(base=30)
