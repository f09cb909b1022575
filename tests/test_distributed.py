"Two processes compute what one does: values and gradients of the losses, and whole training steps."

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from two_processes import average, half, in_two

from vidrepro.core.checkpoint import read_checkpoint, read_log
from vidrepro.core.files import InputError
from vidrepro.core.random import generator
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.learning.distributed import gather, my_rows
from vidrepro.learning.losses import contrast
from vidrepro.learning.train import Batches, Learner
from vidrepro.papers import tec
from vidrepro.runs.execute import learner
from vidrepro.runs.run import Run

# Batch norm in training mode sees the rows of its own process only, and SyncBatchNorm needs a GPU; so TEC is compared in evaluation mode.
ROWS = {
    'full': {},
    'instance': dict(temporal='invariant', spatial='invariant'),
    'space': dict(temporal='invariant', spatial='equivariant'),
    'both': dict(spatial='equivariant'),
    'no-stop': dict(stop_gradient=False),
    'regress': dict(regress=1.0),
}
CONTRASTS = {stop: dict(tau=0.2, stop_gradient=stop) for stop in (False, True)}
BATCH = 8


def embeddings():
    "Rows, partners and contents; some partners sit on the other process, and some strangers have equal content."
    z = torch.randn(12, 5, generator=generator('z'))
    return (
        z,
        torch.tensor([0, 0, 1, 1, 2, 3, 2, 3, 4, 4, 5, 5]),
        torch.tensor([0, 0, 1, 1, 2, 0, 2, 0, 1, 1, 5, 5]),
    )


def contrasts(rank, ranks):
    found = {}
    for stop, settings in CONTRASTS.items():
        w = torch.eye(
            5, requires_grad=True
        )  # stands for a model: its gradient is what DDP averages
        z, partner, content = half(embeddings(), rank, ranks)
        value = contrast(z @ w, partner, content, **settings)
        value.backward()
        found[stop] = average(value), average(w.grad)
    return found


def batch_of(cfg):
    drawn = tec.sample(torch.full((BATCH,), 128), generator('drawn'), cfg)
    clips = torch.randn(BATCH, 2, 3, 4, 16, 16, generator=generator('clips'))
    return tec.Views(clips, torch.arange(BATCH) * 3 % 7, torch.full((BATCH,), 64), drawn)


def terms(rank, ranks, row):
    cfg = dataclasses.replace(tec.PRESETS['tiny'], hidden=16, frames=4, **ROWS[row])
    model, views = tec.build(cfg).eval(), half(batch_of(cfg), rank, ranks)
    total, each = tec.loss(model, views, cfg)
    total.backward()
    grads = {
        k: average(torch.zeros_like(p) if p.grad is None else p.grad)
        for k, p in model.named_parameters()
    }
    return dict(
        total=average(total),
        terms={k: average(v) for k, v in each.items()},
        grads=grads,
        names=tec.identify(views.drawn, cfg),
    )


class Points:
    "A source of two noisy copies of a point; frames are seeds of the noise."

    lengths, labels = torch.full((32,), 1000), torch.arange(32)

    def __len__(self):
        return 32

    def clips(self, index, frames):
        return torch.stack(
            [torch.stack([self.point(i, f) for f in row]) for i, row in zip(index, frames)]
        )

    def point(self, i, f):
        return torch.randn(6, generator=generator('p', int(i))) + torch.randn(
            6, generator=generator('n', int(f))
        )


@dataclasses.dataclass
class Drawn:
    frames: torch.Tensor


def pair_loss(model, batch):
    video = batch['index'].repeat_interleave(2)
    value = contrast(model(batch['clips'].flatten(0, 1)), video, video, 0.5)
    return value, dict(pair=value)


def trained(rank, ranks, accumulate=2):
    "Three steps of a learner whose batches are split over the processes."
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    batches = Batches(
        Points(),
        lambda lengths, g: Drawn(torch.randint(1000, (len(lengths), 2), generator=g)),
        BATCH,
        0,
        rank,
        ranks,
    )
    learn = Learner(
        model,
        pair_loss,
        lambda batch, g: batch,
        batches,
        torch.optim.SGD(model.parameters(), 0.5),
        device='cpu',
        accumulate=accumulate,
    )
    assert learn.accelerator.num_processes == ranks
    learn.fit(3)
    return {
        k: v.clone() for k, v in learn.accelerator.unwrap_model(learn.model).state_dict().items()
    }


