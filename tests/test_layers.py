"A module imports only from layers below its own: the dependency diagram, executable."
import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, NBS = ROOT / 'vidrepro', ROOT / 'nbs'
LAYERS = [{'core'},
          {'data', 'motion', 'models', 'learning.losses', 'learning.distributed', 'evaluation.detection'},
          {'evaluation.gradcam'},
          {'learning', 'evaluation'},  # the rest of these two rooms
          {'papers'},
          {'features', 'localize'},
          {'experiments'},
          {'data_cli'},
          {'features_cli'},
          {'localize_cli'},
          {'cli'}]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
ROOMS = {name.split('.')[0] for name in RANK} - {'cli', 'data_cli', 'features_cli', 'localize_cli'}


def rank(module):
    "The layer of `data.video` or `learning.losses`: its longest known beginning."
    parts = module.split('.')
    return next((RANK[n] for n in ('.'.join(parts[:2]), parts[0]) if n in RANK), None)


def number(module, nbs=NBS):
    "The number of the notebook that a module comes from."
    room, name = module.split('.')[:2]
    return next((int(p.name[:2]) for p in (nbs / room).glob(f'[0-9][0-9]_{name}.ipynb')), None)


def imports(source, package):
    "Modules of the package, without its name, that `source` imports; `package` is where the source lives."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix('vidrepro.') for a in node.names if a.name.startswith('vidrepro.'))
        if not isinstance(node, ast.ImportFrom): continue
        here = ('vidrepro', *package)
        base = '.'.join((*here[:len(here) - node.level + 1], *filter(None, [node.module]))) if node.level else node.module
        if base == 'vidrepro' or base.startswith('vidrepro.') and base.split('.', 1)[1] in ROOMS:
            yield from (f'{base}.{a.name}'.removeprefix('vidrepro.') for a in node.names)
        elif base.startswith('vidrepro.'):
            yield base.removeprefix('vidrepro.')


def violations(source, me):
    "Imports of module `me` that the layers do not allow."
    for to in imports(source, me.split('.')[:-1]):
        if to.startswith('_') or to == me: continue  # __version__
        if rank(to) is None: yield f'{me} -> {to}: no such layer'
        elif rank(to) > rank(me): yield f'{me} -> {to}: above it'
        elif rank(to) == rank(me):
            room = me.split('.')[0]
            if to.split('.')[0] != room: yield f'{me} -> {to}: another room of the same layer'
            elif room == 'papers' and to.split('.')[1].split('_')[0] != me.split('.')[1].split('_')[0]: yield f'{me} -> {to}: another paper'
            elif room == 'data' and (number(to) or 0) >= (number(me) or 100): yield f'{me} -> {to}: a later notebook'


MODULES = {'.'.join(p.relative_to(PACKAGE).with_suffix('').parts): p for p in sorted(PACKAGE.rglob('*.py')) if not p.stem.startswith('_')}


def test_every_module_has_a_layer():
    assert {m.split('.')[0] for m in MODULES} >= {'core', 'data', 'papers'}
    assert not [m for m in MODULES if rank(m) is None]


def test_package():
    bad = [v for me, path in MODULES.items() for v in violations(path.read_text(), me)]
    assert not bad, '\n'.join(bad)


def test_no_loops():
    graph = {me: {t for t in imports(p.read_text(), me.split('.')[:-1]) if t in MODULES} for me, p in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(MODULES)


@pytest.mark.parametrize('source, me, ok', [
    ('from vidrepro import __version__', 'core.results', True),
    ('from vidrepro.core.files import atomic', 'core.results', True),
    ('from .files import atomic', 'core.results', True),
    ('from vidrepro.data.video import probe', 'core.files', False),
    ('from vidrepro.data.video import probe', 'data.datasets', True),
    ('from vidrepro.data import video', 'data.datasets', True),
    ('from ..core.random import generator', 'data.sampling', True),
    ('from vidrepro.data.sampling import tec_tuples', 'data.datasets', False),
    ('from . import sampling', 'data.datasets', False),
    ('from vidrepro.data.video import probe', 'models.backbones', False),
    ('from vidrepro.learning.losses import info_nce', 'learning.train', True),
    ('from vidrepro.learning.train import Learner', 'learning.losses', False),
    ('from vidrepro.learning.train import Learner', 'papers.tec', True),
    ('from vidrepro.evaluation.gradcam import gradcam', 'papers.mcl', True),
    ('import vidrepro.papers.tec', 'learning.train', False),
    ('def f():\n    from vidrepro.papers import tec', 'learning.train', False),
    ('from .tec import equivariance', 'papers.mcl', False),
    ('from . import tec', 'papers.mcl', False),
    ('from .tsp import build', 'papers.tsp_features', True),
    ('from vidrepro import papers', 'models.heads', False),
    ('from vidrepro.experiments.claims import claims', 'papers.tec', False),
    ('from vidrepro.cli import main', 'experiments.suites', False),
    ('from vidrepro.experiments.suites import suites', 'cli', True),
    ('from vidrepro.somewhere import x', 'cli', False)])
def test_rule(source, me, ok): assert (not list(violations(source, me))) is ok


def test_numbers_are_read():
    assert number('core.files') == 3 and number('data.video') == 5 and number('data.nothing') is None
    assert re.match(r'\d\d_', next((NBS / 'core').glob('*.ipynb')).name)
