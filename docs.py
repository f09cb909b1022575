"The book as web pages: notebooks, and an index of the package, for Sphinx with MyST-NB. Nothing is run, nothing is fetched."

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from base64 import b64decode
from collections import Counter
from configparser import ConfigParser
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent
NBS, SOURCE, TARGET = ROOT / 'nbs', ROOT / '_site_src', ROOT / '_docs'
CONF = '''project = 'vidrepro'
html_title = 'vidrepro'
extensions = ['myst_nb']
html_theme = 'furo'
html_static_path = ['_static']
html_extra_path = ['_extra']
html_css_files = ['docs.css']
html_copy_source = False
html_theme_options = {'top_of_page_buttons': []}
mathjax_path = 'tex-svg-full.js'    # beside the pages: formulas need no network
nb_execution_mode = 'off'           # show what is stored
nb_merge_streams = True
nb_code_prompt_show = 'Imports'
nb_code_prompt_hide = 'Hide imports'
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence']
myst_heading_anchors = 4
add_module_names = False
toc_object_entries_show_parents = 'hide'
maximum_signature_line_length = 80
exclude_patterns = ['_extra']
'''
SETTINGS = ConfigParser()
SETTINGS.read(ROOT / 'settings.ini')
URL = SETTINGS['DEFAULT']['git_url']
NEEDS = dict(gpu='a GPU', slow='more time than a test may take', data='real videos')
ABSENT = 'Pictures without a text to stand for them: give the cell a line `#| fig-alt: ...`'


# ---- what the package defines, read from the notebooks without importing them


@dataclass
class Page:
    "A notebook: where it lies, what it says first, what it exports."

    path: Path  # relative to nbs
    nb: dict
    module: str = ''  # `core.files`, empty where nothing is exported
    defs: list = field(default_factory=list)  # (syntax tree, comments by line)

    @property
    def number(self):
        found = re.match(r'\d+', self.path.name)
        return found[0] if found else ''

    @property
    def title(self):
        first = next(c for c in self.nb['cells'] if c['cell_type'] == 'markdown')
        return re.match(r'# (.+)\n+> (.+)', ''.join(first['source'])).groups()

    @property
    def doc(self):
        return '/' + self.path.with_suffix('').as_posix()


def marks(source):
    "Directives of a cell: `#| fig-alt: text` is `{'fig-alt': 'text'}`."
    return dict(re.findall(r'^#\| *([\w-]+):? *(.*)$', source, flags=re.M))


def comments(source):
    "Line number -> the comment on it."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}


def read(path):
    "A notebook with its module and its public definitions."
    page = Page(path.relative_to(NBS), json.loads(path.read_text(encoding='utf-8')))
    for cell in page.nb['cells']:
        source = ''.join(cell['source'])
        mark = marks(source) if cell['cell_type'] == 'code' else {}
        page.module = mark.get('default_exp', page.module)
        if mark.keys() & {'export', 'exports'}:
            page.defs += [
                (node, comments(source))
                for node in ast.parse(source).body
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != '_'
            ]
    return page


def names(pages):
    "Every way to write a definition that means one thing only -> its full name."
    found = []
    for page in pages:
        whole = ('vidrepro', *page.module.split('.'))
        for node, _ in page.defs:
            inner = [f'{node.name}.{m.name}' for m in methods(node)]
            for name in (node.name, *inner):
                found += [
                    ('.'.join((*whole[i:], name)), '.'.join((*whole, name))) for i in range(4)
                ]
    seen = Counter(short for short, _ in found)
    return {short: full for short, full in found if seen[short] == 1}


def methods(node):
    "Methods of a class that a reader may call."
    inside = node.body if isinstance(node, ast.ClassDef) else []
    return [m for m in inside if isinstance(m, ast.FunctionDef) and m.name[0] != '_']


# ---- pages of the index, in reStructuredText, whose Python domain makes anchors and index


def rst(text):
    "Plain text as reStructuredText: code stays code, nothing else is markup."
    parts = re.split(r'(`[^`]+`)', ' '.join((text or '').split()))
    return ''.join(
        p.replace('`', '``') if p.startswith('`') else re.sub(r'([*|\\_])', r'\\\1', p)
        for p in parts
    )


