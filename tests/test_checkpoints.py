"Released layouts from synthetic files, an independent forward pass, and files that mean harm."

import argparse
import collections
import os
import pathlib
import pickle
import random
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from vidrepro.core.files import InputError
from vidrepro.models.backbones import backbone
from vidrepro.models.checkpoints import (
    load_encoder,
    load_weights,
    read_file,
    released_keys,
    save_released,
)

COUNTS = dict(r2plus1d_34=414, r2plus1d_18=222, r3d_18=120)


def numbers(keys):
    "Random weights that keep a forward pass in range."

    def one(key, shape):
        if key.endswith('tracked'):
            return torch.tensor(random.randrange(1000))
        if 'var' in key:
            return torch.rand(shape) + 0.5
        return torch.randn(shape) * (
            0.3 if len(shape) < 2 else (2 / torch.Size(shape[1:]).numel()) ** 0.5
        )

    return {key: one(key, shape) for key, shape in keys.items()}


def plain(w, x, eps):
    "TSP's encoders straight from released keys: loops, `conv3d` and `batch_norm`."

    def bn(at, x):
        return F.batch_norm(
            x,
            w[f'{at}.running_mean'],
            w[f'{at}.running_var'],
            w[f'{at}.weight'],
            w[f'{at}.bias'],
            eps=eps,
        )

    def pad(k):
        return tuple(n // 2 for n in k.shape[2:])

    def conv(at, x, stride):  # whole, or in two halves
        if f'{at}.weight' in w:
            return F.conv3d(x, w[f'{at}.weight'], None, stride, pad(w[f'{at}.weight']))
        a, b = w[f'{at}.0.weight'], w[f'{at}.3.weight']
        x = bn(f'{at}.1', F.conv3d(x, a, None, (1, *stride[1:]), pad(a))).relu()
        return F.conv3d(x, b, None, (stride[0], 1, 1), pad(b))

    factored = 'features.stem.3.weight' in w
    x = conv('features.stem' if factored else 'features.stem.0', x, (1, 2, 2))
    x = bn('features.stem.4' if factored else 'features.stem.1', x).relu()
    for stage in (1, 2, 3, 4):
        for b in range(9):
            at = f'features.layer{stage}.{b}'
            if f'{at}.conv1.1.weight' not in w:
                break
            s = (2, 2, 2) if stage > 1 and b == 0 else (1, 1, 1)
            y = bn(f'{at}.conv1.1', conv(f'{at}.conv1.0', x, s)).relu()
            y = bn(f'{at}.conv2.1', conv(f'{at}.conv2.0', y, (1, 1, 1)))
            if s[0] == 2:
                x = bn(f'{at}.downsample.1', F.conv3d(x, w[f'{at}.downsample.0.weight'], None, 2))
            x = (x + y).relu()
    return x.mean((2, 3, 4))


@pytest.mark.parametrize('name', COUNTS)
def test_table(name):
    "Counts, a few entries typed by hand, and agreement with networks that were not consulted."
    keys = released_keys(name, 200)
    encoder = {k: s for k, s in keys.items() if k.startswith('features.')}
    assert len(encoder) == COUNTS[name] and len(keys) == COUNTS[name] + 4
    with torch.device('meta'):
        state = backbone(name).state_dict()
    assert {k.removeprefix('features.'): s for k, s in encoder.items()} == {
        k: tuple(v.shape) for k, v in state.items()
    }
    typed = {
        'features.layer1.0.conv1.1.num_batches_tracked': (),
        'features.layer2.0.downsample.0.weight': (128, 64, 1, 1, 1),
        'fc1.weight': (200, 512),
        'fc1.bias': (200,),
        'fc2.weight': (2, 1024),
        'fc2.bias': (2,),
    }
    typed |= (
        {
            'features.stem.0.weight': (64, 3, 3, 7, 7),
            'features.layer4.1.conv2.0.weight': (512, 512, 3, 3, 3),
        }
        if name == 'r3d_18'
        else {
            'features.stem.0.weight': (45, 3, 1, 7, 7),
            'features.stem.3.weight': (64, 45, 3, 1, 1),
            'features.stem.4.bias': (64,),
            'features.layer2.0.conv2.0.0.weight': (
                288 if name == 'r2plus1d_34' else 230,
                128,
                1,
                3,
                3,
            ),
            'features.layer2.0.conv1.0.3.weight': (128, 230, 3, 1, 1),
        }
    )
    assert typed.items() <= keys.items()
    assert released_keys(name, 20, 'tac').keys() - keys.keys() == {'fc.weight', 'fc.bias'}


@pytest.mark.parametrize(
    'name, task, gvf, classes',
    [
        ('r2plus1d_34', 'tsp', True, 200),
        ('r2plus1d_34', 'tac', True, 400),
        ('r2plus1d_18', 'tsp', True, 20),
        ('r2plus1d_18', 'tac', True, 200),
        ('r3d_18', 'tsp', True, 200),
        ('r3d_18', 'tsp', False, 200),
        ('r3d_18', 'tac', True, 400),
    ],
)
def test_released(tmp_path, name, task, gvf, classes):
    "Every key loads; the forward pass is the independent one; what is written again is what was read."
    torch.manual_seed(1)
    released = numbers(released_keys(name, classes, task, gvf))
    torch.save({'model': collections.OrderedDict(released)}, tmp_path / 'a.pth')
    model, rest, report = load_encoder(tmp_path / 'a.pth', name)
    (tmp_path / 'a.pth').unlink()
    assert (report.backbone, report.prefix, report.read) == (name, 'model.features.', COUNTS[name])
    assert not (report.added or report.inflated or report.copies)
    heads = {k.removeprefix('model.'): v for k, v in rest.items()}
    assert {k.split('.')[0] for k in heads} == ({'fc1', 'fc2'} if task == 'tsp' else {'fc'})
    assert report.dropped == tuple(rest)
    x = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        a, b = model(x), plain(released, x, 1e-3 if name == 'r2plus1d_34' else 1e-5)
    assert (a - b).abs().max() < 1e-4 * b.abs().max() and b.std() > 1e-3
    path = save_released(
        tmp_path / ('b.pth' if task == 'tsp' else 'b.safetensors'), name, model.state_dict(), heads
    )
    back = torch.load(path, weights_only=True)['model'] if task == 'tsp' else load_file(path)
    assert back.keys() == released.keys() and all(
        torch.equal(back[k], released[k]) and back[k].dtype == released[k].dtype for k in back
    )
    if task == 'tsp':
        assert list(back) == list(released)
    path.unlink()


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A TAC state of R3D-18 to be spoilt, and a folder."
    return numbers(released_keys('r3d_18', 20, 'tac')), tmp_path_factory.mktemp('spoilt')


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda s: s.pop('features.stem.0.weight'), 'stem.0.weight (64, 3, 3, 7, 7) is missing'),
        (lambda s: s.pop('features.stem.1.running_var'), 'stem.1.running_var (64,) is missing'),
        (
            lambda s: s.update({'features.layer4.2.conv1.0.weight': torch.ones(1)}),
            'layer4.2.conv1.0.weight (1,) is one too many',
        ),
        (
            lambda s: s.update({'features.stem.1.bias': torch.ones(1)}),
            'stem.1.bias has shape (1,), needs (64,)',
        ),
        (
            lambda s: [
                s.pop('features.stem.0.weight'),
                s.update({'features.stem.1.bias': torch.ones(1)}),
            ],
            'stem.1.bias has shape (1,), needs (64,), ...',
        ),
        (lambda s: [s.pop(k) for k in list(s) if 'features' in k], 'fc.weight (20, 512)'),
    ],
)
def test_refused(small, spoil, words):
    "A tensor of the encoder that is missing, of another shape, or too much: one line names it and its shape."
    state, folder = dict(small[0]), small[1]
    spoil(state)
    torch.save(state, folder / 's.pth')
    with pytest.raises(InputError) as e:
        load_weights(folder / 's.pth', 'r3d_18')
    assert 's.pth' in str(e.value) and '\n' not in str(e.value) and words in str(e.value)


