"A store of motion: equal to direct computation, alive after kill -9, deaf to a turned bit, and read by training."

import dataclasses
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from einops import rearrange
from torch.testing import assert_close

from vidrepro.clips.contract import Clip
from vidrepro.core.files import InputError
from vidrepro.core.random import generator
from vidrepro.data.datasets import from_folder
from vidrepro.data.video import read_clips
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.learning.train import Batches
from vidrepro.motion import motion_store
from vidrepro.motion.flow import dequantize, flow, quantize
from vidrepro.motion.maps import motion_boundary, motion_map
from vidrepro.motion.motion_store import Making, MotionStore, make_store
from vidrepro.papers import mcl, mcl_views
from vidrepro.runs import execute
from vidrepro.runs.methods import pick_preset
from vidrepro.runs.run import Run, open_run

FRAMES, COUNT = 24, 8
QUICK = dict(flow='difference', frames=4, batch=4, candidates=4, queue=0, hidden=16, warmup=0)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp('films') / 'mine'
    write_videos(MovingDigits(COUNT, length=FRAMES, motions=('left', 'right')), home, 15)
    return home


def config(folder, store='', **changes):
    more = dict(data=str(folder), motion=str(store), stride=2)
    return pick_preset('mcl', 'tiny', **QUICK | more | changes)


def source_of(folder, cfg):
    return dataclasses.replace(from_folder(folder), clip=cfg.clip)


@pytest.fixture(scope='module')
def store(folder, tmp_path_factory):
    cfg, out = config(folder), tmp_path_factory.mktemp('store') / 'mine.motion'
    make_store(source_of(folder, cfg), out, mcl_views.making_of(cfg), most=3)
    return out


class TestEquality:
    def test_tvl1_of_a_video(self, folder):
        "Chunks of sixteen frames and all at once: the same bytes, but for a rounding."
        file = sorted(folder.rglob('*.mp4'))[0]
        direct = quantize(flow(read_clips(file, np.arange(FRAMES)[None])))[0]
        found = motion_store.video_flow(file, Making(Clip(4, 1, 32)))
        apart = (found.int() - rearrange(direct, 'c t h w -> t c h w').int()).abs()
        assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3 and found.float().std() > 1

    @pytest.mark.parametrize('reading', ['paper', 'official'])
    def test_maps_of_a_batch(self, folder, tmp_path, reading):
        "What views are made of: flow to the next frame of the file, then Eq. (1), then the grid."
        cfg = config(folder, tmp_path / 'store', reading=reading, crop=1.0)
        source = source_of(folder, cfg)
        make_store(source, tmp_path / 'store', mcl_views.making_of(cfg))
        more = dict(sample=lambda n, g: mcl.sample(n, g, cfg), size=4)
        batch = Batches(source, **more, extras=lambda *a: mcl.extras(*a, cfg))[0]
        assert batch['clips'].shape == (4, 2, 3, 4, 32, 32)  # chosen before they were read
        seen = mcl.views(batch, generator(0), cfg)
        for i, frames in zip(batch['index'].tolist(), seen.frames):
            first = frames.clamp(max=FRAMES - 2)  # the last flow repeats
            both = torch.stack([first, first + 1], 2).flatten(0, 1)
            pairs = flow(source.clips(torch.tensor([i]), both[None])[0], 'difference')
            moves = rearrange(quantize(pairs), '(n t) c 1 h w -> n c t h w', n=2)
            want = motion_map(dequantize(moves), (2, 32, 32), reading)
            row = batch['index'].tolist().index(i)
            got = mcl_views.measure(batch['clips'][[row]], cfg, dequantize(batch['flow'][[row]]))[0]
            assert_close(got, want)
            crop = mcl_views.crop_maps(want[:1], seen.boxes[row, :1], (8, 8))[0]
            assert_close(seen.motion[row], crop)

    def test_scores_choose(self, folder, store):
        "Every clip that is shown has at least the median score of its candidates."
        cfg = config(folder, store)
        source, held = source_of(folder, cfg), MotionStore(store)
        index, lengths = torch.arange(COUNT), torch.full((COUNT,), FRAMES)
        drawn = mcl.sample(lengths, generator(1), cfg)
        got = mcl.extras(source, index, drawn, cfg)
        scores = motion_store.scores_of(held, source, index, drawn.frames[..., 0])
        chosen = motion_store.scores_of(held, source, index, got['drawn'].frames[..., 0])
        assert (chosen >= scores.quantile(0.5, 1, keepdim=True)).all()
        for i, j in ((0, 0), (3, 7)):
            key = motion_store.in_file(source, i, torch.tensor([0]))[0]
            whole = dequantize(held.flow(key, j + torch.arange(8)))
            want = motion_boundary(rearrange(whole, 't c h w -> 1 c t h w')).mean()
            assert_close(held.scores(key)[j], want, rtol=1e-4, atol=1e-6)

    def test_nothing_is_read_that_nobody_needs(self, folder, store):
        cfg = config(folder, store, **mcl.ABLATION['contrast'])
        drawn = mcl.sample(torch.full((2,), FRAMES), generator(1), cfg)
        assert list(mcl.extras(source_of(folder, cfg), torch.arange(2), drawn, cfg)) == ['drawn']