def parameters(node, notes):
    "(name, annotation, default, phrase) of each parameter of a function or field of a dataclass."
    if isinstance(node, ast.ClassDef):
        init = next((m for m in node.body if getattr(m, 'name', '') == '__init__'), None)
        if init:
            return parameters(init, notes)
        rows = [(s, s.target.id, s.value) for s in node.body if isinstance(s, ast.AnnAssign)]
    else:
        a = node.args
        plain = [*a.posonlyargs, *a.args]
        defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
        rows = [(x, x.arg, d) for x, d in zip(plain, defaults)]
        rows += [(x, f'*{x.arg}', None) for x in [a.vararg] if x]
        rows += [(x, x.arg, d) for x, d in zip(a.kwonlyargs, a.kw_defaults)]
        rows += [(x, f'**{x.arg}', None) for x in [a.kwarg] if x]
    return [
        (
            name,
            ast.unparse(x.annotation) if x.annotation else '',
            ast.unparse(d) if d else '',
            notes.get((d or x).end_lineno, ''),
        )
        for x, name, d in rows
        if name not in ('self', 'cls')
    ]


def entry(node, notes, indent=''):
    "One definition: signature, sentence, a line a parameter, what comes back."
    kind = 'class' if isinstance(node, ast.ClassDef) else 'method' if indent else 'function'
    rows = parameters(node, notes)
    signature = ', '.join(
        n + (f'={d}' if d and len(d) < 40 else '=...' if d else '') for n, _, d, _ in rows
    )
    returns = getattr(node, 'returns', None)
    body = [rst(ast.get_docstring(node)), '']
    for name, kind_of, default, phrase in rows:
        body += [f':param {rst(name)}: {rst(phrase)}']
        body += [f':type {rst(name)}: ``{kind_of}``'] if kind_of else []
    if returns is not None and ast.unparse(returns) != 'None':
        phrase = rst(notes.get(returns.end_lineno, ''))
        body += [f':returns: ``{ast.unparse(returns)}``' + f' – {phrase}' * bool(phrase)]
    inner = [line for m in methods(node) for line in entry(m, notes, '   ')]
    lines = [f'.. py:{kind}:: {node.name}({signature})', '', *(f'   {x}' for x in body), '', *inner]
    return [(indent + x).rstrip() for x in lines]


def heading(text, under='='):
    return [text, under * len(text), '']


def index_page(page):
    "All public definitions of a module."
    title, promise = page.title
    name = f'vidrepro.{page.module}'
    top = [
        *heading(name),
        rst(promise),
        '',
        f'Explained and checked on page :doc:`{page.number} {title} <{page.doc}>`.',
        '',
    ]
    body = [line for node, notes in page.defs for line in entry(node, notes)]
    return '\n'.join([*top, f'.. py:module:: {name}', '', *body])


def index_of_modules(pages):
    "The list of modules with their promises."
    rows = [f'* - :doc:`{p.module} </api/{p.module}>`\n     - {rst(p.title[1])}' for p in pages]
    table = ['.. list-table::', '   :widths: 30 70', '', *('   ' + r for r in rows), '']
    hidden = ['.. toctree::', '   :hidden:', '', *(f'   {p.module}' for p in pages)]
    return '\n'.join(
        [
            *heading('The package'),
            'Every module, and :ref:`every name in it <genindex>`.',
            '',
            *table,
            *hidden,
        ]
    )


# ---- chapters


def prose(text, change):
    "`change` applied to running text: not to code blocks, HTML, formulas, links or headings."
    keep = r'(```.*?```|^<.*?(?:\n\n|\Z)|\$\$.*?\$\$|\$[^$\n]+\$|!?\[(?:[^\]`]|`[^`]*`)*\]\([^)]*\)|^#.*?$)'
    parts = re.split(keep, text, flags=re.S | re.M)
    return ''.join(p if i % 2 else change(p) for i, p in enumerate(parts))


def linked(text, page, known):
    "Names of the package lead to the index; anchors are spelled as they will be."
    here = {n.name: f'vidrepro.{page.module}.{n.name}' for n, _ in page.defs}

    def code(m):
        full = here.get(m[1], known.get(m[1]))
        return f'{{py:obj}}`{m[1]} <{full}>`' if full else m[0]

    def outside(m):
        file = os.path.normpath(Path('nbs', page.path.parent, m[1]))
        return m[0] if file.startswith('nbs/') else f']({URL}/blob/main/{file})'

    def anchor(m):
        return f']({m[1]}#{re.sub(r"[^a-z0-9_-]", "", m[2].lower())})'

    # Sphinx wraps formulas with a double backslash in an environment that refuses tags
    text = re.sub(
        r'\$\$.*?\$\$', lambda m: re.sub(r'\\\\(\[\w+\])?', r'\\cr ', m[0]), text, flags=re.S
    )
    text = prose(text, lambda t: re.sub(r'(?<!`)`([\w.]+)`(?!`)', code, t))
    text = re.sub(r'\]\((\.[^)#]+)\)', outside, text)  # files of the repository
    return re.sub(r'\]\(([\w./]*)#([^)]+)\)', anchor, text)


