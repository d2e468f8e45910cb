"""Random programs around converted models: python tests/support/fuzz.py --seeds 0:20000. 1 is a failure."""

import argparse
import collections
import multiprocessing
import multiprocessing.connection
import sys
import time
import warnings
from unittest import mock

import torch
from fuzzing.generate import generate
from fuzzing.minimise import minimise
from fuzzing.printing import printed
from fuzzing.running import BOTH_CRASH, CRASHES, FAILURES, Verdict, admitted, judge

from manualnn.autograd import faces, spare
from manualnn.kernels import running
from manualnn.memory import recorder

LEAST, LARGE = running.LEAST, spare.LARGE
SMALL = (0, 60, 200, 1000)  # bytes of tensors that the recorder leaves alone, by the seed
CHUNK = 250  # programs of one process


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="first:last+1, or one")
    parser.add_argument("--keep", choices=("less", "all"), help="drawn where not given")
    parser.add_argument("--dtype", choices=("float64", "float32"), help="drawn where not given")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--minimise",
        type=int,
        default=5,
        metavar="N",
        help="as many failures are made small and printed",
    )
    parser.add_argument(
        "--least",
        type=int,
        metavar="N",
        help="elements of a tensor for which a kernel is made, or that is written over",
    )
    parser.add_argument("--show", action="store_true", help="print the programs, small or not")
    options = parser.parse_args(args)
    first, _, last = options.seeds.partition(":")
    seeds = range(int(first), int(last) if last else int(first) + 1)
    jobs = [(seed, options.dtype, options.keep, options.least) for seed in seeds]
    counts, failures, start = collections.Counter(), [], time.monotonic()
    for seed, verdict in _results(jobs, options.processes):
        counts[verdict.kind] += 1
        if options.show:
            program, _ = admitted(generate(seed, options.dtype, options.keep))
            print(f"# {verdict}\n{program.source()}")
        if verdict.kind in FAILURES:
            failures.append((seed, verdict))
            print(
                f"seed {seed}: {verdict.kind}: {' '.join(verdict.text.split())[:200]}", flush=True
            )
    for seed, verdict in [f for f in failures if f[1].kind != CRASHES][: options.minimise]:
        program, _ = admitted(generate(seed, options.dtype, options.keep))
        program = minimise(program, verdict.key())
        print(f"\n{'-' * 80}\n{printed(program, judge(program))}", flush=True)
    rate = len(jobs) / (time.monotonic() - start)
    print(
        f"{len(jobs)} programs, {rate:.0f} a second: "
        + ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
    )
    if failures:
        print("failures, by seed:", *(seed for seed, _ in failures))
    return bool(failures)


def _results(jobs, processes):
    if processes == 1:
        yield from map(verdict_of, jobs)
        return
    # Each program in a process that tells of each verdict: where PyTorch itself crashes, one program is lost.
    spawn = multiprocessing.get_context("spawn")
    chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    at_work = {}
    while chunks or at_work:
        while chunks and len(at_work) < processes:
            chunk, (ours, theirs) = chunks.pop(0), spawn.Pipe(duplex=False)
            process = spawn.Process(target=_judge_all, args=(chunk, theirs))
            process.start()
            theirs.close()
            at_work[ours] = [process, chunk, False]
        for ours in multiprocessing.connection.wait(at_work):
            process, chunk, converted = at_work[ours]
            try:
                said = ours.recv()
                if said is not None:
                    chunk.pop(0)
                    yield said
                at_work[ours][2] = said is None
            except EOFError:
                del at_work[ours]
                process.join()
                if chunk:
                    kind = CRASHES if converted else BOTH_CRASH
                    yield chunk.pop(0)[0], Verdict(kind, f"exit status {process.exitcode}")
                    chunks.insert(0, chunk)


def _judge_all(jobs, pipe):
    """Sends each verdict, and None before it, when torch's own run of the program has ended."""
    for job in jobs:
        pipe.send(verdict_of(job, ran=lambda: pipe.send(None)))


def verdict_of(job, ran=lambda: None):
    """The seed and the verdict on its program; of (seed, dtype, keep, least). ran: called after torch's run."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    *how, least = job
    kernels, written_over = (LEAST, LARGE) if least is None else (least, least)
    with (
        mock.patch.object(running, "LEAST", kernels),
        mock.patch.object(faces, "LARGE", written_over),
        mock.patch.object(spare, "LARGE", written_over),
        mock.patch.object(recorder, "LEAST", SMALL[job[0] % len(SMALL)]),
    ):
        program, expected = admitted(generate(*how))
        ran()
        return job[0], judge(program, expected)


if __name__ == "__main__":
    sys.exit(main())
