"Training survives kill -9, ctrl-C and bad checkpoints; batches are functions of numbers."

import ast
import dataclasses
import importlib
import inspect
import multiprocessing
import os
import random
import signal
import time
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from vidrepro.core.checkpoint import read_checkpoint, read_log
from vidrepro.core.files import InputError
from vidrepro.core.settings import override
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.learning import train
from vidrepro.learning.recipe import RANGES, Recipe, adamw, lr_at
from vidrepro.learning.train import (
    EMA,
    Batches,
    Callback,
    Checkpoint,
    Learner,
    Log,
    Schedule,
    prefetch,
)
from vidrepro.papers import tec

CONFIG = dataclasses.replace(
    tec.PRESETS['tiny'], videos=40, length=64, batch=8, steps=12, warmup=4, hidden=32, dim=16
)
children = multiprocessing.get_context(
    'forkserver'
)  # imports once; each child has its own process to be killed
children.set_forkserver_preload(
    [
        'vidrepro.papers.tec',
        'vidrepro.learning.train',
        'vidrepro.digits.moving_digits',
        'tensorboard',
    ]
)


def digits(cfg):
    return MovingDigits(n=cfg.videos, size=cfg.size, length=cfg.length)


def batches_of(cfg, **kw):
    return Batches(digits(cfg), partial(tec.sample, cfg=cfg), cfg.batch, cfg.seed, **kw)


def learner_of(cfg, callbacks, **kw):
    model = tec.build(cfg)
    return Learner(
        model,
        partial(tec.loss, cfg=cfg),
        partial(tec.views, cfg=cfg),
        batches_of(cfg),
        adamw(model, cfg.lr, cfg.weight_decay),
        callbacks,
        device='cpu',
        seed=cfg.seed,
        **kw,
    )


def train_tec(folder, cfg=CONFIG, every=3, method='tec'):
    "A short run with a row for every step; goes on where the folder's checkpoint stopped."
    torch.set_num_threads(1)
    about = dict(method=method, config=dataclasses.asdict(cfg))
    callbacks = [
        Checkpoint(folder / 'c.safetensors', about, every),
        Log(folder, every=1),
        Schedule(cfg.lr, cfg.warmup, cfg.schedule),
    ]
    return learner_of(cfg, callbacks).fit(cfg.steps)


def child(folder, **kw):
    process = children.Process(target=train_tec, args=(folder,), kwargs=kw)
    process.start()
    return process


def wait_for(folder, step, process, seconds=90):
    "Until the log has reached a step."
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.is_alive():
        if any(r['step'] >= step for r in read_log(folder / 'log.csv')):
            return
        time.sleep(0.002)
    raise AssertionError(f'step {step} was not reached: exit code {process.exitcode}')


def end(process):
    process.join(90)
    return process.exitcode


def losses(folder):
    return [(r['step'], r['loss'], r['lr']) for r in read_log(folder / 'log.csv')]


def assert_same(folder, whole):
    "Weights, optimizer and header are equal to the last bit; the log has every step once."
    (a, about), (b, same) = (read_checkpoint(f / 'c.safetensors') for f in (folder, whole))
    assert about == same and a.keys() == b.keys()
    assert not [k for k in a if not torch.equal(a[k], b[k])]
    assert [r[0] for r in losses(folder)] == list(range(1, CONFIG.steps + 1))
    assert losses(folder) == losses(whole)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that nothing interrupts."
    folder = tmp_path_factory.mktemp('whole')
    assert end(child(folder)) == 0
    assert any(k.startswith('optimizer.') for k in read_checkpoint(folder / 'c.safetensors')[0])
    return folder


class TestKilled:
    @pytest.mark.parametrize('seed', range(3))
    def test_kill(self, tmp_path, whole, seed):
        "kill -9 twice, at steps and after delays that a seed decides."
        dice = random.Random(seed)
        for step in sorted(dice.sample(range(1, CONFIG.steps - 2), 2)):
            process = child(tmp_path, every=dice.choice((2, 3)))
            wait_for(tmp_path, step, process)
            time.sleep(dice.uniform(0, 0.05))
            os.kill(process.pid, signal.SIGKILL)
            assert end(process) == -signal.SIGKILL
        assert end(child(tmp_path)) == 0
        assert_same(tmp_path, whole)
        assert not [p.name for p in tmp_path.glob('.*') if p.suffix == '.csv']

    @pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
    def test_asked_to_stop(self, tmp_path, whole, name):
        "Ctrl-C, or the end of a job: the step is finished and saved, and the restart ends like the whole run."
        process = child(tmp_path, every=1000)
        wait_for(tmp_path, 4, process)
        os.kill(process.pid, getattr(signal, name))
        assert end(process) not in (
            0,
            None,
            -getattr(signal, name),
        )  # ends by an exception, which ran the way out
        saved = read_checkpoint(tmp_path / 'c.safetensors')[1]['step']
        assert 4 <= saved < CONFIG.steps and saved == losses(tmp_path)[-1][0]
        assert end(child(tmp_path)) == 0
        assert_same(tmp_path, whole)

    def test_torn_log(self, tmp_path, whole):
        "A row that a crash cut off, and rows beyond the checkpoint, are written again."
        process = child(tmp_path)
        wait_for(tmp_path, 5, process)
        process.kill()
        end(process)
        with open(tmp_path / 'log.csv', 'a') as f:
            f.write('99,0.1\n7,')
        assert end(child(tmp_path)) == 0
        assert_same(tmp_path, whole)

    def test_finished_run_is_left_alone(self, whole):
        before = (whole / 'c.safetensors').read_bytes()
        assert train_tec(whole).step == CONFIG.steps
        assert (whole / 'c.safetensors').read_bytes() == before


