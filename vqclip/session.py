"""A session: one run, one folder, from which nothing that was made is ever lost.

    workspace/sessions/20261122-134501-desert-snow/
        settings.yaml    what was chosen
        about.json       versions, checkpoint hashes, machine
        codes            the codes of every step (see codelog.py)
        losses.jsonl     one line a step: losses and similarities
        steering.json    what was changed while it was painted, and at which step; only if something was
        state            all that is needed to go on exactly: z, optimiser moments, generators
        final.png        the last picture, with the recipe inside
        video.mp4        when it was made

Codes and losses are appended at every step; the state is replaced, whole, about once a second. After a crash the run
goes on from the last state and paints the same frames again, bit for bit on a CPU.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from . import __version__, colab
from . import prompts as prompt_language
from .checkpoints import sha256
from .codelog import CodeLog, CodesError
from .files import atomic
from .images import ImageError, load_image, save_png
from .precision import able, dtypes
from .run import Frame, Run, crop_to, generate, pick_device
from .settings import Settings
from .vqgan import VQGAN, load_vqgan

FORMAT = 2  # of the folder; raised when an older vqclip could not read it
PAUSE = 1.0  # seconds between two states: what a crash may cost
LEFT = {".part", ".png", ".jsonl", ".json"}  # what a killed recorder leaves half written, in parts; no videos
ABOUT = {"format", "torch", "threads", "checkpoints", "settings_sha256"}  # what about.json must have


class SessionError(ValueError):
    """A session that is missing, damaged, in use, of another version, or that cannot be written."""


class _FolderLock(FileLock):
    """Keeps other programs out of a session's folder; within this one there is one lock a folder, and `holder`.

    A recording that was left behind, held by the traceback of a notebook's last error, still has the lock. The next
    recording takes it over and becomes its holder, by which the old one knows that it is out.
    """

    holder: object | None = None


def workspace(path: str | Path | None = None, drive: bool = False) -> Path:
    """The folder that everything lives in: the one given, else $VQCLIP_HOME, else `workspace` here. Made if need be.

    Args:
        drive: in Colab, where there is neither of the first two, take one in the user's Drive, which outlives the
            machine; elsewhere this means nothing.
    Raises:
        SessionError: it cannot be used.
    """
    path = path or os.environ.get("VQCLIP_HOME")
    try:
        folder = Path(path or (colab.drive() if drive and colab.in_colab() else "workspace"))
    except ValueError as error:
        raise SessionError(str(error)) from error
    try:
        for name in ("checkpoints", "sessions"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SessionError(f"the workspace {folder} cannot be used ({error.strerror}): choose another") from error
    return folder


class Session:
    """One run on disk.

    Args:
        path: its folder; see `create` for a new one and `latest` for the newest.
    Raises:
        SessionError: it is missing, damaged, or was made by a newer vqclip.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.about = _read_about(self.path)
        self.settings = Settings.load(self.path / "settings.yaml")
        try:
            self.codes = CodeLog(self.path / "codes")
        except CodesError as error:
            raise SessionError(str(error)) from error
        self._lock = _FolderLock(self.path / ".lock", timeout=0, thread_local=False, is_singleton=True)
        self.last_frame: Frame | None = None
        self._noted: dict[int, dict[str, Any]] = {}  # the steering that is in the file

    @classmethod
    def create(cls, workspace_path: str | Path, run: Run) -> Session:
        """A new folder for a run, in which it can be recorded; no two runs ever get the same one."""
        if run.step:
            raise SessionError(f"the run is at step {run.step} already: make its session before the first step")
        parent = workspace(workspace_path) / "sessions"
        vqgan = run.latent.vqgan
        try:
            path = _new_folder(parent, run.settings)
            about = {
                "format": FORMAT, "vqclip": __version__, **_computer(run),
                "python": platform.python_version(), "machine": platform.machine(),
                "created": datetime.now().astimezone().isoformat(timespec="seconds"),
                "checkpoints": _checkpoints(run),
            }  # fmt: skip
            run.settings.save(path / "settings.yaml")
            about["settings_sha256"] = sha256(path / "settings.yaml")
            for number, like in enumerate(prompt_language.parse_optional(run.settings.image_prompts)):
                save_png(path / f"image_prompt_{number}.png", load_image(like.text)[0])
            CodeLog.create(path / "codes", *run.latent.z.shape[2:], len(vqgan.codebook))
            (path / "losses.jsonl").touch()
            _write_state(path, run)
            with atomic(path / "about.json", "w") as file:  # last: a folder is a session once this is there
                json.dump(about, file, indent=1)
        except OSError as error:
            raise SessionError(f"no session can be made in {parent} ({error.strerror}): choose another workspace or "
                               "make room") from error  # fmt: skip
        return cls(path)

    @classmethod
    def latest(cls, workspace_path: str | Path | None = None) -> Session:
        """The newest session of a workspace."""
        made = sorted((workspace(workspace_path) / "sessions").glob("*/about.json"), key=lambda p: p.stat().st_mtime)
        if not made:
            raise SessionError(f"there is no session in {workspace(workspace_path)} yet: paint one first")
        return cls(made[-1].parent)

    def record(self, run: Run) -> Iterator[Frame]:
        """Iterate a run and keep every frame; yields the frames. Iterate again to go on after an interrupt.

        Raises:
            SessionError: another program records this session, the run is of another one, or the disk is full; what
                was made is kept.
        """
        with self.recording(run) as recording:
            while True:
                recording.note()
                frame = next(run, None)
                if frame is None:
                    return
                recording.keep(frame)
                yield frame

    def recording(self, run: Run) -> Recording:
        """What `record` keeps frames with, for whoever takes the steps himself: `with session.recording(run) as r`."""
        return Recording(self, run)

    def resume(self, vqgan: VQGAN | None = None, clip: Any = None, root: str | Path | None = None) -> Run:
        """The run as it stood when it was last saved, ready to be recorded further.

        Args:
            vqgan, clip: already loaded models, to save the time; else they are loaded as the settings say.
            root: where checkpoints are looked for by name; by default the workspace's own folder.
        Raises:
            SessionError: the state is damaged, or a checkpoint is not the one the session began with.
        """
        state = self._read_state()
        if sha256(self.path / "settings.yaml") != self.about["settings_sha256"]:
            raise SessionError(f"{self.path / 'settings.yaml'} was changed since the session began, so going on would "
                               "paint something else: undo that, or begin anew with it")  # fmt: skip
        # The start is in the state and the pictures are here: nothing outside the session is needed again.
        likes = prompt_language.parse_optional(self.settings.image_prompts)
        pictures = {like.text: self._picture(number) for number, like in enumerate(likes)}
        settings = self.settings.replace(init_image="", churn=0.0) if self.settings.init_image else self.settings
        run = generate(vqgan=vqgan, clip=clip, settings=settings, pictures=pictures,
                       root=root or self.checkpoints_folder, steering=self.steering)  # fmt: skip
        run.settings = self.settings
        found = _checkpoints(run)
        for name, was in self.about["checkpoints"].items():
            now = found.get(name, "not there")
            if was != now:
                raise SessionError(f"{self.path} was begun with another {name!r} ({was} then, {now} now): put that "
                                   "checkpoint back to go on")  # fmt: skip
        here = _computer(run)
        if was := {name: self.about[name] for name in here if self.about.get(name, here[name]) != here[name]}:
            told = ", ".join(f"{name}={value}" for name, value in was.items())
            warnings.warn(f"it was begun with {told}, which is another now: the run goes on, but not bit for bit",
                          stacklevel=2)  # fmt: skip
        if changed := state["weights"].keys() ^ run.losses.keys():
            warnings.warn(f"the losses {', '.join(sorted(changed))} came or went while it was painted, which is not "
                          "kept: do it again", stacklevel=2)  # fmt: skip
        run.restore(state)
        run.steps = max(run.steps, state["steps"])
        return run

    @property
    def steps(self) -> int:
        """How many steps it is to have in all: those of its settings, or what they were raised to since."""
        return max(self.settings.steps, self._read_state()["steps"])

    @property
    def steering(self) -> dict[int, dict[str, Any]]:
        """What was changed while it was painted, as `generate` takes it: {step: {setting: value}}."""
        path = self.path / "steering.json"
        try:
            return steering_of(json.loads(path.read_text("utf-8"))) if path.exists() else {}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise SessionError(f"{path} is damaged ({error}): put a copy of it back, or take it away to go on without "
                               "what was changed") from error  # fmt: skip

    @property
    def checkpoints_folder(self) -> Path:
        """Where this session's workspace keeps its checkpoints."""
        return self.path.parent.parent / "checkpoints"

    def decoder(self) -> VQGAN:
        """The painter of this session, to make pictures of its codes."""
        device = pick_device(self.settings.device)
        return load_vqgan(self.settings.vqgan, device, self.checkpoints_folder,
                          dtypes(self.settings.precision, able(device)).painter)  # fmt: skip

    def losses(self) -> list[dict[str, Any]]:
        """One dict a step: step, losses by name, similarity by prompt; without lines that are damaged."""
        path, made, found = self.path / "losses.jsonl", len(self.codes), []
        text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
        for line in text.split("\n"):  # not splitlines: a prompt may hold any other kind of line break
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(entry, dict) and entry.get("step", made) < made:
                found.append(entry)
        return found

    def recipe(self) -> dict[str, Any]:
        """All that is needed to repeat this run: what is put inside its pictures and videos."""
        return {"settings": self.settings.to_dict(), "about": self.about, "steps_made": len(self.codes),
                "steering": steering_list(self.steering)}  # fmt: skip

    def _picture(self, number: int) -> Path:
        return self.path / f"image_prompt_{number}.png"

    def _append(self, frame: Frame) -> None:
        entry = {"step": frame.step, "losses": {name: loss.item() for name, loss in frame.losses.items()},
                 "similarity": frame.similarity}  # fmt: skip
        with open(self.path / "losses.jsonl", "a", encoding="utf-8") as file:
            file.write(_line(entry))
        self.codes.append(frame.step, frame.codes.cpu().numpy())  # last: a step is made once its codes are there

    def _note_steering(self, run: Run) -> None:
        if run.steering != self._noted:
            with atomic(self.path / "steering.json", "w") as file:
                json.dump(steering_list(run.steering), file, indent=1, ensure_ascii=False)
            self._noted = dict(run.steering)

    def _save(self, run: Run) -> None:
        self._note_steering(run)
        self.codes.sync()  # first, so that no state is ever ahead of its codes
        _write_state(self.path, run)

    def _close(self, run: Run) -> None:
        """Keep the newest state and picture; a step that was interrupted before its record is taken back."""
        made = len(self.codes)
        if run.step == made + 1:
            run.undo()
        if run.step == made:
            self._save(run)
        if made:
            self._save_picture(run, made - 1)

    def _save_picture(self, run: Run, step: int) -> None:
        if self.last_frame is not None and self.last_frame.step == step:
            image = self.last_frame.image  # (3, H, W)
        else:
            image = run.latent.decode(torch.from_numpy(self.codes.read(step)[0]).to(run.latent.z.device))
        save_png(self.path / "final.png", crop_to(image, self.settings.size), self.recipe())

    def _align(self, run: Run) -> None:
        """Bring the run and the files to the same step: that of the run if all is whole, else that of the state."""
        if run.settings.replace(steps=self.settings.steps) != self.settings:
            raise SessionError(f"the run was not set up as {self.path} was: give it a session of its own")
        for left in self.path.glob(".*.part*"):
            if left.suffix in LEFT:
                left.unlink()
        self._noted = self.steering
        if len(self.codes) != run.step:
            state = self._read_state()
            if run.step != state["step"]:  # it is new to this folder, and learns what was changed in it
                run.steering = {**self._noted, **run.steering}
            run.restore(state)
        if len(self.codes) < run.step:
            raise SessionError(f"{self.path} has {len(self.codes)} steps, its state is of step {run.step}: the codes "
                               "were cut; make the video from what is left")  # fmt: skip
        self.codes.truncate(run.step)
        path = self.path / "losses.jsonl"
        whole = "".join(map(_line, self.losses()))
        if not path.is_file() or path.read_text("utf-8", errors="replace") != whole:
            with atomic(path, "w") as file:
                file.write(whole)

    def _read_state(self) -> dict[str, Any]:
        path = self.path / "state"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SessionError(f"{path} cannot be read: the run cannot go on, but its video can be made") from error
        digest, payload = data[:32], data[32:]
        if hashlib.sha256(payload).digest() != digest:
            raise SessionError(f"{path} is damaged: the run cannot go on, but `vqclip video {self.path}` still works, "
                               "and --like with its picture begins anew")  # fmt: skip
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


