"""The command line: thin over the package, so that whatever a notebook can do, a terminal can.

    vqclip generate "desert:50 | snow:25" size=256x256 steps=300     paint; the last line is the session's folder
    vqclip generate "a castle at dusk" --seeds 4                     four pictures of it side by side, each a session
    vqclip preflight "desert:50 | snow:25" size=512x384              what that would be: memory, time, disk, video
    vqclip continue SESSION [steps=500]                              go on, exactly
    vqclip video SESSION [fps=30] [smooth=2]                         make the video of it
    vqclip info FILE                                                 the recipe in a picture, video or session
    vqclip studio                                                    a page to steer a picture while it grows
    vqclip settings                                                  all settings, their ranges and presets
    vqclip checkpoints [NAME or FILE ...] [--keep]                   what there is; or fetch these, or convert a file
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from . import __version__
from .settings import PRESETS, Settings, SettingsError, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors meant for people go to stderr as one sentence, with code 2."""
    # Threads that spin while they wait make a step ten times slower as soon as another program, a browser say, wants
    # a core. This must be known before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = _parse(arguments)
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    try:
        if arguments.run not in (_settings, _studio):
            _load()
        code = arguments.run(arguments) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads our output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, ArithmeticError) as error:  # every error of ours is one of these
        if type(error).__module__.partition(".")[0] != __package__:
            raise
        print(f"vqclip: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _load() -> None:
    """Load torch. What it brings is there to stay: looking through it for garbage, as Python does meanwhile and at the
    end of the program, takes a second."""
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        from . import run  # noqa: F401

        gc.freeze()
    finally:
        gc.enable()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options may stand among the words, as in `generate PROMPT --preset draft size=64x64`, which argparse has not."""
    parser = _parser()
    found, further = parser.parse_known_args(arguments)
    if further and (not hasattr(found, "words") or any(word.startswith("-") for word in further)):
        odd = [word for word in further if word.startswith("-")] or further
        parser.error(f"unrecognized arguments: {' '.join(odd)}")
    if further:
        found.words += further
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vqclip", description="Type a prompt and watch a picture grow (VQGAN + CLIP).")
    parser.add_argument("--version", action="version", version=f"vqclip {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    workspace = argparse.ArgumentParser(add_help=False)
    workspace.add_argument("--workspace", metavar="DIR",
                           help="where everything is kept (default: $VQCLIP_HOME or ./workspace)")  # fmt: skip

    def command(run, name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, parents=[workspace], allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    _ask(command(_generate, "generate", "paint a picture; the last line printed is the session's folder"))
    _ask(command(_preflight, "preflight",
                 "say what a run would be, its memory, time, disk and video, after three steps of it"))  # fmt: skip
    sub = command(_continue, "continue", "go on with a session exactly where it stood")
    sub.add_argument("words", nargs="*", metavar="SESSION steps=N",
                     help="its folder, or the newest if none is given; and more steps than planned")  # fmt: skip
    sub = command(_video, "video", "make the video of a session")
    sub.add_argument("words", nargs="*", metavar="SESSION key=value",
                     help="its folder, or the newest if there is none given; and fps, length, min_fps, max_fps, first, "
                     "last, hold, smooth, or path=FILE.mp4, .gif or .webp")  # fmt: skip
    sub = command(_info, "info", "print the recipe inside a picture or video, or a session's")
    sub.add_argument("file", type=Path, metavar="FILE")
    command(_settings, "settings", "list all settings and presets")
    sub = command(_checkpoints, "checkpoints", "list the big models, or fetch some, or convert a file of your own")
    sub.add_argument("names", nargs="*", metavar="NAME or FILE",
                     help="from the list, to be fetched; or a file, to be converted to safetensors")  # fmt: skip
    sub.add_argument("--keep", action="store_true", help="keep the files as they were fetched, too")
    sub = command(_studio, "studio", "open the panel in a browser, without a notebook (needs vqclip[studio])")
    sub.add_argument("--ip", default="127.0.0.1", help="the address to listen on; another one lets other machines in")
    sub.add_argument("--port", type=int, default=8866)
    sub.add_argument("--language", default="en", help="of the panel: en, ru, de or es")
    sub.add_argument("--no-browser", action="store_true", help="only print the address")
    return parser


def _ask(sub: argparse.ArgumentParser) -> None:
    """Let a command be told what to paint; `_asked` reads it."""
    sub.add_argument("words", nargs="*", metavar="PROMPT key=value",
                     help="the prompt, `text:weight:stop | ...`, and settings; see `vqclip settings`")  # fmt: skip
    sub.add_argument("--like", metavar="FILE",
                     help="begin with the recipe inside a picture or video, and what was changed")  # fmt: skip
    sub.add_argument("--settings", metavar="FILE", help="begin with a YAML file of settings")
    sub.add_argument("--preset", choices=PRESETS, help="how long and how closely to look")
    sub.add_argument("--seeds", type=int, default=1, metavar="N",
                     help="N pictures side by side, with this seed and those that follow")  # fmt: skip


def _asked(arguments: argparse.Namespace) -> tuple[Settings, dict]:
    """The settings that a command line asks for, and what shall change on the way, see `run.Run.change`."""
    prompt, changes = _split(arguments.words, Settings.__dataclass_fields__)
    settings, steering = Settings(), {}
    if arguments.like:
        from .images import read_recipe
        from .session import steering_of

        recipe = read_recipe(arguments.like)
        settings, steering = Settings.of_recipe(recipe), steering_of(recipe.get("steering", ()))
    if arguments.settings:
        settings = Settings.load(arguments.settings)
    if arguments.preset:
        settings = settings.preset(arguments.preset)
    if prompt is not None:
        settings = settings.replace(prompts=prompt)
    elif not (arguments.like or arguments.settings):
        raise SettingsError('there is no prompt: write it first, as in vqclip generate "desert:50 | snow:25"')
    chosen = {change.partition("=")[0] for change in changes} | ({"prompts"} if prompt is not None else set())
    steering = {step: {name: entry[name] for name in entry.keys() - chosen} for step, entry in steering.items()}
    return settings.override(changes), steering


def _batch(arguments: argparse.Namespace, folder: Path):
    """The runs that a command line asks for, side by side; `folder` is the workspace."""
    settings, steering = _asked(arguments)
    if arguments.seeds < 1:
        raise SettingsError(f"--seeds {arguments.seeds}: at least one picture is to be painted")
    from .batch import generate_batch

    seeds = range(settings.seed, settings.seed + arguments.seeds)
    return generate_batch(settings=settings, root=folder / "checkpoints", steering=steering, seeds=seeds)


def _generate(arguments: argparse.Namespace) -> None:
    from .session import Session, workspace

    folder = workspace(arguments.workspace)
    batch = _batch(arguments, folder)
    _paint(batch, [Session.create(folder, run) for run in batch.runs])


def _preflight(arguments: argparse.Namespace) -> None:
    from .preflight import look, pace
    from .session import workspace

    folder = workspace(arguments.workspace)
    batch = _batch(arguments, folder)
    report = look(batch.runs[0], folder)
    print("\n".join((replace(report, seconds=pace(batch.runs[0])) if report.fits else report).lines()))
    _say_of_each(batch)


def _say_of_each(batch) -> None:
    """Of several pictures: how many are painted at once, and that what was said is of one."""
    if len(batch.runs) > 1:
        print(f"{len(batch.runs)} pictures side by side, {batch.at_once} at once; this is of each")


def _continue(arguments: argparse.Namespace) -> None:
    from .batch import Batch

    folder, changes = _split(arguments.words, {"steps"})
    session = _session(folder, arguments.workspace)
    run = session.resume()
    for change in changes:
        if not change.startswith("steps="):
            raise SettingsError(f"{change!r} cannot change in a session: only steps can. To paint something else from "
                                "here, use generate --like with its picture")  # fmt: skip
        run.steps = session.settings.override([change]).steps
    _paint(Batch([run]), [session])


def _paint(batch, sessions) -> None:
    """Show a bar with the similarity of every prompt, of the first; whatever happens, say where the sessions are."""
    from tqdm import tqdm

    from .preflight import look, paced
    from .watch import progress

    run, folders = batch.runs[0], "\n".join(str(session.path) for session in sessions)
    print("\n".join(look(run, sessions[0].path, count=False).lines()))
    _say_of_each(batch)
    try:
        first = (frames[0] for frames in batch.record(sessions))
        for _ in progress(paced(first, run, tqdm.write), run):
            pass
    except KeyboardInterrupt:
        print(f"\npaused at step {run.step}; everything is kept. Go on with:")
        for session in sessions:
            print(f"vqclip continue {session.path}")
        raise
    except ArithmeticError:
        print(f"what was made is in {folders}", file=sys.stderr)
        raise
    for session in sessions:
        print(f"picture: {session.path / 'final.png'}")
    print(folders)


def _video(arguments: argparse.Namespace) -> None:
    from .video import write_video

    kinds = {"path": str, "fps": float, "length": float, "min_fps": float, "max_fps": float, "first": int, "last": int,
             "hold": float, "smooth": int}  # fmt: skip
    folder, changes = _split(arguments.words, kinds)
    options = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in kinds:
            raise SettingsError(f"{change!r} is no setting of a video: choose {', '.join(kinds)}, as in fps=30")
        try:
            options[name] = kinds[name](text)
        except ValueError:
            raise SettingsError(f"{change!r}: {name} must be a number") from None
    print(write_video(_session(folder, arguments.workspace), options.pop("path", None), **options))


def _info(arguments: argparse.Namespace) -> None:
    from .images import read_recipe
    from .session import Session

    recipe = Session(arguments.file).recipe() if arguments.file.is_dir() else read_recipe(arguments.file)
    print(json.dumps(recipe, indent=1, ensure_ascii=False))


def _settings(arguments: argparse.Namespace) -> None:
    for name, default, allowed, help in table():
        print(f"{name:<14}{default:<22}{help}{f' ({allowed})' if allowed else ''}")
    for name, changes in PRESETS.items():
        print(f"--preset {name:<8}{' '.join(f'{key}={value}' for key, value in changes.items())}")


def _studio(arguments: argparse.Namespace) -> None:
    """Voila shows the page's notebook; who wants in needs the token in the address that it prints."""
    import importlib.util

    from .session import workspace
    from .strings import Words

    if importlib.util.find_spec("voila") is None:
        raise SettingsError('the page needs Voila: pip install -e ".[studio]" where vqclip is, or make studio')
    Words(arguments.language)
    folder = workspace(arguments.workspace).resolve()
    command = [sys.executable, "-m", "voila", str(Path(__file__).with_name("page.ipynb")), "--token",
               f"--Voila.ip={arguments.ip}", f"--port={arguments.port}"]  # fmt: skip
    command += ["--no-browser"] * arguments.no_browser
    environment = {**os.environ, "VQCLIP_HOME": str(folder), "VQCLIP_LANGUAGE": arguments.language}
    os.execve(sys.executable, command, environment)  # Ctrl-C and the like are Voila's from here on


def _checkpoints(arguments: argparse.Namespace) -> None:
    from .catalogue import checkpoint_table
    from .session import workspace

    folder = workspace(arguments.workspace) / "checkpoints"
    if not arguments.names:
        print(checkpoint_table(folder))
    for name in arguments.names:
        from .checkpoints import convert, fetch, kind_of

        path = Path(name)
        is_file = path.is_file() and path.suffix
        print(convert(path, path.with_suffix(".safetensors"), kind_of(path)) if is_file
              else fetch(name, folder, arguments.keep))  # fmt: skip


def _split(words: list[str], names: Iterable[str]) -> tuple[str | None, list[str]]:
    """The first word, unless it is a `name=value` already, and the others."""
    if words and not ("=" in words[0] and words[0].partition("=")[0] in names):
        return words[0], words[1:]
    return None, words


def _session(folder: str | None, workspace: str | None):
    from .session import Session

    return Session(folder) if folder else Session.latest(workspace)
