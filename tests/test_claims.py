"Verdicts can fail and can succeed: shuffled labels, planted effects, gates, and the time that a full run takes."

import time

import numpy as np
import pytest

from vidrepro.core.results import save_run
from vidrepro.experiments import claims as c
from vidrepro.experiments.claims import (
    Claim,
    Evidence,
    Runs,
    by_seed,
    contrast,
    judge_all,
    margin_for,
)
from vidrepro.experiments.statements import CLAIMS

EVERY = [x for claims in CLAIMS.values() for x in claims]
ROWS = [
    x for x in EVERY if isinstance(x.better, str) and isinstance(x.than, str) and x.better != x.than
]


def shuffled(cards, rng):
    "The same cards with their rows exchanged within each table."
    tables, found = {}, {}
    for row, by in cards.items():
        for card in by.values():
            tables.setdefault('/'.join(row.split('/')[:2]), []).append((row, card))
    for entries in tables.values():
        for (row, _), k in zip(entries, rng.permutation(len(entries))):
            found.setdefault(row, {})[len(found.get(row, {}))] = entries[k][1]
    return found


def test_shuffled_labels_reproduce_nothing(monkeypatch):
    "At most the nominal share of claims about two rows, over many shuffles of the cards at hand."
    real, rng, words = c.read_cards(), np.random.default_rng(0), []
    family = [x for x in ROWS if not (x.floor or x.control)]
    for _ in range(8):
        cards = shuffled(real, rng)
        monkeypatch.setattr(c, 'read_cards', lambda root=None, cards=cards: cards)
        words += [
            v.word for v in judge_all([x for x in family if x.kind == 'more']) if v.mean is not None
        ]
    assert len(words) > 200
    assert np.mean([w == 'reproduced' for w in words]) <= 0.025
    assert np.mean([w == 'contradicted' for w in words]) <= 0.025


@pytest.mark.parametrize('effect, word', [(2, 'reproduced'), (-2, 'contradicted')])
def test_planted_effect_is_found(tmp_path, effect, word):
    "Twice the margin, in hits of a thousand videos, five seeds, the other rows alike."
    rng, m = np.random.default_rng(1), margin_for('motion probe')
    easy, found = rng.normal(size=1000), []
    for trial in range(3):
        root = tmp_path / str(trial)
        for row in range(8):
            level = 0.5 + (effect * m if row == 0 else 0.0)
            for s in range(5):
                p = np.clip(level + rng.normal(0, 0.008) + 0.35 * np.tanh(easy), 0, 1)
                hits = (rng.random(1000) < p).astype(float)
                value = dict(value=hits.mean(), low=hits.mean() - 0.03, high=hits.mean() + 0.03)
                about = dict(seed=s, data={}, device='cpu', seconds=1, root=root)
                protocol = {'motion probe': dict(chance=1 / 12)}
                given = dict(hits={'motion probe': ('videos', hits)}, protocol=protocol)
                save_run(f't/tiny/r{row}-s{s}', {}, {'motion probe': value}, [], **about, **given)
        claims = [
            Claim(f'{k}', '', '', 't/tiny/r0', f't/tiny/r{k}', 'motion probe') for k in range(1, 8)
        ]
        found += [v.word for v in judge_all(claims, root)]
    assert np.mean([w == word for w in found]) >= 0.9


def test_model_knows_all_sources_of_luck():
    "Hits whose videos differ from row to row make an interval wider than seeds alone say."
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(2):
        hits = rng.normal(0, 1, 500) + rng.normal(0, 0.001, (3, 500))
        rows.append(Runs((0, 1, 2), hits.mean(1), of='x', hits=hits))
    e = c.estimate(*rows)
    assert e.videos > 100 * e.seeds and e.videos == pytest.approx(2 / 500, rel=0.2)


def test_a_full_run_takes_seconds():
    begin = time.process_time()
    found = [v for claims in CLAIMS.values() for v in judge_all(claims)]
    assert time.process_time() - begin < 5 and len(found) == len(EVERY)


def test_every_margin_is_above_zero():
    assert all(x.margin > 0 for x in EVERY) and margin_for('anything') == 0.02
    assert margin_for('R@1 one group out', 'tec/real/full') == 0.05


def test_no_equivariance_in_space_was_learnt():
    "The loss of `space` never left that of a guess among 63."
    claim = next(x for x in EVERY if x.name == 'tec: space-equivariance')
    last = by_seed('tec/tiny/space', 'loss equi')
    assert last and min(last.values()) > np.log(63) - claim.control.margin
    assert contrast(claim.control, Evidence())[0].mean < claim.control.margin
    assert judge_all([claim])[0].word == 'not learnt'


def test_undecided_says_what_it_needs():
    for v in (v for claims in CLAIMS.values() for v in judge_all(claims)):
        assert (v.word == 'undecided') == bool(v.needs)
        assert v.needed is None or 3 < v.needed <= 99