class Recording:
    """A session while it is recorded: a context in which nobody else records it.

    On the way in, run and files are brought to the same step; on the way out, state and picture are kept, and a step
    whose frame was lost is taken back. All of it raises SessionError, as `Session.record` says.
    """

    def __init__(self, session: Session, run: Run):
        self.session, self.run = session, run
        self._me, self._saved = object(), 0.0

    def __enter__(self) -> Recording:
        lock = self.session._lock
        lock.holder = self._me
        try:
            with self._said():
                lock.acquire()
                self.session._align(self.run)
        except BaseException:
            self._release()
            raise
        self._saved = time.monotonic()
        return self

    def note(self) -> None:
        """Before a step: keep what it is steered by, so that no kill can part the two."""
        if not self._mine:
            raise SessionError(f"{self.session.path} is painted from elsewhere in this program by now: go on there")
        with self._said():
            self.session._note_steering(self.run)

    def keep(self, frame: Frame) -> None:
        """After the step: keep its frame, and about once a second the state."""
        with self._said():
            self.session._append(frame)
            self.session.last_frame = frame
            if time.monotonic() - self._saved >= PAUSE:
                self.session._save(self.run)
                self._saved = time.monotonic()

    def __exit__(self, *_: object) -> None:
        try:
            if self._mine:
                with self._said():
                    self.session._close(self.run)
        finally:
            self._release()

    @property
    def _mine(self) -> bool:
        return self._me is self.session._lock.holder

    def _release(self) -> None:
        if self._mine:
            self.session._lock.release(force=True)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What goes wrong with files, said as a SessionError."""
        path = self.session.path
        try:
            yield
        except Timeout as error:
            raise SessionError(f"{path} is being painted by another program: stop that one first") from error
        except (OSError, ImageError) as error:
            reason = getattr(error.__cause__ or error, "strerror", None) or error  # ImageError has it from an OSError
            raise SessionError(f"{path} cannot be written ({reason}): make room or allow writing, then `vqclip "
                               f"continue {path}`; all but the last second is kept") from error  # fmt: skip


def _read_about(path: Path) -> dict[str, Any]:
    """What about.json says, checked to be whole and of our format."""
    if not (path / "about.json").is_file():
        raise SessionError(f"{path} is not a session: give the folder that `vqclip generate` printed")
    try:
        about = json.loads((path / "about.json").read_text("utf-8"))
        version, missing = about["format"], ABOUT - about.keys()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SessionError(f"{path / 'about.json'} is damaged ({error}): put a copy of it back") from error
    if version != FORMAT:
        raise SessionError(
            f"{path} has format {version}, made by vqclip {about.get('vqclip')}; this is vqclip {__version__}, which "
            f"reads format {FORMAT}: install the version that made it"
        )
    if missing:
        raise SessionError(f"{path / 'about.json'} is damaged (no {min(missing)!r} in it): put a copy of it back")
    return about


def steering_list(steering: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Steering as JSON has it, whose keys are texts: one entry a step, in their order."""
    return [{"step": step, **steering[step]} for step in sorted(steering)]


