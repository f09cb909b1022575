"""Run All reaches the end of a page without real videos, without a GPU and without weights; what is stored is what the cards say.

`nbdev_test` runs every cell that has no mark. Here are the others: cells marked gpu, data or slow, which must say what they lack, and cells that
show cards, whose fresh outputs must be the stored ones. Both run with whatever they need of their page, and in one kernel.
"""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat import v4

pytestmark = pytest.mark.xdist_group('pages')  # one worker, one kernel
ROOT = Path(__file__).parents[1]
NBS = ROOT / 'nbs'
MARK = re.compile(r'^#\| *(gpu|data|slow)\b', flags=re.M)
CARDS = {  # what reads a card
    'load_run', 'list_runs', 'by_seed', 'judge', 'judge_all', 'missing', 'all_verdicts', 'scoreboard', 'box', 'box_picture', 'tally',
    'said', 'grid_answer', 'table_one', 'grid_cells', 'measured',
}  # fmt: skip


def cells(path):
    return [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']


def concerned(path):
    "A page with a cell that not every machine can run, or with numbers of the cards in `results/`."
    text = '\n'.join(''.join(c['source']) for c in cells(path))
    shows = path.parent.name in ('nbs', 'motion', 'papers', 'experiments')
    return MARK.search(text) or shows and re.search(rf'\b({"|".join(CARDS)})\(', text)


PAGES = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PAGES = [p for p in PAGES if concerned(p)]


# ---- which cells


def parsed(source):
    "Statements of a cell, without magics."
    try:
        return ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.M)).body
    except SyntaxError:
        return []


def names(tree, kind):
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, kind)}


def made(statement):
    "Names that a statement makes."
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {(a.asname or a.name).partition('.')[0] for a in statement.names}
    return names(statement, ast.Store)


def changed(statement):
    "Names whose values a statement changes in place, for all that one can see."
    found = set()
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return found
    for n in ast.walk(statement):
        if isinstance(n, (ast.Attribute, ast.Subscript)) and isinstance(n.ctx, ast.Store):
            found |= names(n.value, ast.Load)
        elif isinstance(n, ast.Expr) and isinstance(n.value, ast.Call):
            if isinstance(n.value.func, ast.Attribute):
                found |= names(n.value.func.value, ast.Load)
    return found


def flow(source):
    "What a cell takes from before it, makes, and changes."
    takes, makes, changes = set(), set(), set()
    for s in parsed(source):
        inner = s.value if isinstance(s, ast.Assign) else s  # `x = f(x)` takes x
        own = names(inner, ast.Store) | {a.arg for a in ast.walk(s) if isinstance(a, ast.arg)}
        taken = names(s, ast.Load) - own
        taken |= names(s, ast.Store) if isinstance(s, ast.AugAssign) else set()
        takes |= taken - makes
        changes |= changed(s) - makes
        makes |= made(s)
    return takes, makes, changes


def needed(sources, wanted):
    "The wanted cells and those that they cannot do without: setup, imports, whatever makes a name of theirs."
    keep, open_ = set(wanted), set()
    for i in reversed(range(len(sources))):
        takes, makes, changes = flow(sources[i])
        imports = all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in parsed(sources[i]))
        if imports or i in keep or (makes | changes) & open_ or re.search(SETUP, sources[i], re.M):
            keep.add(i)
            open_ = (open_ - makes) | takes
    return sorted(keep)


WHOLE = ('13_formats', '105_dials')  # their cells hand files to each other, which no name shows
SETUP = r'^#\| *hide\b|^%'


def elsewhere(call):
    "Whether a call is told of another folder than `results`: cards of a toy."
    given = [*call.args, *(k.value for k in call.keywords)]
    return any({'home', 'folder'} & names(a, ast.Load) for a in given)


def from_cards(sources):
    "Which cells show what cards say: they read them, or use a name that such a cell made."
    tainted, found = set(), []
    for source in sources:
        tree = ast.Module(parsed(source), [])
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and not elsewhere(n)]
        asks = CARDS & {n.func.id for n in calls if isinstance(n.func, ast.Name)}
        takes, makes, changes = flow(source)
        reads = not source.startswith('#| export') and bool(asks or tainted & takes)
        found.append(reads)
        tainted = tainted | makes | changes if reads else tainted - makes
    return found


