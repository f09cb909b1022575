"Every data card keeps the schema, and what it states agrees with the official files where they are at hand."

import re
import shutil
from dataclasses import fields

import pytest

import vidrepro
from vidrepro.core.files import InputError
from vidrepro.data import cards
from vidrepro.data.cards import PAPERS, Card, cards_dir, list_cards, load_card, parse_card

EXPECTED = {
    'ucf101',
    'hmdb51',
    'kinetics400',
    'diving48',
    'activitynet',
    'thumos14',
    'weizmann',
    'tennis7',
    'moving_digits',
}


def text_of(name):
    return (cards_dir() / f'{name}.md').read_text(encoding='utf-8')


def test_all_there():
    assert set(list_cards()) == EXPECTED


@pytest.mark.parametrize('name', sorted(EXPECTED))
class TestCard:
    def test_schema(self, name):
        card = load_card(name)
        assert card.name == name and card.classes > 1 and tuple(card.used_by) == PAPERS
        assert re.fullmatch(r'[0-9a-f]{12}', card.hash)

    def test_prose(self, name):
        "What it is good for, its biases, its traps."
        prose = load_card(name).text
        assert (
            all(f'**{word}' in prose for word in ('Good for', 'Biases', 'Traps'))
            and len(prose.split()) > 80
        )

    def test_every_field_is_needed(self, name):
        "A card that loses any one line of its front matter's top level is refused, and the field is named."
        text = text_of(name)
        for field in {f.name for f in fields(Card)} - {'text', 'hash'}:
            less = re.sub(rf'^{field}:.*\n(?:[ ].*\n)*', '', text, count=1, flags=re.M)
            assert less != text
            with pytest.raises(InputError, match=field):
                parse_card(less, f'{name}.md')

    def test_hash_follows_the_text(self, name):
        text = text_of(name)
        assert parse_card(text, f'{name}.md').hash != parse_card(text + '.', f'{name}.md').hash


@pytest.mark.parametrize(
    'old, new, word',
    [
        ('classes: 101', 'classes: many', 'classes'),
        ('title:', 'colour: red\ntitle:', 'colour'),
        ('name: ucf101', 'name: ucf', 'name'),
        ('test: [3783, 3734, 3696]', 'test: [3783]', 'splits'),
        ('train: [9537, 9586, 9624]', 'train: [a, b, c]', 'splits'),
        ('known_bad: []', 'known_bad: [{id: x}]', 'reason'),
        ('  tec:', '  tce:', 'used_by'),
        ('---\nname', 'name', 'ucf101.md'),
        ('splits:\n', 'splits: [\n', 'ucf101.md'),
        ('layout:', 'layout: all\nplaces:', 'places|layout'),
    ],
)
def test_broken(old, new, word):
    text = text_of('ucf101')
    assert old in text
    with pytest.raises(InputError, match=word) as error:
        parse_card(text.replace(old, new), 'ucf101.md')
    assert 'ucf101.md' in str(error.value) and '\n' not in str(error.value)


def test_unknown():
    with pytest.raises(InputError, match='choose from .*weizmann'):
        load_card('weizman')


def test_wheel_falls_back_to_the_package(tmp_path, monkeypatch):
    "Without a checkout around it, the package reads the pages that lie inside it."
    package = tmp_path / 'site' / 'vidrepro'
    shutil.copytree(cards_dir(), package / 'data_cards')
    (package / 'data_cards' / 'hmdb51.md').unlink()
    monkeypatch.setattr(vidrepro, '__file__', str(package / '__init__.py'))
    assert cards.cards_dir() == package / 'data_cards'
    assert set(list_cards()) == EXPECTED - {'hmdb51'} and load_card('ucf101').classes == 101
