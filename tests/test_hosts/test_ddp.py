"""Data-parallel training over two processes: the gradients of the gates are those of the batch."""

import torch
import torch.distributed as dist
from forked import processes
from host_cases import CASES, everywhere, gates, image, in_mode, randomise
from torch.nn.parallel import DistributedDataParallel

NAMES = (
    'mmpretrain-resnet18',
    'mmpretrain-mobilenet',
    'mmpretrain-shufflenet',
    'mmdet-resnet18',
    'mmseg-resnet18-v1c',
)


def gradients(name, batch, wrap):
    torch.manual_seed(0)
    case = CASES[name]
    # Norms in eval mode: statistics of half a batch are not those of the batch.
    model = in_mode(randomise(case.build(everywhere(case)))).double()
    run = DistributedDataParallel(model) if wrap else model
    sum(out.square().mean() for out in run(batch.double())).backward()
    assert gates(model)
    return {key: p.grad for key, p in model.named_parameters()}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    found = {name: gradients(name, image(32, 4)[rank::2], wrap=True) for name in NAMES}
    torch.save(found, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    processes(work, str(tmp_path))
    found = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    for name in NAMES:
        for key, expected in gradients(name, image(32, 4), wrap=False).items():
            for rank in range(2):
                torch.testing.assert_close(found[rank][name][key], expected, rtol=1e-6, atol=1e-9)
