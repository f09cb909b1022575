"Encoders against independent ones: the first version of the tiny network, torchvision's, loops over frames."

import pytest
import torch
import torchvision
from torch import nn

from vidrepro.core.files import InputError
from vidrepro.models.backbones import (
    BACKBONES,
    P3DResNet50,
    backbone,
    inflate,
    last_conv,
    middle,
    per_frame,
    r2plus1d,
)


class FirstBlock(nn.Module):
    "The residual block that the run cards were made with, written out once more."

    def __init__(self, c, d):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(c, d, 3, 2, 1, bias=False), nn.BatchNorm3d(d)
        self.conv2, self.norm2 = nn.Conv3d(d, d, 3, 1, 1, bias=False), nn.BatchNorm3d(d)
        self.skip = nn.Sequential(nn.Conv3d(c, d, 1, 2, bias=False), nn.BatchNorm3d(d))

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.skip(x))


class FirstTiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 16, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False),
            nn.BatchNorm3d(16),
            nn.ReLU(),
        )
        self.layer1, self.layer2, self.layer3 = (
            FirstBlock(16, 32),
            FirstBlock(32, 64),
            FirstBlock(64, 128),
        )

    def forward(self, x):
        return self.layer3(self.layer2(self.layer1(self.stem(x)))).mean((2, 3, 4))


def made(make, seed=5):
    torch.manual_seed(seed)
    return make()


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def meta(name):
    with torch.device('meta'):
        return backbone(name)


def random_norms(model):
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)):
            (
                m.running_mean.normal_(std=0.1),
                m.running_var.uniform_(0.8, 1.2),
                m.weight.data.uniform_(0.5, 1.5),
            )
    return model.eval()


def test_tiny_is_what_it_was():
    "Names, order, weights and outputs to the last bit: run cards and checkpoints depend on it."
    old, new = made(FirstTiny), made(lambda: backbone('tiny'))
    assert equal(old.state_dict(), new.state_dict())
    assert [n for n, _ in old.named_parameters()] == [n for n, _ in new.named_parameters()]
    x = torch.randn(3, 3, 8, 32, 32)
    a, b = old(x), new(x)
    assert torch.equal(a, b) and new.dim == 128
    a.square().sum().backward(), b.square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(old.parameters(), new.parameters()))


@pytest.mark.parametrize('name', ['r3d_18', 'r2plus1d_18'])
def test_torchvision_is_what_it_was(name):
    theirs = made(getattr(torchvision.models.video, name)).state_dict()
    assert equal(
        {k: v for k, v in theirs.items() if 'fc' not in k},
        made(lambda: backbone(name)).state_dict(),
    )


@pytest.mark.parametrize('name', BACKBONES)
def test_contract(name):
    "`b 3 t h w` to `b d`; the last convolution leaves a map with a time axis, frame by frame for the 2D networks."
    model, maps = meta(name), []
    model.get_submodule(last_conv(model)).register_forward_hook(
        lambda m, i, o: maps.append(o.shape)
    )
    assert model(torch.empty(2, 3, 16, 64, 64, device='meta')).shape == (2, model.dim)
    assert len(maps) == 1 and maps[0][0] == 2 and maps[0][1] == model.dim
    assert maps[0][2] == (16 if name.endswith('2d') else 4 if name == 'r2plus1d_50' else 2)


@pytest.mark.parametrize(
    'name', ['tiny', 'tiny_fast', 'tiny_2d', 'resnet_18_2d', 'r2plus1d_50', 'r2plus1d_34']
)
def test_every_weight_learns(name):
    model = made(lambda: backbone(name))
    model(torch.randn(2, 3, 8, 32, 32)).square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize('name', ['tiny', 'tiny_fast', 'tiny_2d', 'resnet_18_2d'])
def test_second_order_through_the_map(name):
    "A gradient with respect to the hooked map can itself be differentiated, down to the first convolution."
    model, maps = made(lambda: backbone(name)), []
    model.get_submodule(last_conv(model)).register_forward_hook(lambda m, i, o: maps.append(o))
    score = nn.functional.normalize(model(torch.randn(2, 3, 8, 32, 32)))[:, 0].sum()
    (grad,) = torch.autograd.grad(score, maps[0], create_graph=True)
    assert grad.shape == maps[0].shape and grad.abs().max() > 0
    (first,) = torch.autograd.grad(grad.square().sum(), next(model.parameters()))
    assert first.abs().max() > 0


@pytest.mark.parametrize('name', ['tiny_2d', 'resnet_18_2d', 'resnet_50_2d'])
def test_order_of_frames_is_unseen(name):
    model, x = random_norms(made(lambda: backbone(name))), torch.randn(1, 3, 5, 32, 32)
    with torch.no_grad():
        each = torch.stack([model(x[:, :, t : t + 1]) for t in range(5)]).mean(0)
        torch.testing.assert_close(model(x), each, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(x.flip(2)), each, atol=1e-4, rtol=1e-4)


