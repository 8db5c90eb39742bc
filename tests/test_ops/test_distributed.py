"""The kernels in two processes: each has half of a batch, the gradients are the whole batch's."""

import pytest
import torch
import torch.distributed as dist
from forked import processes
from needs import needs_kernels
from nodes import OURS, nodes
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.nn.parallel import DistributedDataParallel as DDP

import mmattn.attention as attention
from mmattn.ops import native

pytestmark = needs_kernels
GATES = ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM')
WAYS = ('ddp', 'fsdp', 'fully_shard')


def network():
    """In eval mode: statistics of half a batch are not those of the batch."""
    torch.manual_seed(0)
    net = nn.Sequential(*(getattr(attention, name)(16, impl='fast') for name in GATES))
    with torch.no_grad():  # away from a start where gradients vanish: CAT's factors are 0
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return net.eval()


def batch():
    torch.manual_seed(7)
    return torch.randn(4, 16, 9, 8)


def gradients(way, x):
    """Of a network wrapped in a way, after a step on x; and whether kernels ran."""
    net = network()
    names = [name for name, _ in net.named_parameters()]
    if way == 'ddp':
        run = DDP(net)
    elif way == 'fsdp':
        run = FSDP(net, device_id=torch.device('cpu'), use_orig_params=True)
    elif way == 'fully_shard':
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # of torch 2.6 and later

        mesh = init_device_mesh('cpu', (2,))
        for gate in net:
            fully_shard(gate, mesh=mesh)
        run = fully_shard(net, mesh=mesh)
    else:
        run = net
    y = run(x)
    ran = nodes(y) & OURS
    y.square().mean().backward()
    if way == 'fsdp':
        with FSDP.summon_full_params(run, with_grads=True):
            grads = [p.grad.clone() for p in net.parameters()]
    else:
        grads = [p.grad for p in net.parameters()]
        grads = [g.full_tensor() if way == 'fully_shard' else g for g in grads]
    return dict(zip(names, grads, strict=True)), sorted(ran)  # torch 2.5 loads no sets as weights


def work(rank, folder, ways):
    torch.set_num_threads(1)
    native.SMALL = 0  # the maps are small: do not leave them to PyTorch
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    found = {way: gradients(way, batch()[rank * 2 : rank * 2 + 2]) for way in ways}
    torch.save(found, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    has = hasattr(torch.distributed.fsdp, 'fully_shard')
    ways = [way for way in WAYS if has or way != 'fully_shard']
    processes(work, str(folder), ways)
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(2)]


@pytest.mark.parametrize('way', WAYS)
def test_two_processes(way, found):
    if way not in found[0]:
        pytest.skip(f'torch {torch.__version__} has no fully_shard')
    expected, _ = gradients('alone', batch())
    # On CPUs PyTorch 2.8's fully_shard adds up the gradients of the processes, of any layer.
    times = 2 if way == 'fully_shard' and torch.__version__.startswith('2.8.') else 1
    for grads, ran in (of_rank[way] for of_rank in found):
        assert ran == [f'{op}Backward' for op in ('cat', 'cbam', 'coord', 'drtam', 'eca', 'se')]
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad / times, expected[name], rtol=1e-3, atol=1e-7)
