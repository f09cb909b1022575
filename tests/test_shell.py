"Every command against a full disk, a read-only folder, wrong paths, signals and a second copy of itself."

import contextlib
import errno
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vidrepro.cli.main import COMMANDS, load_command
from vidrepro.cli.main import main as cli
from vidrepro.core.results import results_dir
from vidrepro.digits.moving_digits import MovingDigits, write_videos

SMALL = '--set steps=2 --set batch=4 --set frames=4 --set size=24 --set speeds=1,2 --set hidden=16'
ROWS = '--step 1 --set epochs=1'
LINES = {  # words of a command -> how it is called; {out} is what it writes, others are read
    'demo': '--folder {out} --set steps=1 --set batch=4 --device cpu',
    'train': f'tec --data {{clips}} --folder {{out}} --device cpu {SMALL}',
    'evaluate': '{run} --device cpu',
    'compare': '{run} {twin} --page {out}/x.html --device cpu',
    'gradcam': '{run} {video} --out {out} --device cpu',
    'flow': '{video} --out {out}/x.mp4 --method difference --short 16',
    'features extract': '{clips} {out} --run {run} --on-short pad --hop 4 --device cpu',
    'features verify': '{features} {clips}',
    'features export': '{features} {out}',
    'features gvf': '{features} --out {out}/x.h5',
    'localize check': '{truth} {rows} --step 1',
    'localize train': f'{{rows}} {{truth}} {{out}}/x.safetensors --preset small {ROWS}',
    'localize predict': '{detector} {rows} {out}/x.json --step 1',
    'localize evaluate': '{found} {truth} --out {out}/x.json',
    'localize show': '{detector} {shown} {out}/x.png --features {rows} --step 1',
    'localize thumos14': '{lists} {out}/x.json',
    'localize captions train': f'{{rows}} {{told}} {{out}}/x.safetensors {ROWS} --set width=8',
    'localize captions predict': '{captioner} {rows} {found} {out}/x.json --step 1',
    'localize captions evaluate': '{said} {told} --out {out}/x.json',
    'data list': '',
    'data card': 'ucf101',
    'data check': 'ucf101 {clips}',
    'data scan': '{clips} --table {out}/x.csv --quarantine {out}/q.csv --workers 1',
    'data standardize': '{clips} {out} --workers 1 --short-side 16 --fps 5',
    'data pack': '{clips} {out}',
    'data unpack': '{shards} {out}',
    'data preview': '{clips} --file {out}/x.png',
    'data motion': '{clips} --out {out} --preset tiny --method difference --device cpu',
    'data compose': '{out} --train {clips} --valid {clips} --videos 1',
    'tsp prepare': '{annotations} {untrimmed}',
    'run': 'tec-ablation --limit 1 --folder {out}',
    'claims': 'tec --picture {out}/x.png',
    'doctor': '',
}
READS = {words for words, line in LINES.items() if '{' in line.replace('{out}', '')}
WRITES = {words for words, line in LINES.items() if '{out}' in line} | {'evaluate', 'tsp prepare'}


def leaves(command, words=()):
    "Every command of a group."
    for name, inner in getattr(command, 'commands', {}).items():
        yield from leaves(inner, (*words, name))
    if not hasattr(command, 'commands'):
        yield ' '.join(words)


def test_no_command_is_forgotten():
    assert {leaf for name in COMMANDS for leaf in leaves(load_command(name), (name,))} == set(LINES)


