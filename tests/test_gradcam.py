"Grad-CAM against the grad-cam package, against properties that any map and score must have, and on files."

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.testing import assert_close

from vidrepro.cli.pictures import say_scores
from vidrepro.clips.contract import Clip
from vidrepro.core.files import InputError
from vidrepro.data.video import VideoError, probe, read_clips
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.explain import looks as module
from vidrepro.explain.gradcam import (
    area,
    class_target,
    contact_sheet,
    energy_inside,
    gradcam,
    layers,
    map_similarity,
    overlay,
    rank_correlation,
    retrieval_target,
    similarity_target,
    widen,
    write_video,
)
from vidrepro.explain.looks import (
    explain_video,
    film_of,
    fine_layer,
    gradient_map,
    look,
    motion_over,
    sheet_of,
)
from vidrepro.models.backbones import backbone


@pytest.fixture(scope='module')
def tiny():
    "A network whose batch norms have seen data."
    torch.manual_seed(0)
    net = backbone('tiny').train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 3, 8, 32, 32))
    return net.eval()


@pytest.fixture(scope='module')
def clips():
    return torch.randn(3, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_videos(
        MovingDigits(2, length=40, split='test'), tmp_path_factory.mktemp('videos'), 20
    )


KEYS = torch.randn(3, 128, generator=torch.Generator().manual_seed(5))


def alike(z):
    "A score whose map is not blank: blank maps would agree with anything blank."
    return similarity_target(KEYS)(z.float())


class OfFrames(nn.Module):
    "A network of frames, for clips."

    def __init__(self, folded):
        super().__init__()
        torch.manual_seed(2)
        self.folded = folded
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 5),
        )

    def forward(self, x):
        if not self.folded:
            return torch.stack([self.net(frame).tanh() for frame in x.unbind(2)]).mean(0)
        return self.net(x.transpose(1, 2).flatten(0, 1)).tanh().unflatten(0, (len(x), -1)).mean(1)


# The grad-cam package


def theirs(net, clips, layer, targets, reshape=None):
    "Map of the grad-cam package before it is scaled."
    package = pytest.importorskip('pytorch_grad_cam')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with package.GradCAM(net, [layer], reshape) as cam:
            cam(clips, targets)
            kept = cam.activations_and_grads
            features, gradient = (x[0].numpy() for x in (kept.activations, kept.gradients))
            return torch.from_numpy(
                cam.get_cam_image(clips, layer, targets, features, gradient)
            ).relu()