def sentence(text):
    "The last paragraph of a cell as plain words."
    blocks = [
        b
        for b in re.split(r'\n\s*\n', re.sub(r'<[^>]+>', '', text))
        if not b.startswith(('|', '$$'))
    ]
    plain = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', blocks[-1] if blocks else '')
    return ' '.join(re.sub(r'[*`>#$\\{}]', '', plain).split())


def alt(source, before):
    "Words for a picture: those given, or the last sentences before it and what its axes are called."
    given = marks(source).get('fig-alt')
    words = [w for w in re.split(r'(?<=[.?!:;]) ', sentence(before)) if w != 'Before you look:']
    while len(' '.join(words)) > 250 and len(words) > 1:
        del words[0]
    text = ' '.join(words)
    if given or len(text) < 20:
        return given
    axes = re.findall(r"(?:title|label|suptitle)\w*[=(]\s*'([^'{}$]+)'", source)
    return text + (f' Labels: {", ".join(dict.fromkeys(axes))}.' if axes else '')


def width(data):
    "Width on the page in pixels: figures finer than a screen are shown at their size in inches."
    image = Image.open(io.BytesIO(b64decode(''.join(data))))
    dpi = image.info.get('dpi', (72,))[0]
    return round(image.width * (96 / dpi if dpi > 100 else 1))


def outputs(cell, words):
    "Outputs as a page shows them; and a Markdown cell for each that is Markdown."
    after = []
    for out in list(cell['outputs']):
        data = out.get('data', {})
        image = next((k for k in data if k.startswith('image/') and 'svg' not in k), None)
        if image:
            cell['metadata']['mystnb'] = {
                'image': {'alt': words, 'width': f'{width(data[image])}px'}
            }
        if 'text/markdown' in data:
            after.append(''.join(data['text/markdown']))
            cell['outputs'].remove(out)
        elif 'text/html' in data:
            html = re.sub(r'<style.*?</style>', '', ''.join(data['text/html']), flags=re.S)
            html = html.replace(' border="1"', '')
            data['text/html'] = f'<div class="scroll">{html}</div>'
    return after


def needs(mark, has):
    "What a cell needs that a test has not, as a note."
    missing = [NEEDS[m] for m in NEEDS if m in mark]
    if not missing:
        return []
    did = 'Stored output, not run again with the pages' if has else 'Not run here'
    return [
        f':::{{admonition}} {did}\n:class: needs\nThis cell needs {" and ".join(missing)}.\n:::'
    ]


def chapter(page, known):
    "A notebook as MyST-NB takes it, and the cells whose pictures have no words."
    cells, before, bad = [], '', []

    def say(text):
        cells.append(dict(cell_type='markdown', metadata={}, source=text))

    for n, cell in enumerate(page.nb['cells']):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            before = source
            say(linked(source, page, known))
            if len(cells) == 1:
                cells[0]['source'] = source.replace('# ', f'# {page.number} '.replace('  ', ' '), 1)
                say(tools(page))
            continue
        mark = marks(source)
        code = re.sub(r'^(#\||%).*\n?', '', source, flags=re.M).strip()
        if 'hide' in mark or not code:
            continue
        cell = dict(cell, source=code, metadata={})
        words = alt(source, before)
        if not words and 'image/' in json.dumps(cell['outputs']):
            bad.append(f'{page.path} cell {n}')
        if all(isinstance(x, (ast.Import, ast.ImportFrom)) for x in tree(code)):
            cell['metadata']['tags'] = ['hide-input']
        if mark.get('echo') == 'false':
            cell['metadata']['tags'] = ['remove-input']
        after = outputs(cell, words)
        if 'class' in mark:  # of the style sheet
            after = [f':::{{container}} {mark["class"]}\n{text}\n:::' for text in after]
        if code_shown(cell, mark):
            cells.append(cell)
        for text in (*needs(mark, bool(cell['outputs'])), *after):
            say(linked(text, page, known))
    for n, cell in enumerate(cells):
        cell['id'] = f'cell-{n}'
    kernel = dict(name='python3', display_name='Python', language='python')
    language = dict(name='python', pygments_lexer='ipython3')
    top = dict(kernelspec=kernel, language_info=language)
    return dict(cells=cells, metadata=top, nbformat=4, nbformat_minor=5), bad


