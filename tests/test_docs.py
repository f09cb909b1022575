"The book as web pages: every link leads somewhere, nothing is raw, and a browser shows it as meant."

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from urllib.parse import unquote, urldefrag, urljoin

import pytest

pytestmark = [
    pytest.mark.xdist_group('book'),  # one worker: the book is built once
    pytest.mark.skipif(
        bool(os.environ.get('CI')) and sys.version_info[:2] != (3, 12),
        reason='the book is the same on every Python: CI builds it on 3.12',
    ),
]
ROOT = Path(__file__).parents[1]
VOID = 'area base br col embed hr img input link meta source track wbr'.split()
DOT = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
RAW = {  # what no reader should meet outside code
    'a row of a Markdown table': r'\|\s*:?-{3,}',
    'attributes of another renderer': r'\{target=|\{\.\w|:::',
    'a link': r'\]\([\w./#]',
    'a role': r'\{[\w:]+\}`',
    'a formula': r'\$\$|\\(?:frac|sum|mathcal|tau)\b',
    'emphasis': r'\*\*\w[^*]*\w\*\*',
    'a directive': r'#\|',
}


class Look(HTMLParser):
    "Ids, links, loaded files, pictures and running text of a page."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.silent, self.text = set(), [], [], [], []
        self.pictures, self.quiet, self.open = 0, 0, []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag == 'a' and 'href' in a:
            self.links.append(a['href'])
        if tag in ('script', 'img', 'iframe', 'source') and a.get('src'):
            self.loads.append(a['src'])
        if tag == 'link' and a.get('rel') in ('stylesheet', 'preload', 'icon'):
            self.loads.append(a['href'])
        if tag == 'img':
            self.pictures += 1
            if not (a.get('alt') or '').strip() or a['alt'].startswith('../_images'):
                self.silent.append(a.get('src'))
        quiet = (
            tag in ('pre', 'code', 'script', 'style') or 'math' in (a.get('class') or '').split()
        )
        if tag not in VOID:
            self.open.append(quiet)
            self.quiet += quiet

    def handle_endtag(self, tag):
        if tag not in VOID and self.open:
            self.quiet -= self.open.pop()

    def handle_data(self, data):
        if not self.quiet:
            self.text.append(data)


def look(site):
    return {p.relative_to(site).as_posix(): Look(p) for p in sorted(site.rglob('*.html'))}


def dead(site, pages):
    "Links and loads inside the site that lead nowhere."
    for name, page in pages.items():
        for link in page.links + page.loads:
            if re.match(r'[a-z]+:', link):
                continue
            target, anchor = urldefrag(urljoin(name, link.split('?')[0]))
            target = unquote(target) or name
            if not (site / target).is_file():
                yield f'{name}: {link}'
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                yield f'{name}: {link}'


