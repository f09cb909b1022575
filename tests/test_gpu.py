"What can be proved of a GPU without one: where tensors lie, and what reduced precision does."

from functools import partial

import pytest
import torch
from elsewhere import PLACE, Elsewhere, Generator, Mixed, pretended

from vidrepro.clips import transforms
from vidrepro.experiments import gpu
from vidrepro.learning import distributed
from vidrepro.papers import mcl, tec
from vidrepro.runs import budget
from vidrepro.runs.methods import BUILT_IN

SCALE = gpu.small('this machine')


@pytest.fixture
def streams(monkeypatch):
    "Random numbers of the pretended device are drawn there."
    real = budget.generator
    away = lambda device: torch.device(device).type == PLACE.type
    there = lambda seed: Generator().manual_seed(seed)
    draw = lambda *key, device='cpu': (
        there(real(*key).initial_seed()) if away(device) else real(*key)
    )
    monkeypatch.setattr(budget, 'generator', draw)


def test_pretended_device_refuses_what_a_gpu_refuses():
    with pretended():
        a, b = torch.ones(3, 4, device=PLACE), torch.ones(3, 4)
        for wrong in (
            lambda: a + b,
            lambda: torch.cat([a, b]),
            lambda: b[a[:, 0].long()],
            lambda: a.index_select(0, torch.arange(2)),
            lambda: torch.where(b > 0, a, 0.0),
            lambda: torch.rand(3, generator=Generator()),
            lambda: torch.rand(3, generator=torch.Generator(), device=PLACE),
            lambda: a.numpy(),
        ):
            with pytest.raises(Mixed):
                wrong()
        for right in (
            a + 1,
            a * torch.tensor(2.0),
            a[torch.arange(2)],
            a[[0, 1]],
            a + b.to(PLACE),
            torch.tensor([1.0], device=PLACE),
            torch.rand(3, generator=Generator(), device=PLACE),
        ):
            assert isinstance(right, Elsewhere)
        assert not isinstance(a.cpu(), Elsewhere)
        assert a.sum().item() == 12


def step(run, device):
    "Paint, draw, see, lose, learn: loss, and weights afterwards."
    model, seen = budget.prepared(run, device)
    adam = torch.optim.AdamW(model.parameters(), 1e-3)
    loss = budget.one_step(run, model, seen)
    adam.step()
    return loss, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize('method', BUILT_IN)
def test_every_method_steps_elsewhere_as_on_the_cpu(method, streams):
    run = gpu.asked(method, SCALE)
    here, weights = step(run, torch.device('cpu'))
    with pretended():
        there, others = step(run, PLACE)
    assert all(isinstance(x, Elsewhere) for x in (there, *others))
    torch.testing.assert_close(there.inner, here)
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(other.inner, one)


def forgotten(*given, negatives=mcl.negatives):
    "A memory that was not moved with its network."
    memory, owner = negatives(*given)
    return memory.cpu(), owner


MISTAKES = {  # a method, and what somebody might write
    'numbers of the rows stay on the CPU': (
        'tec', tec, 'my_rows', lambda a, device: distributed.my_rows(a)
    ),
    'clips come back to the CPU': (
        'supervised', transforms, 'normalize', lambda x: x.cpu() - 0.5
    ),
    'a constant is made on the CPU': (
        'provico', transforms, 'normalize', lambda x: x - torch.tensor([0.4, 0.4, 0.4])[:, None, None, None]
    ),
    'a generator draws on another device': (
        'tsp', transforms, 'random_grayscale',
        lambda x, generator, p: x * (torch.rand(len(x), generator=generator) > p)[:, None, None, None, None].to(x.device),
    ),
    'the memory lies on the CPU': ('mcl', mcl, 'negatives', lambda *all: forgotten(*all)),
}  # fmt: skip


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_wrong_device_is_found(mistake, streams, monkeypatch):
    method, module, name, wrong = MISTAKES[mistake]
    assert hasattr(module, name)
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(Mixed), pretended():
        step(gpu.asked(method, SCALE), PLACE)


def test_detectors_captioner_and_flow_work_elsewhere():
    said = lambda net, batch: gpu.captioner.told_loss(net, batch)[0]
    dense = dict(dense=True)  # what is sparse has no memory layout to pretend
    parts = [(partial(gpu.detector, k, 16, **dense), gpu.detector_loss) for k in ('bmn', 'gtad')]
    with pretended():
        for make, loss in [*parts, (gpu.talker, said)]:
            assert gpu.parts_agree(make, loss, PLACE)['ok']
        assert gpu.flow_agrees(SCALE, PLACE) == dict(gray_levels=0, flow_pixels=0.0, ok=True)


def test_gradcam_of_a_network_elsewhere(tmp_path):
    run = gpu.asked('supervised', SCALE)
    with pretended():
        net = gpu.backbone('tiny').to(PLACE).eval()
        gpu.explained(net, run, PLACE, tmp_path / 'cam.png')
    assert (tmp_path / 'cam.png').stat().st_size > 1000


@pytest.mark.parametrize('method', BUILT_IN)
def test_reduced_precision_gives_finite_numbers_near_those_of_full(method):
    found = {}
    for kind in ('no', 'bf16'):
        run = gpu.asked(method, SCALE, precision=kind)
        model, seen = budget.prepared(run, torch.device('cpu'))
        found[kind] = budget.one_step(run, model, seen)
        assert found[kind].isfinite()
        assert gpu.gradient_of(model).isfinite().all()
    torch.testing.assert_close(found['bf16'].float(), found['no'], rtol=0.1, atol=0.1)


def test_agreement_sees_a_wrong_gradient():
    net = torch.nn.Linear(4, 1)
    ends = []
    for factor in (1.0, 1.02):
        net.zero_grad()
        loss = net(torch.ones(2, 4)).square().sum()
        (factor * loss).backward()
        twin = torch.nn.Linear(4, 1)
        for p, q in zip(twin.parameters(), net.parameters()):
            p.grad = q.grad.clone()
        ends.append((loss.detach(), twin))
    assert gpu.agreement(ends[0], ends[0])['ok']
    assert not gpu.agreement(*ends)['ok']