def code_shown(cell, mark):
    "Whether anything is left of a cell once its Markdown stands on its own."
    return mark.get('echo') != 'false' or bool(cell['outputs'])


def tree(code):
    try:
        return ast.parse(code).body
    except SyntaxError:  # shell or magic
        return [None]


def tools(page):
    "Where the same page can be run, and its entry in the index."
    up = '../' * (len(page.path.parts) - 1)
    file = f'{up}notebooks/{page.path.as_posix()}'
    colab = f'https://colab.research.google.com/github/{URL.removeprefix("https://github.com/")}/blob/main/nbs/{page.path.as_posix()}'
    out = [
        f'<a href="{file}" download>Download the notebook</a>',
        f'<a href="{colab}">Open in Colab</a>',
    ]
    if page.defs:
        out.append(f'<a href="{up}api/{page.module}.html"><code>vidrepro.{page.module}</code></a>')
    return f'<p class="tools">{" · ".join(out)}</p>'


def contents(pages):
    "Hidden lists for the side bar: one a room, rooms in the order of their first number."
    rooms = {}
    for p in pages:
        rooms.setdefault(p.path.parent.name, []).append(p)
    lists = [
        (room.capitalize(), [f'{p.number} {p.title[0]} <{p.doc}>' for p in group])
        for room, group in rooms.items()
        if room
    ]
    lists.append(('Package', ['Modules </api/index>', 'All names <genindex>']))
    return '\n\n'.join(
        f'```{{toctree}}\n:hidden:\n:caption: {room}\n\n' + '\n'.join(lines) + '\n```'
        for room, lines in lists
    )


def write(pages):
    "Everything that Sphinx reads."
    shutil.rmtree(SOURCE, ignore_errors=True)
    for folder in ('api', '_static', '_extra/notebooks'):
        (SOURCE / folder).mkdir(parents=True)
    known, bad = names(pages), []
    asides = [p for p in NBS.rglob('*') if p.suffix in ('.png', '.jpg', '.svg', '.gif')]
    for path in asides:  # pictures that prose shows
        (SOURCE / path.relative_to(NBS)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, SOURCE / path.relative_to(NBS))
    for page in pages:
        nb, missing = chapter(page, known)
        bad += missing
        if not page.number:
            side = dict(cell_type='markdown', id='contents', metadata={}, source=contents(pages))
            nb['cells'].append(side)
        for folder, what in ((SOURCE, nb), (SOURCE / '_extra/notebooks', page.nb)):
            (folder / page.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / page.path).write_text(json.dumps(what), encoding='utf-8')
    if bad:
        raise SystemExit('\n'.join([ABSENT, *bad]))
    modules = [p for p in pages if p.defs]
    for p in modules:
        (SOURCE / 'api' / f'{p.module}.rst').write_text(index_page(p), encoding='utf-8')
    (SOURCE / 'api/index.rst').write_text(index_of_modules(modules), encoding='utf-8')
    (SOURCE / 'conf.py').write_text(CONF)
    shutil.copy(ROOT / 'docs.css', SOURCE / '_static')
    mathjax = Path(find_spec('sphinx-mathjax-offline').origin).parent / 'static/mathjax'
    shutil.copy(mathjax / 'tex-svg-full.js', SOURCE / '_static')


def main():
    found = [
        p
        for p in NBS.rglob('*.ipynb')
        if not p.name.startswith(('.', '_')) and '.ipynb_checkpoints' not in p.parts
    ]
    pages = sorted(map(read, found), key=lambda p: (p.number.zfill(3), p.path.name))
    write(pages)
    shutil.rmtree(TARGET, ignore_errors=True)
    sphinx = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html']
    subprocess.run([*sphinx, SOURCE, TARGET], check=True)
    print(f'{len(pages)} pages: open {TARGET.name}/index.html')


if __name__ == '__main__':
    main()
