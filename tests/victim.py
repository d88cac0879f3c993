"""Paints a session in one process after another, each of which is killed (SIGKILL) somewhere: a program for the test.

    CUDA_VISIBLE_DEVICES= python victim.py WORKSPACE STEPS KILLS SEED      prints what happened as JSON

The processes are forks of this one, because starting Python and torch takes seconds; it has the models in memory and
only forks, kills and waits. (torch's CUDA does not survive a fork.) A process kills itself before a random line, or
with a record half written, or is killed from here after a random frame. At the end two paint at once.
"""

import json
import os
import random
import signal
import sys
import traceback
from itertools import count
from types import SimpleNamespace

import mishaps
import quick
import torch

import vqclip
from vqclip import codelog, files, latent, run, session

torch.set_num_threads(1)
SETTINGS = dict(seed=11, lr=0.5, augment="mse", ema=0.5, losses="tv:0.3", init_weight=0.2)
PAINTER, JUDGE = quick.painter(), quick.Judge()


def new_run(steps):
    return quick.run(vqgan=PAINTER, clip=JUDGE, steps=steps, **SETTINGS)


def paint(workspace, steps, frames, tell):
    """Go on with the newest session, or begin one, for so many frames."""
    clock = count(0, 0.4)  # seconds; so the state is written every third frame or so
    session.time = SimpleNamespace(monotonic=lambda: next(clock))
    try:
        found = vqclip.Session.latest(workspace)
        painting = found.resume(PAINTER, JUDGE)
    except vqclip.SessionError:
        painting = new_run(steps)
        found = vqclip.Session.create(workspace, painting)
    painting.steps = min(steps, painting.step + frames)
    for _ in found.record(painting):
        os.write(tell, b".")


def fork(work):
    """Run `work(tell)` in a process of its own: (its id, where to read what it tells)."""
    hear, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        return child, hear
    try:
        os.close(hear)
        work(tell)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fate(rng, workspace, steps, tell):
    """Paint six frames or fewer until something happens."""
    how = rng.choice(["any line", "a line of the keeper", "a line of the keeper", "half a write", "half a write"])
    keeper = session, codelog, files
    mishap = {
        "any line": lambda: mishaps.at_line(rng.randrange(1, 1200), die, run, latent, *keeper),
        "a line of the keeper": lambda: mishaps.at_line(rng.randrange(1, 400), die, *keeper),
        "half a write": lambda: mishaps.at_write(rng.randrange(1, 24), die, *keeper),
    }[how]()
    with mishap as place:
        happen = place.happen

        def tell_and_die():
            os.write(tell, (place.where or "").encode())
            happen()

        place.happen = tell_and_die
        paint(workspace, steps, rng.randrange(1, 7), tell)


def kill_from_outside(child, hear, frames):
    while frames and os.read(hear, 1):
        frames -= 1
    os.kill(child, signal.SIGKILL)
    return "killed from outside"


def paint_and_wait(workspace, tell):
    """Begin to paint further, and stay in the middle of it."""
    found = vqclip.Session.latest(workspace)
    painting = found.resume(PAINTER, JUDGE)
    painting.steps += 3
    for _ in found.record(painting):
        os.write(tell, b".")
        signal.pause()


def try_to_paint(workspace, tell):
    try:
        paint(workspace, 10**6, 3, tell)
    except vqclip.SessionError as error:
        os.write(tell, str(error).encode())


def two_at_once(workspace):
    """What the second painter is told while the first one paints, and after that one was killed."""
    first, hear_first = fork(lambda tell: paint_and_wait(workspace, tell))
    os.read(hear_first, 1)
    told = []
    for _ in range(2):
        second, hear = fork(lambda tell: try_to_paint(workspace, tell))
        told.append(b"".join(iter(lambda hear=hear: os.read(hear, 1000), b"")).decode())
        os.waitpid(second, 0)
        if first:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
            first = None
    return told


def main(workspace, steps, kills, seed):
    rng, places, attempts = random.Random(seed), [], 0
    quick.paint(new_run(steps=1))  # or every process would have to prepare torch's kernels again
    while len(places) < kills:
        attempts += 1
        if attempts > 10 * kills:
            raise SystemExit(f"only {len(places)} of {kills} could be killed")
        if rng.random() < 0.2:
            child, hear = fork(lambda tell: paint(workspace, steps, 10, tell))
            place = kill_from_outside(child, hear, rng.randrange(1, 5))
        else:
            dice = random.Random(rng.random())
            child, hear = fork(lambda tell, dice=dice: fate(dice, workspace, steps, tell))
            place = b"".join(iter(lambda hear=hear: os.read(hear, 1000), b"")).decode().strip(".")
        os.close(hear)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            places.append(place)
        elif os.WEXITSTATUS(status):
            raise SystemExit("a painter failed")
    child, hear = fork(lambda tell: paint(workspace, steps, steps, tell))
    left = len(b"".join(iter(lambda: os.read(hear, 1000), b"")))
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the last painter failed")
    codes = vqclip.Session.latest(workspace).codes.read()
    report = {"kills": places, "pauses": attempts - len(places), "undisturbed": left, "codes": codes.tolist()}
    print(json.dumps({**report, "two at once": two_at_once(workspace)}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
