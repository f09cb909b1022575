"The book without Quarto: nbdev's `proc_nbs` -> plain notebooks -> Sphinx + MyST-NB."

import re
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import nbformat
import yaml
from nbdev.serve import proc_nbs

SOURCE, TARGET = Path('_site_src'), Path('_docs')
CONF = '''project = 'vidrepro'
extensions = ['myst_nb']
nb_execution_mode = 'off'           # show what is stored; never run anything here
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence']
myst_heading_anchors = 3
exclude_patterns = ['_build', 'jupyter_execute']
'''


def plain(nb):
    "Swap Quarto-only marks for what every renderer knows: an H1, and a `remove-input` tag."
    for c in nb.cells:
        if c.cell_type == 'raw' and c.source.startswith('---'):
            front = yaml.safe_load(c.source.strip().strip('-')) or {}
            c.update(
                cell_type='markdown',
                source=f"# {front.get('title', '')}\n\n> {front.get('description', '')}",
            )
        if c.cell_type != 'code':
            continue
        marks = dict(re.findall(r'^#\| *([\w-]+):? *(.*)$', c.source, flags=re.M))
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        if marks.get('echo') == 'false':
            c.metadata.setdefault('tags', []).append('remove-input')
        for o in c.get('outputs', []):
            if 'text/markdown' in o.get('data', {}):
                o.data['text/markdown'] = re.sub(r'^---\n+', '', ''.join(o.data['text/markdown']))
    return nb


def contents(pages):
    "One list of pages a room, rooms in reading order: that of their first number."
    number = {p: int(m[0]) if (m := re.match(r'\d+', p.name)) else 1000 for p in pages}
    first = {
        room: min(n for p, n in number.items() if p.parent == room)
        for room in {p.parent for p in pages}
    }
    pages = sorted(
        pages, key=lambda p: (p.stem != 'index', first[p.parent], str(p.parent), number[p], p.name)
    )
    out = ['# Contents', '']
    for room, group in groupby(
        pages, key=lambda p: 'Start' if p.stem == 'index' else p.parent.name.capitalize() or 'Tools'
    ):
        out += [
            '```{toctree}',
            ':maxdepth: 1',
            f':caption: {room}',
            '',
            *(p.with_suffix('').as_posix() for p in group),
            '```',
            '',
        ]
    return '\n'.join(out)


def main():
    built = Path(proc_nbs(force=True))
    shutil.rmtree(SOURCE, ignore_errors=True)
    pages = [p.relative_to(built) for p in built.rglob('*.ipynb')]
    for page in pages:
        target = SOURCE / page
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(plain(nbformat.read(built / page, 4)), target)
    (SOURCE / 'conf.py').write_text(CONF)
    (SOURCE / 'contents.md').write_text(contents(pages))
    subprocess.run(
        [
            sys.executable,
            '-m',
            'sphinx',
            '-q',
            '-b',
            'html',
            '-D',
            'root_doc=contents',
            SOURCE,
            TARGET,
        ],
        check=True,
    )
    print(f'{len(pages)} pages: open {TARGET}/contents.html')


if __name__ == '__main__':
    main()
