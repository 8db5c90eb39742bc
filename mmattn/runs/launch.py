"""Starts the processes of one machine: `launch.py NPROC SCRIPT [ARGS]`, as tools/dist_*.sh do.

The environment variables NNODES, NODE_RANK, MASTER_ADDR, PORT and RESTARTS are read and checked
here; the rest is what `torchrun` runs too, with the differences of agent.py. This file runs by its
path, without importing the package, and imports PyTorch only when there is something to start.
"""

import os
import socket
import sys
from typing import NoReturn


def stop(message: str) -> NoReturn:
    """Ends the launcher with one line."""
    print(f'error: {message}', file=sys.stderr)
    sys.exit(2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def port_is_busy(address: str, port: int) -> bool:
    with socket.socket() as probe:
        # As the server itself will: a port whose last connections are only closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return True
    return False


def is_number(text: str) -> bool:
    """Whether it is one of at most nine digits; '²' is a digit, too, for Python."""
    return text.isascii() and text.isdigit() and len(text) < 10


def number(name: str, default: int, low: int, high: int) -> int:
    """An environment variable as an integer in [low, high]."""
    text = os.environ.get(name, str(default))
    if not is_number(text) or not low <= int(text) <= high:
        stop(f'{name} must be a number from {low} to {high}, got {text[:40]!r}')
    return int(text)


def rendezvous(nodes: int, node_rank: int) -> tuple[str, int]:
    """Address and port at which the processes meet; stops if the port is taken."""
    address = os.environ.get('MASTER_ADDR', '127.0.0.1')
    if nodes > 1 and 'MASTER_ADDR' not in os.environ:
        stop('MASTER_ADDR must name the machine of NODE_RANK 0 when NNODES > 1')
    if 'PORT' not in os.environ:
        # Machines that cannot talk yet can only agree on a fixed one.
        return address, free_port() if nodes == 1 else 29500
    port = number('PORT', 29500, 1, 65535)
    if node_rank == 0 and port_is_busy('127.0.0.1' if nodes == 1 else '', port):
        stop(f'port {port} is in use; set PORT to another one, or leave it unset')
    return address, port


def main() -> NoReturn:
    count = sys.argv[1] if len(sys.argv) > 1 else ''
    if not is_number(count) or int(count) < 1:
        stop(f'the number of processes must be a positive integer, got {count[:40]!r}')
    nodes = number('NNODES', 1, 1, 10**6)
    node_rank = number('NODE_RANK', 0, 0, nodes - 1)
    restarts = number('RESTARTS', 3, 0, 10**6)
    address, port = rendezvous(nodes, node_rank)
    threads = max(1, len(os.sched_getaffinity(0)) // int(count))
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))

    import agent  # beside this file

    sys.exit(agent.run(sys.argv[2:], int(count), nodes, node_rank, address, port, restarts))


if __name__ == '__main__':
    main()
