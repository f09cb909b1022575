"Pages of results: the answer stands first, it is what the cards say, and a number of a paper has its source."

import json
import re
from functools import lru_cache, partial
from pathlib import Path

import pytest

from vidrepro.experiments.front import FRONT
from vidrepro.experiments.scoreboard import ASKED, SENTENCES, box, tally

NBS = Path(__file__).parents[1] / 'nbs'
BOXES = {page: partial(box, page) for page in ASKED} | {'experiments/102_front': tally}


@lru_cache
def fresh(page):
    "The box of today's cards."
    return BOXES[page]()


def cells(page):
    return json.loads((NBS / f'{page}.ipynb').read_text(encoding='utf-8'))['cells']


def said(cell):
    "Markdown that a cell shows."
    return ''.join(
        ''.join(o.get('data', {}).get('text/markdown', '')) for o in cell.get('outputs', ())
    )


def first(page):
    "Place of the title, and of the first cell that shows anything."
    all_ = cells(page)
    title = next(i for i, c in enumerate(all_) if c['cell_type'] == 'markdown')
    return title, next(i for i, c in enumerate(all_) if c.get('outputs'))


@pytest.mark.parametrize('page', BOXES)
def test_the_answer_is_the_first_thing_shown(page):
    "Between title and answer stand imports, which no reader sees, and nothing else."
    title, shows = first(page)
    between = [''.join(c['source']) for c in cells(page)[title + 1 : shows]]
    assert all(s.startswith('#| hide') for s in between), between
    text = said(cells(page)[shows])
    if page in ASKED:
        assert any(sentence in text for sentence in SENTENCES.values()), text
    assert text.index('| answer |') < 200  # the question, then at once the answer


@pytest.mark.parametrize('page', BOXES)
def test_the_answer_is_not_stale(page):
    "The stored box is the one that the cards in `results/` give today."
    _, shows = first(page)
    assert said(cells(page)[shows]) == fresh(page), f'run {page} again'


def test_every_page_with_verdicts_has_one():
    "Whoever draws a picture of verdicts begins with the answer; the pages of the rules themselves do not."
    rules = {'experiments/90_claims', 'experiments/91_statements', 'experiments/104_scoreboard'}
    drawn = set()
    for path in sorted([*NBS.glob('papers/*.ipynb'), *NBS.glob('experiments/*.ipynb')]):
        page = path.relative_to(NBS).with_suffix('').as_posix()
        if any(re.search(r'^ *forest\(', ''.join(c['source']), re.M) for c in cells(page)):
            drawn.add(page)
    assert drawn - rules <= set(BOXES), drawn - rules - set(BOXES)


def test_a_paper_s_number_has_a_source():
    "In every box the authors' number stands with who reports it; where none was found that is said."
    for page, asked in ASKED.items():
        says = next(s for s in FRONT if s.statement == asked.claim)
        line = next(x for x in fresh(page).splitlines() if x.startswith('| authors report |'))
        assert says.source in line, page
        numbers = re.findall(r'\d+\.\d+', line)
        assert all(n in says.number for n in numbers), (page, numbers)
        assert numbers or 'no number was found' in line, page


def test_a_stale_answer_is_found(tmp_path):
    "The check itself: without cards the box is another one."
    page = next(iter(ASKED))
    assert BOXES[page](tmp_path) != fresh(page)