@pytest.mark.parametrize(
    'change',
    [
        lambda s: s.pop('features.stem.1.num_batches_tracked'),
        lambda s: s.update({'extra': torch.ones(1)}),
        lambda s: s.update({'fc.weight': torch.ones(7, 256)}),
        lambda s: s.pop('fc.bias'),
        lambda s: [s.pop('fc.weight'), s.pop('fc.bias')],
    ],
)
def test_not_refused(small, change):
    "Heads of any kind and counters of batches do not decide."
    state, folder = dict(small[0]), small[1]
    change(state)
    torch.save(state, folder / 's.pth')
    found, rest, report = load_weights(folder / 's.pth', 'r3d_18')
    assert {f'features.{k}' for k in found} == {k for k in small[0] if 'features' in k}
    assert set(rest) == {k for k in state if 'features' not in k} == set(report.dropped)
    assert report.added == sum(f'features.{k}' not in state for k in found)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_diverged(small, value):
    state = dict(small[0])
    state['features.layer1.0.conv1.1.bias'] = torch.full((64,), value)
    torch.save(state, small[1] / 'n.pth')
    with pytest.raises(InputError, match='layer1.0.conv1.1.bias first'):
        load_weights(small[1] / 'n.pth', 'r3d_18')


def test_wrong_network_names_the_right_one(small):
    torch.save(small[0], small[1] / 'w.pth')
    with pytest.raises(InputError, match='these are of r3d_18'):
        load_weights(small[1] / 'w.pth', 'r2plus1d_18')
    with pytest.raises(InputError, match='r2plus1d_34'):
        load_weights(small[1] / 'w.pth', 'r3d')