def is_long(source):
    "A cell that trains for hours: marked slow, and not asking whether it can."
    return re.search(r'^#\| *slow', source, flags=re.M) and 'can_run' not in source


# ---- what they say


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


@pytest.fixture(scope='module')
def kernel(clone):
    "One kernel for all pages: libraries are imported once."
    with pytest.MonkeyPatch.context() as patch:
        for name in ('VIDREPRO_DATA', 'MPLBACKEND'):
            patch.delenv(name, raising=False)
        patch.setenv('PYTHONPATH', str(clone))
        patch.setenv('CUDA_VISIBLE_DEVICES', '')
        client = NotebookClient(v4.new_notebook(), timeout=300)
        client.resources = {'metadata': {'path': clone}}
        with client.setup_kernel():
            yield client


RESET = '''%reset -f
import os, matplotlib, pandas
os.chdir({!r})
matplotlib.rcdefaults()
matplotlib.pyplot.close('all') if hasattr(matplotlib, 'pyplot') else None
%matplotlib inline
from matplotlib_inline.backend_inline import set_matplotlib_formats
set_matplotlib_formats('png')
for name in ('display.max_colwidth', 'display.width', 'display.max_rows', 'display.max_columns'):
    pandas.reset_option(name)'''


def run(sources, folder, kernel):
    "Cells with fresh outputs."
    fresh = [v4.new_code_cell(s) for s in (RESET.format(str(folder)), *sources)]
    kernel.nb = v4.new_notebook(cells=fresh)
    for i, cell in enumerate(fresh):
        kernel.execute_cell(cell, i)
    return fresh[1:]


@pytest.mark.parametrize('path', PAGES, ids=[p.stem for p in PAGES])
def test_run_all(path, clone, kernel):
    "No error anywhere; marked cells print a sentence; numbers of cards are those that are stored."
    stored = [c for c in cells(path) if not is_long(''.join(c['source']))]
    sources = [''.join(c['source']) for c in stored]
    reads = from_cards(sources)
    wanted = [i for i, s in enumerate(sources) if reads[i] or MARK.search(s)]
    whole = path.stem in WHOLE
    keep = list(range(len(sources))) if whole else needed(sources, wanted)
    folder = (clone / path.relative_to(ROOT)).parent
    fresh = dict(zip(keep, run([sources[i] for i in keep], folder, kernel)))
    for i, cell in fresh.items():
        if re.search(r'^#\| *(gpu|slow)\b', cell.source, flags=re.M) and 'can_run(' in cell.source:
            assert any('Not run here: needs' in t for t in shown(cell)), cell.source
        if reads[i] and not MARK.search(cell.source):
            assert shown(stored[i]) == shown(cell), f'{path.name}: run it again\n{cell.source}'


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
    sources = [
        'import x',
        'a = judge(1)',
        'b = 2',
        'c = a + b',
        'print(b)',
        'print(c)',
        'c = 1',
        'print(c)',
    ]
    assert from_cards(sources) == [False, True, False, True, False, True, False, False]
    assert from_cards(["load_run('a', home / 'cards')", "load_run('a')"]) == [False, True]


def test_needed():
    "A cell brings along what makes or changes its names, and nothing else."
    sources = [
        'import x',
        'a = train()',
        'b = []',
        'b.append(1)',
        'a.plot()',
        'for k in b: print(k)',
    ]
    assert needed(sources, [5]) == [0, 2, 3, 5]
    assert needed(['y = 1', 'def f(x):\n    return x + y', 'x = 3', 'f(2)'], [3]) == [0, 1, 3]
    assert needed(['#| hide\nseed()', 'fig = train()', 'fig = plot()\nfig.show()'], [2]) == [0, 2]
    assert needed(['a = train()', 'a = 1', 'print(a)'], [2]) == [1, 2]
    assert needed(['a = 1', 'a += 1', 'print(a)'], [2]) == [0, 1, 2]