def steering_of(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The inverse of `steering_list`: what a recipe has under "steering", as `generate` takes it."""
    return {entry["step"]: {name: entry[name] for name in entry if name != "step"} for entry in entries}


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _write_state(path: Path, run: Run) -> None:
    buffer = io.BytesIO()
    torch.save({**run.state(), "steps": run.steps}, buffer)
    with atomic(path / "state") as file:
        file.write(hashlib.sha256(buffer.getvalue()).digest())
        file.write(buffer.getvalue())


def _new_folder(parent: Path, settings: Settings) -> Path:
    words = re.findall(r"\w+", " ".join(prompt.text for prompt in prompt_language.parse(settings.prompts or "picture")))
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{'-'.join(words)[:40]}".strip("-")
    for number in range(1, 10_000):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise SessionError(f"too many sessions of the name {name} in {parent}: move some away")



def _computer(run: Run) -> dict[str, Any]:
    """What a run's frames depend on bit for bit, beside its settings and models."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": str(run.latent.z.device)}


def _checkpoints(run: Run) -> dict[str, str | None]:
    """The SHA-256 of every model of a run, by its name."""
    judges = [loss.perceptor for _, loss in run.losses.values() if hasattr(loss, "perceptor")]
    return {f"{kind} {model.name}": getattr(model, "sha256", None)
            for kind, model in (("vqgan", run.latent.vqgan), *(("clip", judge) for judge in judges))}  # fmt: skip