def test_save_refuses(small, tmp_path):
    state = {k.removeprefix('features.'): v for k, v in small[0].items() if 'features' in k}
    fc = {'fc.weight': torch.ones(3, 512), 'fc.bias': torch.ones(3)}
    for args in (
        (state, {'fc.weight': fc['fc.weight']}),
        (state, {}),
        (state, {'fc1.weight': fc['fc.weight'], 'fc1.bias': fc['fc.bias']}),
        (state, fc | {'fc.weight': torch.ones(())}),
        ({}, fc),
        (state, fc | {'x.weight': fc['fc.weight']}),
    ):
        with pytest.raises(InputError, match='give the state and the heads of a r3d_18'):
            save_released(tmp_path / 'x.pth', 'r3d_18', *args)
    with pytest.raises(InputError, match='r3d_18'):
        save_released(tmp_path / 'x.pth', 'tiny', state, fc)
    assert not list(tmp_path.iterdir())


def mcl_keys(probe=None):
    with torch.device('meta'):
        keys = {
            f'backbone.{k}': tuple(v.shape) for k, v in backbone('r2plus1d_50').state_dict().items()
        }
    for at in ('nce_inter_head', 'nce_intra_head', 'order_head'):
        keys |= {
            f'{at}.head.0.weight': (2048, 2048),
            f'{at}.head.0.bias': (2048,),
            f'{at}.head.2.weight': (128, 2048),
            f'{at}.head.2.bias': (128,),
        }
    keys |= {'order_classfier.fc.weight': (2, 384), 'order_classfier.fc.bias': (2,)}
    if probe:
        keys |= {'classfier.fc.weight': (probe, 2048), 'classfier.fc.bias': (probe,)}
    return {f'module.{k}': s for k, s in keys.items()}


