__version__ = "0.1.0"


def __getattr__(name):
    "Weights by name, imported when they are asked for: `vidrepro.load('tec/tiny/full-s0')`."
    if name in ('load', 'Encoder'):
        from vidrepro.runs import weights

        return getattr(weights, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
