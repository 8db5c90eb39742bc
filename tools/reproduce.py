"""Trains the rows of a paper's tables, each with its seeds, and goes on where it was cut off.

It shows what will run and starts it; the same command again skips what is done, resumes what was
stopped and tries again what failed. tools/leaderboard.py tells what came out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from mmattn.lines import indented, one_line
from mmattn.papers import plan
from mmattn.papers.alternatives import AlternativeError
from mmattn.runs import cluster, leases, local, locks, needs, watch
from mmattn.runs.cli import UserError
from mmattn.runs.driver import Work
from mmattn.runs.progress import Progress

ASK = 24 * 3600  # seconds of GPU time from which on we ask


def count(text):
    """A number of things, from the command line."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f'must be a number from 1 on, got {text!r}')
    return int(text)


def names(text):
    """Numbers of GPUs: 0,1,3."""
    found = text.split(',')
    if not all(name.isdigit() for name in found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f'must be different numbers as in 0,1,3, got {text!r}')
    return found


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('paper', help="cat or drtam; with --tables the folder's name")
    parser.add_argument('table', nargs='*', type=int, help='numbers of tables (default: all)')
    parser.add_argument(
        '--rows',
        nargs='+',
        default=[],
        metavar='PATTERN',
        help="only rows whose method or config's name fits, as in '*CAT*' or 'retinanet_*'",
    )
    parser.add_argument('--seeds', type=count, default=1, metavar='N', help='seeds 0 to N - 1')
    parser.add_argument(
        '--alternative',
        nargs='+',
        default=[],
        metavar='NAME',
        help='for every row that it fits; `pretrained` trains the ImageNet networks first',
    )
    parser.add_argument(
        '--tables',
        nargs='+',
        default=[],
        metavar='FILE',
        help="tables of your own, or rows that join a paper's",
    )
    parser.add_argument('--work-dir', default='work_dirs/reproduce', metavar='DIR')
    parser.add_argument('--data-root', metavar='DIR', help="takes the place of the configs' data/")
    parser.add_argument(
        '--gpus-per-run', type=count, default=1, metavar='N', help='processes of a run'
    )
    parser.add_argument(
        '--gpus',
        type=names,
        metavar='0,1,...',
        help='the GPUs to use, or the CPU slots where there are none (default: all)',
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument('--local', action='store_true', help='on this machine, as by default')
    where.add_argument('--slurm', metavar='PARTITION', help='as jobs of a Slurm cluster')
    parser.add_argument(
        '--cluster',
        metavar='FILE',
        help='YAML with time, account, nodes and more for --slurm (docs/reproduce.md); if it names '
        'the partition, --slurm need not',
    )
    parser.add_argument('--tries', type=count, default=3, metavar='N', help='starts of a run')
    parser.add_argument(
        '--no-check',
        action='store_true',
        help='do not look at the data first (check_data --quick), nor at the disk',
    )
    parser.add_argument(
        '--measure',
        action='store_true',
        help='try each model of which nothing is known for two minutes, and say how long all takes',
    )
    parser.add_argument('--dry-run', action='store_true', help='show what would run')
    parser.add_argument('--format', choices=('sh', 'json'), help='of --dry-run, for other machines')
    parser.add_argument('--watch', action='store_true', help='show how far it is, start nothing')
    parser.add_argument('--yes', action='store_true', help='do not ask before a day of GPU time')
    return parser.parse_args()


def find_slots(chosen, per_run):
    """The GPUs of this machine, or a CPU slot a processor.

    Raises:
        UserError: if there are fewer than a run needs, or GPUs are named that are not there.
    """
    import torch

    kind, there = 'gpu', torch.cuda.device_count()
    if not there:
        kind, there = 'cpu', len(os.sched_getaffinity(0))
    found = chosen or [str(number) for number in range(there)]
    if kind == 'gpu' and any(int(name) >= there for name in found):
        raise UserError(f'--gpus: this machine has the GPUs 0 to {there - 1}, got {found}')
    if len(found) < per_run:
        raise UserError(f'a run needs {per_run} of {kind}, there are {len(found)}')
    return leases.Slots(kind, found)


def confirm(runs, args, driver):
    """Says what is left, by trials and finished runs; asks before a day of GPU time or more, or if
    it is not known.

    Raises:
        UserError: if the disk has no room for it, a trial fails, or the user does not want it.
    """
    left, unknown = needs.estimate(runs, args.work_dir, driver.kind, args.gpus_per_run)
    if args.measure and unknown:
        for number, run in enumerate(unknown, 1):
            print(f'trial {number} of {len(unknown)}: {run.config}', flush=True)
            needs.try_out(run, driver, args.gpus_per_run)
        left, unknown = needs.estimate(runs, args.work_dir, driver.kind, args.gpus_per_run)
    say_time(left, unknown)
    if not args.no_check:
        check_disk(runs, args)
    if args.yes or (left < ASK and not unknown):
        return
    if not sys.stdin.isatty():
        raise UserError('nobody to ask whether to start; --yes starts')
    if input('start? [y/N] ').strip().lower() not in ('y', 'yes'):
        raise UserError('not started')


def say_time(left, unknown):
    text = f'{watch.duration(left)} of GPU time' if left or not unknown else ''
    if unknown:
        text += f'{" and " if text else ""}{len(unknown)} configs of which no run is done yet'
        text += ' (--measure tries each for two minutes)'
    print(f'to do: {text}', flush=True)


def say_disk(wanted, free):
    if wanted:
        print(f'disk: {wanted / 1e9:.1f} GB for checkpoints and logs, {free / 1e9:.1f} GB are free')


def check_disk(runs, args):
    """Says what will be written.

    Raises:
        UserError: if there is no room for it.
    """
    wanted, free = needs.disk(runs, args.work_dir)
    say_disk(wanted, free)
    if wanted > free:
        raise UserError(
            f'{args.work_dir} has no room for {wanted / 1e9:.1f} GB; --no-check starts all the same'
        )


def check_data(runs, args):
    """Looks at the data of what is to be trained.

    Raises:
        UserError: if a training could not begin, or would read what is wrong.
    """
    left = [run for run in runs if watch.status(run, args.work_dir).state != 'done']
    paths = dict.fromkeys(str(run.path) for run in left)
    if args.no_check or not paths:
        return
    command = [sys.executable, str(Path(__file__).with_name('check_data.py')), '--quick', *paths]
    command += ['--data-root', args.data_root] if args.data_root else []
    if subprocess.run(command).returncode:
        raise UserError('the data is not as it must be; --no-check trains all the same')


def dry_run(runs, args):
    if args.format == 'json':
        print(json.dumps(plan.as_data(runs, args.work_dir, args.gpus_per_run), indent=1))
    elif args.format == 'sh':
        print(plan.as_shell(runs, args.work_dir, args.gpus_per_run), end='')
    else:
        for run in runs:
            after = f', after {run.waits_for.name}' if run.waits_for else ''
            rows = '; '.join(run.rows) or 'for others to start from'
            print(f'{run.name}{after}: {rows}')
        print(f'{len(runs)} runs', flush=True)
        try:
            kind = make_driver(runs, args, print).kind
        except UserError:
            kind = 'elsewhere'  # this machine cannot run it: runs that are done still tell
        say_time(*needs.estimate(runs, args.work_dir, kind, args.gpus_per_run))
        if not args.no_check:
            say_disk(*needs.disk(runs, args.work_dir, remember=False))


def keep_watching(runs, work_dir):
    console = Console()
    if not console.is_terminal:
        watch.show(runs, work_dir, console)
        return
    with Progress(runs, work_dir, console) as progress:
        while True:
            progress()
            time.sleep(1)


def on_cluster(work, args):
    """A driver that submits to Slurm.

    Raises:
        UserError: if what it takes is not there.
    """
    try:
        from mmattn.runs import slurm
    except ModuleNotFoundError as error:
        if error.name != 'submitit':
            raise
        raise UserError("--slurm needs submitit: pip install 'mmattn[reproduce]'") from error
    found = cluster.read(args.cluster, args.slurm)
    return slurm.Driver(work, found)


def make_driver(runs, args, say):
    """The driver that places runs where the command line says.

    Raises:
        UserError: if that cannot be.
    """
    environment = {'MMATTN_DATA': os.path.abspath(args.data_root)} if args.data_root else {}
    work = Work(
        runs,
        args.work_dir,
        per_run=args.gpus_per_run,
        tries=args.tries,
        say=say,
        environment=environment,
    )
    if (args.slurm or args.cluster) and not args.local:
        return on_cluster(work, args)
    slots = find_slots(args.gpus, args.gpus_per_run)
    return local.Driver(work, slots)


def drive(runs, args):
    """Returns the exit code: 0 if all is done, 1 if not, 130 if it was stopped."""
    locks.make_folder(args.work_dir)
    check_data(runs, args)
    driver = make_driver(runs, args, lambda line: progress.say(one_line(line)))
    progress = Progress(runs, args.work_dir, where=driver.where)
    confirm(runs, args, driver)
    with progress:
        done = driver.drive(progress)
    if not progress.console.is_terminal:
        watch.show(runs, args.work_dir, progress.console)
    for failure in driver.failures():
        for line in failure.split('\n'):
            print(indented(line), file=sys.stderr)
    if driver.asked_to_stop:
        return 130
    return 0 if done else 1


def main():
    args = parse_args()
    try:
        runs = plan.make(
            args.paper, args.table, args.seeds, args.rows, args.alternative, args.tables
        )
        if args.dry_run:
            dry_run(runs, args)
        elif args.watch:
            keep_watching(runs, args.work_dir)
        else:
            return drive(runs, args)
    except (UserError, AlternativeError, ValueError, OSError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