def plain_mcl(w, x):
    "MCL's encoder straight from its keys."

    def bn(at, x):
        return F.batch_norm(
            x,
            *(
                w[f'module.backbone.{at}.{n}']
                for n in ('running_mean', 'running_var', 'weight', 'bias')
            ),
        )

    def conv(at, x, *args):
        return F.conv3d(x, w[f'module.backbone.{at}.weight'], None, *args)

    x = F.max_pool3d(
        bn('bn1', conv('conv1', x, (4, 2, 2), (0, 3, 3))).relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1)
    )
    for stage, count in enumerate((3, 4, 6, 3), 1):
        for at in (f'layer{stage}.{b}' for b in range(count)):
            s = (1, 2, 2) if stage > 1 and at.endswith('.0') else (1, 1, 1)
            y = bn(f'{at}.bn1', conv(f'{at}.conv1', x)).relu()
            y = conv(f'{at}.conv2_t', conv(f'{at}.conv2', y, s, (0, 1, 1)), 1, (1, 0, 0))
            y = bn(f'{at}.bn3', conv(f'{at}.conv3', bn(f'{at}.bn2', y).relu()))
            x = (
                y
                + (
                    bn(f'{at}.downsample.1', conv(f'{at}.downsample.0', x, s))
                    if at.endswith('.0')
                    else x
                )
            ).relu()
    return x.mean((2, 3, 4))


@pytest.mark.parametrize('probe', [None, 101])
def test_mcl(tmp_path, probe):
    keys = mcl_keys(probe)
    assert len(keys) == 334 + 14 + (2 if probe else 0)
    state = numbers(keys)
    ema = {k: v for k, v in state.items() if v.ndim < 2}
    torch.save(
        dict(
            opt=argparse.Namespace(nce_k=131072, lr_decay_epochs=[120, 160], root_path='data'),
            model=state,
            model_ema=ema,
            contrast={'params': torch.ones(1), 'memory': torch.zeros(4, 128)},
            optimizer={'state': {}, 'param_groups': [{'lr': 0.01}]},
            scheduler={'last_epoch': 3, 'milestones': collections.Counter([4])},
            epoch=200,
        ),
        tmp_path / 'current.pth',
    )
    model, rest, report = load_encoder(tmp_path / 'current.pth', 'r2plus1d_50')
    assert (report.prefix, report.read, report.copies) == ('model.module.backbone.', 334, ())
    assert sum(k.startswith('model.module.') for k in rest) == len(keys) - 334
    assert all(torch.equal(v, state[f'module.backbone.{k}']) for k, v in model.state_dict().items())
    if probe:
        return
    x = torch.randn(2, 3, 12, 64, 64)
    with torch.no_grad():
        a, b = model(x), plain_mcl(state, x)
    assert (a - b).abs().max() < 1e-4 * b.abs().max() and b.std() > 1e-3


@pytest.mark.parametrize('fc', [True, False])
@pytest.mark.parametrize('tracked', [True, False])
def test_moco(tmp_path, fc, tracked):
    "Picture weights are inflated; very old files lack the batch counters; the momentum encoder is a copy."
    two = torchvision.models.resnet50()
    two.fc = (
        nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
        if fc
        else nn.Identity()
    )
    state = {
        f'module.encoder_q.{k}': v
        for k, v in two.state_dict().items()
        if tracked or 'tracked' not in k
    }
    momentum = {k.replace('_q', '_k'): v.double() / 2 for k, v in state.items()}
    beside = {'module.queue_ptr': torch.zeros(1)}
    torch.save(
        dict(epoch=200, arch='resnet50', state_dict=state | momentum | beside),
        tmp_path / 'm.pth.tar',
    )
    weights, rest, report = load_weights(tmp_path / 'm.pth.tar', 'r2plus1d_50')
    at = 'state_dict.module.encoder_'
    assert (report.prefix, report.copies, report.inflated) == (f'{at}q.', (f'{at}k.',), True)
    assert sum('encoder_q.fc' in k for k in rest) == (4 if fc else 0)
    assert report.added == (0 if tracked else 53)
    assert torch.equal(weights['conv1.weight'][:, :, 1], two.conv1.weight) and len(weights) == 334
    if fc:
        assert torch.equal(rest[f'{at}q.fc.2.weight'], two.fc[2].weight)
    copy = load_weights(tmp_path / 'm.pth.tar', 'r2plus1d_50', 'encoder_k')[0]
    assert torch.equal(copy['conv1.weight'], weights['conv1.weight'].double() / 2)
    with pytest.raises(InputError, match='these are of r2plus1d_50'):
        load_weights(tmp_path / 'm.pth.tar', 'resnet_18_2d')


