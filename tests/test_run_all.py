"Run All reaches the end of a page without real videos, without a GPU and without weights; what is stored is what the cards say."

import ast
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NBS = ROOT / 'nbs'
MARK = re.compile(r'^#\| *(gpu|data|slow)\b', flags=re.M)
CARDS = {'load_run', 'list_runs', 'by_seed', 'judge', 'missing'}  # what reads a card


def cells(path):
    return [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']


def concerned(path):
    "A page with a cell that not every machine can run, or with numbers of the cards in `results/`."
    text = '\n'.join(''.join(c['source']) for c in cells(path))
    shows = path.parent.name in ('nbs', 'papers', 'experiments')
    return MARK.search(text) or shows and re.search(rf'\b({"|".join(CARDS)})\(', text)


PAGES = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PAGES = [p for p in PAGES if concerned(p)]


def from_cards(sources):
    "Which cells show what cards say: they read them, or use a name that such a cell made."
    tainted, found = set(CARDS), []
    for source in sources:
        try:
            tree = ast.parse(re.sub(r'^%.*$', '', source, flags=re.M))
        except SyntaxError:
            tree = ast.parse('')
        names = {n.id: type(n.ctx) for n in ast.walk(tree) if isinstance(n, ast.Name)}
        reads = bool(tainted & names.keys())
        found.append(reads)
        if reads and not source.startswith('#| export'):
            tainted |= {n for n, context in names.items() if context is ast.Store}
            tainted |= {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    return found


def shown(cell):
    "Printed text and tables of a cell, without addresses and pictures."
    out = [
        ''.join(o.get('text', '') or o.get('data', {}).get('text/plain', ''))
        for o in cell['outputs']
    ]
    return [t for t in map(str.strip, ''.join(out).splitlines()) if not t.startswith('<')]


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "What a fresh clone holds, with nothing beside it."
    copy = tmp_path_factory.mktemp('fresh') / 'clone'
    copy.mkdir()
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'vidrepro', 'results', 'data_cards', 'tests', 'benchmarks'):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    for p in ROOT.iterdir():
        if p.is_file():
            shutil.copy(p, copy)
    return copy


def run(path, clone, monkeypatch):
    "The page with fresh outputs; cells that take long are left as they are."
    for name in ('VIDREPRO_DATA', 'MPLBACKEND'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PYTHONPATH', str(clone))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    nb = nbformat.read(clone / path.relative_to(ROOT), 4)
    nb.cells = [c for c in nb.cells if c.cell_type == 'code' and not is_long(c.source)]
    folder = (clone / path.relative_to(ROOT)).parent
    return NotebookClient(nb, timeout=300, resources={'metadata': {'path': folder}}).execute().cells


def is_long(source):
    "A cell that trains for hours: marked slow, and not asking whether it can."
    return re.search(r'^#\| *slow', source, flags=re.M) and 'can_run' not in source


@pytest.mark.parametrize('path', PAGES, ids=[p.stem for p in PAGES])
def test_run_all(path, clone, monkeypatch):
    "No error anywhere; marked cells print a sentence; numbers of cards are those that are stored."
    stored = [c for c in cells(path) if not is_long(''.join(c['source']))]
    fresh = run(path, clone, monkeypatch)
    for cell in fresh:
        if re.search(r'^#\| *(gpu|slow)\b', cell.source, flags=re.M) and 'can_run(' in cell.source:
            assert any('Not run here: needs' in t for t in shown(cell)), cell.source
    sources = [''.join(c['source']) for c in stored]
    for source, reads, old, new in zip(sources, from_cards(sources), stored, fresh):
        if reads and not MARK.search(source):
            assert shown(old) == shown(new), f'{path.name}: run it again\n{source}'


def test_every_need_is_asked():
    "A cell marked gpu or data asks whether it can run."
    bad = [
        f'{p.name}: {source.splitlines()[1]}'
        for p in PAGES
        for source in (''.join(c['source']) for c in cells(p))
        if re.search(r'^#\| *(gpu|data)\b', source, flags=re.M)
        and not re.search(r'can_run\(|no real videos here|^assert ', source, flags=re.M)
    ]
    assert not bad


def test_taint():
    "The check itself: what follows from a card, and what does not."
    sources = ['import x', 'a = judge(1)', 'b = 2', 'c = a + b', 'print(b)', 'print(c)']
    assert from_cards(sources) == [False, True, False, True, False, True]
