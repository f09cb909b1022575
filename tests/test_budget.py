"A borrowed machine's minutes: order, end, resumption, archive; with a pretended clock, and with real processes."

import contextlib
import io
import json
import math
import subprocess
import sys
import tarfile
import time

import pytest
import torch

from vidrepro.cli.main import main as cli
from vidrepro.core.results import list_runs, load_run, save_run
from vidrepro.experiments import gpu
from vidrepro.runs import budget
from vidrepro.runs.methods import pick_preset
from vidrepro.runs.pool import missing, run_suite
from vidrepro.runs.run import Run


class Loan:
    "A machine whose clock moves only when it works: a question takes 4 s, a run 20 s."

    def __init__(self, monkeypatch, folder):
        self.now, self.did, real = 0.0, [], budget.Budget
        self.stop = math.inf
        monkeypatch.chdir(folder)
        monkeypatch.setattr(gpu, 'Budget', lambda minutes: real(minutes, lambda: self.now))
        monkeypatch.setattr(gpu, 'MAIN', {m: gpu.MAIN[m] for m in ('tec', 'tsp')})  # enough
        monkeypatch.setattr(gpu, 'scale_of', lambda device: gpu.small('this machine'))
        monkeypatch.setattr(budget, '_answer', self.answer)
        monkeypatch.setattr(budget, 'run_seconds', lambda *_, **__: 15.0)
        monkeypatch.setattr(budget, 'run_suite', self.run_suite)
        clock = iter(range(0, 10**6, 4))
        monkeypatch.setattr(budget.time, 'perf_counter', lambda: float(next(clock)))

    def answer(self, question):
        self.now += 4
        self.did.append('question')
        return dict(value=1.0)

    def run_suite(self, runs, folder, device, jobs, root, seconds):
        for run in runs:
            self.now += min(20, seconds)
            self.did.append(run.name)
            about = dict(seed=run.config.seed, protocol={}, data={}, device='cpu', seconds=20)
            save_run(run.name, run.settings(), {}, [], root=root, **about)


def ask(monkeypatch, *words):
    "The command, as typed."
    said = io.StringIO()
    monkeypatch.setattr(sys, 'argv', ['vidrepro', 'run', 'gpu', '--device', 'cpu', *words])
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as stop:
        cli()
    assert not stop.value.code, said.getvalue()
    return said.getvalue()


def test_eight_minutes_in_order_in_time_and_on(monkeypatch, tmp_path):
    loan = Loan(monkeypatch, tmp_path)
    said = ask(monkeypatch, '--minutes', '8')
    assert 480 - 25 <= loan.now <= 480
    questions = loan.did.count('question')
    order = gpu.stages(tmp_path / 'runs/gpu', torch.device('cpu'), tmp_path / 'results')
    assert [len(s.todo()) for s in order[:2]] == [0, 0]
    assert loan.did[:questions] == ['question'] * questions
    names = loan.did[questions:]
    first = [*order[2].cards, *order[3].cards]
    assert names == first[: len(names)] and len(names) > 8
    assert 'no time: needs' in said and 'gpu.tar.gz' in said
    archive = tmp_path / 'runs/gpu/gpu.tar.gz'
    with tarfile.open(archive) as tar:
        kept = set(tar.getnames())
    assert kept == {f'results/{n}.json' for n in ('gpu/smoke-cpu', 'gpu/speed-cpu', *names)}
    assert archive.stat().st_size < 5e6

    loan.now, before = 0.0, len(loan.did)
    ask(monkeypatch, '--minutes', '60')
    assert not set(loan.did[before:]) & set(loan.did[:before])  # nothing twice
    assert len(missing([r for s in order[2:] for r in s.todo()], tmp_path / 'results')) == 0
    seeds = [int(name.rpartition('-s')[2]) for name in loan.did[questions:]]
    turn = next(k for k, name in enumerate(loan.did[questions:]) if '/tiny/' in name)
    assert seeds[:turn] == sorted(seeds[:turn]) and seeds[turn:] == sorted(seeds[turn:])


def tiny(name, **changes):
    shape = dict(frames=4, batch=8, hidden=16, dim=8, videos=16, steps=2)
    return Run(f'tec/tiny/{name}', 'tec', pick_preset('tec', 'tiny', **shape | changes))


def test_a_suite_is_stopped_at_its_end_and_goes_on(tmp_path):
    long = tiny('long-s0', steps=10**6)
    begun = time.monotonic()
    assert run_suite([long], tmp_path / 'runs', 'cpu', 1, tmp_path / 'cards', seconds=20) == []
    assert time.monotonic() - begun < 60
    assert list_runs(root=tmp_path / 'cards') == []
    home = tmp_path / 'runs' / long.name
    assert (home / 'checkpoint.safetensors').is_file(), (home / 'output.txt').read_text()


def test_a_try_is_near_what_a_step_takes():
    run, cpu = tiny('try', batch=32, videos=64), torch.device('cpu')
    model, views = budget.prepared(run, cpu)
    true = min(budget.timed(lambda: budget.one_step(run, model, views), cpu) for _ in range(3))
    assert true / 4 < budget.step_seconds(run, cpu) < 4 * true


def test_a_failed_question_is_asked_again_in_the_next_loan(tmp_path):
    answers = iter((0.25, math.nan, 2.0))
    stage = budget.rows_stage(
        'gpu/x', dict(a=lambda: dict(v=next(answers)), b=lambda: dict(v=next(answers))),
        dict(machine='m'), torch.device('cpu'), tmp_path,
    )  # fmt: skip
    assert budget.spend([stage], budget.Budget(1))[0]['why'].startswith('failed')
    assert 'error' in load_run('gpu/x-cpu', root=tmp_path)['curve'][1]
    assert budget.spend([stage], budget.Budget(1))[0]['why'] == 'done'
    assert [r['v'] for r in load_run('gpu/x-cpu', root=tmp_path)['curve']] == [0.25, 2.0]


BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('av', 'torchcodec', 'cv2', 'h5py'):
            raise ImportError(name + ' is not here')
sys.meta_path.insert(0, Absent())
sys.argv = ['vidrepro', 'run', 'gpu', '--minutes', '0.01', '--device', 'cpu']
from vidrepro.cli.main import main
main()
"""


def test_no_video_decoder_is_needed(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', BLOCK], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'smoke' in done.stdout and 'gpu.tar.gz' in done.stdout
    assert json.dumps(list_runs(root=tmp_path / 'results')).count('gpu/') <= 1
