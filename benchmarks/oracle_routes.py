"""Can selecting filters pay? Compare an oracle that picks one of K patterns for each image with the best pattern.

    python benchmarks/oracle_routes.py RUN --data FOLDER --out FILE.json [--routes 4] [--steps 700]

RUN is a finished plain run (or its weights). For each way to make K patterns of half of the filters (clusters of the
dense network's outputs; random), the network is fine-tuned with the batch norms of each pattern: each image runs
through a random pattern and is taught by the dense network, so no pattern is preferred and no gater is trained. Then
every validation image runs through every pattern. The oracle knows the label, so K chances alone lift it: the random
patterns show by how much. What decides is whether the oracle gains more over the best pattern with clusters than with
random patterns (`oracle_gain`, with a bootstrap interval over images). Also reported: the pattern that answers most
like the dense network, which needs no label, and the mean of all patterns.
"""

import argparse
import copy
import itertools
import json
from pathlib import Path

import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.core.statistics import image_bootstrap
from gatewise.data import Augmentation
from gatewise.gaternet.recalibration import recalibrate
from gatewise.gaternet.teaching import distillation_loss
from gatewise.training import Recipe
from gatewise.training.from_recipe import Setup, build

_DRAWN = 2048  # images from which patterns are drawn and statistics are computed
_WAYS = ("single", "clusters", "random")


def make_net(way: str, routes: int, setup: Setup, images: list[Tensor], budget: float) -> gw.GaterNet:
    backbone = copy.deepcopy(setup.learner.plain_model)
    torch.manual_seed(0)
    net = gw.GaterNet(backbone, routes=1 if way == "single" else routes, budget=budget, image_size=images[0].shape[2:])
    random = net.routes.clone()
    net.draw_routes(images)
    if way == "random":
        net.routes.copy_(random)
    return net


def fine_tune(net: gw.GaterNet, teacher: nn.Module, setup: Setup, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    batches = (
        batch
        for epoch in itertools.count()
        for batch in setup.batches.training(epoch, seed=0, augmentation=setup.augmentation)
    )
    net.train()
    for images, labels in itertools.islice(batches, steps):
        route = torch.randperm(len(images)) % len(net.routes)
        with torch.autocast("cpu", torch.bfloat16, enabled=setup.learner.precision == "bf16"):
            logits = net(images, net.routes[route].float()).float()
            with torch.no_grad():
                goal = teacher(images)
            loss = nn.functional.cross_entropy(logits, labels) + distillation_loss(logits, goal.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def calibrate_all(net: gw.GaterNet, images: list[Tensor]) -> None:
    """Compute the statistics of every route from the same images."""
    for number in range(len(net.routes)):
        every = net.of_route(number)
        recalibrate(every, images)
        for norm, own in zip(net.selection.norms.of_routes[number], every.selection.norms.of_routes[0], strict=True):
            norm.load_state_dict(own.state_dict())


@torch.no_grad()
def answers(net: gw.GaterNet, setup: Setup) -> tuple[Tensor, Tensor]:
    """Return the logits of every route, (K, N, classes), and the labels, (N,)."""
    net.eval()
    found, labels = [], []
    for images, targets in setup.validation.evaluation():
        found.append(torch.stack([net(images, pattern.float().expand(len(images), -1)) for pattern in net.routes]))
        labels.append(targets)
    return torch.cat(found, 1), torch.cat(labels)


def judge(logits: Tensor, labels: Tensor, dense: Tensor) -> dict[str, float]:
    """Return accuracies in percent, and the gain of the oracle over the best pattern with its interval over images."""
    correct = logits.argmax(2) == labels
    distance = (dense.softmax(1) * (dense.log_softmax(1) - logits.log_softmax(2))).sum(2)  # (K, N)
    closest = correct.gather(0, distance.argmin(0, keepdim=True))[0]
    shares = [float(each) for each in correct.float().mean(1)]
    best = correct[shares.index(max(shares))]
    gain = image_bootstrap(correct.any(0, keepdim=True), best.unsqueeze(0))
    low, high = (gain.mean if each is None else each for each in (gain.low, gain.high))
    return {
        "best_single": 100 * max(shares),
        "mean_single": 100 * sum(shares) / len(shares),
        "oracle": 100 * float(correct.any(0).float().mean()),
        "oracle_gain": 100 * gain.mean,
        "oracle_gain_low": 100 * low,
        "oracle_gain_high": 100 * high,
        "closest_to_dense": 100 * float(closest.float().mean()),
        "averaged": 100 * float((logits.softmax(2).mean(0).argmax(1) == labels).float().mean()),
        "all_correct": 100 * float(correct.all(0).float().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--routes", type=int, nargs="+", default=[4])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 700])
    parser.add_argument("--budget", type=float, default=0.5)
    args = parser.parse_args()
    recipe = Recipe(data=args.data, model=args.model, init=args.run)
    setup = build(recipe.plan(), recipe.source.load())
    teacher = setup.learner.plain_model.eval()
    drawn = setup.batches.training(0, seed=1, augmentation=Augmentation())
    images = [batch for batch, _ in itertools.islice(drawn, -(-_DRAWN // setup.batches.batch_size))]
    with torch.no_grad():
        dense = torch.cat([teacher(x) for x, _ in setup.validation.evaluation()])
    report = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    labels = torch.cat([y for _, y in setup.validation.evaluation()])
    report["dense"] = 100 * float((dense.argmax(1) == labels).float().mean())
    done = {(row["way"], row["routes"], row["steps"]) for row in report["rows"]}
    for routes, steps, way in itertools.product(args.routes, args.steps, _WAYS):
        count = 1 if way == "single" else routes
        if (way, count, steps) in done:
            continue
        net = make_net(way, routes, setup, images, args.budget)
        fine_tune(net, teacher, setup, steps)
        calibrate_all(net, images)
        row = {"way": way, "routes": count, "steps": steps, **judge(*answers(net, setup), dense)}
        done.add((way, count, steps))
        report["rows"].append(row)
        args.out.write_text(json.dumps(report, indent=1))
        print(row, flush=True)


if __name__ == "__main__":
    main()
