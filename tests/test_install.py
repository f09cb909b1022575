"The wheel, installed elsewhere and used from elsewhere: nothing may depend on the checkout."

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group('wheel')  # one worker: the wheel is built once
ROOT = Path(__file__).parents[1]
PARTS = (
    'settings.ini',
    'setup.py',
    'pyproject.toml',
    'MANIFEST.in',
    'README.md',
    'LICENSE',
    'data_cards',
    'results',
    'vidrepro',
)
EVERY_MODULE = '''
import sys
for tool in ('nbdev', 'fastcore', 'execnb', 'beartype', 'pytest', 'hypothesis', 'jupytext', 'IPython', 'torchcodec', 'h5py', 'nltk', 'tensorboard'):
    sys.modules[tool] = None  # development tools and extras: importing one now fails
import importlib, pkgutil
import vidrepro.papers.tec
names = [m.name for m in pkgutil.walk_packages(vidrepro.__path__, 'vidrepro.')]
names = [name for name in names if not name.endswith('__main__')]  # importing it is running it
for name in names: importlib.import_module(name)
print(vidrepro.__file__, vidrepro.__version__, len(names))
'''
CARDS = '''
from importlib.resources import files
print(*sorted(p.name for p in (files('vidrepro') / 'data_cards').iterdir() if p.name.endswith('.md')))
'''


@pytest.mark.skipif('PYTEST_XDIST_WORKER' not in os.environ, reason='one worker has no groups')
def test_groups_hold(request):
    "Else the wheel, the book and the pages are made by every worker: pytest 9.2 loses the groups of xdist 3.8."
    assert request.node.nodeid.endswith('@wheel'), 'install pytest<9.2'


def run(*command, cwd, **env):
    "Standard output of a command that must succeed."
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Source distribution from a copy of the tree, then the wheel from the source distribution."
    tree = tmp_path_factory.mktemp('tree')
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, tree)
    run(sys.executable, '-m', 'build', '--no-isolation', cwd=tree)
    return next((tree / 'dist').glob('*.whl'))


@pytest.fixture(scope='module')
def elsewhere(wheel, tmp_path_factory):
    "A folder outside the checkout, and how to run Python there with only the installed package."
    target, cwd = tmp_path_factory.mktemp('target'), tmp_path_factory.mktemp('elsewhere')
    run(
        sys.executable,
        '-m',
        'pip',
        'install',
        '--quiet',
        '--no-deps',
        '--no-index',
        '--target',
        target,
        wheel,
        cwd=cwd,
    )

    def python(*args):
        return run(sys.executable, *args, cwd=cwd, PYTHONPATH=str(target))

    python.target = target
    return python


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        info = next(n for n in names if n.endswith('METADATA'))
        entry = z.read(info.replace('METADATA', 'entry_points.txt')).decode()
        meta = message_from_string(z.read(info).decode())
    assert 'vidrepro = vidrepro.cli.main:main' in entry.replace('=', ' = ').replace('  ', ' ')
    assert meta['License-Expression'] == 'Apache-2.0' or 'Apache' in (meta['License'] or '')
    needs = meta.get_all('Requires-Dist')
    assert {'torch>=2.6', 'av', 'scikit-learn'} <= {n for n in needs if 'extra' not in n}
    assert any(n.startswith('nbdev') and 'extra' in n for n in needs)
    assert meta['Description-Content-Type'] == 'text/markdown' and len(meta.get_payload()) > 1000
    assert not [n for n in names if n.startswith(('tests', 'nbs', 'results'))]
    assert any(n.endswith('LICENSE') for n in names)


def test_every_module_imports(elsewhere):
    where, version, count = elsewhere('-c', EVERY_MODULE).split()
    assert Path(where).is_relative_to(elsewhere.target)
    assert (
        version
        == run(
            sys.executable, '-c', 'import vidrepro; print(vidrepro.__version__)', cwd=ROOT
        ).strip()
    )
    here = [p for p in (ROOT / 'vidrepro').rglob('*.py') if p.stem != '__main__']
    assert int(count) == len(here) - 1  # all but the package itself


def test_data_cards(elsewhere):
    assert elsewhere('-c', CARDS).split() == sorted(
        p.name for p in (ROOT / 'data_cards').glob('*.md')
    )


def test_command_line(elsewhere):
    text = elsewhere('-m', 'vidrepro', '--help')
    assert 'demo' in text and 'Traceback' not in text


def test_cards_and_weights(elsewhere):
    "Verdicts and trained networks travel with the package, and nothing is written into it."
    code = 'from vidrepro.experiments.scoreboard import scoreboard; print(scoreboard().to_csv())'
    there = elsewhere('-c', code)
    assert there == run(sys.executable, '-c', code, cwd=ROOT, PYTHONPATH=str(ROOT))
    assert there.count('not run') < 40
    names = sorted(p.parent for p in (ROOT / 'vidrepro/weights').rglob('config.json'))
    assert names
    name = names[0].relative_to(ROOT / 'vidrepro/weights').as_posix()
    code = f'import vidrepro; n = vidrepro.load({name!r}); print(n.training, n.clip.frames)'
    assert elsewhere('-c', code).split()[0] == 'False'
    code = 'from vidrepro.core.results import results_dir as r; print(r()); print(r(write=True))'
    reads, writes = map(Path, elsewhere('-c', code).split())
    assert reads.is_relative_to(elsewhere.target) and not writes.is_relative_to(elsewhere.target)
