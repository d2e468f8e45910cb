"""What the verification of recomputed tensors costs: a training step with it over the step without.

python benchmarks/verify.py [--models resnet18,...] [--size 64] [--batch 4] [--rounds 15] [--save]

The two take turns, one step each, in one process; a row's ratio is the median of the rounds' ratios. Without
options ten small models at 64×64 in batches of four, where Python's share is largest; --large takes the eight
of the memory table at 224×224 in batches of two.
"""

import math
import statistics

import torch
import vision
from speed import seconds
from timing import merge

import manualnn

SMALL = (
    *("resnet18", "resnet34", "vgg11_bn", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small"),
    *("shufflenet_v2_x0_5", "efficientnet_b0", "mnasnet0_5", "densenet121"),
)


def task(name, found, verify):
    made = vision.Task(name, vision.THEIRS, "fp32", found.batch, found.size)
    manualnn.convert(made.model, verify=verify)
    return made


def row(name, found):
    tasks = [task(name, found, verify) for verify in (True, False)]
    for each in tasks * 2:
        each()
    rounds = []
    for i in range(found.rounds):
        order = (0, 1) if i % 2 else (1, 0)
        timed = {at: seconds(tasks[at]) for at in order}
        rounds.append((timed[0], timed[1]))
    made = {"model": name, "size": found.size, "batch": found.batch, "machine": vision.where("cpu")}
    made["seconds"] = round(statistics.median(b for _, b in rounds), 4)
    return made | {"ratio": round(statistics.median(a / b for a, b in rounds), 4)}


def main():
    parser = vision.parser_of(__doc__)
    parser.add_argument("--models", help="names, with commas between them")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--size", type=int, help="of the images")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="into benchmarks/results")
    found = parser.parse_args()
    names = found.models.split(",") if found.models else vision.NAMES if found.large else SMALL
    found.size = found.size or (224 if found.large else 64)
    found.batch = found.batch or (2 if found.large else 4)
    torch.set_num_threads(2)
    rows = []
    for name in names:
        rows.append(row(name, found))
        print(f"{name:20} {rows[-1]['seconds']:8.4f} s  {rows[-1]['ratio']:.4f}", flush=True)
        if found.save:
            merge("verify", rows, ("model", "size", "batch"))
    mean = math.exp(sum(math.log(r["ratio"]) for r in rows) / len(rows))
    print(f"geometric mean over {len(rows)} models at {found.size}: {mean:.4f}")


if __name__ == "__main__":
    main()