class TestRefused:
    def refused(self, folder, word, **kw):
        with pytest.raises(InputError, match=word):
            train_tec(folder, **kw)

    def test_other_method(self, whole):
        self.refused(whole, "give one of method 'mcl'", method='mcl')

    def test_other_settings(self, whole):
        self.refused(whole, 'other settings', cfg=dataclasses.replace(CONFIG, tau=0.2))

    @pytest.mark.parametrize('keep', [0, 7, 1000, -1])
    def test_torn(self, whole, tmp_path, keep):
        (tmp_path / 'c.safetensors').write_bytes((whole / 'c.safetensors').read_bytes()[:keep])
        self.refused(tmp_path, 'not a whole safetensors file')

    def test_foreign(self, tmp_path):
        from safetensors.torch import save_file

        save_file(dict(x=torch.ones(2)), tmp_path / 'c.safetensors')
        self.refused(tmp_path, 'of method None')

    def test_pickle(self, tmp_path):
        torch.save(dict(x=torch.ones(2)), tmp_path / 'c.safetensors')
        self.refused(tmp_path, 'not a whole safetensors file')


def test_learner_knows_no_paper():
    "Nothing that training imports, however indirectly, is a paper or above."
    todo, seen = ['vidrepro.learning.train'], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        tree, package = (
            ast.parse(inspect.getsource(importlib.import_module(name))),
            name.split('.')[:-1],
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                todo += [a.name for a in node.names if a.name.startswith('vidrepro')]
            if isinstance(node, ast.ImportFrom):
                base = (
                    '.'.join(
                        [*package[: len(package) + 1 - node.level], *filter(None, [node.module])]
                    )
                    if node.level
                    else node.module
                )
                if base.startswith('vidrepro'):
                    todo.append(base)
    assert seen >= {'vidrepro.learning.train', 'vidrepro.core.random', 'vidrepro.core.files'}
    assert not [
        m
        for m in seen
        if m.split('.')[1:2]
        and m.split('.')[1] in ('papers', 'experiments', 'cli', 'features', 'localize', 'data')
    ]


def flat(batch):
    return [batch['clips'], batch['index'], batch['labels'], *dataclasses.astuple(batch['drawn'])]


class TestBatches:
    @pytest.mark.parametrize('workers', [1, 2])
    def test_workers_do_not_matter(self, workers):
        "Random numbers are a function of (seed, number of the batch): of no process and no order."
        seen = {}
        for n in (0, workers):
            learn = learner_of(CONFIG, [], workers=n)
            learn.steps, learn.step = 9, 3
            seen[n] = [
                (v.clips, v.video, v.drawn.frames) for v in prefetch(train.views_ahead(learn))
            ]
        assert len(seen[0]) == 6
        assert_close(seen[workers], seen[0], rtol=0, atol=0)

    @pytest.mark.parametrize('ranks', [2, 4])
    def test_ranks_do_not_matter(self, ranks):
        for k in (0, 6):
            parts = zip(*(flat(batches_of(CONFIG, rank=r, ranks=ranks)[k]) for r in range(ranks)))
            joined = list(map(torch.cat, parts))
            assert_close(joined, flat(batches_of(CONFIG)[k]), rtol=0, atol=0)

    def test_epochs_and_runs(self):
        "Every video once an epoch, in another order and at other frames the next; a second run sees the same."
        a, b = batches_of(CONFIG), batches_of(CONFIG)
        n = CONFIG.videos // CONFIG.batch
        epochs = [[a[e * n + i] for i in range(n)] for e in range(2)]
        orders = [torch.cat([x['index'] for x in e]) for e in epochs]
        assert all(
            o.sort().values.equal(torch.arange(CONFIG.videos)) for o in orders
        ) and not orders[0].equal(orders[1])
        frames = [
            torch.cat([x['drawn'].frames for x in e])[o.argsort()] for e, o in zip(epochs, orders)
        ]
        assert (frames[0] != frames[1]).flatten(1).any(1).float().mean() > 0.9
        for k in (7, 0, 3):
            assert_close(flat(b[k]), flat(epochs[k // n][k % n]), rtol=0, atol=0)
        other = batches_of(dataclasses.replace(CONFIG, seed=1))
        assert not torch.equal(other[0]['index'], a[0]['index'])

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 200))
    def test_order(self, seed, epoch, videos):
        assert train.epoch_order(videos, seed, epoch).sort().values.equal(torch.arange(videos))


class Rows:
    lengths, labels = torch.full((64,), 20), torch.arange(64)

    def __len__(self):
        return 64

    def clips(self, index, frames):
        return (index[:, None, None] + frames / 100).float() / 64


@dataclasses.dataclass
class Drawn:
    frames: torch.Tensor


def line(accumulate=1, size=8, model=None, steps=1, callbacks=(), **kw):
    torch.manual_seed(0)
    model = model or nn.Linear(4, 1)
    batches = Batches(
        Rows(), lambda lengths, g: Drawn(torch.randint(16, (len(lengths), 1, 4), generator=g)), size
    )

    def loss(model, x):
        value = (model(x).float() - 3 * x.mean(1, keepdim=True)).square().mean()
        return value, dict(square=value)

    return Learner(
        model,
        loss,
        lambda batch, g: batch['clips'].flatten(1),
        batches,
        torch.optim.SGD(model.parameters(), 0.1),
        callbacks,
        device='cpu',
        accumulate=accumulate,
        **kw,
    ).fit(steps)


@pytest.mark.parametrize('accumulate', [2, 5])
def test_accumulated_is_mean_gradient(accumulate):
    "One step over several batches moves the weights by the mean of their gradients."

    class Keep(Callback):
        def before_step(self, learn):
            self.grad = learn.model.weight.grad.clone()

    keep = Keep()
    learn = line(accumulate, callbacks=[keep])
    grads = []
    for k in range(accumulate):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        learn.loss(model, learn.views(learn.batches[k], None))[0].backward()
        grads.append(model.weight.grad)
    assert_close(keep.grad, torch.stack(grads).mean(0))
    assert_close(
        learn.model.weight.detach(), model.weight.detach() - 0.1 * torch.stack(grads).mean(0)
    )


def test_bf16_on_the_processor():
    "Half precision runs a step of TEC, is finite, and is not the same as full precision."
    found = {}
    for precision in ('no', 'bf16'):
        learn = learner_of(CONFIG, [], precision=precision).fit(1)
        assert all(t.isfinite() for t in learn.terms.values()) and all(
            p.isfinite().all() for p in learn.model.parameters()
        )
        assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
        found[precision] = learn.total.item()
    assert 0 < abs(found['bf16'] - found['no']) < 0.1 * found['no']


def test_waiting_is_recorded(tmp_path):
    class Slow(Rows):
        def clips(self, index, frames):
            time.sleep(0.05)
            return super().clips(index, frames)

    torch.manual_seed(0)
    model, log = nn.Linear(4, 1), Log(tmp_path, every=2)
    batches = Batches(
        Slow(), lambda lengths, g: Drawn(torch.randint(16, (len(lengths), 1, 4), generator=g)), 8
    )

    def loss(model, x):
        value = model(x).square().mean()
        return value, dict(square=value)

    learn = Learner(
        model,
        loss,
        lambda batch, g: batch['clips'].flatten(1),
        batches,
        torch.optim.SGD(model.parameters(), 0.1),
        [log],
        device='cpu',
    )
    learn.fit(6)
    assert learn.waited > 0.2 and [r['step'] for r in read_log(tmp_path / 'log.csv')] == [2, 4, 6]
    assert all(r['wait'] > 0.5 and r['seconds_a_step'] > 0.03 for r in log.rows)


def test_error_in_the_data_reaches_the_loop():
    class Broken(Rows):
        def clips(self, index, frames):
            raise InputError('video 7', 'broken', 'skip it')

    torch.manual_seed(0)
    model, ends = nn.Linear(4, 1), []

    class End(Callback):
        def after_fit(self, learn):
            ends.append(learn.step)

    batches = Batches(Broken(), lambda lengths, g: Drawn(torch.zeros(len(lengths), 1, 4).long()), 8)
    with pytest.raises(InputError, match='video 7'):
        Learner(
            model,
            len,
            lambda batch, g: batch,
            batches,
            torch.optim.SGD(model.parameters(), 0.1),
            [End()],
            device='cpu',
        ).fit(3)
    assert ends == [0]


class Averaged(nn.Module):
    "A network and its average, which starts elsewhere."

    def __init__(self):
        super().__init__()
        layers = lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.fast, self.slow = layers(), layers().requires_grad_(False)

    def forward(self, x):
        return self.fast(x)


@settings(max_examples=5, deadline=None)
@given(st.floats(0, 1), st.integers(1, 6))
def test_ema_is_its_sum(momentum, steps):
    "The average after n steps, as a weighted sum of all weights that were."
    seen, model = [], Averaged()

    class Keep(Callback):
        def after_step(self, learn):
            seen.append(learn.model.fast[0].weight.detach().clone())

    start = model.slow[0].weight.clone()
    line(model=model, steps=steps, callbacks=[EMA(dict(slow='fast'), momentum), Keep()])
    want = momentum**steps * start + sum(
        (1 - momentum) * momentum ** (steps - 1 - i) * w for i, w in enumerate(seen)
    )
    assert_close(model.slow[0].weight, want, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in model.slow.parameters())


@pytest.mark.parametrize('buffers', [True, False])
def test_ema_copies_buffers_or_leaves_them(buffers):
    model = Averaged()
    start = [b.clone() for b in model.slow.buffers()]
    line(model=model, steps=3, callbacks=[EMA(dict(slow='fast'), 0.9, buffers)])
    want = model.fast.buffers() if buffers else start
    for a, b in zip(model.slow.buffers(), want, strict=True):
        assert torch.equal(a, b)
    assert model.slow[1].num_batches_tracked == (3 if buffers else 0)


def test_ema_names_what_is_missing():
    with pytest.raises(AttributeError, match='key'):
        line(model=Averaged(), callbacks=[EMA(dict(key='fast'))])


@given(
    st.integers(1, 500),
    st.integers(0, 600),
    st.floats(1e-6, 10),
    st.sampled_from(['cosine', 'constant']),
)
def test_schedule(steps, warmup, lr, schedule):
    "Within bounds; up during the ramp of a constant schedule, then never up again; the whole ends near nothing under a cosine."
    rates = [lr_at(k, steps, lr, warmup, schedule) for k in range(steps + 1)]
    assert all(0 <= r <= lr * (1 + 1e-9) for r in rates)
    late = rates[max(warmup - 1, 0) :]
    assert all(b <= a + 1e-12 for a, b in zip(late, late[1:]))
    if schedule == 'constant':
        assert all(b >= a for a, b in zip(rates, rates[1:])) and (
            warmup > steps or rates[-1] == pytest.approx(lr)
        )
    else:
        assert rates[-1] == pytest.approx(0, abs=1e-9)
    if warmup:
        assert rates[0] == pytest.approx(lr / warmup)


PAIRED = ('picture', 'resize', 'rate')  # checked against each other, not one by one
FIELDS = {f.name: type(f.default) for f in dataclasses.fields(tec.Config) if f.name not in PAIRED}
VALUES = {
    int: st.integers(1, 10**6),
    float: st.floats(0.01, 100),
    str: st.text(),
    bool: st.booleans(),
    tuple: st.lists(st.integers(1, 99), min_size=1).map(tuple),
}
CHOICES = dict(
    precision=('no', 'bf16', 'fp16'),
    schedule=('cosine', 'constant'),
    temporal=('equivariant', 'invariant'),
    spatial=('equivariant', 'invariant'),
    positives=('across', 'same'),
)
values = st.fixed_dictionaries(
    {},
    optional={
        k: st.sampled_from(CHOICES[k])
        if k in CHOICES
        else st.floats(*RANGES[k])
        if RANGES.get(k, (0, 2))[1] <= 1  # shares
        else VALUES[t]
        for k, t in FIELDS.items()
    },
)


class TestOverride:
    @given(values)
    def test_text_is_read_as_its_type(self, changes):
        "What str() prints, override reads; nothing else changes."
        read = override(tec.Config(), {k: str(v) for k, v in changes.items()})
        assert dataclasses.asdict(read) == {**dataclasses.asdict(tec.Config()), **changes}
        assert override(tec.Config(), changes) == read

    @given(st.text().filter(lambda k: k not in (*FIELDS, *PAIRED)))
    def test_unknown(self, name):
        with pytest.raises(InputError, match='there is none of that name'):
            override(Recipe(), {name: '1'})

    @pytest.mark.parametrize(
        'name, text',
        [
            ('steps', '1.5'),
            ('steps', ''),
            ('steps', '3e4'),
            ('lr', 'fast'),
            ('stop_gradient', '2'),
            ('speeds', '1,x'),
            ('batch', '0'),
            ('precision', 'fp8'),
            ('tau', '0'),
            ('speeds', ''),
        ],
    )
    def test_wrong(self, name, text):
        with pytest.raises(InputError, match=name):
            override(tec.Config(), {name: text})

    def test_frozen(self):
        recipe = Recipe()
        assert override(recipe, dict(lr='0.5')).lr == 0.5 and recipe.lr == Recipe().lr
        with pytest.raises(dataclasses.FrozenInstanceError):
            recipe.lr = 1.0