@pytest.mark.parametrize('layer', ['stem', 'layer1', 'layer2', 'layer3'])
@pytest.mark.parametrize('target', ['class', 'similarity'])
def test_equals_package(tiny, clips, layer, target):
    net = nn.Sequential(tiny, nn.Linear(128, 7), nn.Tanh(), nn.Linear(7, 7)).requires_grad_()
    if target == 'class':
        labels = torch.tensor([3, 0, 6])
        mine, package = class_target(labels), [lambda out, k=k: out[k] for k in labels.tolist()]
    else:
        keys = torch.randn(3, 7)
        mine, package = (
            similarity_target(keys),
            [lambda out, k=k: F.cosine_similarity(out, k, dim=0) for k in keys],
        )
    want = theirs(net, clips, net[0].get_submodule(layer), package)
    got = gradcam(net, clips, mine, f'0.{layer}')
    assert want.max() > 0
    assert_close(got / want.max(), want / want.max(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('layer', ['net.0', 'net.4'])
def test_equals_package_for_frames(clips, layer):
    "Frame by frame: a clip of one frame is a picture."
    net = OfFrames(True).eval()
    want = theirs(
        net.net, clips[:, :, 0], net.get_submodule(layer), [lambda out: out[2].tanh()] * 3
    )
    got = gradcam(net, clips[:, :, :1], lambda out: out[:, 2], layer)[:, 0]
    assert want.max() > 0
    assert_close(got / want.max(), want / want.max(), atol=1e-5, rtol=1e-5)


# The map


def test_folded_equals_looped(clips):
    cams = [gradcam(OfFrames(folded), clips, lambda out: out[:, 2]) for folded in (True, False)]
    assert cams[0].shape == (3, 8, 8, 8) and cams[0].max() > 0
    assert_close(*cams)


def test_scale_of_the_score(tiny, clips):
    "Twice the score, twice the map; a constant added to it changes nothing."
    cam = gradcam(tiny, clips, alike, 'layer2')
    assert (cam.amax((1, 2, 3)) > 0).all()
    assert_close(gradcam(tiny, clips, lambda z: 2 * alike(z) + 5, 'layer2'), 2 * cam)


def test_clips_are_independent(tiny, clips):
    "Whatever else is in the batch, and in whatever order."
    keys = torch.randn(3, 128)
    cam = gradcam(tiny, clips, similarity_target(keys), 'layer2')
    assert (cam.amax((1, 2, 3)) > 0).all()
    for i in range(3):
        assert_close(
            gradcam(tiny, clips[[i]], similarity_target(keys[[i]]), 'layer2')[0],
            cam[i],
            atol=1e-7,
            rtol=1e-4,
        )
    assert_close(
        gradcam(tiny, clips.flip(0), similarity_target(keys.flip(0)), 'layer2').flip(0),
        cam,
        atol=1e-7,
        rtol=1e-4,
    )


@pytest.mark.parametrize('change', ['frozen', 'no_grad', 'inference', 'training', 'channels_last'])
def test_circumstances(tiny, clips, change):
    want = gradcam(tiny, clips, alike, 'layer2')
    assert (want.amax((1, 2, 3)) > 0).all()
    net = backbone('tiny')
    net.load_state_dict(tiny.state_dict())
    net.train(change == 'training').requires_grad_(change != 'frozen')
    x = clips.to(memory_format=torch.channels_last_3d) if change == 'channels_last' else clips
    with torch.inference_mode(change == 'inference'), torch.set_grad_enabled(change != 'no_grad'):
        got = gradcam(net, x * 1, alike, 'layer2')
    assert_close(got, want, atol=1e-7, rtol=1e-4)
    assert net.training is (change == 'training') and not got.requires_grad
    assert not any(m._forward_hooks for m in net.modules()) and all(
        p.grad is None for p in net.parameters()
    )
    assert torch.equal(net.stem[1].running_mean, tiny.stem[1].running_mean)


def test_half_precision(tiny, clips):
    net = backbone('tiny').bfloat16().eval()
    net.load_state_dict(tiny.state_dict())
    cam, full = (
        gradcam(net, clips.bfloat16(), alike, 'layer2'),
        gradcam(tiny, clips, alike, 'layer2'),
    )
    assert (
        cam.dtype == torch.float32
        and (F.cosine_similarity(cam.flatten(1), full.flatten(1)) > 0.95).all()
    )


def test_hooks_go_after_an_error(tiny, clips):
    def fails(z):
        raise RuntimeError('inside the target')

    with pytest.raises(RuntimeError, match='inside the target'):
        gradcam(tiny, clips, fails)
    assert not any(m._forward_hooks for m in tiny.modules()) and not tiny.training


def test_in_place_residual(clips):
    "What a layer returned is what is weighted, even when the network then writes over it."

    class Residual(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.in_place = (
                nn.Conv3d(3, 6, 3, 2, 1),
                nn.Conv3d(6, 6, 3, 1, 1),
                in_place,
            )

        def forward(self, x):
            x = self.a(x).relu()
            y = self.b(x)
            y = y.add_(x).relu_() if self.in_place else (y + x).relu()
            return y.amax((2, 3, 4))

    cams = [
        gradcam(Residual(in_place), clips, lambda z: z[:, 0] ** 2, 'b')
        for in_place in (True, False)
    ]
    assert cams[0].max() > 0
    assert_close(*cams)


def test_layers(tiny):
    assert layers(tiny)[-1] == 'layer3'
    assert (
        layers(nn.ModuleDict({'module': tiny})['module'], torch.randn(1, 3, 4, 64, 64))[-1]
        == 'layer3'
    )
    assert layers(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 64 * 64, 2))) == []
    assert layers(OfFrames(True))[-1] == 'net.4'


@pytest.mark.parametrize(
    'name, words', [('layer7', 'name a module'), ('layer3.norm', 'name a module')]
)
def test_unknown_layer(tiny, clips, name, words):
    with pytest.raises(InputError, match=words) as error:
        gradcam(tiny, clips, lambda z: z[:, 0], name)
    assert 'layer3' in str(error.value) and '\n' not in str(error.value)


def test_same_layer_twice(tiny, clips):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny

        def forward(self, x):
            return self.net(x) * self.net(x.flip(2))

    with pytest.raises(InputError, match='2 outputs'):
        gradcam(Twice(), clips, lambda z: z[:, 0], 'net.layer2')


# Scores of a map

maps = st.integers(0, 10**6).map(
    lambda seed: torch.rand(4, 3, 7, 6, generator=torch.Generator().manual_seed(seed))
)


@settings(max_examples=15, deadline=None)
@given(maps, maps, st.integers(0, 3))
def test_scores(cam, other, tolerance):
    mask = other > 0.7
    energy, chance = energy_inside(cam, mask), area(mask)
    assert ((energy >= 0) & (energy <= 1)).all()
    assert_close(energy + energy_inside(cam, ~mask), torch.ones(4))
    assert_close(energy_inside(3 * cam, mask), energy)
    assert (energy_inside(cam * (mask + 0.5), mask) >= energy - 1e-6).all()  # more weight inside
    near = energy_inside(cam, widen(mask, tolerance))
    assert (energy - 1e-6 <= near).all()
    assert (near <= energy_inside(cam, widen(mask, tolerance + 1)) + 1e-6).all()
    assert (area(widen(mask, tolerance)) >= chance).all() and (widen(mask, tolerance) | ~mask).all()
    assert_close(rank_correlation(cam, cam.exp()), torch.ones(4), atol=1e-6, rtol=0)
    assert_close(rank_correlation(cam, -cam), -torch.ones(4), atol=1e-6, rtol=0)
    assert_close(rank_correlation(cam, other), rank_correlation(other, cam))
    assert ((map_similarity(cam, other) > 0) & (map_similarity(cam, other) <= 1 + 1e-6)).all()


def test_chance_is_what_chance_scores():
    "Random maps score the chance level on average."
    torch.manual_seed(0)
    mask = F.pad(torch.ones(1, 2, 3, 3, dtype=torch.bool), (2, 3, 1, 4)).expand(4000, -1, -1, -1)
    cam = torch.rand(4000, 2, 8, 8)
    assert energy_inside(cam, mask).mean() == pytest.approx(area(mask)[0].item(), abs=0.002)


def test_widen_is_per_frame():
    mask = torch.zeros(1, 3, 5, 5, dtype=torch.bool)
    mask[0, 1, 2, 2] = True
    assert widen(mask, 1).sum((2, 3)).tolist() == [[0, 9, 0]]
    assert torch.equal(widen(mask, 0), mask)
    with pytest.raises(InputError, match='0 or more'):
        widen(mask, -1)


def test_targets_follow_the_output():
    "Keys and galleries need not be of the network's type, and no gradient goes into them."
    z, keys = (
        torch.randn(4, 6, requires_grad=True),
        torch.randn(4, 6, dtype=torch.float64, requires_grad=True),
    )
    for score in (similarity_target(keys)(z), retrieval_target(keys, 2)(z)):
        assert score.dtype == torch.float32 and score.shape == (4,)
        score.sum().backward()
    assert z.grad.isfinite().all() and keys.grad is None


# Pictures and films


def test_overlay_shapes():
    frames, cam = (
        torch.randint(0, 256, (2, 3, 4, 10, 12), dtype=torch.uint8),
        torch.rand(2, 4, 10, 12),
    )
    kept = frames.clone()
    painted = overlay(frames, cam)
    assert painted.shape == frames.shape and torch.equal(frames, kept)
    assert torch.equal(overlay(frames[1], cam[1]), painted[1])
    assert torch.equal(overlay(frames, cam, alpha=0.0), overlay(frames, 0 * cam))


def test_contact_sheet(tmp_path):
    source = MovingDigits(3, length=8)
    frames = torch.arange(8).expand(3, 1, 8)
    clips, mask = (
        source.clips(torch.arange(3), frames)[:, 0],
        source.truth(torch.arange(3), frames).mask[:, 0],
    )
    figure = contact_sheet(clips, mask.float(), ['a', 'b', 'c'], mask, across=2)
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ['a', 'b', 'c'] and all(
        len(ax.collections) for ax in shown
    )
    strip = shown[0].images[0].get_array()
    assert strip.shape == (2 * 34, 4 * 34, 3)
    assert torch.equal(
        torch.from_numpy(strip[1:33, 1:33].copy()), clips[0, :, 0].movedim(0, 2)
    )  # the first frame
    assert torch.equal(
        torch.from_numpy(strip[1:33, -33:-1].copy()), clips[0, :, 7].movedim(0, 2)
    )  # and the last
    with pytest.raises(InputError, match='titles: got 2 for 3 clips'):
        contact_sheet(clips, mask.float(), ['a', 'b'])


@pytest.mark.parametrize('name', ['film.gif', 'film.mp4'])
def test_films_are_whole_or_absent(tmp_path, monkeypatch, name):
    frames = MovingDigits(1, length=8).clips(torch.tensor([0]), torch.arange(8)[None, None])[0, 0]
    path = tmp_path / 'deep' / name
    write_video(path, frames, 10)
    good = path.read_bytes()
    assert probe(path).frames == 8 and read_clips(path, [[0, 7]]).shape == (1, 3, 2, 32, 32)

    def dies(target, *_, **__):
        (target if hasattr(target, 'write_bytes') else tmp_path).write_bytes(good[:40])
        raise OSError('disk full')

    monkeypatch.setattr('vidrepro.explain.gradcam._write_mp4', dies)
    monkeypatch.setattr(Image.Image, 'save', lambda self, target, **_: dies(target))
    with pytest.raises(OSError, match='disk full'):
        write_video(path, frames, 10)
    assert path.read_bytes() == good and [p.name for p in path.parent.iterdir()] == [name]


@pytest.mark.parametrize('target', ['similarity', 'class'])
def test_explain_video(tiny, files, tmp_path, target):
    names = [f'name {k}' for k in range(128)] if target == 'class' else ()
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    how = (Clip(8, 1, 32), target, 'layer2', names, 'gif')  # H.264 is not the same byte for byte
    made = explain_video(tiny, files[0], tmp_path, *how)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in made)
    with Image.open(made[0]) as sheet:
        assert sheet.size[0] > 300
    assert probe(made[1]).frames == 16  # two clips, one after the other
    assert (
        all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items()) and not tiny.training
    )
    content = [p.read_bytes() for p in made]
    again = explain_video(tiny, files[0], tmp_path, *how)
    assert [p.read_bytes() for p in again] == content