def called(words):
    "Exit code, output and errors of the program, in this process."
    said, errors = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ['vidrepro', *map(str, words)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            cli()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return code, said.getvalue(), errors.getvalue()


@pytest.mark.parametrize('lines', [1, 9])
def test_a_reader_that_has_seen_enough(lines):
    "`| head` is no error, and no traceback at the end."
    run = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-m', 'vidrepro', 'data', 'list'], **run) as program:
        first = [program.stdout.readline() for _ in range(lines)]
        program.stdout.close()
        assert first[0] and program.stderr.read() == b''
    assert program.returncode in (0, -signal.SIGPIPE)


def test_handlers_come_back():
    "Whoever calls the program from Python keeps what was set."
    before = [signal.getsignal(n) for n in (*SIGNALS, signal.SIGPIPE)]
    assert called(['data', 'list'])[0] == 0 and called(['data', 'nothing'])[0] == 2
    assert [signal.getsignal(n) for n in (*SIGNALS, signal.SIGPIPE)] == before


def line_of(words, places):
    "A command line with its places filled in."
    return [*words.split(), *(word.format(**places) for word in LINES[words].split())]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "One of everything that a command reads."
    home = tmp_path_factory.mktemp('world')
    names = 'clips run rows features shards untrimmed lists'.split()
    files = dict(detector='d.safetensors', captioner='c.safetensors', truth='truth.json')
    files |= dict(found='found.json', told='told.json', said='said.json', annotations='ann.json')
    at = {name: home / name for name in names} | {name: home / f for name, f in files.items()}
    write_videos(MovingDigits(n=12, length=12, size=24, motions=('left', 'right')), at['clips'], 5)
    at['video'] = next(at['clips'].rglob('*.mp4'))
    at['shown'] = shutil.copy(at['video'], home / 'v0.mp4')
    at['rows'].mkdir()
    draw, acts = np.random.default_rng(0), [dict(segment=[20.0, 30.0], label='b')]
    acts.append(dict(segment=[1.0, 9.0], label='a'))
    both = ['training', 'training', 'validation', 'validation']
    for k in range(4):
        np.save(at['rows'] / f'v{k}.npy', draw.random((60, 16), np.float32))
    base = {f'v{k}': dict(subset=s, duration=60.0, annotations=acts) for k, s in enumerate(both)}
    at['truth'].write_text(json.dumps(dict(database=base)))
    at['lists'].mkdir()
    for subset, part in (('val', 'validation'), ('test', 'test')):
        line = f'video_{part}_0000001 1.0 9.0\n'
        (at['lists'] / f'Diving_{subset}.txt').write_text(line)
    told = dict(duration=60.0, timestamps=[[1.0, 9.0]], sentences=['It goes up'])
    at['told'].write_text(json.dumps({f'v{k}': told for k in range(4)}))

    def do(words, **places):
        code, said, errors = called(line_of(words, {**at, **places}))
        assert code == 0, (words, said[-500:], errors)

    do('train', out=at['run'])
    at['twin'] = Path(shutil.copytree(at['run'], home / 'twin'))
    do('features extract', out=at['features'])
    do('data pack', out=at['shards'])
    do('data compose', out=at['untrimmed'])
    shutil.move(at['untrimmed'] / 'activity_net.json', at['annotations'])
    for words, name in (
        ('localize train', 'detector'),
        ('localize predict', 'found'),
        ('localize captions train', 'captioner'),
        ('localize captions predict', 'said'),
    ):
        do(words, out=home / name)
        shutil.move(next((home / name).glob('x.*')), at[name])
    return at


@pytest.fixture
def places(world, tmp_path, monkeypatch):
    "The same, with a copy of what a command writes into."
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'new').mkdir()
    shutil.copytree(results_dir(Path(__file__).parent) / 'tec', tmp_path / 'results' / 'tec')
    own = {name: tmp_path / 'new' / name for name in ('run', 'untrimmed')}
    for name, place in own.items():
        shutil.copytree(world[name], place)
    return {**world, **own, 'out': tmp_path / 'new' / 'out'}


def inside(folder):
    "What lies in a folder: path -> content; locks say nothing."
    files = (p for p in folder.rglob('*') if p.is_file() and not p.name.startswith('.lock'))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def refused(words, places, codes=(2,)):
    "The command says one line, and nothing is half written."
    before = inside(Path('new'))
    code, said, errors = called(line_of(words, places))
    assert code in codes and 'Traceback' not in said + errors, (code, said, errors)
    lines = [line for line in errors.splitlines() if 'error: ' in line]  # among notes and bars
    assert len(lines) == 1 and errors.splitlines()[-1] in lines, (said, errors)
    left = inside(Path('new'))
    assert not [name for name in left if '.part' in name]
    assert before.items() <= left.items(), 'what was there is no longer whole'
    return errors


PAIRS = [
    (words, name)
    for words in sorted(READS)
    for name in re.findall(r'{(\w+)}', LINES[words])
    if name != 'out'
]


@pytest.mark.parametrize('words, name', PAIRS)
def test_nothing_there(places, words, name):
    gone = Path('nowhere') / places[name].name
    assert 'nowhere' in refused(words, places | {name: gone})


@pytest.mark.parametrize('words, name', PAIRS)
def test_a_folder_for_a_file_and_a_file_for_a_folder(places, words, name):
    wrong = Path('wrong')
    if places[name].is_dir():
        wrong.write_text('hello\n')
    else:
        wrong.mkdir()
    assert 'wrong' in refused(words, places | {name: wrong})


@pytest.mark.parametrize('words', sorted(w for w in WRITES if '{out}' in LINES[w]))
def test_a_file_where_a_folder_is_to_be_made(places, words):
    places['out'].write_text('mine')
    assert 'out' in refused(words, places)
    assert places['out'].read_text() == 'mine'


ARMED = []  # folders that nobody may write to