def run_of(row):
    return Run(
        f'tec/{row}',
        'tec',
        dataclasses.replace(
            tec.PRESETS['tiny'], steps=3, videos=32, length=64, batch=BATCH, hidden=16, **ROWS[row]
        ),
    )


def whole_runs(rank, folder):
    "Weights of TEC after three steps of the learner that the suites build; some heads have no loss."
    found = {}
    for row in ('full', 'instance'):
        run = run_of(row)
        learn, _ = learner(
            run, Path(folder) / row, MovingDigits(n=32, size=32, length=64), 'cpu', quiet=True
        )
        learn.fit(3)
        model = learn.accelerator.unwrap_model(learn.model)
        found[row] = (
            {k: v.clone() for k, v in model.named_parameters()},
            learn.batches.rank,
            learn.total.item(),
        )
    return found


def everything(rank, ranks):
    return dict(
        contrast=contrasts(rank, ranks),
        tec={row: terms(rank, ranks, row) for row in ROWS},
        trained=trained(rank, ranks),
        gather=gather(torch.arange(3.0) + 10 * rank),
        mine=my_rows(3),
    )


def both(rank, folder):
    return dict(everything(rank, 2), runs=whole_runs(rank, folder))


@pytest.fixture(scope='module')
def one():
    return everything(0, 1)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two')
    return [dict(found, folder=folder) for found in in_two(both, folder)]


def test_gather(two):
    for r, found in enumerate(two):
        assert found['gather'].tolist() == [0, 1, 2, 10, 11, 12]
        assert found['mine'].tolist() == [3 * r, 3 * r + 1, 3 * r + 2]


@pytest.mark.parametrize('stop', CONTRASTS)
def test_contrast(one, two, stop):
    "Every row has a partner, as in all our losses: then the mean over both processes is the mean over all rows."
    for found in two:
        assert_close(found['contrast'][stop], one['contrast'][stop], atol=1e-6, rtol=0)
    assert one['contrast'][stop][1].abs().max() > 1e-3


@pytest.mark.parametrize('row', ROWS)
def test_tec(one, two, row):
    want = one['tec'][row]
    for found in two:
        got = found['tec'][row]
        assert_close(got['total'], want['total'], atol=1e-6, rtol=0)
        assert got['terms'].keys() == want['terms'].keys()
        assert_close(got['terms'], want['terms'], atol=1e-6, rtol=0)
        assert_close(got['grads'], want['grads'], atol=1e-6, rtol=1e-5)
    assert max(g.abs().max() for g in want['grads'].values()) > 1e-3


@pytest.mark.parametrize('row', ROWS)
def test_numbers_across_processes(one, two, row):
    "Partners and contents mean the same on both processes: together they are those of one."
    for k, want in enumerate(one['tec'][row]['names']):
        assert_close(
            torch.cat([found['tec'][row]['names'][k] for found in two]), want, rtol=0, atol=0
        )


def test_learner(one, two):
    "Split batches, gathered loss, averaged gradients, accumulated: the weights of one process."
    for found in two:
        assert_close(found['trained'], one['trained'], atol=1e-6, rtol=0)
    torch.manual_seed(0)
    assert (one['trained']['weight'] - nn.Linear(6, 4).weight).abs().max() > 0.01


@pytest.mark.parametrize('row', ['full', 'instance'])
def test_whole_run(two, row):
    "Each process has its half of the batch, all end with the same weights, and one of them writes."
    (a, rank, total), (b, other, rest) = (found['runs'][row] for found in two)
    assert (rank, other) == (0, 1) and total != rest
    assert_close(a, b, rtol=0, atol=0)
    start = dict(tec.build(run_of(row).config).named_parameters())
    assert (a['phi.0.weight'] != start['phi.0.weight']).any()
    home = two[0]['folder'] / row
    assert [r['step'] for r in read_log(home / 'log.csv')] == [3]
    assert len(list((home / 'tensorboard').iterdir())) == 1
    saved = read_checkpoint(home / 'checkpoint.safetensors', 'tec')[0]
    for k, v in a.items():
        assert torch.equal(saved[f'model.{k}'], v), k


@pytest.mark.parametrize('size, ranks', [(6, 2), (7, 1), (12, 8), (2, 2)])
def test_pairs_stay_together(size, ranks):
    with pytest.raises(InputError, match=f'multiple of {2 * ranks}'):
        Batches(Points(), len, size, ranks=ranks)
