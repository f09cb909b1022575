"A module imports only from rooms before its own: the dependency diagram, executable."

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, NBS = ROOT / 'vidrepro', ROOT / 'nbs'
ROOMS = (
    'core clips data digits motion models learning evaluation explain papers runs '
    'features localize captions experiments cli'
).split()


def number(module, nbs=NBS):
    "The number of the notebook that a module comes from."
    room, name = module.split('.')[:2]
    files = (p.stem.partition('_') for p in (nbs / room).glob(f'*_{name}.ipynb'))
    return next((int(n) for n, _, rest in files if n.isdigit() and rest == name), None)


def paper(module):
    "`tsp` of `papers.tsp_scores`."
    return module.split('.')[1].split('_')[0]


def imports(source, package):
    "Modules of the package, without its name, that `source` imports; it lives in `package`."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = (a.name for a in node.names if a.name.startswith('vidrepro.'))
            yield from (name.removeprefix('vidrepro.') for name in names)
        if not isinstance(node, ast.ImportFrom):
            continue
        here = ('vidrepro', *package)
        base = node.module
        if node.level:
            base = '.'.join((*here[: len(here) - node.level + 1], *filter(None, [node.module])))
        if base == 'vidrepro' or base.startswith('vidrepro.') and base.split('.', 1)[1] in ROOMS:
            yield from (f'{base}.{a.name}'.removeprefix('vidrepro.') for a in node.names)
        elif base.startswith('vidrepro.'):
            yield base.removeprefix('vidrepro.')


def violations(source, me):
    "Imports of module `me` that the order of rooms and pages does not allow."
    room = me.split('.')[0]
    for to in imports(source, me.split('.')[:-1]):
        there = to.split('.')[0]
        if to.startswith('_') or to == me:  # __version__
            continue
        if there not in ROOMS:
            yield f'{me} -> {to}: no such room'
        elif ROOMS.index(there) > ROOMS.index(room):
            yield f'{me} -> {to}: a later room'
        elif there != room:
            continue
        elif room == 'papers' and paper(to) != paper(me):
            yield f'{me} -> {to}: another paper'
        elif (number(to) or 0) >= (number(me) or 1000):
            yield f'{me} -> {to}: a later page'


MODULES = {
    '.'.join(p.relative_to(PACKAGE).with_suffix('').parts): p
    for p in sorted(PACKAGE.rglob('*.py'))
    if not p.stem.startswith('_')
}


def test_every_module_has_a_room():
    assert {m.split('.')[0] for m in MODULES} == set(ROOMS)


def test_package():
    bad = [v for me, path in MODULES.items() for v in violations(path.read_text(), me)]
    assert not bad, '\n'.join(bad)


def test_no_loops():
    graph = {
        me: {t for t in imports(p.read_text(), me.split('.')[:-1]) if t in MODULES}
        for me, p in MODULES.items()
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(MODULES)


@pytest.mark.parametrize(
    'source, me, ok',
    [
        ('from vidrepro import __version__', 'core.results', True),
        ('from vidrepro.core.files import atomic', 'core.results', True),
        ('from .files import atomic', 'core.results', True),
        ('from .results import load_run', 'core.files', False),
        ('from vidrepro.data.video import probe', 'core.files', False),
        ('from vidrepro.data.video import probe', 'data.datasets', True),
        ('from vidrepro.data import video', 'data.datasets', True),
        ('from vidrepro.data.datasets import from_folder', 'data.video', False),
        ('from . import datasets', 'data.video', False),
        ('from ..core.random import generator', 'clips.sampling', True),
        ('from vidrepro.digits.untrimmed import compose', 'data.datasets', False),
        ('from vidrepro.data.video import probe', 'models.backbones', True),
        ('from vidrepro.learning.losses import info_nce', 'learning.train', True),
        ('from vidrepro.learning.train import Learner', 'learning.losses', False),
        ('from vidrepro.learning.train import Learner', 'papers.tec', True),
        ('from vidrepro.explain.gradcam import gradcam', 'papers.mcl', True),
        ('import vidrepro.papers.tec', 'learning.train', False),
        ('def f():\n    from vidrepro.papers import tec', 'learning.train', False),
        ('from .tec import equivariance', 'papers.mcl', False),
        ('from . import tec', 'papers.mcl', False),
        ('from vidrepro import papers', 'models.heads', False),
        ('from vidrepro.experiments.claims import claims', 'papers.tec', False),
        ('from vidrepro.cli.main import main', 'experiments.tables', False),
        ('from vidrepro.experiments.tables import suites', 'cli.main', True),
        ('from vidrepro.somewhere import x', 'cli.main', False),
    ],
)
def test_rule(source, me, ok):
    assert (not list(violations(source, me))) is ok


def test_numbers_are_read():
    assert (number('core.files'), number('data.video'), number('experiments.gpu')) == (
        1,
        7,
        100,
    ) and number('data.nothing') is None
    assert re.match(r'\d{2,3}_', next((NBS / 'core').glob('*.ipynb')).name)