def raw(pages):
    "Markup that reached the reader."
    for name, page in pages.items():
        text = ' '.join(page.text)
        for what, pattern in RAW.items():
            for found in re.finditer(pattern, text):
                yield f'{name}: {what}: {text[max(0, found.start() - 30) : found.end() + 30]!r}'


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The book, built from a copy of what it is made of."
    pytest.importorskip('furo', reason="the book needs pip install -e '.[docs]'")
    copy = tmp_path_factory.mktemp('book')
    for name in ('docs.py', 'docs.css', 'settings.ini'):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / 'nbs', copy / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    done = subprocess.run([sys.executable, 'docs.py'], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return copy / '_docs'


@pytest.fixture(scope='module')
def pages(site):
    return look(site)


def test_every_notebook_is_a_page(pages):
    "And every module has its entry."
    book = {
        p.relative_to(ROOT / 'nbs').with_suffix('.html') for p in (ROOT / 'nbs').rglob('*.ipynb')
    }
    book = {p.as_posix() for p in book if '.ipynb_checkpoints' not in p.parts}
    modules = {
        f'api/{p.parent.name}.{p.stem}.html'
        for p in (ROOT / 'vidrepro').glob('*/*.py')
        if re.search(r'^(def|class) [a-zA-Z]', p.read_text(), flags=re.M)
    }
    assert book | modules <= pages.keys(), sorted((book | modules) - pages.keys())


def test_no_dead_link(site, pages):
    bad = list(dead(site, pages))
    assert not bad, '\n'.join([f'{len(bad)} dead links', *bad[:20]])
    assert sum(len(p.links) for p in pages.values()) > 10_000  # they were looked at


def test_a_dead_link_is_found(tmp_path):
    "The check itself: a file, an anchor, a picture."
    (tmp_path / 'a.html').write_text(
        '<a href="b.html">1</a><a href="#x">2</a><a id="y" href="#y">3</a><img src="c.png" alt="4">'
    )
    assert len(list(dead(tmp_path, look(tmp_path)))) == 3


def test_nothing_is_raw(pages):
    bad = list(raw(pages))
    assert not bad, '\n'.join([f'{len(bad)} pieces of markup', *bad[:20]])


def test_pictures_have_words(pages):
    bad = [f'{name}: {src}' for name, page in pages.items() for src in page.silent]
    assert not bad, '\n'.join(bad)
    assert sum(p.pictures for p in pages.values()) > 100


def test_a_picture_without_words_stops_the_build(tmp_path):
    out = dict(output_type='display_data', metadata={}, data={'image/png': DOT})
    code = dict(
        cell_type='code', id='b', metadata={}, execution_count=None, source='', outputs=[out]
    )
    cells = [
        dict(cell_type='markdown', id='a', metadata={}, source='# Title\n\n> promise'),
        dict(code, source='show()'),
    ]
    nb = dict(cells=cells[::-1], metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'nbs/index.ipynb').write_text(json.dumps(nb))
    for name in ('docs.py', 'docs.css', 'settings.ini'):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run([sys.executable, 'docs.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and 'index.ipynb cell 0' in done.stderr


def test_no_network(pages):
    "Everything that a page loads lies beside it."
    bad = [f'{name}: {x}' for name, page in pages.items() for x in page.loads if ':' in x]
    assert not bad, '\n'.join(bad)


def test_needs_are_said(pages):
    "A cell that was not run says why."
    marked = Counter()
    for path in (ROOT / 'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in path.parts:
            continue
        name = path.relative_to(ROOT / 'nbs').with_suffix('.html').as_posix()
        for cell in json.loads(path.read_text())['cells']:
            marked[name] += bool(
                re.search(r'^#\| *(gpu|slow|data)\b', ''.join(cell['source']), flags=re.M)
            )
    said = {name: ' '.join(pages[name].text).count('This cell needs') for name in marked}
    assert said == dict(marked) and sum(marked.values()) > 10


# ---- in a browser

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
HARNESS = """<!doctype html><body style="margin:0"><iframe id="f" style="border:0"></iframe><script>
const pages = PAGES, frame = document.getElementById('f'), found = {};
const over = x => x.scrollWidth > x.clientWidth + 1
                  && Math.max(...x.textContent.split('\\n').map(l => l.length)) <= 100;
function measure(width) {
  frame.style.width = width + 'px'; frame.style.height = '900px';
  const d = frame.contentDocument;
  return {page: d.documentElement.scrollWidth,
          boxes: [...d.querySelectorAll('.cell_input pre')].filter(over).length};
}
async function visit(page) {
  const begin = performance.now();
  frame.style.width = '390px';
  await new Promise(done => { frame.onload = done; frame.src = '/' + page; });
  const w = frame.contentWindow, d = w.document;
  if (w.MathJax && w.MathJax.startup) await w.MathJax.startup.promise;
  const all = [...d.querySelectorAll('.math')];
  return {formulas: all.length,
          plain: all.filter(x => !x.querySelector('mjx-container svg')).length,
          answer: d.querySelector('.answer tbody tr')?.getBoundingClientRect().bottom ?? 0,
          wrong: [...d.querySelectorAll('mjx-merror, [data-mjx-error]')].map(x => x.outerHTML.slice(0, 300)),
          narrow: measure(390), wide: measure(1440),
          ms: Math.round(performance.now() - begin)};
}
(async () => {
  for (const page of pages) {
    try { found[page] = await visit(page); } catch (e) { found[page] = {error: String(e)}; }
  }
  await fetch('/found', {method: 'POST', body: JSON.stringify(found)});
})();
</script>"""


class Handler(SimpleHTTPRequestHandler):
    "Serves a site and one page that looks at all others."

    def __init__(self, *args, harness, queue, **kwargs):
        self.harness, self.queue = harness, queue
        super().__init__(*args, **kwargs)

    def do_GET(self):
        if self.path != '/harness':
            return super().do_GET()
        self.send_response(200)
        self.send_header('Content-Type', 'text/html')
        self.end_headers()
        self.wfile.write(self.harness.encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        self.send_response(204)
        self.end_headers()
        self.queue.put(json.loads(body))

    def log_message(self, *args):
        pass


def browse(site, names, folder, seconds=400):
    "What a browser measures on each page: one process, page after page."
    queue = Queue()
    harness = HARNESS.replace('PAGES', json.dumps(names))
    handler = partial(Handler, directory=str(site), harness=harness, queue=queue)
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    flags = [
        '--headless',
        '--hide-scrollbars',
        '--no-sandbox',
        '--disable-gpu',
        f'--user-data-dir={folder}',
    ]
    url = f'http://127.0.0.1:{server.server_port}/harness'
    window = [
        '--window-size=1500,1000',
        '--remote-debugging-port=0',
    ]  # stays open until it is ended
    browser = subprocess.Popen(
        [CHROMIUM, *flags, *window, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return queue.get(timeout=seconds)
    finally:
        browser.terminate()
        browser.wait(10)
        server.shutdown()
        server.server_close()


def visited(pages):
    "All chapters, and every tenth page of the package: those are made by one template."
    return [n for i, n in enumerate(sorted(pages)) if not n.startswith('api/') or i % 10 == 0]


@pytest.fixture(scope='module')
def seen(site, pages, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip('no Chromium here: widths and formulas are not looked at')
    try:
        return browse(site, visited(pages), tmp_path_factory.mktemp('chromium'))
    except Empty:
        pytest.fail('the browser did not answer')


def test_every_page_opens(seen, pages):
    assert list(seen) == visited(pages)
    assert not {name: s['error'] for name, s in seen.items() if 'error' in s}


def test_no_sideways_scroll_on_a_phone(seen):
    bad = {name: s['narrow']['page'] for name, s in seen.items() if s['narrow']['page'] != 390}
    assert not bad


def test_the_answer_is_on_the_first_screen(seen):
    "Of a phone, 390 by 844 pixels: question and answer of every page of results."
    bottom = {name: round(s['answer']) for name, s in seen.items() if s['answer']}
    assert len(bottom) >= 9 and max(bottom.values()) <= 844, bottom


def test_code_fits_on_a_desk(seen):
    "Lines of 100 characters need no scrolling in a wide window; a few outputs are wider."
    bad = {name: s['wide']['boxes'] for name, s in seen.items() if s['wide']['boxes']}
    assert not bad


def test_formulas_are_drawn(seen):
    bad = {n: s for n, s in seen.items() if s['plain'] or s['wrong']}
    assert not bad
    assert sum(s['formulas'] for s in seen.values()) > 300