def test_explain_video_shows_the_first_and_the_last_clip(tiny, files):
    numbers, clips, fps = module.two_clips(files[0], Clip(8, 2, 32))
    assert numbers.tolist() == [
        list(range(0, 16, 2)),
        list(range(25, 40, 2)),
    ] and fps == pytest.approx(10)
    assert torch.equal(clips, read_clips(files[0], numbers))
    wide = module.two_clips(files[0], Clip(8, 1, 64))[1]
    assert wide.shape == (2, 3, 8, 64, 64)


def test_explain_short_video(tiny, files, tmp_path):
    with pytest.raises(InputError, match='got 40 frames; two different clips need 41'):
        explain_video(tiny, files[0], tmp_path, Clip(40, 1, 32))
    assert len(explain_video(tiny, files[0], tmp_path, Clip(40, 1, 32), target='class')) == 2
    assert len(explain_video(tiny, files[0], tmp_path, Clip(39, 1, 32))) == 2


def test_explain_what_is_no_video(tiny, tmp_path):
    bad = tmp_path / 'bad.mp4'
    bad.write_bytes(b'\0' * 5000)
    with pytest.raises(VideoError) as error:
        explain_video(tiny, bad, tmp_path / 'out', Clip(size=32))
    assert (
        'bad.mp4' in str(error.value)
        and '\n' not in str(error.value)
        and not (tmp_path / 'out').exists()
    )


