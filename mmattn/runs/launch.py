"""Starts the processes of one machine: `launch.py NPROC SCRIPT [ARGS]`, as tools/dist_*.sh do.

It does what `torchrun` does for a fixed number of machines (environment variables NNODES,
NODE_RANK, MASTER_ADDR and PORT), and keeps quiet: when a process fails, its own message is the last
one. This file runs by its path, without importing the package, so that it starts at once.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

# How long the other processes may take to end by themselves after one has failed or been
# interrupted, in seconds.
GRACE = 10


def stop(message):
    """Ends the launcher with one line."""
    print(f'error: {message}', file=sys.stderr)
    sys.exit(2)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def port_is_busy(address, port):
    with socket.socket() as probe:
        # As the server itself will: a port whose last connections are only closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return True
    return False


def number(name, default, low, high):
    """An environment variable as an integer in [low, high]."""
    text = os.environ.get(name, str(default))
    if not text.isdigit() or not low <= int(text) <= high:
        stop(f'{name} must be a number from {low} to {high}, got {text!r}')
    return int(text)


def rendezvous(nodes, node_rank):
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


def die_with_parent():
    """Asks Linux to end this process if the launcher is killed, so that none is left behind."""
    if sys.platform == 'linux':
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command, count, nodes, node_rank):
    """Starts ``count`` processes of a command, each with its rank in the environment."""
    address, port = rendezvous(nodes, node_rank)
    environment = dict(
        os.environ,
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        WORLD_SIZE=str(nodes * count),
        LOCAL_WORLD_SIZE=str(count),
    )
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    environment.setdefault('OMP_NUM_THREADS', str(threads))
    # In sessions of their own, a Ctrl-C of the terminal reaches them once, through the launcher.
    return [
        subprocess.Popen(
            command,
            start_new_session=True,
            preexec_fn=die_with_parent,
            env=dict(environment, RANK=str(node_rank * count + rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(count)
    ]


def wait(processes):
    """Waits for all; when one fails, ends the others.

    Returns:
        int: The exit code of the process that failed first, or 0.
    """
    running = dict(enumerate(processes))
    code, deadline = 0, None
    while running:
        for rank, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[rank]
            if process.returncode and not code:
                code, first = process.returncode, rank
                deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for process in running.values():
                process.kill()
            if 0 in running and first:
                # Rank 0 prints the errors that all processes meet, and has met none.
                print(
                    f'error: process {first} failed with exit code {code}; MMATTN_DEBUG=1 '
                    'shows its traceback',
                    file=sys.stderr,
                )
            deadline = None
        time.sleep(0.05)
    return code


def main():
    count = sys.argv[1] if len(sys.argv) > 1 else ''
    if not count.isdigit() or int(count) < 1:
        stop(f'the number of processes must be a positive integer, got {count!r}')
    nodes = number('NNODES', 1, 1, 10**6)
    node_rank = number('NODE_RANK', 0, 0, nodes - 1)
    processes = start([sys.executable, *sys.argv[2:]], int(count), nodes, node_rank)

    def forward(signum, frame):
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, forward)
    code = wait(processes)
    # a process that died of signal N has code -N; a shell calls that 128 + N
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == '__main__':
    main()