def test_per_frame_is_torchvision():
    torch.manual_seed(0)
    two, x = torchvision.models.resnet50(), torch.randn(2, 3, 3, 64, 64)
    two.fc = nn.Identity()
    random_norms(two)
    with torch.no_grad():
        want = two(x.transpose(1, 2).flatten(0, 1)).view(2, 3, -1).mean(1)
        maps = two.layer1(two.maxpool(two.relu(two.bn1(two.conv1(x[:, :, 1])))))
    three, seen = per_frame(two), []
    three.layer1.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        torch.testing.assert_close(three(x), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen[0][:, :, 1], maps, atol=1e-4, rtol=1e-4)
    assert not three.training and not [
        m for m in three.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or m.training
    ]


def test_middle_widths():
    "The rule of the released R(2+1)D-34, and of torchvision's 18, at the convolution where they part."
    assert [middle(64, 128), middle(128, 128)] == [230, 288]
    assert meta('r2plus1d_34').layer2[0].conv2[0][0].out_channels == 288
    assert meta('r2plus1d_18').layer2[0].conv2[0][0].out_channels == 230
    for model, momentum, eps in (
        (meta('r2plus1d_34'), 0.9, 1e-3),
        (meta('r2plus1d_18'), 0.1, 1e-5),
    ):
        assert {(m.momentum, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm3d)} == {
            (momentum, eps)
        }
    assert [len(getattr(meta('r2plus1d_34'), f'layer{i}')) for i in (1, 2, 3, 4)] == [3, 4, 6, 3]


def test_known_sizes():
    for name, millions in dict(
        r3d_18=33.17, r2plus1d_18=31.30, r2plus1d_34=63.49, r2plus1d_50=27.31
    ).items():
        assert round(sum(p.numel() for p in meta(name).parameters()) / 1e6, 2) == millions


def test_names_of_mcl():
    "Its keys, listed by rule: nothing but this, and 334 of them."
    norm = lambda at: [
        f'{at}.{n}'
        for n in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    ]
    keys = ['conv1.weight', *norm('bn1')]
    for stage, count in enumerate((3, 4, 6, 3), 1):
        for b in range(count):
            at = f'layer{stage}.{b}'
            keys += [f'{at}.{c}.weight' for c in ('conv1', 'conv2', 'conv2_t', 'conv3')] + sum(
                (norm(f'{at}.bn{i}') for i in (1, 2, 3)), []
            )
            if b == 0:
                keys += [f'{at}.downsample.0.weight', *norm(f'{at}.downsample.1')]
    state = meta('r2plus1d_50').state_dict()
    assert len(keys) == 334 and set(keys) == set(state)
    assert state['conv1.weight'].shape == (64, 3, 4, 7, 7) and state[
        'layer4.0.conv2_t.weight'
    ].shape == (512, 512, 3, 1, 1)


def test_inflation():
    torch.manual_seed(0)
    two = random_norms(torchvision.models.resnet50())
    two.fc, net = nn.Identity(), P3DResNet50()
    state = inflate(two.state_dict(), net)
    net.load_state_dict(state)
    stem, turn = state['conv1.weight'], state['layer2.1.conv2_t.weight'][..., 0, 0]
    assert torch.equal(stem[:, :, 1], two.conv1.weight) and not stem[:, :, [0, 2, 3]].any()
    assert torch.equal(turn[:, :, 1], torch.eye(128)) and not turn[:, :, [0, 2]].any()
    x = torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        want = (two(x[:, :, 1]) + two(x[:, :, 5])) / 2
        torch.testing.assert_close(net.eval()(x), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', ['tiny', 'tiny_2d', 'r2plus1d_50'])
def test_memory_layout(name):
    model, x = random_norms(made(lambda: backbone(name))), torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        plain = model(x)
        fast = model.to(memory_format=torch.channels_last_3d)(
            x.contiguous(memory_format=torch.channels_last_3d)
        )
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    'call, says',
    [
        (lambda: backbone('resnet_50'), 'resnet_50_2d'),
        (lambda: backbone('tiny_2d', 'IMAGENET1K_V1'), 'leave it empty'),
        (lambda: backbone('r2plus1d_34', 'KINETICS400_V1'), 'of the package'),
        (lambda: backbone('resnet_18_2d', 'KINETICS400_V1'), 'IMAGENET1K_V1'),
        (lambda: r2plus1d(widths='torchvision'), "'conv' or 'block'"),
    ],
)
def test_errors(call, says):
    with pytest.raises(InputError, match=says) as e:
        call()
    assert '\n' not in str(e.value)