def test_explain_real_videos(tiny, data_dir, tmp_path):
    "Camera footage of several sizes."
    found = [
        next(iter(sorted((data_dir / name).rglob(pattern))), None)
        for name, pattern in (('weizmann', '*.mp4'), ('ucf101_mini', '*.avi'))
    ]
    found = [p for p in found if p]
    if not found:
        pytest.skip('no video files among the data')
    for path in found:
        made = explain_video(tiny, path, tmp_path, Clip(8, 1, 64), layer='layer2')
        assert all(p.stat().st_size > 1000 for p in made) and probe(made[1]).frames == 16


# Networks side by side


def test_gradient_map_is_its_sum():
    g = torch.randn(2, 3, 2, 4, 5, generator=torch.Generator().manual_seed(3)).double()
    for b in range(2):
        for s in range(2):
            want = sum(g[b, c, s].mean() * g[b, c, s] for c in range(3)).clamp(min=0)
            assert_close(gradient_map(g)[b, s], want)


def test_fine_layer(tiny, clips):
    "The last convolution of seven cells a side: of 32 pixels in the first stage, of 112 in the last but one."
    sizes = {}
    for side in (32, 112):
        name = fine_layer(tiny, torch.zeros(1, 3, 8, side, side))
        kept = []
        handle = tiny.get_submodule(name).register_forward_hook(lambda m, x, y: kept.append(y))
        tiny(torch.zeros(1, 3, 8, side, side))
        handle.remove()
        sizes[side] = min(kept[0].shape[3:])
    assert min(sizes.values()) >= 7 and max(sizes.values()) <= 14
    with pytest.raises(InputError, match='one with convolutions'):
        fine_layer(nn.Flatten(), clips)


