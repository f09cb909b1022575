"""A pretended device: tensors that compute on the CPU, say that they are elsewhere, and refuse to mix, as on a GPU.

`Elsewhere` is a tensor of the device `lazy`, which needs no hardware; inside it is an ordinary tensor with the values. Within
`pretended()` every operation is seen, and what a GPU refuses because of where its operands lie raises `Mixed`. Allowed is
what CUDA allows: numbers without axes from the CPU, CPU indices into a tensor elsewhere, copies. Values are those of the CPU.

It cannot see kernels that a GPU lacks, other rounding, memory, autocast, or branches on `device.type == 'cuda'`.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

PLACE = torch.device('lazy', 0)


class Mixed(RuntimeError):
    "An operation on tensors, or with a generator, of two devices."


class Generator(torch.Generator):
    "Draws what a CPU generator draws, and says that it is elsewhere."

    device = property(lambda self: PLACE)


class Elsewhere(torch.Tensor):
    "A tensor on the pretended device."

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        how = dict(dtype=inner.dtype, device=PLACE, layout=inner.layout)
        if inner.layout == torch.strided:
            how |= dict(strides=inner.stride(), storage_offset=inner.storage_offset())
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **how)
        self.inner = inner
        return self

    def tolist(self):
        return self.inner.tolist()

    def numpy(self, *args, **kwargs):
        raise Mixed('numpy cannot read what lies elsewhere')

    def __repr__(self):
        return f'Elsewhere({self.inner})'

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def away(x):
    "Whether a tensor or a place is the pretended one."
    return isinstance(x, Elsewhere) or (isinstance(x, torch.device) and x.type == PLACE.type)


COPIES = ('aten::copy_', 'aten::_to_copy')
INDEX = ('aten::index', 'aten::index_put', 'aten::index_put_', 'aten::_index_put_impl_')


def together(name, args, kwargs):
    "Refuse operands of two devices."
    if name in INDEX and away(args[0]):  # its indices may be anywhere
        args = args[:1] + args[2:]
    found = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    places = {away(x) for x in found if away(x) or x.ndim}
    if len(places) > 1 and name not in COPIES:
        raise Mixed(f'{name}: operands on two devices')


def dispatch(func, args, kwargs):
    "Compute on the CPU, and put the result where it belongs."
    name, target = func._schema.name, kwargs.get('device')
    together(name, args, kwargs)
    known = {id(x.inner): x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Elsewhere)}
    bare = lambda x: x.inner if isinstance(x, Elsewhere) else torch.device('cpu') if away(x) else x
    result = func(*tree_map(bare, args), **tree_map(bare, kwargs))
    there = away(args[0]) if name == 'aten::copy_' else away(target) if target else bool(known)
    put = lambda x: known[id(x)] if id(x) in known else Elsewhere(x)
    wrap = lambda x: put(x) if isinstance(x, torch.Tensor) else x
    return tree_map(wrap, result) if there else result


class Operations(TorchDispatchMode):
    "What happens below autograd, making new tensors included."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def drawn_at_home(func, args, kwargs):
    "Refuse a generator that is not where its numbers go, as a GPU does."
    stream, target = kwargs.get('generator'), kwargs.get('device')
    if stream is None:
        return
    own = [x for x in args[:1] if isinstance(x, torch.Tensor)]
    place = own[0] if own else torch.device(target or 'cpu')
    if isinstance(stream, Generator) != away(place):
        raise Mixed(f'{func.__name__}: a generator of another device')


def listed(index):
    "Lists among the indices become tensors, which may lie anywhere."
    if isinstance(index, tuple):
        return tuple(map(listed, index))
    return torch.tensor(index) if isinstance(index, list) else index


class Calls(TorchFunctionMode):
    "What never gets below autograd as it was called."

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        drawn_at_home(func, args, kwargs)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get('device') is not None:
            return func(*args, **{**kwargs, 'device': None}).to(kwargs['device'])
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], listed(args[1]), *args[2:])
        return func(*args, **kwargs)


@contextmanager
def pretended():
    "While it lasts, `PLACE` is a device."
    cast = torch.autocast  # which is off there: it knows real devices only
    there = lambda kind, *args, **how: cast('cpu' if kind == PLACE.type else kind, *args, **how)
    with patch('torch.autocast', there), Calls(), Operations():
        yield PLACE