@pytest.mark.parametrize(
    'name, make',
    [
        ('r3d_18', torchvision.models.video.r3d_18),
        ('r2plus1d_18', torchvision.models.video.r2plus1d_18),
        ('resnet_18_2d', torchvision.models.resnet18),
    ],
)
def test_torchvision_files(tmp_path, name, make):
    theirs = make(num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / 't.pth')
    model, rest, report = load_encoder(tmp_path / 't.pth', name)
    assert (report.prefix, report.dropped) == ('', ('fc.weight', 'fc.bias'))
    x = torch.randn(1, 3, 1, 32, 32)
    with torch.no_grad():
        want = theirs.eval()(x[:, :, 0] if '2d' in name else x)
    torch.testing.assert_close(
        model(x) @ rest['fc.weight'].T + rest['fc.bias'], want, atol=1e-4, rtol=1e-4
    )


def tiny():
    return {f'model.backbone.{k}': v for k, v in backbone('tiny').state_dict().items()}


@pytest.mark.parametrize(
    'suffix, save',
    [
        ('.pth', torch.save),
        ('.pt', torch.save),
        ('.pth', lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False)),
        ('.safetensors', save_file),
    ],
)
def test_formats(tmp_path, suffix, save):
    state = tiny()
    save(state, tmp_path / f'f{suffix}')
    weights, rest, report = load_weights(tmp_path / f'f{suffix}', 'tiny')
    assert report.prefix == 'model.backbone.' and not rest
    assert all(torch.equal(weights[k.removeprefix('model.backbone.')], v) for k, v in state.items())


class Call:
    "A pickle that calls something when it is read."

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Late:
    "An innocent class with a state that calls something."

    def __init__(self, inner):
        self.inner = inner


MEAN = [
    lambda p: Call(os.system, f'touch "{p}"'),
    lambda p: Call(exec, f'open({str(p)!r}, "w")'),
    lambda p: Call(open, str(p), 'w'),
    lambda p: Late(Call(open, str(p), 'w')),
    lambda p: Call(getattr, Call(__import__, 'os'), 'system'),
    lambda p: Call(torch.load, str(p)),
    lambda p: Call(argparse.Namespace, Call(open, str(p), 'w')),
]
HIDE = [
    lambda e: e,
    lambda e: {'model': e},
    lambda e: {'model': tiny(), 'args': e},
    lambda e: {'model': tiny(), 'opt': argparse.Namespace(x=[e])},
    lambda e: {'model': {**tiny(), 'x': e}},
]