def killed_in_the_second_shard(folder, out, cfg):
    "Die as by kill -9, with the second shard half written."
    whole = motion_store.save_file

    def half(tensors, path):
        whole(tensors, path)
        if (out / motion_store.INDEX).is_file():
            with open(path, 'r+b') as file:
                file.truncate(os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    motion_store.save_file = half
    make_store(source_of(folder, cfg), out, mcl_views.making_of(cfg), most=3)


def test_kill_and_resume(folder, store, tmp_path):
    out, cfg = tmp_path / 'store', config(folder)
    child = multiprocessing.get_context('fork').Process(
        target=killed_in_the_second_shard, args=(folder, out, cfg)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(motion_store.read_index(out)['shards']) == 1
    made = make_store(source_of(folder, cfg), out, mcl_views.making_of(cfg), most=3)
    assert (made.known, made.videos) == (3, COUNT - 3)
    names = {p.name for p in out.iterdir()} - {'.lock'}
    assert names == {p.name for p in store.iterdir()} - {'.lock'}  # nothing half is left
    for shard in motion_store.read_index(store)['shards']:
        assert (out / shard['file']).read_bytes() == (store / shard['file']).read_bytes()


def test_one_bit(folder, store, tmp_path):
    "A shard with a turned bit stops a run before its first step; what is deleted is made again."
    out, cfg = tmp_path / 'store', config(folder)
    making, source = mcl_views.making_of(cfg), source_of(folder, cfg)
    make_store(source, out, making, most=3)
    shard = sorted(out.glob('*.safetensors'))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run = Run('mcl/tiny/x-s0', 'mcl', config(folder, out, steps=1))
    with pytest.raises(InputError, match=f'motion shard .*{shard.name}.*delete it'):
        execute.train(run, tmp_path / 'run', 'cpu', quiet=True)
    assert not (tmp_path / 'run' / 'checkpoint.safetensors').exists()
    shard.unlink()
    with pytest.raises(InputError, match='no such file'):
        MotionStore(out).require(source, making)
    assert make_store(source, out, making, most=3).videos == 3
    assert shard.read_bytes() == whole


def test_training_reads_it(folder, store, tmp_path):
    "The same numbers whether flow comes from the store or, at stride 1, is computed; and the card names it."
    run = Run('mcl/tiny/x-s0', 'mcl', config(folder, store, steps=2))
    execute.train(run, tmp_path / 'run', 'cpu', quiet=True)
    saved = open_run(tmp_path / 'run')
    assert saved.run.config.motion == str(store) and saved.record['step'] == 2
    assert saved.run.settings()['motion'] == store.name
    assert not {'motion', 'border', 'when', 'other_motion'} & set(
        Run('x', 'mcl', pick_preset('mcl', 'tiny')).settings()
    )


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(stride=1), 'stride 2, 1 asked'),
        (dict(flow='dis'), "method 'difference', 'dis' asked"),
        (dict(border=2), 'border 0, 2 asked'),
    ],
)
def test_refused(folder, store, changes, words):
    cfg = config(folder, store, **changes)
    with pytest.raises(InputError, match=words):
        mcl.context(source_of(folder, cfg), torch.nn.Identity(), cfg, '')


def test_strangers_are_refused(folder, store, tmp_path):
    other = write_videos(MovingDigits(2, length=FRAMES, seed=9), tmp_path / 'new', 15)
    cfg = config(tmp_path / 'new', store)
    with pytest.raises(InputError, match='no video .*vidrepro data motion'):
        mcl.context(source_of(tmp_path / 'new', cfg), torch.nn.Identity(), cfg, '')
    assert other
    with pytest.raises(InputError, match='painted videos need none'):
        mcl.context(MovingDigits(4), torch.nn.Identity(), cfg, '')
