"What a reader may expect of every notebook, checked from the files alone: no kernel runs."

import ast
import base64
import json
import re
import warnings
from collections import Counter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NBS = sorted(
    p
    for p in (ROOT / 'nbs').rglob('*.ipynb')
    if not any(x.startswith(('.', '_')) for x in p.relative_to(ROOT).parts)
)
KB = 1024
PATHS = re.compile(r'(?<![\w.:/])/(?:work|tmp|home|root|Users|opt|mnt|private)/')  # of one machine
DEVELOPMENT = {
    'nbdev',
    'fastcore',
    'execnb',
    'beartype',
    'pytest',
    'hypothesis',
    'jupytext',
    'IPython',
    'torchcodec',
    'skimage',
}


def cells(path, kind):
    return [
        c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind
    ]


def source(cell):
    return ''.join(cell['source'])


def marked(text, marks):
    return bool(re.search(rf'^#\| *(?:{marks})\b', text, re.M))


def exported(path):
    return [s for s in map(source, cells(path, 'code')) if marked(s, 'exports?')]


def parse(text):
    return ast.parse(
        '\n'.join(line for line in text.splitlines() if line.lstrip()[:1] not in ('%', '!'))
    )


def printed(cell):
    "Every text that a cell's outputs show."
    for o in cell['outputs']:
        yield ''.join(o.get('text', ''))
        yield from (''.join(v) for k, v in o.get('data', {}).items() if k.startswith('text/'))