@pytest.mark.parametrize('mean', range(len(MEAN)))
@pytest.mark.parametrize('hide', range(len(HIDE)))
@pytest.mark.parametrize('zipped', [True, False])
def test_harm(tmp_path, mean, hide, zipped):
    "Refused in one line that names the file, and nothing happened."
    marker, path = tmp_path / 'marker', tmp_path / 'evil.pth'
    torch.save(HIDE[hide](MEAN[mean](marker)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match='refused, and nothing of it was run') as e:
        load_weights(path, 'tiny')
    assert not marker.exists() and str(path) in str(e.value) and '\n' not in str(e.value)


def test_the_harm_is_real(tmp_path):
    "The same bytes do run when they are opened without care."
    for i in (0, 1, 2):
        marker = tmp_path / f'marker{i}'
        pickle.loads(pickle.dumps(MEAN[i](marker)))
        assert marker.exists()


def text(word):
    return b'X' + len(word).to_bytes(4, 'little') + word.encode()


@pytest.mark.parametrize(
    'steps',
    [
        b'}' + text('a') + b'K\x01sb',  # attributes, as argparse has them
        b'}'
        + text('__setstate__')
        + b'ccollections\nOrderedDict\nsb'
        + b'}'
        + text('a')
        + b'K\x01sb',  # a state setter of its own, then used
        b'N}'
        + text('__class__')
        + b'ccollections\nCounter\ns\x86b',  # another class, by way of slots
        b'}' + text('__dict__') + b'}sb',
    ],
    ids=['plain', 'setter', 'class', 'dict'],
)
def test_namespace_cannot_be_bent(tmp_path, steps):
    "Instructions written by hand, in place of those that `torch.save` wrote."
    torch.save({}, tmp_path / 'old.pth')
    allowed = set(torch.serialization.get_safe_globals())
    body = b'\x80\x02}' + text('args') + b'cargparse\nNamespace\n)\x81' + steps + b's.'
    with (
        zipfile.ZipFile(tmp_path / 'old.pth') as old,
        zipfile.ZipFile(tmp_path / 'new.pth', 'w') as new,
    ):
        for record in old.namelist():
            new.writestr(record, body if record.endswith('data.pkl') else old.read(record))
    args = read_file(tmp_path / 'new.pth')['args']
    assert (
        type(args).__name__ == '_Nothing'
        and not hasattr(args, '__dict__')
        and not hasattr(args, 'a')
    )
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.filterwarnings('ignore:Validating sparse')
@pytest.mark.parametrize(
    'content',
    [
        torch.ones(3),
        [1],
        'text',
        {},
        {'model': {}},
        {'model': {'a': 1}},
        {'model': {3: torch.ones(1)}},
        {'a': torch.ones(2).to_sparse()},
        {'a': torch.ones(2, dtype=torch.cfloat)},
        {'a': torch.empty(2, device='meta')},
    ],
)
def test_no_weights(tmp_path, content):
    torch.save(content, tmp_path / 'c.pth')
    with pytest.raises(InputError, match='c.pth') as e:
        load_weights(tmp_path / 'c.pth', 'tiny')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'suffix, zipped', [('.pth', True), ('.pth', False), ('.safetensors', True)]
)
def test_damage(tmp_path, suffix, zipped):
    "Cut or flipped anywhere: an InputError, or weights of the right shapes; never another exception."
    path, rng = tmp_path / f'd{suffix}', random.Random(0)
    if suffix == '.safetensors':
        save_file(
            {f'model.backbone.{k}': v for k, v in backbone('tiny').state_dict().items()}, path
        )
    else:
        torch.save(tiny(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for i in range(40):
        data = bytearray(whole)
        if i % 2:
            data = data[: rng.randrange(len(data))] if i % 4 == 1 else data[: rng.randrange(2000)]
        else:
            for _ in range(3):
                data[rng.randrange(4000) if i % 4 else -rng.randrange(1, 4000)] ^= (
                    1 << rng.randrange(8)
                )
        path.write_bytes(data)
        try:
            state = load_weights(path, 'tiny')[0]
        except InputError as e:
            assert '\n' not in str(e)
        else:
            assert set(state) == set(backbone('tiny').state_dict())


@pytest.mark.parametrize('name', ['none.pth', 'none.safetensors', ''])
def test_no_file(tmp_path, name):
    with pytest.raises(InputError):
        read_file(tmp_path / name)


WORDS = st.sampled_from(
    'module _orig_mod model net encoder encoder_q 0 backbone state_dict model_state'.split()
)
NETS = {}


def net(name):
    "A state of random numbers, made once."
    if name not in NETS:
        NETS[name] = numbers({k: tuple(v.shape) for k, v in backbone(name).state_dict().items()})
    return NETS[name]


def wrap(state, levels, before):
    "A state under words, in dictionaries that hold other things too."
    content = {''.join(f'{w}.' for w in before) + k: v for k, v in state.items()}
    for word in reversed(levels):
        beside = {'epoch': 3, 'lr': 0.1, 'optimizer': {'state': {0: {'exp_avg': torch.ones(2)}}}}
        content = {'args': argparse.Namespace(x=1), word: content, **beside}
    return content


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(['tiny', 'tiny', 'r3d_18']),
    levels=st.lists(WORDS, max_size=3),
    before=st.lists(WORDS, max_size=4),
    head=st.integers(0, 400),
    counters=st.booleans(),
    where=st.floats(0, 1, exclude_max=True),
)
def test_any_wrapping(tmp_path_factory, name, levels, before, head, counters, where):
    "Whatever stands around a network, its tensors are read back; one of another shape is named."
    path = tmp_path_factory.mktemp('wrapped') / 'w.pth'
    inner = {k: v for k, v in net(name).items() if counters or 'tracked' not in k}
    heads = {'fc.weight': torch.ones(head, 2), 'fc.bias': torch.ones(head)} if head else {}
    torch.save(wrap(inner | heads, levels, before), path)
    state, rest, report = load_weights(path, name)
    assert list(state) == list(net(name))
    assert all(torch.equal(state[k], v) for k, v in inner.items())
    assert report.prefix == ''.join(f'{word}.' for word in levels + before)
    assert report.read + report.added == len(state) and set(heads) <= set(report.dropped)
    assert f'read {len(inner)} of {report.tensors} tensors' in str(report)
    shaped = [k for k in inner if 'tracked' not in k]
    wrong = shaped[int(where * len(shaped))]
    torch.save(wrap(inner | heads | {wrong: torch.ones(3, 1)}, levels, before), path)
    with pytest.raises(InputError) as e:
        load_weights(path, name)
    assert f'{wrong} has shape (3, 1), needs {tuple(inner[wrong].shape)}' in str(e.value)
    path.unlink()


def test_wrappers_of_layers(tmp_path):
    "Compiled or sharded layer by layer, the wrapper stands in the middle of a name."
    state = {}
    for k, v in net('tiny').items():
        part, *names = k.split('.')
        wrapper = '_fsdp_wrapped_module' if part == 'stem' else '_orig_mod'
        state['.'.join(['model', '_orig_mod', part, wrapper, *names])] = v
    torch.save(state, tmp_path / 'w.pth')
    found, _, report = load_weights(tmp_path / 'w.pth', 'tiny')
    assert all(torch.equal(found[k], v) for k, v in net('tiny').items())
    assert report.prefix == 'model._orig_mod.'


@pytest.mark.parametrize(
    'plain, copy',
    [
        ('state_dict.', 'state_dict_ema.'),
        ('state_dict.', 'ema_state_dict.'),
        ('model.', 'model_ema.'),
        ('model.module.', 'ema.module.'),
        ('state_dict.encoder_q.0.', 'state_dict.encoder_k.0.'),
        ('state_dict.encoder_q.0.', 'state_dict.sampler.0.'),
        ('student.backbone.', 'teacher.backbone.'),
        ('model.backbone.', 'model.key_backbone.'),
        ('net.', 'averaged.net.'),
    ],
)
@pytest.mark.parametrize('turned', [False, True])
def test_copies(tmp_path, plain, copy, turned):
    "The trained network is read, whichever comes first; the copy if it is asked for, or alone."
    both = {plain: net('tiny'), copy: {k: v + 1 for k, v in net('tiny').items()}}
    order = reversed(both) if turned else both
    content = {f'{prefix}{k}': v for prefix in order for k, v in both[prefix].items()}
    torch.save(content, tmp_path / 'c.pth')
    for pick, prefix, other in (('', plain, copy), (copy, copy, plain)):
        state, _, report = load_weights(tmp_path / 'c.pth', 'tiny', pick)
        assert (report.prefix, report.copies, report.dropped) == (prefix, (other,), ())
        assert all(torch.equal(state[k], v) for k, v in both[prefix].items())
        assert f'not taken: the network under `{other}`' in str(report)
    torch.save({k: v for k, v in content.items() if k.startswith(copy)}, tmp_path / 'c.pth')
    assert load_weights(tmp_path / 'c.pth', 'tiny')[2].prefix == copy
    with pytest.raises(
        InputError, match="no tiny with 'swap' in its prefix; give weights of tiny;"
    ):
        load_weights(tmp_path / 'c.pth', 'tiny', 'swap')


def test_two_networks(tmp_path):
    "Nobody can choose between two trained networks; equal ones are one."
    torch.save(
        {'a': net('tiny'), 'b': {k: v + 1 for k, v in net('tiny').items()}}, tmp_path / 'n.pth'
    )
    with pytest.raises(InputError, match="networks under 'a.' and 'b.'; say which"):
        load_weights(tmp_path / 'n.pth', 'tiny')
    assert load_weights(tmp_path / 'n.pth', 'tiny', 'b.')[2].prefix == 'b.'
    torch.save({'a': net('tiny'), 'b': dict(net('tiny'))}, tmp_path / 'n.pth')
    assert load_weights(tmp_path / 'n.pth', 'tiny')[2].copies == ('b.',)


class AttributeDict(dict):
    "As Lightning pickles the settings of a run."


AttributeDict.__module__ = 'lightning_fabric.utilities.data'


def test_settings_beside_weights(tmp_path, monkeypatch):
    "What training programs keep beside the tensors is skipped, and none of it is built."
    module = types.ModuleType('lightning_fabric.utilities.data')
    module.AttributeDict = AttributeDict
    for name in ('lightning_fabric', 'lightning_fabric.utilities', module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    beside = dict(
        hyper_parameters=AttributeDict(lr=0.1, out=pathlib.PosixPath('runs/a')),
        best=np.float64(0.7),
        args=argparse.Namespace(epochs=3),
        cfg='MODEL:\n  NAME: slow\n',
    )
    torch.save(dict(state_dict=net('tiny'), **beside), tmp_path / 'l.ckpt')
    monkeypatch.undo()
    content = read_file(tmp_path / 'l.ckpt')
    assert type(content['hyper_parameters']) is collections.OrderedDict
    assert content['hyper_parameters']['lr'] == 0.1
    assert load_weights(tmp_path / 'l.ckpt', 'tiny')[2].read == 60


def packed(whole, tmp_path, kind):
    "An archive around a file."
    path = tmp_path / 'archive'
    if kind == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('weights.pth', whole)
    else:
        with tarfile.open(path, kind) as archive:
            archive.add(__file__, 'weights.pth')
    return path.read_bytes()


@pytest.mark.parametrize('name', ['f.pth', 'f.pth.tar', 'f.safetensors', 'f.ckpt'])
@pytest.mark.parametrize(
    'make, words',
    [
        (lambda whole, at: b'', 'an empty file; download'),
        (lambda whole, at: b'\n<!DOCTYPE html><html>Sign in</html>', 'a web page; download'),
        (lambda whole, at: b'\xef\xbb\xbf<html>', 'a web page; download'),
        (
            lambda whole, at: (
                b'version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n'
            ),
            'a Git LFS pointer; run `git lfs pull`',
        ),
        (lambda whole, at: whole[: len(whole) // 2], 'cut off after'),
        (
            lambda whole, at: b'epoch,loss\n1,2\n',
            "begins with b'epoch,lo'; give one that torch.save",
        ),
        (lambda whole, at: packed(whole, at, 'zip'), 'an archive; unpack it'),
        (lambda whole, at: packed(whole, at, 'w'), 'an archive; unpack it'),
        (lambda whole, at: packed(whole, at, 'w:gz'), 'an archive; unpack it'),
    ],
)
def test_no_checkpoint(tmp_path, name, make, words):
    "What came instead of the weights is named, whatever the file is called."
    torch.save(tiny(), tmp_path / 'whole')
    (tmp_path / name).write_bytes(make((tmp_path / 'whole').read_bytes(), tmp_path))
    with pytest.raises(InputError) as e:
        load_weights(tmp_path / name, 'tiny')
    assert words in str(e.value) and '\n' not in str(e.value) and name in str(e.value)


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')
def test_torchscript(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / 's.pt'))
    with pytest.raises(InputError, match=r'a TorchScript program; save the state_dict\(\)'):
        load_weights(tmp_path / 's.pt', 'tiny')


@pytest.mark.parametrize('name', ['f.pth', 'f.pth.tar', 'f.safetensors', 'f'])
@pytest.mark.parametrize('save', [torch.save, save_file])
def test_names_do_not_matter(tmp_path, name, save):
    "Both formats under any ending."
    save(tiny(), tmp_path / name)
    assert load_weights(tmp_path / name, 'tiny')[2].read == 60