def read_only(event, args):
    "An audit hook: what a read-only file system answers."
    if not ARMED or event not in ('open', 'os.mkdir', 'os.rename'):
        return
    path, writes = args[0], event != 'open' or args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and isinstance(path, (str, bytes, Path)):
        path = os.path.realpath(os.fsdecode(path))
        if path.startswith(ARMED[0]):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


@pytest.fixture(scope='module')
def hook():
    sys.addaudithook(read_only)


@pytest.mark.parametrize('words', sorted(WRITES))
def test_a_read_only_folder(places, words, hook):
    ARMED.append(os.path.realpath('new'))
    try:
        assert 'Read-only file system' in refused(words, places)
    finally:
        ARMED.clear()


@pytest.mark.parametrize('words', sorted(WRITES))
def test_a_full_disk(places, words):
    "No file may grow beyond a few bytes."
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        assert 'File too large' in refused(words, places)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


# --- signals, and two at once: processes of their own, held in the middle of writing


def held(words, folder, log, gate, late):
    "Run the program in this process; it waits before the first file comes to its place."
    os.chdir(folder)
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started these tests
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # with nohup has neither
    sys.argv = ['vidrepro', *words]

    def wait(event, args):
        if event != 'os.rename' or late and Path(args[1]).suffix != '.safetensors':
            return
        if not gate.with_suffix('.there').exists():
            gate.with_suffix('.there').touch()
            while not gate.exists():
                time.sleep(0.02)

    sys.addaudithook(wait)
    cli()


@pytest.fixture(scope='module')
def forks():
    "Processes that need not import everything again."
    context = multiprocessing.get_context('forkserver')
    rooms = 'train many data features localize pictures main'.split()
    context.set_forkserver_preload([f'vidrepro.cli.{room}' for room in rooms])
    return context


def until(true, seconds=60):
    "Wait for something."
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true(), 'waited in vain'


def started(forks, words, places, late=False):
    "A process that is held, its words, and the gate that lets it go on."
    log, gate = Path('a.log').absolute(), Path('a.gate').absolute()
    line = [str(word) for word in line_of(words, places)]
    process = forks.Process(target=held, args=(line, str(Path.cwd()), str(log), gate, late))
    process.start()
    return process, log, gate


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = [(words, SIGNALS[k % 3]) for k, words in enumerate(sorted(WRITES - {'demo', 'train'}))]
STOPPED += [('train', number) for number in SIGNALS]  # when it saves; and before the first step:


def test_a_signal_before_the_first_step(forks, places):
    process, log, gate = started(forks, 'train', places)
    until(gate.with_suffix('.there').exists)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 130 and 'nothing is saved' in log.read_text()
    assert called(line_of('train', places))[0] == 0  # it may be begun anew


@pytest.mark.parametrize('words, number', STOPPED)
def test_a_signal(forks, places, words, number):
    before = inside(Path('new'))
    process, log, gate = started(forks, words, places, late=words == 'train')
    until(lambda: gate.with_suffix('.there').exists() or not process.is_alive())
    os.kill(process.pid, number)
    if words in ('train', 'localize train', 'run'):  # which wait for the end of a step
        gate.touch()
    process.join(60)
    said = log.read_text()
    assert process.exitcode == 130, (process.exitcode, said)
    assert 'Traceback' not in said and said.strip().endswith('stopped')
    left = inside(Path('new'))
    assert not [name for name in left if '.part' in name]
    assert before.items() <= left.items()
    if words == 'train':
        assert 'Stopped and saved' in said and called(['evaluate', 'new/out'])[0] == 0


@pytest.mark.parametrize('words', sorted(WRITES - {'demo', 'run'}))
def test_two_at_once(forks, places, words):
    "The second is refused, or both are right."
    process, log, gate = started(forks, words, places)
    until(lambda: gate.with_suffix('.there').exists() or not process.is_alive())
    code, said, errors = called(line_of(words, places))
    gate.touch()
    process.join(60)
    assert {0} <= {code, process.exitcode} <= {0, 2}, (errors, log.read_text())
    assert code == 0 or errors.startswith('error: ')
    assert inside(Path('new')) and not [p for p in inside(Path('new')) if '.part' in p]
    if code == 2 and '{out}' in LINES[words] and words != 'localize captions train':
        assert 'another process' in errors or 'exist' in errors, errors


def test_a_picture_of_no_cards(tmp_path, monkeypatch):
    "A table of what was not run, and one line that says why there is no picture."
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'results').mkdir()
    code, said, errors = called(['claims', 'tec', '--picture', 'x.png'])
    assert code == 2 and 'not run' in said and 'run a suite first' in errors
    assert errors.count('\n') == 1 and not (tmp_path / 'x.png').exists()