def test_numbers():
    "Files are numbered in reading order over all rooms; a number is used once and sits in the module's name."
    numbered = [p for p in NBS if p.stem != 'index']
    assert all(re.fullmatch(r'\d{2,3}_[a-z0-9_]+', p.stem) for p in numbered), [
        p.stem for p in numbered
    ]
    assert not [
        n for n, count in Counter(p.stem.split('_')[0] for p in numbered).items() if count > 1
    ]
    for p in numbered:
        names = re.findall(
            r'^#\| *default_exp +(\S+)', '\n'.join(map(source, cells(p, 'code'))), re.M
        )
        room = p.parent.relative_to(ROOT / 'nbs').as_posix()
        assert names in ([], ['.'.join([*filter('.'.__ne__, [room]), p.stem.partition('_')[2]])]), (
            f'{p.name} exports to {names}'
        )


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.stem)
class TestNotebook:
    def test_valid(self, path):
        nbformat.validate(nbformat.read(path, 4))

    def test_title(self, path):
        first = source(cells(path, 'markdown')[0])
        assert re.match(r'# .+\n\n> .+', first), (
            'first prose cell: "# Title", blank line, "> one-sentence promise"'
        )

    def test_size(self, path):
        assert path.stat().st_size <= 600 * KB
        assert len(json.loads(path.read_text())['cells']) <= 100
        for c in cells(path, 'code'):
            assert sum(bool(line.strip()) for line in source(c).splitlines()) <= 60, (
                f'a cell of more than 60 lines:\n{source(c)[:80]}'
            )
            for o in c['outputs']:
                for kind, data in o.get('data', {}).items():
                    if kind in ('image/png', 'image/jpeg'):
                        assert len(base64.b64decode(''.join(data))) <= 120 * KB, kind

    def test_clean(self, path):
        for c in cells(path, 'code'):
            assert c['execution_count'] is None
            assert not c['metadata'], f"mark cells by #| lines, not by metadata: {c['metadata']}"

    def test_outputs(self, path):
        "No error, no warning, no path of one machine, no address in memory."
        for c in cells(path, 'code'):
            for o in c['outputs']:
                assert o['output_type'] != 'error', f'{o.get("ename")} in:\n{source(c)[:80]}'
                assert o.get('name') != 'stderr', (
                    f'a warning or progress bar: {"".join(o["text"])[:200]}'
                )
            for text in printed(c):
                assert not re.search(r'\b\w*Warning\b', text), text[:200]
                assert not re.search(r'\b0x[0-9a-f]{8,}\b', text), text[:200]
                assert not PATHS.search(text), text[:200]

    def test_sources(self, path):
        for c in cells(path, 'code') + cells(path, 'markdown'):
            assert not PATHS.search(source(c)), source(c)[:200]

    def test_executed(self, path):
        "A notebook with code shows what the code does: an output or an assertion."
        code = cells(path, 'code')
        proof = re.compile(r'\bassert|\btest_(?:eq|close|fail|is|ne)\b|assert_close')
        assert (
            not code
            or any(c['outputs'] for c in code)
            or any(proof.search(source(c)) for c in code if not marked(source(c), 'exports?'))
        )

    def test_imports_apart(self, path):
        "nbdev runs import cells alone when it builds docs; `#| hide` cells are dropped before that."
        for s in map(source, cells(path, 'code')):
            if marked(s, 'hide'):
                continue
            kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in parse(s).body}
            assert len(kinds) < 2, f'imports mixed with code:\n{s[:80]}'

    def test_exports_import_little(self, path):
        "The package runs without its development tools, and a star hides where a name comes from."
        for s in exported(path):
            for n in ast.walk(parse(s)):
                names = (
                    [a.name for a in n.names]
                    if isinstance(n, ast.Import)
                    else [n.module or '']
                    if isinstance(n, ast.ImportFrom)
                    else []
                )
                assert not {x.split('.')[0] for x in names} & DEVELOPMENT, names
                assert not (isinstance(n, ast.ImportFrom) and n.names[0].name == '*'), (
                    f'star import of {names}'
                )

    def test_docments(self, path):
        for s in exported(path):
            lines = s.splitlines()
            for f in ast.parse(s).body:
                if not isinstance(f, (ast.FunctionDef, ast.ClassDef)) or f.name.startswith('_'):
                    continue
                assert ast.get_docstring(f), f'{f.name}: no docstring'
                if isinstance(f, ast.ClassDef):
                    continue
                a = f.args
                for x in (
                    *a.posonlyargs,
                    *a.args,
                    *a.kwonlyargs,
                    *filter(None, [a.vararg, a.kwarg]),
                ):
                    if x.arg != 'self':
                        assert x.annotation and '#' in lines[x.end_lineno - 1], (
                            f'{f.name}({x.arg}): type and docment'
                        )
                assert f.returns, f'{f.name}: no return type'
                nothing = isinstance(f.returns, ast.Constant) and f.returns.value is None
                assert nothing or '#' in lines[f.returns.end_lineno - 1], (
                    f'{f.name}: no docment for what it returns'
                )

    def test_proportions(self, path):
        "Alarms to think about, printed and never fatal: little prose, few checks, much hidden, long."
        code = [source(c) for c in cells(path, 'code')]
        if not code:
            return
        words = sum(len(source(c).split()) for c in cells(path, 'markdown')) / max(
            1, sum(len(s.split()) for s in code)
        )
        checks = sum(
            bool(re.search(r'\b(?:test_\w+|assert\w*)\b', s))
            for s in code
            if not marked(s, 'exports?')
        )
        exports = sum(bool(re.search(r'^(?:@|def |class )', s, re.M)) for s in exported(path))
        hidden = sum(marked(s, 'hide') for s in code) / len(code)
        longest = max(sum(bool(line.strip()) for line in s.splitlines()) for s in code)
        count = len(json.loads(path.read_text())['cells'])
        alarms = [
            text
            for bad, text in (
                (words < 0.4, f'{words:.2f} words of prose a token of code, 0.4 or more is a book'),
                (checks < exports, f'{exports} cells export, {checks} check'),
                (hidden > 0.15, f'{hidden:.0%} of the code is hidden'),
                (longest > 40, f'a cell of {longest} lines'),
                (count > 80, f'{count} cells'),
            )
            if bad
        ]
        if alarms:
            warnings.warn(f'{path.stem}: ' + '; '.join(alarms), stacklevel=1)


def links(text):
    return [
        x.split('#')[0]
        for x in re.findall(r'\]\(([^)\s]+)\)', text)
        if not re.match(r'[a-z]+:|#', x)
    ]


@pytest.mark.parametrize('path', [ROOT / 'README.md', *NBS], ids=lambda p: p.stem)
def test_links(path):
    "A link to a file of the repository finds it."
    if path.suffix == '.md':
        text = path.read_text(encoding='utf-8')
    else:
        text = '\n'.join(
            [
                *map(source, cells(path, 'markdown')),
                *(t for c in cells(path, 'code') for t in printed(c)),
            ]
        )
    assert not [x for x in links(text) if not (path.parent / x).exists()]


def test_index_lists_every_page():
    path = ROOT / 'nbs' / 'index.ipynb'
    listed = {x for c in cells(path, 'code') for t in printed(c) for x in links(t)}
    pages = {p.relative_to(path.parent).as_posix() for p in NBS if p != path}
    assert listed == pages, f'run nbs/index.ipynb again: {sorted(listed ^ pages)}'