def test_motion_over_forgets_a_pan():
    "The map is bright where one half slides over the other, dark where all slides."
    texture = torch.rand(1, 3, 1, 64, 80, generator=torch.Generator().manual_seed(4))
    texture = F.avg_pool3d(texture, (1, 5, 5), 1, (0, 2, 2)).mul(510).clamp(max=255).byte()
    step = lambda d: texture.roll(d, -1)
    pan = torch.cat([step(d) for d in range(4)], 2)
    half = pan.clone()
    half[..., :32, :] = texture[..., :32, :]
    whole, part = (motion_over(x)[..., 8:-8, 12:-12] for x in (pan, half))
    assert part.shape == (1, 4, 48, 56)
    assert part[..., 20:28, :].mean() > 5 * whole.mean()


def test_side_by_side(tiny, files):
    "At the resolution of the video; networks with clips of their own; a shorter one waits."
    other = OfFrames(True).eval()
    looks = [
        look(tiny, files[0], Clip(8, 1, 32), 'one', layer='layer2'),
        look(other, files[0], Clip(6, 2, 24), 'two'),
    ]
    for one, frames in zip(looks, (8, 6)):
        for m in (one.motion, one.cam, one.p):
            assert m.shape == (2, frames, 32, 32) and (m >= 0).all()
        assert_close(one.scores(), map_similarity(one.cam, one.motion))
        assert one.rows().shape == (4, 2, 3, frames, 32, 32)
        assert all('q·k⁺' in title for title in one.titles)
    film = film_of(looks)
    zoom = 112 // 32
    assert film.shape == (3, 16, zoom * 4 * 32, zoom * 2 * 32)
    left = film[:, :8, : 32 * zoom : zoom, : 32 * zoom : zoom]
    assert torch.equal(left, looks[0].clips[0])  # the first clip of the first network, untouched
    axes = sheet_of(looks).axes
    assert len(axes) == 4 and axes[0].get_title().startswith('one from frame 0')


def test_word_needs_videos(tiny, files):
    "Two networks that agree before every video but by a hair: two videos decide nothing, six do."
    one = look(tiny, files[0], Clip(8, 1, 32), 'one', layer='layer2')
    other = replace(one, name='two', cam=0.999 * one.cam + 0.001 * one.cam.mean())
    last = [say_scores([[one, other]] * n)[-1] for n in (2, 5, 6)]
    assert [line.split('], ')[1] for line in last] == [
        'too few: 2 of 6, 2 videos',
        'too few: 5 of 6, 5 videos',
        f'{"more" if one.scores().mean() > other.scores().mean() else "less"}, 6 videos',
    ]
